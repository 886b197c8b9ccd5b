//! People and MCP clients sign in at an identity provider, by what `envoy-config --sign-in` prints: through a real
//! Envoy, down to the upstream's token. What is no session opens no page, and what is no token for it no MCP route.

use std::{collections::BTreeMap, sync::Mutex};

use http::Version;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::timeout;
use url::Url;

use crate::{
    authorization_server::{HOST, Lie, Servers},
    e2e::{AS_HOST, Handed, node},
    flow::press_shown,
    gateway::{Ask, NOBODY, send},
    identity_provider::{APPLICATION, APPLICATION_SECRET, IdentityProvider},
    mcp_upstream::McpUpstream,
    stack::{Answered, Call, Certificates, PATIENCE, get},
    world::{CALLBACK, DISCONNECT, DOCUMENT, START, Wish, World, list},
};

mod not_let_in;
mod provider;

const NOTES: &str = "notes.localhost";

/// The MCP address of the usual route, and of the other one.
const MCP: &str = "https://notes.localhost/notes/mcp";
const OTHER_MCP: &str = "https://tickets.localhost/linear";
const LIST: &str = r#"{"jsonrpc":"2.0","id":7,"method":"tools/list"}"#;
const SIGN_IN: &str = "/.pomerium/sign-in/callback";
const OUT: &str = "/.pomerium/sign-in/out";

/// A company with an identity provider, and two routes that its people connect.
struct Company {
    world: World,
    provider: IdentityProvider,
    servers: Servers,
    upstream: McpUpstream,
    _dir: TempDir,
    secrets: Mutex<Vec<String>>,
}

impl Company {
    async fn start() -> Self {
        Self::with("sub", &[], &|_| {}).await
    }

    /// With the subject in this claim, and more flags of `envoy-config`.
    async fn with(subject: &str, envoy_config: &[&str], edit: &(dyn Fn(&mut Value) + Sync)) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let certificates = Certificates::make(dir.path(), &[HOST]);
        let servers = Servers::start(&certificates, ["notes", "tickets"].map(Lie::none).to_vec()).await;
        let (upstream, provider) = (McpUpstream::start(&servers.issuer).await, IdentityProvider::start().await);
        let at = |name: &str| dir.path().join(name).display().to_string();
        std::fs::write(at("secret"), APPLICATION_SECRET).expect("written");
        std::fs::write(at("key"), "SECRET-key-of-sessions-0123456789").expect("written");
        let subject = format!("jwt_payload.{subject}");
        let (socket, ca) = (format!("unix:{}", at("cimd.sock")), certificates.ca.display().to_string());
        let mut serve = vec!["--listen", &socket, "--log=trace", "--extra-ca", &ca, "--allow-host", HOST];
        let state = at("state");
        serve.extend(["--state-dir", &state, "--user-namespace", "envoy.filters.http.jwt_authn"]);
        serve.extend(["--user-issuer", "jwt_payload.iss", "--user-subject", &subject]);
        let issuer = &provider.issuer;
        let mut flags = vec![
            format!("--sign-in={issuer}"),
            format!("--sign-in-authorization-endpoint={issuer}/authorize"),
            format!("--sign-in-token-endpoint={issuer}/token"),
            format!("--sign-in-jwks-uri={issuer}/keys"),
            format!("--sign-in-client-id={APPLICATION}"),
            format!("--sign-in-client-secret={}", at("secret")),
            format!("--sign-in-session-key={}", at("key")),
        ];
        flags.extend(envoy_config.iter().map(|flag| (*flag).to_owned()));
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let routes = [("notes.localhost", "notes"), ("tickets.localhost/linear", "tickets")]
            .map(|(from, name)| format!("from=https://{from},to={}", upstream.url(name)));
        let routes = routes.each_ref().map(String::as_str);
        let world = World::start(Wish { routes: &routes, cimd: &serve, envoy_config: &flags, edit }).await;
        Self { world, provider, servers, upstream, _dir: dir, secrets: Mutex::default() }
    }

    async fn send(&self, call: Call) -> Answered {
        self.world.https().send(Version::HTTP_2, call).await.expect("an answer")
    }

    /// An MCP request with this token.
    async fn ask(&self, token: &str) -> Answered {
        self.mcp(asking().header("authorization", format!("Bearer {token}"))).await
    }

    async fn mcp(&self, ask: Ask) -> Answered {
        send(&self.world, Version::HTTP_2, &ask).await
    }

    /// Who the upstream's token is of that went with the last request, by the code of their flow.
    fn code_of_last(&self) -> String {
        let came = self.upstream.came_alone();
        let [authorization] = came.all("authorization")[..] else { panic!("{:?}", came.headers) };
        let token = authorization.strip_prefix("Bearer ").expect("a token");
        assert!(!came.headers.contains_key("cookie"), "{:?}", came.headers);
        self.secrets.lock().expect("secrets").push(token.to_owned());
        self.servers.origin(token).expect("a token of the upstream's")
    }

    /// Nothing secret is in a log.
    async fn finish(mut self) {
        let admin = self.world.cimd.admin.parse().expect("an address");
        let (_, metrics) = get(admin, "/metrics").await.expect("metrics");
        for process in [&mut self.world.envoy.process, &mut self.world.cimd.process] {
            process.stop().await;
        }
        let mut secrets = self.secrets.into_inner().expect("secrets");
        secrets.extend(self.provider.secrets());
        secrets.push("SECRET".to_owned());
        for (name, text) in [
            ("envoy-cimd", self.world.cimd.process.output()),
            ("envoy", self.world.envoy.process.output()),
            ("metrics", String::from_utf8(metrics.to_vec()).expect("text")),
        ] {
            assert!(!text.is_empty(), "{name} says something");
            let leaked = secrets.iter().find(|secret| text.contains(secret.as_str()));
            assert!(leaked.is_none(), "{name} holds {leaked:?}:\n{text}");
        }
    }
}

