//! Finding an upstream's authorization server: protected resource metadata (RFC 9728), then the authorization server's
//! own (RFC 8414, OpenID Connect Discovery), as the MCP specification orders them.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use http::{Method, Request, StatusCode, header};
use moka::{Expiry, future::Cache};
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use url::Url;

pub mod documents;
pub mod error;

use crate::{
    model::{client::ClientId, upstream::Upstream},
    net::outgoing::{
        Outgoing, Reach,
        error::{FetchError, redacted, truncate},
    },
};
use documents::{
    AuthorizationServer, Challenge, ResourceMetadata, ServerMetadata, asks_for_metadata, resource_addresses,
    server_addresses,
};
use error::{DiscoveryError, Problem};

/// How long what was found is used, and how long a failure is not tried again.
const FRESH: Duration = Duration::from_secs(600);
const FAILED: Duration = Duration::from_secs(5);
/// How long no second look-up is begun for who only looks: longer than one takes.
const BEGUN: Duration = Duration::from_secs(20);
/// How many upstreams are remembered.
const REMEMBERED: u64 = 10_000;

/// The look-ups, and what they found.
#[derive(Clone, Debug)]
pub struct Discovery {
    outgoing: Outgoing,
    found: Cache<Sought, Found>,
    /// The look-ups that nobody waits for, begun a short while ago.
    begun: Cache<Sought, ()>,
    /// One for each look-up that may be under way.
    lookups: Arc<Semaphore>,
}

/// What is looked up. What may be reached on the way is a part of it: no route is given what another's exemption found.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Sought {
    upstream: Upstream,
    reach: Reach,
}

impl Sought {
    /// `outgoing` is the way out of the route.
    fn of(upstream: &Upstream, outgoing: &Outgoing) -> Self {
        Self { upstream: upstream.clone(), reach: outgoing.reach().clone() }
    }
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

    /// The authorization server of a route's upstream. Look-ups of one upstream at the same time are one look-up.
    ///
    /// # Errors
    /// Why there is none that can be used; remembered briefly.
    pub async fn find(&self, client_id: &ClientId, upstream: &Upstream) -> Found {
        let outgoing = self.outgoing.for_route(client_id);
        let sought = Sought::of(upstream, &outgoing);
        let of_route = Self { outgoing, ..self.clone() };
        self.found.get_with(sought, async { of_route.look_up(upstream).await.map(Arc::new) }).await
    }

    /// The issuer, where it is pinned or was found before.
    pub async fn known(&self, client_id: &ClientId, upstream: &Upstream) -> Option<String> {
        let sought = Sought::of(upstream, &self.outgoing.for_route(client_id));
        match self.found.get(&sought).await {
            Some(Ok(server)) => Some(server.issuer.clone()),
            Some(Err(_)) | None => upstream.authorization_server.clone(),
        }
    }

    /// Begins a look-up that nobody waits for, unless one was begun a short while ago.
    pub async fn begin(&self, client_id: &ClientId, upstream: &Upstream) {
        let sought = Sought::of(upstream, &self.outgoing.for_route(client_id));
        let (discovery, client_id, upstream) = (self.clone(), client_id.clone(), upstream.clone());
        let begun = async move {
            tokio::spawn(async move { discovery.find(&client_id, &upstream).await.map(drop) });
        };
        self.begun.get_with(sought, begun).await;
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
        let scope = resource.scope(challenge).map_err(at_resource)?;
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
        Ok(Challenge::read(answer.headers()))
    }

    /// At the challenge's address where there is one, else at the well-known ones.
    async fn resource(&self, upstream: &Url, challenge: &Challenge) -> Result<ResourceMetadata, Problem> {
        let metadata = match challenge.address()? {
            Some(address) => {
                // The upstream may be one of our own network, where its word must not have us ask for whatever it likes.
                let trusted = asks_for_metadata(&address).then_some(upstream);
                match self.metadata(&[address], trusted).await {
                    // Nobody was asked: an http address behind a proxy that ends TLS, most of the time.
                    Err(Problem::Fetch(error)) if error.is_forbidden() => {
                        self.well_known(upstream).await.map_err(|_| Problem::Fetch(error))
                    }
                    found => found,
                }
            }
            None => self.well_known(upstream).await,
        }?;
        metadata.check(upstream)?;
        Ok(metadata)
    }

    async fn well_known(&self, upstream: &Url) -> Result<ResourceMetadata, Problem> {
        self.metadata(&resource_addresses(upstream), Some(upstream)).await
    }

    async fn server(
        &self,
        issuer: &str,
        resource: String,
        scope: Option<String>,
    ) -> Result<AuthorizationServer, DiscoveryError> {
        let of_server = |problem| DiscoveryError::Server(truncate(issuer.to_owned()), problem);
        let addresses = server_addresses(issuer).map_err(of_server)?;
        let metadata: ServerMetadata = self.metadata(&addresses, None).await.map_err(of_server)?;
        metadata.server(&self.outgoing, issuer, resource, scope).map_err(of_server)
    }

    /// The first of these addresses that has a document. A document that is none ends the search: the next address
    /// must not answer for one that lies.
    async fn metadata<T: DeserializeOwned>(&self, addresses: &[Url], trusted: Option<&Url>) -> Result<T, Problem> {
        let mut last = Problem::Lacks("an address");
        for address in addresses {
            let answer = self.outgoing.send(request(address, "application/json"), trusted).await?;
            if answer.status() == StatusCode::OK {
                return serde_json::from_slice(answer.body())
                    .map_err(|error| Problem::NotMetadata(redacted(address), truncate(error.to_string())));
            }
            last = Problem::NoMetadata(redacted(address), answer.status());
        }
        Err(last)
    }
}

fn request(url: &Url, accept: &'static str) -> Request<Vec<u8>> {
    let mut request = Request::new(Vec::new());
    *request.method_mut() = Method::GET;
    // A URL that was parsed is one that a request takes; were it not, the request would go nowhere.
    *request.uri_mut() = url.as_str().parse().unwrap_or_default();
    request.headers_mut().insert(header::ACCEPT, http::HeaderValue::from_static(accept));
    request
}

struct BriefErrors;

impl Expiry<Sought, Found> for BriefErrors {
    fn expire_after_create(&self, _: &Sought, found: &Found, _: Instant) -> Option<Duration> {
        Some(match found {
            Ok(_) => FRESH,
            Err(DiscoveryError::Busy) => Duration::ZERO,
            Err(_) => FAILED,
        })
    }
}
