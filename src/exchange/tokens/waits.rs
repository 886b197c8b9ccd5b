//! The tokens that this process waits for: many may wait for each.

use std::sync::{Arc, Mutex, PoisonError};

use super::stored::Stored;
use crate::{
    contract::tokens::{Missing, TokenError, TokenOwner},
    model::joined::Joined,
    telemetry::metrics::Metrics,
};

/// The tokens that are waited for, each once, by all that a hand-out depends on.
pub type Waits = Joined<TokenOwner, LastSeen, Result<Stored, TokenError>>;

/// What the last look found in the place of a token; none where there was no look yet.
#[derive(Default)]
pub struct LastSeen(Mutex<Option<Missing>>);

impl LastSeen {
    pub fn set(&self, missing: Missing) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(missing);
    }

    pub fn error(&self) -> TokenError {
        match *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(missing) => TokenError::NotFound(missing),
            None => TokenError::Unavailable("the store did not say in time whether there is a token".into()),
        }
    }
}

/// A wait among those that are counted.
pub struct Counted(Arc<Metrics>);

impl Counted {
    pub fn new(metrics: &Arc<Metrics>) -> Self {
        metrics.token_waits.inc();
        Self(Arc::clone(metrics))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.token_waits.dec();
    }
}
