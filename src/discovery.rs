//! Finding an upstream's authorization server: protected resource metadata (RFC 9728), then the authorization server's
//! own (RFC 8414, OpenID Connect Discovery), as the MCP specification orders them.

use std::{
    cell::Cell,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{Method, Request, StatusCode, header};
use moka::{Expiry, future::Cache};
use serde::{Deserialize, de::DeserializeOwned};
use tokio::sync::Semaphore;
use url::Url;

use crate::{
    choreographer::Upstream,
    outgoing::{FetchError, Outgoing, cut, shown},
};

/// How long what was found is used, and how long a failure is not tried again.
const FRESH: Duration = Duration::from_secs(600);
const FAILED: Duration = Duration::from_secs(5);
/// How long no second look-up is begun for who only looks: longer than one takes.
const BEGUN: Duration = Duration::from_secs(20);
/// The longest URL and the longest scope that are taken of a stranger, in bytes: both go into an address.
const MAX_URL: usize = 2048;
const MAX_SCOPE: usize = 4096;
/// How many upstreams are remembered.
const REMEMBERED: u64 = 10_000;

/// An authorization server that can be used, and what it takes to ask it for one upstream.
#[derive(Clone, Debug, PartialEq)]
pub struct AuthorizationServer {
    /// Exactly as its metadata spells it.
    pub issuer: String,
    pub authorization_endpoint: Url,
    pub token_endpoint: Url,
    /// RFC 7009, where it offers that.
    pub revocation_endpoint: Option<Url>,
    /// Whether it announces `iss` in its answers (RFC 9207, section 3).
    pub sends_iss: bool,
    /// The `resource` to ask for (RFC 8707): the upstream, as its own metadata spells it.
    pub resource: String,
    /// What to ask for, space-separated; none where nobody says.
    pub scope: Option<String>,
    /// Whether `offline_access` may be asked for besides.
    pub offline_access: bool,
}

/// Why no authorization server can be used. For operators.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DiscoveryError {
    #[error("the upstream {0}: {1}")]
    Upstream(String, Problem),
    #[error("the protected resource metadata of {0}: {1}")]
    Resource(String, Problem),
    #[error("the authorization server {0}: {1}")]
    Server(String, Problem),
    /// No look-up was made.
    #[error("as many upstreams are being looked up as --max-lookups allows")]
    Busy,
}

