//! The compiled configuration: immutable, and all that one request sees.

mod compile;
pub mod current;

use std::net::IpAddr;
use std::sync::Arc;

use http::HeaderValue;
use ipnet::IpNet;
use rustls::ServerConfig;

use crate::balance::Group;
use crate::config::{self, ErrorPages, GroupId, Route, SiteCertificates, SiteTls, UnknownHost};
use crate::routing::host::HostTable;
use crate::routing::path_table::{PathPattern, PathTable};
use crate::routing::users::Users;
use crate::tls::store::Store;
use crate::tls::watch::Watched;

pub use compile::{Carry, compile, compile_groups, compile_rules};

/// Everything that decides about a request. Published as a whole and never changed.
#[derive(Clone)]
pub struct Snapshot {
    /// Counts the configurations that were applied, from 1.
    pub generation: u64,
    pub rules: Arc<Rules>,
    pub groups: Arc<[Arc<Group>]>,
    /// The checked configuration that this was compiled from. For what the next one may fall back to, ask `previous`.
    pub checked: Arc<config::Previous>,
}

/// What `decide` asks: everything but the backends. A copy that differs in one part shares all others.
#[derive(Clone, Default)]
pub struct Rules {
    pub hosts: Arc<HostTable>,
    pub sites: Arc<[Site]>,
    pub users: Users,
    pub unknown_host: Unknown,
    pub trusted_proxies: Arc<[IpNet]>,
    /// For answers that belong to no site.
    pub error_pages: Arc<ErrorPages>,
    /// The certificates of all sites.
    pub certificates: Arc<[Arc<Watched>]>,
}

/// What becomes of a request for a host that no site has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unknown {
    #[default]
    Drop,
    NotFound,
    Site(u32),
}

/// A site with what is found by index in it.
#[derive(Clone)]
pub struct Site {
    pub config: Arc<config::Site>,
    pub tls: Option<Tls>,
    pub hsts: Option<HeaderValue>,
    pub paths: Arc<PathTable>,
}

/// TLS of a site, with the certificates that it chooses from as they are now.
#[derive(Clone)]
pub struct Tls {
    pub config: Arc<ServerConfig>,
    pub certificates: Arc<Watched>,
}

impl Snapshot {
    /// What the next configuration may fall back to: what was checked, with the certificates that were renewed since.
    pub fn previous(&self) -> config::Previous {
        let renewed = |(site, compiled): (&Arc<config::Site>, &Site)| {
            let Some((SiteCertificates::Own(own), tls)) = site.tls.as_ref().map(|tls| &tls.certificates).zip(compiled.tls.as_ref()) else {
                return site.clone();
            };
            let now = tls.certificates.certificates();
            if own.len() == now.len() && own.iter().zip(&now).all(|(own, now)| Arc::ptr_eq(own, now)) {
                return site.clone();
            }
            let preset = site.tls.as_ref().map(|tls| tls.preset).unwrap_or_default();
            let tls = SiteTls { preset, certificates: SiteCertificates::Own(now) };
            Arc::new(config::Site { tls: Some(tls), ..config::Site::clone(site) })
        };
        let config::Previous { sites, groups, store } = self.checked.as_ref();
        let store = store.as_ref().map(|store| {
            let watched = self.rules.certificates.iter().find(|watched| !watched.stands_for_all());
            let certificates = watched.map_or_else(|| store.certificates.clone(), |watched| watched.certificates());
            Arc::new(Store { paths: store.paths.clone(), certificates })
        });
        config::Previous { sites: sites.iter().zip(self.rules.sites.iter()).map(renewed).collect(), groups: groups.clone(), store }
    }

    pub fn site(&self, site: u32) -> Option<&Site> {
        self.rules.site(site)
    }

    /// How many sites answer with more than 503.
    pub fn good_sites(&self) -> usize {
        self.rules.sites.iter().filter(|site| !site.config.routes.is_empty()).count()
    }

    pub fn route(&self, site: u32, route: u32) -> Option<&Route> {
        self.site(site)?.config.routes.get(route as usize)
    }

    pub fn group(&self, group: GroupId) -> Option<&Group> {
        self.groups.get(group.0 as usize).map(AsRef::as_ref)
    }
}

impl Rules {
    pub fn site(&self, site: u32) -> Option<&Site> {
        self.sites.get(site as usize)
    }

    /// Whether what this address says about its clients is believed.
    pub fn trusts(&self, address: IpAddr) -> bool {
        // On a dual-stack socket an IPv4 client has an IPv6 address.
        let address = address.to_canonical();
        self.trusted_proxies.iter().any(|net| net.contains(&address))
    }

    /// The site whose certificate a handshake for a server name on a listener is answered with.
    pub fn site_for_sni(&self, sni: &str, listener: &str) -> Option<&Site> {
        let name = crate::routing::host::normalize_host(sni);
        let found = name.as_deref().and_then(|name| self.hosts.find(name)).and_then(|(site, _)| self.site(site));
        let site = match (found.filter(|site| site.answers_on(listener)), self.unknown_host) {
            (Some(site), _) => site,
            // The default site also answers what no name leads to.
            (None, Unknown::Site(site)) => self.site(site).filter(|site| site.answers_on(listener))?,
            (None, Unknown::Drop | Unknown::NotFound) => return None,
        };
        site.config.tls.is_some().then_some(site)
    }

    /// The TLS configuration for a server name of a handshake on a listener.
    pub fn tls_config(&self, sni: &str, listener: &str) -> Option<Arc<ServerConfig>> {
        self.site_for_sni(sni, listener)?.tls.as_ref().map(|tls| tls.config.clone())
    }
}

impl Site {
    /// Compiles the routes of a site: the ones that ask for more come first.
    pub fn new(config: Arc<config::Site>, tls: Option<Tls>) -> Self {
        let mut order: Vec<u32> = (0..).zip(&config.routes).map(|(index, _)| index).collect();
        let route = |index: u32| config.routes.get(index as usize);
        let specificity = |index: u32| route(index).map(|route| route.conditions.specificity());
        // Regexes keep the order of the file, but for those of the same text.
        let first_of_text = |index: u32| {
            let regex = |index: u32| match &route(index)?.pattern {
                PathPattern::Regex(regex) => Some(regex.as_str()),
                PathPattern::Prefix(_) | PathPattern::Exact { .. } => None,
            };
            let text = regex(index)?;
            (0..index).find(|other| regex(*other) == Some(text)).or(Some(index))
        };
        order.sort_by_key(|index| (first_of_text(*index), std::cmp::Reverse(specificity(*index))));
        let mut paths = PathTable::default();
        for index in order {
            if let Some(route) = route(index) {
                paths.insert(&route.pattern, index);
            }
        }
        let hsts = config.hsts.and_then(|hsts| HeaderValue::from_str(&hsts.value()).ok());
        Self { tls, hsts, paths: Arc::new(paths), config }
    }

    /// Whether the site is there for clients of this listener.
    pub fn answers_on(&self, listener: &str) -> bool {
        self.config.listeners.is_empty() || self.config.listeners.iter().any(|own| own == listener)
    }
}

impl From<(&UnknownHost, &[Arc<config::Site>])> for Unknown {
    fn from((choice, sites): (&UnknownHost, &[Arc<config::Site>])) -> Self {
        match choice {
            UnknownHost::Drop => Unknown::Drop,
            UnknownHost::NotFound => Unknown::NotFound,
            UnknownHost::Site(name) => {
                let site = sites.iter().position(|site| site.name == *name).and_then(|index| u32::try_from(index).ok());
                site.map_or(Unknown::Drop, Unknown::Site)
            }
        }
    }
}
