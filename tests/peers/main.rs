//! Every protocol against programs that others wrote: nginx as a backend, gRPC and WebSockets by their Python libraries,
//! curl, ApacheBench, nghttp and h2load as clients. Run by `make test-peers`, which installs them.

#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::print_stderr, reason = "tests fail by panicking")]

#[path = "../it/actors/mod.rs"]
#[expect(dead_code, unused_imports, reason = "these stories need only some of the actors")]
mod actors;
mod backends;
mod clients;
mod disk;
mod grpc;
mod peer;
mod streams;
