//! Reload: all of a configuration is put in force as one step, or nothing changes and the reasons are told.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use super::assemble::{Assembled, BrokenSite, Sources, assemble};
use super::changes::{Before, between};
use super::control::{Applied, Changing, CommandError, Control, Fixed, Settings, Spoken};
use crate::config::diagnostic::{Diagnostic, Report, Severity};
use crate::config::files::Texts;
use crate::config::{Config, Previous};
use crate::observe::access_log;
use crate::persist::{Error, Generation, Kept, KeptSite, Pending, Store, digest_of, seconds};
use crate::proxy::listen::{self, Unbound};
use crate::snapshot::{Carry, Snapshot, compile};

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub struct Reload {
    /// Who or what asks.
    pub by: String,
    /// A mistake in a site refuses everything.
    pub strict: bool,
    /// Sites whose files are gone end.
    pub prune: bool,
    /// The former configuration comes back after this time unless somebody confirms.
    pub confirm: Option<Duration>,
}

/// What a reload came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Applied,
    /// Some sites have mistakes: they stay as they were, or answer 503.
    InPart,
    /// The configuration in force stays.
    Refused,
}

/// A reload and what is to be said about it.
pub struct Told {
    pub outcome: Outcome,
    pub report: Report,
    pub generation: u64,
    pub digest: String,
    pub changes: Vec<String>,
    pub broken: Vec<BrokenSite>,
    /// Keys that changed and that only an upgrade puts in force, or only a restart.
    pub needs_upgrade: Vec<&'static str>,
    pub needs_restart: Vec<&'static str>,
    /// Until when it must be confirmed.
    pub pending: Option<Pending>,
}

/// What is put in force.
enum From {
    Disk,
    /// A configuration that was in force before.
    Generation(u64, Texts),
}

/// What can be put in force without fail.
struct Prepared {
    config: Config,
    assembled: Assembled,
    listeners: listen::Prepared,
    log: Option<access_log::Prepared>,
}

/// How many lines of what changed are kept with a configuration.
const SHOWN_CHANGES: usize = 20;

impl Control {
    /// Loads, checks and puts in force what the files say.
    ///
    /// # Errors
    /// It could not even be tried. That the files are refused is an outcome.
    pub fn reload(self: &Arc<Self>, asked: &Reload) -> Result<Told, CommandError> {
        let (this, asked) = (self.clone(), asked.clone());
        self.worker.run(move || this.reload_here(&asked)).unwrap_or_else(|| Err(bug()))
    }

    fn reload_here(&self, asked: &Reload) -> Result<Told, CommandError> {
        let mut changing = self.change().inspect_err(|error| log::warn!("reload by {}: {error}", asked.by))?;
        if asked.confirm.is_some() && !self.applied().is_kept {
            return Err(CommandError::Failed("the configuration in force could not be kept, so there would be no way back".to_owned()));
        }
        Ok(self.put_in_force(&mut changing, asked, From::Disk))
    }

    /// Puts a configuration in force that was in force before, the last different one unless told otherwise. The files on disk
    /// stay as they are; they count again with the next reload.
    pub fn rollback(self: &Arc<Self>, by: &str, to: Option<u64>) -> Result<Told, CommandError> {
        let (this, by) = (self.clone(), by.to_owned());
        let rollback = move || {
            let mut changing = this.change()?;
            this.rollback_under_lock(&mut changing, &by, to)
        };
        self.worker.run(rollback).unwrap_or_else(|| Err(bug()))
    }

    fn rollback_under_lock(&self, changing: &mut Changing, by: &str, to: Option<u64>) -> Result<Told, CommandError> {
        let store = self.needed_store()?;
        let kept = store.generations().map_err(|error| CommandError::Failed(error.to_string()))?;
        let applied = self.applied();
        let former = |kept: &[Generation]| kept.iter().rev().find(|old| old.digest != applied.digest).map(|old| old.number);
        let none = || CommandError::NotFound("there is no other generation to go back to".to_owned());
        let number = to.or_else(|| former(&kept)).ok_or_else(none)?;
        let texts = store.texts_of(number).map_err(|error| match error {
            Error::NoGeneration(_) => CommandError::NotFound(error.to_string()),
            error => CommandError::Failed(error.to_string()),
        })?;
        let asked = Reload { by: by.to_owned(), ..Reload::default() };
        let told = self.put_in_force(changing, &asked, From::Generation(number, texts));
        if told.outcome == Outcome::Refused {
            return Ok(told);
        }
        // A rollback decides what is wanted: nothing is left to confirm.
        if let Err(error) = self.set_pending(None) {
            log::error!("{error}");
        }
        Ok(Told { pending: None, ..told })
    }

