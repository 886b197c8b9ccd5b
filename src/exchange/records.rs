//! What is stored, sealed. A record that an earlier version wrote opens in this one.

use serde::{Deserialize, Serialize};

use super::{clients::credentials::ActsAs, step_up::StepUp};
use crate::{
    contract::tokens::TokenTag,
    model::{
        client::{ClientId, RedirectUri},
        clock::UnixTime,
        scope::Scope,
        secret::Secret,
        user::User,
    },
    store::keys::Context,
};

/// What it takes to complete a flow. It is only ever stored sealed.
#[derive(Serialize, Deserialize)]
pub struct FlowRecord {
    pub client_id: ClientId,
    pub redirect_uri: RedirectUri,
    pub upstream: String,
    pub user: User,
    pub return_to: String,
    pub issuer: String,
    pub sends_iss: bool,
    pub token_endpoint: String,
    pub revocation_endpoint: Option<String>,
    pub resource: String,
    pub scope: Option<String>,
    pub verifier: Secret,
    /// None in what a version before it stored.
    #[serde(default)]
    pub binding: Option<Binding>,
    #[serde(default)]
    pub acts_as: ActsAs,
}

/// What is left of a flow that was taken.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
pub enum Tombstone {
    Bound {
        return_to: String,
        binding: Binding,
    },
    /// What a version before bindings stored: where the person goes.
    Bare(String),
}

/// Whose flow it is, and until when. It is beside the flow in the clear, too, where it is compared first; but who writes
/// the store can change that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    context: [u8; 32],
    expires_at: UnixTime,
}

/// What belongs to one flow.
pub trait Bound {
    /// None in what a version before bindings stored.
    fn binding(&self) -> Option<&Binding>;
}

impl Bound for FlowRecord {
    fn binding(&self) -> Option<&Binding> {
        self.binding.as_ref()
    }
}

impl Bound for Tombstone {
    fn binding(&self) -> Option<&Binding> {
        match self {
            Self::Bound { binding, .. } => Some(binding),
            Self::Bare(_) => None,
        }
    }
}

impl Tombstone {
    /// Where the person goes.
    pub fn into_return_to(self) -> String {
        match self {
            Self::Bound { return_to, .. } | Self::Bare(return_to) => return_to,
        }
    }
}

impl Binding {
    pub fn new(context: &Context, expires_at: UnixTime) -> Self {
        Self { context: *context.as_bytes(), expires_at }
    }

    /// Whether a flow that the store gave out for this context at this time is its own.
    pub fn holds(&self, context: &Context, now: UnixTime) -> bool {
        self.context == *context.as_bytes() && now < self.expires_at
    }
}

/// A token as it is kept, sealed; or what is left of one whose grant has ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TokenRecord {
    pub access_token: Secret,
    pub refresh_token: Option<Secret>,
    pub issued_at: UnixTime,
    /// When the person allowed it; refreshes leave that as it is. None in what a version before it stored.
    #[serde(default)]
    pub since: Option<UnixTime>,
    /// None where the server did not say.
    pub expires_at: Option<UnixTime>,
    pub scope: Option<String>,
    pub issuer: String,
    pub token_endpoint: String,
    pub revocation_endpoint: Option<String>,
    pub resource: String,
    pub client_id: ClientId,
    /// None in what a version before tags stored.
    #[serde(default)]
    pub tag: Option<TokenTag>,
    /// When the last token before this was refused by the upstream, and how many were in a row.
    #[serde(default)]
    pub refused: Option<(UnixTime, u32)>,
    /// Whether the grant ended by itself. Its tokens are gone then, and the rest says whose it was.
    #[serde(default)]
    pub ended: bool,
    /// What the upstream found missing in it.
    #[serde(default)]
    pub step_up: StepUp,
    #[serde(default)]
    pub acts_as: ActsAs,
}

impl TokenRecord {
    /// What it may do, as far as the server says.
    pub fn granted(&self) -> Scope {
        Scope::of(self.scope.as_deref())
    }

    /// Which client it is at its authorization server.
    pub fn oauth_client_id(&self) -> &str {
        self.acts_as.client_id(&self.client_id)
    }

    /// What is left when the grant ends. A version that knows nothing of this finds a token that is over, with nothing to
    /// renew it.
    pub fn ended(&self, now: UnixTime) -> Self {
        Self { access_token: Secret::new(""), refresh_token: None, expires_at: Some(now), ended: true, ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Versions of both sides of this one share a store while they are rolled out, or back.
    #[test]
    fn what_is_left_of_a_grant_is_read_by_versions_before_it() {
        let now = UnixTime::from_secs(1_800_000_000);
        let before = r#"{"access_token":"a","refresh_token":"r","issued_at":1,"expires_at":null,"scope":"s","issuer":"i",
            "token_endpoint":"t","revocation_endpoint":null,"resource":"u","client_id":"c"}"#;
        let record: TokenRecord = serde_json::from_str(before).expect("a record of the first version");
        assert!(!record.ended && record.step_up == StepUp::default() && record.since.is_none());
        assert_eq!(record.acts_as, ActsAs::Document);
        let ended = record.ended(now);
        let mut left = serde_json::to_value(&ended).expect("JSON");
        assert!(serde_json::from_value::<TokenRecord>(left.clone()).expect("a record").ended);
        // To such a version it is a token that is over, with nothing to renew it.
        left.as_object_mut().expect("an object").remove("ended");
        let read: TokenRecord = serde_json::from_value(left).expect("a record");
        assert_eq!((read.access_token.expose(), read.refresh_token, read.expires_at), ("", None, Some(now)));
        assert_eq!((read.issuer, read.resource, read.client_id), (record.issuer, record.resource, record.client_id));
    }
}
