//! End-to-end stories: the real binary, real sockets. One file for each feature.

#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::print_stderr, reason = "tests fail by panicking")]

#[expect(dead_code, reason = "other targets use more of the actors")]
mod actors;

mod answers;
mod balancing;
mod certificates;
mod configuration;
mod deciding;
mod demo;
mod documents;
mod edits;
mod examples;
mod explaining;
mod headers;
mod http1;
mod http2;
mod limits;
mod logging;
mod naming;
mod notifying;
mod operating;
mod reloading;
mod rewriting;
mod routing;
mod stopping;
mod tls;
mod upgrading;
mod users;
mod versions;
mod websocket;
