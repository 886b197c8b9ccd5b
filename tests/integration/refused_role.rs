//! What becomes of an upstream's refusal, asked of the role itself: what is reported, and what the caller reads.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use envoy_cimd::{
    contract::{
        choreographer::{Begin, Begun, Choreographer, Complete},
        connection::Connection,
        error::{BeginError, CallError, Incomplete},
        tokens::{
            self, AccessToken, Missing, RefusedStatus, Renewal, TokenError, TokenOwner, TokenTag, UpstreamTokens,
        },
    },
    filter::{
        endpoint::{self, Endpoints},
        refused::Refused,
        reply::Reply,
        request::{Request, Sources},
        response::Response,
        state::StateKeys,
        traffic,
        verdict::{Role, Verdict},
    },
    model::{
        client::ClientId,
        route::{Field, Key, Keyed},
        route_table::RouteTable,
        scope::Scope,
        secret::Key as SecretKey,
        shares::ShareLimits,
        trace::Trace,
        upstream::Upstream,
        user::{Claims, UserSource, Users},
    },
};
use futures_util::future::join_all;
use serde_json::Value;
use tokio::sync::Semaphore;

use crate::traffic_role::{FROM, LINK, TAG, TO, settled};

const BEARER: &str = r#"Bearer resource_metadata="https://upstream.example/m", scope="read write""#;
const SCOPE: &str = r#"Bearer error="insufficient_scope", scope="write admin", error_description="SECRET""#;

/// Takes reports, and answers what a test wants.
struct Fake {
    reports: Mutex<Vec<(TokenOwner, tokens::Refused)>>,
    answer: Mutex<Result<Renewal, TokenError>>,
    gate: Semaphore,
}

#[async_trait]
impl UpstreamTokens for Fake {
    async fn upstream_token(&self, _: TokenOwner, _: &Trace) -> Result<AccessToken, TokenError> {
        panic!("nobody asks for a token here")
    }

    async fn awaited_token(&self, _: TokenOwner, _: Duration, _: &Trace) -> Result<AccessToken, TokenError> {
        panic!("nobody waits here")
    }

    async fn expect_again(&self, _: TokenOwner, _: &Trace) -> Result<(), TokenError> {
        panic!("nobody comes again here")
    }

    async fn refused(&self, owner: TokenOwner, refused: tokens::Refused, _: &Trace) -> Result<Renewal, TokenError> {
        self.reports.lock().expect("no panic").push((owner, refused));
        self.gate.acquire().await.expect("open").forget();
        self.answer.lock().expect("no panic").clone()
    }

    async fn disconnect(&self, _: TokenOwner, _: &Trace) -> Result<(), TokenError> {
        panic!("nobody disconnects")
    }
}

struct Unasked;

#[async_trait]
impl Choreographer for Unasked {
    async fn describe(&self, _: ClientId, _: Upstream, _: &Trace) -> Result<Option<String>, CallError> {
        panic!("nobody looks")
    }

    async fn connection(&self, _: TokenOwner, _: Option<Scope>, _: &Trace) -> Result<Connection, CallError> {
        panic!("nobody looks")
    }

    async fn begin(&self, _: Begin, _: &Trace) -> Result<Begun, BeginError> {
        panic!("nobody begins")
    }

    async fn complete(&self, _: Complete, _: &Trace) -> Result<String, Incomplete> {
        panic!("nobody completes")
    }

    async fn disconnect(&self, _: TokenOwner, _: &Trace) -> Result<(), CallError> {
        panic!("nobody disconnects")
    }
}

struct Gateway {
    endpoints: Endpoints,
    role: Refused,
    tokens: Arc<Fake>,
}

impl Gateway {
    fn new(answer: Result<Renewal, TokenError>) -> Self {
        let gateway = Self::closed(answer);
        gateway.tokens.gate.add_permits(1000);
        gateway
    }

    /// One where no report is answered yet.
    fn closed(answer: Result<Renewal, TokenError>) -> Self {
        let path = |text: &str| text.parse().expect("a path");
        let source = UserSource { namespace: "n".to_owned(), issuer: path("iss"), subject: path("sub"), display: None };
        let config = endpoint::Config { users: Users::From(source), ..endpoint::Config::default() };
        let keys = StateKeys::new(vec![SecretKey::new([1; 32])]);
        let endpoints =
            Endpoints::new(config, RouteTable::default(), keys, Arc::new(Unasked), Arc::default(), Default::default());
        let tokens = Arc::new(Fake { reports: Mutex::default(), answer: Mutex::new(answer), gate: Semaphore::new(0) });
        let limits = ShareLimits { in_all: 3, of_user: 2, of_server: 3 };
        let role = Refused::new(traffic::Config::default(), &endpoints, Arc::clone(&tokens) as _, limits);
        Self { endpoints, role, tokens }
    }

