//! `envoy-cimd probe`: nothing to say of what we serve, and every lie of a server found.

use axum::{
    Router,
    body::Body,
    http::{Method, Request, Response, StatusCode, Version, header::HOST},
    routing::any,
    serve::Listener,
};
use envoy_cimd::net::outgoing::error::MAX_BODY;
use rcgen::{BasicConstraints, CertificateParams, IsCa, date_time_ymd};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::{
    settings::{REFERENCE, page, section},
    stack::{Authority, Call, Cimd, tls_listener},
    world::{DOCUMENT, Wish, World, executable},
};

const HOST_NAME: &str = "lies.localhost";

/// Exit code, stdout, stderr.
async fn run(args: &[&str]) -> (Option<i32>, String, String) {
    let output = tokio::process::Command::new(executable()).arg("probe").args(args).output().await.expect("it runs");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// Exit code, verdict, and the codes of what was found, each once.
async fn probe(args: &[&str]) -> (Option<i32>, String, Vec<String>) {
    let (code, stdout, stderr) = run(&[args, &["--json"]].concat()).await;
    assert_eq!(stderr, "", "{args:?}");
    let report: Value = serde_json::from_str(&stdout).expect("JSON");
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let mut codes: Vec<String> =
        report["findings"].as_array().expect("findings").iter().map(|finding| text(&finding["code"])).collect();
    codes.dedup();
    let page = page(REFERENCE);
    let table = section(&page, "findings");
    assert!(codes.iter().all(|code| table.contains(&format!("`{code}`"))), "{REFERENCE} lacks one of {codes:?}");
    (code, text(&report["verdict"]), codes)
}

#[tokio::test]
async fn there_is_nothing_to_say_of_what_envoy_serves() {
    let world = World::start(Wish::default()).await;
    let (ca, envoy) = (world.certificates.ca.to_str().expect("text"), world.envoy.https.to_string());
    let there = ["--extra-ca", ca, "--connect-to", &envoy];
    for url in ["https://notes.localhost", "https://tickets.localhost:8443"] {
        let (code, stdout, _) = run(&[&[url], &there[..]].concat()).await;
        assert_eq!((code, stdout), (Some(0), format!("{url}{DOCUMENT}\nfine\n")));
    }
    // Envoy's own port is not the route's.
    let wrong = format!("https://notes.localhost:{}", world.envoy.https.port());
    let (code, stdout, _) = run(&[&wrong, "--extra-ca", ca]).await;
    assert_eq!(code, Some(1));
    for said in [
        "  error special_use_address: the host has the address 127.0.0.1, a loopback address, which",
        "  error status: the answer is 421 (misdirected_request): servers take 200 only\n",
        "an authorization server would refuse this client\n",
    ] {
        assert!(stdout.contains(said), "{stdout}");
    }
    let other = probe(&[&["https://notes.localhost/nothing.json"], &there[..]].concat()).await;
    assert_eq!(other, (Some(1), "refused".into(), vec!["status".into()]));
}

/// What is served against a file that says what should be.
#[tokio::test]
async fn what_is_served_is_what_is_expected_or_not() {
    let world = World::start(Wish::default()).await;
    let url = "https://notes.localhost";
    let call = Call::get("notes.localhost", DOCUMENT);
    let served = world.https().send(Version::HTTP_2, call).await.expect("an answer").body;
    let served = std::str::from_utf8(&served).expect("text");
    let (ca, envoy) = (world.certificates.ca.to_str().expect("text"), world.envoy.https.to_string());
    let differs =
        |more: &[&str]| (Some(1), "different".to_owned(), more.iter().map(|code| (*code).to_owned()).collect());
    for (expected, found) in [
        (served.to_owned(), (Some(0), "fine".to_owned(), vec![])),
        (served.replace(',', ", "), (Some(0), "fine".to_owned(), vec!["other_bytes".to_owned()])),
        (served.replace("Pomerium", "Acme"), differs(&["differs"])),
        (served.replace(r#""response_types":["code"],"#, ""), differs(&["differs"])),
        (served.replacen('{', r#"{"logo_uri":"https://a.example","#, 1), differs(&["differs"])),
        // Of another client: the one that is asked for is named by the URL.
        (served.replace("notes.localhost", "tickets.localhost"), differs(&["differs"])),
    ] {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), &expected).expect("written");
        let expect = ["--expect", file.path().to_str().expect("text"), "--extra-ca", ca, "--connect-to", &envoy];
        assert_eq!(probe(&[&[url], &expect[..]].concat()).await, found, "{expected}");
        if !expected.contains("tickets") {
            assert_eq!(probe(&expect).await, found, "without a URL: {expected}");
        }
    }
    let file = tempfile::NamedTempFile::new().expect("a file");
    let name = file.path().to_str().expect("text");
    std::fs::write(file.path(), served.replace("Pomerium", "Acme")).expect("written");
    let (code, stdout, _) = run(&["--expect", name, "--extra-ca", ca, "--connect-to", &envoy]).await;
    let said = format!(
        "{url}{DOCUMENT}\n  error differs: client_name is \"Pomerium MCP Proxy - notes.localhost\"; it should be \"Acme \
         MCP Proxy - notes.localhost\"\nan authorization server would take this client, but it is not as expected\n"
    );
    assert_eq!((code, stdout), (Some(1), said));
    // Where there is no document, there is nothing to compare; and one that is refused is refused.
    let (code, verdict, codes) =
        probe(&["https://notes.localhost/nothing.json", "--expect", name, "--extra-ca", ca, "--connect-to", &envoy])
            .await;
    assert_eq!((code, verdict.as_str(), codes), (Some(1), "refused", vec!["status".into()]));
    for (content, error) in
        [("{}", "has no `client_id`"), (r#"{"client_id":"http://a.example/c"}"#, "its `client_id` must be https")]
    {
        std::fs::write(file.path(), content).expect("written");
        let (code, stdout, stderr) = run(&["--expect", name]).await;
        assert_eq!((code, stdout.as_str()), (Some(2), ""));
        assert!(stderr.contains(&format!("--expect {name}: {error}")), "{stderr}");
    }
}

type Asked = Request<Body>;
type Reply = Response<Body>;

/// A server with an honest document, of which each test bends something.
struct Liar {
    _dir: tempfile::TempDir,
    origin: String,
    ca: String,
}

impl Liar {
    async fn start(edit: impl FnOnce(&mut CertificateParams), lie: fn(&Asked, Reply) -> Reply) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let certificates = Authority::make(dir.path()).issue_edited("tls", &[HOST_NAME], edit);
        let listener = tls_listener::bind(&certificates).await.expect("a port");
        let origin = format!("https://{HOST_NAME}:{}", listener.local_addr().expect("an address").port());
        let document = format!(
            r#"{{"client_id":"{origin}{DOCUMENT}","client_name":"Lies","redirect_uris":["{origin}/cb"],"grant_types":["authorization_code","refresh_token"],"token_endpoint_auth_method":"none"}}"#
        );
        let app = Router::new().fallback(any(move |mut request: Asked| {
            let document = document.clone();
            request.extensions_mut().insert(Document(document.clone()));
            async move {
                if request.uri().path() == "/pending.json" {
                    std::future::pending::<()>().await;
                }
                lie(&request, honest(request.method(), document))
            }
        }));
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { _dir: dir, origin, ca: certificates.ca.to_str().expect("text").to_owned() }
    }
}

/// What an honest answer has, for a lie about a part of it.
#[derive(Clone)]
struct Document(String);

fn document(asked: &Asked) -> &str {
    &asked.extensions().get::<Document>().expect("a document").0
}

fn honest(method: &Method, document: String) -> Reply {
    let reply = Response::builder().header("access-control-allow-origin", "*");
    if method == Method::OPTIONS {
        return reply.status(204).body(Body::empty()).expect("an answer");
    }
    let reply = reply.header("content-type", "application/json").header("etag", "\"x\"");
    reply.header("cache-control", "public, max-age=60").body(document.into()).expect("an answer")
}

fn with(mut reply: Reply, header: &'static str, value: &'static str) -> Reply {
    reply.headers_mut().insert(header, value.parse().expect("a value"));
    reply
}

fn and(mut reply: Reply, header: &'static str, value: &'static str) -> Reply {
    reply.headers_mut().append(header, value.parse().expect("a value"));
    reply
}

fn without(mut reply: Reply, header: &str) -> Reply {
    reply.headers_mut().remove(header);
    reply
}

fn status(mut reply: Reply, status: u16) -> Reply {
    *reply.status_mut() = StatusCode::from_u16(status).expect("a status");
    reply
}

fn body(reply: Reply, body: impl Into<Body>) -> Reply {
    reply.map(|_| body.into())
}

/// The document with this member instead of what it has.
fn member(asked: &Asked, reply: Reply, name: &str, value: Value) -> Reply {
    let mut document: Value = serde_json::from_str(document(asked)).expect("JSON");
    document[name] = value;
    body(reply, document.to_string())
}

#[tokio::test]
async fn every_lie_is_found() {
    type Row = (&'static str, i32, fn(&Asked, Reply) -> Reply);
    const PAGE: &str = "<!doctype html><title>Just a moment</title>";
    let rows: &[Row] = &[
        ("redirect", 1, |_, reply| with(status(reply, 302), "location", "/elsewhere")),
        ("redirect", 1, |_, reply| with(status(reply, 308), "location", "https://www.lies.example/")),
        ("blocked", 1, |_, reply| with(body(status(reply, 403), PAGE), "content-type", "text/html")),
        ("blocked", 1, |_, reply| with(body(reply, PAGE), "content-type", "text/html; charset=utf-8")),
        ("blocked", 1, |_, reply| body(status(reply, 429), "slow down")),
        ("blocked", 1, |_, reply| body(status(reply, 503), "")),
        ("blocked", 1, |_, reply| body(status(reply, 401), "")),
        ("status", 1, |_, reply| status(reply, 404)),
        ("status", 1, |_, reply| status(reply, 203)),
        ("status", 1, |_, reply| body(status(reply, 403), r#"{"error":"https_required"}"#)),
        ("content_type", 1, |_, reply| with(reply, "content-type", "application/octet-stream")),
        ("content_type", 1, |_, reply| without(reply, "content-type")),
        ("content_type", 1, |_, reply| and(reply, "content-type", "application/json")),
        ("content_type", 1, |_, reply| and(reply, "content-type", "text/plain")),
        ("content_type_parameters", 0, |_, reply| with(reply, "content-type", "application/json; charset=utf-8")),
        ("content_encoding", 1, |_, reply| with(reply, "content-encoding", "identity")),
        ("too_large", 1, |_, reply| body(reply, format!(r#"{{"client_id":"{}"}}"#, "x".repeat(MAX_BODY)))),
        ("not_json", 1, |_, reply| body(reply, "")),
        ("not_json", 1, |_, reply| body(reply, "[]")),
        ("not_json", 1, |_, reply| body(reply, "\u{feff}{}")),
        ("duplicate_member", 1, |asked, reply| {
            body(reply, document(asked).replacen('{', r#"{"client_id":"https://other.example/c.json","#, 1))
        }),
        ("redirect_uri", 1, |asked, reply| member(asked, reply, "redirect_uris", json!(["javascript:alert(1)"]))),
        ("redirect_uri", 1, |asked, reply| member(asked, reply, "redirect_uris", json!(["https://*.example/cb"]))),
        ("redirect_uri_loopback", 0, |asked, reply| {
            member(asked, reply, "redirect_uris", json!(["http://127.0.0.1:8000/cb"]))
        }),
        ("keys_missing", 1, |asked, reply| {
            member(asked, reply, "token_endpoint_auth_method", json!("private_key_jwt"))
        }),
        ("response_types", 1, |asked, reply| member(asked, reply, "response_types", json!(["code", 7]))),
        ("not_cacheable", 0, |_, reply| with(reply, "cache-control", "private, max-age=60")),
        ("not_cacheable", 0, |_, reply| with(reply, "cache-control", "No-Cache")),
        ("not_cacheable", 0, |_, reply| with(reply, "cache-control", "no-store")),
        ("no_max_age", 0, |_, reply| with(reply, "cache-control", "public")),
        ("no_max_age", 0, |_, reply| without(reply, "cache-control")),
        ("no_max_age", 0, |_, reply| with(reply, "cache-control", "max-age=banana")),
        ("stale", 0, |_, reply| with(reply, "age", "60")),
        ("stale", 0, |_, reply| with(reply, "cache-control", "max-age=0")),
        ("vary", 0, |_, reply| with(reply, "vary", "accept, *")),
        ("set_cookie", 0, |_, reply| with(reply, "set-cookie", "a=b")),
        ("no_etag", 0, |_, reply| without(reply, "etag")),
        ("accept", 0, |asked, reply| match asked.headers()["accept"].to_str() {
            Ok("text/html") => body(reply, PAGE),
            _ => reply,
        }),
        ("accept", 1, |asked, reply| match asked.headers()["accept"].to_str() {
            Ok("*/*") => status(reply, 406),
            _ => reply,
        }),
        ("from_the_request", 1, |asked, reply| match asked.headers().get("x-forwarded-host") {
            Some(_) => body(reply, "{}"),
            None => reply,
        }),
        ("host_without_port", 0, |asked, reply| match asked.headers()[HOST].to_str() {
            Ok(HOST_NAME) => status(reply, 421),
            _ => reply,
        }),
        ("etag_gzip", 0, |asked, reply| match asked.headers().get("accept-encoding") {
            Some(_) => without(reply, "etag"),
            None => reply,
        }),
        ("head", 0, |asked, reply| if asked.method() == Method::HEAD { status(reply, 405) } else { reply }),
        ("preflight", 0, |asked, reply| if asked.method() == Method::OPTIONS { status(reply, 405) } else { reply }),
        ("preflight", 0, |_, reply| without(reply, "access-control-allow-origin")),
    ];
    let honest = Liar::start(|_| {}, |_, reply| reply).await;
    let found = probe(&[&honest.origin, "--extra-ca", &honest.ca]).await;
    assert_eq!(found, (Some(1), "refused".into(), vec!["special_use_address".into()]));
    for (index, (expected, exit, lie)) in rows.iter().enumerate() {
        let liar = Liar::start(|_| {}, *lie).await;
        let port = liar.origin.rsplit_once(':').expect("a port").1;
        let connect_to = format!("127.0.0.1:{port}");
        let (code, verdict, codes) = probe(&[&liar.origin, "--extra-ca", &liar.ca, "--connect-to", &connect_to]).await;
        assert_eq!((code, codes), (Some(*exit), vec![(*expected).to_owned()]), "row {index}");
        assert_eq!(verdict == "fine", *exit == 0);
    }
    // A document under another URL than its own.
    let elsewhere = format!("{}/elsewhere.json", honest.origin);
    let (code, _, codes) = probe(&[&elsewhere, "--extra-ca", &honest.ca]).await;
    assert_eq!((code, codes), (Some(1), vec!["special_use_address".into(), "client_id_mismatch".into()]));
    let pending = format!("{}/pending.json", honest.origin);
    let (code, _, codes) = probe(&[&pending, "--extra-ca", &honest.ca, "--timeout=1"]).await;
    assert_eq!((code, codes), (Some(1), vec!["special_use_address".into(), "timeout".into()]));
}

/// Whoever takes a connection was asked, and a server would get no more of it.
#[tokio::test]
async fn what_is_no_answer_is_refused() {
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let hangs_up = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = |listener: &TcpListener| listener.local_addr().expect("an address").to_string();
    let rows = [("timeout", address(&silent)), ("no_answer", address(&hangs_up))];
    tokio::spawn(async move {
        while let Ok(connection) = hangs_up.accept().await {
            drop(connection);
        }
    });
    for (expected, address) in rows {
        let found = probe(&["https://mcp.example.com", "--connect-to", &address, "--timeout=1"]).await;
        assert_eq!(found, (Some(1), "refused".into(), vec![expected.into()]));
    }
    // A header that HTTP does not allow, and a server that writes it all the same.
    let dir = tempfile::tempdir().expect("a folder");
    let certificates = Authority::make(dir.path()).issue_edited("tls", &[HOST_NAME], |_| {});
    let mut listener = tls_listener::bind(&certificates).await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await;
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(b"HTTP/1.1 302 Found\r\nlocation: /\x1b[2J\r\n\r\n").await;
            let _ = stream.shutdown().await;
        }
    });
    let (url, ca) = (format!("https://{HOST_NAME}"), certificates.ca.to_str().expect("text"));
    let (code, stdout, _) = run(&[&url, "--extra-ca", ca, "--connect-to", &address]).await;
    assert_eq!(code, Some(1));
    assert!(stdout.contains("error no_answer: no whole answer came: invalid HTTP header parsed\n"), "{stdout}");
}

#[tokio::test]
async fn a_bad_certificate_is_named() {
    type Row = (&'static str, fn(&mut CertificateParams));
    let rows: &[Row] = &[
        ("tls_untrusted", |_| {}),
        ("tls_untrusted", |leaf| leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
        ("tls_expired", |leaf| leaf.not_after = date_time_ymd(2001, 1, 1)),
        ("tls_not_yet_valid", |leaf| leaf.not_before = date_time_ymd(2901, 1, 1)),
        ("tls_wrong_name", |leaf| {
            leaf.subject_alt_names = vec![rcgen::SanType::DnsName("other.localhost".try_into().expect("a name"))];
        }),
    ];
    for (expected, edit) in rows {
        let liar = Liar::start(edit, |_, reply| reply).await;
        let trusted: &[&str] = if *expected == "tls_untrusted" { &[] } else { &["--extra-ca", &liar.ca] };
        let (code, verdict, codes) = probe(&[&[liar.origin.as_str()], trusted].concat()).await;
        assert_eq!((code, verdict.as_str()), (Some(1), "refused"), "{expected}");
        assert_eq!(codes, ["special_use_address", expected]);
    }
}

#[tokio::test]
async fn who_could_not_be_asked_is_not_judged() {
    // Bound and never listened on: nobody else gets this port meanwhile.
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.bind(([127, 0, 0, 1], 0).into()).expect("a port");
    let nobody = socket.local_addr().expect("an address").to_string();
    let (code, verdict, codes) = probe(&["https://mcp.example.com", "--connect-to", &nobody]).await;
    assert_eq!((code, verdict.as_str(), codes), (Some(2), "not_asked", vec!["unreachable".into()]));
    let (code, verdict, codes) = probe(&["https://no.such.host.invalid"]).await;
    assert_eq!((code, verdict.as_str(), codes), (Some(2), "not_asked", vec!["unresolvable".into()]));
    for args in [
        ["https://mcp.example.com", "--extra-ca=/nowhere"],
        ["https://mcp.example.com", "--expect=/nowhere"],
        ["https://192.0.2.1", "--connect-to=127.0.0.1:1"],
    ] {
        assert_eq!(probe(&args).await, (Some(2), "not_asked".into(), vec!["option".into()]));
    }
    for (args, error) in [
        (&[][..], "<URL>"),
        (&["http://mcp.example.com"], "must be https"),
        (&["https://mcp.example.com", "--ready"], "cannot be used with"),
        (&["https://mcp.example.com", "--timeout=0"], "--timeout"),
        (&["https://mcp.example.com", "--extra-ca=/nowhere"], "--extra-ca /nowhere"),
        (&["https://192.0.2.1", "--connect-to=127.0.0.1:1"], "--connect-to: the URL names an address itself"),
        (&["--ready", "https://127.0.0.1:9002/readyz"], "must be `http://…` or `unix:/path`"),
        (&["--ready", "http://127.0.0.1:9002/metrics"], "must end in /readyz, or have no path"),
        (&["--ready", "--expect=/nowhere"], "cannot be used with"),
        (&["--expect=/nowhere"], "--expect /nowhere: No such file"),
        (&["https://mcp.example.com", "--expect=/dev/null"], "--expect /dev/null: is not a JSON object"),
    ] {
        let (code, stdout, stderr) = run(args).await;
        assert_eq!((code, stdout.as_str()), (Some(2), ""), "{args:?} {stderr}");
        assert!(stderr.contains(error), "{args:?} {stderr}");
    }
}

#[tokio::test]
async fn whether_a_process_is_ready() {
    let dir = tempfile::tempdir().expect("a folder");
    let socket = format!("unix:{}", dir.path().join("admin.sock").display());
    let over_tcp = Cimd::start(&executable(), &["--drain-delay=60"]).await;
    let over_unix = Cimd::start(&executable(), &["--admin-listen", &socket]).await;
    let no_path = format!("http://{}", over_tcp.admin);
    let url = format!("{no_path}/readyz");
    for url in [&url, &no_path, &over_unix.admin] {
        assert_eq!(run(&["--ready", url]).await, (Some(0), String::new(), String::new()));
    }
    let mut stopping = over_tcp;
    stopping.process.signal("-TERM");
    stopping.process.line(|line| line.contains("stopping").then_some(())).await;
    let (code, _, stderr) = run(&["--ready", &url]).await;
    assert_eq!((code, stderr.as_str()), (Some(1), "envoy-cimd: not ready: 503 stopping\n"));
    let (code, _, stderr) = run(&["--ready", &format!("unix:{}", dir.path().join("none").display())]).await;
    assert_eq!((code, stderr.starts_with("envoy-cimd: not ready: ")), (Some(1), true), "{stderr}");
    // One that takes connections and is never heard of.
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/readyz", silent.local_addr().expect("an address"));
    let (code, _, stderr) = run(&["--ready", &url]).await;
    assert_eq!((code, stderr.as_str()), (Some(1), "envoy-cimd: not ready: no answer within 3 seconds\n"));
}
