//! Upstreams that refuse a token, through a real Envoy: what the caller reads, what is asked of the authorization server,
//! and what passes as it is.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    body::Body,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::{future::join_all, stream};
use http::Version;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{sync::Semaphore, time::sleep};

use self::tags::{tags_file, with_tags};
use crate::{
    authorization_server::{HOST, Lie, Refresh, Servers},
    flow::{WHO, person, press_shown, with_people},
    gateway::{self, Ask, Payload, VERSIONS},
    stack::{Answered, Call, Certificates, get},
    world::{CALLBACK, START, Wish, World, without_metadata},
};

mod tags;
mod untouched;

const NOTES: &str = "notes.localhost";
const LINK: &str = "https://notes.localhost/.pomerium/oauth/start";

/// Whose pages may call besides the route's own.
const PAGES: &str = "--allow-origin=https://inspector.example";
const FAILED: &str = "SECRET-of-the-upstream";

pub struct Bed {
    pub world: World,
    pub servers: Servers,
    dir: TempDir,
}

/// A challenge as an upstream would give it, with an address that is for nobody to see.
pub fn challenge(rest: &str) -> String {
    format!("Bearer realm=\"{FAILED}\", resource_metadata=\"http://127.0.0.1:1/{FAILED}\"{rest}")
}

pub fn says(status: u16, challenge: String) -> Response {
    let status = StatusCode::from_u16(status).expect("a status");
    (status, [(header::WWW_AUTHENTICATE, challenge)], FAILED).into_response()
}

impl Bed {
    async fn start() -> Self {
        Self::with(Lie::none("notes"), &[], &|_| {}).await
    }

