//! The filters inside Pingora: each phase in a few lines that ask the modules which decide.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::Version;
use http::header::{CONTENT_LENGTH, EXPECT, TRANSFER_ENCODING};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::protocols::Digest;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType, Result};
use pingora_proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
use tokio::time::timeout;

use super::carry::{Purpose, consider, is_too_large, log, next_peer, note_failed_attempt, own_answer};
use super::ctx::{Answer, Ctx, Todo};
use super::failure::{CLIENT_GONE, Failure, classify, lost_connection, never_processed};
use super::wire::{Facts, Home};
use super::{Shared, apply};

/// Our side of Pingora's proxy.
pub struct Filters {
    shared: Arc<Shared>,
}

impl Filters {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

#[async_trait]
impl ProxyHttp for Filters {
    type CTX = Ctx;

    fn new_ctx(&self) -> Ctx {
        Ctx::new(self.shared.current.pin())
    }

    /// No modules: the built-in compression would look at every request.
    fn init_downstream_modules(&self, _: &mut HttpModules) {}

    /// Despite its name called for every request that the gate lends, before any filter.
    fn on_connection_reuse(&self, session: &mut Session, ctx: &mut Ctx, home: Box<dyn Any + Send + Sync>) {
        if let Ok(home) = home.downcast::<Arc<Home>>() {
            home.admit();
            // The answer says `Connection: close`.
            if home.is_last() {
                session.set_keepalive(None);
            }
            ctx.home = Some(*home);
        }
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut Ctx) -> Result<bool> {
        ctx.facts = facts_of(session);
        let limit = ctx.facts.as_ref().map(|facts| facts.listener.send_timeout);
        session.as_downstream_mut().set_write_timeout(limit);
        match consider(session.req_header(), ctx, &self.shared) {
            Todo::Forward => match content_length(session.req_header()) {
                Some(length) if is_too_large(ctx, length) => answer(session, ctx, &Answer::Refuse(413)).await,
                _ => Ok(false),
            },
            Todo::Answer(own) => answer(session, ctx, &own).await,
            Todo::Drop => {
                session.set_keepalive(None);
                match &ctx.home {
                    Some(home) => home.drop_connection(),
                    // An HTTP/2 stream is reset; its connection may serve domains that are known.
                    None => session.as_downstream_mut().shutdown().await,
                }
                Ok(true)
            }
        }
    }

    async fn upstream_peer(&self, session: &mut Session, ctx: &mut Ctx) -> Result<Box<HttpPeer>> {
        next_peer(session.req_header(), ctx, Purpose::Request).map(Box::new)
    }

    fn fail_to_connect(&self, _: &mut Session, _: &HttpPeer, ctx: &mut Ctx, mut error: Box<Error>) -> Box<Error> {
        note_failed_attempt(ctx, &error);
        // Nothing was sent: any request may go elsewhere.
        error.set_retry(ctx.may_try_again());
        error
    }

    async fn connected_to_upstream(
        &self,
        _: &mut Session,
        reused: bool,
        _: &HttpPeer,
        _fd: std::os::unix::io::RawFd,
        _: Option<&Digest>,
        ctx: &mut Ctx,
    ) -> Result<()> {
        if !reused {
            ctx.connected();
        }
        Ok(())
    }

    async fn upstream_request_filter(&self, session: &mut Session, request: &mut RequestHeader, ctx: &mut Ctx) -> Result<()> {
        // A new attempt sends the body from its beginning.
        ctx.body_sent = 0;
        apply::request(request, ctx, session.req_header())
    }

    async fn request_body_filter(&self, _: &mut Session, body: &mut Option<Bytes>, end: bool, ctx: &mut Ctx) -> Result<()> {
        ctx.body_sent += body.as_ref().map_or(0, |piece| piece.len() as u64);
        if is_too_large(ctx, ctx.body_sent) {
            return Error::e_explain(ErrorType::HTTPStatus(413), "the body is larger than the route takes").map_err(Error::into_down);
        }
        // Pingora bug #935: an empty last piece of an HTTP/2 body is written as a second last chunk, and the next answer
        // on the backend's connection is read out of step.
        if end && body.as_ref().is_some_and(Bytes::is_empty) {
            *body = None;
        }
        Ok(())
    }

    fn error_while_proxy(&self, _: &HttpPeer, session: &mut Session, mut error: Box<Error>, ctx: &mut Ctx, reused: bool) -> Box<Error> {
        note_failed_attempt(ctx, &error);
        // The request may have reached the backend: it is sent again only if that does no harm, if all of it is still
        // here, and if the client has heard nothing yet.
        let repeatable =
            session.req_header().method.is_idempotent() && !session.as_ref().retry_buffer_truncated() && final_head(session).is_none();
        // What HTTP/2 says was not processed can be sent again whatever it is.
        let unprocessed = never_processed(&error) && !session.as_ref().retry_buffer_truncated() && final_head(session).is_none();
        let again = ((repeatable && lost_connection(&error)) || unprocessed) && !ctx.attempts.resent;
        if again && reused {
            // A pooled connection that the backend had closed says nothing against the backend.
            ctx.attempts.tried.pop();
        }
        ctx.attempts.resent |= again;
        error.set_retry(again && ctx.may_try_again());
        error
    }

