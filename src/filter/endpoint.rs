//! From a request to its answer: which route, which endpoint, and the checks that all endpoints share.

use std::{borrow::Cow, fmt, sync::Arc, time::Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::{FutureExt, future::BoxFuture};
use tokio_util::task::TaskTracker;

use super::{
    browser, callback,
    calls::Calls,
    checks, disconnect,
    document::{self, Document, NameTemplate},
    outcome::Outcome,
    recent::Recent,
    refusal::{
        Refusal,
        answer::{Audience, Reader},
    },
    refusal_log::RefusalLog,
    reply::Reply,
    request::{Request, Sources},
    routes::Routes,
    start,
    state::StateKeys,
    verdict::{Role, Said, Verdict},
    visit::{Served, Step, Tools, Visit},
};
use crate::{
    contract::choreographer::Choreographer,
    model::{
        brand::Brand,
        clock::UnixTime,
        paths::{Endpoint, Paths},
        public_url::PublicUrl,
        route::{Route, RouteError},
        route_table::RouteTable,
        shares::ShareLimits,
        user::Users,
    },
    telemetry::metrics::Metrics,
};

/// What an operator says of the endpoints.
#[derive(Clone, Debug)]
pub struct Config {
    pub paths: Paths,
    pub names: NameTemplate,
    /// How long a document may be cached, in seconds.
    pub document_max_age: u32,
    /// Whether the dynamic metadata of a request may name its route.
    pub dynamic_metadata: bool,
    pub users: Users,
    pub brand: Brand,
    pub limits: Limits,
}

/// What is taken on at once, and of one request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// How many calls of the choreographer may be under way, of each kind.
    pub calls: ShareLimits,
    /// How long the headers of a request may be, in bytes.
    pub max_header_bytes: usize,
    /// How long the query of a request may be, in bytes.
    pub max_query_bytes: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            paths: Paths::default(),
            names: NameTemplate::default(),
            document_max_age: 3600,
            dynamic_metadata: false,
            users: Users::Unknown,
            brand: Brand::default(),
            limits: Limits {
                calls: ShareLimits { in_all: 1000, of_user: 20, of_server: 100 },
                max_header_bytes: 64 << 10,
                max_query_bytes: 8 << 10,
            },
        }
    }
}

/// The endpoints of every route.
pub struct Endpoints {
    pub tools: Tools,
    /// The documents that were asked for lately.
    recent_documents: Recent<KeptDocument>,
    /// The `cache-control` of a document.
    cache_control: Bytes,
    pub routes: Arc<Routes>,
    pub max_header_bytes: usize,
    pub metrics: Arc<Metrics>,
    pub refusals: Arc<RefusalLog>,
    /// The calls in flight, which go on when the browser goes away, and which shutdown waits for.
    pub calls: TaskTracker,
}

/// A document, and what of a route it follows from.
#[derive(Debug)]
struct KeptDocument {
    from: PublicUrl,
    client_name: Option<String>,
    document: Document,
    /// The answer to who asks for it.
    served: Arc<Said<Reply>>,
}

impl KeptDocument {
    fn new(route: &Route, tools: &Tools, cache_control: &Bytes) -> Result<Self, RouteError> {
        let document = Document::new(route, &tools.paths, &tools.names)?;
        let served = Said::new(document.served(cache_control));
        Ok(Self { from: route.from.clone(), client_name: route.client_name().map(str::to_owned), document, served })
    }
}

impl fmt::Debug for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoints").field("paths", &self.tools.paths).finish_non_exhaustive()
    }
}

impl Endpoints {
    /// `calls` are where its calls of the choreographer go, which shutdown waits for.
    pub fn new(
        config: Config,
        routes: RouteTable,
        state_keys: StateKeys,
        choreographer: Arc<dyn Choreographer>,
        metrics: Arc<Metrics>,
        calls: TaskTracker,
    ) -> Self {
        metrics.expect(Outcome::labels());
        Self {
            tools: Tools {
                paths: config.paths,
                names: config.names,
                users: config.users,
                brand: Arc::new(config.brand),
                state_keys: Arc::new(ArcSwap::from_pointee(state_keys)),
                choreographer,
                calls: Calls::new(config.limits.calls),
                clock: UnixTime::now,
                tokens: None,
                max_query_bytes: config.limits.max_query_bytes,
            },
            recent_documents: Recent::default(),
            cache_control: document::cache_control(config.document_max_age),
            routes: Arc::new(Routes::new(routes, config.dynamic_metadata)),
            max_header_bytes: config.limits.max_header_bytes,
            metrics,
            refusals: Arc::default(),
            calls,
        }
    }

