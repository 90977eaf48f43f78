//! Reads the configuration again and puts it in force as one step, or keeps the old one and says why.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use time::OffsetDateTime;

use crate::config::{self, Loaded, Previous, check::keep_last_good};
use crate::health::HealthChecks;
use crate::proxy::Shared;
use crate::resolve::Names;
use crate::snapshot::{Carry, Snapshot, compile, compile_groups};
use crate::tls::watch::warn_of_expiry;

pub struct Reloader {
    path: PathBuf,
    strict: bool,
    /// What the process began with.
    fixed: Fixed,
    health: HealthChecks,
    secret: Vec<u8>,
    shared: Arc<Shared>,
    /// One reload at a time: two that overlap could publish in the wrong order.
    one_at_a_time: Mutex<()>,
}

/// What a reload does not change: it belongs to the process.
pub struct Fixed {
    listeners: Vec<config::Listener>,
    access_log: config::AccessLog,
    run_as: Option<String>,
    state_dir: PathBuf,
    sticky_secret: Option<config::Secret>,
    threads: usize,
    name_servers: Vec<std::net::SocketAddr>,
    drain_timeout: std::time::Duration,
}

impl Fixed {
    pub fn of(config: &config::Config) -> Self {
        Self {
            listeners: config.listeners.clone(),
            access_log: config.access_log.clone(),
            run_as: config.run_as.clone(),
            state_dir: config.state_dir.clone(),
            sticky_secret: config.sticky_secret.clone(),
            threads: config.threads,
            name_servers: config.name_servers.clone(),
            drain_timeout: config.drain_timeout,
        }
    }

    /// The keys in which another configuration differs.
    fn differences(&self, other: &Fixed) -> Vec<&'static str> {
        let keys = [
            ("listeners", self.listeners != other.listeners),
            ("access_log", self.access_log != other.access_log),
            ("run_as", self.run_as != other.run_as),
            ("state_dir", self.state_dir != other.state_dir),
            ("sticky_secret", self.sticky_secret != other.sticky_secret),
            ("threads", self.threads != other.threads),
            ("name_servers", self.name_servers != other.name_servers),
            ("drain_timeout", self.drain_timeout != other.drain_timeout),
        ];
        keys.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key).collect()
    }
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
    pub fn new(path: PathBuf, strict: bool, fixed: Fixed, health: HealthChecks, secret: Vec<u8>, shared: Arc<Shared>) -> Self {
        Self { path, strict, fixed, health, secret, shared, one_at_a_time: Mutex::default() }
    }

    /// Loads, checks, compiles and publishes.
    pub fn reload(&self) -> Outcome {
        let _one = self.one_at_a_time.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.shared.current.pin();
        let previous = old.previous();
        let loaded = crate::load::load(&self.path, &previous);
        report(&loaded);
        let broken = loaded.broken_sites;
        let config = loaded.config.filter(|_| !self.strict || broken.is_empty());
        let Some(mut config) = config else {
            log::error!("reload refused: the configuration in force stays");
            return Outcome::Refused;
        };
        let kept = keep_last_good(&mut config, &previous);
        for site in &broken {
            match kept.contains(site) {
                true => log::error!("site {site} has errors: its last good version stays"),
                false => log::error!("site {site} is left out because of its errors and answers 503"),
            }
        }
        let changed = self.fixed.differences(&Fixed::of(&config));
        if !changed.is_empty() {
            log::warn!("changed, but only a restart puts it in force: {}", changed.join(", "));
        }
        let stayed = kept.len();
        let carry = Carry { generation: old.generation + 1, health: &self.health, tls: &self.shared.tls, secret: &self.secret };
        let snapshot = compile(config, &carry);
        let generation = snapshot.generation;
        let sites = snapshot.rules.sites.iter().filter(|site| !site.config.routes.is_empty()).count();
        let out = snapshot.rules.sites.len() - sites;
        self.shared.current.publish(snapshot);
        let stayed = if stayed == 0 { String::new() } else { format!("; {stayed} of them in the last good version") };
        let out = if out == 0 { String::new() } else { format!("; {out} left out") };
        log::info!("reloaded: generation {generation} with {sites} sites is in force{stayed}{out}");
        if broken.is_empty() { Outcome::Applied } else { Outcome::InPart(broken) }
    }

    /// The names of backends in force that are resolved, with the addresses that they have.
    pub fn names(&self) -> Names {
        let current = self.shared.current.pin();
        let members = current.checked.groups.iter().flat_map(|group| &group.members).filter(|member| member.resolved);
        members.map(|member| (member.host.clone(), member.addresses.clone())).collect()
    }

    /// Puts new addresses of names in force. Nothing else changes, and no file is read.
    pub fn readdress(&self, names: &Names) {
        let _one = self.one_at_a_time.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.shared.current.pin();
        let mut groups = old.checked.groups.clone();
        let mut changed = vec![false; groups.len()];
        for (group, changed) in groups.iter_mut().zip(&mut changed) {
            for member in &mut group.members {
                if let Some(addresses) = names.get(&member.host).filter(|addresses| **addresses != member.addresses) {
                    member.addresses.clone_from(addresses);
                    *changed = true;
                }
            }
        }
        let carry = Carry { generation: old.generation, health: &self.health, tls: &self.shared.tls, secret: &self.secret };
        let compiled =
            compile_groups(&groups, &carry, |index| old.groups.get(index).filter(|_| changed.get(index) == Some(&false)).cloned());
        self.shared.current.publish(Snapshot {
            generation: old.generation,
            rules: old.rules.clone(),
            groups: compiled,
            checked: Arc::new(Previous { sites: old.checked.sites.clone(), groups, store: old.checked.store.clone() }),
        });
    }

    /// Takes over certificates whose files have changed.
    pub fn refresh_certificates(&self) {
        let mut told = Vec::new();
        for certificates in &self.shared.current.pin().rules.certificates {
            for change in certificates.refresh() {
                // Sites may share a certificate.
                if !told.contains(&change) {
                    change.log();
                    told.push(change);
                }
            }
        }
    }

    /// Tells of certificates that end soon.
    pub fn warn_of_expiry(&self) {
        for certificates in &self.shared.current.pin().rules.certificates {
            warn_of_expiry(certificates, OffsetDateTime::now_utc());
        }
    }

    pub fn reopen_log(&self) {
        self.shared.log.reopen();
    }
}

/// Prints what is to be said about the files.
pub fn report(loaded: &Loaded) {
    use std::io::{IsTerminal as _, Write as _};
    let text = loaded.report.render(std::io::stderr().is_terminal());
    // There is nowhere to tell that standard error is closed.
    let _ = std::io::stderr().write_all(text.as_bytes());
}
