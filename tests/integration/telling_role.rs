//! How a person is told, asked of the role itself: who is asked to open the link and who reads it, what of a call that
//! comes again is held, goes on or is refused, and what must not happen of each that is refused.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use envoy_cimd::{
    contract::{
        error::Cause,
        tokens::{AccessToken, Missing, Refused, Renewal, TokenError, TokenOwner, UpstreamTokens},
    },
    filter::{
        endpoint::{self, Endpoints},
        json_rpc::message::Message,
        reply::Reply,
        request_state::{Call, LIFETIME, PREFIX, RequestState},
        state::StateKeys,
        traffic::{self, Traffic},
        verdict::{AwaitedBody, Body, Edits, Verdict},
    },
    model::{
        client::ClientId,
        clock::UnixTime,
        route_table::RouteTable,
        secret::{Key as SecretKey, Secret},
        trace::Trace,
        user::{Claims, User, UserSource, Users},
    },
};
use futures_util::poll;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::traffic_role::{Asked, LINK, TAG, Willing, json_of, name, settled, whole};

mod asking;
mod holding;
mod states;
mod with_a_token;

pub const NEW: &str = "2026-07-28";
pub const OLD: &str = "2025-11-25";
pub const URL: &str = r#"{"elicitation":{"form":{},"url":{}}}"#;

/// What there is for a user.
#[derive(Clone)]
enum Has {
    Token,
    /// One, and their calls may come again.
    Marked,
    Nothing(Missing),
    Unknown,
}

/// Who has what, and what was asked.
struct Fake {
    has: watch::Sender<HashMap<String, Has>>,
    can_mark: Mutex<Result<(), TokenError>>,
    marks: AtomicUsize,
    waits: AtomicUsize,
    /// The waits that nobody dropped, and that are not over.
    waiting: Arc<AtomicUsize>,
}

