//! All that this process fetches from outside: OAuth metadata and token endpoints. Their URLs come from strangers, so
//! each fetch is held to rules that keep it away from this machine's own network (the MCP specification's security
//! best practices on server-side request forgery; RFC 9700, section 4).

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use http::{
    HeaderMap, HeaderValue, Request, Response,
    header::{ACCEPT_ENCODING, CONTENT_ENCODING},
};
use opentelemetry::trace::SpanKind;
use tokio::time::timeout;
use url::Url;

pub(crate) mod address;
pub mod allow_host;
pub(crate) mod client;
pub mod error;
pub mod reach;
pub mod resolver;
mod tls;

use crate::{
    model::{client::ClientId, paths::Paths},
    telemetry::{metrics::Metrics, traces::Span},
};

use allow_host::AllowHost;
use error::{DEADLINE, FetchError, redacted, truncate};
use reach::{Reach, known_addresses};
use resolver::{Resolver, SystemResolver};
pub(crate) use tls::client_config;

/// What an operator says of outgoing fetches.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    /// Hosts that may have a special-use address.
    pub allow_hosts: Vec<AllowHost>,
    /// Where the documents of routes are, which tells a route by its `client_id`.
    pub paths: Paths,
    /// A PEM file of certificate authorities to trust besides the system's.
    pub extra_ca: Option<PathBuf>,
}

/// The one way out. A clone is another handle on the same. It is nobody's, so that what is exempt for one route alone is
/// not exempt, until it is made [one route's](Self::for_route).
///
/// A fetch resolves the host's name once, checks every address, and connects to nothing but these addresses. It asks
/// no proxy, follows no redirect, sends nothing twice, unpacks nothing, and keeps no cookie and no connection: a
/// pooled connection is found again by host name alone, so that one made for the operator's own URL could serve one
/// that a stranger named, and one to a checked address would outlive the check.
#[derive(Clone, Debug)]
pub struct Outgoing {
    inner: Arc<Inner>,
    reach: Reach,
}

struct Inner {
    allow_hosts: Vec<AllowHost>,
    paths: Paths,
    resolver: Arc<dyn Resolver>,
    tls: rustls::ClientConfig,
    /// Where it is noted how long fetches take.
    metrics: OnceLock<Arc<Metrics>>,
}

impl Outgoing {
    /// # Errors
    /// Where the file of `extra_ca` cannot be used; the message names it.
    pub fn new(settings: &Config) -> anyhow::Result<Self> {
        Self::with_resolver(settings, Arc::new(SystemResolver))
    }

    /// With names resolved by other means than the system's.
    ///
    /// # Errors
    /// As [`Outgoing::new`].
    pub fn with_resolver(settings: &Config, resolver: Arc<dyn Resolver>) -> anyhow::Result<Self> {
        let tls = tls::client_config(settings.extra_ca.as_deref())?;
        let Config { allow_hosts, paths, .. } = settings.clone();
        let reach = Reach::new(&allow_hosts, |_| false);
        let inner = Inner { allow_hosts, paths, resolver, tls, metrics: OnceLock::new() };
        // What is wrong with the client shows now, not at the first fetch.
        client::builder(&inner.tls, Vec::new(), Arc::default()).build().context("the HTTP client")?;
        Ok(Self { inner: Arc::new(inner), reach })
    }

    /// From now on it is noted here how long fetches take; whoever comes first is the one.
    pub(crate) fn measured_by(&self, metrics: &Arc<Metrics>) {
        let _ = self.inner.metrics.set(Arc::clone(metrics));
    }

    /// The way out on behalf of a route, with what is exempt for it besides what is for every route.
    #[must_use]
    pub fn for_route(&self, client_id: &ClientId) -> Self {
        let Inner { allow_hosts, paths, .. } = &*self.inner;
        let reach = Reach::new(allow_hosts, |from| paths.client_id(from) == *client_id);
        Self { inner: Arc::clone(&self.inner), reach }
    }

    /// What tells this from the way out of another route: what one finds may be out of another's reach.
    pub fn reach(&self) -> &Reach {
        &self.reach
    }

