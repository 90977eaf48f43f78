//! Listening sockets: bound before the process becomes ready, accepted from inside Pingora's server.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use pingora::server::configuration::ServerConf;
use pingora::server::{ListenFds, ShutdownWatch};
use pingora::services::{ServiceReadyNotifier, ServiceWithDependents};
use rustls::server::Acceptor;
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::LazyConfigAcceptor;

use super::filters::Filters;
use super::gate::Gate;
use super::wire::{Conn, Facts, TlsFacts};
use super::{Shared, carrier};
use crate::config::Listener;
use crate::observe::record::Record;

/// Connections that the kernel holds for us while we are busy.
const BACKLOG: i32 = 4096;
/// The time between two lines that say that the limit of connections is reached.
const LIMIT_TOLD: Duration = Duration::from_secs(10);
/// How long accepting rests when the process has no file descriptors left.
const EXHAUSTED: Duration = Duration::from_millis(100);

/// A bound socket with its settings.
pub struct Bound {
    pub socket: TcpListener,
    pub listener: Listener,
}

/// Binds a listener. The error is about the address alone: whoever calls names it.
pub fn bind(listener: Listener) -> io::Result<Bound> {
    let all = listener.address.ip().is_unspecified() && listener.address.is_ipv6();
    let socket = match open(listener.address) {
        // A machine without IPv6 still has all its IPv4 addresses.
        Err(error) if all && error.raw_os_error() == Some(97) => open(SocketAddr::from((Ipv4Addr::UNSPECIFIED, listener.address.port())))?,
        socket => socket?,
    };
    Ok(Bound { socket, listener })
}

fn open(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    // A restart must not wait for connections in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Accepts connections and gives each to the gate, until the process drains.
pub struct AcceptService {
    bound: Vec<Bound>,
    gate: Arc<Gate<Filters>>,
    threads: usize,
}

impl AcceptService {
    pub fn new(conf: &Arc<ServerConf>, shared: Arc<Shared>, bound: Vec<Bound>) -> Self {
        let h2_idle = bound.iter().map(|bound| bound.listener.keep_alive).max().unwrap_or(Duration::from_secs(60));
        let gate = Gate { carrier: Arc::new(carrier(conf, shared.clone(), h2_idle)), shared };
        Self { bound, gate: Arc::new(gate), threads: conf.threads }
    }
}

#[async_trait]
impl ServiceWithDependents for AcceptService {
    async fn start_service(&mut self, _: Option<ListenFds>, mut shutdown: ShutdownWatch, _: usize, ready: ServiceReadyNotifier) {
        for Bound { socket, listener } in self.bound.drain(..) {
            match tokio::net::TcpListener::from_std(socket) {
                Ok(socket) => drop(tokio::spawn(accept(socket, Arc::new(listener), self.gate.clone()))),
                Err(error) => log::error!("{}: cannot be accepted from: {error}", listener.address),
            }
        }
        ready.notify_ready();
        // The tasks end by the drain; the service stays, since its runtime carries them.
        let _ = shutdown.wait_for(|stopping| *stopping).await;
    }

    fn name(&self) -> &'static str {
        "accept"
    }

    fn threads(&self) -> Option<usize> {
        Some(self.threads)
    }
}

async fn accept(socket: tokio::net::TcpListener, listener: Arc<Listener>, gate: Arc<Gate<Filters>>) {
    let mut drain = gate.shared.drain.watch();
    let _held = gate.shared.drain.hold();
    let places = Arc::new(Semaphore::new(listener.max_connections));
    let mut told = None;
    loop {
        // Beyond the limit clients wait in the kernel's queue: they are served as soon as others leave.
        let place = match places.clone().try_acquire_owned() {
            Ok(place) => place,
            Err(_) => {
                if told.is_none_or(|told: Instant| told.elapsed() >= LIMIT_TOLD) {
                    log::warn!("{}: {} connections, the limit; new ones wait", listener.address, listener.max_connections);
                    told = Some(Instant::now());
                }
                tokio::select! {
                    place = places.clone().acquire_owned() => match place {
                        Ok(place) => place,
                        Err(_) => return,
                    },
                    _ = drain.wait_for(|draining| *draining) => return,
                }
            }
        };
        let accepted = tokio::select! {
            biased;
            accepted = socket.accept() => accepted,
            // Whoever waits in the kernel's queue is accepted first: a closed listener would reset them.
            _ = drain.wait_for(|draining| *draining) => return,
        };
        match accepted {
            Ok((tcp, peer)) => {
                let (listener, gate) = (listener.clone(), gate.clone());
                let connected = gate.shared.drain.connected();
                tokio::spawn(async move {
                    let _held = (place, connected);
                    connection(tcp, peer, listener, gate).await;
                });
            }
            Err(error) if is_about_one(&error) => {}
            Err(error) => {
                log::error!("{}: cannot accept: {error}", listener.address);
                tokio::time::sleep(EXHAUSTED).await;
            }
        }
    }
}

/// The client gave up while it waited; others are not concerned.
fn is_about_one(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted)
}

async fn connection(tcp: TcpStream, peer: SocketAddr, listener: Arc<Listener>, gate: Arc<Gate<Filters>>) {
    // Answers are combined before they are written: waiting for more would only delay them.
    let _ = tcp.set_nodelay(true);
    let local_port = tcp.local_addr().map_or(listener.address.port(), |address| address.port());
    let mut facts = Facts { peer, local_port, fd: tcp.as_raw_fd(), tls: None, listener };
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
