//! The HTTP client of one fetch.

use std::{
    mem,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use http::Response;
use reqwest::{Client, ClientBuilder};
use tower::util::MapResponseLayer;

use super::{error::MAX_BODY, resolver};

/// The largest headers of an answer over HTTP/2, in bytes.
const MAX_HEADERS: u32 = 256 << 10;
const USER_AGENT: &str = concat!("envoy-cimd/", env!("CARGO_PKG_VERSION"));

/// A client for one host, which connects to these addresses whatever the name. `connected` is set once a connection,
/// with TLS, is made: nothing of the request leaves before.
pub(crate) fn builder(
    tls: &rustls::ClientConfig,
    addresses: Vec<SocketAddr>,
    connected: Arc<AtomicBool>,
) -> ClientBuilder {
    let note = MapResponseLayer::new(move |connection| {
        connected.store(true, Ordering::Relaxed);
        connection
    });
    Client::builder()
        .tls_backend_preconfigured(tls.clone())
        .dns_resolver(resolver::Pinned(addresses))
        .connector_layer(note)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        // The default sends again what an HTTP/2 server says it did not process. An authorization server may
        // revoke tokens when a code comes twice (RFC 6749, section 4.1.2), so we do not take its word for it.
        .retry(reqwest::retry::never())
        .pool_max_idle_per_host(0)
        // As over HTTP/1.1, where the default is of that size; here it is 16 kB, which some challenges take.
        .http2_max_header_list_size(MAX_HEADERS)
        .user_agent(USER_AGENT)
}

/// The whole answer; nothing where its body has more than [`MAX_BODY`] bytes.
pub(crate) async fn execute(client: &Client, request: reqwest::Request) -> reqwest::Result<Option<Response<Vec<u8>>>> {
    let mut response = client.execute(request).await?;
    // Counted as it comes, whatever length was announced.
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if chunk.len() > MAX_BODY.saturating_sub(body.len()) {
            return Ok(None);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Some(with_body(response, body)))
}

pub(super) fn with_body(mut response: reqwest::Response, body: Vec<u8>) -> Response<Vec<u8>> {
    let mut whole = Response::new(body);
    (*whole.status_mut(), *whole.version_mut()) = (response.status(), response.version());
    *whole.headers_mut() = mem::take(response.headers_mut());
    whole
}
