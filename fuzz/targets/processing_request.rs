//! A whole request through the gRPC service: whatever Envoy sends, the answer is one of those in the contract, and what it
//! routes to one of our paths is answered.
//!
//! An input that begins with a zero byte is a `ProcessingRequest`. Any other is text: the first byte says what the
//! choreographer answers, and each further line is a header (`:method: GET`), an attribute of the route (`@from: …`),
//! dynamic metadata of its namespace (`#from: …`) or of the user's (`!issuer: …`). In it, `{state}` and `{cookie}` are
//! those of a flow that began.

#![no_main]

use std::{
    collections::HashMap,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, AtomicU8, Ordering::Relaxed},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use envoy_cimd::{
    contract::{
        choreographer::{Begin, Begun, Choreographer, Complete},
        connection::{Connection, ConnectionState, Granted, NextAuthorization},
        error::{BeginError, CallError, Cause, CompleteError, Incomplete},
        tokens::TokenOwner,
    },
    edge::{
        ext_proc::{ExtProc, Shared},
        roles::Roles,
        server::Server,
    },
    filter::{
        browser::BrowserCookie,
        endpoint::{self, Endpoints},
        outcome::Outcome,
        state::StateKeys,
    },
    model::{
        client::{ClientId, RedirectUri},
        clock::UnixTime,
        flow::FlowId,
        paths::{Endpoint, Paths},
        public_url::PublicUrl,
        route_table::RouteTable,
        scope::Scope,
        secret::{Key, Secret},
        trace::Trace,
        upstream::Upstream,
        user::{UserSource, Users},
    },
};
use envoy_cimd_fuzz::is_local;
use envoy_types::pb::{
    envoy::{
        config::core::v3::{HeaderMap, HeaderValue, Metadata},
        service::ext_proc::v3::{
            HttpHeaders, ImmediateResponse, ProcessingRequest, ProcessingResponse,
            processing_request::Request as Phase, processing_response::Response,
        },
    },
    google::protobuf::{Struct, Value, value::Kind},
};
use http_body_util::{BodyExt, Full};
use libfuzzer_sys::fuzz_target;
use prost::Message;
use tokio::runtime::{Builder, Runtime};
use tower::ServiceExt;
use url::{Url, form_urlencoded};

const START: &str = "/.pomerium/oauth/start";
const CALLBACK: &str = "/.pomerium/oauth/callback";
const DISCONNECT: &str = "/.pomerium/oauth/disconnect";

const FROM: &str = "https://mcp.example.com";
const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);
const FLOW: FlowId = FlowId([7; 16]);
const SECRET: &str = "a-browsers-secret";
const NOT_CONNECTED: &str =
    r#"{"error":"bad_request","message":"The connection was not made, and nothing was changed."}"#;

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Builder::new_current_thread().build().expect("a runtime"));
static FAKE: LazyLock<Arc<Fake>> = LazyLock::new(Arc::default);
static ENDPOINTS: LazyLock<Arc<Endpoints>> = LazyLock::new(|| {
    let path = |text: &str| text.parse().expect("a path");
    let users = Users::From(UserSource {
        namespace: "users".into(),
        issuer: path("issuer"),
        subject: path("subject"),
        display: Some(path("display")),
    });
    let config = endpoint::Config { dynamic_metadata: true, users, ..endpoint::Config::default() };
    let keys = StateKeys::new(vec![Key::new([1; 32])]);
    let choreographer = FAKE.clone();
    let mut endpoints =
        Endpoints::new(config, RouteTable::default(), keys, choreographer, Arc::default(), Default::default());
    endpoints.tools.clock = || NOW;
    Arc::new(endpoints)
});
static STATE: LazyLock<String> = LazyLock::new(|| {
    let redirect_uri = RedirectUri::new(format!("{FROM}{CALLBACK}"));
    let keys = ENDPOINTS.tools.state_keys.load();
    keys.mint(FLOW, &redirect_uri, &BrowserCookie::from(Secret::new(SECRET)), NOW, NOW + 600).expect("a key")
});
static COOKIE: LazyLock<String> = LazyLock::new(|| format!("__Host-envoy_cimd_{}={SECRET}", FLOW.tag()));

