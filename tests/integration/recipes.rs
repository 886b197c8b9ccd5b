//! The recipes of docs/recipes.md and docs/sign-in.md: Envoy takes each of them, and requests get what it promises.

use std::{
    path::Path,
    sync::{Arc, Mutex},
};

use axum::{Router, extract::Request, http::StatusCode, response::IntoResponse, routing::any};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use envoy_cimd::commands::settings::{self, Task};
use hmac::{Hmac, Mac};
use http::Version;
use serde_json::{Value, json};

use crate::{
    choreographer::{Call as Recorded, after_a_page},
    envoy_config::{printed, validate},
    flow::{Begun, Flows, honest, press, without_cookie},
    stack::{Call, Certificates, Client},
    world::{CALLBACK, DISCONNECT, DOCUMENT, START, Wish, World, list, manager, shell, virtual_hosts},
};

const NOTES: &str = "notes.localhost";
pub const ISSUER: &str = "https://login.example.com";

/// A section of the page.
struct Recipe {
    title: String,
    /// The arguments of its two commands.
    serve: Vec<String>,
    envoy_config: Vec<String>,
    /// What to add, and where.
    pieces: Vec<(String, Value)>,
}

fn page() -> String {
    docs("recipes.md")
}

fn docs(page: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(page)).expect(page)
}

fn recipes() -> Vec<Recipe> {
    let pages = [page(), docs("sign-in.md")];
    pages.iter().flat_map(|page| page.split("\n## ").skip(1)).filter_map(Recipe::read).collect()
}

fn recipe(title: &str) -> Recipe {
    recipes().into_iter().find(|recipe| recipe.title == title).expect(title)
}

impl Recipe {
    fn read(section: &str) -> Option<Self> {
        let blocks = |language: &str| -> Vec<&str> {
            let fence = format!("```{language}\n");
            section.split(&fence).skip(1).map(|block| block.split("```").next().expect("an end")).collect()
        };
        let [commands] = blocks("sh")[..] else { return None };
        if !commands.starts_with("envoy-cimd serve ") {
            return None;
        }
        let commands = commands.replace("\\\n", " ");
        let arguments = |command: &str| -> Vec<String> {
            let line = commands.lines().find_map(|line| line.strip_prefix(&format!("envoy-cimd {command} ")));
            let line = line.unwrap_or_else(|| panic!("{command} in {section}"));
            [command].into_iter().chain(line.split_whitespace()).map(str::to_owned).collect()
        };
        let pieces = blocks("yaml").into_iter().map(|block| {
            let place = block.lines().next().and_then(|line| line.strip_prefix("# ")).expect("where it goes");
            (place.to_owned(), serde_saphyr::from_str(block).expect(block))
        });
        Some(Self {
            title: section.lines().next().expect("a title").to_owned(),
            serve: arguments("serve"),
            envoy_config: arguments("envoy-config"),
            pieces: pieces.collect(),
        })
    }

    /// Adds its pieces to what `envoy-config` printed.
    fn add_to(&self, config: &mut Value) {
        for (place, piece) in &self.pieces {
            let resources = &mut config["static_resources"];
            match place.split(':').next().expect("a place") {
                "clusters" => list(&mut resources["clusters"]).push(piece.clone()),
                "the filter chain of the listener https" => {
                    merge(&mut resources["listeners"][0]["filter_chains"][0], piece);
                }
                "the connection manager of the listener https" => merge(manager(&mut resources["listeners"][0]), piece),
                "http_filters, before envoy-cimd" => {
                    for listener in list(&mut resources["listeners"]) {
                        let filters = list(&mut manager(listener)["http_filters"]);
                        let ours = filters.iter().position(|filter| filter["name"] == "envoy-cimd");
                        filters.insert(ours.expect("our filter"), piece.clone());
                    }
                }
                "typed_per_filter_config of /.pomerium/oauth/start, callback, disconnect and /mcp" => {
                    for route in virtual_hosts(config).iter_mut().flat_map(|host| list(&mut host["routes"])) {
                        if [START, CALLBACK, DISCONNECT, "/mcp"].iter().any(|path| route["match"]["path"] == **path) {
                            merge(&mut route["typed_per_filter_config"], piece);
                        }
                    }
                }
                other => panic!("{}: what is {other:?}?", self.title),
            }
        }
    }

    /// The recipe with a choreographer that records, and other names and files where it needs them.
    async fn start(&self, instead: &[(&str, &str)]) -> Flows {
        let flags: Vec<String> = self
            .serve
            .windows(2)
            .filter(|pair| pair[0].starts_with("--user-"))
            .map(|pair| format!("{}={}", pair[0], pair[1]))
            .collect();
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        Flows::with(&flags, &|config| {
            self.add_to(config);
            *config = with(config, instead);
        })
        .await
    }
}

fn merge(into: &mut Value, piece: &Value) {
    for (key, value) in piece.as_object().expect("keys") {
        into[key] = value.clone();
    }
}

