//! An MCP server that can say who it is and who calls, to whoever has a token of its authorization server for it, and
//! nothing else.

use std::{io, sync::Arc};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinSet};

use crate::{
    authorization_server::{AuthorizationServer, Grants},
    pages::{self, Endpoint},
    serving,
};

/// The tool that it has.
pub const WHOAMI: &str = "whoami";

/// One that has its address, but does not answer yet.
pub struct Upstream {
    name: &'static str,
    url: String,
    metadata_url: String,
    listener: TcpListener,
}

#[derive(Clone)]
struct Shared {
    name: &'static str,
    url: String,
    metadata_url: String,
    issuer: String,
    grants: Arc<Grants>,
}

impl Upstream {
    /// Takes a free port.
    pub async fn bind(name: &'static str) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let origin = format!("http://{}", listener.local_addr()?);
        let metadata_url = format!("{origin}/.well-known/oauth-protected-resource/mcp");
        Ok(Self { name, url: format!("{origin}/mcp"), metadata_url, listener })
    }

    /// Its MCP endpoint, which is also what it calls itself in OAuth.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Answers until the demo ends, to whoever has a token of this authorization server.
    pub fn serve(self, server: &AuthorizationServer, servers: &mut JoinSet<String>) {
        let Self { name, url, metadata_url, listener } = self;
        let what = format!("the {name} MCP server");
        let shared = Shared { name, url, metadata_url, issuer: server.issuer().to_owned(), grants: server.grants() };
        let app = Router::new()
            .route("/mcp", get(stream_or_page).post(message))
            .route("/.well-known/oauth-protected-resource/mcp", get(metadata))
            .with_state(shared);
        serving::spawn(servers, what, listener, app);
    }
}

/// RFC 9728.
async fn metadata(State(server): State<Shared>) -> Response {
    json_answer(&json!({
        "resource": server.url,
        "authorization_servers": [server.issuer],
        "bearer_methods_supported": ["header"],
        "resource_name": format!("{} MCP server", server.name),
    }))
}

/// A program that gets here wants a stream, which this server has for nobody. A person is told what this is: it is
/// where the demo's connect pages send people on to.
async fn stream_or_page(State(server): State<Shared>, headers: HeaderMap) -> Response {
    let accepts = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    if accepts.contains("text/html") {
        let clients = server.grants.clients();
        let page = Endpoint { name: server.name, resource: &server.url, issuer: &server.issuer, clients: &clients };
        return pages::page(StatusCode::OK, &page);
    }
    match server.client(&headers) {
        None => server.challenge(&headers),
        Some(_) => (StatusCode::METHOD_NOT_ALLOWED, [(header::ALLOW, "POST")]).into_response(),
    }
}

/// A JSON-RPC message.
async fn message(State(server): State<Shared>, headers: HeaderMap, body: Bytes) -> Response {
    let Some(client_id) = server.client(&headers) else { return server.challenge(&headers) };
    let message: Value = serde_json::from_slice(&body).unwrap_or_default();
    let id = &message["id"];
    json_answer(&match message["method"].as_str() {
        Some("initialize") => json!({"jsonrpc": "2.0", "id": id, "result": {
            "protocolVersion": "2025-11-25",
            "capabilities": {"tools": {}},
            "serverInfo": {"name": server.name, "version": env!("CARGO_PKG_VERSION")},
        }}),
        Some("tools/list") => json!({"jsonrpc": "2.0", "id": id, "result": {"tools": [{
            "name": WHOAMI, "description": "Says whose token came along", "inputSchema": {"type": "object"},
        }]}}),
        Some("tools/call") if message["params"]["name"] == WHOAMI => {
            let text = format!("This is the {} MCP server, and your OAuth client is {client_id}", server.name);
            json!({"jsonrpc": "2.0", "id": id, "result": {"content": [{"type": "text", "text": text}]}})
        }
        // A notification, which has no answer.
        Some(_) if id.is_null() => return StatusCode::ACCEPTED.into_response(),
        Some(_) => json!({"jsonrpc": "2.0", "id": id, "error": {"code": -32601, "message": "Method not found"}}),
        None => json!({"jsonrpc": "2.0", "id": id, "error": {"code": -32600, "message": "Invalid Request"}}),
    })
}

impl Shared {
    /// The client that a request's token was given to, where it is good here.
    fn client(&self, headers: &HeaderMap) -> Option<String> {
        self.grants.client(bearer(headers)?, &self.url)
    }

    /// What a request gets that has no such token (RFC 6750, section 3; RFC 9728, section 5.1).
    fn challenge(&self, headers: &HeaderMap) -> Response {
        let error = if bearer(headers).is_some() { "error=\"invalid_token\", " } else { "" };
        let challenge = format!("Bearer {error}resource_metadata=\"{}\"", self.metadata_url);
        (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, challenge)]).into_response()
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let credentials = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = credentials.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn json_answer(body: &Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}
