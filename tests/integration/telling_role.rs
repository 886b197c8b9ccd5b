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
        json_rpc::message::{MAX_READ, Message},
        reply::Reply,
        request_state::{Call, LIFETIME, PREFIX, RequestState},
        state::StateKeys,
        traffic::{self, Traffic},
        verdict::{AwaitedBody, Body, Edits, Verdict},
    },
    model::{
        client::ClientId,
        clock::UnixTime,
        route::Key,
        route_table::RouteTable,
        secret::{Key as SecretKey, Secret},
        trace::Trace,
        user::{Claims, User, UserSource, Users},
    },
};
use futures_util::{FutureExt, poll};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::traffic_role::{Asked, FROM, LINK, TAG, TO, Willing, cut, header, json_of, name, settled, whole};

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

#[tokio::test]
async fn who_is_asked_and_who_is_told() {
    let bed = Bed::new();
    let tool = r#""name":"a","arguments":{}"#;
    let uri = r#""uri":"file:///a""#;
    let mut expected = 0;
    for (method, params) in [("tools/call", tool), ("prompts/get", tool), ("resources/read", uri)] {
        for capabilities in [URL, r#"{"elicitation":{"url":{}},"sampling":{}}"#] {
            for id in ["7", r#""a""#] {
                let reply = bed.reply(&message(id, method, params, NEW, capabilities, "")).await;
                asked(&reply);
                assert_eq!(json_of(&reply)["id"].to_string(), id);
                expected += 1;
            }
        }
    }
    assert_eq!(bed.marks(), expected, "each was noted");
    let with = |version, capabilities, more| message("7", "tools/call", tool, version, capabilities, more);
    let long = "x".repeat(MAX_READ - 1100);
    for (why, body, is_tool) in [
        ("a form alone", with(NEW, r#"{"elicitation":{}}"#, ""), true),
        ("a form alone", with(NEW, r#"{"elicitation":{"form":{}}}"#, ""), true),
        ("no elicitation", with(NEW, "{}", ""), true),
        ("the older protocol", with(OLD, URL, ""), true),
        ("an upstream's state", with(NEW, URL, r#","requestState":"theirs""#), true),
        ("an upstream's question", with(NEW, URL, r#","inputResponses":{"connect":{"action":"accept"}}"#), true),
        ("too long to come again", with(NEW, URL, &format!(r#","x":"{long}""#)), true),
        ("no name", message("7", "tools/call", uri, NEW, URL, ""), true),
        ("another method", message("7", "tools/list", tool, NEW, URL, ""), false),
        ("another method", message("7", "server/discover", tool, NEW, URL, ""), false),
        ("another method", message("7", "initialize", tool, NEW, URL, ""), false),
        ("no URI", message("7", "resources/read", tool, NEW, URL, ""), false),
    ] {
        let reply = bed.reply(&body).await;
        assert!(is_told(&reply, &json!(7), is_tool) && reply.label == "told", "{why}");
    }
    // What was cut is not known whole.
    let body = call("");
    let Verdict::Reply(reply) = settled(bed.post("anna", &[], cut(&body[..body.len() - 1])).await).await else {
        panic!("a reply")
    };
    assert!(is_told(&reply, &json!(7), true));
    // Whose trailers come after it is.
    let Verdict::Reply(reply) = settled(bed.post("anna", &[], cut(&body)).await).await else { panic!("a reply") };
    asked(&reply);
    // Whoever never connected.
    bed.tokens.gives("anna", Has::Nothing(Missing::Never));
    assert!(is_told(&bed.reply(&call("")).await, &json!(7), true));
    assert_eq!(bed.marks(), expected + 1);
    bed.tokens.gives("anna", Has::Unknown);
    assert_eq!(bed.reply(&call("")).await.label, "token_unavailable");
    assert_eq!((bed.waits(), bed.marks()), (0, expected + 1));
}

/// Both versions in one connection: each request is told as it can be, and one that contradicts itself is refused.
#[tokio::test]
async fn each_request_has_its_own_version() {
    let bed = Bed::new();
    let tool = r#""name":"a""#;
    for (header, version, label) in [
        (NEW, NEW, "asked_to_connect"),
        (OLD, OLD, "told"),
        (NEW, NEW, "asked_to_connect"),
        (OLD, NEW, "version_mismatch"),
        (NEW, OLD, "version_mismatch"),
    ] {
        let body = message("7", "tools/call", tool, version, URL, "");
        let headers = [("mcp-protocol-version", header), ("mcp-session-id", "never-seen")];
        let Verdict::Reply(reply) = settled(bed.post("anna", &headers, whole(&body)).await).await else {
            panic!("a reply")
        };
        assert_eq!(reply.label, label, "{header} {version}");
    }
}

/// A client that takes no JSON gets the same as an event.
#[tokio::test]
async fn each_answer_is_of_a_type_that_its_client_takes() {
    let bed = Bed::new();
    for (accept, is_event) in [
        (&["text/event-stream"][..], true),
        (&["Text/Event-Stream; q=0.9"], true),
        (&["text/html, text/event-stream"], true),
        (&["application/json, text/event-stream"], false),
        (&["text/event-stream", "application/json"], false),
        (&["text/event-stream, */*;q=0.1"], false),
        (&["text/event-stream, application/*"], false),
        (&["application/json"], false),
        (&["*/*"], false),
        (&[], false),
    ] {
        let headers: Vec<_> = accept.iter().map(|accept| ("accept", *accept)).collect();
        for body in [call(""), message("7", "tools/list", "", NEW, URL, "").replace("{,", "{")] {
            let Verdict::Reply(reply) = settled(bed.post("anna", &headers, whole(&body)).await).await else {
                panic!("a reply")
            };
            let content_type = if is_event { "text/event-stream" } else { "application/json" };
            assert_eq!((reply.status, header(&reply, "content-type")), (200, Some(content_type)), "{accept:?}");
            let text = std::str::from_utf8(&reply.body).expect("text");
            let json = match is_event {
                true => text.strip_prefix("event: message\ndata: ").and_then(|text| text.strip_suffix("\n\n")),
                false => Some(text),
            };
            let json: Value = serde_json::from_str(json.expect("one event")).expect("JSON");
            assert_eq!(json["id"], 7);
        }
    }
}

#[tokio::test]
async fn where_nothing_can_be_noted_the_link_is_text() {
    let bed = Bed::new();
    for error in [TokenError::Unavailable(Cause::Borrowed("the store is gone")), TokenError::NotFound(Missing::Never)] {
        *bed.tokens.can_mark.lock().expect("no panic") = Err(error);
        assert!(is_told(&bed.reply(&call("")).await, &json!(7), true));
    }
    assert_eq!(bed.marks(), 2);
}

#[tokio::test]
async fn a_call_that_was_accepted_is_held_and_goes_on() {
    let bed = Bed::new();
    let state = bed.state(&call("")).await;
    // As another client would write it: the call is the same.
    let spellings = [
        again(&state, "accept"),
        format!(
            r#"{{"params":{{"requestState":"{state}","arguments":{{"to":3.0}},"_meta":{{"progressToken":1}},"name":"co\u0075nt","inputResponses":{{"connect":{{"content":{{}},"action":"accept"}}}}}},"id":8,"method":"tools/call"}}"#
        ),
    ];
    let expected = [
        call(""),
        r#"{"params":{"arguments":{"to":3.0},"_meta":{"progressToken":1},"name":"co\u0075nt"},"id":8,"method":"tools/call"}"#
            .to_owned(),
    ];
    let mut waiting = Vec::new();
    for body in &spellings {
        waiting.push(held(bed.post("anna", &[], whole(body)).await).await);
    }
    assert_eq!((bed.waits(), bed.waiting()), (1, 1), "one wait for both");
    assert!(bed.metric("envoy_cimd_handed_out_total 0"));
    bed.tokens.gives("anna", Has::Marked);
    for (held, expected) in waiting.into_iter().zip(&expected) {
        goes_on_as(&held.await, expected);
    }
    assert!(bed.metric("envoy_cimd_handed_out_total 2"));
    assert_eq!(bed.waiting(), 0);
    // Whoever is connected by now, in this client or another, does not wait.
    for (body, expected) in spellings.iter().zip(&expected) {
        goes_on_as(&bed.post("anna", &[], whole(body)).await, expected);
    }
    assert_eq!((bed.waits(), bed.marks()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_hold_that_ends_without_a_token_goes_on_with_the_next_call() {
    let bed = Bed::new();
    let state = bed.state(&call("")).await;
    let began = tokio::time::Instant::now();
    let Verdict::Reply(reply) = settled(bed.post("anna", &[], whole(&again(&state, "accept"))).await).await else {
        panic!("a reply")
    };
    assert_eq!(began.elapsed(), Duration::from_secs(20));
    assert_eq!((reply.status, reply.label), (200, "still_waits"));
    let body = json_of(&reply);
    let next = body["result"]["requestState"].as_str().expect("a state").to_owned();
    let result = json!({ "resultType": "input_required", "requestState": next });
    assert_eq!(body, json!({ "jsonrpc": "2.0", "id": 7, "result": result }), "nothing is asked anew");
    // It comes again without an answer, which it had.
    let body = call(&format!(r#","requestState":"{next}""#));
    let hold = held(bed.post("anna", &[], whole(&body)).await).await;
    bed.tokens.gives("anna", Has::Marked);
    goes_on_as(&hold.await, &call(""));
    assert_eq!((bed.waiting(), bed.marks()), (0, 1));
}

#[tokio::test]
async fn what_else_a_person_says() {
    let bed = Bed::new();
    let state = bed.state(&call("")).await;
    for action in ["decline", "cancel"] {
        assert!(is_told(&bed.reply(&again(&state, action)).await, &json!(7), true), "{action}");
    }
    let uri = r#""uri":"file:///a""#;
    let read = |more: &str| message("7", "resources/read", uri, NEW, URL, more);
    let of_read = bed.state(&read("")).await;
    let declined =
        read(&format!(r#","inputResponses":{{"connect":{{"action":"decline"}}}},"requestState":"{of_read}""#));
    assert!(is_told(&bed.reply(&declined).await, &json!(7), false));
    // What is not answered is asked again, for no longer than it was.
    for more in [
        String::new(),
        r#","inputResponses":{}"#.to_owned(),
        r#","inputResponses":[]"#.to_owned(),
        r#","inputResponses":{"other":{"action":"accept"}}"#.to_owned(),
        r#","inputResponses":{"connect":null}"#.to_owned(),
        r#","inputResponses":{"connect":{"action":"maybe"}}"#.to_owned(),
        r#","inputResponses":{"connect":{"action":"accept","action":"accept"}}"#.to_owned(),
    ] {
        let body = call(&format!(r#","requestState":"{state}"{more}"#));
        asked(&bed.reply(&body).await);
    }
    assert_eq!((bed.waits(), bed.marks()), (0, 2));
    assert!(bed.metric("envoy_cimd_handed_out_total 0"));
    // No is no, wherever else the person connected since; and what is left open does not matter to whoever is
    // connected.
    bed.tokens.gives("anna", Has::Marked);
    assert!(is_told(&bed.reply(&again(&state, "decline")).await, &json!(7), true));
    let open = call(&format!(r#","requestState":"{state}""#));
    goes_on_as(&bed.post("anna", &[], whole(&open)).await, &call(""));
}

#[tokio::test]
async fn a_state_that_is_not_of_this_call_is_refused() {
    let bed = Bed::new();
    let state = bed.state(&call("")).await;
    let anna = User::Subject { issuer: "i".to_owned(), subject: "anna".to_owned() };
    let bert = User::Subject { issuer: "i".to_owned(), subject: "bert".to_owned() };
    let client = format!("{FROM}/.well-known/mcp-client-metadata.json");
    let later = UnixTime::now() + 60;
    let other = message("7", "tools/call", r#""name":"count","arguments":{"to":4}"#, NEW, URL, "");
    let own = bed.state_for(&anna, &client, &call(""), later);
    let mut bad = vec![
        bed.state_for(&bert, &client, &call(""), later),
        bed.state_for(&User::Single, &client, &call(""), later),
        bed.state_for(&anna, "https://mcp.example.com/.well-known/mcp-client-metadata.json", &call(""), later),
        bed.state_for(&anna, &client, &other, later),
        bed.state_for(&anna, &client, &call(""), UnixTime::now()),
        bed.state_for(&anna, &client, &call(""), UnixTime::now() - 3600),
        Bed::with(1, &[2]).state_for(&anna, &client, &call(""), later),
        PREFIX.to_owned(),
        format!("{PREFIX}AAAA"),
    ];
    // Bent in each bit that JSON can hold, behind what makes it ours.
    for position in PREFIX.len() * 8..state.len() * 8 {
        let mut bent = state.clone().into_bytes();
        bent[position / 8] ^= 1 << (position % 8);
        let bent = String::from_utf8(bent).ok().filter(|bent| bent.bytes().all(|byte| byte >= b' '));
        bad.extend(bent.filter(|bent| !bent.contains(['"', '\\'])));
    }
    assert!(bad.len() > 500, "{}", bad.len());
    for has in [Has::Nothing(Missing::Lost), Has::Marked, Has::Nothing(Missing::Never)] {
        bed.tokens.gives("anna", has);
        for bad in &bad {
            for action in ["accept", "decline"] {
                assert!(is_bad_state(&bed.reply(&again(bad, action)).await), "{bad}");
            }
        }
    }
    // The call is another, or of another kind.
    bed.tokens.gives("anna", Has::Nothing(Missing::Lost));
    let with = |method: &str, params: &str| {
        let more = format!(r#","inputResponses":{{"connect":{{"action":"accept"}}}},"requestState":"{state}""#);
        message("7", method, params, NEW, URL, &more)
    };
    for body in [
        with("tools/call", r#""name":"count","arguments":{"to":4}"#),
        with("tools/call", r#""name":"count","arguments":{"to":3,"too":1}"#),
        with("tools/call", r#""name":"count""#),
        with("tools/call", r#""name":"discount","arguments":{"to":3}"#),
        with("prompts/get", r#""name":"count","arguments":{"to":3}"#),
        with("tools/list", r#""name":"count","arguments":{"to":3}"#),
    ] {
        for has in [Has::Nothing(Missing::Lost), Has::Marked] {
            bed.tokens.gives("anna", has);
            assert!(is_bad_state(&bed.reply(&body).await), "{body}");
        }
    }
    // Another user brings it, whether they have a token or not.
    for has in [Has::Nothing(Missing::Lost), Has::Marked] {
        bed.tokens.gives("bert", has);
        let Verdict::Reply(reply) = settled(bed.post("bert", &[], whole(&again(&state, "accept"))).await).await else {
            panic!("nothing goes on")
        };
        assert!(is_bad_state(&reply));
    }
    assert_eq!((bed.waits(), bed.marks()), (0, 1));
    assert!(bed.metric("envoy_cimd_handed_out_total 0"));
    // All that is right of it is right.
    bed.tokens.gives("anna", Has::Nothing(Missing::Lost));
    drop(held(bed.post("anna", &[], whole(&again(&own, "accept"))).await).await);
}

/// One replica's state is good at another, while keys rotate as well.
#[tokio::test]
async fn a_state_of_another_replica() {
    let state = Bed::with(1000, &[1]).state(&call("")).await;
    for (keys, is_good) in [(&[1][..], true), (&[1, 2], true), (&[2, 1], true), (&[2], false)] {
        let bed = Bed::with(1000, keys);
        let verdict = bed.post("anna", &[], whole(&again(&state, "accept"))).await;
        match verdict {
            Verdict::Later(_) => assert!(is_good, "{keys:?}"),
            Verdict::Reply(reply) => assert!(!is_good && is_bad_state(&reply), "{keys:?}"),
            other => panic!("{}", name(&other)),
        }
    }
}

#[tokio::test]
async fn what_ends_a_hold() {
    let bed = Bed::new();
    let state = bed.state(&call("")).await;
    let body = again(&state, "accept");
    // The person disconnects: they are told, as who never connected.
    bed.tokens.gives("anna", Has::Nothing(Missing::Never));
    assert!(is_told(&bed.reply(&body).await, &json!(7), true));
    assert_eq!(bed.waits(), 0, "nor is it held then");
    // Nobody can say any more: nothing goes on.
    bed.tokens.gives("anna", Has::Nothing(Missing::Lost));
    let hold = held(bed.post("anna", &[], whole(&body)).await).await;
    bed.tokens.gives("anna", Has::Unknown);
    let Verdict::Reply(reply) = hold.await else { panic!("a reply") };
    assert_eq!((reply.status, reply.label, json_of(&reply)["id"].as_i64()), (502, "token_unavailable", Some(7)));
    // The client leaves.
    bed.tokens.gives("anna", Has::Nothing(Missing::Lost));
    let hold = held(bed.post("anna", &[], whole(&body)).await).await;
    assert_eq!(bed.waiting(), 1);
    drop(hold);
    assert_eq!(bed.waiting(), 0, "its wait ends with it");
    assert!(bed.metric("envoy_cimd_handed_out_total 0"));
}

#[tokio::test(start_paused = true)]
async fn a_disconnect_while_a_call_is_held() {
    let bed = Bed::new();
    let state = bed.state(&call("")).await;
    let hold = held(bed.post("anna", &[], whole(&again(&state, "accept"))).await).await;
    bed.tokens.gives("anna", Has::Nothing(Missing::Never));
    let Verdict::Reply(reply) = hold.await else { panic!("a reply") };
    assert!(is_told(&reply, &json!(7), true));
}

/// What is held is bounded, for each person and for all; above the limit the link is text, and others go on.
#[tokio::test]
async fn holds_leave_room_for_others() {
    let bed = Bed::with(10, &[1]);
    let full = |reply: &Reply| {
        assert!(is_told(reply, &json!(7), true));
        assert_eq!((reply.status, reply.label), (200, "too_many_holds"));
    };
    let mut holds = Vec::new();
    let mut states = HashMap::new();
    for who in ["anna", "bert", "carl"] {
        bed.tokens.gives(who, Has::Nothing(Missing::Lost));
        let Verdict::Reply(reply) = settled(bed.post(who, &[], whole(&call(""))).await).await else {
            panic!("a reply")
        };
        states.insert(who, asked(&reply));
    }
    let comes = async |who| settled_or_held(bed.post(who, &[], whole(&again(&states[who], "accept"))).await).await;
    for who in ["anna"; 8] {
        holds.push(comes(who).await.expect("it is held"));
    }
    full(&comes("anna").await.err().expect("one too many of hers"));
    for who in ["bert"; 2] {
        holds.push(comes(who).await.expect("it is held"));
    }
    full(&comes("carl").await.err().expect("one too many of all"));
    assert_eq!((bed.waits(), bed.waiting()), (2, 2), "one for each who waits");
    // Others are served, and told.
    bed.tokens.gives("dora", Has::Token);
    assert!(matches!(bed.headers("dora", &[]).await, Verdict::Forward(_)));
    let Verdict::Reply(reply) = settled(bed.post("emil", &[], whole(&call(""))).await).await else { panic!("a reply") };
    assert!(is_told(&reply, &json!(7), true));
    // Whoever leaves makes room at once.
    drop(holds.remove(0));
    holds.push(comes("carl").await.expect("it is held"));
    assert!(bed.metric(r#"envoy_cimd_requests_total{endpoint="traffic",outcome="too_many_holds"} 2"#));
}

async fn settled_or_held(verdict: Verdict) -> Result<futures_util::future::BoxFuture<'static, Verdict>, Reply> {
    match verdict {
        Verdict::Later(_) => Ok(held(verdict).await),
        Verdict::Reply(reply) => Err(reply),
        other => panic!("{}", name(&other)),
    }
}

/// A thousand calls of 125 people, and others are served; each has a wait of its own, and no more.
#[tokio::test]
async fn a_thousand_held() {
    let bed = Bed::new();
    let mut holds = Vec::new();
    for person in 0..125 {
        let who = format!("person-{person}");
        bed.tokens.gives(&who, Has::Nothing(Missing::Lost));
        let Verdict::Reply(reply) = settled(bed.post(&who, &[], whole(&call(""))).await).await else {
            panic!("a reply")
        };
        let body = again(&asked(&reply), "accept");
        for _ in 0..8 {
            holds.push((who.clone(), held(bed.post(&who, &[], whole(&body)).await).await));
        }
    }
    assert_eq!((holds.len(), bed.waiting()), (1000, 125));
    bed.tokens.gives("anna", Has::Token);
    for _ in 0..100 {
        assert!(goes_on_as_it_is(&bed.headers("anna", &[]).await));
    }
    // One of them connects, and their eight go on; the others wait.
    bed.tokens.gives("person-7", Has::Token);
    let (own, others): (Vec<_>, Vec<_>) = holds.into_iter().partition(|(who, _)| who == "person-7");
    for (_, hold) in own {
        let Verdict::Forward(edits) = hold.await else { panic!("it goes on") };
        assert_eq!(edits.set[0].1, "Bearer token-of-person-7");
        assert_eq!(edits.body.as_deref(), Some(call("").as_bytes()));
    }
    for (who, mut hold) in others {
        assert!((&mut hold).now_or_never().is_none(), "{who}");
    }
    assert_eq!(bed.waiting(), 0, "whoever left waits no more");
}

/// Whoever has a token, and may bring a call again: all that is not ours goes on as it is.
#[tokio::test]
async fn what_is_not_ours_goes_on_untouched() {
    let bed = Bed::new();
    let state = bed.state(&call("")).await;
    let long = |before: &str| format!("{before}{}", "x".repeat(2 * MAX_READ));
    bed.tokens.gives("anna", Has::Marked);
    for body in [
        whole(&call("")),
        cut(&call("")),
        whole(r#"{"jsonrpc":"2.0","id":7,"method":"tools/list"}"#),
        whole(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#),
        whole(r#"{"jsonrpc":"2.0","id":7,"result":{}}"#),
        // What it means is for the upstream to say.
        whole("hello"),
        whole("[]"),
        whole(r#"[{"jsonrpc":"2.0","id":7,"method":"tools/list"}]"#),
        whole(r#"{"id":null}"#),
        whole(r#"{"id":7,"id":7,"method":"m"}"#),
        whole(&format!("{}{}", "[".repeat(1000), "]".repeat(1000))),
        Body::Came { bytes: Bytes::from_static(b"\x1f\x8b\x08\x00envoy-cimd-"), whole: true },
        Body::Came { bytes: Bytes::new(), whole: false },
        // Another's state, and texts that look like ours.
        whole(&call(r#","requestState":"theirs","inputResponses":{"connect":{"action":"accept"}}"#)),
        whole(&call(r#","requestState":7"#)),
        whole(&call(r#","requestState":"Envoy-cimd-x""#)),
        whole(&call(&format!(r#","requeststate":"{state}""#))),
        whole(&call(&format!(r#","x":{{"requestState":"{state}"}}"#))),
        whole(&call(&format!(r#","x":"\"requestState\":\"{state}\"""#))),
        whole(&format!(r#"{{"id":7,"method":"m","requestState":"{state}","params":{{}}}}"#)),
        // The beginning of what is longer than what is read, with no state as far as that goes.
        cut(&long(r#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"count","arguments":{"text":""#)),
        whole(&long(r#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"count","arguments":{"text":""#)),
    ] {
        let shown = format!("{body:?}").chars().take(200).collect::<String>();
        assert!(goes_on_as_it_is(&bed.post("anna", &[], body).await), "{shown}");
    }
    assert_eq!(bed.waits(), 0);
}

/// What is not looked at, since nothing of ours can be in it.
#[tokio::test]
async fn who_is_not_kept_waiting_for_a_body() {
    let bed = Bed::new();
    bed.tokens.gives("anna", Has::Marked);
    let limit = MAX_READ.to_string();
    let (more, huge) = ((MAX_READ + 1).to_string(), "41943040");
    for (length, is_asked) in [
        (Some("0"), true),
        (Some(limit.as_str()), true),
        (Some(&more), false),
        (Some(huge), false),
        (Some("18446744073709551616"), true),
        (Some("a lot"), true),
        (None, true),
    ] {
        let headers: Vec<_> = length.iter().map(|length| ("content-length", *length)).collect();
        let verdict = bed.headers("anna", &headers).await;
        assert_eq!(matches!(verdict, Verdict::Body(_)), is_asked, "{length:?}");
        assert!(is_asked || goes_on_as_it_is(&verdict), "{length:?}");
    }
    for method in ["GET", "DELETE"] {
        let asked = Asked { ends: false, ..Asked::with(&[(":method", method)]) };
        assert!(goes_on_as_it_is(&settled(asked.of(&bed.traffic)).await), "{method}");
    }
    let ends = Asked { ends: true, ..Asked::with(&[]) };
    assert!(goes_on_as_it_is(&settled(ends.of(&bed.traffic)).await));
    // Whoever has none to expect.
    bed.tokens.gives("anna", Has::Token);
    assert!(goes_on_as_it_is(&bed.headers("anna", &[]).await));
}

/// Whoever has a token: what could hide a state of ours does not go on.
#[tokio::test]
async fn what_could_hide_a_state_does_not_go_on() {
    let bed = Bed::new();
    let state = bed.state(&call("")).await;
    bed.tokens.gives("anna", Has::Marked);
    let body = again(&state, "accept");
    let twice = call(&format!(r#","requestState":"{state}","requestState":"theirs""#));
    for (body, label) in [
        (whole(&twice), "bad_body"),
        (whole(&format!("[{body}]")), "bad_body"),
        (whole(&format!("{body}x")), "bad_body"),
        (whole(&body.replace("\"id\":7", "\"id\":null")), "bad_body"),
        (cut(&body[..body.len() - 1]), "bad_request_state"),
        (Body::Late, "bad_body"),
        (whole(""), "bad_body"),
    ] {
        let shown = format!("{body:?}");
        match bed.post("anna", &[], body).await {
            Verdict::Reply(reply) => assert_eq!((reply.status, reply.label), (400, label), "{shown}"),
            other => panic!("{}: {shown}", name(&other)),
        }
    }
    assert!(bed.metric("envoy_cimd_handed_out_total 0"));
}

/// Bodies that are waited for, of people who have a token.
#[tokio::test]
async fn uploads_of_one_user_are_bounded() {
    let bed = Bed::new();
    bed.tokens.gives("anna", Has::Marked);
    let mut waiting = Vec::new();
    for _ in 0..100 {
        let Verdict::Body(body) = bed.headers("anna", &[]).await else { panic!("it takes the body") };
        assert_eq!(body.longest, Duration::from_secs(60), "a slow upload is theirs to make");
        waiting.push(body);
    }
    let Verdict::Reply(reply) = bed.headers("anna", &[]).await else { panic!("one too many") };
    assert_eq!((reply.status, reply.label), (503, "too_many_calls"));
    assert_eq!(header(&reply, "cache-control"), Some("no-store"));
    bed.tokens.gives("bert", Has::Token);
    assert!(matches!(bed.headers("bert", &[]).await, Verdict::Forward(_)));
    waiting.pop();
    assert!(matches!(bed.headers("anna", &[]).await, Verdict::Body(_)));
}

/// The routes are told apart.
#[tokio::test]
async fn a_state_of_another_route() {
    let bed = Bed::new();
    let state = bed.state(&call("")).await;
    let other = Asked {
        attributes: vec![(Key::From, "https://mcp.example.com/github"), (Key::To, TO)],
        ends: false,
        ..Asked::with(&[(":path", "/github")])
    };
    for has in [Has::Nothing(Missing::Lost), Has::Marked] {
        bed.tokens.gives("anna", has);
        let Verdict::Body(AwaitedBody { then, .. }) = settled(other.of(&bed.traffic)).await else { panic!("a body") };
        let Verdict::Reply(reply) = settled(then(whole(&again(&state, "accept")))).await else { panic!("a reply") };
        assert!(is_bad_state(&reply));
    }
    assert_eq!(bed.waits(), 0);
}
