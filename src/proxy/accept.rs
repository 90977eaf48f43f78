//! Accepts connections and makes them ready for the gate: TLS where the listener speaks it, places where it is full.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use rustls::server::Acceptor;
use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tokio_rustls::LazyConfigAcceptor;

use super::Shared;
use super::filters::Filters;
use super::gate::Gate;
use super::wire::{Conn, Facts, TlsFacts};
use crate::config::Listener;
use crate::observe::record::Record;

/// The time between two lines that say that the limit of connections is reached.
const LIMIT_TOLD: Duration = Duration::from_secs(10);
/// How long accepting rests when the process has no file descriptors left.
const EXHAUSTED: Duration = Duration::from_millis(100);

/// A listener as its accept loop sees it; a reload changes its settings under it.
pub(super) struct Live {
    pub(super) settings: ArcSwap<Listener>,
    pub(super) places: Places,
    /// Turns true when its connections are to finish. It is Pingora's `ShutdownWatch` as well.
    pub(super) finish: watch::Sender<bool>,
}

/// Whether a listener takes connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Accepting {
    On,
    /// Another process takes what waits in the kernel's queue.
    Paused,
    /// Whoever waits in the kernel's queue is served first: a closed socket would reset them.
    Closing,
}

/// The connections of a listener, counted against its limit.
pub(super) struct Places {
    taken: AtomicUsize,
    freed: Notify,
}

/// A place, for as long as its connection lives.
pub(super) struct Place(Arc<Live>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.places.taken.fetch_sub(1, Ordering::AcqRel);
        self.0.places.freed.notify_one();
    }
}

impl Live {
    pub(super) fn new(listener: Arc<Listener>) -> Arc<Self> {
        let places = Places { taken: AtomicUsize::new(0), freed: Notify::new() };
        Arc::new(Self { settings: ArcSwap::new(listener), places, finish: watch::channel(false).0 })
    }

    /// Changes what new connections get.
    pub(super) fn set(&self, listener: Arc<Listener>) {
        self.settings.store(listener);
        self.places.freed.notify_one();
    }

    pub(super) fn connections(&self) -> usize {
        self.places.taken.load(Ordering::Acquire)
    }

    fn has_place(&self) -> bool {
        self.connections() < self.settings.load().max_connections
    }

    /// Only the one accept loop of a listener takes places, so that one that was free still is.
    fn take(self: &Arc<Self>) -> Place {
        self.places.taken.fetch_add(1, Ordering::AcqRel);
        Place(self.clone())
    }

    async fn place_is_free(&self) {
        loop {
            let freed = self.places.freed.notified();
            if self.has_place() {
                return;
            }
            freed.await;
        }
    }
}

/// Accepts until it is told to pause or to close.
pub(super) async fn accept(
    socket: tokio::net::TcpListener,
    live: Arc<Live>,
    accepting: watch::Receiver<Accepting>,
    gate: Arc<Gate<Filters>>,
) {
    let _held = gate.shared.drain.hold();
    accept_all(&socket, live.clone(), accepting.clone(), &gate).await;
    if *accepting.borrow() == Accepting::Closing
        && let Ok(socket) = socket.into_std()
    {
        // Whoever has a connection already, as far as the kernel is concerned, is served, beyond the limit too.
        while let Ok((tcp, peer)) = socket.accept() {
            if tcp.set_nonblocking(true).is_ok()
                && let Ok(tcp) = TcpStream::from_std(tcp)
            {
                serve(tcp, peer, &live, &gate);
            }
        }
        // A process that drains since an upgrade may hold it too: nobody is to wait in its queue.
        let _ = SockRef::from(&socket).shutdown(std::net::Shutdown::Both);
    }
}

fn serve(tcp: TcpStream, peer: SocketAddr, live: &Arc<Live>, gate: &Arc<Gate<Filters>>) {
    let (listener, finish, gate) = (live.settings.load_full(), live.finish.subscribe(), gate.clone());
    let (place, connected) = (live.take(), gate.shared.drain.connected());
    tokio::spawn(async move {
        let _held = (place, connected);
        connection(tcp, peer, listener, finish, gate).await;
    });
}

async fn accept_all(
    socket: &tokio::net::TcpListener,
    live: Arc<Live>,
    mut accepting: watch::Receiver<Accepting>,
    gate: &Arc<Gate<Filters>>,
) {
    let mut told = None;
    loop {
        // Beyond the limit clients wait in the kernel's queue: they are served as soon as others leave.
        if !live.has_place() {
            if told.is_none_or(|told: Instant| told.elapsed() >= LIMIT_TOLD) {
                let listener = live.settings.load();
                log::warn!("{}: {} connections, the limit; new ones wait", listener.address, listener.max_connections);
                told = Some(Instant::now());
            }
            tokio::select! {
                () = live.place_is_free() => {}
                _ = accepting.wait_for(|accepting| *accepting != Accepting::On) => return,
            }
        }
        if *accepting.borrow() == Accepting::Paused {
            return;
        }
        let accepted = tokio::select! {
            biased;
            accepted = socket.accept() => accepted,
            _ = accepting.wait_for(|accepting| *accepting != Accepting::On) => return,
        };
        match accepted {
            Ok((tcp, peer)) => serve(tcp, peer, &live, gate),
            Err(error) if is_about_one(&error) => {}
            Err(error) => {
                log::error!("{}: cannot accept: {error}", live.settings.load().address);
                tokio::time::sleep(EXHAUSTED).await;
            }
        }
    }
}

