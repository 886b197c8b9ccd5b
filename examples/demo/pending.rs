//! What waits for a person or a program to come for it, which is a matter of minutes.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use envoy_cimd::model::secret::generate_key_line;

/// Each under an id that only its page or its redirect has, and that is good once: so there is no code but for a
/// checked request.
pub struct Pending<T> {
    lifetime: Duration,
    waiting: Mutex<HashMap<String, (T, Instant)>>,
}

impl<T> Pending<T> {
    pub fn new(lifetime: Duration) -> Self {
        Self { lifetime, waiting: Mutex::default() }
    }

    /// The id. None where the system has no randomness.
    pub fn add(&self, what: T) -> Option<String> {
        let id = generate_key_line().ok()?;
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|_, (_, since)| since.elapsed() < self.lifetime);
        waiting.insert(id.clone(), (what, Instant::now()));
        Some(id)
    }

    pub fn take(&self, id: &str) -> Option<T> {
        let (what, since) = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(id)?;
        (since.elapsed() < self.lifetime).then_some(what)
    }
}
