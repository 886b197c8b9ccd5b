//! What a request costs in this process, without gRPC, at any number of routes. Each line says how often it allocates.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use divan::{AllocProfiler, Bencher};
use envoy_cimd::{
    contract::tokens::{AccessToken, Refused, Renewal, TokenError, TokenOwner, TokenTag, UpstreamTokens},
    filter::{
        browser::BrowserCookie,
        endpoint::{self, Endpoints},
        request::{Request, Sources},
        state::StateKeys,
        token_cache::Cached,
        traffic::{self, Traffic},
        verdict::{Role, Verdict},
    },
    model::{
        client::RedirectUri,
        clock::UnixTime,
        flow::FlowId,
        paths::Paths,
        route::{Field, Key, Keyed, Route, RouteSpec, RouteTable},
        secret::{Key as SecretKey, Secret, random},
        trace::Trace,
        user::{User, Users},
    },
};
use envoy_types::pb::envoy::service::ext_proc::v3::ProcessingRequest;
use prost::Message;
use tokio::runtime::Runtime;

use crate::stack::in_process::{CALLBACK, answer, attribute, document_of, endpoints, forged, message};

#[path = "../tests/stack/mod.rs"]
#[expect(dead_code, reason = "the tests use all of it")]
mod stack;

#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

const ROUTES: [usize; 3] = [1, 1_000, 100_000];

const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

fn main() {
    divan::main();
}

/// From the decoded message to the encoded answer.
#[divan::bench(args = ROUTES)]
fn document(bencher: Bencher<'_, '_>, routes: usize) {
    answers(bencher, routes, &endpoints(), document_of);
}

/// The same for a callback that is refused, for a program.
#[divan::bench(args = ROUTES)]
fn forged_callback(bencher: Bencher<'_, '_>, routes: usize) {
    refusal(bencher, routes, "*/*");
}

/// And with the page that a browser gets.
#[divan::bench(args = ROUTES)]
fn forged_callback_page(bencher: Bencher<'_, '_>, routes: usize) {
    refusal(bencher, routes, "text/html");
}

fn refusal(bencher: Bencher<'_, '_>, routes: usize, accept: &str) {
    let endpoints = endpoints();
    let keys = StateKeys::new(vec![SecretKey::new(random().expect("randomness"))]);
    let path = format!("{CALLBACK}?code=c&state={}", forged(&keys));
    endpoints.tools.state_keys.store(Arc::new(keys));
    answers(bencher, routes, &endpoints, |origin| callback(origin, &path, accept));
}

fn callback(origin: &str, path: &str, accept: &str) -> ProcessingRequest {
    let authority = origin.trim_start_matches("https://");
    message(
        &[(":method", "GET"), (":path", path), (":authority", authority), (":scheme", "https"), ("accept", accept)],
        &[(attribute("route", "from"), origin)],
    )
}

fn answers(
    bencher: Bencher<'_, '_>,
    routes: usize,
    endpoints: &Arc<Endpoints>,
    message: impl Fn(&str) -> ProcessingRequest,
) {
    let mut buffer = Vec::with_capacity(16 * 1024);
    let mut origins = origins(routes);
    bencher.with_inputs(|| message(&origins())).bench_local_values(|message| {
        buffer.clear();
        answer(endpoints, message).encode(&mut buffer)
    });
}

/// Reading a message.
#[divan::bench]
fn decode(bencher: Bencher<'_, '_>) {
    let message = Bytes::from(document_of("https://route.example").encode_to_vec());
    bencher.bench_local(|| ProcessingRequest::decode(message.clone()));
}

#[divan::bench(args = ROUTES)]
fn route_from_attributes(bencher: Bencher<'_, '_>, routes: usize) {
    let mut origins = origins(routes);
    bencher.with_inputs(&mut origins).bench_local_refs(|from| {
        let text = |text| Some(Field::Text(text));
        Route::new(&Keyed::new(|key| match key {
            Key::From => text(from),
            Key::To => text("https://mcp.internal.example/mcp"),
            _ => None,
        }))
    });
}

#[divan::bench(args = ROUTES)]
fn route_from_the_file(bencher: Bencher<'_, '_>, routes: usize) {
    let spec = |route| {
        let mut spec = RouteSpec::default();
        spec.set("from", origin(route)).expect("a key");
        spec
    };
    let specs: Vec<RouteSpec> = (0..routes).map(spec).collect();
    let table = RouteTable::new(&specs, &Paths::default()).expect("good routes");
    let mut origins = origins(routes);
    bencher
        .with_inputs(|| origins().split_off("https://".len()))
        .bench_local_refs(|authority| table.host(authority).and_then(|host| host.at("")).cloned());
}

#[divan::bench(args = ROUTES)]
fn state_mint(bencher: Bencher<'_, '_>, routes: usize) {
    let keys = StateKeys::new(vec![SecretKey::new(random().expect("randomness"))]);
    let cookie = BrowserCookie::from(Secret::new("a cookie"));
    let mut origins = origins(routes);
    bencher
        .with_inputs(|| RedirectUri::new(origins()))
        .bench_local_refs(|redirect_uri| keys.mint(FlowId([7; 16]), redirect_uri, &cookie, NOW, NOW + 600));
}

