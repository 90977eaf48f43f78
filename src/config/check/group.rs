//! Checks backend groups: how they balance, how their backends are spoken to, stickiness.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;

use super::super::diagnostic::{Report, did_you_mean};
use super::super::raw::{self, Short};
use super::super::source::relative_to;
use super::super::{Address, BackendTls, Group, HealthCheck, HostSent, Member, Protocol, Sticky, Timeouts};
use super::health::{Peer, health_check};
use super::members::{Lookups, Resolving, members, written};
use super::{At, at, check_name, timeouts};
use crate::tls::client::{Authorities, ClientTls, Identity};
use crate::tls::load::LoadError;
use crate::tls::watch::EXPIRES_SOON;

/// An unreachable backend fails fast on the local network; a full accept queue needs a second try after 1 s and 3 s.
const CONNECT: Duration = Duration::from_secs(5);
/// nginx and HAProxy users expect 60 s of silence before a 504.
const READ: Duration = Duration::from_secs(60);
const SEND: Duration = Duration::from_secs(60);
const WEBSOCKET_IDLE: Duration = Duration::from_secs(3600);

/// What the main file's `defaults` say, filled up with our own.
pub(super) struct Defaults<'a> {
    pub(super) timeouts: Timeouts,
    pub(super) health_check: Option<HealthCheck>,
    lookups: Lookups<'a>,
}

impl<'a> Defaults<'a> {
    pub(super) fn new(raw: &raw::Defaults, resolving: Resolving<'a>, at: &At<'_>, report: &mut Report) -> Self {
        let built_in = Timeouts { connect: Some(CONNECT), read: Some(READ), send: Some(SEND), websocket_idle: Some(WEBSOCKET_IDLE) };
        let own = timeouts(&raw.timeouts, &at.key("timeouts"), report);
        let peer = Peer { tls: None, protocol: Protocol::Http1, source: None };
        let tcp = Some(peer.tcp_check());
        let health_check = health_check(raw.health_check.as_ref(), tcp, &peer, &at.key("health_check"), report);
        Defaults { timeouts: own.or(built_in), health_check, lookups: Lookups::new(resolving) }
    }
}

/// A group as written, be it under `backend_groups` or as the `backends` of a site.
pub(super) struct Written<'a> {
    pub(super) name: &'a str,
    pub(super) backends: &'a [Short<raw::Backend>],
    pub(super) balance: Option<&'a str>,
    pub(super) health_check: Option<&'a Short<raw::HealthCheck>>,
    pub(super) sticky: Option<&'a Short<raw::Sticky>>,
    pub(super) timeouts: raw::Timeouts,
    pub(super) tls: Option<&'a Short<raw::BackendTls>>,
    pub(super) protocol: Option<&'a str>,
    pub(super) host: Option<&'a str>,
    pub(super) source: Option<&'a str>,
    pub(super) of_site: bool,
    /// The file that says it.
    pub(super) from: &'a Path,
}

pub(super) fn check_all(
    raw: &BTreeMap<String, raw::Group>,
    from: &Path,
    defaults: &Defaults<'_>,
    at: &At<'_>,
    report: &mut Report,
) -> Vec<Group> {
    // All names at once: a silent one costs its time, but not that of others.
    for backend in raw.values().flat_map(|group| &group.backends).filter_map(written) {
        defaults.lookups.begin(&backend.address);
    }
    let places: HashMap<&str, At<'_>> = at.entries().collect();
    let groups = raw.iter().map(|(name, group)| {
        let written = Written {
            name,
            backends: &group.backends,
            balance: group.balance.as_deref(),
            health_check: group.health_check.as_ref(),
            sticky: group.sticky.as_ref(),
            timeouts: group.timeouts.unwrap_or_default(),
            tls: group.tls.as_ref(),
            protocol: group.protocol.as_deref(),
            host: group.host.as_deref(),
            source: group.source.as_deref(),
            of_site: false,
            from,
        };
        check(&written, defaults, places.get(name.as_str()).unwrap_or(at), report)
    });
    groups.collect()
}

pub(super) fn check(group: &Written<'_>, defaults: &Defaults<'_>, at: &At<'_>, report: &mut Report) -> Group {
    check_name(group.name, "backend group", at, report);
    balance(group.balance, &at.key("balance"), report);
    let members = members(group.backends, &defaults.lookups, &at.key("backends"), report);
    if group.backends.is_empty() {
        report.push(at.key("backends").error(format!("the group `{}` has no backends", group.name)));
    }
    let protocol = match group.protocol {
        None | Some("http1") => Protocol::Http1,
        Some("http2") => Protocol::Http2,
        Some("auto") => Protocol::Auto,
        Some(other) => {
            let diagnostic = at.key("protocol").error(format!("`{other}` is no protocol: `http1`, `http2` or `auto`"));
            report.push(at::hint(diagnostic, did_you_mean(other, ["http1", "http2", "auto"])));
            Protocol::Http1
        }
    };
    let tls = backend_tls(group.tls, group.from, &at.key("tls"), report);
    if protocol == Protocol::Auto && tls.is_none() {
        let diagnostic = at.key("protocol").error("`auto` needs `tls`: in the clear there is nothing to choose by");
        report.push(diagnostic.with_help("write `http2` for backends that speak it without TLS"));
    }
    if let Some(tls) = &tls {
        server_names(tls, &members, at, report);
    }
    let source = group.source.and_then(|text| {
        let source = text.parse().ok();
        if source.is_none() {
            report.push(at.key("source").error(format!("`{text}` is no address")).with_help("write for example `10.0.0.5`"));
        }
        source
    });
    let peer = Peer { tls: tls.clone(), protocol, source };
    let by_default = defaults.health_check.clone().map(|check| peer.adapt(check));
    Group {
        name: group.name.to_owned(),
        origin: at.origin(),
        of_site: group.of_site,
        sticky: sticky(group, &at.key("sticky"), report),
        health_check: health_check(group.health_check, by_default, &peer, &at.key("health_check"), report),
        timeouts: timeouts(&group.timeouts, &at.key("timeouts"), report).or(defaults.timeouts),
        members,
        tls,
        protocol,
        host: host_sent(group.host, &at.key("host"), report),
        source,
    }
}

