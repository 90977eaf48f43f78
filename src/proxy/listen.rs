//! The listening sockets of the process: bound before it becomes ready, opened, changed and closed while it runs.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use pingora::server::configuration::ServerConf;
use pingora::server::{ListenFds, ShutdownWatch};
use pingora::services::{ServiceReadyNotifier, ServiceWithDependents};
use socket2::{Domain, SockRef, Socket, Type};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::accept::{Accepting, Live, accept};
use super::filters::Filters;
use super::gate::Gate;
use super::{Shared, carrier};
use crate::config::Listener;

/// Connections that the kernel holds for us while we are busy.
const BACKLOG: i32 = 4096;

/// What a socket is found by: its address as configured, and which one of that address it is (`:0` may stand for several).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    pub address: SocketAddr,
    pub nth: usize,
}

/// A bound socket with its settings.
pub struct Bound {
    pub key: Key,
    pub socket: Arc<TcpListener>,
    pub listener: Arc<Listener>,
}

/// An address that cannot be listened on.
#[derive(Debug)]
pub struct Unbound {
    pub address: SocketAddr,
    pub error: io::Error,
}

/// What is known of a listener that is open.
pub struct Seen {
    pub listener: Arc<Listener>,
    /// The address that it has: the port where 0 was asked for.
    pub address: Option<SocketAddr>,
    pub connections: usize,
}

/// The listeners of a configuration, each bound to its address.
pub struct Prepared {
    bound: Vec<Bound>,
}

/// The listening sockets in force.
pub struct Listeners {
    gate: Arc<Gate<Filters>>,
    /// Where connections are served.
    runtime: OnceLock<Handle>,
    open: Mutex<Vec<Open>>,
    /// Sockets of the process before, which this one does not want.
    unwanted: Mutex<Vec<Arc<TcpListener>>>,
}

struct Open {
    key: Key,
    socket: Arc<TcpListener>,
    live: Arc<Live>,
    accepting: watch::Sender<Accepting>,
    task: Option<JoinHandle<()>>,
}

// === Binding ===

/// Binds listeners, each to the socket that `have` has for it or to a new one. Nothing is accepted yet.
pub fn bind_all(listeners: &[Listener], have: &[(Key, Arc<TcpListener>)]) -> Result<Vec<Bound>, Unbound> {
    let keys = keys_of(listeners);
    let leaving: Vec<&Arc<TcpListener>> = have.iter().filter(|(key, _)| !keys.contains(key)).map(|(_, socket)| socket).collect();
    let bind = |(key, listener): (Key, &Listener)| {
        let kept = have.iter().find(|(other, _)| *other == key).map(|(_, socket)| socket.clone());
        let socket = match kept {
            Some(socket) => socket,
            None => Arc::new(bind(listener, &leaving).map_err(|error| Unbound { address: listener.address, error })?),
        };
        Ok(Bound { key, socket, listener: Arc::new(listener.clone()) })
    };
    keys_of(listeners).into_iter().zip(listeners).map(bind).collect()
}

fn keys_of(listeners: &[Listener]) -> Vec<Key> {
    let nth = |index: usize, address| listeners.iter().take(index).filter(|other| other.address == address).count();
    listeners.iter().enumerate().map(|(index, own)| Key { address: own.address, nth: nth(index, own.address) }).collect()
}

fn bind(listener: &Listener, leaving: &[&Arc<TcpListener>]) -> io::Result<TcpListener> {
    let all = listener.address.ip().is_unspecified() && listener.address.is_ipv6();
    match open(listener, listener.address, leaving) {
        // A machine without IPv6 still has all its IPv4 addresses.
        Err(error) if all && error.raw_os_error() == Some(97) => {
            open(listener, SocketAddr::from((Ipv4Addr::UNSPECIFIED, listener.address.port())), leaving)
        }
        bound => bound,
    }
}

fn open(listener: &Listener, address: SocketAddr, leaving: &[&Arc<TcpListener>]) -> io::Result<TcpListener> {
    match listen(listener, address, false) {
        // From `:80` to `192.0.2.1:80`: our own socket is in the way, and closes only when the new one is there.
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let same_port = |socket: &&&Arc<TcpListener>| socket.local_addr().is_ok_and(|local| local.port() == address.port());
            let in_the_way: Vec<_> = leaving.iter().filter(same_port).collect();
            if in_the_way.is_empty() {
                return Err(error);
            }
            for socket in &in_the_way {
                SockRef::from(socket.as_ref()).set_reuse_port(true)?;
            }
            let bound = listen(listener, address, true);
            for socket in &in_the_way {
                SockRef::from(socket.as_ref()).set_reuse_port(false)?;
            }
            bound
        }
        bound => bound,
    }
}

fn listen(listener: &Listener, address: SocketAddr, beside: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    if listener.freebind {
        match address {
            SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
            SocketAddr::V6(_) => socket.set_freebind_v6(true)?,
        }
    }
    // A restart must not wait for connections in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    if beside {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    if beside {
        // Only for this moment: another program must not share the address later.
        socket.set_reuse_port(false)?;
    }
    Ok(socket.into())
}

// === impl Listeners ===

impl Listeners {
    /// `unwanted` are sockets of the process before that the configuration does not have any more.
    pub fn new(
        conf: &Arc<ServerConf>,
        shared: Arc<Shared>,
        h2_idle: Duration,
        bound: Vec<Bound>,
        unwanted: Vec<Arc<TcpListener>>,
    ) -> Arc<Self> {
        let gate = Arc::new(Gate { carrier: Arc::new(carrier(conf, shared.clone(), h2_idle)), shared });
        let open = bound.into_iter().map(Open::new).collect();
        Arc::new(Self { gate, runtime: OnceLock::new(), open: Mutex::new(open), unwanted: Mutex::new(unwanted) })
    }

