//! The whole policy as one pure function: a request and the rules in, a verdict out.
//!
//! No socket, no clock, no lock: the data path, `explain` and the tests in site files call the same function.

use std::borrow::Cow;
use std::net::IpAddr;

use http::HeaderMap;

use crate::config::{GroupId, HttpsRedirect, Redirect, Route, Target, Unknown as Otherwise, UsersRule};
use crate::rewrite::template::Values;
use crate::routing::conditions::{Asked, Unmet};
use crate::routing::host::{Captures, normalize_host, port_of};
use crate::routing::path::{self, BadPath, leading};
use crate::routing::path_table::PathPattern;
use crate::routing::users::Placed;
use crate::snapshot::{Rules, Site, Unknown};

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
    pub headers: &'a HeaderMap,
    /// The client's address, after `trusted_proxies`.
    pub client: IpAddr,
    /// The sender is one of `trusted_proxies`.
    pub trusted: bool,
    /// The name of the listener that took the connection.
    pub listener: &'a str,
    pub request_id: &'a str,
}

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Forward(Forward),
    Redirect {
        site: u32,
        /// `None`: the redirect to HTTPS.
        route: Option<u32>,
        location: String,
        status: u16,
    },
    /// The route's own answer.
    Respond {
        site: u32,
        route: u32,
    },
    Refuse {
        site: Option<u32>,
        /// The route that refuses, where one does.
        route: Option<u32>,
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
    /// Routes for the path take other methods.
    Method,
    UnknownUser,
    UnknownApp,
    BrokenSite,
    Maintenance,
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
            Reason::Method => "method_not_allowed",
            Reason::UnknownUser => "unknown_user",
            Reason::UnknownApp => "unknown_app",
            Reason::BrokenSite => "broken_site",
            Reason::Maintenance => "maintenance",
            Reason::LongTarget => "long_target",
        }
    }
}

/// Why a route whose path matches did not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lost {
    Unmet(Unmet),
    UnknownUser,
    UnknownApp,
    /// A plain request goes to HTTPS first.
    RedirectedToHttps,
}

/// Follows a decision, for `explain`; the data path does not.
pub trait Trace {
    fn lost(&mut self, route: u32, why: Lost);
}

/// Nobody looks.
pub struct Untraced;

impl Trace for Untraced {
    fn lost(&mut self, _: u32, _: Lost) {}
}

/// What `http::Uri` can hold, with room for a prefix; escaping makes a target up to three times longer.
const MAX_TARGET: usize = 60_000;

/// ACME servers ask for this over plain HTTP, so no redirect may catch it (RFC 8555 section 8.3).
const ACME_PATH: &str = "/.well-known/acme-challenge/";

/// Decides about a request.
pub fn decide(rules: &Rules, request: &RequestView<'_>) -> Verdict {
    decide_traced(rules, request, &mut Untraced)
}

/// Decides about a request and tells which routes lost.
pub fn decide_traced(rules: &Rules, request: &RequestView<'_>, trace: &mut impl Trace) -> Verdict {
    let refuse = |site, status, reason| Verdict::Refuse { site, route: None, user: None, status, reason };
    let Some(host) = normalize_host(request.host) else { return refuse(None, 400, Reason::BadHost) };
    let found = rules.hosts.find(&host).filter(|(site, _)| rules.site(*site).is_some_and(|site| site.answers_on(request.listener)));
    let (site_id, host_captures) = match (found, rules.unknown_host) {
        (Some(found), _) => found,
        (None, Unknown::Site(site)) if rules.site(site).is_some_and(|site| site.answers_on(request.listener)) => (site, Captures::new()),
        (None, Unknown::Drop | Unknown::Site(_)) => return Verdict::Drop,
        (None, Unknown::NotFound) => return refuse(None, 404, Reason::UnknownHost),
    };
    let Some(site) = rules.site(site_id).filter(|site| !site.config.routes.is_empty()) else {
        return refuse(Some(site_id), 503, Reason::BrokenSite);
    };
    let (path, query) = (path_of(request), request.query.map(path::normalize_query).transpose());
    let (path, query) = match (&path, &query) {
        (Ok(path), Ok(query)) => (path.as_ref(), query.as_deref()),
        (Err(why), _) | (_, Err(why)) => return refuse(Some(site_id), 400, Reason::BadPath(*why)),
    };
    if path.len() + query.map_or(0, str::len) > MAX_TARGET {
        return refuse(Some(site_id), 414, Reason::LongTarget);
    }
    let decision = Decision { rules, request, site_id, site, host: &host, host_captures: &host_captures, path, query };
    decision.run(trace)
}

