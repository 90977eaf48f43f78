//! Assembles the process from a configuration and runs it: the one file that knows everyone.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use aws_lc_rs::rand;
use nix::sys::signal::{SigSet, Signal as NixSignal};
use pingora::connectors::TransportConnector;
use pingora::server::configuration::ServerConf;
use pingora::server::{ListenFds, RunArgs, Server, ShutdownSignal, ShutdownSignalWatch, ShutdownWatch};
use pingora::services::{ServiceReadyNotifier, ServiceWithDependents};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::config::{self, Config, Loaded};
use crate::drain::Drain;
use crate::health::{self, HealthChecks, Starts};
use crate::observe::access_log::AccessLogger;
use crate::proxy::listen::{AcceptService, Bound, bind};
use crate::proxy::{RequestIds, Shared};
use crate::reload::{Fixed, Reloader, report};
use crate::resolve;
use crate::snapshot::current::Current;
use crate::snapshot::{Carry, compile};
use crate::tls;

/// Why the process does not run (any more).
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("the configuration has errors")]
    Config,
    #[error("cannot listen on {address}: {why}")]
    Listen { address: std::net::SocketAddr, why: String },
    #[error("{}: {why}", path.display())]
    State { path: PathBuf, why: String },
    #[error("cannot become the user `{user}`: {why}")]
    RunAs { user: String, why: String },
    #[error("the access log cannot be opened: {0}")]
    AccessLog(io::Error),
    #[error("cannot start: {0}")]
    Start(String),
}

/// Called once connections are accepted, with the addresses.
pub type OnReady = Box<dyn FnOnce(&[std::net::SocketAddr]) + Send + Sync>;

/// How to run.
pub struct Options {
    pub config: PathBuf,
    /// A mistake in a site refuses everything, instead of isolating the site.
    pub strict: bool,
    pub on_ready: Option<OnReady>,
}

/// Runs the proxy until it is told to stop. A configuration that is refused has been reported on standard error.
pub fn run(options: Options) -> Result<(), Failure> {
    // A reload that is asked for too early waits for whoever handles it, instead of ending the process.
    if let Err(error) = handled_later().thread_block() {
        log::warn!("signals that come during the start may end it: {error}");
    }
    let loaded = crate::load::load(&options.config, &config::Previous::default());
    report(&loaded);
    let config = accept_loaded(loaded, options.strict).ok_or(Failure::Config)?;
    raise_file_limit();
    let bound = bind_all(&config)?;
    let addresses: Vec<_> = bound.iter().filter_map(|bound| bound.socket.local_addr().ok()).collect();
    let secret = sticky_secret(&config)?;
    let log = AccessLogger::open(&config.access_log).map_err(Failure::AccessLog)?;
    become_user(&config)?;

    let conf = ServerConf {
        threads: config.threads,
        // Idle connections to backends, for each thread: enough for many backends with bursts.
        upstream_keepalive_pool_size: 1024,
        // Attempts are bounded by the group; this is only beyond what a group may have.
        max_retries: 1024,
        ..ServerConf::default()
    };
    let drain_timeout = config.drain_timeout;
    let name_servers = config.name_servers.clone();
    let fixed = Fixed::of(&config);
    let tls = tls::Shared::new().map_err(|error| Failure::Start(error.to_string()))?;
    let (health, starts) = HealthChecks::new();
    let snapshot = compile(config, &Carry { generation: 1, health: &health, tls: &tls, secret: &secret });
    let shared = Arc::new(Shared {
        current: Current::new(snapshot),
        log,
        drain: Drain::default(),
        tls,
        request_ids: RequestIds::new(u64::from_be_bytes(random()?)),
        connector: TransportConnector::new(None),
    });
    let reloader = Reloader::new(options.config, options.strict, fixed, health, secret, shared.clone());
    let supervisor = Supervisor { starts: Some(starts), reloader: Arc::new(reloader), addresses, name_servers, on_ready: options.on_ready };

    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let conf = server.configuration.clone();
    server.add_boxed_service(Box::new(AcceptService::new(&conf, shared.clone(), bound)));
    server.add_boxed_service(Box::new(supervisor));
    server.run(RunArgs { shutdown_signal: Box::new(Stop { shared: shared.clone(), drain_timeout }) });
    shared.log.flush();
    Ok(())
}

