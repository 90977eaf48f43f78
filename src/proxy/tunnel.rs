//! Carries WebSockets: the heads are relayed here, then raw bytes both ways, full duplex.
//!
//! Upgrades never enter Pingora's proxy, whose handling loses the first bytes of a quick backend (bug #946).

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut as _, BytesMut};
use http::header::{CONNECTION, UPGRADE};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::Stream;
use pingora::{Error, ErrorType, Result};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use super::carry::{Purpose, consider, log, next_peer, note_failed_attempt, own_answer};
use super::ctx::{Answer, Ctx, Todo};
use super::frames::{Frames, going_away};
use super::framing::Framing;
use super::judge::{Head, MAX_HEADERS};
use super::wire::Conn;
use super::{Shared, apply, failure};
use crate::balance::Timeouts;

/// A backend's head beyond this is none.
const MAX_ANSWER_HEAD: usize = 64 << 10;
/// How long one direction of a tunnel may be silent once the other has ended.
const HALF_ENDED: Duration = Duration::from_secs(10);
/// How long a frame may take to end that is on its way when the process does.
const GOODBYE: Duration = Duration::from_millis(500);
/// What is read at once in each direction of a tunnel.
const PIECE: usize = 16 << 10;

/// Serves one upgrade request to the end of its connection.
pub(super) async fn tunnel(shared: &Arc<Shared>, mut conn: Conn, head: Head) {
    let mut ctx = Ctx::new(shared.current.pin());
    ctx.facts = Some(conn.facts.clone());
    let raw = conn.inbox.split_to(head.length);
    let Some(request) = parse_request(&raw) else {
        return conn.leave().await;
    };
    let outcome = serve(shared, &mut conn, &request, &mut ctx).await;
    let (status, bytes) = outcome.unwrap_or_else(|error| {
        let failure = failure::classify(&error);
        ctx.reason.get_or_insert(failure.reason);
        (failure.status.unwrap_or(failure::CLIENT_GONE), (0, 0))
    });
    log(&request, &ctx, status, bytes, shared);
    conn.leave().await;
}

type Outcome = (u16, (u64, u64));

async fn serve(shared: &Arc<Shared>, conn: &mut Conn, request: &RequestHeader, ctx: &mut Ctx) -> Result<Outcome> {
    match consider(request, ctx, shared) {
        Todo::Forward => {}
        Todo::Answer(own) => return answer(conn, request, ctx, &own).await,
        Todo::Drop => {
            // Nothing is said, and nothing is waited for.
            conn.ended = true;
            return Ok((0, (0, 0)));
        }
    }
    match relay(shared, conn, request, ctx).await {
        Ok(outcome) => Ok(outcome),
        // The client has heard nothing yet, or `relay` would not have failed.
        Err(error) => match failure::classify(&error).status {
            Some(status) => {
                ctx.reason.get_or_insert(failure::classify(&error).reason);
                answer(conn, request, ctx, &Answer::Refuse(status)).await
            }
            None => Err(error),
        },
    }
}

async fn relay(shared: &Arc<Shared>, conn: &mut Conn, request: &RequestHeader, ctx: &mut Ctx) -> Result<Outcome> {
    let timeouts = ctx.timeouts().ok_or_else(|| Error::new(ErrorType::InternalError))?;
    let asking = async {
        loop {
            let mut stream = connect(shared, request, ctx).await?;
            // The head is made anew for each backend: an attempt leaves nothing behind.
            match ask(&mut stream, request, ctx, timeouts).await {
                Ok((received, answer)) => return Ok((stream, received, answer)),
                Err(error) => {
                    note_failed_attempt(ctx, &error);
                    // A handshake is a GET: it does no harm twice.
                    if ctx.attempts.resent || !ctx.may_try_again() || !failure::lost_connection(&error) {
                        return Err(error);
                    }
                    ctx.attempts.resent = true;
                }
            }
        }
    };
    let (mut backend, mut received, mut answer) = tokio::select! {
        biased;
        asked = asking => asked?,
        // Nobody waits for the answer any more: the backend need not work on it.
        () = gone(conn) => return Error::e_explain(ErrorType::ConnectionClosed, "the client left").map_err(Error::into_down),
    };
    ctx.attempts.first_byte = Some(ctx.started.elapsed());
    let status = answer.status.as_u16();
    let framing = framing_of(&answer)?;
    if status == 101 {
        let protocol = answer.headers.get(UPGRADE).map(http::HeaderValue::as_bytes).unwrap_or_default();
        if !protocol.eq_ignore_ascii_case(b"websocket") {
            // A protocol that nobody asked for would bypass everything that is decided here.
            return Error::e_explain(ErrorType::InvalidHTTPHeader, "another protocol").map_err(Error::into_up);
        }
    }
    apply::response(&mut answer, ctx, request)?;
    if status == 101 {
        answer.insert_header(CONNECTION, "Upgrade")?;
        answer.insert_header(UPGRADE, "websocket")?;
        let cut = shared.drain.cut_sign();
        ctx.unpin();
        let (bytes, ended) = exchange(conn, &mut backend, &answer, &received, timeouts.websocket_idle, cut).await;
        ctx.reason = match ended {
            Ended::Idle => Some("websocket_idle"),
            Ended::Cut => Some("going_away"),
            Ended::Closed => ctx.reason,
        };
        return Ok((101, bytes));
    }
    // Refused by the backend: its answer is relayed to its end, then the connection closes.
    answer.insert_header(CONNECTION, "close")?;
    let sent = relay_answer(conn, &mut backend, &answer, &mut received, framing, timeouts).await;
    Ok((status, (0, sent)))
}

