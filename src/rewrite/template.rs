//! Texts with values of the request in them: `https://new.example.com{path}`, as redirects and header edits have them.

use std::fmt;
use std::net::IpAddr;

use http::HeaderMap;
use http::header::HeaderName;

use crate::config::diagnostic::did_you_mean;
use crate::rewrite::forwarded::is_protected;
use crate::routing::conditions::cookies;

/// A text of the configuration, parsed once.
#[derive(Clone, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
    /// (Part of) it came from the environment or a file, so it is never shown.
    pub secret: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Value(Value),
}

/// A value of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    Method,
    Scheme,
    Host,
    Path,
    Query,
    Uri,
    ClientAddress,
    RequestId,
    Site,
    Route,
    User,
    App,
    Group,
    Backend,
    Header(HeaderName),
    Cookie(String),
    QueryKey(String),
    Capture(String),
}

/// The names of the values, for the configuration's reader and its documentation.
const NAMES: [(&str, Value); 14] = [
    ("method", Value::Method),
    ("scheme", Value::Scheme),
    ("host", Value::Host),
    ("path", Value::Path),
    ("query", Value::Query),
    ("uri", Value::Uri),
    ("client_address", Value::ClientAddress),
    ("request_id", Value::RequestId),
    ("site", Value::Site),
    ("route", Value::Route),
    ("user", Value::User),
    ("app", Value::App),
    ("group", Value::Group),
    ("backend", Value::Backend),
];

/// The values as the reference page tells of them.
pub const REFERENCE: &str = "`{method}`, `{scheme}`, `{host}` (without port), `{path}` (in its normal form), `{query}` (without `?`), `{uri}` \
    (path and query), `{client_address}`, `{request_id}`, `{site}`, `{route}`, `{header.NAME}`, `{cookie.NAME}`, `{query.NAME}` (as the \
    client wrote it), and what the route's path or all of the site's domains capture by name. Where a backend is asked also \
    `{user}`, `{app}`, `{group}` and `{backend}`. What is not known is empty; `{{` and `}}` stand for braces.";

/// What a template can be filled from. What is not known is empty.
#[derive(Clone, Copy)]
pub struct Values<'a> {
    pub method: &'a str,
    pub secure: bool,
    /// Without its port.
    pub host: &'a str,
    /// The normal path.
    pub path: &'a str,
    pub query: Option<&'a str>,
    pub client: Option<IpAddr>,
    pub request_id: &'a str,
    pub site: &'a str,
    pub route: &'a str,
    pub user: &'a str,
    pub app: &'a str,
    pub group: &'a str,
    pub backend: &'a str,
    pub headers: &'a HeaderMap,
    /// The sender may speak for its clients; what others say of themselves is not there.
    pub trusted: bool,
    /// Headers that clients cannot send.
    pub secrets: &'a [HeaderName],
    /// Names with what they captured.
    pub captures: &'a [(&'a str, &'a str)],
}

// === impl Template ===

impl Template {
    /// Parses a text. `captures` are the names that the route's path and domains capture.
    ///
    /// # Errors
    /// A text that names no value of a request, with what to write.
    pub fn parse(text: &str, captures: &[&str]) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            let (before, tail) = rest.split_at(at);
            literal.push_str(before);
            if let Some(after) = tail.strip_prefix("{{").or_else(|| tail.strip_prefix("}}")) {
                literal.extend(tail.chars().next());
                rest = after;
                continue;
            }
            let inner = tail.strip_prefix('{').ok_or("`}` closes nothing: write `}}` for a brace")?;
            let (name, after) = inner.split_once('}').ok_or("`{` is not closed: write `{{` for a brace")?;
            if !literal.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut literal)));
            }
            parts.push(Part::Value(value(name, captures)?));
            rest = after;
        }
        literal.push_str(rest);
        if !literal.is_empty() || parts.is_empty() {
            parts.push(Part::Text(literal));
        }
        Ok(Self { parts, secret: false })
    }

    #[must_use]
    pub fn with_secrecy(mut self, secret: bool) -> Self {
        self.secret = secret;
        self
    }

    /// The text, where it is the same for every request.
    pub fn constant(&self) -> Option<&str> {
        match self.parts.as_slice() {
            [Part::Text(text)] => Some(text),
            _ => None,
        }
    }

    /// Whether the query of the request is in it, or a query of its own.
    pub fn has_query(&self) -> bool {
        self.parts.iter().any(|part| match part {
            Part::Text(text) => text.contains('?'),
            Part::Value(value) => matches!(value, Value::Query | Value::Uri | Value::QueryKey(_)),
        })
    }

    pub fn fill(&self, values: &Values<'_>) -> String {
        let mut out = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Value(value) => write(value, values, &mut out),
            }
        }
        out
    }
}

/// As it is written in the configuration; a secret is not shown.
impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.secret {
            return f.write_str(SECRET);
        }
        for part in &self.parts {
            match part {
                Part::Text(text) => f.write_str(&text.replace('{', "{{").replace('}', "}}"))?,
                Part::Value(value) => write!(f, "{{{}}}", name_of(value))?,
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Template({self})")
    }
}

/// What stands for a secret where it would be shown.
pub const SECRET: &str = "(secret)";

