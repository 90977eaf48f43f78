//! One try at finding out whether a backend is healthy: a connection, or an HTTP request that is answered well.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use pingora::http::RequestHeader;
use pingora::protocols::http::client::HttpSession;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType, Result};
use pingora_load_balancing::Backend;
use pingora_load_balancing::health_check::HealthCheck as CheckTrait;

use super::{Connectors, TargetKey, Targets};
use crate::balance::ProbedAs;
use crate::balance::Timeouts;
use crate::balance::peer::{Connect, address_of, tls_reason};
use crate::balance::state::{BackendState, Now};
use crate::config::{Address, CheckKind, HealthCheck, HttpCheck};

/// How much of a body is looked at.
const MAX_BODY: usize = 64 << 10;

pub(super) struct Probe {
    check: HealthCheck,
    connect: Connect,
    targets: Targets,
    connectors: Arc<Connectors>,
    /// Why the last probe of an address failed.
    failures: Mutex<HashMap<TargetKey, String>>,
}

impl Probe {
    pub(super) fn new(check: HealthCheck, targets: Targets, connectors: Arc<Connectors>) -> Self {
        let connect = Connect::new("health check", check.tls.as_ref(), check.protocol, check.source);
        Self { check, connect, targets, connectors, failures: Mutex::default() }
    }

    /// What was asked for, to begin the reason with.
    fn what(&self) -> String {
        match &self.check.kind {
            CheckKind::Tcp => String::new(),
            CheckKind::Http(http) => format!("{}: ", http.path),
        }
    }

    /// The state of a target that is still in use, and whether this is its first probe.
    fn target(&self, key: &TargetKey) -> Option<(Arc<BackendState>, bool)> {
        let targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        let target = targets.get(key)?;
        Some((target.state.clone(), !target.known.swap(true, Ordering::Relaxed)))
    }

    /// One probe within its time. `host` is the backend as written.
    pub(super) async fn try_now(&self, address: &Address, host: &str) -> Result<(), String> {
        let probe = tokio::time::timeout(self.check.timeout, self.probe(address, host)).await;
        probe.unwrap_or_else(|_| Err(format!("no answer within {:?}", self.check.timeout)))
    }

    async fn probe(&self, address: &Address, host: &str) -> Result<(), String> {
        let address = match (address, self.check.port) {
            (Address::Inet(address), Some(port)) => Address::Inet(SocketAddr::new(address.ip(), port)),
            (address, _) => address.clone(),
        };
        let time = self.check.timeout;
        let timeouts = Timeouts { connect: time, read: time, send: time, websocket_idle: time };
        let peer = self.connect.peer(&address, host, timeouts).map_err(|error| reason(&error))?;
        match &self.check.kind {
            CheckKind::Tcp => self.connectors.transport.new_stream(&peer).await.map(drop).map_err(|error| reason(&error)),
            CheckKind::Http(http) => self.ask(http, &peer, host).await,
        }
    }

    async fn ask(&self, http: &HttpCheck, peer: &HttpPeer, host: &str) -> Result<(), String> {
        let failed = |error: Box<Error>| reason(&error);
        let (mut session, _) = self.connectors.http.get_http_session(peer).await.map_err(failed)?;
        let mut request = request(http, host).map_err(failed)?;
        match session {
            HttpSession::H1(_) => request.insert_header("Connection", "close").map_err(failed)?,
            // RFC 9113 sections 8.2.2 and 8.3.1: no headers of a connection, and the authority instead of `Host`.
            _ => into_http2(&mut request, peer.is_tls())?,
        }
        session.set_read_timeout(Some(self.check.timeout));
        session.write_request_header(Box::new(request)).await.map_err(failed)?;
        session.finish_request_body().await.map_err(failed)?;
        // Interim answers come before the final one.
        let status = loop {
            session.read_response_header().await.map_err(failed)?;
            match session.response_header().map(|head| head.status.as_u16()) {
                Some(100..=199) => {}
                Some(status) => break status,
                None => return Err("did not answer".to_owned()),
            }
        };
        if !http.statuses.iter().any(|(from, to)| (*from..=*to).contains(&status)) {
            return Err(format!("answered with status {status}"));
        }
        let Some(wanted) = &http.body else { return Ok(()) };
        let mut body = Vec::new();
        while let Some(piece) = session.read_response_body().await.map_err(failed)? {
            body.extend_from_slice(&piece);
            if memchr::memmem::find(&body, wanted.as_bytes()).is_some() {
                return Ok(());
            }
            if body.len() > MAX_BODY {
                break;
            }
        }
        Err(format!("answered with a body that has no `{wanted}`"))
    }
}

