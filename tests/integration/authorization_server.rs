//! An authorization server and its upstreams in the test: honest under one path, and lying in its own way under each
//! other. For the honest whole flow, `make e2e` has one that nobody here wrote.

use std::{
    collections::{HashMap, HashSet},
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Path as UrlPath, State},
    http::{HeaderMap, StatusCode, Uri, header},
    response::{IntoResponse, Response},
    routing::{get, post},
    serve::Listener,
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, future::BoxFuture, stream};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch};
use url::Url;

use self::{
    registration::register,
    token_endpoint::{revoke, token},
};
use crate::stack::{Certificates, tls_listener};

mod registration;
mod token_endpoint;

pub const HOST: &str = "as.localhost";

/// What an authorization server does otherwise than an honest one.
#[derive(Clone, Copy)]
pub struct Lie {
    pub name: &'static str,
    /// Its metadata, changed.
    pub metadata: fn(&mut Value),
    /// The protected resource metadata of its upstream, changed.
    pub resource: fn(&mut Value),
    /// Where its upstream says that this is, on its own origin; where it is, unless it says so.
    pub named: Option<&'static str>,
    /// Its upstream answers when [`Servers::answer`] says so.
    pub late: bool,
    pub token: Token,
    pub refresh: Refresh,
    pub knows: Knows,
}

/// Which clients it knows. One that it does not, or that does not authenticate as it should, gets `invalid_client`, where
/// it redeems a code, refreshes a token and revokes one.
#[derive(Clone, Copy)]
pub enum Knows {
    /// Those that have a document.
    Documents,
    /// This one, which somebody registered by hand.
    ByHand(&'static str, Auth, &'static str),
    /// Those that register themselves, at an endpoint that answers so.
    Registered(Registers),
}

/// How a client authenticates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Auth {
    None,
    Basic,
    Post,
}

