//! Reads users files straight into the table, without a tree in between: a million rows in seconds, not in gigabytes.
//!
//! It knows the usual form only. Whatever else stands there, be it a mistake or a rare way to write YAML, makes it give
//! up, and the reader with places decides.

use std::collections::HashSet;
use std::path::PathBuf;

use granit_parser::{Event, Parser, ScalarStyle, StrInput};
use smallvec::SmallVec;

use super::super::diagnostic::did_you_mean;
use super::super::files::Files;
use super::GroupNames;
use super::users::{fits_into_a_path, table_name};
use crate::routing::users::UserTable;

/// The table of all files; `None`: there is something to be said about them.
pub(super) fn read(paths: &[PathBuf], files: &Files, groups: &GroupNames) -> Option<UserTable> {
    read_all(paths.iter().map(|path| Some((files.text(path).ok()?, table_name(path)))), groups)
}

/// The table of one text.
pub(super) fn read_text(text: &str, groups: &GroupNames) -> Option<UserTable> {
    read_all(std::iter::once(Some((text, String::new()))), groups)
}

/// The table of texts, each with the name that it has if it is managed.
fn read_all<T: AsRef<str>>(texts: impl Iterator<Item = Option<(T, String)>>, groups: &GroupNames) -> Option<UserTable> {
    let mut reader = Reader {
        groups,
        table: UserTable::default(),
        declared: HashSet::new(),
        apps: HashSet::new(),
        roles: HashSet::new(),
        used: HashSet::new(),
    };
    for text in texts {
        let (text, name) = text?;
        reader.file(text.as_ref(), &name)?;
    }
    let Reader { mut table, declared, used, apps, roles, .. } = reader;
    // An app that has the name of a role makes rows ambiguous.
    if apps.iter().any(|app| roles.contains(app)) {
        return None;
    }
    // A word that is nearly a known one deserves a warning, and so a place.
    let slip = |word: &String| !declared.contains(word) && did_you_mean(word, declared.iter().map(String::as_str)).is_some();
    if used.iter().any(slip) {
        return None;
    }
    table.shrink();
    Some(table)
}

struct Reader<'g> {
    groups: &'g GroupNames,
    table: UserTable,
    /// Apps and roles.
    declared: HashSet<String>,
    apps: HashSet<String>,
    roles: HashSet<String>,
    /// What rows call apps and roles.
    used: HashSet<String>,
}

type Events<'t> = Parser<'t, StrInput<'t>>;

impl Reader<'_> {
    fn file(&mut self, text: &str, name: &str) -> Option<()> {
        self.table.begin(None);
        // Placeholders are rare in tables; they are filled in by the other reader.
        if memchr::memmem::find(text.as_bytes(), b"${").is_some() {
            return None;
        }
        let mut events = Parser::new_from_str(text);
        if next(&mut events)? != Event::StreamStart {
            return None;
        }
        match next(&mut events)? {
            Event::DocumentStart(..) => mapping(&mut events)?,
            _ => return None,
        }
        let mut seen = (false, false);
        while let Some(key) = key(&mut events)? {
            match (key.as_str(), seen) {
                // Told before the users: otherwise the other reader finds out whose they are.
                ("managed", (_, false)) => match word_or_switch(&mut events)?.as_str() {
                    "true" => self.table.begin(Some(name)),
                    "false" => {}
                    _ => return None,
                },
                ("apps", (false, _)) => {
                    seen.0 = true;
                    self.apps(&mut events)?;
                }
                ("users", (_, false)) => {
                    seen.1 = true;
                    self.users(&mut events)?;
                }
                _ => return None,
            }
        }
        (next(&mut events)? == Event::DocumentEnd && next(&mut events)? == Event::StreamEnd).then_some(())
    }

    fn apps(&mut self, events: &mut Events<'_>) -> Option<()> {
        mapping(events)?;
        let mut here: HashSet<String> = HashSet::new();
        while let Some(app) = key(events)? {
            mapping(events)?;
            let (role_key, role) = (key(events)??, word(events)?);
            if role_key != "role" || key(events)?.is_some() || role == app || !here.insert(app.clone()) {
                return None;
            }
            self.table.add_app(&app, &role);
            self.declared.extend([app.clone(), role.clone()]);
            self.apps.insert(app);
            self.roles.insert(role);
        }
        Some(())
    }

    fn users(&mut self, events: &mut Events<'_>) -> Option<()> {
        mapping(events)?;
        while let Some(user) = key(events)? {
            mapping(events)?;
            let mut row: SmallVec<[(String, u32); 4]> = SmallVec::new();
            while let Some(app) = key(events)? {
                let group = self.groups.get(&word(events)?)?;
                if row.iter().any(|(other, _)| *other == app) {
                    return None;
                }
                if !self.used.contains(&app) {
                    self.used.insert(app.clone());
                }
                row.push((app, group.0));
            }
            let placements = row.iter().map(|(app, group)| (app.as_str(), *group));
            if !fits_into_a_path(&user) || !self.table.add_user(&user, placements) {
                return None;
            }
        }
        Some(())
    }
}

fn next<'t>(events: &mut Events<'t>) -> Option<Event<'t>> {
    events.next_event()?.ok().map(|(event, _)| event)
}

/// A plain mapping begins.
fn mapping(events: &mut Events<'_>) -> Option<()> {
    matches!(next(events)?, Event::MappingStart(_, 0, None)).then_some(())
}

/// The next key of a mapping; `Some(None)`: the mapping ends.
fn key(events: &mut Events<'_>) -> Option<Option<String>> {
    match next(events)? {
        Event::MappingEnd => Some(None),
        Event::Scalar(text, _, 0, None) => Some(Some(text.into_owned())),
        _ => None,
    }
}

/// A plain value.
fn word_or_switch(events: &mut Events<'_>) -> Option<String> {
    match next(events)? {
        Event::Scalar(text, ScalarStyle::Plain, 0, None) => Some(text.into_owned()),
        _ => None,
    }
}

/// A value that is a word whatever YAML makes of numbers and switches.
fn word(events: &mut Events<'_>) -> Option<String> {
    match next(events)? {
        Event::Scalar(text, style, 0, None) => {
            let switches = ["true", "false", "null"];
            let plain = style != ScalarStyle::Plain
                || (text.starts_with(|c: char| c.is_ascii_alphabetic())
                    && !switches.iter().any(|switch| text.eq_ignore_ascii_case(switch)));
            plain.then(|| text.into_owned())
        }
        _ => None,
    }
}
