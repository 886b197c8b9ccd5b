//! The ways a request is refused, each with its status and its stable label.

use std::{borrow::Cow, sync::LazyLock};

use bytes::Bytes;
use serde::Serialize;

use super::{
    outcome::{NOT_CONNECTED, Outcome},
    pages::{self, Link, Page},
    reply::Reply,
    state::StateError,
};
use crate::{
    contract::error::{BeginError, CallError, CompleteError},
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
    /// No trusted filter named the person. The reason is for the log.
    UserUnknown(String),
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
    IssuerMismatch,
    /// The authorization server sent an error. Its code is for the log.
    AuthorizationError(String),
    /// `return_to` is the choreographer's word, and still to be checked.
    AlreadyUsed {
        return_to: String,
    },
    /// Why is for the log.
    ExchangeFailed(String),
    /// No authorization server can be used for the upstream. The reason is for the log.
    AuthorizationServerUnusable(String),
    /// As many sign-ins, calls or look-ups as may be.
    TooManyFlows,
    /// The call broke after it may have been sent, or what came back keeps no contract.
    ChoreographerFailed,
    /// No connection could be made, so nothing was sent.
    ChoreographerUnavailable,
    Timeout,
}

/// Who is answered: what it takes to write a page, or JSON, for one request.
#[derive(Clone, Debug)]
pub struct Audience<'a> {
    /// A person reads it.
    pub html: bool,
    /// Envoy's name for the request, so that the person can report it.
    pub request_id: Option<Cow<'a, str>>,
    /// The path of the connect page, to start again; none at the document.
    pub start: Option<Cow<'a, str>>,
}

impl Audience<'_> {
    /// For an answer that is made when the request is gone.
    pub fn into_owned(self) -> Audience<'static> {
        let owned = |text: Option<Cow<'_, str>>| text.map(|text| Cow::Owned(text.into_owned()));
        Audience { html: self.html, request_id: owned(self.request_id), start: owned(self.start) }
    }
}

#[derive(Serialize)]
struct Body {
    error: &'static str,
    message: &'static str,
}

/// The same for a program, made once: floods of forged callbacks get it.
static NOT_CONNECTED_JSON: LazyLock<Bytes> =
    LazyLock::new(|| json(&Body { error: "bad_request", message: NOT_CONNECTED }));

fn json(body: &Body) -> Bytes {
    // A struct of texts always serializes.
    serde_json::to_vec(body).unwrap_or_default().into()
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
            Self::IssuerMismatch => Outcome::IssuerMismatch,
            Self::AuthorizationError(_) => Outcome::AuthorizationError,
            Self::AlreadyUsed { .. } => Outcome::AlreadyUsed,
            Self::ExchangeFailed(_) => Outcome::ExchangeFailed,
            Self::AuthorizationServerUnusable(_) => Outcome::AuthorizationServerUnusable,
            Self::TooManyFlows => Outcome::TooManyFlows,
            Self::ChoreographerFailed => Outcome::ChoreographerFailed,
            Self::ChoreographerUnavailable => Outcome::ChoreographerUnavailable,
            Self::Timeout => Outcome::Timeout,
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

    /// What the log says beside the label.
    pub fn reason(&self) -> Option<String> {
        match self {
            Self::MisconfiguredRoute(error) => Some(error.to_string()),
            Self::BadRequest(reason) => Some((*reason).to_owned()),
            Self::AuthorizationServerUnusable(reason) | Self::UserUnknown(reason) | Self::ExchangeFailed(reason) => {
                Some(reason.clone())
            }
            Self::AuthorizationError(code) => Some(format!("the authorization server sent the error `{code}`")),
            Self::State(StateError::Expired { ago }) => Some(format!("it expired {ago} seconds ago")),
            _ => None,
        }
    }

    fn message(&self) -> &'static str {
        self.outcome().row().message
    }

    /// The ways on, the likeliest first.
    fn links<'a>(&'a self, audience: &'a Audience<'_>) -> Vec<Link<'a>> {
        let mut links = Vec::new();
        if let Self::AlreadyUsed { return_to } = self {
            links.push(Link { text: "Go on", href: return_to });
        }
        let again = matches!(self.status(), 400 | 409 | 502 | 503 | 504) || *self == Self::CrossSite;
        if let Some(start) = audience.start.as_deref().filter(|_| again) {
            links.push(Link { text: "Start again", href: start });
        }
        links
    }

    fn title(&self) -> &'static str {
        match self.status() {
            409 => "Already used",
            500 | 502..=504 => "Something went wrong",
            _ => "Not connected",
        }
    }

    /// The answer, as a page for a person and as JSON for a program.
    pub fn reply(&self, audience: &Audience<'_>) -> Reply {
        let reply = Reply::new(self.outcome());
        let mut reply = if audience.html {
            let request_id = audience.request_id.as_deref().unwrap_or_default();
            let page = Page { title: self.title(), message: self.message(), links: self.links(audience), request_id };
            pages::page(reply, &page)
        } else {
            let body = match self.status() {
                400 => NOT_CONNECTED_JSON.clone(),
                _ => json(&Body { error: self.code(), message: self.message() }),
            };
            reply.header("content-type", "application/json").body(body)
        };
        if audience.start.is_some() {
            reply = pages::guarded(reply);
        } else {
            reply = reply.header("cache-control", "no-store").header("x-content-type-options", "nosniff");
        }
        if let Self::MethodNotAllowed { allow } = self {
            reply = reply.header("allow", *allow);
        }
        if let Some(id) = &audience.request_id {
            reply = reply.header("x-request-id", Bytes::copy_from_slice(id.as_bytes()));
        }
        reply
    }
}