    async fn reply(&self, answered: &Answered<'_>) -> Reply {
        match settled(answered.of(&self.role)).await {
            Verdict::Reply(reply) => reply,
            _ => panic!("it is answered"),
        }
    }

    fn reports(&self) -> Vec<(TokenOwner, tokens::Refused)> {
        self.tokens.reports.lock().expect("no panic").clone()
    }

    fn counted(&self, outcome: &str) -> bool {
        let line = format!("envoy_cimd_requests_total{{endpoint=\"refused\",outcome=\"{outcome}\"}} 1");
        self.endpoints.metrics.text().lines().any(|other| other == line)
    }
}

/// An answer.
#[derive(Clone)]
struct Answered<'a> {
    status: u16,
    challenges: Vec<&'a str>,
    details: Option<&'a str>,
    tag: Option<TokenTag>,
    headers: Vec<(&'a str, &'a str)>,
    attributes: Vec<(Key, &'a str)>,
    subject: Option<&'a str>,
}

impl<'a> Answered<'a> {
    fn with(status: u16, challenge: &'a str) -> Self {
        Self {
            status,
            challenges: vec![challenge],
            details: Some("via_upstream"),
            tag: Some(TAG),
            headers: vec![(":method", "POST"), ("x-request-id", "the-request")],
            attributes: vec![(Key::From, FROM), (Key::To, TO)],
            subject: Some("anna"),
        }
    }

    fn of(&self, role: &Refused) -> Verdict {
        let mut request = Request::default();
        for (name, value) in &self.headers {
            request.push(name.as_bytes(), value.as_bytes());
        }
        let response = Response {
            status: Some(self.status),
            challenges: self.challenges.iter().map(|challenge| challenge.as_bytes()).collect(),
            details: self.details,
            tag: self.tag,
            request,
        };
        let text = |key| self.attributes.iter().find(|(other, _)| *other == key).map(|(_, text)| Field::Text(text));
        let user = Some(Claims { issuer: Some("i"), subject: self.subject });
        let sources = Sources { attributes: Keyed::new(text), user, ..Sources::default() };
        role.judge(&response, &sources)
    }
}

fn header<'a>(reply: &'a Reply, name: &str) -> Vec<&'a str> {
    let values = reply.headers.iter().filter(|(other, _)| *other == name);
    values.map(|(_, value)| std::str::from_utf8(value).expect("text")).collect()
}

