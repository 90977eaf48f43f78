//! The end of the process without the end of requests: who is still connected, and the sign that time is up.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};

/// Counts connections. Each learns from its listener that it is to finish; here it learns that its time is up.
pub struct Drain {
    cut: watch::Sender<bool>,
    open: Arc<Open>,
}

#[derive(Default)]
struct Open {
    connections: AtomicUsize,
    /// Connections, and whoever may still bring some.
    held: AtomicUsize,
    closed: Notify,
}

/// A connection, for as long as this lives.
pub struct Connected(Held);

/// Somebody whose end is waited for.
pub struct Held(Arc<Open>);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.0.connections.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.0.held.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.closed.notify_waiters();
        }
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self { cut: watch::channel(false).0, open: Arc::default() }
    }
}

impl Drain {
    /// Turns true when what is still open will be cut: the last chance to say goodbye.
    pub fn cut_sign(&self) -> watch::Receiver<bool> {
        self.cut.subscribe()
    }

    /// Gives that sign.
    pub fn cut(&self) {
        self.cut.send_replace(true);
    }

    /// Takes it back: the process goes on.
    pub fn uncut(&self) {
        self.cut.send_replace(false);
    }

    pub fn connected(&self) -> Connected {
        self.open.connections.fetch_add(1, Ordering::AcqRel);
        Connected(self.hold())
    }

    /// Keeps `empty` waiting without being a connection.
    pub fn hold(&self) -> Held {
        self.open.held.fetch_add(1, Ordering::AcqRel);
        Held(self.open.clone())
    }

    pub fn connections(&self) -> usize {
        self.open.connections.load(Ordering::Acquire)
    }

    /// Waits until every connection is closed. `false`: some were not, within `limit`.
    pub async fn empty(&self, limit: Duration) -> bool {
        let empty = async {
            loop {
                let closed = self.open.closed.notified();
                tokio::pin!(closed);
                // Registered before the count is read, so that the last one to leave is not missed.
                closed.as_mut().enable();
                if self.open.held.load(Ordering::Acquire) == 0 {
                    return;
                }
                closed.await;
            }
        };
        tokio::time::timeout(limit, empty).await.is_ok()
    }
}
