//! Tokens handed out: valid now, and to the right user and route alone.

use std::time::{Duration, Instant};

use oauth2::{
    ClientId, RefreshToken, RevocationUrl, StandardRevocableToken, TokenUrl,
    basic::{BasicClient, BasicErrorResponseType, BasicTokenResponse},
};
use tokio::time::sleep;

use crate::{
    contract::choreographer::Upstream,
    exchange::{
        embedded::{Embedded, TokenRecord, route_key, token_key},
        oauth::{OAuthHttp, Usable, said, usable},
    },
    model::{secret::random, user::User},
    store::{RouteKey, TokenKey, UnsealError},
    telemetry::audit,
};

/// A token with no more than this left, or than a quarter of its life, is refreshed in the background, in seconds.
const AHEAD: u64 = 60;
/// A token with no more than this left is not handed out any more, in seconds: it would end on its way.
const TOO_LATE: u64 = 5;
/// The longest that one attempt to refresh keeps others from it, in seconds: longer than a fetch, and no longer than
/// needed, since an attempt that dies is waited for.
const CLAIM: u64 = 5;
/// The longest that a caller waits for a refresh, its own or another's.
const DEADLINE: Duration = Duration::from_secs(8);
const POLL: Duration = Duration::from_millis(50);

/// An access token. It has no `Debug`.
pub struct AccessToken {
    pub secret: String,
    /// Seconds since 1970; none where the authorization server did not say.
    pub expires_at: Option<u64>,
}

/// Why there is no token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TokenError {
    /// This user has none for this route: never connected, ended by the authorization server, or of an authorization
    /// server that is not the route's any more.
    NotFound,
    /// There may be one, and it may work later: the store or the authorization server cannot be reached.
    Unavailable,
}

/// A token as it was found, with what it takes to change it.
#[derive(Clone)]
struct Stored {
    key: TokenKey,
    route: RouteKey,
    /// As it was read, so that nothing newer is changed.
    sealed: Vec<u8>,
    record: TokenRecord,
}

impl Stored {
    /// Whether somebody refreshed it since, to something that can be handed out.
    fn replaces(&self, old: &Self, now: u64) -> bool {
        self.record.access_token != old.record.access_token && !self.record.is_over(now)
    }
}

impl TokenRecord {
    /// Whether it is where its own user, client, issuer and resource say: an index can be made to point elsewhere.
    fn is_of(&self, whose: &Whose, key: &TokenKey) -> bool {
        token_key(&whose.user, &whose.client_id, &self.issuer, &self.resource) == *key
    }

    fn left(&self, now: u64) -> u64 {
        self.expires_at.map_or(u64::MAX, |expires_at| expires_at.saturating_sub(now))
    }

    fn is_over(&self, now: u64) -> bool {
        self.left(now) <= TOO_LATE
    }

    /// Whether it is time to renew it; one that cannot be renewed is never old.
    fn is_old(&self, now: u64) -> bool {
        let life = self.expires_at.map_or(u64::MAX, |expires_at| expires_at.saturating_sub(self.issued_at));
        self.refresh_token.is_some() && self.left(now) <= AHEAD.min(life / 4)
    }
}

/// Whose token, of which route.
#[derive(Clone)]
struct Whose {
    user: User,
    client_id: String,
    route: RouteKey,
}

impl Whose {
    fn new(user: &User, client_id: &str, upstream: &str) -> Self {
        let route = route_key(user, client_id, upstream);
        Self { user: user.clone(), client_id: client_id.to_owned(), route }
    }
}

impl Embedded {
    /// The access token of a user for an upstream, through the route with this `client_id`: refreshed where it is over,
    /// and in the background where it soon is.
    ///
    /// # Errors
    /// Where there is none, or none can be had now.
    pub async fn upstream_token(
        &self,
        user: &User,
        client_id: &str,
        upstream: &Upstream,
    ) -> Result<AccessToken, TokenError> {
        let whose = Whose::new(user, client_id, &upstream.url);
        let mut stored = self.stored(&whose).await?;
        if self.discovery.known(upstream).await.is_some_and(|issuer| issuer != stored.record.issuer) {
            return Err(TokenError::NotFound);
        }
        let now = (self.clock)();
        if stored.record.is_over(now) {
            self.refreshed(&whose, &stored).await?;
            stored = self.stored(&whose).await?;
        } else if stored.record.is_old(now) {
            let (this, old) = (self.clone(), stored.clone());
            self.calls.spawn(async move {
                // It still has time: whoever asks when it has none is told what came of this.
                let _ = this.refreshed(&whose, &old).await;
            });
        }
        Ok(AccessToken { secret: stored.record.access_token.clone(), expires_at: stored.record.expires_at })
    }