/// The same with other texts.
fn with(config: &Value, instead: &[(&str, &str)]) -> Value {
    let text = instead.iter().fold(config.to_string(), |text, (from, to)| {
        assert!(text.contains(from), "{from} is not there");
        text.replace(from, to)
    });
    serde_json::from_str(&text).expect("JSON")
}

#[test]
fn envoy_takes_each() {
    let dir = tempfile::tempdir().expect("a folder");
    let certificates = Certificates::make(dir.path(), &["mcp.example.com"]);
    let jwks = dir.path().join("jwks.json");
    std::fs::write(&jwks, keys().1).expect("the keys");
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "a secret").expect("written");
    let path = |path: &Path| path.to_str().expect("text").to_owned();
    let files = [
        ("/etc/envoy/tls.crt", path(&certificates.cert)),
        ("/etc/envoy/tls.key", path(&certificates.key)),
        ("/etc/envoy/client.crt", path(&certificates.cert)),
        ("/etc/envoy/client.key", path(&certificates.key)),
        ("/etc/envoy/ca.crt", path(&certificates.ca)),
        ("/etc/ssl/certs/ca-certificates.crt", path(&certificates.ca)),
        ("/etc/envoy/jwks.json", path(&jwks)),
        ("/etc/envoy/sign-in.secret", path(&secret)),
        ("/etc/envoy/sign-in.key", path(&secret)),
    ];
    let recipes = recipes();
    assert!(recipes.len() >= 9);
    for recipe in recipes {
        let title = &recipe.title;
        let serve = ["envoy-cimd".to_owned()].into_iter().chain(recipe.serve.clone());
        let parsed = settings::parse::parse(serve.map(Into::into)).unwrap_or_else(|error| panic!("{title}: {error}"));
        let Task::Serve(serve) = parsed.task else { panic!("{title}: serve") };
        serve.users().expect(title);
        let args: Vec<&str> = recipe.envoy_config.iter().map(String::as_str).collect();
        let mut config: Value = serde_saphyr::from_str(&printed(&args)).expect("YAML");
        recipe.add_to(&mut config);
        let text = files.iter().fold(config.to_string(), |text, (from, to)| text.replace(from, to));
        let (good, said) = validate(&text);
        assert!(good && !said.contains("deprecated"), "{title}\n{said}");
        // Both sides are told the same of the user.
        let namespace = serve.routes.user_namespace.as_deref();
        // What our own filters tell each other is no user.
        let of_users = text.replace(r#""forwarding_namespaces":{"untyped":["envoy_cimd_traffic"]}"#, "");
        assert_eq!(of_users.contains("forwarding_namespaces"), namespace.is_some(), "{title}");
        let is_said = |namespace: &str| {
            text.contains(&format!("\"name\":\"{namespace}\""))
                || namespace == "envoy.filters.http.jwt_authn" && text.contains("jwt_authn.v3.JwtAuthentication")
        };
        assert!(namespace.is_none_or(is_said), "{title}");
    }
}

/// The files that recipes begin with are those that the commands before them make.
#[test]
fn before_you_begin() {
    let page = page();
    let section = page.split("\n## ").find(|section| section.starts_with("Before you begin\n")).expect("the section");
    let commands = section.split("```sh\n").nth(1).and_then(|rest| rest.split("```").next()).expect("commands");
    let dir = tempfile::tempdir().expect("a folder");
    shell(&commands.replace("/etc/", "etc/").replace("/run/", "run/"), dir.path());
    for recipe in recipes() {
        for file in recipe.serve.iter().filter(|argument| argument.ends_with(".keys")) {
            let made = dir.path().join(file.trim_start_matches('/'));
            let text =
                std::fs::read_to_string(&made).unwrap_or_else(|error| panic!("{}: {file}: {error}", recipe.title));
            assert_eq!(text.trim_end().len(), 43, "{file}");
        }
    }
}

#[tokio::test]
async fn behind_a_load_balancer() {
    let recipe = recipe("Behind a load balancer that ends TLS");
    let world = World::start(Wish { edit: &|config| recipe.add_to(config), ..Wish::default() }).await;
    let document = |proto: Option<&str>| {
        let call = Call::get(NOTES, DOCUMENT).header("x-forwarded-for", "192.0.2.1");
        match proto {
            Some(proto) => call.header("x-forwarded-proto", proto),
            None => call,
        }
    };
    for (proto, status) in [(Some("https"), 200), (Some("http"), 403), (None, 403)] {
        let answer = Client::plain(world.envoy.https).send(Version::HTTP_11, document(proto)).await.expect("an answer");
        assert_eq!(answer.status, status, "{proto:?} {answer:?}");
    }
}

#[tokio::test]
async fn jwt_authn() {
    let (key, jwks) = keys();
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), jwks).expect("the keys");
    let flows = recipe("jwt_authn").start(&[("/etc/envoy/jwks.json", file.path().to_str().expect("text"))]).await;
    let sign = |claims: Value| signed(&key, &claims);
    let claims = |subject: &str| json!({"iss": ISSUER, "aud": "mcp-gateway", "sub": subject, "exp": 4_000_000_000_u64});
    let mut strangers = vec!["x.y.z".to_owned()];
    for (name, value) in [("iss", json!("https://other.example")), ("aud", json!("other")), ("exp", json!(1))] {
        let mut claims = claims("ann");
        claims[name] = value;
        strangers.push(sign(claims));
    }
    people(flows, &|subject| sign(claims(subject)), &strangers).await;
}

