//! Checks users files: every app has a role, every row names a group that exists.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::diagnostic::{Diagnostic, Place, Report, Source, did_you_mean};
use super::super::files::Files;
use super::super::raw;
use super::super::read::read;
use super::super::source::read_document;
use super::super::tree::Document;
use super::super::{Group, GroupId};
use super::at::hint;
use super::{At, GroupNames, check_name, users_stream};
use crate::routing::users::UserTable;

/// Reads and checks the users files. A table without mistakes is read straight from its text; one with mistakes is read
/// again, slowly, to tell where they are.
pub(super) fn check(paths: &[PathBuf], files: &Files, groups: &GroupNames, report: &mut Report) -> UserTable {
    if let Some(table) = users_stream::read(paths, files, groups) {
        return table;
    }
    let documents = paths.iter().filter_map(|path| read_document(files, path, report)).collect();
    with_places(documents, groups, report)
}

fn with_places(documents: Vec<Document>, groups: &GroupNames, report: &mut Report) -> UserTable {
    let mut table = UserTable::default();
    let mut apps: HashMap<String, Place> = HashMap::new();
    // Places are found when there is something to say: finding one walks through the file.
    let mut users: HashMap<&str, &Document> = HashMap::new();
    let mut documents = documents;
    // What is cut off as it is written must not take everybody out of force.
    for document in documents.iter().filter(|document| document.root.span.is_empty()) {
        let diagnostic = Diagnostic::about_file(&document.source.path, "the users file is empty");
        report.push(diagnostic.with_help("write `users: {}` if there are none"));
    }
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
        let name = file.managed.then(|| table_name(&document.source.path));
        if let Some(name) = &name {
            check_name(name, "managed table", &At::root(document).key("managed"), report);
            if table.managed().any(|other| other == name) {
                report.push(At::root(document).key("managed").error(format!("a second managed table is named `{name}`: rename the file")));
            }
        }
        table.begin(name.as_deref());
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

/// Reads the text of a users file for groups in force. The error is the report of what is wrong with it.
pub fn read_text(text: &str, groups: &[Group]) -> Result<UserTable, String> {
    let names: GroupNames =
        (0..).zip(groups).filter(|(_, group)| !group.of_site).map(|(id, group)| (group.name.clone(), GroupId(id))).collect();
    if let Some(table) = users_stream::read_text(text, &names) {
        return Ok(table);
    }
    let mut report = Report::default();
    let document = Document::parse(Arc::new(Source::new(PathBuf::from("import"), text)), &mut report);
    let table = with_places(document.into_iter().collect(), &names, &mut report);
    if report.has_errors() { Err(report.render(false)) } else { Ok(table) }
}

/// What a managed table is called: as its file, without its ending.
pub(super) fn table_name(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// Names are looked up decoded: `ü` and `%C3%BC` in a path are the user `ü`. A `/` never gets there.
pub fn fits_into_a_path(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains(['/', '\\', '\0'])
}
