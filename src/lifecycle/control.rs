//! What changes while the process runs, one change at a time: whoever wants to change what is in force comes here.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use time::OffsetDateTime;
use tokio::sync::watch;

use super::assemble::BrokenSite;
use super::sticky_key::StickyKey;
use super::worker::Worker;
use crate::balance::hand::Standing;
use crate::config::files::Stamp;
use crate::config::{self, Config, Previous};
use crate::health::HealthChecks;
use crate::persist::{self, BackendRecord, Pending, Store, SwitchRecord, seconds};
use crate::proxy::Shared;
use crate::proxy::listen::Listeners;
use crate::resolve::Names;
use crate::snapshot::{Carry, Snapshot, compile_groups};
use crate::tls::watch::{warn_of_expiry, warn_of_unreadable};

/// Owns what the process knows beside the snapshot in force, and publishes every new one.
pub struct Control {
    /// The main file.
    pub(super) path: PathBuf,
    pub(super) strict: bool,
    /// What the process began with.
    pub(super) fixed: Fixed,
    pub(super) health: HealthChecks,
    pub(super) sticky_key: StickyKey,
    pub(super) shared: Arc<Shared>,
    pub(super) listeners: Arc<Listeners>,
    /// `None`: the state directory cannot be used.
    pub(super) store: Option<Arc<Store>>,
    pub(super) settings: ArcSwap<Settings>,
    applied: ArcSwap<Applied>,
    reloads: Reloads,
    /// The configuration that goes away again unless somebody confirms it.
    pub(super) pending: watch::Sender<Option<Pending>>,
    pub(super) worker: Worker,
    /// What an operator has said of backends and sites; changed under the lock.
    spoken: ArcSwap<Spoken>,
    /// Two changes that overlap could publish in the wrong order.
    one_at_a_time: Mutex<Changing>,
    begun: Condvar,
}

/// What only changes under the lock.
#[derive(Default)]
pub(super) struct Changing {
    /// What the process began with is kept: changes come after it.
    begun: bool,
    /// Another process is to take over: nothing may change that it has not seen.
    pub(super) upgrading: bool,
}

/// What is needed to make one.
pub struct Parts {
    pub path: PathBuf,
    pub strict: bool,
    pub fixed: Fixed,
    pub settings: Settings,
    pub health: HealthChecks,
    pub sticky_key: StickyKey,
    pub shared: Arc<Shared>,
    pub listeners: Arc<Listeners>,
    pub store: Option<Arc<Store>>,
    pub applied: Applied,
    pub spoken: Spoken,
}

/// What an operator has said of backends and sites.
#[derive(Clone, Default)]
pub struct Spoken {
    pub backends: BTreeMap<(String, String), BackendRecord>,
    pub switches: BTreeMap<String, SwitchRecord>,
}

/// How many reloads came to what.
#[derive(Default)]
pub struct Reloads {
    pub applied: AtomicU64,
    pub in_part: AtomicU64,
    pub refused: AtomicU64,
}

impl Spoken {
    /// What was said to processes before.
    pub(super) fn kept(store: &Store) -> Result<Self, persist::Error> {
        Ok(Self { backends: store.backends()?, switches: store.switches()? })
    }

    pub fn standing(&self, group: &str, backend: &str) -> Standing {
        let record = self.backends.get(&(group.to_owned(), backend.to_owned()));
        record.map(|record| record.state).unwrap_or_default()
    }
}

/// The configuration in force, as far as people ask.
#[derive(Clone, Debug)]
pub struct Applied {
    pub generation: u64,
    pub time: SystemTime,
    /// Of all its files.
    pub digest: String,
    pub by: String,
    pub rolled_back_to: Option<u64>,
    pub broken: Vec<BrokenSite>,
    /// Managed users tables that are kept but that no users file names.
    pub tables_out_of_force: Vec<String>,
    /// Whether it is kept, so that there is a way back to it.
    pub is_kept: bool,
    /// When a reload last failed, and why, if none has succeeded since.
    pub refused: Option<(SystemTime, String)>,
}

/// Why a command was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// There is no such thing.
    #[error("{0}")]
    NotFound(String),
    /// It says something that cannot be.
    #[error("{0}")]
    Invalid(String),
    /// Not now.
    #[error("{0}")]
    Conflict(String),
    /// What is needed for it failed.
    #[error("{0}")]
    Failed(String),
}

/// What a reload cannot change: it belongs to the process.
pub struct Fixed {
    threads: usize,
    run_as: Option<String>,
    state_dir: PathBuf,
    admin: config::Admin,
    pid_file: Option<PathBuf>,
    /// Idle HTTP/2 connections are closed by the carrier, which is made once.
    h2_idle: Duration,
}

