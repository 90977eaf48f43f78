//! Changes to headers on the way to the backend and back: pure functions over their values.

pub mod back;
pub mod forwarded;
pub mod headers;
pub mod template;
