//! The flags of `envoy-config` about how people and MCP clients sign in.

use std::str::FromStr;

use clap::{Args, builder::NonEmptyStringValueParser};
use url::Url;

use crate::model::{loopback::is_loopback, scope::Scope};

/// How people and MCP clients sign in.
#[derive(Args, Debug)]
#[command(next_help_heading = "Sign-in")]
pub struct SignInArgs {
    /// The identity provider that people and MCP clients sign in at, as its tokens name it in `iss`. Envoy then checks
    /// who they are: people by a session, MCP clients by a token for their route. See docs/sign-in.md.
    #[arg(id = "sign_in", long = "sign-in", value_name = "ISSUER", requires_all = ["sign_in_authorization_endpoint",
        "sign_in_token_endpoint", "sign_in_jwks_uri", "sign_in_client_id"])]
    pub issuer: Option<SignInUrl>,
    /// Where the provider lets people sign in: `authorization_endpoint` of its discovery document.
    #[arg(
        id = "sign_in_authorization_endpoint",
        long = "sign-in-authorization-endpoint",
        value_name = "URL",
        requires = "sign_in"
    )]
    pub authorization_endpoint: Option<SignInUrl>,
    /// Where Envoy redeems their codes: `token_endpoint`. Envoy trusts its certificate by --upstream-ca.
    #[arg(id = "sign_in_token_endpoint", long = "sign-in-token-endpoint", value_name = "URL", requires = "sign_in")]
    pub token_endpoint: Option<SignInUrl>,
    /// Where Envoy gets the keys that sign the provider's tokens: `jwks_uri`.
    #[arg(id = "sign_in_jwks_uri", long = "sign-in-jwks-uri", value_name = "URL", requires = "sign_in")]
    pub jwks_uri: Option<SignInUrl>,
    /// What the provider calls the application that people sign in to, which is this Envoy.
    #[arg(id = "sign_in_client_id", long = "sign-in-client-id", value_name = "ID", requires = "sign_in",
        value_parser = NonEmptyStringValueParser::new())]
    pub client_id: Option<String>,
    /// The application's secret at the provider, a file that Envoy reads, without a line break at its end.
    #[arg(
        id = "sign_in_client_secret",
        long = "sign-in-client-secret",
        value_name = "FILE",
        default_value = "/etc/envoy/sign-in.secret"
    )]
    pub client_secret: String,
    /// What Envoy signs and encrypts sessions with, a file of random text that all Envoys of these hosts share.
    #[arg(
        id = "sign_in_session_key",
        long = "sign-in-session-key",
        value_name = "FILE",
        default_value = "/etc/envoy/sign-in.key"
    )]
    pub session_key: String,
    /// What people's sign-in asks the provider for, separated by spaces; `openid` at least.
    #[arg(id = "sign_in_scope", long = "sign-in-scope", value_name = "SCOPE", default_value = "openid")]
    pub scope: Scope,
    /// What MCP clients are told to ask the provider for, separated by spaces; nothing unless given.
    #[arg(id = "sign_in_mcp_scope", long = "sign-in-mcp-scope", value_name = "SCOPE", requires = "sign_in")]
    pub mcp_scope: Option<Scope>,
    /// What the filter that checks tokens is called in Envoy's chain. The one of people's sessions has this name with
    /// `-session` behind it, and the one that tells MCP clients where to sign in with `-challenge`.
    #[arg(id = "sign_in_filter_name", long = "sign-in-filter-name", value_name = "NAME",
        default_value = "envoy-cimd-sign-in", value_parser = NonEmptyStringValueParser::new())]
    pub filter_name: String,
}

/// An address of the identity provider, in the operator's spelling: https, or http of this machine.
#[derive(Clone, Debug, PartialEq)]
pub struct SignInUrl {
    text: String,
    url: Url,
}

/// Why a text is not the address of an identity provider.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum SignInUrlError {
    #[error("is not a URL")]
    NotUrl,
    #[error("must be https, or http on loopback")]
    NotHttpsNorLoopback,
    #[error("must not have a user name, a password or a fragment")]
    Extra,
}

impl SignInUrl {
    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub fn url(&self) -> &Url {
        &self.url
    }
}

impl FromStr for SignInUrl {
    type Err = SignInUrlError;

    fn from_str(text: &str) -> Result<Self, SignInUrlError> {
        let url = Url::parse(text).map_err(|_| SignInUrlError::NotUrl)?;
        match (url.scheme(), url.host()) {
            ("https", Some(_)) => {}
            ("http", Some(host)) if is_loopback(&host) => {}
            _ => return Err(SignInUrlError::NotHttpsNorLoopback),
        }
        if !url.username().is_empty() || url.password().is_some() || url.fragment().is_some() {
            return Err(SignInUrlError::Extra);
        }
        Ok(Self { text: text.to_owned(), url })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_a_provider() {
        for text in [
            "https://login.example.com",
            "https://login.example.com/",
            "https://login.example.com:8443/realms/a",
            "https://login.example.com/authorize?audience=x",
            "http://127.0.0.1:4000",
            "http://idp.localhost:4000/token",
        ] {
            assert_eq!(text.parse::<SignInUrl>().expect(text).as_str(), text);
        }
        for (text, error) in [
            ("login.example.com", SignInUrlError::NotUrl),
            ("http://login.example.com", SignInUrlError::NotHttpsNorLoopback),
            ("ftp://login.example.com", SignInUrlError::NotHttpsNorLoopback),
            ("https://a:b@login.example.com", SignInUrlError::Extra),
            ("https://login.example.com/#a", SignInUrlError::Extra),
        ] {
            assert_eq!(text.parse::<SignInUrl>(), Err(error), "{text}");
        }
    }
}