    pub async fn with(lie: Lie, cimd: &[&str], edit: &(dyn Fn(&mut Value) + Sync)) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let certificates = Certificates::make(dir.path(), &[HOST]);
        let servers = Servers::start(&certificates, vec![lie, Lie::none("a")]).await;
        let routes = [("https://notes.localhost", lie.name), ("https://other.localhost/a", "a")]
            .map(|(from, name)| format!("from={from},to={}", servers.upstream_of(name)));
        let [ca, socket, state] = [
            certificates.ca.display().to_string(),
            format!("unix:{}", dir.path().join("cimd.sock").display()),
            dir.path().join("state").display().to_string(),
        ];
        let mut flags = ["--listen", &socket, "--extra-ca", &ca, "--allow-host", HOST, "--state-dir", &state].to_vec();
        // All that the libraries below can say, so that the scan for secrets at the end means something.
        if !cimd.iter().any(|flag| flag.starts_with("--log=")) {
            flags.push("--log=trace");
        }
        flags.extend(WHO);
        flags.push(PAGES);
        let file = dir.path().join("config.yaml");
        let entries: Vec<Value> = [("https://notes.localhost", lie.name), ("https://other.localhost/a", "a")]
            .map(|(from, name)| json!({"from": from, "to": servers.upstream_of(name)}))
            .to_vec();
        std::fs::write(&file, json!({ "routes": entries }).to_string()).expect("written");
        let file = file.display().to_string();
        flags.extend(cimd.iter().map(|flag| if *flag == FILE { file.as_str() } else { flag }));
        let tags = tags_file(&dir).display().to_string();
        let edited = |config: &mut Value| {
            with_people(config);
            with_tags(config, &tags);
            edit(config);
        };
        let routes = routes.each_ref().map(String::as_str);
        let envoy_config = [WHO[0], PAGES];
        let world =
            World::start(Wish { routes: &routes, cimd: &flags, envoy_config: &envoy_config, edit: &edited }).await;
        Self { world, servers, dir }
    }

    pub async fn send(&self, who: &str, call: Call) -> Answered {
        self.world.https().send(Version::HTTP_2, person(call, "i", who)).await.expect("an answer")
    }

    /// Connects somebody to the route of a path on a host, and gives the scope that was asked for.
    pub async fn connect(&self, who: &str, host: &str, path: &str, name: &str) -> String {
        let issuer = format!("{}/{name}", self.servers.issuer);
        let mut press = press_shown(host, "", &issuer);
        press.path = format!("{path}{}", press.path);
        let begun = self.send(who, press).await;
        let [location] = begun.all("location")[..] else { panic!("{begun:?}") };
        let code = self.servers.consent(location);
        let location = url::Url::parse(location).expect("a URL");
        let state = location.query_pairs().find(|(name, _)| name == "state").expect("a state").1.into_owned();
        let [cookie] = begun.all("set-cookie")[..] else { panic!("{begun:?}") };
        let cookie = cookie.split(';').next().expect("a pair");
        let callback = Call::get(host, &format!("{path}{CALLBACK}?code={code}&state={state}&iss={issuer}"));
        let completed = self.send(who, callback.header("cookie", cookie)).await;
        assert_eq!(completed.status, 303, "{completed:?}");
        location
            .query_pairs()
            .find(|(name, _)| name == "scope")
            .map(|(_, scope)| scope.into_owned())
            .unwrap_or_default()
    }

    /// One whose person `ann` is connected, and has made a call.
    pub async fn connected() -> Self {
        Self::start().await.with_ann().await
    }

    async fn with_ann(self) -> Self {
        self.connect("ann", NOTES, "", "notes").await;
        assert_eq!(self.call("ann", &[]).await.status, 200);
        self
    }

    pub async fn call(&self, who: &str, headers: &[(&'static str, &str)]) -> Answered {
        let mut call = mcp(NOTES, "/notes/mcp");
        for (name, value) in headers {
            call = call.header(name, *value);
        }
        self.send(who, call).await
    }

    /// The upstream refuses this token from now on, and takes any other.
    fn refuse(&self, token: &'static str, how: impl Fn() -> Response + Send + Sync + 'static) {
        self.servers.behave("notes", move |authorization| {
            let refusal = (authorization == format!("Bearer {token}")).then(&how);
            async { refusal }
        });
    }

    /// The upstream answers so, whatever the token.
    pub fn answers(&self, how: impl Fn() -> Response + Send + Sync + 'static) {
        self.servers.behave("notes", move |_| {
            let answer = how();
            async { Some(answer) }
        });
    }

    async fn counted(&self, outcome: &str) -> u64 {
        let name = format!("envoy_cimd_requests_total{{endpoint=\"refused\",outcome=\"{outcome}\"}}");
        self.world.metric(&name).await.expect("a metric")
    }

    /// How many streams Envoy has opened.
    async fn streams(&self) -> u64 {
        let (_, text) =
            get(self.world.envoy.admin, "/stats?filter=^cluster.envoy-cimd.upstream_rq_total").await.expect("stats");
        let text = String::from_utf8(text.to_vec()).expect("text");
        text.trim().rsplit(' ').next().and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{text}"))
    }

    /// The tags of the calls that there were, one a line, as Envoy knows them.
    fn tags(&self) -> Vec<String> {
        let lines = std::fs::read_to_string(tags_file(&self.dir)).unwrap_or_default();
        lines.lines().map(str::to_owned).collect()
    }

    /// Nothing of what is secret was written down.
    pub async fn finish(mut self) {
        self.world.cimd.process.stop().await;
        let (tags, output) = (self.tags(), self.world.cimd.process.output());
        assert!(output.contains("\"message\":\"ready\""), "there is a log");
        for secret in ["SECRET"].into_iter().chain(tags.iter().map(String::as_str).filter(|tag| tag.len() > 5)) {
            assert!(!output.contains(secret), "{secret} in {output}");
        }
    }
}

/// Stands for the configuration file among flags.
const FILE: &str = "FILE";

fn mcp(host: &str, path: &str) -> Call {
    Call::get(host, path)
        .method("POST")
        .header("content-type", "application/json")
        .header("x-request-id", "the-request")
        .body(json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}).to_string())
}

/// The text of a refusal, which has all that each of them has, and nothing of the upstream's.
fn refused(answer: &Answered) -> String {
    assert_eq!(answer.status, 502, "{answer:?}");
    assert_eq!(answer.all("content-type"), ["application/json"]);
    assert_eq!(answer.all("cache-control"), ["no-store"]);
    assert_eq!(answer.all("x-request-id").len(), 1, "{answer:?}");
    assert_untold(answer);
    let body: Value = serde_json::from_slice(&answer.body).expect("JSON");
    let message = body["error"]["message"].as_str().expect("a message").to_owned();
    let code = body["error"]["code"].as_i64().expect("a code");
    assert_eq!(body, json!({"jsonrpc": "2.0", "id": null, "error": {"code": code, "message": message}}));
    message
}

