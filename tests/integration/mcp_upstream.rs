//! An MCP server that demands a token, sends back what it gets, and remembers all that came through Envoy.

use std::{
    convert::Infallible,
    fmt,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use futures_util::{StreamExt, future::BoxFuture, stream};
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::{net::TcpListener, sync::watch, time::timeout};

use crate::stack::PATIENCE;

/// A body in pieces.
pub type Upload = BoxBody<Bytes, Infallible>;

/// The two events of its streams: the second is sent when it is told to go on.
pub const EVENTS: [&str; 2] = ["event: message\ndata: {\"first\":1}\n\n", "event: message\ndata: {\"second\":2}\n\n"];

/// What makes a request wait until it is told to go on.
pub const WAITS: &str = "x-waits";

/// A request that came whole.
#[derive(Clone, Debug)]
pub struct Came {
    pub method: Method,
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: HeaderMap,
}

impl Came {
    /// All values of a header.
    pub fn all(&self, name: &str) -> Vec<&str> {
        self.headers.get_all(name).iter().map(|value| value.to_str().expect("text")).collect()
    }
}

#[derive(Debug)]
pub struct McpUpstream {
    origin: String,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    origin: String,
    issuer: String,
    came: Mutex<Vec<Came>>,
    /// How many requests it began to read.
    reached: watch::Sender<usize>,
    without_token: AtomicUsize,
    goes_on: watch::Sender<bool>,
    manners: OnceLock<Manners>,
}

/// What it makes of a request with a token, where that is something of its own.
struct Manners(Box<Answers>);

type Answers = dyn Fn(&Came) -> BoxFuture<'static, Response<Upload>> + Send + Sync;

impl fmt::Debug for Manners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Manners")
    }
}

impl McpUpstream {
    /// Of an authorization server with one issuer a name. It speaks HTTP/1.1 and, to who begins with that, HTTP/2.
    pub async fn start(issuer: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let origin = format!("http://{}", listener.local_addr().expect("an address"));
        let shared = Arc::new(Shared {
            origin: origin.clone(),
            issuer: issuer.to_owned(),
            came: Mutex::default(),
            reached: watch::Sender::new(0),
            without_token: AtomicUsize::new(0),
            goes_on: watch::Sender::new(false),
            manners: OnceLock::new(),
        });
        let serving = Arc::clone(&shared);
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let shared = Arc::clone(&serving);
                let service = service_fn(move |request| {
                    let shared = Arc::clone(&shared);
                    async move { Ok::<_, Infallible>(shared.answer(request).await) }
                });
                tokio::spawn(async move {
                    // The first two bytes of the preface (RFC 9113, section 3.4), which no method has.
                    let mut first = [0; 2];
                    while connection.peek(&mut first).await.is_ok_and(|read| read == 1) {
                        tokio::task::yield_now().await;
                    }
                    let speaks_http2 = first == *b"PR";
                    let connection = TokioIo::new(connection);
                    // Whoever goes away in the middle is no fault of this.
                    if speaks_http2 {
                        let _ = http2::Builder::new(TokioExecutor::new()).serve_connection(connection, service).await;
                    } else {
                        let serving = http1::Builder::new().serve_connection(connection, service).with_upgrades();
                        let _ = serving.await;
                    }
                });
            }
        });
        Self { origin, shared }
    }

    /// The MCP address whose tokens are of this name's issuer.
    pub fn url(&self, name: &str) -> String {
        format!("{}/{name}/mcp", self.origin)
    }

    /// How many requests came through Envoy, or began to.
    pub fn reached(&self) -> usize {
        *self.shared.reached.borrow()
    }

    /// How many requests came through Envoy without a token.
    pub fn without_token(&self) -> usize {
        self.shared.without_token.load(Ordering::Relaxed)
    }

    /// From now on, requests with a token get this answer, and are not remembered.
    pub fn behave(&self, manners: impl Fn(&Came) -> BoxFuture<'static, Response<Upload>> + Send + Sync + 'static) {
        self.shared.manners.set(Manners(Box::new(manners))).expect("it behaves in one way");
    }

    /// Waits until so many came, or began to.
    pub async fn reached_by(&self, requests: usize) {
        let mut reached = self.shared.reached.subscribe();
        let came = timeout(PATIENCE, reached.wait_for(|reached| *reached >= requests)).await;
        came.expect("it comes").expect("the upstream runs");
    }

    /// The requests that came whole since this was asked.
    pub fn came(&self) -> Vec<Came> {
        std::mem::take(&mut *self.shared.came.lock().expect("requests"))
    }

    /// The one that came since.
    pub fn came_alone(&self) -> Came {
        let mut came = self.came();
        let last = came.pop().expect("one came");
        assert!(came.is_empty(), "one came, not {}", came.len() + 1);
        last
    }

    /// Whether what waits goes on.
    pub fn go_on(&self, goes_on: bool) {
        self.shared.goes_on.send_replace(goes_on);
    }
}

impl Shared {
    async fn released(&self) {
        // The sender lives as long as this does.
        let _ = self.goes_on.subscribe().wait_for(|goes_on| *goes_on).await;
    }