/// What a registration endpoint answers with to a request that is right in every way (RFC 7591, section 3.2).
#[derive(Clone, Copy)]
pub enum Registers {
    /// A client of its own each time, which authenticates so.
    Honestly(Auth),
    /// The same, changed.
    Json(Auth, fn(&mut Value)),
    Status(u16, &'static str),
    Html,
    Hangs,
    Huge,
    Redirects,
    /// Honestly, when [`Servers::answer`] says so.
    Late(Auth),
}

/// What its token endpoint answers with to a refresh token.
#[derive(Clone, Copy)]
pub enum Refresh {
    /// A new one each time; the old one is over.
    Rotates,
    /// The old one stays, and is not named again.
    Keeps,
    /// A new one each time, and the old one is good until the new one was used, for who dies before it is stored
    /// (RFC 9700, section 4.14). What comes lives for so many seconds.
    RotatesWithGrace(u64),
    Status(u16, &'static str),
    /// The same, when [`Servers::answer`] says so.
    StatusLate(u16, &'static str),
    Hangs,
    /// It rotates at once, and answers when [`Servers::answer`] says so.
    RotatesLate,
    /// It rotates, and the connection breaks in the middle of the answer.
    RotatesAndDies,
}

/// What its token endpoint answers with to a request that is right in every way.
#[derive(Clone, Copy)]
pub enum Token {
    Honest,
    /// This JSON instead.
    Json(fn(&mut Value)),
    Status(u16, &'static str),
    /// The same as another content type.
    As(u16, &'static str, &'static str),
    Html,
    Form,
    Redirects,
    Hangs,
    Huge,
    /// An honest answer, when [`Servers::answer`] says so.
    Late,
    /// An honest answer in ten pieces, with so long before each.
    Pieces(Duration),
    /// It begins, and never ends.
    Endless,
    /// It begins, and the connection breaks.
    Dies,
}

impl Lie {
    pub fn none(name: &'static str) -> Self {
        Self {
            name,
            metadata: |_| {},
            resource: |_| {},
            named: None,
            late: false,
            token: Token::Honest,
            refresh: Refresh::Rotates,
            knows: Knows::Documents,
        }
    }
}

/// The running servers.
#[derive(Clone)]
pub struct Servers {
    pub issuer: String,
    pub upstream: String,
    shared: Arc<Shared>,
}

struct Shared {
    lies: HashMap<&'static str, Lie>,
    issuer: Mutex<String>,
    upstream: Mutex<String>,
    codes: Mutex<HashMap<String, HashMap<String, String>>>,
    /// How many codes there ever were: none is given twice.
    consents: AtomicUsize,
    exchanges: Mutex<Vec<String>>,
    /// The refresh tokens that came, and those that are still good.
    refreshes: Mutex<Vec<String>>,
    good: Mutex<HashSet<String>>,
    /// The code that an access or refresh token goes back to.
    origins: Mutex<HashMap<String, String>>,
    /// The refresh token that each was given for.
    predecessors: Mutex<HashMap<String, String>>,
    revoked: Mutex<Vec<String>>,
    challenges: Mutex<Vec<String>>,
    /// The clients of each server but those that have documents: how each authenticates, and its secret.
    clients: Mutex<HashMap<(String, String), (Auth, String)>>,
    /// The requests for a registration, with the server that each came to.
    registrations: Mutex<Vec<(String, Value)>>,
    fetches: Mutex<Vec<String>>,
    calls: AtomicUsize,
    /// The server that an upstream names instead of its own, by its name.
    moved: Mutex<HashMap<String, &'static str>>,
    /// What each upstream makes of a request with a token, where it is something of its own.
    manners: Mutex<HashMap<&'static str, Manners>>,
    /// Whether late answers go out.
    answers: watch::Sender<bool>,
}

/// What an upstream answers to a request with this `authorization`; none where it takes it.
type Manners = Arc<dyn Fn(&str) -> BoxFuture<'static, Option<Response>> + Send + Sync>;

impl Shared {
    async fn released(&self) {
        // The sender lives as long as this does.
        let _ = self.answers.subscribe().wait_for(|answers| *answers).await;
    }
}

impl Servers {
    /// Lets the late answers go out.
    pub fn answer(&self) {
        self.shared.answers.send_replace(true);
    }

    pub async fn start(certificates: &Certificates, lies: Vec<Lie>) -> Self {
        let by_hand = lies.iter().filter_map(|lie| match lie.knows {
            Knows::ByHand(id, auth, secret) => Some(((lie.name.to_owned(), id.to_owned()), (auth, secret.to_owned()))),
            Knows::Documents | Knows::Registered(_) => None,
        });
        let shared = Arc::new(Shared {
            clients: Mutex::new(by_hand.collect()),
            registrations: Mutex::default(),
            lies: lies.into_iter().map(|lie| (lie.name, lie)).collect(),
            issuer: Mutex::default(),
            upstream: Mutex::default(),
            codes: Mutex::default(),
            consents: AtomicUsize::new(0),
            exchanges: Mutex::default(),
            refreshes: Mutex::default(),
            good: Mutex::default(),
            origins: Mutex::default(),
            predecessors: Mutex::default(),
            revoked: Mutex::default(),
            challenges: Mutex::default(),
            fetches: Mutex::default(),
            calls: AtomicUsize::new(0),
            moved: Mutex::default(),
            manners: Mutex::default(),
            answers: watch::Sender::new(false),
        });
        let server = Router::new()
            .route("/.well-known/oauth-authorization-server/{name}", get(metadata))
            .route("/{name}/token", post(token))
            .route("/{name}/stolen", post(stolen))
            .route("/{name}/revoke", post(revoke))
            .route("/{name}/register", post(register))
            .with_state(Arc::clone(&shared));
        let listener = tls_listener::bind(certificates).await.expect("a port");
        let issuer = format!("https://{HOST}:{}", listener.local_addr().expect("an address").port());
        tokio::spawn(async move { axum::serve(listener, server).await });
        let upstream = Router::new()
            .route("/{name}/mcp", get(challenge).post(call))
            .route("/.well-known/oauth-protected-resource/{name}/mcp", get(resource))
            .fallback(unserved)
            .with_state(Arc::clone(&shared));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("an address"));
        tokio::spawn(async move { axum::serve(listener, upstream).await });
        shared.issuer.lock().expect("issuer").clone_from(&issuer);
        shared.upstream.lock().expect("upstream").clone_from(&address);
        Self { issuer, upstream: address, shared }
    }

    /// The upstream MCP server whose authorization server tells this lie.
    pub fn upstream_of(&self, name: &str) -> String {
        format!("{}/{name}/mcp", self.upstream)
    }

    /// What a route to that upstream pins: the issuer, where the client there was registered by hand.
    pub fn pin(&self, name: &str) -> String {
        match self.shared.lies.get(name).map(|lie| lie.knows) {
            Some(Knows::ByHand(..)) => format!("{}/{name}", self.issuer),
            Some(Knows::Documents | Knows::Registered(_)) | None => String::new(),
        }
    }

    /// What a person's consent comes to: checks the authorization request, and gives the code to come back with.
    pub fn consent(&self, authorization_url: &str) -> String {
        let url = Url::parse(authorization_url).expect("a URL");
        let parameters: HashMap<String, String> = url.query_pairs().into_owned().collect();
        assert_eq!(url.query_pairs().count(), parameters.len(), "no parameter twice: {url}");
        assert!(url.as_str().starts_with(&self.issuer) && url.path().ends_with("/authorize"), "{url}");
        assert_eq!(
            (parameters["response_type"].as_str(), parameters["code_challenge_method"].as_str()),
            ("code", "S256")
        );
        let code = format!("SECRET-code-{}", self.shared.consents.fetch_add(1, Ordering::Relaxed));
        self.shared.codes.lock().expect("codes").insert(code.clone(), parameters);
        code
    }

    /// The codes that were redeemed, in order.
    pub fn exchanges(&self) -> Vec<String> {
        self.shared.exchanges.lock().expect("exchanges").clone()
    }

    /// The refresh tokens that were sent, in order.
    pub fn refreshes(&self) -> Vec<String> {
        self.shared.refreshes.lock().expect("refreshes").clone()
    }

    /// The tokens that were revoked, in order.
    pub fn revoked(&self) -> Vec<String> {
        self.shared.revoked.lock().expect("revoked").clone()
    }

    /// How many requests came to the token endpoint.
    pub fn asked(&self) -> usize {
        self.shared.exchanges.lock().expect("exchanges").len() + self.shared.refreshes.lock().expect("refreshes").len()
    }

    /// The code that an access or refresh token goes back to, if it is one of ours.
    pub fn origin(&self, token: &str) -> Option<String> {
        self.shared.origins.lock().expect("origins").get(token).cloned()
    }

    /// Whether a refresh token would be taken.
    pub fn is_good(&self, refresh_token: &str) -> bool {
        self.shared.good.lock().expect("grants").contains(refresh_token)
    }

    /// Ends every refresh token, behind everybody's back.
    pub fn forget_grants(&self) {
        self.shared.good.lock().expect("grants").clear();
    }

    /// The same of those that go back to one code.
    pub fn end_grant(&self, code: &str) {
        let mut good = self.shared.good.lock().expect("grants");
        let origins = self.shared.origins.lock().expect("origins");
        good.retain(|token| origins.get(token).is_none_or(|origin| origin != code));
    }

    /// How often an upstream was asked without a token.
    pub fn challenges(&self, name: &str) -> usize {
        self.shared.challenges.lock().expect("challenges").iter().filter(|asked| *asked == name).count()
    }

    /// A server's client authenticates with this from now on.
    pub fn set_secret(&self, name: &str, client_id: &str, secret: &str) {
        let mut clients = self.shared.clients.lock().expect("clients");
        clients.get_mut(&(name.to_owned(), client_id.to_owned())).expect("a client").1 = secret.to_owned();
    }

    /// A server knows none of its clients any more, as one that kept them in memory and was started anew.
    pub fn forget_clients(&self, name: &str) {
        self.shared.clients.lock().expect("clients").retain(|(of, _), _| of != name);
    }

    /// What was sent to a server's registration endpoint, in order.
    pub fn registrations(&self, name: &str) -> Vec<Value> {
        let all = self.shared.registrations.lock().expect("registrations");
        all.iter().filter(|(of, _)| of == name).map(|(_, sent)| sent.clone()).collect()
    }

    /// From now on, an upstream names another's authorization server.
    pub fn moves(&self, name: &str, to: &'static str) {
        self.shared.moved.lock().expect("moved").insert(name.to_owned(), to);
    }

    /// From now on, an upstream answers so to requests with this `authorization`, before it reads their bodies.
    pub fn behave<F: Future<Output = Option<Response>> + Send + 'static>(
        &self,
        name: &'static str,
        manners: impl Fn(&str) -> F + Send + Sync + 'static,
    ) {
        let manners: Manners = Arc::new(move |authorization| Box::pin(manners(authorization)));
        self.shared.manners.lock().expect("manners").insert(name, manners);
    }

    /// How many requests reached an upstream with a body.
    pub fn calls(&self) -> usize {
        self.shared.calls.load(Ordering::Relaxed)
    }

    /// The metadata addresses that were asked for, and what else was asked of the upstream.
    pub fn fetches(&self) -> Vec<String> {
        self.shared.fetches.lock().expect("fetches").clone()
    }
}

async fn challenge(State(shared): State<Arc<Shared>>, UrlPath(name): UrlPath<String>) -> Response {
    shared.challenges.lock().expect("challenges").push(name.clone());
    if shared.lies.get(name.as_str()).is_some_and(|lie| lie.late) {
        shared.released().await;
    }
    let upstream = shared.upstream.lock().expect("upstream").clone();
    let address = match shared.lies.get(name.as_str()).and_then(|lie| lie.named) {
        Some(path) => format!("{upstream}{path}"),
        None => format!("{upstream}/.well-known/oauth-protected-resource/{name}/mcp"),
    };
    let challenge = format!("Bearer realm=\"mcp\", scope=\"read write\", resource_metadata=\"{address}\"");
    (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, challenge)]).into_response()
}

