//! From the document to the token, with nothing faked in between.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    extract::{RawQuery, State},
    http::{
        HeaderMap, HeaderValue, StatusCode,
        header::{ACCEPT, HOST, WWW_AUTHENTICATE},
    },
    response::{IntoResponse, Response},
    routing::{get, put},
};
use envoy_cimd::{
    commands::settings,
    contract::proto::{DisconnectRequest, GetUpstreamTokenRequest, upstream_tokens_client::UpstreamTokensClient},
    exchange::embedded::Embedded,
    model::{paths::Paths, secret::Secret, user::User},
};
use serde::Deserialize;
use serde_json::json;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

use super::{AS_HOST, node, put_behind, upstream};
use crate::{
    exchange::single,
    stack::{self, Certificates, in_process::owner},
    world::{DOCUMENT, Wish, World},
};

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
