//! With programs that nobody here wrote: an authorization server and a browser. `make e2e` runs these.

use std::{
    collections::{BTreeMap, HashSet},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    extract::{Path as Segment, RawQuery, State},
    http::{
        HeaderMap, HeaderValue, StatusCode,
        header::{ACCEPT, HOST, LOCATION, WWW_AUTHENTICATE},
    },
    response::{Html, IntoResponse, Response},
    routing::{get, post, put},
};
use envoy_cimd::{
    commands::settings,
    contract::proto::{
        DisconnectRequest, GetUpstreamTokenRequest, LostConnection, describe_connection_response::State as Standing,
        upstream_tokens_client::UpstreamTokensClient,
    },
    exchange::embedded::Embedded,
    model::{paths::Paths, secret::Secret, user::User},
};
use rustix::io::FdFlags;
use serde::Deserialize;
use serde_json::{Value, json};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};
use url::{Url, form_urlencoded};

use crate::{
    choreographer::{Call, Fake, ISSUER, Mood},
    exchange::single,
    flow::WHO,
    pages::{connected, never, stands},
    stack::{self, Certificates, in_process::owner, key_file},
    world::{DOCUMENT, Wish, World, http_filters, metadata, virtual_hosts},
};

/// Runs a script of `tests/e2e`, all of which go beside their modules, with what it must know of the world.
pub async fn node(script: &str, world: &World, variables: &[(&str, String)]) {
    let modules = PathBuf::from(std::env::var_os("E2E_MODULES").expect("`make e2e` sets E2E_MODULES"));
    for file in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e")).expect("the scripts") {
        let file = file.expect("a script");
        if file.path().extension().is_some_and(|extension| extension == "mjs" || extension == "py") {
            std::fs::copy(file.path(), modules.join(file.file_name())).expect("a script");
        }
    }
    let status = tokio::process::Command::new("node")
        .arg(modules.join(script))
        .env("E2E_CA", &world.certificates.ca)
        .env("E2E_ENVOY_PORT", world.envoy.https.port().to_string())
        .envs(variables.iter().map(|(name, value)| (*name, value)))
        .kill_on_drop(true)
        .status()
        .await
        .expect("node runs");
    assert!(status.success(), "{script} says what failed");
}

#[tokio::test]
#[ignore = "needs Node.js: make e2e"]
async fn e2e_oidc_provider_takes_the_documents() {
    let routes = ["https://notes.localhost", "https://tickets.localhost:8443"];
    let wishes = routes.map(|from| format!("from={from}"));
    let world = World::start(Wish { routes: &wishes.each_ref().map(String::as_str), ..Wish::default() }).await;
    node("oidc_provider.mjs", &world, &[("E2E_ROUTES", json!(routes).to_string())]).await;
}

/// A host name such as large companies have, to see whether it fits on a page.
const LONG: &str = "model-context-protocol-gateway.production.eu-central-1.data-platform.localhost";

