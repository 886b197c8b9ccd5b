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
    world::{CALLBACK, DISCONNECT, DOCUMENT, START, Wish, World, http_filters, list},
};

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

/// An MCP client holds a token that is good for its route, and must not press the button in its person's name.
#[tokio::test]
async fn a_clients_token_opens_no_page() {
    let company = Company::start().await;
    let mut browser = Browser::default();
    browser.sign_in(&company, "anna").await;
    let (callback, _) = browser.begin(&company).await;
    let issuer = format!("{}/notes", company.servers.issuer);
    let calls =
        [Call::get(NOTES, START), press_shown(NOTES, "", &issuer), Call::get(NOTES, &callback), post(DISCONNECT)];
    let requests = |endpoint: &str| format!("envoy_cimd_requests_total{{endpoint=\"{endpoint}\"");
    let (_, before) = get(company.world.cimd.admin.parse().expect("an address"), "/metrics").await.expect("metrics");
    for token in [company.provider.token("anna", MCP), company.provider.id_token("anna")] {
        for value in [format!("Bearer {token}"), format!("bearer {token}"), String::new()] {
            for call in &calls {
                // Without a session, and with the one of the same person.
                for mut browser in [Browser::default(), browser.clone()] {
                    let answer = browser.send(&company, call.clone().header("authorization", value.clone())).await;
                    assert_eq!(answer.status, 403, "{call:?} {answer:?}");
                    assert!(answer.all("location").is_empty() && answer.all("set-cookie").is_empty(), "{answer:?}");
                    assert!(answer.text().contains("session_required"), "{answer:?}");
                }
            }
        }
    }
    let (_, after) = get(company.world.cimd.admin.parse().expect("an address"), "/metrics").await.expect("metrics");
    for endpoint in ["start", "callback", "disconnect"] {
        let count = |text: &[u8]| {
            let text = String::from_utf8_lossy(text).into_owned();
            text.lines().filter(|line| line.starts_with(&requests(endpoint))).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(count(&before), count(&after), "nothing reached envoy-cimd");
    }
    assert_eq!(browser.send(&company, Call::get(NOTES, &callback)).await.status, 303, "nothing was consumed");
    company.finish().await;
}

/// What is no session: a token in a cookie that no session brought there, of the application or not.
#[tokio::test]
async fn what_is_no_session_opens_no_page() {
    let company = Company::start().await;
    let mut anna = Browser::default();
    anna.sign_in(&company, "anna").await;
    let (callback, _) = anna.begin(&company).await;
    let planted = |token: String| {
        // Envoy writes a cookie into its log that it cannot decrypt.
        company.provider.told(&token);
        Browser(BTreeMap::from([("__Host-sign_in_id_token".to_owned(), token)]))
    };
    let mut without_seal = anna.clone();
    without_seal.0.remove("__Host-sign_in_hmac");
    let mut tampered = anna.clone();
    tampered.0.insert("__Host-sign_in_expires".to_owned(), "4000000000".to_owned());
    let strangers = [
        ("nothing", Browser::default()),
        ("an ID token", planted(company.provider.id_token("anna"))),
        ("a client's token", planted(company.provider.token("anna", MCP))),
        ("half a session", without_seal),
        ("a longer session", tampered),
    ];
    let issuer = format!("{}/notes", company.servers.issuer);
    for (name, browser) in strangers {
        let page = browser.clone().send(&company, Call::get(NOTES, START)).await;
        is_sent_to_sign_in(&company, &page);
        for call in [
            press_shown(NOTES, "", &issuer),
            Call::get(NOTES, START).method("HEAD"),
            Call::get(NOTES, &callback),
            post(DISCONNECT),
        ] {
            let answer = browser.clone().send(&company, call.clone()).await;
            assert_eq!((answer.status, answer.all("location").len()), (401, 0), "{name}: {call:?} {answer:?}");
            assert!(
                answer.all("www-authenticate").iter().all(|text| !text.contains("resource_metadata")),
                "{answer:?}"
            );
        }
    }
    assert_eq!(anna.send(&company, Call::get(NOTES, &callback)).await.status, 303, "nothing was consumed");
    company.finish().await;
}

/// What is no token for this very route, in `authorization`.
#[tokio::test]
async fn what_is_no_clients_token_opens_no_mcp_route() {
    let company = Company::with("sub", &["--allow-origin=https://app.example"], &|_| {}).await;
    let mut browser = Browser::default();
    browser.sign_in(&company, "anna").await;
    browser.connect(&company).await;
    let provider = &company.provider;
    let good = provider.token("anna", MCP);
    let bearer = |token: &str| asking().header("authorization", format!("Bearer {token}"));
    let session: Vec<String> = browser.0.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let session = session.join("; ");
    let now = json!(4_000_000_000_u64);
    let other_issuer = json!({"iss": "https://other.example", "aud": MCP, "sub": "anna", "exp": now});
    let of_nobody = json!({"iss": provider.issuer, "sub": "anna", "exp": now});
    for (name, ask) in [
        ("nothing", asking()),
        ("a session", asking().header("cookie", &*session)),
        (
            "a session, from a page of this host",
            asking().header("cookie", &*session).header("origin", "https://notes.localhost"),
        ),
        (
            "a session, from a page of another origin",
            asking().header("cookie", &*session).header("origin", "https://evil.example"),
        ),
        (
            "a session, from a page that may ask",
            asking().header("cookie", &*session).header("origin", "https://app.example"),
        ),
        (
            "an ID token as a cookie",
            asking().header("cookie", format!("__Host-sign_in_id_token={}", provider.id_token("anna"))),
        ),
        ("a token as a cookie", asking().header("cookie", format!("__Host-sign_in_id_token={good}"))),
        ("a token in the query", Ask { path: format!("/notes/mcp?access_token={good}"), ..asking() }),
        ("a token of another scheme", asking().header("authorization", format!("Basic {good}"))),
        ("a token without a scheme", asking().header("authorization", &*good)),
        ("another issuer's", bearer(&provider.sign(&other_issuer))),
        ("a forged one", bearer(&format!("{good}x"))),
        ("an opaque one", bearer("SECRET-opaque")),
        ("an empty one", bearer("")),
    ] {
        is_challenged(&company.mcp(ask).await, name);
    }
    // Good tokens, but for something else.
    for (name, token) in [
        ("another route's", provider.token("anna", OTHER_MCP)),
        ("of the whole host", provider.token("anna", "https://notes.localhost")),
        ("of a path below", provider.token("anna", &format!("{MCP}/more"))),
        ("the application's", provider.id_token("anna")),
        ("of no audience", provider.sign(&of_nobody)),
    ] {
        let answer = company.ask(&token).await;
        assert_eq!(answer.status, 403, "{name}: {answer:?}");
    }
    // A page of another origin gets nothing with a good token either.
    let answer = company.mcp(bearer(&good).header("origin", "https://evil.example")).await;
    assert_eq!(answer.status, 403, "{answer:?}");
    assert_eq!(company.upstream.reached(), 0);
    // A page that may ask is told where its client signs in.
    let answer = company.mcp(asking().header("origin", "https://app.example")).await;
    is_challenged(&answer, "a page that may ask");
    assert!(answer.all("access-control-expose-headers").join(",").contains("www-authenticate"), "{answer:?}");
    assert_eq!(company.ask(&good).await.status, 200);
    assert_eq!(company.upstream.reached(), 1);
    company.finish().await;
}

/// Whoever is signed in stays so, and keys that are known are good, until they are replaced.
#[tokio::test]
async fn a_provider_that_is_down() {
    let company = Company::with("sub", &[], &|config| keys_live_for(config, "0.1s")).await;
    let mut browser = Browser::default();
    browser.sign_in(&company, "anna").await;
    browser.connect(&company).await;
    company.provider.behave(|manners| manners.is_down = true);
    let asked = company.provider.asked();
    company.provider.asked_by(asked + 4).await;
    assert_eq!(browser.send(&company, Call::get(NOTES, START)).await.status, 200);
    assert_eq!(company.ask(&company.provider.token("anna", MCP)).await.status, 200);
    is_challenged(&company.mcp(asking()).await, "nothing");

    // Who is not is sent there all the same, and not signed in when they come back.
    let mut other = Browser::default();
    let back = other.consent(&company, "bert").await;
    let answer = other.send(&company, Call::get(NOTES, &back)).await;
    assert!((400..600).contains(&answer.status) && answer.all("location").is_empty(), "{answer:?}");
    company.provider.behave(|manners| manners.is_down = false);
    assert_eq!(other.sign_in(&company, "bert").await.status, 200);
    company.finish().await;
}

/// How long a key of the provider's is good before it is asked for again.
fn keys_live_for(config: &mut Value, time: &str) {
    let tokens = http_filters(config).iter_mut().find(|filter| filter["name"] == "envoy-cimd-sign-in").expect("it");
    for provider in ["people", "clients"] {
        let keys = &mut tokens["typed_config"]["providers"][provider]["remote_jwks"];
        assert_eq!(keys["cache_duration"], "300s", "what is printed");
        keys["cache_duration"] = json!(time);
    }
}

/// A provider that tells its new key before it signs with it is never refused; the old one counts as long as it is told.
#[tokio::test]
async fn a_provider_that_rotates_its_keys() {
    let company = Company::with("sub", &[], &|config| keys_live_for(config, "0.1s")).await;
    let provider = &company.provider;
    let old = provider.token("anna", MCP);
    let fetched = async || {
        // Of those on their way when this was asked, none counts.
        let asked = provider.asked();
        provider.asked_by(asked + 8).await;
    };
    provider.behave(|manners| manners.keys = vec!["first", "second"]);
    fetched().await;
    provider.behave(|manners| manners.keys = vec!["second", "first"]);
    let new = provider.token("anna", MCP);
    for token in [&old, &new] {
        let told = company.ask(token).await;
        assert!(told.status == 200 && told.text().contains(START), "{told:?}");
    }
    provider.behave(|manners| manners.keys = vec!["second"]);
    let refused = async {
        while company.ask(&old).await.status != 401 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, refused).await.expect("the old key is over");
    assert_eq!(company.ask(&new).await.status, 200);
    // And one that signs at once with a key that nobody knows is refused until it is known.
    provider.behave(|manners| manners.keys = vec!["third"]);
    let newest = provider.token("anna", MCP);
    let taken = async {
        while company.ask(&newest).await.status != 200 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, taken).await.expect("the newest key is known");
    company.finish().await;
}

/// A provider that knows a person by another `sub` for each application: by `oid`, both are one user, and by `sub` not.
#[tokio::test]
async fn another_sub_to_each_application() {
    for (claim, is_one) in [("oid", true), ("sub", false)] {
        let company = Company::with(claim, &[], &|_| {}).await;
        company.provider.behave(|manners| manners.is_pairwise = true);
        let mut browser = Browser::default();
        assert_eq!(browser.sign_in(&company, "anna").await.status, 200, "{claim}");
        browser.connect(&company).await;
        let answer = company.ask(&company.provider.token("anna", MCP)).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.text().contains(START), !is_one, "{claim}: {answer:?}");
        assert_eq!(company.upstream.reached(), usize::from(is_one), "{claim}");
        company.finish().await;
    }
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

/// Ten minutes of difference are no matter to tokens that live for an hour and do not say from when on; else they are
/// refused, and nobody is anybody.
#[tokio::test]
async fn a_clock_ten_minutes_off() {
    let company = Company::start().await;
    for (ahead, life, says_not_before, is_good, page) in [
        (600, 3600, false, true, 200),
        (-600, 3600, false, true, 200),
        (-600, 3600, true, true, 200),
        (600, 3600, true, false, 401),
        // A browser does not even keep a token that is over, and is sent to sign in again.
        (-600, 300, false, false, 302),
        // What Envoy allows for is a minute.
        (30, 3600, true, true, 200),
        (-330, 300, false, true, 302),
    ] {
        let what = format!("{ahead} s ahead, for {life} s, {says_not_before}");
        company.provider.is_ahead(ahead);
        company.provider.behave(|manners| (manners.life, manners.says_not_before) = (life, says_not_before));
        let answer = company.ask(&company.provider.token("anna", MCP)).await;
        if is_good {
            assert!(answer.status == 200 && answer.text().contains(START), "{what}: {answer:?}");
        } else {
            is_challenged(&answer, &what);
        }
        let mut browser = Browser::default();
        let back = browser.consent(&company, "anna").await;
        let signed_in = browser.send(&company, Call::get(NOTES, &back)).await;
        assert_eq!(signed_in.status, 302, "{what}: {signed_in:?}");
        let shown = browser.send(&company, Call::get(NOTES, START)).await;
        assert_eq!(shown.status, page, "{what}: {shown:?}");
    }
    assert_eq!(company.upstream.reached(), 0);
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

/// What comes back from the provider and is no good answer of its signs nobody in, and is in no log.
#[tokio::test]
async fn answers_that_sign_nobody_in() {
    let company = Company::start().await;
    let mut browser = Browser::default();
    let back = browser.consent(&company, "anna").await;
    let state = back.split_once("state=").expect("a state").1.to_owned();
    company.secrets.lock().expect("secrets").push(state.clone());
    for query in [
        String::new(),
        "?error=access_denied&state=SECRET".to_owned(),
        format!("?error=access_denied&error_description=SECRET&state={state}"),
        format!("?code=SECRET&error=access_denied&state={state}"),
        "?code=SECRET".to_owned(),
        format!("?state={state}"),
        "?code=SECRET&state=bm9uZQ".to_owned(),
    ] {
        let answer = browser.clone().send(&company, Call::get(NOTES, &format!("{SIGN_IN}{query}"))).await;
        assert!([401, 403].contains(&answer.status) && answer.all("location").is_empty(), "{query}: {answer:?}");
        assert!(answer.text().starts_with("You are not signed in. "), "{query}: {answer:?}");
    }
    // Another browser's answer.
    let answer = Browser::default().send(&company, Call::get(NOTES, &back)).await;
    assert!(answer.status == 401 && answer.all("set-cookie").is_empty(), "{answer:?}");
    // A code that the provider does not know.
    let unknown = format!("{SIGN_IN}?code=SECRET-unknown&state={state}");
    let answer = browser.clone().send(&company, Call::get(NOTES, &unknown)).await;
    assert!(answer.status >= 400 && answer.all("location").is_empty(), "{answer:?}");
    assert_eq!(browser.send(&company, Call::get(NOTES, &back)).await.status, 302, "the good one is as good as ever");
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
