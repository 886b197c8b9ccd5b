//! What the choreographer refuses is the same for the caller, whether it is in this process or called over gRPC.

use std::sync::Arc;

use async_trait::async_trait;
use envoy_cimd::{
    contract::{
        choreographer::{Begin, Begun, Choreographer, Complete},
        client::Client,
        connection::Connection,
        error::{BeginError, CallError, Cause, CompleteError, Incomplete},
        proto::authorization_choreographer_server::AuthorizationChoreographerServer,
        service::Service,
        tokens::TokenOwner,
    },
    filter::{
        browser::BrowserCookie,
        endpoint::{Config, Endpoints},
        reply::Reply,
        request::{Request, Sources},
        state::StateKeys,
        verdict::Verdict,
    },
    model::{
        client::{ClientId, RedirectUri},
        clock::UnixTime,
        flow::FlowId,
        route::{Field, Key, Keyed},
        route_table::RouteTable,
        scope::Scope,
        secret::{Key as SecretKey, Secret},
        trace::Trace,
        upstream::Upstream,
        user::{Claims, Users},
    },
    net::{
        callee::CHOREOGRAPHER,
        dial::{self, Plain},
        tls::client,
    },
};
use tokio::net::UnixListener;

use crate::{
    stack::in_process::serve,
    world::{CALLBACK, DISCONNECT, START},
};

const FROM: &str = "https://mcp.example.com";
const FLOW: FlowId = FlowId([7; 16]);
const COOKIE: &str = "a-cookie";

/// A choreographer that refuses everything, in one way.
struct Refusing {
    describe: CallError,
    begin: BeginError,
    complete: Incomplete,
    disconnect: CallError,
}

#[async_trait]
impl Choreographer for Refusing {
    async fn describe(&self, _: ClientId, _: Upstream, _: &Trace) -> Result<Option<String>, CallError> {
        Err(self.describe.clone())
    }

    async fn connection(&self, _: TokenOwner, _: Option<Scope>, _: &Trace) -> Result<Connection, CallError> {
        Err(self.describe.clone())
    }

    async fn begin(&self, _: Begin, _: &Trace) -> Result<Begun, BeginError> {
        Err(self.begin.clone())
    }

    async fn complete(&self, _: Complete, _: &Trace) -> Result<String, Incomplete> {
        Err(self.complete.clone())
    }

    async fn disconnect(&self, _: TokenOwner, _: &Trace) -> Result<(), CallError> {
        Err(self.disconnect.clone())
    }
}

fn endpoints(choreographer: Arc<dyn Choreographer>) -> Endpoints {
    endpoints_of(Config { users: Users::Single, ..Config::default() }, choreographer)
}

pub fn endpoints_of(config: Config, choreographer: Arc<dyn Choreographer>) -> Endpoints {
    let keys = StateKeys::new(vec![SecretKey::new([1; 32])]);
    Endpoints::new(config, RouteTable::default(), keys, choreographer, Arc::default(), Default::default())
}

async fn answer(endpoints: &Endpoints, headers: &[(&str, &str)]) -> Reply {
    reply(ask(endpoints, headers, None)).await
}

/// The reply that a verdict ends with.
pub async fn reply(mut verdict: Verdict) -> Reply {
    loop {
        match verdict {
            Verdict::Later(call) => verdict = call.await,
            Verdict::Reply(reply) => return reply,
            Verdict::SameReply(reply) => return Reply::clone(&reply),
            Verdict::Pass | Verdict::Forward(_) | Verdict::Body(_) => panic!("it is ours"),
        }
    }
}

/// What becomes of a request for a route, of this issuer's subject.
pub fn ask(endpoints: &Endpoints, headers: &[(&str, &str)], user: Option<(&str, &str)>) -> Verdict {
    let mut request = Request::default();
    let fixed = [(":authority", "mcp.example.com"), (":scheme", "https"), ("x-request-id", "the-request")];
    for (name, value) in fixed.iter().chain(headers) {
        request.push(name.as_bytes(), value.as_bytes());
    }
    let attributes = Keyed::new(|key| match key {
        Key::From => Some(Field::Text(FROM)),
        Key::To => Some(Field::Text("https://upstream.example/mcp")),
        _ => None,
    });
    let user = user.map(|(issuer, subject)| Claims { issuer: Some(issuer), subject: Some(subject) });
    endpoints.answer(&request, &Sources { attributes, user, ..Sources::default() })
}