fn asking() -> Ask {
    Ask::post(LIST).by(NOBODY)
}

/// A browser, which keeps the cookies of one host.
#[derive(Clone, Debug, Default)]
struct Browser(BTreeMap<String, String>);

impl Browser {
    async fn send(&mut self, company: &Company, call: Call) -> Answered {
        let cookies: Vec<String> = self.0.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let call = if cookies.is_empty() { call } else { call.header("cookie", cookies.join("; ")) };
        let answer = company.send(call).await;
        for line in answer.all("set-cookie") {
            let (pair, attributes) = line.split_once(';').expect("attributes");
            let (name, value) = pair.split_once('=').expect("a pair");
            let attributes = attributes.to_ascii_lowercase();
            // What a browser takes of a cookie of this prefix (RFC 6265bis, section 4.1.3.2).
            assert!(name.starts_with("__Host-") && attributes.contains("path=/"), "{line}");
            assert!(attributes.contains("secure") && !attributes.contains("domain"), "{line}");
            let is_over = attributes.contains("max-age=0") || attributes.contains("expires=thu, 01 jan 1970");
            if is_over {
                self.0.remove(name);
            } else {
                assert!(attributes.contains("httponly") && attributes.contains("samesite=lax"), "{line}");
                let is_read = company.provider.secrets().iter().any(|secret| value.contains(secret));
                assert!(!is_read, "no token is to be read in it: {line}");
                self.0.insert(name.to_owned(), value.to_owned());
            }
        }
        answer
    }

    /// Opens the connect page, and signs in where it leads to; the page.
    async fn sign_in(&mut self, company: &Company, subject: &str) -> Answered {
        let back = self.consent(company, subject).await;
        let signed_in = self.send(company, Call::get(NOTES, &back)).await;
        assert_eq!(signed_in.status, 302, "{signed_in:?}");
        assert_eq!(signed_in.all("location"), [format!("https://{NOTES}{START}")]);
        self.send(company, Call::get(NOTES, START)).await
    }

