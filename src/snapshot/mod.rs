//! The compiled configuration: immutable, and all that one request sees.

mod compile;
pub mod current;

use std::net::IpAddr;
use std::sync::Arc;

use http::HeaderValue;
use ipnet::IpNet;
use rustls::ServerConfig;

use crate::balance::Group;
use crate::config::{self, GroupId, UnknownHost};
use crate::routing::host::HostTable;
use crate::routing::path_table::{PathPattern, PathTable};
use crate::routing::users::UserTable;

pub use compile::{Carry, compile};

/// Everything that decides about a request. Published as a whole and never changed.
pub struct Snapshot {
    /// Counts the configurations that were applied, from 1.
    pub generation: u64,
    pub hosts: HostTable,
    pub sites: Vec<Site>,
    pub groups: Vec<Group>,
    pub users: UserTable,
    pub unknown_host: Unknown,
    trusted_proxies: Vec<IpNet>,
    /// What the next configuration may fall back to.
    pub checked: config::Previous,
}

/// What becomes of a request for a host that no site has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    Drop,
    NotFound,
    Site(u32),
}

pub struct Site {
    pub name: String,
    pub tls: Option<Arc<ServerConfig>>,
    pub hsts: Option<HeaderValue>,
    pub https_redirect: Option<u16>,
    /// Empty: the site is broken and answers 503.
    pub routes: Vec<Route>,
    pub paths: PathTable,
}

pub struct Route {
    pub name: String,
    pub pattern: PathPattern,
    pub target: config::Target,
    pub strip: Option<usize>,
    pub timeouts: config::Timeouts,
}

impl Snapshot {
    /// A snapshot of parts that are compiled already: for benchmarks of decisions on large tables.
    pub fn from_parts(hosts: HostTable, sites: Vec<Site>, groups: Vec<Group>, users: UserTable) -> Self {
        Self {
            generation: 1,
            hosts,
            sites,
            groups,
            users,
            unknown_host: Unknown::Drop,
            trusted_proxies: Vec::new(),
            checked: config::Previous::default(),
        }
    }

    pub fn site(&self, site: u32) -> Option<&Site> {
        self.sites.get(site as usize)
    }

    pub fn route(&self, site: u32, route: u32) -> Option<&Route> {
        self.site(site)?.routes.get(route as usize)
    }

    pub fn group(&self, group: GroupId) -> Option<&Group> {
        self.groups.get(group.0 as usize)
    }

    /// Whether what this address says about its clients is believed.
    pub fn trusts(&self, address: IpAddr) -> bool {
        // On a dual-stack socket an IPv4 client has an IPv6 address.
        let address = address.to_canonical();
        self.trusted_proxies.iter().any(|net| net.contains(&address))
    }

    /// The TLS configuration for a server name of a handshake.
    pub fn tls_config(&self, sni: &str) -> Option<Arc<ServerConfig>> {
        let name = crate::routing::host::normalize_host(sni)?;
        let (site, _) = self.hosts.find(&name)?;
        self.site(site)?.tls.clone()
    }
}

impl From<(&UnknownHost, &[config::Site])> for Unknown {
    fn from((choice, sites): (&UnknownHost, &[config::Site])) -> Self {
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
