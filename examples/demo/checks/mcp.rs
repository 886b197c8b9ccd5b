//! The MCP server behind a route: as an MCP client finds it through Envoy, and as it is to whoever reaches it directly.

use serde_json::Value;

use crate::{
    client_document::same,
    running::Route,
    stack::{
        Answered,
        web::{Web, parse},
    },
};

const INITIALIZE: &str = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"demo","version":"1"}}}"#;

const CALL: &str = r#"{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"whoami","arguments":{}}}"#;

/// What a caller must not get through with.
const FOREIGN: &str = "a token of the caller's own";

/// Through Envoy and without a token, a client that calls this address is told where a person connects the route.
pub async fn told_to_connect(web: &Web, url: &str, route: &Route) -> Result<(), String> {
    let answer = initialize(web, url, None).await?;
    same(answer.status, 200)?;
    let reply: Value = serde_json::from_slice(&answer.body).map_err(|error| error.to_string())?;
    same(&reply["id"], &1.into())?;
    let message = reply["error"]["message"].as_str().unwrap_or_default();
    let link = route.start_page();
    if message.contains(&link) { Ok(()) } else { Err(format!("{reply} does not name {link}")) }
}

/// Through Envoy the server answers a client that has no token, and one that brings another: both times with the
/// route's own.
pub async fn called(web: &Web, route: &Route) -> Result<(), String> {
    for own in [None, Some(FOREIGN)] {
        is_server_of(&initialize(web, &route.mcp(), own).await?, route)?;
        // The tool says whose token came along.
        let answer = send(web, &route.mcp(), own, CALL).await?;
        same(answer.status, 200)?;
        let reply: Value = serde_json::from_slice(&answer.body).map_err(|error| error.to_string())?;
        let text = reply["result"]["content"][0]["text"].as_str().unwrap_or_default();
        if !text.contains(&route.client_id()) {
            return Err(format!("{reply} does not name {}", route.client_id()));
        }
    }
    Ok(())
}

/// Without a token it names its metadata (RFC 9728), and that its authorization server.
pub async fn challenge(web: &Web, route: &Route) -> Result<(), String> {
    let answer = initialize(web, &route.upstream, None).await?;
    same(answer.status, 401)?;
    let challenge = answer.all("www-authenticate").join(", ");
    let address = challenge.split('"').skip_while(|part| !part.ends_with("resource_metadata=")).nth(1);
    let address = address.ok_or("its challenge names no metadata")?;
    let answer = web.send(&parse(address)?, |call| call.header("accept", "application/json")).await?;
    same(answer.status, 200)?;
    let metadata: Value = serde_json::from_slice(&answer.body).map_err(|error| error.to_string())?;
    same(&metadata["resource"], &route.upstream.as_str().into())?;
    same(&metadata["authorization_servers"][0], &route.issuer.as_str().into())
}

/// With a token it says who it is.
pub async fn initialized(web: &Web, route: &Route, token: &str) -> Result<(), String> {
    is_server_of(&initialize(web, &route.upstream, Some(token)).await?, route)
}

/// With a token that is not for it, it is as without.
pub async fn refused(web: &Web, route: &Route, token: &str) -> Result<(), String> {
    same(initialize(web, &route.upstream, Some(token)).await?.status, 401)
}

fn is_server_of(answer: &Answered, route: &Route) -> Result<(), String> {
    same(answer.status, 200)?;
    let reply: Value = serde_json::from_slice(&answer.body).map_err(|error| error.to_string())?;
    same(&reply["result"]["serverInfo"]["name"], &route.name.into())
}

async fn initialize(web: &Web, url: &str, token: Option<&str>) -> Result<Answered, String> {
    send(web, url, token, INITIALIZE).await
}

async fn send(web: &Web, url: &str, token: Option<&str>, message: &'static str) -> Result<Answered, String> {
    web.send(&parse(url)?, |call| {
        let call = call
            .method("POST")
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream")
            .body(message);
        match token {
            Some(token) => call.header("authorization", format!("Bearer {token}")),
            None => call,
        }
    })
    .await
}