#[tokio::test]
#[ignore = "needs Node.js and Chromium: make e2e"]
async fn e2e_in_a_browser() {
    let neighbour = Neighbour::start().await;
    let dir = tempfile::tempdir().expect("a folder");
    let keys = key_file(dir.path());
    let choreographer = neighbour.on_fake(|fake| fake.url());
    let cimd = ["--choreographer", &choreographer, "--state-keys", keys.to_str().expect("text"), "--single-user"];
    let long = format!("from=https://{LONG}");
    let world = World::start(Wish {
        routes: &["from=https://notes.localhost", "from=https://tickets.localhost", &long],
        cimd: &cimd,
        edit: &|config| neighbour.join(config),
        ..Wish::default()
    })
    .await;
    // Here nobody says who the person is.
    let (_, userless) = cimd.split_last().expect("--single-user");
    let nameless =
        World::start(Wish { routes: &["from=https://other.localhost"], cimd: userless, ..Wish::default() }).await;

    // Here the person has a name, and the pages a brand.
    let [namespace, issuer, subject] = WHO;
    let mut flags = userless.to_vec();
    flags.extend([namespace, issuer, subject, "--display-claim=name", "--brand-name=Acme Corporation"]);
    flags.push("--brand-help-url=https://help.acme.example/mcp");
    let named = World::start(Wish {
        routes: &["from=https://acme.localhost"],
        cimd: &flags,
        envoy_config: &[namespace],
        edit: &|config| {
            neighbour.join(config);
            let person = json!({"iss": "https://idp.example", "sub": "ann", "name": "Ann Example <ann@acme.example>"});
            let filter = json!({"name": "who", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.set_metadata.v3.Config",
                "metadata": [{"metadata_namespace": "who", "value": person}],
            }});
            http_filters(config).insert(0, filter);
        },
    })
    .await;

    let variables = [
        ("E2E_NAMED_PORT", named.envoy.https.port().to_string()),
        ("E2E_NAMELESS_PORT", nameless.envoy.https.port().to_string()),
        ("E2E_NEIGHBOUR", neighbour.origin.clone()),
        ("E2E_ISSUER", ISSUER.to_owned()),
        ("E2E_LONG_HOST", LONG.to_owned()),
    ];
    node("browser.mjs", &world, &variables).await;

    let (calls, redeemed) = neighbour.on_fake(|fake| (fake.calls(), fake.exchanges()));
    let (mut browsers, mut completions) = (HashSet::new(), 0);
    for call in &calls {
        match call {
            Call::Describe(describe) => assert!(describe.upstream.ends_with(WORKSPACE), "{describe:?}"),
            Call::Connection(connection) => assert!(connection.upstream.ends_with(WORKSPACE), "{connection:?}"),
            Call::Begin(begin) => {
                let new = browsers.insert((&begin.browser_hash, &begin.redirect_uri));
                assert!(new, "two flows with one cookie: {begin:?}");
            }
            Call::Complete(complete) => {
                let known = browsers.contains(&(&complete.browser_hash, &complete.redirect_uri));
                assert!(known, "of a browser that began nothing: {complete:?}");
                completions += 1;
            }
            Call::Disconnect(disconnect) => {
                assert!(disconnect.client_id.starts_with("https://acme.localhost/"), "{disconnect:?}");
            }
        }
    }
    // The sums of what the script's scenarios count.
    assert_eq!((browsers.len(), completions, redeemed.len()), (21, 20, 15));
    let codes = neighbour.codes();
    assert_eq!(redeemed.iter().collect::<HashSet<_>>().len(), redeemed.len(), "no code twice: {redeemed:?}");
    assert!(redeemed.iter().all(|code| codes.contains(code)), "{redeemed:?} of {codes:?}");
    for (name, output) in [
        ("envoy-cimd", world.cimd.process.output()),
        ("envoy", world.envoy.process.output()),
        ("the named one", named.cimd.process.output()),
    ] {
        assert!(!output.is_empty() && !output.contains(CODE), "{name} knows a code:\n{output}");
        assert!(!output.contains("ann@acme"), "{name} knows who is signed in:\n{output}");
    }
}

/// The path of the upstreams that routes name.
const WORKSPACE: &str = "/workspaces/engineering";

/// All codes begin with this.
const CODE: &str = "e2e-secret-code";

/// Whom a browser meets beside Envoy, on one origin: the authorization server that people are sent to, the upstream
/// that they come back to, and for the script a handle on the choreographer.
struct Neighbour {
    origin: String,
    shared: Arc<Shared>,
}

struct Shared {
    fake: Mutex<Fake>,
    codes: Mutex<Vec<String>>,
}

