//! Where the text of configuration files comes from: the disk, or copies that were kept; and what was read, to be kept in
//! its turn.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::source::{MAX_FILE, files_on_disk, read_limited_bytes, relative_to, text_of};

/// Texts of files by their paths.
pub type Texts = BTreeMap<PathBuf, Arc<str>>;

/// How often a file is read again that changes while it is read, and what is waited before.
const TRIES: usize = 10;
const REST: Duration = Duration::from_millis(20);

/// The files of one load. The disk's certificates, error pages and the targets of `${file:…}` are not among them.
#[derive(Debug, Default)]
pub struct Files {
    kept: HashMap<PathBuf, Arc<str>>,
    /// Nothing but the copies is read: a configuration as it was.
    only_kept: bool,
    read: Mutex<Read>,
    /// What patterns have named on the disk, with the files that they stand in.
    named: Mutex<Vec<(String, PathBuf, Vec<PathBuf>)>>,
}

/// What was read, with the state that a file on disk was in.
type Read = BTreeMap<PathBuf, (Arc<str>, Option<Stamp>)>;

/// What tells that a file has changed; links are followed, so that one that is turned counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Stamp {
    /// `None`: the file is not there, or cannot be looked at.
    pub fn of(path: &Path) -> Option<Self> {
        let meta = fs::metadata(path).ok()?;
        Some(Self { device: meta.dev(), inode: meta.ino(), size: meta.size(), modified: (meta.mtime(), meta.mtime_nsec()) })
    }
}

impl Files {
    /// The files as they are now.
    pub fn on_disk() -> Self {
        Self::default()
    }

    /// As they are now, but for these: they are read instead of what is there, also where nothing is there any more.
    pub fn instead(kept: impl IntoIterator<Item = (PathBuf, Arc<str>)>) -> Self {
        Self { kept: kept.into_iter().collect(), ..Self::default() }
    }

    /// As they were.
    pub fn as_kept(kept: Texts) -> Self {
        Self { kept: kept.into_iter().collect(), only_kept: true, ..Self::default() }
    }

    /// The text of a file; the error is a clause to follow the file's name.
    pub(super) fn text(&self, path: &Path) -> Result<Arc<str>, String> {
        let (text, stamp) = match self.kept.get(path) {
            Some(text) => (text.clone(), None),
            None if self.only_kept => return Err("is not among the kept files".to_owned()),
            None => read_settled(path).map(|(text, stamp)| (text, Some(stamp)))?,
        };
        self.read.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_owned(), (text.clone(), stamp));
        Ok(text)
    }

    /// The files that a pattern of the file `from` names, in the order of their names.
    pub(super) fn named(&self, pattern: &str, from: &Path) -> Result<Vec<PathBuf>, String> {
        let full = relative_to(from, Path::new(pattern));
        let mut files = match self.only_kept {
            true => Vec::new(),
            false => {
                let found = files_on_disk(pattern, from)?;
                let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
                named.push((pattern.to_owned(), from.to_owned(), found.clone()));
                found
            }
        };
        files.extend(self.kept.keys().filter(|path| matches(&full, path)).cloned());
        files.sort();
        files.dedup();
        Ok(files)
    }

    /// A file that is another one than when it was read, that came or that went: what was read may be of two minds.
    pub fn changed(&self) -> Option<PathBuf> {
        let read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let mut stamps = read.iter().filter_map(|(path, (_, stamp))| Some((path, (*stamp)?)));
        if let Some((path, _)) = stamps.find(|(path, stamp)| Stamp::of(path) != Some(*stamp)) {
            return Some(path.clone());
        }
        let named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        named.iter().find_map(|(pattern, from, then)| {
            let now = files_on_disk(pattern, from).unwrap_or_default();
            let differs = |some: &[PathBuf], others: &[PathBuf]| some.iter().find(|path| others.binary_search(path).is_err()).cloned();
            if now == *then { None } else { differs(&now, then).or_else(|| differs(then, &now)) }
        })
    }

    /// What was read so far.
    pub fn texts(&self) -> Texts {
        let read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        read.iter().map(|(path, (text, _))| (path.clone(), text.clone())).collect()
    }

    /// What was read, and from which state of the files; `None`: not from them.
    pub fn into_read(self) -> (Texts, Option<BTreeMap<PathBuf, Stamp>>) {
        let read = self.read.into_inner().unwrap_or_else(PoisonError::into_inner);
        let stamps = read.iter().map(|(path, (_, stamp))| Some((path.clone(), (*stamp)?))).collect();
        (read.into_iter().map(|(path, (text, _))| (path, text)).collect(), stamps)
    }
}

