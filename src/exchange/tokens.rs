//! Tokens handed out: valid now, and to the right user and route alone.

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use moka::future::Cache;
use oauth2::{ClientId, RefreshToken, RevocationUrl, StandardRevocableToken, TokenUrl, basic::BasicErrorResponseType};
use tokio::time::{sleep, timeout};
use tokio_util::task::TaskTracker;

use super::{
    deadlines::Deadlines,
    discovery::Discovery,
    oauth::{OAuthClient, OAuthHttp, failure},
    records::TokenRecord,
    token_answer::{GrantedToken, TokenAnswer},
};
use crate::{
    contract::tokens::{AccessToken, TokenError, TokenOwner, UpstreamTokens},
    model::{
        clock::{Clock, UnixTime},
        secret::random,
        trace::Trace,
    },
    net::outgoing::Outgoing,
    store::{
        backend::Holder,
        error::{OpenError, StoreError},
        keys::{Issuer, Resource, RouteKey, TokenKey},
        open::Opened,
        seal::UnsealError,
        vault::{Place, Vault},
    },
    telemetry::{audit, metrics::Metrics},
};

/// A token with no more than this left, or than a quarter of its life, is refreshed in the background, in seconds.
const AHEAD: u64 = 60;
/// A token with no more than this left is not handed out any more, in seconds: it would end on its way.
const TOO_LATE: u64 = 5;
const POLL: Duration = Duration::from_millis(50);

/// How long a revocation is waited for: nothing depends on its answer.
const REVOCATION: Duration = Duration::from_secs(3);
/// How many refreshes may be remembered, and for how long what one came to stands.
const REFRESHES: u64 = 10_000;
const REFRESH_STANDS: Duration = Duration::from_secs(1);

/// The tokens of this process's store.
#[derive(Clone)]
pub struct Tokens {
    pub discovery: Discovery,
    pub outgoing: Outgoing,
    pub vault: Arc<Vault>,
    pub clock: Clock,
    pub metrics: Arc<Metrics>,
    /// What goes on when its caller goes away, and what shutdown waits for.
    pub calls: TaskTracker,
    pub deadlines: Deadlines,
    /// The refreshes under way in this process, each of which many may wait for.
    refreshes: Cache<TokenKey, Refreshing>,
}

/// A refresh under way, or what one came to.
#[derive(Clone)]
struct Refreshing {
    outcome: Shared<BoxFuture<'static, Result<(), TokenError>>>,
    ended: Arc<OnceLock<Instant>>,
}

impl Refreshing {
    fn is_past(&self) -> bool {
        self.ended.get().is_some_and(|ended| ended.elapsed() > REFRESH_STANDS)
    }
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
    fn replaces(&self, old: &Self, now: UnixTime) -> bool {
        self.record.access_token != old.record.access_token && !self.record.is_over(now)
    }
}

impl TokenRecord {
    /// Whether it is where its own user, client, issuer and resource say: an index can be made to point elsewhere.
    fn is_of(&self, owner: &TokenOwner, key: &TokenKey) -> bool {
        TokenKey::of(&owner.user, &owner.client_id, Issuer(&self.issuer), Resource(&self.resource)) == *key
    }

    fn left(&self, now: UnixTime) -> u64 {
        self.expires_at.map_or(u64::MAX, |expires_at| expires_at.since(now))
    }

    fn is_over(&self, now: UnixTime) -> bool {
        self.left(now) <= TOO_LATE
    }

    /// Whether it is time to renew it; one that cannot be renewed is never old.
    fn is_old(&self, now: UnixTime) -> bool {
        let life = self.expires_at.map_or(u64::MAX, |expires_at| expires_at.since(self.issued_at));
        self.refresh_token.is_some() && self.left(now) <= AHEAD.min(life / 4)
    }
}

#[async_trait]
impl UpstreamTokens for Tokens {
    async fn upstream_token(&self, owner: TokenOwner, _: &Trace) -> Result<AccessToken, TokenError> {
        let mut stored = self.stored(&owner).await?;
        if self.discovery.known(&owner.upstream).await.is_some_and(|issuer| issuer != stored.record.issuer) {
            return Err(TokenError::NotFound);
        }
        let now = (self.clock)();
        if stored.record.is_over(now) {
            self.refreshed(&owner, &stored).await?;
            stored = self.stored(&owner).await?;
        } else if stored.record.is_old(now) {
            let (this, old) = (self.clone(), stored.clone());
            self.calls.spawn(async move {
                // It still has time: whoever asks when it has none is told what came of this.
                let _ = this.refreshed(&owner, &old).await;
            });
        }
        Ok(AccessToken { secret: stored.record.access_token.clone(), expires_at: stored.record.expires_at })
    }

