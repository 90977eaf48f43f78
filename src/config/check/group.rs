//! Checks backend groups: backends and their names, health checks, stickiness. Host names are resolved here.

use std::collections::{BTreeMap, HashMap};
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::super::diagnostic::{Place, Report, did_you_mean};
use super::super::raw::{self, Short};
use super::super::units::Time;
use super::super::{Backend, CheckKind, Group, HealthCheck, Sticky, Timeouts};
use super::{At, at, check_name, timeouts};

/// An unreachable backend fails fast on the local network; a full accept queue needs a second try after 1 s and 3 s.
const CONNECT: Duration = Duration::from_secs(5);
/// nginx and HAProxy users expect 60 s of silence before a 504.
const READ: Duration = Duration::from_secs(60);
const SEND: Duration = Duration::from_secs(60);
const WEBSOCKET_IDLE: Duration = Duration::from_secs(3600);

const INTERVAL: Duration = Duration::from_secs(5);
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// Two good probes: one may be luck while a backend is starting.
const RISE: usize = 2;
/// Three bad probes: one lost packet must not move anybody's session. A refused connection counts at once.
const FALL: usize = 3;

/// More backends than any group has; the order of their turns is computed when it is built.
const MAX_BACKENDS: usize = 1024;

/// Names of all backends are resolved together and may take this long.
const RESOLVE: Duration = Duration::from_secs(5);

/// What the main file's `defaults` say, filled up with our own.
pub(super) struct Defaults<'a> {
    pub(super) timeouts: Timeouts,
    pub(super) health_check: Option<HealthCheck>,
    /// When the last answer of a name server is taken: names of all groups are given the same time.
    resolve_by: Instant,
    /// The groups in force, whose addresses stand in for a name that does not resolve now.
    previous: &'a [Group],
}

