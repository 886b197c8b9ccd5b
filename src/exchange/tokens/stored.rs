//! A token as it was found.

use super::errors::LOST;
use crate::{
    contract::tokens::{TOO_LATE, TokenError, TokenOwner},
    exchange::records::TokenRecord,
    model::{clock::UnixTime, issuer::is_same, scope::Scope},
    store::keys::{Issuer, Resource, RouteKey, TokenKey},
};

/// A token with no more than this left, or than a quarter of its life, is refreshed in the background, in seconds.
const AHEAD: u64 = 60;

/// A token as it was found, with what it takes to change it.
#[derive(Clone)]
pub struct Stored {
    pub key: TokenKey,
    pub route: RouteKey,
    /// As it was read, so that nothing newer is changed.
    pub sealed: Vec<u8>,
    pub record: TokenRecord,
    /// Until when its owner's requests may come again.
    pub again: Option<UnixTime>,
}

/// Why a token is refreshed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Occasion {
    /// It is over, or soon will be.
    Over,
    /// The upstream refused it.
    Refused,
}

impl Stored {
    /// Itself, where its grant has not ended.
    pub fn granted(self) -> Result<Self, TokenError> {
        if self.record.ended { Err(LOST) } else { Ok(self) }
    }

    /// Whether it is the token that was found before, whatever was noted beside it since.
    pub fn is_still(&self, old: &Self) -> bool {
        self.key == old.key && self.record.tag == old.record.tag && self.record.ended == old.record.ended
    }

    /// Whether somebody refreshed it since, to something that can be handed out.
    pub fn replaces(&self, old: &Self, now: UnixTime) -> bool {
        self.record.access_token != old.record.access_token && !self.record.is_over(now)
    }
}

impl TokenRecord {
    /// Whether it is where its own user, client, issuer and resource say: an index can be made to point elsewhere.
    pub fn is_of(&self, owner: &TokenOwner, key: &TokenKey) -> bool {
        let made = |of: fn(&_, &_, Issuer<'_>, Resource<'_>) -> TokenKey| {
            of(&owner.user, &owner.client_id, Issuer(&self.issuer), Resource(&self.resource))
        };
        made(TokenKey::of) == *key || made(TokenKey::as_spelled) == *key
    }

    fn left(&self, now: UnixTime) -> u64 {
        self.expires_at.map_or(u64::MAX, |expires_at| expires_at.since(now))
    }

    /// Whether it is not to be handed out any more: it would end on its way.
    pub fn is_over(&self, now: UnixTime) -> bool {
        self.left(now) <= TOO_LATE
    }

    /// Whether the last token was refused so short a while ago that another refresh would not help: a minute, doubling to
    /// ten. A time to come is a clock that was set back, and says nothing.
    pub fn was_refused_lately(&self, now: UnixTime) -> bool {
        self.refused.is_some_and(|(last, count)| {
            let pause = 60_u64.saturating_mul(1 << count.saturating_sub(1).min(4)).min(600);
            last <= now && now.since(last) < pause
        })
    }

    /// What the upstream found missing in it, with what it has; empty where nothing is missing, or it is another issuer's.
    pub fn missing(&self, issuer: &str, now: UnixTime) -> Scope {
        if is_same(&self.issuer, issuer) { self.step_up.asks(&self.granted(), now) } else { Scope::default() }
    }

    /// Whether it is time to renew it; one that cannot be renewed is never old.
    pub fn is_old(&self, now: UnixTime) -> bool {
        let life = self.expires_at.map_or(u64::MAX, |expires_at| expires_at.since(self.issued_at));
        self.refresh_token.is_some() && self.left(now) <= AHEAD.min(life / 4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        exchange::{clients::credentials::ActsAs, step_up::StepUp},
        model::{client::ClientId, secret::Secret, upstream::Upstream, user::User},
    };

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
            since: None,
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
            step_up: StepUp::default(),
            acts_as: ActsAs::Document,
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
}
