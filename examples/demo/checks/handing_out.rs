//! Tokens as whoever carries MCP traffic gets them from the running envoy-cimd: a route's own, and no other.

use envoy_cimd::contract::proto::{
    GetUpstreamTokenRequest, SingleUser, Subject, User, upstream_tokens_client::UpstreamTokensClient, user::Kind,
};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

use super::{Checks, mcp};
use crate::{
    running::{Route, pairs},
    stack::web::Web,
};

/// Asks for each route's own token, and for what must not be had.
pub async fn check(checks: &mut Checks, web: &Web, routes: &[Route; 3], address: &str) {
    checks.about(address);
    let Some(client) = checks.note("takes a connection", connect(address).await) else { return };
    for (route, other) in pairs(routes) {
        checks.about(&route.client_id());
        let own = own(&client, web, route).await;
        checks.note(&format!("has a token, to which the {} MCP server answers initialize (200)", route.name), own);
        let elsewhere = none(&client, single(), &route.client_id(), &other.upstream).await;
        checks.note(&format!("has none for the {} MCP server (NOT_FOUND)", other.name), elsewhere);
        let foreign = none(&client, single(), &other.client_id(), &route.upstream).await;
        checks.note(&format!("shares that of the {} MCP server with no other client (NOT_FOUND)", route.name), foreign);
        let stranger = none(&client, somebody_else(), &route.client_id(), &route.upstream).await;
        checks.note("has none for another user (NOT_FOUND)", stranger);
    }
}

async fn connect(address: &str) -> Result<UpstreamTokensClient<Channel>, String> {
    let endpoint = Endpoint::from_shared(address.to_owned()).map_err(|error| error.to_string())?;
    Ok(UpstreamTokensClient::new(endpoint.connect().await.map_err(|error| error.to_string())?))
}

async fn own(client: &UpstreamTokensClient<Channel>, web: &Web, route: &Route) -> Result<(), String> {
    let token = token(client, single(), &route.client_id(), &route.upstream).await;
    mcp::initialized(web, route, &token.map_err(|status| status.to_string())?).await
}

async fn none(
    client: &UpstreamTokensClient<Channel>,
    user: User,
    client_id: &str,
    upstream: &str,
) -> Result<(), String> {
    match token(client, user, client_id, upstream).await {
        Err(status) if status.code() == Code::NotFound => Ok(()),
        Err(status) => Err(status.to_string()),
        Ok(_) => Err("there is one".to_owned()),
    }
}

async fn token(
    client: &UpstreamTokensClient<Channel>,
    user: User,
    client_id: &str,
    upstream: &str,
) -> Result<String, Status> {
    let request = GetUpstreamTokenRequest {
        user: Some(user),
        client_id: client_id.to_owned(),
        upstream: upstream.to_owned(),
        authorization_server: String::new(),
        ..GetUpstreamTokenRequest::default()
    };
    Ok(client.clone().get_upstream_token(request).await?.into_inner().access_token)
}

/// Whom the demo's envoy-cimd takes everybody for.
fn single() -> User {
    User { kind: Some(Kind::SingleUser(SingleUser {})) }
}

fn somebody_else() -> User {
    let subject = Subject { issuer: "https://login.example".to_owned(), subject: "somebody-else".to_owned() };
    User { kind: Some(Kind::Subject(subject)) }
}
