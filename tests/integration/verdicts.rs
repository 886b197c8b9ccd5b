//! What a real Envoy does with each verdict: a role made for this test, in the place of the traffic role, behind a filter
//! as that has it.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use envoy_cimd::{
    contract::tokens::TokenTag,
    edge::{
        conversation::MAX_BODY,
        ext_proc::{Config, ExtProc, Shared},
        roles::{ROLE_KEY, Roles},
        server::{MAX_MESSAGE, Server},
    },
    filter::{
        outcome::Outcome,
        reply::Reply,
        request::{Request, Sources},
        verdict::{AwaitedBody, Body, Edits, Role, Said, Verdict},
    },
};
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Version};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    client::conn,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Runtime,
    sync::watch,
    time::timeout,
};
use tokio_stream::wrappers::TcpListenerStream;

use crate::stack::{Answered, Envoy, PATIENCE};

const TOKEN: &str = "Bearer a-token";
const THEIRS: &str = "Bearer the-callers-own";
/// The base64url text of sixteen bytes of one.
const TAG: &str = "AQEBAQEBAQEBAQEBAQEBAQ";
const HELD: &str = "envoy_cimd_traffic";

const VERSIONS: [Version; 2] = [Version::HTTP_11, Version::HTTP_2];

/// An Envoy, the role that it asks, and an upstream that remembers.
struct Scene {
    _dir: TempDir,
    envoy: Envoy,
    upstream: Upstream,
    role: Script,
    release: watch::Sender<bool>,
    /// The processor's own threads: without them it is as killed.
    processor: Option<Runtime>,
    streams: Box<dyn Fn() -> i64 + Send + Sync>,
}

impl Scene {
    async fn start(edit: impl FnOnce(&mut Value)) -> Self {
        let (release, released) = watch::channel(false);
        let role = Script { bodies: Arc::default(), released, alive: Arc::default() };
        let shared = Shared { metrics: Arc::default(), refusals: Arc::default(), users: None };
        let metrics = Arc::clone(&shared.metrics);
        let roles = Roles { endpoints: None, traffic: Some(Arc::new(role.clone())), refused: None };
        let service = Server::new(ExtProc::new(roles, shared, Config::default()));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("a listener");
        let address = listener.local_addr().expect("an address");
        let processor = Runtime::new().expect("a runtime");
        processor.spawn(async move {
            let listener = TcpListenerStream::new(TcpListener::from_std(listener).expect("a listener"));
            envoy_cimd::net::grpc::server().add_service(service).serve_with_incoming(listener).await
        });
        let upstream = Upstream::start().await;
        let mut config = configuration(address, upstream.address);
        edit(&mut config);
        let dir = tempfile::tempdir().expect("a folder");
        let envoy = Envoy::start(dir.path(), &config.to_string()).await;
        let streams = Box::new(move || metrics.streams.get());
        Self { _dir: dir, envoy, upstream, role, release, processor: Some(processor), streams }
    }

    fn kill_processor(&mut self) {
        self.processor.take().expect("it runs").shutdown_background();
    }

