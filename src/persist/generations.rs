//! Configurations that were applied, with the texts of their files.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use redb::{ReadableTable as _, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};

use super::{Error, Store, or_empty};
use crate::config::files::Texts;

/// How many configurations are kept.
pub const KEPT_GENERATIONS: usize = 10;

const GENERATIONS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("generations");
/// The files of each generation: a line with a digest and a path for each.
const MANIFESTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("manifests");
/// Texts by their SHA-256, each kept once.
const TEXTS: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("texts");
const MARKS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("marks");

/// A configuration that was applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generation {
    pub number: u64,
    /// Seconds since 1970.
    pub time: u64,
    /// Of all files with their names: equal digests are equal configurations.
    pub digest: String,
    /// Who or what applied it.
    pub by: String,
    /// The generation whose files these are, where it was a rollback.
    pub rolled_back_to: Option<u64>,
    pub sites: usize,
    /// Sites that have errors, in their last good version or left out.
    pub broken_sites: Vec<String>,
    /// What changed against the one before.
    pub changes: Vec<String>,
}

/// A configuration that goes away again unless somebody confirms it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// The generation that comes back.
    pub former: u64,
    /// Seconds since 1970.
    pub until: u64,
}

/// The digest of a configuration, as it is shown.
pub fn digest_of(files: &[(PathBuf, [u8; 32])]) -> String {
    let mut all = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    for (path, digest) in files {
        all.update(path.as_os_str().as_encoded_bytes());
        all.update(&[0]);
        all.update(digest);
    }
    hex(all.finish().as_ref().get(..6).unwrap_or_default())
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 {
        return None;
    }
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}

pub fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn json<T: for<'d> Deserialize<'d>>(bytes: &[u8]) -> Option<T> {
    serde_json::from_slice(bytes).ok()
}

fn to_json(value: &impl Serialize) -> Vec<u8> {
    // Plain structs of numbers and texts are always JSON.
    serde_json::to_vec(value).unwrap_or_default()
}

/// The files of a manifest.
fn files_of(manifest: &[u8]) -> Vec<([u8; 32], PathBuf)> {
    let text = String::from_utf8_lossy(manifest);
    text.lines().filter_map(|line| line.split_once(' ')).filter_map(|(digest, path)| Some((unhex(digest)?, PathBuf::from(path)))).collect()
}

/// Keeps a configuration. One with the same digest as the last takes its place, the oldest ones are forgotten, but for those that
/// somebody may still go back to.
pub(super) fn keep(
    transaction: &WriteTransaction,
    generation: &Generation,
    files: &[(PathBuf, [u8; 32])],
    texts: &Texts,
) -> Result<(), redb::Error> {
    let marks = transaction.open_table(MARKS)?;
    let former = marks.get("pending")?.and_then(|value| json::<Pending>(value.value())).map(|pending| pending.former);
    drop(marks);
    let mut generations = transaction.open_table(GENERATIONS)?;
    let mut manifests = transaction.open_table(MANIFESTS)?;
    let mut kept = transaction.open_table(TEXTS)?;
    let mut manifest = String::new();
    for (path, digest) in files {
        let Some(text) = texts.get(path) else { continue };
        manifest.push_str(&format!("{} {}\n", hex(digest), path.display()));
        if kept.get(digest)?.is_none() {
            kept.insert(digest, text.as_bytes())?;
        }
    }
    let mut numbers: Vec<(u64, String)> = Vec::new();
    for row in generations.iter()? {
        let (number, value) = row?;
        numbers.push((number.value(), json::<Generation>(value.value()).map(|old| old.digest).unwrap_or_default()));
    }
    generations.insert(generation.number, to_json(generation).as_slice())?;
    manifests.insert(generation.number, manifest.as_bytes())?;
    let same = numbers.last().filter(|(number, digest)| *digest == generation.digest && Some(*number) != former).map(|(number, _)| *number);
    numbers.retain(|(number, _)| Some(*number) != same && Some(*number) != former);
    let too_many = (numbers.len() + usize::from(former.is_some())).saturating_sub(KEPT_GENERATIONS - 1);
    let oldest = numbers.iter().take(too_many).map(|(number, _)| *number);
    let gone: HashSet<u64> = oldest.chain(same).collect();
    let mut unused: HashSet<[u8; 32]> = HashSet::new();
    for number in &gone {
        generations.remove(number)?;
        if let Some(manifest) = manifests.remove(number)? {
            unused.extend(files_of(manifest.value()).into_iter().map(|(digest, _)| digest));
        }
    }
    if unused.is_empty() {
        return Ok(());
    }
    for row in manifests.iter()? {
        for (digest, _) in files_of(row?.1.value()) {
            unused.remove(&digest);
        }
    }
    let sites = transaction.open_table(super::sites::SITES)?;
    for row in sites.iter()? {
        if let Some(site) = json::<super::KeptSite>(row?.1.value())
            && let Some(digest) = unhex(&site.digest)
        {
            unused.remove(&digest);
        }
    }
    for digest in unused {
        kept.remove(&digest)?;
    }
    Ok(())
}

