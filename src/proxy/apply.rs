//! Changes the heads of requests and answers as decided: the one place that edits Pingora's headers.

use std::borrow::Cow;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LOCATION, COOKIE, HOST, HeaderName, LOCATION, REFRESH, SET_COOKIE, STRICT_TRANSPORT_SECURITY};
use http::{HeaderValue, Version};
use pingora::Result;
use pingora::http::{RequestHeader, ResponseHeader};
use smallvec::SmallVec;

use super::ctx::Ctx;
use super::view;
use crate::balance::sticky::without_cookie;
use crate::config::{HostSent, Target};
use crate::decide::Forward;
use crate::rewrite::back::{self, CookieEdit, Public};
use crate::rewrite::forwarded::{is_disguised, is_protected, same_variable};
use crate::rewrite::headers::{HeaderEdit, Name, Value};
use crate::rewrite::template::{Template, Values};
use crate::routing::host::{Captures, normalize_host};
use crate::routing::path;

/// Brings the head of a request into the form that the backend gets. `original` is the client's.
pub(super) fn request(request: &mut RequestHeader, ctx: &Ctx, original: &RequestHeader) -> Result<()> {
    let Some((forward, facts)) = ctx.forward.as_ref().zip(ctx.facts.as_ref()) else { return Ok(()) };
    let trusted = ctx.client.trusted;
    drop_protected(request, trusted);
    drop_secrets(request, ctx);
    if let Some(target) = &forward.target {
        set_target(request, target)?;
    }
    let host = host(request)?;
    let peer = text_value(facts.peer.ip().to_canonical());
    // A trusted proxy has told these already, and only it knows them; of others they are gone by now.
    let told = |request: &RequestHeader, name: &str| trusted && request.headers.contains_key(name);
    let real = if trusted { text_value(ctx.client.address) } else { peer.clone() };
    let chain = if told(request, "x-forwarded-for") { appended(request, &peer) } else { peer };
    request.insert_header("X-Forwarded-For", chain)?;
    if !told(request, "x-forwarded-proto") {
        request.insert_header("X-Forwarded-Proto", HeaderValue::from_static(if ctx.client.secure { "https" } else { "http" }))?;
    }
    if let Some(host) = host.clone()
        && !told(request, "x-forwarded-host")
    {
        request.insert_header("X-Forwarded-Host", host)?;
    }
    if !told(request, "x-forwarded-port") {
        request.insert_header("X-Forwarded-Port", HeaderValue::from(facts.local_port))?;
    }
    request.insert_header("X-Real-IP", real)?;
    request.insert_header("X-Request-Id", owned_value(ctx.request_id.clone()))?;
    request.append_header("Via", HeaderValue::from_static(via(ctx.version)))?;
    if let Some(mount) = forward.mount.as_ref().filter(|mount| !mount.prefix.is_empty()) {
        request.insert_header("X-Forwarded-Prefix", owned_value(mount.prefix.clone()))?;
    }
    cookies(request, ctx)?;
    send_host(request, ctx, host.is_some())?;
    let edits = ctx.route().map(|route| route.request_headers.as_ref()).unwrap_or_default();
    edit(request, edits, ctx, original)
}

/// The `Host` that the group's backends are to see.
fn send_host(request: &mut RequestHeader, ctx: &Ctx, has_host: bool) -> Result<()> {
    let Some((group, backend)) = ctx.group().zip(ctx.backend()) else { return Ok(()) };
    let default_port = if group.connect.is_tls() { ":443" } else { ":80" };
    let host = match &group.host {
        // A backend of HTTP/1.1 cannot do without (RFC 9112 section 3.2).
        HostSent::Keep if has_host => return Ok(()),
        HostSent::Fixed(host) => host,
        HostSent::Keep | HostSent::Backend if backend.host.starts_with("unix:") => "localhost",
        HostSent::Keep | HostSent::Backend => backend.host.strip_suffix(default_port).unwrap_or(&backend.host),
    };
    request.insert_header(HOST, host)?;
    // HTTP/2 sends the authority in the first place.
    if request.uri.authority().is_some() {
        let target = request.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str).to_owned();
        set_target(request, &target)?;
    }
    Ok(())
}

// === Edits of the configuration ===

/// What requests and answers have in common for edits.
trait Head {
    fn insert(&mut self, name: &Name, value: HeaderValue) -> Result<()>;
    fn append(&mut self, name: &Name, value: HeaderValue) -> Result<()>;
    fn remove(&mut self, name: &HeaderName);
    fn take(&mut self, name: &HeaderName) -> SmallVec<[HeaderValue; 2]>;
}

