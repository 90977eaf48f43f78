//! From files to a configuration that can be put in force: what is broken or gone is replaced by its last good version,
//! managed tables get their rows, switches stand as the operator has set them. A start and a reload both come through here.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::check::{keep_last_good, keep_vanished};
use crate::config::diagnostic::{Diagnostic, Report};
use crate::config::files::{self, Files, Stamp, Texts};
use crate::config::{self, Config, Previous, Site};
use crate::load::load;
use crate::persist::{KeptSite, Store, StoredRow, SwitchRecord};
use crate::routing::users::Row;

/// What a configuration is made from.
pub struct Sources<'a> {
    pub path: &'a Path,
    /// A configuration as it was, instead of the files as they are.
    pub kept: Option<Texts>,
    pub previous: &'a Previous,
    pub store: Option<&'a Store>,
    pub switches: &'a BTreeMap<String, SwitchRecord>,
    /// Sites whose files are gone are gone.
    pub prune: bool,
}

/// A configuration with what is to be said about it.
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
            (true, _) => format!(
                "site {name}: its file {} is gone; its last good version stays (`portcullis reload --prune` ends it)",
                path.display()
            ),
            (false, true) => format!("site {name} has errors: its last good version stays"),
            (false, false) => format!("site {name} is left out because of its errors and answers 503"),
        }
    }
}

/// Loads, checks and completes a configuration.
pub fn assemble(sources: &Sources<'_>) -> Assembled {
    let files = sources.kept.clone().map_or_else(Files::on_disk, Files::as_kept);
    let loaded = load(sources.path, &files, sources.previous);
    complete(sources, loaded, files)
}

/// Completes what was loaded and checked already.
pub fn complete(sources: &Sources<'_>, loaded: config::Loaded, files: Files) -> Assembled {
    let (texts, stamps) = files.into_read();
    let report = loaded.report;
    let Some(config) = loaded.config else {
        return Assembled { config: None, report, broken: Vec::new(), texts, stamps, seeded: Vec::new(), unswitched: Vec::new() };
    };
    let mut config = config;
    let mut assembled =
        Assembled { config: None, broken: broken_sites(&config), report, texts, stamps, seeded: Vec::new(), unswitched: Vec::new() };
    let restored = keep_last_good(&mut config, sources.previous);
    for broken in &mut assembled.broken {
        broken.kept = restored.contains(&broken.name);
    }
    if !sources.prune && sources.kept.is_none() {
        keep_lost_sites(&mut config, sources, &mut assembled);
    }
    let filled = fill_managed_tables(&mut config, sources, &mut assembled);
    // What stays as it was stays switched as it was.
    let kept: Vec<&str> = assembled.broken.iter().filter(|broken| broken.kept).map(|broken| broken.name.as_str()).collect();
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
    let without_version = |path: &Path| assembled.broken.iter().any(|broken| broken.path == path && !broken.kept);
    let lost = kept.iter().filter(|(path, _)| without_version(path) || is_gone(path, config));
    let text = |site: &KeptSite| sources.store.and_then(|store| store.site_text(site).ok().flatten());
    let texts: Vec<(PathBuf, Arc<str>)> = lost.filter_map(|(path, site)| Some((path.clone(), text(site)?))).collect();
    if texts.is_empty() {
        return;
    }
    // They are checked anew, with the groups that there are now.
    let as_it_was = load(sources.path, &Files::instead(texts), sources.previous);
    let Some(Config { sites, groups, store, .. }) = as_it_was.config else { return };
    let previous = Previous { sites, groups, store };
    let restored = keep_last_good(config, &previous);
    for broken in assembled.broken.iter_mut().filter(|broken| restored.contains(&broken.name)) {
        broken.kept = true;
    }
    keep_vanished_of(&previous, config, assembled);
}

fn keep_vanished_of(previous: &Previous, config: &mut Config, assembled: &mut Assembled) {
    for site in previous.sites.iter().filter(|site| !site.routes.is_empty()) {
        if is_gone(&site.path, config) && keep_vanished(config, site, previous) {
            assembled.broken.push(BrokenSite { name: site.name.clone(), path: site.path.clone(), vanished: true, kept: true });
        }
    }
}

