//! The last good version of each site.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::{ReadableTable as _, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};

use super::generations::{hex, unhex};
use super::{Error, Store, or_empty};

pub(super) const SITES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("sites");

/// A site as it was when it was last without errors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptSite {
    pub name: String,
    /// The SHA-256 of its text.
    pub digest: String,
}

impl KeptSite {
    pub fn new(name: &str, digest: &[u8; 32]) -> Self {
        Self { name: name.to_owned(), digest: hex(digest) }
    }
}

impl Store {
    /// The sites that are kept, by their files.
    pub fn sites(&self) -> Result<HashMap<PathBuf, KeptSite>, Error> {
        self.read(|transaction| {
            let mut found = HashMap::new();
            if let Some(table) = or_empty(transaction.open_table(SITES))? {
                for row in table.iter()? {
                    let (path, site) = row?;
                    found.extend(serde_json::from_slice(site.value()).ok().map(|site| (PathBuf::from(path.value()), site)));
                }
            }
            Ok(found)
        })
    }

    /// The text of a kept site.
    pub fn site_text(&self, site: &KeptSite) -> Result<Option<Arc<str>>, Error> {
        match unhex(&site.digest) {
            Some(digest) => self.text(&digest),
            None => Ok(None),
        }
    }
}

/// Keeps these sites and forgets all others but those in `stay`. Their texts are those of a kept generation.
pub(super) fn keep(
    transaction: &WriteTransaction,
    good: &HashMap<&Path, KeptSite>,
    stay: impl Fn(&Path) -> bool,
) -> Result<(), redb::Error> {
    let mut table = transaction.open_table(SITES)?;
    let mut old: HashMap<String, KeptSite> = HashMap::new();
    for row in table.iter()? {
        let (path, site) = row?;
        old.extend(serde_json::from_slice(site.value()).ok().map(|site| (path.value().to_owned(), site)));
    }
    for path in old.keys().filter(|path| !good.contains_key(Path::new(path)) && !stay(Path::new(path))) {
        table.remove(path.as_str())?;
    }
    for (path, site) in good {
        let path = path.to_string_lossy();
        if old.get(path.as_ref()) != Some(site) {
            table.insert(path.as_ref(), serde_json::to_vec(site).unwrap_or_default().as_slice())?;
        }
    }
    Ok(())
}
