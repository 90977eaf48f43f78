//! Checks edits of headers and the templates in them.

use std::collections::BTreeMap;

use super::super::diagnostic::Report;
use super::super::raw::{self, Word};
use super::At;
use crate::rewrite::headers::{HeaderEdit, Name, Value, reserved};
use crate::rewrite::template::Template;

/// The edits of one scope in their order: rename, remove, set, add. `captures` are the names that may stand in values.
pub(super) fn check(raw: &raw::HeaderEdits, captures: &[&str], at: &At<'_>, report: &mut Report) -> Vec<HeaderEdit> {
    let mut edits = Vec::new();
    for (from, to) in &raw.rename {
        let at = at.key("rename");
        let names = name(from, &at.key(from), report).zip(name(to, &at.key(from), report));
        edits.extend(names.map(|(from, to)| HeaderEdit::Rename { from: from.name, to }));
    }
    for (index, text) in raw.remove.0.iter().enumerate() {
        edits.extend(name(text, &at.key("remove").index(index), report).map(|name| HeaderEdit::Remove(name.name)));
    }
    let set = values(&raw.set, captures, &at.key("set"), report);
    edits.extend(set.into_iter().map(|(name, value)| HeaderEdit::Set { name, value }));
    let add = values(&raw.add, captures, &at.key("add"), report);
    edits.extend(add.into_iter().map(|(name, value)| HeaderEdit::Add { name, value }));
    edits
}

/// Names with the values that they get.
pub(super) fn values(raw: &BTreeMap<String, Word>, captures: &[&str], at: &At<'_>, report: &mut Report) -> Vec<(Name, Value)> {
    let mut found = Vec::new();
    for (text, value) in raw {
        let at = at.key(text);
        let Some(name) = name(text, &at, report) else { continue };
        match template(&value.0, captures, &at, report).and_then(Value::of) {
            Ok(value) => found.push((name, value)),
            Err(why) => report.push(at.error(why)),
        }
    }
    found
}

/// A text with values of the request; what a placeholder filled in is a secret and taken as it is.
pub(super) fn template(text: &str, captures: &[&str], at: &At<'_>, report: &mut Report) -> Result<Template, String> {
    if at.is_filled() {
        if at.has_text_around_placeholders(|around| around.contains('{')) {
            return Err("values of the request cannot stand beside `${…}`, whose text is taken as it is: use one or the other".to_owned());
        }
        let literal = text.replace('{', "{{").replace('}', "}}");
        return Template::parse(&literal, &[]).map(|template| template.with_secrecy(true));
    }
    if let Some((theirs, ours)) = foreign_value(text) {
        let message = format!("`{theirs}` stands for itself here, it is no value of the request");
        report.push(at.warning(message).with_help(ours));
    }
    Template::parse(text, captures)
}

/// nginx's and HAProxy's way to write a value of the request, and ours.
fn foreign_value(text: &str) -> Option<(&str, String)> {
    let at = text.find("%[").or_else(|| {
        let mut bytes = text.bytes().enumerate().zip(text.bytes().skip(1));
        bytes
            .find(|((_, mark), next)| (*mark == b'$' && next.is_ascii_alphanumeric()) || (*mark == b'\\' && next.is_ascii_digit()))
            .map(|((at, _), _)| at)
    })?;
    let rest = text.get(at + 1..)?;
    let length = rest.bytes().take_while(|byte| byte.is_ascii_alphanumeric() || *byte == b'_').count();
    let name = rest.get(..length)?;
    let ours = match name {
        "" => "values are written `{client_address}`, `{host}`, `{header.NAME}`: see the reference".to_owned(),
        "request_uri" => "write `{uri}`".to_owned(),
        "uri" | "document_uri" => "write `{path}`".to_owned(),
        "args" | "query_string" => "write `{query}`".to_owned(),
        "host" | "http_host" | "server_name" => "write `{host}`".to_owned(),
        "remote_addr" | "proxy_add_x_forwarded_for" => "write `{client_address}`".to_owned(),
        "scheme" | "request_id" => format!("write `{{{name}}}`"),
        "request_method" => "write `{method}`".to_owned(),
        number if number.bytes().all(|byte| byte.is_ascii_digit()) => "name the capture, `(?<id>…)`, and write `{id}`".to_owned(),
        name => match (name.strip_prefix("http_"), name.strip_prefix("cookie_"), name.strip_prefix("arg_")) {
            (Some(header), _, _) => format!("write `{{header.{}}}`", header.replace('_', "-")),
            (_, Some(cookie), _) => format!("write `{{cookie.{cookie}}}`"),
            (_, _, Some(key)) => format!("write `{{query.{key}}}`"),
            _ => format!("values are written in braces, such as `{{host}}`: see the reference for what there is of `{name}`"),
        },
    };
    Some((text.get(at..at + 1 + length.max(1))?, ours))
}

fn name(text: &str, at: &At<'_>, report: &mut Report) -> Option<Name> {
    match Name::parse(text) {
        Err(why) => report.push(at.error(why)),
        Ok(name) => match reserved(&name.name) {
            Some(why) => report.push(at.error(format!("`{text}` cannot be edited: {why}"))),
            None => return Some(name),
        },
    }
    None
}
