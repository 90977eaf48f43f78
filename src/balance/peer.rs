//! From a backend to the peer that Pingora connects to, for requests and probes alike.

use std::hash::{Hash as _, Hasher as _};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::FixedState;
use pingora::connectors::l4::BindTo;
use pingora::protocols::ALPN;
use pingora::protocols::l4::socket;
use pingora::protocols::tls::CaType;
use pingora::upstreams::peer::{HttpPeer, HttpUpstreamRequestPolicy};
use pingora::utils::tls::{CertKey, WrappedX509, parse_x509};
use pingora::{Error, OrErr as _, Result};

use super::Timeouts;
use crate::config::{Address, BackendTls, Protocol};

/// A pooled connection is given up before usual servers close it (Node after 5 s is the exception, Apache too).
const POOL_IDLE: Duration = Duration::from_secs(55);
/// Requests at once on one HTTP/2 connection to a backend: what servers allow at least (RFC 9113 section 6.5.2).
const STREAMS: usize = 100;

/// How the backends of a group are connected to, in Pingora's terms.
pub struct Connect {
    tls: Option<Tls>,
    protocol: Protocol,
    source: Option<BindTo>,
    /// Keeps connections apart that must not stand in for each other: Pingora's own key forgets authorities and sources.
    pool: u64,
}

struct Tls {
    server_name: Option<String>,
    verify: bool,
    ca: Option<Arc<CaType>>,
    identity: Option<Arc<CertKey>>,
}

impl Connect {
    pub fn new(group: &str, tls: Option<&BackendTls>, protocol: Protocol, source: Option<IpAddr>) -> Self {
        let mut pool = std::hash::BuildHasher::build_hasher(&FixedState::default());
        (group, tls, protocol, source).hash(&mut pool);
        let tls = tls.map(|tls| Tls {
            server_name: tls.server_name.clone(),
            verify: tls.client.verify,
            ca: tls.client.ca.as_ref().map(|ca| {
                let wrap = |der: &Vec<u8>| WrappedX509::new(der.clone(), parse_x509);
                ca.certificates.iter().map(wrap).collect()
            }),
            identity: tls.client.identity.as_ref().map(|own| Arc::new(CertKey::new(own.chain.clone(), own.private.clone()))),
        });
        let source = source.map(|source| {
            let mut bind = BindTo::default();
            bind.addr = Some(SocketAddr::new(source, 0));
            bind
        });
        Self { tls, protocol, source, pool: pool.finish() }
    }

    /// The peer for one connection. `host` is the backend as written: its name is the one that a certificate must have.
    pub fn peer(&self, address: &Address, host: &str, timeouts: Timeouts) -> Result<HttpPeer> {
        let sni = self.tls.as_ref().map_or_else(String::new, |tls| tls.server_name.clone().unwrap_or_else(|| host_name(host).to_owned()));
        let mut peer = match address {
            Address::Inet(address) => HttpPeer::new(*address, self.tls.is_some(), sni),
            Address::Unix(path) => HttpPeer::new_uds(&path.to_string_lossy(), self.tls.is_some(), sni)
                .or_err(pingora::ErrorType::SocketError, "a path of a socket")?,
        };
        peer.group_key = self.pool;
        let options = &mut peer.options;
        options.connection_timeout = Some(timeouts.connect);
        options.total_connection_timeout = Some(timeouts.connect);
        options.read_timeout = Some(timeouts.read);
        options.write_timeout = Some(timeouts.send);
        options.idle_timeout = Some(POOL_IDLE);
        // Upgrades are tunnelled by the gate and never get here.
        options.http_upstream_request_policy = HttpUpstreamRequestPolicy::deny_upgrades();
        options.alpn = match self.protocol {
            Protocol::Http1 => ALPN::H1,
            Protocol::Http2 => ALPN::H2,
            Protocol::Auto => ALPN::H2H1,
        };
        options.max_h2_streams = STREAMS;
        options.bind_to.clone_from(&self.source);
        if let Some(tls) = &self.tls {
            (options.verify_cert, options.verify_hostname) = (tls.verify, tls.verify);
            options.ca.clone_from(&tls.ca);
            peer.client_cert_key.clone_from(&tls.identity);
        }
        Ok(peer)
    }

    /// The peer for a connection that will not carry HTTP/2: a tunnel.
    pub fn http1_peer(&self, address: &Address, host: &str, timeouts: Timeouts) -> Result<HttpPeer> {
        let mut peer = self.peer(address, host, timeouts)?;
        peer.options.alpn = ALPN::H1;
        Ok(peer)
    }

    /// The scheme that backends are asked with.
    pub fn is_tls(&self) -> bool {
        self.tls.is_some()
    }
}

/// Why there is no TLS connection, in the words of whoever looks after the backend. Pingora keeps rustls's error only as
/// a part of its own text.
pub fn tls_reason(error: &Error) -> String {
    let text = error.to_string();
    let why = |start: &str| text.split_once(start).map(|(_, rest)| rest.split(", SNI:").next().unwrap_or_default().trim().to_owned());
    match why("invalid peer certificate: ") {
        Some(why) if why.starts_with("UnknownIssuer") => {
            return "its certificate is from an authority that is not trusted (`tls: { ca: FILE }` names one)".to_owned();
        }
        Some(why) if why.starts_with("Expired") || why.contains("certificate expired") => return "its certificate has expired".to_owned(),
        Some(why) => return format!("its certificate is not accepted: {why}"),
        None => {}
    }
    match why("received fatal alert: ") {
        Some(alert) => format!("it refused the handshake: {alert}"),
        None if text.contains("InvalidContentType") || text.contains("corrupt message") => "it does not speak TLS".to_owned(),
        None => why("cause: ").or_else(|| why("failed: ")).unwrap_or(text),
    }
}

/// `[::1]:443` and `app.internal:443` without their ports.
fn host_name(host: &str) -> &str {
    if host.starts_with("unix:") {
        return "localhost";
    }
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name)
}

/// An address as Pingora knows it. A path that is too long for a socket was refused by the check.
pub fn socket_address(address: &Address) -> socket::SocketAddr {
    match address {
        Address::Inet(address) => socket::SocketAddr::Inet(*address),
        Address::Unix(path) => match std::os::unix::net::SocketAddr::from_pathname(path) {
            Ok(path) => socket::SocketAddr::Unix(path),
            Err(_) => socket::SocketAddr::Inet(SocketAddr::from(([0, 0, 0, 0], 0))),
        },
    }
}

/// The reverse of `socket_address`.
pub fn address_of(socket: &socket::SocketAddr) -> Option<Address> {
    match socket {
        socket::SocketAddr::Inet(address) => Some(Address::Inet(*address)),
        socket::SocketAddr::Unix(path) => path.as_pathname().map(|path| Address::Unix(path.to_owned())),
    }
}