macro_rules! head {
    ($head:ty) => {
        impl Head for $head {
            fn insert(&mut self, name: &Name, value: HeaderValue) -> Result<()> {
                self.insert_header(name.written.clone(), value)
            }
            fn append(&mut self, name: &Name, value: HeaderValue) -> Result<()> {
                self.append_header(name.written.clone(), value).map(drop)
            }
            fn remove(&mut self, name: &HeaderName) {
                self.remove_header(name);
            }
            fn take(&mut self, name: &HeaderName) -> SmallVec<[HeaderValue; 2]> {
                let values = self.headers.get_all(name).iter().cloned().collect();
                self.remove_header(name);
                values
            }
        }
    };
}

head!(RequestHeader);
head!(ResponseHeader);

fn edit(head: &mut impl Head, edits: &[HeaderEdit], ctx: &Ctx, original: &RequestHeader) -> Result<()> {
    for edit in edits {
        match edit {
            HeaderEdit::Rename { from, to } => {
                for value in head.take(from) {
                    head.append(to, value)?;
                }
            }
            HeaderEdit::Remove(name) => head.remove(name),
            HeaderEdit::Set { name, value } => head.insert(name, value_for(value, ctx, original))?,
            HeaderEdit::Add { name, value } => head.append(name, value_for(value, ctx, original))?,
        }
    }
    Ok(())
}

fn value_for(value: &Value, ctx: &Ctx, original: &RequestHeader) -> HeaderValue {
    match value {
        Value::Fixed { value, .. } => value.clone(),
        Value::Filled(template) => owned_value(filled(template, ctx, original)),
    }
}

/// A text with the values of this request. They are worked out anew: few requests need them.
pub(super) fn filled(template: &Template, ctx: &Ctx, original: &RequestHeader) -> String {
    let listener = ctx.facts.as_ref().map_or("", |facts| facts.listener.name.as_str());
    let Ok(view) = view::view(original, ctx.client, listener, &ctx.request_id) else { return String::new() };
    let host = normalize_host(view.host).unwrap_or_default();
    let path = path::normalize(view.path).unwrap_or_default();
    let query = view.query.and_then(|query| path::normalize_query(query).ok());
    let users = &ctx.snapshot.rules.users;
    let of_host = ctx.snapshot.rules.hosts.find(&host).filter(|(site, _)| Some(*site) == ctx.site).map(|(_, captures)| captures);
    let of_host = of_host.unwrap_or_default();
    let mut captures = Captures::new();
    if let Some(route) = ctx.route() {
        route.pattern.capture(&path, &mut captures);
    }
    captures.extend(of_host.iter().copied());
    template.fill(&Values {
        method: view.method,
        secure: view.secure,
        host: &host,
        path: &path,
        query: query.as_deref(),
        client: Some(view.client),
        request_id: view.request_id,
        site: ctx.site().map_or("", |site| &site.config.name),
        route: ctx.route().map_or("", |route| &route.name),
        user: ctx.user.map_or("", |user| users.user_name(user)),
        app: ctx.forward.as_ref().and_then(|forward| forward.app).map_or("", |app| users.app_name(app)),
        group: ctx.group().map_or("", |group| &group.name),
        backend: ctx.backend().map_or("", |backend| &backend.name),
        headers: view.headers,
        trusted: view.trusted,
        secrets: ctx.site().map(|site| site.config.secret_headers.as_slice()).unwrap_or_default(),
        captures: &captures,
    })
}

/// The headers of a route's own answer.
pub(super) fn respond(head: &mut ResponseHeader, ctx: &Ctx, original: &RequestHeader) -> Result<()> {
    match ctx.route().map(|route| &route.target) {
        Some(Target::Respond(respond)) => edit(head, &respond.headers, ctx, original),
        _ => Ok(()),
    }
}

// === Requests ===

/// What only we may say is not the client's to say, whichever route it takes and however it spells it.
fn drop_secrets(request: &mut RequestHeader, ctx: &Ctx) {
    let secrets = ctx.site().map(|site| site.config.secret_headers.as_slice()).unwrap_or_default();
    if secrets.is_empty() {
        return;
    }
    let is_secret = |name: &&HeaderName| secrets.iter().any(|secret| same_variable(secret.as_str(), name.as_str()));
    let names: SmallVec<[HeaderName; 4]> = request.headers.keys().filter(is_secret).cloned().collect();
    for name in &names {
        request.remove_header(name);
    }
}

/// What the client may not say about itself, and what nobody means.
fn drop_protected(request: &mut RequestHeader, trusted: bool) {
    let drop = |name: &HeaderName| if trusted { is_disguised(name.as_str()) } else { is_protected(name.as_str()) };
    let names: SmallVec<[HeaderName; 4]> = request.headers.keys().filter(|name| drop(name)).cloned().collect();
    for name in &names {
        request.remove_header(name);
    }
}