/// Whether a pattern, made absolute or relative as the path is, names it.
pub fn matches(pattern: &Path, path: &Path) -> bool {
    let options = glob::MatchOptions { require_literal_leading_dot: true, require_literal_separator: true, ..Default::default() };
    pattern == path
        || pattern
            .to_str()
            .and_then(|pattern| glob::Pattern::new(pattern).ok())
            .is_some_and(|pattern| pattern.matches_path_with(path, options))
}

/// Reads a file that nobody writes to meanwhile: half of a file may look like all of it.
fn read_settled(path: &Path) -> Result<(Arc<str>, Stamp), String> {
    let (bytes, stamp) = settled(|| Stamp::of(path), || read_limited_bytes(path, MAX_FILE))?;
    Ok((text_of(bytes)?.into(), stamp))
}

/// Reads until the file was the same before and after, and what was read is as long as the file: the clock of a file system may
/// stand still while it is emptied and written anew.
fn settled(look: impl Fn() -> Option<Stamp>, mut read: impl FnMut() -> Result<Vec<u8>, String>) -> Result<(Vec<u8>, Stamp), String> {
    for _ in 0..TRIES {
        let before = look();
        let bytes = read()?;
        if let Some(stamp) = before.filter(|before| before.size == bytes.len() as u64 && look() == Some(*before)) {
            return Ok((bytes, stamp));
        }
        std::thread::sleep(REST);
    }
    Err("goes on changing while it is read".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_copies_stand_in_for_files_and_take_part_in_patterns() {
        let directory = tempfile::TempDir::new().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir(at("sites.d")).unwrap();
        fs::write(at("sites.d/a.yaml"), "disk a").unwrap();
        fs::write(at("sites.d/b.yaml"), "disk b").unwrap();
        let main = at("main.yaml");
        let kept = |name: &str| (at(name), Arc::from(format!("kept {name}")));
        let files = Files::instead([kept("sites.d/b.yaml"), kept("sites.d/gone.yaml"), kept("sites.d/.hidden.yaml"), kept("other.yaml")]);
        let named = files.named("sites.d/*.yaml", &main).unwrap();
        assert_eq!(named, [at("sites.d/a.yaml"), at("sites.d/b.yaml"), at("sites.d/gone.yaml")]);
        let texts: Vec<_> = named.iter().map(|path| files.text(path).unwrap()).collect();
        assert_eq!(texts.iter().map(AsRef::as_ref).collect::<Vec<_>>(), ["disk a", "kept sites.d/b.yaml", "kept sites.d/gone.yaml"]);
        assert_eq!(files.into_read().0.len(), 3);
        let files = Files::as_kept(Texts::from([kept("sites.d/x.yaml")]));
        assert_eq!(files.named("sites.d/*.yaml", &main).unwrap(), [at("sites.d/x.yaml")]);
        assert!(files.text(&at("sites.d/a.yaml")).is_err());
    }

    #[test]
    fn files_that_change_after_they_were_read_are_told() {
        let directory = tempfile::TempDir::new().unwrap();
        let at = |name: &str| directory.path().join(name);
        for version in ["v1", "v2"] {
            fs::create_dir(at(version)).unwrap();
            fs::write(at(version).join("a.yaml"), version).unwrap();
        }
        let turn = |to: &str| {
            std::os::unix::fs::symlink(to, at("new")).unwrap();
            fs::rename(at("new"), at("data")).unwrap();
        };
        turn("v1");
        let read = || {
            let files = Files::on_disk();
            for path in files.named("data/*.yaml", &at("main.yaml")).unwrap() {
                files.text(&path).unwrap();
            }
            files
        };
        let files = read();
        assert_eq!(files.changed(), None);
        turn("v2");
        assert_eq!(files.changed(), Some(at("data/a.yaml")));
        let files = read();
        fs::write(at("v2/b.yaml"), "came").unwrap();
        assert_eq!(files.changed(), Some(at("data/b.yaml")));
        let files = read();
        fs::remove_file(at("v2/b.yaml")).unwrap();
        assert_eq!(files.changed(), Some(at("data/b.yaml")));
    }

    #[test]
    fn a_file_counts_once_all_of_it_was_read() {
        let directory = tempfile::TempDir::new().unwrap();
        let file = directory.path().join("f");
        fs::write(&file, "whole").unwrap();
        // Emptied and written anew in the middle of the read, within one tick of the file system's clock.
        let mut reads = ["wh", "", "whole"].into_iter();
        let (bytes, _) = settled(|| Stamp::of(&file), || Ok(reads.next().unwrap().as_bytes().to_vec())).unwrap();
        assert_eq!((bytes.as_slice(), reads.next()), (&b"whole"[..], None));
    }
}