/// How an upstream answers.
type How = fn() -> Response;

/// Nothing of the upstream's own words is in an answer.
fn assert_untold(answer: &Answered) {
    assert!(answer.all("www-authenticate").is_empty(), "{answer:?}");
    assert!(!format!("{answer:?}").contains(FAILED), "{answer:?}");
}

const AGAIN: &str = "This MCP server did not take your access any more. It was renewed: try again.";

#[tokio::test]
async fn a_token_revoked_behind_our_back_costs_one_call() {
    let bed = Bed::connected().await;
    bed.refuse("SECRET-access-of-SECRET-code-0", || says(401, challenge(", error=\"invalid_token\"")));
    assert_eq!(refused(&bed.call("ann", &[]).await), AGAIN);
    assert_eq!((bed.servers.refreshes().len(), bed.servers.calls()), (1, 2));
    let answer = bed.call("ann", &[]).await;
    assert!(answer.status == 200 && answer.text().contains("Bearer SECRET-access-1"), "{answer:?}");
    assert_eq!((bed.servers.refreshes().len(), bed.servers.calls()), (1, 3), "no call twice");
    assert_eq!(bed.counted("token_renewed").await, 1);
    bed.finish().await;
}

/// Whose access is over for good is led to where they get another: in a browser at once.
#[tokio::test]
async fn a_refused_refresh_leads_to_the_link() {
    let bed = Bed::connected().await;
    bed.connect("bob", NOTES, "", "notes").await;
    bed.answers(|| says(401, challenge("")));
    bed.servers.forget_grants();
    let told =
        format!("This MCP server wants you to connect again. Open {LINK} in your browser, and try again after that.");
    assert_eq!(refused(&bed.call("ann", &[]).await), told);
    // The upstream of a GET refuses whatever comes.
    let opened = Call::get(NOTES, "/notes/mcp").header("accept", "text/html").header("sec-fetch-mode", "navigate");
    let answer = bed.send("bob", opened).await;
    assert_eq!((answer.status, answer.all("location")), (303, vec![LINK]), "{answer:?}");
    assert_eq!(answer.all("cache-control"), ["no-store"]);
    assert_untold(&answer);
    assert_eq!(bed.servers.refreshes().len(), 2, "one for each person");
    let calls = bed.servers.calls();
    for who in ["ann", "bob"] {
        let answer = bed.call(who, &[]).await;
        assert!(answer.status == 200 && answer.text().contains(START), "{answer:?}");
    }
    assert_eq!(bed.servers.calls(), calls, "there is no token, so nothing goes on");
    assert_eq!((bed.counted("token_lost").await, bed.counted("sent_to_connect").await), (1, 1));
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_callers_with_a_refused_token_are_one_refresh() {
    const CALLERS: usize = 200;
    let lie = Lie { refresh: Refresh::RotatesLate, ..Lie::none("notes") };
    // So many calls, each with all that can be logged of it, would take longer than Envoy waits.
    let bed = Bed::with(lie, &["--log=info"], &|_| {}).await.with_ann().await;
    let came = Arc::new(AtomicUsize::new(0));
    let (gate, counting) = (Arc::new(Semaphore::new(0)), Arc::clone(&came));
    let closed = Arc::clone(&gate);
    // All of them are there with the old token before the first is refused.
    bed.servers.behave("notes", move |authorization| {
        let old = authorization == "Bearer SECRET-access-of-SECRET-code-0";
        let (gate, last) = (Arc::clone(&closed), counting.fetch_add(usize::from(old), Ordering::SeqCst) + 1 == CALLERS);
        async move {
            if !old {
                return None;
            }
            if last {
                gate.add_permits(CALLERS);
            }
            let _ = gate.acquire().await;
            Some(says(401, challenge("")))
        }
    });
    let calls = join_all((0..CALLERS).map(|_| bed.call("ann", &[])));
    let released = async {
        while bed.servers.refreshes().is_empty() {
            sleep(Duration::from_millis(20)).await;
        }
        bed.servers.answer();
    };
    let (answers, ()) = tokio::join!(calls, released);
    assert!(answers.iter().all(|answer| refused(answer) == AGAIN));
    assert_eq!((came.load(Ordering::SeqCst), bed.servers.refreshes().len()), (CALLERS, 1));
    assert_eq!(bed.call("ann", &[]).await.status, 200);
    assert_eq!(bed.counted("token_renewed").await, CALLERS as u64);
    bed.finish().await;
}

#[tokio::test]
async fn an_upstream_that_refuses_whatever_comes_is_one_refresh() {
    let bed = Bed::connected().await;
    bed.answers(|| says(401, challenge("")));
    assert_eq!(refused(&bed.call("ann", &[]).await), AGAIN);
    for _ in 0..5 {
        let told = refused(&bed.call("ann", &[]).await);
        assert!(told.contains("renewed a short while ago"), "{told}");
    }
    assert_eq!((bed.servers.refreshes().len(), bed.counted("refused_again").await), (1, 5));
    bed.finish().await;
}

/// Whose token is good and not enough keeps it, and is asked for more the next time: three times, whatever it is.
#[tokio::test]
async fn a_missing_scope_is_asked_for() {
    let bed = Bed::connected().await;
    let wanted = |scope: &'static str| {
        bed.answers(move || says(403, challenge(&format!(", error=\"insufficient_scope\", scope=\"{scope}\""))));
    };
    let told = format!(
        "This MCP server wants you to allow more than you did when you connected. Open {LINK} in your browser, and try \
         again after that."
    );
    for (scope, asked) in [
        ("admin", "read write admin"),
        ("admin audit", "read write admin audit"),
        ("more", "read write admin audit more"),
    ] {
        wanted(scope);
        assert_eq!(refused(&bed.call("ann", &[]).await), told, "{scope}");
        let all = bed.connect("ann", NOTES, "", "notes").await;
        let tokens =
            |text: &str| text.split(' ').filter(|token| *token != "offline_access").map(str::to_owned).collect();
        let (all, asked): (BTreeSet<String>, BTreeSet<String>) = (tokens(&all), tokens(asked));
        assert_eq!(all, asked, "{scope}");
    }
    wanted("yet-more");
    let no_more = "This MCP server wants you to allow more than can be asked for here.";
    assert_eq!(refused(&bed.call("ann", &[]).await), no_more);
    // The token is as good as before for what it is enough for.
    bed.servers.behave("notes", |_| async { None });
    assert_eq!(bed.call("ann", &[]).await.status, 200);
    assert!(bed.servers.refreshes().is_empty());
    assert_eq!((bed.counted("more_scope").await, bed.counted("no_more_scope").await), (3, 1));
    bed.finish().await;
}

