//! Every page in a browser, with a neighbour that means no good.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    extract::{Path as Segment, RawQuery, State},
    http::{StatusCode, header::LOCATION},
    response::{Html, IntoResponse},
    routing::{get, post},
};
use envoy_cimd::contract::proto::{LostConnection, describe_connection_response::State as Standing};
use serde_json::{Value, json};
use url::{Url, form_urlencoded};

use super::{lead_to, node, upstream};
use crate::{
    choreographer::{Call, Fake, ISSUER, Mood},
    flow::WHO,
    pages::{connected, never, stands},
    stack::key_file,
    world::{Wish, World, http_filters, metadata, virtual_hosts},
};

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