/// What the process itself asks of the configuration in force.
#[derive(Clone, Debug)]
pub struct Settings {
    pub drain_timeout: Duration,
    pub drain_delay: Duration,
    pub name_servers: Vec<SocketAddr>,
    pub users_files: Vec<PathBuf>,
    /// What is looked at for changes; `None`: nothing is.
    pub watched: Option<Watched>,
}

/// The files whose changes are a reload.
#[derive(Clone, Debug, Default)]
pub struct Watched {
    pub main: PathBuf,
    /// Where sites and users files may come up.
    pub patterns: Vec<PathBuf>,
    /// The state in which the files were when they were last read, or gone back from: another one is a change.
    pub seen: u64,
}

// === impl Control ===

impl Control {
    pub fn new(parts: Parts) -> Self {
        let Parts { path, strict, fixed, settings, health, sticky_key, shared, listeners, store, applied, spoken } = parts;
        Self {
            path,
            strict,
            fixed,
            health,
            sticky_key,
            shared,
            listeners,
            store,
            settings: ArcSwap::from_pointee(settings),
            applied: ArcSwap::from_pointee(applied),
            reloads: Reloads::default(),
            pending: watch::channel(None).0,
            worker: Worker::start(),
            spoken: ArcSwap::from_pointee(spoken),
            one_at_a_time: Mutex::default(),
            begun: Condvar::new(),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn settings(&self) -> Arc<Settings> {
        self.settings.load_full()
    }

    pub fn applied(&self) -> Arc<Applied> {
        self.applied.load_full()
    }

    pub fn reloads(&self) -> &Reloads {
        &self.reloads
    }

    pub(super) fn set_applied(&self, applied: Applied) {
        self.applied.store(Arc::new(applied));
    }

    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.shared.current.pin()
    }

    pub fn listeners(&self) -> &Listeners {
        &self.listeners
    }

    pub fn store(&self) -> Option<&Store> {
        self.store.as_deref()
    }

    pub fn pending(&self) -> Option<Pending> {
        self.pending.borrow().clone()
    }

    pub fn pending_changes(&self) -> watch::Receiver<Option<Pending>> {
        self.pending.subscribe()
    }

    /// Goes on waiting for the confirmation that another process has waited for, unless that one was told.
    pub fn take_up_pending(&self) {
        let Some(Ok(pending)) = self.store().map(Store::pending) else { return };
        if let Some(Pending { former, .. }) = &pending {
            log::warn!("the configuration in force waits for `portcullis confirm`; otherwise generation {former} comes back");
        }
        self.pending.send_replace(pending);
    }

    /// What an operator has said of backends and sites.
    pub fn spoken(&self) -> Arc<Spoken> {
        self.spoken.load_full()
    }

    pub(super) fn set_spoken(&self, spoken: Spoken) {
        self.spoken.store(Arc::new(spoken));
    }

    /// The right to change what is in force.
    pub(super) fn lock(&self) -> MutexGuard<'_, Changing> {
        let changing = self.one_at_a_time.lock().unwrap_or_else(PoisonError::into_inner);
        self.begun.wait_while(changing, |changing| !changing.begun).unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn begin_changes(&self) {
        self.one_at_a_time.lock().unwrap_or_else(PoisonError::into_inner).begun = true;
        self.begun.notify_all();
    }

    /// The same, unless another process is about to take over.
    pub(super) fn change(&self) -> Result<MutexGuard<'_, Changing>, CommandError> {
        let changing = self.lock();
        if changing.upgrading {
            return Err(CommandError::Conflict("an upgrade is under way: ask again when it has ended".to_owned()));
        }
        Ok(changing)
    }

    /// The state file, for commands that cannot do without.
    pub fn needed_store(&self) -> Result<&Store, CommandError> {
        self.store().ok_or_else(|| {
            CommandError::Failed("nothing can be kept: `state_dir` cannot be used (the log of the start tells why)".to_owned())
        })
    }

    // === What goes on by itself ===

    /// The names of backends in force that are resolved, with the addresses that they have.
    pub fn names(&self) -> Names {
        let current = self.shared.current.pin();
        let members = current.checked.groups.iter().flat_map(|group| &group.members).filter(|member| member.resolved);
        members.map(|member| (member.host.clone(), member.addresses.clone())).collect()
    }

