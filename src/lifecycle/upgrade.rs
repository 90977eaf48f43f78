//! Upgrade: a new process gets the sockets, prepares itself, and takes over when it says that it is ready. Until then, and
//! whenever it fails, this process goes on.
//!
//! The new process accepts nothing before this one has stopped to: in between clients wait in the kernel's queue, and there
//! are never two masters.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::control::{CommandError, Control};
use super::handover::{Estate, FromNew, FromOld, LeftOut, Line};
use super::readiness::{Readiness, Stage};
use super::takeover::{ENVIRONMENT, STARTS, Takeover};
use crate::persist::Store;
use crate::proxy::Shared;

/// How long a new process may take to say that it is ready: a large configuration takes seconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long it may take to begin to serve once it may.
const BEGIN: Duration = Duration::from_secs(3);
/// How long an old process without connections stays: one that has taken over and is no good mostly dies within this time.
pub(super) const GUARD: Duration = Duration::from_millis(250);
/// How often it is looked whether this process was told to stop.
const LOOK: Duration = Duration::from_millis(100);
/// Longer than any process needs to get ready.
const LONGEST: Duration = Duration::from_secs(3600);
/// Programs that are number 1 of a container and start another one.
const CONTAINER_INITS: [&str; 8] = ["docker-init", "tini", "catatonit", "podman-init", "dumb-init", "tini-static", "bwrap", "pause"];
const DAY: Duration = Duration::from_secs(24 * 3600);

/// What this process was started as: a new one is started the same way.
#[derive(Clone, Debug)]
pub struct Started {
    binary: PathBuf,
    arguments: Vec<OsString>,
}

impl Started {
    /// As the command line and the system say.
    pub fn now() -> Self {
        let mut arguments = std::env::args_os();
        let named = arguments.next().map(PathBuf::from).filter(|path| path.components().count() > 1);
        // By the path that was called: a package puts the new version there, maybe behind a link.
        let binary = named.and_then(|path| std::path::absolute(path).ok()).or_else(|| std::env::current_exe().ok());
        Self { binary: binary.unwrap_or_else(|| PathBuf::from("/proc/self/exe")), arguments: arguments.collect() }
    }
}

/// Starts new processes and hands over to them.
pub struct Upgrades {
    pub control: Arc<Control>,
    pub shared: Arc<Shared>,
    pub readiness: Arc<Readiness>,
    pub started: Started,
    /// The socket of the plain admin address, which the new process gets too.
    pub plain_admin: Option<TcpListener>,
    /// Whether another process has the sockets.
    pub handed_over: watch::Sender<bool>,
    /// Told when this process is to serve the admin socket again.
    pub serve_admin: tokio::sync::Notify,
    /// One at a time.
    under_way: Mutex<bool>,
    /// Lines to processes that may still finish what they have: the one that this one took over from, which serves again should
    /// this one die, and those before it.
    predecessors: Mutex<Vec<Arc<Line>>>,
    /// The process that serves instead of this one.
    successor: Mutex<Option<u32>>,
}

impl Upgrades {
    pub fn new(control: Arc<Control>, shared: Arc<Shared>, readiness: Arc<Readiness>, plain_admin: Option<TcpListener>) -> Self {
        Self {
            control,
            shared,
            readiness,
            started: Started::now(),
            plain_admin,
            handed_over: watch::channel(false).0,
            serve_admin: tokio::sync::Notify::new(),
            under_way: Mutex::new(false),
            predecessors: Mutex::default(),
            successor: Mutex::new(None),
        }
    }

    /// Keeps the line to the process that this one took over from.
    pub fn keep_predecessor(&self, takeover: Takeover) {
        self.predecessors.lock().unwrap_or_else(PoisonError::into_inner).extend(takeover.into_lines().map(Arc::new));
    }

    /// The end of this process is no reason for the one before to serve again.
    pub fn settle(&self, successor: Option<u32>) {
        for line in self.predecessors() {
            // It has ended already, which is as good.
            let _ = line.send(&FromNew::Settled { successor }, None);
        }
    }

    /// Waits for the end of the processes before this one: a service manager would cut them with this one's end.
    pub fn wait_for_predecessors(&self, patience: Duration) {
        let until = Instant::now() + patience;
        for line in self.predecessors() {
            while Instant::now() < until && is_alive(&line, LOOK) {}
        }
    }

