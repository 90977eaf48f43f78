//! From files to a configuration that can be put in force: what is broken or gone is replaced by its last good version,
//! managed tables get their rows, switches stand as the operator has set them. A start and a reload both come through here.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::tables;
use crate::config::check::{Claims, keep_last_good, keep_vanished};
use crate::config::diagnostic::Report;
use crate::config::files::{self, Files, Stamp, Texts};
use crate::config::{self, Config, Previous, Site};
use crate::load::{load, load_from_disk};
use crate::persist::{KeptSite, Store, SwitchRecord};

/// What a configuration is made from.
pub struct Sources<'a> {
    pub path: &'a Path,
    /// A configuration as it was, instead of the files as they are.
    pub kept: Option<Texts>,
    pub previous: &'a Previous,
    pub store: Option<&'a Store>,
    pub switches: &'a BTreeMap<String, SwitchRecord>,
    /// The managed tables in force.
    pub tables: Vec<String>,
    /// Sites whose files are gone are gone, and so are managed tables.
    pub prune: bool,
    /// Nothing was in force before.
    pub is_first: bool,
}

/// A configuration with what is to be said about it.
#[derive(Default)]
pub struct Assembled {
    /// `None`: refused.
    pub config: Option<Config>,
    pub report: Report,
    pub broken: Vec<BrokenSite>,
    /// The files that were read.
    pub texts: Texts,
    /// The state that they were in; `None`: what was read were kept copies.
    pub stamps: Option<BTreeMap<PathBuf, Stamp>>,
    /// Sites whose files have changed what a switch has changed: their files count again.
    pub unswitched: Vec<String>,
    /// Managed tables that were never kept: their files seed them.
    pub seeded: Vec<String>,
    /// Managed tables that the files name, and those that are put aside since they do not name them any more.
    pub tables: Vec<String>,
    pub lost_tables: Vec<String>,
    /// Those that are kept for files that are to come back.
    pub tables_out_of_force: Vec<String>,
}

impl Assembled {
    /// Says what is wrong with the files, and what becomes of the sites that it concerns.
    pub fn tell(&self) {
        super::reload::say(&self.report);
        for broken in &self.broken {
            log::error!("{}", broken.tell());
        }
    }
}

/// A site whose file has errors, or is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokenSite {
    pub name: String,
    pub path: PathBuf,
    pub vanished: bool,
    /// Its last good version is in force; otherwise it answers 503.
    pub kept: bool,
}

impl BrokenSite {
    /// The site's trouble in a sentence.
    pub fn tell(&self) -> String {
        let Self { name, path, .. } = self;
        match (self.vanished, self.kept) {
            (true, true) => format!(
                "site {name}: its file {} is gone; its last good version stays (`portcullis reload --prune` ends it)",
                path.display()
            ),
            (true, false) => format!(
                "site {name}: its file {} is gone, and its last good version cannot be used any more: nobody answers for it (`portcullis reload --prune` ends it)",
                path.display()
            ),
            (false, true) => format!("site {name} has errors: its last good version stays"),
            (false, false) => format!("site {name} is left out because of its errors and answers 503"),
        }
    }
}

/// Loads, checks and completes a configuration.
pub fn assemble(sources: &Sources<'_>) -> Assembled {
    let (loaded, files) = match &sources.kept {
        None => load_from_disk(sources.path, sources.previous),
        Some(texts) => {
            let files = Files::as_kept(texts.clone());
            (load(sources.path, &files, sources.previous), files)
        }
    };
    complete(sources, loaded, files)
}

/// Completes what was loaded and checked already.
pub fn complete(sources: &Sources<'_>, loaded: config::Loaded, files: Files) -> Assembled {
    let (texts, stamps) = files.into_read();
    let report = loaded.report;
    let Some(config) = loaded.config else {
        return Assembled { report, texts, stamps, ..Assembled::default() };
    };
    let mut config = config;
    let mut assembled = Assembled { broken: broken_sites(&config), report, texts, stamps, ..Assembled::default() };
    let restored = keep_last_good(&mut config, sources.previous);
    for broken in &mut assembled.broken {
        broken.kept = restored.contains(&broken.name);
    }
    if !sources.prune && sources.kept.is_none() {
        keep_lost_sites(&mut config, sources, &mut assembled);
    }
    let filled = tables::fill(&mut config, sources, &mut assembled);
    // What stays as it was stays switched as it was.
    let kept: HashSet<&str> = assembled.broken.iter().filter(|broken| broken.kept).map(|broken| broken.name.as_str()).collect();
    assembled.unswitched = apply_switches(&mut config, sources.switches, &kept);
    assembled.config = filled.then_some(config);
    assembled
}

