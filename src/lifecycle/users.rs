//! Commands on managed users tables: each is kept first and then in force for the next request.

use std::sync::Arc;

use bytes::Bytes;

use super::control::{CommandError, Control};
use super::tables::numbers_of;
use crate::config::check::read_users;
use crate::persist::{Error, StoredRow};
use crate::routing::users::{Row, Users};
use crate::snapshot::{Rules, Snapshot};

/// A user with its managed table and the group of each of its apps and roles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub name: String,
    /// `None`: a users file has it.
    pub table: Option<String>,
    pub row: StoredRow,
}

/// A managed table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    pub name: String,
    /// Grows with each change.
    pub version: u64,
    pub users: usize,
}

impl Control {
    /// The managed tables.
    pub fn tables(&self) -> Result<Vec<Table>, CommandError> {
        let snapshot = self.snapshot();
        let users = &snapshot.rules.users;
        let table = |name: &str| {
            let version = self.needed_store()?.table_version(name).map_err(failed)?.unwrap_or_default();
            Ok(Table { name: name.to_owned(), version, users: users.len_of(name) })
        };
        users.managed().map(table).collect()
    }

    /// A user, managed or not.
    pub fn user(&self, name: &str) -> Option<User> {
        let snapshot = self.snapshot();
        let (table, row) = snapshot.rules.users.row(name)?;
        Some(User { name: name.to_owned(), table: table.map(str::to_owned), row: named(&snapshot, row) })
    }

    /// The users of a managed table behind a name, in the order of their names, at most `limit`.
    pub fn users(&self, table: Option<&str>, after: &str, limit: usize) -> Result<Vec<User>, CommandError> {
        let snapshot = self.snapshot();
        let table = one_table(&snapshot.rules.users, table)?;
        let found = self.needed_store()?.rows_after(&table, after, limit).map_err(failed)?;
        Ok(found.into_iter().map(|(name, row)| User { name, table: Some(table.clone()), row }).collect())
    }

    /// Places apps and roles of a user; `None` takes one away. A user that is new is added to the managed table, which must be
    /// named if there are several. Tells whether it was.
    pub fn set_user(
        &self,
        by: &str,
        table: Option<&str>,
        name: &str,
        placed: &[(String, Option<String>)],
    ) -> Result<(User, bool), CommandError> {
        let _changing = self.change()?;
        let snapshot = self.snapshot();
        let users = &snapshot.rules.users;
        let (table, mut row, is_new) = match users.row(name) {
            Some((Some(own), row)) => (own_table(own, table, name)?, row, false),
            Some((None, _)) => return Err(not_managed(name)),
            None => (one_table(users, table)?, Row::new(), true),
        };
        if !crate::config::check::fits_into_a_path(name) || name.chars().any(char::is_control) {
            return Err(CommandError::Invalid(format!("`{name}` is no user: it must fit into one segment of a path")));
        }
        for (word, group) in placed {
            row.retain(|(other, _)| other != word);
            if let Some(group) = group {
                row.push((checked_word(word)?, self.group_number(&snapshot, group)?));
            }
        }
        Ok((self.keep_user(by, &snapshot, &table, name, Some(row))?, is_new))
    }

    /// Takes a user out of its managed table.
    pub fn remove_user(&self, by: &str, table: Option<&str>, name: &str) -> Result<User, CommandError> {
        let _changing = self.change()?;
        let snapshot = self.snapshot();
        match snapshot.rules.users.row(name) {
            Some((Some(own), _)) => {
                let table = own_table(own, table, name)?;
                self.keep_user(by, &snapshot, &table, name, None)
            }
            Some((None, _)) => Err(not_managed(name)),
            None => Err(CommandError::NotFound(format!("there is no user `{name}`"))),
        }
    }