/// Signals whose default would end the process.
fn handled_later() -> SigSet {
    [NixSignal::SIGHUP, NixSignal::SIGUSR1].into_iter().collect()
}

fn accept_loaded(loaded: Loaded, strict: bool) -> Option<Config> {
    for site in &loaded.broken_sites {
        log::error!("site {site} is left out because of its errors and answers 503");
    }
    loaded.config.filter(|_| !strict || loaded.broken_sites.is_empty())
}

fn bind_all(config: &Config) -> Result<Vec<Bound>, Failure> {
    let bind = |listener: &config::Listener| {
        bind(listener.clone()).map_err(|error| Failure::Listen { address: listener.address, why: explain(&error, listener.address.port()) })
    };
    config.listeners.iter().map(bind).collect()
}

fn explain(error: &io::Error, port: u16) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => format!("another program listens there already (`ss -tlnp 'sport = :{port}'` shows which)"),
        io::ErrorKind::PermissionDenied => "ports below 1024 need root or CAP_NET_BIND_SERVICE".to_owned(),
        io::ErrorKind::AddrNotAvailable => "this machine does not have the address".to_owned(),
        _ => error.to_string(),
    }
}

/// Each connection takes a file descriptor, most two: the soft limit of 1024 is for programs that use `select`.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        log::warn!("the limit of open files stays as it is: {error}");
    }
}

fn random<const N: usize>() -> Result<[u8; N], Failure> {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).map_err(|_| Failure::Start("the system gives no random numbers".to_owned()))?;
    Ok(bytes)
}

/// The key of the sticky cookies: given by hand, or made once and kept in the state directory.
fn sticky_secret(config: &Config) -> Result<Vec<u8>, Failure> {
    if let Some(secret) = &config.sticky_secret {
        return Ok(secret.0.clone().into_bytes());
    }
    // A reload may bring the first sticky group, so the key is made wherever it can be kept.
    let needed = config.groups.iter().any(|group| group.sticky.is_some());
    let path = config.state_dir.join("sticky.key");
    match kept_secret(&path) {
        Err(error) if needed => Err(Failure::State {
            path,
            why: format!("the key of the sticky cookies cannot be kept: {error}; set `state_dir` or `sticky_secret`"),
        }),
        Err(_) => random::<32>().map(Vec::from),
        Ok(secret) => Ok(secret),
    }
}

