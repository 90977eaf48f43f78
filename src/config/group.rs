//! A backend group, checked: its members, how they are spoken to and how their health is found out.

use std::collections::HashSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method};

use super::origin::Origin;
use crate::tls::client::ClientTls;

/// A set of backends that can stand in for each other.
#[derive(Clone, Debug)]
pub struct Group {
    pub name: String,
    pub origin: Origin,
    /// The group of a site's own `backends`; only that site refers to it.
    pub of_site: bool,
    pub members: Vec<Member>,
    pub sticky: Option<Sticky>,
    pub health_check: Option<HealthCheck>,
    pub timeouts: Timeouts,
    pub tls: Option<BackendTls>,
    pub protocol: Protocol,
    pub host: HostSent,
    /// Where connections come from.
    pub source: Option<IpAddr>,
}

/// A backend as written: one address, or a name that stands for several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub name: Option<String>,
    /// As written: what the backend calls itself in redirects.
    pub host: String,
    /// `host` is a name, resolved again as its time to live says.
    pub resolved: bool,
    /// Sorted; empty while a name has never resolved.
    pub addresses: Vec<Address>,
    pub weight: usize,
    pub backup: bool,
}

/// Where a backend listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    Inet(SocketAddr),
    Unix(PathBuf),
}

/// One server that requests are sent to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    pub name: String,
    /// As written: what the backend calls itself in redirects.
    pub host: String,
    pub address: Address,
    /// Its share of the requests, 1 to 256.
    pub weight: usize,
    /// Used only while no other backend is eligible.
    pub backup: bool,
}

/// TLS to backends.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BackendTls {
    /// `None`: the host part of each backend's address.
    pub server_name: Option<String>,
    pub client: Arc<ClientTls>,
}

/// What is spoken with backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    Http1,
    /// Over TLS by ALPN, in the clear with prior knowledge.
    Http2,
    /// The backend chooses by ALPN.
    Auto,
}

/// The `Host` that backends see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostSent {
    /// The client's.
    Keep,
    /// The backend's address as written.
    Backend,
    Fixed(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sticky {
    pub cookie: String,
    /// `None`: the cookie ends with the browser's session.
    pub max_age: Option<Duration>,
}

/// How the health of a backend is found out.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HealthCheck {
    pub kind: CheckKind,
    /// Another port than that of the backend.
    pub port: Option<u16>,
    pub tls: Option<BackendTls>,
    pub protocol: Protocol,
    pub source: Option<IpAddr>,
    pub interval: Duration,
    pub timeout: Duration,
    /// The longest wait before a probe.
    pub jitter: Duration,
    /// Good probes in a row that make a backend healthy.
    pub rise: usize,
    /// Bad probes in a row that make a backend unhealthy.
    pub fall: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum CheckKind {
    /// A connection is enough.
    Tcp,
    Http(Arc<HttpCheck>),
}

/// An HTTP request that must be answered well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpCheck {
    pub method: Method,
    pub path: String,
    /// `None`: the backend's own address.
    pub host: Option<String>,
    pub headers: HeaderMap,
    /// Ranges of good statuses, both ends included.
    pub statuses: Vec<(u16, u16)>,
    /// What the body must have in it.
    pub body: Option<String>,
    pub body_is_secret: bool,
}

/// Timeouts towards the backend, each for one operation; `None` leaves the choice to the next wider scope.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    pub connect: Option<Duration>,
    pub read: Option<Duration>,
    pub send: Option<Duration>,
    pub websocket_idle: Option<Duration>,
}

// === impl HealthCheck ===

impl HealthCheck {
    /// A connection alone, made the way of requests; the first probe decides.
    pub fn tcp(tls: Option<BackendTls>, protocol: Protocol, source: Option<IpAddr>, timeout: Duration) -> HealthCheck {
        HealthCheck {
            kind: CheckKind::Tcp,
            port: None,
            tls,
            protocol,
            source,
            interval: timeout,
            timeout,
            jitter: Duration::ZERO,
            rise: 1,
            fall: 1,
        }
    }
}

// === impl Group ===

impl Group {
    /// A connection as requests make it, as a check.
    pub fn tcp_check(&self, timeout: Duration) -> HealthCheck {
        HealthCheck::tcp(self.tls.clone(), self.protocol, self.source, timeout)
    }

    /// The backends that the members stand for now. An address that two members share is the first one's.
    pub fn backends(&self) -> Vec<Backend> {
        let mut seen = HashSet::new();
        let mut backends = Vec::new();
        for member in &self.members {
            for address in &member.addresses {
                if !seen.insert(address) {
                    continue;
                }
                let name = match &member.name {
                    // A name's addresses may become more or fewer: those that stay keep their names, and so their clients.
                    Some(name) if member.resolved => format!("{name}-{}", address.host()),
                    Some(name) => name.clone(),
                    None if member.resolved => address.to_string(),
                    None => member.host.clone(),
                };
                let Member { host, weight, backup, .. } = member.clone();
                backends.push(Backend { name, host, address: address.clone(), weight, backup });
            }
        }
        backends
    }
}

impl Member {
    /// The name that is resolved, without its port.
    pub fn host_name(&self) -> Option<(&str, u16)> {
        let (name, port) = self.host.rsplit_once(':').filter(|_| self.resolved)?;
        Some((name, port.parse().ok()?))
    }
}

// === impl Address ===

impl Address {
    /// The address without its port, or the path of the socket.
    pub fn host(&self) -> String {
        match self {
            Address::Inet(address) => address.ip().to_string(),
            Address::Unix(path) => path.display().to_string(),
        }
    }

    pub fn as_inet(&self) -> Option<SocketAddr> {
        match self {
            Address::Inet(address) => Some(*address),
            Address::Unix(_) => None,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Inet(address) => address.fmt(f),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

// === impl HttpCheck ===

impl std::hash::Hash for HttpCheck {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        // The headers are compared, which is enough: kinds of checks are few.
        (&self.method, &self.path, &self.host, &self.statuses, &self.body).hash(state);
    }
}

// === impl Timeouts ===

impl Timeouts {
    /// These timeouts, with `wider` where they leave the choice.
    #[must_use]
    pub fn or(self, wider: Timeouts) -> Timeouts {
        Timeouts {
            connect: self.connect.or(wider.connect),
            read: self.read.or(wider.read),
            send: self.send.or(wider.send),
            websocket_idle: self.websocket_idle.or(wider.websocket_idle),
        }
    }
}
