//! What goes on beside the traffic: signals, health checks, certificates, names, watched files, the admin socket and the
//! service manager.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::signal::unix::SignalKind;
use tokio::sync::watch;

use super::control::{CommandError, Control};
use super::handover::LeftOut;
use super::keep::Unkept;
use super::pid_file::PidFile;
use super::readiness::{Readiness, Stage};
use super::reload::Reload;
use super::stop::{listen_to, signals_handled_later};
use super::takeover::Takeover;
use super::upgrade::Upgrades;
use super::{notify, watch as files};
use crate::admin;
use crate::config::Admin;
use crate::health::{self, Starts};
use crate::persist::seconds;
use crate::resolve;

/// How often the files of certificates are looked at, at most.
const CERTIFICATES: Duration = Duration::from_secs(1);
/// With many files a look takes time: this much longer is waited than it took.
const CERTIFICATES_REST: u32 = 200;
const DAY: Duration = Duration::from_secs(24 * 3600);
/// How often an unconfirmed configuration is gone back from that could not be the first time.
const AGAIN: Duration = Duration::from_secs(1);

const AGAIN_LATER: Duration = Duration::from_secs(15);

/// Called once connections are accepted, with the addresses.
pub type OnReady = Box<dyn FnOnce(&[std::net::SocketAddr]) + Send + Sync>;

pub struct Supervisor {
    pub starts: Option<Starts>,
    pub control: Arc<Control>,
    pub readiness: Arc<Readiness>,
    pub upgrades: Arc<Upgrades>,
    pub api: Arc<admin::api::Api>,
    pub admin: Option<admin::server::Bound>,
    pub admin_config: Admin,
    /// What accepts on the admin sockets.
    pub admin_tasks: Vec<tokio::task::JoinHandle<()>>,
    /// Turns true when connections can be accepted.
    pub accepting: watch::Receiver<bool>,
    /// Turns true when the process can be told to stop.
    pub stoppable: watch::Receiver<bool>,
    /// This process takes over from another one.
    pub takeover: Option<Takeover>,
    /// The configuration that the process begins with.
    pub unkept: Option<Unkept>,
    pub pid_file: Option<Arc<PidFile>>,
    pub on_ready: Option<OnReady>,
}

impl Supervisor {
    /// Brings the process to the point where it serves, tells so by `ready`, and looks after it until it stops.
    pub async fn run(&mut self, mut shutdown: watch::Receiver<bool>, ready: impl FnOnce() + Send) {
        if let Some(starts) = self.starts.take() {
            tokio::spawn(health::run(starts));
        }
        let signals = (listen_to(SignalKind::hangup()), listen_to(SignalKind::user_defined1()), listen_to(SignalKind::user_defined2()));
        let (Some(mut reload), Some(mut reopen), Some(mut upgrade)) = signals else { return };
        // The runtime of the connections runs within moments.
        let _ = self.accepting.wait_for(|accepting| *accepting).await;
        let _ = self.stoppable.wait_for(|stoppable| *stoppable).await;
        if !self.begin().await {
            // The old process goes on; this one was never seen.
            drop(self.admin.take());
            std::process::exit(1);
        }
        // The handlers are in place: what has come meanwhile is delivered now.
        if let Err(error) = signals_handled_later().thread_unblock() {
            log::error!("signals cannot be received: {error}");
        }
        ready();
        tokio::spawn(follow_certificates(self.control.clone()));
        tokio::spawn(resolve::keep_resolved(self.control.clone()));
        tokio::spawn(files::follow(self.control.clone(), self.readiness.clone()));
        tokio::spawn(follow_pending(self.control.clone()));
        tokio::spawn(stay_alive(self.readiness.clone(), self.control.clone()));
        loop {
            tokio::select! {
                _ = reload.recv() => {
                    // Reading files and resolving names take time; another signal asks for another reload.
                    reload_by_signal(self.control.clone(), self.upgrades.clone()).await;
                }
                _ = reopen.recv() => self.control.reopen_log(),
                _ = upgrade.recv() => {
                    let upgrades = self.upgrades.clone();
                    // It has told the log what became of it.
                    tokio::spawn(async move { drop(upgrades.upgrade("SIGUSR2", None, None).await) });
                }
                () = self.upgrades.serve_admin.notified() => self.serve_admin_again(),
                () = stopping(&mut shutdown) => return,
            }
        }
    }

