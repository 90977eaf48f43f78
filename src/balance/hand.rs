//! What an operator has said of a backend.

use std::sync::atomic::{AtomicU8, Ordering};

use serde::{Deserialize, Serialize};

/// Whether a backend gets requests, as far as its operator is concerned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    #[default]
    Enabled,
    /// Clients that stick to it stay; nobody else comes.
    Draining,
    /// Nobody gets to it: clients that stuck to it move.
    Disabled,
}

impl Standing {
    pub fn as_str(self) -> &'static str {
        match self {
            Standing::Enabled => "enabled",
            Standing::Draining => "draining",
            Standing::Disabled => "disabled",
        }
    }
}

/// The standing of one backend, read by every request that considers it.
#[derive(Debug, Default)]
pub struct Hand(AtomicU8);

impl Hand {
    pub fn new(standing: Standing) -> Self {
        Self(AtomicU8::new(standing as u8))
    }

    pub fn standing(&self) -> Standing {
        match self.0.load(Ordering::Relaxed) {
            0 => Standing::Enabled,
            1 => Standing::Draining,
            _ => Standing::Disabled,
        }
    }

    pub fn set(&self, standing: Standing) {
        self.0.store(standing as u8, Ordering::Relaxed);
    }
}