/// The client gave up while it waited; others are not concerned.
fn is_about_one(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted)
}

async fn connection(tcp: TcpStream, peer: SocketAddr, listener: Arc<Listener>, finish: watch::Receiver<bool>, gate: Arc<Gate<Filters>>) {
    // Answers are combined before they are written: waiting for more would only delay them.
    let _ = tcp.set_nodelay(true);
    let local_port = tcp.local_addr().map_or(listener.address.port(), |address| address.port());
    let mut facts = Facts { peer, local_port, fd: tcp.as_raw_fd(), tls: None, finish, listener };
    let conn = if facts.listener.tls {
        let handshake = Box::pin(timeout(facts.listener.header_deadline, handshake(tcp, &facts.listener, &gate.shared)));
        match handshake.await {
            Ok(Ok((stream, tls))) => {
                facts.tls = Some(tls);
                Conn::new(Box::new(stream), facts)
            }
            Ok(Err(Unmade::UnknownName(sni))) => return log_unknown_name(peer, &sni, &gate.shared),
            Ok(Err(Unmade::Plain(tcp))) => return Box::pin(answer_plain(tcp, peer, &gate.shared)).await,
            Ok(Err(Unmade::Failed(error))) => return log::debug!("{peer}: TLS handshake: {error}"),
            Err(_) => return log::debug!("{peer}: TLS handshake: not complete in time"),
        }
    } else {
        Conn::new(Box::new(tcp), facts)
    };
    // The handshake's future is gone by now: a parked connection keeps nothing of it.
    gate.serve(conn).await;
}

/// Why there is no TLS connection.
enum Unmade {
    /// No site with a certificate has the name.
    UnknownName(String),
    /// The client speaks plain HTTP.
    Plain(TcpStream),
    Failed(io::Error),
}

fn log_unknown_name(peer: SocketAddr, sni: &str, shared: &Shared) {
    let id = shared.request_ids.next();
    let client = peer.ip().to_canonical();
    shared.log.write(&Record { client, sni: Some(sni), reason: Some("unknown_sni"), ..Record::empty(&id, SystemTime::now()) });
}

async fn answer_plain(mut tcp: TcpStream, peer: SocketAddr, shared: &Shared) {
    let id = shared.request_ids.next();
    let client = peer.ip().to_canonical();
    shared.log.write(&Record { client, status: 400, reason: Some("plain_on_tls"), ..Record::empty(&id, SystemTime::now()) });
    let body = "This port speaks HTTPS: ask for https://… instead.\n";
    let head = format!(
        "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nX-Request-Id: {id}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let answer = async {
        tcp.write_all((head + body).as_bytes()).await?;
        tcp.shutdown().await?;
        // What was sent is read, or the answer could be lost in a reset.
        tokio::io::copy(&mut tcp.take(64 << 10), &mut tokio::io::sink()).await
    };
    // A client that does not take its answer has none.
    let _ = timeout(Duration::from_secs(2), answer).await;
}

/// Terminates TLS with the certificate of the name that the client asks for; a name without a site is refused.
async fn handshake(
    tcp: TcpStream,
    listener: &Listener,
    shared: &Shared,
) -> Result<(tokio_rustls::server::TlsStream<TcpStream>, TlsFacts), Unmade> {
    // A look at one byte, which stays: plain HTTP on this port deserves a plain answer.
    let mut first = [0];
    if tcp.peek(&mut first).await.map_err(Unmade::Failed)? == 1 && first.first().is_some_and(u8::is_ascii_alphabetic) {
        return Err(Unmade::Plain(tcp));
    }
    let start = LazyConfigAcceptor::new(Acceptor::default(), tcp).await.map_err(Unmade::Failed)?;
    let sni = start.client_hello().server_name().unwrap_or_default().to_owned();
    let Some(config) = shared.current.pin().rules.tls_config(&sni, &listener.name) else {
        // The configuration without a certificate ends the handshake with an alert.
        let _ = start.into_stream(shared.tls.refuse()).await;
        return Err(Unmade::UnknownName(sni));
    };
    let stream = start.into_stream(config).await.map_err(Unmade::Failed)?;
    let version = match stream.get_ref().1.protocol_version() {
        Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
        _ => "TLSv1.3",
    };
    Ok((stream, TlsFacts { sni, version }))
}