struct Waiting(Arc<AtomicUsize>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn subject(user: &User) -> String {
    match user {
        User::Subject { subject, .. } => subject.clone(),
        User::Single => panic!("somebody"),
    }
}

impl Fake {
    fn now(&self, who: &str) -> Has {
        self.has.borrow().get(who).cloned().unwrap_or(Has::Nothing(Missing::Never))
    }

    fn gives(&self, who: &str, has: Has) {
        self.has.send_modify(|all| {
            all.insert(who.to_owned(), has);
        });
    }

    fn handed_out(&self, owner: &TokenOwner) -> Result<AccessToken, TokenError> {
        let who = subject(&owner.user);
        let again = match self.now(&who) {
            Has::Token => None,
            Has::Marked => Some(UnixTime::now() + LIFETIME),
            Has::Nothing(missing) => return Err(TokenError::NotFound(missing)),
            Has::Unknown => return Err(TokenError::Unavailable(Cause::Borrowed("nobody knows"))),
        };
        Ok(AccessToken { secret: Secret::new(format!("token-of-{who}")), tag: TAG, expires_at: None, again })
    }
}

#[async_trait]
impl UpstreamTokens for Fake {
    async fn upstream_token(&self, owner: TokenOwner, _: &Trace) -> Result<AccessToken, TokenError> {
        self.handed_out(&owner)
    }

    async fn awaited_token(&self, owner: TokenOwner, longest: Duration, _: &Trace) -> Result<AccessToken, TokenError> {
        self.waits.fetch_add(1, Ordering::Relaxed);
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(Arc::clone(&self.waiting));
        let who = subject(&owner.user);
        let comes = |all: &HashMap<String, Has>| !matches!(all.get(&who), None | Some(Has::Nothing(_)));
        let mut has = self.has.subscribe();
        let _ = tokio::time::timeout(longest, has.wait_for(comes)).await;
        self.handed_out(&owner)
    }

    async fn expect_again(&self, _: TokenOwner, _: &Trace) -> Result<(), TokenError> {
        self.marks.fetch_add(1, Ordering::Relaxed);
        self.can_mark.lock().expect("no panic").clone()
    }

    async fn refused(&self, _: TokenOwner, _: Refused, _: &Trace) -> Result<Renewal, TokenError> {
        panic!("nobody reports a token here")
    }

    async fn disconnect(&self, _: TokenOwner, _: &Trace) -> Result<(), TokenError> {
        panic!("nobody disconnects here")
    }
}

struct Bed {
    endpoints: Endpoints,
    traffic: Traffic,
    tokens: Arc<Fake>,
}

impl Bed {
    /// Where Anna was connected once.
    fn new() -> Self {
        Self::with(1000, &[1])
    }

    fn with(max_holds: usize, keys: &[u8]) -> Self {
        let path = |text: &str| text.parse().expect("a path");
        let source = UserSource { namespace: "n".to_owned(), issuer: path("iss"), subject: path("sub"), display: None };
        let config = endpoint::Config { users: Users::From(source), ..endpoint::Config::default() };
        let limits = config.limits.calls;
        let keys = StateKeys::new(keys.iter().map(|seed| SecretKey::new([*seed; 32])).collect());
        let endpoints =
            Endpoints::new(config, RouteTable::default(), keys, Arc::new(Willing), Arc::default(), Default::default());
        let has = HashMap::from([("anna".to_owned(), Has::Nothing(Missing::Lost))]);
        let tokens = Arc::new(Fake {
            has: watch::Sender::new(has),
            can_mark: Mutex::new(Ok(())),
            marks: AtomicUsize::new(0),
            waits: AtomicUsize::new(0),
            waiting: Arc::default(),
        });
        let config = traffic::Config { max_holds, token_cache: Duration::ZERO, ..traffic::Config::default() };
        let cached = config.cached(tokens.clone(), limits, endpoints.calls.clone());
        let traffic = Traffic::new(config, &endpoints, cached);
        Self { endpoints, traffic, tokens }
    }

    /// What is made of somebody's POST, when its body came.
    async fn post(&self, who: &str, headers: &[(&str, &str)], body: Body) -> Verdict {
        match self.headers(who, headers).await {
            Verdict::Body(AwaitedBody { then, .. }) => then(body),
            other => other,
        }
    }

    async fn headers(&self, who: &str, headers: &[(&str, &str)]) -> Verdict {
        let user = Some(Claims { issuer: Some("i"), subject: Some(who) });
        let asked = Asked { ends: false, user, ..Asked::with(&[&[(":method", "POST")], headers].concat()) };
        settled(asked.of(&self.traffic)).await
    }

    /// The reply to Anna's POST, of which nothing may go on.
    async fn reply(&self, body: &str) -> Reply {
        match settled(self.post("anna", &[], whole(body)).await).await {
            Verdict::Reply(reply) => reply,
            other => panic!("nothing may go on: {}: {body}", name(&other)),
        }
    }

    /// The state of the question that this call is answered with.
    async fn state(&self, call: &str) -> String {
        asked(&self.reply(call).await)
    }

    fn state_for(&self, user: &User, client_id: &str, call: &str, expires_at: UnixTime) -> String {
        let digest = Message::read(call.as_bytes(), true).expect("a message").digest().expect("a call");
        let call = Call { user, client_id: &ClientId::new(client_id), digest };
        let keys = self.endpoints.tools.state_keys.load();
        keys.request_states.seal(RequestState { expires_at, is_accepted: false }, &call).expect("a key")
    }

    fn waits(&self) -> usize {
        self.tokens.waits.load(Ordering::Relaxed)
    }

    fn waiting(&self) -> usize {
        self.tokens.waiting.load(Ordering::Relaxed)
    }

    fn marks(&self) -> usize {
        self.tokens.marks.load(Ordering::Relaxed)
    }

    fn metric(&self, sample: &str) -> bool {
        self.endpoints.metrics.text().lines().any(|line| line == sample)
    }
}

/// A tool's call of 2026-07-28, whose client opens addresses, with more members in its parameters.
pub fn call(more: &str) -> String {
    message("7", "tools/call", r#""name":"count","arguments":{"to":3}"#, NEW, URL, more)
}

pub fn message(id: &str, method: &str, params: &str, version: &str, capabilities: &str, more: &str) -> String {
    format!(
        r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":{{{params},"_meta":{{"io.modelcontextprotocol/protocolVersion":"{version}","io.modelcontextprotocol/clientCapabilities":{capabilities}}}{more}}}}}"#
    )
}

/// The same call as it comes again with an answer.
pub fn again(state: &str, action: &str) -> String {
    call(&format!(r#","inputResponses":{{"connect":{{"action":"{action}"}}}},"requestState":"{state}""#))
}

/// The state of an answer that asks, which is as MCP has it.
fn asked(reply: &Reply) -> String {
    assert_eq!((reply.status, reply.label), (200, "asked_to_connect"), "{:?}", reply.body);
    let body = json_of(reply);
    let state = body["result"]["requestState"].as_str().expect("a state").to_owned();
    let message = &body["result"]["inputRequests"]["connect"]["params"]["message"];
    assert!(message.as_str().is_some_and(|message| message.contains("connect") && !message.contains("upstream")));
    let params = json!({ "mode": "url", "url": LINK, "message": message });
    let requests = json!({ "connect": { "method": "elicitation/create", "params": params } });
    let result = json!({ "resultType": "input_required", "inputRequests": requests, "requestState": state });
    assert_eq!(body, json!({ "jsonrpc": "2.0", "id": body["id"], "result": result }));
    assert!(state.starts_with(PREFIX));
    state
}

/// Whether it is the link as text, for this id: a tool's result, or an error.
fn is_told(reply: &Reply, id: &Value, is_tool: bool) -> bool {
    let body = json_of(reply);
    let text = if is_tool { &body["result"]["content"][0]["text"] } else { &body["error"]["message"] };
    assert!(body["result"]["inputRequests"].is_null() && body["result"]["requestState"].is_null(), "{body}");
    assert_eq!(body["result"]["isError"].as_bool().unwrap_or_default(), is_tool, "{body}");
    reply.status == 200 && &body["id"] == id && text.as_str().is_some_and(|text| text.contains(LINK))
}

/// A call that is refused for its state.
fn is_bad_state(reply: &Reply) -> bool {
    let body = json_of(reply);
    let error = json!({ "code": -32602, "message": body["error"]["message"] });
    assert_eq!(body, json!({ "jsonrpc": "2.0", "id": 7, "error": error }));
    (reply.status, reply.label) == (400, "bad_request_state")
}

/// What goes on, with Anna's token.
fn goes_on(verdict: &Verdict) -> &Edits {
    let Verdict::Forward(edits) = verdict else { panic!("it goes on: {}", name(verdict)) };
    assert_eq!(edits.set, [("authorization", Bytes::from_static(b"Bearer token-of-anna"))]);
    assert_eq!(edits.tag, Some(TAG));
    edits
}

fn goes_on_as_it_is(verdict: &Verdict) -> bool {
    let edits = goes_on(verdict);
    edits.body.is_none() && edits.remove == ["cookie", "proxy-authorization"]
}

fn goes_on_as(verdict: &Verdict, body: &str) {
    let edits = goes_on(verdict);
    assert_eq!(edits.body.as_ref().map(|body| String::from_utf8_lossy(body).into_owned()).as_deref(), Some(body));
    assert_eq!(edits.remove, ["cookie", "proxy-authorization", "content-length"]);
}

/// A held call, polled once: its wait has begun.
async fn held(verdict: Verdict) -> futures_util::future::BoxFuture<'static, Verdict> {
    let Verdict::Later(mut call) = verdict else { panic!("it is held: {}", name(&verdict)) };
    assert!(poll!(&mut call).is_pending(), "it is held");
    call
}
