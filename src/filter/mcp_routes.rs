//! The routes of MCP traffic, each with what follows from it.

use std::sync::Arc;

use super::{
    endpoint::Endpoints,
    recent::Recent,
    refusal::Refusal,
    request::{Request, Sources},
    routes::Routes,
    start,
};
use crate::{
    contract::tokens::OwnerRef,
    model::{
        client::ClientId,
        paths::{Endpoint, Paths},
        route::{Route, RouteError},
        upstream::Upstream,
        user::{Claims, UserRef, Users},
    },
};

/// A route, and what traffic needs of it.
pub struct McpRoute {
    pub route: Arc<Route>,
    client_id: ClientId,
    upstream: Upstream,
    /// Where to connect.
    pub link: String,
}

impl McpRoute {
    /// Whose token a request of this user takes.
    pub fn owner<'a>(&'a self, user: UserRef<'a>) -> OwnerRef<'a> {
        OwnerRef { user, client_id: &self.client_id, upstream: &self.upstream }
    }
}

/// The routes of every MCP server, and who may use them.
pub struct McpRoutes {
    routes: Arc<Routes>,
    paths: Paths,
    users: Users,
    /// What follows from the routes that came lately.
    recent: Recent<McpRoute>,
}

impl McpRoutes {
    /// Those of the endpoints.
    pub fn of(endpoints: &Endpoints) -> Self {
        Self {
            routes: Arc::clone(&endpoints.routes),
            paths: endpoints.tools.paths.clone(),
            users: endpoints.tools.users.clone(),
            recent: Recent::default(),
        }
    }

    /// The route of a request.
    ///
    /// # Errors
    /// Where no source gives one, or it cannot be served.
    pub fn find(&self, request: &Request<'_>, sources: &Sources<'_>) -> Result<Arc<Route>, RouteError> {
        self.routes.of_mcp(request, sources)
    }

    /// The route with what traffic needs of it, and who is there.
    ///
    /// # Errors
    /// Where the route has no upstream, or nobody trusted says who is there.
    pub fn with_user<'a>(
        &self,
        route: &Arc<Route>,
        user: Option<Claims<'a>>,
    ) -> Result<(Arc<McpRoute>, UserRef<'a>), Refusal> {
        let route = self.recent.get(
            // The one that is kept keeps its route alive, so no other route can have its address.
            Arc::as_ptr(route) as usize,
            |kept| Arc::ptr_eq(&kept.route, route),
            || self.with_all(route),
        )?;
        Ok((route, self.users.user(user).map_err(Refusal::UserUnknown)?))
    }

    fn with_all(&self, route: &Arc<Route>) -> Result<McpRoute, Refusal> {
        Ok(McpRoute {
            client_id: self.paths.client_id(&route.from),
            upstream: start::upstream(route)?,
            link: self.paths.url(&route.from, Endpoint::Start),
            route: Arc::clone(route),
        })
    }
}
