//! A client's connection, and the loan of it to Pingora for one request.
//!
//! The gate owns a `Conn`. For a request it is lent: the loan (`Lent`) is the stream that Pingora sees, shows it one
//! request and never a byte beyond it, and brings the connection home when it is dropped, on success, error or panic
//! alike. So the gate always has the last word: keep alive, linger, or answer itself.

use std::future::{Future as _, poll_fn};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use bytes::BytesMut;
use pingora::http::ResponseHeader;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::SslDigest;
use pingora::protocols::{self, ALPN, SocketDigest, TimingDigest};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::time::{Instant, Sleep, sleep, timeout};

use super::framing::Framing;
use crate::config::Listener;

/// Head and small body of an answer leave together; beyond this a write goes out at once.
const COMBINE: usize = 16 << 10;
/// How much, and for how long, is still read from a client that was answered already, so that the answer is not lost
/// in a reset (RFC 9112 section 9.6).
const LINGER_BYTES: usize = 256 << 10;
const LINGER: Duration = Duration::from_secs(2);
/// How long a client may take to accept the rest of an answer before it is cut off.
const LAST_WRITE: Duration = Duration::from_secs(5);

/// Plain TCP or TLS: the rest of the gate cannot tell.
pub(super) trait Wire: AsyncRead + AsyncWrite + Unpin + Send + Sync {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send + Sync> Wire for T {}

/// What is known of a connection for as long as it lives.
pub struct Facts {
    pub peer: std::net::SocketAddr,
    pub local_port: u16,
    pub listener: Arc<Listener>,
    pub tls: Option<TlsFacts>,
    /// Turns true when the connection is to finish. It is Pingora's `ShutdownWatch` as well.
    pub finish: tokio::sync::watch::Receiver<bool>,
    pub(super) fd: i32,
}

pub struct TlsFacts {
    pub sni: String,
    pub version: &'static str,
}

pub(super) struct Conn {
    pub(super) wire: Box<dyn Wire>,
    /// Read from the wire, not yet part of a request that was handed over.
    pub(super) inbox: BytesMut,
    /// Bytes of the answer that wait to leave together.
    outbox: Vec<u8>,
    /// How far the current request's body has come.
    pub(super) framing: Framing,
    /// Something of the answer is (or will be) on the wire.
    pub(super) wrote: bool,
    /// The client has sent its end of stream.
    pub(super) ended: bool,
    /// HTTP/2 has framing of its own: everything passes through.
    pub(super) h2: bool,
    /// No request was lent yet.
    fresh: bool,
    parked: Instant,
    /// One timer for the life of the connection: re-armed when it fires, not for each request.
    idle: Pin<Box<Sleep>>,
    pub(super) facts: Arc<Facts>,
    socket: Arc<SocketDigest>,
    ssl: Option<Arc<SslDigest>>,
    proxy: Arc<ProxyDigest>,
}

// === impl Conn ===

impl Conn {
    pub(super) fn new(wire: Box<dyn Wire>, facts: Facts) -> Self {
        let socket = SocketDigest::from_raw_fd(facts.fd);
        // Set already only if the digest was shared, and it is new.
        let _ = socket.peer_addr.set(Some(facts.peer.into()));
        let facts = Arc::new(facts);
        let ssl = facts.tls.as_ref().map(|tls| Arc::new(SslDigest::new("", tls.version, None, None, Vec::new())));
        // Pingora hands this digest to the filters, for HTTP/1 and HTTP/2 alike: it carries our facts.
        let head = ResponseHeader::build_no_case(200, Some(0)).expect("200 is a status");
        let proxy = Arc::new(ProxyDigest::new(Box::new(head), Some(Box::new(facts.clone()))));
        let idle = Box::pin(sleep(facts.listener.keep_alive));
        Self {
            wire,
            inbox: BytesMut::new(),
            outbox: Vec::new(),
            framing: Framing::Done,
            wrote: false,
            ended: false,
            h2: false,
            fresh: true,
            parked: Instant::now(),
            idle,
            socket: Arc::new(socket),
            ssl,
            proxy,
            facts,
        }
    }

    /// One read into the inbox. While it waits it holds no buffer: the scratch space is on the stack of `poll`.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut scratch = [MaybeUninit::<u8>::uninit(); 4096];
        let mut buffer = ReadBuf::uninit(&mut scratch);
        ready!(Pin::new(&mut self.wire).poll_read(cx, &mut buffer))?;
        self.ended |= buffer.filled().is_empty();
        self.inbox.extend_from_slice(buffer.filled());
        Poll::Ready(Ok(buffer.filled().len()))
    }

    /// Reads more; `false`: nobody is there any more.
    pub(super) async fn more(&mut self) -> bool {
        matches!(poll_fn(|cx| self.poll_more(cx)).await, Ok(1..))
    }

