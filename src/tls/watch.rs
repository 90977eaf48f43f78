//! Certificates in use, followed as their files change: a renewal is in force without a reload, and a half-written one
//! never is.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use time::OffsetDateTime;

use super::store::{Files, Loaded, Stamp, Table, discover};

/// Days before its end that the log begins to speak of a certificate; authorities renew 30 days before.
pub const EXPIRES_SOON: i64 = 14;

/// Certificates that are swapped as one.
#[derive(Debug)]
pub struct Watched {
    /// What is watched for certificates that are not known yet; empty: only the known ones.
    paths: Vec<std::path::PathBuf>,
    table: ArcSwap<Table>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    certificates: Vec<Arc<Loaded>>,
    /// Files that could not be used, and how they were then: it is said once.
    failed: Vec<(Files, Option<Stamp>)>,
}

/// What a look at the files has found.
#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    /// In use from now on; with the names that the one before had and this one lacks.
    Replaced(Files, Vec<String>),
    Added(Files),
    Removed(Files),
    /// It cannot be used: the one before stays.
    Kept(Files, String),
}

// === impl Watched ===

impl Watched {
    /// The certificates of one site.
    pub fn own(certificates: Vec<Arc<Loaded>>) -> Arc<Self> {
        Self::new(Vec::new(), certificates)
    }

    /// The certificates of files and directories, which may become more.
    pub fn store(paths: Vec<std::path::PathBuf>, certificates: Vec<Arc<Loaded>>) -> Arc<Self> {
        Self::new(paths, certificates)
    }

    fn new(paths: Vec<std::path::PathBuf>, certificates: Vec<Arc<Loaded>>) -> Arc<Self> {
        let table = ArcSwap::from_pointee(Table::new(&certificates));
        Arc::new(Self { paths, table, state: Mutex::new(State { certificates, failed: Vec::new() }) })
    }

    pub fn table(&self) -> arc_swap::Guard<Arc<Table>> {
        self.table.load()
    }

    /// Whether its certificates are shown for names that they do not have.
    pub fn stands_for_all(&self) -> bool {
        self.paths.is_empty()
    }

    /// The certificates in use.
    pub fn certificates(&self) -> Vec<Arc<Loaded>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).certificates.clone()
    }

    /// Looks at the files and takes over what has changed and can be used.
    pub fn refresh(&self) -> Vec<Change> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changes = Vec::new();
        let mut next = Vec::with_capacity(state.certificates.len());
        let there: Option<HashSet<Files>> = (!self.paths.is_empty()).then(|| discover(&self.paths).into_iter().collect());
        for old in state.certificates.clone() {
            if there.as_ref().is_some_and(|there| !there.contains(&old.files)) && was_removed(&old.files) {
                changes.push(Change::Removed(old.files.clone()));
                continue;
            }
            let stamp = old.files.stamp();
            if stamp == Some(old.stamp) || state.has_failed(&old.files, stamp) {
                next.push(old);
                continue;
            }
            match replacement(&old) {
                Ok(new) => {
                    let missing = old.facts.names.iter().filter(|name| !new.facts.names.contains(name)).cloned().collect();
                    changes.push(Change::Replaced(new.files.clone(), missing));
                    state.failed.retain(|(files, _)| *files != new.files);
                    next.push(new);
                }
                Err(why) => {
                    changes.push(Change::Kept(old.files.clone(), why));
                    state.note_failure(&old.files, stamp);
                    next.push(old);
                }
            }
        }
        let known: HashSet<Files> = next.iter().map(|known| known.files.clone()).collect();
        for files in there.into_iter().flatten().filter(|files| !known.contains(files)) {
            let stamp = files.stamp();
            if state.has_failed(&files, stamp) {
                continue;
            }
            match Loaded::read(&files) {
                Ok(new) => {
                    changes.push(Change::Added(files));
                    next.push(new);
                }
                Err(error) => {
                    changes.push(Change::Kept(files.clone(), error.to_string()));
                    state.note_failure(&files, stamp);
                }
            }
        }
        if changes.iter().any(|change| !matches!(change, Change::Kept(..))) {
            self.table.store(Arc::new(Table::new(&next)));
            state.certificates = next;
        }
        changes
    }
}

/// Whether somebody took a certificate away, rather than that it cannot be looked at now: its directory is there and can be
/// read, and the file is not in it.
pub fn was_removed(files: &Files) -> bool {
    let gone = std::fs::symlink_metadata(&files.cert).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound);
    gone && files.cert.parent().is_some_and(|directory| std::fs::read_dir(directory).is_ok())
}

/// The certificate as its files are now, if it is better than none.
fn replacement(old: &Loaded) -> Result<Arc<Loaded>, String> {
    let new = Loaded::read(&old.files).map_err(|error| error.to_string())?;
    let now = OffsetDateTime::now_utc();
    if new.facts.not_after < now && old.facts.not_after >= now {
        return Err(format!("{}: it has expired on {}", new.files.cert.display(), new.facts.not_after.date()));
    }
    Ok(new)
}

impl State {
    fn has_failed(&self, files: &Files, stamp: Option<Stamp>) -> bool {
        self.failed.iter().any(|(failed, then)| failed == files && *then == stamp)
    }

    fn note_failure(&mut self, files: &Files, stamp: Option<Stamp>) {
        self.failed.retain(|(failed, _)| failed != files);
        self.failed.push((files.clone(), stamp));
    }
}

impl Change {
    /// Tells the operator.
    pub fn log(&self) {
        match self {
            Change::Replaced(files, missing) => {
                log::info!("certificate {} was renewed and is in use", files.cert.display());
                if !missing.is_empty() {
                    log::warn!("certificate {} is no longer for {}", files.cert.display(), missing.join(", "));
                }
            }
            Change::Added(files) => log::info!("certificate {} is new and in use", files.cert.display()),
            Change::Removed(files) => log::warn!("certificate {} is gone and no longer in use", files.cert.display()),
            Change::Kept(_, why) => log::warn!("a changed certificate cannot be used, the one before stays: {why}"),
        }
    }
}

/// Tells of keys that could be read when the process began as another user (`run_as`), and cannot be read now.
pub fn warn_of_unreadable(watched: &Watched) {
    for loaded in watched.certificates() {
        let key = &loaded.files.key;
        if std::fs::File::open(key).is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied) {
            log::warn!(
                "{}: this process can no longer read it as the user that it runs as: neither a renewal nor an upgrade could use it; let that user's group read it",
                key.display()
            );
        }
    }
}

/// Tells of certificates that end soon.
pub fn warn_of_expiry(watched: &Watched, now: OffsetDateTime) {
    for loaded in watched.certificates() {
        let (days, file) = (loaded.facts.days_left(now), loaded.files.cert.display());
        match days {
            ..0 => log::error!("certificate {file} has expired on {}", loaded.facts.not_after.date()),
            0..=EXPIRES_SOON => log::warn!("certificate {file} expires in {days} days, on {}", loaded.facts.not_after.date()),
            _ => {}
        }
    }
}
