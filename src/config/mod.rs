//! From files to a checked configuration, or to a report of everything that is wrong with them.
//!
//! Text is parsed into a tree with places (`tree`), read as it is written (`raw`), and checked into the types of this
//! module, in which names are resolved, defaults are filled in and nothing needs to be checked again. A mistake in the
//! main file, its groups or users refuses all of it; a mistake in a site isolates that site.

pub mod check;
pub mod diagnostic;
mod raw;
mod read;
mod source;
mod tree;
pub mod units;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use rustls::sign::CertifiedKey;

use crate::routing::host::HostPattern;
use crate::routing::path_table::PathPattern;
use crate::routing::users::UserTable;
use diagnostic::Report;

/// A checked configuration.
#[derive(Debug)]
pub struct Config {
    pub listeners: Vec<Listener>,
    pub unknown_host: UnknownHost,
    pub trusted_proxies: Vec<IpNet>,
    /// Worker threads.
    pub threads: usize,
    /// The OS user to become once the listeners are bound.
    pub run_as: Option<String>,
    pub state_dir: PathBuf,
    pub sticky_secret: Option<Secret>,
    pub access_log: AccessLog,
    /// How long requests may take to finish when the process stops.
    pub drain_timeout: Duration,
    /// Groups of the main file, then those of sites; `GroupId`s count through them.
    pub groups: Vec<Group>,
    pub sites: Vec<Site>,
    pub users: UserTable,
}

/// The number of a group in `Config::groups`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GroupId(pub u32);

impl GroupId {
    /// The group of a site's own `backends`, until its number is known.
    const OWN: GroupId = GroupId(u32::MAX);
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    pub address: SocketAddr,
    pub tls: bool,
    /// How long a connection may stay without a request.
    pub keep_alive: Duration,
    /// How long the whole head of a request (and the TLS handshake) may take.
    pub header_deadline: Duration,
    /// How long a client may take to accept a piece of an answer; it is then gone, or means harm.
    pub send_timeout: Duration,
    /// Bytes of a request's head.
    pub max_header_size: usize,
    pub max_connections: usize,
    /// Requests on one connection before it is closed.
    pub max_requests: u64,
}

/// What happens to a request for a host that no site has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnknownHost {
    /// The connection is closed without an answer.
    Drop,
    NotFound,
    /// The site of that name answers.
    Site(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessLog {
    pub format: LogFormat,
    pub target: LogTarget,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// The combined format of nginx and Apache, followed by what portcullis decided.
    Combined,
    Json,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogTarget {
    Off,
    Stdout,
    File(PathBuf),
}

/// A set of backends that can stand in for each other.
#[derive(Clone, Debug)]
pub struct Group {
    pub name: String,
    /// The group of a site's own `backends`; only that site refers to it.
    pub of_site: bool,
    pub backends: Vec<Backend>,
    pub sticky: Option<Sticky>,
    pub health_check: Option<HealthCheck>,
    pub timeouts: Timeouts,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    pub name: String,
    /// As written: what the backend calls itself in redirects.
    pub host: String,
    pub address: SocketAddr,
    /// Its share of the requests, 1 to 256.
    pub weight: usize,
    /// Used only while no other backend is eligible.
    pub backup: bool,
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
    pub interval: Duration,
    pub timeout: Duration,
    /// Good probes in a row that make a backend healthy.
    pub rise: usize,
    /// Bad probes in a row that make a backend unhealthy.
    pub fall: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum CheckKind {
    Tcp,
    /// A GET that must be answered with 2xx or 3xx.
    Http {
        path: String,
        host: Option<String>,
    },
}

/// Timeouts towards the backend, each for one operation; `None` leaves the choice to the next wider scope.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    pub connect: Option<Duration>,
    pub read: Option<Duration>,
    pub send: Option<Duration>,
    pub websocket_idle: Option<Duration>,
}

/// One configuration file: domains and their routes.
#[derive(Clone, Debug)]
pub struct Site {
    /// The file: what a site is known by from one load to the next.
    pub path: PathBuf,
    pub name: String,
    pub domains: Vec<HostPattern>,
    pub certificate: Option<Arc<CertifiedKey>>,
    /// The value of `Strict-Transport-Security`.
    pub hsts: Option<String>,
    /// The port that plain requests are redirected to.
    pub https_redirect: Option<u16>,
    /// Invariant: empty exactly when the site is broken; it then answers 503.
    pub routes: Vec<Route>,
}

#[derive(Clone, Debug)]
pub struct Route {
    /// The path as written: what logs call the route unless it has a name.
    pub name: String,
    pub pattern: PathPattern,
    pub target: Target,
    /// How many leading segments of the path the backend does not see.
    pub strip: Option<usize>,
    pub timeouts: Timeouts,
}

/// Where a route sends its requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Group(GroupId),
    Users(UsersRule),
}

/// The group is looked up in the users table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsersRule {
    /// The app, unless the path or host has it.
    pub app: Option<String>,
    pub unknown_user: Unknown,
    pub unknown_app: Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// The next route that matches answers.
    Next,
    NotFound,
}

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Site {
    /// Puts the number of the site's own group where only its place was kept.
    fn give_own_group(&mut self, own: GroupId) {
        for route in &mut self.routes {
            if route.target == Target::Group(GroupId::OWN) {
                route.target = Target::Group(own);
            }
        }
    }
}

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

/// What `load` made of the files.
#[derive(Debug)]
pub struct Loaded {
    /// `None`: a mistake outside the sites refuses all of it.
    pub config: Option<Config>,
    /// Names of sites that are left out because of their mistakes.
    pub broken_sites: Vec<String>,
    pub report: Report,
}

/// The configuration in force, as far as a new one refers to it: sites keep their domains against newcomers and their
/// last good version against mistakes, names of backends keep their addresses when a name server is silent.
#[derive(Debug, Default)]
pub struct Previous {
    pub sites: Vec<Site>,
    pub groups: Vec<Group>,
}

/// Reads and checks the configuration whose main file is `path`. Names of backends are resolved, nothing is written.
pub fn load(path: &Path, previous: &Previous) -> Loaded {
    let mut report = Report::default();
    let checked = check::check(path, previous, &mut report);
    match checked {
        Some((config, broken_sites)) => Loaded { config: Some(config), broken_sites, report },
        None => Loaded { config: None, broken_sites: Vec::new(), report },
    }
}
