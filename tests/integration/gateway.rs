//! Envoy and envoy-cimd before an MCP server that demands tokens, and people who are connected to it or not.

use std::{sync::Mutex, time::Duration};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response, Version};
use http_body_util::{BodyExt, Empty, Full};
use hyper::{body::Incoming, client::conn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::timeout;
use url::Url;

use crate::{
    authorization_server::{HOST, Lie, Servers},
    flow::{WHO, person, press_shown, with_people},
    mcp_upstream::{McpUpstream, Upload, endless, pieces},
    stack::{Answered, Call, Certificates, Choreographer, Cimd, PATIENCE, get, key_file},
    world::{CALLBACK, DISCONNECT, Wish, World, executable, list, virtual_hosts},
};

pub const NOTES: &str = "notes.localhost";
/// The path of the MCP address of [`NOTES`].
pub const MCP: &str = "/notes/mcp";
pub const VERSIONS: [Version; 2] = [Version::HTTP_11, Version::HTTP_2];

/// Who is connected, and who never was.
pub const ANNA: Option<&str> = Some("anna");
pub const BERT: Option<&str> = Some("bert");
/// Whom no filter names.
pub const NOBODY: Option<&str> = None;

/// What a test wants otherwise than usual.
pub struct Setup<'a> {
    /// `from`, and the name of the upstream and its issuer.
    pub routes: &'a [(&'a str, &'a str)],
    pub lies: Vec<Lie>,
    pub serve: &'a [&'a str],
    pub envoy_config: &'a [&'a str],
    pub edit: &'a (dyn Fn(&mut Value) + Sync),
    /// Envoy speaks HTTP/2 with the upstream.
    pub speaks_http2: bool,
    /// Everybody is one.
    pub single_user: bool,
    /// The choreographer and the tokens are in a process of their own, on these flags.
    pub apart: Option<&'a [&'a str]>,
    /// What both log.
    pub log: &'a str,
}

impl Default for Setup<'_> {
    fn default() -> Self {
        Self {
            routes: &[("https://notes.localhost", "notes")],
            lies: vec![Lie::none("notes")],
            serve: &[],
            envoy_config: &[],
            edit: &|_| {},
            speaks_http2: false,
            single_user: false,
            apart: None,
            log: "trace",
        }
    }
}

pub struct Gateway {
    pub world: World,
    pub servers: Servers,
    pub upstream: McpUpstream,
    pub choreographer: Option<Choreographer>,
    pub dir: TempDir,
    serve: Vec<String>,
    choreographs: Vec<String>,
    /// What must be in no log.
    secrets: Mutex<Vec<String>>,
}

impl Gateway {
    pub async fn start(setup: Setup<'_>) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let certificates = Certificates::make(dir.path(), &[HOST]);
        let servers = Servers::start(&certificates, setup.lies.clone()).await;
        let upstream = McpUpstream::start(&servers.issuer).await;
        let at = |name: &str| dir.path().join(name).display().to_string();
        let [socket, tokens, calls] =
            ["cimd.sock", "tokens.sock", "calls.sock"].map(|name| format!("unix:{}", at(name)));
        let mut exchange =
            ["--extra-ca", &certificates.ca.display().to_string(), "--allow-host", HOST].map(str::to_owned).to_vec();
        exchange.extend(["--state-dir".to_owned(), at("state")]);
        let log = format!("--log={}", setup.log);
        let mut serve = vec!["--listen".to_owned(), socket, log.clone()];
        serve.extend(if setup.single_user {
            vec!["--single-user".to_owned()]
        } else {
            WHO.map(str::to_owned).to_vec()
        });
        serve.extend(setup.serve.iter().map(|flag| (*flag).to_owned()));
        let mut choreographs = Vec::new();
        let mut choreographer = None;
        if let Some(flags) = setup.apart {
            choreographs.clone_from(&exchange);
            choreographs.extend(["--listen", &calls, "--tokens-listen", &tokens, &log].map(str::to_owned));
            choreographs.extend(flags.iter().map(|flag| (*flag).to_owned()));
            choreographer = Some(Choreographer::start(&executable(), &texts(&choreographs)).await);
            let keys = key_file(dir.path()).display().to_string();
            serve.extend(["--choreographer", &calls, "--tokens", &tokens, "--state-keys", &keys].map(str::to_owned));
        } else {
            serve.extend(exchange);
        }
        let world = world(&setup, &upstream, &serve).await;
        Self { world, servers, upstream, choreographer, dir, serve, choreographs, secrets: Mutex::default() }
    }