    /// Waits until no stream is open, and nothing is left of any that was.
    async fn idle(&self) {
        let idle = timeout(PATIENCE, async {
            // The role's own, the service's.
            while (self.streams)() != 0 || Arc::strong_count(&self.role.alive) != 2 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        idle.await.unwrap_or_else(|_| panic!("{} streams are open", (self.streams)()));
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if let Some(processor) = self.processor.take() {
            processor.shutdown_background();
        }
    }
}

/// A role that does what a request's path says.
#[derive(Clone)]
struct Script {
    bodies: Arc<Mutex<Vec<Body>>>,
    released: watch::Receiver<bool>,
    /// Each verdict that waits for something has one.
    alive: Arc<()>,
}

impl Role for Script {
    fn answer(&self, request: &Request<'_>, _: &Sources<'_>, _: bool) -> Verdict {
        match request.path_and_query().0 {
            "/pass" => Verdict::Pass,
            "/forward" => Verdict::Forward(Said::new(edits())),
            "/call" => self.call(reply()),
            "/body" => self.body(PATIENCE, reply()),
            "/late" => self.body(Duration::from_millis(200), reply()),
            "/hold" => self.body(PATIENCE, self.call(Verdict::Forward(Said::new(edits())))),
            path => panic!("{path}"),
        }
    }
}

impl Script {
    fn call(&self, then: Verdict) -> Verdict {
        let Self { mut released, alive, .. } = self.clone();
        Verdict::Later(Box::pin(async move {
            let _alive = alive;
            released.wait_for(|released| *released).await.expect("the test goes on");
            then
        }))
    }

    fn body(&self, longest: Duration, answer: Verdict) -> Verdict {
        let Self { bodies, alive, .. } = self.clone();
        let then = Box::new(move |body| {
            let _alive = alive;
            bodies.lock().expect("bodies").push(body);
            answer
        });
        Verdict::Body(AwaitedBody { longest, then })
    }

    /// What came of the bodies that were asked for since this was asked: lengths, and whether they were whole.
    fn bodies(&self) -> Vec<Option<(usize, bool)>> {
        let of = |body| match body {
            Body::Came { bytes, whole } => Some((bytes.len(), whole)),
            Body::Late => None,
        };
        std::mem::take(&mut *self.bodies.lock().expect("bodies")).into_iter().map(of).collect()
    }
}

fn edits() -> Edits {
    Edits {
        set: vec![("authorization", Bytes::from_static(TOKEN.as_bytes()))],
        remove: &["cookie", "proxy-authorization"],
        tag: Some(TokenTag([1; 16])),
        body: None,
    }
}

/// An answer that no other part gives.
fn reply() -> Verdict {
    Verdict::Reply(Reply { status: 418, ..Reply::new(Outcome::NotFound) }.body("ours"))
}

fn is_ours(answer: &Result<Answered, String>) -> bool {
    matches!(answer, Ok(Answered { status: 418, body, .. }) if body == "ours")
}

/// The filter as the traffic role has it. The listener `https` has the limits that are printed, `http` Envoy's own.
fn configuration(processor: SocketAddr, upstream: SocketAddr) -> Value {
    let filter = json!({
        "name": "envoy-cimd-traffic",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor",
            "grpc_service": {
                "envoy_grpc": {"cluster_name": "processor", "authority": "envoy-cimd"},
                "initial_metadata": [{"key": ROLE_KEY, "value": "traffic"}],
            },
            "failure_mode_allow": false,
            "status_on_error": {"code": 503},
            "message_timeout": "2s",
            "max_message_timeout": "25s",
            "allow_mode_override": true,
            "processing_mode": {
                "request_header_mode": "SEND",
                "response_header_mode": "SKIP",
                "request_body_mode": "NONE",
                "response_body_mode": "NONE",
                "request_trailer_mode": "SKIP",
                "response_trailer_mode": "SKIP",
            },
            "metadata_options": {"receiving_namespaces": {"untyped": [HELD]}},
        },
    });
    let router = json!({
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
    });
    let listener = |name: &str| {
        json!({
            "name": name,
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
            "filter_chains": [{"filters": [{
                "name": "envoy.filters.network.http_connection_manager",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.\
                              HttpConnectionManager",
                    "stat_prefix": name,
                    "http_protocol_options": {"enable_trailers": true},
                    "http_filters": [filter, router],
                    "route_config": {"virtual_hosts": [{
                        "name": "all",
                        "domains": ["*"],
                        "routes": [{
                            "match": {"prefix": "/"},
                            "route": {"cluster": "upstream", "timeout": "0s"},
                            "request_headers_to_add": [
                                {"header": {"key": "x-tag", "value": format!("%DYNAMIC_METADATA({HELD}:tag)%")}},
                            ],
                        }],
                    }]},
                },
            }]}],
        })
    };
    let mut printed = listener("https");
    printed["per_connection_buffer_limit_bytes"] = json!(32_768);
    manager(&mut printed)["http2_protocol_options"] = json!({
        "max_concurrent_streams": 100,
        "initial_stream_window_size": 65_536,
        "initial_connection_window_size": 1_048_576,
    });
    let cluster = |name: &str, address: SocketAddr| {
        json!({
            "name": name,
            "type": "STATIC",
            "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {
                "address": {"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}},
            }}]}]},
            "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            }},
        })
    };
    json!({
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
        "static_resources": {
            "listeners": [printed, listener("http")],
            "clusters": [cluster("processor", processor), cluster("upstream", upstream)],
        },
    })
}

fn manager(listener: &mut Value) -> &mut Value {
    &mut listener["filter_chains"][0]["filters"][0]["typed_config"]
}

/// What came to the upstream of a request.
#[derive(Clone, Debug, Default)]
struct Came {
    headers: HeaderMap,
    body: usize,
    trailers: HeaderMap,
}