#[divan::bench(args = ROUTES)]
fn state_verify(bencher: Bencher<'_, '_>, routes: usize) {
    let keys = StateKeys::new(vec![SecretKey::new(random().expect("randomness"))]);
    let cookie = BrowserCookie::from(Secret::new("a cookie"));
    let mut origins = origins(routes);
    bencher
        .with_inputs(|| {
            let redirect_uri = RedirectUri::new(origins());
            let state = keys.mint(FlowId([7; 16]), &redirect_uri, &cookie, NOW, NOW + 600).expect("a state");
            (redirect_uri, state)
        })
        .bench_local_refs(|(redirect_uri, state)| keys.authenticate(state)?.verify(redirect_uri, NOW));
}

/// A token that is kept, as each MCP request asks for it.
#[divan::bench(args = ROUTES)]
fn token_hit(bencher: Bencher<'_, '_>, routes: usize) {
    let (runtime, cached) = kept(routes);
    let _inside = runtime.enter();
    let mut origins = origins(routes);
    bencher
        .with_inputs(|| owner(&origins()))
        .bench_local_refs(|owner| cached.cached(owner).expect("it is kept").authorization());
}

/// An MCP request that finds its token, from the view of it to the verdict.
#[divan::bench(args = ROUTES)]
fn mcp_request(bencher: Bencher<'_, '_>, routes: usize) {
    let (runtime, cached) = kept(routes);
    let _inside = runtime.enter();
    let keys = StateKeys::new(vec![SecretKey::new([1; 32])]);
    let config = endpoint::Config { users: Users::Single, ..endpoint::Config::default() };
    let embedded = Arc::clone(&endpoints().tools.choreographer);
    let endpoints = Endpoints::new(config, RouteTable::default(), keys, embedded, Arc::default(), Default::default());
    let traffic = Traffic::new(traffic::Config::default(), &endpoints, cached);
    let mut origins = origins(routes);
    bencher.with_inputs(&mut origins).bench_local_refs(|from| {
        let mut request = Request::with_capacity(6);
        let authority = from.trim_start_matches("https://").as_bytes();
        for (name, value) in [
            (&b":method"[..], &b"POST"[..]),
            (b":scheme", b"https"),
            (b":authority", authority),
            (b":path", b"/mcp"),
            (b"accept", b"application/json, text/event-stream"),
            (b"x-request-id", b"5f0c9a4e-6d3f-4b1e-9a43-2f0f6a1f1b11"),
        ] {
            request.push(name, value);
        }
        let attributes = Keyed::new(|key| match key {
            Key::From => Some(Field::Text(from)),
            Key::To => Some(Field::Text(UPSTREAM)),
            _ => None,
        });
        let verdict = traffic.answer(&request, &Sources { attributes, ..Sources::default() }, false);
        assert!(matches!(verdict, Verdict::Forward(_)));
        verdict
    });
}

const UPSTREAM: &str = "https://mcp.internal.example/mcp";

fn owner(from: &str) -> TokenOwner {
    let from = from.parse().expect("an origin");
    stack::in_process::owner(User::Single, Paths::default().client_id(&from).as_str(), UPSTREAM)
}

/// A token of every route, and where their look-ups ran.
fn kept(routes: usize) -> (Runtime, Arc<Cached>) {
    let runtime = Runtime::new().expect("a runtime");
    let config = traffic::Config {
        token_cache: Duration::from_secs(3600),
        max_cached_tokens: 2 * ROUTES[2] as u64,
        ..traffic::Config::default()
    };
    let limits = endpoint::Config::default().limits.calls;
    let cached = config.cached(Arc::new(OneToken), limits, Default::default());
    runtime.block_on(async {
        for route in 0..routes {
            let look_up = cached.look_up(&owner(&origin(route)), &Trace::default()).expect("a share");
            look_up.await.expect("a token");
        }
    });
    (runtime, cached)
}

/// Has the same token for everybody.
struct OneToken;

#[async_trait]
impl UpstreamTokens for OneToken {
    async fn upstream_token(&self, _: TokenOwner, _: &Trace) -> Result<AccessToken, TokenError> {
        Ok(AccessToken { secret: Secret::new("t".repeat(1000)), tag: TokenTag([0; 16]), expires_at: None })
    }

    async fn refused(&self, _: TokenOwner, _: Refused, _: &Trace) -> Result<Renewal, TokenError> {
        Ok(Renewal::TooSoon)
    }

    async fn disconnect(&self, _: TokenOwner, _: &Trace) -> Result<(), TokenError> {
        Ok(())
    }
}

/// The origins of that many routes, over and over, none soon after itself.
fn origins(routes: usize) -> impl FnMut() -> String {
    let mut route = 0;
    move || {
        route = (route + 7919) % routes;
        origin(route)
    }
}

fn origin(route: usize) -> String {
    format!("https://route-{route:06}.example")
}