    /// Answers a request for one of our paths; counts and logs it.
    pub fn answer(&self, request: &Request<'_>, sources: &Sources<'_>) -> Verdict {
        let began = Instant::now();
        let (path, query) = request.path_and_query();
        let ours = self
            .tools
            .paths
            .find(path)
            .and_then(|(of, endpoint)| Some((self.routes.of_endpoint(request, sources, of)?, endpoint)));
        let Some((route, endpoint)) = ours else {
            self.metrics.passed_through.inc();
            return Verdict::Pass;
        };
        let visit = |route| {
            let Sources { user, display, .. } = *sources;
            Visit { tools: &self.tools, request, query, route, user, display }
        };
        let step = match &route {
            _ if request.header_bytes() > self.max_header_bytes => Err(Refusal::HeadersTooLarge),
            Err(error) => Err(Refusal::MisconfiguredRoute(error.clone())),
            Ok(route) => match endpoint {
                Endpoint::Document => self.document(request, query, route),
                // A route that cannot connect is misconfigured for every request of its connect page.
                Endpoint::Start => start::target(route).and_then(|target| {
                    check(request, route, start::METHODS)?;
                    start::start(visit(route), target)
                }),
                Endpoint::Callback => {
                    check(request, route, callback::METHODS).and_then(|()| callback::callback(visit(route)))
                }
                Endpoint::Disconnect => start::upstream(route).and_then(|upstream| {
                    check(request, route, disconnect::METHODS)?;
                    disconnect::disconnect(visit(route), upstream)
                }),
            },
        };
        let route = route.as_deref().ok();
        let name = route.map_or(request.authority(), |route| route.id.as_str());
        let audience = || self.audience(request, route, endpoint);
        match step {
            Ok(Step::Reply(reply)) => {
                count(&self.metrics, endpoint, &reply, began);
                Verdict::Reply(reply)
            }
            Ok(Step::SameReply(reply)) => {
                count(&self.metrics, endpoint, &reply, began);
                Verdict::SameReply(reply)
            }
            Ok(Step::Show(page)) => {
                let metrics = Arc::clone(&self.metrics);
                Verdict::Later(Box::pin(page.map(move |reply| {
                    count(&metrics, endpoint, &reply, began);
                    Verdict::Reply(reply)
                })))
            }
            Ok(Step::Call { flow, call }) => {
                let report = Report {
                    endpoint,
                    route: name.to_owned(),
                    audience: audience().into_owned(),
                    metrics: Arc::clone(&self.metrics),
                    refusals: Arc::clone(&self.refusals),
                };
                Verdict::Later(Box::pin(report.on(&self.calls, flow, call, began).map(Verdict::Reply)))
            }
            Err(refusal) => self.refuse(&audience(), endpoint, name, &refusal, began),
        }
    }

    fn refuse(
        &self,
        audience: &Audience<'_>,
        endpoint: Endpoint,
        route: &str,
        refusal: &Refusal,
        began: Instant,
    ) -> Verdict {
        self.refusals.note(refusal, route, audience.request_id.as_deref());
        let reply = refusal.reply(audience);
        count(&self.metrics, endpoint, &reply, began);
        Verdict::Reply(reply)
    }

    fn document(&self, request: &Request<'_>, query: Option<&[u8]>, route: &Route) -> Result<Step, Refusal> {
        // Built before anything else is looked at: a route without a document is misconfigured for every request.
        let kept = self.recent_documents.get(
            (route.from.as_str(), route.client_name()),
            |kept| kept.from == route.from && kept.client_name.as_deref() == route.client_name(),
            || KeptDocument::new(route, &self.tools, &self.cache_control),
        );
        let kept = kept.map_err(Refusal::MisconfiguredRoute)?;
        check(request, route, document::METHODS)?;
        if query.is_some() {
            return Err(Refusal::NotFound);
        }
        Ok(match request.method() {
            "OPTIONS" => Step::Reply(document::preflight()),
            _ if kept.document.is_had(request) => Step::Reply(kept.document.not_modified(&self.cache_control)),
            _ => Step::SameReply(Arc::clone(&kept.served)),
        })
    }