    /// The configuration in force stays: the way back is no longer wanted.
    pub fn confirm(&self, by: &str) -> Result<Applied, CommandError> {
        let _changing = self.change()?;
        if self.pending().is_none() {
            return Err(CommandError::NotFound("nothing waits for a confirmation".to_owned()));
        }
        self.set_pending(None)?;
        let applied = Applied::clone(&self.applied());
        log::info!("generation {} is confirmed by {by}", applied.generation);
        Ok(applied)
    }

    /// Goes back when nobody has confirmed in time.
    pub fn roll_back_unconfirmed(self: &Arc<Self>, pending: &Pending) {
        let (this, pending) = (self.clone(), pending.clone());
        // The log has what became of it.
        self.worker.run(move || this.roll_back_unconfirmed_here(&pending));
    }

    fn roll_back_unconfirmed_here(&self, pending: &Pending) {
        let mut changing = self.lock();
        if changing.upgrading || self.pending().as_ref() != Some(pending) {
            return;
        }
        log::warn!("generation {} was not confirmed in time: generation {} comes back", self.applied().generation, pending.former);
        let told = self.rollback_under_lock(&mut changing, "the end of the time to confirm", Some(pending.former));
        match told {
            Ok(told) if told.outcome != Outcome::Refused => {}
            Ok(_) => log::error!("generation {} cannot come back: its reasons are told above", pending.former),
            Err(error) => log::error!("generation {} cannot come back: {error}", pending.former),
        }
    }

    /// Remembers the way back, or that nobody needs it any more.
    ///
    /// # Errors
    /// It cannot be kept. A way back is remembered all the same, for as long as the process runs; one that is not needed any more
    /// would come up again after a restart, so it stays.
    fn set_pending(&self, pending: Option<Pending>) -> Result<(), CommandError> {
        if *self.pending.borrow() == pending {
            return Ok(());
        }
        let kept = self.store().map_or(Ok(()), |store| store.set_pending(pending.as_ref()));
        if kept.is_ok() || pending.is_some() {
            self.pending.send_replace(pending);
        }
        kept.map_err(|error| CommandError::Failed(format!("what waits for a confirmation cannot be kept: {error}")))
    }

    fn put_in_force(&self, changing: &mut Changing, asked: &Reload, from: From) -> Told {
        let old = self.shared.current.pin();
        let (kept, back_to) = match from {
            From::Disk => (None, None),
            From::Generation(number, texts) => (Some(texts), Some(number)),
        };
        let prepared = match self.prepare(asked, &old.previous(), kept) {
            Ok(prepared) => prepared,
            Err(assembled) => return self.refuse(asked, *assembled),
        };
        let Prepared { config, assembled, listeners, log } = prepared;
        assembled.tell();
        let (needs_upgrade, needs_restart) = self.fixed.differences(&Fixed::of(&config));
        for (keys, way) in [(&needs_upgrade, "an upgrade"), (&needs_restart, "a restart")] {
            if !keys.is_empty() {
                log::warn!("changed, but only {way} puts it in force: {}", keys.join(", "));
            }
        }
        let seen = self.listeners.seen();
        let changes = between(&Before { checked: &old.checked, listeners: &seen, users: old.rules.users.len() }, &config);
        let seeds = seeds_of(&config, &assembled.seeded);
        let settings = Settings::of(&config, &self.path, assembled.stamps.as_ref());
        self.forget_switches(changing, &assembled.unswitched);
        self.sticky_key.apply(&config);
        // Another process may have counted on meanwhile, if this one serves again after it.
        let last = self.store().map_or(0, Store::last_number);
        let snapshot = self.compile(config, old.generation.max(last) + 1);
        let sites = snapshot.good_sites();
        let versions = versions_of(&snapshot.checked.sites, &assembled, self.store());
        let applied = Applied {
            generation: snapshot.generation,
            time: SystemTime::now(),
            digest: digest_of(&versions.files),
            by: asked.by.clone(),
            rolled_back_to: back_to,
            broken: assembled.broken,
            is_kept: false,
            refused: None,
        };
        self.shared.current.publish(snapshot);
        self.listeners.apply(listeners);
        if let Some(log) = log {
            self.shared.log.apply(log);
        }
        self.settings.store(Arc::new(settings));
        if let Some(time) = asked.confirm {
            // What was confirmed last stays the way back. Remembered first: the former generation is then not forgotten.
            let former = self.pending().map_or_else(|| self.applied().generation, |pending| pending.former);
            let until = seconds(SystemTime::now()).saturating_add(time.as_secs());
            if let Err(error) = self.set_pending(Some(Pending { former, until })) {
                log::error!("{error}");
            }
        }
        let record = applied.record(sites, changes.iter().take(SHOWN_CHANGES).cloned().collect());
        let is_kept = self.store().is_some_and(|store| keep(store, &record, &versions, &seeds));
        let applied = Applied { is_kept, ..applied };
        self.set_applied(applied.clone());
        log::info!("{}", in_force(&applied, sites));
        super::notify::status(&format!("generation {} is in force", applied.generation));
        let counted = if applied.broken.is_empty() { &self.reloads().applied } else { &self.reloads().in_part };
        counted.fetch_add(1, Ordering::Relaxed);
        Told {
            outcome: if applied.broken.is_empty() { Outcome::Applied } else { Outcome::InPart },
            report: assembled.report,
            generation: applied.generation,
            digest: applied.digest,
            changes,
            broken: applied.broken,
            needs_upgrade,
            needs_restart,
            pending: self.pending(),
        }
    }

