//! Checks health checks: how the backends of a group are found to be healthy.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method};

use super::super::diagnostic::Report;
use super::super::raw::{self, Short};
use super::super::units::Time;
use super::super::{BackendTls, CheckKind, HealthCheck, HttpCheck, Protocol};
use super::At;
use crate::rewrite::headers::reserved;
use crate::tls::client::ClientTls;

const INTERVAL: Duration = Duration::from_secs(5);
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// Two good probes: one may be luck while a backend is starting.
const RISE: usize = 2;
/// Three bad probes: one lost packet must not move anybody's session. A refused connection counts at once.
const FALL: usize = 3;

/// A tenth of the interval: backends that were added together are not probed together for ever.
const JITTER: u32 = 10;

/// How backends are spoken to, as far as their probes go the same way.
pub(super) struct Peer {
    pub(super) tls: Option<BackendTls>,
    pub(super) protocol: Protocol,
    pub(super) source: Option<IpAddr>,
}

impl Peer {
    /// What a group gets that says nothing.
    pub(super) fn tcp_check(&self) -> HealthCheck {
        let tcp = HealthCheck::tcp(self.tls.clone(), self.protocol, self.source, PROBE_TIMEOUT);
        HealthCheck { interval: INTERVAL, jitter: INTERVAL / JITTER, rise: RISE, fall: FALL, ..tcp }
    }

    /// A check of the defaults, which goes the way of this group's requests.
    pub(super) fn adapt(&self, check: HealthCheck) -> HealthCheck {
        HealthCheck { tls: self.tls.clone(), protocol: self.protocol, source: self.source, ..check }
    }
}

pub(super) fn health_check(
    raw: Option<&Short<raw::HealthCheck>>,
    default: Option<HealthCheck>,
    peer: &Peer,
    at: &At<'_>,
    report: &mut Report,
) -> Option<HealthCheck> {
    let tcp = peer.tcp_check();
    match raw {
        None => default,
        Some(Short::Switch(false)) => None,
        Some(Short::Switch(true)) => default.or(Some(tcp)),
        Some(Short::Word(word)) => match word.as_str() {
            "off" => None,
            "tcp" => Some(tcp),
            path if path.starts_with('/') && is_target(path) => {
                let long = raw::HealthCheck { path: Some(path.to_owned()), ..raw::HealthCheck::default() };
                Some(HealthCheck { kind: check_kind(&long, at, report), ..tcp })
            }
            other => {
                report
                    .push(at.error(format!("`{other}` is no health check")).with_help("write `tcp`, a path such as `/healthz`, or `off`"));
                default
            }
        },
        Some(Short::Long(long)) => Some(long_check(long, tcp, at, report)),
    }
}

fn long_check(long: &raw::HealthCheck, tcp: HealthCheck, at: &At<'_>, report: &mut Report) -> HealthCheck {
    let mut time = |key: &str, value: Option<Time>, default: Duration| match value {
        Some(Time(time)) if time.is_zero() => {
            report.push(at.key(key).error(format!("`{key}` must be longer than nothing")));
            default
        }
        Some(Time(time)) => time,
        None => default,
    };
    let interval = time("interval", long.interval, INTERVAL);
    let timeout = time("timeout", long.timeout, PROBE_TIMEOUT);
    for (key, zero) in [("rise", long.rise == Some(0)), ("fall", long.fall == Some(0)), ("port", long.port == Some(0))] {
        if zero {
            report.push(at.key(key).error(format!("`{key}` must be at least 1")));
        }
    }
    let jitter = long.jitter.map_or(interval / JITTER, |jitter| jitter.0);
    if jitter > interval {
        report.push(at.key("jitter").error("`jitter` is at most `interval`"));
    }
    let tls = match (long.tls, tcp.tls) {
        (Some(false), _) => None,
        (Some(true), None) => {
            Some(BackendTls { server_name: None, client: Arc::new(ClientTls { verify: true, ca: None, identity: None }) })
        }
        (Some(true) | None, tls) => tls,
    };
    // In the clear a backend cannot choose.
    let protocol = if tls.is_none() && tcp.protocol == Protocol::Auto { Protocol::Http1 } else { tcp.protocol };
    HealthCheck {
        kind: check_kind(long, at, report),
        port: long.port,
        tls,
        protocol,
        interval,
        timeout,
        jitter,
        rise: long.rise.unwrap_or(RISE),
        fall: long.fall.unwrap_or(FALL),
        ..tcp
    }
}