/// `OPTIONS *` asks about the server as a whole (RFC 9112 section 3.2.4); it goes where `/` goes.
fn path_of<'a>(request: &RequestView<'a>) -> Result<Cow<'a, str>, BadPath> {
    if request.path == b"*" && request.method == "OPTIONS" { Ok(Cow::Borrowed("/")) } else { path::normalize(request.path) }
}

fn with_query<'a>(path: &'a str, query: Option<&str>) -> Cow<'a, str> {
    query.map_or(Cow::Borrowed(path), |query| Cow::Owned(format!("{path}?{query}")))
}

/// 307 and 308 keep method and body; old clients know only 301 and 302, which are safe for reading.
fn redirect_status(method: &str, permanent: bool) -> u16 {
    match (matches!(method, "GET" | "HEAD"), permanent) {
        (true, true) => 301,
        (true, false) => 302,
        (false, true) => 308,
        (false, false) => 307,
    }
}

/// A request whose site is known.
struct Decision<'a> {
    rules: &'a Rules,
    request: &'a RequestView<'a>,
    site_id: u32,
    site: &'a Site,
    host: &'a str,
    host_captures: &'a [(&'a str, &'a str)],
    path: &'a str,
    query: Option<&'a str>,
}

/// Where a route leads.
struct Place {
    group: GroupId,
    user: Option<u32>,
    app: Option<u32>,
}

