//! From a request to its answer: which route, which endpoint, and the checks that all endpoints share.

use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::{
    document::{self, Document, NameTemplate},
    metrics::Metrics,
    refusal::Refusal,
    refusal_log::RefusalLog,
    reply::Reply,
    request::{Request, Sources},
    route::{Endpoint, Fields, Paths, Route, RouteError, RouteTable},
};

/// What the endpoints of every route are built with.
#[derive(Debug)]
pub struct Endpoints {
    pub paths: Paths,
    pub names: NameTemplate,
    /// The `cache-control` of a document.
    pub cache_control: String,
    /// The config file's routes, the newest good ones.
    pub routes: Arc<ArcSwap<RouteTable>>,
    /// Whether the dynamic metadata of a request may name its route.
    pub dynamic_metadata: bool,
    pub metrics: Arc<Metrics>,
    pub refusals: Arc<RefusalLog>,
}

/// What becomes of a request.
#[derive(Debug, PartialEq)]
pub enum Answer {
    /// It is none of ours; Envoy goes on with it.
    PassThrough,
    Reply(Reply),
}

impl Endpoints {
    pub fn answer(&self, request: &Request<'_>, sources: &Sources<'_>) -> Answer {
        let (path, query) = request.path_and_query();
        let endpoint = match self.paths.endpoint(path) {
            Some(Endpoint::Document) => Endpoint::Document,
            // Envoy's configuration answers these until they are served.
            Some(Endpoint::Start | Endpoint::Callback) | None => {
                self.metrics.passed_through.inc();
                return Answer::PassThrough;
            }
        };
        let route = self.route(request, sources);
        let answer = match &route {
            Ok(route) => self.document(request, query, route),
            Err(error) => Err(Refusal::MisconfiguredRoute(error.clone())),
        };
        let reply = answer.unwrap_or_else(|refusal| {
            let name = route.as_ref().map_or(request.authority(), |route| route.id.as_str());
            self.refusals.note(&refusal, name, request.id());
            refusal.reply(request.id())
        });
        self.metrics.answered(endpoint, reply.label);
        Answer::Reply(reply)
    }

    /// The first source that gives `from` wins whole.
    fn route(&self, request: &Request<'_>, sources: &Sources<'_>) -> Result<Arc<Route>, RouteError> {
        let gives_from = |Fields([from, ..]): &Fields<'_>| from.is_some();
        if gives_from(&sources.attributes) {
            return Route::new(&sources.attributes).map(Arc::new);
        }
        if let Some(route) = self.routes.load().find(request.authority()) {
            return Ok(Arc::clone(route));
        }
        if self.dynamic_metadata && gives_from(&sources.dynamic_metadata) {
            return Route::new(&sources.dynamic_metadata).map(Arc::new);
        }
        Err(RouteError::NoFrom)
    }

    fn document(&self, request: &Request<'_>, query: Option<&str>, route: &Route) -> Result<Reply, Refusal> {
        // Built before anything else is looked at: a route without a document is misconfigured for every request.
        let document = Document::new(route, &self.paths, &self.names).map_err(Refusal::MisconfiguredRoute)?;
        check(request, route, document::METHODS)?;
        if query.is_some() {
            return Err(Refusal::NotFound);
        }
        Ok(match request.method() {
            "OPTIONS" => document::preflight(),
            _ => document.reply(request, &self.cache_control),
        })
    }
}

/// The checks that every endpoint makes first, in the order that the contract gives them.
fn check(request: &Request<'_>, route: &Route, methods: &'static str) -> Result<(), Refusal> {
    if !request.is_https() {
        return Err(Refusal::HttpsRequired);
    }
    if !request.is_for(&route.origin) {
        return Err(Refusal::MisdirectedRequest);
    }
    if !methods.split(", ").any(|method| method == request.method()) {
        return Err(Refusal::MethodNotAllowed { allow: methods });
    }
    Ok(())
}