impl Neighbour {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let origin = format!("http://{}", listener.local_addr().expect("an address"));
        let fake = Fake::start();
        fake.authorize_at(&format!("{origin}/authorize"));
        let shared = Arc::new(Shared { fake: Mutex::new(fake), codes: Mutex::default() });
        let app = Router::new()
            .route("/authorize", get(authorize))
            .route("/allow", post(allow))
            .route("/mcp", get(upstream))
            .route("/attack", get(async || Html(ATTACK)))
            .route("/frame", get(async || Html(FRAME)))
            .route("/fake", get(counts))
            .route("/fake/{mood}", post(set_mood))
            .with_state(Arc::clone(&shared));
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { origin, shared }
    }

    fn on_fake<T>(&self, what: impl FnOnce(&Fake) -> T) -> T {
        what(&self.shared.fake.lock().expect("the fake"))
    }

    /// The codes that it gave out.
    fn codes(&self) -> Vec<String> {
        self.shared.codes.lock().expect("the codes").clone()
    }

    /// Puts it behind Envoy as the upstream, though the routes go on naming one such as people have, and puts a
    /// hostile page on every host.
    fn join(&self, config: &mut Value) {
        lead_to(config, &self.origin);
        for host in virtual_hosts(config) {
            let html = json!({
                "header": {"key": "content-type", "value": "text/html"},
                "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
            });
            let attack = json!({
                "match": {"path": "/attack"},
                "direct_response": {"status": 200, "body": {"inline_string": ATTACK}},
                "response_headers_to_add": [html],
            });
            host["routes"].as_array_mut().expect("routes").insert(0, attack);
            if host.get("metadata").is_some() {
                let of = metadata(host);
                let long = of["from"].as_str().is_some_and(|from| from.contains(LONG));
                let name = if long { LONG } else { "mcp.example" };
                of["to"] = json!(format!("https://{name}{WORKSPACE}"));
            }
        }
    }
}

/// Makes Envoy send to this origin on loopback what is for the upstreams.
pub fn lead_to(config: &mut Value, origin: &str) {
    let port = Url::parse(origin).expect("a URL").port();
    for cluster in config["static_resources"]["clusters"].as_array_mut().expect("clusters") {
        if cluster["name"] != "envoy-cimd" {
            let endpoint = &mut cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"];
            endpoint["address"]["socket_address"]["port_value"] = json!(port);
        }
    }
}

/// Puts an upstream behind Envoy, on every route.
fn put_behind(config: &mut Value, url: &str) {
    lead_to(config, url);
    for host in virtual_hosts(config) {
        if host.get("metadata").is_some() {
            metadata(host)["to"] = json!(url);
        }
    }
}

/// Presses the button of a route from elsewhere.
const ATTACK: &str = r#"<!doctype html><link rel="icon" href="data:,">
<form method="post" action="https://notes.localhost/.pomerium/oauth/start?return_to=/mcp"></form>
<script>document.forms[0].submit()</script>"#;

/// Shows the button of a route where something else seems to be.
const FRAME: &str = r#"<!doctype html><link rel="icon" href="data:,">
<iframe src="https://notes.localhost/.pomerium/oauth/start?return_to=/mcp"></iframe>"#;

/// The consent page of the authorization server. To allow is a form, as it mostly is; to deny is a link.
async fn authorize(RawQuery(query): RawQuery) -> Html<String> {
    let query = query.unwrap_or_default();
    let [client_id, redirect_uri, state] = parameters(&query, ["client_id", "redirect_uri", "state"]);
    let denied = [
        ("error", "access_denied"),
        ("error_description", "<b>words of the server</b>"),
        ("state", &state),
        ("iss", ISSUER),
    ];
    let denied = Url::parse_with_params(&redirect_uri, denied).expect("a redirect URI");
    Html(format!(
        r#"<!doctype html><title>Authorization server</title><link rel="icon" href="data:,"><h1>Allow?</h1>
<p id="client">{client_id}</p>
<form method="post" action="/allow?{query}"><button>Allow</button></form>
<p><a href="{denied}">Deny</a></p>"#
    ))
}