    /// Those that have not ended.
    fn predecessors(&self) -> Vec<Arc<Line>> {
        let mut lines = self.predecessors.lock().unwrap_or_else(PoisonError::into_inner);
        lines.retain(|line| is_alive(line, Duration::ZERO));
        lines.clone()
    }

    /// Lets the process that serves instead of this one reload. `false`: this one has not handed over.
    pub fn pass_on_reload(&self) -> bool {
        if self.readiness.stage() != Stage::HandedOver {
            return false;
        }
        let successor = *self.successor.lock().unwrap_or_else(PoisonError::into_inner);
        if !successor.is_some_and(|pid| kill(pid, Signal::HUP)) {
            log::warn!("SIGHUP: this process finishes, and does not know of another one that could reload");
        }
        true
    }

    fn set_successor(&self, pid: Option<u32>) {
        *self.successor.lock().unwrap_or_else(PoisonError::into_inner) = pid;
    }

    pub fn is_under_way(&self) -> bool {
        *self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a new process take over; gives its number. On failure this process goes on as if nothing had happened.
    pub async fn upgrade(self: &Arc<Self>, by: &str, binary: Option<PathBuf>, patience: Option<Duration>) -> Result<u32, CommandError> {
        // A signal has no other answer than the log.
        self.take_turn(patience).inspect_err(|error| log::warn!("no upgrade (asked by {by}): {error}"))?;
        let binary = binary.unwrap_or_else(|| self.started.binary.clone());
        log::info!("upgrade to {} begins (by {by})", binary.display());
        let this = self.clone();
        let patience = patience.unwrap_or(PATIENCE);
        // A change that is under way ends first, and the new process takes its time.
        let handle = Handle::current();
        let work = move || {
            let paused = AtomicBool::new(false);
            let attempt = || this.hand_over(&binary, patience, &handle, &paused);
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(attempt));
            let result = result.unwrap_or_else(|_| Err("by a bug, which the log has".to_owned()));
            // Told here: whoever has asked may not wait for it.
            result.map_err(|why| {
                let paused = paused.load(Ordering::Relaxed);
                this.go_on(paused);
                this.allow_changes();
                if paused {
                    // The new process may have told that it is the main one, and may have put its admin socket in place.
                    super::notify::ready("serving again after a failed upgrade");
                    this.serve_admin.notify_one();
                }
                let goes_on = |who: &str| if this.still_wanted().is_ok() { format!("; {who} process goes on") } else { String::new() };
                log::error!("the upgrade failed: {why}{}", goes_on("this"));
                CommandError::Failed(format!("the upgrade failed: {why}{}", goes_on("the old")))
            })
        };
        let bug = || Err(CommandError::Failed("the upgrade failed by a bug".to_owned()));
        tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| bug())
    }

    /// One upgrade at a time, of a process that serves and that nothing ends with.
    fn take_turn(&self, patience: Option<Duration>) -> Result<(), CommandError> {
        if let Some(why) = ends_with_this_process() {
            return Err(CommandError::Conflict(format!("{why}: start a container with the new image instead")));
        }
        if self.readiness.stage() != Stage::Ready {
            return Err(CommandError::Conflict("this process is not ready: it starts, stops or has handed over already".to_owned()));
        }
        if patience.is_some_and(|patience| patience > LONGEST) {
            return Err(CommandError::Invalid("the timeout is at most 1h".to_owned()));
        }
        if std::mem::replace(&mut *self.under_way.lock().unwrap_or_else(PoisonError::into_inner), true) {
            return Err(CommandError::Conflict("an upgrade is under way already".to_owned()));
        }
        Ok(())
    }

    fn end_turn(&self) {
        *self.under_way.lock().unwrap_or_else(PoisonError::into_inner) = false;
    }

    /// Everything up to the point where the new process serves.
    fn hand_over(self: &Arc<Self>, binary: &Path, patience: Duration, handle: &Handle, paused: &AtomicBool) -> Result<u32, String> {
        self.control.lock().upgrading = true;
        if let Some(store) = self.control.store() {
            store.hand_over();
        }
        let result = self.start(binary).and_then(|(mut child, line)| {
            let mut pid = child.id();
            match self.converse(&line, patience, handle, &mut pid, paused) {
                Ok(version) => {
                    // It has ended, or is the new process itself: then its end is waited for once the line has ended.
                    let _ = child.try_wait();
                    Ok((child, line, pid, version))
                }
                Err(why) => Err(format!("{why}{}", ended(&mut child, pid))),
            }
        });
        let (child, line, pid, version) = result?;
        log::info!("process {pid} (version {version}) serves; this one finishes what it has");
        self.settle(Some(pid));
        self.set_successor(Some(pid));
        if self.readiness.stage() == Stage::Stopping {
            // Told to stop in the last moment: the one that serves now is meant.
            kill(pid, Signal::TERM);
        } else {
            self.readiness.set(Stage::HandedOver);
        }
        self.handed_over.send_replace(true);
        let this = self.clone();
        // The new process serves: nothing may make this one serve beside it.
        if let Err(error) = std::thread::Builder::new().spawn(move || this.stand_by(child, &line, pid)) {
            log::error!("{error}: should process {pid} die, nobody serves in its place");
        }
        Ok(pid)
    }

    fn start(&self, binary: &Path) -> Result<(Child, Line), String> {
        let (line, theirs) = Line::pair().map_err(|error| format!("no sockets to speak with: {error}"))?;
        let mut command = Command::new(binary);
        command.args(&self.started.arguments).env(ENVIRONMENT, STARTS).env_remove("WATCHDOG_PID").stdin(Stdio::from(theirs));
        let child = command.spawn().map_err(|error| format!("{}: cannot be started: {error}", binary.display()))?;
        Ok((child, line))
    }

    /// Gives the new process what it needs, and the word to serve. Gives its version.
    fn converse(&self, line: &Line, patience: Duration, handle: &Handle, pid: &mut u32, paused: &AtomicBool) -> Result<String, String> {
        let listeners = self.control.listeners().sockets();
        let listeners: Vec<_> = listeners.into_iter().map(|(key, socket)| (key.address, key.nth, socket)).collect();
        let tickets = self.shared.tls.tickets().hand_over();
        let estate =
            Estate { listeners: &listeners, plain_admin: self.plain_admin.as_ref(), tickets, state: self.control.store().map(Store::path) };
        line.hand_over(estate, patience).map_err(|error| match error.kind() {
            io::ErrorKind::TimedOut => silent(patience),
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => "the new process ended before it was ready".to_owned(),
            _ => format!("the sockets cannot be handed over: {error}"),
        })?;
        let until = Instant::now() + patience;
        let version = loop {
            match self.next(line, until, patience, "it was ready")? {
                FromNew::Started { pid: new } => *pid = new,
                FromNew::Ready { version, left_out } => {
                    self.loses_nothing(&left_out)?;
                    break version;
                }
                FromNew::Failed { why } => {
                    return Err(format!("the new process says: {why} (`portcullis check` tells more of mistakes in files)"));
                }
                FromNew::Serving | FromNew::Settled { .. } => return Err("the new process serves without having been told to".to_owned()),
            }
        };
        paused.store(true, Ordering::Relaxed);
        handle.block_on(self.control.listeners().pause());
        self.still_wanted()?;
        line.give_word(&self.predecessors()).map_err(|error| format!("the new process was ready, then it hung up: {error}"))?;
        match self.next(line, Instant::now() + BEGIN, BEGIN, "it served")? {
            FromNew::Serving => Ok(version),
            FromNew::Failed { why } => Err(format!("the new process says: {why}")),
            FromNew::Started { .. } | FromNew::Ready { .. } | FromNew::Settled { .. } => {
                Err("the new process does not begin to serve".to_owned())
            }
        }
    }

    fn next(&self, line: &Line, until: Instant, patience: Duration, before: &str) -> Result<FromNew, String> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match line.receive(left.min(LOOK)) {
                Ok((message, _)) => return Ok(message),
                Err(error) if error.kind() == io::ErrorKind::TimedOut && left > LOOK => self.still_wanted()?,
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    return Err(silent(patience));
                }
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(format!("the new process ended before {before}"));
                }
                Err(error) => return Err(format!("the new process cannot be understood: {error}")),
            }
        }
    }

    /// Whether the new process serves every site that this one serves.
    fn loses_nothing(&self, left_out: &LeftOut) -> Result<(), String> {
        let applied = self.control.applied();
        let here: HashSet<&str> = applied.broken.iter().filter(|broken| !broken.kept).map(|broken| broken.name.as_str()).collect();
        match left_out.beyond(&here) {
            None => Ok(()),
            Some(lost) => {
                Err(format!("the new process would answer with 503 for sites that are served now: {lost} (`portcullis check` tells why)"))
            }
        }
    }

    /// Whether nobody has told this process to stop meanwhile.
    fn still_wanted(&self) -> Result<(), String> {
        match self.readiness.stage() {
            Stage::Ready => Ok(()),
            _ => Err("this process was told to stop".to_owned()),
        }
    }

    /// This process serves again. Its configuration cannot change yet.
    fn go_on(&self, paused: bool) {
        if let Some(store) = self.control.store() {
            store.take_back();
        }
        if paused && self.readiness.stage() != Stage::Stopping {
            // Should it have come to that.
            self.shared.drain.uncut();
            self.control.listeners().resume();
        }
    }

    fn allow_changes(&self) {
        self.control.lock().upgrading = false;
        self.end_turn();
    }

    /// Waits for this process's end, or the new one's: if that one died, this one takes the sockets back, which it has kept.
    fn stand_by(&self, mut child: Child, line: &Line, pid: u32) {
        // Its line ends when it does, or when the last one after it does that has a copy of it.
        let mut settled = false;
        loop {
            match line.receive(DAY) {
                Ok((FromNew::Settled { successor }, _)) => {
                    settled = true;
                    self.set_successor(successor);
                }
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
                _ => {}
            }
        }
        self.set_successor(None);
        if settled {
            // The line stays to the end of this process: it tells the others of that.
            loop {
                std::thread::park();
            }
        }
        // Where it is a child of this process, it leaves its status.
        let _ = child.wait();
        log::error!("the new process {pid} has ended; this one serves again");
        // In this order: who is told to finish looks whether that is still so.
        self.handed_over.send_replace(false);
        self.go_on(true);
        self.readiness.set(Stage::Ready);
        super::notify::ready("serving again after a failed upgrade");
        self.serve_admin.notify_one();
        // What that process was told is not forgotten, nor written over by what this one knew.
        self.control.catch_up();
        self.allow_changes();
    }
}

