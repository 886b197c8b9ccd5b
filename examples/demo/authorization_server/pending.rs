//! The requests that a person was asked about and has not answered.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use envoy_cimd::model::secret::generate_key_line;

use super::AuthorizationRequest;

/// How long a person may think.
const LIFETIME: Duration = Duration::from_secs(600);

/// Each under an id that only its page has, and that is good once: so there is no code but for a checked request.
#[derive(Default)]
pub struct Pending(Mutex<HashMap<String, (AuthorizationRequest, Instant)>>);

impl Pending {
    /// The id. None where the system has no randomness.
    pub fn add(&self, request: AuthorizationRequest) -> Option<String> {
        let id = generate_key_line().ok()?;
        let mut pending = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pending.retain(|_, (_, since)| since.elapsed() < LIFETIME);
        pending.insert(id.clone(), (request, Instant::now()));
        Some(id)
    }

    pub fn take(&self, id: &str) -> Option<AuthorizationRequest> {
        let (request, since) = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(id)?;
        (since.elapsed() < LIFETIME).then_some(request)
    }
}
