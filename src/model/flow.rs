//! The names that one authorization in progress goes by.

use std::fmt;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use subtle::ConstantTimeEq;

use super::secret::tagged_hash;

/// The longest that a flow and its state live, in seconds.
pub const MAX_LIFETIME: u64 = 600;

/// The unguessable name of one authorization in progress.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct FlowId(pub [u8; 16]);

impl FlowId {
    /// A short name for the flow that gives nothing of it away: for logs, and for the cookie's name.
    pub fn tag(&self) -> String {
        let [a, b, c, d, e, f, ..] = tagged_hash("envoy-cimd flow tag", &self.0);
        BASE64_URL_SAFE_NO_PAD.encode([a, b, c, d, e, f])
    }
}

impl fmt::Debug for FlowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FlowId({}…)", self.tag())
    }
}

/// The SHA-256 of the cookie that binds a flow to a browser. It stands for a secret: `Debug` shows nothing of it, and it
/// is compared in constant time.
#[derive(Clone, Copy)]
pub struct BrowserHash(pub [u8; 32]);

impl fmt::Debug for BrowserHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BrowserHash(…)")
    }
}

impl PartialEq for BrowserHash {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for BrowserHash {}
