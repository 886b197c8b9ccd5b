//! What a person has, for the page that shows it to them: nothing is refreshed, and nothing handed out.

use super::Tokens;
use crate::{
    contract::{
        connection::{ConnectionState, Granted, NextAuthorization},
        error::CallError,
        tokens::TokenOwner,
    },
    exchange::records::TokenRecord,
    model::{clock::UnixTime, scope::Scope},
};

/// What is stored for an owner, read once.
pub(in crate::exchange) struct Held {
    record: Option<TokenRecord>,
    /// Whether it is of the route's authorization server and resource, as far as is known.
    is_of_route: bool,
    now: UnixTime,
}

impl Tokens {
    /// What is stored for an owner, its grant ended or not.
    ///
    /// # Errors
    /// [`CallError::Unavailable`] where the store cannot say.
    pub(in crate::exchange) async fn kept(&self, owner: &TokenOwner) -> Result<Option<TokenRecord>, CallError> {
        self.found_record(owner).await.map_err(CallError::Unavailable)
    }

    /// What that comes to, with what is known of the upstream by now.
    pub(in crate::exchange) async fn held(&self, owner: &TokenOwner, record: Option<TokenRecord>) -> Held {
        let is_of_route = match &record {
            Some(TokenRecord { issuer, resource, .. }) => {
                self.discovery.takes(&owner.client_id, &owner.upstream, issuer, resource).await
            }
            None => false,
        };
        Held { record, is_of_route, now: (self.clock)() }
    }
}

impl Held {
    /// The record, where there is one of the route.
    fn of_route(&self) -> Option<&TokenRecord> {
        self.record.as_ref().filter(|_| self.is_of_route)
    }

    /// The same, where it works or can be renewed, as far as is known here.
    fn current(&self) -> Option<&TokenRecord> {
        let is_dead = |record: &TokenRecord| record.ended || record.is_over(self.now) && record.refresh_token.is_none();
        self.of_route().filter(|record| !is_dead(record))
    }

    pub(in crate::exchange) fn state(&self) -> ConnectionState {
        match (self.current(), self.of_route()) {
            (Some(record), _) => ConnectionState::Connected(Granted {
                since: record.since,
                scope: record.granted(),
                issuer: record.issuer.clone(),
            }),
            (None, Some(_)) => ConnectionState::Lost,
            (None, None) => ConnectionState::Never,
        }
    }

    /// What the upstream found missing in it, as [`Tokens::missing`] says it.
    pub(in crate::exchange) fn missing(&self, issuer: &str) -> Scope {
        self.record.as_ref().map(|record| record.missing(issuer, self.now)).unwrap_or_default()
    }

    /// What of a scope that will be asked for is new to the person. Who holds a refresh token has what `offline_access`
    /// gives, though many a server does not list that in what it granted.
    pub(in crate::exchange) fn next(&self, scope: Scope) -> NextAuthorization {
        let current = self.current();
        let added = current.map(|record| scope.beyond(&record.granted(), record.refresh_token.is_some()));
        NextAuthorization { scope, added: added.unwrap_or_default() }
    }
}
