//! The life of one client connection.
//!
//! It is parked without any buffer, wakes on the first byte, gets its whole head read and judged here, and is lent to
//! Pingora for exactly one request; then it is parked again. Upgrades are tunnelled by the gate itself. HTTP/2
//! connections are handed to Pingora as they are.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::Poll;
use std::time::SystemTime;

use pingora::apps::HttpServerApp as _;
use pingora::apps::ServerApp as _;
use pingora::protocols::http::ServerSession;
use pingora::server::ShutdownWatch;
use pingora_proxy::{HttpProxy, ProxyHttp};
use tokio::io::AsyncWriteExt as _;
use tokio::time::timeout;

use super::judge::{Head, Judged, escaped_target, judge};
use super::wire::{Conn, Home, Lent};
use super::{Shared, page};
use crate::observe::record::Record;

/// How long a refused client may take to accept its answer.
const REFUSAL: std::time::Duration = std::time::Duration::from_secs(5);

/// How long a connection without a request stays once the process stops: longer than a request is on its way.
const LAST_CALL: std::time::Duration = std::time::Duration::from_secs(1);

/// Serves connections with one carrier; cheap to share.
pub(super) struct Gate<F: ProxyHttp> {
    pub(super) carrier: Arc<HttpProxy<F>>,
    pub(super) shared: Arc<Shared>,
}

