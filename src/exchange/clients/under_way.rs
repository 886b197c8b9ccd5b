//! The registrations under way in this process, and what they come to.

use super::{credentials::Credentials, registrations::KeptError};
use crate::{
    contract::error::{BeginError, CallError},
    model::{
        client::{ClientId, RedirectUri},
        joined::Joined,
        seal::UnsealError,
    },
    store::error::StoreError,
};

/// The registrations under way in this process.
pub type Registering = Joined<(ClientId, String, RedirectUri), (), Result<Credentials, Failure>>;

/// Why there is no client.
#[derive(Clone, Debug)]
pub enum Failure {
    /// The authorization server did not give one, or may not be asked.
    Unusable(String),
    /// The store cannot be reached: nothing was asked for.
    Away(String),
    /// The store, or a fault of our own.
    Failed(String),
    /// What is kept for the route is another's.
    Violation(String),
}

impl From<KeptError> for Failure {
    fn from(error: KeptError) -> Self {
        tracing::error!(%error, "the store failed");
        match error {
            KeptError::Sealed(_, UnsealError::DoesNotOpen) => Self::Violation(error.to_string()),
            KeptError::Store(StoreError::Away(_)) => Self::Away(error.to_string()),
            KeptError::Sealed(..) | KeptError::Store(_) => Self::Failed(error.to_string()),
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        KeptError::Store(error).into()
    }
}

impl Failure {
    /// The same, once the authorization server was asked: what it gave is lost.
    pub fn after_asking(self) -> Self {
        match self {
            Self::Away(why) => Self::Failed(why),
            other => other,
        }
    }
}

impl From<Failure> for BeginError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Unusable(why) => Self::AuthorizationServerUnusable(why.into()),
            Failure::Away(why) => CallError::Unavailable(why.into()).into(),
            Failure::Failed(why) | Failure::Violation(why) => CallError::Failed(why.into()).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::error::Label;

    /// As of every other call: 503 where nothing was done.
    #[test]
    fn a_store_that_is_away_is_unavailable_until_a_server_was_asked() {
        let away = || Failure::from(StoreError::Away("it is gone".to_owned()));
        assert_eq!(BeginError::from(away()).label(), "choreographer_unavailable");
        assert_eq!(BeginError::from(away().after_asking()).label(), "choreographer_failed");
        let failed = Failure::from(StoreError::Failed("it broke".to_owned()));
        assert_eq!(BeginError::from(failed.clone()).label(), "choreographer_failed");
        assert_eq!(BeginError::from(failed.after_asking()).label(), "choreographer_failed");
    }
}
