//! What outlives the process, in one file of the state directory: configurations that were applied, the last good version of
//! each site, managed users tables, and what an operator has said of backends and sites.
//!
//! One transaction for each change: after a crash or on a full disk there is the old state or the new one.

mod generations;
mod operator;
mod sites;
mod users;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use redb::{Database, DatabaseError, ReadTransaction, ReadableDatabase as _, StorageError, WriteTransaction};

use crate::config::files::Texts;

pub use generations::{Generation, KEPT_GENERATIONS, Pending, digest_of, seconds};
pub use operator::{BackendRecord, SwitchRecord};
pub use sites::KeptSite;
pub use users::StoredRow;

/// The name of the file in the state directory.
pub const FILE: &str = "state.redb";
/// Pages that are kept in memory: the state is read at the start and written on commands.
const CACHE: usize = 4 << 20;
/// The head of the file: the word that vouches for it, which is written last when a file is made, and what it says of the rest.
const HEAD: usize = 320;
const WORD: usize = 9;

/// Why something could not be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}: another portcullis uses it; stop that one, or give this one its own `state_dir`", path.display())]
    InUse { path: PathBuf },
    #[error("{}: {why}", path.display())]
    Io { path: PathBuf, why: String },
    #[error("{}: {why}; move it away to start with nothing kept", path.display())]
    Damaged { path: PathBuf, why: String },
    #[error("the state is being handed over to another process")]
    HandedOver,
    #[error("there is no generation {0}; `portcullis config history` tells which there are")]
    NoGeneration(u64),
}

/// What is kept of a configuration that is in force.
pub struct Kept<'a> {
    pub generation: &'a Generation,
    /// Its files with the digests of their texts.
    pub files: &'a [(PathBuf, [u8; 32])],
    pub texts: &'a Texts,
    /// Sites without errors.
    pub good: HashMap<&'a Path, KeptSite>,
    /// Sites whose kept versions go on being kept.
    pub stay: &'a [PathBuf],
    /// Managed tables that were never kept.
    pub seeds: Vec<(&'a str, &'a [(String, StoredRow)])>,
    /// Managed tables that the files name, and those that they do not name any more.
    pub tables: &'a [String],
    pub lost_tables: &'a [String],
}

/// The open state file. A process has it alone.
pub struct Store {
    path: PathBuf,
    /// `None`: handed over, or closed after a failure of the disk, to be opened anew.
    database: Mutex<Option<Database>>,
    handed_over: Mutex<bool>,
}

