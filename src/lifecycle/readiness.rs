//! Whether clients should be sent here: what `/readyz` says, and a virtual address follows.

use tokio::sync::watch;

/// Where the process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Starting,
    Ready,
    /// It was told to stop, and finishes.
    Stopping,
    /// Another process has its sockets.
    HandedOver,
}

/// The stage, for many to look at and to wait for.
pub struct Readiness(watch::Sender<Stage>);

impl Default for Readiness {
    fn default() -> Self {
        Self(watch::channel(Stage::Starting).0)
    }
}

impl Readiness {
    pub fn set(&self, stage: Stage) {
        self.0.send_replace(stage);
    }

    pub fn stage(&self) -> Stage {
        *self.0.borrow()
    }

    /// Ready, unless it was told to stop meanwhile.
    pub fn begin(&self) -> bool {
        self.0.send_if_modified(|stage| {
            let begins = *stage == Stage::Starting;
            if begins {
                *stage = Stage::Ready;
            }
            begins
        })
    }

    /// Waits until no other process has the sockets. `true`: one had.
    pub async fn serves(&self) -> bool {
        let had = self.stage() == Stage::HandedOver;
        let _ = self.watch().wait_for(|stage| *stage != Stage::HandedOver).await;
        had
    }

    pub fn watch(&self) -> watch::Receiver<Stage> {
        self.0.subscribe()
    }
}

impl Stage {
    /// Why it is not ready; `None`: it is.
    pub fn reason(self) -> Option<&'static str> {
        match self {
            Stage::Starting => Some("starting"),
            Stage::Ready => None,
            Stage::Stopping => Some("stopping"),
            Stage::HandedOver => Some("another process has taken over"),
        }
    }
}
