//! A request on its way through an endpoint that people come to, and what that makes of it.

use std::sync::Arc;

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;

use super::{
    calls::Calls, document::NameTemplate, refusal::Refusal, reply::Reply, request::Request, state::StateKeys,
    token_cache::Cached, verdict::Said,
};
use crate::{
    contract::choreographer::Choreographer,
    model::{
        brand::Brand,
        clock::Clock,
        paths::Paths,
        route::Route,
        user::{Claims, Users},
    },
};

/// What the endpoints that people come to work with.
pub struct Tools {
    pub paths: Paths,
    pub names: NameTemplate,
    pub users: Users,
    pub brand: Arc<Brand>,
    pub state_keys: Arc<ArcSwap<StateKeys>>,
    pub choreographer: Arc<dyn Choreographer>,
    pub calls: Calls,
    pub clock: Clock,
    /// The tokens that are kept for MCP traffic, where this process carries it.
    pub tokens: Option<Arc<Cached>>,
    /// How long the query of a request may be, in bytes.
    pub max_query_bytes: usize,
}

/// A request that passed the checks that all endpoints share.
pub struct Visit<'a> {
    pub tools: &'a Tools,
    pub request: &'a Request<'a>,
    pub query: Option<&'a [u8]>,
    pub route: &'a Route,
    /// Who is at the browser, where there is metadata of the filter that the operator trusts.
    pub user: Option<Claims<'a>>,
    /// What the same metadata calls that person: for the page, and for no line of the log.
    pub display: Option<&'a str>,
}

/// What an endpoint makes of a request that it takes.
pub enum Step {
    Reply(Reply),
    /// An answer that is given again and again.
    SameReply(Arc<Said<Reply>>),
    /// A page that may take a call to write, which changes nothing.
    Show(BoxFuture<'static, Reply>),
    /// A call that changes something, of this flow where it is known before.
    Call {
        flow: Option<String>,
        call: BoxFuture<'static, Served>,
    },
}

/// What came of a call, and the flow that it was about.
pub struct Served {
    pub flow: Option<String>,
    pub result: Result<Reply, Refusal>,
    /// Where to start again, where the call says more of that than the request did.
    pub again: Option<String>,
}
