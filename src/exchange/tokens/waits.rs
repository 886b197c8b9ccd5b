//! The tokens that this process waits for: many may wait for each.

use std::sync::Arc;

use super::stored::Stored;
use crate::{
    contract::tokens::{LastSeen, TokenError, TokenOwner},
    model::joined::Joined,
    telemetry::metrics::Metrics,
};

/// The tokens that are waited for, each once, by all that a hand-out depends on.
pub type Waits = Joined<TokenOwner, LastSeen, Result<Stored, TokenError>>;

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
