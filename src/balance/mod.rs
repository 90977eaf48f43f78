//! Backend groups: which backend gets this attempt of a request.
//!
//! Built on `pingora-load-balancing`: its `LoadBalancer` holds the backends of a group, its `HealthRegistry` their
//! probes; ours are the selection (`round_robin`), the state of each backend (`state`) and stickiness (`sticky`).

pub mod hand;
pub mod peer;
pub mod round_robin;
pub mod state;
pub mod sticky;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use pingora::protocols::l4::socket::SocketAddr;
use pingora_load_balancing::discovery::Static;
use pingora_load_balancing::{Backends, Extensions, HealthRegistry, LoadBalancer};
use smallvec::SmallVec;

use crate::config::{Address, HostSent};
use hand::{Hand, Standing};
use peer::{Connect, socket_address};
use round_robin::SmoothRoundRobin;
use state::{BackendState, Now};
use sticky::Stickiness;

/// One server that requests are sent to, as its group sees it.
#[derive(Debug)]
pub struct Backend {
    pub name: String,
    /// How the configuration calls it: `app.internal:8080`.
    pub host: String,
    pub address: Address,
    /// The address as text: what the backend may call itself.
    pub shown: String,
    pub weight: usize,
    pub backup: bool,
    /// The name that its probes go by, where they show one.
    pub probed_as: ProbedAs,
    pub state: Arc<BackendState>,
    pub hand: Hand,
}

/// Travels with a backend to its probes: two names at one address may be two servers.
#[derive(Clone, Debug, Default)]
pub struct ProbedAs(pub String);

/// What `Group::new` needs beside the backends.
pub struct Settings {
    pub name: String,
    pub timeouts: Timeouts,
    pub stickiness: Option<Stickiness>,
    /// Where the health of the backends is kept; a group without health checks has a registry of its own.
    pub registry: Option<Arc<HealthRegistry>>,
    pub connect: Connect,
    pub host: HostSent,
}

/// Timeouts towards a backend, each for one operation.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    pub connect: Duration,
    pub read: Duration,
    pub send: Duration,
    pub websocket_idle: Duration,
}

/// A set of backends that can stand in for each other.
pub struct Group {
    pub name: String,
    pub timeouts: Timeouts,
    pub stickiness: Option<Stickiness>,
    pub connect: Connect,
    /// The `Host` that backends see.
    pub host: HostSent,
    backends: Vec<Backend>,
    by_address: hashbrown::HashMap<SocketAddr, u16, foldhash::fast::RandomState>,
    balancer: LoadBalancer<SmoothRoundRobin>,
    /// The balancer may be asked this often before every backend has come up once.
    rounds: usize,
    has_backups: bool,
}

impl Backend {
    /// Whether a request without a cookie may be sent to it.
    pub fn may_be_picked(&self, now: Now) -> bool {
        self.hand.standing() == Standing::Enabled && self.state.is_eligible(now)
    }
}

/// The backends that an attempt of this request was made at.
pub type Tried = SmallVec<[u16; 4]>;

/// The backend for one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pick {
    pub backend: u16,
    /// The client's cookie named it, so it need not be set again.
    pub stuck: bool,
}

impl Group {
    /// Builds a group. Backends beyond 65,535 are left out, far more than a group may have.
    pub fn new(settings: Settings, backends: Vec<Backend>) -> Self {
        let members: BTreeSet<_> = backends.iter().map(as_member).collect();
        let weights: usize = backends.iter().map(|backend| backend.weight).sum();
        let discovery = Static::new(members);
        let view = match settings.registry {
            Some(registry) => Backends::new_with_health_registry(discovery, registry),
            None => Backends::new(discovery),
        };
        let order: Vec<SocketAddr> = backends.iter().map(|backend| socket_address(&backend.address)).collect();
        let balancer = LoadBalancer::from_backends_with_config(view, Some(order));
        // A static discovery is ready at once and never fails.
        let _ = balancer.update().now_or_never();
        Group {
            name: settings.name,
            timeouts: settings.timeouts,
            stickiness: settings.stickiness,
            connect: settings.connect,
            host: settings.host,
            by_address: (0..).zip(&backends).map(|(index, backend)| (socket_address(&backend.address), index)).collect(),
            has_backups: backends.iter().any(|backend| backend.backup),
            rounds: weights + backends.len(),
            backends,
            balancer,
        }
    }

    /// Chooses a backend for an attempt: the one the client sticks to while it is eligible, otherwise the next in
    /// turn. `None`: no backend that was not tried is eligible.
    pub fn pick(&self, cookie: Option<&str>, tried: &[u16], now: Now) -> Option<Pick> {
        let stuck = cookie.zip(self.stickiness.as_ref()).and_then(|(cookie, stickiness)| stickiness.backend(cookie));
        if let Some(backend) = stuck
            && self.may_stay(backend, tried, now)
        {
            return Some(Pick { backend, stuck: true });
        }
        let next = self.next(false, tried, now);
        let next = if next.is_none() && self.has_backups { self.next(true, tried, now) } else { next };
        next.or_else(|| self.trial(tried, now)).map(|backend| Pick { backend, stuck: false })
    }

    /// The last resort before a 503: a backend that refused a connection a while ago may be back.
    fn trial(&self, tried: &[u16], now: Now) -> Option<u16> {
        let mut backends = (0..).zip(&self.backends).filter(|(index, _)| !tried.contains(index));
        backends
            .find(|(_, backend)| backend.hand.standing() == Standing::Enabled && backend.state.may_be_tried(now))
            .map(|(index, _)| index)
    }

    fn next(&self, backup: bool, tried: &[u16], now: Now) -> Option<u16> {
        if let [only] = self.backends.as_slice() {
            return (only.backup == backup && self.is_eligible(0, tried, now)).then_some(0);
        }
        let fits = |index: u16| self.backend(index).is_some_and(|b| b.backup == backup) && self.is_eligible(index, tried, now);
        let index_of = |member: &pingora_load_balancing::Backend| self.by_address.get(&member.addr).copied();
        let chosen = self.balancer.select_with(b"", self.rounds, |member, _| index_of(member).is_some_and(fits));
        // Other threads take turns too: one that met only unfit backends must still find the fit one.
        chosen.as_ref().and_then(index_of).or_else(|| (0..).take(self.backends.len()).find(|index| fits(*index)))
    }

    fn is_eligible(&self, index: u16, tried: &[u16], now: Now) -> bool {
        !tried.contains(&index) && self.backend(index).is_some_and(|backend| backend.may_be_picked(now))
    }

    /// Whether a client that sticks to a backend goes on with it: also while it is draining.
    fn may_stay(&self, index: u16, tried: &[u16], now: Now) -> bool {
        let may_stay = |backend: &Backend| backend.hand.standing() != Standing::Disabled && backend.state.is_eligible(now);
        !tried.contains(&index) && self.backend(index).is_some_and(may_stay)
    }

    pub fn backend(&self, index: u16) -> Option<&Backend> {
        self.backends.get(usize::from(index))
    }

    pub fn backends(&self) -> &[Backend] {
        &self.backends
    }
}

fn as_member(backend: &Backend) -> pingora_load_balancing::Backend {
    let mut ext = Extensions::new();
    ext.insert(backend.probed_as.clone());
    pingora_load_balancing::Backend { addr: socket_address(&backend.address), weight: backend.weight, ext }
}

#[cfg(test)]
mod tests;