/// The host of the request; HTTP/2's authority becomes the header that HTTP/1 backends read.
fn host(request: &mut RequestHeader) -> Result<Option<HeaderValue>> {
    if let Some(host) = request.headers.get(HOST) {
        return Ok(Some(host.clone()));
    }
    let authority = request.uri.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    if let Some(host) = &authority {
        request.insert_header(HOST, host.clone())?;
    }
    Ok(authority)
}

fn set_target(request: &mut RequestHeader, target: &str) -> Result<()> {
    use pingora::OrErr as _;
    let uri = http::Uri::try_from(target).or_err(pingora::ErrorType::InternalError, "a normal path is a URI")?;
    request.set_uri(uri);
    Ok(())
}

/// The chain of a trusted proxy with the proxy appended.
fn appended(request: &RequestHeader, peer: &HeaderValue) -> HeaderValue {
    let mut chain = Vec::new();
    for value in request.headers.get_all("x-forwarded-for") {
        chain.extend_from_slice(value.as_bytes());
        chain.extend_from_slice(b", ");
    }
    chain.extend_from_slice(peer.as_bytes());
    HeaderValue::from_maybe_shared(Bytes::from(chain)).unwrap_or_else(|_| peer.clone())
}

fn via(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "2.0 portcullis",
        Version::HTTP_10 => "1.0 portcullis",
        _ => "1.1 portcullis",
    }
}

fn text_value(value: impl std::fmt::Display) -> HeaderValue {
    owned_value(value.to_string())
}

/// A header value of a text of ours; a byte that may not stand in one makes it empty.
fn owned_value(text: String) -> HeaderValue {
    HeaderValue::from_maybe_shared(Bytes::from(text)).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// The sticky cookie is between the client and us; the others go on in one header. HTTP/2 clients send one for each, and
/// HTTP/1 backends read only one (RFC 9113 section 8.2.3).
fn cookies(request: &mut RequestHeader, ctx: &Ctx) -> Result<()> {
    let ours = ctx.group().and_then(|group| group.stickiness.as_ref()).map(|stickiness| stickiness.cookie.as_str());
    let mut headers = 0;
    let mut has_ours = false;
    for value in request.headers.get_all(COOKIE) {
        headers += 1;
        has_ours |= ours.is_some_and(|ours| without_cookie(value.as_bytes(), ours).is_some());
    }
    if headers < 2 && !has_ours {
        return Ok(());
    }
    let mut joined: Vec<u8> = Vec::new();
    for value in request.headers.get_all(COOKIE) {
        let rest = ours.and_then(|ours| without_cookie(value.as_bytes(), ours));
        let kept = rest.as_deref().unwrap_or(value.as_bytes());
        if !joined.is_empty() && !kept.is_empty() {
            joined.extend_from_slice(b"; ");
        }
        joined.extend_from_slice(kept);
    }
    request.remove_header(&COOKIE);
    if !joined.is_empty()
        && let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(joined))
    {
        request.insert_header("Cookie", value)?;
    }
    Ok(())
}

// === Answers ===

/// Brings the head of a backend's answer into the form that the client gets.
pub(super) fn response(response: &mut ResponseHeader, ctx: &Ctx, original: &RequestHeader) -> Result<()> {
    let host = view::host(original).unwrap_or_default();
    let seen = Seen::in_answer(response);
    if seen.of_one_connection {
        drop_hop_by_hop(response);
    }
    if let Some(forward) = ctx.forward.as_ref().filter(|_| seen.of_the_backend) {
        rewrite_back(response, ctx, forward, host)?;
    }
    if let Some(cookie) = sticky_cookie(ctx) {
        response.append_header(SET_COOKIE, owned_value(cookie))?;
    }
    response.append_header("Via", HeaderValue::from_static(via(response.version)))?;
    // RFC 9112 section 2.3: we speak our own version, not the backend's.
    if response.version == Version::HTTP_10 {
        response.set_version(Version::HTTP_11);
    }
    ours(response, ctx, original)
}

/// What an answer has that needs a closer look: most have nothing, and one pass over the names finds that out.
struct Seen {
    /// Headers that belong to one connection (RFC 9110 section 7.6.1).
    of_one_connection: bool,
    /// Headers in which a backend speaks of itself.
    of_the_backend: bool,
}

impl Seen {
    fn in_answer(response: &ResponseHeader) -> Self {
        let mut seen = Seen { of_one_connection: false, of_the_backend: false };
        for name in response.headers.keys() {
            match name.as_str() {
                "connection" => seen.of_one_connection = true,
                name if HOP_BY_HOP.contains(&name) => seen.of_one_connection = true,
                "location" | "content-location" | "refresh" | "set-cookie" => seen.of_the_backend = true,
                _ => {}
            }
        }
        seen
    }
}

