//! Last good versions of sites: what becomes of those whose files are broken or gone.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::{Config, Group, GroupId, Previous, Site, Target};
use crate::routing::host::HostPattern;

/// On a reload a broken site keeps its last good version. Gives the names of the sites that did.
pub fn keep_last_good(config: &mut Config, previous: &Previous) -> HashSet<String> {
    let mut kept = HashSet::new();
    let broken: Vec<usize> =
        (0..config.sites.len()).filter(|index| config.sites.get(*index).is_some_and(|site| site.routes.is_empty())).collect();
    if broken.is_empty() {
        return kept;
    }
    let good: HashMap<&Path, &Site> =
        previous.sites.iter().filter(|site| !site.routes.is_empty()).map(|site| (site.path.as_path(), site.as_ref())).collect();
    let mut owners: HashMap<String, usize> = HashMap::new();
    for (index, site) in config.sites.iter().enumerate() {
        owners.extend(site.domains.iter().map(|domain| (domain.key(), index)));
    }
    for index in broken {
        let Some(site) = config.sites.get(index) else { continue };
        let Some(good) = good.get(site.path.as_path()) else { continue };
        let name = site.name.clone();
        let Some(restored) = restore(good, &previous.groups, &mut config.groups) else { continue };
        // What others were given meanwhile stays with them.
        let is_free = |domain: &&HostPattern| owners.get(&domain.key()).is_none_or(|owner| *owner == index);
        let domains = restored.domains.iter().filter(is_free).cloned().collect();
        if let Some(slot) = config.sites.get_mut(index) {
            *slot = Arc::new(Site { domains, name: name.clone(), ..restored });
            kept.insert(name);
        }
    }
    kept
}

/// What the sites of a configuration have, and no other one can have as well.
pub struct Claims {
    names: HashSet<String>,
    files: HashSet<PathBuf>,
    domains: HashSet<String>,
}

impl Claims {
    pub fn of(config: &Config) -> Self {
        let mut claims = Self { names: HashSet::new(), files: HashSet::new(), domains: HashSet::new() };
        config.sites.iter().for_each(|site| claims.add(site));
        claims
    }

    fn add(&mut self, site: &Site) {
        self.names.insert(site.name.clone());
        self.files.insert(site.path.clone());
        self.domains.extend(site.domains.iter().map(HostPattern::key));
    }

    /// Whether a site stands in this file.
    pub fn has_file(&self, path: &Path) -> bool {
        self.files.contains(path)
    }

    /// The domains of a site that no other site has now; none if another one has its name, as after a file was renamed.
    pub fn left_to(&self, good: &Site) -> Vec<HostPattern> {
        if self.names.contains(&good.name) {
            return Vec::new();
        }
        good.domains.iter().filter(|domain| !self.domains.contains(&domain.key())).cloned().collect()
    }
}

/// Lets a site go on whose file is gone. `false`: others have its name or all of its domains now, or a group is gone.
pub fn keep_vanished(config: &mut Config, claims: &mut Claims, good: &Site, previous: &Previous) -> bool {
    let domains = claims.left_to(good);
    if domains.is_empty() {
        return false;
    }
    let Some(restored) = restore(good, &previous.groups, &mut config.groups) else { return false };
    let site = Site { domains, ..restored };
    claims.add(&site);
    config.sites.push(Arc::new(site));
    true
}

/// A good site names its groups by number: the numbers are found anew. `None`: a group that it needs is gone.
fn restore(good: &Site, old_groups: &[Group], groups: &mut Vec<Group>) -> Option<Site> {
    let mut site = good.clone();
    let mut own = None;
    for route in &mut site.routes {
        let Target::Group(id) = &mut route.target else { continue };
        let old = old_groups.get(id.0 as usize)?;
        let position = if old.of_site {
            // Its own backends come back with it, whatever else has their name now.
            *own.get_or_insert_with(|| {
                groups.push(old.clone());
                groups.len() - 1
            })
        } else {
            position_of(&old.name, groups)?
        };
        *id = GroupId(u32::try_from(position).ok()?);
    }
    for (_, id) in site.switch.iter_mut().flat_map(|switch| &mut switch.groups) {
        let old = old_groups.get(id.0 as usize)?;
        let position = position_of(&old.name, groups)?;
        *id = GroupId(u32::try_from(position).ok()?);
    }
    Some(site)
}

/// A group of the main file. Those come first; there may be as many behind them as there are sites.
fn position_of(name: &str, groups: &[Group]) -> Option<usize> {
    groups.iter().take_while(|group| !group.of_site).position(|group| group.name == name)
}