/// Both ways give the same answer, with this status and label, for a person and for a program.
async fn refused_alike(refusing: Refusing, method: &str, path: &str, expected: (u16, &str)) {
    let here: Arc<dyn Choreographer> = Arc::new(refusing);
    let dir = tempfile::tempdir().expect("a folder");
    let socket = dir.path().join("choreographer.sock");
    let listener = UnixListener::bind(&socket).expect("a socket");
    let service = AuthorizationChoreographerServer::new(Service::new(Arc::clone(&here), Default::default()));
    let server = tokio::spawn(serve(listener, service));
    let url = format!("unix:{}", socket.display()).parse().expect("a URL");
    let connection = dial::connect(&CHOREOGRAPHER, Some(&url), &client::Config::default(), Plain::OnLoopback).await;
    let connection = connection.expect("good settings").expect("an address is given");
    let there = Arc::new(Client::new(connection.channel));
    let (here, there) = (endpoints(here), endpoints(there));
    let cookie = format!("__Host-envoy_cimd_{}={COOKIE}", FLOW.tag());
    for accept in ["*/*", "text/html"] {
        let headers = [
            (":method", method),
            (":path", path),
            ("accept", accept),
            ("cookie", cookie.as_str()),
            ("sec-fetch-site", "same-origin"),
        ];
        let (one, other) = (answer(&here, &headers).await, answer(&there, &headers).await);
        assert_eq!((one.status, one.label), expected);
        assert_eq!(one, other, "{path} {accept}");
    }
    server.abort();
}

fn refusing() -> Refusing {
    Refusing {
        describe: CallError::Failed(CAUSE),
        begin: BeginError::Call(CallError::Failed(CAUSE)),
        complete: CallError::Failed(CAUSE).into(),
        disconnect: CallError::Failed(CAUSE),
    }
}

const CAUSE: Cause = Cause::Borrowed("a cause");

const CALLS: [(CallError, (u16, &str)); 3] = [
    (CallError::Unavailable(CAUSE), (503, "choreographer_unavailable")),
    (CallError::Failed(CAUSE), (502, "choreographer_failed")),
    (CallError::Timeout(CAUSE), (504, "timeout")),
];

#[tokio::test]
async fn a_begin_that_is_refused() {
    let own = [
        (BeginError::AuthorizationServerUnusable(CAUSE), (502, "authorization_server_unusable")),
        (BeginError::TooManyFlows(CAUSE), (503, "too_many_flows")),
    ];
    let all = own.into_iter().chain(CALLS.map(|(error, expected)| (error.into(), expected)));
    for (begin, expected) in all {
        refused_alike(Refusing { begin, ..refusing() }, "POST", START, expected).await;
    }
}

#[tokio::test]
async fn a_completion_that_is_refused() {
    let state = endpoints(Arc::new(refusing())).tools.state_keys.load().mint(
        FLOW,
        &RedirectUri::new(format!("{FROM}{CALLBACK}")),
        &BrowserCookie::from(Secret::new(COOKIE)),
        UnixTime::now(),
        UnixTime::MAX,
    );
    let path = format!("{CALLBACK}?code=c&state={}", state.expect("a key"));
    let own = [
        (CompleteError::WrongContext, (400, "wrong_context")),
        (CompleteError::UnknownFlow, (400, "unknown_flow")),
        (CompleteError::IssuerMismatch(CAUSE), (400, "issuer_mismatch")),
        (CompleteError::AuthorizationError("access_denied".into()), (400, "as_error")),
        (CompleteError::AlreadyUsed { return_to: "/back".to_owned() }, (409, "already_used")),
        (CompleteError::ExchangeFailed(CAUSE), (502, "exchange_failed")),
    ];
    let all = own.into_iter().chain(CALLS.map(|(error, expected)| (error.into(), expected)));
    for (error, expected) in all {
        // Where they wanted to go is said of whom it is known that they began.
        let is_known = !["wrong_context", "unknown_flow", "already_used"].contains(&expected.1);
        for return_to in [None, Some("/back?a=b&c".to_owned()).filter(|_| is_known)] {
            let complete = Incomplete { error: error.clone(), return_to };
            refused_alike(Refusing { complete, ..refusing() }, "GET", &path, expected).await;
        }
    }
}

#[tokio::test]
async fn a_disconnect_that_is_refused() {
    for (disconnect, expected) in CALLS {
        refused_alike(Refusing { disconnect, ..refusing() }, "POST", DISCONNECT, expected).await;
    }
}

/// The page does without what cannot be had.
#[tokio::test]
async fn a_look_up_that_fails() {
    for (describe, _) in CALLS {
        refused_alike(Refusing { describe, ..refusing() }, "GET", START, (200, "shown")).await;
    }
}
