//! What Pingora's filters and the tunnel have in common: considering a request, picking a backend, answering, logging.

use std::time::SystemTime;

use bytes::Bytes;
use http::Version;
use http::header::{ACCEPT, ALLOW, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, LOCATION, REFERER, RETRY_AFTER, USER_AGENT};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType, Result};

use super::ctx::{Answer, Ctx, Todo};
use super::failure::classify;
use super::wire::Facts;
use super::{Shared, apply, page, view};
use crate::balance::peer::tls_reason;
use crate::balance::state::Now;
use crate::balance::sticky::cookie_value;
use crate::config::{RespondBody, Target};
use crate::decide::{Trace, Untraced, decide_traced};
use crate::observe::record::Record;
use crate::rewrite::forwarded::client;
use crate::tls::Preset;

/// Finds out who asks and what is to become of the request.
pub(super) fn consider(request: &RequestHeader, ctx: &mut Ctx, shared: &Shared) -> Todo {
    consider_traced(request, ctx, || shared.request_ids.next(), &mut Untraced)
}

/// As `consider`, and tells which routes lost.
pub(super) fn consider_traced(request: &RequestHeader, ctx: &mut Ctx, next_id: impl FnOnce() -> String, trace: &mut impl Trace) -> Todo {
    let Some(facts) = ctx.facts.clone() else {
        ctx.reason = Some("internal");
        return Todo::Answer(Answer::Refuse(500));
    };
    ctx.version = request.version;
    if request.version == Version::HTTP_2 && !view::is_within_limits(request, &facts) {
        ctx.reason = Some("head_too_large");
        return Todo::Answer(Answer::Refuse(431));
    }
    let rules = &ctx.snapshot.rules;
    ctx.client = client(facts.peer.ip(), facts.tls.is_some(), &request.headers, |address| rules.trusts(address));
    let known = if ctx.client.trusted { view::request_id(request) } else { None };
    ctx.request_id = known.unwrap_or_else(next_id);
    match view::view(request, ctx.client, &facts.listener.name, &ctx.request_id) {
        Ok(view) => {
            let verdict = decide_traced(&ctx.snapshot.rules, &view, trace);
            let todo = ctx.decided(verdict);
            if is_misdirected(ctx, &facts) {
                ctx.reason = Some("misdirected");
                ctx.forward = None;
                return Todo::Answer(Answer::Refuse(421));
            }
            todo
        }
        Err(reason) => {
            ctx.reason = Some(reason);
            Todo::Answer(Answer::Refuse(400))
        }
    }
}

/// Whether the connection was made by the rules of another site, which allow an older TLS than this one does (RFC 9110 section
/// 15.5.20): the client asks again on a connection of its own.
fn is_misdirected(ctx: &Ctx, facts: &Facts) -> bool {
    let modern = ctx.site().and_then(|site| site.config.tls.as_ref()).is_some_and(|tls| tls.preset == Preset::Modern);
    modern && facts.tls.as_ref().is_some_and(|tls| tls.version != "TLSv1.3")
}

/// Whether a body of this length is more than the route takes. The reason is noted.
pub(super) fn is_too_large(ctx: &mut Ctx, length: u64) -> bool {
    let too_large = ctx.route().and_then(|route| route.max_body).is_some_and(|limit| length > limit);
    if too_large {
        ctx.reason = Some("body_too_large");
    }
    too_large
}

/// What the next connection is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Request,
    Tunnel,
}