    /// Programs fetch documents; people come to the others.
    fn audience<'a>(&'a self, request: &Request<'a>, route: Option<&Route>, endpoint: Endpoint) -> Audience<'a> {
        let for_people = endpoint != Endpoint::Document;
        let start = || match route {
            Some(route) => {
                let query = request.path_and_query().1.filter(|_| endpoint == Endpoint::Start);
                match query.and_then(|query| start::wanted(&self.tools, route, query)) {
                    Some(wanted) => start::again(&start::home(&self.tools, route), &wanted).into(),
                    None => self.tools.paths.on(&route.from, Endpoint::Start).into(),
                }
            }
            // Nothing leads there: a route that is misconfigured cannot be started again.
            None => self.tools.paths.of(Endpoint::Start).as_str().into(),
        };
        Audience {
            reader: match for_people && browser::wants_html(request) {
                true => Reader::Person(Arc::clone(&self.tools.brand)),
                false => Reader::Program,
            },
            request_id: request.id().map(Cow::from),
            start: for_people.then(start),
        }
    }
}

impl Role for Endpoints {
    fn answer(&self, request: &Request<'_>, sources: &Sources<'_>, _: bool) -> Verdict {
        self.answer(request, sources)
    }
}

/// Counts an answer, and notes how long it took.
fn count(metrics: &Metrics, endpoint: Endpoint, reply: &Reply, began: Instant) {
    metrics.answered(endpoint, reply.label);
    metrics.answered_since(endpoint, began);
}

/// The checks that every endpoint makes first, in the order that the contract gives them.
fn check(request: &Request<'_>, route: &Route, methods: &'static str) -> Result<(), Refusal> {
    checks::addressed(request, route)?;
    checks::method(request, methods)
}

/// A call that panicked.
fn ended_early() -> Refusal {
    Refusal::ChoreographerFailed("the call ended without an answer: a fault of envoy-cimd itself".into())
}

/// What is said of a call when it is over.
struct Report {
    endpoint: Endpoint,
    route: String,
    audience: Audience<'static>,
    metrics: Arc<Metrics>,
    refusals: Arc<RefusalLog>,
}

impl Report {
    /// Runs a call as a task of its own, since an exchange that began goes on when the browser goes away.
    fn on(
        self,
        calls: &TaskTracker,
        flow: Option<String>,
        call: BoxFuture<'static, Served>,
        began: Instant,
    ) -> BoxFuture<'static, Reply> {
        let audience = self.audience.clone();
        let task = calls.spawn(async move {
            // A bug in a call must not take its line away.
            let served = std::panic::AssertUnwindSafe(call).catch_unwind().await;
            let served = served.unwrap_or(Served { flow, result: Err(ended_early()), again: None });
            self.finish(served, began)
        });
        Box::pin(async move { task.await.unwrap_or_else(|_| ended_early().reply(&audience)) })
    }

    fn finish(self, served: Served, began: Instant) -> Reply {
        let Served { flow, result, again } = served;
        let mut audience = self.audience;
        audience.start = again.map(Cow::Owned).or(audience.start);
        let reply = result.as_ref().map_or_else(|refusal| refusal.reply(&audience), Reply::clone);
        count(&self.metrics, self.endpoint, &reply, began);
        let request_id = audience.request_id.as_deref().unwrap_or_default();
        if let Err(refusal @ Refusal::ChoreographerUnavailable(_)) = &result {
            // Nothing left the process, so it is one of those that come in floods.
            self.refusals.note(refusal, &self.route, Some(request_id));
            return reply;
        }
        let (endpoint, label, route) = (self.endpoint.name(), reply.label, self.route);
        let flow = flow.unwrap_or_default();
        let elapsed_ms = began.elapsed().as_millis();
        match result.err().map(|refusal| (refusal.status(), refusal.reason())) {
            None => tracing::info!(endpoint, label, route, request_id, flow, elapsed_ms, "served"),
            Some((..500, reason)) => {
                tracing::info!(endpoint, label, route, request_id, flow, %reason, elapsed_ms, "refused");
            }
            Some((_, reason)) => {
                tracing::warn!(endpoint, label, route, request_id, flow, %reason, elapsed_ms, "refused");
            }
        }
        reply
    }
}
