//! Assembles the process from a configuration and runs it: the one file that knows everyone.

use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use pingora::connectors::TransportConnector;
use pingora::server::configuration::ServerConf;
use pingora::server::{ListenFds, RunArgs, Server, ShutdownSignal, ShutdownSignalWatch, ShutdownWatch};
use pingora::services::{ServiceReadyNotifier, ServiceWithDependents};
use tokio::sync::{Notify, watch};

use crate::admin;
use crate::config::{Config, LogTarget};
use crate::health::HealthChecks;
use crate::lifecycle::begin::{self, Beginning, Begun};
use crate::lifecycle::control::{Control, Fixed, Parts, Settings, h2_idle};
use crate::lifecycle::drain::Drain;
use crate::lifecycle::handover::Inheritance;
use crate::lifecycle::pid_file::PidFile;
use crate::lifecycle::readiness::{Readiness, Stage};
use crate::lifecycle::reload::explain_unbound;
use crate::lifecycle::sticky_key::{self, StickyKey};
use crate::lifecycle::stop::{Stop, signals_handled_later};
use crate::lifecycle::supervisor::{OnReady, Supervisor};
use crate::lifecycle::takeover::Takeover;
use crate::lifecycle::upgrade::Upgrades;
use crate::observe::access_log::AccessLogger;
use crate::persist::Store;
use crate::proxy::listen::{AcceptService, Bound, Key, Listeners, bind_all};
use crate::proxy::{RequestIds, Shared};
use crate::snapshot::current::Current;
use crate::tls;
use crate::tls::tickets::Tickets;

/// Why the process does not run (any more).
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Begin(#[from] begin::Error),
    #[error("{0}")]
    Listen(String),
    #[error("{}: {why}", path.display())]
    State { path: PathBuf, why: String },
    #[error("{what}: {why}")]
    Admin { what: String, why: String },
    #[error("cannot become the user `{user}`: {why}")]
    RunAs { user: String, why: String },
    #[error("the access log cannot be opened: {0}")]
    AccessLog(io::Error),
    #[error("cannot start: {0}")]
    Start(String),
}

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
    if let Err(error) = signals_handled_later().thread_block() {
        log::warn!("signals that come during the start may end it: {error}");
    }
    let takeover = Takeover::from_environment().map_err(|error| Failure::Start(format!("nothing can be taken over: {error}")))?;
    let (takeover, inheritance) = takeover.unzip();
    match start(options, inheritance) {
        Ok(process) => {
            process.run(takeover);
            Ok(())
        }
        Err(failure) => {
            if let Some(takeover) = &takeover {
                takeover.failed(&failure.to_string());
            }
            Err(failure)
        }
    }
}

/// A process that is complete but for its threads.
struct Process {
    server: Server,
    accept: AcceptService,
    supervisor: Supervisor,
    stop: Stop,
    shared: Arc<Shared>,
    readiness: Arc<Readiness>,
    /// What is removed at the end, unless another process has its own there.
    admin_socket: Option<PathBuf>,
    pid_file: Option<Arc<PidFile>>,
}

impl Process {
    fn run(self, takeover: Option<Takeover>) {
        let Self { mut server, accept, mut supervisor, stop, shared, readiness, admin_socket, pid_file } = self;
        supervisor.takeover = takeover;
        server.add_boxed_service(Box::new(accept));
        server.add_boxed_service(Box::new(Supervised(supervisor)));
        server.run(RunArgs { shutdown_signal: Box::new(Ends(stop)) });
        shared.log.flush();
        if let Some(path) = admin_socket {
            // After an upgrade there is another one, here or elsewhere. One that is left behind is replaced by the next start.
            if readiness.stage() == Stage::Stopping || UnixStream::connect(&path).is_err() {
                let _ = std::fs::remove_file(path);
            }
        }
        if let Some(pid_file) = pid_file {
            pid_file.remove();
        }
    }
}

/// What is open before privileges are given up.
struct Opened {
    bound: Vec<Bound>,
    unwanted: Vec<Arc<TcpListener>>,
    admin: admin::server::Bound,
    sticky_key: StickyKey,
    log: AccessLogger,
}