fn kept_secret(path: &Path) -> io::Result<Vec<u8>> {
    match fs::read(path) {
        Ok(secret) if secret.len() >= 16 => return Ok(secret),
        Ok(_) => return Err(io::Error::other("the file is damaged: remove it to have a new one made")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let secret = random::<32>().map_err(io::Error::other)?;
    // Written aside and renamed, so that a crash or a full disk never leaves half a key.
    let aside = path.with_extension("new");
    let _ = fs::remove_file(&aside);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside)?;
    file.write_all(&secret)?;
    file.sync_all()?;
    fs::rename(&aside, path)?;
    Ok(secret.to_vec())
}

/// Gives up the privileges that binding needed.
fn become_user(config: &Config) -> Result<(), Failure> {
    use nix::unistd::{User, geteuid, initgroups, setgid, setuid};
    let Some(name) = &config.run_as else { return Ok(()) };
    let fail = |why: String| Failure::RunAs { user: name.clone(), why };
    let user = User::from_name(name).map_err(|error| fail(error.to_string()))?.ok_or_else(|| fail("there is no such user".to_owned()))?;
    if geteuid() == user.uid {
        return Ok(());
    }
    let mut owned = vec![config.state_dir.clone(), config.state_dir.join("sticky.key")];
    if let config::LogTarget::File(path) = &config.access_log.target {
        owned.push(path.clone());
    }
    for path in owned.iter().filter(|path| path.is_dir() || path.is_file()) {
        // The user goes on reading its key and writing its log. What cannot be given away is missed when it is used.
        let _ = nix::unistd::chown(path, Some(user.uid), Some(user.gid));
    }
    let name_c = std::ffi::CString::new(name.as_str()).map_err(|error| fail(error.to_string()))?;
    initgroups(&name_c, user.gid).and_then(|()| setgid(user.gid)).and_then(|()| setuid(user.uid)).map_err(|error| fail(error.to_string()))
}

// === Supervisor: health checks and signals ===

struct Supervisor {
    starts: Option<Starts>,
    reloader: Arc<Reloader>,
    addresses: Vec<std::net::SocketAddr>,
    name_servers: Vec<std::net::SocketAddr>,
    on_ready: Option<OnReady>,
}

/// How often the files of certificates are looked at, at most.
const CERTIFICATES: Duration = Duration::from_secs(1);
/// With many files a look takes time: this much longer is waited than it took.
const CERTIFICATES_REST: u32 = 200;
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Follows the files of certificates, and tells daily of those that end soon.
async fn follow_certificates(reloader: Arc<Reloader>) {
    let mut told = None;
    loop {
        let (began, tell) = (Instant::now(), told.is_none_or(|told: Instant| told.elapsed() >= DAY));
        let reloader = reloader.clone();
        let look = move || {
            if tell {
                reloader.warn_of_expiry();
            }
            reloader.refresh_certificates();
        };
        // Reading files blocks. A panic costs one look.
        let _ = tokio::task::spawn_blocking(look).await;
        if tell {
            told = Some(began);
        }
        tokio::time::sleep(CERTIFICATES.max(began.elapsed() * CERTIFICATES_REST)).await;
    }
}

#[async_trait]
impl ServiceWithDependents for Supervisor {
    async fn start_service(&mut self, _: Option<ListenFds>, mut shutdown: ShutdownWatch, _: usize, ready: ServiceReadyNotifier) {
        if let Some(starts) = self.starts.take() {
            tokio::spawn(health::run(starts));
        }
        tokio::spawn(follow_certificates(self.reloader.clone()));
        tokio::spawn(resolve::keep_resolved(self.reloader.clone(), self.name_servers.clone()));
        let (Some(mut reload), Some(mut reopen)) = (listen_to(SignalKind::hangup()), listen_to(SignalKind::user_defined1())) else {
            return;
        };
        // The handlers are in place: what has come meanwhile is delivered now.
        if let Err(error) = handled_later().thread_unblock() {
            log::error!("signals cannot be received: {error}");
        }
        for address in &self.addresses {
            log::info!("listening on {address}");
        }
        log::info!("portcullis {} is ready", env!("CARGO_PKG_VERSION"));
        if let Some(on_ready) = self.on_ready.take() {
            on_ready(&self.addresses);
        }
        ready.notify_ready();
        loop {
            tokio::select! {
                _ = reload.recv() => {
                    let reloader = self.reloader.clone();
                    // Reading files and resolving names block; a panic there leaves the old configuration in force.
                    if tokio::task::spawn_blocking(move || reloader.reload()).await.is_err() {
                        log::error!("the reload failed by a bug; the configuration in force stays");
                    }
                }
                _ = reopen.recv() => self.reloader.reopen_log(),
                () = stopping(&mut shutdown) => return,
            }
        }
    }

    fn name(&self) -> &'static str {
        "supervisor"
    }

    fn threads(&self) -> Option<usize> {
        Some(1)
    }
}

async fn stopping(shutdown: &mut ShutdownWatch) {
    // An error means that the server is gone, which is the same.
    let _ = shutdown.wait_for(|stopping| *stopping).await;
}

fn listen_to(kind: SignalKind) -> Option<Signal> {
    signal(kind).inspect_err(|error| log::error!("signals cannot be received: {error}")).ok()
}

// === Stop ===

/// TERM, INT and QUIT finish what is under way; a second one ends at once.
struct Stop {
    shared: Arc<Shared>,
    drain_timeout: Duration,
}

#[async_trait]
impl ShutdownSignalWatch for Stop {
    async fn recv(&self) -> ShutdownSignal {
        let kinds = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::quit()];
        let [Some(mut term), Some(mut int), Some(mut quit)] = kinds.map(listen_to) else {
            return std::future::pending().await;
        };
        let mut next = async || {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
                _ = quit.recv() => {}
            }
        };
        next().await;
        log::info!("stopping: {} connections are open, they have {:?} to finish", self.shared.drain.connections(), self.drain_timeout);
        tokio::select! {
            finished = self.shared.drain.finish(self.drain_timeout) => {
                if finished {
                    log::info!("stopped: every connection has finished");
                } else {
                    log::warn!("{} connections did not finish in time and are cut", self.shared.drain.connections());
                }
            }
            () = next() => log::warn!("a second signal: {} connections are cut", self.shared.drain.connections()),
        }
        self.shared.log.flush();
        ShutdownSignal::FastShutdown
    }
}