    /// Fetches once, within [`DEADLINE`]. An answer of whatever status is an answer, a redirect too.
    ///
    /// `trusted` is the operator's own URL: its very origin (scheme, host and port) may be http, and may have a
    /// special-use address, but no link-local one.
    ///
    /// # Errors
    /// Where the URL is not allowed, no whole answer came in time, or its body is over [`error::MAX_BODY`] bytes.
    pub async fn send(
        &self,
        request: Request<Vec<u8>>,
        trusted: Option<&Url>,
    ) -> Result<Response<Vec<u8>>, FetchError> {
        self.send_within(DEADLINE, request, trusted).await
    }

    /// The same, within a time of the caller's own.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn send_within(
        &self,
        deadline: Duration,
        request: Request<Vec<u8>>,
        trusted: Option<&Url>,
    ) -> Result<Response<Vec<u8>>, FetchError> {
        self.fetch(deadline, request, trusted, Wanted::Whole).await
    }

    /// The status and the headers of an answer, as soon as they are there: its body, which may never end, is not read.
    ///
    /// # Errors
    /// As [`Self::send`], but for the body.
    pub async fn send_for_headers(
        &self,
        request: Request<Vec<u8>>,
        trusted: Option<&Url>,
    ) -> Result<Response<Vec<u8>>, FetchError> {
        self.fetch(DEADLINE, request, trusted, Wanted::Headers).await
    }

    async fn fetch(
        &self,
        deadline: Duration,
        request: Request<Vec<u8>>,
        trusted: Option<&Url>,
        wanted: Wanted,
    ) -> Result<Response<Vec<u8>>, FetchError> {
        let (head, body) = request.into_parts();
        let url = Url::parse(&head.uri.to_string()).map_err(|_| FetchError::NoUrl)?;
        let mut request = reqwest::Request::new(head.method, url.clone());
        *request.headers_mut() = head.headers;
        // Nothing is unpacked here, and some pack unless they are told not to.
        request.headers_mut().insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if !body.is_empty() {
            *request.body_mut() = Some(body.into());
        }
        self.reach.check_url(&url, trusted)?;
        let span = Span::part("fetch", SpanKind::Client);
        span.set("http.request.method", request.method().to_string());
        span.set("server.address", error::authority(&url));
        let (connected, began) = (Arc::default(), Instant::now());
        let exchange = self.exchange(&url, trusted, request, wanted, &connected);
        let outcome = span.cover(timeout(deadline, exchange)).await.unwrap_or_else(|_| {
            let connected = connected.load(Ordering::Relaxed);
            Err(FetchError::Timeout { url: redacted(&url), connected, seconds: deadline.as_secs() })
        });
        if let Some(metrics) = self.inner.metrics.get() {
            metrics.fetched_since(outcome.is_ok(), began);
        }
        match &outcome {
            Ok(response) => span.set("http.response.status_code", i64::from(response.status().as_u16())),
            Err(error) => span.failed(error.to_string()),
        }
        outcome
    }

    async fn exchange(
        &self,
        url: &Url,
        trusted: Option<&Url>,
        request: reqwest::Request,
        wanted: Wanted,
        connected: &Arc<AtomicBool>,
    ) -> Result<Response<Vec<u8>>, FetchError> {
        let addresses = self.resolve(url).await?;
        self.reach.check_addresses(url, trusted, &addresses)?;
        let port = url.port_or_known_default().unwrap_or_default();
        let addresses = addresses.into_iter().map(|address| SocketAddr::new(address, port)).collect();
        let failed = |error: reqwest::Error| {
            let (url, reason) = (redacted(url), error::reason(&error));
            match connected.load(Ordering::Relaxed) {
                true => FetchError::Broken { url, reason },
                false => FetchError::Connect { url, reason },
            }
        };
        let client = client::builder(&self.inner.tls, addresses, Arc::clone(connected)).build().map_err(failed)?;
        if matches!(wanted, Wanted::Headers) {
            let response = client.execute(request).await.map_err(failed)?;
            return Ok(client::with_body(response, Vec::new()));
        }
        let whole = client::execute(&client, request).await.map_err(failed)?;
        whole.ok_or_else(|| FetchError::TooLarge { url: redacted(url) })
    }

    async fn resolve(&self, url: &Url) -> Result<Vec<IpAddr>, FetchError> {
        if let Some(known) = known_addresses(url) {
            return Ok(known);
        }
        let failed = |reason: String| FetchError::Resolve { url: redacted(url), reason: truncate(reason) };
        let name = url.host_str().unwrap_or_default();
        let addresses = self.inner.resolver.resolve(name).await.map_err(|error| failed(error.to_string()))?;
        if addresses.is_empty() { Err(failed("it has no address".to_owned())) } else { Ok(addresses) }
    }
}