/// What an MCP request brought with it; the challenge where it had no token.
///
/// The body is read: hyper ends a connection whose request was not.
async fn call(state: State<Arc<Shared>>, UrlPath(name): UrlPath<String>, headers: HeaderMap, body: Body) -> Response {
    let all = |name: header::HeaderName| -> Vec<_> {
        headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).collect()
    };
    let authorization = all(header::AUTHORIZATION);
    if authorization.is_empty() {
        return challenge(state, UrlPath(name)).await;
    }
    state.calls.fetch_add(1, Ordering::Relaxed);
    let manners = state.manners.lock().expect("manners").get(name.as_str()).cloned();
    let answer = match manners {
        Some(manners) => manners(&authorization[0]).await,
        None => None,
    };
    let read = axum::body::to_bytes(body, usize::MAX);
    if let Some(answer) = answer {
        tokio::spawn(read);
        return answer;
    }
    let _ = read.await;
    axum_json(&json!({"jsonrpc": "2.0", "id": 1, "result": {
        "upstream": name,
        "authorization": authorization,
        "cookies": all(header::COOKIE).len(),
        "proxy": all(header::PROXY_AUTHORIZATION).len(),
    }}))
}

async fn resource(State(shared): State<Arc<Shared>>, UrlPath(name): UrlPath<String>) -> Response {
    shared.fetches.lock().expect("fetches").push(format!("resource {name}"));
    let (issuer, upstream) =
        (shared.issuer.lock().expect("issuer").clone(), shared.upstream.lock().expect("upstream").clone());
    let moved = shared.moved.lock().expect("moved").get(&name).copied();
    let mut document = json!({
        "resource": format!("{upstream}/{name}/mcp"),
        "authorization_servers": [format!("{issuer}/{}", moved.unwrap_or(&name))],
        "scopes_supported": ["other"],
    });
    (shared.lies[name.as_str()].resource)(&mut document);
    if document.is_null() { StatusCode::NOT_FOUND.into_response() } else { axum_json(&document) }
}

