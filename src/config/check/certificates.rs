//! Checks certificates: which files a site has, whether they can be used, and what clients will say of them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use time::OffsetDateTime;

use super::super::diagnostic::{Report, did_you_mean};
use super::super::raw::{self, Short};
use super::super::source::{files_on_disk, relative_to};
use super::super::{SiteCertificates, SiteTls};
use super::site::Context;
use super::{At, at};
use crate::routing::host::HostPattern;
use crate::tls::Preset;
use crate::tls::store::{Files, Loaded, Store, discover};
use crate::tls::watch::{EXPIRES_SOON, was_removed};

/// The certificates of the main file. One that cannot be used is left out with a warning: others are not concerned.
pub(super) fn store(
    patterns: Option<&raw::OneOrMany>,
    from: &Path,
    known: Option<&Store>,
    at: &At<'_>,
    report: &mut Report,
) -> Option<Arc<Store>> {
    let patterns = &patterns?.0;
    let mut paths: Vec<PathBuf> = Vec::new();
    for (index, pattern) in patterns.iter().enumerate() {
        let at = if patterns.len() > 1 { at.index(index) } else { at.clone() };
        // The pattern itself is kept: it may name more files later.
        match files_on_disk(pattern, from) {
            Ok(_) => paths.push(relative_to(from, Path::new(pattern))),
            Err(why) => report.push(at.error(why)),
        }
    }
    let files = discover(&paths);
    if files.is_empty() && !report.has_errors() {
        let help =
            "a certificate is `NAME.pem` or `NAME.crt` with `NAME.key` beside it, `fullchain.pem` with `privkey.pem`, or both in one file";
        report.push(at.warning("no certificate with its key is found here").with_help(help));
    }
    let known: HashMap<_, _> = known.iter().flat_map(|store| &store.certificates).map(|loaded| (&loaded.files, loaded)).collect();
    let loaded = load_all(&files, &known);
    let mut certificates = Vec::with_capacity(loaded.len());
    for (files, loaded) in files.iter().zip(loaded) {
        match loaded {
            Ok(loaded) => {
                warn_about_strength(&loaded, &files.cert.display().to_string(), at, report);
                warn_about_permissions(&loaded, at, report);
                certificates.push(loaded);
            }
            Err(why) => match known.get(files) {
                // What is in use stays, as it does while the process runs.
                Some(known) => {
                    report.push(at.warning(format!("{why}: the one that is in use stays")));
                    certificates.push((*known).clone());
                }
                None => report.push(at.warning(format!("{why}: it is left out"))),
            },
        }
    }
    // A directory that cannot be read just now takes nothing away.
    let hidden = known.values().filter(|known| !files.contains(&known.files) && !was_removed(&known.files));
    certificates.extend(hidden.map(|known| (*known).clone()));
    Some(Arc::new(Store { paths, certificates }))
}

/// Reads many certificates on all processors: keys are costly to load. What is known and has not changed is kept.
fn load_all(files: &[Files], known: &HashMap<&Files, &Arc<Loaded>>) -> Vec<Result<Arc<Loaded>, String>> {
    super::in_parallel(files.iter().collect(), |files| {
        let known = known.get(files).filter(|known| files.stamp() == Some(known.stamp));
        known.map_or_else(|| Loaded::read(files).map_err(|error| error.to_string()), |known| Ok((*known).clone()))
    })
}

pub(super) fn preset(name: Option<&str>, default: Preset, at: &At<'_>, report: &mut Report) -> Preset {
    let Some(name) = name else { return default };
    let names = Preset::NAMES.map(|(name, _)| name);
    match Preset::NAMES.iter().find(|(known, _)| *known == name) {
        Some((_, preset)) => *preset,
        None => {
            let diagnostic = at.error(format!("`{name}` is no preset: `intermediate` (TLS 1.2 and 1.3) or `modern` (TLS 1.3 alone)"));
            report.push(at::hint(diagnostic, did_you_mean(name, names)));
            default
        }
    }
}