impl<'a> Defaults<'a> {
    pub(super) fn new(raw: &raw::Defaults, previous: &'a [Group], at: &At<'_>, report: &mut Report) -> Self {
        let built_in = Timeouts { connect: Some(CONNECT), read: Some(READ), send: Some(SEND), websocket_idle: Some(WEBSOCKET_IDLE) };
        let own = timeouts(&raw.timeouts, &at.key("timeouts"), report);
        let tcp = Some(tcp_check());
        let health_check = health_check(raw.health_check.as_ref(), tcp, &at.key("health_check"), report);
        Defaults { timeouts: own.or(built_in), health_check, resolve_by: Instant::now() + RESOLVE, previous }
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
    pub(super) of_site: bool,
}

pub(super) fn check_all(raw: &BTreeMap<String, raw::Group>, defaults: &Defaults<'_>, at: &At<'_>, report: &mut Report) -> Vec<Group> {
    let groups = raw.iter().map(|(name, group)| {
        let written = Written {
            name,
            backends: &group.backends,
            balance: group.balance.as_deref(),
            health_check: group.health_check.as_ref(),
            sticky: group.sticky.as_ref(),
            timeouts: group.timeouts.unwrap_or_default(),
            of_site: false,
        };
        (written, at.key(name))
    });
    let written: Vec<_> = groups.collect();
    written.into_iter().map(|(group, at)| check(&group, defaults, &at, report)).collect()
}

pub(super) fn check(group: &Written<'_>, defaults: &Defaults<'_>, at: &At<'_>, report: &mut Report) -> Group {
    check_name(group.name, "backend group", at, report);
    match group.balance {
        None | Some("round_robin") => {}
        Some(known @ ("least_requests" | "random_two" | "hash")) => {
            report.push(
                at.key("balance").error(format!("`balance: {known}` is not in this version")).with_help("leave it out for `round_robin`"),
            );
        }
        Some(other) => {
            let diagnostic = at.key("balance").error(format!("`{other}` is no way to balance"));
            match did_you_mean(other, ["round_robin"]) {
                meant @ Some(_) => report.push(at::hint(diagnostic, meant)),
                None => report.push(diagnostic.with_help("leave it out for `round_robin`, smooth and weighted")),
            }
        }
    }
    let backends = backends(group.backends, defaults, &at.key("backends"), report);
    if group.backends.is_empty() {
        report.push(at.key("backends").error(format!("the group `{}` has no backends", group.name)));
    }
    Group {
        name: group.name.to_owned(),
        of_site: group.of_site,
        sticky: sticky(group, &at.key("sticky"), report),
        health_check: health_check(group.health_check, defaults.health_check.clone(), &at.key("health_check"), report),
        timeouts: timeouts(&group.timeouts, &at.key("timeouts"), report).or(defaults.timeouts),
        backends,
    }
}

// === Backends ===

fn backends(raw: &[Short<raw::Backend>], defaults: &Defaults<'_>, at: &At<'_>, report: &mut Report) -> Vec<Backend> {
    let written: Vec<(raw::Backend, At<'_>)> =
        raw.iter().enumerate().filter_map(|(index, short)| Some((written(short)?, at.index(index)))).collect();
    if written.len() < raw.len() {
        report.push(at.error("a backend is an address such as `10.0.0.1:8080`, or a mapping with `address`"));
    }
    if raw.len() > MAX_BACKENDS {
        report.push(at.error(format!("a group has at most {MAX_BACKENDS} backends")));
        return Vec::new();
    }
    let resolved = resolve(defaults.resolve_by, written.iter().map(|(backend, _)| backend.address.as_str()));
    let mut found: Vec<Backend> = Vec::new();
    let mut addresses: HashMap<SocketAddr, Place> = HashMap::new();
    let mut names: HashMap<String, Place> = HashMap::new();
    for ((backend, at), resolved) in written.iter().zip(resolved) {
        let weight = backend.weight.unwrap_or(1);
        if !(1..=256).contains(&weight) {
            report.push(at.key("weight").error("`weight` is a number from 1 to 256").with_help("to take a backend out, remove it"));
        }
        let resolved = match resolved {
            Ok(resolved) => resolved,
            Err(Unresolved::NoAddress(why)) => {
                report.push(at.key("address").error(why).with_help("write `10.0.0.1:8080`, `[2001:db8::1]:8080` or `app.internal:8080`"));
                continue;
            }
            Err(Unresolved::Name(why)) => {
                let known = last_known(&backend.address, defaults.previous);
                let help = match known.len() {
                    0 => "the group goes on without it; the next reload asks again",
                    _ => "its last known addresses stay; the next reload asks again",
                };
                report.push(at.key("address").warning(format!("`{}` does not resolve: {why}", backend.address)).with_help(help));
                known
            }
        };
        let several = resolved.len() > 1;
        for address in resolved {
            let name = match &backend.name {
                Some(name) if several => format!("{name}-{}", address.ip()),
                Some(name) => name.clone(),
                None if several => address.to_string(),
                None => backend.address.clone(),
            };
            if backend.name.is_some() {
                check_name(&name.replace(':', "."), "backend", &at.key("name"), report);
            }
            if let Some(first) = addresses.insert(address, at.place()) {
                report.push(
                    at.key("address").error(format!("{address} is in this group twice")).with_related(first, "it is first named here"),
                );
            } else if let Some(first) = names.insert(name.clone(), at.place()) {
                report
                    .push(at.key("name").error(format!("a second backend is named `{name}`")).with_related(first, "the first one is here"));
            }
            found.push(Backend { name, host: backend.address.clone(), address, weight, backup: backend.backup });
        }
    }
    if !found.is_empty() && found.iter().all(|backend| backend.backup) {
        report.push(at.error("every backend is a backup: one must not be"));
    }
    found
}

/// The addresses that a name had when it last resolved.
fn last_known(host: &str, previous: &[Group]) -> Vec<SocketAddr> {
    let backends = previous.iter().flat_map(|group| &group.backends).filter(|backend| backend.host == host);
    let mut known: Vec<SocketAddr> = backends.map(|backend| backend.address).collect();
    known.sort();
    known.dedup();
    known
}

fn written(short: &Short<raw::Backend>) -> Option<raw::Backend> {
    match short {
        Short::Switch(_) => None,
        Short::Word(address) => Some(raw::Backend { address: address.clone(), name: None, weight: None, backup: false }),
        Short::Long(backend) => Some(backend.clone()),
    }
}

enum Unresolved {
    NoAddress(String),
    Name(String),
}

/// Resolves addresses, names side by side, since one silent name server must not hold up the others.
fn resolve<'a>(deadline: Instant, addresses: impl Iterator<Item = &'a str>) -> Vec<Result<Vec<SocketAddr>, Unresolved>> {
    let pending: Vec<_> = addresses.map(|text| (text, lookup(text))).collect();
    let wait = |(text, pending): (&str, Result<Lookup, String>)| match pending {
        Err(why) => Err(Unresolved::NoAddress(why)),
        Ok(Lookup::Known(address)) => Ok(vec![address]),
        Ok(Lookup::Asked(answer)) => {
            let left = deadline.saturating_duration_since(Instant::now());
            match answer.recv_timeout(left) {
                Ok(Ok(mut addresses)) if !addresses.is_empty() => {
                    addresses.sort();
                    addresses.dedup();
                    Ok(addresses)
                }
                Ok(Ok(_)) => Err(Unresolved::Name("it has no address".to_owned())),
                Ok(Err(error)) => Err(Unresolved::Name(error.to_string())),
                Err(_) => Err(Unresolved::Name(format!("no answer for `{text}` within {} s", RESOLVE.as_secs()))),
            }
        }
    };
    pending.into_iter().map(wait).collect()
}

enum Lookup {
    Known(SocketAddr),
    Asked(mpsc::Receiver<std::io::Result<Vec<SocketAddr>>>),
}

fn lookup(text: &str) -> Result<Lookup, String> {
    if text.starts_with("http://") || text.starts_with("https://") {
        return Err(format!("`{text}` is a URL: a backend is an address with a port"));
    }
    if let Ok(address) = text.parse() {
        return Ok(Lookup::Known(address));
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(|| format!("`{text}` has no port"))?;
    port.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(|| format!("`{port}` is no port"))?;
    let good = !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
    if !good {
        return Err(format!("`{host}` is no host name and no address"));
    }
    let (tell, answer) = mpsc::channel();
    let text = text.to_owned();
    // A thread that cannot be started gives no answer, which is reported as such.
    let _ = std::thread::Builder::new().name("resolve".into()).spawn(move || {
        // Nobody may be waiting any more: that is no error.
        let _ = tell.send(text.to_socket_addrs().map(Iterator::collect));
    });
    Ok(Lookup::Asked(answer))
}

// === Health checks and stickiness ===

/// What a group gets that says nothing.
fn tcp_check() -> HealthCheck {
    HealthCheck { kind: CheckKind::Tcp, interval: INTERVAL, timeout: PROBE_TIMEOUT, rise: RISE, fall: FALL }
}

pub(super) fn health_check(
    raw: Option<&Short<raw::HealthCheck>>,
    default: Option<HealthCheck>,
    at: &At<'_>,
    report: &mut Report,
) -> Option<HealthCheck> {
    let tcp = tcp_check();
    let http = |path: &str, host: Option<String>| CheckKind::Http { path: path.to_owned(), host };
    match raw {
        None => default,
        Some(Short::Switch(false)) => None,
        Some(Short::Switch(true)) => default.or(Some(tcp)),
        Some(Short::Word(word)) => match word.as_str() {
            "off" => None,
            "tcp" => Some(tcp),
            path if path.starts_with('/') && is_target(path) => Some(HealthCheck { kind: http(path, None), ..tcp }),
            other => {
                report
                    .push(at.error(format!("`{other}` is no health check")).with_help("write `tcp`, a path such as `/healthz`, or `off`"));
                default
            }
        },
        Some(Short::Long(long)) => {
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
            for (key, zero) in [("rise", long.rise == Some(0)), ("fall", long.fall == Some(0))] {
                if zero {
                    report.push(at.key(key).error(format!("`{key}` must be at least 1")));
                }
            }
            let kind = match &long.path {
                Some(path) if path.starts_with('/') && is_target(path) => http(path, long.host.clone()),
                Some(path) => {
                    report.push(at.key("path").error(format!("`{path}` is no path: it starts with `/` and has no spaces")));
                    CheckKind::Tcp
                }
                None if long.host.is_some() => {
                    report.push(at.key("host").error("`host` needs a `path`: a TCP check sends nothing"));
                    CheckKind::Tcp
                }
                None => CheckKind::Tcp,
            };
            if long.host.as_deref().is_some_and(|host| !is_target(host)) {
                report.push(at.key("host").error("`host` is no host name"));
            }
            Some(HealthCheck { kind, interval, timeout, rise: long.rise.unwrap_or(RISE), fall: long.fall.unwrap_or(FALL) })
        }
    }
}

fn is_target(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic())
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
