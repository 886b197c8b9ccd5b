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
use oauth2::{RefreshToken, RevocationUrl, StandardRevocableToken, TokenUrl};
use tokio::time::{sleep, timeout};
use tokio_util::task::TaskTracker;

use super::{
    deadlines::Deadlines,
    discovery::Discovery,
    oauth::{OAuthClient, OAuthHttp, Verdict, failure},
    records::TokenRecord,
    token_answer::{GrantedToken, TokenAnswer},
};
use crate::{
    contract::{
        error::Cause,
        tokens::{AccessToken, Missing, Refused, Renewal, TOO_LATE, TokenError, TokenOwner, TokenTag, UpstreamTokens},
    },
    model::{
        client::ClientId,
        clock::{Clock, UnixTime},
        issuer::is_same,
        secret::{NoRandomness, random},
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
    telemetry::{audit, metrics::Metrics, traces::covered},
};

/// A token with no more than this left, or than a quarter of its life, is refreshed in the background, in seconds.
const AHEAD: u64 = 60;
const POLL: Duration = Duration::from_millis(50);
/// How often, and with which pause, a store that fails is asked to keep what a token endpoint gave.
const STORE_TRIES: u32 = 8;
const STORE_PAUSE: Duration = Duration::from_millis(500);

/// How long a revocation is waited for: nothing depends on its answer.
const REVOCATION: Duration = Duration::from_secs(3);
/// After a refresh that failed, the next is not tried for this long, doubling up to the second.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// The longest that a server's `retry-after` is heeded.
const LONGEST_ASKED_FOR: Duration = Duration::from_secs(600);
/// How often a server must have refused, and over which time, until the grant is taken for over.
const REFUSALS: u32 = 3;
const DEAD_AFTER: Duration = Duration::from_secs(120);
/// After this long without one, in seconds, a refusal is the first again.
const FORGIVEN: u64 = 1200;
/// For how long a failure is remembered.
const REMEMBERED: Duration = Duration::from_secs(3600);
/// How many refreshes may be remembered, and for how long what one came to stands.
const REFRESHES: u64 = 10_000;
const REFRESH_STANDS: Duration = Duration::from_secs(1);

const NEVER: TokenError = TokenError::NotFound(Missing::Never);
const LOST: TokenError = TokenError::NotFound(Missing::Lost);
const ENDED_EARLY: TokenError =
    TokenError::Unavailable(Cause::Borrowed("the call ended early: a fault of envoy-cimd itself"));

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
    /// For how long a server must have refused, without a word that ends the grant, until it is taken for over.
    pub dead_after: Duration,
    /// The refreshes under way in this process, by the token that is refreshed: many may wait for each.
    refreshes: Cache<(TokenKey, Option<TokenTag>), Refreshing>,
    /// Those that failed lately.
    setbacks: Cache<TokenKey, Setback>,
}

/// A refresh that failed.
#[derive(Clone)]
struct Setback {
    /// When the next may be tried.
    until: Instant,
    pause: Duration,
    /// When the first of the refusals in a row was, and how many there were.
    refused: Option<(Instant, u32)>,
    /// What was heard.
    reason: String,
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

/// Why a token is refreshed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Occasion {
    /// It is over, or soon will be.
    Over,
    /// The upstream refused it.
    Refused,
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
    /// Itself, where its grant has not ended.
    fn granted(self) -> Result<Self, TokenError> {
        if self.record.ended { Err(LOST) } else { Ok(self) }
    }

    /// Whether somebody refreshed it since, to something that can be handed out.
    fn replaces(&self, old: &Self, now: UnixTime) -> bool {
        self.record.access_token != old.record.access_token && !self.record.is_over(now)
    }
}

impl TokenRecord {
    /// Whether it is where its own user, client, issuer and resource say: an index can be made to point elsewhere.
    fn is_of(&self, owner: &TokenOwner, key: &TokenKey) -> bool {
        let made = |of: fn(&_, &_, Issuer<'_>, Resource<'_>) -> TokenKey| {
            of(&owner.user, &owner.client_id, Issuer(&self.issuer), Resource(&self.resource))
        };
        made(TokenKey::of) == *key || made(TokenKey::as_spelled) == *key
    }

