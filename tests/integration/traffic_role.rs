//! What becomes of an MCP request, asked of the role itself: a token goes along, or nothing goes on.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use envoy_cimd::{
    contract::{
        choreographer::{Begin, Begun, Choreographer, Complete},
        connection::Connection,
        error::{BeginError, CallError, Incomplete},
        tokens::{AccessToken, Missing, Refused, Renewal, TokenError, TokenOwner, TokenTag, UpstreamTokens},
    },
    filter::{
        browser::BrowserCookie,
        endpoint::{self, Endpoints},
        reply::Reply,
        request::{Header, Request, Sources},
        state::StateKeys,
        traffic::{self, Traffic},
        verdict::{AwaitedBody, Body, Role, Verdict},
    },
    model::{
        client::{ClientId, RedirectUri},
        clock::UnixTime,
        flow::FlowId,
        paths::Paths,
        route::{Field, Key, Keyed, RouteSpec},
        route_table::RouteTable,
        scope::Scope,
        secret::{Key as SecretKey, Secret},
        trace::Trace,
        upstream::Upstream,
        user::{Claims, UserSource, Users},
    },
};
use serde_json::{Value, json};

use crate::world::{CALLBACK, DISCONNECT};

mod limits;
mod told;

pub const FROM: &str = "https://mcp.example.com/linear";
pub const TO: &str = "https://upstream.example/mcp";
pub const LINK: &str = "https://mcp.example.com/linear/.pomerium/oauth/start";
pub const TAG: TokenTag = TokenTag([7; 16]);

/// What there is for whom, and who asked.
struct Fake {
    asked: Mutex<Vec<TokenOwner>>,
    answer: Mutex<Result<(), TokenError>>,
    /// Whether an answer never comes.
    hangs: bool,
}

impl Fake {
    fn answers(&self, answer: Result<(), TokenError>) {
        *self.answer.lock().expect("no panic") = answer;
    }

    fn calls(&self) -> usize {
        self.asked.lock().expect("no panic").len()
    }
}

#[async_trait]
impl UpstreamTokens for Fake {
    async fn upstream_token(&self, owner: TokenOwner, _: &Trace) -> Result<AccessToken, TokenError> {
        let (route, user) = (owner.client_id.to_string(), format!("{:?}", owner.user));
        self.asked.lock().expect("no panic").push(owner);
        if self.hangs {
            std::future::pending::<()>().await;
        }
        self.answer.lock().expect("no panic").clone()?;
        // Each has its own, so that another's is seen.
        let secret: String = format!("{route}{user}").chars().filter(char::is_ascii_alphanumeric).collect();
        Ok(AccessToken { secret: Secret::new(secret), tag: TAG, expires_at: None, again: None })
    }

    async fn awaited_token(&self, _: TokenOwner, _: Duration, _: &Trace) -> Result<AccessToken, TokenError> {
        panic!("nobody waits here")
    }

    async fn expect_again(&self, _: TokenOwner, _: &Trace) -> Result<(), TokenError> {
        panic!("nobody comes again here")
    }

    async fn refused(&self, _: TokenOwner, _: Refused, _: &Trace) -> Result<Renewal, TokenError> {
        panic!("nobody reports a token here")
    }

    async fn disconnect(&self, _: TokenOwner, _: &Trace) -> Result<(), TokenError> {
        panic!("the endpoints disconnect")
    }
}

/// Does everything it is asked to.
pub struct Willing;

#[async_trait]
impl Choreographer for Willing {
    async fn describe(&self, _: ClientId, _: Upstream, _: &Trace) -> Result<Option<String>, CallError> {
        Ok(None)
    }

    async fn connection(&self, _: TokenOwner, _: Option<Scope>, _: &Trace) -> Result<Connection, CallError> {
        panic!("nobody looks")
    }

    async fn begin(&self, _: Begin, _: &Trace) -> Result<Begun, BeginError> {
        panic!("nobody begins")
    }

    async fn complete(&self, _: Complete, _: &Trace) -> Result<String, Incomplete> {
        Ok("/".to_owned())
    }

    async fn disconnect(&self, _: TokenOwner, _: &Trace) -> Result<(), CallError> {
        Ok(())
    }
}

struct Gateway {
    endpoints: Endpoints,
    traffic: Traffic,
    tokens: Arc<Fake>,
}

impl Gateway {
    fn new() -> Self {
        Self::with(traffic::Config::default(), endpoint::Config::default(), RouteTable::default(), false)
    }

