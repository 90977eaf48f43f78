//! Tells the service manager how the process is (`sd_notify`); where there is none, nothing is told.

use std::time::Duration;

use sd_notify::NotifyState;

/// The process is ready, and it is the main one.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::MainPid(std::process::id()), NotifyState::Status(status)]);
}

pub fn status(status: &str) {
    tell(&[NotifyState::Status(status)]);
}

/// The process ends, and may take so long.
pub fn stopping(patience: Duration) {
    // More than 32 bits of microseconds is little over an hour.
    let extension = format!("EXTEND_TIMEOUT_USEC={}", patience.as_micros());
    tell(&[NotifyState::Stopping, NotifyState::Custom(&extension)]);
}

/// How often the service manager wants to hear that the process is alive; `None`: it does not.
pub fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled()
}

pub fn alive() {
    tell(&[NotifyState::Watchdog]);
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        log::debug!("the service manager cannot be told: {error}");
    }
}
