//! A choreographer in the test, correct unless told otherwise: it keeps flows in memory and records its calls.

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, SystemTime},
};

use envoy_cimd::contract::proto::{
    BeginAuthorizationRequest, BeginAuthorizationResponse, BeginRefusal, Begun, CompleteAuthorizationRequest,
    CompleteAuthorizationResponse, CompleteRefusal, Completed, DescribeConnectionRequest, DescribeConnectionResponse,
    DescribeUpstreamRequest, DescribeUpstreamResponse, DisconnectRequest, DisconnectResponse, NeverConnected,
    authorization_choreographer_server::{AuthorizationChoreographer, AuthorizationChoreographerServer},
    begin_authorization_response, begin_refusal,
    complete_authorization_request::Answer,
    complete_authorization_response,
    complete_refusal::Reason,
    describe_connection_response::State,
};
use tokio::{
    net::{TcpListener, UnixListener},
    runtime::{Builder, Runtime},
    sync::Notify,
};
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::{
    Request, Response, Status,
    transport::{Server, ServerTlsConfig},
};

/// What it does with the next calls.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(u8)]
pub enum Mood {
    Correct,
    /// Answers no call until [`Fake::release`].
    Hangs,
    /// Ends Begin and Complete with an error of its own.
    Fails,
    /// Answers Begin and Complete with nothing in the answer.
    Garbage,
    /// Begins flows that are over already.
    Stale,
    /// Sends people where nobody should be sent.
    BadUrl,
    NoServer,
    Full,
    /// The token endpoint refuses.
    NoToken,
    /// Gives a `return_to` that leads away.
    BadReturn,
    /// Its authorization server advertises `iss`, so an answer without it is refused.
    WantsIss,
    /// Begin finds another authorization server than the page named.
    Moved,
}

/// One call, as it came.
#[derive(Clone, Debug)]
pub enum Call {
    Describe(DescribeUpstreamRequest),
    Connection(DescribeConnectionRequest),
    Begin(BeginAuthorizationRequest),
    Complete(CompleteAuthorizationRequest),
    Disconnect(DisconnectRequest),
}

/// The issuer that it knows; an answer's `iss` must be this one.
pub const ISSUER: &str = "https://as.example";

#[derive(Debug)]
struct Flow {
    begun: BeginAuthorizationRequest,
    used: bool,
}

#[derive(Debug, Default)]
struct Inner {
    flows: Mutex<HashMap<Vec<u8>, Flow>>,
    calls: Mutex<Vec<Call>>,
    traces: Mutex<Vec<String>>,
    exchanges: Mutex<Vec<String>>,
    mood: AtomicU8,
    /// Calls that name this hang, whatever the mood.
    held: Mutex<Option<&'static str>>,
    released: Notify,
    /// Where it sends people; the address of the test's own page in the browser tests.
    authorize: Mutex<Option<String>>,
    /// How everybody's connections stand, where a test says so.
    connection: Mutex<Option<DescribeConnectionResponse>>,
}

/// Where it listens, and how.
#[derive(Clone, Debug)]
pub enum Place {
    Tcp(SocketAddr),
    Tls(SocketAddr, Box<ServerTlsConfig>),
    Unix(PathBuf),
}

fn bind(address: SocketAddr) -> (SocketAddr, TcpListenerStream) {
    let listener = std::net::TcpListener::bind(address).expect("a port");
    listener.set_nonblocking(true).expect("a listener");
    let address = listener.local_addr().expect("an address");
    (address, TcpListenerStream::new(TcpListener::from_std(listener).expect("a listener")))
}

/// The running fake.
#[derive(Debug)]
pub struct Fake {
    inner: Arc<Inner>,
    place: Place,
    /// Of its own, so that it can die with everything in flight.
    runtime: Option<Runtime>,
}

impl Fake {
    pub fn start() -> Self {
        Self::at(Place::Tcp(SocketAddr::from(([127, 0, 0, 1], 0))))
    }

    pub fn at(place: Place) -> Self {
        Self::run(place, Arc::default())
    }

