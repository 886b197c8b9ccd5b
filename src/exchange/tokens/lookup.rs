//! Tokens found in the store, opened, and checked to be their owner's.

use super::{
    Tokens,
    errors::{NEVER, can_be_audited, isolation_violation, unavailable},
    stored::Stored,
};
use crate::{
    contract::{
        error::Cause,
        tokens::{TokenError, TokenOwner, TokenTag},
    },
    exchange::records::TokenRecord,
    model::{seal::UnsealError, secret::random},
    store::{backend::Found, keys::RouteKey, vault::Place},
};

impl Tokens {
    /// As [`Self::stored`]; none where the route's authorization server or resource is another by now.
    pub(super) async fn of_route(&self, owner: &TokenOwner) -> Result<Stored, TokenError> {
        let found = self.found(owner).await?;
        let TokenRecord { issuer, resource, .. } = &found.record;
        match self.discovery.takes(&owner.client_id, &owner.upstream, issuer, resource).await {
            true => found.granted(),
            false => Err(NEVER),
        }
    }

    /// As [`Self::found`], where its grant has not ended.
    pub(super) async fn stored(&self, owner: &TokenOwner) -> Result<Stored, TokenError> {
        self.found(owner).await?.granted()
    }

    /// The record of [`Self::found`], its grant ended or not; none where there is nothing.
    ///
    /// # Errors
    /// Why the store cannot say.
    pub(super) async fn found_record(&self, owner: &TokenOwner) -> Result<Option<TokenRecord>, Cause> {
        match self.found(owner).await {
            Ok(found) => Ok(Some(found.record)),
            Err(TokenError::NotFound(_)) => Ok(None),
            Err(TokenError::Unavailable(cause)) => Err(cause),
        }
    }

    /// What a route's index points at, opened. A record that was moved from elsewhere does not open, and is nobody's.
    pub(super) async fn found(&self, owner: &TokenOwner) -> Result<Stored, TokenError> {
        let open = self.opened().await?;
        let route = RouteKey::of(&owner.user, &owner.client_id, &owner.upstream.url);
        let found = open.store.token(route).await.map_err(|error| unavailable(&error))?;
        let Found { kept: (key, sealed), again } = found.ok_or(NEVER)?;
        match open.unseal::<TokenRecord>(Place::Token(&key), &sealed) {
            Ok((mut record, stale)) if record.is_of(owner, &key) => {
                let mut sealed = sealed;
                let untagged = record.tag.is_none();
                if untagged {
                    record.tag = random().ok().map(TokenTag);
                }
                if (stale || untagged)
                    && let Some(anew) = open.seal(Place::Token(&key), &record)
                {
                    // Under the first key, so that the old one can go. If it fails, the next reading tries again.
                    match open.store.replace_token(key, sealed.clone(), anew.clone()).await {
                        Ok(true) => sealed = anew,
                        // Somebody else gave it a tag, or another token is there.
                        Ok(false) if untagged => return Box::pin(self.found(owner)).await,
                        Ok(false) | Err(_) => {}
                    }
                }
                let again = again.filter(|until| *until > (self.clock)());
                Ok(Stored { key, route, sealed, record, again })
            }
            Ok(_) | Err(UnsealError::DoesNotOpen) => {
                can_be_audited()?;
                isolation_violation(owner).await;
                Err(NEVER)
            }
            Err(error) => {
                tracing::error!(%error, "a stored token cannot be opened");
                Err(TokenError::Unavailable(format!("a stored token cannot be opened: {error}").into()))
            }
        }
    }
}