/// Whether a site's file is not there any more, although the configuration would have it.
fn is_gone(path: &Path, config: &Config) -> bool {
    let named = config.site_patterns.iter().any(|pattern| files::matches(pattern, path));
    named && std::fs::metadata(path).is_err() && !config.sites.iter().any(|site| site.path == path)
}

// === Managed tables and switches ===

/// Gives managed tables the rows that are kept. `false`: rows name groups that there are not, and it was said.
fn fill_managed_tables(config: &mut Config, sources: &Sources<'_>, assembled: &mut Assembled) -> bool {
    let names: Vec<String> = config.users.managed().map(str::to_owned).collect();
    if names.is_empty() {
        return true;
    }
    let Some(store) = sources.store else {
        let why = "managed users tables are kept in `state_dir`, which cannot be used";
        assembled
            .report
            .push(Diagnostic::about_file(sources.path, why).with_help("make the directory writable, or set another `state_dir`"));
        return false;
    };
    let groups: HashMap<&str, u32> =
        (0..).zip(&config.groups).filter(|(_, group)| !group.of_site).map(|(id, group)| (group.name.as_str(), id)).collect();
    let mut rows: Vec<(&str, String, Row)> = Vec::new();
    let mut missing: BTreeMap<String, (usize, String)> = BTreeMap::new();
    let (mut twice, users) = (None, &config.users);
    let mut kept: Vec<&str> = Vec::new();
    for name in &names {
        let mut each = |user: &str, row: StoredRow| {
            if users.row(user).is_some_and(|(table, _)| table.is_none()) {
                twice.get_or_insert_with(|| (user.to_owned(), name.clone()));
            }
            let placed = row.into_iter().filter_map(|(word, group)| match groups.get(group.as_str()) {
                Some(id) => Some((word, *id)),
                None => {
                    missing.entry(group).or_insert_with(|| (0, user.to_owned())).0 += 1;
                    None
                }
            });
            rows.push((name, user.to_owned(), placed.collect()));
        };
        let read = match store.table_version(name) {
            Ok(Some(_)) => {
                kept.push(name);
                store.rows(name, &mut each)
            }
            Ok(None) => {
                assembled.seeded.push(name.clone());
                Ok(())
            }
            Err(error) => Err(error),
        };
        if let Err(error) = read {
            assembled.report.push(Diagnostic::about_file(sources.path, format!("the managed table `{name}` cannot be read: {error}")));
            return false;
        }
    }
    for (group, (count, user)) in &missing {
        let why = format!("no backend group is named `{group}`, but rows of managed tables lead there: {count}, such as that of `{user}`");
        let help = format!("keep the group, or move them first: `portcullis users set {user} …`");
        assembled.report.push(Diagnostic::about_file(sources.path, why).with_help(help));
    }
    if let Some((user, table)) = &twice {
        let why = format!("the user `{user}` is in the managed table `{table}` and in a users file");
        let help = format!("remove it from the file, or: `portcullis users remove {user}`");
        assembled.report.push(Diagnostic::about_file(sources.path, why).with_help(help));
        return false;
    }
    if !kept.is_empty() && missing.is_empty() {
        config.users = config.users.with_tables(&kept, rows.iter().map(|(table, user, row)| (*table, user.as_str(), row.as_slice())));
    }
    missing.is_empty()
}

/// Lets sites use the group that an operator has switched them to, as long as their files say what they said then. Gives the
/// sites whose files say something else.
fn apply_switches(config: &mut Config, switches: &BTreeMap<String, SwitchRecord>, kept: &[&str]) -> Vec<String> {
    let mut unswitched = Vec::new();
    for site in &mut config.sites {
        let (Some(switch), Some(record)) = (&site.switch, switches.get(&site.name)) else { continue };
        let mut switched = Site::clone(site);
        let stays = kept.contains(&site.name.as_str());
        if (switch.active == record.instead_of || stays) && switched.activate(&record.active) {
            *site = Arc::new(switched);
        } else if !stays {
            unswitched.push(site.name.clone());
        }
    }
    unswitched
}