async fn allow(State(shared): State<Arc<Shared>>, RawQuery(query): RawQuery) -> impl IntoResponse {
    let [redirect_uri, state] = parameters(&query.unwrap_or_default(), ["redirect_uri", "state"]);
    let mut codes = shared.codes.lock().expect("the codes");
    let code = format!("{CODE}-{}", codes.len());
    let back = Url::parse_with_params(&redirect_uri, [("code", &*code), ("state", &state), ("iss", ISSUER)]);
    codes.push(code);
    (StatusCode::SEE_OTHER, [(LOCATION, back.expect("a redirect URI").to_string())])
}

/// A page of the upstream; with `?hostile`, one that tries to press the button of the route that it shares its origin
/// with, by itself and when it is clicked on.
async fn upstream(RawQuery(query): RawQuery) -> Html<&'static str> {
    Html(if query.as_deref() == Some("hostile") {
        r#"<!doctype html><title>The upstream</title><link rel="icon" href="data:,"><h1>Hostile</h1>
<form method="post" action="/.pomerium/oauth/start"><button>Free cake</button></form>
<script>document.forms[0].submit()</script>"#
    } else {
        r#"<!doctype html><title>The upstream</title><link rel="icon" href="data:,"><h1>The upstream</h1>"#
    })
}

async fn counts(State(shared): State<Arc<Shared>>) -> String {
    let fake = shared.fake.lock().expect("the fake");
    let redeemed = fake.exchanges().len();
    let disconnects = fake.disconnects().len();
    json!({
        "begins": fake.begins(),
        "completions": fake.completions(),
        "exchanges": redeemed,
        "disconnects": disconnects,
    })
    .to_string()
}

async fn set_mood(State(shared): State<Arc<Shared>>, Segment(mood): Segment<String>) -> StatusCode {
    let mut fake = shared.fake.lock().expect("the fake");
    match mood.as_str() {
        "correct" => {
            fake.release();
            fake.connections_are(stands(never(), None));
        }
        "never" => fake.connections_are(stands(never(), Some(("mcp:read mcp:write", "")))),
        "lost" => fake.connections_are(stands(Standing::Lost(LostConnection {}), Some(("mcp:read mcp:write", "")))),
        "connected" => fake.connections_are(stands(connected("mcp:read mcp:write"), None)),
        "more" => {
            let more = Some(("mcp:read mcp:write mcp:admin", "mcp:admin"));
            fake.connections_are(stands(connected("mcp:read mcp:write"), more));
        }
        "many" => {
            let many: Vec<String> = (0..60).map(|number| format!("https://{LONG}/scopes/{number}")).collect();
            fake.connections_are(stands(connected(&many.join(" ")), None));
        }
        "fails" => fake.set(Mood::Fails),
        "full" => fake.set(Mood::Full),
        "hangs" => fake.set(Mood::Hangs),
        "no-token" => fake.set(Mood::NoToken),
        "down" => fake.kill(),
        "up" => fake.restart(),
        _ => return StatusCode::NOT_FOUND,
    }
    StatusCode::OK
}

/// The values of these parameters.
fn parameters<const N: usize>(query: &str, names: [&str; N]) -> [String; N] {
    names.map(|name| {
        let found = form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == name);
        found.unwrap_or_else(|| panic!("{name} in {query}")).1.into_owned()
    })
}

/// Where the authorization server of the whole flow is.
pub const AS_HOST: &str = "as.localhost";