fn value(name: &str, captures: &[&str]) -> Result<Value, String> {
    if let Some((kind, name)) = name.split_once('.') {
        return match kind {
            "header" => name.parse().map(Value::Header).map_err(|_| format!("`{name}` is no name of a header")),
            "cookie" => Ok(Value::Cookie(name.to_owned())),
            "query" => Ok(Value::QueryKey(name.to_owned())),
            _ => Err(format!("`{{{kind}.{name}}}` is no value of a request: `header.NAME`, `cookie.NAME` or `query.NAME`")),
        };
    }
    // A capture may be called like a value: it is nearer.
    if captures.contains(&name) {
        return Ok(Value::Capture(name.to_owned()));
    }
    if let Some((_, value)) = NAMES.iter().find(|(known, _)| *known == name) {
        return Ok(value.clone());
    }
    let known = NAMES.iter().map(|(known, _)| *known).chain(captures.iter().copied());
    let meant = did_you_mean(name, known).map(|meant| format!(": did you mean `{{{meant}}}`?"));
    let numbered = name.bytes().all(|byte| byte.is_ascii_digit()) && !name.is_empty();
    let otherwise = if numbered { "; name the capture, `(?<id>…)`, and write `{id}`" } else { "; write `{{` for a brace" };
    let meant = meant.unwrap_or_else(|| otherwise.to_owned());
    Err(format!("`{{{name}}}` is neither a value of a request nor captured here{meant}"))
}

fn name_of(value: &Value) -> String {
    match value {
        Value::Header(name) => format!("header.{name}"),
        Value::Cookie(name) => format!("cookie.{name}"),
        Value::QueryKey(name) => format!("query.{name}"),
        Value::Capture(name) => name.clone(),
        named => NAMES.iter().find(|(_, value)| value == named).map(|(name, _)| (*name).to_owned()).unwrap_or_default(),
    }
}

fn write(value: &Value, values: &Values<'_>, out: &mut String) {
    match value {
        Value::Method => out.push_str(values.method),
        Value::Scheme => out.push_str(if values.secure { "https" } else { "http" }),
        Value::Host if values.host.contains(':') => out.extend(["[", values.host, "]"]),
        Value::Host => out.push_str(values.host),
        Value::Path => out.push_str(values.path),
        Value::Query => out.push_str(values.query.unwrap_or_default()),
        Value::Uri => {
            out.push_str(values.path);
            out.extend(values.query.iter().flat_map(|query| ["?", query]));
        }
        Value::ClientAddress => out.extend(values.client.map(|client| client.to_string())),
        Value::RequestId => out.push_str(values.request_id),
        Value::Site => out.push_str(values.site),
        Value::Route => out.push_str(values.route),
        Value::User => out.push_str(values.user),
        Value::App => out.push_str(values.app),
        Value::Group => out.push_str(values.group),
        Value::Backend => out.push_str(values.backend),
        Value::Header(name) => {
            let hidden = (!values.trusted && is_protected(name.as_str())) || values.secrets.contains(name);
            out.extend(values.headers.get(name).filter(|_| !hidden).map(|value| String::from_utf8_lossy(value.as_bytes())));
        }
        Value::Cookie(name) => out.extend(cookies(values.headers, name).next()),
        // As the client wrote it: it may go into a URL again.
        Value::QueryKey(name) => {
            let pairs = values.query.into_iter().flat_map(|query| query.split('&'));
            out.extend(pairs.filter_map(|pair| pair.split_once('=')).find(|(key, _)| key == name).map(|(_, value)| value));
        }
        Value::Capture(name) => {
            out.extend(values.captures.iter().find(|(key, _)| key == name).map(|(_, value)| *value));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_the_request_fill_a_text() {
        let headers: HeaderMap =
            [(http::header::ACCEPT_LANGUAGE, "de".parse().unwrap()), (http::header::COOKIE, "a=1; plan=gold".parse().unwrap())]
                .into_iter()
                .collect();
        let captures = [("id", "42"), ("user", "bob")];
        let values = Values {
            method: "GET",
            secure: true,
            host: "::1",
            path: "/old/42",
            query: Some("a=b%20c&d"),
            client: Some("192.0.2.7".parse().unwrap()),
            request_id: "r1",
            site: "shop",
            route: "/old/",
            user: "row",
            app: "mail",
            group: "g",
            backend: "S1",
            headers: &headers,
            trusted: false,
            secrets: &[],
            captures: &captures,
        };
        for (text, filled) in [
            ("", ""),
            ("plain", "plain"),
            ("https://new.example.com{path}", "https://new.example.com/old/42"),
            ("{scheme}://{host}{uri}", "https://[::1]/old/42?a=b%20c&d"),
            ("/new/{id}?{query}", "/new/42?a=b%20c&d"),
            ("{query.a}|{query.x}|{query.d}", "b%20c||"),
            ("{header.accept-language}/{header.x-none}/{cookie.plan}", "de//gold"),
            ("{user} {app} {group} {backend} {site} {route}", "bob mail g S1 shop /old/"),
            ("{method} {client_address} {request_id}", "GET 192.0.2.7 r1"),
            ("{{path}} }}{{", "{path} }{"),
        ] {
            let template = Template::parse(text, &["id", "user"]).unwrap();
            assert_eq!(template.fill(&values), filled, "{text}");
            assert_eq!(template.to_string(), text);
        }
    }

    #[test]
    fn a_bad_text_says_what_to_write() {
        for (text, why) in [
            ("{pat}", "did you mean `{path}`"),
            ("{uzer}", "did you mean `{user}`"),
            ("{path", "not closed"),
            ("path}", "closes nothing"),
            ("{headers.x}", "`header.NAME`"),
            ("{header.a b}", "no name of a header"),
            ("{1}", "name the capture"),
            ("{x1}", "write `{{`"),
        ] {
            let error = Template::parse(text, &[]).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn a_secret_is_not_shown() {
        let template = Template::parse("s3cret", &[]).unwrap().with_secrecy(true);
        assert!(!format!("{template} {template:?}").contains("s3cret"));
        assert_eq!(template.constant(), Some("s3cret"));
    }
}