    /// Puts new addresses of names in force. Nothing else changes, and no file is read.
    pub fn readdress(&self, names: &Names) {
        let _changing = self.lock();
        let old = self.shared.current.pin();
        let mut groups = old.checked.groups.clone();
        let mut changed = vec![false; groups.len()];
        for (group, changed) in groups.iter_mut().zip(&mut changed) {
            for member in &mut group.members {
                if let Some(addresses) = names.get(&member.host).filter(|addresses| **addresses != member.addresses) {
                    member.addresses.clone_from(addresses);
                    *changed = true;
                }
            }
        }
        let secret = self.sticky_key.in_force();
        let spoken = self.spoken();
        let standing = |group: &str, backend: &str| spoken.standing(group, backend);
        let carry = Carry { generation: old.generation, health: &self.health, tls: &self.shared.tls, secret: &secret, standing: &standing };
        let compiled =
            compile_groups(&groups, &carry, |index| old.groups.get(index).filter(|_| changed.get(index) == Some(&false)).cloned());
        let checked = Arc::new(Previous { sites: old.checked.sites.clone(), groups, store: old.checked.store.clone() });
        self.shared.current.publish(Snapshot { groups: compiled, checked, ..Snapshot::clone(&old) });
    }

    /// Takes over certificates whose files have changed.
    pub fn refresh_certificates(&self) {
        let mut told = Vec::new();
        for certificates in self.shared.current.pin().rules.certificates.iter() {
            for change in certificates.refresh() {
                // Sites may share a certificate.
                if !told.contains(&change) {
                    change.log();
                    told.push(change);
                }
            }
        }
    }

    /// Tells of certificates that end soon, or could not be renewed.
    pub fn warn_of_certificates(&self) {
        for certificates in self.shared.current.pin().rules.certificates.iter() {
            warn_of_expiry(certificates, OffsetDateTime::now_utc());
            warn_of_unreadable(certificates);
        }
    }

    pub fn reopen_log(&self) {
        self.shared.log.reopen();
    }
}

// === impl Fixed, Settings, Applied ===

impl Fixed {
    pub fn of(config: &Config) -> Self {
        Self {
            threads: config.threads,
            run_as: config.run_as.clone(),
            state_dir: config.state_dir.clone(),
            admin: config.admin.clone(),
            pid_file: config.pid_file.clone(),
            h2_idle: h2_idle(config),
        }
    }

    /// The keys in which another configuration differs: those that an upgrade puts in force, and those that need a restart.
    pub(super) fn differences(&self, other: &Fixed) -> (Vec<&'static str>, Vec<&'static str>) {
        let upgrade = [
            ("threads", self.threads != other.threads),
            ("admin", self.admin != other.admin),
            ("pid_file", self.pid_file != other.pid_file),
            ("keep_alive of HTTP/2 connections", self.h2_idle != other.h2_idle),
        ];
        let restart = [("run_as", self.run_as != other.run_as), ("state_dir", self.state_dir != other.state_dir)];
        let named = |keys: &[(&'static str, bool)]| keys.iter().filter(|(_, differs)| *differs).map(|(key, _)| *key).collect();
        (named(&upgrade), named(&restart))
    }
}

/// How long HTTP/2 connections may be idle, whichever listener they came by.
pub fn h2_idle(config: &Config) -> Duration {
    config.listeners.iter().map(|listener| listener.keep_alive).max().unwrap_or(Duration::from_secs(60))
}

impl Settings {
    pub fn of(config: &Config, path: &Path, stamps: Option<&BTreeMap<PathBuf, Stamp>>) -> Self {
        let watched = || {
            let patterns = config.site_patterns.iter().chain(&config.users_patterns).cloned().collect();
            let files = Watched { main: path.to_owned(), patterns, seen: 0 };
            // A configuration that was kept leaves the files alone as they are now.
            Watched { seen: stamps.map_or_else(|| files.look(), super::watch::state_of), ..files }
        };
        Self {
            drain_timeout: config.drain_timeout,
            drain_delay: config.drain_delay,
            name_servers: config.name_servers.clone(),
            users_files: config.users_files.clone(),
            watched: config.watch.then(watched),
        }
    }

    /// The same, if the files were looked at before they were read: those that cannot be read count as well then.
    pub(super) fn having_looked(self, looked: Option<Watched>) -> Self {
        let watched = match (self.watched, looked) {
            (Some(new), Some(looked)) if new.patterns == looked.patterns => Some(looked),
            (new, _) => new,
        };
        Self { watched, ..self }
    }
}

impl Applied {
    /// What is kept of it.
    pub fn record(&self, sites: usize, changes: Vec<String>) -> persist::Generation {
        persist::Generation {
            number: self.generation,
            time: seconds(self.time),
            digest: self.digest.clone(),
            by: self.by.clone(),
            rolled_back_to: self.rolled_back_to,
            sites,
            broken_sites: self.broken.iter().map(|broken| broken.name.clone()).collect(),
            changes,
        }
    }
}
