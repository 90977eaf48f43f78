//! A site, checked: domains, certificates, routes, and what is said when it answers itself.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use ipnet::IpNet;

use super::GroupId;
use super::group::Timeouts;
use super::origin::Origin;
use crate::rewrite::headers::HeaderEdit;
use crate::rewrite::template::Template;
use crate::routing::conditions::Conditions;
use crate::routing::host::HostPattern;
use crate::routing::path_table::PathPattern;
use crate::tls::Preset;
use crate::tls::store::Loaded;

/// One configuration file: domains and their routes.
#[derive(Clone, Debug)]
pub struct Site {
    /// The file: what a site is known by from one load to the next.
    pub path: PathBuf,
    pub origin: Origin,
    pub name: String,
    pub domains: Vec<HostPattern>,
    /// The listeners that it answers on, by name; empty: all.
    pub listeners: Vec<String>,
    pub tls: Option<SiteTls>,
    pub hsts: Option<Hsts>,
    pub https_redirect: Option<HttpsRedirect>,
    pub maintenance: Option<Maintenance>,
    pub error_pages: Arc<ErrorPages>,
    /// Edits of the site's own answers; those of routes are in the routes.
    pub response_headers: Arc<[HeaderEdit]>,
    /// Headers that are secrets: clients cannot send them.
    pub secret_headers: Vec<http::HeaderName>,
    /// Invariant: empty exactly when the site is broken; it then answers 503.
    pub routes: Vec<Route>,
    pub tests: Arc<[Test]>,
    /// Groups of which one is in use.
    pub switch: Option<Switch>,
    /// The SHA-256 of the file's text: whether the site has changed.
    pub digest: [u8; 32],
}

/// Backend groups of which one gets the site's requests: blue and green.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Switch {
    /// By the name that the site gives them.
    pub groups: Vec<(String, GroupId)>,
    pub active: String,
}

/// TLS towards clients.
#[derive(Clone, Debug)]
pub struct SiteTls {
    pub preset: Preset,
    pub certificates: SiteCertificates,
}

#[derive(Clone, Debug)]
pub enum SiteCertificates {
    /// Files that the site names.
    Own(Vec<Arc<Loaded>>),
    /// Those of the main file, by the name that is asked for.
    Store,
}

/// Plain requests are redirected to HTTPS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpsRedirect {
    pub port: u16,
    /// The configuration names the port; otherwise it is told only to clients that named one themselves, since there may be
    /// another machine's port in front of ours.
    pub always: bool,
}

/// `Strict-Transport-Security` (RFC 6797 section 6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hsts {
    pub max_age: Duration,
    pub include_subdomains: bool,
    pub preload: bool,
}

/// A site is closed for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Maintenance {
    pub allow: Vec<IpNet>,
    pub retry_after: Duration,
    pub page: Option<Arc<str>>,
    pub page_file: Option<PathBuf>,
}

/// What an error looks like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ErrorPages {
    /// By what they are for: `404`, `5xx` or `default`.
    pub pages: Vec<(String, Arc<str>)>,
    /// The files, for those who want to see them.
    pub files: Vec<(String, PathBuf)>,
    /// The reason of the access log is on the page.
    pub details: bool,
}

#[derive(Clone, Debug)]
pub struct Route {
    /// The path as written: what logs call the route unless it has a name.
    pub name: String,
    pub origin: Origin,
    pub pattern: PathPattern,
    pub conditions: Conditions,
    pub target: Target,
    /// The target is whichever group of the site's switch is active.
    pub to_active: bool,
    /// How many leading segments of the path the backend does not see.
    pub strip: Option<usize>,
    pub timeouts: Timeouts,
    /// Bytes of a request's body; `None`: any number.
    pub max_body: Option<u64>,
    /// Of all scopes, from the widest to this route.
    pub request_headers: Arc<[HeaderEdit]>,
    pub response_headers: Arc<[HeaderEdit]>,
}

