//! What Pingora's filters and the tunnel have in common: considering a request, picking a backend, answering, logging.

use std::time::SystemTime;

use http::Version;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, COOKIE, LOCATION, REFERER, RETRY_AFTER, USER_AGENT};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType, Result};

use super::ctx::{Ctx, Todo};
use super::failure::classify;
use super::{Shared, apply, page, peer, view};
use crate::balance::state::Now;
use crate::balance::sticky::cookie_value;
use crate::decide::decide;
use crate::observe::record::Record;

/// Finds out who asks and what is to become of the request.
pub(super) fn consider(request: &RequestHeader, ctx: &mut Ctx, shared: &Shared) -> Todo {
    let Some(facts) = ctx.facts.clone() else {
        ctx.reason = Some("internal");
        return Todo::Refuse(500);
    };
    ctx.version = request.version;
    if request.version == Version::HTTP_2 && !view::is_within_limits(request, &facts) {
        ctx.reason = Some("head_too_large");
        return Todo::Refuse(431);
    }
    ctx.client = view::client(request, &facts, &ctx.snapshot);
    let known = if ctx.client.trusted { view::request_id(request) } else { None };
    ctx.request_id = known.unwrap_or_else(|| shared.request_ids.next());
    match view::view(request, ctx.client.secure) {
        Ok(view) => {
            let verdict = decide(&ctx.snapshot, &view);
            ctx.decided(verdict)
        }
        Err(reason) => {
            ctx.reason = Some(reason);
            Todo::Refuse(400)
        }
    }
}

/// Picks the backend for the next attempt. The error has the status for the client.
pub(super) fn next_peer(request: &RequestHeader, ctx: &mut Ctx) -> Result<HttpPeer> {
    let Some((forward, timeouts)) = ctx.forward.as_ref().zip(ctx.timeouts()) else {
        return Error::e_explain(ErrorType::InternalError, "no verdict");
    };
    let group_id = forward.group.0;
    let pick = ctx.group().and_then(|group| {
        let name = group.stickiness.as_ref().map(|stickiness| stickiness.cookie.as_str());
        let cookie = name.and_then(|name| cookie(request, name));
        group.pick(cookie, &ctx.attempts.tried, Now::read())
    });
    let Some(pick) = pick else {
        // Where every backend failed, the last failure is the answer; otherwise none could be asked.
        let (status, reason) = match ctx.attempts.failure {
            Some(failure) => (failure.status.unwrap_or(502), failure.reason),
            None => (503, "no_backend"),
        };
        ctx.reason.get_or_insert(reason);
        return Error::e_explain(ErrorType::HTTPStatus(status), "no backend is eligible");
    };
    ctx.attempt(pick);
    match ctx.backend() {
        Some(backend) => Ok(peer::peer(backend, group_id, timeouts)),
        None => Error::e_explain(ErrorType::InternalError, "the picked backend is gone"),
    }
}

fn cookie<'a>(request: &'a RequestHeader, name: &str) -> Option<&'a str> {
    request.headers.get_all(COOKIE).iter().find_map(|value| cookie_value(value.as_bytes(), name))
}

/// An attempt failed: a backend that refuses connections is taken out of the rotation at once.
pub(super) fn note_failed_attempt(ctx: &mut Ctx, error: &Error) {
    let failure = classify(error);
    ctx.attempts.failure = Some(failure);
    let Some(backend) = ctx.backend() else { return };
    let reason = failure.reason;
    if *error.etype() == ErrorType::ConnectRefused && backend.state.eject(Now::read()) {
        let group = ctx.group().map_or("", |group| &group.name);
        log::warn!("backend {} of {group} refuses connections and is out of the rotation", backend.name);
    }
    log::debug!("request {}: attempt {} at {} failed: {reason}", ctx.request_id, ctx.attempts.tried.len(), backend.name);
}

/// Writes the request's line. `bytes` are those of the bodies, received and sent.
pub(super) fn log(request: &RequestHeader, ctx: &Ctx, status: u16, bytes: (u64, u64), shared: &Shared) {
    let header = |name| request.headers.get(&name).and_then(|value: &http::HeaderValue| value.to_str().ok());
    let forward = ctx.forward.as_ref();
    let tls = ctx.facts.as_ref().and_then(|facts| facts.tls.as_ref());
    let target = String::from_utf8_lossy(request.raw_path());
    shared.log.write(&Record {
        time: SystemTime::now(),
        request_id: &ctx.request_id,
        client: ctx.client.address,
        method: request.method.as_str(),
        host: view::host(request).unwrap_or("-"),
        target: &target,
        protocol: protocol(request.version),
        status,
        bytes_in: bytes.0,
        bytes_out: bytes.1,
        duration_ms: ctx.started.elapsed(),
        site: ctx.site().map(|site| site.name.as_str()),
        route: ctx.route().map(|route| route.name.as_str()),
        user: ctx.user.map(|user| ctx.snapshot.users.user_name(user)),
        app: forward.and_then(|forward| forward.app).map(|app| ctx.snapshot.users.app_name(app)),
        group: ctx.group().map(|group| group.name.as_str()),
        backend: ctx.backend().map(|backend| backend.name.as_str()),
        attempts: ctx.attempts.count,
        connect_ms: ctx.attempts.connect,
        first_byte_ms: ctx.attempts.first_byte,
        tls: tls.map(|tls| tls.version),
        sni: tls.map(|tls| tls.sni.as_str()),
        reason: ctx.reason,
        referer: header(REFERER),
        user_agent: header(USER_AGENT),
    });
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "HTTP/2.0",
        Version::HTTP_10 => "HTTP/1.0",
        _ => "HTTP/1.1",
    }
}

/// The head and body of an answer of our own: a redirect or a small page.
pub(super) fn own_answer(ctx: &Ctx, status: u16, location: Option<String>) -> Result<(ResponseHeader, String)> {
    let body = if location.is_some() { String::new() } else { page::page(status, &ctx.request_id) };
    let mut head = ResponseHeader::build(status, Some(6))?;
    head.insert_header(CONTENT_LENGTH, body.len())?;
    match location {
        Some(location) => head.insert_header(LOCATION, location)?,
        None => head.insert_header(CONTENT_TYPE, "text/html; charset=utf-8")?,
    }
    head.insert_header("X-Request-Id", ctx.request_id.as_str())?;
    if status == 503 {
        head.insert_header(RETRY_AFTER, "5")?;
    }
    apply::ours(&mut head, ctx)?;
    Ok((head, body))
}
