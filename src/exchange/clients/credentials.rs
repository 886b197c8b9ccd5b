//! Which client a grant is for, and what it authenticates with at the token endpoint.

use oauth2::{AuthType, ClientSecret};
use serde::{Deserialize, Serialize};

use crate::{
    exchange::oauth::OAuthClient,
    model::{client::ClientId, secret::Secret},
};

/// How a client authenticates at a token endpoint, by its name in RFC 7591, section 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthMethod {
    None,
    ClientSecretBasic,
    ClientSecretPost,
}

impl AuthMethod {
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::ClientSecretBasic => "client_secret_basic",
            Self::ClientSecretPost => "client_secret_post",
        }
    }

    pub fn needs_secret(self) -> bool {
        self != Self::None
    }
}

/// A way to authenticate, with what it takes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Proof {
    /// A public client's: it only says who it is.
    None,
    Basic(Secret),
    Post(Secret),
}

impl Proof {
    /// None where the method needs a secret that is not there. A secret that the method does not use is left out.
    pub fn new(method: AuthMethod, secret: Option<Secret>) -> Option<Self> {
        match method {
            AuthMethod::None => Some(Self::None),
            AuthMethod::ClientSecretBasic => secret.map(Self::Basic),
            AuthMethod::ClientSecretPost => secret.map(Self::Post),
        }
    }
}

/// What is said to an authorization server: who asks, and the proof.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Credentials {
    pub client_id: String,
    pub proof: Proof,
}

impl Credentials {
    /// Those of a route's document: its URL alone.
    pub fn of_document(document: &ClientId) -> Self {
        Self { client_id: document.to_string(), proof: Proof::None }
    }

    /// `oauth2`'s client, which authenticates so at each endpoint. It encodes both parts of `client_secret_basic` as
    /// RFC 6749, section 2.3.1, asks.
    pub fn oauth_client(&self) -> OAuthClient {
        let client = OAuthClient::new(oauth2::ClientId::new(self.client_id.clone()));
        let (auth_type, secret) = match &self.proof {
            Proof::None => return client,
            Proof::Basic(secret) => (AuthType::BasicAuth, secret),
            Proof::Post(secret) => (AuthType::RequestBody, secret),
        };
        client.set_client_secret(ClientSecret::new(secret.expose().to_owned())).set_auth_type(auth_type)
    }
}

/// Which client a flow or a grant is for, as its record says: the way that was open when it began. What is stored is
/// under the route's document in every case.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActsAs {
    /// The route's metadata document: what every record of an earlier version says by saying nothing.
    #[default]
    Document,
    /// One of the config file. Its secret is in no record: it is read where it is used.
    PreRegistered { client_id: String },
    /// One that was registered for this route and authorization server. Its secret is sealed with the grant that is bound
    /// to it, so that this goes on when another is registered.
    Registered(Credentials),
}

impl ActsAs {
    /// Its OAuth `client_id`.
    pub fn client_id<'a>(&'a self, document: &'a ClientId) -> &'a str {
        match self {
            Self::Document => document.as_str(),
            Self::PreRegistered { client_id } | Self::Registered(Credentials { client_id, .. }) => client_id,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_shows_a_secret() {
        for proof in [Proof::Basic(Secret::new("SECRET")), Proof::Post(Secret::new("SECRET"))] {
            let credentials = Credentials { client_id: "c".to_owned(), proof };
            let shown = format!("{credentials:?} {:?}", ActsAs::Registered(credentials.clone()));
            assert!(!shown.contains("SECRET"), "{shown}");
        }
    }

    #[test]
    fn a_proof_has_what_its_method_takes() {
        use AuthMethod::{ClientSecretBasic, ClientSecretPost, None as Public};
        let secret = || Some(Secret::new("s"));
        for (method, secret, proof) in [
            (Public, None, Some(Proof::None)),
            (Public, secret(), Some(Proof::None)),
            (ClientSecretBasic, secret(), Some(Proof::Basic(Secret::new("s")))),
            (ClientSecretPost, secret(), Some(Proof::Post(Secret::new("s")))),
            (ClientSecretBasic, None, None),
            (ClientSecretPost, None, None),
        ] {
            assert_eq!(Proof::new(method, secret), proof, "{method:?}");
            assert_eq!(serde_json::to_value(method).expect("JSON"), method.name());
        }
    }
}
