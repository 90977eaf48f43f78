//! Checks backend groups: backends and their names, health checks, stickiness. Host names are resolved here.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use http::{HeaderMap, Method};

use super::super::diagnostic::{Place, Report, did_you_mean};
use super::super::raw::{self, Short};
use super::super::source::relative_to;
use super::super::units::Time;
use super::super::{Address, BackendTls, CheckKind, Group, HealthCheck, HostSent, HttpCheck, Member, Protocol, Sticky, Timeouts};
use super::{At, at, check_name, timeouts};
use crate::resolve::look_up_blocking;
use crate::rewrite::headers::reserved;
use crate::tls::client::{Authorities, ClientTls, Identity};
use crate::tls::load::LoadError;

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

/// What a name gets that was asked for when the time of all was nearly over.
const MOMENT: Duration = Duration::from_millis(300);

/// A tenth of the interval: backends that were added together are not probed together for ever.
const JITTER: u32 = 10;

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
    resolving: Resolving<'a>,
    lookups: Lookups,
}

/// Who is asked for names.
#[derive(Clone, Copy)]
pub(super) struct Resolving<'a> {
    /// Empty: the system.
    pub(super) servers: &'a [SocketAddr],
    /// The groups in force, whose addresses stand in for a name that does not resolve now.
    pub(super) previous: &'a [Group],
}