    /// Waits for the first byte of a request, without any memory but this struct. `false`: the client left, or has been
    /// idle for too long.
    pub(super) async fn parked(&mut self) -> bool {
        (self.inbox, self.outbox) = Default::default();
        self.parked = Instant::now();
        let keep_alive = self.facts.listener.keep_alive;
        poll_fn(|cx| {
            if let Poll::Ready(read) = self.poll_more(cx) {
                return Poll::Ready(matches!(read, Ok(1..)));
            }
            while self.idle.as_mut().poll(cx).is_ready() {
                if self.parked.elapsed() >= keep_alive {
                    return Poll::Ready(false);
                }
                let due = self.parked + keep_alive;
                self.idle.as_mut().reset(due);
            }
            Poll::Pending
        })
        .await
    }

    /// Whether this may still become an HTTP/2 connection.
    pub(super) fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// Sends what waits in the outbox.
    pub(super) async fn flush(&mut self) -> io::Result<()> {
        poll_fn(|cx| self.poll_drain_outbox(cx)).await?;
        self.wire.flush().await
    }

    /// Closes without losing the answer: with unread input a plain close sends a reset, and the client may never see it.
    pub(super) async fn leave(mut self) {
        let last = async {
            self.flush().await?;
            self.wire.shutdown().await
        };
        if !matches!(timeout(LAST_WRITE, last).await, Ok(Ok(()))) || self.ended {
            return;
        }
        let mut left = LINGER_BYTES;
        let mut sink = BytesMut::with_capacity(4096);
        let drain = async {
            while left > 0 {
                sink.clear();
                match self.wire.read_buf(&mut sink).await {
                    Ok(n @ 1..) => left = left.saturating_sub(n),
                    _ => break,
                }
            }
        };
        // The client has closed, or has had its time.
        let _ = timeout(LINGER, drain).await;
    }

    fn poll_drain_outbox(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut sent = 0;
        let result = loop {
            let rest = self.outbox.get(sent..).unwrap_or_default();
            if rest.is_empty() {
                break Poll::Ready(Ok(()));
            }
            match Pin::new(&mut self.wire).poll_write(cx, rest) {
                Poll::Ready(Ok(0)) => break Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(n)) => sent += n,
                Poll::Ready(Err(error)) => break Poll::Ready(Err(error)),
                Poll::Pending => break Poll::Pending,
            }
        };
        self.outbox.drain(..sent.min(self.outbox.len()));
        result
    }
}

// === The loan ===

/// Where a lent connection comes back to, and what is said about the request meanwhile.
#[derive(Default)]
pub struct Home {
    conn: Mutex<Option<Conn>>,
    /// No further request is taken on this connection.
    last: bool,
    /// Pingora took the request in, so `logging` will be called.
    admitted: AtomicBool,
    /// The answer is complete: what is left of the request is not worth reading for long.
    answered: AtomicBool,
    /// The connection is to be closed without an answer.
    dropped: AtomicBool,
    /// The body broke the rules and its read was failed by us; then the gate answers and logs, not Pingora.
    fault: OnceLock<&'static str>,
}

impl Home {
    pub(super) fn new(last: bool) -> Self {
        Self { last, ..Self::default() }
    }
    pub(super) fn is_last(&self) -> bool {
        self.last
    }
    pub(super) fn take(&self) -> Option<Conn> {
        self.conn.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
    pub(super) fn admit(&self) {
        self.admitted.store(true, Ordering::Relaxed);
    }
    pub(super) fn is_admitted(&self) -> bool {
        self.admitted.load(Ordering::Relaxed)
    }
    pub(super) fn answer_complete(&self) {
        self.answered.store(true, Ordering::Relaxed);
    }
    pub(super) fn drop_connection(&self) {
        self.dropped.store(true, Ordering::Relaxed);
    }
    pub(super) fn is_dropped(&self) -> bool {
        self.dropped.load(Ordering::Relaxed)
    }
    pub(super) fn fault(&self) -> Option<&'static str> {
        self.fault.get().copied()
    }
}

/// The stream that Pingora works on.
pub(super) struct Lent {
    /// Invariant: `Some` until `drop`.
    conn: Option<Conn>,
    home: Arc<Home>,
    /// What may still be read after the answer is complete: bytes, and until when.
    late: Option<(usize, Pin<Box<Sleep>>)>,
}

impl Lent {
    pub(super) fn new(mut conn: Conn, home: Arc<Home>) -> Self {
        conn.fresh = false;
        Self { conn: Some(conn), home, late: None }
    }

    fn conn(&mut self) -> &mut Conn {
        self.conn.as_mut().expect("only drop takes the connection")
    }

