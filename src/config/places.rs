//! Finds single things in files again: places that nobody keeps, since there may be a million rows, and the admin socket.

use std::path::{Path, PathBuf};

use super::diagnostic::Report;
use super::files::Files;
use super::origin::Origin;
use super::source::{read_document, relative_to};
use super::tree::{Kind, Step};

/// The admin socket that a main file names, whatever else is wrong with it. `None`: none, or it cannot be read.
pub fn admin_socket(file: &Path) -> Option<PathBuf> {
    let Some(document) = read_document(&Files::on_disk(), file, &mut Report::default()) else {
        // Who has just made a mistake needs the commands most.
        let text = std::fs::read_to_string(file).ok()?;
        let (_, rest) = text.split_once("admin:")?.1.split_once("socket:")?;
        let path = rest.trim_start().trim_start_matches(['"', '\'']);
        let end = path.find([' ', '"', '\'', ',', '}', '\n']).unwrap_or(path.len());
        return Some(relative_to(file, Path::new(path.get(..end)?)));
    };
    let admin = document.root.child(&Step::Key("admin".to_owned()))?;
    match &admin.child(&Step::Key("socket".to_owned()))?.kind {
        Kind::Scalar { text, .. } => Some(relative_to(file, Path::new(text))),
        Kind::Sequence(_) | Kind::Mapping(_) => None,
    }
}

/// Where a user's row is.
pub fn user_place(files: &[PathBuf], user: &str) -> Option<Origin> {
    files.iter().find_map(|file| in_file(file, user))
}

fn in_file(file: &Path, user: &str) -> Option<Origin> {
    let document = read_document(&Files::on_disk(), file, &mut Report::default())?;
    let Kind::Mapping(entries) = &document.root.kind else { return None };
    let users = entries.iter().find(|entry| entry.key == "users")?;
    let span = users.value.key_span(user)?;
    Some(Origin::from(&document.place(span)))
}
