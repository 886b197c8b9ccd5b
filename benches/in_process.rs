//! What a request costs in this process, without gRPC, at any number of routes. Each line says how often it allocates.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use divan::{AllocProfiler, Bencher};
use envoy_cimd::{
    contract::tokens::TokenOwner,
    edge::{codec::Answer, conversation::Conversation, roles::RoleName},
    filter::{
        browser::BrowserCookie,
        endpoint::{self, Endpoints},
        state::StateKeys,
        token_cache::Cached,
        traffic::{self, Traffic},
        verdict::Role,
    },
    model::{
        client::RedirectUri,
        clock::UnixTime,
        flow::FlowId,
        paths::Paths,
        route::{Field, Key, Keyed, Route, RouteSpec},
        route_table::RouteTable,
        secret::{Key as SecretKey, Secret, random},
        trace::Trace,
        user::{User, UserSource, Users},
    },
};
use envoy_types::pb::{
    envoy::{
        config::core::v3::Metadata,
        service::ext_proc::v3::{ProcessingRequest, processing_response::Response},
    },
    google::protobuf::{Struct, Value, value::Kind},
};
use prost::Message;
use tokio::runtime::Runtime;

use crate::{
    one_token::OneToken,
    stack::in_process::{CALLBACK, attribute, document_of, endpoints, forged, message, said},
};

#[path = "through_envoy/one_token.rs"]
mod one_token;

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
        said(endpoints, message).encode(&mut buffer)
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
        .bench_local_refs(|owner| cached.cached(&*owner).expect("it is kept").edits.clone());
}

/// A token that is not kept, without what its store does.
#[divan::bench(args = ROUTES)]
fn token_miss(bencher: Bencher<'_, '_>, routes: usize) {
    let (runtime, cached) = tokens(Duration::ZERO);
    let mut origins = origins(routes);
    bencher.with_inputs(|| owner(&origins())).bench_local_refs(|owner| {
        runtime.block_on(async {
            assert!(cached.cached(&*owner).is_none());
            cached.look_up(owner, &Trace::default()).expect("a share").await.expect("a token").edits.clone()
        })
    });
}

/// An MCP request that finds its token, from the decoded message to the encoded answer, of so many people in turn.
#[divan::bench(args = ROUTES)]
fn mcp_request(bencher: Bencher<'_, '_>, people: usize) {
    let (runtime, cached) = tokens(Duration::from_secs(3600));
    let from = origin(0);
    for person in 0..people {
        keep(&runtime, &cached, &TokenOwner { user: user(person), ..owner(&from) });
    }
    let _inside = runtime.enter();
    let path = |text: &str| text.parse().expect("a path");
    let source = UserSource { namespace: "who".to_owned(), issuer: path("iss"), subject: path("sub"), display: None };
    let config = endpoint::Config { users: Users::From(source.clone()), ..endpoint::Config::default() };
    let keys = StateKeys::new(vec![SecretKey::new([1; 32])]);
    let embedded = Arc::clone(&endpoints().tools.choreographer);
    let endpoints = Endpoints::new(config, RouteTable::default(), keys, embedded, Arc::default(), Default::default());
    let traffic: Arc<dyn Role> = Arc::new(Traffic::new(traffic::Config::default(), &endpoints, cached));
    let mut buffer = Vec::with_capacity(16 * 1024);
    let mut person = 0;
    let mut stream = Conversation::new(Arc::clone(&traffic), RoleName::Traffic);
    let first = stream.take(mcp_message(&from, &user(0)), Some(&source)).expect("a message that is known");
    let first = first.expect("an answer at once").decoded().expect("an answer");
    assert!(matches!(first.response, Some(Response::RequestHeaders(_))));
    let next = || {
        person = (person + 7919) % people;
        mcp_message(&from, &user(person))
    };
    bencher.with_inputs(next).bench_local_values(|message| {
        buffer.clear();
        let mut stream = Conversation::new(Arc::clone(&traffic), RoleName::Traffic);
        let answer = stream.take(message, Some(&source)).expect("a message that is known").expect("an answer at once");
        assert!(matches!(answer, Answer::Again(_)));
        answer.encode(&mut buffer)
    });
}

/// As Envoy sends it where `envoy-config` is told of `who`.
fn mcp_message(from: &str, user: &User) -> ProcessingRequest {
    let User::Subject { issuer, subject } = user else { panic!("somebody") };
    let text = |text: &str| Value { kind: Some(Kind::StringValue(text.to_owned())) };
    let claims = Struct { fields: [("iss".to_owned(), text(issuer)), ("sub".to_owned(), text(subject))].into() };
    let authority = from.trim_start_matches("https://");
    let pairs = [
        (":method", "POST"),
        (":scheme", "https"),
        (":authority", authority),
        (":path", "/mcp"),
        ("accept", "application/json, text/event-stream"),
        ("mcp-protocol-version", "2025-11-25"),
        ("x-forwarded-proto", "https"),
        ("x-request-id", "5f0c9a4e-6d3f-4b1e-9a43-2f0f6a1f1b11"),
    ];
    ProcessingRequest {
        metadata_context: Some(Metadata {
            filter_metadata: [("who".to_owned(), claims)].into(),
            ..Metadata::default()
        }),
        ..message(&pairs, &[(attribute("route", "from"), from), (attribute("route", "to"), UPSTREAM)])
    }
}

fn user(person: usize) -> User {
    User::Subject { issuer: "https://idp.example".to_owned(), subject: format!("auth0|6f1d2c3b4a59687{person:06}") }
}

const UPSTREAM: &str = "https://mcp.internal.example/mcp";

fn owner(from: &str) -> TokenOwner {
    let from = from.parse().expect("an origin");
    stack::in_process::owner(User::Single, Paths::default().client_id(&from).as_str(), UPSTREAM)
}

/// A token of every route, and where their look-ups ran.
fn kept(routes: usize) -> (Runtime, Arc<Cached>) {
    let (runtime, cached) = tokens(Duration::from_secs(3600));
    for route in 0..routes {
        keep(&runtime, &cached, &owner(&origin(route)));
    }
    (runtime, cached)
}

/// Tokens that are kept for so long, and where look-ups run.
fn tokens(token_cache: Duration) -> (Runtime, Arc<Cached>) {
    let config = traffic::Config { token_cache, max_cached_tokens: 2 * ROUTES[2] as u64, ..traffic::Config::default() };
    let limits = endpoint::Config::default().limits.calls;
    (
        Runtime::new().expect("a runtime"),
        config.cached(Arc::new(OneToken("t".repeat(1000))), limits, Default::default()),
    )
}

fn keep(runtime: &Runtime, cached: &Cached, owner: &TokenOwner) {
    runtime.block_on(async { cached.look_up(owner, &Trace::default()).expect("a share").await.expect("a token") });
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
