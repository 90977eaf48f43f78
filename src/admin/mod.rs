//! The admin socket: how the running process is asked and told things, by `portcullis` itself and by other programs.
//!
//! HTTP with JSON on a unix socket (`api` has the paths); on a plain address, where one is given, `/livez`, `/readyz` and `/metrics`
//! alone.

pub mod api;
mod asked;
pub mod client;
mod metrics;
mod peer;
pub mod server;
mod status;
