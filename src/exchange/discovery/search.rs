//! The search for an upstream's authorization server: what the upstream says, its metadata, the server's metadata.

use std::time::{Duration, Instant};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use http::{Method, StatusCode};
use moka::future::Cache;
use tokio::time::timeout;
use url::Url;

use super::{
    documents::{
        AuthorizationServer, Document, ResourceMetadata, ServerMetadata, asks_for_metadata, challenged, named_address,
        resource_addresses, server_addresses,
    },
    error::{DiscoveryError, Others, Problem},
    members::Members,
    reception::{self, Reception, request},
};
use crate::{
    model::{challenge::Challenge, client::ClientId, scope::Scope, upstream::Upstream},
    net::outgoing::{
        Outgoing,
        error::{FetchError, redacted, truncate},
        packed,
        reach::Reach,
    },
    telemetry::traces::covered,
};

/// How long an upstream is not asked again as a client of MCP would ask, whatever came of it.
const POSTED: Duration = Duration::from_secs(60);
/// The longest that an upstream may take to say what it says without a token. Whoever waits for the look-up still has time
/// for the metadata of one that says nothing, and is told why there is none.
const RECEIVED: Duration = Duration::from_secs(4);
/// What a search asks through, and what it need not ask again.
#[derive(Clone, Debug)]
pub(super) struct Search {
    outgoing: Outgoing,
    /// What upstreams said to POST, by their URLs.
    posts: Cache<String, Post>,
}

