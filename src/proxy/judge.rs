//! Judges the head of an HTTP/1 request on its raw bytes, before anybody interprets it.
//!
//! Ambiguity ends here: whatever two readers could understand differently is refused. The judge is at least as strict
//! as Pingora in every point, since what Pingora refuses by itself is never logged.

use std::mem::MaybeUninit;

use memchr::memchr;
use pingora::http::authority::{RawTargetAuthority, is_http_family_scheme, raw_target_authority};

use super::framing::Framing;
use crate::routing::host::is_authority;

/// nginx refuses none, Apache more than 100 headers; a browser sends about 20.
pub const MAX_HEADERS: usize = 100;

/// What the raw bytes say.
#[derive(Debug, PartialEq)]
pub struct Head {
    /// Bytes of the head, with the empty line that ends it.
    pub length: usize,
    /// How the body ends.
    pub framing: Framing,
    /// The client asks for a WebSocket.
    pub upgrade: bool,
}

#[derive(Debug, PartialEq)]
pub enum Judged {
    NeedMore,
    /// Status and reason of the refusal.
    Bad(u16, &'static str),
    Good(Head),
}

/// Judges what has been received; `raw` is not empty.
pub fn judge(raw: &[u8], max_size: usize) -> Judged {
    if !raw.first().is_some_and(u8::is_ascii_alphabetic) {
        // Also a TLS handshake on a plain port.
        return Judged::Bad(400, "not_http");
    }
    let length = match head_length(raw, max_size) {
        Ok(Some(length)) => length,
        Ok(None) => return Judged::NeedMore,
        Err((status, reason)) => return Judged::Bad(status, reason),
    };
    match judge_head(raw.get(..length).unwrap_or_default()) {
        Ok(head) => Judged::Good(head),
        Err((status, reason)) => Judged::Bad(status, reason),
    }
}

type Refusal = (u16, &'static str);

/// The line structure, on raw bytes: parsers forgive bare LF, and two parsers forgive differently.
fn head_length(raw: &[u8], max_size: usize) -> Result<Option<usize>, Refusal> {
    let mut line = 0;
    loop {
        let Some(end) = raw.get(line..).and_then(|rest| memchr(b'\n', rest)) else {
            return if raw.len() >= max_size { Err((431, "head_too_large")) } else { Ok(None) };
        };
        if end == 0 || raw.get(line + end - 1) != Some(&b'\r') {
            return Err((400, "bare_lf"));
        }
        line += end + 1;
        if line > max_size {
            return Err((431, "head_too_large"));
        }
        if end == 1 {
            return Ok(Some(line));
        }
    }
}

/// What the headers say that matters here.
#[derive(Default)]
struct Facts<'a> {
    host: Option<&'a [u8]>,
    length: Option<u64>,
    chunked: bool,
    connection_upgrade: bool,
    upgrades: usize,
    websocket: bool,
}

fn judge_head(raw: &[u8]) -> Result<Head, Refusal> {
    let mut slots = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut []);
    // httparse refuses space before the colon, folded lines, NUL and control bytes.
    match request.parse_with_uninit_headers(raw, &mut slots) {
        Ok(httparse::Status::Complete(length)) if length == raw.len() => {}
        Err(httparse::Error::TooManyHeaders) => return Err((431, "too_many_headers")),
        _ => return Err((400, "malformed_head")),
    }
    let http11 = request.version == Some(1);
    let facts = facts(&request, http11)?;
    let (method, target) = (request.method.unwrap_or_default(), request.path.unwrap_or_default());
    check_target(method, target.as_bytes(), facts.host, http11)?;
    if facts.chunked && facts.length.is_some() {
        return Err((400, "length_and_chunked"));
    }
    let framing = match facts.length {
        Some(length) if length > 0 => Framing::Length(length),
        _ if facts.chunked => Framing::chunked(),
        _ => Framing::Done,
    };
    let upgrade = http11 && facts.connection_upgrade && facts.websocket;
    // One of several protocols would be ours to choose, and the backend could choose another.
    if upgrade && (framing != Framing::Done || method != "GET" || facts.upgrades > 1) {
        return Err((400, "bad_upgrade"));
    }
    Ok(Head { length: raw.len(), framing, upgrade })
}

