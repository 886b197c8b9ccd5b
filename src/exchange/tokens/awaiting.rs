//! Tokens that are waited for: the store is looked at for all in this process who wait for one, and only while they do.

use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::{Tokens, errors::unavailable, stored::Stored, waits::Counted};
use crate::{
    contract::tokens::{LONGEST_WAIT, LastSeen, TokenError, TokenOwner},
    store::{backend::Kept, keys::RouteKey, open::Opened},
};

/// How often the store is looked at. A token may come by any process that shares it, and is to be seen within a second.
const POLL: Duration = Duration::from_millis(500);

impl Tokens {
    /// A token that is valid now, or that comes within `longest`. Of all who wait for it, each has a time of its own, and
    /// the last who leaves ends the looking.
    pub(super) async fn awaited(&self, owner: &TokenOwner, longest: Duration) -> Result<Stored, TokenError> {
        let (last, arrival) = self.waits.join(owner, |last| {
            let (this, owner) = (self.clone(), owner.clone());
            async move { this.arrival(&owner, &last).await }
        });
        let late = || last.error("the store did not say in time whether there is a token");
        timeout(longest.min(LONGEST_WAIT), arrival).await.unwrap_or_else(|_| Err(late()))
    }

    /// A token, as soon as there is one. What the store has is compared as it is sealed: it is opened, and said to be of
    /// the route or not, only when it is another than before.
    async fn arrival(&self, owner: &TokenOwner, last: &LastSeen) -> Result<Stored, TokenError> {
        let _counted = Counted::new(&self.metrics);
        let open = self.opened().await?;
        let route = RouteKey::of(&owner.user, &owner.client_id, &owner.upstream.url);
        loop {
            // Before the closer look, so that what changes after that is not missed.
            let there = sealed(open, route).await?;
            match self.current(owner).await {
                Err(TokenError::NotFound(missing)) => last.set(missing),
                found => return found,
            }
            sleep(POLL).await;
            while sealed(open, route).await? == there {
                sleep(POLL).await;
            }
        }
    }
}

/// What a route's index points at. Where the store fails, so does the wait, at once: what it would bring is not known,
/// and nobody asks a store that comes back for all of them.
async fn sealed(open: &Opened, route: RouteKey) -> Result<Option<Kept>, TokenError> {
    let found = open.store.token(route).await.map_err(|error| unavailable(&error))?;
    Ok(found.map(|found| found.kept))
}
