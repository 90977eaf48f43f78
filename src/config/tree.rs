//! A YAML document with the place of every node: what `serde_yaml` reads, and where a mistake is shown.
//!
//! `serde_yaml` gives one error per run, loses the place inside some types and accepts a key twice. So the text is
//! parsed into this tree first; typed values are read from it, and a node that was wrong is cut out (`prune`) so that
//! the next mistake can be found.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use granit_parser::{Event, Parser, ScalarStyle};
use serde_yaml::Value;

use super::diagnostic::{Diagnostic, Place, Report, Source};

/// More nodes than any configuration needs.
const MAX_NODES: usize = 20_000_000;
const MAX_DEPTH: usize = 64;

#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) span: Range<usize>,
    pub(crate) kind: Kind,
}

#[derive(Clone, Debug)]
pub(crate) enum Kind {
    /// `plain` scalars may be numbers or booleans; `filled` says that a placeholder put (part of) the text there,
    /// so that it may be a secret and is never shown.
    Scalar {
        text: String,
        plain: bool,
        filled: bool,
    },
    Sequence(Vec<Node>),
    Mapping(Vec<Entry>),
}

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_span: Range<usize>,
    pub(crate) value: Node,
}

/// A step from a node to one of its children.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Key(String),
    Index(usize),
}

/// A file and the tree of its only document.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) source: Arc<Source>,
    pub(crate) root: Node,
    /// Nodes that were wrong and are cut out, by what led to them.
    pub(crate) pruned: Vec<Vec<Step>>,
}

// === impl Document ===

impl Document {
    /// Parses a file's text. Duplicate keys are reported and the later one is left out; a syntax error yields `None`.
    pub(crate) fn parse(source: Arc<Source>, report: &mut Report) -> Option<Self> {
        let mut builder = Builder { parser: Parser::new_from_str(&source.text), source: &source, nodes: 0, report };
        match builder.document() {
            Ok(root) => Some(Document { source, root, pruned: Vec::new() }),
            Err(diagnostic) => {
                builder.report.push(*diagnostic);
                None
            }
        }
    }

    pub(crate) fn place(&self, span: Range<usize>) -> Place {
        Place { source: self.source.clone(), span }
    }
}

// === impl Node ===

impl Node {
    pub(crate) fn child(&self, step: &Step) -> Option<&Node> {
        match (&self.kind, step) {
            (Kind::Mapping(entries), Step::Key(key)) => entries.iter().find(|e| e.key == *key).map(|e| &e.value),
            (Kind::Sequence(items), Step::Index(index)) => items.get(*index),
            _ => None,
        }
    }

    /// The node at the end of `path`, or the deepest one on the way that exists.
    pub(crate) fn nearest(&self, path: &[Step]) -> &Node {
        let mut node = self;
        for step in path {
            match node.child(step) {
                Some(child) => node = child,
                None => break,
            }
        }
        node
    }

    pub(crate) fn key_span(&self, key: &str) -> Option<Range<usize>> {
        match &self.kind {
            Kind::Mapping(entries) => entries.iter().find(|e| e.key == key).map(|e| e.key_span.clone()),
            Kind::Scalar { .. } | Kind::Sequence(_) => None,
        }
    }

    /// Cuts the node at `path` out of the tree; `false` if there is nothing to cut.
    pub(crate) fn prune(&mut self, path: &[Step]) -> bool {
        let Some((last, parents)) = path.split_last() else { return false };
        let mut node = self;
        for step in parents {
            let child = match (&mut node.kind, step) {
                (Kind::Mapping(entries), Step::Key(key)) => entries.iter_mut().find(|e| e.key == *key).map(|e| &mut e.value),
                (Kind::Sequence(items), Step::Index(index)) => items.get_mut(*index),
                _ => None,
            };
            match child {
                Some(child) => node = child,
                None => return false,
            }
        }
        match (&mut node.kind, last) {
            (Kind::Mapping(entries), Step::Key(key)) => {
                let before = entries.len();
                entries.retain(|e| e.key != *key);
                entries.len() < before
            }
            (Kind::Sequence(items), Step::Index(index)) if *index < items.len() => {
                items.remove(*index);
                true
            }
            _ => false,
        }
    }

