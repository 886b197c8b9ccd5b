//! What is said where there is no token.

use crate::{
    contract::{
        error::Cause,
        tokens::{Missing, TokenError, TokenOwner},
    },
    model::secret::NoRandomness,
    store::error::StoreError,
    telemetry::audit,
};

pub const NEVER: TokenError = TokenError::NotFound(Missing::Never);
pub const LOST: TokenError = TokenError::NotFound(Missing::Lost);
pub const ENDED_EARLY: TokenError =
    TokenError::Unavailable(Cause::Borrowed("the call ended early: a fault of envoy-cimd itself"));

/// What the store has for this owner is another's.
pub async fn isolation_violation(owner: &TokenOwner) {
    audit::event("isolation_violation", &owner.user, owner.client_id.as_str(), "", None, "refused").await;
}

/// # Errors
/// Where what comes of it could not be audited. Nothing is done then.
pub fn can_be_audited() -> Result<(), TokenError> {
    audit::blocked().map_or(Ok(()), |cause| {
        tracing::error!(cause, "no token is refreshed or ended");
        Err(TokenError::Unavailable(cause.into()))
    })
}

pub fn unavailable(error: &StoreError) -> TokenError {
    tracing::error!(%error, "the store failed");
    TokenError::Unavailable(format!("the store failed: {error}").into())
}

pub fn no_randomness(error: NoRandomness) -> TokenError {
    TokenError::Unavailable(error.to_string().into())
}