/// Nothing is faked here: the choreographer is the one in the process, and the token is oidc-provider's.
#[tokio::test]
#[ignore = "needs Node.js and Chromium: make e2e"]
async fn e2e_the_whole_flow() {
    let dir = tempfile::tempdir().expect("a folder");
    let tokens = format!("unix:{}", dir.path().join("tokens.sock").display());
    let upstream = Protected::start(&tokens).await;
    // Of another authority than Envoy's, so that `--extra-ca` vouches for the authorization server alone.
    let certificates = Certificates::make(dir.path(), &[AS_HOST]);
    let path = |path: &Path| path.to_str().expect("text").to_owned();
    let (ca, state) = (path(&certificates.ca), path(&dir.path().join("state")));
    let mut flags = vec!["--single-user", "--state-dir", &state, "--tokens-listen", &tokens, "--log=trace"];
    flags.extend(["--extra-ca", &ca, "--allow-host", AS_HOST]);
    let hosts = ["https://notes.localhost", "https://tickets.localhost", "https://other.localhost"];
    let routes = hosts.map(|from| format!("from={from}"));
    let mut world = World::start(Wish {
        routes: &routes.each_ref().map(String::as_str),
        cimd: &flags,
        edit: &|config| put_behind(config, &upstream.url),
        ..Wish::default()
    })
    .await;

    let variables = [
        ("E2E_UPSTREAM", upstream.url.clone()),
        ("E2E_AS_HOST", AS_HOST.to_owned()),
        ("E2E_AS_CERT", path(&certificates.cert)),
        ("E2E_AS_KEY", path(&certificates.key)),
    ];
    node("whole_flow.mjs", &world, &variables).await;

    let admin = world.cimd.admin.parse().expect("an address");
    let (_, metrics) = stack::get(admin, "/metrics").await.expect("metrics");
    assert_eq!(world.cimd.process.stop().await, Some(0));
    let report = upstream.report();
    let kept = kept(&flags, &hosts, &upstream.url).await;
    // What a route was given last. Nobody is left with the first route's token but that route, which refreshed nothing;
    // the second was disconnected, and the third connected again.
    let last = |host: &str| {
        let of_host = |granted: &&Granted| granted.client_id == format!("{host}{DOCUMENT}");
        let granted = report.granted.iter().rfind(of_host).expect("it was granted");
        Some((granted.access_token.clone(), Some(granted.refresh_token.clone())))
    };
    assert!(kept == [last(hosts[0]), None, last(hosts[2])], "each route's own token is kept, and no other");

    let counts: Vec<_> = report.secrets.iter().map(|(kind, values)| (kind.as_str(), values.len())).collect();
    assert_eq!(
        counts,
        [
            ("access_token", 7),
            ("code", 6),
            ("code_verifier", 5),
            ("cookie", 7),
            ("error_description", 1),
            ("refresh_token", 7),
            ("state", 7),
        ]
    );
    let log = world.cimd.process.output();
    assert!(log.contains(r#""level":"TRACE""#) && log.contains(&report.issuer), "it says all that it can:\n{log}");
    let metrics = String::from_utf8(metrics.to_vec()).expect("text");
    assert!(metrics.contains(r#"outcome="issuer_mismatch"} 1"#), "{metrics}");
    for (name, text) in [("log", log), ("metrics", metrics), ("Envoy", world.envoy.process.output())] {
        assert!(!text.is_empty(), "{name}");
        for (kind, value) in report.secrets.iter().flat_map(|(kind, values)| values.iter().map(move |v| (kind, v))) {
            assert!(!text.contains(value), "{name} has a {kind}, {value}:\n{text}");
        }
    }
}

/// A port that a script is to serve. It takes connections from the start, which wait for the script.
pub struct Handed {
    pub url: String,
    listener: std::net::TcpListener,
}

impl Handed {
    pub fn new() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        // The script inherits it.
        rustix::io::fcntl_setfd(&listener, FdFlags::empty()).expect("a listener to hand on");
        Self { url: format!("http://{}/mcp", listener.local_addr().expect("an address")), listener }
    }

    pub fn fd(&self) -> String {
        self.listener.as_raw_fd().to_string()
    }
}

/// Neither the MCP client nor the MCP server is ours, nor the authorization server: what goes on between them by the
/// filters that are printed.
#[tokio::test]
#[ignore = "needs Node.js and Chromium: make e2e"]
async fn e2e_mcp_traffic() {
    mcp_traffic("mcp_traffic.mjs").await;
}

/// How people are told to connect, as applications with the official SDKs see it.
#[tokio::test]
#[ignore = "needs Node.js and Python: make e2e"]
async fn e2e_telling() {
    mcp_traffic("telling.mjs").await;
}

/// Runs a script that is the MCP server, its authorization server, and clients of the first.
async fn mcp_traffic(script: &str) {
    let dir = tempfile::tempdir().expect("a folder");
    let upstream = Handed::new();
    let certificates = Certificates::make(dir.path(), &[AS_HOST]);
    let path = |path: &Path| path.to_str().expect("text").to_owned();
    let (ca, state) = (path(&certificates.ca), path(&dir.path().join("state")));
    let mut flags = vec!["--single-user", "--insecure-traffic", "--state-dir", &state, "--log=trace"];
    flags.extend(["--extra-ca", &ca, "--allow-host", AS_HOST]);
    let mut world = World::start(Wish {
        routes: &["from=https://notes.localhost", "from=https://tickets.localhost"],
        cimd: &flags,
        envoy_config: &["--insecure-traffic"],
        edit: &|config| put_behind(config, &upstream.url),
    })
    .await;

    let variables = [
        ("E2E_UPSTREAM", upstream.url.clone()),
        ("E2E_UPSTREAM_FD", upstream.fd()),
        ("E2E_AS_HOST", AS_HOST.to_owned()),
        ("E2E_AS_CERT", path(&certificates.cert)),
        ("E2E_AS_KEY", path(&certificates.key)),
    ];
    node(script, &world, &variables).await;
    assert_eq!(world.cimd.process.stop().await, Some(0));
    for (name, text) in [("log", world.cimd.process.output()), ("Envoy", world.envoy.process.output())] {
        assert!(text.contains("notes.localhost"), "{name} says something");
        assert!(!text.to_ascii_lowercase().contains("bearer "), "{name} has a token:\n{text}");
    }
}

/// Clients that have no document, of an authorization server that takes none: one that is registered dynamically, and
/// two that somebody registered by hand, one for each way to send a secret.
#[tokio::test]
#[ignore = "needs Node.js: make e2e"]
async fn e2e_clients_without_documents() {
    let dir = tempfile::tempdir().expect("a folder");
    let (upstream, server) = (Handed::new(), Handed::new());
    let certificates = Certificates::make(dir.path(), &[AS_HOST]);
    let path = |path: &Path| path.to_str().expect("text").to_owned();
    let file = |name: &str| path(&dir.path().join(name));
    let port = Url::parse(&server.url).expect("a URL").port().expect("a port");
    let issuer = format!("https://{AS_HOST}:{port}");
    let by_hand =
        [("https://tickets.localhost", "client_secret_basic"), ("https://other.localhost", "client_secret_post")];
    let clients = by_hand.map(|(from, method)| {
        json!({"from": from, "client_id": format!("by-hand:{method}"), "token_endpoint_auth_method": method,
            "client_secret": format!("SECRET of+{method}%&=:/~")})
    });
    let listed = clients.each_ref().map(|client| {
        let method = client["token_endpoint_auth_method"].as_str().expect("text");
        std::fs::write(file(method), client["client_secret"].as_str().expect("text")).expect("written");
        stack::set_mode(Path::new(&file(method)), 0o600);
        json!({"issuer": issuer, "client_id": client["client_id"], "client_secret_file": file(method),
            "token_endpoint_auth_method": method, "routes": [client["from"]]})
    });
    // JSON is YAML.
    std::fs::write(file("config.yaml"), json!({"clients": listed}).to_string()).expect("written");
    let (ca, state, config) = (path(&certificates.ca), file("state"), file("config.yaml"));
    let mut flags = vec!["--single-user", "--insecure-traffic", "--state-dir", &state, "--log=trace"];
    flags.extend(["--extra-ca", &ca, "--allow-host", AS_HOST, "--config", &config, "--dynamic-registration"]);
    let pinned = by_hand.map(|(from, _)| format!("from={from},authorization_server={issuer}"));
    let mut world = World::start(Wish {
        routes: &["from=https://notes.localhost", &pinned[0], &pinned[1]],
        cimd: &flags,
        envoy_config: &["--insecure-traffic"],
        edit: &|config| put_behind(config, &upstream.url),
    })
    .await;

    let variables = [
        ("E2E_UPSTREAM", upstream.url.clone()),
        ("E2E_UPSTREAM_FD", upstream.fd()),
        ("E2E_AS_HOST", AS_HOST.to_owned()),
        ("E2E_AS_FD", server.fd()),
        ("E2E_AS_CERT", path(&certificates.cert)),
        ("E2E_AS_KEY", path(&certificates.key)),
        ("E2E_CLIENTS", json!(clients).to_string()),
        ("E2E_SECRETS", file("secrets")),
    ];
    node("clients.mjs", &world, &variables).await;
    let admin = world.cimd.admin.parse().expect("an address");
    let (_, metrics) = stack::get(admin, "/metrics").await.expect("metrics");
    assert_eq!(world.cimd.process.stop().await, Some(0));
    let secrets: Vec<String> =
        serde_json::from_slice(&std::fs::read(file("secrets")).expect("written")).expect("texts");
    // Two by hand; what each of two registrations gave; an access and a refresh token for each of ten grants.
    assert_eq!(secrets.len(), 2 + 2 * 2 + 2 * 10);
    let mut places = vec![
        ("the log".to_owned(), world.cimd.process.output().into_bytes()),
        ("the metrics".to_owned(), metrics.to_vec()),
        ("Envoy".to_owned(), world.envoy.process.output().into_bytes()),
    ];
    for file in std::fs::read_dir(&state).expect("the state directory") {
        let path = file.expect("a file").path();
        places.push((path.display().to_string(), std::fs::read(&path).expect("readable")));
    }
    assert!(places.len() > 3, "the store too");
    for (place, content) in &places {
        assert!(!content.is_empty(), "{place}");
        let content = String::from_utf8_lossy(content);
        for secret in &secrets {
            let encoded: String = form_urlencoded::byte_serialize(secret.as_bytes()).collect();
            assert!(!content.contains(secret) && !content.contains(&encoded), "{secret} is in {place}");
        }
    }
}

/// The access and the refresh token that a stopped process with these flags keeps for each route, which must be of
/// this resource.
async fn kept(flags: &[&str], hosts: &[&str], upstream: &str) -> Vec<Option<(String, Option<String>)>> {
    let args = ["envoy-cimd", "serve"].iter().chain(flags).map(std::ffi::OsString::from);
    let settings::Task::Serve(settings) = settings::parse::parse(args).expect("good flags").task else {
        panic!("serve")
    };
    let embedded = Embedded::new(settings.exchange.config(Paths::default())).expect("good settings");
    let mut kept = Vec::new();
    for host in hosts {
        let owner = owner(User::Single, &format!("{host}{DOCUMENT}"), upstream);
        let found = embedded.tokens.record(&owner).await.expect("a store");
        kept.push(found.map(|token| {
            assert_eq!(token.resource, upstream);
            let text = |secret: &Secret| secret.expose().to_owned();
            (text(&token.access_token), token.refresh_token.as_ref().map(text))
        }));
    }
    kept
}

/// What a script says in the end.
#[derive(Deserialize)]
struct Report {
    issuer: String,
    granted: Vec<Granted>,
    /// By what they are.
    secrets: BTreeMap<String, Vec<String>>,
}

#[derive(Deserialize)]
struct Granted {
    client_id: String,
    access_token: String,
    refresh_token: String,
}

/// An MCP server that wants a token, and has a page for people. A script tells it who gives out tokens, and has it ask
/// envoy-cimd for them, as who carries MCP traffic does.
struct Protected {
    url: String,
    told: Arc<Told>,
}

struct Told {
    url: String,
    /// Where envoy-cimd hands out tokens.
    tokens: Endpoint,
    issuer: Mutex<String>,
    report: Mutex<Option<Report>>,
}

/// Where it describes itself.
const RESOURCE_METADATA: &str = "/.well-known/oauth-protected-resource/mcp";

impl Protected {
    async fn start(tokens: &str) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/mcp", listener.local_addr().expect("an address"));
        let told = Arc::new(Told {
            url: url.clone(),
            tokens: Endpoint::from_shared(tokens.to_owned()).expect("an address"),
            issuer: Mutex::default(),
            report: Mutex::default(),
        });
        let app = Router::new()
            .route("/mcp", get(page_or_challenge))
            .route(RESOURCE_METADATA, get(resource_metadata))
            .route("/issuer", put(set_issuer))
            .route("/token", put(hand_out))
            .route("/disconnect", put(disconnect))
            .route("/report", put(set_report))
            .with_state(Arc::clone(&told));
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { url, told }
    }

    fn report(&self) -> Report {
        self.told.report.lock().expect("the report").take().expect("it was told")
    }
}

impl Told {
    async fn client(&self) -> UpstreamTokensClient<Channel> {
        UpstreamTokensClient::new(self.tokens.connect().await.expect("a connection"))
    }
}

/// The page to a browser, the challenge to anybody else.
async fn page_or_challenge(headers: HeaderMap, query: RawQuery) -> Response {
    let header = |name| headers.get(name).map(|value: &HeaderValue| value.to_str().expect("text"));
    if header(ACCEPT).is_some_and(|accept| accept.contains("text/html")) {
        return upstream(query).await.into_response();
    }
    let host = header(HOST).expect("a host");
    let challenge = format!(r#"Bearer scope="mcp", resource_metadata="http://{host}{RESOURCE_METADATA}""#);
    (StatusCode::UNAUTHORIZED, [(WWW_AUTHENTICATE, challenge)]).into_response()
}

async fn resource_metadata(State(told): State<Arc<Told>>, headers: HeaderMap) -> String {
    let host = headers[HOST].to_str().expect("text");
    let issuer = &*told.issuer.lock().expect("the issuer");
    json!({"resource": format!("http://{host}/mcp"), "authorization_servers": [issuer]}).to_string()
}

async fn set_issuer(State(told): State<Arc<Told>>, issuer: String) {
    *told.issuer.lock().expect("the issuer") = issuer;
}

/// The token of the route with this `client_id`.
async fn hand_out(State(told): State<Arc<Told>>, client_id: String) -> Result<String, (StatusCode, String)> {
    let request = GetUpstreamTokenRequest {
        user: Some(single()),
        client_id,
        upstream: told.url.clone(),
        authorization_server: String::new(),
        ..GetUpstreamTokenRequest::default()
    };
    let token = told.client().await.get_upstream_token(request).await.map_err(answer)?;
    Ok(token.into_inner().access_token)
}

async fn disconnect(State(told): State<Arc<Told>>, client_id: String) -> Result<(), (StatusCode, String)> {
    let request = DisconnectRequest {
        user: Some(single()),
        client_id,
        upstream: told.url.clone(),
        ..DisconnectRequest::default()
    };
    told.client().await.disconnect(request).await.map(drop).map_err(answer)
}

/// What a script is told of a refusal.
fn answer(status: Status) -> (StatusCode, String) {
    let code = if status.code() == Code::NotFound { StatusCode::NOT_FOUND } else { StatusCode::BAD_GATEWAY };
    (code, status.to_string())
}

async fn set_report(State(told): State<Arc<Told>>, report: String) {
    *told.report.lock().expect("the report") = Some(serde_json::from_str(&report).expect("a report"));
}