impl Store {
    /// Opens the state of a directory, which is made if it is not there.
    ///
    /// # Errors
    /// The directory cannot be written, another process uses it, or the file is damaged.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        let path = directory.join(FILE);
        let io = |error: io::Error| Error::Io { path: path.clone(), why: error.to_string() };
        if !directory.is_dir() {
            fs::DirBuilder::new().recursive(true).mode(0o750).create(directory).map_err(io)?;
        }
        if fs::metadata(&path).is_ok_and(|file| file.len() == 0) {
            log::warn!("{}: it is empty: whatever was kept there is gone, and managed tables begin as their files say", path.display());
        }
        // Users, paths and whatever stands in site files: for nobody else.
        fs::OpenOptions::new().create(true).append(true).mode(0o600).open(&path).map_err(io)?;
        forget_unfinished(&path).map_err(io)?;
        let store = Self { path, database: Mutex::new(None), handed_over: Mutex::new(false) };
        drop(store.database()?);
        store.look_through()?;
        Ok(store)
    }

    /// Whether everything can be read. Later a failure would cost what is kept, one thing after the other.
    fn look_through(&self) -> Result<(), Error> {
        let looks = || {
            self.generations()?;
            self.sites()?;
            self.tables()?;
            self.pending()?;
            self.pinned()?;
            self.backends()?;
            self.switches().map(drop)
        };
        looks().map_err(|error| match error {
            Error::Io { path, why } => Error::Damaged { path, why },
            error => error,
        })
    }

    /// Keeps a configuration that is in force, with all that belongs to it, as one change.
    pub fn keep_applied(&self, applied: &Kept<'_>) -> Result<(), Error> {
        self.write(|transaction| {
            generations::keep(transaction, applied.generation, applied.files, applied.texts)?;
            let stay: HashSet<&Path> = applied.stay.iter().map(PathBuf::as_path).collect();
            sites::keep(transaction, &applied.good, |path| stay.contains(path))?;
            generations::pin(transaction, applied.generation.rolled_back_to.map(|_| applied.generation.number))?;
            users::put_aside(transaction, applied.tables, applied.lost_tables)?;
            for (table, rows) in &applied.seeds {
                users::keep_table(transaction, table, rows.iter().map(|(user, row)| (user.as_str(), row.clone())))?;
            }
            Ok(())
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Closes the state, so that another process can open it.
    pub fn hand_over(&self) {
        *self.handed_over.lock().unwrap_or_else(PoisonError::into_inner) = true;
        *self.database.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Opens it again.
    pub fn take_back(&self) {
        *self.handed_over.lock().unwrap_or_else(PoisonError::into_inner) = false;
    }

    fn database(&self) -> Result<MutexGuard<'_, Option<Database>>, Error> {
        let mut database = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        if *self.handed_over.lock().unwrap_or_else(PoisonError::into_inner) {
            return Err(Error::HandedOver);
        }
        if database.is_none() {
            let open = || Database::builder().set_cache_size(CACHE).create(&self.path);
            *database = Some(self.unless_damaged(open)?.map_err(|error| self.cannot_open(error))?);
        }
        Ok(database)
    }

    fn cannot_open(&self, error: DatabaseError) -> Error {
        match error {
            DatabaseError::DatabaseAlreadyOpen => Error::InUse { path: self.path.clone() },
            DatabaseError::Storage(StorageError::Io(error)) if !is_about_content(&error) => self.failed(error),
            error => Error::Damaged { path: self.path.clone(), why: error.to_string() },
        }
    }

    fn failed(&self, error: impl std::fmt::Display) -> Error {
        Error::Io { path: self.path.clone(), why: error.to_string() }
    }

    fn read<T>(&self, work: impl FnOnce(&ReadTransaction) -> Result<T, redb::Error>) -> Result<T, Error> {
        let database = self.database()?;
        let Some(open) = database.as_ref() else { return Err(Error::HandedOver) };
        let read = || open.begin_read().map_err(redb::Error::from).and_then(|transaction| work(&transaction));
        let result = self.unless_damaged(read);
        self.settle(database, result)
    }

    /// All of `work` is kept, or nothing.
    fn write<T>(&self, work: impl FnOnce(&WriteTransaction) -> Result<T, redb::Error>) -> Result<T, Error> {
        let database = self.database()?;
        let Some(open) = database.as_ref() else { return Err(Error::HandedOver) };
        let write = || {
            open.begin_write().map_err(redb::Error::from).and_then(|transaction| {
                let value = work(&transaction)?;
                transaction.commit()?;
                Ok(value)
            })
        };
        let result = self.unless_damaged(write);
        self.settle(database, result)
    }

    /// The library panics over pages that cannot be.
    fn unless_damaged<T>(&self, work: impl FnOnce() -> T) -> Result<T, Error> {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        result.map_err(|_| Error::Damaged { path: self.path.clone(), why: "it is damaged".to_owned() })
    }

    /// After a failure of the disk or a panic the file is opened anew: there may be room again, and the library may not trust what
    /// it holds.
    fn settle<T>(&self, mut database: MutexGuard<'_, Option<Database>>, result: Result<Result<T, redb::Error>, Error>) -> Result<T, Error> {
        let result = result.and_then(|result| result.map_err(|error| self.failed(error)));
        if result.is_err() {
            let open = database.take();
            // Closing may panic as well: what was wrong before is told.
            let _ = self.unless_damaged(|| drop(open));
        }
        result
    }
}

/// Empties a file whose making was cut short, by a full disk or a crash: nothing was ever kept in it.
fn forget_unfinished(path: &Path) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().read(true).write(true).open(path)?;
    // Whoever has it is at work on it.
    if file.try_lock().is_err() {
        return Ok(());
    }
    let mut head = Vec::with_capacity(HEAD);
    file.by_ref().take(HEAD as u64).read_to_end(&mut head)?;
    if head.is_empty() || head.iter().take(WORD).any(|byte| *byte != 0) {
        return Ok(());
    }
    // Without the word, but with something behind the head, it is damaged.
    for byte in io::BufReader::new(&file).bytes() {
        if byte? != 0 {
            return Ok(());
        }
    }
    log::warn!("{}: its making was cut short; it is made again", path.display());
    file.set_len(0)
}

/// Whether the file is not what it should be, rather than the disk.
fn is_about_content(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
}

/// A table that was never written has no rows: that is no error.
fn or_empty<T>(table: Result<T, redb::TableError>) -> Result<Option<T>, redb::Error> {
    match table {
        Ok(table) => Ok(Some(table)),
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests;