impl Decision<'_> {
    fn run(&self, trace: &mut impl Trace) -> Verdict {
        let (site, request) = (&self.site.config, self.request);
        let challenge = self.path.starts_with(ACME_PATH);
        let to_https = site.https_redirect.filter(|_| !request.secure && !challenge);
        let closed =
            !challenge && site.maintenance.as_ref().is_some_and(|closed| !closed.allow.iter().any(|net| net.contains(&request.client)));
        if closed && to_https.is_none() {
            return self.refuse(503, Reason::Maintenance, None, None);
        }
        let mut reason = Reason::NoRoute;
        for route_id in self.site.paths.find(self.path) {
            let Some(route) = site.routes.get(route_id as usize) else { continue };
            // A plain request goes to HTTPS first, and is asked about as it will be there, unless the route wants it plain.
            let redirect = to_https.filter(|_| route.conditions.secure != Some(false));
            let secure = request.secure || redirect.is_some();
            let asked = Asked { method: request.method, secure, headers: request.headers, trusted: request.trusted, query: self.query };
            if let Some(unmet) = route.conditions.unmet(&asked) {
                if unmet == Unmet::Method {
                    reason = Reason::Method;
                }
                trace.lost(route_id, Lost::Unmet(unmet));
                continue;
            }
            let place = match &route.target {
                Target::Group(group) => Some(Ok(Place { group: *group, user: None, app: None })),
                Target::Users(rule) => Some(self.place(route, rule)),
                Target::Redirect(_) | Target::Respond(_) => None,
            };
            if let Some(Err((Otherwise::Next, why, _))) = place {
                trace.lost(route_id, if why == Reason::UnknownUser { Lost::UnknownUser } else { Lost::UnknownApp });
                if reason != Reason::Method {
                    reason = why;
                }
                continue;
            }
            if let Some(redirect) = redirect {
                trace.lost(route_id, Lost::RedirectedToHttps);
                return self.redirect_to_https(redirect);
            }
            if closed {
                return self.refuse(503, Reason::Maintenance, None, None);
            }
            return match (&route.target, place) {
                (_, Some(Ok(place))) => self.forward(route_id, route, place),
                (_, Some(Err((_, why, user)))) => self.refuse(404, why, Some(route_id), user),
                (Target::Redirect(redirect), None) => self.redirect(route_id, route, redirect),
                (_, None) => Verdict::Respond { site: self.site_id, route: route_id },
            };
        }
        match (to_https, reason) {
            (Some(redirect), _) => self.redirect_to_https(redirect),
            (None, Reason::Method) => self.refuse(405, reason, None, None),
            (None, _) => self.refuse(404, reason, None, None),
        }
    }

    fn refuse(&self, status: u16, reason: Reason, route: Option<u32>, user: Option<u32>) -> Verdict {
        Verdict::Refuse { site: Some(self.site_id), route, user, status, reason }
    }

    fn redirect_to_https(&self, redirect: HttpsRedirect) -> Verdict {
        let HttpsRedirect { port, always } = redirect;
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.to_owned() };
        let port = if port != 443 && (always || port_of(self.request.host).is_some()) { format!(":{port}") } else { String::new() };
        let location = format!("https://{host}{port}{}", with_query(self.path, self.query));
        Verdict::Redirect { site: self.site_id, route: None, location, status: redirect_status(self.request.method, true) }
    }

    fn redirect(&self, route_id: u32, route: &Route, redirect: &Redirect) -> Verdict {
        // The path is nearer than the host: its captures come first.
        let mut captures = Captures::new();
        route.pattern.capture(self.path, &mut captures);
        captures.extend(self.host_captures.iter().copied());
        let mut location = redirect.to.fill(&self.values(route, &captures));
        if !redirect.to.has_query() && !location.contains('?') {
            // The query stands before the fragment (RFC 3986 section 3).
            let (target, fragment) = location.find('#').map_or((location.as_str(), ""), |at| location.split_at(at));
            location = format!("{}{fragment}", with_query(target, self.query.filter(|query| !query.is_empty())));
        }
        // `//` at the start would name another host.
        if location.starts_with("//") {
            location = format!("/{}", location.trim_start_matches('/'));
        }
        let status = redirect.status.unwrap_or_else(|| redirect_status(self.request.method, false));
        Verdict::Redirect { site: self.site_id, route: Some(route_id), location: escaped(location), status }
    }

    fn values<'v>(&'v self, route: &'v Route, captures: &'v [(&'v str, &'v str)]) -> Values<'v> {
        Values {
            method: self.request.method,
            secure: self.request.secure,
            host: self.host,
            path: self.path,
            query: self.query,
            client: Some(self.request.client),
            request_id: self.request.request_id,
            site: &self.site.config.name,
            route: &route.name,
            user: "",
            app: "",
            group: "",
            backend: "",
            headers: self.request.headers,
            trusted: self.request.trusted,
            secrets: &self.site.config.secret_headers,
            captures,
        }
    }

    /// Which group the users table has for the user and app of the request.
    fn place(&self, route: &Route, rule: &UsersRule) -> Result<Place, (Otherwise, Reason, Option<u32>)> {
        let mut captures = Captures::new();
        route.pattern.capture(self.path, &mut captures);
        let captured = |name: &str| captures.iter().chain(self.host_captures).find(|(key, _)| *key == name).map(|(_, value)| *value);
        let UsersRule { app, unknown_user, unknown_app } = rule;
        let user = captured("user").unwrap_or_default();
        let app = app.as_deref().or_else(|| captured("app")).unwrap_or_default();
        match self.rules.users.find(&path::decode(user), &path::decode(app)) {
            Placed::At { user, app, group } => Ok(Place { group: GroupId(group), user: Some(user), app: Some(app) }),
            Placed::UnknownApp { user } => Err((*unknown_app, Reason::UnknownApp, Some(user))),
            Placed::UnknownUser => Err((*unknown_user, Reason::UnknownUser, None)),
        }
    }

    fn forward(&self, route_id: u32, route: &Route, place: Place) -> Verdict {
        let Place { group, user, app } = place;
        let (request, path, query) = (self.request, self.path, self.query);
        let own = |target, mount| Verdict::Forward(Forward { site: self.site_id, route: route_id, group, user, app, target, mount });
        let Some(count) = route.strip else {
            let same = !request.absolute && path.as_bytes() == request.path && query.map(str::as_bytes) == request.query;
            let asterisk = request.path == b"*";
            let target = (!same && !asterisk).then(|| with_query(path, query).into_owned());
            // The app of a user is confined to its own paths, also where it knows them itself.
            let app = user.map(|_| leading(path, route.pattern.segments().len()).to_owned()).filter(|app| !app.is_empty());
            return own(target, app.map(|app| Mount { prefix: String::new(), app }));
        };
        let prefix = leading(path, count).to_owned();
        let rest = path.get(prefix.len()..).unwrap_or_default();
        let is_prefix = matches!(route.pattern, PathPattern::Prefix(_));
        if rest.is_empty() && is_prefix && count == route.pattern.segments().len() {
            // Relative links of the page would lead outside of the app.
            return Verdict::Redirect {
                site: self.site_id,
                route: Some(route_id),
                location: with_query(&format!("{path}/"), query).into_owned(),
                status: redirect_status(request.method, true),
            };
        }
        let rest = if rest.is_empty() { "/" } else { rest };
        let app_prefix = leading(path, route.pattern.segments().len()).to_owned();
        own(Some(with_query(rest, query).into_owned()), Some(Mount { prefix, app: app_prefix }))
    }
}

/// A `Location` with what is no part of a URI escaped (RFC 3986 section 2.1).
fn escaped(location: String) -> String {
    // A backslash would be a slash to browsers.
    let is_part = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}');
    if location.bytes().all(is_part) {
        return location;
    }
    let mut out = String::with_capacity(location.len() + 16);
    for byte in location.bytes() {
        if is_part(byte) { out.push(char::from(byte)) } else { path::escape(&mut out, byte) }
    }
    out
}
