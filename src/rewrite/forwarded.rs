//! Who the client is, and the headers that tell the backend about it.
//!
//! What a client says in these headers is dropped unless its sender is a trusted proxy: then the chain goes on.

use std::net::IpAddr;

use http::HeaderMap;

/// Headers by which proxies tell about clients; only a trusted sender may set them.
pub const FORWARDED: [&str; 15] = [
    "forwarded",
    "front-end-https",
    "x-forwarded-by",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-prefix",
    "x-forwarded-proto",
    "x-forwarded-scheme",
    "x-forwarded-server",
    "x-forwarded-ssl",
    "x-original-url",
    "x-real-ip",
    "x-request-id",
    "x-rewrite-url",
];

/// Whether a header is one of `FORWARDED` or would be read as one: CGI, WSGI and PHP turn `-`, `_` and `.` into the same
/// variable. `Proxy` would become `HTTP_PROXY` there and send the application's own requests elsewhere (httpoxy).
pub fn is_protected(name: &str) -> bool {
    if name.eq_ignore_ascii_case("proxy") {
        return true;
    }
    let starts = name.as_bytes().first().is_some_and(|b| matches!(b | 0x20, b'f' | b'x'));
    starts && FORWARDED.iter().any(|header| same_variable(header, name))
}

/// As `is_protected`, for what even a trusted proxy does not mean: another spelling.
pub fn is_disguised(name: &str) -> bool {
    is_protected(name) && !FORWARDED.iter().any(|header| header.eq_ignore_ascii_case(name))
}

/// Whether CGI, WSGI and PHP see both names as the same variable. `header` is in lower case.
pub fn same_variable(header: &str, name: &str) -> bool {
    let same = |(a, b): (u8, u8)| a == b.to_ascii_lowercase() || (a == b'-' && !b.is_ascii_alphanumeric());
    header.len() == name.len() && header.bytes().zip(name.bytes()).all(same)
}

/// Who asks, after `trusted_proxies`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    pub address: IpAddr,
    /// The sender may speak for its clients.
    pub trusted: bool,
    /// The client's own connection is encrypted.
    pub secure: bool,
}

/// Who asks: the peer of the connection, which is encrypted or not, or whom a trusted one speaks for.
pub fn client(peer: IpAddr, encrypted: bool, headers: &HeaderMap, trusts: impl Fn(IpAddr) -> bool) -> Client {
    let peer = peer.to_canonical();
    if !trusts(peer) {
        return Client { address: peer, trusted: false, secure: encrypted };
    }
    let chain: Vec<&str> = headers.get_all("x-forwarded-for").iter().filter_map(|value| value.to_str().ok()).collect();
    let proto = headers.get("x-forwarded-proto").and_then(|value| value.to_str().ok());
    // A chain of proxies may have written a list: the first entry is the client's.
    let proto = proto.and_then(|proto| proto.split(',').next());
    Client {
        address: client_address(peer, chain.iter().copied(), trusts),
        trusted: true,
        secure: proto.map_or(encrypted, |proto| proto.trim().eq_ignore_ascii_case("https")),
    }
}

/// The client's address: the sender's own, or what a chain of trusted proxies says, read from the right, since each
/// appends whom it heard from.
fn client_address<'a>(peer: IpAddr, chain: impl DoubleEndedIterator<Item = &'a str>, trusts: impl Fn(IpAddr) -> bool) -> IpAddr {
    let mut client = peer.to_canonical();
    for values in chain.rev() {
        for value in values.split(',').rev() {
            if !trusts(client) {
                return client;
            }
            match parse(value) {
                Some(address) => client = address,
                // Somebody wrote nonsense: the last sender that is known stands for the client.
                None => return client,
            }
        }
    }
    client
}

/// `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]:80`.
fn parse(value: &str) -> Option<IpAddr> {
    let value = value.trim();
    let address = value.parse::<IpAddr>().ok().or_else(|| value.parse::<std::net::SocketAddr>().ok().map(|socket| socket.ip()));
    let bracketed = || value.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).and_then(|rest| rest.parse().ok());
    address.or_else(bracketed).map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_is_the_first_that_nobody_vouches_for() {
        let trusts = |address: IpAddr| address.to_string().starts_with("10.");
        for (peer, chain, client) in [
            ("192.0.2.1", &["1.1.1.1"][..], "192.0.2.1"),
            ("10.0.0.1", &["1.1.1.1"], "1.1.1.1"),
            ("10.0.0.1", &["9.9.9.9, 1.1.1.1, 10.0.0.2"], "1.1.1.1"),
            ("10.0.0.1", &["9.9.9.9", "1.1.1.1"], "1.1.1.1"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            ("10.0.0.1", &["1.1.1.1, unknown"], "10.0.0.1"),
            ("10.0.0.1", &["[2001:db8::1]:443"], "2001:db8::1"),
            ("10.0.0.1", &["1.1.1.1:5555"], "1.1.1.1"),
            ("::ffff:10.0.0.1", &["1.1.1.1"], "1.1.1.1"),
        ] {
            let found = client_address(peer.parse().unwrap(), chain.iter().copied(), trusts);
            assert_eq!(found.to_string(), client, "{peer} {chain:?}");
        }
    }

    #[test]
    fn disguises_are_seen_through() {
        for (name, protected, disguised) in [
            ("X-Forwarded-For", true, false),
            ("x_forwarded_for", true, true),
            ("X-Forwarded_For", true, true),
            ("X.Forwarded.For", true, true),
            ("X-Forwarded-Ssl", true, false),
            ("Proxy", true, true),
            ("X-Request-Id", true, false),
            ("Forwarded", true, false),
            ("X-Forwarded-User", false, false),
            ("Accept", false, false),
        ] {
            assert_eq!((is_protected(name), is_disguised(name)), (protected, disguised), "{name}");
        }
    }

    #[test]
    fn only_a_trusted_peer_says_whether_its_client_is_encrypted() {
        let trusted: IpAddr = "10.0.0.1".parse().unwrap();
        for (peer, encrypted, proto, secure) in [
            ("10.0.0.1", false, Some("https"), true),
            ("10.0.0.1", false, Some("HTTPS , http"), true),
            ("10.0.0.1", true, Some("http, https"), false),
            ("10.0.0.1", true, None, true),
            ("192.0.2.1", false, Some("https"), false),
            ("::ffff:10.0.0.1", false, Some("https"), true),
        ] {
            let headers: HeaderMap = proto
                .map(|proto| (http::header::HeaderName::from_static("x-forwarded-proto"), proto.parse().unwrap()))
                .into_iter()
                .collect();
            let found = client(peer.parse().unwrap(), encrypted, &headers, |address| address == trusted);
            assert_eq!(found.secure, secure, "{peer} {encrypted} {proto:?}");
        }
    }
}
