//! Whether the process should get traffic.

use std::sync::{Mutex, PoisonError};

/// Whether the process should get traffic, and if not, why.
#[derive(Debug)]
pub struct Readiness(Mutex<Option<&'static str>>);

impl Default for Readiness {
    fn default() -> Self {
        Self(Mutex::new(Some("starting")))
    }
}

impl Readiness {
    /// From now on it should.
    pub fn ready(&self) {
        self.set(None);
    }

    /// From now on it should not; the reason is what callers are told.
    pub fn not_ready(&self, reason: &'static str) {
        self.set(Some(reason));
    }

    fn set(&self, reason: Option<&'static str>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = reason;
    }

    pub fn reason(&self) -> Option<&'static str> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
