//! The live state of a backend: what health checks and traffic have found out. It outlives a configuration.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use once_cell::sync::Lazy;

/// How long a backend that refused a connection stays out when no health check lets it in again, in milliseconds.
const EJECTION: u64 = 10_000;

/// How often a request may try a backend that is out while no other is left, in milliseconds.
const TRIAL: u64 = 1_000;

/// The time between two lines about the same failure, in milliseconds.
const COMPLAINT: u64 = 60_000;

/// Milliseconds since the process started: a point in time that fits into an atomic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Now(pub u64);

static START: Lazy<Instant> = Lazy::new(Instant::now);

impl Now {
    pub fn read() -> Self {
        Now::of(Instant::now())
    }

    /// When that was; times before the process started are its start.
    pub fn of(instant: Instant) -> Self {
        Now(u64::try_from(instant.saturating_duration_since(*START).as_millis()).unwrap_or(u64::MAX))
    }
}

#[derive(Debug)]
pub struct BackendState {
    /// By health checks; a backend is healthy until they say otherwise.
    healthy: AtomicBool,
    /// By traffic: it refused a connection and is out until then.
    ejected_until: AtomicU64,
    /// When it was last asked while it was out.
    asked_at: AtomicU64,
    /// When the log may next speak of what every request to it meets.
    complain_at: AtomicU64,
}

impl Default for BackendState {
    fn default() -> Self {
        Self {
            healthy: AtomicBool::new(true),
            ejected_until: AtomicU64::new(0),
            asked_at: AtomicU64::new(0),
            complain_at: AtomicU64::new(0),
        }
    }
}

impl BackendState {
    /// Whether a request may try a backend that is out, because no other is left: once in a while, if no probe has
    /// found it unhealthy. A backend that restarts is then back within `TRIAL`, not at the next probe.
    pub fn may_be_tried(&self, now: Now) -> bool {
        let asked = self.asked_at.load(Ordering::Relaxed);
        let due = self.is_healthy() && asked.saturating_add(TRIAL) <= now.0;
        due && self.asked_at.compare_exchange(asked, now.0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Whether the log may speak of a failure that every request meets: once a minute.
    pub fn may_complain(&self, now: Now) -> bool {
        let at = self.complain_at.load(Ordering::Relaxed);
        let next = now.0.saturating_add(COMPLAINT);
        at <= now.0 && self.complain_at.compare_exchange(at, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Healthy and not ejected.
    pub fn is_eligible(&self, now: Now) -> bool {
        self.healthy.load(Ordering::Relaxed) && self.ejected_until.load(Ordering::Relaxed) <= now.0
    }

    pub fn is_healthy(&self) -> bool {
        self.healthy.load(Ordering::Relaxed)
    }

    /// Health checks have changed their mind.
    pub fn set_healthy(&self, healthy: bool) {
        self.healthy.store(healthy, Ordering::Relaxed);
    }

    /// The backend refused a connection. `true` if it was not out yet.
    pub fn eject(&self, now: Now) -> bool {
        self.asked_at.store(now.0, Ordering::Relaxed);
        let until = now.0.saturating_add(EJECTION);
        self.ejected_until.swap(until, Ordering::Relaxed) <= now.0
    }

    /// A probe or a request that began then has connected: whatever made the backend refuse is over, unless it refused
    /// in the meantime. `true` if it was out.
    pub fn readmit(&self, began: Now) -> bool {
        let until = self.ejected_until.load(Ordering::Relaxed);
        let refused_at = until.saturating_sub(EJECTION);
        if until == 0 || refused_at >= began.0 {
            return false;
        }
        self.ejected_until.compare_exchange(until, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok() && until > Now::read().0
    }
}
