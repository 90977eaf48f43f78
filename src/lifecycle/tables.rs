//! Managed users tables of a configuration: the files name them, their rows are those that are kept.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::assemble::{Assembled, Sources};
use crate::config::diagnostic::Diagnostic;
use crate::config::{Config, Group};
use crate::persist::{Error, Store};
use crate::routing::users::Row;

/// Gives managed tables the rows that are kept. `false`: that cannot be, and it was said why.
pub(super) fn fill(config: &mut Config, sources: &Sources<'_>, assembled: &mut Assembled) -> bool {
    let names: Vec<String> = config.users.managed().map(str::to_owned).collect();
    if !none_is_lost(&names, sources, assembled) {
        return false;
    }
    if names.is_empty() {
        return true;
    }
    let mut refuse = |why: String, help: String| {
        let diagnostic = Diagnostic::about_file(sources.path, why);
        assembled.report.push(if help.is_empty() { diagnostic } else { diagnostic.with_help(help) });
    };
    let Some(store) = sources.store else {
        let why = "managed users tables are kept in `state_dir`, which cannot be used";
        refuse(why.to_owned(), "make the directory writable, or set another `state_dir`".to_owned());
        return false;
    };
    let read = match Read::of(&names, store, config) {
        Ok(read) => read,
        Err(error) => {
            refuse(format!("managed users tables cannot be read: {error}"), String::new());
            return false;
        }
    };
    for (group, (count, user)) in &read.missing {
        refuse(
            format!("no backend group is named `{group}`, but rows of managed tables lead there: {count}, such as that of `{user}`"),
            format!("keep the group, or move them first: `portcullis users set {user} …`"),
        );
    }
    if let Some(Twice { user, table, elsewhere }) = &read.twice {
        let why = format!("the user `{user}` is in the managed table `{table}` and in {elsewhere}");
        if sources.is_first {
            // One user must not keep everybody down.
            log::error!("{why}: one of the rows counts");
        } else {
            refuse(why, format!("remove it from the file, or: `portcullis users remove {user}`"));
        }
    }
    if !read.missing.is_empty() || (read.twice.is_some() && !sources.is_first) {
        return false;
    }
    if !read.kept.is_empty() {
        let rows = read.rows.iter().map(|(table, user, row)| (*table, user.as_str(), row.as_slice()));
        config.users = config.users.with_tables(&read.kept, rows);
    }
    assembled.seeded = read.seeded;
    true
}

/// Whether no table is kept that the files do not name any more. A file that is gone, or was cut off as it was written, must not
/// take its users out of force. A start has nothing else to go on with than the files, and a rollback nothing else than what was
/// kept: there the rows wait for the file.
fn none_is_lost(names: &[String], sources: &Sources<'_>, assembled: &mut Assembled) -> bool {
    let kept = match sources.store.map(Store::tables).transpose() {
        Ok(kept) => kept.unwrap_or_default(),
        Err(error) => {
            let why = format!("managed users tables cannot be read: {error}");
            assembled.report.push(Diagnostic::about_file(sources.path, why));
            return false;
        }
    };
    // One in force may not be kept, after a full disk.
    let known: BTreeSet<&String> = kept.iter().chain(&sources.tables).collect();
    let lost: Vec<String> = known.into_iter().filter(|table| !names.contains(table)).cloned().collect();
    assembled.tables = names.to_vec();
    if sources.prune || lost.is_empty() {
        assembled.lost_tables = lost;
        return true;
    }
    let mut good = true;
    for table in lost {
        let why = format!("the users table `{table}` is kept, but no users file has that name and `managed: true`");
        if sources.is_first || sources.kept.is_some() {
            log::error!("{why}: its users are not in force");
            assembled.tables_out_of_force.push(table);
            continue;
        }
        let help = format!("bring the file {table}.yaml back, or put the table and its users aside: `portcullis reload --prune`");
        assembled.report.push(Diagnostic::about_file(sources.path, why).with_help(help));
        good = false;
    }
    good
}

/// What is kept of the tables that the files name.
struct Read<'n> {
    kept: Vec<&'n str>,
    /// Those that were never kept.
    seeded: Vec<String>,
    rows: Vec<(&'n str, String, Row)>,
    /// Groups that there are not: how many rows lead there, and the user of one.
    missing: BTreeMap<String, (usize, String)>,
    twice: Option<Twice>,
}

/// The numbers of groups that rows may name.
pub(super) fn numbers_of(groups: &[Group]) -> HashMap<&str, u32> {
    (0..).zip(groups).filter(|(_, group)| !group.of_site).map(|(number, group)| (group.name.as_str(), number)).collect()
}

/// A user in two tables.
struct Twice {
    user: String,
    table: String,
    elsewhere: String,
}

impl<'n> Read<'n> {
    fn of(names: &'n [String], store: &Store, config: &Config) -> Result<Self, Error> {
        let mut read = Self { kept: Vec::new(), seeded: Vec::new(), rows: Vec::new(), missing: BTreeMap::new(), twice: None };
        for name in names {
            match store.table_version(name)? {
                Some(_) => read.kept.push(name),
                None => read.seeded.push(name.clone()),
            }
        }
        let groups = numbers_of(&config.groups);
        let Self { kept, seeded, rows, missing, twice } = &mut read;
        let managed = |other: &str| format!("the managed table `{other}`");
        let mut seen: HashMap<String, &str> = HashMap::new();
        for name in kept.iter().copied() {
            store.rows(name, |user, row| {
                let elsewhere = match config.users.row(user) {
                    Some((None, _)) => Some("a users file".to_owned()),
                    // Rows of a file count where its table is not kept yet.
                    Some((Some(other), _)) if seeded.iter().any(|seeded| seeded == other) => Some(managed(other)),
                    _ if kept.len() > 1 => seen.insert(user.to_owned(), name).map(managed),
                    _ => None,
                };
                if let Some(elsewhere) = elsewhere {
                    twice.get_or_insert_with(|| Twice { user: user.to_owned(), table: name.to_owned(), elsewhere });
                }
                let placed = row.into_iter().filter_map(|(word, group)| match groups.get(group.as_str()) {
                    Some(id) => Some((word, *id)),
                    None => {
                        missing.entry(group).or_insert_with(|| (0, user.to_owned())).0 += 1;
                        None
                    }
                });
                rows.push((name, user.to_owned(), placed.collect()));
            })?;
        }
        Ok(read)
    }
}
