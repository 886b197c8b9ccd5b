//! What `oauth2` needs of us, and what its answers come to.

use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use http::{
    HeaderMap, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER},
};
use oauth2::{
    AsyncHttpClient, Client, EndpointNotSet, RequestTokenError, StandardRevocableToken,
    basic::{
        BasicErrorResponse, BasicErrorResponseType, BasicRevocationErrorResponse, BasicTokenIntrospectionResponse,
    },
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
    /// Whatever a body says that comes with it, this says nothing of the grant (RFC 6749, section 5.2).
    #[error("the token endpoint answered {status}")]
    Busy { status: u16, retry_after: Option<Duration> },
    /// A refusal without an error code that could be read.
    #[error("the token endpoint answered {0}")]
    Refused(u16),
}

impl<'c> AsyncHttpClient<'c> for OAuthHttp {
    type Error = HttpError;
    type Future = BoxFuture<'c, Result<oauth2::HttpResponse, HttpError>>;

    fn call(&'c self, request: oauth2::HttpRequest) -> Self::Future {
        Box::pin(async move {
            let answer = self.outgoing.send_within(self.deadline, request, None).await?;
            let answer = mended(answer);
            match answer.status().as_u16() {
                status @ (429 | 500..) => Err(HttpError::Busy { status, retry_after: retry_after(answer.headers()) }),
                status @ 400..500 if !has_error_code(answer.body()) => Err(HttpError::Refused(status)),
                _ => Ok(answer),
            }
        })
    }
}

/// Brings an answer into the form that `oauth2` takes: it wants 200 and JSON to the letter.
fn mended(mut answer: oauth2::HttpResponse) -> oauth2::HttpResponse {
    if answer.status().is_success() {
        // An error that is called a success (RFC 6749, section 5.2, wants 400).
        let is_error = has_error_code(answer.body());
        *answer.status_mut() = if is_error { StatusCode::BAD_REQUEST } else { StatusCode::OK };
        // JSON comes as `text/plain`, too. What is not JSON does not parse.
        answer.headers_mut().remove(CONTENT_TYPE);
    }
    answer
}

/// Whether a body is an error (RFC 6749, section 5.2), and nothing else.
fn has_error_code(body: &[u8]) -> bool {
    serde_json::from_slice::<Value>(body)
        .is_ok_and(|body| body.get("error").is_some_and(Value::is_string) && body.get("access_token").is_none())
}

/// How long a server asks to be left alone, in seconds or as a date (RFC 9110, section 10.2.3).
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    match text.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => httpdate::parse_http_date(text).ok()?.duration_since(SystemTime::now()).ok(),
    }
}

/// What a refusal says of the grant.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// It is over.
    Ended,
    /// The request was understood and refused, by a server that says so in its own way: the grant may be over.
    Refused,
    /// Nothing: it is tried again later, not before what the server asks for.
    Unknown(Option<Duration>),
}

impl Verdict {
    /// Of a refresh that brought no token.
    pub fn of(error: &RequestTokenError<HttpError, BasicErrorResponse>) -> Self {
        match error {
            RequestTokenError::ServerResponse(answer) => match answer.error() {
                BasicErrorResponseType::InvalidGrant | BasicErrorResponseType::UnauthorizedClient => Self::Ended,
                // Our document may have been out of the server's reach.
                BasicErrorResponseType::InvalidClient => Self::Unknown(None),
                BasicErrorResponseType::Extension(code) if TEMPORARY.contains(&code.as_str()) => Self::Unknown(None),
                _ => Self::Refused,
            },
            RequestTokenError::Request(HttpError::Refused(_)) => Self::Refused,
            RequestTokenError::Request(HttpError::Busy { retry_after, .. }) => Self::Unknown(*retry_after),
            RequestTokenError::Request(HttpError::Fetch(_))
            | RequestTokenError::Parse(..)
            | RequestTokenError::Other(_) => Self::Unknown(None),
        }
    }
}

