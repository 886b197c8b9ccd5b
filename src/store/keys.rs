//! What flows and tokens are kept under. What one may do with another's is decided by these, so each is a type of its
//! own, made in one way.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde::Serialize;

use crate::model::{
    client::{ClientId, RedirectUri},
    flow::{BrowserHash, FlowId},
    issuer::canonical,
    secret::tagged_hash,
    user::User,
};

macro_rules! keys {
    ($($(#[$meta:meta])* $name:ident)*) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub struct $name([u8; 32]);

        impl $name {
            /// One that a store gave back.
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
        }
    )*};
}

keys! {
    /// The hash of a flow's id: who reads the store cannot complete a flow.
    FlowKey
    /// The hash of what must be the same when a flow ends: redirect URI, user, browser.
    Context
    /// The hash of a user, for the limit on flows.
    UserKey
    /// The hash of a route's document.
    RegistrationsKey
}

/// The hash of (user, client_id): where a store is on several servers, what is one owner's is on one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Owner([u8; 6]);

impl Owner {
    pub const fn as_bytes(&self) -> &[u8; 6] {
        &self.0
    }
}

macro_rules! keys_of_owners {
    ($($(#[$meta:meta])* $name:ident)*) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub struct $name {
            hash: [u8; 32],
            owner: Owner,
        }

        impl $name {
            /// One that a store gave back, which is to be told [whose](Self::of_owner) it is.
            pub const fn from_bytes(hash: [u8; 32]) -> Self {
                Self { hash, owner: Owner([0; 6]) }
            }

            /// The same key, of which it is known whose it is: in a cluster that says where it lies.
            pub const fn of_owner(self, owner: Owner) -> Self {
                Self { owner, ..self }
            }

            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.hash
            }

            pub const fn owner(&self) -> Owner {
                self.owner
            }
        }
    )*};
}

keys_of_owners! {
    /// The hash of (user, client_id, issuer, resource).
    TokenKey
    /// The hash of (user, client_id, upstream).
    RouteKey
}

impl Owner {
    fn of(user: &User, client_id: &ClientId) -> Self {
        let [a, b, c, d, e, f, ..] = hash("envoy-cimd owner", &(user, client_id));
        Self([a, b, c, d, e, f])
    }
}

impl FlowKey {
    pub fn of(flow_id: &FlowId) -> Self {
        Self(tagged_hash("envoy-cimd flow", &flow_id.0))
    }
}

impl Context {
    pub fn of(redirect_uri: &RedirectUri, user: &User, browser_hash: &BrowserHash) -> Self {
        Self(hash("envoy-cimd context", &(redirect_uri, user, BASE64_URL_SAFE_NO_PAD.encode(browser_hash.0))))
    }
}

impl UserKey {
    pub fn of(user: &User) -> Self {
        Self(hash("envoy-cimd user", user))
    }
}

/// The authorization server that a token is from, as its metadata spells it.
pub struct Issuer<'a>(pub &'a str);
/// What a token is for (RFC 8707).
pub struct Resource<'a>(pub &'a str);

impl TokenKey {
    /// Two spellings of one issuer have one key.
    pub fn of(user: &User, client_id: &ClientId, Issuer(issuer): Issuer<'_>, resource: Resource<'_>) -> Self {
        Self::as_spelled(user, client_id, Issuer(canonical(issuer)), resource)
    }

    /// As versions before this one made it, of the issuer as its metadata spells it: what they stored stays readable.
    pub fn as_spelled(
        user: &User,
        client_id: &ClientId,
        Issuer(issuer): Issuer<'_>,
        Resource(resource): Resource<'_>,
    ) -> Self {
        Self::from_bytes(hash("envoy-cimd token", &(user, client_id, issuer, resource)))
            .of_owner(Owner::of(user, client_id))
    }
}

impl RouteKey {
    /// `upstream` is the upstream's URL, as the operator wrote it.
    pub fn of(user: &User, client_id: &ClientId, upstream: &str) -> Self {
        Self::from_bytes(hash("envoy-cimd route", &(user, client_id, upstream))).of_owner(Owner::of(user, client_id))
    }
}

impl RegistrationsKey {
    pub fn of(document: &ClientId) -> Self {
        Self(hash("envoy-cimd registrations", document))
    }
}

/// A hash of several values. As JSON, no two lists of values have the same bytes.
fn hash(purpose: &str, values: &impl Serialize) -> [u8; 32] {
    tagged_hash(purpose, &serde_json::to_vec(values).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_differ_in_each_of_their_parts() {
        let anna = User::Subject { issuer: "i".to_owned(), subject: "anna".to_owned() };
        let bert = User::Subject { issuer: "i".to_owned(), subject: "bert".to_owned() };
        // The same characters, cut elsewhere.
        let cut = User::Subject { issuer: "ia".to_owned(), subject: "nna".to_owned() };
        let flow = |id| FlowKey::of(&FlowId([id; 16])).0;
        let context =
            |uri, user: &User, browser| Context::of(&RedirectUri::new(uri), user, &BrowserHash([browser; 32])).0;
        let route = |user: &User, client, upstream| *RouteKey::of(user, &ClientId::new(client), upstream).as_bytes();
        let token = |user: &User, client, issuer, resource| {
            *TokenKey::of(user, &ClientId::new(client), Issuer(issuer), Resource(resource)).as_bytes()
        };
        let keys = [
            flow(1),
            flow(2),
            context("r", &anna, 1),
            context("s", &anna, 1),
            context("r", &bert, 1),
            context("r", &anna, 2),
            route(&anna, "c", "u"),
            route(&bert, "c", "u"),
            route(&cut, "c", "u"),
            route(&User::Single, "c", "u"),
            route(&anna, "d", "u"),
            route(&anna, "c", "v"),
            route(&anna, "cu", ""),
            token(&anna, "c", "i", "r"),
            token(&bert, "c", "i", "r"),
            token(&anna, "d", "i", "r"),
            token(&anna, "c", "j", "r"),
            token(&anna, "c", "i", "s"),
        ];
        for (index, key) in keys.iter().enumerate() {
            assert!(!keys[..index].contains(key) && *key != [0; 32], "{index}");
        }
        assert_eq!(route(&anna, "c", "u"), keys[6], "and are the same each time");
        let of = |issuer| token(&anna, "c", issuer, "r");
        assert_eq!(of("https://as.example"), of("https://as.example/"), "one issuer");
        assert_ne!(of("https://as.example/t"), of("https://as.example/t/"), "two issuers");
    }
    /// What a step touches is one owner's, so that it is on one server.
    #[test]
    fn a_token_and_its_routes_have_one_owner() {
        let (anna, client) = (User::Subject { issuer: "i".to_owned(), subject: "anna".to_owned() }, ClientId::new("c"));
        let token = TokenKey::of(&anna, &client, Issuer("i"), Resource("r"));
        assert_eq!(token.owner(), RouteKey::of(&anna, &client, "u").owner());
        assert_eq!(TokenKey::from_bytes(*token.as_bytes()).of_owner(token.owner()), token);
        assert_ne!(token.owner(), RouteKey::of(&User::Single, &client, "u").owner());
        assert_ne!(token.owner(), RouteKey::of(&anna, &ClientId::new("d"), "u").owner());
    }
}
