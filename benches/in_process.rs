//! What a request costs in this process, without gRPC, at any number of routes. Each line says how often it allocates.

use std::sync::Arc;

use bytes::Bytes;
use divan::{AllocProfiler, Bencher};
use envoy_cimd::{
    edge::{ext_proc::answer, proto},
    filter::{browser::BrowserCookie, endpoint::Endpoints, state::StateKeys},
    model::{
        client::RedirectUri,
        clock::UnixTime,
        flow::FlowId,
        paths::Paths,
        route::{Field, Key, Keyed, Route, RouteSpec, RouteTable},
        secret::{Key as SecretKey, Secret, random},
    },
};
use envoy_types::pb::envoy::service::ext_proc::v3::ProcessingRequest;
use prost::Message;

use crate::stack::in_process::{CALLBACK, attribute, document_of, endpoints, forged, message, read};

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
    endpoints: &Endpoints,
    message: impl Fn(&str) -> ProcessingRequest,
) {
    let mut buffer = Vec::with_capacity(16 * 1024);
    let mut origins = origins(routes);
    bencher.with_inputs(|| read(&message(&origins()))).bench_local_refs(|message| {
        buffer.clear();
        let (answer, _) = answer(endpoints, message).expect("an answer");
        answer.encode(&mut buffer)
    });
}

/// Reading a message, whole, and what there is use for.
#[divan::bench(types = [ProcessingRequest, proto::ProcessingRequest])]
fn decode<T: Message + Default>(bencher: Bencher<'_, '_>) {
    let message = Bytes::from(document_of("https://route.example").encode_to_vec());
    bencher.bench_local(|| T::decode(message.clone()));
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
