//! Finding an upstream's authorization server: protected resource metadata (RFC 9728), then the authorization server's
//! own (RFC 8414, OpenID Connect Discovery), as the MCP specification orders them.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use http::{Method, StatusCode};
use moka::{Entry, Expiry, future::Cache, ops::compute::Op};
use tokio::{task::JoinHandle, time::timeout};
use url::{Origin, Url};

pub mod documents;
pub mod error;
pub mod members;
mod reception;
mod strangers_url;

use crate::{
    model::{
        challenge::Challenge,
        client::ClientId,
        clock::UnixTime,
        issuer::is_same,
        scope::Scope,
        shares::{Share, ShareLimits, Shares, UsedUp},
        upstream::Upstream,
        user::User,
    },
    net::outgoing::{
        Outgoing, Reach,
        error::{FetchError, redacted, truncate},
        packed,
    },
    telemetry::traces::covered,
};
use documents::{
    AuthorizationServer, Document, ResourceMetadata, ServerMetadata, asks_for_metadata, challenged, is_resource_of,
    named_address, resource_addresses, server_addresses,
};
use error::{DiscoveryError, Others, Problem};
use members::Members;
use reception::{Reception, request};

/// How long what was found is used, and how long a failure is not tried again.
const FRESH: Duration = Duration::from_secs(600);
const FAILED: Duration = Duration::from_secs(5);
/// How long an upstream is not asked again as a client of MCP would ask, whatever came of it.
const POSTED: Duration = Duration::from_secs(60);
/// The longest that an upstream may take to say what it says without a token. Whoever waits for the look-up still has time
/// for the metadata of one that says nothing, and is told why there is none.
const RECEIVED: Duration = Duration::from_secs(4);
/// The longest that a look-up may take in all: longer than anybody waits, so that who comes back finds it done.
const LONGEST: Duration = Duration::from_secs(15);
/// How long, in seconds, an upstream is not looked up anew because of a refusal of it.
const RENEWED: u64 = 60;
/// How many upstreams are remembered.
const REMEMBERED: u64 = 10_000;