fn broken_sites(config: &Config) -> Vec<BrokenSite> {
    let broken = config.sites.iter().filter(|site| site.routes.is_empty());
    broken.map(|site| BrokenSite { name: site.name.clone(), path: site.path.clone(), vanished: false, kept: false }).collect()
}

// === Sites that are broken or gone ===

/// Adds the last good versions of sites whose files are gone, and, at a start, of those that are broken.
fn keep_lost_sites(config: &mut Config, sources: &Sources<'_>, assembled: &mut Assembled) {
    keep_vanished_of(sources.previous, config, assembled);
    let kept = match sources.store.map(Store::sites) {
        Some(Ok(sites)) => sites,
        Some(Err(error)) => {
            log::warn!("the last good versions of sites cannot be read: {error}");
            return;
        }
        None => return,
    };
    let without_version: HashSet<&Path> =
        assembled.broken.iter().filter(|broken| !broken.kept).map(|broken| broken.path.as_path()).collect();
    let mut lost: Vec<_> = kept.iter().filter(|(path, _)| without_version.contains(path.as_path()) || is_gone(path, config)).collect();
    if lost.is_empty() {
        return;
    }
    let claims = Claims::of(config);
    lost.retain(|(path, _)| without_version.contains(path.as_path()) || !claims.has_file(path));
    let text = |site: &KeptSite| sources.store.and_then(|store| store.site_text(site).ok().flatten());
    let texts: Vec<(PathBuf, Arc<str>)> = lost.into_iter().filter_map(|(path, site)| Some((path.clone(), text(site)?))).collect();
    if texts.is_empty() {
        return;
    }
    // They are checked anew, with the groups that there are now.
    let as_it_was = load(sources.path, &Files::instead(texts), sources.previous);
    if let Some(Config { sites, groups, store, .. }) = as_it_was.config {
        let previous = Previous { sites, groups, store };
        let restored = keep_last_good(config, &previous);
        for broken in assembled.broken.iter_mut().filter(|broken| restored.contains(&broken.name)) {
            broken.kept = true;
        }
        keep_vanished_of(&previous, config, assembled);
        // What is kept of the others stays: the key that a site lacks may come back as well as its file.
        let claims = Claims::of(config);
        let told: HashSet<PathBuf> = assembled.broken.iter().map(|broken| broken.path.clone()).collect();
        for site in previous.sites.iter().filter(|site| is_gone(&site.path, config) && !claims.has_file(&site.path)) {
            if !told.contains(&site.path) && !claims.left_to(site).is_empty() {
                assembled.broken.push(BrokenSite { name: site.name.clone(), path: site.path.clone(), vanished: true, kept: false });
            }
        }
    }
}

fn keep_vanished_of(previous: &Previous, config: &mut Config, assembled: &mut Assembled) {
    let gone: Vec<&Arc<Site>> = previous.sites.iter().filter(|site| !site.routes.is_empty() && is_gone(&site.path, config)).collect();
    if gone.is_empty() {
        return;
    }
    // Made once: a directory that is not there takes all of its sites with it.
    let mut claims = Claims::of(config);
    for site in gone {
        if !claims.has_file(&site.path) && keep_vanished(config, &mut claims, site, previous) {
            assembled.broken.push(BrokenSite { name: site.name.clone(), path: site.path.clone(), vanished: true, kept: true });
        }
    }
}

/// Whether a file is not there, although the configuration would have it.
fn is_gone(path: &Path, config: &Config) -> bool {
    let named = config.site_patterns.iter().any(|pattern| files::matches(pattern, path));
    named && std::fs::metadata(path).is_err()
}

// === Switches ===

/// Lets sites use the group that an operator has switched them to, as long as their files say what they said then. Gives the
/// sites whose files say something else.
fn apply_switches(config: &mut Config, switches: &BTreeMap<String, SwitchRecord>, kept: &HashSet<&str>) -> Vec<String> {
    let mut unswitched = Vec::new();
    for site in &mut config.sites {
        let (Some(switch), Some(record)) = (&site.switch, switches.get(&site.name)) else { continue };
        let mut switched = Site::clone(site);
        let stays = kept.contains(site.name.as_str());
        if (switch.active == record.instead_of || stays) && switched.activate(&record.active) {
            *site = Arc::new(switched);
        } else if !stays {
            unswitched.push(site.name.clone());
        }
    }
    unswitched
}