    /// The same until the provider sends the browser back: to where.
    async fn consent(&mut self, company: &Company, subject: &str) -> String {
        let sent = self.send(company, Call::get(NOTES, START)).await;
        let location = is_sent_to_sign_in(company, &sent).to_owned();
        company.provider.consent(&location, subject)
    }

    /// Presses the button; the path of the callback that follows, and the code in it.
    async fn begin(&mut self, company: &Company) -> (String, String) {
        let issuer = format!("{}/notes", company.servers.issuer);
        let begun = self.send(company, press_shown(NOTES, "", &issuer)).await;
        assert_eq!(begun.status, 303, "{begun:?}");
        let [location] = begun.all("location")[..] else { panic!("{begun:?}") };
        let code = company.servers.consent(location);
        let location = Url::parse(location).expect("a URL");
        let state = location.query_pairs().find(|(name, _)| name == "state").expect("a state").1.into_owned();
        company.secrets.lock().expect("secrets").extend([code.clone(), state.clone()]);
        (format!("{CALLBACK}?code={code}&state={state}&iss={issuer}"), code)
    }

    /// Connects who is signed in; the code of the flow.
    async fn connect(&mut self, company: &Company) -> String {
        let (callback, code) = self.begin(company).await;
        let completed = self.send(company, Call::get(NOTES, &callback)).await;
        assert_eq!(completed.status, 303, "{completed:?}");
        code
    }
}

/// Where a browser is sent that has no session.
fn is_sent_to_sign_in<'a>(company: &Company, answer: &'a Answered) -> &'a str {
    assert_eq!(answer.status, 302, "{answer:?}");
    let [location] = answer.all("location")[..] else { panic!("{answer:?}") };
    assert!(location.starts_with(&company.provider.issuer), "{location}");
    location
}

/// What an MCP client is told that is not let in.
fn is_challenged(answer: &Answered, what: &str) {
    assert_eq!(answer.status, 401, "{what}: {answer:?}");
    let metadata = "https://notes.localhost/.well-known/oauth-protected-resource/notes/mcp";
    assert_eq!(answer.all("www-authenticate"), [format!("Bearer resource_metadata=\"{metadata}\"")], "{what}");
}

fn post(path: &str) -> Call {
    Call::get(NOTES, path).method("POST").header("sec-fetch-site", "same-origin")
}

