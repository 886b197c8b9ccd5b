//! What upstreams and authorization servers do in the field, and what becomes of the person who connects to them, each a
//! row of one table. A row says what its servers do otherwise than honest ones; it goes through a real Envoy, from the
//! connect page to the callback.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex, OnceLock},
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    http::HeaderValue,
    response::Response,
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::Version;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use url::Url;

use self::rows::rows;
use crate::{
    authorization_server::{HOST, metadata_of},
    flow::press_shown,
    stack::{Answered, Call, Certificates, browser::parameter, tls_listener},
    world::{CALLBACK, START, Wish, World, virtual_hosts, without_metadata},
};

mod rows;

/// What becomes of the person.
enum Becomes {
    /// Asked for this scope, then connected; without a scope where it is empty.
    Connected(&'static str),
    /// Sent nowhere, since no server can be used: what the log's reason has in it.
    SentNowhere(&'static str),
    /// Sent there, and refused on the way back: the label, and what the log's reason has in it.
    Refused(&'static str, &'static str),
}

use Becomes::{Connected, Refused, SentNowhere};

/// The upstream's own metadata, and the root's.
const OF_PATH: &str = "GET /.well-known/oauth-protected-resource/mcp";
const OF_ROOT: &str = "GET /.well-known/oauth-protected-resource";

/// The authorization server's metadata.
const OAUTH: &str = "GET /.well-known/oauth-authorization-server";
const OPENID: &str = "GET /.well-known/openid-configuration";

/// An upstream and its authorization server, each on an origin of its own: honest, until a row's quirk changes them.
struct Site {
    upstream: String,
    issuer: String,
    /// The upstream's metadata, and the server's.
    resource: Value,
    metadata: Value,
    token: Answer,
    /// The `iss` that comes back, where it is another than the server's issuer.
    iss: Option<String>,
    /// The route's `authorization_server`.
    pin: Option<String>,
    /// By method and path, or by a JSON-RPC method. What is not there is 404.
    of_upstream: HashMap<&'static str, Answer>,
    of_server: HashMap<&'static str, Answer>,
}

#[derive(Clone)]
struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    is_endless: bool,
}

fn status(status: u16) -> Answer {
    Answer { status, headers: Vec::new(), body: Vec::new(), is_endless: false }
}

fn page() -> Answer {
    status(200).header("content-type", "text/html").body("<!doctype html>SECRET")
}

fn json_of(document: &Value) -> Answer {
    status(200).header("content-type", "application/json").body(document.to_string())
}

/// A refusal with these challenges, each a header.
fn challenges(values: &[&str]) -> Answer {
    values.iter().fold(status(401), |answer, value| answer.header("www-authenticate", *value))
}

impl Answer {
    fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// The body begins, and never ends.
    fn endless(mut self) -> Self {
        self.is_endless = true;
        self
    }

    fn response(self) -> Response {
        let body = match self.is_endless {
            true => {
                let begins = stream::iter([Ok::<_, Infallible>(Bytes::from_static(b"data: SECRET\n"))]);
                Body::from_stream(begins.chain(stream::pending()))
            }
            false => Body::from(self.body),
        };
        let mut response = Response::builder().status(self.status);
        for (name, value) in self.headers {
            response = response.header(name, HeaderValue::from_bytes(value.as_bytes()).expect("a value"));
        }
        response.body(body).expect("an answer")
    }
}

impl Site {
    fn honest(upstream: String, issuer: String) -> Self {
        Self {
            resource: json!({
                "resource": format!("{upstream}/mcp"),
                "authorization_servers": [issuer],
                "scopes_supported": ["listed"],
            }),
            metadata: metadata_of(&issuer),
            token: json_of(&json!({"access_token": "SECRET", "token_type": "Bearer", "expires_in": 3600})),
            iss: None,
            pin: None,
            of_upstream: HashMap::new(),
            of_server: HashMap::new(),
            upstream,
            issuer,
        }
    }