fn facts<'a>(request: &httparse::Request<'_, 'a>, http11: bool) -> Result<Facts<'a>, Refusal> {
    let mut facts = Facts::default();
    for header in request.headers.iter() {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        match header.name.len() {
            4 if is("host") => once(facts.host.replace(header.value), "two_hosts")?,
            14 if is("content-length") => once(facts.length.replace(length_of(header.value)?), "two_lengths")?,
            17 if is("transfer-encoding") => {
                if facts.chunked || !http11 || !header.value.eq_ignore_ascii_case(b"chunked") {
                    return Err((400, "bad_transfer_encoding"));
                }
                facts.chunked = true;
            }
            10 if is("connection") => {
                facts.connection_upgrade |=
                    header.value.split(|b| *b == b',').any(|token| token.trim_ascii().eq_ignore_ascii_case(b"upgrade"));
            }
            7 if is("upgrade") => {
                facts.upgrades += 1;
                facts.websocket |= header.value.eq_ignore_ascii_case(b"websocket");
            }
            _ => {}
        }
    }
    Ok(facts)
}

/// A header that may be there once, and was not there before.
fn once<T>(before: Option<T>, reason: &'static str) -> Result<(), Refusal> {
    if before.is_some() { Err((400, reason)) } else { Ok(()) }
}

/// Digits only: `+5`, `5, 5` and an empty value are read differently by different servers.
fn length_of(value: &[u8]) -> Result<u64, Refusal> {
    let digits = !value.is_empty() && value.len() <= 18 && value.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(value).ok().filter(|_| digits);
    text.and_then(|text| text.parse().ok()).ok_or((400, "bad_length"))
}

/// The target must name no other host than `Host` does; Pingora's own reading of it is used, so that both agree.
fn check_target(method: &str, target: &[u8], host: Option<&[u8]>, http11: bool) -> Result<(), Refusal> {
    match host {
        None if http11 => return Err((400, "no_host")),
        Some(host) if !is_authority(host) => return Err((400, "bad_host")),
        None | Some(_) => {}
    }
    if method == "CONNECT" {
        return Err((405, "connect"));
    }
    match raw_target_authority(target) {
        RawTargetAuthority::None if target.starts_with(b"/") || (target == b"*" && method == "OPTIONS") => Ok(()),
        RawTargetAuthority::Absolute { scheme, authority, .. }
            if is_http_family_scheme(scheme) && !authority.is_empty() && host.is_some_and(|host| host.eq_ignore_ascii_case(authority)) =>
        {
            Ok(())
        }
        _ => Err((400, "bad_target")),
    }
}

