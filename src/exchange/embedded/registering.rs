//! A client registered for a route, by the flow that needs it first: once for all in this process who need it, and for all
//! processes that share the store.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::Embedded;
use crate::{
    contract::error::BeginError,
    exchange::clients::{
        credentials::Credentials,
        registration::Wanted,
        registrations::{Holder, Kept, MAX_ATTEMPTS, Registration},
        under_way::Failure,
    },
    model::{issuer::canonical, secret::random, user::User},
    net::outgoing::error::truncate,
    store::open::Opened,
    telemetry::{audit, traces::covered},
};

/// How long a registration endpoint is waited for. Whoever waits for another process to give up has still time.
const LONGEST: Duration = Duration::from_secs(5);
/// How often the store is asked whether another process is done, and for how long in all.
const POLL: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_secs(15);

impl Embedded {
    /// The client of a route at a server that registers them: the one that there is, or one that is registered now. It is
    /// kept whoever leaves meanwhile, since the server has it by then.
    pub(super) async fn registered(&self, wanted: Wanted, user: &User) -> Result<Credentials, BeginError> {
        let document = wanted.document.clone();
        let key = (wanted.document.clone(), canonical(&wanted.issuer).to_owned(), wanted.redirect_uri.clone());
        let (_, work) = self.registering.join(&key, |_| {
            let this = self.clone();
            let task = self.tokens.calls.spawn(covered(async move { this.find_or_register(&wanted).await }));
            async move { task.await.unwrap_or_else(|_| Err(Failure::Failed("the registration ended early".to_owned()))) }
        });
        let found = work.await;
        if let Err(Failure::Violation(_)) = &found {
            audit::event("isolation_violation", user, document.as_str(), "", None, "refused").await;
        }
        Ok(found?)
    }

    async fn find_or_register(&self, wanted: &Wanted) -> Result<Credentials, Failure> {
        let away = |error| Failure::Away(format!("the store cannot be opened: {error}"));
        let open = self.tokens.open().await.map_err(away)?;
        let holder: Holder = random().map_err(|error| Failure::Failed(error.to_string()))?;
        if let Some(there) = self.claim(open, wanted, holder).await? {
            return Ok(there);
        }
        let (answer, arrived) = self.ask(wanted).await;
        if let Err(why) = &answer {
            let issuer = truncate(wanted.issuer.clone());
            tracing::warn!(client_id = %wanted.document, issuer, why, "no client was registered");
        }
        self.keep(open, wanted, holder, answer, arrived).await.map_err(Failure::after_asking)
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
