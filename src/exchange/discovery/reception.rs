//! How an upstream receives whoever comes without a token (RFC 9728, section 5.1). Many say something to POST alone, so
//! where GET brings no challenge, a client of MCP is what comes.

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, header};
use serde_json::{Value, json};
use url::Url;

use crate::{
    model::challenge::Challenge,
    net::outgoing::{Outgoing, error::FetchError},
    telemetry::traces::covered,
};

/// What an upstream says to whoever comes without a token.
#[derive(Clone, Debug, Default)]
pub struct Reception {
    /// It says nothing where there was none.
    pub challenge: Challenge,
    /// Whether it served a request of MCP.
    pub is_open: bool,
}

/// What it says to GET: its challenge, where there is one.
///
/// # Errors
/// Where it cannot be reached.
pub async fn get(outgoing: &Outgoing, upstream: &Url) -> Result<Option<Challenge>, FetchError> {
    match outgoing.send_for_headers(request(upstream, Method::GET, ACCEPT), Some(upstream)).await {
        Ok(answer) => Ok(challenge(answer.status(), answer.headers())),
        // It is there, and may have more to say to a client.
        Err(error) if error.may_have_arrived() => Ok(None),
        Err(error) => Err(error),
    }
}

/// What it says to a client of MCP: to one of the revision 2026-07-28, else to one of 2025-11-25. It gets no more than that:
/// a session that it opens is ended.
pub async fn post(outgoing: &Outgoing, upstream: &Url) -> Reception {
    let mut is_open = false;
    for request in [discover(upstream), initialize(upstream)] {
        let answer = match outgoing.send_for_headers(request, Some(upstream)).await {
            Ok(answer) => answer,
            Err(error) => {
                tracing::debug!(%error, "the upstream did not answer a client without a token");
                continue;
            }
        };
        if let Some(session) = answer.headers().get(SESSION) {
            end_session(outgoing.clone(), upstream.clone(), session.clone());
        }
        if let Some(challenge) = challenge(answer.status(), answer.headers()) {
            return Reception { challenge, is_open: false };
        }
        is_open |= answer.status().is_success();
    }
    Reception { challenge: Challenge::default(), is_open }
}

const ACCEPT: &str = "application/json, text/event-stream";
const SESSION: HeaderName = HeaderName::from_static("mcp-session-id");
const REVISION: HeaderName = HeaderName::from_static("mcp-protocol-version");

fn challenge(status: StatusCode, headers: &HeaderMap) -> Option<Challenge> {
    let challenge = (status == StatusCode::UNAUTHORIZED)
        .then(|| Challenge::read(headers.get_all(header::WWW_AUTHENTICATE).into_iter().map(HeaderValue::as_bytes)));
    challenge.filter(Challenge::is_bearer)
}

/// MCP 2026-07-28: each request says by itself who sends it.
fn discover(upstream: &Url) -> Request<Vec<u8>> {
    let params = json!({"_meta": {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": client_info(),
        "io.modelcontextprotocol/clientCapabilities": {},
    }});
    let mut request = call(upstream, "server/discover", &params);
    request.headers_mut().insert(REVISION, HeaderValue::from_static("2026-07-28"));
    request.headers_mut().insert("mcp-method", HeaderValue::from_static("server/discover"));
    request
}

/// MCP 2025-11-25: a session begins with this.
fn initialize(upstream: &Url) -> Request<Vec<u8>> {
    let params = json!({"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": client_info()});
    call(upstream, "initialize", &params)
}

fn client_info() -> Value {
    json!({"name": env!("CARGO_PKG_NAME"), "version": env!("CARGO_PKG_VERSION")})
}

fn call(upstream: &Url, method: &str, params: &Value) -> Request<Vec<u8>> {
    let mut request = request(upstream, Method::POST, ACCEPT);
    request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    *request.body_mut() =
        json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).to_string().into_bytes();
    request
}

/// Nobody waits for it: where it fails, the session ends by itself.
fn end_session(outgoing: Outgoing, upstream: Url, session: HeaderValue) {
    let mut request = request(&upstream, Method::DELETE, ACCEPT);
    request.headers_mut().insert(REVISION, HeaderValue::from_static("2025-11-25"));
    request.headers_mut().insert(SESSION, session);
    tokio::spawn(covered(async move {
        if let Err(error) = outgoing.send_for_headers(request, Some(&upstream)).await {
            tracing::debug!(%error, "the session that was opened to look at the upstream may still be there");
        }
    }));
}

/// A request without a body.
pub fn request(url: &Url, method: Method, accept: &'static str) -> Request<Vec<u8>> {
    let mut request = Request::new(Vec::new());
    *request.method_mut() = method;
    // A URL that was parsed is one that a request takes; were it not, the request would go nowhere.
    *request.uri_mut() = url.as_str().parse().unwrap_or_default();
    request.headers_mut().insert(header::ACCEPT, HeaderValue::from_static(accept));
    request
}
