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
use super::reload::Reload;
use crate::config::files::Stamp;

/// How often the files are looked at, at most.
const LOOK: Duration = Duration::from_secs(1);
/// With many files a look takes time: this much longer is waited than it took.
const REST: u32 = 100;

/// Follows the files until the process ends.
pub async fn follow(control: Arc<Control>, readiness: Arc<Readiness>) {
    // The state that the configuration in force goes with.
    let mut in_force: Option<u64> = None;
    let mut last: Option<u64> = None;
    loop {
        // The process that has taken over follows them itself; what it has found does not count here.
        if readiness.serves().await {
            (in_force, last) = (None, None);
        }
        let began = Instant::now();
        let settings = control.settings();
        let read = settings.watched.as_ref().and_then(|watched| watched.read);
        let looked = tokio::task::spawn_blocking(move || settings.watched.as_ref().map(look)).await;
        let Ok(now) = looked else { return };
        match (now, in_force, last) {
            // It is switched off, or was just switched on.
            (None, ..) => (in_force, last) = (None, None),
            (Some(now), None, _) => (in_force, last) = (read.or(Some(now)), Some(now)),
            (Some(now), Some(known), Some(before)) if now != known && now == before => {
                let own = control.clone();
                let reload = move || own.reload(&Reload { by: "a change of the files".to_owned(), ..Reload::default() }).is_ok();
                // One that could not even be tried, during an upgrade, is tried again with the next look.
                if tokio::task::spawn_blocking(reload).await.unwrap_or(true) {
                    in_force = Some(now);
                }
            }
            (Some(now), ..) => last = Some(now),
        }
        tokio::time::sleep(LOOK.max(began.elapsed() * REST)).await;
    }
}

/// What tells the state of the files now from another.
fn look(watched: &Watched) -> u64 {
    let found = watched.patterns.iter().filter_map(|pattern| glob::glob(pattern.to_str()?).ok()).flatten().flatten();
    let files = std::iter::once(watched.main.clone()).chain(found);
    state_of(&files.filter_map(|file| Stamp::of(&file).map(|stamp| (file, stamp))).collect())
}

/// What tells a state of files from another.
pub(super) fn state_of(files: &BTreeMap<PathBuf, Stamp>) -> u64 {
    let mut state = DefaultHasher::new();
    files.hash(&mut state);
    state.finish()
}
