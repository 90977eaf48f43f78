//! Managed users tables: each row with the names of its groups.

use redb::{ReadableTable as _, TableDefinition, WriteTransaction};

use super::{Error, Store, or_empty};

const TABLES: TableDefinition<'_, &str, u64> = TableDefinition::new("user_tables");
const ROWS: TableDefinition<'_, (&str, &str), &str> = TableDefinition::new("users");

/// Tables that nobody names any more: their users are there again once somebody does.
const ASIDE: TableDefinition<'_, &str, ()> = TableDefinition::new("user_tables_aside");

/// A user's row as it is kept: app or role, and group.
pub type StoredRow = Vec<(String, String)>;

/// A line for each placement; neither names of groups nor of apps have line breaks or tabs.
fn written(row: &[(String, String)]) -> String {
    let pairs: Vec<String> = row.iter().map(|(word, group)| format!("{word}\t{group}")).collect();
    pairs.join("\n")
}

fn parsed(text: &str) -> StoredRow {
    text.lines().filter_map(|line| line.split_once('\t')).map(|(word, group)| (word.to_owned(), group.to_owned())).collect()
}

impl Store {
    /// The version of a table, counted from 1; `None`: it is not kept yet.
    pub fn table_version(&self, table: &str) -> Result<Option<u64>, Error> {
        self.read(|transaction| {
            let Some(tables) = or_empty(transaction.open_table(TABLES))? else { return Ok(None) };
            Ok(tables.get(table)?.map(|version| version.value()))
        })
    }

    /// The names of the tables that are kept, without those that were put aside.
    pub fn tables(&self) -> Result<Vec<String>, Error> {
        self.read(|transaction| {
            let Some(tables) = or_empty(transaction.open_table(TABLES))? else { return Ok(Vec::new()) };
            let aside = or_empty(transaction.open_table(ASIDE))?;
            let mut found = Vec::new();
            for table in tables.iter()? {
                let name = table?.0.value().to_owned();
                let is_aside = aside.as_ref().map(|aside| aside.get(name.as_str())).transpose()?.flatten().is_some();
                found.extend((!is_aside).then_some(name));
            }
            Ok(found)
        })
    }

    /// The rows of a table, in the order of their names.
    pub fn rows(&self, table: &str, mut each: impl FnMut(&str, StoredRow)) -> Result<(), Error> {
        self.read(|transaction| {
            let Some(rows) = or_empty(transaction.open_table(ROWS))? else { return Ok(()) };
            for row in rows.range((table, "")..)? {
                let (key, value) = row?;
                let (own, user) = key.value();
                if own != table {
                    break;
                }
                each(user, parsed(value.value()));
            }
            Ok(())
        })
    }

    /// The rows of a table behind a name, at most `limit`.
    pub fn rows_after(&self, table: &str, after: &str, limit: usize) -> Result<Vec<(String, StoredRow)>, Error> {
        self.read(|transaction| {
            let mut found = Vec::new();
            let Some(rows) = or_empty(transaction.open_table(ROWS))? else { return Ok(found) };
            for row in rows.range((table, after)..)? {
                let (key, value) = row?;
                let (own, user) = key.value();
                if own != table || found.len() == limit {
                    break;
                }
                if user != after {
                    found.push((user.to_owned(), parsed(value.value())));
                }
            }
            Ok(found)
        })
    }

    /// Keeps one row, or its end; gives the table's new version.
    pub fn keep_row(&self, table: &str, user: &str, row: Option<&[(String, String)]>) -> Result<u64, Error> {
        self.write(|transaction| {
            let mut rows = transaction.open_table(ROWS)?;
            match row {
                Some(row) => drop(rows.insert((table, user), written(row).as_str())?),
                None => drop(rows.remove((table, user))?),
            }
            let mut tables = transaction.open_table(TABLES)?;
            let version = tables.get(table)?.map_or(0, |version| version.value()) + 1;
            tables.insert(table, version)?;
            Ok(version)
        })
    }

    /// Keeps a whole table instead of what it was; gives its new version.
    pub fn keep_table<'a>(&self, table: &str, new: impl Iterator<Item = (&'a str, StoredRow)>) -> Result<u64, Error> {
        self.write(|transaction| keep_table(transaction, table, new))
    }
}

/// Tables that are named, and those that are not any more.
pub(super) fn put_aside(transaction: &WriteTransaction, named: &[String], lost: &[String]) -> Result<(), redb::Error> {
    let mut aside = transaction.open_table(ASIDE)?;
    for table in named {
        aside.remove(table.as_str())?;
    }
    for table in lost {
        aside.insert(table.as_str(), ())?;
    }
    Ok(())
}

pub(super) fn keep_table<'a>(
    transaction: &WriteTransaction,
    table: &str,
    new: impl Iterator<Item = (&'a str, StoredRow)>,
) -> Result<u64, redb::Error> {
    let mut new: Vec<(&str, StoredRow)> = new.collect();
    // Rows in order make the fewest pages.
    new.sort_by(|a, b| a.0.cmp(b.0));
    let mut rows = transaction.open_table(ROWS)?;
    rows.retain(|(own, _), _| own != table)?;
    for (user, row) in &new {
        rows.insert((table, *user), written(row).as_str())?;
    }
    let mut tables = transaction.open_table(TABLES)?;
    let version = tables.get(table)?.map_or(0, |version| version.value()) + 1;
    tables.insert(table, version)?;
    Ok(version)
}
