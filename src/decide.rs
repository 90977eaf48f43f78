//! The whole policy as one pure function: a request and a snapshot in, a verdict out.
//!
//! No socket, no clock, no lock: the data path, and whatever explains or tests it, call the same `decide`.

use std::borrow::Cow;

use crate::config::{GroupId, Target, Unknown as Otherwise, UsersRule};
use crate::routing::host::{Captures, normalize_host, port_of};
use crate::routing::path::{self, BadPath, leading};
use crate::routing::users::Placed;
use crate::snapshot::{Route, Snapshot, Unknown};

/// The request as the decision sees it: borrowed, and free of any framework.
#[derive(Clone, Copy, Debug)]
pub struct RequestView<'a> {
    pub method: &'a str,
    /// As the client wrote it, with its port.
    pub host: &'a str,
    /// The raw path, without the query.
    pub path: &'a [u8],
    pub query: Option<&'a [u8]>,
    /// The target named scheme and host (RFC 9112 section 3.2.2); backends get the path alone.
    pub absolute: bool,
    /// The client's connection is encrypted, here or at a trusted proxy.
    pub secure: bool,
}

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Forward(Forward),
    Redirect {
        site: u32,
        location: String,
        status: u16,
    },
    Refuse {
        site: Option<u32>,
        /// The row of the users table, where the user is known and the app is not.
        user: Option<u32>,
        status: u16,
        reason: Reason,
    },
    /// The connection is closed without an answer.
    Drop,
}

/// A request that goes to a backend group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    pub site: u32,
    pub route: u32,
    pub group: GroupId,
    /// The row of the users table.
    pub user: Option<u32>,
    pub app: Option<u32>,
    /// Path and query for the backend; `None`: what the client sent.
    pub target: Option<String>,
    /// Set where a prefix is stripped, or an app confined.
    pub mount: Option<Mount>,
}

/// Where the client sees an app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// What the backend does not see: `/user1`; empty where it sees the whole path.
    pub prefix: String,
    /// The app as the client sees it: `/user1/phpmyadmin`; its cookies are confined to it.
    pub app: String,
}

/// Why a request is not forwarded: the word in the log and on the error page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    UnknownHost,
    BadHost,
    BadPath(BadPath),
    NoRoute,
    UnknownUser,
    UnknownApp,
    BrokenSite,
    LongTarget,
}

impl Reason {
    /// The word in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::UnknownHost => "unknown_host",
            Reason::BadHost => "bad_host",
            Reason::BadPath(_) => "bad_path",
            Reason::NoRoute => "no_route",
            Reason::UnknownUser => "unknown_user",
            Reason::UnknownApp => "unknown_app",
            Reason::BrokenSite => "broken_site",
            Reason::LongTarget => "long_target",
        }
    }
}

/// What `http::Uri` can hold, with room for a prefix; escaping makes a target up to three times longer.
const MAX_TARGET: usize = 60_000;

/// ACME servers ask for this over plain HTTP, so no redirect may catch it (RFC 8555 section 8.3).
const ACME_PATH: &str = "/.well-known/acme-challenge/";

/// Decides about a request.
pub fn decide(snapshot: &Snapshot, request: &RequestView<'_>) -> Verdict {
    let Some(host) = normalize_host(request.host) else {
        return Verdict::Refuse { site: None, user: None, status: 400, reason: Reason::BadHost };
    };
    let (path, query) = (path_of(request), request.query.map(path::normalize_query).transpose());
    let found = snapshot.hosts.find(&host);
    let (site_id, host_captures) = match (found, snapshot.unknown_host) {
        (Some(found), _) => found,
        (None, Unknown::Site(site)) => (site, Captures::new()),
        (None, Unknown::Drop) => return Verdict::Drop,
        (None, Unknown::NotFound) => return Verdict::Refuse { site: None, user: None, status: 404, reason: Reason::UnknownHost },
    };
    let refuse = |status, reason| Verdict::Refuse { site: Some(site_id), user: None, status, reason };
    let Some(site) = snapshot.site(site_id) else { return refuse(503, Reason::BrokenSite) };
    if site.routes.is_empty() {
        return refuse(503, Reason::BrokenSite);
    }
    let (path, query) = match (&path, &query) {
        (Ok(path), Ok(query)) => (path.as_ref(), query.as_deref()),
        (Err(why), _) | (_, Err(why)) => return refuse(400, Reason::BadPath(*why)),
    };
    if path.len() + query.map_or(0, str::len) > MAX_TARGET {
        return refuse(414, Reason::LongTarget);
    }
    if let Some(port) = site.https_redirect
        && !request.secure
        && !path.starts_with(ACME_PATH)
    {
        return https_redirect(site_id, request, &host, port, &with_query(path, query));
    }
    let mut reason = Reason::NoRoute;
    for route_id in site.paths.find(path) {
        let Some(route) = site.routes.get(route_id as usize) else { continue };
        let placed = match place(snapshot, route, path, &host_captures) {
            Ok(placed) => placed,
            Err((Otherwise::NotFound, reason, user)) => return Verdict::Refuse { site: Some(site_id), user, status: 404, reason },
            Err((Otherwise::Next, why, _)) => {
                reason = why;
                continue;
            }
        };
        return forward(request, Found { site: site_id, route: route_id, rule: route, placed }, path, query);
    }
    refuse(404, reason)
}