/// Ends a new process that is not wanted any more, which may be hanging; how it ended, where that can be known.
fn ended(child: &mut Child, pid: u32) -> String {
    if pid != child.id() {
        // The child has ended when it had started the new process.
        let _ = child.wait();
        let killed = kill(pid, Signal::KILL);
        return if killed { format!(" (process {pid} was killed)") } else { " (its own lines in the log tell more)".to_owned() };
    }
    // One that hangs up has a moment to end by itself, so that its status can be told.
    let until = Instant::now() + Duration::from_millis(200);
    while Instant::now() < until {
        if let Ok(Some(status)) = child.try_wait() {
            return format!(" ({status}; its own lines in the log tell more)");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let _ = child.kill();
    let _ = child.wait();
    format!(" (process {pid} was killed)")
}

/// Whether the process at the other end has not ended. It has nothing to say any more.
fn is_alive(line: &Line, patience: Duration) -> bool {
    line.receive::<FromOld>(patience).is_err_and(|error| error.kind() == io::ErrorKind::TimedOut)
}

/// What would end with this process, and with it the one that takes over.
fn ends_with_this_process() -> Option<&'static str> {
    if std::process::id() == 1 {
        return Some("this process is number 1 of its container, which ends with it");
    }
    // The one that started a process which has taken over was not the container's main one, or it could not have.
    if std::env::var_os(ENVIRONMENT).is_some() {
        return None;
    }
    // Number 1 may be an init that ends with the program it has started, or belong to another container that shares its processes.
    let is_main = match rustix::process::getppid().map(rustix::process::Pid::as_raw_nonzero) {
        None => true,
        Some(parent) if parent.get() == 1 => {
            let name = std::fs::read_to_string("/proc/1/comm").unwrap_or_default();
            CONTAINER_INITS.contains(&name.trim_end())
        }
        Some(_) => false,
    };
    is_main.then_some("this process was started by its container, which ends with it")
}

fn silent(patience: Duration) -> String {
    format!("the new process said nothing for {patience:?}")
}

/// `false`: it is gone.
fn kill(pid: u32, signal: Signal) -> bool {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap_or_default());
    pid.is_some_and(|pid| rustix::process::kill_process(pid, signal).is_ok())
}
