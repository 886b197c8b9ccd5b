//! The MCP server behind Envoy: it answers each request the same, at once.

use std::convert::Infallible;

use bytes::Bytes;
use http::{Request, Response, header::AUTHORIZATION};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// The header of a request that wants to be shown what it came with.
pub const SHOW: &str = "x-show";
/// The header of the answer in which that is: `authorization`.
pub const CAME: &str = "x-came-with";

/// Its URL.
pub async fn start() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/mcp", listener.local_addr().expect("an address"));
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("a connection");
            stream.set_nodelay(true).expect("a socket");
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer)));
        }
    });
    url
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (mut head, body) = request.into_parts();
    // What breaks off here is what wrk ended.
    let _ = body.collect().await;
    let mut response =
        Response::new(Full::new(Bytes::from_static(br#"{"jsonrpc":"2.0","id":1,"result":{"content":[]}}"#)));
    let headers = response.headers_mut();
    headers.insert("content-type", http::HeaderValue::from_static("application/json"));
    if head.headers.contains_key(SHOW)
        && let Some(came) = head.headers.remove(AUTHORIZATION)
    {
        headers.insert(CAME, came);
    }
    Ok(response)
}