/// The look-ups, and what they found.
#[derive(Clone, Debug)]
pub struct Discovery {
    outgoing: Outgoing,
    lookups: Cache<Sought, LookUp>,
    /// What upstreams said to POST, by their URLs.
    posts: Cache<String, Post>,
    /// When upstreams were last looked up anew though their look-ups were fresh, by their URLs.
    renewals: Cache<String, UnixTime>,
    longest: Duration,
    /// For those whom somebody waits for, and for the others: pages cannot keep sign-ins out.
    awaited: Shares,
    unawaited: Shares,
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

/// A look-up. It is a task of its own, which goes on when those who wait for it leave.
#[derive(Clone, Debug)]
enum LookUp {
    UnderWay(Shared<BoxFuture<'static, Found>>),
    Over(Found),
}

/// What an upstream says to POST, perhaps still under way.
#[derive(Clone, Debug)]
struct Post(Shared<BoxFuture<'static, Reception>>);

impl Discovery {
    /// `limits` is how many upstreams may be looked up at once for who waits, and as many again for who does not.
    pub fn new(outgoing: Outgoing, limits: ShareLimits) -> Self {
        let lookups = Cache::builder().max_capacity(REMEMBERED).expire_after(Lasting).build();
        let posts = Cache::builder().max_capacity(REMEMBERED).time_to_live(POSTED).build();
        Self {
            outgoing,
            lookups,
            posts,
            renewals: Cache::builder().max_capacity(REMEMBERED).build(),
            longest: LONGEST,
            awaited: Shares::new(limits),
            unawaited: Shares::new(limits),
        }
    }

    /// The authorization server of a route's upstream, for a user who waits for it; or for none, who only looks. Look-ups
    /// of one upstream at the same time are one look-up, which is of the share of who came first.
    ///
    /// # Errors
    /// Why there is none that can be used; remembered briefly.
    pub async fn find(&self, client_id: &ClientId, upstream: &Upstream, user: Option<&User>) -> Found {
        let shares = if user.is_some() { &self.awaited } else { &self.unawaited };
        match self.look_up_once(client_id, upstream, || shares.take(user, first_asked(upstream))).await? {
            LookUp::UnderWay(found) => found.await,
            LookUp::Over(found) => found,
        }
    }

    /// The issuer, where it is pinned or was found before.
    pub async fn known(&self, client_id: &ClientId, upstream: &Upstream) -> Option<String> {
        let sought = Sought::of(upstream, &self.outgoing.for_route(client_id));
        match self.lookups.get(&sought).await {
            Some(LookUp::Over(Ok(server))) => Some(server.issuer.clone()),
            Some(LookUp::Over(Err(_)) | LookUp::UnderWay(_)) | None => upstream.authorization_server.clone(),
        }
    }

    /// Whether a token of this issuer for this resource is one for the route, as far as is known without a look-up.
    pub async fn takes(&self, client_id: &ClientId, upstream: &Upstream, issuer: &str, resource: &str) -> bool {
        is_resource_of(resource, upstream)
            && self.known(client_id, upstream).await.is_none_or(|known| is_same(&known, issuer))
    }

    /// Looks an upstream up anew, since it refused a token that it used to take: its authorization server may be another
    /// by now. At most once a minute for an upstream, whoever says so and through whichever route; none where that is not
    /// over, or the shares of look-ups are used up. What was found before stays until what is found now is good. Only what
    /// the upstream says to whoever comes without a token counts, so that nothing of one person's refusal reaches another.
    pub async fn renew(
        &self,
        client_id: &ClientId,
        upstream: &Upstream,
        user: &User,
        now: UnixTime,
    ) -> Option<JoinHandle<()>> {
        let mut taken = None;
        let begin = async |last: Option<Entry<_, UnixTime>>| match last.map(Entry::into_value) {
            // A time to come is a clock that was set back, and says nothing.
            Some(last) if last <= now && now.since(last) < RENEWED => Ok(Op::Nop),
            _ => {
                taken = Some(self.unawaited.take(Some(user), first_asked(upstream))?);
                Ok::<_, UsedUp>(Op::Put(now))
            }
        };
        let begun = self.renewals.entry_by_ref(&upstream.url).and_try_compute_with(begin).await;
        if let Err(used_up) = begun {
            tracing::debug!(upstream = upstream.url, reason = %DiscoveryError::Busy(used_up), "it is not looked up anew");
        }
        let share = taken?;
        let outgoing = self.outgoing.for_route(client_id);
        let sought = Sought::of(upstream, &outgoing);
        let of_route = Self { outgoing, ..self.clone() };
        Some(tokio::spawn(covered(async move { of_route.look_up_anew(sought, share).await })))
    }

    async fn look_up_anew(&self, sought: Sought, share: Share) {
        let found = self.look_up_in_time(&sought.upstream).await;
        drop(share);
        match found {
            Ok(server) => {
                let before = self.lookups.get(&sought).await;
                if let Some(LookUp::Over(Ok(before))) = before
                    && !is_same(&before.issuer, &server.issuer)
                {
                    let (upstream, before, issuer) = (&sought.upstream.url, &before.issuer, &server.issuer);
                    tracing::warn!(
                        upstream,
                        before,
                        issuer,
                        "it moved to another authorization server: people connect anew"
                    );
                }
                let server = Arc::new(server);
                self.lookups.insert(sought, LookUp::Over(Ok(server))).await;
            }
            Err(error) => {
                let upstream = &sought.upstream.url;
                tracing::warn!(upstream, %error, "it refused a token, and was looked up anew in vain");
            }
        }
    }

    async fn look_up_in_time(&self, upstream: &Upstream) -> Result<AuthorizationServer, DiscoveryError> {
        let found = timeout(self.longest, self.look_up(upstream)).await;
        found.unwrap_or_else(|_| Err(DiscoveryError::TooSlow(upstream.url.clone(), self.longest)))
    }

    /// The look-up of an upstream that there is, or one that begins with the share that `take` gives.
    async fn look_up_once(
        &self,
        client_id: &ClientId,
        upstream: &Upstream,
        take: impl FnOnce() -> Result<Share, UsedUp>,
    ) -> Result<LookUp, DiscoveryError> {
        let outgoing = self.outgoing.for_route(client_id);
        let sought = Sought::of(upstream, &outgoing);
        if let Some(lookup) = self.lookups.get(&sought).await {
            return Ok(lookup);
        }
        let begin = async |lookup: Option<_>| match lookup {
            Some(_) => Ok(Op::Nop),
            // One who has no share left does not speak for the next.
            None => take().map(|share| {
                let of_route = Self { outgoing, ..self.clone() };
                Op::Put(LookUp::UnderWay(of_route.spawn(sought.clone(), share)))
            }),
        };
        let lookup = self.lookups.entry_by_ref(&sought).and_try_compute_with(begin).await;
        let lookup = lookup.map_err(DiscoveryError::Busy)?.into_entry();
        lookup.map(Entry::into_value).ok_or_else(|| DiscoveryError::Broken(upstream.url.clone()))
    }

    /// Shutdown does not wait for it: nothing of it is lost.
    fn spawn(self, sought: Sought, share: Share) -> Shared<BoxFuture<'static, Found>> {
        let url = sought.upstream.url.clone();
        let task = tokio::spawn(covered(async move {
            let found = self.look_up_in_time(&sought.upstream).await.map(Arc::new);
            drop(share);
            let over = LookUp::Over(found.clone());
            // In turn with who put it there as under way, and so after that.
            self.lookups.entry(sought).and_upsert_with(async |_| over).await;
            found
        }));
        task.map(|found| found.unwrap_or(Err(DiscoveryError::Broken(url)))).boxed().shared()
    }

    async fn look_up(&self, upstream: &Upstream) -> Result<AuthorizationServer, DiscoveryError> {
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
        metadata.server(&self.outgoing, issuer, resource, scope).map_err(of_server)
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

/// The server that a look-up asks first, where it names one.
fn first_asked(upstream: &Upstream) -> Option<Origin> {
    Url::parse(&upstream.url).ok().map(|url| url.origin())
}

/// How long a look-up is remembered.
struct Lasting;

impl Lasting {
    fn of(lookup: &LookUp) -> Option<Duration> {
        Some(match lookup {
            // Longer than it takes; yet one that a bug ended without a word does not stay for ever.
            LookUp::UnderWay(_) => LONGEST * 2,
            LookUp::Over(Ok(_)) => FRESH,
            LookUp::Over(Err(_)) => FAILED,
        })
    }
}

impl Expiry<Sought, LookUp> for Lasting {
    fn expire_after_create(&self, _: &Sought, lookup: &LookUp, _: Instant) -> Option<Duration> {
        Self::of(lookup)
    }

    fn expire_after_update(&self, _: &Sought, lookup: &LookUp, _: Instant, _: Option<Duration>) -> Option<Duration> {
        Self::of(lookup)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{net::TcpListener, sync::mpsc};

    use super::*;
    use crate::net::outgoing::Config;

    /// Who presses again does not begin another that takes as long.
    #[tokio::test]
    async fn one_that_takes_too_long_is_remembered_as_a_failure() {
        let outgoing = Outgoing::new(&Config::default()).expect("a client");
        let discovery = Discovery::new(outgoing, ShareLimits { in_all: 1, of_user: 1, of_server: 1 });
        let impatient = Discovery { longest: Duration::ZERO, ..discovery.clone() };
        let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/mcp", silent.local_addr().expect("an address"));
        let upstream = Upstream { url, authorization_server: None, resource: None };
        let client_id = ClientId::new("https://mcp.example.com/.well-known/mcp-client-metadata.json");
        let too_slow = |found: Found| matches!(found, Err(DiscoveryError::TooSlow(url, _)) if url == upstream.url);
        assert!(too_slow(impatient.find(&client_id, &upstream, Some(&User::Single)).await));
        assert!(too_slow(discovery.find(&client_id, &upstream, Some(&User::Single)).await), "it is not tried again");
        let other = Upstream { url: String::new(), ..upstream.clone() };
        let found = discovery.find(&client_id, &other, Some(&User::Single)).await;
        assert!(matches!(found, Err(DiscoveryError::Upstream(..))), "its share came back: {found:?}");
    }

    /// What became of a look-up is forgotten within seconds; what an upstream says to POST is asked once a minute all the
    /// same, and nothing is left behind there.
    #[tokio::test]
    async fn an_upstream_is_asked_once_as_a_client_would_ask() {
        let (tell, mut told) = mpsc::unbounded_channel();
        let answer = async |tell: mpsc::UnboundedSender<_>, request: axum::extract::Request| {
            let (head, body) = request.into_parts();
            let body = axum::body::to_bytes(body, usize::MAX).await.expect("a body");
            let call = serde_json::from_slice(&body).unwrap_or(serde_json::Value::Null);
            let method = call["method"].as_str().map(str::to_owned);
            tell.send((head, call)).expect("the test");
            let status = if method.is_some() { StatusCode::OK } else { StatusCode::NOT_FOUND };
            let session = (method.as_deref() == Some("initialize")).then_some([("mcp-session-id", "s1")]);
            (status, session.map(axum::response::AppendHeaders), ())
        };
        let upstream = axum::Router::new().fallback(move |request| answer(tell.clone(), request));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/mcp", listener.local_addr().expect("an address"));
        tokio::spawn(async move { axum::serve(listener, upstream).await });
        let outgoing = Outgoing::new(&Config::default()).expect("a client");
        let discovery = Discovery::new(outgoing, ShareLimits { in_all: 9, of_user: 9, of_server: 9 });
        let client_id = ClientId::new("https://mcp.example.com/.well-known/mcp-client-metadata.json");
        let upstream = Upstream { url: url.clone(), authorization_server: None, resource: None };
        for _ in 0..3 {
            let found = discovery.find(&client_id, &upstream, Some(&User::Single)).await;
            assert!(matches!(found, Err(DiscoveryError::NoSignIn(named)) if named == url));
            discovery.lookups.invalidate_all();
        }
        let mut asked = Vec::new();
        // GET and two well-known addresses, three times; two calls; the session's end.
        for _ in 0..12 {
            asked.push(told.recv().await.expect("a request"));
        }
        let header = |head: &http::request::Parts, name: &str| {
            head.headers.get(name).map(|value| value.to_str().expect(name).to_owned())
        };
        let posts: Vec<_> = asked.iter().filter(|(head, _)| head.method == Method::POST).collect();
        let [(discover, call), (initialize, session)] = posts[..] else { panic!("{posts:?}") };
        for (name, value) in [
            ("accept", "application/json, text/event-stream"),
            ("content-type", "application/json"),
            ("mcp-protocol-version", "2026-07-28"),
            ("mcp-method", "server/discover"),
        ] {
            assert_eq!(header(discover, name).as_deref(), Some(value), "{name}");
        }
        assert_eq!((&call["jsonrpc"], &call["method"]), (&"2.0".into(), &"server/discover".into()));
        let meta = &call["params"]["_meta"];
        assert_eq!(meta["io.modelcontextprotocol/protocolVersion"], "2026-07-28");
        assert_eq!(meta["io.modelcontextprotocol/clientInfo"]["name"], "envoy-cimd");
        assert!(meta["io.modelcontextprotocol/clientCapabilities"].is_object());
        assert_eq!(
            (&session["method"], &session["params"]["protocolVersion"]),
            (&"initialize".into(), &"2025-11-25".into())
        );
        assert_eq!(header(initialize, "mcp-protocol-version"), None, "nothing is agreed on yet");
        let ends: Vec<_> = asked.iter().filter(|(head, _)| head.method == Method::DELETE).collect();
        let [(end, _)] = ends[..] else { panic!("{ends:?}") };
        assert_eq!((end.uri.path(), header(end, "mcp-session-id").as_deref()), ("/mcp", Some("s1")));
    }

    #[test]
    fn the_first_server_that_is_asked() {
        let upstream = |url: &str, issuer: Option<&str>| Upstream {
            url: url.to_owned(),
            authorization_server: issuer.map(str::to_owned),
            resource: None,
        };
        let first = first_asked(&upstream("https://mcp.example/a", None));
        assert_eq!(first, first_asked(&upstream("https://MCP.example:443/b", None)));
        assert_eq!(first, first_asked(&upstream("https://mcp.example/a", Some("https://as.example"))), "pinned or not");
        assert_ne!(first, first_asked(&upstream("https://other.example", Some("https://mcp.example"))));
        assert_eq!(first_asked(&upstream("nowhere", None)), None);
    }
}
