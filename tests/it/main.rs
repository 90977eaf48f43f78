//! End-to-end stories: the real binary, real sockets. One file for each feature.

#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::print_stderr, reason = "tests fail by panicking")]

mod actors;

mod balancing;
mod configuration;
mod deciding;
mod demo;
mod documents;
mod headers;
mod http1;
mod http2;
mod logging;
mod reloading;
mod rewriting;
mod routing;
mod stopping;
mod tls;
mod websocket;