fuzz_target!(|data: &[u8]| {
    let (mood, message) = match data {
        [0, message @ ..] => (0, message.to_vec()),
        [mood, lines @ ..] => (*mood, written(lines).encode_to_vec()),
        [] => return,
    };
    FAKE.mood.store(mood, Relaxed);
    FAKE.begun.store(false, Relaxed);
    FAKE.completed.store(false, Relaxed);
    FAKE.disconnected.store(false, Relaxed);
    let (answers, ended_well) = RUNTIME.block_on(exchange(&message));
    let Ok(read) = ProcessingRequest::decode(&message[..]) else {
        assert!(answers.is_empty() && !ended_well, "Envoy would take that for consent");
        return;
    };
    // What comes without the request's headers must not let it pass.
    let is_headless = matches!(read.request, Some(Phase::RequestBody(_) | Phase::RequestTrailers(_)));
    assert_eq!(ended_well, read.request.is_some() && (!is_headless || read.observability_mode));
    let request = Headers::of(&read);
    assert!(!FAKE.begun.load(Relaxed) || request.may_press(START));
    assert!(!FAKE.completed.load(Relaxed) || request.may_complete());
    assert!(!FAKE.disconnected.load(Relaxed) || request.may_press(DISCONNECT));
    let mut replied = false;
    for answer in &answers {
        assert!(!replied, "nothing follows a reply: {answers:?}");
        if let Some(Response::ImmediateResponse(reply)) = &answer.response {
            replied = true;
            check(&request, reply, message.len());
        }
    }
    // What the printed routes bring to us is answered, whatever is behind the path.
    assert!(replied || !request.is_routed_to_us(&read), "passed through: {answers:?}");
});

fn check(request: &Headers, reply: &ImmediateResponse, message: usize) {
    let (status, label) =
        (reply.status.as_ref().map_or(0, |status| status.code), &reply.details["envoy_cimd_".len()..]);
    let paths = Paths::default();
    let (_, endpoint) = paths.find(request.path()).expect("ours");
    let documented = Outcome::ALL
        .iter()
        .map(|outcome| outcome.row())
        .any(|row| row.parts.contains(&endpoint.into()) && (i32::from(row.status), row.label) == (status, label));
    assert!(documented, "{endpoint:?} {status} {label}");

    let headers: http::HeaderMap = reply
        .headers
        .iter()
        .flat_map(|headers| &headers.set_headers)
        .map(|option| {
            let header = option.header.as_ref().expect("a header");
            let name: http::HeaderName = header.key.parse().expect("a header's name");
            (name, http::HeaderValue::from_bytes(&header.raw_value).expect("a header's value"))
        })
        .collect();
    let header = |name: &str| headers.get(name).map(|value| value.to_str().expect("text"));
    let long: usize = headers.values().map(|value| value.len()).sum();
    assert!(long < 4096, "{headers:?}");
    // Only the page of start shows what is as long as an operator wants it.
    assert!(reply.body.len() < 8192 + if label == "shown" { 8 * message } else { 0 });

    if !["served", "not_modified", "preflight"].contains(&label) {
        assert_eq!((header("cache-control"), header("x-content-type-options")), (Some("no-store"), Some("nosniff")));
    }
    if endpoint != Endpoint::Document {
        let policy = header("content-security-policy").expect("a policy");
        assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"));
        let referrer = if label == "shown" { "same-origin" } else { "no-referrer" };
        assert_eq!(header("referrer-policy"), Some(referrer));
    }
    let body = String::from_utf8(reply.body.clone()).expect("text");
    match header("content-type") {
        Some("application/json") => {
            serde_json::from_str::<serde_json::Value>(&body).expect("JSON");
            assert!(status != 400 || body == NOT_CONNECTED, "{body}");
        }
        Some("text/html; charset=utf-8") => {
            assert!(!body.to_ascii_lowercase().contains("<script") && body.ends_with("</html>"), "{body}");
        }
        other => assert!(other.is_none() && body.is_empty(), "{other:?} {body}"),
    }
    assert_eq!(headers.contains_key("set-cookie"), label == "begun");
    match (label, header("location")) {
        ("begun", Some(location)) => {
            assert!(location.starts_with("https://as.example/authorize?"), "{location}");
            assert_eq!(
                Url::parse(location).expect("a URL").query_pairs().filter(|(name, _)| name == "state").count(),
                1
            );
        }
        ("completed", Some(location)) => assert!(is_local(location), "{location}"),
        ("disconnected", Some(location)) => assert!(is_local(location) && location.ends_with(START), "{location}"),
        (label, location) => assert!(location.is_none() && status != 303, "{label} {location:?}"),
    }
}

