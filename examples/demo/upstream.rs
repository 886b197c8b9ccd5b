//! An MCP server that can say who it is, and nothing else.

use std::io;

use axum::{
    Router,
    body::Bytes,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::post,
};
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// Starts it on a free port; the URL of its MCP endpoint. It runs as long as the demo does.
pub async fn start(name: &'static str) -> io::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/mcp", listener.local_addr()?);
    let app = Router::new().route("/mcp", post(move |body: Bytes| async move { answer(name, &body) }));
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(url)
}

/// Answers a JSON-RPC message.
fn answer(name: &str, body: &[u8]) -> Response {
    let message: Value = serde_json::from_slice(body).unwrap_or_default();
    let id = &message["id"];
    let reply = match message["method"].as_str() {
        Some("initialize") => json!({"jsonrpc": "2.0", "id": id, "result": {
            "protocolVersion": "2025-11-25",
            "capabilities": {},
            "serverInfo": {"name": name, "version": env!("CARGO_PKG_VERSION")},
        }}),
        // A notification, which has no answer.
        Some(_) if id.is_null() => return StatusCode::ACCEPTED.into_response(),
        Some(_) => json!({"jsonrpc": "2.0", "id": id, "error": {"code": -32601, "message": "Method not found"}}),
        None => json!({"jsonrpc": "2.0", "id": id, "error": {"code": -32600, "message": "Invalid Request"}}),
    };
    ([(CONTENT_TYPE, "application/json")], reply.to_string()).into_response()
}
