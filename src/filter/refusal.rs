//! The ways a request is refused, each with its status and its stable label.

use std::{borrow::Cow, sync::LazyLock};

use bytes::Bytes;
use serde::Serialize;

use crate::{
    filter::{
        pages::{self, Link, Page},
        reply::Reply,
        state::StateError,
    },
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
    UserUnknown,
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
    /// The authorization server sent an error.
    AuthorizationError,
    /// `return_to` is the choreographer's word, and still to be checked.
    AlreadyUsed {
        return_to: String,
    },
    ExchangeFailed,
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

/// What every 400 says: the same for each reason, which only the log has.
const NOT_CONNECTED: &str = "The connection was not made, and nothing was changed.";

/// The same for a program, made once: floods of forged callbacks get it.
static NOT_CONNECTED_JSON: LazyLock<Bytes> =
    LazyLock::new(|| json(&Body { error: "bad_request", message: NOT_CONNECTED }));

fn json(body: &Body) -> Bytes {
    // A struct of texts always serializes.
    serde_json::to_vec(body).unwrap_or_default().into()
}

impl Refusal {
    /// The label in log lines and metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Self::MisconfiguredRoute(_) => "misconfigured_route",
            Self::HttpsRequired => "https_required",
            Self::MisdirectedRequest => "misdirected_request",
            Self::MethodNotAllowed { .. } => "method_not_allowed",
            Self::NotFound => "not_found",
            Self::HeadersTooLarge => "headers_too_large",
            Self::UserUnknown => "user_unknown",
            Self::CrossSite => "cross_site",
            Self::Prefetch => "prefetch",
            Self::BadRequest(_) => "bad_request",
            Self::State(error) => error.code(),
            Self::WrongContext => "wrong_context",
            Self::UnknownFlow => "unknown_flow",
            Self::IssuerMismatch => "issuer_mismatch",
            Self::AuthorizationError => "as_error",
            Self::AlreadyUsed { .. } => "already_used",
            Self::ExchangeFailed => "exchange_failed",
            Self::AuthorizationServerUnusable(_) => "authorization_server_unusable",
            Self::TooManyFlows => "too_many_flows",
            Self::ChoreographerFailed => "choreographer_failed",
            Self::ChoreographerUnavailable => "choreographer_unavailable",
            Self::Timeout => "timeout",
        }
    }

    /// The status of the answer: the one place that picks it.
    pub fn status(&self) -> u16 {
        match self {
            Self::BadRequest(_)
            | Self::State(_)
            | Self::WrongContext
            | Self::UnknownFlow
            | Self::IssuerMismatch
            | Self::AuthorizationError => 400,
            Self::HttpsRequired | Self::UserUnknown | Self::CrossSite => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed { .. } => 405,
            Self::AlreadyUsed { .. } => 409,
            Self::MisdirectedRequest => 421,
            Self::HeadersTooLarge => 431,
            Self::MisconfiguredRoute(_) => 500,
            Self::ExchangeFailed | Self::AuthorizationServerUnusable(_) | Self::ChoreographerFailed => 502,
            Self::Prefetch | Self::TooManyFlows | Self::ChoreographerUnavailable => 503,
            Self::Timeout => 504,
        }
    }

    /// What the log says beside the label.
    pub fn reason(&self) -> Option<String> {
        match self {
            Self::MisconfiguredRoute(error) => Some(error.to_string()),
            Self::BadRequest(reason) => Some((*reason).to_owned()),
            Self::AuthorizationServerUnusable(reason) => Some(reason.clone()),
            _ => None,
        }
    }

    /// What the caller is told: nothing of the configuration, and nothing of what the request said.
    fn message(&self) -> &'static str {
        match self {
            Self::MisconfiguredRoute(_) => "This route is misconfigured. Its operator finds the reason in the log.",
            Self::HttpsRequired => "This address is served over https only.",
            Self::MisdirectedRequest => "This server does not serve that host and port.",
            Self::MethodNotAllowed { .. } => "This address does not take that method.",
            Self::NotFound => "There is nothing at this address.",
            Self::HeadersTooLarge => "The headers of the request are too large.",
            Self::UserUnknown => {
                "Nobody told this service who you are. Its operator has to put an authentication filter before this \
                 address, and name the filter's metadata with --user-namespace, --user-issuer and --user-subject; or \
                 to say --single-user where only one person can get here."
            }
            Self::CrossSite => "Another page tried to start this sign-in. It has to be started on its own page.",
            Self::Prefetch => "This address is not for fetching ahead.",
            Self::BadRequest(_)
            | Self::State(_)
            | Self::WrongContext
            | Self::UnknownFlow
            | Self::IssuerMismatch
            | Self::AuthorizationError => NOT_CONNECTED,
            Self::AlreadyUsed { .. } => {
                "This sign-in ended before, and can be used only once. If it worked, go on; if it did not, start again."
            }
            Self::ExchangeFailed => "The authorization server did not give access.",
            Self::AuthorizationServerUnusable(_) => {
                "No authorization server was found that can be used. The operator finds the reason in the log."
            }
            Self::TooManyFlows => "Too many sign-ins are going on. Try again in a few minutes.",
            Self::ChoreographerFailed => "The service that signs in failed, and the sign-in may be lost.",
            Self::ChoreographerUnavailable => {
                "The service that signs in cannot be reached, and nothing is lost: reload this page in a moment."
            }
            Self::Timeout => "The service that signs in took too long, and the sign-in may be lost.",
        }
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
        let reply = Reply::new(self.status(), self.code());
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the reason, the answer is the same to the byte.
    #[test]
    fn all_400_are_alike() {
        let refusals = [
            Refusal::BadRequest("a reason"),
            Refusal::State(StateError::BadMac),
            Refusal::State(StateError::Expired),
            Refusal::WrongContext,
            Refusal::UnknownFlow,
            Refusal::IssuerMismatch,
            Refusal::AuthorizationError,
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
