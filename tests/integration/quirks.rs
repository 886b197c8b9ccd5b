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

use crate::{
    authorization_server::{HOST, metadata_of},
    flow::press_shown,
    stack::{Answered, Call, Certificates, browser::parameter, tls_listener},
    world::{CALLBACK, START, Wish, World, virtual_hosts, without_metadata},
};

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

struct Row {
    /// The line of what real servers demand that it is of.
    line: u8,
    name: &'static str,
    quirk: fn(&mut Site),
    becomes: Becomes,
}

fn row(line: u8, name: &'static str, quirk: fn(&mut Site), becomes: Becomes) -> Row {
    Row { line, name, quirk, becomes }
}

/// What an honest upstream comes to.
const HONEST: Becomes = Connected("read write offline_access");
/// The upstream's own metadata, and the root's.
const OF_PATH: &str = "GET /.well-known/oauth-protected-resource/mcp";
const OF_ROOT: &str = "GET /.well-known/oauth-protected-resource";
/// The authorization server's metadata.
const OAUTH: &str = "GET /.well-known/oauth-authorization-server";
const OPENID: &str = "GET /.well-known/openid-configuration";

#[rustfmt::skip]
fn rows() -> Vec<Row> {
    vec![
        row(22, "all are honest", |_| {}, HONEST),

        row(27, "GET is not allowed", |s| s.on("GET /mcp", status(405)), HONEST),
        row(27, "GET finds nothing", |s| s.on("GET /mcp", status(404)), HONEST),
        row(27, "GET gets a landing page", |s| s.on("GET /mcp", page()), HONEST),
        row(27, "GET is refused without a challenge", |s| s.on("GET /mcp", status(401)), HONEST),
        row(27, "GET is refused with a challenge of another scheme", |s| s.on("GET /mcp", challenges(&["Basic realm=x"])), HONEST),
        row(27, "GET streams to strangers", |s| s.on("GET /mcp", status(200).endless()), HONEST),
        row(27, "only initialize is refused", |s| {
            s.on("GET /mcp", status(405));
            s.on("server/discover", status(400));
        }, HONEST),
        row(27, "only server/discover is refused", |s| {
            s.on("GET /mcp", status(405));
            s.on("initialize", status(404));
        }, HONEST),
        row(27, "nothing is refused, and there is metadata", |s| s.open(), Connected("listed offline_access")),
        row(27, "nothing is refused, and there is no metadata", |s| {
            s.open();
            s.on(OF_PATH, status(404));
        }, SentNowhere("this server needs no sign-in")),
        row(27, "all say 404", |s| {
            for asked in ["GET /mcp", "server/discover", "initialize", OF_PATH] { s.on(asked, status(404)) }
        }, SentNowhere("/.well-known/oauth-protected-resource, answered 404 Not Found")),
        row(27, "the refusal's body never ends", |s| { let answer = s.refusal().endless(); s.on("GET /mcp", answer) }, HONEST),
        row(27, "a POST's refusal never ends", |s| {
            s.on("GET /mcp", status(405));
            let answer = s.refusal().endless();
            s.on("server/discover", answer);
        }, HONEST),

        row(28, "a web page at the path's address", |s| {
            s.challenge("Bearer");
            s.on(OF_PATH, page());
            let metadata = json_of(&s.resource);
            s.on(OF_ROOT, metadata);
        }, Connected("listed offline_access")),
        row(28, "JSON of something else at the path's address", |s| {
            s.challenge("Bearer");
            s.on(OF_PATH, json_of(&json!({"message": "SECRET"})));
            let metadata = json_of(&s.resource);
            s.on(OF_ROOT, metadata);
        }, Connected("listed offline_access")),
        row(28, "web pages at all addresses", |s| { s.on(OF_PATH, page()); s.on(OF_ROOT, page()) },
            SentNowhere("/.well-known/oauth-protected-resource/mcp is not metadata: it is not JSON, at line 1, column 1")),
        row(28, "another's metadata at the path's address", |s| {
            s.challenge("Bearer");
            let metadata = json_of(&s.resource);
            s.on(OF_ROOT, metadata);
            s.resource["resource"] = json!("https://evil.example/mcp");
        }, SentNowhere("`resource` is https://evil.example/mcp")),
        row(28, "the server has a web page at RFC 8414's address", |s| {
            s.at_server(OAUTH, page());
            let metadata = json_of(&s.metadata);
            s.at_server(OPENID, metadata);
        }, HONEST),
        row(28, "the server has another's metadata at RFC 8414's address", |s| {
            let metadata = json_of(&s.metadata);
            s.at_server(OPENID, metadata);
            s.metadata["issuer"] = json!("https://evil.example");
        }, SentNowhere("its metadata names the issuer https://evil.example, which is another")),

        row(29, "the challenge leads to nothing", |s| s.challenge_at("{upstream}/.well-known/oauth-protected-resource/other"), HONEST),
        row(29, "the challenge leads to a web page", |s| {
            s.challenge_at("{upstream}/.well-known/oauth-protected-resource/other");
            s.on("GET /.well-known/oauth-protected-resource/other", page());
        }, HONEST),
        row(29, "the challenge names a path", |s| s.challenge_at("/.well-known/oauth-protected-resource/mcp"), HONEST),
        row(29, "the challenge names an http address", |s| s.challenge_at("http://as.localhost/.well-known/oauth-protected-resource"), HONEST),
        row(29, "the challenge names nothing", |s| s.challenge_at(""), HONEST),
        row(29, "the challenge names two addresses", |s| s.challenge_at(r#"{metadata}", resource_metadata="{metadata}"#), HONEST),
        row(29, "the challenge leads to another's metadata", |s| {
            s.challenge_at("{upstream}/.well-known/oauth-protected-resource/other");
            s.on("GET /.well-known/oauth-protected-resource/other", json_of(&json!({"resource": "https://evil.example/mcp"})));
        }, SentNowhere("`resource` is https://evil.example/mcp")),

        row(30, "UTF-8 in quotes", |s| s.challenge(r#"Bearer realm="é SECRET", scope="own", resource_metadata="{metadata}""#), Connected("own offline_access")),
        row(30, "two spaces", |s| s.challenge(r#"Bearer  scope="own", resource_metadata="{metadata}""#), Connected("own offline_access")),
        row(30, "a token beside", |s| s.challenge(r#"Negotiate oYG/SECRET==, Bearer scope="own""#), Connected("own offline_access")),
        row(30, "no commas", |s| s.challenge(r#"Bearer error="invalid_token" scope="own" resource_metadata="{metadata}""#), Connected("own offline_access")),
        row(30, "no quotes", |s| s.challenge("Bearer scope=own, resource_metadata={metadata}"), Connected("own offline_access")),
        row(30, "no quotes around two", |s| s.challenge("Bearer scope=own SECRET, resource_metadata={metadata}"), Connected("listed offline_access")),
        row(30, "quotes in quotes", |s| s.challenge(r#"Bearer error_description="no "SECRET"", scope="own""#), Connected("own offline_access")),
        row(30, "60 kB", |s| s.challenge(&format!(r#"Bearer error_description="{}", scope="own""#, "SECRET".repeat(10_000))), Connected("own offline_access")),
        row(30, "a scope of 60 kB", |s| s.challenge(&format!(r#"Bearer scope="{}""#, "own ".repeat(15_000))), Connected("own offline_access")),
        row(30, "ten challenges", |s| {
            let mut ten = vec!["Negotiate", "Basic realm=x", "DPoP algs=ES256", "Bearer", "Digest"];
            ten.extend([r#"Bearer scope="own""#; 5]);
            s.on("GET /mcp", challenges(&ten));
        }, Connected("own offline_access")),

        row(31, "201", |s| s.token.status = 201, HONEST),
        row(31, "a lifetime as text", |s| s.grant("expires_in", json!("3600")), HONEST),
        row(31, "a lifetime as a fraction", |s| s.grant("expires_in", json!(3600.0)), HONEST),
        row(31, "a lifetime below zero", |s| s.grant("expires_in", json!(-1)), HONEST),
        row(31, "JSON as text/plain", |s| s.token.headers = vec![("content-type", "text/plain".into())], HONEST),
        row(31, "a list of scopes", |s| s.grant("scope", json!(["read"])), HONEST),
        row(31, "no token type", |s| s.grant("token_type", Value::Null), HONEST),
        row(31, "another token type", |s| s.grant("token_type", json!("mac")), Refused("exchange_failed", "`token_type` is not Bearer")),
        row(31, "two tokens", |s| s.token.body = br#"{"access_token":"SECRET","access_token":"SECRET"}"#.to_vec(),
            Refused("exchange_failed", "`access_token` is there twice")),
        row(32, "too many requests", |s| s.token = status(429), Refused("exchange_failed", "the token endpoint answered 429")),
        row(34, "no lifetime", |s| s.grant("expires_in", Value::Null), HONEST),

        row(35, "null where a member may be absent", |s| {
            for member in ["revocation_endpoint", "grant_types_supported", "response_types_supported", "jwks_uri"] {
                s.metadata[member] = Value::Null;
            }
            s.resource["scopes_supported"] = Value::Null;
        }, HONEST),
        row(35, "an empty revocation endpoint", |s| s.metadata["revocation_endpoint"] = json!(""), HONEST),
        row(35, "an http revocation endpoint", |s| s.metadata["revocation_endpoint"] = json!("http://as.example/revoke"), HONEST),
        row(35, "a revocation endpoint that is a number", |s| s.metadata["revocation_endpoint"] = json!(1), HONEST),
        row(35, "lists that are texts", |s| {
            s.metadata["response_types_supported"] = json!("code");
            s.metadata["grant_types_supported"] = json!("authorization_code");
            s.resource["scopes_supported"] = json!("listed");
        }, HONEST),
        row(35, "what nobody reads is deep", |s| {
            let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
            let document = s.metadata.to_string().replacen('{', &format!("{{\"extra\":{deep},"), 1);
            s.at_server(OAUTH, status(200).body(document));
        }, HONEST),
        row(35, "a megabyte", |s| {
            let mut document = s.metadata.to_string();
            document.push_str(&" ".repeat((1 << 20) - document.len()));
            s.at_server(OAUTH, status(200).body(document));
        }, HONEST),
        row(35, "more than a megabyte", |s| s.at_server(OAUTH, status(200).body("SECRET".repeat(200_000))),
            SentNowhere("the answer is larger than 1048576 bytes")),
        row(35, "a byte order mark", |s| {
            let document = format!("\u{feff}{}", s.metadata);
            s.at_server(OAUTH, status(200).body(document));
        }, HONEST),
        row(35, "what may be absent is there twice", |s| s.twice("revocation_endpoint"), HONEST),
        row(35, "the issuer is there twice", |s| s.twice("issuer"), SentNowhere("`issuer` is there twice")),
        row(35, "the token endpoint is there twice", |s| s.twice("token_endpoint"), SentNowhere("`token_endpoint` is there twice")),
        row(35, "PKCE is there twice", |s| s.twice("code_challenge_methods_supported"),
            SentNowhere("`code_challenge_methods_supported` is there twice")),
        row(35, "the token endpoint is a list", |s| s.metadata["token_endpoint"] = json!(["SECRET"]),
            SentNowhere("`token_endpoint` has another type than it must have")),

        row(36, "the issuer with a slash", |s| s.metadata["issuer"] = json!(format!("{}/", s.issuer)), HONEST),
        row(36, "the issuer without its slash", |s| s.resource["authorization_servers"] = json!([format!("{}/", s.issuer)]), HONEST),
        row(36, "`iss` without the slash", |s| {
            s.metadata["issuer"] = json!(format!("{}/", s.issuer));
            s.iss = Some(s.issuer.clone());
        }, Refused("issuer_mismatch", "`iss` is not https://as.localhost")),
        row(36, "the slash of a path", |s| {
            let issuer = format!("{}/tenant", s.issuer);
            s.resource["authorization_servers"] = json!([issuer]);
            s.metadata["issuer"] = json!(format!("{issuer}/"));
            let metadata = json_of(&s.metadata);
            s.at_server("GET /.well-known/oauth-authorization-server/tenant", metadata);
        }, SentNowhere("/tenant/, which is another")),

        row(37, "twice, with other white space", |s| s.challenge(r#"Bearer scope=" read  write	read ""#), HONEST),
        row(37, "offline_access of the challenge", |s| s.challenge(r#"Bearer scope="offline_access read""#), Connected("read offline_access")),
        row(37, "offline_access that the server does not list", |s| {
            s.challenge(r#"Bearer scope="offline_access read""#);
            s.metadata["scopes_supported"] = json!(["read"]);
        }, Connected("read")),
        row(37, "offline_access alone", |s| s.challenge(r#"Bearer scope="offline_access""#), Connected("")),
        row(37, "no scope anywhere", |s| { s.challenge("Bearer"); s.resource["scopes_supported"] = json!([]) }, Connected("")),
        row(37, "several in one of a list", |s| { s.challenge("Bearer"); s.resource["scopes_supported"] = json!(["a b", "b c"]) },
            Connected("a b c offline_access")),
        row(37, "a list of a megabyte", |s| {
            s.challenge("Bearer");
            s.resource["scopes_supported"] = (0..100_000).map(|number| json!(format!("{number}"))).collect();
        }, Connected("")),

        row(38, "pushed requests are demanded", |s| s.metadata["require_pushed_authorization_requests"] = json!(true),
            SentNowhere("it demands pushed authorization requests (`require_pushed_authorization_requests`)")),
        row(38, "pushed requests are offered", |s| s.metadata["require_pushed_authorization_requests"] = json!(false), HONEST),
        row(38, "signed requests are demanded", |s| s.metadata["require_signed_request_object"] = json!("true"),
            SentNowhere("it demands signed authorization requests (`require_signed_request_object`)")),

        row(39, "metadata is packed", |s| s.at_server(OAUTH, status(200).body(b"\x1f\x8bSECRET").header("content-encoding", "gzip")),
            SentNowhere("it is packed (`content-encoding: gzip`), though nobody asked for that")),
        row(39, "metadata only says that it is packed", |s| {
            let metadata = json_of(&s.metadata).header("content-encoding", "utf-8");
            s.at_server(OAUTH, metadata);
        }, HONEST),
        row(39, "the token is packed", |s| s.token = status(200).body(b"\x1f\x8bSECRET").header("content-encoding", "br"),
            Refused("exchange_failed", "it is packed (`content-encoding: br`)")),

        row(24, "the first of two servers cannot be used", |s| {
            s.resource["authorization_servers"] = json!([format!("{}/first", s.issuer), s.issuer]);
        }, SentNowhere("answered 404 Not Found; the upstream also names https://as.localhost")),
        row(24, "the second of two servers is pinned", |s| {
            s.challenge("Bearer");
            s.resource["scopes_supported"] = json!([]);
            s.resource["authorization_servers"] = json!([format!("{}/first", s.issuer), s.issuer]);
            s.pin = Some(s.issuer.clone());
        }, Connected("")),
    ]
}

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
