//! Why a sign-in failed: the line with the request id that the person sees is alone enough to know it. The causes that
//! need no other server are in `filter::refusal::tests::every_refusal_says_why`, the token endpoint's in
//! `exchange::token_endpoint::token_endpoints_that_lie`, and the metadata's in `exchange::metadata::metadata_that_lies`.

use std::path::Path;

use envoy_cimd::{
    filter::{browser::BrowserCookie, state::StateKeys},
    model::{
        client::RedirectUri,
        clock::UnixTime,
        flow::FlowId,
        secret::{Secret, parse_keys},
    },
};
use http::Version;
use serde_json::{Value, json};

use crate::{
    authorization_server::{HOST, Lie, Servers, Token},
    flow::press_shown,
    stack::{Answered, Call, Certificates, key_file},
    world::{CALLBACK, Wish, World, virtual_hosts, without_metadata},
};

/// Where the one virtual host of these tests is reached. Which route a request is for, its authority says.
const DOOR: &str = "notes.localhost";

/// How far a sign-in gets.
enum End {
    /// The button brings no flow.
    Begin,
    /// The browser comes back with this instead of a code.
    Error(&'static str),
    /// It comes back with a code, and this behind it.
    Code(&'static str),
}

struct Row {
    lie: Lie,
    end: End,
    status: u16,
    label: &'static str,
    /// How its cause ends, in the log.
    words: &'static str,
}

#[rustfmt::skip]
fn rows() -> Vec<Row> {
    let row = |lie, end, status, label, words| Row { lie, end, status, label, words };
    let honest = Lie::none;
    let token = |name, token| Lie { token, ..Lie::none(name) };
    vec![
        row(Lie { metadata: |d| drop(d.as_object_mut().expect("an object").remove("token_endpoint")), ..honest("unusable") }, End::Begin,
            502, "authorization_server_unusable", "its metadata lacks `token_endpoint`"),
        row(honest("denied"), End::Error("error=access_denied&error_description=SECRET"),
            400, "as_error", "the authorization server sent the error `access_denied`"),
        row(honest("own-word"), End::Error("error=SECRET"),
            400, "as_error", "the authorization server sent the error `other`"),
        row(honest("no-iss"), End::Code(""),
            400, "issuer_mismatch", "`iss` is missing, and has to be there"),
        row(honest("other-iss"), End::Code("&iss=https://SECRET.example"),
            400, "issuer_mismatch", "/other-iss"),
        row(token("refused", Token::Status(400, r#"{"error":"invalid_grant","error_description":"SECRET"}"#)), End::Code("&iss="),
            502, "exchange_failed", "the token endpoint answered 400 with the error `invalid_grant`"),
        row(token("broken", Token::Status(500, "SECRET")), End::Code("&iss="),
            502, "exchange_failed", "the token endpoint answered 500"),
        row(token("twice", Token::Status(200, r#"{"access_token":"SECRET","access_token":"SECRET"}"#)), End::Code("&iss="),
            502, "exchange_failed", "`access_token` is there twice"),
        row(token("late", Token::Hangs), End::Code("&iss="),
            504, "timeout", "the token endpoint did not answer within 1 s"),
    ]
}

/// A callback that is refused, with the cause on its line.
async fn refused(world: &mut World, answer: Answered, status: u16, label: &str, words: &str) {
    assert_eq!(answer.status, status, "{words}: {answer:?}");
    let [id] = answer.all("x-request-id")[..] else { panic!("{answer:?}") };
    let named = |line: &str| {
        let line: Value = serde_json::from_str(line).ok()?;
        (line["request_id"] == id && line["message"] == "refused").then_some(line)
    };
    let line = world.cimd.process.line(named).await;
    let reason = line["reason"].as_str().expect("a reason");
    assert_eq!(line["label"], label, "{line}");
    assert!(reason.ends_with(words), "{words}: {line}");
}

async fn send(world: &World, call: Call) -> Answered {
    world.https().send(Version::HTTP_2, call).await.expect("an answer")
}

#[tokio::test]
async fn each_is_on_the_line_with_the_request_id() {
    let dir = tempfile::tempdir().expect("a folder");
    let certificates = Certificates::make(dir.path(), &[HOST]);
    let rows = rows();
    let servers = Servers::start(&certificates, rows.iter().map(|row| row.lie).collect()).await;
    let routes: Vec<Value> = rows
        .iter()
        .map(|Row { lie, .. }| {
            let from = format!("https://{}.example", lie.name);
            json!({"from": from, "to": servers.upstream_of(lie.name)})
        })
        .collect();
    let config = dir.path().join("config.yaml");
    std::fs::write(&config, json!({"routes": routes}).to_string()).expect("a config file");
    let text = |path: &Path| path.to_str().expect("text").to_owned();
    let (config, ca, state) = (text(&config), text(&certificates.ca), text(&dir.path().join("state")));
    let mut flags = vec!["--config", &config, "--extra-ca", &ca, "--allow-host", HOST, "--state-dir", &state];
    flags.extend(["--single-user", "--patience=1", "--token-endpoint-timeout=1", "--log=trace"]);
    let everywhere = |config: &mut Value| {
        without_metadata(config);
        virtual_hosts(config).retain(|host| host["name"] == DOOR);
        virtual_hosts(config)[0]["domains"] = json!(["*"]);
    };
    let mut world = World::start(Wish { cimd: &flags, edit: &everywhere, ..Wish::default() }).await;
    for Row { lie: Lie { name, .. }, end, status, label, words } in rows {
        let authority = format!("{name}.example");
        let begun =
            send(&world, press_shown(DOOR, "", &format!("{}/{name}", servers.issuer)).authority(&authority)).await;
        if matches!(end, End::Begin) {
            refused(&mut world, begun, status, label, words).await;
            continue;
        }
        let location = begun.all("location").join("");
        let url = url::Url::parse(&location).unwrap_or_else(|_| panic!("{name}: {begun:?}"));
        let state = url.query_pairs().find(|(name, _)| name == "state").expect("a state").1.into_owned();
        let query = match end {
            End::Begin | End::Error("") => unreachable!("it ended"),
            End::Error(error) => format!("{error}&iss={}/{name}", servers.issuer),
            End::Code("&iss=") => format!("code={}&iss={}/{name}", servers.consent(&location), servers.issuer),
            End::Code(iss) => format!("code={}{iss}", servers.consent(&location)),
        };
        let cookie = begun.all("set-cookie").join("").split(';').next().expect("a pair").to_owned();
        let call = Call::get(DOOR, &format!("{CALLBACK}?{query}&state={state}")).header("cookie", cookie);
        let answer = send(&world, call.authority(&authority)).await;
        refused(&mut world, answer, status, label, words).await;
    }
    assert_eq!(world.cimd.process.stop().await, Some(0));
    let log = world.cimd.process.output();
    assert!(!log.contains("SECRET"), "{log}");
}

/// A callback whose state is good. Whether there is such a flow, the store would have to say.
fn callback(keys: &Path) -> Call {
    let keys = std::fs::read_to_string(keys).expect("keys");
    let keys = StateKeys::new(parse_keys(&keys).expect("keys"));
    let (flow, redirect_uri) = (FlowId([7; 16]), RedirectUri::new(format!("https://{DOOR}{CALLBACK}")));
    let cookie = BrowserCookie::from(Secret::new("a-cookie"));
    let state = keys.mint(flow, &redirect_uri, &cookie, UnixTime::now(), UnixTime::MAX).expect("a state");
    Call::get(DOOR, &format!("{CALLBACK}?code=SECRET&state={state}"))
        .header("cookie", format!("__Host-envoy_cimd_{}=a-cookie", flow.tag()))
}

/// How a connection to the choreographer, or to the store, failed.
#[tokio::test]
async fn a_connection_that_fails_says_how() {
    let dir = tempfile::tempdir().expect("a folder");
    let keys = key_file(dir.path());
    let callback = callback(&keys);
    let keys = keys.to_str().expect("text");
    let missing = format!("unix:{}", dir.path().join("missing.sock").display());
    for (flags, words) in [
        (["--choreographer", &missing], "no connection to the choreographer: No such file or directory (os error 2)"),
        (
            ["--choreographer", "http://127.0.0.1:1"],
            "no connection to the choreographer: Connection refused (os error 111)",
        ),
        (
            ["--store", "file:/dev/null/store"],
            "the store cannot be opened: the store failed: /dev/null/store: I/O error: Not a directory (os error 20)",
        ),
        (
            ["--store", "redis://127.0.0.1:1"],
            "the store cannot be opened: the store failed: redis://127.0.0.1:1/0: Connection refused (os error 111)",
        ),
    ] {
        let mut all = [&flags[..], &["--state-keys", keys, "--single-user"]].concat();
        if flags[0] == "--store" {
            all.extend(["--encryption-keys", keys]);
        }
        let mut world = World::start(Wish { cimd: &all, ..Wish::default() }).await;
        let answer = send(&world, callback.clone()).await;
        refused(&mut world, answer, 503, "choreographer_unavailable", words).await;
    }
}