/// What the upstream has besides: it is asked for nothing of it.
async fn unserved(State(shared): State<Arc<Shared>>, uri: Uri) -> StatusCode {
    shared.fetches.lock().expect("fetches").push(format!("unserved {uri}"));
    StatusCode::NOT_FOUND
}

async fn metadata(State(shared): State<Arc<Shared>>, UrlPath(name): UrlPath<String>) -> Response {
    shared.fetches.lock().expect("fetches").push(format!("server {name}"));
    let issuer = format!("{}/{name}", shared.issuer.lock().expect("issuer"));
    let mut document = metadata_of(&issuer);
    let members = document.as_object_mut().expect("an object");
    if !matches!(shared.lies[name.as_str()].knows, Knows::Documents) {
        members.remove("client_id_metadata_document_supported");
    }
    if matches!(shared.lies[name.as_str()].knows, Knows::Registered(_)) {
        members.insert("registration_endpoint".to_owned(), json!(format!("{issuer}/register")));
    }
    (shared.lies[name.as_str()].metadata)(&mut document);
    axum_json(&document)
}

/// The metadata of a server that can be used.
pub fn metadata_of(issuer: &str) -> Value {
    json!({
        "issuer": issuer,
        "authorization_endpoint": format!("{issuer}/authorize"),
        "token_endpoint": format!("{issuer}/token"),
        "revocation_endpoint": format!("{issuer}/revoke"),
        "response_types_supported": ["code"],
        "grant_types_supported": ["authorization_code", "refresh_token"],
        "code_challenge_methods_supported": ["S256"],
        "scopes_supported": ["read", "write", "offline_access"],
        "authorization_response_iss_parameter_supported": true,
        "client_id_metadata_document_supported": true,
    })
}

fn axum_json(document: &Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], document.to_string()).into_response()
}

/// An answer that begins.
fn begins(rest: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> Response {
    let body = stream::once(async { Ok(Bytes::from_static(b"{")) }).chain(rest);
    ([(header::CONTENT_TYPE, "application/json")], Body::from_stream(body)).into_response()
}

/// Where a token endpoint redirects to: nobody may come here, and one more exchange shows that somebody did.
async fn stolen(State(shared): State<Arc<Shared>>) {
    shared.exchanges.lock().expect("exchanges").push("stolen".to_owned());
}