/// `OPTIONS *` asks about the server as a whole (RFC 9112 section 3.2.4); it goes where `/` goes.
fn path_of<'a>(request: &RequestView<'a>) -> Result<Cow<'a, str>, BadPath> {
    if request.path == b"*" && request.method == "OPTIONS" { Ok(Cow::Borrowed("/")) } else { path::normalize(request.path) }
}

fn with_query<'a>(path: &'a str, query: Option<&str>) -> Cow<'a, str> {
    query.map_or(Cow::Borrowed(path), |query| Cow::Owned(format!("{path}?{query}")))
}

fn permanent(method: &str) -> u16 {
    // 308 keeps method and body; old clients know only 301, which is safe for reading.
    if matches!(method, "GET" | "HEAD") { 301 } else { 308 }
}

fn https_redirect(site: u32, request: &RequestView<'_>, host: &str, port: u16, target: &str) -> Verdict {
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let port = if port != 443 && port_of(request.host).is_some() { format!(":{port}") } else { String::new() };
    Verdict::Redirect { site, location: format!("https://{host}{port}{target}"), status: permanent(request.method) }
}

struct Place {
    group: GroupId,
    user: Option<u32>,
    app: Option<u32>,
}

/// Which group a route leads to: its own, or the one that the users table has.
fn place<'a>(
    snapshot: &Snapshot,
    route: &'a Route,
    path: &'a str,
    host_captures: &Captures<'a>,
) -> Result<Place, (Otherwise, Reason, Option<u32>)> {
    let rule = match &route.target {
        Target::Group(group) => return Ok(Place { group: *group, user: None, app: None }),
        Target::Users(rule) => rule,
    };
    let mut captures = Captures::new();
    route.pattern.capture(path, &mut captures);
    let captured = |name: &str| captures.iter().chain(host_captures).find(|(key, _)| *key == name).map(|(_, value)| *value);
    let UsersRule { app, unknown_user, unknown_app } = rule;
    let user = captured("user").unwrap_or_default();
    let app = app.as_deref().or_else(|| captured("app")).unwrap_or_default();
    match snapshot.users.find(&path::decode(user), &path::decode(app)) {
        Placed::At { user, app, group } => Ok(Place { group: GroupId(group), user: Some(user), app: Some(app) }),
        Placed::UnknownApp { user } => Err((*unknown_app, Reason::UnknownApp, Some(user))),
        Placed::UnknownUser => Err((*unknown_user, Reason::UnknownUser, None)),
    }
}

struct Found<'a> {
    site: u32,
    route: u32,
    rule: &'a Route,
    placed: Place,
}

fn forward(request: &RequestView<'_>, found: Found<'_>, path: &str, query: Option<&str>) -> Verdict {
    let Found { site, route, rule, placed } = found;
    let Place { group, user, app } = placed;
    let Some(count) = rule.strip else {
        let same = !request.absolute && path.as_bytes() == request.path && query.map(str::as_bytes) == request.query;
        let asterisk = request.path == b"*";
        let target = (!same && !asterisk).then(|| with_query(path, query).into_owned());
        // The app of a user is confined to its own paths, also where it knows them itself.
        let own = user.map(|_| leading(path, rule.pattern.segments().len()).to_owned()).filter(|own| !own.is_empty());
        let mount = own.map(|app| Mount { prefix: String::new(), app });
        return Verdict::Forward(Forward { site, route, group, user, app, target, mount });
    };
    let prefix = leading(path, count).to_owned();
    let rest = path.get(prefix.len()..).unwrap_or_default();
    if rest.is_empty() && count == rule.pattern.segments().len() {
        // Relative links of the page would lead outside of the app.
        return Verdict::Redirect {
            site,
            location: with_query(&format!("{path}/"), query).into_owned(),
            status: permanent(request.method),
        };
    }
    let rest = if rest.is_empty() { "/" } else { rest };
    let app_prefix = leading(path, rule.pattern.segments().len()).to_owned();
    let target = Some(with_query(rest, query).into_owned());
    Verdict::Forward(Forward { site, route, group, user, app, target, mount: Some(Mount { prefix, app: app_prefix }) })
}