fn open(config: &Config, store: Option<&Store>, inheritance: Option<Inheritance>) -> Result<Opened, Failure> {
    raise_file_limit();
    let takes_over = inheritance.is_some();
    let (sockets, plain_admin) = inheritance.map_or_else(Default::default, |inheritance| (inheritance.listeners, inheritance.plain_admin));
    let socket = |(address, nth, socket)| (Key { address, nth }, Arc::new(socket));
    let sockets: Vec<_> = sockets.into_iter().map(socket).collect();
    let bound = bind_all(&config.listeners, &sockets).map_err(|unbound| Failure::Listen(explain_unbound(&unbound)))?;
    let is_wanted = |socket: &Arc<TcpListener>| bound.iter().any(|bound| Arc::ptr_eq(&bound.socket, socket));
    let unwanted = sockets.into_iter().map(|(_, socket)| socket).filter(|socket| !is_wanted(socket)).collect();
    let admin = admin::server::bind(&config.admin, plain_admin, takes_over);
    let admin = admin.map_err(|unbound| Failure::Admin { what: unbound.what, why: unbound.why })?;
    let sticky_key = StickyKey::new(config).map_err(|error| Failure::State {
        path: error.path,
        why: format!("the key of the sticky cookies cannot be kept: {}; set `state_dir` or `sticky_secret`", error.why),
    })?;
    let log = AccessLogger::open(&config.access_log).map_err(Failure::AccessLog)?;
    if !takes_over && let Err(error) = admin.publish() {
        log::error!("the admin socket cannot be put in its place: {error}");
    }
    become_user(config, store, &admin)?;
    Ok(Opened { bound, unwanted, admin, sticky_key, log })
}

fn start(options: Options, inheritance: Option<Inheritance>) -> Result<Process, Failure> {
    let started = Instant::now();
    let path = std::path::absolute(&options.config).unwrap_or(options.config);
    let beginning = Beginning::load(&path, options.strict, inheritance.as_ref())?;
    let config = &beginning.config;
    let by = if inheritance.is_some() { "an upgrade" } else { "the start" };
    let tickets = inheritance.as_ref().map_or_else(Tickets::new, |inheritance| Tickets::handed(&inheritance.tickets));
    let Opened { bound, unwanted, admin, sticky_key, log } = open(config, beginning.store.as_deref(), inheritance)?;
    let tls = tls::Shared::new(tickets.map_err(|error| Failure::Start(error.to_string()))?);
    let mut server = Server::new_with_opt_and_conf(None, server_conf(config));
    server.bootstrap();
    let conf = server.configuration.clone();
    let (fixed, settings, idle) = (Fixed::of(config), Settings::of(config, &path, beginning.assembled.stamps.as_ref()), h2_idle(config));
    let (pid_file, admin_config) = (config.pid_file.clone().map(PidFile::new).map(Arc::new), config.admin.clone());

    let (health, starts) = HealthChecks::new();
    let Begun { snapshot, applied, unkept, store, spoken } = beginning.compile(&health, &tls, &sticky_key.in_force(), by);

    let random = sticky_key::random().map_err(|error| Failure::Start(error.to_string()))?;
    let shared = Arc::new(Shared {
        current: Current::new(snapshot),
        log,
        drain: Drain::default(),
        tls,
        request_ids: RequestIds::new(u64::from_be_bytes(random)),
        connector: TransportConnector::new(None),
    });
    let listeners = Listeners::new(&conf, shared.clone(), idle, bound, unwanted);
    let strict = options.strict;
    let control = Arc::new(Control::new(Parts {
        path,
        strict,
        fixed,
        settings,
        health,
        sticky_key,
        shared: shared.clone(),
        listeners: listeners.clone(),
        store,
        applied,
        spoken,
    }));
    let readiness = Arc::new(Readiness::default());
    let admin_socket = admin.path().map(Path::to_owned);
    let plain_admin = admin.plain().transpose().map_err(|error| Failure::Start(error.to_string()))?;
    let upgrades = Arc::new(Upgrades::new(control.clone(), shared.clone(), readiness.clone(), plain_admin));
    let asked = Arc::new(Notify::new());
    let handed_over = upgrades.handed_over.subscribe();
    let api = admin::api::Api {
        control: control.clone(),
        readiness: readiness.clone(),
        upgrades: upgrades.clone(),
        drain: shared.clone(),
        stop: asked.clone(),
        started,
    };
    let (running, listening) = (watch::channel(false).0, watch::channel(false).0);
    let supervisor = Supervisor {
        starts: Some(starts),
        control: control.clone(),
        readiness: readiness.clone(),
        upgrades: upgrades.clone(),
        api: Arc::new(api),
        admin: Some(admin),
        admin_config,
        admin_tasks: Vec::new(),
        accepting: running.subscribe(),
        stoppable: listening.subscribe(),
        takeover: None,
        unkept: Some(unkept),
        pid_file: pid_file.clone(),
        on_ready: options.on_ready,
    };
    let accept = AcceptService { listeners, threads: conf.threads, running };
    let stop = Stop { shared: shared.clone(), control, readiness: readiness.clone(), upgrades, asked, handed_over, listening };
    Ok(Process { server, accept, supervisor, stop, shared, readiness, admin_socket, pid_file })
}