/// Ends when the client is gone. What it sends early is kept for the backend.
async fn gone(conn: &mut Conn) {
    while conn.inbox.len() < MAX_ANSWER_HEAD {
        if !conn.more().await {
            return;
        }
    }
    std::future::pending().await
}

/// Connects to a backend, to another one where that fails.
async fn connect(shared: &Arc<Shared>, request: &RequestHeader, ctx: &mut Ctx) -> Result<Stream> {
    loop {
        let peer = next_peer(request, ctx, Purpose::Tunnel)?;
        match shared.connector.new_stream(&peer).await {
            Ok(stream) => {
                ctx.connected();
                return Ok(stream);
            }
            Err(mut error) => {
                error.as_up();
                note_failed_attempt(ctx, &error);
                if !ctx.may_try_again() {
                    return Err(error);
                }
            }
        }
    }
}

/// Sends the request's head and reads the head of the answer. With it comes what the backend sent right behind.
async fn ask(stream: &mut Stream, request: &RequestHeader, ctx: &Ctx, timeouts: Timeouts) -> Result<(BytesMut, ResponseHeader)> {
    let up = |etype: ErrorType| {
        let mut error = Error::new(etype);
        error.as_up();
        error
    };
    let mut head = request.clone();
    drop_hop_by_hop(&mut head);
    apply::request(&mut head, ctx, request)?;
    head.insert_header(CONNECTION, "Upgrade")?;
    // The one protocol that was judged, whatever else the client wrote.
    head.insert_header(UPGRADE, "websocket")?;
    let send = async {
        stream.write_all(&request_head(&head)).await?;
        stream.flush().await
    };
    match timeout(timeouts.send, send).await {
        Ok(Ok(())) => {}
        Ok(Err(_)) => return Err(up(ErrorType::WriteError)),
        Err(_) => return Err(up(ErrorType::WriteTimedout)),
    }
    let mut received = BytesMut::with_capacity(1024);
    loop {
        match timeout(timeouts.read, stream.read_buf(&mut received)).await {
            Ok(Ok(1..)) => {}
            Ok(_) => return Err(up(ErrorType::ConnectionClosed)),
            Err(_) => return Err(up(ErrorType::ReadTimedout)),
        }
        while let Some((length, answer)) = parse_answer(&received).map_err(|()| up(ErrorType::InvalidHTTPHeader))? {
            bytes::Buf::advance(&mut received, length);
            // Interim answers other than the switch itself say nothing to a client that waits for it.
            if answer.status.is_informational() && answer.status.as_u16() != 101 {
                continue;
            }
            return Ok((received, answer));
        }
        if received.len() > MAX_ANSWER_HEAD {
            return Err(up(ErrorType::InvalidHTTPHeader));
        }
    }
}

// === After the switch ===

/// Why a tunnel is over.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    Closed,
    /// Nothing went through for the idle timeout.
    Idle,
    /// The process ends.
    Cut,
}

/// Copies both ways until both sides are done or silent for too long.
async fn exchange(
    conn: &mut Conn,
    backend: &mut Stream,
    answer: &ResponseHeader,
    early: &[u8],
    idle: Duration,
    mut cut: watch::Receiver<bool>,
) -> ((u64, u64), Ended) {
    let mut first = response_head(answer);
    first.extend_from_slice(early);
    let early_client = conn.inbox.split();
    if !send_to_client(conn, &first).await {
        return ((0, 0), Ended::Closed);
    }
    if backend.write_all(&early_client).await.is_err() || backend.flush().await.is_err() {
        return ((0, early.len() as u64), Ended::Closed);
    }
    drop(first);
    let (client_read, client_write) = tokio::io::split(&mut conn.wire);
    let (backend_read, backend_write) = tokio::io::split(backend);
    let activity = Activity::new(idle);
    let mut up = Direction::new(client_read, backend_write, &early_client);
    let mut down = Direction::new(backend_read, client_write, early);
    let ended = tokio::select! {
        () = async { tokio::join!(up.copy(&activity), down.copy(&activity)); } => Ended::Closed,
        ended = activity.silence() => ended,
        _ = cut.wait_for(|cut| *cut) => Ended::Cut,
    };
    if ended == Ended::Cut {
        tokio::join!(up.say_goodbye(true), down.say_goodbye(false));
    }
    ((up.count, down.count), ended)
}

