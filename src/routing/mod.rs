//! Which site and which routes answer a request: pure look-ups in compiled tables.

pub mod conditions;
pub mod host;
pub mod name_table;
pub mod path;
pub mod path_table;
pub mod users;
