//! One try at finding out whether a backend is healthy: a TCP connect, or an HTTP request that is answered well.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use pingora::{Error, ErrorType, Result};
use pingora_load_balancing::Backend;
use pingora_load_balancing::health_check::HealthCheck as CheckTrait;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::States;
use crate::config::{CheckKind, HealthCheck};

/// The head of an answer to a probe is short; more than this is none.
const MAX_ANSWER: usize = 16 << 10;

pub(super) struct Probe {
    check: HealthCheck,
    states: States,
    /// Why the last probe of an address failed.
    failures: Mutex<HashMap<SocketAddr, String>>,
}

impl Probe {
    pub(super) fn new(check: HealthCheck, states: States) -> Self {
        Self { check, states, failures: Mutex::default() }
    }

    /// What was asked for, to begin the reason with.
    fn what(&self) -> String {
        match &self.check.kind {
            CheckKind::Tcp => String::new(),
            CheckKind::Http { path, .. } => format!("{path}: "),
        }
    }

    async fn probe(&self, address: SocketAddr) -> Result<(), String> {
        let mut stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
        let CheckKind::Http { path, host } = &self.check.kind else { return Ok(()) };
        let host = host.clone().unwrap_or_else(|| address.to_string());
        let version = env!("CARGO_PKG_VERSION");
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: portcullis-health/{version}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.map_err(|error| error.to_string())?;
        let mut answer = Vec::with_capacity(1024);
        loop {
            match status_of(&answer)? {
                Some(100..=199) | None => {}
                Some(200..=399) => return Ok(()),
                Some(status) => return Err(format!("answered with status {status}")),
            }
            if answer.len() > MAX_ANSWER {
                return Err("answered with an endless head".to_owned());
            }
            match stream.read_buf(&mut answer).await {
                Ok(0) => return Err("closed the connection without an answer".to_owned()),
                Ok(_) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
    }
}

/// The status of the last complete head in `answer`; interim answers come before the final one.
fn status_of(answer: &[u8]) -> Result<Option<u16>, String> {
    let mut rest = answer;
    let mut status = None;
    loop {
        let mut headers = [httparse::EMPTY_HEADER; 100];
        let mut response = httparse::Response::new(&mut headers);
        match response.parse(rest) {
            Ok(httparse::Status::Complete(length)) => {
                status = response.code;
                if !matches!(status, Some(100..=199)) {
                    return Ok(status);
                }
                rest = rest.get(length..).unwrap_or_default();
            }
            Ok(httparse::Status::Partial) => return Ok(status),
            Err(error) => return Err(format!("did not answer in HTTP: {error}")),
        }
    }
}

#[async_trait]
impl CheckTrait for Probe {
    async fn check(&self, target: &Backend) -> Result<()> {
        let Some(address) = target.addr.as_inet() else { return Ok(()) };
        let probe = tokio::time::timeout(self.check.timeout, self.probe(*address)).await;
        match probe.unwrap_or_else(|_| Err(format!("no answer within {:?}", self.check.timeout))) {
            Ok(()) => {
                // A backend that refused connections takes them again: it need not wait for its time to be up.
                if self.states.lock().unwrap_or_else(PoisonError::into_inner).get(address).is_some_and(|state| state.readmit()) {
                    log::info!("backend {address} accepts connections again");
                }
                Ok(())
            }
            Err(why) => {
                self.failures.lock().unwrap_or_else(PoisonError::into_inner).insert(*address, why.clone());
                Error::e_explain(ErrorType::ConnectError, why)
            }
        }
    }

    async fn health_status_change(&self, target: &Backend, healthy: bool) {
        let Some(address) = target.addr.as_inet() else { return };
        if let Some(state) = self.states.lock().unwrap_or_else(PoisonError::into_inner).get(address) {
            state.set_healthy(healthy);
        }
        let why = self.failures.lock().unwrap_or_else(PoisonError::into_inner).remove(address);
        match why.filter(|_| !healthy) {
            Some(why) => log::warn!("backend {address} becomes unhealthy: {}{why}", self.what()),
            None => log::info!("backend {address} becomes healthy"),
        }
    }

    fn health_threshold(&self, success: bool) -> usize {
        if success { self.check.rise } else { self.check.fall }
    }
}

#[cfg(test)]
mod tests {
    use super::status_of;

    #[test]
    fn only_a_final_answer_counts() {
        for (answer, status) in [
            ("", Ok(None)),
            ("HTTP/1.1 20", Ok(None)),
            ("HTTP/1.1 200 OK\r\n\r\n", Ok(Some(200))),
            ("HTTP/1.1 100 Continue\r\n\r\n", Ok(Some(100))),
            ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 No\r\n\r\n", Ok(Some(503))),
        ] {
            assert_eq!(status_of(answer.as_bytes()), status, "{answer}");
        }
        assert!(status_of(b"SSH-2.0-OpenSSH\r\n").is_err());
    }
}