/// Bytes that are no part of a URI but that clients send in targets; others accept them and Pingora does not. They are
/// escaped before it sees them. `None`: there are none.
pub fn escaped_target(head: &[u8]) -> Option<Vec<u8>> {
    let line = head.get(..memchr(b'\r', head)?)?;
    let is_odd = |byte: &u8| matches!(byte, b'"' | b'<' | b'>' | b'`');
    if !line.iter().any(is_odd) {
        return None;
    }
    let mut escaped = Vec::with_capacity(head.len() + 16);
    for byte in line {
        if is_odd(byte) { escaped.extend_from_slice(format!("%{byte:02X}").as_bytes()) } else { escaped.push(*byte) }
    }
    escaped.extend_from_slice(head.get(line.len()..).unwrap_or_default());
    Some(escaped)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge_text(head: &str) -> Judged {
        judge(head.as_bytes(), 32 << 10)
    }

    #[test]
    fn a_clear_request_passes() {
        for (head, framing, upgrade) in [
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", Framing::Done, false),
            ("GET / HTTP/1.0\r\n\r\n", Framing::Done, false),
            ("GET http://a.b/x HTTP/1.1\r\nHost: A.b\r\n\r\n", Framing::Done, false),
            ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", Framing::Done, false),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n", Framing::Length(5), false),
            ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n", Framing::chunked(), false),
            ("GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n\r\n", Framing::Done, true),
            ("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", Framing::Done, false),
        ] {
            assert_eq!(judge_text(head), Judged::Good(Head { length: head.len(), framing, upgrade }), "{head}");
            for cut in 1..head.len() {
                assert_eq!(judge_text(&head[..cut]), Judged::NeedMore, "{head} cut at {cut}");
            }
        }
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        let with = |lines: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n\r\n");
        for (head, status, reason) in [
            (with("Content-Length: 5\r\nTransfer-Encoding: chunked"), 400, "length_and_chunked"),
            (with("Content-Length: 5\r\nContent-Length: 5"), 400, "two_lengths"),
            (with("Content-Length: +5"), 400, "bad_length"),
            (with("Content-Length: 5, 5"), 400, "bad_length"),
            (with("Content-Length:"), 400, "bad_length"),
            (with("Content-Length: 9999999999999999999"), 400, "bad_length"),
            (with("Transfer-Encoding: identity"), 400, "bad_transfer_encoding"),
            (with("Transfer-Encoding: gzip, chunked"), 400, "bad_transfer_encoding"),
            (with("Transfer-Encoding: \x0bchunked"), 400, "malformed_head"),
            (with("Host: a"), 400, "two_hosts"),
            (with("X: a\r\n b"), 400, "malformed_head"),
            (with("X : a"), 400, "malformed_head"),
            (with("X: a\0b"), 400, "malformed_head"),
            (with("X: a\rb"), 400, "malformed_head"),
            ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".into(), 400, "bad_transfer_encoding"),
            ("GET / HTTP/1.1\r\n\r\n".into(), 400, "no_host"),
            ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n".into(), 400, "bad_host"),
            ("GET / HTTP/1.1\r\nHost: u@a\r\n\r\n".into(), 400, "bad_host"),
            ("GET / HTTP/1.1\r\nHost: a:80.evil\r\n\r\n".into(), 400, "bad_host"),
            ("GET / HTTP/1.1\r\nHost: [a]\r\n\r\n".into(), 400, "bad_host"),
            ("GET / HTTP/1.1\r\nHost: [::1]x\r\n\r\n".into(), 400, "bad_host"),
            (with("Connection: upgrade\r\nUpgrade: h2c\r\nUpgrade: websocket").replace("POST", "GET"), 400, "bad_upgrade"),
            ("GET / HTTP/1.1\nHost: a\r\n\r\n".into(), 400, "bare_lf"),
            ("GET /a b HTTP/1.1\r\nHost: a\r\n\r\n".into(), 400, "malformed_head"),
            ("GET / HTTP/2.0\r\nHost: a\r\n\r\n".into(), 400, "malformed_head"),
            ("GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n".into(), 400, "bad_target"),
            ("GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n".into(), 400, "bad_target"),
            ("GET * HTTP/1.1\r\nHost: a\r\n\r\n".into(), 400, "bad_target"),
            ("CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n".into(), 405, "connect"),
            ("\x16\x03\x01\x00".into(), 400, "not_http"),
            (with("Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 1"), 400, "bad_upgrade"),
            (with(&"X: 1\r\n".repeat(101)), 431, "too_many_headers"),
            (with(&format!("X: {}", "a".repeat(40_000))), 431, "head_too_large"),
        ] {
            assert_eq!(judge_text(&head), Judged::Bad(status, reason), "{head:.200}");
        }
        assert_eq!(judge(&[b'A'; 2048], 1024), Judged::Bad(431, "head_too_large"));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic_and_a_verdict_stays(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 1..300), cut in 1..300_usize) {
            let mut head = b"GET /".to_vec();
            head.extend(bytes);
            let whole = judge(&head, 256);
            let part = judge(&head[..cut.min(head.len())], 256);
            // What is refused on a part is refused on the whole: no later byte may mend a bad head.
            if let Judged::Bad(..) = part {
                proptest::prop_assert!(matches!(whole, Judged::Bad(..)), "{part:?} {whole:?}");
            }
        }
    }

    #[test]
    fn odd_bytes_of_a_target_are_escaped() {
        let head = b"GET /a<b>?q=\"x\"` HTTP/1.1\r\nHost: a\r\nX: \"<>\r\n\r\n";
        let escaped = escaped_target(head).unwrap();
        assert_eq!(escaped, b"GET /a%3Cb%3E?q=%22x%22%60 HTTP/1.1\r\nHost: a\r\nX: \"<>\r\n\r\n");
        assert_eq!(escaped_target(&escaped), None);
    }
}
