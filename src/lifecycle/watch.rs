//! Reloads when the files of the configuration change, where that is switched on.
//!
//! Files are looked at, not watched: links that are turned (as Kubernetes does with its ConfigMaps), renames and network file
//! systems are then all the same. A change counts once two looks have found the same, so that nothing half-written is read.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::control::{Control, Watched};
use super::readiness::Readiness;
use crate::config::files::Stamp;

/// How often the files are looked at, at most.
const LOOK: Duration = Duration::from_secs(1);
/// With many files a look takes time: this much longer is waited than it took.
const REST: u32 = 100;

/// Follows the files until the process ends.
pub async fn follow(control: Arc<Control>, readiness: Arc<Readiness>) {
    let mut last: Option<u64> = None;
    loop {
        // The process that has taken over follows them itself; what was found before does not count here.
        if readiness.serves().await {
            last = None;
        }
        let began = Instant::now();
        let settings = control.settings();
        let seen = settings.watched.as_ref().map(|watched| watched.seen);
        let looked = tokio::task::spawn_blocking(move || settings.watched.as_ref().map(Watched::look)).await;
        let Ok(now) = looked else { return };
        match (now, seen) {
            (Some(now), Some(seen)) if now != seen && Some(now) == last => {
                let control = control.clone();
                // What became of it is told. One that could not even be tried, during an upgrade, is tried again after the next look.
                let _ = tokio::task::spawn_blocking(move || control.reload_changed(seen)).await;
            }
            _ => last = now,
        }
        tokio::time::sleep(LOOK.max(began.elapsed() * REST)).await;
    }
}

impl Watched {
    /// What tells the state of the files now from another.
    pub fn look(&self) -> u64 {
        let found = self.patterns.iter().filter_map(|pattern| glob::glob(pattern.to_str()?).ok()).flatten().flatten();
        let files = std::iter::once(self.main.clone()).chain(found);
        state_of(&files.filter_map(|file| Stamp::of(&file).map(|stamp| (file, stamp))).collect())
    }

    /// The same, whose files have just been looked at.
    pub fn now(&self) -> Self {
        Self { seen: self.look(), ..self.clone() }
    }
}

/// What tells a state of files from another.
pub(super) fn state_of(files: &BTreeMap<PathBuf, Stamp>) -> u64 {
    let mut state = DefaultHasher::new();
    files.hash(&mut state);
    state.finish()
}