    fn run(place: Place, inner: Arc<Inner>) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let service = AuthorizationChoreographerServer::new(Service(Arc::clone(&inner)));
        let guard = runtime.enter();
        let place = match place {
            Place::Unix(path) => {
                let incoming = UnixListenerStream::new(UnixListener::bind(&path).expect("a socket"));
                runtime.spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
                Place::Unix(path)
            }
            Place::Tcp(address) => {
                let (address, incoming) = bind(address);
                runtime.spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
                Place::Tcp(address)
            }
            Place::Tls(address, config) => {
                let (address, incoming) = bind(address);
                let mut server = Server::builder().tls_config((*config).clone()).expect("certificates");
                runtime.spawn(server.add_service(service).serve_with_incoming(incoming));
                Place::Tls(address, config)
            }
        };
        drop(guard);
        Self { inner, place, runtime: Some(runtime) }
    }

    pub fn url(&self) -> String {
        match &self.place {
            Place::Tcp(address) => format!("http://{address}"),
            Place::Tls(address, _) => format!("https://localhost:{}", address.port()),
            Place::Unix(path) => format!("unix:{}", path.display()),
        }
    }

    /// Ends it at once, calls in flight and all; its flows are kept for [`Self::restart`].
    pub fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    pub fn restart(&mut self) {
        *self = Self::run(self.place.clone(), Arc::clone(&self.inner));
    }

    pub fn set(&self, mood: Mood) {
        self.inner.mood.store(mood as u8, Ordering::SeqCst);
    }

    /// How many flows it knows.
    pub fn flows(&self) -> usize {
        self.inner.flows.lock().expect("flows").len()
    }

    /// Answers no call whose upstream or redirect URI has this in it, until [`Fake::release`].
    pub fn hold(&self, part: &'static str) {
        *self.inner.held.lock().expect("what is held") = Some(part);
    }

    /// Lets the calls go on that [`Mood::Hangs`] or [`Fake::hold`] holds.
    pub fn release(&self) {
        self.set(Mood::Correct);
        *self.inner.held.lock().expect("what is held") = None;
        self.inner.released.notify_waiters();
    }

    pub fn authorize_at(&self, url: &str) {
        *self.inner.authorize.lock().expect("the address") = Some(url.to_owned());
    }

    /// How everybody's connections stand from now on. Before, nobody ever connected, and nothing is known of scopes.
    pub fn connections_are(&self, connection: DescribeConnectionResponse) {
        *self.inner.connection.lock().expect("the connection") = Some(connection);
    }

    pub fn calls(&self) -> Vec<Call> {
        self.inner.calls.lock().expect("calls").clone()
    }

    /// The `traceparent` of each call.
    pub fn traces(&self) -> Vec<String> {
        self.inner.traces.lock().expect("traces").clone()
    }

    /// The codes that it redeemed.
    pub fn exchanges(&self) -> Vec<String> {
        self.inner.exchanges.lock().expect("exchanges").clone()
    }

    pub fn forget_flows(&self) {
        self.inner.flows.lock().expect("flows").clear();
    }

    /// Whether the flow of the only Begin was consumed.
    pub fn consumed(&self) -> bool {
        self.inner.flows.lock().expect("flows").values().any(|flow| flow.used)
    }

    pub fn completions(&self) -> usize {
        self.calls().iter().filter(|call| matches!(call, Call::Complete(_))).count()
    }

    pub fn disconnects(&self) -> Vec<DisconnectRequest> {
        let disconnect = |call| match call {
            Call::Disconnect(request) => Some(request),
            _ => None,
        };
        self.calls().into_iter().filter_map(disconnect).collect()
    }

    pub fn descriptions(&self) -> usize {
        self.calls().iter().filter(|call| matches!(call, Call::Describe(_))).count()
    }

    pub fn begins(&self) -> usize {
        self.calls().iter().filter(|call| matches!(call, Call::Begin(_))).count()
    }
}