    async fn answer(self: Arc<Self>, mut request: Request<Incoming>) -> Response<Upload> {
        let path = request.uri().path().to_owned();
        if let Some(of) = path.strip_prefix("/.well-known/oauth-protected-resource") {
            return self.metadata(of);
        }
        // Envoy gives each request one; discovery asks by itself.
        if !request.headers().contains_key("x-request-id") {
            return self.challenge(&path);
        }
        self.reached.send_modify(|reached| *reached += 1);
        if !request.headers().contains_key(header::AUTHORIZATION) {
            self.without_token.fetch_add(1, Ordering::Relaxed);
            return self.challenge(&path);
        }
        if request.headers().get(header::UPGRADE).is_some() {
            return self.upgrade(&mut request);
        }
        let wants_events = request.headers().get(header::ACCEPT).is_some_and(|accept| accept == "text/event-stream");
        let (head, body) = request.into_parts();
        let Ok(collected) = body.collect().await else { return text(StatusCode::BAD_REQUEST, "it ended early") };
        let trailers = collected.trailers().cloned().unwrap_or_default();
        let came = Came {
            method: head.method,
            path: head.uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
            headers: head.headers,
            body: collected.to_bytes(),
            trailers,
        };
        if let Some(Manners(manners)) = self.manners.get() {
            return manners(&came).await;
        }
        self.came.lock().expect("requests").push(came.clone());
        if came.headers.contains_key(WAITS) {
            self.released().await;
        }
        if !wants_events {
            return Response::new(Full::new(came.body).boxed());
        }
        let [first, second] = EVENTS.map(|event| Ok(Frame::data(Bytes::from_static(event.as_bytes()))));
        let second = stream::once(async move {
            self.released().await;
            second
        });
        let mut response = Response::new(BoxBody::new(StreamBody::new(stream::iter([first]).chain(second))));
        response.headers_mut().insert(header::CONTENT_TYPE, "text/event-stream".parse().expect("a value"));
        response
    }

    /// Bytes in both directions, which are sent back.
    fn upgrade(&self, request: &mut Request<Incoming>) -> Response<Upload> {
        let came = Came {
            method: request.method().clone(),
            path: request.uri().to_string(),
            headers: request.headers().clone(),
            body: Bytes::new(),
            trailers: HeaderMap::new(),
        };
        self.came.lock().expect("requests").push(came);
        let upgrade = hyper::upgrade::on(request);
        tokio::spawn(async move {
            let (mut from, mut to) = tokio::io::split(TokioIo::new(upgrade.await.expect("an upgrade")));
            let _ = tokio::io::copy(&mut from, &mut to).await;
        });
        let mut response = text(StatusCode::SWITCHING_PROTOCOLS, "");
        response.headers_mut().insert(header::CONNECTION, "upgrade".parse().expect("a value"));
        response.headers_mut().insert(header::UPGRADE, "websocket".parse().expect("a value"));
        response
    }

    fn challenge(&self, path: &str) -> Response<Upload> {
        let metadata = format!("{}/.well-known/oauth-protected-resource{path}", self.origin);
        let mut response = text(StatusCode::UNAUTHORIZED, "no token");
        let challenge = format!("Bearer resource_metadata=\"{metadata}\"");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge.parse().expect("a value"));
        response
    }

    fn metadata(&self, path: &str) -> Response<Upload> {
        let name = path.trim_matches('/').split('/').next().unwrap_or_default();
        let document = json!({
            "resource": format!("{}{path}", self.origin),
            "authorization_servers": [format!("{}/{name}", self.issuer)],
            "scopes_supported": ["read", "write"],
        });
        let mut response = Response::new(Full::from(document.to_string()).boxed());
        response.headers_mut().insert(header::CONTENT_TYPE, "application/json".parse().expect("a value"));
        response
    }
}

fn text(status: StatusCode, text: &'static str) -> Response<Upload> {
    let mut response = Response::new(Full::from(text).boxed());
    *response.status_mut() = status;
    response
}

/// A body that is sent in pieces, without a length, with trailers where there are any.
pub fn pieces(body: Bytes, trailers: &[(&'static str, &'static str)]) -> Upload {
    const PIECE: usize = 64 << 10;
    let pieces: Vec<_> = body.chunks(PIECE).map(|piece| Ok(Frame::data(body.slice_ref(piece)))).collect();
    let trailers: HeaderMap =
        trailers.iter().map(|(name, value)| (name.parse().expect("a name"), value.parse().expect("a value"))).collect();
    let trailers = (!trailers.is_empty()).then(|| Ok(Frame::trailers(trailers)));
    BoxBody::new(StreamBody::new(stream::iter(pieces.into_iter().chain(trailers))))
}

/// A body that begins so, and never ends.
pub fn endless(begin: Bytes) -> Upload {
    let begin: Vec<_> = (!begin.is_empty()).then(|| Ok(Frame::data(begin))).into_iter().collect();
    BoxBody::new(StreamBody::new(stream::iter(begin).chain(stream::pending())))
}