/// What an upstream says to POST, perhaps still under way.
#[derive(Clone, Debug)]
struct Post(Shared<BoxFuture<'static, Reception>>);

impl Search {
    /// Remembers as many upstreams.
    pub fn new(outgoing: Outgoing, remembered: u64) -> Self {
        Self { outgoing, posts: Cache::builder().max_capacity(remembered).time_to_live(POSTED).build() }
    }

    /// The same on behalf of a route.
    pub fn for_route(&self, client_id: &ClientId) -> Self {
        Self { outgoing: self.outgoing.for_route(client_id), posts: self.posts.clone() }
    }

    /// What may be reached on the way.
    pub fn reach(&self) -> &Reach {
        self.outgoing.reach()
    }

    /// Looks for the authorization server of an upstream.
    ///
    /// # Errors
    /// Why there is none that can be used.
    pub async fn look_up(&self, upstream: &Upstream) -> Result<AuthorizationServer, DiscoveryError> {
        let at_upstream = |problem| DiscoveryError::Upstream(upstream.url.clone(), problem);
        let url = Url::parse(&upstream.url).map_err(|_| at_upstream(Problem::NotUrl("to")))?;
        let at_resource = |problem| DiscoveryError::Resource(upstream.url.clone(), problem);
        // A pin says who the issuer is, and nothing else. So what the upstream says still counts, but it need not say
        // anything.
        let pin = upstream.authorization_server.as_deref();
        let unnamed = async |issuer: &str, problem: &Problem, scope| {
            note_unsaid(upstream, problem);
            self.server(issuer, upstream.default_resource().to_owned(), scope).await
        };
        let Reception { challenge, is_open } = match (self.reception(&url).await, pin) {
            (Ok(reception), _) => reception,
            (Err(error), None) => return Err(at_upstream(error.into())),
            (Err(error), Some(issuer)) => return unnamed(issuer, &error.into(), Scope::default()).await,
        };
        if challenge.is_unclear() {
            tracing::warn!(upstream = upstream.url, "its challenge (`www-authenticate`) cannot be read whole");
        }
        let metadata = match (self.resource(&url, upstream, &challenge).await, pin) {
            (Ok(metadata), _) => metadata,
            (Err(problem), Some(issuer)) if !problem.is_foreign() => {
                return unnamed(issuer, &problem, challenged(&challenge, &upstream.url)).await;
            }
            (Err(problem), None) if is_open && problem.is_absence() => {
                return Err(DiscoveryError::NoSignIn(upstream.url.clone()));
            }
            (Err(problem), _) => return Err(at_resource(problem)),
        };
        let scope = metadata.scope(&challenge, &upstream.url);
        let (issuer, others) = match pin {
            Some(issuer) => (issuer, &[][..]),
            None => metadata.authorization_servers().map_err(at_resource)?,
        };
        let others = others.iter().filter(|other| server_addresses(other).is_ok()).cloned();
        self.server(issuer, metadata.resource.clone(), scope).await.map_err(|error| match Others::of(others) {
            Some(others) => DiscoveryError::FirstOf(error.into(), others),
            None => error,
        })
    }

    /// What the upstream says to whoever comes without a token. One that says nothing may still have its metadata at the
    /// well-known addresses.
    async fn reception(&self, upstream: &Url) -> Result<Reception, FetchError> {
        let begun = Instant::now();
        if let Some(challenge) = reception::get(&self.outgoing, upstream).await? {
            return Ok(Reception { challenge, is_open: false });
        }
        // Kept from when it begins, and a task of its own, so that it is one however many look-ups fail meanwhile.
        let post = async {
            let (outgoing, upstream) = (self.outgoing.clone(), upstream.clone());
            let left = RECEIVED.saturating_sub(begun.elapsed());
            let post = async move { timeout(left, reception::post(&outgoing, &upstream)).await.unwrap_or_default() };
            Post(tokio::spawn(covered(post)).map(Result::unwrap_or_default).boxed().shared())
        };
        let Post(reception) = self.posts.get_with_by_ref(upstream.as_str(), post).await;
        Ok(reception.await)
    }

    /// At the challenge's address where that leads somewhere, else at the well-known ones.
    async fn resource(
        &self,
        url: &Url,
        upstream: &Upstream,
        challenge: &Challenge,
    ) -> Result<ResourceMetadata, Problem> {
        let named = match named_address(challenge) {
            Ok(None) => None,
            Ok(Some(address)) => {
                // The upstream may be one of our own network, where its word must not have us ask for whatever it likes.
                let trusted = asks_for_metadata(&address).then_some(url);
                Some(self.metadata(&[address], trusted).await)
            }
            Err(problem) => Some(Err(problem)),
        };
        let metadata: ResourceMetadata = match named {
            None => self.well_known(url).await,
            // An http address behind a proxy that ends TLS, or a relative one, most of the time.
            Some(Err(problem)) if problem.leads_nowhere() => {
                let well_known = self.well_known(url).await;
                well_known.map_err(|other| if other.is_absence() { problem } else { other })
            }
            Some(found) => found,
        }?;
        metadata.check(url, upstream.resource.as_ref())?;
        Ok(metadata)
    }

    async fn well_known(&self, upstream: &Url) -> Result<ResourceMetadata, Problem> {
        self.metadata(&resource_addresses(upstream), Some(upstream)).await
    }

    async fn server(
        &self,
        issuer: &str,
        resource: String,
        scope: Scope,
    ) -> Result<AuthorizationServer, DiscoveryError> {
        let of_server = |problem| DiscoveryError::Server(truncate(issuer.to_owned()), problem);
        let addresses = server_addresses(issuer).map_err(of_server)?;
        let metadata: ServerMetadata = self.metadata(&addresses, None).await.map_err(of_server)?;
        metadata.server(self.outgoing.reach(), issuer, resource, scope).map_err(of_server)
    }

    /// The first of these addresses that has a document. A document that cannot be used ends the search: the next address
    /// must not answer for one that lies.
    async fn metadata<T: Document>(&self, addresses: &[Url], trusted: Option<&Url>) -> Result<T, Problem> {
        let mut absence = Problem::Lacks("an address");
        for address in addresses {
            let problem = match self.outgoing.send(request(address, Method::GET, "application/json"), trusted).await {
                Ok(answer) if answer.status() == StatusCode::OK => match document::<T>(answer.body()) {
                    Ok(members) => return T::of(&members),
                    Err(why) => Problem::NotMetadata(redacted(address), packed(answer.headers()).unwrap_or(why)),
                },
                Ok(answer) => Problem::NoMetadata(redacted(address), answer.status()),
                Err(error @ FetchError::TooLarge { .. }) => error.into(),
                Err(error) => return Err(error.into()),
            };
            // Something that is not metadata says more than that there is nothing.
            if !absence.is_absence() || matches!(absence, Problem::NoMetadata(..)) {
                absence = problem;
            }
        }
        Err(absence)
    }
}

/// Says why a pin's upstream says nothing of itself. To have no metadata is what many are pinned for.
fn note_unsaid(upstream: &Upstream, problem: &Problem) {
    let (upstream, resource) = (&upstream.url, upstream.default_resource());
    match problem {
        Problem::NoMetadata(..) => tracing::debug!(upstream, resource, %problem, "the upstream has no metadata"),
        _ => tracing::warn!(
            upstream,
            resource,
            %problem,
            "the upstream's metadata cannot be read: its pinned authorization server is asked for this resource"
        ),
    }
}

/// The members of a document of this kind.
fn document<T: Document>(body: &[u8]) -> Result<Members, String> {
    let members = Members::read(body)?;
    if members.has(T::WHOSE) { Ok(members) } else { Err(format!("it has no `{}`", T::WHOSE)) }
}
