//! Encryption between the parts: mTLS where they meet over TCP, from PEM files that are read again when they change.

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, ring};

mod client;
mod files;
mod listener;
mod peer;
pub mod pem;
mod server;

pub use client::{ClientTls, ClientTlsSettings};
pub use listener::TlsListener;
pub use peer::PeerName;
pub use server::{ServerTls, server_tls};

/// HTTP/2, which is what gRPC speaks.
const ALPN: &[u8] = b"h2";

/// Named where it is used, so that it does not matter which one another crate makes the process's default.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}
