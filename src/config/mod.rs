//! From files to a checked configuration, or to a report of everything that is wrong with them.
//!
//! Text is parsed into a tree with places (`tree`), read as it is written (`raw`), and checked into the types of this
//! module, in which names are resolved, defaults are filled in and nothing needs to be checked again. A mistake in the
//! main file, its groups or users refuses all of it; a mistake in a site isolates that site.

pub mod check;
pub mod diagnostic;
pub mod effective;
pub mod files;
mod group;
pub mod origin;
pub mod places;
mod raw;
mod read;
mod site;
mod source;
mod tree;
pub mod units;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::routing::users::Users;
use crate::tls::store::Store;
use diagnostic::Report;
use files::Files;

pub use check::digest_of;
pub use group::{Address, Backend, BackendTls, CheckKind, Group, HealthCheck, HostSent, HttpCheck, Member, Protocol, Sticky, Timeouts};
pub use raw::schema::{Kind as FileKind, reference, schema};
pub use site::{
    ErrorPages, Expected, Hsts, HttpsRedirect, Maintenance, Redirect, Respond, RespondBody, Route, Site, SiteCertificates, SiteTls, Switch,
    Target, Test, TestRequest, Unknown, UsersRule,
};
pub use source::read_limited_bytes as read_file;

/// A checked configuration.
#[derive(Debug)]
pub struct Config {
    pub listeners: Vec<Listener>,
    pub unknown_host: UnknownHost,
    pub trusted_proxies: Vec<IpNet>,
    /// Who is asked for the names of backends; empty: the system's servers.
    pub name_servers: Vec<SocketAddr>,
    /// Worker threads.
    pub threads: usize,
    /// The OS user to become once the listeners are bound.
    pub run_as: Option<String>,
    pub state_dir: PathBuf,
    pub sticky_secret: Option<Secret>,
    pub access_log: AccessLog,
    /// How long requests may take to finish when the process stops.
    pub drain_timeout: Duration,
    /// How long a process that stops goes on accepting, so that others see first that it is not ready.
    pub drain_delay: Duration,
    /// Groups of the main file, then those of sites; `GroupId`s count through them.
    pub groups: Vec<Group>,
    pub sites: Vec<Arc<Site>>,
    pub users: Users,
    /// Where the users are from.
    pub users_files: Vec<PathBuf>,
    /// The patterns that sites are found by, and those of users files.
    pub site_patterns: Vec<PathBuf>,
    pub users_patterns: Vec<PathBuf>,
    pub admin: Admin,
    /// A change of the files is a reload.
    pub watch: bool,
    /// Where the process writes its number.
    pub pid_file: Option<PathBuf>,
    /// The certificates that sites with `tls: true` choose from.
    pub store: Option<Arc<Store>>,
    /// The pages of answers that belong to no site.
    pub error_pages: Arc<ErrorPages>,
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
    /// What sites call it.
    pub name: String,
    pub address: SocketAddr,
    pub tls: bool,
    /// The address may come later: a virtual one that another machine has now.
    pub freebind: bool,
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

/// How the process is asked and told things while it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// `None`: there is none.
    pub socket: Option<PathBuf>,
    /// The configuration names the socket: it must be there.
    pub socket_is_given: bool,
    /// The OS group that may use it; `None`: the process's own.
    pub group: Option<String>,
    /// Where `/livez`, `/readyz` and `/metrics` are answered in plain HTTP.
    pub address: Option<SocketAddr>,
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

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
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
    pub sites: Vec<Arc<Site>>,
    pub groups: Vec<Group>,
    pub store: Option<Arc<Store>>,
}

/// Reads and checks the configuration whose main file is `path`. Names of backends are resolved, nothing is written.
pub fn load(path: &Path, files: &Files, previous: &Previous) -> Loaded {
    let mut report = Report::default();
    let checked = check::check(path, files, previous, &mut report);
    match checked {
        Some((config, broken_sites)) => Loaded { config: Some(config), broken_sites, report },
        None => Loaded { config: None, broken_sites: Vec::new(), report },
    }
}