/// Each answer of the exchange, with what the caller reads.
#[tokio::test]
async fn what_the_caller_reads() {
    let unavailable = || Err(TokenError::Unavailable("SECRET cause".into()));
    let lost = "This MCP server wants you to connect again.";
    let more = "This MCP server wants you to allow more than you did when you connected.";
    for (answered, came, label, code, message, has_link) in [
        (
            Answered::with(401, BEARER),
            Ok(Renewal::Renewed),
            "token_renewed",
            -31001,
            "This MCP server did not take your access any more. It was renewed: try again.",
            false,
        ),
        (
            Answered::with(401, BEARER),
            Ok(Renewal::TooSoon),
            "refused_again",
            -31001,
            "This MCP server does not take your access, though it was renewed a short while ago. Try again in a few minutes.",
            false,
        ),
        (Answered::with(401, BEARER), Ok(Renewal::Connect), "token_lost", -31000, lost, true),
        (Answered::with(401, BEARER), Err(TokenError::NotFound(Missing::Lost)), "token_lost", -31000, lost, true),
        (Answered::with(401, BEARER), Err(TokenError::NotFound(Missing::Never)), "token_lost", -31000, lost, true),
        (Answered::with(403, SCOPE), Ok(Renewal::Connect), "more_scope", -31000, more, true),
        (
            Answered::with(403, SCOPE),
            Ok(Renewal::NoMore),
            "no_more_scope",
            -31001,
            "This MCP server wants you to allow more than can be asked for here.",
            false,
        ),
        (
            Answered::with(403, SCOPE),
            unavailable(),
            "token_unavailable",
            -31001,
            "It cannot be said at the moment whether you are connected. Try again in a moment.",
            false,
        ),
    ] {
        let gateway = Gateway::new(came);
        let reply = gateway.reply(&answered).await;
        assert_eq!((reply.status, reply.label), (502, label));
        let message = match has_link {
            true => format!("{message} Open {LINK} in your browser, and try again after that."),
            false => message.to_owned(),
        };
        let expected = serde_json::json!({"jsonrpc": "2.0", "id": null, "error": {"code": code, "message": message}});
        assert_eq!(serde_json::from_slice::<Value>(&reply.body).expect("JSON"), expected);
        assert_eq!(header(&reply, "cache-control"), ["no-store"]);
        assert_eq!(header(&reply, "content-type"), ["application/json"]);
        assert_eq!(header(&reply, "x-request-id"), ["the-request"]);
        assert!(header(&reply, "www-authenticate").is_empty());
        assert!(gateway.counted(label) && gateway.reports().len() == 1, "{label}");
        // A person's browser goes where the link leads, and nowhere else.
        let opened = Answered {
            headers: vec![(":method", "GET"), ("accept", "text/html"), ("sec-fetch-mode", "navigate")],
            ..answered
        };
        let reply = gateway.reply(&opened).await;
        let location = if has_link { vec![LINK] } else { vec![] };
        assert_eq!((reply.status == 303, header(&reply, "location")), (has_link, location), "{label}");
        assert_eq!(header(&reply, "cache-control"), ["no-store"]);
    }
}

