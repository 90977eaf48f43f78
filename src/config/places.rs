//! Finds places again that nobody keeps: there may be a million rows, and only `explain` asks for one.

use std::path::{Path, PathBuf};

use super::diagnostic::Report;
use super::origin::Origin;
use super::source::read_document;
use super::tree::Kind;

/// Where a user's row is.
pub fn user_place(files: &[PathBuf], user: &str) -> Option<Origin> {
    files.iter().find_map(|file| in_file(file, user))
}

fn in_file(file: &Path, user: &str) -> Option<Origin> {
    let document = read_document(file, &mut Report::default())?;
    let Kind::Mapping(entries) = &document.root.kind else { return None };
    let users = entries.iter().find(|entry| entry.key == "users")?;
    let span = users.value.key_span(user)?;
    Some(Origin::from(&document.place(span)))
}
