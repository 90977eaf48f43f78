//! The file that has the number of the process, for programs that send it signals.

use std::fs;
use std::path::PathBuf;

/// A file that is there while the process is ready.
pub struct PidFile(PathBuf);

impl PidFile {
    pub fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// Writes the number of this process, whatever an earlier one has left there.
    pub fn write(&self) {
        let aside = self.0.with_extension(format!("new-{}", std::process::id()));
        let written = fs::write(&aside, format!("{}\n", std::process::id())).and_then(|()| fs::rename(&aside, &self.0));
        if let Err(error) = written {
            let _ = fs::remove_file(&aside);
            log::error!("{}: the number of the process cannot be written: {error}", self.0.display());
        }
    }

    /// Removes the file, unless another process has written its own number there.
    pub fn remove(&self) {
        let own = fs::read_to_string(&self.0).is_ok_and(|text| text.trim().parse() == Ok(std::process::id()));
        if own {
            let _ = fs::remove_file(&self.0);
        }
    }
}
