//! Encryption between the parts: mTLS where they meet over TCP, from PEM files that are read again when they change.

pub mod client;
mod expiry;
mod files;
pub mod listener;
pub mod peer;
pub(crate) mod pem;
pub mod provider;
pub(crate) mod roots;
pub(crate) mod server;