/// Remembers which generation a rollback has put in force.
pub(super) fn pin(transaction: &WriteTransaction, number: Option<u64>) -> Result<(), redb::Error> {
    set_mark(transaction, "pinned", number.as_ref())
}

fn set_mark(transaction: &WriteTransaction, name: &str, value: Option<&impl Serialize>) -> Result<(), redb::Error> {
    let mut marks = transaction.open_table(MARKS)?;
    match value {
        Some(value) => drop(marks.insert(name, to_json(value).as_slice())?),
        None => drop(marks.remove(name)?),
    }
    Ok(())
}

impl Store {
    /// The configurations that are kept, oldest first.
    pub fn generations(&self) -> Result<Vec<Generation>, Error> {
        self.read(|transaction| {
            let mut found = Vec::new();
            if let Some(table) = or_empty(transaction.open_table(GENERATIONS))? {
                for row in table.iter()? {
                    found.extend(json(row?.1.value()));
                }
            }
            Ok(found)
        })
    }

    /// The number of the last one; 0 where there is none, or none can be read.
    pub fn last_number(&self) -> u64 {
        self.generations().ok().and_then(|kept| kept.last().map(|last| last.number)).unwrap_or(0)
    }

    /// The files of a configuration.
    pub fn texts_of(&self, number: u64) -> Result<Texts, Error> {
        let found = self.read(|transaction| {
            let (Some(manifests), Some(kept)) = (or_empty(transaction.open_table(MANIFESTS))?, or_empty(transaction.open_table(TEXTS))?)
            else {
                return Ok(None);
            };
            let Some(manifest) = manifests.get(number)? else { return Ok(None) };
            let mut texts = Texts::new();
            for (digest, path) in files_of(manifest.value()) {
                let Some(text) = kept.get(&digest)? else { return Ok(None) };
                texts.insert(path, Arc::from(String::from_utf8_lossy(text.value()).as_ref()));
            }
            Ok(Some(texts))
        })?;
        found.ok_or(Error::NoGeneration(number))
    }

    /// The text with a digest.
    pub(super) fn text(&self, digest: &[u8; 32]) -> Result<Option<Arc<str>>, Error> {
        self.read(|transaction| {
            let Some(kept) = or_empty(transaction.open_table(TEXTS))? else { return Ok(None) };
            Ok(kept.get(digest)?.map(|text| Arc::from(String::from_utf8_lossy(text.value()).as_ref())))
        })
    }

    /// The generation that a rollback has put in force: a start uses it until the next reload.
    pub fn pinned(&self) -> Result<Option<u64>, Error> {
        self.mark("pinned")
    }

    /// The configuration that waits for its confirmation.
    pub fn pending(&self) -> Result<Option<Pending>, Error> {
        self.mark("pending")
    }

    pub fn set_pending(&self, pending: Option<&Pending>) -> Result<(), Error> {
        self.write(|transaction| set_mark(transaction, "pending", pending))
    }

    fn mark<T: for<'d> Deserialize<'d>>(&self, name: &str) -> Result<Option<T>, Error> {
        self.read(|transaction| {
            let Some(marks) = or_empty(transaction.open_table(MARKS))? else { return Ok(None) };
            Ok(marks.get(name)?.and_then(|value| json(value.value())))
        })
    }
}