    /// A second Envoy and envoy-cimd, with the same choreographer and upstream.
    pub async fn another(&self, setup: &Setup<'_>) -> World {
        let mut serve = self.serve.clone();
        if let Some(listen) = serve.get_mut(1) {
            *listen = format!("unix:{}", self.dir.path().join("another.sock").display());
        }
        world(setup, &self.upstream, &serve).await
    }

    /// Starts envoy-cimd anew, where it was.
    pub async fn serve_again(&mut self) {
        self.world.cimd = Cimd::start(&executable(), &texts(&self.serve)).await;
    }

    /// Starts the choreographer anew, where it was.
    pub async fn choreograph_again(&mut self) {
        self.choreographer = Some(Choreographer::start(&executable(), &texts(&self.choreographs)).await);
    }

    pub fn choreographer(&mut self) -> &mut Choreographer {
        self.choreographer.as_mut().expect("it is apart")
    }

    /// Connects somebody to a route; the code of their flow, which their tokens go back to.
    pub async fn connect(&self, from: &str, name: &str, who: Option<&str>) -> String {
        let from = Url::parse(from).expect("a URL");
        let (host, path) = (from.host_str().expect("a host").to_owned(), from.path().trim_end_matches('/').to_owned());
        let issuer = format!("{}/{name}", self.servers.issuer);
        let mut press = press_shown(&host, "", &issuer);
        press.path = format!("{path}{}", press.path);
        let begun = self.endpoint(press, who).await;
        let [location] = begun.all("location")[..] else { panic!("{begun:?}") };
        let code = self.servers.consent(location);
        let location = Url::parse(location).expect("a URL");
        let state = location.query_pairs().find(|(name, _)| name == "state").expect("a state").1.into_owned();
        let cookie = begun.all("set-cookie").join("").split(';').next().expect("a pair").to_owned();
        let path = format!("{path}{CALLBACK}?code={code}&state={state}&iss={issuer}");
        let completed = self.endpoint(Call::get(&host, &path).header("cookie", cookie), who).await;
        assert_eq!(completed.status, 303, "{completed:?}");
        code
    }

    /// Connects Anna to the usual route.
    pub async fn connect_anna(&self) -> String {
        self.connect("https://notes.localhost", "notes", ANNA).await
    }

    pub async fn disconnect(&self, who: Option<&str>) {
        let call = Call::get(NOTES, DISCONNECT).method("POST").header("sec-fetch-site", "same-origin");
        let answer = self.endpoint(call, who).await;
        assert_eq!(answer.status, 303, "{answer:?}");
    }

    async fn endpoint(&self, call: Call, who: Option<&str>) -> Answered {
        let call = who.map_or(call.clone(), |who| person(call, "i", who));
        self.world.https().send(Version::HTTP_2, call).await.expect("an answer")
    }

    /// How often MCP traffic came to this.
    pub async fn outcome(&self, label: &str) -> Option<u64> {
        self.world.metric(&format!("envoy_cimd_requests_total{{endpoint=\"traffic\",outcome=\"{label}\"}}")).await
    }

    /// Waits until envoy-cimd has no more than so many requests under way.
    pub async fn has_at_most(&self, streams: u64) {
        let has = async { while self.world.metric("envoy_cimd_streams").await > Some(streams) {} };
        timeout(PATIENCE, has).await.unwrap_or_else(|_| panic!("there are more than {streams} streams"));
    }

    /// Waits until envoy-cimd has so many requests under way.
    pub async fn has_streams(&self, streams: u64) {
        let has = async { while self.world.metric("envoy_cimd_streams").await != Some(streams) {} };
        timeout(PATIENCE, has).await.unwrap_or_else(|_| panic!("there are not {streams} streams"));
    }

    pub async fn send(&self, version: Version, ask: &Ask) -> Answered {
        send(&self.world, version, ask).await
    }

