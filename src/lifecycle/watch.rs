//! Reloads when the files of the configuration change, where that is switched on.
//!
//! Files are looked at, not watched: links that are turned (as Kubernetes does with its ConfigMaps), renames and network file
//! systems are then all the same. A change counts once two looks have found the same, so that nothing half-written is read.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash as _, Hasher as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::control::{Control, Watched};
use super::reload::Reload;

/// How often the files are looked at, at most.
const LOOK: Duration = Duration::from_secs(1);
/// With many files a look takes time: this much longer is waited than it took.
const REST: u32 = 100;

/// Follows the files until the process ends.
pub async fn follow(control: Arc<Control>) {
    // The look that the configuration in force goes with; a process that has just started has read the files just now.
    let mut in_force: Option<u64> = None;
    let mut last: Option<u64> = None;
    loop {
        let began = Instant::now();
        let own = control.clone();
        let looked = tokio::task::spawn_blocking(move || own.settings().watched.as_ref().map(look)).await;
        let Ok(now) = looked else { return };
        match (now, in_force, last) {
            // It is switched off, or was just switched on.
            (None, ..) => (in_force, last) = (None, None),
            (Some(now), None, _) => (in_force, last) = (Some(now), Some(now)),
            (Some(now), Some(known), Some(before)) if now != known && now == before => {
                in_force = Some(now);
                let own = control.clone();
                let reload = move || drop(own.reload(&Reload { by: "a change of the files".to_owned(), ..Reload::default() }));
                if tokio::task::spawn_blocking(reload).await.is_err() {
                    log::error!("the reload failed by a bug; the configuration in force stays");
                }
            }
            (Some(now), ..) => last = Some(now),
        }
        tokio::time::sleep(LOOK.max(began.elapsed() * REST)).await;
    }
}

/// What tells one state of the files from another.
fn look(watched: &Watched) -> u64 {
    let mut state = DefaultHasher::new();
    for file in &watched.files {
        note(file, &mut state);
    }
    for pattern in &watched.patterns {
        let found = pattern.to_str().and_then(|pattern| glob::glob(pattern).ok());
        for file in found.into_iter().flatten().flatten() {
            note(&file, &mut state);
        }
    }
    state.finish()
}

fn note(file: &Path, state: &mut DefaultHasher) {
    file.hash(state);
    // Links are followed: one that is turned counts.
    if let Ok(meta) = fs::metadata(file) {
        (meta.dev(), meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec()).hash(state);
    }
}
