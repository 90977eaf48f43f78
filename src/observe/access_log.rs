//! Writes the access log on a thread of its own: a full disk or a slow terminal never holds up a request.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use super::record::Record;
use crate::config::{AccessLog, LogTarget};

/// Lines that may wait for the writer; beyond them lines are dropped and counted.
const QUEUE: usize = 16 << 10;
/// How often a failing or overrun log may complain.
const COMPLAIN: Duration = Duration::from_secs(10);
/// How long the end of the process waits for what is not written yet: a disk that hangs must not keep it.
const LAST: Duration = Duration::from_secs(2);
/// How often a full queue is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(10);

enum Message {
    Line(Vec<u8>),
    /// Looks whether the file is to be opened again.
    Wake,
    /// Answers when everything before it is written.
    Flush(SyncSender<()>),
}

/// The way into the access log, which a reload may lead elsewhere.
pub struct AccessLogger(ArcSwap<Log>);

struct Log {
    config: AccessLog,
    /// `None`: the log is off.
    queue: Option<SyncSender<Message>>,
    told: Arc<Told>,
}

/// What the writer is told beside its queue, which may be full.
#[derive(Default)]
struct Told {
    /// Lines that were dropped since it last said so.
    dropped: AtomicU64,
    /// The file is to be opened again.
    reopen: AtomicBool,
}

impl AccessLogger {
    /// Opens the log and starts its writer.
    pub fn open(config: &AccessLog) -> io::Result<Self> {
        Log::open(config).map(|log| Self(ArcSwap::from_pointee(log)))
    }

    /// Opens what a new configuration says. The error leaves the log as it is.
    pub fn prepare(&self, config: &AccessLog) -> io::Result<Option<Prepared>> {
        let changed = self.0.load().config != *config;
        changed.then(|| Log::open(config).map(Prepared)).transpose()
    }

    /// Writes there from now on; what was written before is written where it was meant for.
    pub fn apply(&self, prepared: Prepared) {
        self.0.store(Arc::new(prepared.0));
    }

    /// Hands a line to the writer; never waits.
    pub fn write(&self, record: &Record<'_>) {
        let log = self.0.load();
        let Some(queue) = &log.queue else { return };
        if queue.try_send(Message::Line(record.line(log.config.format))).is_err() {
            log.told.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn is_on(&self) -> bool {
        self.0.load().queue.is_some()
    }

    /// Opens the file again, after a rotation has moved it; never waits.
    pub fn reopen(&self) {
        let log = self.0.load();
        if let Some(queue) = &log.queue {
            log.told.reopen.store(true, Ordering::Release);
            // With a full queue the writer comes by anyway.
            let _ = queue.try_send(Message::Wake);
        }
    }

    /// Waits until everything is written, but not for long: the last thing before the process ends.
    pub fn flush(&self) {
        let log = self.0.load_full();
        let Some(queue) = &log.queue else { return };
        let (done, wait) = sync_channel(1);
        let until = Instant::now() + LAST;
        let mut flush = Message::Flush(done);
        while let Err(TrySendError::Full(again)) = queue.try_send(flush) {
            if Instant::now() >= until {
                return;
            }
            flush = again;
            std::thread::sleep(LOOK);
        }
        let _ = wait.recv_timeout(until.saturating_duration_since(Instant::now()));
    }
}

/// A log that is open and not in use yet.
pub struct Prepared(Log);

impl Log {
    fn open(config: &AccessLog) -> io::Result<Self> {
        let told = Arc::new(Told::default());
        let output = match &config.target {
            LogTarget::Off => return Ok(Self { config: config.clone(), queue: None, told }),
            LogTarget::Stdout => Output::Stdout(io::stdout()),
            LogTarget::File(path) => Output::File(append(path)?),
        };
        let path = if let LogTarget::File(path) = &config.target { Some(path.clone()) } else { None };
        let (queue, messages) = sync_channel(QUEUE);
        let writer = Writer { output: BufWriter::with_capacity(64 << 10, output), path, told: told.clone(), complained: None };
        std::thread::Builder::new().name("access-log".into()).spawn(move || writer.run(&messages))?;
        Ok(Self { config: config.clone(), queue: Some(queue), told })
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

enum Output {
    Stdout(io::Stdout),
    File(File),
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Output::Stdout(out) => out.write(bytes),
            Output::File(file) => file.write(bytes),
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        match self {
            Output::Stdout(out) => out.flush(),
            Output::File(file) => file.flush(),
        }
    }
}

struct Writer {
    output: BufWriter<Output>,
    path: Option<std::path::PathBuf>,
    told: Arc<Told>,
    complained: Option<Instant>,
}

impl Writer {
    fn run(mut self, messages: &Receiver<Message>) {
        while let Ok(message) = messages.recv() {
            self.take(message);
            // Whatever else waits goes into the same write; then nothing is held back.
            while let Ok(message) = messages.try_recv() {
                self.take(message);
            }
            if let Err(error) = self.output.flush() {
                self.complain(&error);
            }
            let dropped = self.told.dropped.swap(0, Ordering::Relaxed);
            if dropped > 0 {
                log::warn!("access log: {dropped} lines were dropped, its writer is too slow");
            }
        }
    }

    fn take(&mut self, message: Message) {
        // With each message: a queue that never runs empty must not put it off. Mostly a mere look, since a swap would cost.
        if self.told.reopen.load(Ordering::Relaxed) && self.told.reopen.swap(false, Ordering::Acquire) {
            self.reopen();
        }
        match message {
            Message::Line(line) => {
                if let Err(error) = self.output.write_all(&line) {
                    self.complain(&error);
                }
            }
            Message::Wake => {}
            Message::Flush(done) => {
                if let Err(error) = self.output.flush() {
                    self.complain(&error);
                }
                // Whoever asked may have given up.
                let _ = done.try_send(());
            }
        }
    }

    fn reopen(&mut self) {
        let Some(path) = &self.path else { return };
        match append(path) {
            Ok(file) => {
                let old = std::mem::replace(&mut self.output, BufWriter::with_capacity(64 << 10, Output::File(file)));
                if let Err(error) = old.into_inner() {
                    self.complain(error.error());
                }
                log::info!("the access log is opened again");
            }
            Err(error) => log::error!("access log: {}: cannot be opened again: {error}", path.display()),
        }
    }

    /// A full disk: lines are lost, requests are not. What is stuck in the buffer is given up, or it would grow stale.
    fn complain(&mut self, error: &io::Error) {
        if self.complained.is_none_or(|last| last.elapsed() >= COMPLAIN) {
            self.complained = Some(Instant::now());
            log::error!("access log: cannot be written: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotation_counts_with_the_next_line_however_many_wait() {
        let directory = tempfile::TempDir::new().unwrap();
        let (path, moved) = (directory.path().join("log"), directory.path().join("log.1"));
        let output = BufWriter::new(Output::File(append(&path).unwrap()));
        let mut writer = Writer { output, path: Some(path.clone()), told: Arc::default(), complained: None };
        writer.take(Message::Line(b"before\n".to_vec()));
        std::fs::rename(&path, &moved).unwrap();
        writer.told.reopen.store(true, Ordering::Release);
        // More lines are always there: the queue does not run empty.
        writer.take(Message::Line(b"after\n".to_vec()));
        writer.output.flush().unwrap();
        let text = |path| std::fs::read_to_string(path).unwrap();
        assert_eq!((text(&moved).as_str(), text(&path).as_str()), ("before\n", "after\n"));
    }
}
