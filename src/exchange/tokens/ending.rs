//! Grants that end: forgotten here, and revoked at the authorization server (RFC 7009).

use std::time::Duration;

use oauth2::{RefreshToken, RevocationUrl, StandardRevocableToken};

use super::{
    Tokens,
    errors::{can_be_audited, unavailable},
    stored::Stored,
};
use crate::{
    contract::tokens::{TokenError, TokenOwner},
    exchange::records::TokenRecord,
    telemetry::audit,
};

/// How long a revocation is waited for: nothing depends on its answer.
const REVOCATION: Duration = Duration::from_secs(3);

impl Tokens {
    /// Forgets what this owner has, and revokes it.
    pub(super) async fn forget(&self, owner: &TokenOwner) -> Result<(), TokenError> {
        can_be_audited()?;
        let open = self.opened().await?;
        loop {
            let Stored { key, route, sealed, record, .. } = match self.found(owner).await {
                Ok(found) => found,
                Err(TokenError::NotFound(_)) => return Ok(()),
                Err(error) => return Err(error),
            };
            // First here, so that nobody is given a token that is being revoked.
            if open.store.remove_token(key, route, sealed).await.map_err(|error| unavailable(&error))? {
                if !record.ended {
                    self.end_grant(owner, &record).await;
                }
                return Ok(());
            }
            // It was refreshed, or connected anew: what came is to go.
        }
    }

    /// Revokes a token that is not kept any more, and says so in the audit log.
    pub(super) async fn end_grant(&self, owner: &TokenOwner, record: &TokenRecord) {
        let outcome = match self.revoke(record).await {
            None => "not_offered",
            Some(true) => "ok",
            Some(false) => "failed",
        };
        audit::event("revoked", &owner.user, owner.client_id.as_str(), &record.issuer, None, outcome).await;
    }

    /// Whether the authorization server took it; none where it does not offer that.
    async fn revoke(&self, record: &TokenRecord) -> Option<bool> {
        let url = RevocationUrl::new(record.revocation_endpoint.clone()?).ok()?;
        let credentials = self.clients.credentials(&record.acts_as, &record.client_id, &record.issuer);
        let credentials = match credentials {
            Ok(credentials) => credentials,
            Err(gone) => {
                tracing::warn!(issuer = record.issuer, client_id = %record.client_id, %gone, "it is not revoked");
                return Some(false);
            }
        };
        let client = credentials.oauth_client().set_revocation_url(url);
        // With the refresh token, the access tokens end too (RFC 7009, section 2.1).
        let token = match &record.refresh_token {
            Some(token) => StandardRevocableToken::RefreshToken(RefreshToken::new(token.expose().to_owned())),
            None => {
                StandardRevocableToken::AccessToken(oauth2::AccessToken::new(record.access_token.expose().to_owned()))
            }
        };
        let request = client.revoke_token(token).ok()?;
        Some(request.request_async(&self.http(&record.client_id, REVOCATION)).await.is_ok())
    }
}
