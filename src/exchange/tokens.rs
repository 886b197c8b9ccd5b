//! Tokens handed out: valid now, and to the right user and route alone.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio_util::task::TaskTracker;

mod awaiting;
mod ending;
mod errors;
mod held;
mod keeping;
mod lookup;
mod refresh;
mod refreshing;
mod refused;
mod setbacks;
mod stored;
mod waits;

use self::{
    errors::{ENDED_EARLY, NEVER, no_randomness, unavailable},
    refreshing::Refreshes,
    setbacks::Setbacks,
    stored::{Occasion, Stored},
    waits::Waits,
};
use super::{
    clients::{Clients, credentials::ActsAs, registrations},
    deadlines::Deadlines,
    discovery::Discovery,
    oauth::OAuthHttp,
    records::TokenRecord,
};
use crate::{
    contract::{
        error::Label,
        tokens::{AccessToken, COMES_AGAIN, Refused, Renewal, TokenError, TokenOwner, UpstreamTokens},
    },
    model::{
        client::ClientId,
        clock::{Clock, UnixTime},
        secret::NoRandomness,
        trace::Trace,
    },
    net::outgoing::Outgoing,
    store::{error::OpenError, keys::RouteKey, open::Opened, vault::Vault},
    telemetry::{audit, metrics::Metrics, traces::covered},
};

/// The tokens of this process's store.
#[derive(Clone)]
pub struct Tokens {
    pub discovery: Discovery,
    pub outgoing: Outgoing,
    pub clients: Clients,
    pub vault: Arc<Vault>,
    pub clock: Clock,
    pub metrics: Arc<Metrics>,
    /// What goes on when its caller goes away, and what shutdown waits for.
    pub calls: TaskTracker,
    pub deadlines: Deadlines,
    refreshes: Refreshes,
    setbacks: Setbacks,
    waits: Waits,
}

#[async_trait]
impl UpstreamTokens for Tokens {
    async fn upstream_token(&self, owner: TokenOwner, _: &Trace) -> Result<AccessToken, TokenError> {
        self.handed_out(&owner, self.current(&owner).await)
    }

    async fn awaited_token(&self, owner: TokenOwner, longest: Duration, _: &Trace) -> Result<AccessToken, TokenError> {
        self.handed_out(&owner, self.awaited(&owner, longest).await)
    }

    async fn expect_again(&self, owner: TokenOwner, _: &Trace) -> Result<(), TokenError> {
        let open = self.opened().await?;
        let (route, now) = (RouteKey::of(&owner.user, &owner.client_id, &owner.upstream.url), (self.clock)());
        let noted =
            open.store.expect_again(route, now + COMES_AGAIN, now).await.map_err(|error| unavailable(&error))?;
        if noted { Ok(()) } else { Err(NEVER) }
    }

    async fn refused(&self, owner: TokenOwner, refused: Refused, _: &Trace) -> Result<Renewal, TokenError> {
        self.was_refused(&owner, refused).await
    }

    async fn disconnect(&self, owner: TokenOwner, _: &Trace) -> Result<(), TokenError> {
        let this = self.clone();
        // A task of its own: what was forgotten is to be revoked as well, whoever left.
        let ending = self.calls.spawn(covered(async move { this.forget(&owner).await }));
        ending.await.unwrap_or(Err(ENDED_EARLY))
    }
}

impl Tokens {
    pub fn new(discovery: Discovery, outgoing: Outgoing, clients: Clients, vault: Vault, deadlines: Deadlines) -> Self {
        Self {
            discovery,
            outgoing,
            clients,
            vault: Arc::new(vault),
            clock: UnixTime::now,
            metrics: Arc::default(),
            calls: TaskTracker::new(),
            deadlines,
            refreshes: Refreshes::new(deadlines.claim),
            setbacks: Setbacks::new(),
            waits: Waits::default(),
        }
    }

    /// A token that is valid now.
    async fn current(&self, owner: &TokenOwner) -> Result<Stored, TokenError> {
        let stored = self.of_route(owner).await?;
        let now = (self.clock)();
        if stored.record.is_over(now) {
            self.refreshed(owner, &stored, Occasion::Over).await?;
            return self.stored(owner).await;
        }
        if stored.record.is_old(now) {
            let (this, owner, old) = (self.clone(), owner.clone(), stored.clone());
            self.calls.spawn(async move {
                // It still has time: whoever asks when it has none is told what came of this.
                let _ = this.refreshed(&owner, &old, Occasion::Over).await;
            });
        }
        Ok(stored)
    }

    /// What whoever asked for a token is given, counted and audited.
    fn handed_out(&self, owner: &TokenOwner, found: Result<Stored, TokenError>) -> Result<AccessToken, TokenError> {
        self.metrics.token_looked_up(found.as_ref().map_or_else(Label::label, |_| "handed_out"));
        let Stored { record: TokenRecord { issuer, access_token, tag, expires_at, .. }, again, .. } = found?;
        let tag = tag.ok_or_else(|| no_randomness(NoRandomness))?;
        audit::detail("handed_out", &owner.user, owner.client_id.as_str(), &issuer, "ok");
        Ok(AccessToken { secret: access_token, tag, expires_at, again })
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
        let record = self.found_record(owner).await.map_err(TokenError::Unavailable)?;
        Ok(record.filter(|record| !record.ended))
    }

    /// What follows where a token endpoint says that it does not know the client: one that was registered is forgotten, so
    /// that the next flow registers another. True where it is that, and what was given to it is over: nobody else's word
    /// than the server's makes such a client good.
    pub(super) async fn client_refused(&self, acts_as: &ActsAs, document: &ClientId, issuer: &str) -> bool {
        let ActsAs::Registered(credentials) = acts_as else { return false };
        let forgotten = match self.open().await {
            Ok(open) => registrations::forget(open, document, issuer, &credentials.client_id).await,
            // It is in the log, and the next flow hears the same.
            Err(_) => return true,
        };
        match forgotten {
            Ok(true) => {
                tracing::warn!(client_id = %document, issuer, "its server forgot the client that was registered")
            }
            Ok(false) => {}
            Err(error) => tracing::error!(%error, "the store failed, and a client that is over stays"),
        }
        true
    }

    pub(super) fn http(&self, client_id: &ClientId, deadline: Duration) -> OAuthHttp {
        OAuthHttp { outgoing: self.outgoing.for_route(client_id), deadline }
    }
}
