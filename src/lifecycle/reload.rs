//! Reload: all of a configuration is put in force as one step, or nothing changes and the reasons are told.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use super::assemble::{Assembled, BrokenSite, Sources, assemble};
use super::changes::{Before, between, few};
use super::control::{Applied, Changing, CommandError, Control, Fixed, Settings, Spoken, Watched};
use super::keep::{forget_switches, seeds_of, versions_of};
use crate::config::diagnostic::{Diagnostic, Report, Severity};
use crate::config::files::Texts;
use crate::config::{Config, Previous};
use crate::observe::access_log;
use crate::persist::{Error, Generation, Pending, Store, seconds};
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
    /// Whether there is a way back to what is in force now, also after a restart.
    pub is_kept: bool,
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
        let applied = self.applied();
        let is_kept = || applied.is_kept && self.store().is_some_and(|store| store.texts_of(applied.generation).is_ok());
        if asked.confirm.is_some() && self.pending().is_none() && !is_kept() {
            return Err(CommandError::Failed("the configuration in force could not be kept, so there would be no way back".to_owned()));
        }
        let before = self.pending();
        if let Some(time) = asked.confirm {
            // What was confirmed last stays the way back. Remembered first: the former generation is then not forgotten, and without
            // a way back nothing changes.
            let former = before.as_ref().map_or(applied.generation, |pending| pending.former);
            let until = seconds(SystemTime::now()).saturating_add(time.as_secs());
            self.set_pending(Some(Pending { former, until }))?;
        }
        let told = self.put_in_force(&mut changing, asked, From::Disk);
        let Some(time) = asked.confirm else { return Ok(told) };
        // The time counts from when it is in force. What was refused needs no way back.
        let pending = match told.outcome {
            Outcome::Refused => before,
            _ => self.pending().map(|pending| Pending { until: seconds(SystemTime::now()).saturating_add(time.as_secs()), ..pending }),
        };
        if let Err(error) = self.set_pending(pending) {
            // What is remembered stays: it leads back to what was in force.
            log::error!("{error}");
        }
        Ok(Told { pending: self.pending(), ..told })
    }

    /// Reloads because the files have changed, unless somebody has reloaded or gone back since they were found to be in another
    /// state than `seen`: what they are in now is then looked at anew.
    pub fn reload_changed(self: &Arc<Self>, seen: u64) {
        let this = self.clone();
        let reload = move || {
            let Ok(mut changing) = this.change() else { return };
            if this.settings().watched.as_ref().is_some_and(|watched| watched.seen == seen) {
                let asked = Reload { by: "a change of the files".to_owned(), ..Reload::default() };
                this.put_in_force(&mut changing, &asked, From::Disk);
            }
        };
        self.worker.run(reload);
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
    /// It cannot be kept, and nothing has changed.
    fn set_pending(&self, pending: Option<Pending>) -> Result<(), CommandError> {
        if *self.pending.borrow() == pending {
            return Ok(());
        }
        let kept = self.store().map_or(Ok(()), |store| store.set_pending(pending.as_ref()));
        if kept.is_ok() {
            self.pending.send_replace(pending);
        }
        kept.map_err(|error| CommandError::Failed(format!("what waits for a confirmation cannot be kept: {error}")))
    }

    fn put_in_force(&self, changing: &mut Changing, asked: &Reload, from: From) -> Told {
        let old = self.shared.current.pin();
        // Looked at before they are read: what changes meanwhile is a change.
        let watched = self.settings().watched.as_ref().filter(|_| matches!(from, From::Disk)).map(Watched::now);
        let (kept, back_to) = match from {
            From::Disk => (None, None),
            From::Generation(number, texts) => (Some(texts), Some(number)),
        };
        let prepared = match self.prepare(asked, &old.previous(), kept) {
            Ok(prepared) => prepared,
            Err(assembled) => return self.refuse(asked, *assembled, watched),
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
        let mut changes = between(&Before { checked: &old.checked, listeners: &seen, users: &old.rules.users }, &config);
        let seeds = seeds_of(&config, &assembled.seeded);
        let settings = Settings::of(&config, &self.path, assembled.stamps.as_ref()).having_looked(watched);
        for site in &assembled.unswitched {
            let told = format!("the switch of the site {site} has ended: its file says something else than when it was switched");
            log::warn!("{told}");
            changes.push(told);
        }
        self.forget_switches(changing, &assembled.unswitched);
        self.sticky_key.apply(&config);
        // Another process may have counted on meanwhile, if this one serves again after it.
        let last = self.store().map_or(0, Store::last_number);
        let snapshot = self.compile(config, old.generation.max(last) + 1);
        let sites = snapshot.good_sites();
        let versions = versions_of(&snapshot.checked.sites, &assembled, self.store());
        let applied = Applied::new(&snapshot, assembled.broken, &versions, &asked.by, back_to);
        let applied = Applied { tables_out_of_force: assembled.tables_out_of_force, ..applied };
        self.shared.current.publish(snapshot);
        self.listeners.apply(listeners);
        if let Some(log) = log {
            self.shared.log.apply(log);
        }
        self.settings.store(Arc::new(settings));
        let shown = changes.iter().take(SHOWN_CHANGES).cloned().collect();
        let applied = applied.kept(self.store(), sites, shown, &versions, &seeds);
        let is_kept = applied.is_kept;
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
            is_kept,
        }
    }

    /// Takes over what another process has changed, which had this one's place for a while and is gone.
    pub fn catch_up(self: &Arc<Self>) {
        let this = self.clone();
        let work = move || {
            let mut changing = this.lock();
            let store = this.store()?;
            match Spoken::kept(store) {
                Ok(spoken) => this.set_spoken(spoken),
                Err(error) => log::error!("what was said of backends and sites cannot be read: {error}"),
            }
            let pinned = store.pinned().ok().flatten();
            let from = pinned.and_then(|number| Some(From::Generation(number, store.texts_of(number).ok()?)));
            let asked = Reload { by: "the end of the process that had taken over".to_owned(), ..Reload::default() };
            let told = this.put_in_force(&mut changing, &asked, from.unwrap_or(From::Disk));
            // Files are just being edited, maybe; what was said of users counts all the same.
            if told.outcome == Outcome::Refused
                && let Err(error) = this.take_up_users()
            {
                log::error!("managed users cannot be read: {error}");
            }
            Some(())
        };
        self.worker.run(work);
        self.take_up_pending();
    }

    /// Files that say something else than when a site was switched count again.
    fn forget_switches(&self, _: &mut Changing, sites: &[String]) {
        if !sites.is_empty() {
            let mut spoken = Spoken::clone(&self.spoken());
            spoken.switches.retain(|site, _| !sites.contains(site));
            self.set_spoken(spoken);
            forget_switches(sites, self.store());
        }
    }

    /// Everything that can fail, before anything changes.
    fn prepare(&self, asked: &Reload, previous: &Previous, kept: Option<Texts>) -> Result<Prepared, Box<Assembled>> {
        let spoken = self.spoken();
        let sources = Sources {
            path: &self.path,
            kept,
            previous,
            store: self.store(),
            switches: &spoken.switches,
            tables: self.snapshot().rules.users.managed().map(str::to_owned).collect(),
            prune: asked.prune,
            is_first: false,
        };
        let from_files = sources.kept.is_none();
        let mut assembled = assemble(&sources);
        if from_files && let Some(lost) = lost_sites(&assembled, previous) {
            assembled.report.push(lost);
            return Err(Box::new(assembled));
        }
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

    fn refuse(&self, asked: &Reload, assembled: Assembled, watched: Option<Watched>) -> Told {
        if watched.is_some() {
            // Nobody needs to be told of the same mistake again.
            self.settings.store(Arc::new(Settings { watched, ..Settings::clone(&self.settings()) }));
        }
        let Assembled { report, mut broken, .. } = assembled;
        // Nothing is left out: all stays as it is.
        broken.retain(|broken| broken.kept);
        say(&report);
        for broken in &broken {
            log::error!("{}", broken.tell());
        }
        log::error!("reload refused: the configuration in force stays");
        self.reloads().refused.fetch_add(1, Ordering::Relaxed);
        let why = first_error(&report);
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
            is_kept: self.applied().is_kept,
        };
        self.set_applied(Applied { refused: Some((SystemTime::now(), format!("{why} (by {})", asked.by))), ..applied });
        told
    }
}