    fn left(&self, now: UnixTime) -> u64 {
        self.expires_at.map_or(u64::MAX, |expires_at| expires_at.since(now))
    }

    fn is_over(&self, now: UnixTime) -> bool {
        self.left(now) <= TOO_LATE
    }

    /// Whether the last token was refused so short a while ago that another refresh would not help: a minute, doubling to
    /// ten. A time to come is a clock that was set back, and says nothing.
    fn was_refused_lately(&self, now: UnixTime) -> bool {
        self.refused.is_some_and(|(last, count)| {
            let pause = 60_u64.saturating_mul(1 << count.saturating_sub(1).min(4)).min(600);
            last <= now && now.since(last) < pause
        })
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
        let mut stored = self.of_route(&owner).await?;
        let now = (self.clock)();
        if stored.record.is_over(now) {
            self.refreshed(&owner, &stored, Occasion::Over).await?;
            stored = self.stored(&owner).await?;
        } else if stored.record.is_old(now) {
            let (this, old) = (self.clone(), stored.clone());
            self.calls.spawn(async move {
                // It still has time: whoever asks when it has none is told what came of this.
                let _ = this.refreshed(&owner, &old, Occasion::Over).await;
            });
        }
        Ok(AccessToken {
            secret: stored.record.access_token.clone(),
            tag: stored.record.tag.ok_or_else(|| no_randomness(NoRandomness))?,
            expires_at: stored.record.expires_at,
        })
    }

    async fn refused(&self, owner: TokenOwner, refused: Refused, _: &Trace) -> Result<Renewal, TokenError> {
        let stored = self.of_route(&owner).await?;
        if stored.record.tag != Some(refused.tag) {
            return Ok(Renewal::Renewed);
        }
        can_be_audited()?;
        let is_too_soon = stored.record.was_refused_lately((self.clock)());
        let (client_id, outcome) = (owner.client_id.as_str(), if is_too_soon { "too_soon" } else { "refreshing" });
        audit::event("refused_token", &owner.user, client_id, &stored.record.issuer, None, outcome).await;
        if is_too_soon {
            return Ok(Renewal::TooSoon);
        }
        self.refreshed(&owner, &stored, Occasion::Refused).await?;
        // What came may be over by now, or be refused in its turn; that is for the next call to say.
        self.stored(&owner).await.map(|_| Renewal::Renewed)
    }

