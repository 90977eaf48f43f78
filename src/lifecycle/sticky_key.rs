//! The key of the sticky cookies: given by hand, or made once and kept in the state directory.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use aws_lc_rs::rand;

use crate::config::Config;

/// The key in force, and the one that the state directory has.
pub struct StickyKey {
    in_force: ArcSwap<Vec<u8>>,
    kept: Vec<u8>,
}

/// The key cannot be kept, and is needed.
#[derive(Debug)]
pub struct CannotKeep {
    pub path: PathBuf,
    pub why: io::Error,
}

impl StickyKey {
    /// # Errors
    /// A group is sticky, no key is given, and none can be kept.
    pub fn new(config: &Config) -> Result<Self, CannotKeep> {
        let path = path(&config.state_dir);
        // A reload may bring the first sticky group, so the key is made wherever it can be kept.
        let needed = config.sticky_secret.is_none() && config.groups.iter().any(|group| group.sticky.is_some());
        let kept = match kept(&path) {
            Err(why) if needed => return Err(CannotKeep { path, why }),
            Err(_) => random::<32>().map(Vec::from).map_err(|why| CannotKeep { path, why })?,
            Ok(kept) => kept,
        };
        let key = Self { in_force: ArcSwap::default(), kept };
        key.apply(config);
        Ok(key)
    }

    /// Takes over what another configuration says.
    pub fn apply(&self, config: &Config) {
        let given = config.sticky_secret.as_ref().map(|secret| secret.0.clone().into_bytes());
        self.in_force.store(Arc::new(given.unwrap_or_else(|| self.kept.clone())));
    }

    pub fn in_force(&self) -> Arc<Vec<u8>> {
        self.in_force.load_full()
    }
}

/// Where the key is kept.
pub fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("sticky.key")
}

/// Random bytes of the system.
pub fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).map_err(|_| io::Error::other("the system gives no random numbers"))?;
    Ok(bytes)
}

fn kept(path: &Path) -> io::Result<Vec<u8>> {
    match fs::read(path) {
        Ok(secret) if secret.len() >= 16 => return Ok(secret),
        Ok(_) => return Err(io::Error::other("the file is damaged: remove it to have a new one made")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let secret = random::<32>()?;
    // Written aside and renamed, so that a crash or a full disk never leaves half a key.
    let aside = path.with_extension("new");
    let _ = fs::remove_file(&aside);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside)?;
    file.write_all(&secret)?;
    file.sync_all()?;
    fs::rename(&aside, path)?;
    Ok(secret.to_vec())
}