    fn keep_user(&self, by: &str, snapshot: &Snapshot, table: &str, name: &str, row: Option<Row>) -> Result<User, CommandError> {
        let stored = row.clone().map(|row| named(snapshot, row));
        let store = self.needed_store()?;
        if store.table_version(table).map_err(failed)?.is_none() {
            // Its seed could not be kept when it was loaded: one row must not stand for the whole table.
            let rows = snapshot.rules.users.rows().into_iter().filter(|(own, ..)| *own == Some(table));
            store.keep_table(table, rows.map(|(_, user, row)| (user, named(snapshot, row)))).map_err(failed)?;
        }
        let version = store.keep_row(table, name, stored.as_deref()).map_err(failed)?;
        self.publish_users(snapshot, snapshot.rules.users.with_row(table, name, row.as_deref()));
        let shown = stored.as_ref().map_or_else(|| "removed".to_owned(), |row| shown(row));
        log::info!("users table {table} version {version}: {name}: {shown} (by {by})");
        Ok(User { name: name.to_owned(), table: Some(table.to_owned()), row: stored.unwrap_or_default() })
    }

    /// Replaces a whole table by the users of a users file, in one step. With `version` only if the table still has it.
    pub fn import_users(self: &Arc<Self>, by: &str, table: Option<&str>, text: Bytes, version: Option<u64>) -> Result<Table, CommandError> {
        let (this, by, table) = (self.clone(), by.to_owned(), table.map(str::to_owned));
        let import = move || {
            let text = std::str::from_utf8(&text).map_err(|_| CommandError::Invalid("the table is not UTF-8 text".to_owned()))?;
            this.import_here(&by, table.as_deref(), text, version)
        };
        let bug = || CommandError::Failed("the import failed by a bug, which the log has; nothing has changed".to_owned());
        self.worker.run(import).unwrap_or_else(|| Err(bug()))
    }

    fn import_here(&self, by: &str, table: Option<&str>, text: &str, version: Option<u64>) -> Result<Table, CommandError> {
        let _changing = self.change()?;
        let snapshot = self.snapshot();
        let table = one_table(&snapshot.rules.users, table)?;
        let store = self.needed_store()?;
        let has = store.table_version(&table).map_err(failed)?.unwrap_or_default();
        if version.is_some_and(|version| version != has) {
            let why = format!("the table `{table}` has version {has} by now: look at what has changed, then import again");
            return Err(CommandError::Conflict(why));
        }
        let read = read_users(text, &snapshot.checked.groups).map_err(CommandError::Invalid)?;
        // A seed may be imported as it is.
        if let Some((app, _)) = read.apps().into_iter().find(|(app, role)| snapshot.rules.users.role_of(app) != Some(*role)) {
            let why = format!("`apps` count in users files alone, and `{app}` is another one there: change the file and reload first");
            return Err(CommandError::Invalid(why));
        }
        let rows: Vec<(String, Row)> =
            read.rows().map(|(_, user, row)| (user.to_owned(), row.map(|(word, id)| (word.to_owned(), id)).collect())).collect();
        let elsewhere = rows.iter().find_map(|(user, _)| match snapshot.rules.users.row(user) {
            Some((own, _)) if own != Some(table.as_str()) => Some(user),
            _ => None,
        });
        if let Some(user) = elsewhere {
            return Err(CommandError::Conflict(format!("`{user}` is in another table already")));
        }
        let version =
            store.keep_table(&table, rows.iter().map(|(user, row)| (user.as_str(), named(&snapshot, row.clone())))).map_err(failed)?;
        let new = rows.iter().map(|(user, row)| (table.as_str(), user.as_str(), row.as_slice()));
        self.publish_users(&snapshot, snapshot.rules.users.with_tables(&[&table], new));
        log::info!("users table {table} version {version}: {} users imported (by {by})", rows.len());
        Ok(Table { name: table, version, users: rows.len() })
    }

