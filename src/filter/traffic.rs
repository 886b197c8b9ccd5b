//! MCP requests on their way to the upstream: each with its user's token, or none of them.
//!
//! Nothing passes without a token. What is refused before it is known whose request it is costs no call. A request that
//! has no token is answered in the upstream's place, so that the person learns where to connect.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use tokio_util::task::TaskTracker;

use super::{
    calls, checks,
    endpoint::Endpoints,
    mcp_routes::{McpRoute, McpRoutes},
    refusal::Refusal,
    request::{Header, Request, Sources},
    telling::{Asked, Desk, Way, takes_events_alone},
    token_cache::Cached,
    verdict::{Role, Verdict},
    waits::Waits,
};
use crate::{
    contract::tokens::UpstreamTokens,
    model::{page_origin::PageOrigin, route::Route, shares::ShareLimits, user::UserRef},
};

/// What MCP's transport takes. All else would show a token to its caller (TRACE), or is nobody's to answer with one.
const METHODS: &str = "GET, POST, DELETE";

/// What an operator says of MCP traffic.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The web origins, besides each route's own, whose pages may send MCP requests.
    pub allow_origins: Vec<PageOrigin>,
    /// How long a token is kept at most, since it was handed out; zero: never.
    pub token_cache: Duration,
    /// How many tokens are kept.
    pub max_cached_tokens: u64,
    /// How many requests may wait for a token, as many again for their bodies, and as many calls until their people are
    /// connected.
    pub max_holds: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            allow_origins: Vec::new(),
            token_cache: Duration::from_secs(5),
            max_cached_tokens: 100_000,
            max_holds: 1000,
        }
    }
}

impl Config {
    /// The tokens as traffic uses them. `limits` is for the calls that look tokens up, apart from all others; `calls` are
    /// where these go, which shutdown waits for.
    pub fn cached(&self, tokens: Arc<dyn UpstreamTokens>, limits: ShareLimits, calls: TaskTracker) -> Arc<Cached> {
        Arc::new(Cached::new(tokens, self.token_cache, self.max_cached_tokens, limits, calls))
    }
}

/// The traffic of every route.
pub struct Traffic {
    routes: McpRoutes,
    allow_origins: Vec<PageOrigin>,
    max_header_bytes: usize,
    desk: Arc<Desk>,
}

impl Traffic {
    /// Beside the endpoints of the same routes, people and paths. They are to forget in these tokens what they change.
    pub fn new(config: Config, endpoints: &Endpoints, tokens: Arc<Cached>) -> Self {
        Self {
            routes: McpRoutes::of(endpoints),
            allow_origins: config.allow_origins,
            max_header_bytes: endpoints.max_header_bytes,
            desk: Arc::new(Desk {
                metrics: Arc::clone(&endpoints.metrics),
                refusals: Arc::clone(&endpoints.refusals),
                tokens,
                waits: Waits::new(config.max_holds),
                state_keys: Arc::clone(&endpoints.tools.state_keys),
                clock: endpoints.tools.clock,
            }),
        }
    }

    /// Whose token a request takes, and of which route, once it passed every check.
    fn owner<'a>(
        &self,
        request: &Request<'_>,
        sources: &Sources<'a>,
        route: &Arc<Route>,
    ) -> Result<(Arc<McpRoute>, UserRef<'a>), Refusal> {
        checks::addressed(request, route)?;
        self.check_origin(request, route)?;
        checks::method(request, METHODS)?;
        self.routes.with_user(route, sources.user)
    }

    /// A page may send a request only where it is the route's own, or the operator allows it: a credential goes along
    /// that the page does not have (MCP, Transports, Security).
    fn check_origin(&self, request: &Request<'_>, route: &Route) -> Result<(), Refusal> {
        let Some(origin) = request.sole(Header::Origin) else { return Ok(()) };
        let mut allowed = self.allow_origins.iter().map(PageOrigin::as_str).chain([route.from.origin().as_str()]);
        if allowed.any(|allowed| allowed.as_bytes() == origin) { Ok(()) } else { Err(Refusal::ForbiddenOrigin) }
    }
}

impl Role for Traffic {
    fn answer(&self, request: &Request<'_>, sources: &Sources<'_>, ends: bool) -> Verdict {
        let route = self.routes.find(request, sources);
        let found = match &route {
            _ if request.header_bytes() > self.max_header_bytes => Err(Refusal::HeadersTooLarge),
            Err(error) => Err(Refusal::MisconfiguredRoute(error.clone())),
            Ok(route) => self.owner(request, sources, route),
        };
        let (route, user) = match found {
            Ok(found) => found,
            Err(refusal) => {
                let name = route.as_ref().map_or(request.authority(), |route| &route.id);
                return Verdict::Reply(self.desk.refuse(&refusal, name, request.id(), None, None, Instant::now()));
            }
        };
        let cached = self.desk.tokens.cached(route.owner(user));
        if let Some(bearer) = cached.as_ref().filter(|bearer| !bearer.comes_again()) {
            return self.desk.forward(bearer);
        }
        let asked = Asked {
            began: Instant::now(),
            request_id: request.id().map(str::to_owned),
            version: request.sole(Header::McpProtocolVersion).map(<[u8]>::to_owned),
            way: Way::of(request, ends),
            takes_events: takes_events_alone(request),
            owner: route.owner(user).to_owner(),
            route,
            trace: request.trace(),
            desk: Arc::clone(&self.desk),
        };
        if let Some(bearer) = cached {
            return asked.with_token(bearer);
        }
        let look_up = self.desk.waits.for_token(&asked.owner.user).and_then(|place| {
            let look_up = self.desk.tokens.look_up(&asked.owner, &asked.trace);
            let look_up = look_up.map_err(|used_up| Refusal::TooManyCalls(calls::limit(used_up)))?;
            Ok((place, look_up))
        });
        match look_up {
            Ok((place, look_up)) => Verdict::Later(Box::pin(look_up.map(|found| {
                drop(place);
                asked.verdict(found)
            }))),
            Err(refusal) => Verdict::Reply(asked.refuse(&refusal)),
        }
    }
}
