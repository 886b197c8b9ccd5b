//! What becomes of a token that the upstream refused.

use super::{Tokens, errors::can_be_audited, stored::Occasion};
use crate::{
    contract::tokens::{Refused, Renewal, TokenError, TokenOwner},
    telemetry::audit,
};

impl Tokens {
    pub(super) async fn was_refused(&self, owner: &TokenOwner, refused: Refused) -> Result<Renewal, TokenError> {
        let stored = self.of_route(owner).await?;
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
        self.refreshed(owner, &stored, Occasion::Refused).await?;
        // What came may be over by now, or be refused in its turn; that is for the next call to say.
        self.stored(owner).await.map(|_| Renewal::Renewed)
    }
}
