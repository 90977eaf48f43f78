//! The cell that holds the snapshot in force.

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::Snapshot;

/// Swapped by a reload, read once by each request, which then keeps what it read.
pub struct Current(ArcSwap<Snapshot>);

impl Current {
    pub fn new(snapshot: Snapshot) -> Self {
        Current(ArcSwap::from_pointee(snapshot))
    }

    /// The snapshot in force, pinned for as long as the result lives.
    pub fn pin(&self) -> Arc<Snapshot> {
        self.0.load_full()
    }

    pub fn publish(&self, snapshot: Snapshot) {
        self.0.store(Arc::new(snapshot));
    }
}
