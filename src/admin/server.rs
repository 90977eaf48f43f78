//! Listens on the admin socket and on the plain address, and speaks HTTP there.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper::header::{CONNECTION, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::unistd::{Gid, Group, Uid};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::api::{Api, Caller};
use super::peer::Peer;
use crate::config::Admin;
use crate::lifecycle::readiness::Stage;

/// How long a client may take to send the head of its request.
const HEAD: Duration = Duration::from_secs(10);
/// How long accepting rests when the process has no file descriptors left.
const EXHAUSTED: Duration = Duration::from_millis(100);

/// What is bound, to be served.
pub struct Bound {
    socket: Option<Socket>,
    plain: Option<TcpListener>,
}

struct Socket {
    listener: UnixListener,
    aside: Aside,
    path: PathBuf,
    group: Option<Gid>,
}

/// Where a socket is until it is published; one that never is leaves nothing behind.
struct Aside(PathBuf);

impl Drop for Aside {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Why something cannot be bound.
#[derive(Debug)]
pub struct Unbound {
    pub what: String,
    pub why: String,
}

/// Binds what the configuration asks for. A socket that it does not name, at the usual place, may be missing. With `takes_over`
/// the socket of a process that is still there is replaced.
pub fn bind(admin: &Admin, inherited: Option<TcpListener>, takes_over: bool) -> Result<Bound, Unbound> {
    let socket = match &admin.socket {
        None => None,
        Some(path) => match bind_socket(path, admin.group.as_deref(), takes_over) {
            Ok(socket) => Some(socket),
            Err(error) if admin.socket_is_given => return Err(Unbound { what: path.display().to_string(), why: error.to_string() }),
            Err(error) => {
                log::warn!("{}: {error}: no command can reach this process (`admin: {{ socket: … }}` sets another place)", path.display());
                None
            }
        },
    };
    let same = |socket: &TcpListener, address: SocketAddr| {
        socket.local_addr().is_ok_and(|own| own.ip() == address.ip() && (own.port() == address.port() || address.port() == 0))
    };
    let plain = admin.address.map(|address| {
        let inherited = inherited.filter(|socket| same(socket, address));
        inherited.map_or_else(|| bind_plain(address), Ok).map_err(|error| (address, error))
    });
    let plain = plain
        .transpose()
        .map_err(|(address, error)| Unbound { what: format!("`admin: {{ address: {address} }}`"), why: error.to_string() })?;
    Ok(Bound { socket, plain })
}

fn bind_plain(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn bind_socket(path: &Path, group: Option<&str>, takes_over: bool) -> io::Result<Socket> {
    let group = match group {
        None => None,
        Some(name) => Some(Group::from_name(name)?.ok_or_else(|| io::Error::other(format!("there is no group `{name}`")))?.gid),
    };
    match fs::symlink_metadata(path) {
        Ok(meta) if !std::os::unix::fs::FileTypeExt::is_socket(&meta.file_type()) => {
            return Err(io::Error::other("is something else than a socket: remove it, or set another `admin: { socket: … }`"));
        }
        // A socket that nobody answers on was left behind by a process that was killed.
        Ok(_) if !takes_over && UnixStream::connect(path).is_ok() => {
            return Err(io::Error::other("another process answers there already: is a portcullis running?"));
        }
        Ok(_) | Err(_) => {}
    }
    // Published by a rename, so that there is always a socket that answers, and never one with too wide a mode.
    // Short: the path of a socket has few bytes.
    let aside = Aside(path.with_file_name(format!(".{}", std::process::id())));
    let _ = fs::remove_file(&aside.0);
    let listener = UnixListener::bind(&aside.0)?;
    fs::set_permissions(&aside.0, fs::Permissions::from_mode(0o660))?;
    if let Some(group) = group {
        nix::unistd::chown(&aside.0, None, Some(group))?;
    }
    listener.set_nonblocking(true)?;
    Ok(Socket { listener, aside, path: path.to_owned(), group })
}

impl Bound {
    /// The plain listener, to be handed to another process.
    pub fn plain(&self) -> Option<io::Result<TcpListener>> {
        self.plain.as_ref().map(TcpListener::try_clone)
    }

    /// Where `/readyz` is answered in plain HTTP.
    pub fn address(&self) -> Option<SocketAddr> {
        self.plain.as_ref()?.local_addr().ok()
    }

    /// Where the socket is.
    pub fn path(&self) -> Option<&Path> {
        self.socket.as_ref().map(|socket| socket.path.as_path())
    }

    /// Gives the socket to the user that the process becomes.
    pub fn give_to(&self, user: Uid, group: Gid, with_group: bool) {
        if let Some(socket) = &self.socket {
            // Root can do without; for others `serve` says what it lacks.
            let path = if socket.aside.0.exists() { &socket.aside.0 } else { &socket.path };
            let _ = nix::unistd::chown(path, Some(user), with_group.then_some(group));
        }
    }

    /// Puts the socket where commands look for it, if it is not there yet.
    pub fn publish(&self) -> io::Result<()> {
        match &self.socket {
            Some(socket) if socket.aside.0.exists() => fs::rename(&socket.aside.0, &socket.path),
            _ => Ok(()),
        }
    }

    /// Serves for as long as the process has not handed over. To be called inside a runtime.
    pub fn serve(self, api: Arc<Api>, stages: watch::Receiver<Stage>) -> Vec<JoinHandle<()>> {
        let mut tasks = Vec::new();
        if let Err(error) = self.publish() {
            log::error!("the admin socket cannot be put in its place: {error}");
        }
        if let Some(socket) = self.socket {
            match tokio::net::UnixListener::from_std(socket.listener) {
                Ok(listener) => tasks.push(tokio::spawn(while_own(stages.clone(), serve_socket(listener, socket.group, api.clone())))),
                Err(error) => log::error!("{}: cannot be served: {error}", socket.path.display()),
            }
        }
        if let Some(plain) = self.plain {
            match tokio::net::TcpListener::from_std(plain) {
                Ok(listener) => tasks.push(tokio::spawn(while_own(stages, serve_plain(listener, api)))),
                Err(error) => log::error!("the plain admin address cannot be served: {error}"),
            }
        }
        tasks
    }
}

/// Ends the work when another process has the sockets: whoever comes then is its guest.
async fn while_own(mut stages: watch::Receiver<Stage>, work: impl Future<Output = ()>) {
    tokio::select! {
        () = work => {}
        _ = stages.wait_for(|stage| *stage == Stage::HandedOver) => {}
    }
}

async fn serve_socket(listener: tokio::net::UnixListener, group: Option<Gid>, api: Arc<Api>) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                log::error!("the admin socket cannot accept: {error}");
                tokio::time::sleep(EXHAUSTED).await;
                continue;
            }
        };
        let caller = match Peer::of(&stream) {
            Ok(peer) if peer.is_allowed(group) => Caller::Peer(peer.to_string()),
            Ok(peer) => {
                log::warn!("admin socket: {peer} is neither root nor of the socket's group: refused");
                Caller::Stranger
            }
            Err(error) => {
                log::warn!("admin socket: a process that cannot be known is refused: {error}");
                Caller::Stranger
            }
        };
        tokio::spawn(serve_one(stream, caller, api.clone()));
    }
}

async fn serve_plain(listener: tokio::net::TcpListener, api: Arc<Api>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(serve_one(stream, Caller::Anybody, api.clone()))),
            Err(_) => tokio::time::sleep(EXHAUSTED).await,
        }
    }
}

async fn serve_one(stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static, caller: Caller, api: Arc<Api>) {
    let held = Arc::new(Mutex::new(None));
    let service = service_fn(|request| {
        let (api, caller, held) = (api.clone(), caller.clone(), held.clone());
        async move {
            let mut response = api.clone().answer(request, caller, &held).await;
            if api.has_handed_over() {
                // The next question is for the process that serves.
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        }
    });
    let serving = http1::Builder::new().timer(TokioTimer::new()).header_read_timeout(HEAD).serve_connection(TokioIo::new(stream), service);
    // A client that leaves is no trouble of ours.
    let _ = serving.await;
}