impl<F> Gate<F>
where
    F: ProxyHttp + Send + Sync + 'static,
    F::CTX: Send + Sync,
{
    /// Serves a connection to its end.
    pub(super) async fn serve(self: Arc<Self>, mut conn: Conn) {
        let mut drain = conn.facts.finish.clone();
        let mut served = 0;
        loop {
            // The large futures are boxed, so that the task of a parked connection stays small.
            let head = match next_head(&mut conn, &mut drain).await {
                Next::Head(head) => head,
                Next::H2 => return Box::pin(self.serve_h2(conn, &drain)).await,
                Next::Gone => return,
                Next::Closing => return Box::pin(conn.leave()).await,
                Next::Bad(status, reason) => return Box::pin(self.refuse(conn, status, reason)).await,
            };
            let head = with_escaped_target(&mut conn, head);
            served += 1;
            if head.upgrade {
                return Box::pin(super::tunnel::tunnel(&self.shared, conn, head)).await;
            }
            let last = served >= conn.facts.listener.max_requests;
            match Box::pin(self.lend(conn, head, last, &drain)).await {
                Some(back) => conn = back,
                None => return,
            }
        }
    }

    /// Hands a connection that speaks HTTP/2 to Pingora for good: it has framing, and many requests at once, of its own.
    async fn serve_h2(&self, mut conn: Conn, drain: &ShutdownWatch) {
        conn.h2 = true;
        let stream = Box::new(Lent::new(conn, Arc::default()));
        // A panic in one of its requests has ended that request's own task.
        let _ = unwinding(self.carrier.process_new(stream, drain)).await;
    }

    /// Lends the connection for one request. `Some`: it may carry another one.
    async fn lend(&self, mut conn: Conn, head: Head, last: bool, drain: &ShutdownWatch) -> Option<Conn> {
        (conn.framing, conn.wrote) = (head.framing, false);
        let Ok(body) = conn.framing.advance(conn.inbox.get(head.length..).unwrap_or_default()) else {
            Box::pin(self.refuse(conn, 400, "bad_chunk")).await;
            return None;
        };
        // The buffer itself becomes Pingora's: no copy, and no read of its own.
        let end = head.length + body;
        let prefix = if end == conn.inbox.len() { std::mem::take(&mut conn.inbox) } else { conn.inbox.split_to(end) };
        let home = Arc::new(Home::new(last));
        let mut session = ServerSession::new_http1(Box::new(Lent::new(conn, home.clone())));
        session.set_pipelined_prefix(prefix);
        session.set_connection_user_context(Some(Box::new(home.clone())));
        // What Pingora gives back is the loan: it is dropped at once, and the connection is home.
        let carried = unwinding(async { self.carrier.process_new_http(session, drain).await.is_some() }).await;
        let conn = home.take()?;
        self.take_back(conn, &home, carried).await
    }

    /// The loan is back: what is left to be said is said here.
    async fn take_back(&self, mut conn: Conn, home: &Home, carried: Result<bool, Panicked>) -> Option<Conn> {
        if home.is_dropped() {
            return None;
        }
        if let Err(Panicked) = carried {
            log::error!("a request panicked; its connection ends, all others go on");
            if !conn.wrote {
                Box::pin(self.refuse(conn, 500, "panic")).await;
            }
            return None;
        }
        if !home.is_admitted() {
            // The judge has a gap: it must be at least as strict as Pingora.
            log::warn!("a request was refused by the carrier itself");
            self.log_refusal(&conn, 400, "carrier");
        }
        match home.fault() {
            Some(_) if !conn.wrote => {
                Box::pin(self.refuse(conn, 400, "bad_chunk")).await;
                None
            }
            None if carried == Ok(true) && conn.framing == super::framing::Framing::Done && !conn.ended => {
                timeout(conn.facts.listener.send_timeout, conn.flush()).await.ok()?.ok()?;
                Some(conn)
            }
            _ => {
                Box::pin(conn.leave()).await;
                None
            }
        }
    }

    /// Our own answer to what never reaches Pingora; logged here, because Pingora logs none of these.
    async fn refuse(&self, mut conn: Conn, status: u16, reason: &'static str) {
        let id = self.log_refusal(&conn, status, reason);
        let snapshot = self.shared.current.pin();
        let pages = &snapshot.rules.error_pages;
        let facts = page::Facts { status, request_id: &id, reason: Some(reason).filter(|_| pages.details) };
        let body = page::page(&facts, pages.page(status), None).body;
        let text = http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or("Refused");
        let head = format!(
            "HTTP/1.1 {status} {text}\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {}\r\nX-Request-Id: {id}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        // A client that does not take its answer has none.
        let _ = timeout(REFUSAL, conn.wire.write_all([head, body].concat().as_bytes())).await;
        conn.framing = super::framing::Framing::UntilClose;
        conn.leave().await;
    }

    fn log_refusal(&self, conn: &Conn, status: u16, reason: &'static str) -> String {
        let id = self.shared.request_ids.next();
        let facts = &conn.facts;
        self.shared.log.write(&Record {
            client: facts.peer.ip().to_canonical(),
            status,
            tls: facts.tls.as_ref().map(|tls| tls.version),
            sni: facts.tls.as_ref().map(|tls| tls.sni.as_str()),
            reason: Some(reason),
            ..Record::empty(&id, SystemTime::now())
        });
        id
    }
}

// === The next head ===

/// What a client sends first that speaks HTTP/2 (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

enum Next {
    Head(Head),
    /// HTTP/2, by ALPN or by prior knowledge.
    H2,
    /// Nobody is there any more.
    Gone,
    /// The connection ends for our own reasons.
    Closing,
    Bad(u16, &'static str),
}

/// Waits for the next request's head and judges it.
async fn next_head(conn: &mut Conn, drain: &mut ShutdownWatch) -> Next {
    if conn.inbox.is_empty() {
        let draining = *drain.borrow();
        let woke = tokio::select! {
            biased;
            woke = conn.parked() => Some(woke),
            // Parked connections are the gate's: Pingora does not know them.
            _ = drain.wait_for(|draining| *draining), if !draining => None,
            () = tokio::time::sleep(LAST_CALL), if draining => return Next::Closing,
        };
        let woke = match woke {
            Some(woke) => woke,
            // A request may be on its way: it is waited for, answered, and told that it was the last.
            None => match timeout(LAST_CALL, conn.parked()).await {
                Ok(woke) => woke,
                Err(_) => return Next::Closing,
            },
        };
        if !woke {
            return if conn.ended { Next::Gone } else { Next::Closing };
        }
    }
    if let Some(next) = judged(conn) {
        return next;
    }
    // One deadline for the whole head, however it trickles in.
    let deadline = conn.facts.listener.header_deadline;
    let rest = async {
        loop {
            if !conn.more().await {
                return Next::Gone;
            }
            if let Some(next) = judged(conn) {
                return next;
            }
        }
    };
    Box::pin(timeout(deadline, rest)).await.unwrap_or(Next::Bad(408, "header_deadline"))
}

/// Escapes what Pingora would refuse in the target; the head has another length then.
fn with_escaped_target(conn: &mut Conn, head: Head) -> Head {
    let Some(escaped) = escaped_target(conn.inbox.get(..head.length).unwrap_or_default()) else { return head };
    let mut inbox = bytes::BytesMut::from(escaped.as_slice());
    inbox.extend_from_slice(conn.inbox.get(head.length..).unwrap_or_default());
    conn.inbox = inbox;
    Head { length: escaped.len(), ..head }
}

fn judged(conn: &mut Conn) -> Option<Next> {
    // RFC 9112 section 2.2: empty lines before a request are ignored.
    while conn.inbox.starts_with(b"\r\n") {
        bytes::Buf::advance(&mut conn.inbox, 2);
    }
    if conn.inbox.is_empty() || *conn.inbox == *b"\r" {
        return None;
    }
    if conn.inbox.starts_with(PREFACE) && conn.is_fresh() {
        return Some(Next::H2);
    }
    if PREFACE.starts_with(&conn.inbox) && conn.is_fresh() {
        return None;
    }
    match judge(&conn.inbox, conn.facts.listener.max_header_size) {
        Judged::NeedMore => None,
        Judged::Good(head) => Some(Next::Head(head)),
        Judged::Bad(status, reason) => Some(Next::Bad(status, reason)),
    }
}

// === Panics ===

#[derive(Debug, PartialEq)]
pub(super) struct Panicked;

/// Runs a future and turns its panic into an error: it costs one request. What it held is dropped before this returns,
/// so that a loan is home again.
pub(super) async fn unwinding<T>(future: impl Future<Output = T>) -> Result<T, Panicked> {
    let mut future = Some(Box::pin(future));
    std::future::poll_fn(move |cx| {
        let Some(running) = &mut future else { return Poll::Ready(Err(Panicked)) };
        match catch_unwind(AssertUnwindSafe(|| running.as_mut().poll(cx))) {
            Ok(Poll::Ready(value)) => Poll::Ready(Ok(value)),
            Ok(Poll::Pending) => Poll::Pending,
            Err(_) => {
                future = None;
                Poll::Ready(Err(Panicked))
            }
        }
    })
    .await
}
