//! docker-compose.yml as it runs, driven from outside. `make compose-test` starts it and runs these, one by one.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use envoy_cimd::{
    contract::proto::{GetUpstreamTokenRequest, upstream_tokens_client::UpstreamTokensClient},
    model::secret::generate_key_line,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};
use url::Url;

use self::containers::{container, docker, logs, project, read_volume, set_up, until_healthy};
use crate::{
    exchange::single,
    stack::{
        Answered, Call,
        browser::{Browser, CameFrom, Page, parameter},
        metric,
        web::{Web, parse},
    },
    telling_role::{NEW, URL, message},
    world::{CALLBACK, DOCUMENT, START},
};

mod containers;

const NOTES: &str = "https://notes.localhost:8443";
const TICKETS: &str = "https://tickets.localhost:8443";
const CHOREOGRAPHER: &str = "choreographer";
const REPLICAS: [&str; 2] = ["processor-1", "processor-2"];
const SERVED: &str = "envoy_cimd_requests_total{endpoint=\"document\",outcome=\"served\"}";
const BEGUN: &str = "envoy_cimd_requests_total{endpoint=\"start\",outcome=\"begun\"}";
const COMPLETED: &str = "envoy_cimd_requests_total{endpoint=\"callback\",outcome=\"completed\"}";

/// How many requests a replica has under way.
const STREAMS: &str = "envoy_cimd_streams";
const KEYS_RELOADED: &str = "envoy_cimd_reloads_total{file=\"state_keys\",result=\"ok\"}";

/// Who owns the files of each in the volumes.
const ENVOY_CIMD: &str = "65532";
const ENVOY: &str = "101";

/// How long what containers do may take.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test]
#[ignore = "needs running containers: make compose-test"]
async fn compose_serves_both_documents() {
    let demo = Demo::all_there().await;
    for origin in [NOTES, TICKETS] {
        let answer = demo.web.send(&parse(&format!("{origin}{DOCUMENT}")).expect("a URL"), |call| call).await;
        let answer = answer.expect("an answer over TLS");
        assert_eq!(answer.status, 200);
        let document: Value = serde_json::from_slice(&answer.body).expect("JSON");
        assert_eq!(document["client_id"], format!("{origin}{DOCUMENT}"));
        assert_eq!(document["redirect_uris"], json!([format!("{origin}{CALLBACK}")]));
    }
    demo.finish().await;
}

/// Each replica is stopped under load: nobody notices, and the flow that the one began ends on the other.
#[tokio::test]
#[ignore = "needs running containers: make compose-test"]
async fn compose_a_flow_begun_on_one_replica_ends_on_the_other() {
    let mut demo = Demo::all_there().await;
    let [one, other] = REPLICAS;
    demo.stop_under_load(other).await;
    let before = value(one, BEGUN).await;
    let flow = demo.begin(NOTES).await;
    assert_eq!(value(one, BEGUN).await, before + 1);

    docker(&["start", &container(other).await]).await;
    demo.until_served_by(other).await;
    demo.stop_under_load(one).await;
    demo.complete(flow).await;
    assert_eq!((value(other, BEGUN).await, value(other, COMPLETED).await), (0, 1));
    demo.finish().await;
}

