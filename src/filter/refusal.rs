//! The ways a request is refused, each with its status and its stable label.

pub mod answer;

use super::{json_rpc::message::Fault, outcome::Outcome, request_state::RequestStateError, state::StateError};
use crate::{
    contract::error::{BeginError, CallError, Cause, CompleteError},
    model::route::RouteError,
};

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq)]
pub enum Refusal {
    /// What the operator wrote cannot be served. The reason is for the log alone.
    MisconfiguredRoute(RouteError),
    HttpsRequired,
    /// The request names another host or port than the route's `from` (RFC 9110, section 15.5.20).
    MisdirectedRequest,
    MethodNotAllowed {
        allow: &'static str,
    },
    NotFound,
    HeadersTooLarge,
    /// No trusted filter named the person.
    UserUnknown(Cause),
    /// The form was not sent by a page of this origin.
    CrossSite,
    /// The browser only fetches ahead.
    Prefetch,
    /// The query, or what the browser is about to do, is none that an honest one sends. The reason is for the log.
    BadRequest(&'static str),
    State(StateError),
    /// Browser, user, route or redirect URI differ from the flow's.
    WrongContext,
    UnknownFlow,
    /// RFC 9207, section 2.4.
    IssuerMismatch(Cause),
    /// The authorization server sent an error, with this registered code, or `other`.
    AuthorizationError(Cause),
    /// `return_to` is the choreographer's word, and still to be checked.
    AlreadyUsed {
        return_to: String,
    },
    ExchangeFailed(Cause),
    /// No authorization server can be used for the upstream.
    AuthorizationServerUnusable(Cause),
    /// As many sign-ins, calls or look-ups as may be: which limit it is.
    TooManyFlows(Cause),
    /// The call broke after it may have been sent, or what came back keeps no contract.
    ChoreographerFailed(Cause),
    /// No connection could be made, so nothing was sent.
    ChoreographerUnavailable(Cause),
    Timeout(Cause),
    /// A page of another origin sent an MCP request, or nobody can say which one did.
    ForbiddenOrigin,
    /// There is no token, and the request has no message that could be answered with where to get one.
    NoToken,
    /// The same, where the message is a notification, or a client's own response.
    NotARequest,
    /// The same, where the message was cut before its id.
    CutBody,
    BadBody(Fault),
    /// The protocol version of the headers is not that of the body (MCP 2026-07-28, Streamable HTTP, Server Validation).
    VersionMismatch,
    /// What a call came with is not what we gave its user for it, or it came too late.
    BadRequestState(RequestStateError),
    /// As many calls are held as may be: which limit it is. Their callers are told as those who cannot be asked.
    TooManyHolds(Cause),
    /// As many look-ups of tokens as may be, or requests that wait for one: which limit it is.
    TooManyCalls(Cause),
    /// There is no token, and as many requests wait for their bodies as may: which limit it is.
    TooManyBodies(Cause),
    /// There may be a token, and nobody can say so now.
    TokenUnavailable(Cause),
    /// The upstream refused the token, and there is a newer one.
    TokenRenewed,
    /// The upstream refused the token, and the one before it a short while ago.
    RefusedAgain,
    /// The upstream refused the token, and no other can be had without the person.
    TokenLost,
    /// The upstream wants the person to allow more, and they can.
    MoreScope,
    /// The upstream wants more than anybody is asked for.
    NoMoreScope,
    /// The upstream refused, and nothing that is done here would change that. The reason is for the log.
    UpstreamRefused(Cause),
}

impl Refusal {
    /// Its row in the list of outcomes.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::MisconfiguredRoute(_) => Outcome::MisconfiguredRoute,
            Self::HttpsRequired => Outcome::HttpsRequired,
            Self::MisdirectedRequest => Outcome::MisdirectedRequest,
            Self::MethodNotAllowed { .. } => Outcome::MethodNotAllowed,
            Self::NotFound => Outcome::NotFound,
            Self::HeadersTooLarge => Outcome::HeadersTooLarge,
            Self::UserUnknown(_) => Outcome::UserUnknown,
            Self::CrossSite => Outcome::CrossSite,
            Self::Prefetch => Outcome::Prefetch,
            Self::BadRequest(_) => Outcome::BadRequest,
            Self::State(error) => match error {
                StateError::Malformed => Outcome::Malformed,
                StateError::UnknownKey => Outcome::UnknownKey,
                StateError::BadMac => Outcome::BadMac,
                StateError::Expired { .. } => Outcome::Expired,
                StateError::WrongRoute => Outcome::WrongRoute,
                StateError::WrongBrowser => Outcome::WrongBrowser,
            },
            Self::WrongContext => Outcome::WrongContext,
            Self::UnknownFlow => Outcome::UnknownFlow,
            Self::IssuerMismatch(_) => Outcome::IssuerMismatch,
            Self::AuthorizationError(_) => Outcome::AuthorizationError,
            Self::AlreadyUsed { .. } => Outcome::AlreadyUsed,
            Self::ExchangeFailed(_) => Outcome::ExchangeFailed,
            Self::AuthorizationServerUnusable(_) => Outcome::AuthorizationServerUnusable,
            Self::TooManyFlows(_) => Outcome::TooManyFlows,
            Self::ChoreographerFailed(_) => Outcome::ChoreographerFailed,
            Self::ChoreographerUnavailable(_) => Outcome::ChoreographerUnavailable,
            Self::Timeout(_) => Outcome::Timeout,
            Self::ForbiddenOrigin => Outcome::ForbiddenOrigin,
            Self::NoToken => Outcome::NoToken,
            Self::NotARequest => Outcome::NotARequest,
            Self::CutBody => Outcome::CutBody,
            Self::BadBody(_) => Outcome::BadBody,
            Self::VersionMismatch => Outcome::VersionMismatch,
            Self::BadRequestState(_) => Outcome::BadRequestState,
            Self::TooManyHolds(_) => Outcome::TooManyHolds,
            Self::TooManyCalls(_) => Outcome::TooManyCalls,
            Self::TooManyBodies(_) => Outcome::TooManyBodies,
            Self::TokenUnavailable(_) => Outcome::TokenUnavailable,
            Self::TokenRenewed => Outcome::TokenRenewed,
            Self::RefusedAgain => Outcome::RefusedAgain,
            Self::TokenLost => Outcome::TokenLost,
            Self::MoreScope => Outcome::MoreScope,
            Self::NoMoreScope => Outcome::NoMoreScope,
            Self::UpstreamRefused(_) => Outcome::UpstreamRefused,
        }
    }

    /// The label in log lines and metrics.
    pub fn code(&self) -> &'static str {
        self.outcome().row().label
    }

    /// The status of the answer.
    pub fn status(&self) -> u16 {
        self.outcome().row().status
    }

    /// Why, in words, for the line with the request id: nothing of what the request said is in it.
    pub fn reason(&self) -> Cause {
        match self {
            Self::MisconfiguredRoute(error) => error.to_string().into(),
            Self::HttpsRequired => "neither x-forwarded-proto nor, without it, :scheme is https".into(),
            Self::MisdirectedRequest => "the authority is not the host and port of the route's `from`".into(),
            Self::MethodNotAllowed { allow } => format!("the method is not one of {allow}").into(),
            Self::NotFound => "the document's address has no query".into(),
            Self::HeadersTooLarge => "the headers are longer than --max-header-bytes".into(),
            Self::CrossSite => {
                "neither Sec-Fetch-Site nor, without it, Origin says that a page of this origin sent the form".into()
            }
            Self::Prefetch => "the browser says that it fetches ahead".into(),
            Self::BadRequest(reason) => (*reason).into(),
            Self::State(error) => error.to_string().into(),
            Self::WrongContext => "the browser, the user or the redirect URI is not the one that began the flow".into(),
            Self::UnknownFlow => {
                "there is no such flow in the store: it expired, or newer ones of this user took its place".into()
            }
            Self::AlreadyUsed { .. } => "the flow was completed before, by the same user in the same browser".into(),
            Self::AuthorizationError(code) => format!("the authorization server sent the error `{code}`").into(),
            Self::ForbiddenOrigin => {
                "Origin is neither that of the route's `from` nor one of --allow-origin, or it is there twice".into()
            }
            Self::NoToken => "this user has no token for this route, and there is no message to answer".into(),
            Self::NotARequest => "this user has no token for this route, and the message is not a request".into(),
            Self::CutBody => {
                "this user has no token for this route, and the id is not in what is read of a body".into()
            }
            Self::BadBody(fault) => fault.reason().into(),
            Self::VersionMismatch => "mcp-protocol-version and the version in `_meta` differ".into(),
            Self::BadRequestState(error) => error.to_string().into(),
            Self::TokenRenewed => "the upstream refused the token, and there is a newer one".into(),
            Self::RefusedAgain => {
                "the upstream refused the token, and the last one was refused too short a while ago to renew it".into()
            }
            Self::TokenLost => "the upstream refused the token, and it cannot be renewed".into(),
            Self::MoreScope => "the upstream wants a scope that the token does not have".into(),
            Self::NoMoreScope => {
                "the upstream wants a scope that is not asked for: the route's `scope` does not have it, it was asked for \
                 often enough, or the upstream does not say which"
                    .into()
            }
            Self::UserUnknown(cause)
            | Self::IssuerMismatch(cause)
            | Self::ExchangeFailed(cause)
            | Self::AuthorizationServerUnusable(cause)
            | Self::TooManyFlows(cause)
            | Self::ChoreographerFailed(cause)
            | Self::ChoreographerUnavailable(cause)
            | Self::Timeout(cause)
            | Self::TooManyHolds(cause)
            | Self::TooManyCalls(cause)
            | Self::TooManyBodies(cause)
            | Self::TokenUnavailable(cause)
            | Self::UpstreamRefused(cause) => cause.clone(),
        }
    }
}