/// Error codes by which servers say "later".
const TEMPORARY: [&str; 3] = ["temporarily_unavailable", "server_error", "slow_down"];

/// An error code as it may be logged: one of those that are registered, or `other`. What a server makes up may hold
/// anything.
pub fn registered(code: &str) -> &'static str {
    // RFC 6749, sections 4.1.2.1 and 5.2; RFC 8707, section 2; RFC 6750, section 3.1; OpenID Connect Core, section 3.1.2.6.
    const CODES: [&str; 19] = [
        "access_denied",
        "account_selection_required",
        "consent_required",
        "insufficient_scope",
        "interaction_required",
        "invalid_client",
        "invalid_grant",
        "invalid_request",
        "invalid_scope",
        "invalid_target",
        "invalid_token",
        "login_required",
        "request_not_supported",
        "server_error",
        "temporarily_unavailable",
        "unauthorized_client",
        "unsupported_grant_type",
        "unsupported_response_type",
        "unsupported_token_type",
    ];
    CODES.into_iter().find(|known| *known == code).unwrap_or("other")
}

/// What went wrong, without anything of the answer's own: it is the server's word, and may hold anything.
pub fn failure(error: &RequestTokenError<HttpError, BasicErrorResponse>) -> String {
    match error {
        RequestTokenError::ServerResponse(error) => {
            format!("the token endpoint refused with the error `{}`", registered(error.error().as_ref()))
        }
        RequestTokenError::Request(error) => error.to_string(),
        RequestTokenError::Parse(..) => "the token endpoint's answer is not a token".to_owned(),
        RequestTokenError::Other(_) => "the token endpoint refused, without a word".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_say_later_in_seconds_or_as_a_date() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, text.parse().expect("a value"));
            retry_after(&headers)
        };
        assert_eq!(read("120"), Some(Duration::from_secs(120)));
        let later = read(&httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(100))).expect("a date");
        assert!((90..=100).contains(&later.as_secs()), "{later:?}");
        for nothing in ["", "soon", "-1", "Wed, 21 Oct 2015 07:28:00 GMT"] {
            assert_eq!(read(nothing), None, "{nothing}");
        }
    }

    /// Whatever a server makes up, the log has words of ours.
    #[test]
    fn what_is_logged_of_a_refusal() {
        let said = |body: serde_json::Value| {
            failure(&RequestTokenError::ServerResponse(serde_json::from_value(body).expect("an error")))
        };
        let refused = |code| format!("the token endpoint refused with the error `{code}`");
        let words = serde_json::json!({"error": "invalid_grant", "error_description": "SECRET"});
        assert_eq!(said(words), refused("invalid_grant"));
        assert_eq!(said(serde_json::json!({"error": "SECRET"})), refused("other"));
        assert_eq!(registered("access_denied"), "access_denied");
        assert_eq!(registered("access_denied\n"), "other");
    }

    #[test]
    fn what_a_refusal_says_of_the_grant() {
        let coded = |code| {
            let answer = serde_json::from_value(serde_json::json!({"error": code})).expect("an error");
            Verdict::of(&RequestTokenError::ServerResponse(answer))
        };
        for (code, verdict) in [
            ("invalid_grant", Verdict::Ended),
            ("unauthorized_client", Verdict::Ended),
            ("invalid_client", Verdict::Unknown(None)),
            ("temporarily_unavailable", Verdict::Unknown(None)),
            ("invalid_request", Verdict::Refused),
            ("invalid_token", Verdict::Refused),
            ("invalid_scope", Verdict::Refused),
        ] {
            assert_eq!(coded(code), verdict, "{code}");
        }
        let later = Some(Duration::from_secs(9));
        let busy = HttpError::Busy { status: 429, retry_after: later };
        for (error, verdict) in [
            (busy, Verdict::Unknown(later)),
            (HttpError::Refused(404), Verdict::Refused),
            (HttpError::Fetch(FetchError::NoUrl), Verdict::Unknown(None)),
        ] {
            assert_eq!(Verdict::of(&RequestTokenError::Request(error)), verdict);
        }
    }

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