    async fn response_filter(&self, session: &mut Session, response: &mut ResponseHeader, ctx: &mut Ctx) -> Result<()> {
        if ctx.facts.as_ref().is_some_and(|facts| *facts.finish.borrow()) {
            // The process or its listener began to stop while the backend was at work: the client learns it from this answer.
            session.set_keepalive(None);
        }
        if response.status == http::StatusCode::SWITCHING_PROTOCOLS {
            // Upgrades never get here, so nobody has asked for it.
            return Error::e_explain(ErrorType::InvalidHTTPHeader, "101 without a request for it").map_err(Error::into_up);
        }
        if response.status.is_informational() {
            return Ok(());
        }
        if response.status == http::StatusCode::NO_CONTENT {
            // RFC 9110 section 8.6 and RFC 9112 section 6.1: neither may be there.
            response.remove_header(&TRANSFER_ENCODING);
            response.remove_header(&CONTENT_LENGTH);
        }
        if ctx.version == Version::HTTP_10 {
            // RFC 9112 section 6.1: never chunked. The body ends with the connection where it has no length.
            response.remove_header(&TRANSFER_ENCODING);
        }
        if ctx.attempts.first_byte.is_none() {
            ctx.attempts.first_byte = Some(ctx.started.elapsed());
        }
        if let Some(home) = &ctx.home
            && has_no_body(session.req_header(), response)
        {
            home.answer_complete();
        }
        apply::response(response, ctx, session.req_header())
    }

    fn response_body_filter(&self, _: &mut Session, _: &mut Option<Bytes>, end: bool, ctx: &mut Ctx) -> Result<Option<Duration>> {
        if end && let Some(home) = &ctx.home {
            home.answer_complete();
        }
        Ok(None)
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, ctx: &mut Ctx) -> FailToProxy {
        let mut failure = classify(error);
        if failure.reason == "read_timeout" && !session.as_downstream_mut().is_body_done() {
            // The backend was silent because it waited for the client.
            failure = Failure { status: Some(408), reason: "client_timeout" };
        }
        ctx.reason.get_or_insert(failure.reason);
        let status = failure.status.filter(|_| final_head(session).is_none());
        let faulty = ctx.home.as_ref().is_some_and(|home| home.fault().is_some());
        if let Some(status) = status
            && !faulty
        {
            // Pingora ends the connection once a backend was looked for, so the answer says that.
            session.set_keepalive(None);
            // A client that is gone does not get its answer.
            let _ = answer(session, ctx, &Answer::Refuse(status)).await;
        }
        FailToProxy { error_code: failure.status.unwrap_or(CLIENT_GONE), can_reuse_downstream: false }
    }

    fn suppress_error_log(&self, _: &Session, _: &Ctx, _: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(&self, _: &Session, _: &Ctx, _: &Error, _: ProxyWarnLogContext) -> bool {
        true
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, ctx: &mut Ctx) {
        // The gate answers and logs what it found wrong with a body.
        let by_gate = ctx.home.as_ref().is_some_and(|home| home.fault().is_some()) && final_head(session).is_none();
        if by_gate || !self.shared.log.is_on() {
            return;
        }
        if let Some(error) = error {
            ctx.reason.get_or_insert(classify(error).reason);
        }
        let status = final_head(session).map_or_else(|| if error.is_some() { CLIENT_GONE } else { 0 }, |r| r.status.as_u16());
        let bytes = (session.body_bytes_read() as u64, session.body_bytes_sent() as u64);
        log(session.req_header(), ctx, status, bytes, &self.shared);
    }
}

/// The head that the client has got; interim ones (1xx) do not count, an answer still follows them.
fn final_head(session: &Session) -> Option<&ResponseHeader> {
    session.response_written().filter(|head| !head.status.is_informational())
}

fn facts_of(session: &Session) -> Option<Arc<Facts>> {
    let digest = session.digest()?.proxy_digest.as_ref()?;
    digest.user_data.as_ref()?.downcast_ref::<Arc<Facts>>().cloned()
}

/// Whether the answer ends with its head (RFC 9112 section 6.3).
fn has_no_body(request: &RequestHeader, response: &ResponseHeader) -> bool {
    request.method == http::Method::HEAD
        || matches!(response.status.as_u16(), 204 | 304)
        || response.headers.get(CONTENT_LENGTH).is_some_and(|length| length == "0")
}

/// The length that a request announces; a body without one is counted as it passes.
fn content_length(request: &RequestHeader) -> Option<u64> {
    request.headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

async fn answer(session: &mut Session, ctx: &Ctx, own: &Answer) -> Result<bool> {
    let (head, body) = own_answer(session.req_header(), ctx, own)?;
    let empty = body.is_empty() || session.req_header().method == http::Method::HEAD;
    // Many clients of HTTP/2 lose an answer that comes before they have sent all, so it waits for them a little.
    if ctx.home.is_none() && !session.req_header().headers.contains_key(EXPECT) {
        drain_body(session).await;
    }
    session.write_response_header(Box::new(head), empty).await?;
    if let Some(home) = &ctx.home {
        home.answer_complete();
    }
    if !empty {
        session.write_response_body(Some(body), true).await?;
    }
    Ok(true)
}

/// Reads what an HTTP/2 client is sending, for as long as it does, within bounds. HTTP/1 connections are the gate's to finish.
async fn drain_body(session: &mut Session) {
    let drain = async {
        let mut left = LATE_BODY;
        while left > 0 && !session.as_downstream_mut().is_body_done() {
            match timeout(PAUSE, session.as_downstream_mut().read_request_body()).await {
                Ok(Ok(Some(piece))) => left = left.saturating_sub(piece.len()),
                // It has sent all, waits for us, or is gone.
                _ => return,
            }
        }
    };
    let _ = timeout(LATE, drain).await;
}

/// How much of a body is read from an HTTP/2 client that will be answered without it, for how long, and how long a pause may be.
const LATE_BODY: usize = 16 << 20;
const LATE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(200);
