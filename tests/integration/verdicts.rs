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
        ext_proc::{Config, ExtProc, Shared},
        roles::{ROLE_KEY, Roles},
        server::Server,
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

use crate::{
    stack::{Answered, Envoy, PATIENCE, in_process::serve},
    world::manager,
};

mod bodies;
mod calls;
mod trailers;

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
            serve(TcpListener::from_std(listener).expect("a listener"), service).await;
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

/// Says it over TCP, and hears all that comes.
async fn say(address: SocketAddr, words: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    stream.write_all(words.as_bytes()).await.expect("sent");
    let mut heard = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut heard)).await.expect("an end").expect("an answer");
    String::from_utf8(heard).expect("text")
}