impl<'a> Defaults<'a> {
    pub(super) fn new(raw: &raw::Defaults, resolving: Resolving<'a>, at: &At<'_>, report: &mut Report) -> Self {
        let built_in = Timeouts { connect: Some(CONNECT), read: Some(READ), send: Some(SEND), websocket_idle: Some(WEBSOCKET_IDLE) };
        let own = timeouts(&raw.timeouts, &at.key("timeouts"), report);
        let peer = Peer { tls: None, protocol: Protocol::Http1, source: None };
        let tcp = Some(peer.tcp_check());
        let health_check = health_check(raw.health_check.as_ref(), tcp, &peer, &at.key("health_check"), report);
        Defaults { timeouts: own.or(built_in), health_check, resolve_by: Instant::now() + RESOLVE, resolving, lookups: Lookups::default() }
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
        defaults.lookups.begin(&backend.address, defaults.resolving.servers);
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
    let members = members(group.backends, defaults, &at.key("backends"), report);
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

/// How backends are spoken to, as far as their probes go the same way.
pub(super) struct Peer {
    tls: Option<BackendTls>,
    protocol: Protocol,
    source: Option<IpAddr>,
}

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
    Some(BackendTls { server_name: long.server_name, client: Arc::new(ClientTls { verify, ca, identity }) })
}

/// A certificate is verified against a name, so there must be one.
fn server_names(tls: &BackendTls, members: &[Member], at: &At<'_>, report: &mut Report) {
    let unix = members.iter().any(|member| matches!(member.addresses.as_slice(), [Address::Unix(_)]));
    if tls.server_name.is_none() && unix && tls.client.verify {
        report.push(at.key("tls").error("a unix socket has no name to verify: write `tls: { server_name: NAME }`"));
    }
}

// === Members ===

fn members(raw: &[Short<raw::Backend>], defaults: &Defaults<'_>, at: &At<'_>, report: &mut Report) -> Vec<Member> {
    let written: Vec<(raw::Backend, At<'_>)> =
        raw.iter().enumerate().filter_map(|(index, short)| Some((written(short)?, at.index(index)))).collect();
    if written.len() < raw.len() {
        report.push(at.error("a backend is an address such as `10.0.0.1:8080`, or a mapping with `address`"));
    }
    if raw.len() > MAX_BACKENDS {
        report.push(at.error(format!("a group has at most {MAX_BACKENDS} backends")));
        return Vec::new();
    }
    let resolved = resolve(defaults, written.iter().map(|(backend, _)| backend.address.as_str()));
    let mut members: Vec<Member> = Vec::new();
    let mut addresses: HashMap<Address, Place> = HashMap::new();
    let mut names: HashMap<String, Place> = HashMap::new();
    for ((backend, at), resolved) in written.iter().zip(resolved) {
        let weight = backend.weight.unwrap_or(1);
        if !(1..=256).contains(&weight) {
            report.push(at.key("weight").error("`weight` is a number from 1 to 256").with_help("to take a backend out, remove it"));
        }
        if let Some(name) = &backend.name {
            check_name(name, "backend", &at.key("name"), report);
        }
        let (found, by_name) = match resolved {
            Ok(found) => found,
            Err(Unresolved::NoAddress(why)) => {
                let help = "write `10.0.0.1:8080`, `[2001:db8::1]:8080`, `app.internal:8080` or `unix:/run/app.sock`";
                report.push(at.key("address").error(why).with_help(help));
                continue;
            }
            Err(Unresolved::Name(why)) => {
                let known = last_known(&backend.address, defaults.resolving.previous);
                let help = match known.len() {
                    0 => "the group goes on without it; it is asked for again and again",
                    _ => "its last known addresses stay; it is asked for again and again",
                };
                report.push(at.key("address").warning(format!("`{}` does not resolve: {why}", backend.address)).with_help(help));
                (known, true)
            }
        };
        for address in &found {
            if let Some(first) = addresses.insert(address.clone(), at.place()) {
                report.push(
                    at.key("address").error(format!("{address} is in this group twice")).with_related(first, "it is first named here"),
                );
            }
        }
        let name = backend.name.clone().unwrap_or_else(|| backend.address.clone());
        if let Some(first) = names.insert(name.clone(), at.place())
            && backend.name.is_some()
        {
            report.push(at.key("name").error(format!("a second backend is named `{name}`")).with_related(first, "the first one is here"));
        }
        members.push(Member {
            name: backend.name.clone(),
            host: backend.address.clone(),
            resolved: by_name,
            addresses: found,
            weight,
            backup: backend.backup,
        });
    }
    if !members.is_empty() && members.iter().all(|member| member.backup) {
        report.push(at.error("every backend is a backup: one must not be"));
    }
    members
}

/// The addresses that a name had when it last resolved.
fn last_known(host: &str, previous: &[Group]) -> Vec<Address> {
    let members = previous.iter().flat_map(|group| &group.members).filter(|member| member.host == host);
    let mut known: Vec<Address> = members.flat_map(|member| member.addresses.clone()).collect();
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

/// Addresses, and whether a name led to them.
type Resolved = Result<(Vec<Address>, bool), Unresolved>;

/// Resolves addresses, names side by side, since one silent name server must not hold up the others.
fn resolve<'a>(defaults: &Defaults<'_>, addresses: impl Iterator<Item = &'a str>) -> Vec<Resolved> {
    let servers = defaults.resolving.servers;
    let pending: Vec<_> = addresses.map(|text| lookup(text).map(|known| (text, known))).collect();
    for (text, known) in pending.iter().flatten() {
        if known.is_none() {
            defaults.lookups.begin(text, servers);
        }
    }
    let wait = |pending: Result<(&str, Option<Address>), String>| match pending {
        Err(why) => Err(Unresolved::NoAddress(why)),
        Ok((_, Some(address))) => Ok((vec![address], false)),
        Ok((text, None)) => match defaults.lookups.wait(text, defaults.resolve_by) {
            Ok(addresses) if addresses.is_empty() => Err(Unresolved::Name("it has no address".to_owned())),
            Ok(addresses) => Ok((addresses.into_iter().map(Address::Inet).collect(), true)),
            Err(why) => Err(Unresolved::Name(why)),
        },
    };
    pending.into_iter().map(wait).collect()
}

/// The look-ups of one load: each name is asked for once.
#[derive(Default)]
struct Lookups(Mutex<HashMap<String, Lookup>>);

type Found = Result<Vec<SocketAddr>, String>;

enum Lookup {
    Asked(mpsc::Receiver<std::io::Result<Vec<SocketAddr>>>),
    Answered(Found),
}

impl Lookups {
    /// Begins to look a name up, if it is one and nobody has asked yet.
    fn begin(&self, text: &str, servers: &[SocketAddr]) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.contains_key(text) || !matches!(lookup(text), Ok(None)) {
            return;
        }
        let (tell, answer) = mpsc::channel();
        let (name, servers) = (text.to_owned(), servers.to_vec());
        // A thread that cannot be started gives no answer, which is reported as such.
        let _ = std::thread::Builder::new().name("resolve".into()).spawn(move || {
            // Nobody may be waiting any more: that is no error.
            let _ = tell.send(look_up_blocking(&name, &servers));
        });
        known.insert(text.to_owned(), Lookup::Asked(answer));
    }

    /// The answer, if it comes in time. One that was only just asked for gets a moment, whatever the others took.
    fn wait(&self, text: &str, deadline: Instant) -> Found {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = match known.remove(text) {
            Some(Lookup::Answered(found)) => found,
            None => Err("nobody asked for it".to_owned()),
            Some(Lookup::Asked(answer)) => {
                let left = deadline.saturating_duration_since(Instant::now()).max(MOMENT);
                match answer.recv_timeout(left) {
                    Ok(Ok(addresses)) => Ok(addresses),
                    Ok(Err(error)) => Err(error.to_string()),
                    Err(_) => Err(format!("no answer within {} s", RESOLVE.as_secs())),
                }
            }
        };
        known.insert(text.to_owned(), Lookup::Answered(found.clone()));
        found
    }
}

/// The longest path of a unix socket (`sun_path` less its end).
const MAX_SOCKET_PATH: usize = 107;

/// The address that a text is; `None`: it is a name.
fn lookup(text: &str) -> Result<Option<Address>, String> {
    if text.starts_with("http://") || text.starts_with("https://") {
        return Err(format!("`{text}` is a URL: a backend is an address with a port, and `tls: true` of its group says https"));
    }
    if let Some(path) = text.strip_prefix("unix:") {
        if !path.starts_with('/') || path.len() > MAX_SOCKET_PATH {
            return Err(format!("`{path}` is no path of a socket: it starts with `/` and has at most {MAX_SOCKET_PATH} characters"));
        }
        return Ok(Some(Address::Unix(path.into())));
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return if address.port() == 0 { Err("`0` is no port".to_owned()) } else { Ok(Some(Address::Inet(address))) };
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(|| format!("`{text}` has no port"))?;
    port.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(|| format!("`{port}` is no port"))?;
    let good = !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
    if !good {
        return Err(format!("`{host}` is no host name and no address"));
    }
    Ok(None)
}

// === Health checks and stickiness ===

impl Peer {
    /// What a group gets that says nothing.
    fn tcp_check(&self) -> HealthCheck {
        HealthCheck {
            kind: CheckKind::Tcp,
            port: None,
            tls: self.tls.clone(),
            protocol: self.protocol,
            source: self.source,
            interval: INTERVAL,
            timeout: PROBE_TIMEOUT,
            jitter: INTERVAL / JITTER,
            rise: RISE,
            fall: FALL,
        }
    }

    /// A check of the defaults, which goes the way of this group's requests.
    fn adapt(&self, check: HealthCheck) -> HealthCheck {
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