#[tokio::test]
async fn a_person_and_their_client_are_one_user() {
    let company = Company::start().await;
    let (anna, bert) = (company.provider.token("anna", MCP), company.provider.token("bert", MCP));

    // An MCP client that has nothing finds out where it gets a token.
    is_challenged(&company.mcp(asking()).await, "nothing");
    for path in ["/.well-known/oauth-protected-resource/notes/mcp", "/.well-known/oauth-protected-resource"] {
        for method in ["GET", "OPTIONS"] {
            let answer = company.send(Call::get(NOTES, path).method(method)).await;
            assert_eq!((answer.status, answer.all("access-control-allow-origin")), (200, vec!["*"]), "{path}");
            assert_eq!(answer.all("content-type"), ["application/json"]);
            let metadata: Value = serde_json::from_slice(&answer.body).expect("JSON");
            assert_eq!(
                metadata,
                json!({
                    "resource": MCP,
                    "authorization_servers": [company.provider.issuer],
                    "bearer_methods_supported": ["header"],
                })
            );
        }
    }

    // With it, the client is told where the person connects, who signs in there.
    let told = company.ask(&anna).await;
    assert!(told.status == 200 && told.text().contains(START), "{told:?}");
    let mut browser = Browser::default();
    assert_eq!(company.send(Call::get(NOTES, DOCUMENT)).await.status, 200, "the document is for everybody");
    // A person who opens the MCP address in a browser; a page that frames it, or a client's request, is as before.
    let opened = |dest: &str| Call::get(NOTES, "/notes/mcp?x=y").header("sec-fetch-dest", dest);
    let led = company.send(opened("document")).await;
    assert_eq!((led.status, led.all("location")), (303, vec!["https://notes.localhost/.pomerium/oauth/start"]));
    for call in [opened("document").method("POST"), opened("iframe"), opened("empty"), Call::get(NOTES, "/notes/mcp")] {
        is_challenged(&company.send(call).await, "no navigation");
    }
    let with_token = Call::get(NOTES, "/notes/mcp").header("authorization", format!("Bearer {anna}"));
    assert_eq!(company.send(with_token).await.status, 405, "a client's GET is answered as ever");
    let page = browser.sign_in(&company, "anna").await;
    assert_eq!((page.status, page.all("content-type")), (200, vec!["text/html; charset=utf-8"]), "{page:?}");
    let code = browser.connect(&company).await;
    assert_eq!(company.upstream.reached(), 0, "nothing went on until now");

    // Now it has the person's token, and nobody else has.
    assert_eq!(company.ask(&anna).await.status, 200);
    assert_eq!(company.code_of_last(), code);
    let told = company.ask(&bert).await;
    assert!(told.status == 200 && told.text().contains(START), "{told:?}");
    assert_eq!(company.upstream.reached(), 1);

    let gone = browser.send(&company, post(DISCONNECT)).await;
    assert_eq!(gone.status, 303, "{gone:?}");
    let told = company.ask(&anna).await;
    assert!(told.text().contains(START), "{told:?}");
    assert_eq!(company.upstream.reached(), 1);
    company.finish().await;
}

/// Who comes back without a session is denied, and the code stays good for who signs in again.
#[tokio::test]
async fn a_session_that_ends_between_start_and_callback() {
    let company = Company::start().await;
    // It is over before the browser forgets it.
    company.provider.behave(|manners| manners.session = 1);
    let mut browser = Browser::default();
    let back = browser.consent(&company, "anna").await;
    browser.send(&company, Call::get(NOTES, &back)).await;
    let expired = browser.clone();
    company.provider.behave(|manners| manners.session = 3600);
    let ended = async { while expired.clone().send(&company, Call::get(NOTES, START)).await.status != 302 {} };
    timeout(PATIENCE, ended).await.expect("the session ends");
    browser.sign_in(&company, "anna").await;
    let (callback, _) = browser.begin(&company).await;
    // The browser has the flow's cookie, and of the session what is over, or nothing.
    let is_of_session = |name: &str| name.starts_with("__Host-sign_in");
    for session in [expired.0, BTreeMap::new()] {
        let mut without = browser.clone();
        without.0.retain(|name, _| !is_of_session(name));
        without.0.extend(session);
        let answer = without.send(&company, Call::get(NOTES, &callback)).await;
        assert_eq!((answer.status, answer.all("location").len()), (401, 0), "{answer:?}");
        assert!(answer.text().contains("sign in; then reload this page"), "{answer:?}");
    }
    assert_eq!(browser.send(&company, Call::get(NOTES, &callback)).await.status, 303, "nothing was consumed");

    // Where the provider renews sessions, it is as if nothing had ended.
    company.provider.behave(|manners| (manners.session, manners.renews) = (1, true));
    let mut renewing = Browser::default();
    assert_eq!(renewing.sign_in(&company, "bert").await.status, 200);
    let (callback, _) = renewing.begin(&company).await;
    let tokens = renewing.0.get("__Host-sign_in_expires").cloned().expect("a session");
    let renewed = async {
        while renewing.0["__Host-sign_in_expires"] == tokens {
            assert_eq!(renewing.send(&company, Call::get(NOTES, START)).await.status, 200);
        }
    };
    timeout(PATIENCE, renewed).await.expect("it is renewed");
    assert_eq!(renewing.send(&company, Call::get(NOTES, &callback)).await.status, 303);
    company.finish().await;
}

