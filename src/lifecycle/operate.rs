//! Commands on backends and on switches of sites: in force for the next request, and kept.

use std::sync::Arc;
use std::time::SystemTime;

use super::control::{CommandError, Control, Spoken};
use crate::balance::hand::Standing;
use crate::config::diagnostic::did_you_mean;
use crate::config::{Previous, Site};
use crate::persist::{BackendRecord, SwitchRecord, seconds};
use crate::snapshot::{self, Rules, Snapshot};

impl Control {
    /// Says of a backend whether it gets requests.
    pub fn set_standing(&self, by: &str, group: &str, backend: &str, standing: Standing) -> Result<BackendRecord, CommandError> {
        let _changing = self.change()?;
        let mut spoken = Spoken::clone(&self.spoken());
        let snapshot = self.snapshot();
        let mut found = false;
        for group in snapshot.groups.iter().filter(|own| own.name == group) {
            found |= group.backends().iter().any(|own| own.name == backend);
        }
        let key = (group.to_owned(), backend.to_owned());
        // A backend that the configuration lost may still be spoken free.
        let is_spoken_of = standing == Standing::Enabled && spoken.backends.contains_key(&key);
        if !found && !is_spoken_of {
            return Err(unknown_backend(&snapshot, group, backend));
        }
        let record = BackendRecord { state: standing, by: by.to_owned(), time: seconds(SystemTime::now()) };
        let kept = (standing != Standing::Enabled).then_some(&record);
        self.needed_store()?
            .keep_backend(group, backend, kept)
            .map_err(|error| CommandError::Failed(format!("nothing has changed: {error}")))?;
        match kept {
            Some(record) => drop(spoken.backends.insert(key, record.clone())),
            None => drop(spoken.backends.remove(&key)),
        }
        self.set_spoken(spoken);
        for own in snapshot.groups.iter().filter(|own| own.name == group).flat_map(|group| group.backends()) {
            if own.name == backend {
                own.hand.set(standing);
            }
        }
        log::info!("backend {group}/{backend} is {} (by {by})", standing.as_str());
        Ok(record)
    }

    /// Lets another group of a site's switch have its requests. Gives the one that had them.
    pub fn switch(&self, by: &str, site: &str, to: &str) -> Result<String, CommandError> {
        let _changing = self.change()?;
        let mut spoken = Spoken::clone(&self.spoken());
        let snapshot = self.snapshot();
        let sites = &snapshot.checked.sites;
        let Some(index) = sites.iter().position(|own| own.name == site) else {
            let hint = hint(did_you_mean(site, sites.iter().map(|site| site.name.as_str())));
            return Err(CommandError::NotFound(format!("no site is named `{site}`{hint}")));
        };
        let Some(old) = sites.get(index).filter(|own| own.switch.is_some()) else {
            let why = format!("the site `{site}` has nothing to switch: it needs `groups: {{ blue: …, green: … }}` and `active`");
            return Err(CommandError::Invalid(why));
        };
        let switch = old.switch.as_ref();
        let before = switch.map(|switch| switch.active.clone()).unwrap_or_default();
        let mut new = Site::clone(old);
        if !new.activate(to) {
            let names: Vec<&str> = switch.into_iter().flat_map(|switch| &switch.groups).map(|(name, _)| name.as_str()).collect();
            return Err(CommandError::NotFound(format!("the site `{site}` has no group `{to}`; it has: {}", names.join(", "))));
        }
        // What the file says: the word that the first switch found there.
        let instead_of = spoken.switches.get(site).map_or_else(|| before.clone(), |record| record.instead_of.clone());
        let record = SwitchRecord { active: to.to_owned(), instead_of, by: by.to_owned(), time: seconds(SystemTime::now()) };
        let kept = (record.active != record.instead_of).then_some(&record);
        self.needed_store()?.keep_switch(site, kept).map_err(|error| CommandError::Failed(format!("nothing has changed: {error}")))?;
        match kept {
            Some(record) => drop(spoken.switches.insert(site.to_owned(), record.clone())),
            None => drop(spoken.switches.remove(site)),
        }
        self.set_spoken(spoken);
        self.shared.current.publish(with_site(&snapshot, index, Arc::new(new)));
        log::info!("site {site} uses its group {to}; it was {before} (by {by})");
        Ok(before)
    }
}

fn with_site(old: &Snapshot, index: usize, new: Arc<Site>) -> Snapshot {
    let replaced = |(number, own): (usize, &snapshot::Site)| match number == index {
        true => snapshot::Site { config: new.clone(), ..own.clone() },
        false => own.clone(),
    };
    let sites = old.rules.sites.iter().enumerate().map(replaced).collect();
    let mut checked = old.checked.sites.clone();
    if let Some(slot) = checked.get_mut(index) {
        *slot = new.clone();
    }
    Snapshot {
        rules: Arc::new(Rules { sites, ..Rules::clone(&old.rules) }),
        checked: Arc::new(Previous { sites: checked, groups: old.checked.groups.clone(), store: old.checked.store.clone() }),
        ..old.clone()
    }
}

fn unknown_backend(snapshot: &Snapshot, group: &str, backend: &str) -> CommandError {
    let own = snapshot.groups.iter().find(|own| own.name == group);
    CommandError::NotFound(match own {
        None => {
            let hint = hint(did_you_mean(group, snapshot.groups.iter().map(|group| group.name.as_str())));
            format!("no backend group is named `{group}`{hint}")
        }
        Some(own) => {
            let names: Vec<&str> = own.backends().iter().take(20).map(|backend| backend.name.as_str()).collect();
            format!("the group `{group}` has no backend `{backend}`; it has: {}", names.join(", "))
        }
    })
}

fn hint(meant: Option<&str>) -> String {
    meant.map_or_else(String::new, |meant| format!("; did you mean `{meant}`?"))
}
