//! Where in the files something is said, in short: for `explain` and for messages about what runs.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use super::diagnostic::Place;

/// A file and a line, counted from one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    pub file: Arc<Path>,
    pub line: u32,
}

impl Origin {
    /// For what no file says, such as tables that are built in a test.
    pub fn nowhere() -> Self {
        Self { file: Path::new("").into(), line: 0 }
    }
}

impl From<&Place> for Origin {
    fn from(place: &Place) -> Self {
        let (line, _) = place.line_and_column();
        Self { file: place.source.shared_path(), line: u32::try_from(line).unwrap_or(u32::MAX) }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}