#[tokio::test]
async fn ext_authz() {
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let keep = Arc::clone(&asked);
    let service = Router::new().fallback(any(move |request: Request| async move {
        keep.lock().expect("requests").push(request.uri().to_string());
        let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let cookie = if ["", "document"].contains(&header("sec-fetch-dest")) { header("cookie") } else { "" };
        match cookie.split("; ").find_map(|pair| pair.strip_prefix("session=")) {
            Some(name @ ("ann" | "bob")) => [("x-user-issuer", ISSUER), ("x-user-subject", name)].into_response(),
            _ => StatusCode::UNAUTHORIZED.into_response(),
        }
    }));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move { axum::serve(listener, service).await });
    let address = format!(r#""address":"127.0.0.1","port_value":{port}"#);
    let flows =
        recipe("ext_authz").start(&[(r#""address":"login.internal.example","port_value":8000"#, &address)]).await;
    people(flows, &str::to_owned, &["eve".to_owned()]).await;
    let asked = asked.lock().expect("requests");
    assert!(asked.len() > 5 && asked.iter().all(|uri| uri == "/check"), "no code goes there: {asked:?}");
}

/// Who is nobody is denied and not sent elsewhere, who is somebody else is refused, and the document is free.
async fn people(flows: Flows, session: &dyn Fn(&str) -> String, strangers: &[String]) {
    let as_person = |call: Call, session: &str, begun: Option<&Begun>| {
        let flow = begun.map(|begun| format!("; {}", begun.cookie)).unwrap_or_default();
        without_cookie(call).header("cookie", format!("session={session}{flow}"))
    };
    let document = flows.send(Call::get(NOTES, DOCUMENT)).await;
    assert_eq!((document.status, document.all("location").len()), (200, 0), "{document:?}");
    let page =
        flows.send(as_person(Call::get(NOTES, START).header("accept", "text/html"), &session("ann"), None)).await;
    assert_eq!(page.status, 200, "{page:?}");

    // MCP clients have no cookie; what comes with one is a page's, of this site perhaps.
    let script = Call::get(NOTES, "/mcp").method("POST").header("sec-fetch-dest", "empty");
    assert_eq!(flows.send(as_person(script, &session("ann"), None)).await.status, 401);

    let begun = flows.begin_as(as_person(press(NOTES, ""), &session("ann"), None)).await;
    let calls = flows.fake.calls();
    let (_, _, [Recorded::Begin(begin)]) = after_a_page(&calls) else { panic!("{calls:?}") };
    let user = format!("{:?}", begin.user);
    assert!(user.contains(ISSUER) && user.contains("ann"), "{user}");

    // A client's word for who it is counts for nothing.
    let claimed = |call: Call| call.header("x-user-issuer", ISSUER).header("x-user-subject", "ann");
    let calls = [Call::get(NOTES, START), press(NOTES, ""), honest(&begun)];
    for call in calls.into_iter().flat_map(|call| [without_cookie(call.clone()), claimed(without_cookie(call))]) {
        let nobody = [call.clone(), as_person(call.clone(), "", Some(&begun))].map(|call| (call, [401, 401]));
        // A token that is good for somebody else may be forbidden rather than unauthorized.
        let strange = strangers.iter().map(|session| (as_person(call.clone(), session, Some(&begun)), [401, 403]));
        for (call, denied) in nobody.into_iter().chain(strange) {
            let answer = flows.send(call.clone()).await;
            assert!(denied.contains(&answer.status) && answer.all("location").is_empty(), "{call:?} {answer:?}");
            assert!(!answer.all("set-cookie").iter().any(|cookie| cookie.contains("envoy_cimd")), "{answer:?}");
        }
    }
    let bob = flows.send(claimed(as_person(honest(&begun), &session("bob"), Some(&begun)))).await;
    assert_eq!((bob.status, flows.labelled("callback", "wrong_context").await), (400, 1), "{bob:?}");
    assert!(!flows.fake.consumed() && flows.fake.begins() == 1);
    assert_eq!(flows.send(as_person(honest(&begun), &session("ann"), Some(&begun))).await.status, 303);
    flows.finish().await;
}

/// A token.
pub fn signed(key: &[u8], claims: &Value) -> String {
    let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(&json!({"alg": "HS256"})), part(claims));
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(key).expect("a key");
    mac.update(signed.as_bytes());
    format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes()))
}

/// A key, and the same as a set of public keys would be written.
pub fn keys() -> (Vec<u8>, String) {
    let key = b"a key of the test, thirty-two bytes and more".to_vec();
    let jwk = json!({"kty": "oct", "alg": "HS256", "k": BASE64_URL_SAFE_NO_PAD.encode(&key)});
    (key, json!({"keys": [jwk]}).to_string())
}