/// Where a route sends its requests.
#[derive(Clone, Debug)]
pub enum Target {
    Group(GroupId),
    Users(UsersRule),
    Redirect(Redirect),
    Respond(Arc<Respond>),
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

#[derive(Clone, Debug)]
pub struct Redirect {
    pub to: Template,
    /// `None`: 302 for GET and HEAD, 307 otherwise.
    pub status: Option<u16>,
}

/// An answer without a backend.
#[derive(Clone, Debug)]
pub struct Respond {
    pub status: StatusCode,
    pub headers: Vec<HeaderEdit>,
    pub body: RespondBody,
}

#[derive(Clone, Debug)]
pub enum RespondBody {
    Empty,
    Text(Template),
    /// A file's content with its type.
    File {
        path: PathBuf,
        content: Bytes,
        content_type: &'static str,
    },
}

/// A request with what must become of it.
#[derive(Clone, Debug)]
pub struct Test {
    /// Where it stands, for what is said when it fails.
    pub place: super::diagnostic::Place,
    pub request: TestRequest,
    pub expected: Expected,
}

#[derive(Clone, Debug)]
pub struct TestRequest {
    pub method: http::Method,
    pub secure: bool,
    pub host: String,
    /// Path and query.
    pub target: String,
    pub headers: http::HeaderMap,
    pub from: IpAddr,
}

/// What a test expects; `None`: anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    pub group: Option<String>,
    pub route: Option<String>,
    pub user: Option<String>,
    pub app: Option<String>,
    pub path: Option<String>,
    pub status: Option<u16>,
    pub location: Option<String>,
}

impl Site {
    /// A site that has nothing yet: no domains, no routes.
    pub fn new(path: &Path, name: String) -> Self {
        Self {
            path: path.to_owned(),
            origin: Origin { file: path.into(), line: 1 },
            name,
            domains: Vec::new(),
            listeners: Vec::new(),
            tls: None,
            hsts: None,
            https_redirect: None,
            maintenance: None,
            error_pages: Arc::default(),
            response_headers: Arc::new([]),
            secret_headers: Vec::new(),
            routes: Vec::new(),
            tests: Arc::new([]),
            switch: None,
            digest: [0; 32],
        }
    }

    /// Sends what goes to the active group to another one of the switch. `false`: the switch has none of that name.
    pub fn activate(&mut self, name: &str) -> bool {
        let Some(switch) = &mut self.switch else { return false };
        let Some((_, group)) = switch.groups.iter().find(|(other, _)| other == name) else { return false };
        name.clone_into(&mut switch.active);
        for route in self.routes.iter_mut().filter(|route| route.to_active) {
            route.target = Target::Group(*group);
        }
        true
    }

    /// Puts the number of the site's own group where only its place was kept.
    pub(super) fn give_own_group(&mut self, own: GroupId) {
        for route in &mut self.routes {
            if let Target::Group(id @ GroupId::OWN) = &mut route.target {
                *id = own;
            }
        }
    }
}

impl Route {
    /// A route without conditions or edits.
    pub fn new(name: String, origin: Origin, pattern: PathPattern, target: Target) -> Self {
        Self {
            name,
            origin,
            pattern,
            conditions: Conditions::default(),
            target,
            to_active: false,
            strip: None,
            timeouts: Timeouts::default(),
            max_body: None,
            request_headers: Arc::new([]),
            response_headers: Arc::new([]),
        }
    }
}

impl TestRequest {
    /// An address that belongs to nobody (RFC 5737).
    pub const SOMEBODY: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
}

impl Hsts {
    /// The value of the header.
    pub fn value(&self) -> String {
        let subdomains = if self.include_subdomains { "; includeSubDomains" } else { "" };
        let preload = if self.preload { "; preload" } else { "" };
        format!("max-age={}{subdomains}{preload}", self.max_age.as_secs())
    }
}

impl ErrorPages {
    /// The page for a status: its own, that of its class, or the one for everything.
    pub fn page(&self, status: u16) -> Option<&str> {
        let find = |wanted: &str| self.pages.iter().find(|(key, _)| key == wanted).map(|(_, page)| page.as_ref());
        if self.pages.is_empty() {
            return None;
        }
        find(&status.to_string()).or_else(|| find(&format!("{}xx", status / 100))).or_else(|| find("default"))
    }
}