/// What a page asks, in two calls at once, and what was called after that.
pub fn after_a_page(calls: &[Call]) -> (&DescribeUpstreamRequest, &DescribeConnectionRequest, &[Call]) {
    match calls {
        [Call::Describe(upstream), Call::Connection(connection), rest @ ..]
        | [Call::Connection(connection), Call::Describe(upstream), rest @ ..] => (upstream, connection, rest),
        _ => panic!("no page: {calls:?}"),
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.kill();
    }
}

struct Service(Arc<Inner>);

impl Service {
    fn mood(&self) -> Mood {
        use Mood::*;
        [Correct, Hangs, Fails, Garbage, Stale, BadUrl, NoServer, Full, NoToken, BadReturn, WantsIss, Moved]
            [usize::from(self.0.mood.load(Ordering::SeqCst))]
    }

    fn record<T>(&self, request: Request<T>, call: impl FnOnce(T) -> Call) {
        let trace = request.metadata().get("traceparent").and_then(|value| value.to_str().ok()).unwrap_or_default();
        self.0.traces.lock().expect("traces").push(trace.to_owned());
        self.0.calls.lock().expect("calls").push(call(request.into_inner()));
    }

    async fn hang(&self, named: &str) {
        let released = self.0.released.notified();
        let held = self.0.held.lock().expect("what is held").is_some_and(|part| named.contains(part));
        if held || self.mood() == Mood::Hangs {
            released.await;
        }
    }
}

fn refuse(reason: Reason, return_to: String) -> complete_authorization_response::Outcome {
    complete_authorization_response::Outcome::Refusal(CompleteRefusal {
        reason: reason.into(),
        return_to,
        message: String::new(),
    })
}

#[tonic::async_trait]
impl AuthorizationChoreographer for Service {
    async fn describe_upstream(
        &self,
        request: Request<DescribeUpstreamRequest>,
    ) -> Result<Response<DescribeUpstreamResponse>, Status> {
        let upstream = request.get_ref().upstream.clone();
        self.record(request, Call::Describe);
        self.hang(&upstream).await;
        match self.mood() {
            Mood::Fails => Err(Status::internal("it fails")),
            Mood::Garbage => Ok(Response::new(DescribeUpstreamResponse::default())),
            _ => Ok(Response::new(DescribeUpstreamResponse { authorization_server: ISSUER.to_owned() })),
        }
    }

    async fn describe_connection(
        &self,
        request: Request<DescribeConnectionRequest>,
    ) -> Result<Response<DescribeConnectionResponse>, Status> {
        let upstream = request.get_ref().upstream.clone();
        self.record(request, Call::Connection);
        self.hang(&upstream).await;
        match self.mood() {
            Mood::Fails => Err(Status::internal("it fails")),
            Mood::Garbage => Ok(Response::new(DescribeConnectionResponse::default())),
            _ => {
                let connection = self.0.connection.lock().expect("the connection").clone();
                let never = || DescribeConnectionResponse { state: Some(State::Never(NeverConnected {})), next: None };
                Ok(Response::new(connection.unwrap_or_else(never)))
            }
        }
    }

