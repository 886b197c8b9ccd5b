//! What `oauth2` needs of us, and what we need of its answers.

use std::time::Duration;

use futures_util::future::BoxFuture;
use oauth2::{
    AsyncHttpClient, TokenResponse,
    basic::{BasicTokenResponse, BasicTokenType},
};

use crate::{
    model::secret::Secret,
    net::outgoing::{Outgoing, error::FetchError},
};

/// `oauth2`'s requests, through the client that keeps our rules.
pub struct OAuthHttp {
    pub outgoing: Outgoing,
    /// How long an answer is waited for: a server may have rotated a token by then.
    pub deadline: Duration,
}

/// Why there is no answer that `oauth2` could read.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// Whatever a body says that comes with it, this is no word on the grant (RFC 6749, section 5.2).
    #[error("the token endpoint answered {0}")]
    Status(u16),
}

impl<'c> AsyncHttpClient<'c> for OAuthHttp {
    type Error = HttpError;
    type Future = BoxFuture<'c, Result<oauth2::HttpResponse, HttpError>>;

    fn call(&'c self, request: oauth2::HttpRequest) -> Self::Future {
        Box::pin(async move {
            let answer = self.outgoing.send_within(self.deadline, request, None).await?;
            match answer.status().as_u16() {
                status @ (429 | 500..) => Err(HttpError::Status(status)),
                _ => Ok(answer),
            }
        })
    }
}

/// What a token endpoint gave.
#[derive(Debug)]
pub struct GrantedToken {
    pub access_token: Secret,
    pub refresh_token: Option<Secret>,
    /// In seconds.
    pub expires_in: Option<u64>,
    pub scope: Option<String>,
}

/// The longest token that is kept, in bytes.
const MAX_TOKEN: usize = 16 << 10;

/// A token that can be used: a bearer token that is not empty.
///
/// # Errors
/// Why it cannot be used.
pub fn token(answer: &BasicTokenResponse) -> Result<GrantedToken, &'static str> {
    if !matches!(answer.token_type(), BasicTokenType::Bearer) {
        return Err("the token is not a bearer token");
    }
    if answer.access_token().secret().is_empty() {
        return Err("the token is empty");
    }
    // RFC 6750, section 2.1: whoever carries it makes a header of it.
    let secrets = [Some(answer.access_token().secret()), answer.refresh_token().map(|token| token.secret())];
    if secrets
        .iter()
        .flatten()
        .any(|secret| secret.len() > MAX_TOKEN || !secret.bytes().all(|byte| byte.is_ascii_graphic()))
    {
        return Err("the token has characters that no token has, or is longer than 16 kB");
    }
    let join = |scopes: &Vec<oauth2::Scope>| scopes.iter().map(|scope| scope.as_str()).collect::<Vec<_>>().join(" ");
    Ok(GrantedToken {
        access_token: Secret::new(answer.access_token().secret()),
        refresh_token: answer
            .refresh_token()
            .map(|token| token.secret())
            .filter(|token| !token.is_empty())
            .map(Secret::new),
        expires_in: answer.expires_in().map(|lifetime| lifetime.as_secs()),
        scope: answer.scopes().map(join),
    })
}

/// What went wrong, without anything of the answer's own: it is the server's word, and may hold anything.
pub fn failure<T: oauth2::ErrorResponse>(error: &oauth2::RequestTokenError<HttpError, T>) -> String {
    match error {
        oauth2::RequestTokenError::ServerResponse(_) => "the token endpoint refused".to_owned(),
        oauth2::RequestTokenError::Request(error) => error.to_string(),
        oauth2::RequestTokenError::Parse(..) => "the token endpoint's answer is not a token".to_owned(),
        oauth2::RequestTokenError::Other(_) => "the token endpoint's answer has another form than JSON".to_owned(),
    }
}