fn server_conf(config: &Config) -> ServerConf {
    ServerConf {
        threads: config.threads,
        // Idle connections to backends, for each thread: enough for many backends with bursts.
        upstream_keepalive_pool_size: 1024,
        // Attempts are bounded by the group; this is only beyond what a group may have.
        max_retries: 1024,
        ..ServerConf::default()
    }
}

// === In Pingora's words ===

struct Supervised(Supervisor);

#[async_trait]
impl ServiceWithDependents for Supervised {
    async fn start_service(&mut self, _: Option<ListenFds>, shutdown: ShutdownWatch, _: usize, ready: ServiceReadyNotifier) {
        self.0.run(shutdown, || ready.notify_ready()).await;
    }

    fn name(&self) -> &'static str {
        "supervisor"
    }

    fn threads(&self) -> Option<usize> {
        Some(1)
    }
}

struct Ends(Stop);

#[async_trait]
impl ShutdownSignalWatch for Ends {
    async fn recv(&self) -> ShutdownSignal {
        self.0.ended().await;
        // Our own drain is over: Pingora has nothing to wait for.
        ShutdownSignal::FastShutdown
    }
}

// === The system ===

/// Each connection takes a file descriptor, most two: the soft limit of 1024 is for programs that use `select`.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        log::warn!("the limit of open files stays as it is: {error}");
    }
}

/// Gives up the privileges that binding needed.
fn become_user(config: &Config, store: Option<&Store>, admin: &admin::server::Bound) -> Result<(), Failure> {
    use nix::unistd::{User, geteuid, initgroups, setgid, setuid};
    let Some(name) = &config.run_as else { return Ok(()) };
    let fail = |why: String| Failure::RunAs { user: name.clone(), why };
    let user = User::from_name(name).map_err(|error| fail(error.to_string()))?.ok_or_else(|| fail("there is no such user".to_owned()))?;
    if geteuid() == user.uid {
        return Ok(());
    }
    let mut owned = vec![config.state_dir.clone(), sticky_key::path(&config.state_dir)];
    owned.extend(store.map(|store| store.path().to_owned()));
    if let LogTarget::File(path) = &config.access_log.target {
        owned.push(path.clone());
    }
    for path in owned.iter().filter(|path| path.is_dir() || path.is_file()) {
        // The user goes on reading its key and writing its log. What cannot be given away is missed when it is used.
        let _ = nix::unistd::chown(path, Some(user.uid), Some(user.gid));
    }
    admin.give_to(user.uid, user.gid, config.admin.group.is_none());
    let name_c = std::ffi::CString::new(name.as_str()).map_err(|error| fail(error.to_string()))?;
    initgroups(&name_c, user.gid).and_then(|()| setgid(user.gid)).and_then(|()| setuid(user.uid)).map_err(|error| fail(error.to_string()))
}
