//! A cursor into a document: the node that a check looks at, and so the place of its diagnostics.

use std::ops::Range;

use super::super::diagnostic::{Diagnostic, Place};
use super::super::origin::Origin;
use super::super::tree::{Document, Kind, Node, Step};

#[derive(Clone)]
pub(super) struct At<'d> {
    document: &'d Document,
    node: &'d Node,
    /// The key that leads here, shown for a value that spans lines.
    key: Option<Range<usize>>,
}

impl<'d> At<'d> {
    pub(super) fn root(document: &'d Document) -> Self {
        At { document, node: &document.root, key: None }
    }

    /// The value of a key; where it is not given, the mapping that should have it.
    pub(super) fn key(&self, key: &str) -> At<'d> {
        match self.node.child(&Step::Key(key.to_owned())) {
            Some(node) => At { document: self.document, node, key: self.node.key_span(key) },
            None => self.clone(),
        }
    }

    pub(super) fn index(&self, index: usize) -> At<'d> {
        match self.node.child(&Step::Index(index)) {
            Some(node) => At { document: self.document, node, key: None },
            None => self.clone(),
        }
    }

    /// The values of a mapping with their keys, in the order of the file: for large ones, where looking each up costs.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&'d str, At<'d>)> {
        let entries = match &self.node.kind {
            Kind::Mapping(entries) => entries.as_slice(),
            Kind::Scalar { .. } | Kind::Sequence(_) => &[],
        };
        let document = self.document;
        entries.iter().map(move |entry| (entry.key.as_str(), At { document, node: &entry.value, key: Some(entry.key_span.clone()) }))
    }

    /// Whether a placeholder put (part of) the text here: it may be a secret.
    pub(super) fn is_filled(&self) -> bool {
        matches!(self.node.kind, Kind::Scalar { filled: true, .. })
    }

    /// Whether what is written around the placeholders of this text is so.
    pub(super) fn has_text_around_placeholders(&self, is_so: impl Fn(&str) -> bool) -> bool {
        let mut rest = self.document.source.text.get(self.node.span.clone()).unwrap_or_default();
        while let Some((before, tail)) = rest.split_once("${") {
            if is_so(before) {
                return true;
            }
            rest = tail.split_once('}').map_or("", |(_, after)| after);
        }
        is_so(rest)
    }

    pub(super) fn origin(&self) -> Origin {
        Origin::from(&self.place())
    }

    pub(super) fn place(&self) -> Place {
        let span = self.node.span.clone();
        let text = self.document.source.text.get(span.clone()).unwrap_or_default();
        let shown = match &self.key {
            Some(key) if text.contains('\n') => key.clone(),
            _ if text.contains('\n') => span.start..span.start + text.find('\n').unwrap_or_default(),
            _ => span,
        };
        self.document.place(shown)
    }

    /// The place of a key's own name.
    pub(super) fn place_of_key(&self, key: &str) -> Place {
        self.document.place(self.node.key_span(key).unwrap_or_else(|| self.node.span.clone()))
    }

    pub(super) fn error(&self, message: impl Into<String>) -> Diagnostic {
        Diagnostic::error(self.place(), self.without_secret(message.into()))
    }

    /// A text that a placeholder filled in may be a secret: messages say that it is wrong, not what it is.
    fn without_secret(&self, message: String) -> String {
        match &self.node.kind {
            Kind::Scalar { text, filled: true, .. } if !text.is_empty() => message.replace(text.as_str(), "…"),
            Kind::Scalar { .. } | Kind::Sequence(_) | Kind::Mapping(_) => message,
        }
    }

    pub(super) fn warning(&self, message: impl Into<String>) -> Diagnostic {
        Diagnostic::warning(self.place(), self.without_secret(message.into()))
    }
}

/// Adds "did you mean" where there is something to suggest.
pub(super) fn hint(diagnostic: Diagnostic, meant: Option<&str>) -> Diagnostic {
    match meant {
        Some(meant) => diagnostic.with_help(format!("did you mean `{meant}`?")),
        None => diagnostic,
    }
}
