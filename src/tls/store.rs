//! Certificates as they were loaded: which files, what they say, and which one is for a name.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::sign::CertifiedKey;
use smallvec::SmallVec;

use super::inspect::{Facts, inspect};
use super::load::{LoadError, certified_key};

/// The files of a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Files {
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// What tells that a file has changed: symbolic links are followed, so that a link that is turned counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp([(u64, u64, i64, i64); 2]);

/// A certificate with its key, as the files were when they were read.
#[derive(Debug)]
pub struct Loaded {
    pub files: Files,
    pub key: Arc<CertifiedKey>,
    pub facts: Facts,
    pub stamp: Stamp,
}

/// Certificates of files and directories, for sites that name none.
#[derive(Debug)]
pub struct Store {
    /// Files, directories and globs, looked at again and again.
    pub paths: Vec<PathBuf>,
    pub certificates: Vec<Arc<Loaded>>,
}

// === impl Files ===

impl Files {
    /// `None`: one of the files is not there, or cannot be looked at.
    pub fn stamp(&self) -> Option<Stamp> {
        let look = |path: &Path| {
            let meta = fs::metadata(path).ok()?;
            Some((meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec()))
        };
        Some(Stamp([look(&self.cert)?, look(&self.key)?]))
    }

    /// Whether everybody on the machine can read the key.
    pub fn key_is_public(&self) -> bool {
        fs::metadata(&self.key).is_ok_and(|meta| meta.mode() & 0o007 != 0)
    }
}

impl Loaded {
    /// Reads a certificate and its key.
    ///
    /// # Errors
    /// They are not there, damaged, or do not belong together.
    pub fn read(files: &Files) -> Result<Arc<Self>, LoadError> {
        // The stamp first: what changes meanwhile is then read again.
        let stamp = files.stamp();
        let key = certified_key(&files.cert, &files.key)?;
        let damaged = || LoadError::UnusableCertificate { path: files.cert.clone(), why: "it cannot be parsed".to_owned() };
        let facts = inspect(&key.cert).ok_or_else(damaged)?;
        let stamp = stamp.ok_or_else(|| LoadError::Certificate { path: files.cert.clone(), why: "it has just vanished".to_owned() })?;
        Ok(Arc::new(Self { files: files.clone(), key, facts, stamp }))
    }
}

// === Finding certificates in directories ===

/// How deep directories are searched: certbot's `live/NAME/fullchain.pem` is found from `live` and from above it.
const DEPTH: usize = 2;

/// The certificates below files and directories: a certificate file with its key in the same file, in `NAME.key` beside
/// `NAME.pem` or `NAME.crt`, or in `privkey.pem` beside `fullchain.pem`.
pub fn discover(paths: &[PathBuf]) -> Vec<Files> {
    let mut found = Vec::new();
    for path in paths {
        match path.to_str().filter(|text| text.contains(['*', '?', '['])) {
            // A pattern that is none was refused by the check.
            Some(pattern) => {
                let matches = glob::glob(pattern).into_iter().flatten().flatten();
                matches.for_each(|path| search(&path, DEPTH, &mut found));
            }
            None => search(path, DEPTH, &mut found),
        }
    }
    found.sort_by(|a, b| a.cert.cmp(&b.cert));
    found.dedup();
    found
}

fn search(path: &Path, depth: usize, found: &mut Vec<Files>) {
    if path.is_file() {
        found.extend(key_of(path).map(|key| Files { cert: path.to_owned(), key }));
        return;
    }
    // A directory that cannot be read has no certificates; the check has said so.
    let Ok(entries) = fs::read_dir(path) else { return };
    let mut names: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    names.sort();
    // certbot's parts of the chain are not certificates of their own.
    let is_certbot = names.iter().any(|name| name.file_name().is_some_and(|name| name == "fullchain.pem"));
    for name in names {
        let file_name = name.file_name().unwrap_or_default().to_string_lossy();
        if file_name.starts_with('.') || (is_certbot && matches!(&*file_name, "cert.pem" | "chain.pem" | "privkey.pem")) {
            continue;
        }
        if name.is_dir() {
            if depth > 0 {
                search(&name, depth - 1, found);
            }
        } else if name.is_file() && matches!(name.extension().and_then(|ending| ending.to_str()), Some("pem" | "crt" | "cer" | "cert")) {
            found.extend(key_of(&name).map(|key| Files { cert: name.clone(), key }));
        }
    }
}

fn key_of(cert: &Path) -> Option<PathBuf> {
    let beside = cert.with_extension("key");
    let certbot = cert.with_file_name("privkey.pem");
    if cert.file_name().is_some_and(|name| name == "fullchain.pem") && certbot.exists() {
        return Some(certbot);
    }
    if beside.exists() {
        return Some(beside);
    }
    // HAProxy's way: certificate and key in one file.
    let text = fs::read_to_string(cert).ok()?;
    (text.contains("PRIVATE KEY-----") && text.contains("-----BEGIN CERTIFICATE-----")).then(|| cert.to_owned())
}

// === Choosing ===

/// Which certificates are for a name; those of one name differ in the kind of their key.
#[derive(Debug, Default)]
pub struct Table {
    by_name: HashMap<String, SmallVec<[Arc<CertifiedKey>; 1]>>,
    all: Vec<Arc<CertifiedKey>>,
}

impl Table {
    /// Of several certificates for a name the one that is good for longest comes first.
    pub fn new(certificates: &[Arc<Loaded>]) -> Self {
        let mut sorted: Vec<_> = certificates.iter().collect();
        sorted.sort_by_key(|loaded| std::cmp::Reverse(loaded.facts.not_after));
        let mut table = Table::default();
        for loaded in sorted {
            for name in &loaded.facts.names {
                table.by_name.entry(name.clone()).or_default().push(loaded.key.clone());
            }
            table.all.push(loaded.key.clone());
        }
        table
    }

    /// The certificates for a name: its own, or those of the wildcard above it.
    pub fn find(&self, name: &str) -> &[Arc<CertifiedKey>] {
        let own = self.by_name.get(name);
        let wild = || name.split_once('.').and_then(|(_, rest)| self.by_name.get(&format!("*.{rest}")));
        own.or_else(wild).map_or(&[], SmallVec::as_slice)
    }

    pub fn all(&self) -> &[Arc<CertifiedKey>] {
        &self.all
    }
}