impl Came {
    /// All values of a header, or of a trailer.
    fn all<'a>(of: &'a HeaderMap, name: &str) -> Vec<&'a str> {
        of.get_all(name).iter().map(|value| value.to_str().expect("text")).collect()
    }
}

/// An upstream that speaks HTTP/2. It answers `?slow` once it is told to.
struct Upstream {
    address: SocketAddr,
    came: Arc<Mutex<Vec<Came>>>,
    /// How many requests it has begun to read.
    begun: watch::Receiver<usize>,
    go_on: watch::Sender<bool>,
}

impl Upstream {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let came: Arc<Mutex<Vec<Came>>> = Arc::default();
        let (begin, begun) = watch::channel(0);
        let begin = Arc::new(begin);
        let go_on = watch::Sender::new(false);
        let (keep, told) = (Arc::clone(&came), go_on.clone());
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let (keep, told, begin) = (Arc::clone(&keep), told.clone(), Arc::clone(&begin));
                let service = service_fn(move |request: http::Request<Incoming>| {
                    let (keep, mut told, begin) = (Arc::clone(&keep), told.subscribe(), Arc::clone(&begin));
                    async move {
                        begin.send_modify(|begun| *begun += 1);
                        let slow = request.uri().query() == Some("slow");
                        let mut seen = Came { headers: request.headers().clone(), ..Came::default() };
                        let mut body = request.into_body();
                        while let Some(Ok(frame)) = body.frame().await {
                            match frame.into_data() {
                                Ok(data) => seen.body += data.len(),
                                Err(frame) => seen.trailers.extend(frame.into_trailers().unwrap_or_default()),
                            }
                        }
                        keep.lock().expect("requests").push(seen);
                        if slow {
                            let _ = told.wait_for(|told| *told).await;
                        }
                        Ok::<_, Infallible>(http::Response::new(Full::new(Bytes::from_static(b"the upstream"))))
                    }
                });
                let connection = TokioIo::new(connection);
                tokio::spawn(
                    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .serve_connection(connection, service),
                );
            }
        });
        Self { address, came, begun, go_on }
    }

    /// The requests that came since this was asked.
    fn came(&self) -> Vec<Came> {
        std::mem::take(&mut *self.came.lock().expect("requests"))
    }

    /// Whether no request came, ever, nor a part of one.
    fn is_untouched(&self) -> bool {
        *self.begun.borrow() == 0
    }
}

type Upload = BoxBody<Bytes, Infallible>;

/// A body in pieces, of unknown length to whoever sends it, with trailers where there are any.
fn upload(length: usize, trailers: Option<HeaderMap>) -> Upload {
    const PIECE: usize = 64 << 10;
    let pieces = (0..length.div_ceil(PIECE)).map(move |piece| {
        let piece = vec![b'a'; PIECE.min(length - piece * PIECE)];
        Ok(Frame::data(Bytes::from(piece)))
    });
    let trailers = trailers.map(|trailers| Ok(Frame::trailers(trailers)));
    StreamBody::new(stream::iter(pieces.chain(trailers))).boxed()
}

/// A body that never ends.
fn endless() -> Upload {
    StreamBody::new(stream::pending()).boxed()
}

fn trailers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| (name.parse().expect("a name"), HeaderValue::from_static(value))).collect()
}

fn post(path: &str, body: Upload) -> http::Request<Upload> {
    http::Request::post(path).body(body).expect("a request")
}

/// Sends it on a connection of its own, and reads the answer, which may come before the request has ended.
async fn send(address: SocketAddr, version: Version, mut request: http::Request<Upload>) -> Result<Answered, String> {
    let text = |error: hyper::Error| format!("{error:?}");
    let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    // As programs set it that speak HTTP/2: without it, each full window waits for a delayed ACK.
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    let io = TokioIo::new(stream);
    let answer = async {
        let response = if version == Version::HTTP_2 {
            *request.uri_mut() = format!("http://mcp.example.com{}", request.uri()).parse().expect("a URL");
            let (mut sender, connection) = conn::http2::handshake(TokioExecutor::new(), io).await.map_err(text)?;
            tokio::spawn(connection);
            sender.send_request(request).await.map_err(text)?
        } else {
            request.headers_mut().insert("host", HeaderValue::from_static("mcp.example.com"));
            let (mut sender, connection) = conn::http1::handshake(io).await.map_err(text)?;
            tokio::spawn(connection);
            sender.send_request(request).await.map_err(text)?
        };
        let (head, body) = response.into_parts();
        let body = body.collect().await.map_err(text)?.to_bytes();
        Ok(Answered { status: head.status.as_u16(), headers: head.headers, body })
    };
    timeout(PATIENCE, answer).await.map_err(|_| "no answer in time".to_owned())?
}

