//! A client registered for a route, by the flow that needs it first: once for all in this process who need it, and for all
//! processes that share the store.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::{
    clients::{
        credentials::Credentials,
        registration::Wanted,
        registrations::{Holder, Kept, MAX_ATTEMPTS, Registration},
    },
    embedded::Embedded,
};
use crate::{
    contract::error::{BeginError, CallError},
    model::{
        client::{ClientId, RedirectUri},
        issuer::canonical,
        joined::Joined,
        secret::random,
    },
    net::outgoing::error::truncate,
    store::{error::StoreError, open::Opened},
    telemetry::traces::covered,
};

/// How long a registration endpoint is waited for. Whoever waits for another process to give up has still time.
const LONGEST: Duration = Duration::from_secs(5);
/// How often the store is asked whether another process is done, and for how long in all.
const POLL: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_secs(15);

/// The registrations under way in this process.
pub type Registering = Joined<(ClientId, String, RedirectUri), (), Result<Credentials, Failure>>;

/// Why there is no client.
#[derive(Clone, Debug)]
pub enum Failure {
    /// The authorization server did not give one, or may not be asked.
    Unusable(String),
    /// The store, or a fault of our own.
    Failed(String),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        tracing::error!(%error, "the store failed");
        Self::Failed(error.to_string())
    }
}

impl From<Failure> for BeginError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Unusable(why) => Self::AuthorizationServerUnusable(why.into()),
            Failure::Failed(why) => CallError::Failed(why.into()).into(),
        }
    }
}

impl Embedded {
    /// The client of a route at a server that registers them: the one that there is, or one that is registered now. It is
    /// kept whoever leaves meanwhile, since the server has it by then.
    pub(super) async fn registered(&self, wanted: Wanted) -> Result<Credentials, BeginError> {
        let key = (wanted.document.clone(), canonical(&wanted.issuer).to_owned(), wanted.redirect_uri.clone());
        let (_, work) = self.registering.join(&key, |_| {
            let this = self.clone();
            let task = self.tokens.calls.spawn(covered(async move { this.find_or_register(&wanted).await }));
            async move { task.await.unwrap_or_else(|_| Err(Failure::Failed("the registration ended early".to_owned()))) }
        });
        Ok(work.await?)
    }

    async fn find_or_register(&self, wanted: &Wanted) -> Result<Credentials, Failure> {
        let failed = |error: &dyn std::fmt::Display| Failure::Failed(error.to_string());
        let open = self.tokens.open().await.map_err(|error| failed(&error))?;
        let holder: Holder = random().map_err(|error| failed(&error))?;
        if let Some(there) = self.claim(open, wanted, holder).await? {
            return Ok(there);
        }
        let (answer, arrived) = self.ask(wanted).await;
        if let Err(why) = &answer {
            tracing::warn!(client_id = %wanted.document, issuer = truncate(wanted.issuer.clone()), why, "no client was registered");
        }
        self.keep(open, wanted, holder, answer, arrived).await
    }

    /// The client that is there, perhaps since another process was at it; none once this one may register.
    async fn claim(&self, open: &Opened, wanted: &Wanted, holder: Holder) -> Result<Option<Credentials>, Failure> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = (self.tokens.clock)();
            let mut kept = Kept::read(open, &wanted.document).await?;
            if let Some(there) = kept.registrations.usable(&wanted.issuer, &wanted.redirect_uri, now) {
                return Ok(Some(there.clone()));
            }
            if Instant::now() > deadline {
                return Err(Failure::Failed("the registration of another process did not end".to_owned()));
            }
            if kept.registrations.is_claimed(now) {
                sleep(POLL).await;
                continue;
            }
            kept.registrations.claim(holder, now).map_err(|seconds| {
                Failure::Unusable(format!(
                    "{MAX_ATTEMPTS} registrations were asked for on behalf of this route within an hour; the next may be in \
                     {} minutes",
                    seconds.div_ceil(60)
                ))
            })?;
            // Before anything is sent, so that an attempt counts whatever becomes of this process.
            if kept.replace(open).await? {
                return Ok(None);
            }
        }
    }

    /// What the server answers, and whether it may have been reached.
    async fn ask(&self, wanted: &Wanted) -> (Result<Registration, String>, bool) {
        let Some(request) = wanted.request() else {
            return (Err("the registration endpoint's URL makes no request".to_owned()), false);
        };
        match self.tokens.outgoing.for_route(&wanted.document).send_within(LONGEST, request, None).await {
            Ok(answer) => (wanted.registration(&answer, (self.tokens.clock)()), true),
            Err(error) => (Err(format!("the registration endpoint: {error}")), error.may_have_arrived()),
        }
    }

    /// Keeps what came of it, and gives the claim up.
    async fn keep(
        &self,
        open: &Opened,
        wanted: &Wanted,
        holder: Holder,
        answer: Result<Registration, String>,
        arrived: bool,
    ) -> Result<Credentials, Failure> {
        loop {
            let mut kept = Kept::read(open, &wanted.document).await?;
            let now = (self.tokens.clock)();
            if !kept.registrations.is_claimed_by(holder)
                && let Some(theirs) = kept.registrations.usable(&wanted.issuer, &wanted.redirect_uri, now)
            {
                // It took longer than the claim, and another process was faster.
                return Ok(theirs.clone());
            }
            if !arrived {
                kept.registrations.uncount();
            }
            kept.registrations.release(holder);
            if let Ok(registration) = &answer {
                kept.registrations.put(&wanted.issuer, registration.clone());
            }
            if kept.replace(open).await? {
                break;
            }
        }
        let registration = answer.map_err(Failure::Unusable)?;
        let (client_id, issuer) = (&wanted.document, truncate(wanted.issuer.clone()));
        tracing::info!(%client_id, issuer, "a client was registered");
        Ok(registration.credentials)
    }
}
