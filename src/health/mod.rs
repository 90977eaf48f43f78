//! Health checks: one registry of `pingora-load-balancing` for each kind of check, shared by all groups that ask for
//! it, so that an address is probed once however many groups name it.

mod probe;

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use pingora::connectors::{TransportConnector, http::Connector};
use pingora_load_balancing::{HealthCheckService, HealthRegistry};
use tokio::sync::{mpsc, watch};

use crate::balance::ProbedAs;
use crate::balance::state::BackendState;
use crate::config::{Address, Backend, CheckKind, HealthCheck};
use probe::Probe;

/// The backends that one kind of check watches.
pub(crate) type Targets = Arc<Mutex<HashMap<TargetKey, Target>>>;

/// What one probe finds out about: an address, and the name that it goes by where the probe shows or verifies one.
#[derive(Clone, Debug)]
pub(crate) struct TargetKey {
    pub(crate) address: Address,
    /// As written; empty where it makes no difference.
    pub(crate) host: String,
    /// The address as text.
    pub(crate) shown: String,
}

impl TargetKey {
    pub(crate) fn new(address: Address, host: String) -> Self {
        Self { shown: address.to_string(), address, host }
    }
}

impl PartialEq for TargetKey {
    fn eq(&self, other: &Self) -> bool {
        (&self.address, &self.host) == (&other.address, &other.host)
    }
}

impl Eq for TargetKey {}

impl std::hash::Hash for TargetKey {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (&self.address, &self.host).hash(state);
    }
}

/// A backend that is probed, however many groups name it.
pub(crate) struct Target {
    pub(crate) state: Arc<BackendState>,
    /// Whether it was probed: the first probe waits for nothing.
    pub(crate) known: AtomicBool,
}

/// Connections of probes: of their own, so that probes find out whether new ones can be made.
pub(crate) struct Connectors {
    pub(crate) transport: TransportConnector,
    pub(crate) http: Connector,
}

/// All health checks of the process. They outlive configurations.
pub struct HealthChecks {
    watched: Mutex<HashMap<Option<HealthCheck>, Watched>>,
    start: mpsc::UnboundedSender<(HealthCheckService, watch::Receiver<bool>)>,
    /// Made by the first check: it reads the system's authorities.
    connectors: OnceLock<Arc<Connectors>>,
}

/// The checks that are to be run; the runner of the process takes them up.
pub type Starts = mpsc::UnboundedReceiver<(HealthCheckService, watch::Receiver<bool>)>;

struct Watched {
    /// `None`: nothing is checked, only traffic tells.
    registry: Option<Arc<HealthRegistry>>,
    targets: Targets,
    stop: watch::Sender<bool>,
}

impl HealthChecks {
    pub fn new() -> (Self, Starts) {
        let (start, starts) = mpsc::unbounded_channel();
        (Self { watched: Mutex::default(), start, connectors: OnceLock::new() }, starts)
    }

    /// The registry of a kind of check, and the state of an address under it. The first to ask starts its probes.
    pub fn watch(&self, check: Option<&HealthCheck>, backends: &[Backend]) -> (Option<Arc<HealthRegistry>>, Vec<Arc<BackendState>>) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = watched.entry(check.cloned()).or_insert_with(|| self.begin(check));
        let mut targets = entry.targets.lock().unwrap_or_else(PoisonError::into_inner);
        let target = || Target { state: Arc::default(), known: AtomicBool::new(false) };
        let key = |backend: &Backend| TargetKey::new(backend.address.clone(), probed_as(check, &backend.host).to_owned());
        let state = |backend: &Backend| targets.entry(key(backend)).or_insert_with(target).state.clone();
        let found = backends.iter().map(state).collect();
        (entry.registry.clone(), found)
    }

    fn connectors(&self) -> Arc<Connectors> {
        let make = || Arc::new(Connectors { transport: TransportConnector::new(None), http: Connector::new(None) });
        self.connectors.get_or_init(make).clone()
    }

    fn begin(&self, check: Option<&HealthCheck>) -> Watched {
        let targets = Targets::default();
        let (stop, stopped) = watch::channel(false);
        let registry = check.map(|check| {
            // The weight of a backend is no reason to probe its address twice.
            let registry = Arc::new(HealthRegistry::with_equivalence(|backend| {
                use std::hash::BuildHasher as _;
                let host = backend.ext.get::<ProbedAs>().map(|host| host.0.as_str()).unwrap_or_default();
                foldhash::fast::FixedState::default().hash_one((&backend.addr, host))
            }));
            registry.set_health_check(Box::new(Probe::new(check.clone(), targets.clone(), self.connectors())));
            let mut service = HealthCheckService::new(registry.clone());
            service.health_check_frequency = Some(check.interval);
            service.parallel_health_check = true;
            // The runner lives as long as the process; without it nothing is probed, as in `check`.
            let _ = self.start.send((service, stopped));
            registry
        });
        Watched { registry, targets, stop }
    }

    /// Ends the checks that no current group uses, and forgets backends that are gone.
    pub fn retain(&self, in_use: &HashMap<Option<HealthCheck>, Vec<(Address, String)>>) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.retain(|check, entry| {
            let Some(addresses) = in_use.get(check) else {
                let _ = entry.stop.send(true);
                return false;
            };
            let mut targets = entry.targets.lock().unwrap_or_else(PoisonError::into_inner);
            let addresses: std::collections::HashSet<(&Address, &str)> =
                addresses.iter().map(|(address, host)| (address, probed_as(check.as_ref(), host))).collect();
            targets.retain(|key, _| addresses.contains(&(&key.address, key.host.as_str())));
            true
        });
    }
}

/// The name that tells a backend from others at its address, for this kind of check: empty where no probe shows it.
pub(crate) fn probed_as<'a>(check: Option<&HealthCheck>, host: &'a str) -> &'a str {
    let shows = |check: &HealthCheck| {
        let by_tls = check.tls.as_ref().is_some_and(|tls| tls.server_name.is_none());
        by_tls || matches!(&check.kind, CheckKind::Http(http) if http.host.is_none())
    };
    if check.is_some_and(shows) { host } else { "" }
}

/// One probe of a backend, now: for those who ask whether it would be eligible.
///
/// # Errors
/// Why the backend is not healthy.
pub async fn probe_once(check: &HealthCheck, address: &Address, host: &str) -> Result<(), String> {
    let connectors = Connectors { transport: TransportConnector::new(None), http: Connector::new(None) };
    Probe::new(check.clone(), Targets::default(), Arc::new(connectors)).try_now(address, host).await
}

/// Runs every check that is started, until the process stops.
pub async fn run(mut starts: Starts) {
    while let Some((service, stopped)) = starts.recv().await {
        tokio::spawn(async move { service.run(stopped, None).await });
    }
}