/// Sites that are served now and would not be any more: with a group that is gone a last good version cannot stay, and that is
/// no mistake of the site alone.
fn lost_sites(assembled: &Assembled, previous: &Previous) -> Option<Diagnostic> {
    if assembled.broken.iter().all(|broken| broken.kept) {
        return None;
    }
    let served: HashSet<&Path> = previous.sites.iter().filter(|site| !site.routes.is_empty()).map(|site| site.path.as_path()).collect();
    let is_lost = |broken: &&BrokenSite| !broken.kept && served.contains(broken.path.as_path());
    let lost: Vec<&BrokenSite> = assembled.broken.iter().filter(is_lost).collect();
    let first = lost.first()?;
    let names: Vec<&str> = lost.iter().map(|broken| broken.name.as_str()).collect();
    let told = "is served now, and its last good version cannot stay since a backend group that it leads to is gone";
    let help = format!("bring the group back, or correct the sites first: {}", few(&names));
    Some(Diagnostic::about_file(&first.path, told).with_help(help))
}

/// Why a configuration is refused, in short.
pub(super) fn first_error(report: &Report) -> String {
    let why = report.iter().find(|diagnostic| diagnostic.severity == Severity::Error);
    why.map_or_else(|| "a site has errors, and `strict` was asked for".to_owned(), |diagnostic| diagnostic.message.clone())
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