fn balance(raw: Option<&str>, at: &At<'_>, report: &mut Report) {
    match raw {
        None | Some("round_robin") => {}
        Some(known @ ("least_requests" | "random_two" | "hash")) => {
            report.push(at.error(format!("`balance: {known}` is not in this version")).with_help("leave it out for `round_robin`"));
        }
        Some(other) => {
            let diagnostic = at.error(format!("`{other}` is no way to balance"));
            match did_you_mean(other, ["round_robin"]) {
                meant @ Some(_) => report.push(at::hint(diagnostic, meant)),
                None => report.push(diagnostic.with_help("leave it out for `round_robin`, smooth and weighted")),
            }
        }
    }
}

fn host_sent(raw: Option<&str>, at: &At<'_>, report: &mut Report) -> HostSent {
    match raw {
        None | Some("keep") => HostSent::Keep,
        Some("backend") => HostSent::Backend,
        Some(host) => {
            if !crate::routing::host::is_authority(host.as_bytes()) || host.is_empty() {
                report.push(at.error(format!("`{host}` is no host: `keep`, `backend`, or a name such as `app.internal`")));
            }
            HostSent::Fixed(host.to_owned())
        }
    }
}

// === TLS to backends ===

fn backend_tls(raw: Option<&Short<raw::BackendTls>>, from: &Path, at: &At<'_>, report: &mut Report) -> Option<BackendTls> {
    let long = match raw? {
        Short::Switch(false) => return None,
        Short::Switch(true) => raw::BackendTls::default(),
        Short::Word(word) => {
            report.push(at.error(format!("`{word}` says nothing here")).with_help("write `tls: true`, or `tls: { server_name: NAME }`"));
            return None;
        }
        Short::Long(long) => long.clone(),
    };
    let verify = long.verify.unwrap_or(true);
    if let Some(name) = &long.server_name
        && rustls_pki_types::ServerName::try_from(name.as_str()).is_err()
    {
        report.push(at.key("server_name").error(format!("`{name}` is no name of a server")));
    }
    if !verify {
        for (key, given) in [("ca", long.ca.is_some())] {
            if given {
                report.push(at.key(key).error(format!("`{key}` has no effect with `verify: false`")));
            }
        }
        report.push(at.key("verify").warning("the backends' certificates are not verified: whoever is on the way can read and change all"));
    }
    let mut failed = |key: &str, error: LoadError| report.push(at.key(key).error(error.to_string()));
    let ca = long.ca.as_ref().and_then(|path| Authorities::read(&relative_to(from, path)).map_err(|error| failed("ca", error)).ok());
    let identity = match (&long.cert, &long.key) {
        (None, None) => None,
        (Some(cert), Some(key)) => {
            let read = Identity::read(&relative_to(from, cert), &relative_to(from, key));
            read.map_err(|error| failed(if error.in_key() { "key" } else { "cert" }, error)).ok()
        }
        (cert, _) => {
            let (there, missing) = if cert.is_some() { ("cert", "key") } else { ("key", "cert") };
            report.push(at.key(there).error(format!("`{there}` needs `{missing}`")));
            None
        }
    };
    if let Some(facts) = identity.as_ref().and_then(Identity::facts) {
        let (days, end) = (facts.days_left(OffsetDateTime::now_utc()), facts.not_after.date());
        if days < 0 {
            report.push(at.key("cert").warning(format!("the certificate has expired on {end}: backends will refuse it")));
        } else if days <= EXPIRES_SOON {
            report.push(at.key("cert").warning(format!("the certificate ends on {end}; it is read when the configuration is")));
        }
    }
    Some(BackendTls { server_name: long.server_name, client: Arc::new(ClientTls { verify, ca, identity }) })
}

/// A certificate is verified against a name, so there must be one.
fn server_names(tls: &BackendTls, members: &[Member], at: &At<'_>, report: &mut Report) {
    let unix = members.iter().any(|member| matches!(member.addresses.as_slice(), [Address::Unix(_)]));
    if tls.server_name.is_none() && unix && tls.client.verify {
        report.push(at.key("tls").error("a unix socket has no name to verify: write `tls: { server_name: NAME }`"));
    }
}

fn sticky(group: &Written<'_>, at: &At<'_>, report: &mut Report) -> Option<Sticky> {
    let (cookie, max_age) = match group.sticky? {
        Short::Switch(false) => return None,
        Short::Switch(true) => (None, None),
        Short::Word(word) => {
            report.push(at.error(format!("`{word}` is no stickiness")).with_help("write `sticky: true` or `sticky: { cookie: NAME }`"));
            return None;
        }
        Short::Long(sticky) => (sticky.cookie.clone(), sticky.max_age),
    };
    // RFC 6265 section 4.1.1: a cookie name is a token.
    if let Some(name) = &cookie
        && (name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)))
    {
        report.push(at.key("cookie").error(format!("`{name}` is no name for a cookie")));
    }
    let cookie = cookie.unwrap_or_else(|| crate::balance::sticky::default_cookie(group.name));
    Some(Sticky { cookie, max_age: max_age.map(|time| time.0) })
}
