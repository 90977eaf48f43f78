//! What is kept of a configuration that is in force: the way back to it, and the last good versions of its sites.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::assemble::{Assembled, BrokenSite};
use super::control::{Applied, Control};
use crate::config::files::Texts;
use crate::config::{Config, Site};
use crate::persist::{Kept, KeptSite, Store, StoredRow, digest_of};
use crate::snapshot::Snapshot;

/// The files of what is in force, and which sites are good.
pub(super) struct Versions {
    pub(super) files: Vec<(PathBuf, [u8; 32])>,
    texts: Texts,
    good: Vec<(PathBuf, KeptSite)>,
    /// Sites whose kept versions go on being kept.
    stay: Vec<PathBuf>,
    tables: Vec<String>,
    lost_tables: Vec<String>,
}

/// The rows of a managed table that its file has.
pub(super) struct Seed {
    table: String,
    rows: Vec<(String, StoredRow)>,
}

/// A site that is in force in its last good version is kept as that, not as its broken file.
pub(super) fn versions_of(sites: &[Arc<Site>], assembled: &Assembled, store: Option<&Store>) -> Versions {
    let mut texts = assembled.texts.clone();
    let kept = store.and_then(|store| store.sites().ok()).unwrap_or_default();
    for broken in assembled.broken.iter().filter(|broken| broken.kept) {
        let text = kept.get(&broken.path).and_then(|site| store?.site_text(site).ok().flatten());
        if let Some(text) = text {
            texts.insert(broken.path.clone(), text);
        }
    }
    let files = texts.iter().map(|(path, text)| (path.clone(), crate::config::digest_of(text))).collect();
    let broken: HashSet<&Path> = assembled.broken.iter().map(|broken| broken.path.as_path()).collect();
    let good = sites
        .iter()
        .filter(|site| !broken.contains(site.path.as_path()))
        .map(|site| (site.path.clone(), KeptSite::new(&site.name, &site.digest)))
        .collect();
    let stay = assembled.broken.iter().map(|broken| broken.path.clone()).collect();
    Versions { files, texts, good, stay, tables: assembled.tables.clone(), lost_tables: assembled.lost_tables.clone() }
}

pub(super) fn seeds_of(config: &Config, seeded: &[String]) -> Vec<Seed> {
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

/// The configuration that a process begins with, as far as it is to be kept.
pub struct Unkept {
    pub(super) versions: Versions,
    pub(super) seeds: Vec<Seed>,
    pub(super) sites: usize,
    /// Sites whose files count again.
    pub(super) unswitched: Vec<String>,
}

impl Control {
    /// Keeps the configuration that this process began with, and lets it change from then on. A process that takes over does so
    /// once it serves: one that does not get that far leaves nothing behind that the process before would not know.
    pub fn keep_first(&self, unkept: Unkept) {
        let _begins = Begins(self);
        let Unkept { versions, seeds, sites, unswitched } = unkept;
        forget_switches(&unswitched, self.store());
        self.set_applied(Applied::clone(&self.applied()).kept(self.store(), sites, Vec::new(), &versions, &seeds));
        self.take_up_pending();
    }
}

/// Lets changes begin at its end, whatever comes between.
struct Begins<'a>(&'a Control);

impl Drop for Begins<'_> {
    fn drop(&mut self) {
        self.0.begin_changes();
    }
}

/// The files of these sites count again, also after a restart.
pub(super) fn forget_switches(sites: &[String], store: Option<&Store>) {
    for site in sites {
        if let Some(Err(error)) = store.map(|store| store.keep_switch(site, None)) {
            log::error!("the switch of the site {site} cannot be forgotten: {error}");
        }
    }
}

impl Applied {
    /// A configuration that comes into force, and is not kept yet.
    pub(super) fn new(snapshot: &Snapshot, broken: Vec<BrokenSite>, versions: &Versions, by: &str, rolled_back_to: Option<u64>) -> Self {
        Self {
            generation: snapshot.generation,
            time: SystemTime::now(),
            digest: digest_of(&versions.files),
            by: by.to_owned(),
            rolled_back_to,
            broken,
            tables_out_of_force: Vec::new(),
            is_kept: false,
            refused: None,
        }
    }

    /// Keeps it. A failure is told, and changes nothing of what is in force.
    pub(super) fn kept(self, store: Option<&Store>, sites: usize, changes: Vec<String>, versions: &Versions, seeds: &[Seed]) -> Self {
        let Some(store) = store else { return self };
        let result = store.keep_applied(&Kept {
            generation: &self.record(sites, changes),
            files: &versions.files,
            texts: &versions.texts,
            good: versions.good.iter().map(|(path, site)| (path.as_path(), site.clone())).collect(),
            stay: &versions.stay,
            tables: &versions.tables,
            lost_tables: &versions.lost_tables,
            seeds: seeds.iter().map(|seed| (seed.table.as_str(), seed.rows.as_slice())).collect(),
        });
        if let Err(error) = &result {
            log::error!(
                "generation {} is in force but cannot be kept: {error}; there is no way back to it, and a restart knows older versions of its sites",
                self.generation
            );
        }
        Self { is_kept: result.is_ok(), ..self }
    }
}