/// The answers to a stream that has this message twice, and whether the stream ended well.
async fn exchange(message: &[u8]) -> (Vec<ProcessingResponse>, bool) {
    let mut frame = vec![0];
    frame.extend(u32::try_from(message.len()).expect("a short message").to_be_bytes());
    frame.extend(message);
    let request = http::Request::post("/envoy.service.ext_proc.v3.ExternalProcessor/Process")
        .body(Full::new(Bytes::from(frame.repeat(2))))
        .expect("a request");
    let shared = Shared {
        metrics: ENDPOINTS.metrics.clone(),
        refusals: ENDPOINTS.refusals.clone(),
        users: ENDPOINTS.tools.users.source().cloned(),
    };
    let roles = Roles { endpoints: Some(ENDPOINTS.clone()), ..Roles::default() };
    let server = Server::new(ExtProc::new(roles, shared, Default::default()));
    let response = server.oneshot(request).await.expect("an answer");
    let mut status = response.headers().get("grpc-status").cloned();
    let mut body = response.into_body();
    let mut bytes = Vec::new();
    // Trailers are the end, as HTTP/2 has it.
    while status.is_none() {
        let frame = body.frame().await.expect("an end").expect("a frame");
        match frame.into_data() {
            Ok(data) => bytes.extend(data),
            Err(frame) => status = frame.trailers_ref().and_then(|trailers| trailers.get("grpc-status").cloned()),
        }
    }
    let mut frames = &bytes[..];
    let mut answers = Vec::new();
    while let Some((&[_, a, b, c, d], rest)) = frames.split_first_chunk() {
        let (answer, rest) = rest.split_at(u32::from_be_bytes([a, b, c, d]) as usize);
        answers.push(ProcessingResponse::decode(answer).expect("an answer"));
        frames = rest;
    }
    (answers, status.is_some_and(|status| status == "0"))
}

