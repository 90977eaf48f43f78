//! From a checked configuration to a snapshot: the one place that knows both.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::{Rules, Site, Snapshot, Tls, Unknown};
use crate::balance::hand::{Hand, Standing};
use crate::balance::peer::Connect;
use crate::balance::sticky::Stickiness;
use crate::balance::{Backend, Group, ProbedAs, Settings, Timeouts};
use crate::config::{self, Address, Config, HealthCheck, Previous, SiteCertificates};
use crate::health::{HealthChecks, probed_as};
use crate::routing::host::HostTable;
use crate::tls;
use crate::tls::watch::Watched;

/// What outlives a configuration and is handed from one snapshot to the next.
pub struct Carry<'a> {
    pub generation: u64,
    pub health: &'a HealthChecks,
    pub tls: &'a tls::Shared,
    /// The key of the sticky cookies.
    pub secret: &'a [u8],
    /// What an operator has said of the backends of a group.
    pub standing: &'a dyn Fn(&str, &str) -> Standing,
}

/// Compiles a configuration. It cannot fail: everything was checked.
pub fn compile(config: Config, carry: &Carry<'_>) -> Snapshot {
    let groups = compile_groups(&config.groups, carry, |_| None);
    let rules = Arc::new(compile_rules(&config, Some(carry.tls)));
    let checked = Previous { sites: config.sites, groups: config.groups, store: config.store };
    Snapshot { generation: carry.generation, rules, groups, checked: Arc::new(checked) }
}

/// Compiles everything but the backends. Without `tls` there are no handshakes to be made: for `explain` and tests.
pub fn compile_rules(config: &Config, tls: Option<&tls::Shared>) -> Rules {
    let mut hosts = HostTable::default();
    for (index, site) in (0..).zip(&config.sites) {
        for domain in &site.domains {
            hosts.insert(domain, index);
        }
    }
    hosts.shrink();
    let mut certificates = Certificates::new(config.store.as_deref(), tls);
    Rules {
        hosts: Arc::new(hosts),
        unknown_host: Unknown::from((&config.unknown_host, config.sites.as_slice())),
        sites: config.sites.iter().map(|site| Site::new(site.clone(), certificates.of(site))).collect(),
        users: config.users.clone(),
        trusted_proxies: config.trusted_proxies.as_slice().into(),
        error_pages: config.error_pages.clone(),
        certificates: certificates.watched.into(),
    }
}

/// TLS configurations: one for each site with certificates of its own, one for each preset of all others.
struct Certificates<'a> {
    tls: Option<&'a tls::Shared>,
    store: Option<Arc<Watched>>,
    shared: HashMap<&'static str, Arc<rustls::ServerConfig>>,
    watched: Vec<Arc<Watched>>,
}

impl<'a> Certificates<'a> {
    fn new(store: Option<&tls::store::Store>, tls: Option<&'a tls::Shared>) -> Self {
        let store = store.filter(|_| tls.is_some()).map(|store| Watched::store(store.paths.clone(), store.certificates.clone()));
        Self { tls, watched: store.iter().cloned().collect(), store, shared: HashMap::new() }
    }

    fn of(&mut self, site: &config::Site) -> Option<Tls> {
        let (tls, chosen) = self.tls.zip(site.tls.as_ref())?;
        match &chosen.certificates {
            SiteCertificates::Own(own) => {
                let watched = Watched::own(own.clone());
                self.watched.push(watched.clone());
                Some(Tls { config: tls.config_for(watched.clone(), chosen.preset), certificates: watched })
            }
            SiteCertificates::Store => {
                let store = self.store.clone()?;
                let config = self.shared.entry(chosen.preset.as_str()).or_insert_with(|| tls.config_for(store.clone(), chosen.preset));
                Some(Tls { config: config.clone(), certificates: store })
            }
        }
    }
}

/// Compiles the groups but for those that are `kept`; the health of backends that stay is carried over.
pub fn compile_groups(groups: &[config::Group], carry: &Carry<'_>, kept: impl Fn(usize) -> Option<Arc<Group>>) -> Arc<[Arc<Group>]> {
    let backends: Vec<Vec<config::Backend>> = groups.iter().map(config::Group::backends).collect();
    let compile = |(index, (group, backends)): (usize, (&config::Group, &Vec<_>))| {
        kept(index).unwrap_or_else(|| Arc::new(compile_group(group, backends, carry)))
    };
    let compiled = groups.iter().zip(&backends).enumerate().map(compile).collect();
    carry.health.retain(&checks_in_use(groups, &backends));
    compiled
}

fn compile_group(group: &config::Group, backends: &[config::Backend], carry: &Carry<'_>) -> Group {
    let (registry, states) = carry.health.watch(group.health_check.as_ref(), backends);
    let stickiness = group.sticky.as_ref().map(|sticky| {
        let names = backends.iter().map(|backend| backend.name.as_str());
        Stickiness::new(&sticky.cookie, sticky.max_age.map(|age| age.as_secs()), carry.secret, &group.name, names)
    });
    let backends = backends.iter().zip(states).map(|(backend, state)| Backend {
        hand: Hand::new((carry.standing)(&group.name, &backend.name)),
        name: backend.name.clone(),
        host: backend.host.clone(),
        shown: backend.address.to_string(),
        address: backend.address.clone(),
        weight: backend.weight,
        backup: backend.backup,
        probed_as: ProbedAs(probed_as(group.health_check.as_ref(), &backend.host).to_owned()),
        state,
    });
    let backends: Vec<Backend> = backends.collect();
    let settings = Settings {
        name: group.name.clone(),
        timeouts: timeouts(group.timeouts),
        stickiness,
        registry,
        connect: Connect::new(&group.name, group.tls.as_ref(), group.protocol, group.source),
        host: group.host.clone(),
    };
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

/// The addresses that each kind of check is for.
fn checks_in_use(groups: &[config::Group], backends: &[Vec<config::Backend>]) -> HashMap<Option<HealthCheck>, Vec<(Address, String)>> {
    let mut in_use: HashMap<_, Vec<_>> = HashMap::new();
    for (group, backends) in groups.iter().zip(backends) {
        in_use
            .entry(group.health_check.clone())
            .or_default()
            .extend(backends.iter().map(|backend| (backend.address.clone(), backend.host.clone())));
    }
    in_use
}
