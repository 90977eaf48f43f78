//! Checks users files: every app has a role, every row names a group that exists.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use super::super::diagnostic::{Diagnostic, Place, Report, did_you_mean};
use super::super::raw;
use super::super::read::read;
use super::super::source::read_document;
use super::super::tree::Document;
use super::at::hint;
use super::{At, GroupNames, users_stream};
use crate::routing::users::UserTable;

/// Reads and checks the users files. A table without mistakes is read straight from its text; one with mistakes is read
/// again, slowly, to tell where they are.
pub(super) fn check(paths: &[PathBuf], groups: &GroupNames, report: &mut Report) -> UserTable {
    if let Some(table) = users_stream::read(paths, groups) {
        return table;
    }
    let documents = paths.iter().filter_map(|path| read_document(path, report)).collect();
    with_places(documents, groups, report)
}

fn with_places(documents: Vec<Document>, groups: &GroupNames, report: &mut Report) -> UserTable {
    let mut table = UserTable::default();
    let mut apps: HashMap<String, Place> = HashMap::new();
    // Places are found when there is something to say: finding one walks through the file.
    let mut users: HashMap<&str, &Document> = HashMap::new();
    let mut documents = documents;
    let files: Vec<raw::Users> = documents.iter_mut().map(|document| read(document, report)).collect();
    // Apps first: a row may use an app that another file declares.
    for (file, document) in files.iter().zip(&documents) {
        let at = At::root(document).key("apps");
        for (name, app) in &file.apps {
            if let Some(first) = apps.insert(name.clone(), at.place_of_key(name)) {
                report.push(
                    at.key(name).error(format!("the app `{name}` is declared twice")).with_related(first, "it is first declared here"),
                );
            }
            if app.role == *name {
                report.push(at.key(name).key("role").error(format!("the app `{name}` and its role have the same name")));
            }
            if let Some(role) = files.iter().flat_map(|file| &file.apps).find(|(_, other)| other.role == *name && app.role != *name) {
                report.push(at.key(name).error(format!("`{name}` is an app and the role of `{}`: a row of it could mean either", role.0)));
            }
            table.add_app(name, &app.role);
        }
    }
    let words: HashSet<&str> =
        files.iter().flat_map(|file| &file.apps).flat_map(|(app, placed)| [app.as_str(), placed.role.as_str()]).collect();
    for (file, document) in files.iter().zip(&documents) {
        let at = At::root(document).key("users");
        for (name, row) in &file.users {
            if let Some(first) = users.get(name.as_str()) {
                report.push(
                    at.key(name)
                        .error(format!("the user `{name}` is given twice"))
                        .with_related(At::root(first).key("users").place_of_key(name), "the first row is here"),
                );
                continue;
            }
            if !fits_into_a_path(name) {
                report.push(at.key(name).error(format!("`{name}` is no user: it must fit into one segment of a path")));
            }
            users.insert(name, document);
            for word in row.keys().filter(|word| !words.contains(word.as_str())) {
                // An app needs no declaration, but one that is nearly a known word is a slip of the pen.
                if let Some(meant) = did_you_mean(word, words.iter().copied()) {
                    let diagnostic =
                        Diagnostic::warning(at.key(name).place_of_key(word), format!("`{word}` is neither a role nor an app under `apps`"));
                    report.push(hint(diagnostic, Some(meant)));
                }
            }
            let placements = row.iter().filter_map(|(word, group)| match groups.get(group) {
                Some(id) => Some((word.as_str(), id.0)),
                None => {
                    let diagnostic = at.key(name).key(word).error(format!("no backend group is named `{group}`"));
                    report.push(hint(diagnostic, did_you_mean(group, groups.keys().map(String::as_str))));
                    None
                }
            });
            let placements: Vec<_> = placements.collect();
            table.add_user(name, placements.iter().copied());
        }
    }
    table.shrink();
    table
}

/// Names are looked up decoded: `ü` and `%C3%BC` in a path are the user `ü`. A `/` never gets there.
pub(super) fn fits_into_a_path(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains(['/', '\\', '\0'])
}
