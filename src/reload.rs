//! Reads the configuration again and puts it in force as one step, or keeps the old one and says why.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use crate::config::{self, check::keep_last_good};
use crate::health::HealthChecks;
use crate::proxy::Shared;
use crate::snapshot::{Carry, compile};

pub struct Reloader {
    path: PathBuf,
    strict: bool,
    addresses: Vec<std::net::SocketAddr>,
    health: HealthChecks,
    secret: Vec<u8>,
    shared: Arc<Shared>,
    /// One reload at a time: two that overlap could publish in the wrong order.
    one_at_a_time: Mutex<()>,
}

/// What a reload came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    Applied,
    /// These sites have mistakes: they stay as they were, or answer 503.
    InPart(Vec<String>),
    /// The configuration in force stays.
    Refused,
}

impl Reloader {
    pub fn new(
        path: PathBuf,
        strict: bool,
        addresses: Vec<std::net::SocketAddr>,
        health: HealthChecks,
        secret: Vec<u8>,
        shared: Arc<Shared>,
    ) -> Self {
        Self { path, strict, addresses, health, secret, shared, one_at_a_time: Mutex::default() }
    }

    /// Loads, checks, compiles and publishes.
    pub fn reload(&self) -> Outcome {
        let _one = self.one_at_a_time.lock().unwrap_or_else(PoisonError::into_inner);
        let loaded = config::load(&self.path);
        crate::app::report(&loaded);
        let broken = loaded.broken_sites;
        let config = loaded.config.filter(|_| !self.strict || broken.is_empty());
        let Some(mut config) = config else {
            log::error!("reload refused: the configuration in force stays");
            return Outcome::Refused;
        };
        let old = self.shared.current.pin();
        let kept = keep_last_good(&mut config, &old.checked.0, &old.checked.1);
        for site in &broken {
            match kept.contains(site) {
                true => log::error!("site {site} has errors: its last good version stays"),
                false => log::error!("site {site} is left out because of its errors and answers 503"),
            }
        }
        self.warn_about_listeners(&config);
        let carry = Carry { generation: old.generation + 1, health: &self.health, tls: &self.shared.tls, secret: &self.secret };
        let snapshot = compile(config, &carry);
        let (generation, sites) = (snapshot.generation, snapshot.sites.len());
        self.shared.current.publish(snapshot);
        log::info!("reloaded: generation {generation} with {sites} sites is in force");
        if broken.is_empty() { Outcome::Applied } else { Outcome::InPart(broken) }
    }

    /// What a reload of this version does not change.
    fn warn_about_listeners(&self, config: &config::Config) {
        let wanted: Vec<_> = config.listeners.iter().map(|listener| listener.address).collect();
        let same =
            wanted.len() == self.addresses.len() && wanted.iter().zip(&self.addresses).all(|(a, b)| a.port() == 0 || a.port() == b.port());
        if !same {
            log::warn!("`listeners` have changed: that takes effect with the next restart");
        }
    }

    pub fn reopen_log(&self) {
        self.shared.log.reopen();
        log::info!("the access log is opened again");
    }
}