    /// Binds what a configuration asks for and is not bound yet. Nothing in force changes.
    pub fn prepare(&self, wanted: &[Listener]) -> Result<Prepared, Unbound> {
        Ok(Prepared { bound: bind_all(wanted, &self.sockets())? })
    }

    /// Puts listeners in force: new ones accept, those that stay have their new settings, those that are gone close. Their
    /// connections finish the request that they are at; WebSockets stay.
    pub fn apply(&self, prepared: Prepared) {
        let mut open = self.lock();
        let mut old = std::mem::take(&mut *open);
        for bound in prepared.bound {
            match old.iter().position(|open| open.key == bound.key) {
                Some(index) => {
                    let kept = old.swap_remove(index);
                    kept.live.set(bound.listener);
                    open.push(kept);
                }
                None => {
                    log::info!("listening on {}", bound.socket.local_addr().unwrap_or(bound.key.address));
                    let mut new = Open::new(bound);
                    self.start(&mut new);
                    open.push(new);
                }
            }
        }
        for gone in old {
            log::info!("no longer listening on {}", gone.socket.local_addr().unwrap_or(gone.key.address));
            gone.close();
        }
    }

    /// Begins to accept.
    pub fn resume(&self) {
        for socket in self.unwanted.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // The process before holds it too while it drains: clients are refused at once, not kept waiting for nobody.
            let _ = SockRef::from(socket.as_ref()).shutdown(std::net::Shutdown::Both);
        }
        for open in self.lock().iter_mut() {
            if *open.accepting.borrow() == Accepting::On && open.task.as_ref().is_some_and(|task| !task.is_finished()) {
                continue;
            }
            // The process that took over may have ended it, before it died.
            let _ = SockRef::from(open.socket.as_ref()).listen(BACKLOG);
            open.live.finish.send_replace(false);
            open.accepting.send_replace(Accepting::On);
            self.start(open);
        }
    }

    /// Ends accepting at once; the sockets stay open, and whoever waits in their queues is somebody else's or waits for
    /// `resume`.
    pub async fn pause(&self) {
        let pause = |open: &mut Open| {
            open.accepting.send_replace(Accepting::Paused);
            open.task.take()
        };
        let tasks: Vec<_> = self.lock().iter_mut().filter_map(pause).collect();
        for task in tasks {
            // It ends by itself; a panic would have ended it as well.
            let _ = task.await;
        }
    }

    /// Tells all connections to finish; accepting ends once nobody waits in the kernel's queues, unless it is paused. Nothing is
    /// done where that is not `wanted` any more: a process that serves again must not be told to finish.
    pub fn finish(&self, wanted: impl FnOnce() -> bool) {
        let open = self.lock();
        if !wanted() {
            return;
        }
        for open in open.iter() {
            open.live.finish.send_replace(true);
            open.accepting.send_if_modified(|accepting| {
                let on = *accepting == Accepting::On;
                if on {
                    *accepting = Accepting::Closing;
                }
                on
            });
        }
    }

    /// Whether the runtime of the connections is at work.
    pub async fn is_alive(&self, patience: Duration) -> bool {
        match self.runtime.get() {
            Some(runtime) => tokio::time::timeout(patience, runtime.spawn(async {})).await.is_ok(),
            None => true,
        }
    }

    /// The sockets, to be handed to another process.
    pub fn sockets(&self) -> Vec<(Key, Arc<TcpListener>)> {
        self.lock().iter().map(|open| (open.key.clone(), open.socket.clone())).collect()
    }

    pub fn seen(&self) -> Vec<Seen> {
        let seen = |open: &Open| Seen {
            listener: open.live.settings.load_full(),
            address: open.socket.local_addr().ok(),
            connections: open.live.connections(),
        };
        self.lock().iter().map(seen).collect()
    }

    fn start(&self, open: &mut Open) {
        // Before the runtime runs nothing is started; its service does that for all.
        let Some(runtime) = self.runtime.get() else { return };
        let _inside = runtime.enter();
        match open.socket.try_clone().and_then(tokio::net::TcpListener::from_std) {
            Ok(socket) => open.task = Some(tokio::spawn(accept(socket, open.live.clone(), open.accepting.subscribe(), self.gate.clone()))),
            Err(error) => log::error!("{}: cannot be accepted from: {error}", open.key.address),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    fn new(bound: Bound) -> Self {
        let Bound { key, socket, listener } = bound;
        Self { key, socket, live: Live::new(listener), accepting: watch::channel(Accepting::On).0, task: None }
    }

    fn close(self) {
        self.live.finish.send_replace(true);
        self.accepting.send_replace(Accepting::Closing);
    }
}

// === Service ===

/// Carries the connections: its runtime is theirs.
pub struct AcceptService {
    pub listeners: Arc<Listeners>,
    pub threads: usize,
    /// Told once the runtime runs and `resume` has an effect.
    pub running: watch::Sender<bool>,
}

#[async_trait]
impl ServiceWithDependents for AcceptService {
    async fn start_service(&mut self, _: Option<ListenFds>, mut shutdown: ShutdownWatch, _: usize, ready: ServiceReadyNotifier) {
        // The first and only time.
        let _ = self.listeners.runtime.set(Handle::current());
        self.running.send_replace(true);
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