/// What of an answer is waited for.
#[derive(Clone, Copy)]
enum Wanted {
    Headers,
    Whole,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outgoing").field("allow_hosts", &self.allow_hosts).finish_non_exhaustive()
    }
}

/// How the body of an answer is packed, though nobody asked for that: in words for an operator, where it is.
pub fn packed(headers: &HeaderMap) -> Option<String> {
    let coding = headers.get(CONTENT_ENCODING)?.to_str().ok()?.trim();
    let shown = coding.len() <= 20 && coding.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    (!coding.eq_ignore_ascii_case("identity")).then(|| {
        format!("it is packed (`content-encoding: {}`), though nobody asked for that", if shown { coding } else { "…" })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outgoing(allow_hosts: &[&str]) -> Outgoing {
        let allow_hosts = allow_hosts.iter().map(|host| host.parse().expect(host)).collect();
        Outgoing::new(&Config { allow_hosts, ..Config::default() }).expect("settings")
    }

    fn check(outgoing: &Outgoing, url: &str, trusted: Option<&str>) -> String {
        let parse = |url: &str| Url::parse(url).expect("a URL");
        let checked = outgoing.reach.check_url(&parse(url), trusted.map(parse).as_ref());
        checked.map_or_else(|error| error.to_string(), |()| "allowed".to_owned())
    }

    /// What is exempt for one route is for none but that, whatever the others of its host are called.
    #[test]
    fn hosts_of_one_route() {
        let allowed = [
            "10.0.0.5=https://a.example",
            "10.0.0.6=https://b.example:8443",
            "10.0.0.7",
            "10.0.0.5:1=https://b.example:8443",
        ];
        let outgoing = outgoing(&allowed);
        let a = "https://a.example/.well-known/mcp-client-metadata.json";
        let b = "https://b.example:8443/.well-known/mcp-client-metadata.json";
        for (client_id, url, expected) in [
            (Some(a), "https://10.0.0.5/", true),
            (Some(a), "https://10.0.0.5:1/", true),
            (Some(a), "https://10.0.0.6/", false),
            (Some(a), "https://10.0.0.7/", true),
            (Some(a), "http://10.0.0.5/", false),
            (Some(b), "https://10.0.0.5/", false),
            (Some(b), "https://10.0.0.5:1/", true),
            (Some(b), "https://10.0.0.6/", true),
            (Some("https://b.example/.well-known/mcp-client-metadata.json"), "https://10.0.0.6/", false),
            (Some("https://a.example/x/.well-known/mcp-client-metadata.json"), "https://10.0.0.5/", false),
            (Some("https://a.example.evil.example/.well-known/mcp-client-metadata.json"), "https://10.0.0.5/", false),
            (Some("https://a.example"), "https://10.0.0.5/", false),
            (None, "https://10.0.0.5/", false),
            (None, "https://10.0.0.7/", true),
        ] {
            let way = client_id.map_or(outgoing.clone(), |client_id| outgoing.for_route(&ClientId::new(client_id)));
            assert_eq!(check(&way, url, None) == "allowed", expected, "{url} for {client_id:?}");
        }
        let reach = |client_id| outgoing.for_route(&ClientId::new(client_id)).reach().clone();
        assert_ne!(reach(a), reach(b));
        assert_eq!(&reach("https://c.example/.well-known/mcp-client-metadata.json"), outgoing.reach());
    }
}
