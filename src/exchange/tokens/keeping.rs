//! Tokens stored: what a flow or a refresh brought, in the place of nothing that is newer.

use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::{
    Tokens,
    errors::{isolation_violation, unavailable},
    stored::Stored,
};
use crate::{
    contract::tokens::{TokenError, TokenOwner},
    exchange::{records::TokenRecord, step_up::StepUp},
    model::{issuer::is_same, seal::UnsealError},
    store::{
        error::StoreError,
        keys::{Issuer, Resource, RouteKey, TokenKey},
        vault::Place,
    },
};

/// After which pauses a store that fails is asked again to keep what a token endpoint gave: ten seconds in all, in which
/// another server can take the place of one that died. In milliseconds.
const STORE_PAUSES: [u64; 7] = [500, 500, 1000, 1000, 2000, 2000, 3000];

/// How long what was there before is looked for, which is not worth a person's wait.
const READ_BEFORE: Duration = Duration::from_secs(2);

impl Tokens {
    /// Stores what a flow brought. What this user had of this route before is forgotten; it is revoked only where it is
    /// another authorization server's, or was given to another client, since revoking may end the whole grant (RFC 7009,
    /// section 2.1).
    ///
    /// # Errors
    /// Where it cannot be stored.
    pub(in crate::exchange) async fn put(&self, owner: &TokenOwner, mut record: TokenRecord) -> Result<(), StoreError> {
        let failed = |reason: &str| StoreError::Failed(reason.to_owned());
        let open = self.open().await.map_err(|error| failed(&error.to_string()))?;
        let key = TokenKey::of(&owner.user, &owner.client_id, Issuer(&record.issuer), Resource(&record.resource));
        let route = RouteKey::of(&owner.user, &owner.client_id, &owner.upstream.url);
        // Where it cannot be read, the token comes first.
        let before = timeout(READ_BEFORE, self.found_if_any(owner)).await;
        let before = before.ok().and_then(Result::ok).flatten();
        if let Some(before) = &before {
            record.step_up = before.record.step_up.connected((self.clock)());
        }
        let sealed = open.seal(Place::Token(&key), &record).ok_or_else(|| failed("the token cannot be sealed"))?;
        let replaced = persistently(|| open.store.put_token(key, route, sealed.clone())).await?;
        self.setbacks.forget(&key).await;
        let Some((old_key, sealed)) = replaced else {
            // Perhaps the step was done once before, and its answer lost.
            let others = before.filter(|before| before.record.is_anothers(&record));
            if let Some(before) = others {
                self.end_grant(owner, &before.record).await;
            }
            return Ok(());
        };
        match open.unseal::<TokenRecord>(Place::Token(&old_key), &sealed) {
            Ok((old, _)) if !old.is_of(owner, &old_key) => isolation_violation(owner).await,
            Ok((old, _)) if old.is_anothers(&record) => self.end_grant(owner, &old).await,
            Ok(_) => {}
            Err(UnsealError::DoesNotOpen) => isolation_violation(owner).await,
            Err(error) => tracing::warn!(%error, "a token that was replaced cannot be opened, and is not revoked"),
        }
        Ok(())
    }

    /// Stores what a refresh came to in the place of `old`, with what was noted beside that meanwhile. False where another
    /// token is there, or none.
    pub(super) async fn supersede(
        &self,
        owner: &TokenOwner,
        old: &Stored,
        mut fresh: TokenRecord,
    ) -> Result<bool, StoreError> {
        let mut sealed = old.sealed.clone();
        loop {
            if self.replace(old.key, sealed, &fresh).await? {
                return Ok(true);
            }
            match self.found_if_any(owner).await? {
                Some(found) if found.is_still(old) => {
                    fresh.step_up = found.record.step_up;
                    sealed = found.sealed;
                }
                Some(_) | None => return Ok(false),
            }
        }
    }

    /// What there is, asked for as persistently as it is stored.
    async fn found_if_any(&self, owner: &TokenOwner) -> Result<Option<Stored>, StoreError> {
        persistently(|| async {
            match self.found(owner).await {
                Ok(found) => Ok(Some(found)),
                Err(TokenError::NotFound(_)) => Ok(None),
                Err(TokenError::Unavailable(cause)) => Err(StoreError::Failed(cause.into_owned())),
            }
        })
        .await
    }

    /// Stores what is noted beside a token that was read. False where another record is there by now. The note is made
    /// once, and not where the store is away: what is lost with it will be said again.
    pub(super) async fn note(&self, old: &Stored, step_up: StepUp) -> Result<bool, TokenError> {
        let open = self.opened().await?;
        let noted = TokenRecord { step_up, ..old.record.clone() };
        let not_sealed = || TokenError::Unavailable("what is missing in a token cannot be sealed".into());
        let sealed = open.seal(Place::Token(&old.key), &noted).ok_or_else(not_sealed)?;
        let replaced = open.store.replace_token(old.key, old.sealed.clone(), sealed).await;
        replaced.map_err(|error| unavailable(&error))
    }

    /// Stores a record in the place of `old`. False where that is not there any more.
    async fn replace(&self, key: TokenKey, old: Vec<u8>, fresh: &TokenRecord) -> Result<bool, StoreError> {
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

impl TokenRecord {
    /// Whether its grant goes on when this one is stored in its place: that is of another server, or was given to another
    /// client there.
    fn is_anothers(&self, fresh: &Self) -> bool {
        let is_its_own = is_same(&self.issuer, &fresh.issuer) && self.oauth_client_id() == fresh.oauth_client_id();
        !self.ended && !is_its_own
    }
}

/// Has the store keep what a token endpoint gave, and asks it again where it fails: the code, or the old refresh token,
/// is used up, so what came is not to be lost because the store is away for a moment.
async fn persistently<T, F>(keep: impl Fn() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    for pause in STORE_PAUSES {
        if let Ok(kept) = keep().await {
            return Ok(kept);
        }
        sleep(Duration::from_millis(pause)).await;
    }
    keep().await
}
