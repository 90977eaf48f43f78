//! What is wrong with a configuration, where, and what to do about it.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

/// How bad a diagnostic is: an error keeps (a part of) the configuration from being used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    Error,
    Warning,
}

/// One file of the configuration, as it was read.
#[derive(Debug)]
pub struct Source {
    pub path: PathBuf,
    pub text: Arc<str>,
    /// Where lines start, found when a place is first asked for.
    lines: OnceLock<Vec<usize>>,
    shared_path: OnceLock<Arc<Path>>,
}

impl Source {
    pub fn new(path: PathBuf, text: impl Into<Arc<str>>) -> Self {
        Self { path, text: text.into(), lines: OnceLock::new(), shared_path: OnceLock::new() }
    }

    /// The path, for many to keep.
    pub fn shared_path(&self) -> Arc<Path> {
        self.shared_path.get_or_init(|| self.path.as_path().into()).clone()
    }

    /// The line of an offset, counted from one, and where it starts.
    fn line(&self, offset: usize) -> (usize, usize) {
        let starts = self.lines.get_or_init(|| {
            let breaks = memchr::memchr_iter(b'\n', self.text.as_bytes());
            std::iter::once(0).chain(breaks.map(|at| at + 1)).collect()
        });
        let line = starts.partition_point(|start| *start <= offset).max(1);
        (line, starts.get(line - 1).copied().unwrap_or_default())
    }
}

/// A place in a file: `span` holds byte offsets into its text.
#[derive(Clone, Debug)]
pub struct Place {
    pub source: Arc<Source>,
    pub span: Range<usize>,
}

impl Place {
    /// Line and column, both counted from one; the column counts characters.
    pub fn line_and_column(&self) -> (usize, usize) {
        let (line, start) = self.source.line(self.span.start);
        let column = self.source.text.get(start..self.span.start).unwrap_or_default().chars().count() + 1;
        (line, column)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (line, column) = self.line_and_column();
        write!(f, "{}:{line}:{column}", self.source.path.display())
    }
}

/// One mistake, with its place where it has one.
#[derive(Clone, Debug)]
pub struct Diagnostic {
    pub severity: Severity,
    pub message: String,
    pub place: Option<Place>,
    /// A second place that has to do with it: the first of two equal domains, say.
    pub related: Option<(Place, String)>,
    pub help: Option<String>,
}

/// All diagnostics of one load, in the order they were found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    diagnostics: Vec<Diagnostic>,
}

// === impl Diagnostic ===

impl Diagnostic {
    pub fn error(place: Place, message: impl Into<String>) -> Self {
        Self { severity: Severity::Error, message: message.into(), place: Some(place), related: None, help: None }
    }

    pub fn warning(place: Place, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(place, message) }
    }

    /// A mistake without a place inside a file: the file itself cannot be read.
    pub fn about_file(path: &Path, message: impl fmt::Display) -> Self {
        Self { severity: Severity::Error, message: format!("{}: {message}", path.display()), place: None, related: None, help: None }
    }

    #[must_use]
    pub fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    #[must_use]
    pub fn with_related(mut self, place: Place, label: impl Into<String>) -> Self {
        self.related = Some((place, label.into()));
        self
    }

    /// The diagnostic as text for a person: `file:line:col`, an excerpt, the reason and a hint.
    pub fn render(&self, renderer: &Renderer) -> String {
        let level = match self.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let title = level.primary_title(self.message.as_str());
        let mut report = vec![match &self.place {
            Some(place) => title.element(excerpt(place, AnnotationKind::Primary, "")),
            None => annotate_snippets::Group::with_title(title),
        }];
        if let Some((place, label)) = &self.related {
            let related = Level::NOTE.secondary_title(label.as_str());
            report.push(related.element(excerpt(place, AnnotationKind::Primary, "")));
        }
        if let Some(help) = &self.help {
            report.push(annotate_snippets::Group::with_title(Level::HELP.secondary_title(help.as_str())));
        }
        renderer.render(&report)
    }
}

/// The line around a place. Only the first line of a span is shown, so that a block stays short.
fn excerpt<'a>(place: &'a Place, kind: AnnotationKind, label: &'a str) -> Snippet<'a, annotate_snippets::Annotation<'a>> {
    let text = &*place.source.text;
    let line_end = text.get(place.span.start..).and_then(|rest| rest.find('\n')).map_or(text.len(), |n| place.span.start + n);
    let end = place.span.end.min(line_end).max(place.span.start);
    let path = place.source.path.to_string_lossy();
    let annotation = kind.span(place.span.start..end);
    let annotation = if label.is_empty() { annotation } else { annotation.label(label) };
    Snippet::source(text).path(path).annotation(annotation)
}

// === impl Report ===

impl Report {
    pub fn push(&mut self, diagnostic: Diagnostic) {
        self.diagnostics.push(diagnostic);
    }

    pub fn append(&mut self, mut other: Report) {
        self.diagnostics.append(&mut other.diagnostics);
    }

    pub fn has_errors(&self) -> bool {
        self.count(Severity::Error) > 0
    }

    pub fn count(&self, severity: Severity) -> usize {
        self.diagnostics.iter().filter(|d| d.severity == severity).count()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Diagnostic> {
        self.diagnostics.iter()
    }

    /// All diagnostics as text, errors and warnings in the order they were found.
    pub fn render(&self, color: bool) -> String {
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        let mut text = String::new();
        for diagnostic in &self.diagnostics {
            text.push_str(&diagnostic.render(&renderer));
            text.push_str("\n\n");
        }
        text
    }
}

/// The candidate that was most likely meant, for "did you mean".
pub fn did_you_mean<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= candidate.len().max(word.len()) / 3 && *distance > 0)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}