/// Whatever an upstream says, its words reach nobody; and what is no refusal of a token changes nothing.
#[tokio::test]
async fn the_upstreams_own_words_reach_nobody() {
    let bed = Bed::connected().await;
    let refusals: [(How, &str); 6] = [
        (|| says(401, format!("Basic realm=\"{FAILED}\"")), "401 without a challenge of the Bearer scheme"),
        (|| (StatusCode::UNAUTHORIZED, FAILED).into_response(), "401 without a challenge of the Bearer scheme"),
        (|| says(401, format!("Basic {FAILED}{}", "x".repeat(59_000))), "401 without a challenge of the Bearer scheme"),
        (|| (StatusCode::FORBIDDEN, FAILED).into_response(), "403, and not for want of a scope"),
        (
            || says(403, challenge(&format!(", error=\"access_denied\", error_description=\"{FAILED}\""))),
            "403, and not for want of a scope",
        ),
        (|| says(403, "Basic error=insufficient_scope".to_owned()), "403, and not for want of a scope"),
    ];
    for (how, _) in refusals {
        bed.answers(how);
        assert_eq!(refused(&bed.call("ann", &[]).await), "This MCP server refused the request.");
    }
    assert_eq!(bed.counted("upstream_refused").await, refusals.len() as u64);
    // What passes does so without a challenge.
    for status in [200, 400, 404, 429, 500] {
        bed.answers(move || says(status, challenge("")));
        let answer = bed.call("ann", &[]).await;
        assert_eq!((answer.status, answer.text()), (status, FAILED), "{answer:?}");
        assert!(answer.all("www-authenticate").is_empty(), "{answer:?}");
    }
    assert!(bed.servers.refreshes().is_empty());
    let lines = bed.world.cimd.process.output();
    assert!(refusals.iter().any(|(_, why)| lines.contains(why)), "{lines}");
    bed.finish().await;
}

