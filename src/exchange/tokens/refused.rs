//! What becomes of a token that the upstream refused.

use std::time::Duration;

use tokio::time::timeout;

use super::{
    Tokens,
    errors::{LOST, can_be_audited},
    stored::{Occasion, Stored},
};
use crate::{
    contract::{
        error::{CallError, Label},
        tokens::{Refused, RefusedStatus, Renewal, TokenError, TokenOwner},
    },
    exchange::step_up::Change,
    model::scope::Scope,
    telemetry::audit,
};

/// How long an answer is kept back for where the upstream's authorization server is by now.
const DISCOVERED_WITHIN: Duration = Duration::from_millis(1500);

impl Tokens {
    pub(super) async fn was_refused(&self, owner: &TokenOwner, refused: Refused) -> Result<Renewal, TokenError> {
        let (status, stored) = (refused.status, self.of_route(owner).await);
        let issuer = stored.as_ref().map_or_else(|_| String::new(), |stored| stored.record.issuer.clone());
        let result = match (stored, status) {
            (Err(error), _) => Err(error),
            // A newer one is there, or it is nobody's here.
            (Ok(stored), _) if stored.record.tag != Some(refused.tag) => Ok(Renewal::Renewed),
            (Ok(stored), RefusedStatus::Unauthorized) => self.was_unauthorized(owner, stored, &refused).await,
            (Ok(stored), RefusedStatus::InsufficientScope) => self.was_insufficient(owner, stored, &refused).await,
        };
        let outcome = outcome(&result);
        self.metrics.refused_token(status_code(status), outcome);
        audit::detail("reported", &owner.user, owner.client_id.as_str(), &issuer, outcome);
        result
    }

    /// Refreshes it, and has the upstream looked up anew meanwhile: its authorization server may be another by now, where
    /// no refresh helps. The challenge's `resource_metadata` is not followed: what one person is answered shall not decide
    /// where all are sent, and the look-up reads what the upstream says to whoever comes without a token.
    async fn was_unauthorized(
        &self,
        owner: &TokenOwner,
        stored: Stored,
        refused: &Refused,
    ) -> Result<Renewal, TokenError> {
        can_be_audited()?;
        let now = (self.clock)();
        let discovery = self.discovery.renew(&owner.client_id, &owner.upstream, &owner.user, now).await;
        let renewed = async {
            if stored.record.was_refused_lately(now) {
                return Ok(Renewal::TooSoon);
            }
            self.refreshed(owner, &stored, Occasion::Refused).await.map(|()| Renewal::Renewed)
        };
        let found = async {
            if let Some(discovery) = discovery {
                // What takes longer goes on, and whoever comes next is told what it found.
                let _ = timeout(DISCOVERED_WITHIN, discovery).await;
            }
        };
        let (renewed, ()) = tokio::join!(renewed, found);
        if renewed == Err(LOST) {
            self.note_wanted(owner, refused).await;
        }
        let renewed = renewed?;
        // What came may be over by now, or be refused in its turn; that is for the next call to say. It may also be of a
        // server that is not the upstream's any more.
        self.of_route(owner).await.map(|_| renewed)
    }

    /// What was missing joins what this person's next authorization asks for. The token stays.
    async fn was_insufficient(
        &self,
        owner: &TokenOwner,
        mut stored: Stored,
        refused: &Refused,
    ) -> Result<Renewal, TokenError> {
        let Some(scope) = asked(refused) else { return Ok(Renewal::NoMore) };
        loop {
            let mut step_up = stored.record.step_up.clone();
            match step_up.lacks(&scope, &stored.record.granted(), (self.clock)()) {
                Change::Known => return Ok(Renewal::Connect),
                Change::TooMuch => return Ok(Renewal::NoMore),
                Change::More => {}
            }
            can_be_audited()?;
            if self.note(&stored, step_up).await? {
                let (client_id, issuer) = (owner.client_id.as_str(), &stored.record.issuer);
                audit::event("refused_token", &owner.user, client_id, issuer, None, "insufficient_scope").await;
                return Ok(Renewal::Connect);
            }
            // It was refreshed, or another noted what else is missing.
            stored = self.of_route(owner).await?;
            if stored.record.tag != Some(refused.tag) {
                return Ok(Renewal::Renewed);
            }
        }
    }

    /// What the upstream wants of a person whose grant has ended, for when they connect again: nothing that they were told
    /// depends on it, so where it cannot be noted, the next authorization asks for what it always does.
    async fn note_wanted(&self, owner: &TokenOwner, refused: &Refused) {
        let Some(scope) = asked(refused) else { return };
        while let Ok(stored) = self.found(owner).await {
            let Stored { record, .. } = &stored;
            let mut step_up = record.step_up.clone();
            let is_its_own = record.ended && record.tag == Some(refused.tag);
            if !is_its_own || step_up.wants(&scope, &record.granted(), (self.clock)()) != Change::More {
                return;
            }
            // An error is in the log by now.
            if self.note(&stored, step_up).await != Ok(false) {
                return;
            }
        }
    }

    /// What the upstream of this owner found missing in their token of this issuer, with what that token has; empty where
    /// nothing is missing.
    ///
    /// # Errors
    /// [`CallError::Unavailable`] where the store cannot say.
    pub(in crate::exchange) async fn missing(&self, owner: &TokenOwner, issuer: &str) -> Result<Scope, CallError> {
        let record = self.found_record(owner).await.map_err(CallError::Unavailable)?;
        Ok(record.map(|record| record.missing(issuer, (self.clock)())).unwrap_or_default())
    }
}

fn status_code(status: RefusedStatus) -> &'static str {
    match status {
        RefusedStatus::Unauthorized => "401",
        RefusedStatus::InsufficientScope => "403",
    }
}

/// What a report came to, in a word of the table in `docs/operations.md`.
fn outcome(result: &Result<Renewal, TokenError>) -> &'static str {
    match result {
        Ok(Renewal::Renewed) => "renewed",
        Ok(Renewal::TooSoon) => "too_soon",
        Ok(Renewal::Connect) => "connect",
        Ok(Renewal::NoMore) => "no_more",
        Err(error) => error.label(),
    }
}

/// What an upstream asks for, where it may be asked for: a route's own scope is all that ever is. `offline_access` is
/// nothing that an upstream can ask for: it is asked for wherever the authorization server offers it.
fn asked(refused: &Refused) -> Option<Scope> {
    let scope = Scope::of(refused.scope.as_deref()).asked_of(false);
    let is_allowed = refused.route_scope.as_ref().is_none_or(|all| scope.is_within(all));
    (!scope.is_empty() && scope.fits() && is_allowed).then_some(scope)
}