    fn with(config: traffic::Config, endpoints: endpoint::Config, table: RouteTable, hangs: bool) -> Self {
        let path = |text: &str| text.parse().expect("a path");
        let source = UserSource { namespace: "n".to_owned(), issuer: path("iss"), subject: path("sub"), display: None };
        let limits = endpoints.limits.calls;
        let endpoints = endpoint::Config { users: Users::From(source), ..endpoints };
        let keys = StateKeys::new(vec![SecretKey::new([1; 32])]);
        let mut endpoints =
            Endpoints::new(endpoints, table, keys, Arc::new(Willing), Arc::default(), Default::default());
        let tokens = Arc::new(Fake { asked: Mutex::default(), answer: Mutex::new(Ok(())), hangs });
        let cached = config.cached(tokens.clone(), limits, endpoints.calls.clone());
        endpoints.tools.tokens = Some(cached.clone());
        let traffic = Traffic::new(config, &endpoints, cached);
        Self { endpoints, traffic, tokens }
    }

    /// One for whom there is no token.
    fn unconnected() -> Self {
        let gateway = Self::new();
        gateway.tokens.answers(Err(TokenError::NotFound(Missing::Never)));
        gateway
    }

    async fn ask(&self, asked: &Asked<'_>) -> Verdict {
        settled(asked.of(&self.traffic)).await
    }

    /// The reply to a request that nothing of may go on.
    async fn reply(&self, asked: &Asked<'_>) -> Reply {
        match self.ask(asked).await {
            Verdict::Reply(reply) => reply,
            other => panic!("nothing may go on: {}", name(&other)),
        }
    }

    /// The reply to a POST whose body is this.
    async fn told(&self, headers: &[(&str, &str)], body: Body) -> Reply {
        let asked = Asked { ends: false, ..Asked::with(&[&[(":method", "POST")], headers].concat()) };
        let Verdict::Body(AwaitedBody { longest, then }) = self.ask(&asked).await else { panic!("it takes the body") };
        assert_eq!(longest.as_secs(), 5);
        match settled(then(body)).await {
            Verdict::Reply(reply) => reply,
            other => panic!("nothing may go on: {}", name(&other)),
        }
    }

    fn metric(&self, sample: &str) -> bool {
        self.endpoints.metrics.text().lines().any(|line| line == sample)
    }
}

/// A verdict when no call is left.
pub async fn settled(mut verdict: Verdict) -> Verdict {
    while let Verdict::Later(call) = verdict {
        verdict = call.await;
    }
    verdict
}

pub fn name(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "pass",
        Verdict::Reply(_) | Verdict::SameReply(_) => "reply",
        Verdict::Forward(_) => "forward",
        Verdict::Later(_) => "later",
        Verdict::Body(_) => "body",
    }
}

/// A request.
#[derive(Clone)]
pub struct Asked<'a> {
    pub headers: Vec<(&'a str, &'a str)>,
    pub attributes: Vec<(Key, &'a str)>,
    pub user: Option<Claims<'a>>,
    pub ends: bool,
}

impl<'a> Asked<'a> {
    /// One with nothing wrong, but that these headers take the place of others.
    pub fn with(headers: &[(&'a str, &'a str)]) -> Self {
        let fixed = [
            (":authority", "mcp.example.com"),
            (":scheme", "https"),
            (":method", "POST"),
            (":path", "/linear"),
            ("x-request-id", "the-request"),
        ];
        let fixed = fixed.into_iter().filter(|(name, _)| headers.iter().all(|(other, _)| other != name));
        Self {
            headers: fixed.chain(headers.iter().copied()).collect(),
            attributes: vec![(Key::From, FROM), (Key::To, TO)],
            user: Some(Claims { issuer: Some("i"), subject: Some("anna") }),
            ends: true,
        }
    }

    pub fn of(&self, role: &impl Role) -> Verdict {
        let mut request = Request::default();
        for (name, value) in &self.headers {
            request.push(name.as_bytes(), value.as_bytes());
        }
        let text = |key| self.attributes.iter().find(|(other, _)| *other == key).map(|(_, text)| Field::Text(text));
        let sources = Sources { attributes: Keyed::new(text), user: self.user, ..Sources::default() };
        role.answer(&request, &sources, self.ends)
    }
}

pub fn header<'a>(reply: &'a Reply, name: &str) -> Option<&'a str> {
    let mut values = reply.headers.iter().filter(|(other, _)| *other == name);
    let value = values.next().map(|(_, value)| std::str::from_utf8(value).expect("text"));
    assert!(values.next().is_none(), "{name} is there once");
    value
}

