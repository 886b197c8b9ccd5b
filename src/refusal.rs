//! The ways a request is refused before anything happens, each with its status and its stable label.

use serde::Serialize;

use crate::{reply::Reply, route::RouteError};

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
}

#[derive(Serialize)]
struct Body {
    error: &'static str,
    message: &'static str,
}

impl Refusal {
    /// The label in answers, log lines and metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Self::MisconfiguredRoute(_) => "misconfigured_route",
            Self::HttpsRequired => "https_required",
            Self::MisdirectedRequest => "misdirected_request",
            Self::MethodNotAllowed { .. } => "method_not_allowed",
            Self::NotFound => "not_found",
        }
    }

    pub fn status(&self) -> u16 {
        match self {
            Self::MisconfiguredRoute(_) => 500,
            Self::HttpsRequired => 403,
            Self::MisdirectedRequest => 421,
            Self::MethodNotAllowed { .. } => 405,
            Self::NotFound => 404,
        }
    }

    /// What the caller is told: nothing of the configuration.
    fn message(&self) -> &'static str {
        match self {
            Self::MisconfiguredRoute(_) => "This route is misconfigured. Its operator finds the reason in the log.",
            Self::HttpsRequired => "This address is served over https only.",
            Self::MisdirectedRequest => "This server does not serve that host and port.",
            Self::MethodNotAllowed { .. } => "This address does not take that method.",
            Self::NotFound => "There is nothing at this address.",
        }
    }

    /// The answer, as JSON; `request_id` lets a person report it.
    pub fn reply(&self, request_id: Option<&str>) -> Reply {
        let body = Body { error: self.code(), message: self.message() };
        let mut reply = Reply::new(self.status(), self.code())
            .header("content-type", "application/json")
            .header("cache-control", "no-store")
            .header("x-content-type-options", "nosniff")
            .body(serde_json::to_vec(&body).unwrap_or_default());
        if let Self::MethodNotAllowed { allow } = self {
            reply = reply.header("allow", *allow);
        }
        if let Some(id) = request_id {
            reply = reply.header("x-request-id", id.to_owned());
        }
        reply
    }
}
