//! Upstreams that refuse a request: what is learned from that, and what the caller reads instead.
//!
//! A client that read a 401 or 403 would begin an OAuth of its own, behind our back. So each of the upstream's own is
//! answered here, and none of its challenges reaches anybody; those of Envoy and its filters pass as they are.

use std::{borrow::Cow, sync::Arc, time::Instant};

use bytes::Bytes;
use futures_util::FutureExt;

use super::{
    browser, calls,
    endpoint::Endpoints,
    mcp_routes::{McpRoute, McpRoutes},
    outcome::Outcome,
    pages,
    refusal::{
        Refusal,
        answer::{Audience, Reader},
    },
    refusal_log::RefusalLog,
    reply::Reply,
    reports::Reports,
    request::{Header, Request, Sources},
    response::{CHALLENGE, Response},
    traffic,
    verdict::{Edits, Role, Said, Verdict},
};
use crate::{
    contract::{
        error::Cause,
        tokens::{self, RefusedStatus, Renewal, TokenError, TokenOwner, UpstreamTokens},
    },
    model::{challenge::Challenge, page_origin::PageOrigin, paths::Part, scope::MAX_SCOPE, shares::ShareLimits},
    telemetry::metrics::Metrics,
};

/// The longest address that is reported, in bytes.
const MAX_URL: usize = 2048;

/// The refusals of every route's upstream.
pub struct Refused {
    routes: McpRoutes,
    /// The web origins, besides each route's own, whose pages may send MCP requests.
    allow_origins: Vec<PageOrigin>,
    reports: Reports,
    desk: Arc<Desk>,
}

impl Refused {
    /// Beside the endpoints of the same routes, people and paths. `config` and `tokens` are those of traffic; `limits` is for
    /// the reports, apart from all other calls.
    pub fn new(
        config: traffic::Config,
        endpoints: &Endpoints,
        tokens: Arc<dyn UpstreamTokens>,
        limits: ShareLimits,
    ) -> Self {
        Self {
            routes: McpRoutes::of(endpoints),
            allow_origins: config.allow_origins,
            reports: Reports::new(tokens, limits, endpoints.calls.clone()),
            desk: Arc::new(Desk { metrics: Arc::clone(&endpoints.metrics), refusals: Arc::clone(&endpoints.refusals) }),
        }
    }

    fn caller(&self, request: &Request<'_>) -> Caller {
        let origin = request.sole(Header::Origin).unwrap_or_default();
        let page = self.allow_origins.iter().find(|allowed| allowed.as_str().as_bytes() == origin);
        Caller {
            began: Instant::now(),
            request_id: request.id().map(str::to_owned),
            page: page.map(|origin| Bytes::copy_from_slice(origin.as_str().as_bytes())),
        }
    }

    /// What is to be reported of an answer, and for whom.
    fn report(
        &self,
        status: u16,
        response: &Response<'_>,
        sources: &Sources<'_>,
    ) -> Result<(Arc<McpRoute>, TokenOwner, tokens::Refused), Unreported> {
        let found = self.routes.find(&response.request, sources);
        let route = found.map_err(|error| Unreported { route: None, why: error.to_string().into() })?;
        let unreported = |why: Cause| Unreported { route: Some(route.id.clone()), why };
        let challenge = Challenge::read(response.challenges.iter().copied());
        let status = match status {
            401 if challenge.is_bearer() => RefusedStatus::Unauthorized,
            401 => return Err(unreported("it answered 401 without a challenge of the Bearer scheme".into())),
            _ if challenge.is_insufficient_scope() => RefusedStatus::InsufficientScope,
            _ => return Err(unreported("it answered 403, and not for want of a scope".into())),
        };
        let Some(tag) = response.tag else {
            return Err(unreported(
                "nothing says which token went along: the filter of the role traffic was not there".into(),
            ));
        };
        let route_scope = route.scope().map_err(|error| unreported(error.to_string().into()))?;
        let (mcp_route, user) =
            self.routes.with_user(&route, sources.user).map_err(|refusal| unreported(refusal.reason()))?;
        let short = |text: Option<String>, longest| text.filter(|text| text.len() <= longest);
        let refused = tokens::Refused {
            tag,
            status,
            scope: short(challenge.scope().text(), MAX_SCOPE),
            resource_metadata: short(challenge.resource_metadata().map(str::to_owned), MAX_URL),
            route_scope,
        };
        let owner = mcp_route.owner(user).to_owner();
        Ok((mcp_route, owner, refused))
    }
}

