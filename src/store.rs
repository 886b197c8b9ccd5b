//! Where flows and tokens are kept: one trait, a backend for one process and one for many, and the seal on all that goes
//! into them.

pub mod backend;
pub mod error;
pub(crate) mod file;
pub(crate) mod key_file;
pub mod keys;
pub mod open;
pub(crate) mod redis;
pub mod url;
pub mod vault;
pub(crate) mod whole_file;