/// What a caller sends that must not go on.
fn with_credentials(mut request: http::Request<Upload>) -> http::Request<Upload> {
    let headers = request.headers_mut();
    for number in 1..=5 {
        headers.append("authorization", format!("{THEIRS} {number}").parse().expect("a value"));
    }
    for cookie in ["a=b", "c=d"] {
        headers.append("cookie", HeaderValue::from_static(cookie));
    }
    headers.insert("proxy-authorization", HeaderValue::from_static(THEIRS));
    headers.insert("x-other", HeaderValue::from_static("stays"));
    request
}

#[tokio::test]
async fn a_request_goes_on_with_the_edits_alone() {
    const MUCH: usize = 40 << 20;
    let scene = Scene::start(|_| {}).await;
    scene.release.send_replace(true);
    for version in VERSIONS {
        for path in ["/forward", "/hold"] {
            let request = with_credentials(post(path, upload(MUCH, None)));
            let answer = send(scene.envoy.https, version, request).await;
            let answer = answer.unwrap_or_else(|error| panic!("{version:?} {path}: {error}"));
            assert_eq!((answer.status, answer.text()), (200, "the upstream"), "{version:?} {path}");
            let came = scene.upstream.came();
            let [Came { headers, body, .. }] = &came[..] else { panic!("{} requests", came.len()) };
            assert_eq!(*body, MUCH);
            for (name, values) in [
                ("authorization", &[TOKEN][..]),
                ("cookie", &[]),
                ("proxy-authorization", &[]),
                ("x-other", &["stays"]),
                ("x-tag", &[TAG]),
            ] {
                assert_eq!(Came::all(headers, name), values, "{version:?} {path} {name}");
            }
        }
        // And what is none of ours goes as it came.
        let request = with_credentials(post("/pass", upload(1, None)));
        let answer = send(scene.envoy.https, version, request).await.expect("an answer");
        let came = scene.upstream.came();
        let [Came { headers, .. }] = &came[..] else { panic!("{} requests", came.len()) };
        let theirs = Came::all(headers, "authorization").join(",");
        assert_eq!((answer.status, theirs.matches(THEIRS).count()), (200, 5), "{theirs}");
        assert!(!headers.contains_key("x-tag"));
    }
    scene.idle().await;
}

/// Whatever its length, and whether that is known before: the body is looked at, and nothing of the request goes on.
#[tokio::test]
async fn a_body_is_answered_and_goes_nowhere() {
    let scene = Scene::start(|_| {}).await;
    for version in VERSIONS {
        for length in [0, 1, MAX_BODY, MAX_BODY + 1, 40_000, 3 << 20, 40 << 20] {
            let of_known_length = Full::new(Bytes::from(vec![b'a'; length])).boxed();
            for body in [upload(length, None), of_known_length] {
                let answer = send(scene.envoy.https, version, post("/body", body)).await;
                assert!(is_ours(&answer), "{version:?} {length}: {answer:?}");
                let expected = (length.min(MAX_BODY), length <= MAX_BODY);
                assert_eq!(scene.role.bodies(), [Some(expected)], "{version:?} {length}");
            }
        }
    }
    scene.idle().await;
    assert!(scene.upstream.is_untouched());
}

/// Envoy's own limits are larger than the printed ones: over HTTP/2 it sends all of 3 MB. What is too long for a message
/// is an error, which the client gets too, and nothing goes on.
#[tokio::test]
async fn buffers_of_any_size_do() {
    let scene = Scene::start(|_| {}).await;
    for version in VERSIONS {
        let answer = send(scene.envoy.http, version, post("/body", upload(3 << 20, None))).await;
        assert!(is_ours(&answer), "{version:?}: {answer:?}");
        assert_eq!(scene.role.bodies(), [Some((MAX_BODY, false))]);
    }
    for path in ["/body", "/hold"] {
        let answer = send(scene.envoy.http, Version::HTTP_2, post(path, upload(40 << 20, None))).await;
        assert_eq!(answer.expect("an answer").status, 503);
        assert_eq!(scene.role.bodies(), []);
    }
    scene.idle().await;
    assert!(scene.upstream.is_untouched());
}

