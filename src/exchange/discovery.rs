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
use moka::{Entry, Expiry, future::Cache, ops::compute::Op};
use tokio::{task::JoinHandle, time::timeout};
use url::{Origin, Url};

pub mod documents;
pub mod error;
pub mod members;
mod reception;
mod search;
mod strangers_url;

use crate::{
    model::{
        client::ClientId,
        clock::UnixTime,
        issuer::is_same,
        shares::{Share, ShareLimits, Shares, UsedUp},
        upstream::Upstream,
        user::User,
    },
    net::outgoing::{Outgoing, reach::Reach},
    telemetry::traces::covered,
};
use documents::{AuthorizationServer, is_resource_of};
use error::DiscoveryError;
use search::Search;

/// How long what was found is used, and how long a failure is not tried again.
const FRESH: Duration = Duration::from_secs(600);
const FAILED: Duration = Duration::from_secs(5);
/// The longest that a look-up may take in all: longer than anybody waits, so that who comes back finds it done.
const LONGEST: Duration = Duration::from_secs(15);
/// How long, in seconds, an upstream is not looked up anew because of a refusal of it.
const RENEWED: u64 = 60;
/// How many upstreams are remembered.
const REMEMBERED: u64 = 10_000;

/// The look-ups, and what they found.
#[derive(Clone, Debug)]
pub struct Discovery {
    search: Search,
    lookups: Cache<Sought, LookUp>,
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
    /// `search` is the route's.
    fn of(upstream: &Upstream, search: &Search) -> Self {
        Self { upstream: upstream.clone(), reach: search.reach().clone() }
    }
}

type Found = Result<Arc<AuthorizationServer>, DiscoveryError>;

/// A look-up. It is a task of its own, which goes on when those who wait for it leave.
#[derive(Clone, Debug)]
enum LookUp {
    UnderWay(Shared<BoxFuture<'static, Found>>),
    Over(Found),
}

impl Discovery {
    /// `limits` is how many upstreams may be looked up at once for who waits, and as many again for who does not.
    pub fn new(outgoing: Outgoing, limits: ShareLimits) -> Self {
        let lookups = Cache::builder().max_capacity(REMEMBERED).expire_after(Lasting).build();
        Self {
            search: Search::new(outgoing, REMEMBERED),
            lookups,
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
        let sought = Sought::of(upstream, &self.search.for_route(client_id));
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
        let search = self.search.for_route(client_id);
        let sought = Sought::of(upstream, &search);
        let of_route = Self { search, ..self.clone() };
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
        let found = timeout(self.longest, self.search.look_up(upstream)).await;
        found.unwrap_or_else(|_| Err(DiscoveryError::TooSlow(upstream.url.clone(), self.longest)))
    }

    /// The look-up of an upstream that there is, or one that begins with the share that `take` gives.
    async fn look_up_once(
        &self,
        client_id: &ClientId,
        upstream: &Upstream,
        take: impl FnOnce() -> Result<Share, UsedUp>,
    ) -> Result<LookUp, DiscoveryError> {
        let search = self.search.for_route(client_id);
        let sought = Sought::of(upstream, &search);
        if let Some(lookup) = self.lookups.get(&sought).await {
            return Ok(lookup);
        }
        let begin = async |lookup: Option<_>| match lookup {
            Some(_) => Ok(Op::Nop),
            // One who has no share left does not speak for the next.
            None => take().map(|share| {
                let of_route = Self { search, ..self.clone() };
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
    use http::{Method, StatusCode};
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