    /// What an honest upstream's refusal is.
    fn refusal(&self) -> Answer {
        challenges(&[&self.filled(r#"Bearer scope="read write", resource_metadata="{metadata}""#)])
    }

    fn filled(&self, text: &str) -> String {
        text.replace("{metadata}", "{upstream}/.well-known/oauth-protected-resource/mcp")
            .replace("{upstream}", &self.upstream)
    }

    fn on(&mut self, asked: &'static str, answer: Answer) {
        self.of_upstream.insert(asked, answer);
    }

    fn at_server(&mut self, asked: &'static str, answer: Answer) {
        self.of_server.insert(asked, answer);
    }

    /// Everybody is served without a token.
    fn open(&mut self) {
        for asked in ["GET /mcp", "server/discover", "initialize"] {
            self.on(asked, status(200));
        }
    }

    fn challenge(&mut self, value: &str) {
        let answer = challenges(&[&self.filled(value)]);
        self.on("GET /mcp", answer);
    }

    /// The honest challenge, with this address.
    fn challenge_at(&mut self, address: &str) {
        self.challenge(&format!(r#"Bearer scope="read write", resource_metadata="{address}""#));
    }

    fn grant(&mut self, member: &str, value: Value) {
        let mut token: Value = serde_json::from_slice(&self.token.body).expect("JSON");
        token[member] = value;
        self.token = json_of(&token);
    }

    /// A member of the server's metadata is there a second time, with the same value.
    fn twice(&mut self, member: &str) {
        let again = format!("{{\"{member}\":{},", self.metadata[member]);
        let document = self.metadata.to_string().replacen('{', &again, 1);
        self.at_server(OAUTH, status(200).body(document));
    }

    /// Fills in what no quirk changed.
    fn complete(&mut self) {
        let refusal = self.refusal();
        for asked in ["GET /mcp", "server/discover", "initialize"] {
            self.of_upstream.entry(asked).or_insert_with(|| refusal.clone());
        }
        self.of_upstream.entry(OF_PATH).or_insert_with(|| json_of(&self.resource));
        self.of_server.entry(OAUTH).or_insert_with(|| json_of(&self.metadata));
    }
}

/// A site that runs.
struct Running {
    site: OnceLock<Site>,
    /// The authorization request that a code was given for.
    asked: Mutex<Option<Url>>,
    exchanges: Mutex<usize>,
}

impl Running {
    async fn start(certificates: &Certificates, quirk: fn(&mut Site)) -> Arc<Self> {
        let running = Arc::new(Self { site: OnceLock::new(), asked: Mutex::default(), exchanges: Mutex::default() });
        let plain = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let tls = tls_listener::bind(certificates).await.expect("a port");
        let upstream = format!("http://{}", plain.local_addr().expect("an address"));
        let issuer = {
            use axum::serve::Listener;
            format!("https://{HOST}:{}", tls.local_addr().expect("an address").port())
        };
        let mut site = Site::honest(upstream, issuer);
        quirk(&mut site);
        site.complete();
        assert!(running.site.set(site).is_ok());
        let upstream = Router::new().fallback(of_upstream).with_state(Arc::clone(&running));
        let server = Router::new().fallback(of_server).with_state(Arc::clone(&running));
        tokio::spawn(async move { axum::serve(plain, upstream).await });
        tokio::spawn(async move { axum::serve(tls, server).await });
        running
    }

    fn site(&self) -> &Site {
        self.site.get().expect("a site")
    }
}

async fn of_upstream(State(running): State<Arc<Running>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let body = to_bytes(body, usize::MAX).await.expect("a body");
    assert!(!head.headers.contains_key("authorization"));
    let asked = match serde_json::from_slice::<Value>(&body) {
        Ok(call) => call["method"].as_str().expect("a method").to_owned(),
        Err(_) => format!("{} {}", head.method, head.uri),
    };
    running.site().of_upstream.get(asked.as_str()).cloned().unwrap_or_else(|| status(404)).response()
}

async fn of_server(State(running): State<Arc<Running>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let asked = format!("{} {}", head.method, head.uri);
    if asked != "POST /token" {
        return running.site().of_server.get(asked.as_str()).cloned().unwrap_or_else(|| status(404)).response();
    }
    *running.exchanges.lock().expect("a number") += 1;
    let body = to_bytes(body, usize::MAX).await.expect("a body");
    let sent: HashMap<String, String> = url::form_urlencoded::parse(&body).into_owned().collect();
    let url = running.asked.lock().expect("a URL").take().expect("an authorization request");
    let is_of_it =
        ["client_id", "redirect_uri", "resource"].iter().all(|name| parameter(&url, name) == Ok(sent[*name].clone()));
    let challenge = BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(&sent["code_verifier"]));
    assert!(
        is_of_it && parameter(&url, "code_challenge") == Ok(challenge) && sent["code"] == "SECRET-code",
        "{sent:?}"
    );
    running.site().token.clone().response()
}

/// Where the one virtual host of this test is reached. Which route a request is for, its authority says.
const DOOR: &str = "notes.localhost";

#[tokio::test]
async fn each_comes_to_what_its_row_says() {
    let dir = tempfile::tempdir().expect("a folder");
    let certificates = Certificates::make(dir.path(), &[HOST]);
    let mut sites = Vec::new();
    for (number, row) in rows().into_iter().enumerate() {
        let running = Running::start(&certificates, row.quirk).await;
        sites.push((format!("r{number}.example"), row, running));
    }
    let routes = sites.iter().map(|(authority, _, running)| {
        let Site { upstream, pin, .. } = running.site();
        let mut route = json!({"from": format!("https://{authority}"), "to": format!("{upstream}/mcp")});
        if let Some(pin) = pin {
            route["authorization_server"] = json!(pin);
        }
        route
    });
    let config = dir.path().join("config.yaml");
    std::fs::write(&config, json!({"routes": routes.collect::<Vec<_>>()}).to_string()).expect("a config file");
    let (config, state) = (config.to_str().expect("text"), dir.path().join("state"));
    let (ca, state) = (certificates.ca.to_str().expect("text"), state.to_str().expect("text"));
    let flags = [
        "--config",
        config,
        "--extra-ca",
        ca,
        "--allow-host",
        HOST,
        "--state-dir",
        state,
        "--single-user",
        "--log=trace",
    ];
    let everywhere = |config: &mut Value| {
        without_metadata(config);
        virtual_hosts(config).retain(|host| host["name"] == DOOR);
        virtual_hosts(config)[0]["domains"] = json!(["*"]);
    };
    let mut world = World::start(Wish { cimd: &flags, edit: &everywhere, ..Wish::default() }).await;
    for (authority, row, running) in &sites {
        let what = format!("{}: {}", row.line, row.name);
        let end = person(&world, authority, running).await;
        let exchanges = *running.exchanges.lock().expect("a number");
        match (&row.becomes, end) {
            (Connected(scope), End::Connected(asked)) => {
                assert_eq!(asked.unwrap_or_default(), *scope, "{what}");
                assert_eq!(exchanges, 1, "{what}");
            }
            (SentNowhere(words), End::Refused { sent: false, answer }) => {
                refused(&mut world, &answer, "authorization_server_unusable", words, &what).await;
                assert_eq!((answer.status, exchanges), (502, 0), "{what}");
                assert!(answer.all("set-cookie").is_empty() && answer.all("location").is_empty(), "{what}");
            }
            (Refused(label, words), End::Refused { sent: true, answer }) => {
                refused(&mut world, &answer, label, words, &what).await;
                assert_eq!(exchanges, usize::from(*label == "exchange_failed"), "{what}");
            }
            (_, end) => panic!("{what}: {end:?}\n{}", world.cimd.process.output()),
        }
    }
    assert_eq!(world.cimd.process.stop().await, Some(0));
    let log = world.cimd.process.output();
    assert!(!log.contains("SECRET"), "{log}");
    // What is taken though it is not as it should be has a line.
    for line in [
        "its challenge (`www-authenticate`) cannot be read whole",
        "its metadata spells the issuer with another slash at its end, and is taken",
        "a member of its metadata cannot be used, and counts as not said",
        "a scope takes more than 4096 bytes, and is not asked for; the route may set its own",
    ] {
        assert!(log.contains(&format!("\"message\":\"{line}\"")), "{line}");
    }
}

#[derive(Debug)]
enum End {
    /// With the scope that was asked for.
    Connected(Option<String>),
    Refused {
        sent: bool,
        answer: Answered,
    },
}

/// Opens the connect page, presses its button, consents, and comes back.
async fn person(world: &World, authority: &str, running: &Running) -> End {
    let site = running.site();
    let send =
        async |call: Call| world.https().send(Version::HTTP_2, call.authority(authority)).await.expect("an answer");
    let page = send(Call::get(DOOR, START).header("accept", "text/html")).await;
    assert_eq!(page.status, 200, "{page:?}");
    let shown = page.text().split_once("issuer=").map(|(_, rest)| rest.split(['"', '&']).next().expect("an issuer"));
    let begun = send(press_shown(DOOR, "", shown.unwrap_or_default())).await;
    if begun.status != 303 {
        return End::Refused { sent: false, answer: begun };
    }
    let url = Url::parse(&begun.all("location").join("")).expect("a URL");
    assert!(url.as_str().starts_with(&format!("{}/authorize?", site.issuer)), "{url}");
    assert_eq!(parameter(&url, "resource"), Ok(site.resource["resource"].as_str().expect("text").to_owned()));
    let scope = parameter(&url, "scope").ok();
    let is_offline = scope.as_ref().is_some_and(|scope| scope.contains("offline_access"));
    assert_eq!(parameter(&url, "prompt").ok(), is_offline.then(|| "consent".to_owned()));
    let iss = site.iss.as_deref().or(site.metadata["issuer"].as_str()).expect("an issuer");
    let query = format!("code=SECRET-code&iss={iss}&state={}", parameter(&url, "state").expect("a state"));
    *running.asked.lock().expect("a URL") = Some(url);
    let cookie = begun.all("set-cookie").join("").split(';').next().expect("a pair").to_owned();
    let back = send(Call::get(DOOR, &format!("{CALLBACK}?{query}")).header("cookie", cookie)).await;
    if back.status == 303 { End::Connected(scope) } else { End::Refused { sent: true, answer: back } }
}

/// That the line with the request id says why.
async fn refused(world: &mut World, answer: &Answered, label: &str, words: &str, what: &str) {
    let [id] = answer.all("x-request-id")[..] else { panic!("{what}: {answer:?}") };
    let named = |line: &str| {
        let line: Value = serde_json::from_str(line).ok()?;
        (line["request_id"] == id && line["message"] == "refused").then_some(line)
    };
    let line = world.cimd.process.line(named).await;
    let reason = line["reason"].as_str().expect("a reason");
    assert_eq!(line["label"], label, "{what}: {line}");
    assert!(reason.contains(words), "{what}: {line}");
}