/// The JSON of an answer, with all that every answer of traffic has.
pub fn json_of(reply: &Reply) -> Value {
    assert_eq!(header(reply, "content-type"), Some("application/json"), "{}", reply.label);
    assert_eq!(header(reply, "cache-control"), Some("no-store"));
    assert_eq!(header(reply, "x-request-id"), Some("the-request"));
    serde_json::from_slice(&reply.body).expect("JSON")
}

/// An error whose id is null.
fn error_of(reply: &Reply) -> (i64, String) {
    let body = json_of(reply);
    let code = body["error"]["code"].as_i64().expect("a code");
    let message = body["error"]["message"].as_str().expect("a message").to_owned();
    assert_eq!(body, json!({ "jsonrpc": "2.0", "id": null, "error": { "code": code, "message": message } }));
    (code, message)
}

#[tokio::test]
async fn what_fails_a_check_takes_no_call() {
    let gateway = Gateway::new();
    let with = |headers: &[(&'static str, &'static str)]| Asked::with(headers);
    let route = |attributes: &[(Key, &'static str)]| Asked { attributes: attributes.to_vec(), ..Asked::with(&[]) };
    let user = |user| Asked { user, ..Asked::with(&[]) };
    let long: &'static str = "x".repeat(64 << 10).leak();
    let mut asked = vec![
        (with(&[("accept", long), (":scheme", "http")]), 431, "headers_too_large"),
        (route(&[]), 500, "misconfigured_route"),
        (route(&[(Key::To, TO)]), 500, "misconfigured_route"),
        (route(&[(Key::From, "http://mcp.example.com"), (Key::To, TO)]), 500, "misconfigured_route"),
        (with(&[(":scheme", "http"), (":authority", "other.example")]), 403, "https_required"),
        (with(&[("x-forwarded-proto", "http")]), 403, "https_required"),
        (with(&[(":authority", "other.example"), ("origin", "null")]), 421, "misdirected_request"),
        (with(&[(":authority", "mcp.example.com:8443")]), 421, "misdirected_request"),
        (with(&[("origin", "https://evil.example"), (":method", "TRACE")]), 403, "forbidden_origin"),
        (with(&[("origin", "null")]), 403, "forbidden_origin"),
        (with(&[("origin", "")]), 403, "forbidden_origin"),
        (with(&[("origin", "http://mcp.example.com")]), 403, "forbidden_origin"),
        (with(&[("origin", "https://mcp.example.com:443")]), 403, "forbidden_origin"),
        (with(&[("origin", "https://mcp.example.com/linear")]), 403, "forbidden_origin"),
        (with(&[("origin", "https://a.mcp.example.com")]), 403, "forbidden_origin"),
        (
            with(&[("origin", "https://mcp.example.com"), ("origin", "https://mcp.example.com")]),
            403,
            "forbidden_origin",
        ),
        (with(&[("origin", "https://mcp.example.com"), ("origin", "https://evil.example")]), 403, "forbidden_origin"),
        (route(&[(Key::From, FROM)]), 500, "misconfigured_route"),
        (route(&[(Key::From, FROM), (Key::To, "ftp://upstream.example")]), 500, "misconfigured_route"),
        (route(&[(Key::From, FROM), (Key::To, "https://u:p@upstream.example")]), 500, "misconfigured_route"),
        (route(&[(Key::From, FROM), (Key::To, TO), (Key::AuthorizationServer, "no URL")]), 500, "misconfigured_route"),
        (user(None), 403, "user_unknown"),
        (user(Some(Claims { issuer: Some("i"), subject: None })), 403, "user_unknown"),
        (user(Some(Claims { issuer: Some(""), subject: Some("anna") })), 403, "user_unknown"),
    ];
    for method in ["TRACE", "OPTIONS", "HEAD", "PUT", "PATCH", "CONNECT", "post", "GE", "GET, POST", ""] {
        asked.push((with(&[(":method", method)]), 405, "method_not_allowed"));
    }
    for (mut asked, status, label) in asked {
        for ends in [true, false] {
            asked.ends = ends;
            // Its checks are made before anything is waited for.
            let Verdict::Reply(reply) = asked.of(&gateway.traffic) else { panic!("{label}") };
            assert_eq!((reply.status, reply.label), (status, label), "{:?}", asked.headers);
            let (code, message) = error_of(&reply);
            assert_eq!(code, -31001, "outside of what JSON-RPC keeps for itself");
            assert!(!message.is_empty() && !message.contains(LINK));
            assert_eq!(header(&reply, "allow"), (status == 405).then_some("GET, POST, DELETE"));
        }
    }
    assert_eq!(gateway.tokens.calls(), 0);
    assert!(gateway.metric("envoy_cimd_handed_out_total 0"));
    assert!(gateway.metric(r#"envoy_cimd_requests_total{endpoint="traffic",outcome="user_unknown"} 6"#));
}

#[tokio::test]
async fn the_token_takes_the_place_of_the_callers_credentials() {
    let config = traffic::Config {
        allow_origins: ["https://app.example", "http://localhost:6274"]
            .map(|origin| origin.parse().expect("an origin"))
            .to_vec(),
        ..traffic::Config::default()
    };
    let gateway = Gateway::with(config, endpoint::Config::default(), RouteTable::default(), false);
    let asked = [
        Asked::with(&[]),
        Asked::with(&[(":method", "GET"), ("accept", "text/html"), ("sec-fetch-mode", "navigate")]),
        Asked::with(&[(":method", "DELETE")]),
        Asked { ends: false, ..Asked::with(&[("origin", "https://mcp.example.com")]) },
        Asked::with(&[("origin", "https://app.example"), ("authorization", "Bearer theirs"), ("cookie", "a=b")]),
        Asked::with(&[("origin", "http://localhost:6274")]),
        Asked::with(&[(":path", "/linear/more?x=y"), (":authority", "MCP.example.com:443")]),
        // Whatever the caller names itself, only the metadata says who it is.
        Asked::with(&[("x-user", "bert"), ("x-envoy-cimd-user", "bert")]),
    ];
    let expected = "Bearer httpsmcpexamplecomlinearwellknownmcpclientmetadatajsonSubjectissuerisubjectanna";
    for asked in asked {
        let Verdict::Forward(edits) = gateway.ask(&asked).await else { panic!("{:?}", asked.headers) };
        assert_eq!(edits.set, [("authorization", Bytes::from_static(expected.as_bytes()))]);
        assert_eq!(edits.remove, ["cookie", "proxy-authorization"]);
        assert_eq!(edits.tag, Some(TAG));
        assert!(!format!("{edits:?}").contains("Bearer"));
    }
    assert_eq!(gateway.tokens.calls(), 1, "the others are hits");
    assert!(gateway.metric("envoy_cimd_handed_out_total 8"));
}

/// None of the caller's credentials is even asked for.
#[test]
fn envoy_is_asked_for_no_credentials() {
    let names = Header::OF_TRAFFIC.map(Header::name);
    for credential in ["authorization", "cookie", "proxy-authorization"] {
        assert!(!names.contains(&credential));
    }
}

#[tokio::test]
async fn each_has_the_token_of_its_own_user_and_route() {
    let gateway = Gateway::new();
    let mut all = Vec::new();
    for subject in ["anna", "bert"] {
        for (from, path) in [(FROM, "/linear"), ("https://mcp.example.com/github", "/github")] {
            for to in [TO, "https://upstream.example/other"] {
                let asked = Asked {
                    attributes: vec![(Key::From, from), (Key::To, to)],
                    user: Some(Claims { issuer: Some("i"), subject: Some(subject) }),
                    ..Asked::with(&[(":path", path)])
                };
                all.push((asked, format!("{}{}", path.trim_start_matches('/'), subject)));
            }
        }
    }
    for _ in 0..2 {
        for (asked, own) in &all {
            let Verdict::Forward(edits) = gateway.ask(asked).await else { panic!("{own}") };
            let token = String::from_utf8_lossy(&edits.set[0].1).into_owned();
            assert!(
                ["linear", "github"].iter().all(|route| token.contains(route) == own.starts_with(route)),
                "{token}"
            );
            assert!(["anna", "bert"].iter().all(|user| token.ends_with(user) == own.ends_with(user)), "{token}");
        }
    }
    assert_eq!(gateway.tokens.calls(), all.len(), "one call for each, another upstream's too");
}

#[tokio::test]
async fn what_cannot_be_said_forwards_nothing() {
    let gateway = Gateway::new();
    gateway.tokens.answers(Err(TokenError::Unavailable("the store cannot be opened".into())));
    for method in ["POST", "GET", "DELETE"] {
        for ends in [true, false] {
            let asked = Asked { ends, ..Asked::with(&[(":method", method), ("accept", "text/html")]) };
            let reply = gateway.reply(&asked).await;
            assert_eq!((reply.status, reply.label), (502, "token_unavailable"));
            let (_, message) = error_of(&reply);
            assert!(!message.contains("store") && !message.contains(LINK), "{message}");
        }
    }
    assert_eq!(gateway.tokens.calls(), 6, "a failure is not kept");
    assert!(gateway.metric("envoy_cimd_handed_out_total 0"));
}

pub fn whole(body: &str) -> Body {
    Body::Came { bytes: Bytes::copy_from_slice(body.as_bytes()), whole: true }
}

pub fn cut(body: &str) -> Body {
    Body::Came { bytes: Bytes::copy_from_slice(body.as_bytes()), whole: false }
}

#[tokio::test]
async fn the_config_files_routes_are_told_apart_by_their_paths() {
    let spec = |from: &str, to: &str| {
        let mut spec = RouteSpec::default();
        spec.set("from", from.to_owned()).expect("a key");
        spec.set("to", to.to_owned()).expect("a key");
        spec
    };
    let specs = [
        spec("https://mcp.example.com/linear", "https://linear.example/mcp"),
        spec("https://mcp.example.com/github", "https://github.example/mcp"),
        spec("https://root.example.com", "https://root.example/mcp"),
    ];
    let table = RouteTable::new(&specs, &Paths::default()).expect("good routes");
    let gateway = Gateway::with(traffic::Config::default(), endpoint::Config::default(), table, false);
    for (authority, path, to) in [
        ("mcp.example.com", "/linear", Some("https://linear.example/mcp")),
        ("mcp.example.com", "/github/x?y", Some("https://github.example/mcp")),
        ("root.example.com", "/mcp", Some("https://root.example/mcp")),
        ("mcp.example.com", "/linear-evil", None),
        ("mcp.example.com", "/", None),
        ("other.example.com", "/linear", None),
    ] {
        let calls = gateway.tokens.calls();
        let asked = Asked { attributes: Vec::new(), ..Asked::with(&[(":authority", authority), (":path", path)]) };
        match (gateway.ask(&asked).await, to) {
            (Verdict::Forward(_), Some(to)) => {
                let asked = gateway.tokens.asked.lock().expect("no panic");
                assert_eq!(asked.last().map(|owner| owner.upstream.url.as_str()), Some(to), "{authority}{path}");
            }
            (Verdict::Reply(reply), None) => {
                assert_eq!((reply.status, reply.label), (500, "misconfigured_route"), "{authority}{path}");
                assert_eq!(gateway.tokens.calls(), calls);
            }
            (other, _) => panic!("{authority}{path}: {}", name(&other)),
        }
    }
}

/// In its own process, a disconnect and a new connection count for the next request.
#[tokio::test]
async fn the_endpoints_forget_what_they_change() {
    let gateway = Gateway::new();
    let flow = FlowId([7; 16]);
    let cookie = format!("__Host-envoy_cimd_{}=a-cookie", flow.tag());
    let state = gateway.endpoints.tools.state_keys.load().mint(
        flow,
        &RedirectUri::new(format!("{FROM}{CALLBACK}")),
        &BrowserCookie::from(Secret::new("a-cookie")),
        UnixTime::now(),
        UnixTime::MAX,
    );
    let (disconnect, callback) =
        (format!("/linear{DISCONNECT}"), format!("/linear{CALLBACK}?code=c&state={}", state.expect("a key")));
    let presses = Asked::with(&[(":method", "POST"), (":path", &disconnect), ("sec-fetch-site", "same-origin")]);
    let returns = Asked::with(&[(":method", "GET"), (":path", &callback), ("cookie", &cookie)]);
    let mut calls = 0;
    for (change, label) in [(presses, "disconnected"), (returns, "completed")] {
        calls += 1;
        for _ in 0..2 {
            assert!(matches!(gateway.ask(&Asked::with(&[])).await, Verdict::Forward(_)));
            assert_eq!(gateway.tokens.calls(), calls, "{label}");
        }
        let Verdict::Reply(reply) = settled(change.of(&gateway.endpoints)).await else { panic!("{label}") };
        assert_eq!((reply.status, reply.label), (303, label));
    }
    gateway.tokens.answers(Err(TokenError::NotFound(Missing::Never)));
    let reply = gateway.reply(&Asked::with(&[(":method", "DELETE")])).await;
    assert_eq!((reply.label, gateway.tokens.calls()), ("no_token", calls + 1));
}