impl From<CallError> for Refusal {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Unavailable => Self::ChoreographerUnavailable,
            CallError::Failed => Self::ChoreographerFailed,
            CallError::Timeout => Self::Timeout,
        }
    }
}

impl From<BeginError> for Refusal {
    fn from(error: BeginError) -> Self {
        match error {
            BeginError::AuthorizationServerUnusable(reason) => Self::AuthorizationServerUnusable(reason),
            BeginError::TooManyFlows => Self::TooManyFlows,
            BeginError::Call(error) => error.into(),
        }
    }
}

impl From<CompleteError> for Refusal {
    fn from(error: CompleteError) -> Self {
        match error {
            CompleteError::WrongContext => Self::WrongContext,
            CompleteError::UnknownFlow => Self::UnknownFlow,
            CompleteError::IssuerMismatch => Self::IssuerMismatch,
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

    /// What the audit log and traces call a failure is what the log and metrics call it.
    #[test]
    fn a_failure_has_one_label() {
        let calls = [CallError::Unavailable, CallError::Failed, CallError::Timeout];
        let begins = [BeginError::AuthorizationServerUnusable(String::new()), BeginError::TooManyFlows];
        let completions = [
            CompleteError::WrongContext,
            CompleteError::UnknownFlow,
            CompleteError::IssuerMismatch,
            CompleteError::AuthorizationError(String::new()),
            CompleteError::AlreadyUsed { return_to: String::new() },
            CompleteError::ExchangeFailed(String::new()),
        ];
        for error in begins.into_iter().chain(calls.map(BeginError::Call)) {
            assert_eq!(Refusal::from(error.clone()).code(), error.label());
        }
        for error in completions.into_iter().chain(calls.map(CompleteError::Call)) {
            assert_eq!(Refusal::from(error.clone()).code(), error.label());
        }
    }

    /// Whatever the reason, the answer is the same to the byte.
    #[test]
    fn all_400_are_alike() {
        let refusals = [
            Refusal::BadRequest("a reason"),
            Refusal::State(StateError::BadMac),
            Refusal::State(StateError::Expired { ago: 1 }),
            Refusal::WrongContext,
            Refusal::UnknownFlow,
            Refusal::IssuerMismatch,
            Refusal::AuthorizationError("access_denied".to_owned()),
        ];
        for html in [false, true] {
            let audience = Audience { html, request_id: Some("id".into()), start: Some("/start".into()) };
            let replies = refusals.each_ref().map(|refusal| {
                let reply = refusal.reply(&audience);
                (reply.status, reply.headers, reply.body)
            });
            assert!(replies.windows(2).all(|pair| pair.first() == pair.last()), "{replies:?}");
        }
    }
}