    /// The record as it is stored, over or not: for who looks into a store.
    ///
    /// # Errors
    /// [`TokenError::Unavailable`] where the store cannot say.
    pub async fn token(&self, user: &User, client_id: &str, upstream: &str) -> Result<Option<TokenRecord>, TokenError> {
        let whose = Whose::new(user, client_id, upstream);
        match self.stored(&whose).await {
            Ok(stored) => Ok(Some(stored.record)),
            Err(TokenError::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Revokes a user's tokens of a route at the authorization server, where it offers that (RFC 7009), and forgets
    /// them. What the authorization server says does not keep them.
    ///
    /// # Errors
    /// [`TokenError::Unavailable`] where the store cannot be reached: nothing was forgotten.
    pub async fn disconnect(&self, user: &User, client_id: &str, upstream: &Upstream) -> Result<(), TokenError> {
        let whose = Whose::new(user, client_id, &upstream.url);
        let Stored { key, route, record, .. } = match self.stored(&whose).await {
            Ok(stored) => stored,
            Err(TokenError::NotFound) => return Ok(()),
            Err(error) => return Err(error),
        };
        let open = self.open().await.map_err(|_| TokenError::Unavailable)?;
        // First here, so that nobody is given a token that is being revoked.
        open.store.remove_token(key, route, None).await.map_err(|error| unavailable(&error))?;
        let outcome = match self.revoke(&record).await {
            None => "not_offered",
            Some(true) => "ok",
            Some(false) => "failed",
        };
        audit::event("revoked", user, client_id, &record.issuer, None, outcome);
        Ok(())
    }

    /// Whether the authorization server took it; none where it does not offer that.
    async fn revoke(&self, record: &TokenRecord) -> Option<bool> {
        let url = RevocationUrl::new(record.revocation_endpoint.clone()?).ok()?;
        let client = BasicClient::new(ClientId::new(record.client_id.clone())).set_revocation_url(url);
        // With the refresh token, the access tokens end too (RFC 7009, section 2.1).
        let token = match &record.refresh_token {
            Some(token) => StandardRevocableToken::RefreshToken(RefreshToken::new(token.clone())),
            None => StandardRevocableToken::AccessToken(oauth2::AccessToken::new(record.access_token.clone())),
        };
        let request = client.revoke_token(token).ok()?;
        Some(request.request_async(&OAuthHttp(self.outgoing.clone())).await.is_ok())
    }

    /// Refreshes a token once, however many ask for it in this process and in others.
    async fn refreshed(&self, whose: &Whose, old: &Stored) -> Result<(), TokenError> {
        let (this, whose, key, old) = (self.clone(), whose.clone(), old.key, old.clone());
        let refresh = async move {
            // A task of its own: whoever asked first may go away, and the others still wait for it.
            let task = self.calls.spawn(async move { this.claim_and_refresh(&whose, &old).await });
            task.await.unwrap_or(Err(TokenError::Unavailable))
        };
        self.refreshes.get_with(key, refresh).await
    }

    async fn claim_and_refresh(&self, whose: &Whose, old: &Stored) -> Result<(), TokenError> {
        let open = self.open().await.map_err(|_| TokenError::Unavailable)?;
        let holder = random().map_err(|_| TokenError::Unavailable)?;
        let deadline = Instant::now() + DEADLINE;
        while !open.store.claim(old.key, holder, CLAIM).await.map_err(|error| unavailable(&error))? {
            // Another process is at it. What it brings is as good.
            sleep(POLL).await;
            if self.stored(whose).await?.replaces(old, (self.clock)()) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(TokenError::Unavailable);
            }
        }
        let result = match self.stored(whose).await {
            Ok(stored) if stored.replaces(old, (self.clock)()) => Ok(()),
            Ok(stored) => self.refresh(whose, stored).await,
            Err(error) => Err(error),
        };
        if let Err(error) = open.store.release(old.key, holder).await {
            tracing::warn!(%error, "a claim stays until it ends by itself");
        }
        result
    }

    /// With the claim in hand. The rotated token is stored before anybody is given the access token that came with it.
    async fn refresh(&self, whose: &Whose, stored: Stored) -> Result<(), TokenError> {
        let Stored { key, route, sealed: old, record } = stored;
        let open = self.open().await.map_err(|_| TokenError::Unavailable)?;
        let audit = |outcome| {
            self.metrics.refreshed(outcome);
            audit::event("refreshed", &whose.user, &whose.client_id, &record.issuer, None, outcome);
        };
        let Some(refresh_token) = record.refresh_token.clone() else {
            // It is over, and nothing can renew it.
            open.store.remove_token(key, route, Some(old)).await.map_err(|error| unavailable(&error))?;
            audit("ended");
            return self.stored(whose).await.map(drop);
        };
        let token_url = TokenUrl::new(record.token_endpoint.clone()).map_err(|_| TokenError::NotFound)?;
        let client = BasicClient::new(ClientId::new(record.client_id.clone())).set_token_uri(token_url);
        let http = OAuthHttp(self.outgoing.clone());
        let answer: Result<BasicTokenResponse, _> = client
            .exchange_refresh_token(&RefreshToken::new(refresh_token.clone()))
            .add_extra_param("resource", &record.resource)
            .request_async(&http)
            .await;
        let answer = answer.map_err(|error| {
            let ended = matches!(&error, oauth2::RequestTokenError::ServerResponse(answer) if matches!(
                answer.error(),
                BasicErrorResponseType::InvalidGrant | BasicErrorResponseType::UnauthorizedClient
            ));
            (ended, said(&error))
        });
        let token = answer.and_then(|answer| usable(&answer).map_err(|reason| (false, reason.to_owned())));
        let Usable { access_token, refresh_token: rotated, expires_in, scope } = match token {
            Ok(token) => token,
            Err((true, _)) => {
                open.store.remove_token(key, route, Some(old)).await.map_err(|error| unavailable(&error))?;
                audit("ended");
                return self.stored(whose).await.map(drop);
            }
            Err((false, reason)) => {
                tracing::warn!(issuer = record.issuer, client_id = record.client_id, reason, "the refresh failed");
                audit("failed");
                return Err(TokenError::Unavailable);
            }
        };
        let now = (self.clock)();
        let fresh = TokenRecord {
            access_token,
            refresh_token: rotated.or(Some(refresh_token)),
            issued_at: now,
            expires_at: expires_in.map(|lifetime| now.saturating_add(lifetime)),
            scope: scope.or_else(|| record.scope.clone()),
            ..record.clone()
        };
        let sealed = open.seal("token", &key, &fresh).ok_or(TokenError::Unavailable)?;
        if !open.store.replace_token(key, old, sealed).await.map_err(|error| unavailable(&error))? {
            // Somebody disconnected meanwhile, or connected anew: what came is not to stay valid.
            let outcome = self.revoke(&fresh).await;
            tracing::info!(issuer = record.issuer, revoked = outcome == Some(true), "changed while refreshing");
            return self.stored(whose).await.map(drop);
        }
        audit("ok");
        Ok(())
    }

    /// What a route's index points at, opened. A record that was moved from elsewhere does not open, and is nobody's.
    async fn stored(&self, whose: &Whose) -> Result<Stored, TokenError> {
        let open = self.open().await.map_err(|_| TokenError::Unavailable)?;
        let route = whose.route;
        let found = open.store.token(route).await.map_err(|error| unavailable(&error))?;
        let (key, sealed) = found.ok_or(TokenError::NotFound)?;
        match open.unseal::<TokenRecord>("token", &key, &sealed) {
            Ok((record, stale)) if record.is_of(whose, &key) => {
                let mut sealed = sealed;
                if stale && let Some(anew) = open.seal("token", &key, &record) {
                    // Under the first key, so that the old one can go. If it fails, the next reading tries again.
                    if let Ok(true) = open.store.replace_token(key, sealed.clone(), anew.clone()).await {
                        sealed = anew;
                    }
                }
                Ok(Stored { key, route, sealed, record })
            }
            Ok(_) | Err(UnsealError::DoesNotOpen) => {
                audit::event("isolation_violation", &whose.user, &whose.client_id, "", None, "refused");
                Err(TokenError::NotFound)
            }
            Err(error) => {
                tracing::error!(%error, "a stored token cannot be opened");
                Err(TokenError::Unavailable)
            }
        }
    }
}

fn unavailable(error: &crate::store::StoreError) -> TokenError {
    tracing::error!(%error, "the store failed");
    TokenError::Unavailable
}