/// When something last went through a tunnel, in either direction.
struct Activity {
    /// With how long the silence may last.
    last: std::sync::Mutex<(Instant, Duration)>,
    half_ended: std::sync::atomic::AtomicBool,
}

impl Activity {
    fn new(idle: Duration) -> Self {
        Self { last: std::sync::Mutex::new((Instant::now(), idle)), half_ended: false.into() }
    }

    fn note(&self) {
        self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner).0 = Instant::now();
    }

    /// One direction has ended: the other may finish, but not stay for long when it has nothing to say.
    fn half_ended(&self) {
        let mut last = self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *last = (Instant::now(), last.1.min(HALF_ENDED));
        self.half_ended.store(true, std::sync::atomic::Ordering::Relaxed);
    }

    /// Ends when nothing has gone through for the idle timeout.
    async fn silence(&self) -> Ended {
        loop {
            let (last, idle) = *self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if last + idle <= Instant::now() {
                // Who has said goodbye is not idle.
                return if self.half_ended.load(std::sync::atomic::Ordering::Relaxed) { Ended::Closed } else { Ended::Idle };
            }
            // A direction that ends makes the limit shorter, which is noticed within its time.
            tokio::time::sleep_until((last + idle).min(Instant::now() + HALF_ENDED)).await;
        }
    }
}

