//! All that this process fetches from outside: OAuth metadata and token endpoints. Their URLs come from strangers, so
//! each fetch is held to rules that keep it away from this machine's own network (the MCP specification's security
//! best practices on server-side request forgery; RFC 9700, section 4).

use std::{
    fmt, mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
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
use tower::util::MapResponseLayer;
use url::{Host, Url};

pub(crate) mod address;
pub mod allow_host;
pub mod error;
pub mod resolver;
mod tls;

use crate::{
    model::{client::ClientId, loopback::is_loopback, paths::Paths},
    telemetry::{metrics::Metrics, traces::Span},
};

use allow_host::AllowHost;
use error::{DEADLINE, FetchError, MAX_BODY, UrlFault, redacted, truncate};
use resolver::{Resolver, SystemResolver};
pub(crate) use tls::client_config;

/// The largest headers of an answer over HTTP/2, in bytes.
const MAX_HEADERS: u32 = 256 << 10;
const USER_AGENT: &str = concat!("envoy-cimd/", env!("CARGO_PKG_VERSION"));

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

/// The hosts that are exempt from the address rules.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reach(Arc<[AllowHost]>);

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
        let reach = Reach(allow_hosts.iter().filter(|allowed| allowed.from().is_none()).cloned().collect());
        let inner = Inner { allow_hosts, paths, resolver, tls, metrics: OnceLock::new() };
        // What is wrong with the client shows now, not at the first fetch.
        client(&inner.tls, Vec::new(), Arc::default()).build().context("the HTTP client")?;
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
        let is_for = |allowed: &&AllowHost| allowed.from().is_none_or(|from| paths.client_id(from) == *client_id);
        let reach = Reach(allow_hosts.iter().filter(is_for).cloned().collect());
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
    /// Where the URL is not allowed, no whole answer came in time, or its body has more than [`MAX_BODY`] bytes.
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
        self.check_url(&url, trusted)?;
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

    /// The rules, as far as they need no name look-up: for a URL that is kept for later, or given to a browser.
    ///
    /// # Errors
    /// Where the URL is not allowed. That it is allowed here does not mean that its host's addresses are.
    pub fn check_url(&self, url: &Url, trusted: Option<&Url>) -> Result<(), FetchError> {
        let fault = match url.scheme() {
            "https" => None,
            "http" if is_origin_of(url, trusted) => None,
            _ => Some(UrlFault::NotHttps),
        };
        let has_userinfo = !url.username().is_empty() || url.password().is_some();
        let fault = fault
            .or(has_userinfo.then_some(UrlFault::Userinfo))
            .or(url.fragment().is_some().then_some(UrlFault::Fragment));
        if let Some(fault) = fault {
            return Err(FetchError::Url { url: redacted(url), fault });
        }
        self.check_addresses(url, trusted, &known_addresses(url).unwrap_or_default())
    }

    /// One bad address spoils them all. To go on with the others would leave it to the name's owner which one is
    /// tried, and hide from the operator what the name says.
    fn check_addresses(&self, url: &Url, trusted: Option<&Url>, addresses: &[IpAddr]) -> Result<(), FetchError> {
        let exempt = is_origin_of(url, trusted) || self.reach.0.iter().any(|allowed| allowed.covers(url));
        for address in addresses {
            match address::special_use(*address) {
                Some(special_use) if special_use.is_link_local() || !exempt => {
                    let remedy = (!special_use.is_link_local()).then(|| error::authority(url));
                    let url = redacted(url);
                    return Err(FetchError::Address { url, address: *address, special_use, remedy });
                }
                _ => {}
            }
        }
        Ok(())
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
        self.check_addresses(url, trusted, &addresses)?;
        let port = url.port_or_known_default().unwrap_or_default();
        let addresses = addresses.into_iter().map(|address| SocketAddr::new(address, port)).collect();
        let failed = |error: reqwest::Error| {
            let (url, reason) = (redacted(url), error::reason(&error));
            match connected.load(Ordering::Relaxed) {
                true => FetchError::Broken { url, reason },
                false => FetchError::Connect { url, reason },
            }
        };
        let client = client(&self.inner.tls, addresses, Arc::clone(connected)).build().map_err(failed)?;
        if matches!(wanted, Wanted::Headers) {
            let response = client.execute(request).await.map_err(failed)?;
            return Ok(with_body(response, Vec::new()));
        }
        let whole = execute(&client, request).await.map_err(failed)?;
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

/// A client for one host, which connects to these addresses whatever the name. `connected` is set once a connection,
/// with TLS, is made: nothing of the request leaves before.
pub(crate) fn client(
    tls: &rustls::ClientConfig,
    addresses: Vec<SocketAddr>,
    connected: Arc<AtomicBool>,
) -> reqwest::ClientBuilder {
    let note = MapResponseLayer::new(move |connection| {
        connected.store(true, Ordering::Relaxed);
        connection
    });
    reqwest::Client::builder()
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
pub(crate) async fn execute(
    client: &reqwest::Client,
    request: reqwest::Request,
) -> reqwest::Result<Option<Response<Vec<u8>>>> {
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

fn with_body(mut response: reqwest::Response, body: Vec<u8>) -> Response<Vec<u8>> {
    let mut whole = Response::new(body);
    (*whole.status_mut(), *whole.version_mut()) = (response.status(), response.version());
    *whole.headers_mut() = mem::take(response.headers_mut());
    whole
}

/// How the body of an answer is packed, though nobody asked for that: in words for an operator, where it is.
pub fn packed(headers: &HeaderMap) -> Option<String> {
    let coding = headers.get(CONTENT_ENCODING)?.to_str().ok()?.trim();
    let shown = coding.len() <= 20 && coding.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    (!coding.eq_ignore_ascii_case("identity")).then(|| {
        format!("it is packed (`content-encoding: {}`), though nobody asked for that", if shown { coding } else { "…" })
    })
}

fn is_origin_of(url: &Url, trusted: Option<&Url>) -> bool {
    trusted.is_some_and(|trusted| trusted.origin() == url.origin())
}

/// The addresses that need no look-up: a literal is its own address and reaches no resolver, and `localhost` and what
/// is below it are loopback by definition (RFC 6761, section 6.3), though many systems cannot resolve the latter.
pub(crate) fn known_addresses(url: &Url) -> Option<Vec<IpAddr>> {
    match url.host()? {
        Host::Ipv4(address) => Some(vec![address.into()]),
        Host::Ipv6(address) => Some(vec![address.into()]),
        Host::Domain(name) => {
            is_loopback(&Host::Domain(name)).then(|| vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()])
        }
    }
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
        let checked = outgoing.check_url(&parse(url), trusted.map(parse).as_ref());
        checked.map_or_else(|error| error.to_string(), |()| "allowed".to_owned())
    }

    #[test]
    fn urls_of_strangers() {
        let outgoing = outgoing(&[]);
        for (url, outcome) in [
            ("https://as.example/token", "allowed"),
            ("https://as.example:8443/token?a=b", "allowed"),
            ("https://as.example./", "allowed"),
            ("https://192.0.1.1/", "allowed"),
            ("https://[2606:4700::1]/", "allowed"),
            ("https://[::ffff:192.0.1.1]/", "allowed"),
            ("https://localhost.example/", "allowed"),
            ("https://notlocalhost/", "allowed"),
            ("http://as.example/token?code=secret", "http://as.example/token: must be https"),
            ("http://127.0.0.1/", "http://127.0.0.1/: must be https"),
            ("ftp://as.example/", "ftp:…: must be https"),
            ("file:///etc/passwd", "file:…: must be https"),
            ("data:text/plain,secret", "data:…: must be https"),
            ("https://user@as.example/", "https://as.example/: must not have a user name or password"),
            ("https://:pw@as.example/", "https://as.example/: must not have a user name or password"),
            ("https://as.example/#secret", "https://as.example/: must not have a fragment"),
            (
                "https://10.0.0.5/token",
                "https://10.0.0.5/token: 10.0.0.5 is a private address; --allow-host 10.0.0.5 would allow it",
            ),
            (
                "https://10.0.0.5:8443/",
                "https://10.0.0.5:8443/: 10.0.0.5 is a private address; --allow-host 10.0.0.5:8443 would allow it",
            ),
            (
                "https://169.254.169.254/latest",
                "https://169.254.169.254/latest: 169.254.169.254 is a link-local address, which no setting allows",
            ),
            (
                "https://[fd00:ec2::254]/",
                "https://[fd00:ec2::254]/: fd00:ec2::254 is a unique local address; --allow-host [fd00:ec2::254] would \
                 allow it",
            ),
            (
                "https://as.localhost/",
                "https://as.localhost/: 127.0.0.1 is a loopback address; --allow-host as.localhost would allow it",
            ),
        ] {
            assert_eq!(check(&outgoing, url, None), outcome, "{url}");
        }
    }

    /// Other spellings of loopback, private and link-local hosts, which must not slip past the table above.
    #[test]
    fn spellings_of_literals() {
        let outgoing = outgoing(&[]);
        for host in [
            "2130706433",
            "0x7f000001",
            "017700000001",
            "0x7f.1",
            "127.1",
            "127.0.0.1.",
            "127。0。0。1",
            "１２７.0.0.1",
            "%31%32%37.0.0.1",
            "0",
            "0x0a000005",
            "3232235521",
            "[::1]",
            "[::]",
            "[::127.0.0.1]",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
            "[0:0:0:0:0:ffff:a9fe:a9fe]",
            "[::ffff:169.254.169.254]",
            "[64:ff9b::7f00:1]",
            "[64:ff9b::169.254.169.254]",
            "[2002:7f00:1::]",
            "[2001:db8::1]",
            "[fe80::1]",
            "[fec0::1]",
            "localhost",
            "LOCALHOST",
            "localhost.",
            "a.b.localhost",
            "a.localhost.",
            "LocalHo\u{17f}t",
        ] {
            let outcome = check(&outgoing, &format!("https://{host}/"), None);
            assert!(outcome.contains(" address"), "{host}: {outcome}");
        }
    }

    #[test]
    fn allowed_hosts() {
        let outgoing =
            outgoing(&["10.0.0.5", "[fd00::1]:8443", "as.localhost:8443", "metadata.example", "[::ffff:10.0.0.6]"]);
        for (url, allowed) in [
            ("https://10.0.0.5/", true),
            ("https://10.0.0.5:8443/", true),
            ("https://0x0a000005/", true),
            ("https://[::ffff:10.0.0.6]/", true),
            ("https://10.0.0.6/", false),
            ("https://[::ffff:10.0.0.5]/", false),
            ("https://[fd00::1]:8443/", true),
            ("https://[fd00::1]/", false),
            ("https://as.localhost:8443/", true),
            ("https://AS.localhost.:8443/", true),
            ("https://as.localhost/", false),
            ("https://evil.as.localhost:8443/", false),
            ("http://10.0.0.5/", false),
            ("https://user@10.0.0.5/", false),
        ] {
            assert_eq!(check(&outgoing, url, None) == "allowed", allowed, "{url}");
        }
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

    #[test]
    fn the_operators_own_origin() {
        let outgoing = outgoing(&[]);
        for (url, trusted, allowed) in [
            ("http://10.0.0.5/.well-known/oauth-authorization-server", "http://10.0.0.5/mcp", true),
            ("http://10.0.0.5:80/", "http://10.0.0.5/mcp", true),
            ("https://10.0.0.5/", "https://10.0.0.5:443/mcp", true),
            ("http://notes.localhost:8080/", "http://notes.localhost:8080/mcp", true),
            ("http://mcp.example/", "http://mcp.example/mcp", true),
            ("http://10.0.0.5:8080/", "http://10.0.0.5/mcp", false),
            ("https://10.0.0.5/", "http://10.0.0.5/mcp", false),
            ("http://10.0.0.5/", "https://10.0.0.5/mcp", false),
            ("http://10.0.0.6/", "http://10.0.0.5/mcp", false),
            ("http://mcp.example/", "http://as.example/mcp", false),
            ("http://user@10.0.0.5/", "http://user@10.0.0.5/mcp", false),
            ("http://169.254.169.254/", "http://169.254.169.254/", false),
            ("http://[fe80::1]/", "http://[fe80::1]/", false),
            ("http://[::ffff:169.254.169.254]/", "http://[::ffff:169.254.169.254]/", false),
            ("data:a", "data:a", false),
        ] {
            assert_eq!(check(&outgoing, url, Some(trusted)) == "allowed", allowed, "{url} of {trusted}");
        }
    }

    #[test]
    fn one_bad_address_spoils_them_all() {
        let outgoing = outgoing(&["as.example"]);
        let addresses = |texts: &[&str]| -> Vec<IpAddr> { texts.iter().map(|ip| ip.parse().expect("ip")).collect() };
        for (url, resolved, allowed) in [
            ("https://x.example/", &["192.0.1.1", "2606:4700::1"][..], true),
            ("https://x.example/", &["192.0.1.1", "127.0.0.1"], false),
            ("https://x.example/", &["192.0.1.1", "64:ff9b::a00:5"], false),
            ("https://as.example/", &["192.0.1.1", "127.0.0.1"], true),
            ("https://as.example/", &["127.0.0.1", "169.254.169.254"], false),
            ("https://as.example/", &["127.0.0.1", "64:ff9b::169.254.169.254"], false),
        ] {
            let checked = outgoing.check_addresses(&Url::parse(url).expect("url"), None, &addresses(resolved));
            assert_eq!(checked.is_ok(), allowed, "{url} at {resolved:?}");
        }
    }
}
