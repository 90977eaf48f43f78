//! Checks listeners: addresses and the limits of client connections.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::super::Listener;
use super::super::diagnostic::{Place, Report};
use super::super::raw;
use super::super::units::Time;
use super::At;

/// nginx keeps a connection for 75 s; browsers reuse one for longer than 60 s.
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// Long enough for a head over a bad mobile connection, short for somebody who sends it byte by byte.
const HEADER_DEADLINE: Duration = Duration::from_secs(10);
/// nginx cuts a client off that takes nothing for 60 s.
const SEND_TIMEOUT: Duration = Duration::from_secs(60);
/// nginx accepts 4 buffers of 8 KiB.
const MAX_HEADER_SIZE: u64 = 32 << 10;
/// An idle connection costs a few KB: 50,000 of them stay below a few hundred MB.
const MAX_CONNECTIONS: usize = 50_000;
/// nginx closes a connection after 1000 requests to free what it holds; ours holds nothing between requests.
const MAX_REQUESTS: u64 = 100_000;

pub(super) fn check(raw: &[raw::Listener], at: &At<'_>, report: &mut Report) -> Vec<Listener> {
    if raw.is_empty() && !report.has_errors() {
        report.push(at.error("`listeners` is missing: nothing could be reached").with_help("add `listeners: [{ address: \":80\" }]`"));
    }
    let mut listeners = Vec::new();
    let mut seen: Vec<(SocketAddr, Place)> = Vec::new();
    let mut names: Vec<(String, Place)> = Vec::new();
    for (index, listener) in raw.iter().enumerate() {
        let at = at.index(index);
        let address = match parse_address(&listener.address) {
            Ok(address) => address,
            Err(why) => {
                report
                    .push(at.key("address").error(why).with_help("write `:443` for all addresses, `192.0.2.1:443` or `[2001:db8::1]:443`"));
                continue;
            }
        };
        if let Some((_, first)) = seen.iter().find(|(other, _)| overlap(address, *other)) {
            let diagnostic = at.key("address").error(format!("a second listener on {address}"));
            report.push(diagnostic.with_related(first.clone(), "the first one is here"));
        }
        seen.push((address, at.key("address").place()));
        let name = listener.name.clone().unwrap_or_else(|| listener.address.clone());
        // Two that bear their address as a name have been reported already.
        if let Some((_, first)) = names.iter().find(|(other, _)| *other == name)
            && listener.name.is_some()
        {
            let diagnostic = at.key("name").error(format!("a second listener is named `{name}`"));
            report.push(diagnostic.with_related(first.clone(), "the first one is here"));
        }
        names.push((name, at.key("name").place()));
        listeners.push(limits(listener, address, &at, report));
    }
    listeners
}

fn limits(listener: &raw::Listener, address: SocketAddr, at: &At<'_>, report: &mut Report) -> Listener {
    let mut time = |key: &str, value: Option<Time>, default: Duration| {
        let time = value.map_or(default, |time| time.0);
        if time.is_zero() {
            report.push(at.key(key).error(format!("`{key}` must be longer than nothing")));
        }
        time
    };
    let keep_alive = time("keep_alive", listener.keep_alive, KEEP_ALIVE);
    let header_deadline = time("header_deadline", listener.header_deadline, HEADER_DEADLINE);
    let send_timeout = time("send_timeout", listener.send_timeout, SEND_TIMEOUT);
    let header_size = listener.max_header_size.map_or(MAX_HEADER_SIZE, |size| size.0);
    if !(1 << 10..=1 << 20).contains(&header_size) {
        report.push(at.key("max_header_size").error("`max_header_size` is a size from 1KiB to 1MiB"));
    }
    let connections = listener.max_connections.unwrap_or(MAX_CONNECTIONS);
    if !(1..=10_000_000).contains(&connections) {
        report.push(at.key("max_connections").error("`max_connections` is a number from 1 to 10000000"));
    }
    if listener.max_requests == Some(0) {
        report.push(at.key("max_requests").error("`max_requests` must be at least 1"));
    }
    Listener {
        name: listener.name.clone().unwrap_or_else(|| listener.address.clone()),
        address,
        tls: listener.tls,
        freebind: listener.freebind,
        keep_alive,
        header_deadline,
        send_timeout,
        max_header_size: usize::try_from(header_size).unwrap_or(1 << 20),
        max_connections: connections.min(10_000_000),
        max_requests: listener.max_requests.unwrap_or(MAX_REQUESTS),
    }
}

/// Whether two listeners want the same address: `:80` is all of them.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let covers = |wide: SocketAddr, narrow: SocketAddr| wide.ip().is_unspecified() && (wide.is_ipv6() || narrow.is_ipv4());
    a.port() != 0 && a.port() == b.port() && (a.ip() == b.ip() || covers(a, b) || covers(b, a))
}

/// `:80` is all addresses, IPv4 and IPv6.
pub(super) fn parse_address(text: &str) -> Result<SocketAddr, String> {
    if let Some(port) = text.strip_prefix(':').or_else(|| text.strip_prefix("*:")) {
        let port = port.parse().map_err(|_| format!("`{port}` is no port"))?;
        return Ok(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port));
    }
    text.parse().map_err(|_| format!("`{text}` is no address with a port"))
}