/// One direction of a tunnel.
struct Direction<R, W> {
    from: R,
    to: W,
    /// Bytes that went through.
    count: u64,
    frames: Frames,
    /// What was read and is not written yet.
    buffer: Vec<u8>,
    written: usize,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Direction<R, W> {
    /// `early` went through already.
    fn new(from: R, to: W, early: &[u8]) -> Self {
        let mut frames = Frames::default();
        frames.advance(early);
        Self { from, to, count: early.len() as u64, frames, buffer: Vec::new(), written: 0 }
    }

    /// Copies to the end. It may be dropped at any moment: what was written is known.
    async fn copy(&mut self, activity: &Activity) {
        while self.pass(activity).await.is_ok() {}
        // The other side learns that nothing more comes; it may go on sending.
        let _ = self.to.shutdown().await;
        activity.half_ended();
    }

    /// Reads a piece and writes it.
    async fn pass(&mut self, activity: &Activity) -> std::io::Result<()> {
        let Self { from, buffer, .. } = self;
        // A silent tunnel holds no buffer: it is taken when there is something to read.
        let read = std::future::poll_fn(|cx| {
            let mut scratch = [std::mem::MaybeUninit::<u8>::uninit(); PIECE];
            let mut piece = tokio::io::ReadBuf::uninit(&mut scratch);
            let read = std::task::ready!(std::pin::Pin::new(&mut *from).poll_read(cx, &mut piece));
            buffer.clear();
            buffer.extend_from_slice(piece.filled());
            std::task::Poll::Ready(read)
        });
        read.await?;
        if self.buffer.is_empty() {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        activity.note();
        self.flush().await?;
        self.count += self.buffer.len() as u64;
        (self.buffer, self.written) = (Vec::new(), 0);
        Ok(())
    }

    /// Writes what was read.
    async fn flush(&mut self) -> std::io::Result<()> {
        while let Some(rest) = self.buffer.get(self.written..).filter(|rest| !rest.is_empty()) {
            let sent = self.to.write(rest).await?;
            if sent == 0 {
                return Err(std::io::ErrorKind::WriteZero.into());
            }
            self.frames.advance(rest.get(..sent).unwrap_or_default());
            self.written += sent;
        }
        self.to.flush().await
    }

    /// Tells the other side that this process ends, if it is not in the middle of a frame and cannot get out of it soon.
    async fn say_goodbye(&mut self, masked: bool) {
        let goodbye = async {
            self.flush().await?;
            (self.buffer, self.written) = (Vec::new(), 0);
            let activity = Activity::new(GOODBYE);
            while !self.frames.may_end() {
                self.pass(&activity).await?;
            }
            self.to.write_all(going_away(masked)).await?;
            self.to.flush().await
        };
        // Who cannot be told in time is cut off without a word.
        let _ = timeout(GOODBYE, goodbye).await;
    }
}

// === Answers other than a switch ===

/// `false`: the client does not take it, or not in time.
async fn send_to_client(conn: &mut Conn, bytes: &[u8]) -> bool {
    let limit = conn.facts.listener.send_timeout;
    let send = async {
        conn.wire.write_all(bytes).await?;
        conn.wire.flush().await
    };
    matches!(timeout(limit, send).await, Ok(Ok(())))
}

async fn relay_answer(
    conn: &mut Conn,
    backend: &mut Stream,
    answer: &ResponseHeader,
    received: &mut BytesMut,
    mut framing: Framing,
    timeouts: Timeouts,
) -> u64 {
    let mut sent = 0;
    let mut good = send_to_client(conn, &response_head(answer)).await;
    while good {
        let Ok(ours) = framing.advance(received) else { break };
        good = send_to_client(conn, received.get(..ours).unwrap_or_default()).await && framing != Framing::Done;
        sent += ours as u64;
        received.clear();
        good = good && matches!(timeout_at(Instant::now() + timeouts.read, backend.read_buf(received)).await, Ok(Ok(1..)));
    }
    sent
}

async fn answer(conn: &mut Conn, request: &RequestHeader, ctx: &Ctx, own: &Answer) -> Result<Outcome> {
    let (mut head, body) = own_answer(request, ctx, own)?;
    let status = head.status.as_u16();
    head.insert_header(CONNECTION, "close")?;
    let mut bytes = response_head(&head);
    bytes.extend_from_slice(&body);
    // A client that is gone does not get its answer.
    let _ = send_to_client(conn, &bytes).await;
    Ok((status, (0, body.len() as u64)))
}

// === Heads ===

fn parse_request(raw: &[u8]) -> Option<RequestHeader> {
    let mut slots = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut slots);
    parsed.parse(raw).ok()?;
    let mut request = RequestHeader::build(parsed.method?, parsed.path?.as_bytes(), Some(parsed.headers.len())).ok()?;
    for header in parsed.headers.iter() {
        request.append_header(header.name.to_owned(), header.value).ok()?;
    }
    Some(request)
}

/// The first complete head in `raw`, with its length.
fn parse_answer(raw: &[u8]) -> std::result::Result<Option<(usize, ResponseHeader)>, ()> {
    let mut slots = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Response::new(&mut slots);
    let httparse::Status::Complete(length) = parsed.parse(raw).map_err(drop)? else { return Ok(None) };
    let mut answer = ResponseHeader::build(parsed.code.ok_or(())?, Some(parsed.headers.len())).map_err(drop)?;
    for header in parsed.headers.iter() {
        answer.append_header(header.name.to_owned(), header.value).map_err(drop)?;
    }
    Ok(Some((length, answer)))
}

/// How the body of a refused upgrade ends (RFC 9112 section 6.3).
fn framing_of(answer: &ResponseHeader) -> Result<Framing> {
    let header = |name| answer.headers.get(name).and_then(|value: &http::HeaderValue| value.to_str().ok());
    Ok(match (answer.status.as_u16(), header(http::header::TRANSFER_ENCODING), header(http::header::CONTENT_LENGTH)) {
        (101 | 204 | 304, ..) => Framing::Done,
        (_, Some(_), _) => Framing::chunked(),
        (_, None, Some(length)) => match length.parse() {
            Ok(0) => Framing::Done,
            Ok(length) => Framing::Length(length),
            Err(_) => return Error::e_explain(ErrorType::InvalidHTTPHeader, "Content-Length").map_err(Error::into_up),
        },
        (_, None, None) => Framing::UntilClose,
    })
}

/// Headers of the client's connection, named and standard (RFC 9110 section 7.6.1).
fn drop_hop_by_hop(head: &mut RequestHeader) {
    let named: Vec<String> = head
        .headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .collect();
    for name in named.iter().map(String::as_str).chain([
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "upgrade",
        "http2-settings",
        "proxy-authorization",
    ]) {
        if name != "host" {
            head.remove_header(name);
        }
    }
}

fn request_head(head: &RequestHeader) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1024);
    bytes.put_slice(head.method.as_str().as_bytes());
    bytes.put_u8(b' ');
    bytes.put_slice(head.raw_path());
    bytes.put_slice(b" HTTP/1.1\r\n");
    head.header_to_h1_wire(&mut bytes);
    bytes.put_slice(b"\r\n");
    bytes
}

fn response_head(head: &ResponseHeader) -> Vec<u8> {
    let reason = head.get_reason_phrase().unwrap_or_default();
    let mut bytes = format!("HTTP/1.1 {} {reason}\r\n", head.status.as_u16()).into_bytes();
    head.header_to_h1_wire(&mut bytes);
    bytes.put_slice(b"\r\n");
    bytes
}
