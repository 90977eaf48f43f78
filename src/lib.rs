#![doc = include_str!("architecture.md")]

pub mod app;
pub mod balance;
pub mod cli;
pub mod config;
pub mod decide;
pub mod demo;
pub mod drain;
pub mod health;
pub mod observe;
pub mod proxy;
pub mod reload;
pub mod rewrite;
pub mod routing;
pub mod snapshot;
pub mod tls;