    /// The flow that the one token of a request goes back to; with it, the request has a tag, and nothing of the caller's.
    pub fn token_of(&self, came: &crate::mcp_upstream::Came) -> String {
        let [authorization] = came.all("authorization")[..] else { panic!("{:?}", came.headers) };
        let token = authorization.strip_prefix("Bearer ").unwrap_or_else(|| panic!("{authorization}"));
        let [tag] = came.all("x-tag")[..] else { panic!("{:?}", came.headers) };
        assert_eq!(tag.len(), 22, "16 bytes in base64url: {tag}");
        self.secrets.lock().expect("secrets").extend([token.to_owned(), tag.to_owned()]);
        for name in ["cookie", "proxy-authorization"] {
            assert!(!came.headers.contains_key(name), "{:?}", came.headers);
        }
        for name in ["authorization", "cookie", "proxy-authorization"] {
            assert!(!came.trailers.contains_key(name), "{:?}", came.trailers);
        }
        let theirs = [&came.headers, &came.trailers].into_iter().flat_map(|map| map.values());
        assert!(theirs.into_iter().all(|value| !String::from_utf8_lossy(value.as_bytes()).contains(THEIRS)));
        self.servers.origin(token).unwrap_or_else(|| panic!("nobody issued {token}"))
    }

    /// No log, metric or trace holds a token or a tag, nor what callers sent.
    pub async fn finish(mut self) {
        let admin = self.world.cimd.admin.parse().expect("an address");
        let (_, metrics) = get(admin, "/metrics").await.expect("metrics");
        // Each to its end: Envoy writes its access log now and then.
        for process in [&mut self.world.envoy.process, &mut self.world.cimd.process] {
            process.stop().await;
        }
        let mut kept = vec![
            ("envoy-cimd", self.world.cimd.process.output()),
            ("envoy", self.world.envoy.process.output()),
            ("metrics", String::from_utf8(metrics.to_vec()).expect("text")),
        ];
        if let Some(choreographer) = &mut self.choreographer {
            choreographer.process.stop().await;
            kept.push(("choreographer", choreographer.process.output()));
        }
        let mut secrets = self.secrets.into_inner().expect("secrets");
        secrets.extend(["SECRET".to_owned(), THEIRS.to_owned()]);
        for (name, text) in kept {
            assert!(!text.is_empty(), "{name} says something");
            let leaked = secrets.iter().find(|secret| text.contains(secret.as_str()));
            assert!(leaked.is_none(), "{name} holds {leaked:?}");
        }
    }
}

/// What is in every credential that callers bring.
pub const THEIRS: &str = "SECRET-of-the-caller";

fn texts(flags: &[String]) -> Vec<&str> {
    flags.iter().map(String::as_str).collect()
}

async fn world(setup: &Setup<'_>, upstream: &McpUpstream, serve: &[String]) -> World {
    let routes: Vec<String> =
        setup.routes.iter().map(|(from, name)| format!("from={from},to={}", upstream.url(name))).collect();
    let edit = |config: &mut Value| {
        if !setup.single_user {
            with_people(config);
        }
        if setup.speaks_http2 {
            speak_http2(config);
        }
        with_tags(config);
        (setup.edit)(config);
    };
    let mut envoy_config = setup.envoy_config.to_vec();
    envoy_config.push(if setup.single_user { "--single-user" } else { WHO[0] });
    World::start(Wish { routes: &texts(&routes), cimd: &texts(serve), envoy_config: &envoy_config, edit: &edit }).await
}

/// Has Envoy speak HTTP/2 with the upstreams, so that trailers reach them.
fn speak_http2(config: &mut Value) {
    for cluster in list(&mut config["static_resources"]["clusters"]) {
        if cluster["name"] != "envoy-cimd" {
            cluster["typed_extension_protocol_options"] = json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            }});
        }
    }
}

/// Has the upstream told what the token is called, which only filters are to know: so that a test can look for it.
fn with_tags(config: &mut Value) {
    for host in virtual_hosts(config) {
        for route in list(&mut host["routes"]) {
            if route.get("route").is_some() {
                route["request_headers_to_add"] =
                    json!([{"header": {"key": "x-tag", "value": "%DYNAMIC_METADATA(envoy_cimd_traffic:tag)%"}}]);
            }
        }
    }
}

