//! A token renewed, once for all who ask for it.

use std::time::{Duration, Instant};

use oauth2::{RefreshToken, TokenUrl};
use tokio::time::{sleep, timeout};

use super::{
    Tokens,
    errors::{LOST, can_be_audited, no_randomness, unavailable},
    stored::{Occasion, Stored},
};
use crate::{
    contract::tokens::{TokenError, TokenOwner, TokenTag},
    exchange::{
        clients::Gone,
        oauth::{Verdict, failure, refuses_client},
        records::TokenRecord,
        token_answer::{GrantedToken, TokenAnswer},
    },
    model::secret::{Secret, random},
    store::backend::Holder,
    telemetry::audit,
};

/// How often the store is asked whether another process is done.
const POLL: Duration = Duration::from_millis(50);
/// After this long without one, in seconds, a refusal is the first again.
const FORGIVEN: u64 = 1200;

impl Tokens {
    /// Refreshes a token once, however many ask for it in this process and in others. Whoever asks waits only so long;
    /// the refresh goes on without them, since a server that rotates tokens has rotated by then.
    pub(super) async fn refreshed(
        &self,
        owner: &TokenOwner,
        old: &Stored,
        occasion: Occasion,
    ) -> Result<(), TokenError> {
        can_be_audited()?;
        self.setbacks.check(&old.key).await?;
        let (this, whose, stale) = (self.clone(), owner.clone(), old.clone());
        let refresh = async move { this.claim_and_refresh(&whose, &stale, occasion).await };
        let outcome = self.refreshes.one_of(old.key, old.record.tag, &self.calls, refresh).await;
        let patience = self.deadlines.patience;
        timeout(patience, outcome).await.unwrap_or_else(|_| {
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

    /// With the claim in hand. The rotated token is stored before anybody is given the access token that came with it.
    async fn refresh(&self, owner: &TokenOwner, stored: Stored, occasion: Occasion) -> Result<(), TokenError> {
        let record = &stored.record;
        if occasion == Occasion::Refused {
            let (client_id, outcome) = (owner.client_id.as_str(), "refreshing");
            audit::event("refused_token", &owner.user, client_id, &record.issuer, None, outcome).await;
        }
        let Some(refresh_token) = record.refresh_token.clone() else {
            // It is over, and nothing can renew it.
            return self.end(owner, &stored).await;
        };
        let token_url = TokenUrl::new(record.token_endpoint.clone()).map_err(|_| LOST)?;
        let tag = TokenTag(random().map_err(no_randomness)?);
        let granted = match self.ask(record, token_url, &refresh_token).await {
            Ok(granted) => granted,
            Err((verdict, reason)) => {
                tracing::warn!(issuer = record.issuer, client_id = %record.client_id, reason, "the refresh failed");
                if self.setbacks.note(stored.key, verdict, &reason).await {
                    return self.end(owner, &stored).await;
                }
                self.came_to(owner, record, "failed").await;
                return Err(TokenError::Unavailable(format!("the refresh failed: {reason}").into()));
            }
        };
        self.setbacks.forget(&stored.key).await;
        granted.note_unread(&record.issuer);
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
        match self.supersede(owner, &stored, fresh.clone()).await {
            Ok(true) => {
                self.came_to(owner, record, "ok").await;
                Ok(())
            }
            Ok(false) => {
                // Somebody disconnected meanwhile, or connected anew: what came is not to stay valid.
                self.came_to(owner, record, "superseded").await;
                self.end_grant(owner, &fresh).await;
                self.stored(owner).await.map(drop)
            }
            Err(error) => {
                self.came_to(owner, record, "not_stored").await;
                Err(unavailable(&error))
            }
        }
    }

    /// Asks the token endpoint, as the client that the grant was given to.
    ///
    /// # Errors
    /// Why there is no token, and what that says of the grant.
    async fn ask(
        &self,
        record: &TokenRecord,
        token_url: TokenUrl,
        refresh_token: &Secret,
    ) -> Result<GrantedToken, (Verdict, String)> {
        let TokenRecord { acts_as, client_id, issuer, resource, .. } = record;
        let credentials = self.clients.credentials(acts_as, client_id, issuer).map_err(|gone| {
            let verdict = match gone {
                Gone::Removed(_) => Verdict::Unknown(None),
                Gone::Replaced(_) => Verdict::Refused,
            };
            (verdict, gone.to_string())
        })?;
        let http = self.http(client_id, self.deadlines.token_endpoint);
        let answer: Result<TokenAnswer, _> = credentials
            .oauth_client()
            .set_token_uri(token_url)
            .exchange_refresh_token(&RefreshToken::new(refresh_token.expose().to_owned()))
            .add_extra_param("resource", resource)
            .request_async(&http)
            .await;
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                let is_over = refuses_client(&error) && self.client_refused(acts_as, client_id, issuer).await;
                let verdict = if is_over { Verdict::Ended } else { Verdict::of_failure(&error) };
                return Err((verdict, failure(&error)));
            }
        };
        answer.granted().map_err(|reason| (Verdict::Unknown(None), reason.to_owned()))
    }

    /// Remembers that a grant ended, in the place of its token; until this user connects anew or disconnects. Where
    /// somebody did meanwhile, nothing is done. What is there then is what the refresh came to.
    async fn end(&self, owner: &TokenOwner, old: &Stored) -> Result<(), TokenError> {
        let ended = old.record.ended((self.clock)());
        match self.supersede(owner, old, ended).await {
            Ok(_) => {
                self.came_to(owner, &old.record, "ended").await;
                self.stored(owner).await.map(drop)
            }
            Err(error) => {
                self.came_to(owner, &old.record, "not_stored").await;
                Err(unavailable(&error))
            }
        }
    }

    /// Counts a refresh, and has it in the audit log; `outcome` is one of the tables in `docs/operations.md`.
    async fn came_to(&self, owner: &TokenOwner, old: &TokenRecord, outcome: &'static str) {
        self.metrics.refreshed(outcome);
        audit::event("refreshed", &owner.user, owner.client_id.as_str(), &old.issuer, None, outcome).await;
    }
}
