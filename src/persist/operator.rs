//! What an operator has said of backends and sites, with who and when.

use std::collections::BTreeMap;

use redb::{ReadableTable as _, TableDefinition};
use serde::{Deserialize, Serialize};

use super::{Error, Store, or_empty};
use crate::balance::hand::Standing;

const BACKENDS: TableDefinition<'_, (&str, &str), &[u8]> = TableDefinition::new("backends");
const SWITCHES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("switches");

/// What an operator has said of a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendRecord {
    pub state: Standing,
    pub by: String,
    /// Seconds since 1970.
    pub time: u64,
}

/// Which group of a site's switch an operator has made active.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwitchRecord {
    pub active: String,
    /// What the site's file said then: once it says something else, the file counts again.
    pub instead_of: String,
    pub by: String,
    /// Seconds since 1970.
    pub time: u64,
}

impl Store {
    /// Records by group and backend.
    pub fn backends(&self) -> Result<BTreeMap<(String, String), BackendRecord>, Error> {
        self.read(|transaction| {
            let mut found = BTreeMap::new();
            if let Some(table) = or_empty(transaction.open_table(BACKENDS))? {
                for row in table.iter()? {
                    let (key, value) = row?;
                    let (group, backend) = key.value();
                    found.extend(serde_json::from_slice(value.value()).ok().map(|record| ((group.to_owned(), backend.to_owned()), record)));
                }
            }
            Ok(found)
        })
    }

    /// Keeps what was said of a backend; `None`: nothing is to be said any more.
    pub fn keep_backend(&self, group: &str, backend: &str, record: Option<&BackendRecord>) -> Result<(), Error> {
        self.write(|transaction| {
            let mut table = transaction.open_table(BACKENDS)?;
            match record {
                Some(record) => drop(table.insert((group, backend), serde_json::to_vec(record).unwrap_or_default().as_slice())?),
                None => drop(table.remove((group, backend))?),
            }
            Ok(())
        })
    }

    /// Records by site.
    pub fn switches(&self) -> Result<BTreeMap<String, SwitchRecord>, Error> {
        self.read(|transaction| {
            let mut found = BTreeMap::new();
            if let Some(table) = or_empty(transaction.open_table(SWITCHES))? {
                for row in table.iter()? {
                    let (key, value) = row?;
                    found.extend(serde_json::from_slice(value.value()).ok().map(|record| (key.value().to_owned(), record)));
                }
            }
            Ok(found)
        })
    }

    pub fn keep_switch(&self, site: &str, record: Option<&SwitchRecord>) -> Result<(), Error> {
        self.write(|transaction| {
            let mut table = transaction.open_table(SWITCHES)?;
            match record {
                Some(record) => drop(table.insert(site, serde_json::to_vec(record).unwrap_or_default().as_slice())?),
                None => drop(table.remove(site)?),
            }
            Ok(())
        })
    }
}
