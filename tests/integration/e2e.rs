//! With programs that nobody here wrote: an authorization server and a browser. `make e2e` runs these.

use std::{
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

use axum::{extract::RawQuery, response::Html};
use rustix::io::FdFlags;
use serde_json::{Value, json};
use url::{Url, form_urlencoded};

use crate::{
    stack::{self, Certificates},
    world::{Wish, World, metadata, virtual_hosts},
};

mod in_a_browser;
mod whole_flow;

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

/// Where the authorization server of the whole flow is.
pub const AS_HOST: &str = "as.localhost";

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
    let routes = ["from=https://notes.localhost", "from=https://tickets.localhost"];
    let (mut world, variables) = served_by_a_script(dir.path(), &upstream, &routes, &[]).await;
    node(script, &world, &variables).await;
    assert_eq!(world.cimd.process.stop().await, Some(0));
    for (name, text) in [("log", world.cimd.process.output()), ("Envoy", world.envoy.process.output())] {
        assert!(text.contains("notes.localhost"), "{name} says something");
        assert!(!text.to_ascii_lowercase().contains("bearer "), "{name} has a token:\n{text}");
    }
}

/// A world whose MCP server, and its authorization server at [`AS_HOST`], are a script; and what the script must know of
/// both. What is kept is in `state` below this folder.
async fn served_by_a_script(
    dir: &Path,
    upstream: &Handed,
    routes: &[&str],
    more_flags: &[&str],
) -> (World, Vec<(&'static str, String)>) {
    let path = |path: &Path| path.to_str().expect("text").to_owned();
    let certificates = Certificates::make(dir, &[AS_HOST]);
    let (ca, state) = (path(&certificates.ca), path(&dir.join("state")));
    let mut flags = vec!["--single-user", "--insecure-traffic", "--state-dir", &state, "--log=trace"];
    flags.extend(["--extra-ca", &ca, "--allow-host", AS_HOST]);
    flags.extend(more_flags);
    let world = World::start(Wish {
        routes,
        cimd: &flags,
        envoy_config: &["--insecure-traffic"],
        edit: &|config| put_behind(config, &upstream.url),
    })
    .await;
    let variables = vec![
        ("E2E_UPSTREAM", upstream.url.clone()),
        ("E2E_UPSTREAM_FD", upstream.fd()),
        ("E2E_AS_HOST", AS_HOST.to_owned()),
        ("E2E_AS_CERT", path(&certificates.cert)),
        ("E2E_AS_KEY", path(&certificates.key)),
    ];
    (world, variables)
}

/// Clients that have no document, of an authorization server that takes none: one that is registered dynamically, and
/// two that somebody registered by hand, one for each way to send a secret.
#[tokio::test]
#[ignore = "needs Node.js: make e2e"]
async fn e2e_clients_without_documents() {
    let dir = tempfile::tempdir().expect("a folder");
    let (upstream, server) = (Handed::new(), Handed::new());
    let file = |name: &str| dir.path().join(name).to_str().expect("text").to_owned();
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
    let config = file("config.yaml");
    std::fs::write(&config, json!({"clients": listed}).to_string()).expect("written");
    let pinned = by_hand.map(|(from, _)| format!("from={from},authorization_server={issuer}"));
    let routes = ["from=https://notes.localhost", &pinned[0], &pinned[1]];
    let flags = ["--config", &config, "--dynamic-registration"];
    let (mut world, mut variables) = served_by_a_script(dir.path(), &upstream, &routes, &flags).await;
    variables.extend([
        ("E2E_AS_FD", server.fd()),
        ("E2E_CLIENTS", json!(clients).to_string()),
        ("E2E_SECRETS", file("secrets")),
    ]);
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
    for file in std::fs::read_dir(file("state")).expect("the state directory") {
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