/// The message that the lines of a text stand for.
fn written(lines: &[u8]) -> ProcessingRequest {
    let (mut headers, mut attributes, mut ours, mut users) =
        (Vec::new(), Struct::default(), Struct::default(), Struct::default());
    for line in lines.split(|byte| *byte == b'\n') {
        let Some(colon) = line.windows(2).position(|pair| pair == b": ") else { continue };
        let (Ok(name), value) = (std::str::from_utf8(&line[..colon]), &line[colon + 2..]) else { continue };
        let text = || Value { kind: Some(Kind::StringValue(String::from_utf8_lossy(value).into_owned())) };
        if let Some(key) = name.strip_prefix('@') {
            attributes.fields.insert(format!("xds.route_metadata.filter_metadata['envoy_cimd']['{key}']"), text());
        } else if let Some(key) = name.strip_prefix('#') {
            ours.fields.insert(key.to_owned(), text());
        } else if let Some(key) = name.strip_prefix('!') {
            users.fields.insert(key.to_owned(), text());
        } else {
            let raw_value = match std::str::from_utf8(value) {
                Ok(text) => text.replace("{state}", &STATE).replace("{cookie}", &COOKIE).into_bytes(),
                Err(_) => value.to_vec(),
            };
            headers.push(HeaderValue { key: name.to_owned(), raw_value, ..HeaderValue::default() });
        }
    }
    let filter_metadata = HashMap::from([("envoy_cimd".to_owned(), ours), ("users".to_owned(), users)]);
    ProcessingRequest {
        request: Some(Phase::RequestHeaders(HttpHeaders {
            headers: Some(HeaderMap { headers }),
            ..HttpHeaders::default()
        })),
        attributes: HashMap::from([("envoy.filters.http.ext_proc".to_owned(), attributes)]),
        metadata_context: Some(Metadata { filter_metadata, ..Metadata::default() }),
        ..ProcessingRequest::default()
    }
}

/// The headers of a request, and what they may lead to at most.
struct Headers(Vec<(String, String)>);

impl Headers {
    fn of(message: &ProcessingRequest) -> Self {
        let Some(Phase::RequestHeaders(HttpHeaders { headers: Some(map), .. })) = &message.request else {
            return Self(Vec::new());
        };
        let pair = |header: &HeaderValue| {
            let value = if header.raw_value.is_empty() { header.value.as_bytes() } else { &header.raw_value };
            (header.key.clone(), String::from_utf8_lossy(value).into_owned())
        };
        Self(map.headers.iter().map(pair).collect())
    }

    fn values(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |header| header.0 == name).map(|header| header.1.as_str())
    }

    fn path(&self) -> &str {
        self.values(":path").next().unwrap_or_default().split('?').next().unwrap_or_default()
    }

    /// Whether Envoy, with the printed configuration for the route of these attributes, would bring it to us: an exact
    /// path, without the query, under the path of a `from` that is one.
    fn is_routed_to_us(&self, message: &ProcessingRequest) -> bool {
        let from = || {
            let values = &message.attributes.get("envoy.filters.http.ext_proc")?.fields;
            let from = values.get("xds.route_metadata.filter_metadata['envoy_cimd']['from']")?;
            match from.kind.as_ref()? {
                Kind::StringValue(text) => text.parse::<PublicUrl>().ok(),
                _ => None,
            }
        };
        let is_headers = matches!(&message.request, Some(Phase::RequestHeaders(_))) && !message.observability_mode;
        let (Some(from), paths) = (from(), Paths::default()) else { return false };
        is_headers && Endpoint::ALL.into_iter().any(|endpoint| paths.on(&from, endpoint) == self.path())
    }

    /// Whether this is the button of a page of ours, at this path of some route.
    fn may_press(&self, button: &str) -> bool {
        let own_page = match self.values("sec-fetch-site").next() {
            Some(site) => site == "same-origin",
            None => self.values("origin").next().is_some(),
        };
        own_page && self.path().ends_with(button) && self.values(":method").next() == Some("POST")
    }

    fn may_complete(&self) -> bool {
        let query = self.values(":path").next().and_then(|path| path.split_once('?')).map_or("", |(_, query)| query);
        let state = form_urlencoded::parse(query.as_bytes()).any(|(name, value)| name == "state" && value == *STATE);
        let cookie = self.values("cookie").any(|cookies| cookies.contains(COOKIE.as_str()));
        state && cookie && self.path() == CALLBACK && self.values(":method").next() == Some("GET")
    }
}

/// A choreographer in any mood, which notes that it was called.
#[derive(Default)]
struct Fake {
    mood: AtomicU8,
    begun: AtomicBool,
    completed: AtomicBool,
    disconnected: AtomicBool,
}

