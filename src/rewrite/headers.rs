//! Edits of headers as the configuration asks for them, parsed and put into their order.
//!
//! The edits of all scopes (defaults, site, route) are merged: what a narrower scope says of a header wins. Then what came
//! in is renamed, headers are removed, set and added, in this order.

use http::HeaderValue;
use http::header::HeaderName;

use super::template::Template;

/// One edit of a head.
#[derive(Clone, Debug)]
pub enum HeaderEdit {
    Rename { from: HeaderName, to: Name },
    Remove(HeaderName),
    Set { name: Name, value: Value },
    Add { name: Name, value: Value },
}

/// A header's name: as it is looked up, and as it is written to HTTP/1 peers.
#[derive(Clone, Debug)]
pub struct Name {
    pub name: HeaderName,
    pub written: bytes::Bytes,
}

/// What a header is set to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// The same for every request.
    Fixed {
        value: HeaderValue,
        secret: bool,
    },
    Filled(Template),
}

impl Name {
    /// # Errors
    /// The text is no name of a header (RFC 9110 section 5.1).
    pub fn parse(text: &str) -> Result<Self, String> {
        let name = text.parse().map_err(|_| format!("`{text}` is no name of a header"))?;
        Ok(Self { name, written: bytes::Bytes::copy_from_slice(text.as_bytes()) })
    }
}

impl Value {
    /// # Errors
    /// The text cannot stand in a header (RFC 9110 section 5.5).
    pub fn of(template: Template) -> Result<Self, String> {
        let Some(text) = template.constant() else { return Ok(Value::Filled(template)) };
        let value = HeaderValue::from_str(text).map_err(|_| "a header has one line of printable characters".to_owned())?;
        Ok(Value::Fixed { value, secret: template.secret })
    }

    pub fn is_secret(&self) -> bool {
        match self {
            Value::Fixed { secret, .. } => *secret,
            Value::Filled(template) => template.secret,
        }
    }
}

/// The edits of a scope together with those of the wider ones, in the order in which they are done.
pub fn merge(wider: &[HeaderEdit], own: Vec<HeaderEdit>) -> Vec<HeaderEdit> {
    let overrides = |edit: &HeaderEdit| {
        own.iter().any(|own| match (own, edit) {
            // One more value does not undo what was set or added before; the same one twice means it once.
            (HeaderEdit::Add { name, value }, HeaderEdit::Add { name: wide, value: old }) => name.name == wide.name && value == old,
            (HeaderEdit::Add { .. }, _) => false,
            (own, edit) => own.name() == edit.name(),
        })
    };
    let mut edits: Vec<HeaderEdit> = wider.iter().filter(|edit| !overrides(edit)).cloned().collect();
    edits.extend(own);
    edits.sort_by_key(HeaderEdit::turn);
    edits
}

impl HeaderEdit {
    /// The header that it is about.
    fn name(&self) -> &HeaderName {
        match self {
            HeaderEdit::Rename { from, .. } => from,
            HeaderEdit::Remove(name) => name,
            HeaderEdit::Set { name, .. } | HeaderEdit::Add { name, .. } => &name.name,
        }
    }

    fn turn(&self) -> u8 {
        match self {
            HeaderEdit::Rename { .. } => 0,
            HeaderEdit::Remove(_) => 1,
            HeaderEdit::Set { .. } => 2,
            HeaderEdit::Add { .. } => 3,
        }
    }
}

/// Why a header is not the configuration's to edit; `None`: it is.
pub fn reserved(name: &HeaderName) -> Option<&'static str> {
    match name.as_str() {
        "connection" | "keep-alive" | "proxy-connection" | "te" | "trailer" | "transfer-encoding" | "upgrade" | "content-length" => {
            Some("it belongs to one connection and its framing")
        }
        "host" => Some("`host:` of the backend group says it"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edit(text: &str) -> HeaderEdit {
        let (what, rest) = text.split_once(' ').unwrap();
        let (name, value) = rest.split_once('=').unwrap_or((rest, ""));
        let parsed = Name::parse(name).unwrap();
        let text = Value::of(Template::parse(value, &[]).unwrap()).unwrap();
        match what {
            "rename" => HeaderEdit::Rename { from: parsed.name, to: Name::parse(value).unwrap() },
            "remove" => HeaderEdit::Remove(parsed.name),
            "set" => HeaderEdit::Set { name: parsed, value: text },
            _ => HeaderEdit::Add { name: parsed, value: text },
        }
    }

    fn shown(edits: &[HeaderEdit]) -> String {
        let show = |edit: &HeaderEdit| match edit {
            HeaderEdit::Rename { from, to } => format!("rename {from}={}", to.name),
            HeaderEdit::Remove(name) => format!("remove {name}"),
            HeaderEdit::Set { name, value: Value::Fixed { value, .. } } => format!("set {}={}", name.name, value.to_str().unwrap()),
            HeaderEdit::Add { name, value: Value::Fixed { value, .. } } => format!("add {}={}", name.name, value.to_str().unwrap()),
            _ => String::new(),
        };
        edits.iter().map(show).collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn the_narrower_scope_wins() {
        for (wider, own, merged) in [
            ("set a=1", "set a=2", "set a=2"),
            ("set a=1", "remove a", "remove a"),
            ("remove a", "set a=1", "set a=1"),
            ("add a=1", "set a=2", "set a=2"),
            ("set a=1", "add a=2", "set a=1, add a=2"),
            ("add a=1", "add a=2", "add a=1, add a=2"),
            ("add a=1", "add a=1", "add a=1"),
            ("set b=1", "rename c=d, remove e", "rename c=d, remove e, set b=1"),
        ] {
            let list = |text: &str| text.split(", ").map(edit).collect::<Vec<_>>();
            assert_eq!(shown(&merge(&list(wider), list(own))), merged, "{wider} | {own}");
        }
    }
}