/// The second one finishes nothing of the first one's.
#[tokio::test]
async fn two_people_in_one_browser() {
    let company = Company::start().await;
    let mut browser = Browser::default();
    browser.sign_in(&company, "anna").await;
    let (callback, _) = browser.begin(&company).await;
    // No page of another site ends a session.
    let link = Call::get(NOTES, OUT).header("sec-fetch-site", "cross-site");
    let stays = browser.send(&company, link).await;
    assert!(stays.status == 404 && stays.all("set-cookie").is_empty(), "{stays:?}");
    let out = browser.send(&company, Call::get(NOTES, OUT).header("sec-fetch-site", "none")).await;
    assert_eq!((out.status, out.all("location")), (302, vec!["https://notes.localhost/"]));
    assert!(browser.0.keys().all(|name| !name.starts_with("__Host-sign_in")), "{browser:?}");
    assert_eq!(browser.clone().send(&company, Call::get(NOTES, &callback)).await.status, 401);
    assert_eq!(browser.sign_in(&company, "bert").await.status, 200);
    let answer = browser.send(&company, Call::get(NOTES, &callback)).await;
    assert_eq!((answer.status, answer.all("content-type")), (400, vec!["application/json"]), "{answer:?}");
    let name = "envoy_cimd_requests_total{endpoint=\"callback\",outcome=\"wrong_context\"}";
    assert_eq!(company.world.metric(name).await, Some(1));
    for subject in ["anna", "bert"] {
        let told = company.ask(&company.provider.token(subject, MCP)).await;
        assert!(told.text().contains(START), "nobody is connected: {told:?}");
    }
    let code = browser.connect(&company).await;
    assert_eq!(company.ask(&company.provider.token("bert", MCP)).await.status, 200);
    assert_eq!(company.code_of_last(), code);
    company.finish().await;
}

/// A path before ours is no matter: people sign in once a host, and each route has tokens of its own.
#[tokio::test]
async fn a_route_with_a_path() {
    let company = Company::start().await;
    let at = |path: &str| Call::get("tickets.localhost", path);
    let mut browser = Browser::default();
    let start = format!("/linear{START}?return_to=/x");
    let sent = browser.send(&company, at(&start)).await;
    let back = company.provider.consent(is_sent_to_sign_in(&company, &sent), "anna");
    assert!(back.starts_with(SIGN_IN), "{back}");
    let signed_in = browser.send(&company, at(&back)).await;
    let [location] = signed_in.all("location")[..] else { panic!("{signed_in:?}") };
    assert_eq!((signed_in.status, location), (302, &*format!("https://tickets.localhost{start}")));
    assert_eq!(browser.send(&company, at(&start)).await.status, 200);
    for path in [format!("/linear{CALLBACK}?code=SECRET&state=SECRET"), format!("/linear{DISCONNECT}")] {
        let answer = company.send(at(&path)).await;
        assert_eq!((answer.status, answer.all("location").len()), (401, 0), "{path}: {answer:?}");
    }
    // Its sessions are of this host alone.
    let sent = company.send(at(&start).header("cookie", "__Host-sign_in_hmac=x")).await;
    is_sent_to_sign_in(&company, &sent);
    let elsewhere = browser.clone().send(&company, Call::get(NOTES, START)).await;
    is_sent_to_sign_in(&company, &elsewhere);

    let ask =
        |token: &str| asking().at("tickets.localhost", "/linear").header("authorization", format!("Bearer {token}"));
    let told = company.mcp(ask(&company.provider.token("anna", OTHER_MCP))).await;
    assert!(told.status == 200 && told.text().contains("/linear/.pomerium/oauth/start"), "{told:?}");
    assert_eq!(company.mcp(ask(&company.provider.token("anna", MCP))).await.status, 403);
    company.finish().await;
}