/// Picks the backend for the next attempt. The error has the status for the client.
pub(super) fn next_peer(request: &RequestHeader, ctx: &mut Ctx, purpose: Purpose) -> Result<HttpPeer> {
    let Some(timeouts) = ctx.timeouts() else {
        return Error::e_explain(ErrorType::InternalError, "no verdict");
    };
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
    match (ctx.group(), ctx.backend()) {
        (Some(group), Some(backend)) if purpose == Purpose::Tunnel => group.connect.http1_peer(&backend.address, &backend.host, timeouts),
        (Some(group), Some(backend)) => group.connect.peer(&backend.address, &backend.host, timeouts),
        _ => Error::e_explain(ErrorType::InternalError, "the picked backend is gone"),
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
    if matches!(reason, "backend_tls" | "connect_error") && backend.state.may_complain(Now::read()) {
        log::warn!("backend {}: no connection: {}", backend.name, tls_reason(error));
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
        site: ctx.site().map(|site| site.config.name.as_str()),
        route: ctx.route().map(|route| route.name.as_str()),
        user: ctx.user.map(|user| ctx.snapshot.rules.users.user_name(user)),
        app: forward.and_then(|forward| forward.app).map(|app| ctx.snapshot.rules.users.app_name(app)),
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

/// The head and body of an answer of our own.
pub(super) fn own_answer(request: &RequestHeader, ctx: &Ctx, answer: &Answer) -> Result<(ResponseHeader, Bytes)> {
    let (status, body, content_type) = match answer {
        Answer::Redirect { status, .. } => (*status, Bytes::new(), None),
        Answer::Respond => respond(request, ctx),
        Answer::Refuse(status) => {
            let page = error_page(request, ctx, *status);
            (*status, page.body.into(), Some(page.content_type))
        }
    };
    let mut head = ResponseHeader::build(status, Some(8))?;
    // RFC 9110 section 8.6: such an answer has no length.
    if status != 204 {
        head.insert_header(CONTENT_LENGTH, body.len())?;
    }
    if let Some(content_type) = content_type {
        head.insert_header(CONTENT_TYPE, content_type)?;
    }
    head.insert_header("X-Request-Id", ctx.request_id.as_str())?;
    match answer {
        Answer::Redirect { location, .. } => head.insert_header(LOCATION, location.as_str())?,
        Answer::Respond => apply::respond(&mut head, ctx, request)?,
        Answer::Refuse(503) => head.insert_header(RETRY_AFTER, retry_after(ctx))?,
        Answer::Refuse(405) => head.insert_header(ALLOW, allowed_methods(request, ctx))?,
        Answer::Refuse(_) => {}
    }
    apply::ours(&mut head, ctx, request)?;
    Ok((head, body))
}

fn respond(request: &RequestHeader, ctx: &Ctx) -> (u16, Bytes, Option<&'static str>) {
    let Some(Target::Respond(respond)) = ctx.route().map(|route| &route.target) else { return (500, Bytes::new(), None) };
    let status = respond.status.as_u16();
    match &respond.body {
        RespondBody::Empty => (status, Bytes::new(), None),
        RespondBody::Text(text) => (status, apply::filled(text, ctx, request).into(), Some("text/plain; charset=utf-8")),
        RespondBody::File { content, content_type, .. } => (status, content.clone(), Some(*content_type)),
    }
}

fn error_page(request: &RequestHeader, ctx: &Ctx, status: u16) -> page::Page {
    let site = ctx.site().map(|site| &site.config);
    let pages = site.map_or(&ctx.snapshot.rules.error_pages, |site| &site.error_pages);
    let closed = site.and_then(|site| site.maintenance.as_ref()).filter(|_| ctx.reason == Some("maintenance"));
    let own = closed.and_then(|closed| closed.page.as_deref()).or_else(|| pages.page(status));
    let accept = request.headers.get(ACCEPT).and_then(|value| value.to_str().ok());
    let reason = ctx.reason.filter(|_| pages.details);
    page::page(&page::Facts { status, request_id: &ctx.request_id, reason }, own, accept)
}

/// When to come back: a few seconds for a backend, longer for a site that is closed.
fn retry_after(ctx: &Ctx) -> u64 {
    let closed = ctx.site().and_then(|site| site.config.maintenance.as_ref()).filter(|_| ctx.reason == Some("maintenance"));
    closed.map_or(5, |closed| closed.retry_after.as_secs())
}

/// What the routes for this path take (RFC 9110 section 15.5.6).
fn allowed_methods(request: &RequestHeader, ctx: &Ctx) -> String {
    let Some(site) = ctx.site() else { return String::new() };
    let path = crate::routing::path::normalize(request.uri.path().as_bytes()).unwrap_or_default();
    let routes = site.paths.find(&path);
    let routes = routes.iter().filter_map(|route| site.config.routes.get(*route as usize));
    let mut methods: Vec<&str> = routes.flat_map(|route| &route.conditions.methods).map(http::Method::as_str).collect();
    if methods.contains(&"GET") {
        methods.push("HEAD");
    }
    methods.sort_unstable();
    methods.dedup();
    methods.join(", ")
}