/// Somebody's grant was ended. Their call is held by one replica, which is told to stop while it does so. They connect
/// at the other, and the call goes on by itself, and is made once, as it was.
#[tokio::test]
#[ignore = "needs running containers: make compose-test"]
async fn compose_a_call_held_by_one_replica_goes_on_when_its_person_connects_at_the_other() {
    let mut demo = Demo::all_there().await;
    let connected = demo.begin(NOTES).await;
    demo.complete(connected).await;
    assert_eq!(text(&demo.call(NOTES, "end_grant", &calling("end", "end_grant", "")).await), "It is over");

    let state = demo.asked_to_connect(NOTES).await;
    let mut flow = demo.begin(NOTES).await;

    // Then the one that has a request is the one that holds the call.
    for replica in REPLICAS {
        until("nothing else is under way", async || value(replica, STREAMS).await == 0).await;
    }
    let accepted = format!(r#","inputResponses":{{"connect":{{"action":"accept"}}}},"requestState":"{state}""#);
    let again = calling("held", "whoami", &accepted);
    let (answer, (ends_at, completed)) = tokio::join!(demo.call(NOTES, "whoami", &again), async {
        let holds = holder().await;
        let other = REPLICAS.into_iter().find(|replica| *replica != holds).expect("two");
        let before = value(other, COMPLETED).await;
        let id = container(holds).await;
        // The replica waits for what it holds, and this waits for the replica.
        let stopped = tokio::spawn(async move { docker(&["stop", &id]).await });
        demo.until_not_served_by(holds).await;
        assert_eq!(value(holds, STREAMS).await, 1, "it is still held");
        assert_eq!(flow.call_back().await, 303);
        stopped.await.expect("it stops");
        (other, value(other, COMPLETED).await - before)
    });
    assert_eq!(completed, 1, "{ends_at} took the callback");
    assert_eq!(text(&answer), format!("This is the notes MCP server, and your OAuth client is {NOTES}{DOCUMENT}"));
    let call: Value = serde_json::from_str(&calling("held", "whoami", "")).expect("JSON");
    assert_eq!(demo.came(NOTES, "held").await, [call], "once, and with nothing of ours");
    let token = demo.token(NOTES).await;
    demo.secrets.push(token);
    demo.finish().await;
}

#[tokio::test]
#[ignore = "needs running containers: make compose-test"]
async fn compose_a_flow_survives_the_choreographers_death() {
    let mut demo = Demo::all_there().await;
    let choreographer = container(CHOREOGRAPHER).await;
    let mut flow = demo.begin(TICKETS).await;
    docker(&["kill", "--signal", "KILL", &choreographer]).await;
    // Nothing was sent anywhere, so the same address may be opened again.
    assert_eq!(flow.call_back().await, 503);
    docker(&["start", &choreographer]).await;
    until_healthy(CHOREOGRAPHER).await;
    demo.complete(flow).await;
    demo.finish().await;
}

#[tokio::test]
#[ignore = "needs running containers: make compose-test"]
async fn compose_flows_and_tokens_survive_a_restart_of_redis() {
    let mut demo = Demo::all_there().await;
    let connected = demo.begin(TICKETS).await;
    let token = demo.complete(connected).await;
    let flow = demo.begin(NOTES).await;
    let redis = container("redis").await;
    let starts = async || logs(&redis).await.matches("Ready to accept connections").count();
    let before = starts().await;
    docker(&["restart", &redis]).await;
    until("Redis is back", async || starts().await > before).await;
    demo.complete(flow).await;
    assert_eq!(demo.token(TICKETS).await, token, "what was stored is still there");
    demo.finish().await;
}

#[tokio::test]
#[ignore = "needs running containers: make compose-test"]
async fn compose_state_keys_rotate_without_a_failed_flow() {
    let mut demo = Demo::all_there().await;
    let old = read_volume(ENVOY_CIMD, "processor/state.keys").await.trim_end().to_owned();
    let new = generate_key_line().expect("a key");
    demo.secrets.extend([old.clone(), new.clone()]);

    let before = demo.begin(NOTES).await;
    rotate_to(&[&old, &new]).await;
    let appended = demo.begin(TICKETS).await;
    rotate_to(&[&new, &old]).await;
    let moved = demo.begin(NOTES).await;
    // As after those ten minutes, when no flow is left of the old key.
    demo.complete(before).await;
    demo.complete(appended).await;
    rotate_to(&[&new]).await;
    demo.complete(moved).await;
    let after = demo.begin(TICKETS).await;
    demo.complete(after).await;
    demo.finish().await;
}

/// What runs, as the world outside of the containers meets it.
struct Demo {
    web: Web,
    _dir: TempDir,
    /// For those who carry MCP traffic.
    tls: ClientTlsConfig,
    /// What must be in no log.
    secrets: Vec<String>,
}

/// A flow whose person has given consent, and whose browser is about to come back.
struct Flow {
    origin: &'static str,
    browser: Browser,
    callback: Url,
}

impl Demo {
    /// Waits until all parts are there, and Envoy asks each replica.
    async fn all_there() -> Self {
        let welcome = container("welcome").await;
        assert_eq!(docker(&["wait", &welcome]).await.trim(), "0", "{}", logs(&welcome).await);
        let dir = tempfile::tempdir().expect("a folder");
        let ca = dir.path().join("ca.pem");
        docker(&["cp", &format!("{welcome}:/ca/ca.pem"), ca.to_str().expect("text")]).await;
        let encryption_keys = read_volume(ENVOY_CIMD, "choreographer/encryption.keys").await;
        let secrets = encryption_keys.lines().map(str::to_owned).collect();
        let [cert, key] = ["envoy/peer.crt", "envoy/peer.key"].map(|file| read_volume(ENVOY, file));
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(std::fs::read(&ca).expect("the authority")))
            .identity(Identity::from_pem(cert.await, key.await))
            .domain_name(CHOREOGRAPHER);
        let demo = Self { web: Web::new(&ca), _dir: dir, tls, secrets };
        // The test before may have left something stopped.
        for service in [CHOREOGRAPHER, "redis"].iter().chain(&REPLICAS) {
            docker(&["start", &container(service).await]).await;
        }
        until_healthy(CHOREOGRAPHER).await;
        for replica in REPLICAS {
            demo.until_served_by(replica).await;
        }
        demo
    }

    /// From the connect page to the consent at the authorization server.
    async fn begin(&mut self, origin: &'static str) -> Flow {
        let mut browser = Browser::new(&self.web);
        let page = open(&mut browser, &parse(&format!("{origin}{START}?return_to=/mcp")).expect("a URL")).await;
        let mut next = browser.press(&page, &[]).await.expect("an answer").redirects().expect("a redirect");
        self.secrets.push(parameter(&next, "state").expect("a state"));
        let redirect_uri = format!("{origin}{CALLBACK}?");
        // Past its redirects to itself, a page to sign in on, and one to consent on.
        while !next.as_str().starts_with(&redirect_uri) {
            let mut page = browser.open(&next, CameFrom::AnotherSite).await.expect("an answer");
            if page.answer.status == 200 {
                page =
                    browser.press(&page, &[("login", "somebody"), ("password", "anything")]).await.expect("an answer");
            }
            next = page.redirects().expect("a redirect");
        }
        self.secrets.push(parameter(&next, "code").expect("a code"));
        self.secrets.extend(browser.cookies().map(str::to_owned));
        Flow { origin, browser, callback: next }
    }

    /// From the redirect endpoint to the token, which the MCP server takes.
    async fn complete(&mut self, mut flow: Flow) -> String {
        let page = open(&mut flow.browser, &flow.callback).await;
        let arrived = page.redirects().unwrap_or_else(|error| panic!("{error}: {}", page.text()));
        assert_eq!(arrived.as_str(), format!("{}/mcp", flow.origin));

        let token = self.token(flow.origin).await;
        self.secrets.push(token.clone());
        let answer = self.call(flow.origin, "whoami", &calling("connected", "whoami", "")).await;
        let client_id = format!("{}{DOCUMENT}", flow.origin);
        let expected = format!("This is the {} MCP server, and your OAuth client is {client_id}", name(flow.origin));
        assert_eq!(text(&answer), expected);
        token
    }

    /// What a tool's call is answered with. Whatever a caller brings, it is the person's token that arrives.
    async fn call(&self, origin: &str, tool: &str, message: &str) -> Answered {
        let post = |call: Call| {
            call.method("POST")
                .header("authorization", "Bearer another")
                .header("content-type", "application/json")
                .header("accept", "application/json, text/event-stream")
                .header("mcp-protocol-version", NEW)
                .header("mcp-method", "tools/call")
                .header("mcp-name", tool)
                .body(message)
        };
        self.web.send(&parse(&format!("{origin}/mcp")).expect("a URL"), post).await.expect("an answer")
    }

    /// The state that goes with the question, once each replica asks whoever calls to connect: one may have their token
    /// for some seconds after the other has found out that it is over.
    async fn asked_to_connect(&mut self, origin: &str) -> String {
        until("each replica knows", async || {
            // Envoy asks them in turn: more than enough for each of its threads to come to both.
            for _ in 0..50 {
                if self.ask(origin).await.is_none() {
                    return false;
                }
            }
            true
        })
        .await;
        let state = self.ask(origin).await.expect("a question");
        self.secrets.push(state.clone());
        state
    }

    /// The state of the question that a call is answered with, or nothing where it finds out that its token is over.
    async fn ask(&self, origin: &str) -> Option<String> {
        let answer = self.call(origin, "whoami", &calling("asked", "whoami", "")).await;
        let body: Value = serde_json::from_slice(&answer.body).unwrap_or_else(|error| panic!("{error}: {answer:?}"));
        let link = format!("{origin}{START}");
        if answer.status == 502 {
            assert!(body["error"]["message"].as_str().is_some_and(|message| message.contains(&link)), "{body}");
            return None;
        }
        assert_eq!((answer.status, &body["result"]["resultType"]), (200, &json!("input_required")), "{body}");
        let asked = &body["result"]["inputRequests"]["connect"]["params"];
        assert_eq!((&asked["mode"], &asked["url"]), (&json!("url"), &json!(link)));
        Some(body["result"]["requestState"].as_str().expect("a state").to_owned())
    }

    /// The messages with this id that an MCP server printed, which are all that reached it.
    async fn came(&self, origin: &str, id: &str) -> Vec<Value> {
        let log = logs(&container(name(origin)).await).await;
        let messages = log.lines().filter_map(|line| line.strip_prefix("came: "));
        let messages = messages.map(|message| serde_json::from_str::<Value>(message).expect("JSON"));
        messages.filter(|message| message["id"] == id).collect()
    }

    /// What the choreographer hands out for a route.
    async fn token(&self, origin: &str) -> String {
        let address = docker(&["port", &container("choreographer-loopback").await, "9005"]).await;
        let endpoint = Endpoint::from_shared(format!("https://{}", address.trim())).expect("an address");
        let endpoint = endpoint.tls_config(self.tls.clone()).expect("certificates");
        let request = GetUpstreamTokenRequest {
            user: Some(single()),
            client_id: format!("{origin}{DOCUMENT}"),
            upstream: format!("http://{}:3000/mcp", name(origin)),
            authorization_server: String::new(),
            ..GetUpstreamTokenRequest::default()
        };
        let mut client = UpstreamTokensClient::new(endpoint.connect().await.expect("a connection"));
        client.get_upstream_token(request).await.expect("a token").into_inner().access_token
    }

    /// Stops a replica while documents are asked for all the time, each of which is answered.
    async fn stop_under_load(&self, replica: &str) {
        let done = Arc::new(AtomicBool::new(false));
        let load: Vec<_> = [NOTES, TICKETS].map(|origin| self.load(origin, &done)).into();
        let before = value(replica, SERVED).await;
        until("the load reaches it", async || value(replica, SERVED).await > before).await;
        docker(&["stop", &container(replica).await]).await;
        done.store(true, Ordering::Relaxed);
        for load in load {
            let statuses = load.await.expect("it ends");
            assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
        }
    }

    fn load(&self, origin: &str, done: &Arc<AtomicBool>) -> JoinHandle<Vec<u16>> {
        let (web, done) = (self.web.clone(), Arc::clone(done));
        let url = parse(&format!("{origin}{DOCUMENT}")).expect("a URL");
        tokio::spawn(async move {
            let mut statuses = Vec::new();
            while !done.load(Ordering::Relaxed) {
                statuses.push(web.send(&url, |call| call).await.expect("an answer").status);
            }
            statuses
        })
    }

    /// Waits until Envoy asks this replica.
    async fn until_served_by(&self, replica: &str) {
        let url = parse(&format!("{NOTES}{DOCUMENT}")).expect("a URL");
        until_healthy(replica).await;
        let before = value(replica, SERVED).await;
        until(&format!("Envoy asks {replica}"), async || {
            let _ = self.web.send(&url, |call| call).await;
            value(replica, SERVED).await > before
        })
        .await;
    }

    /// Waits until Envoy asks this replica no more.
    async fn until_not_served_by(&self, replica: &str) {
        let url = parse(&format!("{NOTES}{DOCUMENT}")).expect("a URL");
        until(&format!("Envoy leaves {replica}"), async || {
            let before = value(replica, SERVED).await;
            // It asks them in turn: more than enough for each of its threads to come to this one.
            for _ in 0..50 {
                self.web.send(&url, |call| call).await.expect("an answer");
            }
            value(replica, SERVED).await == before
        })
        .await;
    }

    /// No log of any container holds what nobody else may know.
    async fn finish(self) {
        let project = format!("label=com.docker.compose.project={}", project());
        let containers = docker(&["ps", "--all", "--quiet", "--filter", &project]).await;
        assert!(containers.lines().count() >= 9, "{containers}");
        for id in containers.lines() {
            let log = logs(id).await;
            let leaked = self.secrets.iter().find(|secret| log.contains(secret.as_str()));
            assert!(leaked.is_none(), "{id} holds {leaked:?}:\n{log}");
        }
    }
}

