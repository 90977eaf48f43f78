//! The new process's side of an upgrade: it is started by the old one, gets its sockets, and takes over when it is told to.

use std::io;
use std::process::Command;
use std::time::Duration;

use super::handover::{FromNew, Inheritance, LeftOut, Line};

/// Tells a process that its standard input is the old process's line, and whether it is to start the one that takes over or is
/// that one: systemd takes a main process for a stranger's as long as it is the child of another service process.
pub(super) const ENVIRONMENT: &str = "PORTCULLIS_UPGRADE";
pub(super) const STARTS: &str = "starts";
const TAKES_OVER: &str = "takes-over";
/// How long a new process waits for the next word of the old one.
const OLD_PATIENCE: Duration = Duration::from_secs(30);

/// What a process has that takes over.
pub struct Takeover {
    line: Line,
    /// Lines to the processes before the old one.
    predecessors: Vec<Line>,
}

impl Takeover {
    /// `None`: this process was not started to take over.
    ///
    /// # Errors
    /// It was, and the old process does not say what it should.
    pub fn from_environment() -> io::Result<Option<(Self, Inheritance)>> {
        let Some(part) = std::env::var_os(ENVIRONMENT) else { return Ok(None) };
        let line = Line::new(std::os::fd::AsFd::as_fd(&io::stdin()).try_clone_to_owned()?);
        if part != TAKES_OVER {
            Self::start(&line)?;
        }
        // Nobody else keeps the line: its end is the end of this process.
        let nothing = std::fs::File::open("/dev/null")?;
        rustix::stdio::dup2_stdin(&nothing)?;
        let inheritance = line.inherit(OLD_PATIENCE)?;
        Ok(Some((Self { line, predecessors: Vec::new() }, inheritance)))
    }

    /// Starts the process that takes over and ends, so that it is nobody's child.
    fn start(line: &Line) -> io::Result<()> {
        let mut command = Command::new(std::env::current_exe()?);
        let child = command.args(std::env::args_os().skip(1)).env(ENVIRONMENT, TAKES_OVER).spawn()?;
        line.send(&FromNew::Started { pid: child.id() }, None)?;
        std::process::exit(0)
    }

    /// Tells the old process that this one does not take over.
    pub fn failed(&self, why: &str) {
        // It notices the end of this process as well.
        let _ = self.line.send(&FromNew::Failed { why: why.to_owned() }, None);
    }

    /// Tells that everything is prepared, and waits until the old process has stopped accepting.
    pub fn ready(&mut self, left_out: LeftOut) -> io::Result<()> {
        self.line.send(&FromNew::Ready { version: env!("CARGO_PKG_VERSION").to_owned(), left_out }, None)?;
        self.predecessors = self.line.hear_word(OLD_PATIENCE)?;
        Ok(())
    }

    pub fn serving(&self) -> io::Result<()> {
        self.line.send(&FromNew::Serving, None)
    }

    /// Lines to all processes that may still finish what they have.
    pub(super) fn into_lines(self) -> impl Iterator<Item = Line> {
        self.predecessors.into_iter().chain([self.line])
    }
}