impl Fake {
    /// What it answers in its mood: one of these, or a refusal.
    fn answer<E: Clone, const N: usize>(&self, answers: [&str; N], refusals: &[E]) -> Result<String, E> {
        let mood = usize::from(self.mood.load(Relaxed)) % (N + refusals.len());
        match answers.get(mood) {
            Some(answer) => Ok((*answer).to_owned()),
            None => Err(refusals[mood - N].clone()),
        }
    }
}

const CAUSE: Cause = Cause::Borrowed("a cause");

#[async_trait]
impl Choreographer for Fake {
    async fn describe(&self, _: ClientId, _: Upstream, _: &Trace) -> Result<Option<String>, CallError> {
        self.answer(["https://as.example", "<script>"], &[CallError::Timeout(CAUSE)]).map(Some)
    }

    async fn connection(&self, _: TokenOwner, _: Option<Scope>, _: &Trace) -> Result<Connection, CallError> {
        let texts = ["", "read write", "<script>", "\u{202e}\"&'"];
        let text = self.answer(texts, &[CallError::Failed(CAUSE), CallError::Unavailable(CAUSE)])?;
        let scope = Scope::of([text.as_str()]);
        let state = match text.len() % 3 {
            0 => ConnectionState::Never,
            1 => ConnectionState::Lost,
            _ => ConnectionState::Connected(Granted { since: Some(NOW), scope: scope.clone(), issuer: text.clone() }),
        };
        Ok(Connection { state, next: Some(NextAuthorization { scope: scope.clone(), added: scope }) })
    }

    async fn begin(&self, _: Begin, _: &Trace) -> Result<Begun, BeginError> {
        self.begun.store(true, Relaxed);
        let unusable = BeginError::AuthorizationServerUnusable(CAUSE);
        let refusals = [
            unusable,
            BeginError::TooManyFlows(CAUSE),
            BeginError::Call(CallError::Failed(CAUSE)),
            BeginError::Call(CallError::Unavailable(CAUSE)),
            BeginError::Call(CallError::Timeout(CAUSE)),
        ];
        let urls = [
            "https://as.example/authorize?a=b",
            "http://as.example/authorize",
            "https://as.example/authorize?state=x",
            "javascript:alert(1)",
        ];
        let authorization_url = self.answer(urls, &refusals)?;
        Ok(Begun { flow_id: FLOW, expires_at: NOW + 600, authorization_url })
    }

    async fn complete(&self, _: Complete, _: &Trace) -> Result<String, Incomplete> {
        self.completed.store(true, Relaxed);
        let refusals = [
            CompleteError::WrongContext,
            CompleteError::UnknownFlow,
            CompleteError::IssuerMismatch(CAUSE),
            CompleteError::AuthorizationError("other".into()),
            CompleteError::AlreadyUsed { return_to: "/done".to_owned() },
            CompleteError::AlreadyUsed { return_to: "javascript:alert(1)".to_owned() },
            CompleteError::ExchangeFailed(CAUSE),
            CompleteError::Call(CallError::Failed(CAUSE)),
            CompleteError::Call(CallError::Unavailable(CAUSE)),
            CompleteError::Call(CallError::Timeout(CAUSE)),
        ];
        let wanted = [None, Some("/done"), Some("javascript:alert(1)")];
        let refusals: Vec<Incomplete> = refusals
            .into_iter()
            .flat_map(|error| {
                wanted.map(|wanted| Incomplete { error: error.clone(), return_to: wanted.map(str::to_owned) })
            })
            .collect();
        self.answer(["/done?a=b#c", "//evil.example", "https://evil.example"], &refusals)
    }

    async fn disconnect(&self, _: TokenOwner, _: &Trace) -> Result<(), CallError> {
        self.disconnected.store(true, Relaxed);
        self.answer([""], &[CallError::Failed(CAUSE), CallError::Unavailable(CAUSE), CallError::Timeout(CAUSE)])
            .map(drop)
    }
}