/// The report is the owner's and the upstream's words, none of them too long; the operator's scope goes along.
#[tokio::test]
async fn what_is_reported() {
    let (long, longer) = ("x".repeat(4096), "x".repeat(4097));
    let [long, longer] = [long, longer].map(|scope| format!(r#"Bearer error="insufficient_scope", scope="{scope}""#));
    let far = format!(r#"Bearer resource_metadata="https://upstream.example/{}", scope="a""#, "x".repeat(2048));
    let metadata = Some("https://upstream.example/m".to_owned());
    for (answered, status, scope, resource_metadata) in [
        (Answered::with(401, BEARER), RefusedStatus::Unauthorized, Some("read write".to_owned()), metadata),
        (Answered::with(401, "Bearer"), RefusedStatus::Unauthorized, None, None),
        (Answered::with(401, SCOPE), RefusedStatus::Unauthorized, Some("write admin".to_owned()), None),
        (Answered::with(401, &far), RefusedStatus::Unauthorized, Some("a".to_owned()), None),
        (Answered::with(403, SCOPE), RefusedStatus::InsufficientScope, Some("write admin".to_owned()), None),
        (Answered::with(403, &long), RefusedStatus::InsufficientScope, Some("x".repeat(4096)), None),
        (Answered::with(403, &longer), RefusedStatus::InsufficientScope, None, None),
    ] {
        let gateway = Gateway::new(Ok(Renewal::Renewed));
        gateway.reply(&answered).await;
        let [(owner, refused)] = &gateway.reports()[..] else { panic!("one report") };
        assert_eq!(owner.client_id.as_str(), "https://mcp.example.com/linear/.well-known/mcp-client-metadata.json");
        assert!(format!("{:?}", owner.user).contains("anna"), "{owner:?}");
        assert_eq!(owner.upstream.url, TO);
        let expected = tokens::Refused { tag: TAG, status, scope, resource_metadata, route_scope: None };
        assert_eq!(*refused, expected);
    }
    let gateway = Gateway::new(Ok(Renewal::Renewed));
    let mut answered = Answered::with(403, SCOPE);
    answered.attributes.push((Key::Scope, "read write"));
    gateway.reply(&answered).await;
    let scope = gateway.reports()[0].1.route_scope.as_ref().map(ToString::to_string);
    assert_eq!(scope.as_deref(), Some("read write"));
}

/// What is nobody's token's fault, or nobody's to say so, is reported of nobody, and answered in our words.
#[tokio::test]
async fn what_is_not_reported() {
    let of = |status, challenge| Answered::with(status, challenge);
    let bad_scope = vec![(Key::From, FROM), (Key::To, TO), (Key::Scope, "\"")];
    for answered in [
        of(401, "Basic"),
        Answered { challenges: vec![], ..of(401, "") },
        of(403, "Bearer"),
        of(403, r#"Bearer error="invalid_token""#),
        Answered { challenges: vec![], ..of(403, "") },
        Answered { tag: None, ..of(401, BEARER) },
        Answered { tag: None, ..of(403, SCOPE) },
        Answered { subject: None, ..of(401, BEARER) },
        Answered { attributes: vec![], ..of(401, BEARER) },
        Answered { attributes: vec![(Key::From, FROM)], ..of(401, BEARER) },
        Answered { attributes: bad_scope, ..of(403, SCOPE) },
    ] {
        let gateway = Gateway::new(Ok(Renewal::Renewed));
        let reply = gateway.reply(&answered).await;
        assert_eq!((reply.status, reply.label), (502, "upstream_refused"));
        let body: Value = serde_json::from_slice(&reply.body).expect("JSON");
        assert_eq!(body["error"]["message"], "This MCP server refused the request.");
        assert!(gateway.reports().is_empty() && gateway.counted("upstream_refused"));
    }
}

/// Envoy's own answers are none of ours; an upstream's others lose their challenge, and nothing else.
#[tokio::test]
async fn what_passes() {
    let gateway = Gateway::new(Ok(Renewal::Renewed));
    for details in [
        None,
        Some(""),
        Some("via_upstream "),
        Some("jwt_authn_access_denied{Jwt_is_missing}"),
        Some("direct_response"),
    ] {
        for status in [200, 401, 403] {
            let verdict = Answered { details, ..Answered::with(status, BEARER) }.of(&gateway.role);
            assert!(matches!(verdict, Verdict::Pass), "{details:?} {status}");
        }
    }
    for status in [200, 400, 402, 404, 407, 500] {
        let Verdict::Forward(edits) = Answered::with(status, BEARER).of(&gateway.role) else { panic!("{status}") };
        assert_eq!((edits.remove, edits.set.len(), edits.tag.is_none()), (&["www-authenticate"][..], 0, true));
    }
    // It is not there for requests.
    let verdict = gateway.role.answer(&Request::default(), &Sources::default(), true);
    assert!(matches!(verdict, Verdict::Pass));
    assert!(gateway.reports().is_empty());
}

/// Hundreds with one token make one report; those who have something else to say make their own, as many as may be.
#[tokio::test]
async fn one_report_for_all_who_say_the_same() {
    let gateway = Gateway::closed(Ok(Renewal::Renewed));
    let same: Vec<Verdict> = (0..200).map(|_| Answered::with(401, BEARER).of(&gateway.role)).collect();
    let another = Answered { tag: Some(TokenTag([8; 16])), ..Answered::with(401, BEARER) };
    let other = another.of(&gateway.role);
    // Both shares of this person are taken; who waits for one of them takes none.
    let third = Answered::with(403, SCOPE);
    let reply = gateway.reply(&third).await;
    assert_eq!((reply.status, reply.label), (503, "too_many_calls"));
    assert!(matches!(Answered::with(401, BEARER).of(&gateway.role), Verdict::Later(_)));
    let somebody = Answered { subject: Some("ben"), ..third.clone() }.of(&gateway.role);
    gateway.tokens.gate.add_permits(10);
    let replies = join_all(same.into_iter().chain([other, somebody]).map(settled)).await;
    assert!(replies.iter().all(|verdict| matches!(verdict, Verdict::Reply(reply) if reply.label == "token_renewed")));
    assert_eq!(gateway.reports().len(), 3);
    // What was answered is not kept: the next one is a report of its own, and there is a share for it.
    gateway.reply(&Answered::with(401, BEARER)).await;
    gateway.reply(&third).await;
    assert_eq!(gateway.reports().len(), 5);
}

/// A report goes on when those who wait for it leave.
#[tokio::test]
async fn a_report_outlives_who_made_it() {
    let gateway = Gateway::closed(Ok(Renewal::Renewed));
    drop(Answered::with(401, BEARER).of(&gateway.role));
    gateway.tokens.gate.add_permits(1);
    gateway.endpoints.calls.close();
    gateway.endpoints.calls.wait().await;
    assert_eq!(gateway.reports().len(), 1);
    assert_eq!(gateway.tokens.gate.available_permits(), 0, "it was answered");
}
