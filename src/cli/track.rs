//! `portcullis health`: whether the process is ready, asked once or followed into a file that keepalived tracks.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use hyper::Method;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{sleep, timeout};

use super::remote::Socket;
use super::{exit, print, say};
use crate::admin::client;

/// A process that says nothing for so long is stuck: it speaks every second.
const SILENCE: Duration = Duration::from_secs(3);
/// How often a process that is not ready is asked again.
const RETRIES: usize = 2;
/// How soon a process that is gone is looked for again.
const AGAIN: Duration = Duration::from_millis(100);

#[derive(Args, Debug)]
pub(super) struct Health {
    #[command(flatten)]
    socket: Socket,
    /// Writes `1` into this file while the process is ready and `0` while it is not, at once with each change, until it is ended.
    /// For keepalived's `track_file` with `weight 0 reverse`.
    #[arg(long, value_name = "FILE")]
    track_file: Option<PathBuf>,
}

pub(super) fn health(options: &Health) -> ExitCode {
    let socket = options.socket.path();
    match &options.track_file {
        Some(file) => track(&socket, file),
        None => once(&socket),
    }
}

fn once(socket: &Path) -> ExitCode {
    // In the moment of an upgrade the one that was asked may be gone, or tell of the other.
    for _ in 0..RETRIES {
        if matches!(client::ask(socket, Method::GET, "/readyz", Vec::new()), Ok((200, _))) {
            break;
        }
        std::thread::sleep(AGAIN);
    }
    match client::ask(socket, Method::GET, "/readyz", Vec::new()) {
        Ok((status, answer)) => {
            print(&format!("{}\n", answer.as_str().unwrap_or_default()));
            ExitCode::from(if status == 200 { 0 } else { exit::RUNTIME })
        }
        Err(error) => {
            say(&format!("portcullis: {error}\n"));
            ExitCode::from(exit::RUNTIME)
        }
    }
}

fn track(socket: &Path, file: &Path) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(file, &error),
    };
    let mut written = None;
    let result = runtime.block_on(async {
        let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tokio::select! {
            result = keep(socket, file, &mut written) => result,
            _ = term.recv() => Ok(()),
            _ = int.recv() => Ok(()),
        }
    });
    // Nobody follows any more: what cannot be known is not ready.
    match result.and(write(file, false, &mut written)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(file, &error),
    }
}

/// Follows the process, and whichever comes after it.
async fn keep(socket: &Path, file: &Path, written: &mut Option<bool>) -> io::Result<()> {
    loop {
        let mut said = Ok(());
        // A process that is stuck still has a kernel that connects.
        if let Ok(Ok(mut followed)) = timeout(SILENCE, client::follow(socket)).await {
            while let Ok(Some(line)) = timeout(SILENCE, followed.next()).await {
                said = write(file, line == "ready", written);
                if said.is_err() {
                    break;
                }
            }
            said?;
            // An upgrade ends it too: then the next process answers at once, and nothing has happened.
            if next_is_ready(socket).await {
                continue;
            }
        }
        write(file, false, written)?;
        sleep(AGAIN).await;
    }
}

async fn next_is_ready(socket: &Path) -> bool {
    let Ok(Ok(mut followed)) = timeout(SILENCE, client::follow(socket)).await else { return false };
    matches!(timeout(SILENCE, followed.next()).await, Ok(Some(line)) if line == "ready")
}

/// Renamed into place: keepalived must not read a file that is being written.
fn write(file: &Path, ready: bool, written: &mut Option<bool>) -> io::Result<()> {
    if *written == Some(ready) {
        return Ok(());
    }
    let aside = file.with_extension(format!("new-{}", std::process::id()));
    fs::write(&aside, if ready { "1\n" } else { "0\n" })?;
    fs::rename(&aside, file)?;
    *written = Some(ready);
    Ok(())
}

fn failed(file: &Path, error: &io::Error) -> ExitCode {
    say(&format!("portcullis: {}: {error}\n", file.display()));
    ExitCode::from(exit::RUNTIME)
}