    /// Takes over what another process has changed, which had this one's place for a while and is gone.
    pub fn catch_up(self: &Arc<Self>) {
        let this = self.clone();
        let work = move || {
            let mut changing = this.lock();
            let store = this.store()?;
            match (store.backends(), store.switches()) {
                (Ok(backends), Ok(switches)) => this.set_spoken(Spoken { backends, switches }),
                (Err(error), _) | (_, Err(error)) => log::error!("what was said of backends and sites cannot be read: {error}"),
            }
            let pinned = store.pinned().ok().flatten();
            let from = pinned.and_then(|number| Some(From::Generation(number, store.texts_of(number).ok()?)));
            let asked = Reload { by: "the end of the process that had taken over".to_owned(), ..Reload::default() };
            this.put_in_force(&mut changing, &asked, from.unwrap_or(From::Disk));
            Some(())
        };
        self.worker.run(work);
        self.take_up_pending();
    }

    /// Files that say something else than when a site was switched count again.
    fn forget_switches(&self, _: &mut Changing, sites: &[String]) {
        let mut spoken = Spoken::clone(&self.spoken());
        for site in sites {
            spoken.switches.remove(site);
            if let Some(Err(error)) = self.store().map(|store| store.keep_switch(site, None)) {
                log::error!("the switch of the site {site} cannot be forgotten: {error}");
            }
        }
        if !sites.is_empty() {
            self.set_spoken(spoken);
        }
    }

    /// Everything that can fail, before anything changes.
    fn prepare(&self, asked: &Reload, previous: &Previous, kept: Option<Texts>) -> Result<Prepared, Box<Assembled>> {
        let spoken = self.spoken();
        let sources = Sources { path: &self.path, kept, previous, store: self.store(), switches: &spoken.switches, prune: asked.prune };
        let mut assembled = assemble(&sources);
        let strict = asked.strict || self.strict;
        let Some(config) = assembled.config.take().filter(|_| !strict || assembled.broken.is_empty()) else {
            return Err(Box::new(assembled));
        };
        let listeners = self.listeners.prepare(&config.listeners).map_err(|unbound| explain_unbound(&unbound));
        let log = self.shared.log.prepare(&config.access_log).map_err(|error| format!("the access log cannot be opened: {error}"));
        match (listeners, log) {
            (Ok(listeners), Ok(log)) => Ok(Prepared { config, assembled, listeners, log }),
            (Err(why), _) | (_, Err(why)) => {
                assembled.report.push(Diagnostic::about_file(&self.path, why));
                Err(Box::new(assembled))
            }
        }
    }

    fn compile(&self, config: Config, generation: u64) -> Snapshot {
        let secret = self.sticky_key.in_force();
        let spoken = self.spoken();
        let standing = |group: &str, backend: &str| spoken.standing(group, backend);
        compile(config, &Carry { generation, health: &self.health, tls: &self.shared.tls, secret: &secret, standing: &standing })
    }

    fn refuse(&self, asked: &Reload, assembled: Assembled) -> Told {
        let Assembled { report, broken, .. } = assembled;
        say(&report);
        for broken in &broken {
            log::error!("{}", broken.tell());
        }
        log::error!("reload refused: the configuration in force stays");
        self.reloads().refused.fetch_add(1, Ordering::Relaxed);
        let why = report.iter().find(|diagnostic| diagnostic.severity == Severity::Error);
        let why = why.map_or_else(|| "a site has errors, and `strict` was asked for".to_owned(), |diagnostic| diagnostic.message.clone());
        let applied = Applied::clone(&self.applied());
        let told = Told {
            outcome: Outcome::Refused,
            report,
            generation: applied.generation,
            digest: applied.digest.clone(),
            changes: Vec::new(),
            broken,
            needs_upgrade: Vec::new(),
            needs_restart: Vec::new(),
            pending: self.pending(),
        };
        self.set_applied(Applied { refused: Some((SystemTime::now(), format!("{why} (by {})", asked.by))), ..applied });
        told
    }
}