/// An MCP request.
#[derive(Clone, Debug)]
pub struct Ask {
    pub method: &'static str,
    pub host: String,
    pub authority: String,
    pub path: String,
    pub who: Option<String>,
    pub headers: Vec<(String, String)>,
    pub payload: Payload,
}

#[derive(Clone, Debug)]
pub enum Payload {
    /// The request ends with its headers.
    None,
    Whole(Bytes),
    /// Of unknown length, with these trailers.
    Pieces(Bytes, Vec<(&'static str, &'static str)>),
    /// It begins so, and never ends.
    Endless(Bytes),
}

impl Ask {
    /// One without a body.
    pub fn new(method: &'static str) -> Self {
        Self {
            method,
            host: NOTES.to_owned(),
            authority: NOTES.to_owned(),
            path: MCP.to_owned(),
            who: ANNA.map(str::to_owned),
            headers: Vec::new(),
            payload: Payload::None,
        }
    }

    pub fn post(body: impl Into<Bytes>) -> Self {
        Self::new("POST").header("content-type", "application/json").payload(Payload::Whole(body.into()))
    }

    pub fn payload(self, payload: Payload) -> Self {
        Self { payload, ..self }
    }

    pub fn by(self, who: Option<&str>) -> Self {
        Self { who: who.map(str::to_owned), ..self }
    }

    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub fn at(self, host: &str, path: &str) -> Self {
        Self { host: host.to_owned(), authority: host.to_owned(), path: path.to_owned(), ..self }
    }

    /// The request as this version has it.
    pub fn request(&self, version: Version) -> Request<Upload> {
        let body = match self.payload.clone() {
            Payload::None => Empty::new().boxed(),
            Payload::Whole(body) => Full::new(body).boxed(),
            Payload::Pieces(body, trailers) => pieces(body, &trailers),
            Payload::Endless(begin) => endless(begin),
        };
        let mut request = Request::builder().method(self.method).version(version);
        request = match version {
            Version::HTTP_2 => request.uri(format!("https://{}{}", self.authority, self.path)),
            _ => request.uri(&self.path).header("host", &self.authority),
        };
        let who = self.who.iter().flat_map(|who| [("x-issuer", "i"), ("x-subject", who)]);
        let headers = self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        for (name, value) in headers.chain(who) {
            let name: HeaderName = name.parse().expect("a name");
            request = request.header(name, HeaderValue::from_bytes(value.as_bytes()).expect("a value"));
        }
        request.body(body).expect("a request")
    }
}

/// Sends a request on a connection of its own, and reads the whole answer, which may come before the request ends.
pub async fn send(world: &World, version: Version, ask: &Ask) -> Answered {
    send_within(PATIENCE, world, version, ask).await
}

/// The same, where an answer may take longer than others.
pub async fn send_within(patience: Duration, world: &World, version: Version, ask: &Ask) -> Answered {
    let answer = async {
        let (head, body) = open(world, version, ask).await?.into_parts();
        let body = body.collect().await.map_err(|error| format!("{error:?}"))?.to_bytes();
        Ok::<_, String>(Answered { status: head.status.as_u16(), headers: head.headers, body })
    };
    let answer = timeout(patience, answer).await.unwrap_or_else(|_| Err("no answer in time".to_owned()));
    answer.unwrap_or_else(|error| panic!("{error}: {version:?} {} {} {:?}", ask.method, ask.path, ask.headers))
}

/// The same, where the body of the answer is still to be read.
pub async fn open(world: &World, version: Version, ask: &Ask) -> Result<Response<Incoming>, String> {
    let text = |error: hyper::Error| format!("{error:?}");
    let io = TokioIo::new(world.https().connect(version, &ask.host).await?);
    let request = ask.request(version);
    if version == Version::HTTP_2 {
        let (mut sender, connection) = conn::http2::handshake(TokioExecutor::new(), io).await.map_err(text)?;
        tokio::spawn(connection);
        sender.send_request(request).await.map_err(text)
    } else {
        let (mut sender, connection) = conn::http1::handshake(io).await.map_err(text)?;
        tokio::spawn(connection);
        sender.send_request(request).await.map_err(text)
    }
}