    /// After a complete answer Pingora goes on reading the request: not for ever.
    fn poll_late(&mut self, cx: &mut Context<'_>, read: usize) -> Poll<()> {
        let (left, until) = self.late.get_or_insert_with(|| (LINGER_BYTES, Box::pin(sleep(LINGER))));
        *left = left.saturating_sub(read);
        if *left == 0 { Poll::Ready(()) } else { until.as_mut().poll(cx) }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        *self.home.conn.lock().unwrap_or_else(PoisonError::into_inner) = self.conn.take();
    }
}

impl AsyncRead for Lent {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let lent = &mut *self;
        let before = out.filled().len();
        if lent.home.answered.load(Ordering::Relaxed) && lent.conn().framing != Framing::Done && lent.poll_late(cx, 0).is_ready() {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the request goes on after its answer")));
        }
        let conn = lent.conn.as_mut().expect("only drop takes the connection");
        if conn.h2 {
            if conn.inbox.is_empty() {
                return Pin::new(&mut conn.wire).poll_read(cx, out);
            }
            let available = conn.inbox.len().min(out.remaining());
            out.put_slice(&conn.inbox.split_to(available));
            return Poll::Ready(Ok(()));
        }
        if conn.framing == Framing::Done {
            // The request is complete: Pingora only watches for a client that left. Bytes of the next request stay with
            // us; handed over they would end this one.
            if conn.ended || (conn.inbox.is_empty() && ready!(conn.poll_more(cx))? == 0) {
                return Poll::Ready(Ok(()));
            }
            return Poll::Pending;
        }
        let result = if conn.inbox.is_empty() {
            ready!(Pin::new(&mut conn.wire).poll_read(cx, out))?;
            let read = out.filled().get(before..).unwrap_or_default();
            conn.ended |= read.is_empty();
            let result = conn.framing.advance(read);
            let ours = *result.as_ref().unwrap_or(&0);
            // The client pipelines, which is rare.
            conn.inbox.extend_from_slice(read.get(ours..).unwrap_or_default());
            out.set_filled(before + ours);
            result
        } else {
            let available = conn.inbox.len().min(out.remaining());
            let result = conn.framing.advance(conn.inbox.get(..available).unwrap_or_default());
            out.put_slice(&conn.inbox.split_to(*result.as_ref().unwrap_or(&0)));
            result
        };
        match result {
            Ok(read) => {
                if lent.late.is_some() {
                    let _ = lent.poll_late(cx, read);
                }
                Poll::Ready(Ok(()))
            }
            Err(why) => {
                // The first fault counts.
                let _ = lent.home.fault.set(why);
                Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, why)))
            }
        }
    }
}

impl AsyncWrite for Lent {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let conn = self.conn();
        conn.wrote = true;
        if conn.outbox.len() + data.len() <= COMBINE {
            conn.outbox.extend_from_slice(data);
            return Poll::Ready(Ok(data.len()));
        }
        if !conn.outbox.is_empty() {
            // The head and the first part of a large body leave in one call.
            let held = conn.outbox.len();
            let sent = ready!(Pin::new(&mut conn.wire).poll_write_vectored(cx, &[IoSlice::new(&conn.outbox), IoSlice::new(data)]))?;
            conn.outbox.drain(..sent.min(held));
            if sent > held {
                return Poll::Ready(Ok(sent - held));
            }
            ready!(conn.poll_drain_outbox(cx))?;
        }
        Pin::new(&mut conn.wire).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let conn = self.conn();
        ready!(conn.poll_drain_outbox(cx))?;
        Pin::new(&mut conn.wire).poll_flush(cx)
    }

    /// Pingora wants to close. For HTTP/1 it is only flushed: the gate closes, with linger, when the loan is back.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_flush(cx))?;
        let conn = self.conn();
        if conn.h2 { Pin::new(&mut conn.wire).poll_shutdown(cx) } else { Poll::Ready(Ok(())) }
    }
}

impl std::fmt::Debug for Lent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Lent")
    }
}

#[async_trait]
impl protocols::Shutdown for Lent {
    async fn shutdown(&mut self) {
        // The connection may be gone already.
        let _ = tokio::io::AsyncWriteExt::shutdown(self).await;
    }
}

impl protocols::UniqueID for Lent {
    fn id(&self) -> i32 {
        self.conn.as_ref().map_or(-1, |conn| conn.facts.fd)
    }
}

impl protocols::Ssl for Lent {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.conn.as_ref()?.ssl.clone()
    }
    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.conn.as_ref()?.h2.then_some(ALPN::H2)
    }
}

impl protocols::Peek for Lent {}

impl protocols::GetTimingDigest for Lent {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl protocols::GetProxyDigest for Lent {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.conn.as_ref().map(|conn| conn.proxy.clone())
    }
}

impl protocols::GetSocketDigest for Lent {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.conn.as_ref().map(|conn| conn.socket.clone())
    }
}
