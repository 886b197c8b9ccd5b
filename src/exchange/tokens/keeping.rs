//! Tokens stored: what a flow or a refresh brought, in the place of nothing that is newer.

use std::time::Duration;

use tokio::time::sleep;

use super::{Tokens, errors::isolation_violation};
use crate::{
    contract::tokens::TokenOwner,
    exchange::records::TokenRecord,
    model::issuer::is_same,
    store::{
        error::StoreError,
        keys::{Issuer, Resource, RouteKey, TokenKey},
        seal::UnsealError,
        vault::Place,
    },
};

/// How often, and with which pause, a store that fails is asked to keep what a token endpoint gave.
const STORE_TRIES: u32 = 8;
const STORE_PAUSE: Duration = Duration::from_millis(500);

impl Tokens {
    /// Stores what a flow brought. What this user had of this route before is forgotten; it is revoked only where it is
    /// another authorization server's, since revoking may end the whole grant (RFC 7009, section 2.1).
    ///
    /// # Errors
    /// Where it cannot be stored.
    pub(in crate::exchange) async fn put(&self, owner: &TokenOwner, record: &TokenRecord) -> Result<(), StoreError> {
        let failed = |reason: &str| StoreError::Failed(reason.to_owned());
        let open = self.open().await.map_err(|error| failed(&error.to_string()))?;
        let key = TokenKey::of(&owner.user, &owner.client_id, Issuer(&record.issuer), Resource(&record.resource));
        let route = RouteKey::of(&owner.user, &owner.client_id, &owner.upstream.url);
        let sealed = open.seal(Place::Token(&key), record).ok_or_else(|| failed("the token cannot be sealed"))?;
        let replaced = persistently(|| open.store.put_token(key, route, sealed.clone())).await?;
        self.setbacks.forget(&key).await;
        let Some((old_key, sealed)) = replaced else { return Ok(()) };
        match open.unseal::<TokenRecord>(Place::Token(&old_key), &sealed) {
            Ok((old, _)) if !old.is_of(owner, &old_key) => isolation_violation(owner).await,
            Ok((old, _)) if !is_same(&old.issuer, &record.issuer) && !old.ended => self.end_grant(owner, &old).await,
            Ok(_) => {}
            Err(UnsealError::DoesNotOpen) => isolation_violation(owner).await,
            Err(error) => tracing::warn!(%error, "a token that was replaced cannot be opened, and is not revoked"),
        }
        Ok(())
    }

    /// Stores what a refresh brought in the place of `old`. False where that is not there any more.
    pub(super) async fn replace(&self, key: TokenKey, old: Vec<u8>, fresh: &TokenRecord) -> Result<bool, StoreError> {
        let failed = |reason: &str| StoreError::Failed(reason.to_owned());
        let open = self.open().await.map_err(|error| failed(&error.to_string()))?;
        let sealed = open.seal(Place::Token(&key), fresh).ok_or_else(|| failed("the token cannot be sealed"))?;
        if persistently(|| open.store.replace_token(key, old.clone(), sealed.clone())).await? {
            return Ok(true);
        }
        // A try that failed may have done it.
        open.store.replace_token(key, sealed.clone(), sealed).await
    }
}

/// Has the store keep what a token endpoint gave, and asks it again where it fails: the code, or the old refresh token,
/// is used up, so what came is not to be lost because the store is away for a moment.
async fn persistently<T, F>(keep: impl Fn() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    for _ in 1..STORE_TRIES {
        if let Ok(kept) = keep().await {
            return Ok(kept);
        }
        sleep(STORE_PAUSE).await;
    }
    keep().await
}