impl From<CallError> for Refusal {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Unavailable(cause) => Self::ChoreographerUnavailable(cause),
            CallError::Failed(cause) => Self::ChoreographerFailed(cause),
            CallError::Timeout(cause) => Self::Timeout(cause),
        }
    }
}

impl From<BeginError> for Refusal {
    fn from(error: BeginError) -> Self {
        match error {
            BeginError::AuthorizationServerUnusable(reason) => Self::AuthorizationServerUnusable(reason),
            BeginError::TooManyFlows(cause) => Self::TooManyFlows(cause),
            // Whoever has a page to show shows it again instead.
            BeginError::IssuerChanged(_) => {
                Self::AuthorizationServerUnusable("it is another one than the person was shown".into())
            }
            BeginError::Call(error) => error.into(),
        }
    }
}

impl From<CompleteError> for Refusal {
    fn from(error: CompleteError) -> Self {
        match error {
            CompleteError::WrongContext => Self::WrongContext,
            CompleteError::UnknownFlow => Self::UnknownFlow,
            CompleteError::IssuerMismatch(cause) => Self::IssuerMismatch(cause),
            CompleteError::AuthorizationError(code) => Self::AuthorizationError(code),
            CompleteError::AlreadyUsed { return_to } => Self::AlreadyUsed { return_to },
            CompleteError::ExchangeFailed(cause) => Self::ExchangeFailed(cause),
            CompleteError::Call(error) => error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::error::Label;

    const CAUSE: Cause = Cause::Borrowed("a cause");

    const NO_FROM: &str =
        "no source gives `from`: Envoy sends the metadata of the route that has our path, and of its virtual host";

    /// The cause of every refusal, as an operator reads it on the line with the request id.
    #[test]
    fn every_refusal_says_why() {
        let causes = [
            (Refusal::MisconfiguredRoute(RouteError::NoFrom), NO_FROM),
            (Refusal::HttpsRequired, "neither x-forwarded-proto nor, without it, :scheme is https"),
            (Refusal::MisdirectedRequest, "the authority is not the host and port of the route's `from`"),
            (Refusal::MethodNotAllowed { allow: "GET, POST" }, "the method is not one of GET, POST"),
            (Refusal::NotFound, "the document's address has no query"),
            (Refusal::HeadersTooLarge, "the headers are longer than --max-header-bytes"),
            (Refusal::UserUnknown(CAUSE), "a cause"),
            (
                Refusal::CrossSite,
                "neither Sec-Fetch-Site nor, without it, Origin says that a page of this origin sent the form",
            ),
            (Refusal::Prefetch, "the browser says that it fetches ahead"),
            (Refusal::BadRequest("a reason"), "a reason"),
            (Refusal::State(StateError::Malformed), "the state does not have the form of one of ours"),
            (Refusal::State(StateError::UnknownKey), "the state is signed with a key that is not among the state keys"),
            (Refusal::State(StateError::BadMac), "the state was changed, or is forged"),
            (Refusal::State(StateError::Expired { ago: 61 }), "the state expired 61 seconds ago"),
            (Refusal::State(StateError::WrongRoute), "the state was made for another route"),
            (Refusal::State(StateError::WrongBrowser), "the browser does not have the cookie that the flow began with"),
            (Refusal::WrongContext, "the browser, the user or the redirect URI is not the one that began the flow"),
            (
                Refusal::UnknownFlow,
                "there is no such flow in the store: it expired, or newer ones of this user took its place",
            ),
            (Refusal::IssuerMismatch(CAUSE), "a cause"),
            (
                Refusal::AuthorizationError("access_denied".into()),
                "the authorization server sent the error `access_denied`",
            ),
            (
                Refusal::AlreadyUsed { return_to: "/".to_owned() },
                "the flow was completed before, by the same user in the same browser",
            ),
            (Refusal::ExchangeFailed(CAUSE), "a cause"),
            (Refusal::AuthorizationServerUnusable(CAUSE), "a cause"),
            (Refusal::TooManyFlows(CAUSE), "a cause"),
            (Refusal::ChoreographerFailed(CAUSE), "a cause"),
            (Refusal::ChoreographerUnavailable(CAUSE), "a cause"),
            (Refusal::Timeout(CAUSE), "a cause"),
            (
                Refusal::ForbiddenOrigin,
                "Origin is neither that of the route's `from` nor one of --allow-origin, or it is there twice",
            ),
            (Refusal::NoToken, "this user has no token for this route, and there is no message to answer"),
            (Refusal::NotARequest, "this user has no token for this route, and the message is not a request"),
            (Refusal::CutBody, "this user has no token for this route, and the id is not in what is read of a body"),
            (Refusal::BadBody(Fault::Batch), "the body is a batch, which MCP does not have"),
            (Refusal::VersionMismatch, "mcp-protocol-version and the version in `_meta` differ"),
            (Refusal::BadRequestState(RequestStateError::OtherUser), "`requestState` was made for another user"),
            (Refusal::BadRequestState(RequestStateError::Expired { ago: 61 }), "`requestState` expired 61 seconds ago"),
            (Refusal::TooManyHolds(CAUSE), "a cause"),
            (Refusal::TooManyCalls(CAUSE), "a cause"),
            (Refusal::TooManyBodies(CAUSE), "a cause"),
            (Refusal::TokenUnavailable(CAUSE), "a cause"),
            (Refusal::TokenRenewed, "the upstream refused the token, and there is a newer one"),
            (
                Refusal::RefusedAgain,
                "the upstream refused the token, and the last one was refused too short a while ago to renew it",
            ),
            (Refusal::TokenLost, "the upstream refused the token, and it cannot be renewed"),
            (Refusal::MoreScope, "the upstream wants a scope that the token does not have"),
            (
                Refusal::NoMoreScope,
                "the upstream wants a scope that is not asked for: the route's `scope` does not have it, it was asked for \
                 often enough, or the upstream does not say which",
            ),
            (Refusal::UpstreamRefused(CAUSE), "a cause"),
        ];
        for outcome in Outcome::ALL.iter().filter(|outcome| outcome.row().status >= 400) {
            assert!(causes.iter().any(|(refusal, _)| refusal.outcome() == *outcome), "{outcome:?}");
        }
        for (refusal, words) in causes {
            assert_eq!(refusal.reason(), words);
        }
    }

    /// What the audit log and traces call a failure is what the log and metrics call it.
    #[test]
    fn a_failure_has_one_label() {
        let calls = [CallError::Unavailable(CAUSE), CallError::Failed(CAUSE), CallError::Timeout(CAUSE)];
        let begins = [BeginError::AuthorizationServerUnusable(CAUSE), BeginError::TooManyFlows(CAUSE)];
        let completions = [
            CompleteError::WrongContext,
            CompleteError::UnknownFlow,
            CompleteError::IssuerMismatch(CAUSE),
            CompleteError::AuthorizationError(CAUSE),
            CompleteError::AlreadyUsed { return_to: String::new() },
            CompleteError::ExchangeFailed(CAUSE),
        ];
        for error in begins.into_iter().chain(calls.clone().map(BeginError::Call)) {
            assert_eq!(Refusal::from(error.clone()).code(), error.label());
        }
        for error in completions.into_iter().chain(calls.map(CompleteError::Call)) {
            assert_eq!(Refusal::from(error.clone()).code(), error.label());
        }
    }
}