const HOP_BY_HOP: [&str; 6] = ["keep-alive", "proxy-connection", "proxy-authenticate", "te", "trailer", "upgrade"];

fn drop_hop_by_hop(response: &mut ResponseHeader) {
    let named = |value: &HeaderValue| value.to_str().unwrap_or_default().to_ascii_lowercase();
    let named: SmallVec<[String; 1]> = response.headers.get_all(CONNECTION).iter().map(named).collect();
    for name in named.iter().flat_map(|value| value.split(',')).map(str::trim).chain(HOP_BY_HOP) {
        // Framing is Pingora's business, also where the backend names it.
        if !matches!(name, "" | "close" | "content-length" | "transfer-encoding") {
            response.remove_header(name);
        }
    }
}

/// What every answer of a site gets, also those that are our own.
pub(super) fn ours(response: &mut ResponseHeader, ctx: &Ctx, original: &RequestHeader) -> Result<()> {
    // RFC 6797 section 7.2: never on plain HTTP.
    if let Some(hsts) = ctx.site().and_then(|site| site.hsts.as_ref())
        && ctx.client.secure
    {
        response.insert_header(STRICT_TRANSPORT_SECURITY, hsts.clone())?;
    }
    let of_route = ctx.route().map(|route| route.response_headers.as_ref());
    let edits = of_route.or_else(|| ctx.site().map(|site| site.config.response_headers.as_ref())).unwrap_or_default();
    edit(response, edits, ctx, original)
}

fn sticky_cookie(ctx: &Ctx) -> Option<String> {
    let pick = ctx.attempts.pick.filter(|pick| !pick.stuck)?;
    ctx.group()?.stickiness.as_ref()?.set_cookie(pick.backend, ctx.client.secure)
}

fn rewrite_back(response: &mut ResponseHeader, ctx: &Ctx, forward: &Forward, host: &str) -> Result<()> {
    let Some(backend) = ctx.backend() else { return Ok(()) };
    let public = Public {
        scheme: if ctx.client.secure { "https" } else { "http" },
        host,
        prefix: forward.mount.as_ref().map_or("", |mount| &mount.prefix),
        app: forward.mount.as_ref().map_or("", |mount| &mount.app),
        backend: [&backend.host, &backend.shown, sent_host(ctx).unwrap_or(&backend.host)],
    };
    for (name, rewrite) in [(LOCATION, back::location as Rewrite), (CONTENT_LOCATION, back::location), (REFRESH, back::refresh)] {
        let new = response.headers.get(&name).and_then(|value| rewrite(&text_of(value), &public));
        if let Some(new) = new {
            response.insert_header(name, value_of(&new))?;
        }
    }
    rewrite_cookies(response, &public, ctx)
}

/// A header as text, each byte one character: what is not rewritten comes out as it went in, whatever its encoding.
fn text_of(value: &HeaderValue) -> Cow<'_, str> {
    value.to_str().map_or_else(|_| Cow::Owned(value.as_bytes().iter().copied().map(char::from).collect()), Cow::Borrowed)
}

/// The reverse of `text_of`.
fn value_of(text: &str) -> HeaderValue {
    let bytes: Vec<u8> = text.chars().map(|c| u8::try_from(c).unwrap_or(b'?')).collect();
    HeaderValue::from_maybe_shared(Bytes::from(bytes)).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// The `Host` that the configuration sends instead of the client's.
fn sent_host(ctx: &Ctx) -> Option<&str> {
    match &ctx.group()?.host {
        HostSent::Fixed(host) => Some(host),
        HostSent::Keep | HostSent::Backend => None,
    }
}

type Rewrite = fn(&str, &Public<'_>) -> Option<String>;

fn rewrite_cookies(response: &mut ResponseHeader, public: &Public<'_>, ctx: &Ctx) -> Result<()> {
    let edit = |value: &HeaderValue| back::set_cookie(&text_of(value), public);
    let edits: SmallVec<[CookieEdit; 4]> = response.headers.get_all(SET_COOKIE).iter().map(edit).collect();
    if edits.contains(&CookieEdit::HostPrefixed) {
        log::warn!(
            "request {}: a `__Host-` cookie cannot be confined to `{}`; use a domain for each user instead",
            ctx.request_id,
            public.app
        );
    }
    if !edits.iter().any(|edit| matches!(edit, CookieEdit::Rewritten(_))) {
        return Ok(());
    }
    let old: Vec<HeaderValue> = response.headers.get_all(SET_COOKIE).iter().cloned().collect();
    response.remove_header(&SET_COOKIE);
    for (value, edit) in old.into_iter().zip(edits) {
        let value = if let CookieEdit::Rewritten(text) = edit { value_of(&text) } else { value };
        response.append_header(SET_COOKIE, value)?;
    }
    Ok(())
}
