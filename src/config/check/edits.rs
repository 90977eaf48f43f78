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
    for (index, text) in raw.remove.iter().enumerate() {
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
        match template(&value.0, captures, &at).and_then(Value::of) {
            Ok(value) => found.push((name, value)),
            Err(why) => report.push(at.error(why)),
        }
    }
    found
}

/// A text with values of the request; what a placeholder filled in is a secret and taken as it is.
pub(super) fn template(text: &str, captures: &[&str], at: &At<'_>) -> Result<Template, String> {
    if at.is_filled() {
        let literal = text.replace('{', "{{").replace('}', "}}");
        return Template::parse(&literal, &[]).map(|template| template.with_secrecy(true));
    }
    Template::parse(text, captures)
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
