//! The actors of the stories: the real binary, scripted backends, clients that speak raw bytes, and a small CA.

mod ca;
mod client;
mod names;
mod origin;
mod proxy;

pub use ca::Ca;
pub use client::{Client, H2, get, tls_config};
pub use names::NameServer;
pub use origin::{GARBAGE, Origin, Reply};
pub use proxy::{Check, PLAIN, Proxy, check};