/// Why nothing is reported of a refusal, and of which route, where that is known.
struct Unreported {
    route: Option<String>,
    why: Cause,
}

impl Role for Refused {
    /// It is there for answers.
    fn answer(&self, _: &Request<'_>, _: &Sources<'_>, _: bool) -> Verdict {
        Verdict::Pass
    }

    fn judge(&self, response: &Response<'_>, sources: &Sources<'_>) -> Verdict {
        if !response.is_of_upstream() {
            return Verdict::Pass;
        }
        let status = match response.status {
            Some(status @ (401 | 403)) => status,
            _ => return Verdict::Forward(Said::new(Edits { remove: &[CHALLENGE], ..Edits::default() })),
        };
        let request = &response.request;
        let caller = self.caller(request);
        let (route, owner, refused) = match self.report(status, response, sources) {
            Ok(reported) => reported,
            Err(Unreported { route, why }) => {
                let route = route.as_deref().unwrap_or_else(|| request.authority());
                return Verdict::Reply(self.desk.refuse(&Refusal::UpstreamRefused(why), route, &caller, None));
            }
        };
        let asked = Asked {
            route,
            caller,
            is_opened: browser::is_opened(request),
            status: refused.status,
            desk: Arc::clone(&self.desk),
        };
        match self.reports.make(owner, refused, request.trace()) {
            Ok(report) => Verdict::Later(Box::pin(report.map(move |came| Verdict::Reply(asked.reply(came))))),
            Err(used_up) => Verdict::Reply(asked.refuse(&Refusal::TooManyCalls(calls::limit(used_up)))),
        }
    }
}

/// Who reads the answer.
struct Caller {
    /// When the upstream's answer came.
    began: Instant,
    /// Envoy's name for the request.
    request_id: Option<String>,
    /// The origin of the page that sent it, where that may read the answer and is not the route's own.
    page: Option<Bytes>,
}

/// Where answers are counted and logged.
struct Desk {
    metrics: Arc<Metrics>,
    refusals: Arc<RefusalLog>,
}

impl Desk {
    fn answer(&self, reply: Reply, caller: &Caller) -> Reply {
        self.metrics.answered(Part::Refused, reply.label);
        self.metrics.answered_since(Part::Refused, caller.began);
        match &caller.page {
            // No other filter of Envoy's sees an answer that takes the place of the upstream's, so none can say it.
            Some(origin) => reply.header("access-control-allow-origin", origin.clone()),
            None => reply,
        }
    }

    fn refuse(&self, refusal: &Refusal, route: &str, caller: &Caller, link: Option<&str>) -> Reply {
        let request_id = caller.request_id.as_deref();
        self.refusals.note(refusal, route, request_id);
        // Envoy does not show the request's body with its answer, so nobody knows its id.
        let audience = Audience {
            reader: Reader::McpClient(None),
            request_id: request_id.map(Cow::from),
            start: link.map(Cow::from),
        };
        self.answer(refusal.reply(&audience), caller)
    }
}

/// What is still needed of a request when it is known what its report came to.
struct Asked {
    route: Arc<McpRoute>,
    caller: Caller,
    /// Whether a person opened the address in a browser.
    is_opened: bool,
    status: RefusedStatus,
    desk: Arc<Desk>,
}

impl Asked {
    fn reply(&self, came: Result<Renewal, TokenError>) -> Reply {
        let refusal = match came {
            Ok(Renewal::Renewed) => Refusal::TokenRenewed,
            Ok(Renewal::TooSoon) => Refusal::RefusedAgain,
            Ok(Renewal::NoMore) => Refusal::NoMoreScope,
            Err(TokenError::Unavailable(cause)) => Refusal::TokenUnavailable(cause),
            Ok(Renewal::Connect) | Err(TokenError::NotFound(_)) if self.is_opened => {
                let reply = Reply::new(Outcome::SentToConnect).header("location", self.route.link.clone());
                let reply = pages::guarded(reply).named(self.caller.request_id.as_deref());
                return self.desk.answer(reply, &self.caller);
            }
            Ok(Renewal::Connect) if self.status == RefusedStatus::InsufficientScope => Refusal::MoreScope,
            Ok(Renewal::Connect) | Err(TokenError::NotFound(_)) => Refusal::TokenLost,
        };
        self.refuse(&refusal)
    }

    fn refuse(&self, refusal: &Refusal) -> Reply {
        let McpRoute { route, link, .. } = &*self.route;
        self.desk.refuse(refusal, &route.id, &self.caller, Some(link))
    }
}