    /// Puts the rows in force that another process has kept.
    pub(super) fn take_up_users(&self) -> Result<(), Error> {
        let (Some(store), snapshot) = (self.store(), self.snapshot()) else { return Ok(()) };
        let users = &snapshot.rules.users;
        let groups = numbers_of(&snapshot.checked.groups);
        let (mut kept, mut rows) = (Vec::new(), Vec::new());
        for table in users.managed() {
            if store.table_version(table)?.is_some() {
                kept.push(table);
            }
            store.rows(table, |user, row| {
                let placed = row.into_iter().filter_map(|(word, group)| Some((word, *groups.get(group.as_str())?)));
                rows.push((table, user.to_owned(), placed.collect::<Row>()));
            })?;
        }
        let rows = rows.iter().map(|(table, user, row)| (*table, user.as_str(), row.as_slice()));
        self.publish_users(&snapshot, users.with_tables(&kept, rows));
        Ok(())
    }

    fn publish_users(&self, snapshot: &Snapshot, users: Users) {
        let rules = Arc::new(Rules { users, ..Rules::clone(&snapshot.rules) });
        self.shared.current.publish(Snapshot { rules, ..snapshot.clone() });
    }

    fn group_number(&self, snapshot: &Snapshot, name: &str) -> Result<u32, CommandError> {
        let groups = || snapshot.checked.groups.iter().filter(|group| !group.of_site);
        let number = (0..).zip(&snapshot.checked.groups).find(|(_, group)| !group.of_site && group.name == name).map(|(number, _)| number);
        number.ok_or_else(|| {
            let meant = crate::config::diagnostic::did_you_mean(name, groups().map(|group| group.name.as_str()));
            let hint = meant.map_or_else(String::new, |meant| format!("; did you mean `{meant}`?"));
            CommandError::Invalid(format!("no backend group is named `{name}`{hint}"))
        })
    }
}

/// A row with the names of its groups.
fn named(snapshot: &Snapshot, row: Row) -> StoredRow {
    let group = |number: u32| snapshot.checked.groups.get(number as usize).map(|group| group.name.clone()).unwrap_or_default();
    row.into_iter().map(|(word, number)| (word, group(number))).collect()
}

/// `mail=node2 mysql=node1`.
pub fn shown(row: &[(String, String)]) -> String {
    let pairs: Vec<String> = row.iter().map(|(word, group)| format!("{word}={group}")).collect();
    pairs.join(" ")
}

fn checked_word(word: &str) -> Result<String, CommandError> {
    if !crate::config::check::fits_into_a_path(word) || word.contains(|c: char| c.is_control() || c == '=') {
        return Err(CommandError::Invalid(format!("`{word}` is no app and no role")));
    }
    Ok(word.to_owned())
}

/// The table that is meant: the only one, or the one that is named.
fn one_table(users: &Users, named: Option<&str>) -> Result<String, CommandError> {
    let tables: Vec<&str> = users.managed().collect();
    match (tables.as_slice(), named) {
        ([], _) => Err(CommandError::NotFound("no users table is managed: say `managed: true` in a users file".to_owned())),
        ([only], None) => Ok((*only).to_owned()),
        (tables, Some(named)) if tables.contains(&named) => Ok(named.to_owned()),
        (tables, Some(named)) => {
            Err(CommandError::NotFound(format!("no managed table is named `{named}`; there are: {}", tables.join(", "))))
        }
        (tables, None) => Err(CommandError::Invalid(format!("which table? There are: {}", tables.join(", ")))),
    }
}

fn own_table(own: &str, named: Option<&str>, user: &str) -> Result<String, CommandError> {
    match named {
        Some(named) if named != own => Err(CommandError::Conflict(format!("`{user}` is in the table `{own}`"))),
        _ => Ok(own.to_owned()),
    }
}

fn not_managed(user: &str) -> CommandError {
    CommandError::Conflict(format!("`{user}` is in a users file that is not managed: change it there and reload"))
}

fn failed(error: Error) -> CommandError {
    CommandError::Failed(format!("nothing has changed: {error}"))
}
