//! What a configuration changes against the one before, in words.

use std::collections::BTreeMap;
use std::fmt::Debug;

use crate::config::{Config, Group, Listener, Previous};
use crate::proxy::listen::Seen;
use crate::routing::users::Users;

/// How many names are told of what there are many of.
const SHOWN: usize = 5;

/// The configuration before, as far as it is compared.
pub struct Before<'a> {
    pub checked: &'a Previous,
    pub listeners: &'a [Seen],
    pub users: &'a Users,
}

/// Differences, a line each; empty: there are none that can be seen here.
pub fn between(old: &Before<'_>, new: &Config) -> Vec<String> {
    let mut lines = Vec::new();
    let listener = |listener: &Listener| (listener.name.clone(), format!("{listener:?}"));
    let old_listeners = old.listeners.iter().map(|seen| listener(&seen.listener)).collect();
    lines.extend(differences("listener", &old_listeners, &new.listeners.iter().map(listener).collect()));
    let group = |group: &Group| (group.name.clone(), shape(group));
    let groups = |groups: &[Group]| groups.iter().filter(|group| !group.of_site).map(group).collect();
    lines.extend(differences("backend group", &groups(&old.checked.groups), &groups(&new.groups)));
    let sites = |sites: &[std::sync::Arc<crate::config::Site>]| {
        sites.iter().map(|site| (site.name.clone(), (site.digest, site.routes.is_empty()))).collect()
    };
    lines.extend(differences("site", &sites(&old.checked.sites), &sites(&new.sites)));
    let apps = |apps: Vec<(&str, &str)>| apps.into_iter().map(|(app, role)| (app.to_owned(), role.to_owned())).collect();
    lines.extend(differences("app", &apps(old.users.apps()), &apps(new.users.apps())));
    let (users, before) = (new.users.len(), old.users.len());
    if users != before {
        lines.push(format!("users: {users} now, {before} before"));
    }
    lines
}

/// Everything of a group but where it stands in its file.
fn shape(group: &Group) -> String {
    let Group { name: _, origin: _, of_site: _, members, sticky, health_check, timeouts, tls, protocol, host, source } = group;
    // Names that resolve otherwise are no change of the configuration.
    let members: Vec<_> = members.iter().map(|member| (&member.name, &member.host, member.weight, member.backup)).collect();
    format!("{members:?}{sticky:?}{health_check:?}{timeouts:?}{tls:?}{protocol:?}{host:?}{source:?}")
}

fn differences<T: PartialEq + Debug>(what: &str, old: &BTreeMap<String, T>, new: &BTreeMap<String, T>) -> Vec<String> {
    let added: Vec<&String> = new.keys().filter(|name| !old.contains_key(*name)).collect();
    let removed: Vec<&String> = old.keys().filter(|name| !new.contains_key(*name)).collect();
    let changed: Vec<&String> =
        new.iter().filter(|(name, value)| old.get(*name).is_some_and(|old| old != *value)).map(|(name, _)| name).collect();
    let line = |(word, names): (&str, Vec<&String>)| match names.as_slice() {
        [] => None,
        [one] => Some(format!("{what} {one} {word}")),
        many => Some(format!("{} {what}s {word}: {}", many.len(), few(many))),
    };
    [("added", added), ("removed", removed), ("changed", changed)].into_iter().filter_map(line).collect()
}

/// The first of many names, and how many more there are.
pub(super) fn few(names: &[impl AsRef<str>]) -> String {
    let shown: Vec<&str> = names.iter().take(SHOWN).map(AsRef::as_ref).collect();
    let more = names.len().saturating_sub(SHOWN);
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    shown.join(", ") + &more
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_told_in_words() {
        let map = |of: &[(&str, u8)]| of.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect::<BTreeMap<_, _>>();
        let told = differences("site", &map(&[("a", 1), ("b", 1), ("c", 1)]), &map(&[("a", 1), ("b", 2), ("d", 1)]));
        assert_eq!(told, ["site d added", "site c removed", "site b changed"]);
        let many: BTreeMap<String, u8> = (0..7).map(|n| (format!("s{n}"), 0)).collect();
        assert_eq!(differences("site", &map(&[]), &many), ["7 sites added: s0, s1, s2, s3, s4 and 2 more"]);
        assert_eq!(differences("site", &many, &many), Vec::<String>::new());
    }
}
