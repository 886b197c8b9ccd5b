//! What `oauth2` needs of us, and what its answers come to.

use std::time::Duration;

use futures_util::future::BoxFuture;
use http::{StatusCode, header::CONTENT_TYPE};
use oauth2::{
    AsyncHttpClient, Client, EndpointNotSet, StandardRevocableToken,
    basic::{BasicErrorResponse, BasicRevocationErrorResponse, BasicTokenIntrospectionResponse},
};
use serde_json::Value;

use super::token_answer::TokenAnswer;
use crate::net::outgoing::{Outgoing, error::FetchError};

/// `oauth2`'s client, with answers of token endpoints read as servers write them.
pub type OAuthClient<
    HasAuthUrl = EndpointNotSet,
    HasDeviceAuthUrl = EndpointNotSet,
    HasIntrospectionUrl = EndpointNotSet,
    HasRevocationUrl = EndpointNotSet,
    HasTokenUrl = EndpointNotSet,
> = Client<
    BasicErrorResponse,
    TokenAnswer,
    BasicTokenIntrospectionResponse,
    StandardRevocableToken,
    BasicRevocationErrorResponse,
    HasAuthUrl,
    HasDeviceAuthUrl,
    HasIntrospectionUrl,
    HasRevocationUrl,
    HasTokenUrl,
>;

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
                _ => Ok(mended(answer)),
            }
        })
    }
}

/// Brings an answer into the form that `oauth2` takes: it wants 200 and JSON to the letter.
fn mended(mut answer: oauth2::HttpResponse) -> oauth2::HttpResponse {
    if answer.status().is_success() {
        // An error that is called a success (RFC 6749, section 5.2, wants 400).
        let is_error = serde_json::from_slice::<Value>(answer.body())
            .is_ok_and(|body| body.get("error").is_some_and(Value::is_string) && body.get("access_token").is_none());
        *answer.status_mut() = if is_error { StatusCode::BAD_REQUEST } else { StatusCode::OK };
        // JSON comes as `text/plain`, too. What is not JSON does not parse.
        answer.headers_mut().remove(CONTENT_TYPE);
    }
    answer
}

/// What went wrong, without anything of the answer's own: it is the server's word, and may hold anything.
pub fn failure<T: oauth2::ErrorResponse>(error: &oauth2::RequestTokenError<HttpError, T>) -> String {
    match error {
        oauth2::RequestTokenError::ServerResponse(_) => "the token endpoint refused".to_owned(),
        oauth2::RequestTokenError::Request(error) => error.to_string(),
        oauth2::RequestTokenError::Parse(..) => "the token endpoint's answer is not a token".to_owned(),
        oauth2::RequestTokenError::Other(_) => "the token endpoint refused, without a word".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_mended() {
        for (status, body, expected) in [
            (200, r#"{"access_token":"t"}"#, 200),
            (201, r#"{"access_token":"t"}"#, 200),
            (200, r#"{"error":"invalid_grant"}"#, 400),
            (200, r#"{"access_token":"t","error":"none"}"#, 200),
            (200, r#"{"error":{"code":1}}"#, 200),
            (200, "<h1>", 200),
            (302, "", 302),
            (401, r#"{"error":"invalid_token"}"#, 401),
        ] {
            let answer = http::Response::builder().status(status).header(CONTENT_TYPE, "text/plain");
            let answer = mended(answer.body(body.as_bytes().to_vec()).expect("an answer"));
            assert_eq!(answer.status(), expected, "{status} {body}");
            assert_eq!(
                answer.headers().contains_key(CONTENT_TYPE),
                expected != 200 && status != 200,
                "{status} {body}"
            );
        }
    }
}