    async fn disconnect(&self, owner: TokenOwner, _: &Trace) -> Result<(), TokenError> {
        let Stored { key, route, record, .. } = match self.stored(&owner).await {
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
        audit::event("revoked", &owner.user, owner.client_id.as_str(), &record.issuer, None, outcome);
        Ok(())
    }
}

impl Tokens {
    pub fn new(discovery: Discovery, outgoing: Outgoing, vault: Vault, deadlines: Deadlines) -> Self {
        Self {
            discovery,
            outgoing,
            vault: Arc::new(vault),
            clock: UnixTime::now,
            metrics: Arc::default(),
            calls: TaskTracker::new(),
            deadlines,
            // One that a bug ended without a word does not stay for ever.
            refreshes: Cache::builder().max_capacity(REFRESHES).time_to_live(deadlines.claim * 2).build(),
        }
    }

    pub(super) async fn open(&self) -> Result<&Opened, OpenError> {
        self.vault.open().await.inspect_err(|error| tracing::error!(%error, "the store cannot be opened"))
    }

    /// The record as it is stored, over or not: for who looks into a store.
    ///
    /// # Errors
    /// [`TokenError::Unavailable`] where the store cannot say.
    pub async fn record(&self, owner: &TokenOwner) -> Result<Option<TokenRecord>, TokenError> {
        match self.stored(owner).await {
            Ok(stored) => Ok(Some(stored.record)),
            Err(TokenError::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether the authorization server took it; none where it does not offer that.
    async fn revoke(&self, record: &TokenRecord) -> Option<bool> {
        let url = RevocationUrl::new(record.revocation_endpoint.clone()?).ok()?;
        let client = OAuthClient::new(ClientId::new(record.client_id.to_string())).set_revocation_url(url);
        // With the refresh token, the access tokens end too (RFC 7009, section 2.1).
        let token = match &record.refresh_token {
            Some(token) => StandardRevocableToken::RefreshToken(RefreshToken::new(token.expose().to_owned())),
            None => {
                StandardRevocableToken::AccessToken(oauth2::AccessToken::new(record.access_token.expose().to_owned()))
            }
        };
        let request = client.revoke_token(token).ok()?;
        Some(request.request_async(&self.http(REVOCATION)).await.is_ok())
    }

    pub(super) fn http(&self, deadline: Duration) -> OAuthHttp {
        OAuthHttp { outgoing: self.outgoing.clone(), deadline }
    }

    /// Refreshes a token once, however many ask for it in this process and in others. Whoever asks waits only so long;
    /// the refresh goes on without them, since a server that rotates tokens has rotated by then.
    async fn refreshed(&self, owner: &TokenOwner, old: &Stored) -> Result<(), TokenError> {
        let begin = async {
            let (this, owner, old, ended) = (self.clone(), owner.clone(), old.clone(), Arc::new(OnceLock::new()));
            let ends = Arc::clone(&ended);
            let task = self.calls.spawn(async move {
                let result = this.claim_and_refresh(&owner, &old).await;
                // It is set once.
                let _ = ends.set(Instant::now());
                result
            });
            let outcome = task.map(|result| result.unwrap_or(Err(TokenError::Unavailable))).boxed().shared();
            Refreshing { outcome, ended }
        };
        let refreshing = self.refreshes.entry(old.key).or_insert_with_if(begin, Refreshing::is_past).await;
        timeout(self.deadlines.patience, refreshing.into_value().outcome).await.unwrap_or(Err(TokenError::Unavailable))
    }

    async fn claim_and_refresh(&self, owner: &TokenOwner, old: &Stored) -> Result<(), TokenError> {
        let open = self.open().await.map_err(|_| TokenError::Unavailable)?;
        let holder = random().map(Holder).map_err(|_| TokenError::Unavailable)?;
        let deadline = Instant::now() + self.deadlines.claim;
        while !open
            .store
            .claim(old.key, holder, self.deadlines.claim.as_secs())
            .await
            .map_err(|error| unavailable(&error))?
        {
            // Another process is at it. What it brings is as good.
            sleep(POLL).await;
            if self.stored(owner).await?.replaces(old, (self.clock)()) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(TokenError::Unavailable);
            }
        }
        let result = match self.stored(owner).await {
            Ok(stored) if stored.replaces(old, (self.clock)()) => Ok(()),
            Ok(stored) => self.refresh(owner, stored).await,
            Err(error) => Err(error),
        };
        if let Err(error) = open.store.release(old.key, holder).await {
            tracing::warn!(%error, "a claim stays until it ends by itself");
        }
        result
    }

    /// With the claim in hand. The rotated token is stored before anybody is given the access token that came with it.
    async fn refresh(&self, owner: &TokenOwner, stored: Stored) -> Result<(), TokenError> {
        let Stored { key, route, sealed: old, record } = stored;
        let open = self.open().await.map_err(|_| TokenError::Unavailable)?;
        let audit = |outcome| {
            self.metrics.refreshed(outcome);
            audit::event("refreshed", &owner.user, owner.client_id.as_str(), &record.issuer, None, outcome);
        };
        let Some(refresh_token) = record.refresh_token.clone() else {
            // It is over, and nothing can renew it.
            open.store.remove_token(key, route, Some(old)).await.map_err(|error| unavailable(&error))?;
            audit("ended");
            return self.stored(owner).await.map(drop);
        };
        let token_url = TokenUrl::new(record.token_endpoint.clone()).map_err(|_| TokenError::NotFound)?;
        let client = OAuthClient::new(ClientId::new(record.client_id.to_string())).set_token_uri(token_url);
        let http = self.http(self.deadlines.token_endpoint);
        let answer: Result<TokenAnswer, _> = client
            .exchange_refresh_token(&RefreshToken::new(refresh_token.expose().to_owned()))
            .add_extra_param("resource", &record.resource)
            .request_async(&http)
            .await;
        let answer = answer.map_err(|error| {
            let ended = matches!(&error, oauth2::RequestTokenError::ServerResponse(answer) if matches!(
                answer.error(),
                BasicErrorResponseType::InvalidGrant | BasicErrorResponseType::UnauthorizedClient
            ));
            (ended, failure(&error))
        });
        let granted = answer.and_then(|answer| answer.granted().map_err(|reason| (false, reason.to_owned())));
        let GrantedToken { access_token, refresh_token: rotated, expires_in, scope, unread } = match granted {
            Ok(granted) => granted,
            Err((true, _)) => {
                open.store.remove_token(key, route, Some(old)).await.map_err(|error| unavailable(&error))?;
                audit("ended");
                return self.stored(owner).await.map(drop);
            }
            Err((false, reason)) => {
                tracing::warn!(issuer = record.issuer, client_id = %record.client_id, reason, "the refresh failed");
                audit("failed");
                return Err(TokenError::Unavailable);
            }
        };
        note_unread(&record.issuer, &unread);
        let now = (self.clock)();
        let fresh = TokenRecord {
            access_token,
            refresh_token: rotated.or(Some(refresh_token)),
            issued_at: now,
            expires_at: expires_in.map(|lifetime| now + lifetime),
            scope: scope.or_else(|| record.scope.clone()),
            ..record.clone()
        };
        let sealed = open.seal(Place::Token(&key), &fresh).ok_or(TokenError::Unavailable)?;
        if !open.store.replace_token(key, old, sealed).await.map_err(|error| unavailable(&error))? {
            // Somebody disconnected meanwhile, or connected anew: what came is not to stay valid.
            let outcome = self.revoke(&fresh).await;
            tracing::info!(issuer = record.issuer, revoked = outcome == Some(true), "changed while refreshing");
            return self.stored(owner).await.map(drop);
        }
        audit("ok");
        Ok(())
    }

    /// What a route's index points at, opened. A record that was moved from elsewhere does not open, and is nobody's.
    async fn stored(&self, owner: &TokenOwner) -> Result<Stored, TokenError> {
        let open = self.open().await.map_err(|_| TokenError::Unavailable)?;
        let route = RouteKey::of(&owner.user, &owner.client_id, &owner.upstream.url);
        let found = open.store.token(route).await.map_err(|error| unavailable(&error))?;
        let (key, sealed) = found.ok_or(TokenError::NotFound)?;
        match open.unseal::<TokenRecord>(Place::Token(&key), &sealed) {
            Ok((record, stale)) if record.is_of(owner, &key) => {
                let mut sealed = sealed;
                if stale && let Some(anew) = open.seal(Place::Token(&key), &record) {
                    // Under the first key, so that the old one can go. If it fails, the next reading tries again.
                    if let Ok(true) = open.store.replace_token(key, sealed.clone(), anew.clone()).await {
                        sealed = anew;
                    }
                }
                Ok(Stored { key, route, sealed, record })
            }
            Ok(_) | Err(UnsealError::DoesNotOpen) => {
                audit::event("isolation_violation", &owner.user, owner.client_id.as_str(), "", None, "refused");
                Err(TokenError::NotFound)
            }
            Err(error) => {
                tracing::error!(%error, "a stored token cannot be opened");
                Err(TokenError::Unavailable)
            }
        }
    }
}

fn unavailable(error: &StoreError) -> TokenError {
    tracing::error!(%error, "the store failed");
    TokenError::Unavailable
}

/// Says which members of an answer count as not said.
pub(super) fn note_unread(issuer: &str, unread: &[&'static str]) {
    if !unread.is_empty() {
        tracing::warn!(issuer, members = unread.join(", "), "members of the token endpoint's answer cannot be read");
    }
}
