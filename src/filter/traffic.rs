//! MCP requests on their way to the upstream: each with its user's token, or none of them.
//!
//! Nothing passes without a token. What is refused before it is known whose request it is costs no call. A request that
//! has no token is answered in the upstream's place, so that the person learns where to connect.

use std::{borrow::Cow, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::FutureExt;
use tokio_util::task::TaskTracker;

use super::{
    browser, calls, checks,
    endpoint::Endpoints,
    json_rpc::{
        answers::{self, Code},
        message::{Fault, Id, Kind, Message},
    },
    mcp_routes::{McpRoute, McpRoutes},
    outcome::Outcome,
    pages,
    refusal::{Audience, Reader, Refusal, told},
    refusal_log::RefusalLog,
    reply::Reply,
    request::{Header, Request, Sources},
    token_cache::{Bearer, Cached},
    verdict::{AwaitedBody, Body, Role, Verdict},
    waits::Waits,
};
use crate::{
    contract::tokens::{TokenError, TokenOwner, UpstreamTokens},
    model::{page_origin::PageOrigin, paths::Part, route::Route, shares::ShareLimits, user::User},
    telemetry::metrics::Metrics,
};

/// What MCP's transport takes. All else would show a token to its caller (TRACE), or is nobody's to answer with one.
const METHODS: &str = "GET, POST, DELETE";

/// How long a body is waited for.
const BODY: Duration = Duration::from_secs(5);

/// What an operator says of MCP traffic.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The web origins, besides each route's own, whose pages may send MCP requests.
    pub allow_origins: Vec<PageOrigin>,
    /// How long a token is kept at most, since it was handed out; zero: never.
    pub token_cache: Duration,
    /// How many tokens are kept.
    pub max_cached_tokens: u64,
    /// How many requests may wait for a token, and as many again for their bodies.
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
    tokens: Arc<Cached>,
    waits: Waits,
    desk: Arc<Desk>,
}

impl Traffic {
    /// Beside the endpoints of the same routes, people and paths. They are to forget in these tokens what they change.
    pub fn new(config: Config, endpoints: &Endpoints, tokens: Arc<Cached>) -> Self {
        Self {
            routes: McpRoutes::of(endpoints),
            allow_origins: config.allow_origins,
            max_header_bytes: endpoints.max_header_bytes,
            tokens,
            waits: Waits::new(config.max_holds),
            desk: Arc::new(Desk { metrics: Arc::clone(&endpoints.metrics), refusals: Arc::clone(&endpoints.refusals) }),
        }
    }

    /// Whose token a request takes, once it passed every check.
    fn owner(
        &self,
        request: &Request<'_>,
        sources: &Sources<'_>,
        route: &Arc<Route>,
    ) -> Result<(Arc<McpRoute>, TokenOwner), Refusal> {
        checks::addressed(request, route)?;
        self.check_origin(request, route)?;
        checks::method(request, METHODS)?;
        self.routes.owner(route, sources.user)
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
        let (route, owner) = match found {
            Ok(found) => found,
            Err(refusal) => {
                let name = route.as_ref().map_or(request.authority(), |route| &route.id);
                return Verdict::Reply(self.desk.refuse(&refusal, name, request.id(), None, None));
            }
        };
        if let Some(bearer) = self.tokens.cached(&owner) {
            return self.desk.forward(&bearer);
        }
        let waits = self.waits.for_token(&owner.user);
        let look_up = waits.and_then(|place| {
            let look_up = self.tokens.look_up(&owner, &request.trace());
            let look_up = look_up.map_err(|used_up| Refusal::TooManyCalls(calls::limit(used_up)))?;
            Ok((place, look_up))
        });
        let asked = Asked {
            request_id: request.id().map(str::to_owned),
            version: request.sole(Header::McpProtocolVersion).map(<[u8]>::to_owned),
            way: Way::of(request, ends),
            route,
            user: owner.user,
            waits: self.waits.clone(),
            desk: Arc::clone(&self.desk),
        };
        match look_up {
            Ok((place, look_up)) => Verdict::Later(Box::pin(look_up.map(|found| {
                drop(place);
                asked.verdict(found)
            }))),
            Err(refusal) => Verdict::Reply(asked.refuse(&refusal)),
        }
    }
}

/// Where answers are counted and logged.
struct Desk {
    metrics: Arc<Metrics>,
    refusals: Arc<RefusalLog>,
}

impl Desk {
    fn forward(&self, bearer: &Bearer) -> Verdict {
        self.metrics.handed_out.inc();
        Verdict::Forward(Arc::clone(&bearer.edits))
    }

    fn answer(&self, reply: Reply) -> Reply {
        self.metrics.answered(Part::Traffic, reply.label);
        reply
    }