/// What is wrong with one of the three.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Problem {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("no metadata was found; the last address tried, {0}, answered {1}")]
    NoMetadata(String, StatusCode),
    #[error("{0} is no JSON metadata: {1}")]
    NotMetadata(String, String),
    #[error("`{0}` is no well-formed URL of at most {MAX_URL} bytes")]
    NotUrl(&'static str),
    #[error("`scopes_supported` takes more than {MAX_SCOPE} bytes")]
    LongScope,
    #[error("`authorization_endpoint` has a `{0}` of its own")]
    OwnParameter(String),
    #[error("`resource` is {0}, which is neither the upstream's URL nor a prefix of it")]
    ForeignResource(String),
    #[error("it names no authorization server: `authorization_servers` is empty; pin one with `authorization_server`")]
    NoServer,
    #[error("its metadata names the issuer {0}, which is another")]
    ForeignIssuer(String),
    #[error("its metadata lacks `{0}`")]
    Lacks(&'static str),
    #[error("it does not support {0}")]
    Unsupported(&'static str),
}

/// Protected resource metadata, as far as it is read (RFC 9728, section 2).
#[derive(Debug, Deserialize)]
struct ResourceMetadata {
    resource: String,
    #[serde(default)]
    authorization_servers: Vec<String>,
    scopes_supported: Option<Vec<String>>,
}

/// Authorization server metadata, as far as it is read (RFC 8414, section 2).
#[derive(Debug, Deserialize)]
struct ServerMetadata {
    issuer: String,
    authorization_endpoint: Option<String>,
    token_endpoint: Option<String>,
    revocation_endpoint: Option<String>,
    response_types_supported: Option<Vec<String>>,
    grant_types_supported: Option<Vec<String>>,
    code_challenge_methods_supported: Option<Vec<String>>,
    scopes_supported: Option<Vec<String>>,
    #[serde(default)]
    authorization_response_iss_parameter_supported: bool,
    #[serde(default)]
    client_id_metadata_document_supported: bool,
}

/// The look-ups, and what they found.
#[derive(Clone, Debug)]
pub struct Discovery {
    outgoing: Outgoing,
    found: Cache<Upstream, Found>,
    /// The look-ups that nobody waits for, begun a short while ago.
    begun: Cache<Upstream, ()>,
    /// One for each look-up that may be under way.
    lookups: Arc<Semaphore>,
}

type Found = Result<Arc<AuthorizationServer>, DiscoveryError>;

impl Discovery {
    /// `lookups` is how many upstreams may be looked up at once.
    pub fn new(outgoing: Outgoing, lookups: usize) -> Self {
        let found = Cache::builder().max_capacity(REMEMBERED).expire_after(BriefErrors).build();
        let begun = Cache::builder().max_capacity(REMEMBERED).time_to_live(BEGUN).build();
        let lookups = Arc::new(Semaphore::new(lookups.min(Semaphore::MAX_PERMITS)));
        Self { outgoing, found, begun, lookups }
    }

    /// The authorization server of an upstream. Look-ups of one upstream at the same time are one look-up.
    ///
    /// # Errors
    /// Why there is none that can be used; remembered briefly.
    pub async fn find(&self, upstream: &Upstream) -> Found {
        self.found.get_with(upstream.clone(), async { self.look_up(upstream).await.map(Arc::new) }).await
    }

    /// The issuer, where it is pinned or was found before.
    pub async fn known(&self, upstream: &Upstream) -> Option<String> {
        match self.found.get(upstream).await {
            Some(Ok(server)) => Some(server.issuer.clone()),
            Some(Err(_)) | None => upstream.authorization_server.clone(),
        }
    }

    /// Begins a look-up that nobody waits for, unless one was begun a short while ago.
    pub async fn begin(&self, upstream: &Upstream) {
        let (discovery, sought) = (self.clone(), upstream.clone());
        let begun = async move {
            tokio::spawn(async move { discovery.find(&sought).await.map(drop) });
        };
        self.begun.get_with(upstream.clone(), begun).await;
    }

    async fn look_up(&self, upstream: &Upstream) -> Result<AuthorizationServer, DiscoveryError> {
        let _one = self.lookups.try_acquire().map_err(|_| DiscoveryError::Busy)?;
        let at_upstream = |problem| DiscoveryError::Upstream(upstream.url.clone(), problem);
        let url = Url::parse(&upstream.url).map_err(|_| at_upstream(Problem::NotUrl("to")))?;
        if let Some(issuer) = &upstream.authorization_server {
            return self.server(issuer, upstream.url.clone(), None).await;
        }
        let at_resource = |problem| DiscoveryError::Resource(upstream.url.clone(), problem);
        let challenge = self.challenge(&url).await.map_err(|error| at_upstream(error.into()))?;
        let resource = self.resource(&url, &challenge).await.map_err(at_resource)?;
        let issuer = resource.authorization_servers.first().ok_or_else(|| at_resource(Problem::NoServer))?;
        let listed = resource.scopes_supported.map(|scopes| scopes.join(" ")).filter(|scope| !scope.is_empty());
        let scope = challenge.scope.or(listed);
        if scope.as_ref().is_some_and(|scope| scope.len() > MAX_SCOPE) {
            return Err(at_resource(Problem::LongScope));
        }
        self.server(issuer, resource.resource, scope).await
    }

    /// What the upstream says to who comes without a token (RFC 9728, section 5.1). One that says nothing, or answers
    /// something else, may still have its metadata at the well-known addresses.
    async fn challenge(&self, upstream: &Url) -> Result<Challenge, FetchError> {
        let request = request(upstream, "application/json, text/event-stream");
        let answer = match self.outgoing.send(request, Some(upstream)).await {
            Ok(answer) => answer,
            // An upstream that streams to strangers never ends its answer.
            Err(error) if error.is_timeout() => return Ok(Challenge::default()),
            Err(error) => return Err(error),
        };
        if answer.status() != StatusCode::UNAUTHORIZED {
            return Ok(Challenge::default());
        }
        let mut challenge = Challenge::default();
        for value in answer.headers().get_all(header::WWW_AUTHENTICATE) {
            let Ok(value) = value.to_str() else { continue };
            let Ok(challenges) = http_auth::parse_challenges(value) else { continue };
            for bearer in challenges.iter().filter(|challenge| challenge.scheme.eq_ignore_ascii_case("bearer")) {
                for (name, value) in &bearer.params {
                    match name.to_ascii_lowercase().as_str() {
                        "resource_metadata" => challenge.resource_metadata = Some(value.to_unescaped()),
                        "scope" => challenge.scope = Some(value.to_unescaped()).filter(|scope| !scope.is_empty()),
                        _ => {}
                    }
                }
            }
        }
        Ok(challenge)
    }

    /// The challenge's address where there is one, else the path's, else the root's (RFC 9728, section 3.1).
    async fn resource(&self, upstream: &Url, challenge: &Challenge) -> Result<ResourceMetadata, Problem> {
        let addresses = match &challenge.resource_metadata {
            Some(address) => vec![strangers_url("resource_metadata", address)?],
            None => well_known(upstream, "oauth-protected-resource"),
        };
        let metadata: ResourceMetadata = self.metadata(&addresses, Some(upstream)).await?;
        let named = strangers_url("resource", &metadata.resource)?;
        if !is_prefix(&named, upstream) {
            return Err(Problem::ForeignResource(shown(&named)));
        }
        Ok(metadata)
    }

    async fn server(
        &self,
        issuer: &str,
        resource: String,
        scope: Option<String>,
    ) -> Result<AuthorizationServer, DiscoveryError> {
        let of_server = |problem| DiscoveryError::Server(cut(issuer.to_owned()), problem);
        let url = strangers_url("issuer", issuer).map_err(of_server)?;
        // RFC 8414, section 2.
        if url.query().is_some() || url.fragment().is_some() {
            return Err(of_server(Problem::NotUrl("issuer")));
        }
        // Of each the one for the whole issuer, never the root's: that would be another issuer's.
        let inserted = ["oauth-authorization-server", "openid-configuration"];
        let mut addresses: Vec<Url> =
            inserted.iter().filter_map(|name| well_known(&url, name).into_iter().next()).collect();
        if url.path() != "/" {
            // OpenID Connect Discovery, section 4.1, appends where RFC 8414 inserts.
            addresses.extend(Url::parse(&format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'))));
        }
        let metadata: ServerMetadata = self.metadata(&addresses, None).await.map_err(of_server)?;
        self.usable(issuer, metadata, resource, scope).map_err(of_server)
    }

    /// RFC 8414, section 3.3, and what MCP asks of a server.
    fn usable(
        &self,
        issuer: &str,
        metadata: ServerMetadata,
        resource: String,
        scope: Option<String>,
    ) -> Result<AuthorizationServer, Problem> {
        if metadata.issuer != issuer {
            return Err(Problem::ForeignIssuer(cut(metadata.issuer)));
        }
        let has = |list: &Option<Vec<String>>, value: &str| {
            list.as_ref().is_some_and(|list| list.iter().any(|item| item == value))
        };
        if !has(&metadata.code_challenge_methods_supported, "S256") {
            return Err(Problem::Unsupported("PKCE with S256 (`code_challenge_methods_supported`)"));
        }
        if metadata.grant_types_supported.is_some() && !has(&metadata.grant_types_supported, "authorization_code") {
            return Err(Problem::Unsupported("the authorization code grant (`grant_types_supported`)"));
        }
        if metadata.response_types_supported.is_some() && !has(&metadata.response_types_supported, "code") {
            return Err(Problem::Unsupported("the response type `code` (`response_types_supported`)"));
        }
        if !metadata.client_id_metadata_document_supported {
            return Err(Problem::Unsupported(
                "client ID metadata documents (`client_id_metadata_document_supported`); this client registers in no other way",
            ));
        }
        let endpoint = |name, url: Option<String>| {
            let url = strangers_url(name, &url.ok_or(Problem::Lacks(name))?)?;
            self.outgoing.check_url(&url, None)?;
            Ok::<_, Problem>(url)
        };
        let authorization_endpoint = endpoint("authorization_endpoint", metadata.authorization_endpoint)?;
        // Ours would come second, and it is not known which of two a server heeds.
        if let Some((own, _)) = authorization_endpoint.query_pairs().find(|(name, _)| OURS.contains(&name.as_ref())) {
            return Err(Problem::OwnParameter(own.into_owned()));
        }
        Ok(AuthorizationServer {
            authorization_endpoint,
            token_endpoint: endpoint("token_endpoint", metadata.token_endpoint)?,
            revocation_endpoint: metadata
                .revocation_endpoint
                .map(|url| endpoint("revocation_endpoint", Some(url)))
                .transpose()?,
            sends_iss: metadata.authorization_response_iss_parameter_supported,
            offline_access: has(&metadata.scopes_supported, "offline_access"),
            issuer: metadata.issuer,
            resource,
            scope,
        })
    }

    /// The first of these addresses that has a document. A document that is none ends the search: the next address
    /// must not answer for one that lies.
    async fn metadata<T: DeserializeOwned>(&self, addresses: &[Url], trusted: Option<&Url>) -> Result<T, Problem> {
        let mut last = Problem::Lacks("an address");
        for address in addresses {
            let answer = self.outgoing.send(request(address, "application/json"), trusted).await?;
            if answer.status() == StatusCode::OK {
                return serde_json::from_slice(answer.body())
                    .map_err(|error| Problem::NotMetadata(shown(address), cut(error.to_string())));
            }
            last = Problem::NoMetadata(shown(address), answer.status());
        }
        Err(last)
    }
}

/// The parameters of an authorization request that are ours to give.
const OURS: &[&str] = &[
    "client_id",
    "code_challenge",
    "code_challenge_method",
    "prompt",
    "redirect_uri",
    "resource",
    "response_type",
    "scope",
    "state",
];

/// A URL that a stranger wrote: what a parser would have to mend is refused, since others would mend it otherwise.
fn strangers_url(name: &'static str, text: &str) -> Result<Url, Problem> {
    let mended = Cell::new(false);
    let note = |_| mended.set(true);
    let url = (text.len() <= MAX_URL && text.is_ascii())
        .then(|| Url::options().syntax_violation_callback(Some(&note)).parse(text).ok())
        .flatten();
    url.filter(|url| !mended.get() && url.username().is_empty() && url.password().is_none())
        .ok_or(Problem::NotUrl(name))
}

/// What a 401 says, as far as it is read.
#[derive(Debug, Default, PartialEq)]
struct Challenge {
    resource_metadata: Option<String>,
    scope: Option<String>,
}

fn request(url: &Url, accept: &'static str) -> Request<Vec<u8>> {
    let mut request = Request::new(Vec::new());
    *request.method_mut() = Method::GET;
    // A URL that was parsed is one that a request takes; were it not, the request would go nowhere.
    *request.uri_mut() = url.as_str().parse().unwrap_or_default();
    request.headers_mut().insert(header::ACCEPT, http::HeaderValue::from_static(accept));
    request
}

/// Where the metadata of a URL may be: its path inserted after the well-known name, then the root.
fn well_known(url: &Url, name: &str) -> Vec<Url> {
    let at = |path: &str| {
        let mut address = url.clone();
        address.set_path(&format!("/.well-known/{name}{path}"));
        address.set_query(None);
        address.set_fragment(None);
        address
    };
    match url.path().trim_end_matches('/') {
        "" => vec![at("")],
        path => vec![at(path), at("")],
    }
}

/// Whether `prefix` is `url`, or a part of its path by whole segments, on the same origin.
fn is_prefix(prefix: &Url, url: &Url) -> bool {
    let bare = prefix.query().is_none() && prefix.fragment().is_none() && prefix.username().is_empty();
    if prefix == url {
        return true;
    }
    bare && prefix.origin() == url.origin() && {
        let path = prefix.path().trim_end_matches('/');
        url.path().strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

struct BriefErrors;

impl Expiry<Upstream, Found> for BriefErrors {
    fn expire_after_create(&self, _: &Upstream, found: &Found, _: Instant) -> Option<Duration> {
        Some(match found {
            Ok(_) => FRESH,
            Err(DiscoveryError::Busy) => Duration::ZERO,
            Err(_) => FAILED,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).expect(text)
    }

    #[test]
    fn a_resource_is_the_upstream_or_a_part_of_its_path() {
        for (resource, upstream, good) in [
            ("https://u.example/mcp", "https://u.example/mcp", true),
            ("https://u.example/mcp/", "https://u.example/mcp", true),
            ("https://u.example", "https://u.example/mcp", true),
            ("https://u.example/a", "https://u.example/a/mcp", true),
            ("https://u.example/mcp", "https://u.example/mcp-evil", false),
            ("https://u.example/mcp/x", "https://u.example/mcp", false),
            ("https://u.example:8443/mcp", "https://u.example/mcp", false),
            ("http://u.example/mcp", "https://u.example/mcp", false),
            ("https://v.example/mcp", "https://u.example/mcp", false),
            ("https://u.example/?x", "https://u.example/mcp", false),
        ] {
            assert_eq!(is_prefix(&url(resource), &url(upstream)), good, "{resource} {upstream}");
        }
    }

    #[test]
    fn well_known_addresses() {
        let found =
            |text: &str| -> Vec<String> { well_known(&url(text), "x").iter().map(ToString::to_string).collect() };
        assert_eq!(found("https://u.example"), ["https://u.example/.well-known/x"]);
        assert_eq!(
            found("https://u.example/a/b/?q#f"),
            ["https://u.example/.well-known/x/a/b", "https://u.example/.well-known/x"]
        );
    }
}