/// The certificates of a site.
pub(super) fn of_site(
    raw: Option<&Short<raw::Tls>>,
    from: &Path,
    domains: &[HostPattern],
    context: &Context<'_>,
    at: &At<'_>,
    report: &mut Report,
) -> Option<SiteTls> {
    let long = match raw? {
        Short::Switch(false) => return None,
        Short::Switch(true) => raw::Tls::default(),
        Short::Long(long) => long.clone(),
        Short::Word(word) => {
            let message =
                if word == "auto" { "`tls: auto` is not in this version".to_owned() } else { format!("`{word}` says nothing here") };
            report.push(at.error(message).with_help("name files: `tls: { cert: chain.pem, key: key.pem }`"));
            return None;
        }
    };
    let preset = preset(long.preset.as_deref(), context.defaults.preset, &at.key("preset"), report);
    let mut pairs: Vec<(Files, At<'_>)> = Vec::new();
    match (&long.cert, &long.key) {
        (Some(cert), Some(key)) => pairs.push((Files { cert: relative_to(from, cert), key: relative_to(from, key) }, at.clone())),
        (None, None) => {}
        (cert, _) => {
            let (there, missing) = if cert.is_some() { ("cert", "key") } else { ("key", "cert") };
            report.push(at.key(there).error(format!("`{there}` needs `{missing}`")).with_help("`tls: { cert: chain.pem, key: key.pem }`"));
            return None;
        }
    }
    for (index, pair) in long.certificates.iter().enumerate() {
        let files = Files { cert: relative_to(from, &pair.cert), key: relative_to(from, &pair.key) };
        pairs.push((files, at.key("certificates").index(index)));
    }
    if pairs.is_empty() {
        return from_store(domains, preset, context, at, report);
    }
    let mut own = Vec::new();
    for (files, at) in &pairs {
        let known = context.loaded.get(files).filter(|loaded| files.stamp() == Some(loaded.stamp));
        match known.cloned().map_or_else(|| Loaded::read(files), Ok) {
            Ok(loaded) => {
                warn_about_strength(&loaded, "the certificate", &at.key("cert"), report);
                warn_about_permissions(&loaded, &at.key("key"), report);
                own.push(loaded);
            }
            Err(error) => {
                let place = at.key(if error.in_key() { "key" } else { "cert" });
                match context.loaded.get(files) {
                    // The site's other changes need not wait for its certificate.
                    Some(known) => {
                        report.push(place.warning(format!("{error}: the certificate that is in use stays")));
                        own.push(known.clone());
                    }
                    None => report.push(place.error(error.to_string())),
                }
            }
        }
    }
    if own.len() < pairs.len() {
        return None;
    }
    let missing: Vec<String> =
        domains.iter().filter(|domain| !own.iter().any(|loaded| loaded.facts.covers(domain))).map(ToString::to_string).collect();
    if !missing.is_empty() {
        report.push(at.key("cert").warning(format!("the certificate is not for {}: browsers will refuse it", missing.join(", "))));
    }
    Some(SiteTls { preset, certificates: SiteCertificates::Own(own) })
}

fn from_store(domains: &[HostPattern], preset: Preset, context: &Context<'_>, at: &At<'_>, report: &mut Report) -> Option<SiteTls> {
    let Some(store) = context.store else {
        let help = "write `tls: { cert: chain.pem, key: key.pem }`, or name files or directories by `certificates` in the main file";
        report.push(at.error("a certificate is needed").with_help(help));
        return None;
    };
    let missing = domains.iter().filter(|domain| !store.certificates.iter().any(|loaded| loaded.facts.covers(domain)));
    let missing: Vec<String> = missing.map(ToString::to_string).collect();
    if !missing.is_empty() {
        report.push(at.warning(format!("no certificate of `certificates` is for {}: its handshakes are refused", missing.join(", "))));
    }
    Some(SiteTls { preset, certificates: SiteCertificates::Store })
}

/// A certificate that browsers refuse is still served: some clients do not look, and nothing better is here.
fn warn_about_strength(loaded: &Loaded, what: &str, at: &At<'_>, report: &mut Report) {
    let (facts, now) = (&loaded.facts, OffsetDateTime::now_utc());
    if facts.not_after < now {
        report.push(at.warning(format!("{what} has expired on {}", facts.not_after.date())));
    } else if facts.not_before > now {
        report.push(at.warning(format!("{what} is not good before {}", facts.not_before.date())));
    } else if facts.days_left(now) <= EXPIRES_SOON {
        let days = match facts.days_left(now) {
            0 => "within a day".to_owned(),
            1 => "in 1 day".to_owned(),
            days => format!("in {days} days"),
        };
        report.push(at.warning(format!("{what} expires {days}, on {}", facts.not_after.date())));
    }
    for weakness in &facts.weaknesses {
        report.push(at.warning(format!("{what} will be distrusted: {weakness}")));
    }
}

fn warn_about_permissions(loaded: &Loaded, at: &At<'_>, report: &mut Report) {
    if loaded.files.key_is_public() {
        let key = loaded.files.key.display();
        report.push(at.warning(format!("everybody on this machine can read the key {key}")).with_help(format!("chmod o= {key}")));
    }
}