fn check_kind(long: &raw::HealthCheck, at: &At<'_>, report: &mut Report) -> CheckKind {
    let Some(path) = &long.path else {
        let only_http = [
            ("method", long.method.is_some()),
            ("host", long.host.is_some()),
            ("status", long.status.is_some()),
            ("body", long.body.is_some()),
            ("headers", !long.headers.is_empty()),
        ];
        for (key, _) in only_http.into_iter().filter(|(_, given)| *given) {
            report.push(at.key(key).error(format!("`{key}` needs a `path`: a TCP check sends nothing")));
        }
        return CheckKind::Tcp;
    };
    if !path.starts_with('/') || !is_target(path) {
        report.push(at.key("path").error(format!("`{path}` is no path: it starts with `/` and has no spaces")));
    }
    if long.host.as_deref().is_some_and(|host| !is_target(host)) {
        report.push(at.key("host").error("`host` is no host name"));
    }
    let method = match long.method.as_deref() {
        None | Some("GET") => Method::GET,
        Some("HEAD") => Method::HEAD,
        Some("OPTIONS") => Method::OPTIONS,
        Some("POST") => Method::POST,
        Some(other) => {
            report.push(at.key("method").error(format!("`{other}` is no method for a probe: `GET`, `HEAD`, `OPTIONS` or `POST`")));
            Method::GET
        }
    };
    if method == Method::HEAD && long.body.is_some() {
        report.push(at.key("body").error("a HEAD has no body to look at"));
    }
    let mut statuses = Vec::new();
    for (index, text) in long.status.iter().flat_map(|status| &status.0).enumerate() {
        match statuses_of(text) {
            Some(range) => statuses.push(range),
            None => {
                let at = at.key("status");
                let at = if long.status.as_ref().is_some_and(|status| status.0.len() > 1) { at.index(index) } else { at };
                report.push(at.error(format!("`{text}` is no status: write `200`, `2xx` or `200-399`")));
            }
        }
    }
    if statuses.is_empty() {
        statuses.push((200, 399));
    }
    let mut headers = HeaderMap::new();
    for (written, value) in &long.headers {
        let at = at.key("headers").key(written);
        match written.parse::<http::HeaderName>().ok().zip(http::HeaderValue::from_str(&value.0).ok()) {
            Some((name, _)) if name == http::header::HOST => report.push(at.error("`host:` of the health check says it")),
            Some((name, mut value)) => match reserved(&name) {
                Some(why) => report.push(at.error(format!("`{written}` cannot be set: {why}"))),
                None => {
                    value.set_sensitive(at.is_filled());
                    headers.insert(name, value);
                }
            },
            None => report.push(at.error(format!("`{written}` and its value are no header"))),
        }
    }
    let body_is_secret = at.key("body").is_filled();
    let (host, body) = (long.host.clone(), long.body.clone());
    CheckKind::Http(Arc::new(HttpCheck { method, path: path.clone(), host, headers, statuses, body, body_is_secret }))
}

/// `200`, `2xx` or `200-399` as a range, both ends included.
fn statuses_of(text: &str) -> Option<(u16, u16)> {
    let status = |text: &str| text.parse().ok().filter(|status| (100..=599).contains(status));
    if let Some(class) = text.strip_suffix("xx") {
        let class: u16 = class.parse().ok().filter(|class| (1..=5).contains(class))?;
        return Some((class * 100, class * 100 + 99));
    }
    match text.split_once('-') {
        Some((from, to)) => status(from).zip(status(to)).filter(|(from, to)| from <= to),
        None => status(text).map(|status| (status, status)),
    }
}

fn is_target(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic())
}