/// The printed window is so small that a body of any length is answered by the role.
#[tokio::test]
async fn the_printed_window_fits_into_a_message() {
    let scene = Scene::start(|_| {}).await;
    let printed = include_str!("../../src/templates/envoy.yaml");
    let window = printed.split_once("initial_stream_window_size: ").expect("a window").1;
    let window: usize = window.lines().next().and_then(|line| line.trim().parse().ok()).expect("bytes");
    assert_eq!(window, 65_536, "as here");
    assert!(2 * window < MAX_MESSAGE);
    assert!(is_ours(&send(scene.envoy.https, Version::HTTP_2, post("/body", upload(40 << 20, None))).await));
}

/// Headers and trailers without a body would go on, were trailers not asked for.
#[tokio::test]
async fn headers_and_trailers_alone_go_nowhere() {
    let scene = Scene::start(|_| {}).await;
    scene.release.send_replace(true);
    let sum = || Some(trailers(&[("x-sum", "1")]));
    let answer = send(scene.envoy.https, Version::HTTP_2, post("/body", upload(0, sum()))).await;
    assert!(is_ours(&answer), "{answer:?}");
    // Not even with a token: when trailers came, the headers cannot be changed any more.
    let answer = send(scene.envoy.https, Version::HTTP_2, post("/hold", upload(0, sum()))).await;
    assert_eq!(answer.expect("an answer").status, 503);
    assert_eq!(scene.role.bodies(), [Some((0, true)), Some((0, true))]);
    scene.idle().await;
    assert!(scene.upstream.is_untouched());
}

/// A body that has trailers is all there, and Envoy does not say so. The trailers then lose what the headers lost.
#[tokio::test]
async fn trailers_after_a_body_that_was_asked_for() {
    let scene = Scene::start(|_| {}).await;
    scene.release.send_replace(true);
    let theirs = || Some(trailers(&[("authorization", THEIRS), ("cookie", "a=b"), ("x-sum", "1")]));
    let request = with_credentials(post("/hold", upload(10, theirs())));
    let answer = send(scene.envoy.https, Version::HTTP_2, request).await.expect("an answer");
    assert_eq!((answer.status, scene.role.bodies()), (200, vec![Some((10, false))]));
    let came = scene.upstream.came();
    let [Came { headers, body, trailers }] = &came[..] else { panic!("{} requests", came.len()) };
    assert_eq!((Came::all(headers, "authorization"), *body), (vec![TOKEN], 10));
    assert_eq!(trailers, &self::trailers(&[("x-sum", "1")]));
    scene.idle().await;
}

/// Where the headers got a token at once, the filter sees no trailers: Envoy's own `header_mutation` filter removes what
/// must not be in them.
#[tokio::test]
async fn trailers_lose_credentials_before_they_reach_the_upstream() {
    let scene = Scene::start(|config| {
        for listener in config["static_resources"]["listeners"].as_array_mut().expect("listeners") {
            let filters = manager(listener)["http_filters"].as_array_mut().expect("filters");
            let removed = ["authorization", "cookie", "proxy-authorization"].map(|name| json!({"remove": name}));
            let filter = json!({
                "name": "envoy-cimd-trailers",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation",
                    "mutations": {"request_trailers_mutations": removed},
                },
            });
            filters.insert(0, filter);
        }
    })
    .await;
    let theirs = [("authorization", THEIRS), ("cookie", "a=b"), ("proxy-authorization", THEIRS), ("x-sum", "1")];
    let request = post("/forward", upload(10, Some(trailers(&theirs))));
    let answer = send(scene.envoy.https, Version::HTTP_2, request).await.expect("an answer");
    assert_eq!(answer.status, 200);
    // Over HTTP/1.1 as well, where Envoy is told to let trailers through.
    let chunked = format!(
        "POST /forward HTTP/1.1\r\nhost: mcp.example.com\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n\
         a\r\naaaaaaaaaa\r\n0\r\nAuthorization: {THEIRS}\r\ncookie: a=b\r\nproxy-authorization: {THEIRS}\r\nx-sum: \
         1\r\n\r\n"
    );
    assert!(say(scene.envoy.https, &chunked).await.starts_with("HTTP/1.1 200 "));
    let came = scene.upstream.came();
    assert_eq!(came.len(), 2);
    for Came { headers, body, trailers } in came {
        assert_eq!((Came::all(&headers, "authorization"), body), (vec![TOKEN], 10));
        assert_eq!(trailers, self::trailers(&[("x-sum", "1")]));
    }
}