    /// Where below this node `wanted` spans stand.
    pub(crate) fn paths_of(&self, wanted: &[Range<usize>], here: &mut Vec<Step>, found: &mut Vec<Vec<Step>>) {
        match &self.kind {
            Kind::Scalar { .. } if wanted.contains(&self.span) => found.push(here.clone()),
            Kind::Scalar { .. } => {}
            Kind::Sequence(items) => {
                for (index, item) in items.iter().enumerate() {
                    here.push(Step::Index(index));
                    item.paths_of(wanted, here, found);
                    here.pop();
                }
            }
            Kind::Mapping(entries) => {
                for entry in entries {
                    here.push(Step::Key(entry.key.clone()));
                    entry.value.paths_of(wanted, here, found);
                    here.pop();
                }
            }
        }
    }

    /// Calls `visit` for every scalar below this node.
    pub(crate) fn for_each_scalar(&mut self, visit: &mut impl FnMut(&Range<usize>, &mut String, &mut bool)) {
        match &mut self.kind {
            Kind::Scalar { text, filled, .. } => visit(&self.span, text, filled),
            Kind::Sequence(items) => items.iter_mut().for_each(|item| item.for_each_scalar(visit)),
            Kind::Mapping(entries) => entries.iter_mut().for_each(|entry| entry.value.for_each_scalar(visit)),
        }
    }

    /// The node as the value that `serde_yaml` deserializes from.
    pub(crate) fn to_value(&self) -> Value {
        match &self.kind {
            Kind::Scalar { text, plain, .. } => scalar(text, *plain),
            Kind::Sequence(items) => Value::Sequence(items.iter().map(Node::to_value).collect()),
            Kind::Mapping(entries) => Value::Mapping(entries.iter().map(|e| (Value::String(e.key.clone()), e.value.to_value())).collect()),
        }
    }
}

/// A plain scalar means what YAML's core schema says; `serde_yaml` itself decides, so that the two never differ.
fn scalar(text: &str, plain: bool) -> Value {
    let is_word = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        && !["true", "false", "null"].iter().any(|word| text.eq_ignore_ascii_case(word));
    if !plain || is_word {
        return Value::String(text.to_owned());
    }
    match serde_yaml::from_str(text) {
        Ok(value @ (Value::Null | Value::Bool(_) | Value::Number(_))) => value,
        _ => Value::String(text.to_owned()),
    }
}

// === Builder: from parser events to nodes ===

struct Builder<'a, 'r> {
    parser: Parser<'a, granit_parser::StrInput<'a>>,
    source: &'a Arc<Source>,
    nodes: usize,
    report: &'r mut Report,
}

type Failure = Box<Diagnostic>;