/// Refusals that an upstream makes hard to answer.
#[tokio::test]
async fn refusals_that_are_hard_to_answer() {
    let long = || challenge(&format!(", error_description=\"{}\"", "é,\\\"".repeat(11_900)));
    assert!((59_000..60_500).contains(&long().len()), "{}", long().len());
    let endless = || {
        let body = Body::from_stream(stream::pending::<Result<Vec<u8>, std::io::Error>>());
        (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, challenge(""))], body).into_response()
    };
    let kinds: [Box<dyn Fn() -> Response + Send + Sync>; 2] = [Box::new(move || says(401, long())), Box::new(endless)];
    for how in kinds {
        let bed = Bed::connected().await;
        bed.refuse("SECRET-access-of-SECRET-code-0", how);
        assert_eq!(refused(&bed.call("ann", &[]).await), AGAIN);
        assert_eq!((bed.call("ann", &[]).await.status, bed.servers.refreshes().len()), (200, 1));
        bed.finish().await;
    }
    // It comes before the upload is over, though that may be in Envoy's hands by then.
    for version in VERSIONS {
        let bed = Bed::connected().await;
        bed.refuse("SECRET-access-of-SECRET-code-0", || says(401, challenge("")));
        let upload = person(mcp(NOTES, "/notes/mcp"), "i", "ann").body("x".repeat(2 << 20));
        let answer = bed.world.https().send(version, upload).await.expect("an answer");
        assert_eq!(refused(&answer), AGAIN, "{version:?}");
        assert_eq!(bed.servers.refreshes().len(), 1);
        bed.finish().await;
    }
    // It never is.
    for version in VERSIONS {
        let bed = Bed::connected().await;
        bed.refuse("SECRET-access-of-SECRET-code-0", || says(401, challenge("")));
        let upload = Ask::post("").by(Some("ann")).payload(Payload::Endless(vec![b'x'; 64 << 10].into()));
        assert_eq!(refused(&gateway::send(&bed.world, version, &upload).await), AGAIN, "{version:?}");
        assert_eq!((bed.servers.refreshes().len(), bed.servers.calls()), (1, 2));
        assert_eq!(bed.call("ann", &[]).await.status, 200, "{version:?}");
        bed.finish().await;
    }
}

/// A page that may call may read what its call came to.
#[tokio::test]
async fn pages_read_refusals() {
    let bed = Bed::connected().await;
    bed.answers(|| says(401, challenge("")));
    for (origin, allowed) in
        [("https://inspector.example", vec!["https://inspector.example"]), ("https://notes.localhost", vec![])]
    {
        let answer = bed.call("ann", &[("origin", origin)]).await;
        refused(&answer);
        assert_eq!(answer.all("access-control-allow-origin"), allowed, "{answer:?}");
    }
    bed.finish().await;
}

/// The router has written over host and path when an answer comes.
#[tokio::test]
async fn routes_of_the_config_file_are_found() {
    let bed = Bed::with(Lie::none("notes"), &["--config", FILE], &without_metadata).await;
    bed.connect("ann", "other.localhost", "/a", "a").await;
    let call = || bed.send("ann", mcp("other.localhost", "/a"));
    assert_eq!(call().await.status, 200);
    bed.servers.behave("a", |authorization| {
        let refusal = authorization.ends_with("code-0").then(|| says(401, challenge("")));
        async { refusal }
    });
    assert_eq!(refused(&call().await), AGAIN);
    assert_eq!((call().await.status, bed.servers.refreshes().len()), (200, 1));
    bed.finish().await;
}