fn in_force(applied: &Applied, sites: usize) -> String {
    let count = |kept: bool| applied.broken.iter().filter(|broken| broken.kept == kept).count();
    let stayed = if count(true) == 0 { String::new() } else { format!("; {} of them in the last good version", count(true)) };
    let out = if count(false) == 0 { String::new() } else { format!("; {} left out", count(false)) };
    let word = applied.rolled_back_to.map_or_else(|| "reloaded".to_owned(), |number| format!("rolled back to generation {number}"));
    format!("{word}: generation {} with {sites} sites is in force{stayed}{out} (by {})", applied.generation, applied.by)
}

fn bug() -> CommandError {
    CommandError::Failed("it failed by a bug, which the log has; the configuration in force stays".to_owned())
}

/// Why an address cannot be listened on, and what to do.
pub fn explain_unbound(unbound: &Unbound) -> String {
    use std::io::ErrorKind;
    let Unbound { address, error } = unbound;
    let why = match error.kind() {
        ErrorKind::AddrInUse => format!("another program listens there already (`ss -tlnp 'sport = :{}'` shows which)", address.port()),
        ErrorKind::PermissionDenied => "ports below 1024 need root or CAP_NET_BIND_SERVICE".to_owned(),
        ErrorKind::AddrNotAvailable => "this machine does not have the address (`freebind: true` waits for it)".to_owned(),
        _ => error.to_string(),
    };
    format!("cannot listen on {address}: {why}")
}

/// Prints what is to be said about the files.
pub fn say(report: &Report) {
    use std::io::{IsTerminal as _, Write as _};
    let text = report.render(std::io::stderr().is_terminal());
    // There is nowhere to tell that standard error is closed.
    let _ = std::io::stderr().write_all(text.as_bytes());
}

// === What is kept of it ===

/// The files of what is in force, and which sites are good.
pub(crate) struct Versions {
    pub(crate) files: Vec<(PathBuf, [u8; 32])>,
    texts: Texts,
    good: Vec<(PathBuf, KeptSite)>,
    /// Sites whose kept versions go on being kept.
    stay: Vec<PathBuf>,
}

/// The rows of a managed table that its file has.
pub(crate) struct Seed {
    table: String,
    rows: Vec<(String, crate::persist::StoredRow)>,
}

/// A site that is in force in its last good version is kept as that, not as its broken file.
pub(crate) fn versions_of(sites: &[Arc<crate::config::Site>], assembled: &Assembled, store: Option<&Store>) -> Versions {
    let mut texts = assembled.texts.clone();
    let kept = store.and_then(|store| store.sites().ok()).unwrap_or_default();
    for broken in assembled.broken.iter().filter(|broken| broken.kept) {
        let text = kept.get(&broken.path).and_then(|site| store?.site_text(site).ok().flatten());
        if let Some(text) = text {
            texts.insert(broken.path.clone(), text);
        }
    }
    let files = texts.iter().map(|(path, text)| (path.clone(), crate::config::digest_of(text))).collect();
    let is_broken = |site: &crate::config::Site| assembled.broken.iter().any(|broken| broken.path == site.path);
    let good =
        sites.iter().filter(|site| !is_broken(site)).map(|site| (site.path.clone(), KeptSite::new(&site.name, &site.digest))).collect();
    let stay = assembled.broken.iter().map(|broken| broken.path.clone()).collect();
    Versions { files, texts, good, stay }
}

pub(crate) fn seeds_of(config: &Config, seeded: &[String]) -> Vec<Seed> {
    if seeded.is_empty() {
        return Vec::new();
    }
    let group = |id: u32| config.groups.get(id as usize).map(|group| group.name.clone()).unwrap_or_default();
    let mut seeds: Vec<Seed> = seeded.iter().map(|table| Seed { table: table.clone(), rows: Vec::new() }).collect();
    for (table, user, row) in config.users.rows() {
        if let Some(seed) = seeds.iter_mut().find(|seed| Some(seed.table.as_str()) == table) {
            seed.rows.push((user.to_owned(), row.into_iter().map(|(word, id)| (word, group(id))).collect()));
        }
    }
    seeds
}

/// Keeps a configuration that is in force. A failure is told, and changes nothing of what is in force.
pub(crate) fn keep(store: &Store, record: &Generation, versions: &Versions, seeds: &[Seed]) -> bool {
    let result = store.keep_applied(&Kept {
        generation: record,
        files: &versions.files,
        texts: &versions.texts,
        good: versions.good.iter().map(|(path, site)| (path.as_path(), site.clone())).collect(),
        stay: &versions.stay,
        seeds: seeds.iter().map(|seed| (seed.table.as_str(), seed.rows.as_slice())).collect(),
    });
    if let Err(error) = &result {
        log::error!(
            "generation {} is in force but cannot be kept: {error}; there is no way back to it, and a restart knows older versions of its sites",
            record.number
        );
    }
    result.is_ok()
}
