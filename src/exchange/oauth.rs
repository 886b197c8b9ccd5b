//! What `oauth2` needs of us, and what its answers come to.

use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use http::{
    HeaderMap, StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER},
};
use oauth2::{
    AsyncHttpClient, Client, EndpointNotSet, RequestTokenError, StandardRevocableToken,
    basic::{BasicErrorResponse, BasicRevocationErrorResponse, BasicTokenIntrospectionResponse},
};
use serde::de::IgnoredAny;
use serde_json::Value;

use super::token_answer::TokenAnswer;
use crate::net::outgoing::{Outgoing, error::FetchError, packed};

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
    #[error(transparent)]
    Refused(#[from] TokenRefusal),
    #[error("the token endpoint answered with a success that cannot be read: {0}")]
    Packed(String),
}

/// An answer of a token endpoint that is not a success: its status, and its error code (RFC 6749, section 5.2) where
/// that can be read and is a registered one, else `other`.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("the token endpoint answered {status}{}", with_code(*code))]
pub struct TokenRefusal {
    status: u16,
    code: Option<&'static str>,
    verdict: Verdict,
}

fn with_code(code: Option<&str>) -> String {
    code.map(|code| format!(" with the error `{code}`")).unwrap_or_default()
}

impl<'c> AsyncHttpClient<'c> for OAuthHttp {
    type Error = HttpError;
    type Future = BoxFuture<'c, Result<oauth2::HttpResponse, HttpError>>;

    fn call(&'c self, mut request: oauth2::HttpRequest) -> Self::Future {
        // It has a client secret, and what lies below logs headers that are not said to be secret.
        if let Some(authorization) = request.headers_mut().get_mut(AUTHORIZATION) {
            authorization.set_sensitive(true);
        }
        Box::pin(async move {
            let answer = self.outgoing.send_within(self.deadline, request, None).await?;
            mended(answer)
        })
    }
}

/// Brings an answer into the form that `oauth2` takes: it wants 200 and JSON to the letter.
///
/// # Errors
/// Where it is a refusal, calls an error a success, or is packed.
fn mended(mut answer: oauth2::HttpResponse) -> Result<oauth2::HttpResponse, HttpError> {
    let code = error_code(answer.body());
    if !answer.status().is_success() || code.is_some() {
        let refusal = TokenRefusal {
            status: answer.status().as_u16(),
            code: code.as_deref().map(registered),
            verdict: Verdict::of(answer.status(), code.as_deref(), answer.headers()),
        };
        return Err(refusal.into());
    }
    // Some say that it is packed, and it is not.
    if let Some(packed) = packed(answer.headers()).filter(|_| !is_json(answer.body())) {
        return Err(HttpError::Packed(packed));
    }
    *answer.status_mut() = StatusCode::OK;
    // JSON comes as `text/plain`, too. What is not JSON does not parse.
    answer.headers_mut().remove(CONTENT_TYPE);
    Ok(answer)
}

fn is_json(body: &[u8]) -> bool {
    serde_json::from_slice::<IgnoredAny>(body).is_ok()
}

/// The code of a body that is an error (RFC 6749, section 5.2), and nothing else.
fn error_code(body: &[u8]) -> Option<String> {
    let body: Value = serde_json::from_slice(body).ok()?;
    let code = body.get("error")?.as_str()?;
    body.get("access_token").is_none().then(|| code.to_owned())
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
    /// Of an answer that is not a success. Whatever a body says that comes with 429 or 5xx, it says nothing of the grant
    /// (RFC 6749, section 5.2).
    fn of(status: StatusCode, code: Option<&str>, headers: &HeaderMap) -> Self {
        match (status.as_u16(), code) {
            (429 | 500.., _) => Self::Unknown(retry_after(headers)),
            (_, Some("invalid_grant" | "unauthorized_client")) => Self::Ended,
            // Our document may have been out of the server's reach.
            (_, Some("invalid_client")) => Self::Unknown(None),
            (_, Some(code)) if TEMPORARY.contains(&code) => Self::Unknown(None),
            (400..500, _) | (_, Some(_)) => Self::Refused,
            (_, None) => Self::Unknown(None),
        }
    }

    /// Of a refresh that brought no token.
    pub fn of_failure(error: &RequestTokenError<HttpError, BasicErrorResponse>) -> Self {
        match error {
            RequestTokenError::Request(HttpError::Refused(refusal)) => refusal.verdict,
            _ => Self::Unknown(None),
        }
    }
}

