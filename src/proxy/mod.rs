//! Carries requests: the gate in front of Pingora, the filters inside it, and the tunnel beside it.
//!
//! With `balance`, `health` and `app` the only place that names Pingora. Nothing is decided here.

mod accept;
mod apply;
mod carry;
mod ctx;
mod failure;
mod filters;
mod frames;
mod framing;
mod gate;
mod judge;
pub mod listen;
mod page;
pub mod rehearse;
mod tunnel;
mod view;
mod wire;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pingora::apps::HttpServerOptions;
use pingora::connectors::TransportConnector;
use pingora::server::configuration::ServerConf;
use pingora_proxy::HttpProxy;

use crate::lifecycle::drain::Drain;
use crate::observe::access_log::AccessLogger;
use crate::snapshot::current::Current;
use crate::tls;
use filters::Filters;

/// What every connection and request of the process shares.
pub struct Shared {
    pub current: Current,
    pub log: AccessLogger,
    pub drain: Drain,
    pub tls: tls::Shared,
    pub request_ids: RequestIds,
    /// Connects to backends for tunnels; requests have Pingora's own.
    pub connector: TransportConnector,
}

/// Ids that are unique beyond this process: a random part and a count.
pub struct RequestIds {
    random: u64,
    count: AtomicU64,
}

impl RequestIds {
    pub fn new(random: u64) -> Self {
        Self { random, count: AtomicU64::new(0) }
    }

    pub(crate) fn next(&self) -> String {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let mut id = String::with_capacity(32);
        for byte in self.random.to_be_bytes().into_iter().chain(count.to_be_bytes()) {
            id.extend([byte >> 4, byte & 15].map(|digit| char::from_digit(u32::from(digit), 16).unwrap_or('0')));
        }
        id
    }
}

/// Pingora's proxy with our filters in it.
fn carrier(conf: &Arc<ServerConf>, shared: Arc<Shared>, h2_idle: Duration) -> HttpProxy<Filters> {
    let mut proxy = pingora_proxy::http_proxy(conf, Filters::new(shared));
    // Start from what Pingora bounds, with windows that let an upload use a fast line.
    let mut h2 = pingora::protocols::http::v2::server::default_h2_options();
    h2.initial_window_size(1 << 20).initial_connection_window_size(4 << 20).max_concurrent_streams(256);
    proxy.h2_options = Some(h2);
    // The gate times HTTP/1 connections itself.
    let mut options = HttpServerOptions::default();
    options.h2_idle_timeout = Some(h2_idle);
    proxy.server_options = Some(options);
    proxy
}

#[cfg(test)]
mod tests;
