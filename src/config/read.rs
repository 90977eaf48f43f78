//! From a document to a raw value: every mistake is recorded with its place, cut out, and reading goes on.

use serde::de::DeserializeOwned;
use serde_path_to_error::Segment;

use super::diagnostic::{Diagnostic, Report, did_you_mean};
use super::raw::NOT_IN_THIS_VERSION;
use super::tree::{Document, Kind, Node, Step};

/// A file with more mistakes than this is better read in portions.
const MAX_MISTAKES: usize = 100;

/// Reads a document as `T`. What was wrong is cut out of the document, so that its tree stays in step with the value.
pub(crate) fn read<T: DeserializeOwned + Default>(document: &mut Document, report: &mut Report) -> T {
    for _ in 0..MAX_MISTAKES {
        let error = match serde_path_to_error::deserialize(document.root.to_value()) {
            Ok(value) => return value,
            Err(error) => error,
        };
        let mut path: Vec<Step> = error.path().iter().filter_map(step).collect();
        let message = error.into_inner().to_string();
        let mistake = Mistake::from_serde(&message);
        if let Mistake::UnknownKey { key, .. } = &mistake
            && path.last() != Some(&Step::Key(key.clone()))
        {
            path.push(Step::Key(key.clone()));
        }
        // A key that is missing because it was wrong and cut out has been reported already.
        let known = matches!(&mistake, Mistake::MissingKey(key)
            if document.pruned.iter().any(|cut| cut.split_last() == Some((&Step::Key(key.clone()), &path[..]))));
        if !known {
            report.push(mistake.into_diagnostic(document, &path));
        }
        if !document.root.prune(&path) {
            return T::default();
        }
        document.pruned.push(path);
    }
    T::default()
}

fn step(segment: &Segment) -> Option<Step> {
    match segment {
        Segment::Seq { index } => Some(Step::Index(*index)),
        Segment::Map { key } => Some(Step::Key(key.clone())),
        Segment::Enum { .. } | Segment::Unknown => None,
    }
}

/// What serde found, taken from the only thing it gives: its message.
enum Mistake {
    UnknownKey { key: String, known: Vec<String> },
    MissingKey(String),
    Other(String),
}

impl Mistake {
    fn from_serde(message: &str) -> Self {
        let mut words = message.split('`').skip(1).step_by(2).map(str::to_owned);
        if message.starts_with("unknown field") {
            let key = words.next().unwrap_or_default();
            return Mistake::UnknownKey { key, known: words.collect() };
        }
        if message.starts_with("missing field") {
            return Mistake::MissingKey(words.next().unwrap_or_default());
        }
        let plain = message.strip_prefix("invalid type: ").or_else(|| message.strip_prefix("invalid value: "));
        match plain.and_then(|rest| rest.split_once(", expected ")) {
            Some((found, expected)) => Mistake::Other(format!("expected {}, found {found}", plain_words(expected))),
            None => Mistake::Other(message.to_owned()),
        }
    }

    fn into_diagnostic(self, document: &Document, path: &[Step]) -> Diagnostic {
        let node = document.root.nearest(path);
        match self {
            Mistake::UnknownKey { key, known } => {
                let parent = path.split_last().map_or(&document.root, |(_, parent)| document.root.nearest(parent));
                let place = document.place(parent.key_span(&key).unwrap_or_else(|| node.span.clone()));
                let built = !NOT_IN_THIS_VERSION.contains(&key.as_str());
                let message = if built { format!("unknown key `{key}`") } else { format!("`{key}` is not in this version") };
                let diagnostic = Diagnostic::error(place, message);
                let foreign = FOREIGN.iter().find(|(word, ours)| *word == key && known.iter().any(|known| known == ours));
                match foreign.map(|(_, ours)| *ours).or_else(|| did_you_mean(&key, known.iter().map(String::as_str))) {
                    _ if !built => diagnostic.with_help("remove it: a key is refused rather than ignored"),
                    Some(meant) => diagnostic.with_help(format!("did you mean `{meant}`?")),
                    None => diagnostic.with_help(format!("known here: {}", known.join(", "))),
                }
            }
            Mistake::MissingKey(key) => {
                let label = match path.last() {
                    Some(Step::Key(name)) => format!("`{name}` has no `{key}`"),
                    Some(Step::Index(_)) | None => format!("`{key}` is missing"),
                };
                Diagnostic::error(document.place(first_line(node)), label).with_help(format!("add `{key}: …` here"))
            }
            Mistake::Other(message) => {
                let help = help_for(&message);
                let diagnostic = Diagnostic::error(document.place(node.span.clone()), hide_filled(node, message));
                match help {
                    Some(help) => diagnostic.with_help(help),
                    None => diagnostic,
                }
            }
        }
    }
}

/// The words of other programs, and ours.
const FOREIGN: &[(&str, &str)] = &[
    ("add_header", "response_headers"),
    ("backend", "backends"),
    ("bind", "address"),
    ("cert", "tls"),
    ("client_max_body_size", "max_body"),
    ("code", "status"),
    ("cookie", "sticky"),
    ("frontends", "listeners"),
    ("healthcheck", "health_check"),
    ("host", "domains"),
    ("hosts", "domains"),
    ("listen", "address"),
    ("listen", "listeners"),
    ("location", "path"),
    ("location", "routes"),
    ("locations", "routes"),
    ("permanent", "status"),
    ("pool", "group"),
    ("proxy_pass", "backends"),
    ("proxy_pass", "group"),
    ("proxy_set_header", "request_headers"),
    ("return", "redirect"),
    ("return", "routes"),
    ("rewrite", "redirect"),
    ("rewrite", "routes"),
    ("server", "address"),
    ("server_name", "domains"),
    ("servers", "backends"),
    ("ssl", "tls"),
    ("ssl_certificate", "tls"),
    ("ssl_certificate_key", "tls"),
    ("strip_prefix", "strip"),
    ("try_files", "routes"),
    ("upstream", "backend_groups"),
    ("upstream", "group"),
    ("upstreams", "backend_groups"),
    ("user", "run_as"),
    ("worker_processes", "threads"),
];

/// How a value is written that was written as another kind.
fn help_for(message: &str) -> Option<&'static str> {
    [
        ("expected a list, found string", "write a list: `[ … ]`"),
        ("expected a text, found integer", "put it in quotes; a port alone is `\":443\"`"),
        ("expected a mapping, found string", "write keys with values: `{ key: value }`, or one `key: value` on each line"),
    ]
    .iter()
    .find(|(start, _)| message.starts_with(start))
    .map(|(_, help)| *help)
}

/// The start of a block: all of it would be too much to underline.
fn first_line(node: &Node) -> std::ops::Range<usize> {
    node.span.start..node.span.start + 1
}

/// serde's words for Rust types, in words of YAML.
fn plain_words(expected: &str) -> String {
    match expected {
        "a sequence" => "a list".to_owned(),
        "a map" => "a mapping".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a string" | "a borrowed string" | "path string" => "a text".to_owned(),
        "usize" | "u64" | "u32" | "u16" => "a whole number".to_owned(),
        other if other.starts_with("struct ") => "a mapping".to_owned(),
        other => other.to_owned(),
    }
}

/// A text that a placeholder filled in may be a secret: messages say that it is wrong, not what it is.
fn hide_filled(node: &Node, message: String) -> String {
    match &node.kind {
        Kind::Scalar { text, filled: true, .. } if !text.is_empty() => message.replace(text.as_str(), "…"),
        Kind::Scalar { .. } | Kind::Sequence(_) | Kind::Mapping(_) => message,
    }
}