impl Flow {
    /// What the browser gets when it comes back.
    async fn call_back(&mut self) -> u16 {
        open(&mut self.browser, &self.callback).await.answer.status
    }
}

/// What docker-compose.yml calls the MCP server behind a route.
fn name(origin: &str) -> &'static str {
    if origin == NOTES { "notes" } else { "tickets" }
}

/// A tool's call of somebody who can be asked to connect, with more members in its parameters.
fn calling(id: &str, tool: &str, more: &str) -> String {
    let (id, params) = (format!("\"{id}\""), format!(r#""name":"{tool}","arguments":{{}}"#));
    message(&id, "tools/call", &params, NEW, URL, more)
}

/// What a tool said.
fn text(answer: &Answered) -> String {
    let body: Value = serde_json::from_slice(&answer.body).unwrap_or_else(|error| panic!("{error}: {answer:?}"));
    let said = body["result"]["content"][0]["text"].as_str().filter(|_| body["result"]["isError"].is_null());
    said.unwrap_or_else(|| panic!("{answer:?}")).to_owned()
}

/// The replica that has a request under way, where there is one.
async fn holder() -> &'static str {
    let deadline = Instant::now() + PATIENCE;
    loop {
        for replica in REPLICAS {
            if value(replica, STREAMS).await == 1 {
                return replica;
            }
        }
        assert!(Instant::now() < deadline, "nobody holds the call");
    }
}

async fn open(browser: &mut Browser, url: &Url) -> Page {
    browser.open(url, CameFrom::AnotherSite).await.expect("an answer")
}

async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        // Nothing tells when it is so.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A counter of a replica; nothing is counted yet where it does not exist.
async fn value(replica: &str, name: &str) -> u64 {
    let address = docker(&["port", &container(replica).await, "9002"]).await;
    metric(address.trim(), name).await.unwrap_or(0)
}

/// Writes the file of state keys, and waits until each replica has read it.
async fn rotate_to(keys: &[&str]) {
    let mut before = [0; 2];
    for (before, replica) in before.iter_mut().zip(REPLICAS) {
        *before = value(replica, KEYS_RELOADED).await;
    }
    let write = "fs.writeFileSync('/volumes/processor/state.keys', process.argv[1])";
    set_up(ENVOY_CIMD, write, &[&keys.join("\n")]).await;
    for (before, replica) in before.into_iter().zip(REPLICAS) {
        until("the keys are read again", async || value(replica, KEYS_RELOADED).await > before).await;
    }
}