/// What a backend of a group is to its probes.
fn key_of(backend: &Backend) -> Option<TargetKey> {
    let host = backend.ext.get::<ProbedAs>().map(|as_host| as_host.0.clone()).unwrap_or_default();
    address_of(&backend.addr).map(|address| TargetKey::new(address, host))
}

fn request(http: &HttpCheck, host: &str) -> Result<RequestHeader> {
    let mut request = RequestHeader::build(http.method.clone(), http.path.as_bytes(), None)?;
    let host = http.host.as_deref().unwrap_or(host.strip_prefix("unix:").map_or(host, |_| "localhost"));
    request.insert_header("Host", host)?;
    request.insert_header("User-Agent", concat!("portcullis-health/", env!("CARGO_PKG_VERSION")))?;
    for (name, value) in &http.headers {
        request.insert_header(name.clone(), value.clone())?;
    }
    Ok(request)
}

/// Moves the host to where HTTP/2 has it.
fn into_http2(request: &mut RequestHeader, tls: bool) -> Result<(), String> {
    let host = request.remove_header("Host");
    let host = host.as_ref().and_then(|host| host.to_str().ok()).unwrap_or_default();
    let path = request.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let uri = http::Uri::builder().scheme(if tls { "https" } else { "http" }).authority(host).path_and_query(path).build();
    request.set_uri(uri.map_err(|error| format!("`{host}` is no host: {error}"))?);
    Ok(())
}

/// An error in the words of whoever looks after the backend.
fn reason(error: &Error) -> String {
    let cause = || error.root_cause().to_string();
    match error.etype() {
        ErrorType::ConnectRefused => "Connection refused".to_owned(),
        ErrorType::ConnectTimedout => "no connection in time".to_owned(),
        ErrorType::ConnectNoRoute => "no route to it".to_owned(),
        ErrorType::TLSHandshakeFailure | ErrorType::TLSHandshakeTimedout | ErrorType::InvalidCert => format!("TLS: {}", tls_reason(error)),
        ErrorType::ConnectionClosed => "closed the connection without an answer".to_owned(),
        ErrorType::InvalidHTTPHeader => format!("did not answer in HTTP: {}", cause()),
        _ => cause(),
    }
}

/// A random part of a time, so that backends are not all probed at once.
fn part_of(time: Duration) -> Duration {
    let mut byte = [0];
    // Without random numbers there is no jitter, which does no harm.
    let _ = aws_lc_rs::rand::fill(&mut byte);
    time.mul_f64(f64::from(byte[0]) / 256.0)
}

#[async_trait]
impl CheckTrait for Probe {
    async fn check(&self, target: &Backend) -> Result<()> {
        let Some(key) = key_of(target) else { return Ok(()) };
        let Some((state, first)) = self.target(&key) else { return Ok(()) };
        let address = &key.address;
        if !first {
            tokio::time::sleep(part_of(self.check.jitter)).await;
        }
        let began = Now::read();
        match self.try_now(address, if key.host.is_empty() { &key.shown } else { &key.host }).await {
            Ok(()) => {
                // A backend that refused connections takes them again: it need not wait for its time to be up.
                if state.readmit(began) {
                    log::info!("backend {address} accepts connections again");
                }
                Ok(())
            }
            Err(why) => {
                self.failures.lock().unwrap_or_else(PoisonError::into_inner).insert(key, why.clone());
                Error::e_explain(ErrorType::ConnectError, why)
            }
        }
    }

    async fn health_status_change(&self, target: &Backend, healthy: bool) {
        let Some(key) = key_of(target) else { return };
        let address = &key.address;
        if let Some(target) = self.targets.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            target.state.set_healthy(healthy);
        }
        let why = self.failures.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
        match why.filter(|_| !healthy) {
            Some(why) => log::warn!("backend {address} becomes unhealthy: {}{why}", self.what()),
            None => log::info!("backend {address} becomes healthy"),
        }
    }

    fn health_threshold(&self, success: bool) -> usize {
        if success { self.check.rise } else { self.check.fall }
    }
}