    async fn begin_authorization(
        &self,
        request: Request<BeginAuthorizationRequest>,
    ) -> Result<Response<BeginAuthorizationResponse>, Status> {
        use begin_authorization_response::Outcome;
        let begun = request.get_ref().clone();
        self.record(request, Call::Begin);
        self.hang(&begun.upstream).await;
        let issuer = if self.mood() == Mood::Moved { "https://other.example" } else { ISSUER };
        let refusal = |reason: begin_refusal::Reason| {
            let (message, issuer) = ("a reason for the operator".to_owned(), issuer.to_owned());
            Outcome::Refusal(BeginRefusal { reason: reason.into(), message, issuer })
        };
        let flow_id = envoy_cimd::model::secret::random::<16>().expect("randomness").to_vec();
        let lifetime = if self.mood() == Mood::Stale { Duration::ZERO } else { Duration::from_secs(600) };
        let page = self.0.authorize.lock().expect("the address").clone();
        let mut authorization_url =
            url::Url::parse(page.as_deref().unwrap_or("https://as.example/authorize")).expect("a URL");
        authorization_url
            .query_pairs_mut()
            .append_pair("client_id", &begun.client_id)
            .append_pair("redirect_uri", &begun.redirect_uri);
        let authorization_url = match self.mood() {
            Mood::BadUrl => "http://as.example/authorize".to_owned(),
            _ => authorization_url.to_string(),
        };
        let outcome = match self.mood() {
            Mood::Fails => return Err(Status::internal("it fails")),
            Mood::Garbage => None,
            Mood::NoServer => Some(refusal(begin_refusal::Reason::AuthorizationServerUnusable)),
            Mood::Full => Some(refusal(begin_refusal::Reason::TooManyFlows)),
            _ if begun.shown_issuer != issuer => Some(refusal(begin_refusal::Reason::IssuerChanged)),
            _ => {
                self.0.flows.lock().expect("flows").insert(flow_id.clone(), Flow { begun, used: false });
                let expires_at = Some((SystemTime::now() + lifetime).into());
                Some(Outcome::Begun(Begun { flow_id, expires_at, authorization_url }))
            }
        };
        Ok(Response::new(BeginAuthorizationResponse { outcome }))
    }

    async fn complete_authorization(
        &self,
        request: Request<CompleteAuthorizationRequest>,
    ) -> Result<Response<CompleteAuthorizationResponse>, Status> {
        let complete = request.get_ref().clone();
        self.record(request, Call::Complete);
        self.hang(&complete.redirect_uri).await;
        match self.mood() {
            Mood::Fails => return Err(Status::internal("it fails")),
            Mood::Garbage => return Ok(Response::new(CompleteAuthorizationResponse::default())),
            _ => {}
        }
        let mut flows = self.0.flows.lock().expect("flows");
        let outcome = match flows.get_mut(&complete.flow_id) {
            None => refuse(Reason::UnknownFlow, String::new()),
            Some(flow)
                if flow.begun.user != complete.user
                    || flow.begun.browser_hash != complete.browser_hash
                    || flow.begun.redirect_uri != complete.redirect_uri =>
            {
                refuse(Reason::WrongContext, String::new())
            }
            Some(flow) if flow.used => refuse(Reason::AlreadyUsed, flow.begun.return_to.clone()),
            Some(flow) => {
                flow.used = true;
                match complete.answer {
                    _ if complete.iss.as_deref().map_or(self.mood() == Mood::WantsIss, |iss| iss != ISSUER) => {
                        refuse(Reason::IssuerMismatch, flow.begun.return_to.clone())
                    }
                    Some(Answer::Error(_)) if self.mood() == Mood::BadReturn => {
                        refuse(Reason::AuthorizationError, "//evil.example".to_owned())
                    }
                    Some(Answer::Error(_)) => refuse(Reason::AuthorizationError, flow.begun.return_to.clone()),
                    Some(Answer::Code(code)) => {
                        self.0.exchanges.lock().expect("exchanges").push(code);
                        match self.mood() {
                            Mood::NoToken => refuse(Reason::ExchangeFailed, flow.begun.return_to.clone()),
                            Mood::BadReturn => complete_authorization_response::Outcome::Completed(Completed {
                                return_to: "//evil.example".to_owned(),
                            }),
                            _ => complete_authorization_response::Outcome::Completed(Completed {
                                return_to: flow.begun.return_to.clone(),
                            }),
                        }
                    }
                    None => return Err(Status::invalid_argument("no answer")),
                }
            }
        };
        Ok(Response::new(CompleteAuthorizationResponse { outcome: Some(outcome) }))
    }

    async fn disconnect(&self, request: Request<DisconnectRequest>) -> Result<Response<DisconnectResponse>, Status> {
        let named = request.get_ref().upstream.clone();
        self.record(request, Call::Disconnect);
        self.hang(&named).await;
        match self.mood() {
            Mood::Fails => Err(Status::internal("it fails")),
            _ => Ok(Response::new(DisconnectResponse::default())),
        }
    }
}