impl<'a> Builder<'a, '_> {
    fn document(&mut self) -> Result<Node, Failure> {
        let mut root = None;
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::StreamEnd => break,
                Event::StreamStart | Event::DocumentStart(..) | Event::DocumentEnd => {}
                _ if root.is_some() => return Err(self.fail(span, "a second document in one file: write one file each")),
                event => root = Some(self.node(event, span, 0)?),
            }
        }
        Ok(root.unwrap_or(Node { span: 0..0, kind: Kind::Mapping(Vec::new()) }))
    }

    fn next(&mut self) -> Result<(Event<'a>, Range<usize>), Failure> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => {
                let start = span.start.byte_offset().unwrap_or_default();
                let end = span.end.byte_offset().unwrap_or(start).max(start);
                Ok((event, start..end))
            }
            Some(Err(error)) => {
                let at = error.marker().byte_offset().unwrap_or_default().min(self.source.text.len());
                let help = self.help_for(&error.info(), at);
                let diagnostic = Diagnostic::error(self.place(at..at), format!("this is no YAML: {}", error.info()));
                Err(Box::new(diagnostic.with_help(help)))
            }
            None => Ok((Event::StreamEnd, 0..0)),
        }
    }

    /// What is most likely meant where the parser gave up.
    fn help_for(&self, info: &str, at: usize) -> &'static str {
        let start = self.source.text.get(..at).and_then(|before| before.rfind('\n')).map_or(0, |newline| newline + 1);
        let line = self.source.text.get(start..).and_then(|rest| rest.lines().next()).unwrap_or_default();
        // The parser notices on the line behind what a line lacks.
        let above = self.source.text.get(..start.saturating_sub(1)).and_then(|before| before.lines().next_back()).unwrap_or_default();
        if info.contains("escape") {
            return "in double quotes a backslash begins an escape: write the value in single quotes";
        }
        if info.contains("tab") {
            return "YAML is indented by spaces, not by tabs";
        }
        if [line, above].iter().any(|line| line.trim_end().ends_with(';')) {
            return "there are no semicolons here: a value ends with its line";
        }
        if info.contains("',' or") {
            return "inside `{ }` and `[ ]` a value that has `{`, `}`, `[`, `]` or `,` in it needs quotes; brackets must be closed";
        }
        if info.contains("indicator") || info.contains("expected key") {
            return "check the indentation: the keys of a mapping, and the dashes of a list, begin in the same column";
        }
        "values that begin with `*`, `{`, `&` or `@` need quotes; a `:` behind a key needs a space; brackets must be closed"
    }

    fn fail(&self, span: Range<usize>, message: impl Into<String>) -> Failure {
        Box::new(Diagnostic::error(self.place(span), message))
    }

    fn place(&self, span: Range<usize>) -> Place {
        Place { source: self.source.clone(), span }
    }

    fn node(&mut self, event: Event<'a>, span: Range<usize>, depth: usize) -> Result<Node, Failure> {
        self.nodes += 1;
        if depth > MAX_DEPTH || self.nodes > MAX_NODES {
            return Err(self.fail(span, "nested too deeply or too large"));
        }
        Ok(match event {
            Event::Scalar(text, style, _, tag) => {
                if tag.is_some() {
                    return Err(self.fail(span, "YAML tags (`!…`) have no meaning here"));
                }
                let plain = style == ScalarStyle::Plain;
                Node { span, kind: Kind::Scalar { text: text.into_owned(), plain, filled: false } }
            }
            Event::SequenceStart(_, _, Some(_)) | Event::MappingStart(_, _, Some(_)) => {
                return Err(self.fail(span, "YAML tags (`!…`) have no meaning here"));
            }
            Event::SequenceStart(..) => self.sequence(span, depth)?,
            Event::MappingStart(..) => self.mapping(span, depth)?,
            // A few lines of them can stand for billions of nodes.
            Event::Alias(_) => return Err(self.fail(span, "YAML aliases (`*…`) are not supported: write it out")),
            _ => return Err(self.fail(span, "unexpected end of the document")),
        })
    }

    fn sequence(&mut self, start: Range<usize>, depth: usize) -> Result<Node, Failure> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, end) => {
                    return Ok(Node { span: start.start..end.end, kind: Kind::Sequence(items) });
                }
                (event, span) => items.push(self.node(event, span, depth + 1)?),
            }
        }
    }

    fn mapping(&mut self, start: Range<usize>, depth: usize) -> Result<Node, Failure> {
        let mut entries: Vec<Entry> = Vec::new();
        // A large table is searched by hash, a small mapping is not worth one.
        let mut seen: HashMap<String, Range<usize>> = HashMap::new();
        loop {
            let (event, key_span) = self.next()?;
            let key = match event {
                Event::MappingEnd => {
                    return Ok(Node { span: start.start..key_span.end, kind: Kind::Mapping(entries) });
                }
                Event::Scalar(text, ..) => text.into_owned(),
                _ => return Err(self.fail(key_span, "a key must be a plain word")),
            };
            let (event, span) = self.next()?;
            let value = self.node(event, span, depth + 1)?;
            if let Some(first) = seen.get(&key) {
                let duplicate = Diagnostic::error(self.place(key_span), format!("`{key}` is given twice"))
                    .with_related(self.place(first.clone()), "it is first given here")
                    .with_help("remove one of them; none is preferred silently");
                self.report.push(duplicate);
                continue;
            }
            seen.insert(key.clone(), key_span.clone());
            entries.push(Entry { key, key_span, value });
        }
    }
}
