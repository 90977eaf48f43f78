//! What a process begins with: the configuration of the files or the one that a rollback has left, and what an operator has said.

use std::path::Path;
use std::sync::Arc;

use super::assemble::{Assembled, Sources, assemble, complete};
use super::control::{Applied, Spoken};
use super::handover::Inheritance;
use super::keep::{Unkept, seeds_of, versions_of};
use super::reload::{first_error, say};
use crate::config::diagnostic::Report;
use crate::config::files::{self, Files};
use crate::config::{Config, Previous};
use crate::health::HealthChecks;
use crate::load::{load, load_from_disk};
use crate::persist::{self, Store};
use crate::snapshot::{Carry, Snapshot, compile};
use crate::tls;

/// Why a process cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// All reasons were printed.
    #[error("the configuration has errors: {0}")]
    Config(String),
    #[error(transparent)]
    Store(#[from] persist::Error),
    #[error("`state_dir` has changed: only a restart puts that in force")]
    StateMoved,
}

/// What it begins with.
pub struct Beginning {
    pub config: Config,
    pub assembled: Assembled,
    /// `None`: the state directory cannot be used.
    pub store: Option<Arc<Store>>,
    spoken: Spoken,
    /// The generation that a rollback has put in force.
    rolled_back_to: Option<u64>,
}

impl Beginning {
    /// Loads the configuration that is to be in force. What is wrong with it is printed.
    ///
    /// # Errors
    /// It is refused, or what is kept in the state directory cannot be used though it must.
    pub fn load(path: &Path, strict: bool, inheritance: Option<&Inheritance>) -> Result<Self, Error> {
        let refused = |report: &Report| {
            say(report);
            Error::Config(first_error(report))
        };
        // The state directory is named in the configuration: what is kept there can only be asked for afterwards.
        let (mut loaded, mut files) = load_from_disk(path, &Previous::default());
        let Some(config) = &loaded.config else {
            return Err(refused(&loaded.report));
        };
        let store = open_store(config, inheritance)?;
        let mut previous = Previous::default();
        if let Some(store) = store.as_deref().filter(|_| !loaded.broken_sites.is_empty()) {
            // Who had a domain keeps it, as at a reload.
            previous = as_it_was(path, config, &files, store);
            (loaded, files) = load_from_disk(path, &previous);
        }
        let mut spoken = store.as_deref().map(Spoken::kept).transpose()?.unwrap_or_default();
        let sources = |kept| Sources {
            path,
            kept,
            previous: &previous,
            store: store.as_deref(),
            switches: &spoken.switches,
            tables: Vec::new(),
            prune: false,
            is_first: inheritance.is_none(),
        };
        let pinned = store.as_ref().and_then(|store| store.pinned().ok().flatten());
        let kept = pinned.and_then(|number| Some((number, store.as_ref()?.texts_of(number).ok()?)));
        if let Some((number, texts)) = kept {
            let mut assembled = assemble(&sources(Some(texts)));
            if let Some(config) = assembled.config.take() {
                assembled.tell();
                log::warn!("generation {number}, a rollback, is in force: the files count again with `portcullis reload`");
                // A rollback to a rollback goes back to where that one went.
                let records = store.as_ref().and_then(|store| store.generations().ok()).unwrap_or_default();
                let origin = records.iter().find(|record| record.number == number).and_then(|record| record.rolled_back_to);
                return Ok(Self { config, assembled, store, spoken, rolled_back_to: Some(origin.unwrap_or(number)) });
            }
            log::error!("generation {number}, a rollback, cannot be used any more: the files are");
            say(&assembled.report);
        }
        let mut assembled = complete(&sources(None), loaded, files);
        let config = assembled.config.take().filter(|_| !strict || assembled.broken.is_empty());
        let Some(config) = config else { return Err(refused(&assembled.report)) };
        assembled.tell();
        if inheritance.is_some() {
            log::info!("the configuration is good; taking over");
        }
        spoken.switches.retain(|site, _| !assembled.unswitched.contains(site));
        Ok(Self { config, assembled, store, spoken, rolled_back_to: None })
    }

    /// Makes the snapshot that the process begins with.
    pub fn compile(self, health: &HealthChecks, tls: &tls::Shared, secret: &[u8], by: &str) -> Begun {
        let Self { config, assembled, store, spoken, rolled_back_to } = self;
        let seeds = seeds_of(&config, &assembled.seeded);
        let generation = store.as_ref().map_or(0, |store| store.last_number()) + 1;
        let standing = |group: &str, backend: &str| spoken.standing(group, backend);
        let snapshot = compile(config, &Carry { generation, health, tls, secret, standing: &standing });
        let versions = versions_of(&snapshot.checked.sites, &assembled, store.as_deref());
        let applied = Applied::new(&snapshot, assembled.broken, &versions, by, rolled_back_to);
        let applied = Applied { tables_out_of_force: assembled.tables_out_of_force, ..applied };
        let unkept = Unkept { versions, seeds, sites: snapshot.good_sites(), unswitched: assembled.unswitched };
        Begun { snapshot, applied, unkept, store, spoken }
    }
}

/// A configuration that is in force from the first request on.
pub struct Begun {
    pub snapshot: Snapshot,
    pub applied: Applied,
    pub unkept: Unkept,
    pub store: Option<Arc<Store>>,
    pub spoken: Spoken,
}

/// The sites that were in force before, in their last good versions, under the main file of now.
fn as_it_was(path: &Path, config: &Config, files: &Files, store: &Store) -> Previous {
    let is_site = |path: &Path| config.site_patterns.iter().any(|pattern| files::matches(pattern, path));
    let mut texts = files.texts();
    texts.retain(|path, _| !is_site(path));
    for (path, site) in store.sites().unwrap_or_default() {
        if let Ok(Some(text)) = store.site_text(&site) {
            texts.insert(path, text);
        }
    }
    let loaded = load(path, &Files::as_kept(texts), &Previous::default());
    loaded.config.map_or_else(Previous::default, |Config { sites, groups, store, .. }| Previous { sites, groups, store })
}

/// Without a state directory the process runs, and remembers nothing; but a process that takes over does not forget what the one
/// before it knew.
fn open_store(config: &Config, inheritance: Option<&Inheritance>) -> Result<Option<Arc<Store>>, Error> {
    let inherited = inheritance.and_then(|inheritance| inheritance.state.as_deref());
    if inherited.is_some_and(|path| path != config.state_dir.join(persist::FILE)) {
        return Err(Error::StateMoved);
    }
    match Store::open(&config.state_dir) {
        Ok(store) => Ok(Some(Arc::new(store))),
        Err(error @ (persist::Error::InUse { .. } | persist::Error::Damaged { .. })) => Err(error.into()),
        Err(error) if inherited.is_some() => Err(error.into()),
        Err(error) => {
            log::warn!("{error}: nothing is kept (no way back to former configurations, no last good version of a site after a restart)");
            Ok(None)
        }
    }
}