    /// Serves from here on. `false`: the process that this one should take over from does not want it.
    async fn begin(&mut self) -> bool {
        let takes_over = self.takeover.is_some();
        let (control, unkept) = (self.control.clone(), self.unkept.take());
        let keep = move || unkept.into_iter().for_each(|unkept| control.keep_first(unkept));
        if let Some(takeover) = self.takeover.take() {
            // The old process speaks when it has stopped accepting.
            let applied = self.control.applied();
            let left_out = LeftOut::of(applied.broken.iter().filter(|broken| !broken.kept).map(|broken| broken.name.as_str()));
            let ready = move || {
                let mut takeover = takeover;
                takeover.ready(left_out).map(|()| takeover)
            };
            let ready = tokio::task::spawn_blocking(ready).await;
            let takeover = match ready {
                Ok(Ok(takeover)) => takeover,
                Ok(Err(error)) => {
                    log::error!("the old process does not hand over: {error}");
                    return false;
                }
                Err(_) => return false,
            };
            self.control.listeners().resume();
            // Before the old process closes its own: there is always one to ask.
            if let Some(admin) = self.admin.take() {
                self.serve(admin);
            }
            // Before the old process may end: a service manager that has lost its main process ends everything.
            notify::ready(&in_force(&self.control));
            if let Err(error) = takeover.serving() {
                log::error!("the old process is gone: {error}; this one serves");
            }
            self.upgrades.keep_predecessor(takeover);
            tokio::task::spawn_blocking(keep);
        } else {
            // A panic has been told; what comes into force later is kept then.
            let _ = tokio::task::spawn_blocking(keep).await;
            self.control.listeners().resume();
        }
        if let Some(admin) = self.admin.take() {
            self.serve(admin);
        }
        if let Some(pid_file) = &self.pid_file {
            pid_file.write();
        }
        let seen = self.control.listeners().seen();
        let addresses: Vec<_> = seen.iter().filter_map(|seen| seen.address).collect();
        for address in &addresses {
            log::info!("listening on {address}");
        }
        if self.readiness.begin() && !takes_over {
            notify::ready(&in_force(&self.control));
        }
        log::info!("portcullis {} is ready", env!("CARGO_PKG_VERSION"));
        if let Some(on_ready) = self.on_ready.take() {
            on_ready(&addresses);
        }
        true
    }

    fn serve(&mut self, admin: admin::server::Bound) {
        if let Some(address) = admin.address() {
            log::info!("/livez, /readyz and /metrics are answered on {address}");
        }
        let former = std::mem::replace(&mut self.admin_tasks, admin.serve(self.api.clone(), self.readiness.watch()));
        // Nobody can reach a socket that was replaced.
        former.iter().for_each(tokio::task::JoinHandle::abort);
    }

    /// After an upgrade whose new process has died: its socket is gone with it.
    fn serve_admin_again(&mut self) {
        let plain = self.upgrades.plain_admin.as_ref().and_then(|socket| socket.try_clone().ok());
        match admin::server::bind(&self.admin_config, plain, true) {
            Ok(admin) => self.serve(admin),
            Err(unbound) => log::error!("{}: {}", unbound.what, unbound.why),
        }
        if let Some(pid_file) = &self.pid_file {
            pid_file.write();
        }
    }
}

fn in_force(control: &Control) -> String {
    format!("generation {} is in force", control.applied().generation)
}

/// Reloads; during an upgrade as soon as that has failed, or the process that has taken over does: it may have read the files
/// before they changed.
async fn reload_by_signal(control: Arc<Control>, upgrades: Arc<Upgrades>) {
    let reload = move || control.reload(&Reload { by: "SIGHUP".to_owned(), ..Reload::default() });
    if let Ok(Err(CommandError::Conflict(_))) = tokio::task::spawn_blocking(reload.clone()).await {
        tokio::spawn(async move {
            loop {
                if upgrades.pass_on_reload() {
                    return;
                }
                tokio::time::sleep(AGAIN).await;
                if !upgrades.is_under_way()
                    && !matches!(tokio::task::spawn_blocking(reload.clone()).await, Ok(Err(CommandError::Conflict(_))))
                {
                    return;
                }
            }
        });
    }
}

async fn stopping(shutdown: &mut watch::Receiver<bool>) {
    // An error means that the server is gone, which is the same.
    let _ = shutdown.wait_for(|stopping| *stopping).await;
}

/// Follows the files of certificates, and tells daily of those that end soon.
async fn follow_certificates(control: Arc<Control>) {
    let mut told = None;
    loop {
        let (began, tell) = (Instant::now(), told.is_none_or(|told: Instant| told.elapsed() >= DAY));
        let control = control.clone();
        let look = move || {
            if tell {
                control.warn_of_certificates();
            }
            control.refresh_certificates();
        };
        // Reading files blocks. A panic costs one look.
        let _ = tokio::task::spawn_blocking(look).await;
        if tell {
            told = Some(began);
        }
        tokio::time::sleep(CERTIFICATES.max(began.elapsed() * CERTIFICATES_REST)).await;
    }
}

/// Goes back from a configuration that nobody confirms in time.
async fn follow_pending(control: Arc<Control>) {
    let mut changes = control.pending_changes();
    loop {
        let Some(pending) = changes.borrow_and_update().clone() else {
            if changes.changed().await.is_err() {
                return;
            }
            continue;
        };
        let left = Duration::from_secs(pending.until.saturating_sub(seconds(SystemTime::now())));
        tokio::select! {
            changed = changes.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
            () = tokio::time::sleep(left) => {}
        }
        let own = control.clone();
        let _ = tokio::task::spawn_blocking(move || own.roll_back_unconfirmed(&pending)).await;
        // During an upgrade it is left to whoever serves then. What cannot come back now may later.
        tokio::time::sleep(if control.pending().is_some() { AGAIN_LATER } else { AGAIN }).await;
    }
}

/// Tells the service manager at half its patience that the process is alive: this task runs only if this runtime does, and it
/// asks that of the connections.
async fn stay_alive(readiness: Arc<Readiness>, control: Arc<Control>) {
    let Some(patience) = notify::watchdog() else { return };
    let mut ticks = tokio::time::interval(patience / 2);
    loop {
        ticks.tick().await;
        // The process that has taken over speaks for itself.
        if readiness.stage() != Stage::HandedOver && control.listeners().is_alive(patience / 4).await {
            notify::alive();
        }
    }
}
