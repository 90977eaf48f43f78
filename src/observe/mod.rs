//! What an operator sees: one line per request (`access_log`) and events (`events`).

pub mod access_log;
pub mod events;
pub mod record;