/// Says it over TCP, and hears all that comes.
async fn say(address: SocketAddr, words: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    stream.write_all(words.as_bytes()).await.expect("sent");
    let mut heard = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut heard)).await.expect("an end").expect("an answer");
    String::from_utf8(heard).expect("text")
}

#[tokio::test]
async fn a_body_that_does_not_come_is_answered() {
    let scene = Scene::start(|_| {}).await;
    for version in VERSIONS {
        let answer = send(scene.envoy.https, version, post("/late", endless())).await;
        assert!(is_ours(&answer), "{version:?}: {answer:?}");
        assert_eq!(scene.role.bodies(), [None]);
    }
    scene.idle().await;
    assert!(scene.upstream.is_untouched());
}

/// Bodies as only HTTP/1.1 says them.
#[tokio::test]
async fn lengths_and_expectations_of_http_1() {
    let scene = Scene::start(|_| {}).await;
    scene.release.send_replace(true);
    let head = |path, more| format!("POST {path} HTTP/1.1\r\nhost: mcp.example.com\r\nconnection: close\r\n{more}\r\n");
    for (more, expected) in [
        ("content-length: 0\r\n", Some((0, true))),
        ("", Some((0, true))),
        ("content-length: 2\r\nexpect: 100-continue\r\n", Some((2, true))),
    ] {
        let body = if expected == Some((2, true)) { "aa" } else { "" };
        let heard = say(scene.envoy.https, &(head("/body", more) + body)).await;
        assert!(heard.contains("HTTP/1.1 418 ") && heard.ends_with("ours"), "{more}: {heard}");
        assert_eq!(scene.role.bodies(), [expected], "{more}");
    }
    assert!(scene.upstream.is_untouched());
    // A client that waits to be told to go on is told so.
    for path in ["/forward", "/hold"] {
        let mut stream = TcpStream::connect(scene.envoy.https).await.expect("a connection");
        let expects = head(path, "content-length: 2\r\nexpect: 100-continue\r\n");
        stream.write_all(expects.as_bytes()).await.expect("sent");
        let mut told = [0; 25];
        timeout(PATIENCE, stream.read_exact(&mut told)).await.expect("in time").expect("a word");
        assert_eq!(&told, b"HTTP/1.1 100 Continue\r\n\r\n");
        stream.write_all(b"aa").await.expect("sent");
        let mut heard = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut heard)).await.expect("in time").expect("an answer");
        assert!(heard.starts_with("HTTP/1.1 200 "), "{path}: {heard}");
        let came = scene.upstream.came();
        assert_eq!((came.len(), came[0].body, Came::all(&came[0].headers, "authorization")), (1, 2, vec![TOKEN]));
    }
}

/// Nothing is left of a client that hangs up, whatever was waited for.
#[tokio::test]
async fn a_client_that_leaves_leaves_nothing() {
    let scene = Scene::start(|_| {}).await;
    for version in VERSIONS {
        for (path, body) in [("/body", endless()), ("/call", upload(1, None)), ("/hold", upload(1, None))] {
            let call = send(scene.envoy.https, version, post(path, body));
            let is_open = async {
                while (scene.streams)() == 0 || Arc::strong_count(&scene.role.alive) == 2 {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            tokio::select! {
                answer = call => panic!("{version:?} {path}: {answer:?}"),
                opened = timeout(PATIENCE, is_open) => opened.expect("a stream"),
            }
            scene.idle().await;
        }
    }
    assert!(scene.upstream.is_untouched());
}

/// A call that waits for the upstream holds no stream, and does not end with the processor.
#[tokio::test]
async fn a_call_outlives_the_processor() {
    let mut scene = Scene::start(|_| {}).await;
    let address = scene.envoy.https;
    let call = tokio::spawn(send(address, Version::HTTP_2, post("/forward?slow", upload(10, None))));
    let mut begun = scene.upstream.begun.clone();
    timeout(PATIENCE, begun.wait_for(|begun| *begun == 1)).await.expect("in time").expect("a request");
    scene.idle().await;
    scene.kill_processor();
    // Envoy knows of it: what comes now is refused, and does not go on.
    let refused = send(address, Version::HTTP_2, post("/forward", upload(10, None))).await.expect("an answer");
    assert_eq!(refused.status, 503);
    scene.upstream.go_on.send_replace(true);
    let answer = call.await.expect("a call").expect("an answer");
    assert_eq!((answer.status, answer.text()), (200, "the upstream"));
    assert_eq!(scene.upstream.came().len(), 1);
}