    fn refuse(
        &self,
        refusal: &Refusal,
        route: &str,
        request_id: Option<&str>,
        link: Option<&str>,
        id: Option<&Id>,
    ) -> Reply {
        self.refusals.note(refusal, route, request_id);
        let audience = Audience {
            reader: Reader::McpClient(id.cloned()),
            request_id: request_id.map(Cow::from),
            start: link.map(Cow::from),
        };
        self.answer(refusal.reply(&audience))
    }
}

/// What is still needed of a request when it is known whether there is a token.
struct Asked {
    route: Arc<McpRoute>,
    request_id: Option<String>,
    /// The revision of the protocol, as the headers name it.
    version: Option<Vec<u8>>,
    way: Way,
    user: User,
    waits: Waits,
    desk: Arc<Desk>,
}

/// How a request without a token is answered.
enum Way {
    /// A person's browser: it goes to the connect page.
    Opened,
    /// It is to open a stream, or end a session.
    NoMessage,
    Message {
        /// Nothing follows the headers.
        ends: bool,
    },
}

impl Way {
    fn of(request: &Request<'_>, ends: bool) -> Self {
        match request.method() {
            "POST" => Self::Message { ends },
            _ if browser::is_opened(request) => Self::Opened,
            _ => Self::NoMessage,
        }
    }
}

impl Asked {
    fn verdict(self, found: Result<Arc<Bearer>, TokenError>) -> Verdict {
        match found {
            Ok(bearer) => self.desk.forward(&bearer),
            Err(TokenError::Unavailable(cause)) => Verdict::Reply(self.refuse(&Refusal::TokenUnavailable(cause))),
            Err(TokenError::NotFound(_)) => match self.way {
                Way::Opened => {
                    let reply = Reply::new(Outcome::SentToConnect).header("location", self.route.link.clone());
                    Verdict::Reply(self.desk.answer(pages::guarded(reply).named(self.request_id.as_deref())))
                }
                Way::NoMessage => Verdict::Reply(self.refuse(&Refusal::NoToken)),
                Way::Message { ends: true } => Verdict::Reply(self.refuse(&Refusal::BadBody(Fault::Empty))),
                Way::Message { ends: false } => match self.waits.for_body(&self.user) {
                    Ok(place) => Verdict::Body(AwaitedBody {
                        longest: BODY,
                        then: Box::new(move |body| {
                            drop(place);
                            Verdict::Reply(self.tell(&body))
                        }),
                    }),
                    Err(refusal) => Verdict::Reply(self.refuse(&refusal)),
                },
            },
        }
    }

    /// Answers a message in the upstream's place.
    fn tell(&self, body: &Body) -> Reply {
        let read = match body {
            Body::Late => Err(Fault::Late),
            Body::Came { bytes, whole } => Message::read(bytes, *whole),
        };
        let message = match read {
            Ok(message) => message,
            Err(fault) => return self.refuse(&Refusal::BadBody(fault)),
        };
        let versions = (self.version.as_deref(), message.version.as_deref());
        let differ = matches!(versions, (Some(header), Some(body)) if header != body.as_bytes());
        match message.kind() {
            Kind::Request { id, .. } if differ => self.refuse_request(&Refusal::VersionMismatch, Some(id)),
            _ if differ => self.refuse(&Refusal::VersionMismatch),
            Kind::NotARequest => self.refuse(&Refusal::NotARequest),
            Kind::Unknown => self.refuse(&Refusal::CutBody),
            Kind::Request { id, method } => {
                let link = &self.route.link;
                let header = || self.version.as_deref().and_then(|version| std::str::from_utf8(version).ok());
                let body = match method {
                    Some("tools/call") => {
                        let version = message.version.as_deref().or_else(header);
                        answers::tool_error(id, &told_to_a_model(link), version)
                    }
                    _ => answers::error(Some(id), Code::Connect, &told(link)),
                };
                self.told(body)
            }
        }
    }

    fn told(&self, body: Bytes) -> Reply {
        let reply = Reply::new(Outcome::Told).header("content-type", "application/json").body(body);
        self.desk.answer(pages::unkept(reply).named(self.request_id.as_deref()))
    }

    fn refuse(&self, refusal: &Refusal) -> Reply {
        self.refuse_request(refusal, None)
    }

    fn refuse_request(&self, refusal: &Refusal, id: Option<&Id>) -> Reply {
        let McpRoute { route, link, .. } = &*self.route;
        self.desk.refuse(refusal, &route.id, self.request_id.as_deref(), Some(link), id)
    }
}

/// Where to get a token, for a model that called a tool.
fn told_to_a_model(link: &str) -> String {
    format!(
        "This MCP server wants its user to connect first. Ask them to open {link} in their browser, and call the tool \
         again after that."
    )
}