/// Whether a token endpoint says that it does not know the client, or not so. What comes with 429 or 5xx says nothing.
pub fn refuses_client(error: &RequestTokenError<HttpError, BasicErrorResponse>) -> bool {
    match error {
        RequestTokenError::Request(HttpError::Refused(TokenRefusal { status, code, .. })) => {
            *code == Some("invalid_client") && *status != 429 && *status < 500
        }
        _ => false,
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
        RequestTokenError::Request(error) => error.to_string(),
        // What is not a success never gets to `oauth2`.
        RequestTokenError::Parse(..) | RequestTokenError::ServerResponse(_) | RequestTokenError::Other(_) => {
            "the token endpoint answered with a success that is not a JSON object".to_owned()
        }
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

    fn answered(status: u16, headers: &[(&str, &str)], body: &str) -> Result<oauth2::HttpResponse, HttpError> {
        let mut answer = http::Response::builder().status(status).header(CONTENT_TYPE, "text/plain");
        for (name, value) in headers {
            answer = answer.header(*name, *value);
        }
        mended(answer.body(body.as_bytes().to_vec()).expect("an answer"))
    }

    /// What is taken is what `oauth2` takes.
    #[test]
    fn successes_are_mended() {
        for (status, body) in [
            (200, r#"{"access_token":"t"}"#),
            (201, r#"{"access_token":"t"}"#),
            (200, r#"{"access_token":"t","error":"none"}"#),
            (200, r#"{"error":{"code":1}}"#),
            (200, "<h1>"),
        ] {
            let answer = answered(status, &[], body).expect(body);
            assert_eq!(
                (answer.status(), answer.headers().contains_key(CONTENT_TYPE)),
                (StatusCode::OK, false),
                "{body}"
            );
        }
    }

    #[test]
    fn an_answer_that_is_packed_is_named() {
        let packed = [("content-encoding", "gzip")];
        let error = RequestTokenError::Request(answered(200, &packed, "\u{1f}SECRET").expect_err("packed"));
        let words = "the token endpoint answered with a success that cannot be read: it is packed (`content-encoding: gzip`), \
                     though nobody asked for that";
        assert_eq!(failure(&error), words);
        assert_eq!(Verdict::of_failure(&error), Verdict::Unknown(None));
        assert!(answered(200, &packed, "{}").is_ok(), "it is not");
    }

    /// What the log says of a refusal, and what that says of the grant. Whatever a server makes up, the words are ours.
    #[test]
    fn refusals_have_words_of_ours() {
        use Verdict::{Ended, Refused, Unknown};
        let later = Some(Duration::from_secs(9));
        for (status, headers, body, words, verdict) in [
            (
                400,
                None,
                r#"{"error":"invalid_grant","error_description":"SECRET"}"#,
                " 400 with the error `invalid_grant`",
                Ended,
            ),
            (400, None, r#"{"error":"unauthorized_client"}"#, " 400 with the error `unauthorized_client`", Ended),
            (401, None, r#"{"error":"invalid_client"}"#, " 401 with the error `invalid_client`", Unknown(None)),
            (
                400,
                None,
                r#"{"error":"temporarily_unavailable"}"#,
                " 400 with the error `temporarily_unavailable`",
                Unknown(None),
            ),
            (400, None, r#"{"error":"invalid_request"}"#, " 400 with the error `invalid_request`", Refused),
            (401, None, r#"{"error":"invalid_token"}"#, " 401 with the error `invalid_token`", Refused),
            (400, None, r#"{"error":"SECRET\n"}"#, " 400 with the error `other`", Refused),
            (200, None, r#"{"error":"invalid_grant"}"#, " 200 with the error `invalid_grant`", Ended),
            (400, None, r#"{"error":{"code":"SECRET"}}"#, " 400", Refused),
            (404, None, "<h1>SECRET", " 404", Refused),
            (302, None, "SECRET", " 302", Unknown(None)),
            (429, Some("9"), "", " 429", Unknown(later)),
            (503, Some("9"), r#"{"error":"invalid_grant"}"#, " 503 with the error `invalid_grant`", Unknown(later)),
            (500, None, "SECRET", " 500", Unknown(None)),
        ] {
            let headers: Vec<_> = headers.iter().map(|seconds| (RETRY_AFTER.as_str(), *seconds)).collect();
            let error = RequestTokenError::Request(answered(status, &headers, body).expect_err(body));
            assert_eq!(failure(&error), format!("the token endpoint answered{words}"));
            assert_eq!(Verdict::of_failure(&error), verdict, "{status} {body}");
        }
        let unreachable = RequestTokenError::Request(FetchError::NoUrl.into());
        assert_eq!(Verdict::of_failure(&unreachable), Unknown(None));
        assert_eq!(registered("access_denied"), "access_denied");
        assert_eq!(registered("access_denied\n"), "other");
    }
}
