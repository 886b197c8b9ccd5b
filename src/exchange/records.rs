//! What is stored, sealed. A record that an earlier version wrote opens in this one.

use serde::{Deserialize, Serialize};

use crate::{
    contract::tokens::TokenTag,
    model::{
        client::{ClientId, RedirectUri},
        clock::UnixTime,
        secret::Secret,
        user::User,
    },
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
}

/// A token as it is kept, sealed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TokenRecord {
    pub access_token: Secret,
    pub refresh_token: Option<Secret>,
    pub issued_at: UnixTime,
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
}
