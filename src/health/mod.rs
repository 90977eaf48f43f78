//! Health checks: one registry of `pingora-load-balancing` for each kind of check, shared by all groups that ask for
//! it, so that an address is probed once however many groups name it.

mod probe;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use pingora_load_balancing::{HealthCheckService, HealthRegistry};
use tokio::sync::{mpsc, watch};

use crate::balance::state::BackendState;
use crate::config::HealthCheck;
use probe::Probe;

/// The states of the backends that one kind of check watches.
pub(crate) type States = Arc<Mutex<HashMap<SocketAddr, Arc<BackendState>>>>;

/// All health checks of the process. They outlive configurations.
pub struct HealthChecks {
    watched: Mutex<HashMap<Option<HealthCheck>, Watched>>,
    start: mpsc::UnboundedSender<(HealthCheckService, watch::Receiver<bool>)>,
}

/// The checks that are to be run; the runner of the process takes them up.
pub type Starts = mpsc::UnboundedReceiver<(HealthCheckService, watch::Receiver<bool>)>;

struct Watched {
    /// `None`: nothing is checked, only traffic tells.
    registry: Option<Arc<HealthRegistry>>,
    states: States,
    stop: watch::Sender<bool>,
}

impl HealthChecks {
    pub fn new() -> (Self, Starts) {
        let (start, starts) = mpsc::unbounded_channel();
        (Self { watched: Mutex::default(), start }, starts)
    }

    /// The registry of a kind of check, and the state of an address under it. The first to ask starts its probes.
    pub fn watch(&self, check: Option<&HealthCheck>, addresses: &[SocketAddr]) -> (Option<Arc<HealthRegistry>>, Vec<Arc<BackendState>>) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = watched.entry(check.cloned()).or_insert_with(|| self.begin(check));
        let mut states = entry.states.lock().unwrap_or_else(PoisonError::into_inner);
        let found = addresses.iter().map(|address| states.entry(*address).or_default().clone()).collect();
        (entry.registry.clone(), found)
    }

    fn begin(&self, check: Option<&HealthCheck>) -> Watched {
        let states = States::default();
        let (stop, stopped) = watch::channel(false);
        let registry = check.map(|check| {
            // The weight of a backend is no reason to probe its address twice.
            let registry = Arc::new(HealthRegistry::with_equivalence(|backend| {
                use std::hash::BuildHasher as _;
                foldhash::fast::FixedState::default().hash_one(&backend.addr)
            }));
            registry.set_health_check(Box::new(Probe::new(check.clone(), states.clone())));
            let mut service = HealthCheckService::new(registry.clone());
            service.health_check_frequency = Some(check.interval);
            service.parallel_health_check = true;
            // The runner lives as long as the process; without it nothing is probed, as in `check`.
            let _ = self.start.send((service, stopped));
            registry
        });
        Watched { registry, states, stop }
    }

    /// Ends the checks that no current group uses, and forgets backends that are gone.
    pub fn retain(&self, in_use: &HashMap<Option<HealthCheck>, Vec<SocketAddr>>) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.retain(|check, entry| {
            let Some(addresses) = in_use.get(check) else {
                let _ = entry.stop.send(true);
                return false;
            };
            let mut states = entry.states.lock().unwrap_or_else(PoisonError::into_inner);
            states.retain(|address, _| addresses.contains(address));
            true
        });
    }
}

/// Runs every check that is started, until the process stops.
pub async fn run(mut starts: Starts) {
    while let Some((service, stopped)) = starts.recv().await {
        tokio::spawn(async move { service.run(stopped, None).await });
    }
}
