//! From a request as Pingora has parsed it to the view that decisions are made on.

use pingora::http::RequestHeader;

use super::judge::MAX_HEADERS;
use super::wire::Facts;
use crate::decide::RequestView;
use crate::rewrite::forwarded::Client;
use crate::routing::host::is_authority;

/// The longest request id that is taken over from a trusted proxy.
const MAX_REQUEST_ID: usize = 128;

/// Whether an HTTP/2 head keeps to the limits that the gate holds HTTP/1 heads to.
pub(super) fn is_within_limits(request: &RequestHeader, facts: &Facts) -> bool {
    let size = |(name, value): (&http::HeaderName, &http::HeaderValue)| name.as_str().len() + value.len() + 4;
    let total: usize = request.raw_path().len() + request.headers.iter().map(size).sum::<usize>();
    request.headers.len() <= MAX_HEADERS && total <= facts.listener.max_header_size
}

/// What the decision needs. `Err`: the reason for a 400, for HTTP/2 requests that the gate has not judged.
pub(super) fn view<'a>(
    request: &'a RequestHeader,
    client: Client,
    listener: &'a str,
    request_id: &'a str,
) -> Result<RequestView<'a>, &'static str> {
    let host = host(request)?;
    let target = request.raw_path();
    let absolute = !(target.starts_with(b"/") || target == b"*");
    let target = if absolute { after_authority(target) } else { target };
    let (path, query) = match target.iter().position(|byte| *byte == b'?') {
        Some(at) => (target.get(..at).unwrap_or_default(), target.get(at + 1..)),
        None => (target, None),
    };
    let path = if absolute && path.is_empty() { b"/" } else { path };
    Ok(RequestView {
        method: request.method.as_str(),
        host,
        path,
        query,
        absolute,
        secure: client.secure,
        headers: &request.headers,
        client: client.address,
        trusted: client.trusted,
        listener,
        request_id,
    })
}

/// The host of a request: of HTTP/2's `:authority` and `Host` there may be either, or both if they agree
/// (RFC 9113 section 8.3.1).
pub(super) fn host(request: &RequestHeader) -> Result<&str, &'static str> {
    let mut hosts = request.headers.get_all(http::header::HOST).iter();
    let header = hosts.next().map(|value| value.to_str()).transpose().map_err(|_| "bad_host")?;
    if hosts.next().is_some() {
        return Err("two_hosts");
    }
    let authority = request.uri.authority().map(http::uri::Authority::as_str);
    let host = match (authority, header) {
        (Some(authority), Some(header)) if !authority.eq_ignore_ascii_case(header) => return Err("two_hosts"),
        (Some(host), _) | (None, Some(host)) => host,
        (None, None) => "",
    };
    if is_authority(host.as_bytes()) { Ok(host) } else { Err("bad_host") }
}

/// The path and query of `http://host/path?query`; either may be missing.
fn after_authority(target: &[u8]) -> &[u8] {
    let rest = target.windows(3).position(|window| window == b"://").and_then(|at| target.get(at + 3..)).unwrap_or_default();
    rest.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#')).and_then(|at| rest.get(at..)).unwrap_or_default()
}

/// The id that a trusted proxy has given the request already.
pub(super) fn request_id(request: &RequestHeader) -> Option<String> {
    let id = request.headers.get("x-request-id")?.to_str().ok()?;
    let good = !id.is_empty() && id.len() <= MAX_REQUEST_ID && id.bytes().all(|b| b.is_ascii_graphic());
    good.then(|| id.to_owned())
}
