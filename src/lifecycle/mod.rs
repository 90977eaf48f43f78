//! The running process: how its configuration changes, how it hands over to another one, how it ends.

pub mod assemble;
pub mod begin;
mod changes;
pub mod control;
pub mod drain;
pub mod handover;
mod keep;
pub mod notify;
mod operate;
pub mod pid_file;
pub mod readiness;
pub mod reload;
pub mod sticky_key;
pub mod stop;
pub mod supervisor;
mod tables;
pub mod takeover;
pub mod upgrade;
pub mod users;
mod watch;
mod worker;
