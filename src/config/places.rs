//! Finds single things in files again: places that nobody keeps, since there may be a million rows, and the admin socket.

use std::path::{Path, PathBuf};

use granit_parser::{Event, Parser};

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

/// Read piece by piece, since the running process is asked too: a tree of a million rows takes gigabytes.
fn in_file(file: &Path, user: &str) -> Option<Origin> {
    let text = Files::on_disk().text(file).ok()?;
    let mut events = Parser::new_from_str(&text);
    let mut mappings: Vec<Level> = Vec::new();
    loop {
        let (event, span) = events.next_event()?.ok()?;
        let depth = mappings.len();
        match event {
            Event::Scalar(word, ..) => {
                let (in_users, level) = (depth == 2 && mappings.first()?.key == "users", mappings.last_mut()?);
                if in_users && level.expects_key && word == user {
                    let before = text.get(..span.start.byte_offset()?)?;
                    let line = u32::try_from(before.matches('\n').count() + 1).ok()?;
                    return Some(Origin { file: file.into(), line });
                }
                if level.expects_key && depth == 1 {
                    level.key = word.into_owned();
                }
                level.expects_key = !level.expects_key;
            }
            Event::MappingStart(..) => mappings.push(Level { expects_key: true, key: String::new() }),
            Event::MappingEnd => {
                mappings.pop();
                // It was a value.
                mappings.last_mut()?.expects_key = true;
            }
            // There are none in users files.
            Event::SequenceStart(..) | Event::Alias(_) => return None,
            _ => {}
        }
    }
}

/// A mapping that has begun.
struct Level {
    expects_key: bool,
    /// The last key, where that matters.
    key: String,
}
