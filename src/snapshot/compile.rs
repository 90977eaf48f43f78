//! From a checked configuration to a snapshot: the one place that knows both.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use http::HeaderValue;

use super::{Route, Site, Snapshot, Unknown};
use crate::balance::sticky::Stickiness;
use crate::balance::{Backend, Group, Settings, Timeouts};
use crate::config::{self, Config, HealthCheck};
use crate::health::HealthChecks;
use crate::routing::host::HostTable;
use crate::routing::path_table::PathTable;
use crate::tls;

/// What outlives a configuration and is handed from one snapshot to the next.
pub struct Carry<'a> {
    pub generation: u64,
    pub health: &'a HealthChecks,
    pub tls: &'a tls::Shared,
    /// The key of the sticky cookies.
    pub secret: &'a [u8],
}

/// Compiles a configuration. It cannot fail: everything was checked.
pub fn compile(config: Config, carry: &Carry<'_>) -> Snapshot {
    let mut hosts = HostTable::default();
    for (index, site) in (0..).zip(&config.sites) {
        for domain in &site.domains {
            hosts.insert(domain, index);
        }
    }
    hosts.shrink();
    let groups = config.groups.iter().map(|group| compile_group(group, carry)).collect();
    carry.health.retain(&checks_in_use(&config.groups));
    Snapshot {
        generation: carry.generation,
        hosts,
        sites: config.sites.iter().map(|site| compile_site(site, carry.tls)).collect(),
        groups,
        unknown_host: Unknown::from((&config.unknown_host, config.sites.as_slice())),
        users: config.users,
        trusted_proxies: config.trusted_proxies,
        checked: config::Previous { sites: config.sites, groups: config.groups },
    }
}

fn compile_site(site: &config::Site, tls: &tls::Shared) -> Site {
    let mut paths = PathTable::default();
    for (index, route) in (0..).zip(&site.routes) {
        paths.insert(&route.pattern, index);
    }
    let routes = site.routes.iter().map(|route| Route {
        name: route.name.clone(),
        pattern: route.pattern.clone(),
        target: route.target.clone(),
        strip: route.strip,
        timeouts: route.timeouts,
    });
    Site {
        name: site.name.clone(),
        tls: site.certificate.clone().map(|certificate| tls.config_for(certificate)),
        hsts: site.hsts.as_deref().and_then(|value| HeaderValue::from_str(value).ok()),
        https_redirect: site.https_redirect,
        routes: routes.collect(),
        paths,
    }
}

fn compile_group(group: &config::Group, carry: &Carry<'_>) -> Group {
    let addresses: Vec<SocketAddr> = group.backends.iter().map(|backend| backend.address).collect();
    let (registry, states) = carry.health.watch(group.health_check.as_ref(), &addresses);
    let backends = group.backends.iter().zip(states).map(|(backend, state)| Backend {
        name: backend.name.clone(),
        host: backend.host.clone(),
        address: backend.address,
        weight: backend.weight,
        backup: backend.backup,
        state,
    });
    let backends: Vec<Backend> = backends.collect();
    let stickiness = group.sticky.as_ref().map(|sticky| {
        let names = group.backends.iter().map(|backend| backend.name.as_str());
        Stickiness::new(&sticky.cookie, sticky.max_age.map(|age| age.as_secs()), carry.secret, &group.name, names)
    });
    let settings = Settings { name: group.name.clone(), timeouts: timeouts(group.timeouts), stickiness, registry };
    Group::new(settings, backends)
}

/// The check has filled every timeout in; a second stands for one that could only be missing by a bug.
fn timeouts(checked: config::Timeouts) -> Timeouts {
    let some = |timeout: Option<Duration>| timeout.unwrap_or(Duration::from_secs(1));
    Timeouts {
        connect: some(checked.connect),
        read: some(checked.read),
        send: some(checked.send),
        websocket_idle: some(checked.websocket_idle),
    }
}

fn checks_in_use(groups: &[config::Group]) -> HashMap<Option<HealthCheck>, Vec<SocketAddr>> {
    let mut in_use: HashMap<_, Vec<_>> = HashMap::new();
    for group in groups {
        in_use.entry(group.health_check.clone()).or_default().extend(group.backends.iter().map(|backend| backend.address));
    }
    in_use
}
