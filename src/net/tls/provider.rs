//! What all our TLS is made with.

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, ring};

/// HTTP/2, which is what gRPC speaks.
pub(super) const ALPN: &[u8] = b"h2";

/// Named where it is used, so that it does not matter which one another crate makes the process's default.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}