    async fn disconnect(&self, owner: TokenOwner, _: &Trace) -> Result<(), TokenError> {
        let this = self.clone();
        // A task of its own: what was forgotten is to be revoked as well, whoever left.
        let ending = self.calls.spawn(covered(async move { this.forget(&owner).await }));
        ending.await.unwrap_or(Err(ENDED_EARLY))
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
            dead_after: DEAD_AFTER,
            setbacks: Cache::builder().max_capacity(REFRESHES).time_to_live(REMEMBERED).build(),
            // One that a bug ended without a word does not stay for ever.
            refreshes: Cache::builder().max_capacity(REFRESHES).time_to_live(deadlines.claim * 2).build(),
        }
    }

    pub(super) async fn open(&self) -> Result<&Opened, OpenError> {
        self.vault.open().await.inspect_err(|error| tracing::error!(%error, "the store cannot be opened"))
    }

    /// As [`Self::open`], for who asks for a token.
    async fn opened(&self) -> Result<&Opened, TokenError> {
        let unavailable = |error| TokenError::Unavailable(format!("the store cannot be opened: {error}").into());
        self.open().await.map_err(unavailable)
    }

    /// The record as it is stored, over or not, where its grant has not ended: for who looks into a store.
    ///
    /// # Errors
    /// [`TokenError::Unavailable`] where the store cannot say.
    pub async fn record(&self, owner: &TokenOwner) -> Result<Option<TokenRecord>, TokenError> {
        match self.stored(owner).await {
            Ok(stored) => Ok(Some(stored.record)),
            Err(TokenError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Stores what a flow brought. What this user had of this route before is forgotten; it is revoked only where it is
    /// another authorization server's, since revoking may end the whole grant (RFC 7009, section 2.1).
    ///
    /// # Errors
    /// Where it cannot be stored.
    pub(super) async fn put(&self, owner: &TokenOwner, record: &TokenRecord) -> Result<(), StoreError> {
        let failed = |reason: &str| StoreError::Failed(reason.to_owned());
        let open = self.open().await.map_err(|error| failed(&error.to_string()))?;
        let key = TokenKey::of(&owner.user, &owner.client_id, Issuer(&record.issuer), Resource(&record.resource));
        let route = RouteKey::of(&owner.user, &owner.client_id, &owner.upstream.url);
        let sealed = open.seal(Place::Token(&key), record).ok_or_else(|| failed("the token cannot be sealed"))?;
        let replaced = persistently(|| open.store.put_token(key, route, sealed.clone())).await?;
        self.setbacks.invalidate(&key).await;
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

    /// Forgets what this owner has, and revokes it.
    async fn forget(&self, owner: &TokenOwner) -> Result<(), TokenError> {
        can_be_audited()?;
        let open = self.opened().await?;
        loop {
            let Stored { key, route, sealed, record } = match self.found(owner).await {
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
    async fn end_grant(&self, owner: &TokenOwner, record: &TokenRecord) {
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
        let client = OAuthClient::new(oauth2::ClientId::new(record.client_id.to_string())).set_revocation_url(url);
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

    pub(super) fn http(&self, client_id: &ClientId, deadline: Duration) -> OAuthHttp {
        OAuthHttp { outgoing: self.outgoing.for_route(client_id), deadline }
    }

    /// Refreshes a token once, however many ask for it in this process and in others. Whoever asks waits only so long;
    /// the refresh goes on without them, since a server that rotates tokens has rotated by then.
    async fn refreshed(&self, owner: &TokenOwner, old: &Stored, occasion: Occasion) -> Result<(), TokenError> {
        can_be_audited()?;
        if let Some(setback) = self.setbacks.get(&old.key).await.filter(|setback| Instant::now() < setback.until) {
            let cause = format!("the last refresh failed, and the next is not due yet: {}", setback.reason);
            return Err(TokenError::Unavailable(cause.into()));
        }
        let begin = async {
            let (this, owner, old, ended) = (self.clone(), owner.clone(), old.clone(), Arc::new(OnceLock::new()));
            let ends = Arc::clone(&ended);
            let task = self.calls.spawn(async move {
                let result = this.claim_and_refresh(&owner, &old, occasion).await;
                // It is set once.
                let _ = ends.set(Instant::now());
                result
            });
            let outcome = task.map(|result| result.unwrap_or(Err(ENDED_EARLY))).boxed().shared();
            Refreshing { outcome, ended }
        };
        let refreshing =
            self.refreshes.entry((old.key, old.record.tag)).or_insert_with_if(begin, Refreshing::is_past).await;
        let patience = self.deadlines.patience;
        timeout(patience, refreshing.into_value().outcome).await.unwrap_or_else(|_| {
            let cause = format!("the refresh did not end within {} s, and goes on", patience.as_secs());
            Err(TokenError::Unavailable(cause.into()))
        })
    }

    async fn claim_and_refresh(&self, owner: &TokenOwner, old: &Stored, occasion: Occasion) -> Result<(), TokenError> {
        let open = self.opened().await?;
        let holder = random().map(Holder).map_err(no_randomness)?;
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
                return Err(TokenError::Unavailable("the refresh of another process did not end".into()));
            }
        }
        let result = match self.stored(owner).await {
            Ok(stored) if stored.replaces(old, (self.clock)()) => Ok(()),
            Ok(stored) => self.refresh(owner, stored, occasion).await,
            Err(error) => Err(error),
        };
        if let Err(error) = open.store.release(old.key, holder).await {
            tracing::warn!(%error, "a claim stays until it ends by itself");
        }
        result
    }

    /// Notes that a refresh brought nothing, so that the next is not tried at once. True where the grant is over: the
    /// server says so, or has refused for minutes whatever it calls that.
    async fn set_back(&self, key: TokenKey, verdict: Verdict, reason: &str) -> bool {
        let now = Instant::now();
        let last = self.setbacks.get(&key).await;
        let pause = last.as_ref().map_or(SHORTEST_PAUSE, |last| (last.pause * 2).min(LONGEST_PAUSE));
        let asked_for = match verdict {
            Verdict::Ended => return true,
            Verdict::Refused => Duration::ZERO,
            Verdict::Unknown(asked_for) => asked_for.unwrap_or_default().min(LONGEST_ASKED_FOR),
        };
        // What says nothing of the grant does not count for it, nor against it.
        let refused = last.and_then(|last| last.refused);
        let refused = match (verdict, refused) {
            (Verdict::Refused, None) => Some((now, 1)),
            (Verdict::Refused, Some((first, count))) => Some((first, count + 1)),
            (_, refused) => refused,
        };
        let over = matches!(refused, Some((first, count)) if count >= REFUSALS && first.elapsed() >= self.dead_after);
        let setback = Setback { until: now + pause.max(asked_for), pause, refused, reason: reason.to_owned() };
        self.setbacks.insert(key, setback).await;
        over && verdict == Verdict::Refused
    }

    /// With the claim in hand. The rotated token is stored before anybody is given the access token that came with it.
    async fn refresh(&self, owner: &TokenOwner, stored: Stored, occasion: Occasion) -> Result<(), TokenError> {
        let Stored { key, sealed: old, record, .. } = stored;
        let audit = async |outcome| {
            self.metrics.refreshed(outcome);
            audit::event("refreshed", &owner.user, owner.client_id.as_str(), &record.issuer, None, outcome).await;
        };
        let Some(refresh_token) = record.refresh_token.clone() else {
            // It is over, and nothing can renew it.
            self.end(key, old, &record).await?;
            audit("ended").await;
            return self.stored(owner).await.map(drop);
        };
        let token_url = TokenUrl::new(record.token_endpoint.clone()).map_err(|_| LOST)?;
        let tag = TokenTag(random().map_err(no_randomness)?);
        let client = OAuthClient::new(oauth2::ClientId::new(record.client_id.to_string())).set_token_uri(token_url);
        let http = self.http(&record.client_id, self.deadlines.token_endpoint);
        let answer: Result<TokenAnswer, _> = client
            .exchange_refresh_token(&RefreshToken::new(refresh_token.expose().to_owned()))
            .add_extra_param("resource", &record.resource)
            .request_async(&http)
            .await;
        let granted = answer
            .map_err(|error| (Verdict::of_failure(&error), failure(&error)))
            .and_then(|answer| answer.granted().map_err(|reason| (Verdict::Unknown(None), reason.to_owned())));
        let granted = match granted {
            Ok(granted) => granted,
            Err((verdict, reason)) => {
                tracing::warn!(issuer = record.issuer, client_id = %record.client_id, reason, "the refresh failed");
                if !self.set_back(key, verdict, &reason).await {
                    audit("failed").await;
                    return Err(TokenError::Unavailable(format!("the refresh failed: {reason}").into()));
                }
                self.end(key, old, &record).await?;
                audit("ended").await;
                return self.stored(owner).await.map(drop);
            }
        };
        self.setbacks.invalidate(&key).await;
        note_unread(&record.issuer, &granted.unread);
        let now = (self.clock)();
        let expires_at = granted.expires_at(now);
        let GrantedToken { access_token, refresh_token: rotated, scope, .. } = granted;
        let refused = match (occasion, record.refused) {
            (Occasion::Over, refused) => refused,
            (Occasion::Refused, Some((last, count))) if now.since(last) < FORGIVEN => {
                Some((now, count.saturating_add(1)))
            }
            (Occasion::Refused, _) => Some((now, 1)),
        };
        let fresh = TokenRecord {
            access_token,
            refresh_token: rotated.or(Some(refresh_token)),
            issued_at: now,
            expires_at,
            tag: Some(tag),
            refused,
            scope: scope.or_else(|| record.scope.clone()),
            ..record.clone()
        };
        match self.replace(key, old, &fresh).await {
            Ok(true) => {
                audit("ok").await;
                Ok(())
            }
            Ok(false) => {
                // Somebody disconnected meanwhile, or connected anew: what came is not to stay valid.
                audit("superseded").await;
                self.end_grant(owner, &fresh).await;
                self.stored(owner).await.map(drop)
            }
            Err(error) => {
                audit("not_stored").await;
                Err(unavailable(&error))
            }
        }
    }

    /// Remembers that a grant ended, in the place of its token; until this user connects anew or disconnects. Where
    /// somebody did meanwhile, nothing is done.
    async fn end(&self, key: TokenKey, old: Vec<u8>, record: &TokenRecord) -> Result<(), TokenError> {
        let ended = record.ended((self.clock)());
        self.replace(key, old, &ended).await.map(drop).map_err(|error| unavailable(&error))
    }

    /// Stores what a refresh brought in the place of `old`. False where that is not there any more.
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

    /// As [`Self::stored`]; none where the route's authorization server or resource is another by now.
    async fn of_route(&self, owner: &TokenOwner) -> Result<Stored, TokenError> {
        let found = self.found(owner).await?;
        let TokenRecord { issuer, resource, .. } = &found.record;
        match self.discovery.takes(&owner.client_id, &owner.upstream, issuer, resource).await {
            true => found.granted(),
            false => Err(NEVER),
        }
    }

    /// As [`Self::found`], where its grant has not ended.
    async fn stored(&self, owner: &TokenOwner) -> Result<Stored, TokenError> {
        self.found(owner).await?.granted()
    }

    /// What a route's index points at, opened. A record that was moved from elsewhere does not open, and is nobody's.
    async fn found(&self, owner: &TokenOwner) -> Result<Stored, TokenError> {
        let open = self.opened().await?;
        let route = RouteKey::of(&owner.user, &owner.client_id, &owner.upstream.url);
        let found = open.store.token(route).await.map_err(|error| unavailable(&error))?;
        let (key, sealed) = found.ok_or(NEVER)?;
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
                Ok(Stored { key, route, sealed, record })
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

/// What the store has for this owner is another's.
async fn isolation_violation(owner: &TokenOwner) {
    audit::event("isolation_violation", &owner.user, owner.client_id.as_str(), "", None, "refused").await;
}

/// # Errors
/// Where what comes of it could not be audited. Nothing is done then.
fn can_be_audited() -> Result<(), TokenError> {
    audit::blocked().map_or(Ok(()), |cause| {
        tracing::error!(cause, "no token is refreshed or ended");
        Err(TokenError::Unavailable(cause.into()))
    })
}

fn unavailable(error: &StoreError) -> TokenError {
    tracing::error!(%error, "the store failed");
    TokenError::Unavailable(format!("the store failed: {error}").into())
}

fn no_randomness(error: NoRandomness) -> TokenError {
    TokenError::Unavailable(error.to_string().into())
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

/// Says which members of an answer count as not said.
pub(super) fn note_unread(issuer: &str, unread: &[&'static str]) {
    if !unread.is_empty() {
        tracing::warn!(issuer, members = unread.join(", "), "members of the token endpoint's answer cannot be read");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{secret::Secret, shares::ShareLimits, upstream::Upstream, user::User},
        net::outgoing::Config,
        store::{url::StoreUrl, vault},
    };

    fn tokens(dead_after: Duration) -> Tokens {
        let outgoing = Outgoing::new(&Config::default()).expect("a client");
        let store = vault::Config { url: Some(StoreUrl::File("/dev/null/store".into())), ..vault::Config::default() };
        let vault = Vault::new(store).expect("a vault");
        let limits = ShareLimits { in_all: 1, of_user: 1, of_server: 1 };
        let discovery = Discovery::new(outgoing.clone(), limits);
        let tokens = Tokens::new(discovery, outgoing, vault, Deadlines::default());
        Tokens { dead_after, ..tokens }
    }

    /// A record is under its own key alone, or under the one that an earlier version made of its issuer as it was spelled.
    #[test]
    fn a_record_is_where_its_own_parts_say() {
        let owner = TokenOwner {
            user: User::Single,
            client_id: ClientId::new("https://mcp.example.com/.well-known/mcp-client-metadata.json"),
            upstream: Upstream { url: "https://u.example/mcp".to_owned(), authorization_server: None, resource: None },
        };
        let record = |issuer: &str, resource: &str| TokenRecord {
            access_token: Secret::new("t"),
            refresh_token: None,
            issued_at: UnixTime::default(),
            expires_at: None,
            scope: None,
            issuer: issuer.to_owned(),
            token_endpoint: String::new(),
            revocation_endpoint: None,
            resource: resource.to_owned(),
            client_id: owner.client_id.clone(),
            tag: None,
            refused: None,
            ended: false,
        };
        let (issuer, resource) = ("https://as.example/", "https://u.example/mcp");
        let made = |of: fn(&_, &_, Issuer<'_>, Resource<'_>) -> TokenKey, issuer, resource| {
            of(&owner.user, &owner.client_id, Issuer(issuer), Resource(resource))
        };
        let [now, before] = [TokenKey::of, TokenKey::as_spelled].map(|of| made(of, issuer, resource));
        assert_ne!(now, before);
        for key in [now, before] {
            assert!(record(issuer, resource).is_of(&owner, &key));
            assert!(!record("https://as.example/t", resource).is_of(&owner, &key));
            assert!(!record(issuer, "https://u.example").is_of(&owner, &key));
        }
        assert!(record("https://as.example", resource).is_of(&owner, &now), "the same issuer, spelled otherwise");
        assert!(!record("https://as.example", resource).is_of(&owner, &before));
    }

    #[tokio::test]
    async fn a_server_is_left_alone_for_as_long_as_it_asks() {
        let tokens = tokens(DEAD_AFTER);
        let pauses = async |verdicts: &[Verdict]| {
            let key = TokenKey::from_bytes(random().expect("randomness"));
            let mut pauses = Vec::new();
            for verdict in verdicts {
                assert!(!tokens.set_back(key, *verdict, "").await, "nothing ends");
                let until = tokens.setbacks.get(&key).await.expect("a setback").until;
                pauses.push(until.duration_since(Instant::now()).as_secs_f64().ceil() as u64);
            }
            pauses
        };
        let asks = |seconds| Verdict::Unknown(Some(Duration::from_secs(seconds)));
        assert_eq!(pauses(&[Verdict::Unknown(None); 8]).await, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(pauses(&[asks(30), asks(0), asks(1_000_000)]).await, [30, 2, 600]);
        assert_eq!(pauses(&[Verdict::Refused; 3]).await, [1, 2, 4], "three, but not over minutes");
    }

    #[tokio::test]
    async fn a_grant_is_over_after_definite_refusals_alone() {
        use Verdict::{Ended, Refused, Unknown};
        let tokens = tokens(Duration::ZERO);
        for (verdicts, over) in [
            (&[Ended][..], true),
            (&[Refused; 2], false),
            (&[Refused; 3], true),
            (&[Refused, Unknown(None), Refused, Refused], true),
            (&[Refused, Refused, Unknown(None)], false),
            (&[Unknown(None); 20], false),
        ] {
            let key = TokenKey::from_bytes(random().expect("randomness"));
            let mut last = false;
            for verdict in verdicts {
                last = tokens.set_back(key, *verdict, "").await;
            }
            assert_eq!(last, over, "{verdicts:?}");
        }
    }
}
