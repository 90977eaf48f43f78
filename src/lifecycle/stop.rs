//! The end of the process: told by a signal or by the process that takes over, and over as soon as nobody is connected.

use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal as NixSignal};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::Instant;

use super::control::Control;
use super::readiness::{Readiness, Stage};
use super::upgrade::{GUARD, Upgrades};
use crate::proxy::Shared;

/// What clients of WebSockets get to take the last frame.
const GOODBYE: Duration = Duration::from_secs(1);

/// TERM, INT and QUIT finish what is under way; a second one ends at once.
pub struct Stop {
    pub shared: Arc<Shared>,
    pub control: Arc<Control>,
    pub readiness: Arc<Readiness>,
    pub upgrades: Arc<Upgrades>,
    /// A command asks for what TERM does.
    pub asked: Arc<Notify>,
    /// Whether another process has the sockets; it may turn false again when that one dies.
    pub handed_over: watch::Receiver<bool>,
    /// Turns true when signals are heard: one that comes before ends the process, whatever is under way.
    pub listening: watch::Sender<bool>,
}

impl Stop {
    /// Ends when the process may end: nobody is connected any more, or nobody is to be waited for.
    pub async fn ended(&self) {
        let Some(mut signals) = Signals::listen(self.asked.clone()) else { return std::future::pending().await };
        self.listening.send_replace(true);
        let mut handed_over = self.handed_over.clone();
        loop {
            tokio::select! {
                () = signals.next() => {
                    tokio::select! {
                        () = self.stop() => {}
                        () = signals.next() => log::warn!("a second signal: {} connections are cut", self.shared.drain.connections()),
                    }
                    break;
                }
                () = turns(&mut handed_over, true) => {
                    let mut back = handed_over.clone();
                    tokio::select! {
                        () = self.finish(|| *self.handed_over.borrow()) => break,
                        () = signals.twice() => break log::warn!("told to stop: {} connections are cut", self.shared.drain.connections()),
                        // The other process has died: this one goes on.
                        () = turns(&mut back, false) => {}
                    }
                }
            }
        }
        self.shared.log.flush();
    }

    async fn stop(&self) {
        let settings = self.control.settings();
        let delay = settings.drain_delay;
        self.readiness.set(Stage::Stopping);
        self.upgrades.settle(None);
        super::notify::stopping(delay + settings.drain_timeout + 2 * GOODBYE);
        if !delay.is_zero() {
            log::info!("stopping: not ready any more; connections are still accepted for {delay:?}");
            tokio::time::sleep(delay).await;
        }
        let until = Instant::now() + settings.drain_timeout;
        self.finish(|| true).await;
        self.wait_for_predecessors(until).await;
    }

    /// Processes before this one may still finish what they have.
    async fn wait_for_predecessors(&self, until: Instant) {
        let (upgrades, left) = (self.upgrades.clone(), until.saturating_duration_since(Instant::now()));
        let (tell, ended) = oneshot::channel();
        // Not among the blocking tasks of the runtime, which waits for them when a second signal ends it.
        let wait = move || {
            upgrades.wait_for_predecessors(left);
            let _ = tell.send(());
        };
        if std::thread::Builder::new().spawn(wait).is_ok() {
            let _ = ended.await;
        }
    }

    /// Lets connections finish; cuts those that do not.
    async fn finish(&self, wanted: impl FnOnce() -> bool) {
        let timeout = self.control.settings().drain_timeout;
        let drain = &self.shared.drain;
        self.control.listeners().finish(wanted);
        log::info!("stopping: {} connections are open, they have {timeout:?} to finish", drain.connections());
        if drain.empty(timeout).await {
            if self.readiness.stage() == Stage::HandedOver {
                tokio::time::sleep(GUARD).await;
            }
            log::info!("stopped: every connection has finished");
            return;
        }
        log::warn!("{} connections did not finish in time and are cut", drain.connections());
        drain.cut();
        // Whoever does not leave now is cut off by the end of the process.
        drain.empty(GOODBYE).await;
    }
}

/// What tells the process to stop.
struct Signals {
    signals: [Signal; 3],
    asked: Arc<Notify>,
}

impl Signals {
    fn listen(asked: Arc<Notify>) -> Option<Self> {
        let kinds = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::quit()];
        let [Some(term), Some(int), Some(quit)] = kinds.map(listen_to) else { return None };
        Some(Self { signals: [term, int, quit], asked })
    }

    async fn next(&mut self) {
        let [term, int, quit] = &mut self.signals;
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
            _ = quit.recv() => {}
            () = self.asked.notified() => {}
        }
    }

    /// A process that finishes already has nothing else to do at the first signal.
    async fn twice(&mut self) {
        self.next().await;
        log::info!("this process finishes already; another signal cuts what is open");
        self.next().await;
    }
}

/// Waits for a value.
async fn turns(watched: &mut watch::Receiver<bool>, to: bool) {
    if watched.wait_for(|value| *value == to).await.is_err() {
        // Nobody is left who could change it.
        std::future::pending().await
    }
}

/// Signals whose default would end the process: they wait during the start.
pub fn signals_handled_later() -> SigSet {
    [NixSignal::SIGHUP, NixSignal::SIGUSR1, NixSignal::SIGUSR2].into_iter().collect()
}

/// A stream of signals of one kind.
pub fn listen_to(kind: SignalKind) -> Option<Signal> {
    signal(kind).inspect_err(|error| log::error!("signals cannot be received: {error}")).ok()
}