/// Where the identity provider is that nobody here wrote.
const IDP_HOST: &str = "idp.localhost";

/// Neither the browser nor the MCP client is ours, nor the identity provider.
#[tokio::test]
#[ignore = "needs Node.js and Chromium: make e2e"]
async fn e2e_sign_in() {
    let dir = tempfile::tempdir().expect("a folder");
    let (upstream, idp) = (Handed::new(), Handed::new());
    let certificates = Certificates::make(dir.path(), &[AS_HOST, IDP_HOST]);
    let at = |name: &str| dir.path().join(name).display().to_string();
    let [ca, cert, key] =
        [&certificates.ca, &certificates.cert, &certificates.key].map(|path| path.display().to_string());
    let port = Url::parse(&idp.url).expect("a URL").port().expect("a port");
    let issuer = format!("https://{IDP_HOST}:{port}");
    std::fs::write(at("secret"), APPLICATION_SECRET).expect("written");
    std::fs::write(at("key"), "SECRET-key-of-sessions-0123456789").expect("written");
    let (socket, state) = (format!("unix:{}", at("cimd.sock")), at("state"));
    let mut serve = vec!["--listen", &socket, "--log=trace", "--extra-ca", &ca, "--allow-host", AS_HOST];
    serve.extend(["--state-dir", &state, "--user-namespace", "envoy.filters.http.jwt_authn"]);
    serve.extend([
        "--user-issuer=jwt_payload.iss",
        "--user-subject=jwt_payload.sub",
        "--display-claim=jwt_payload.sub",
    ]);
    let flags = [
        format!("--sign-in={issuer}"),
        format!("--sign-in-authorization-endpoint={issuer}/auth"),
        format!("--sign-in-token-endpoint={issuer}/token"),
        format!("--sign-in-jwks-uri={issuer}/jwks"),
        format!("--sign-in-client-id={APPLICATION}"),
        format!("--sign-in-client-secret={}", at("secret")),
        format!("--sign-in-session-key={}", at("key")),
        "--sign-in-mcp-scope=mcp".to_owned(),
        format!("--upstream-ca={ca}"),
    ];
    let route = format!("from=https://{NOTES},to={}", upstream.url);
    let mut world = World::start(Wish {
        routes: &[&route],
        cimd: &serve,
        envoy_config: &flags.each_ref().map(String::as_str),
        // No resolver but the browser's knows the name.
        edit: &|config| {
            for cluster in list(&mut config["static_resources"]["clusters"]) {
                let endpoint = &mut cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"];
                if endpoint["address"]["socket_address"]["address"] == IDP_HOST {
                    endpoint["address"]["socket_address"]["address"] = json!("127.0.0.1");
                }
            }
        },
    })
    .await;
    let variables = [
        ("E2E_UPSTREAM", upstream.url.clone()),
        ("E2E_UPSTREAM_FD", upstream.fd()),
        ("E2E_AS_HOST", AS_HOST.to_owned()),
        ("E2E_AS_CERT", cert),
        ("E2E_AS_KEY", key),
        ("E2E_AS_CA", ca.clone()),
        ("E2E_ISSUER", issuer),
        ("E2E_IDP_FD", idp.fd()),
        ("E2E_APPLICATION", APPLICATION.to_owned()),
        ("E2E_APPLICATION_SECRET", APPLICATION_SECRET.to_owned()),
    ];
    node("sign_in.mjs", &world, &variables).await;
    assert_eq!(world.cimd.process.stop().await, Some(0));
    for (name, text) in [("log", world.cimd.process.output()), ("Envoy", world.envoy.process.output())] {
        assert!(text.contains(NOTES), "{name} says something");
        // All tokens of the identity provider begin so.
        for secret in ["SECRET", "eyJ", "?code=", "&code="] {
            assert!(!text.contains(secret), "{name} has {secret}:\n{text}");
        }
    }
}
