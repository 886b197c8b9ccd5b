//! The document's whole HTTP behaviour, row by row, through a real Envoy over TLS.

use http::Version;

use crate::{
    stack::{Answered, Call, Client},
    world::{DOCUMENT, Wish, World, metadata, virtual_hosts},
};

const NOTES: &str = r#"{"client_id":"https://notes.localhost/.well-known/mcp-client-metadata.json","client_name":"Pomerium MCP Proxy - notes.localhost","client_uri":"https://notes.localhost","redirect_uris":["https://notes.localhost/.pomerium/oauth/callback"],"grant_types":["authorization_code","refresh_token"],"response_types":["code"],"token_endpoint_auth_method":"none"}"#;
const TICKETS: &str = r#"{"client_id":"https://tickets.localhost:8443/.well-known/mcp-client-metadata.json","client_name":"Tickets","client_uri":"https://tickets.localhost:8443","redirect_uris":["https://tickets.localhost:8443/.pomerium/oauth/callback"],"grant_types":["authorization_code","refresh_token"],"response_types":["code"],"token_endpoint_auth_method":"none"}"#;

const SERVED: &[(&str, &str)] = &[
    ("content-type", "application/json"),
    ("cache-control", "public, max-age=3600"),
    ("access-control-allow-origin", "*"),
    ("access-control-expose-headers", "etag"),
    ("x-content-type-options", "nosniff"),
];

/// What a row expects.
pub enum Expect {
    /// 200 with this document.
    Document(&'static str),
    /// The same without its body.
    Head(&'static str),
    NotModified,
    Preflight,
    /// A refusal of ours: status and label.
    Refused(u16, &'static str),
    /// None of ours: what Envoy itself makes of a path that no route has.
    PassedThrough,
}

/// Every request that the document answers in a way of its own.
pub fn table(etag: &str) -> Vec<(&'static str, Call, Expect)> {
    use Expect::{Document, Head, NotModified, PassedThrough, Preflight, Refused};
    let notes = || Call::get("notes.localhost", DOCUMENT);
    let tickets = || Call::get("tickets.localhost", DOCUMENT);
    let at = |path: &str| Call::get("notes.localhost", path);
    vec![
        ("a plain GET", notes(), Document(NOTES)),
        ("the port named", notes().authority("notes.localhost:443"), Document(NOTES)),
        ("another case", notes().authority("NOTES.localhost"), Document(NOTES)),
        ("a route with a port", tickets().authority("tickets.localhost:8443"), Document(TICKETS)),
        ("its port left out", tickets(), Document(TICKETS)),
        ("accept html", notes().header("accept", "text/html"), Document(NOTES)),
        ("a range", notes().header("range", "bytes=0-9"), Document(NOTES)),
        ("an origin", notes().header("origin", "https://evil.example"), Document(NOTES)),
        ("a forwarded host", notes().header("x-forwarded-host", "evil.example"), Document(NOTES)),
        ("forwarded", notes().header("forwarded", "host=evil.example;proto=http"), Document(NOTES)),
        ("a forged scheme", notes().header("x-forwarded-proto", "http"), Document(NOTES)),
        ("a forged port", notes().header("x-forwarded-port", "8443"), Document(NOTES)),
        ("HEAD", notes().method("HEAD"), Head(NOTES)),
        ("an old tag", notes().header("if-none-match", "\"old\""), Document(NOTES)),
        ("the tag", notes().header("if-none-match", etag), NotModified),
        ("the tag, HEAD", notes().method("HEAD").header("if-none-match", etag), NotModified),
        ("the tag, weak", notes().header("if-none-match", format!("W/{etag}")), NotModified),
        ("any tag", notes().header("if-none-match", "*"), NotModified),
        ("a list", notes().header("if-none-match", format!("\"a\", {etag}")), NotModified),
        ("two lines", notes().header("if-none-match", "\"a\"").header("if-none-match", etag), NotModified),
        ("OPTIONS", notes().method("OPTIONS"), Preflight),
        (
            "a preflight",
            notes()
                .method("OPTIONS")
                .header("origin", "https://app.example")
                .header("access-control-request-method", "GET")
                .header("access-control-request-headers", "mcp-protocol-version"),
            Preflight,
        ),
        ("POST", notes().method("POST"), Refused(405, "method_not_allowed")),
        ("PUT", notes().method("PUT"), Refused(405, "method_not_allowed")),
        ("DELETE", notes().method("DELETE"), Refused(405, "method_not_allowed")),
        ("PATCH", notes().method("PATCH"), Refused(405, "method_not_allowed")),
        ("a query", at(&format!("{DOCUMENT}?x=1")), Refused(404, "not_found")),
        ("an empty query", at(&format!("{DOCUMENT}?")), Refused(404, "not_found")),
        ("OPTIONS with a query", at(&format!("{DOCUMENT}?x")).method("OPTIONS"), Refused(404, "not_found")),
        ("another port", notes().authority("notes.localhost:8443"), Refused(421, "misdirected_request")),
        ("the default port instead", tickets().authority("tickets.localhost:443"), Refused(421, "misdirected_request")),
        ("an unknown host", notes().authority("evil.example"), Refused(421, "misdirected_request")),
        ("a host of another route", notes().authority("moved.localhost"), Refused(421, "misdirected_request")),
        ("a bad `from`", Call::get("broken.localhost", DOCUMENT), Refused(500, "misconfigured_route")),
        ("no `from`", Call::get("other.localhost", DOCUMENT), Refused(500, "misconfigured_route")),
        // The order of the checks: each row is wrong in two ways, and the first counts.
        (
            "a bad `from` and a method",
            Call::get("broken.localhost", DOCUMENT).method("POST"),
            Refused(500, "misconfigured_route"),
        ),
        (
            "a port and a method",
            notes().authority("notes.localhost:1").method("POST"),
            Refused(421, "misdirected_request"),
        ),
        ("a method and a query", at(&format!("{DOCUMENT}?x")).method("POST"), Refused(405, "method_not_allowed")),
        ("a slash at the end", at(&format!("{DOCUMENT}/")), PassedThrough),
        ("percent-encoded", at("/.well-known/mcp-client-metadata%2Ejson"), PassedThrough),
        ("an encoded slash", at("/.well-known%2Fmcp-client-metadata.json"), PassedThrough),
        ("dot segments", at("/x/../.well-known/mcp-client-metadata.json"), PassedThrough),
        ("a dot segment", at("/.well-known/./mcp-client-metadata.json"), PassedThrough),
        ("two slashes", at("//.well-known/mcp-client-metadata.json"), PassedThrough),
        ("another case of the path", at("/.well-known/MCP-client-metadata.json"), PassedThrough),
        ("a path parameter", at(&format!("{DOCUMENT};x")), PassedThrough),
        ("another path", at("/other"), PassedThrough),
    ]
}

async fn world() -> World {
    World::start(Wish {
        routes: &[
            "from=https://notes.localhost",
            "from=https://tickets.localhost:8443,client_name=Tickets",
            "from=https://other.localhost",
            "from=https://broken.localhost",
        ],
        edit: &|config| {
            for host in virtual_hosts(config) {
                match host["name"].as_str() {
                    Some("broken.localhost") => {
                        metadata(host)["from"] = "http://broken.localhost".into();
                    }
                    Some("other.localhost") => {
                        metadata(host).as_object_mut().expect("metadata").remove("from");
                    }
                    // An authority that Envoy takes for the route's, and we must not.
                    Some("notes.localhost") => {
                        host["domains"] =
                            serde_json::json!(["notes.localhost", "notes.localhost:*", "moved.localhost"]);
                    }
                    _ => {}
                }
            }
        },
        ..Wish::default()
    })
    .await
}

fn check(name: &str, version: Version, expect: &Expect, answer: &Answered, etag: &str) {
    let row = format!("{name}, {version:?}: {answer:?}");
    let has = |headers: &[(&str, &str)]| {
        for (header, value) in headers {
            assert_eq!(answer.all(header), [*value], "{header}; {row}");
        }
    };
    let served = |body: &str| {
        assert_eq!(answer.status, 200, "{row}");
        has(SERVED);
        has(&[("content-length", &body.len().to_string())]);
        assert_eq!(answer.all("etag").len(), 1, "{row}");
        assert!(answer.all("etag").iter().all(|tag| tag.starts_with('"') && tag.ends_with('"')), "strong; {row}");
        assert!(answer.all("set-cookie").is_empty(), "{row}");
    };
    match expect {
        Expect::Document(body) => {
            served(body);
            assert_eq!(answer.text(), *body, "{row}");
        }
        Expect::Head(body) => {
            served(body);
            assert_eq!(answer.text(), "", "{row}");
        }
        Expect::NotModified => {
            assert_eq!((answer.status, answer.text()), (304, ""), "{row}");
            has(&[("etag", etag), ("cache-control", "public, max-age=3600"), ("access-control-allow-origin", "*")]);
        }
        Expect::Preflight => {
            assert_eq!((answer.status, answer.text()), (204, ""), "{row}");
            has(&[
                ("access-control-allow-origin", "*"),
                ("access-control-allow-methods", "GET, HEAD, OPTIONS"),
                ("access-control-allow-headers", "*"),
                ("access-control-max-age", "86400"),
            ]);
        }
        Expect::Refused(status, label) => {
            assert_eq!(answer.status, *status, "{row}");
            let body: serde_json::Value = serde_json::from_slice(&answer.body).expect(&row);
            assert_eq!(body["error"], *label, "{row}");
            assert!(body["message"].as_str().is_some_and(|message| !message.is_empty()), "{row}");
            assert!(!answer.text().contains("from"), "nothing of the configuration; {row}");
            has(&[("content-type", "application/json"), ("cache-control", "no-store")]);
            if *status == 405 {
                has(&[("allow", "GET, HEAD, OPTIONS")]);
            }
            assert!(answer.all("etag").is_empty() && answer.all("location").is_empty(), "{row}");
        }
        Expect::PassedThrough => assert_eq!((answer.status, answer.text()), (404, ""), "{row}"),
    }
}

#[tokio::test]
async fn every_row_over_tls() {
    let world = world().await;
    let first = world.https().send(Version::HTTP_11, Call::get("notes.localhost", DOCUMENT)).await.expect("an answer");
    let etag = first.all("etag").join("");
    for version in [Version::HTTP_11, Version::HTTP_2] {
        for (name, call, expect) in table(&etag) {
            let answer = world.https().send(version, call).await.unwrap_or_else(|error| panic!("{name}: {error}"));
            check(name, version, &expect, &answer, &etag);
        }
    }
    assert!(world.upstream.seen().is_empty(), "nothing of ours reaches the upstream");
}

/// A refusal can be reported: the answer, our log and Envoy's share the request's name, and the log has the reason.
#[tokio::test]
async fn a_refusal_can_be_found_in_the_log() {
    let mut world = world().await;
    let answer =
        world.https().send(Version::HTTP_11, Call::get("broken.localhost", DOCUMENT)).await.expect("an answer");
    let [id] = answer.all("x-request-id")[..] else { panic!("one request id: {answer:?}") };
    let line = world.cimd.process.line(|line| line.contains("misconfigured_route").then(|| line.to_owned())).await;
    let line: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    assert_eq!((&line["request_id"], &line["level"]), (&id.into(), &"WARN".into()));
    assert_eq!((&line["route"], &line["reason"]), (&"broken.localhost".into(), &"`from` must be https".into()));
    let access = world.envoy.process.line(|line| line.contains(id).then(|| line.to_owned())).await;
    let access: serde_json::Value = serde_json::from_str(&access).expect("JSON");
    assert_eq!(access["details"], "envoy_cimd_misconfigured_route", "{access}");
    assert_eq!(access["path"], DOCUMENT);
}

#[tokio::test]
async fn plain_http_is_refused_and_never_redirected() {
    let world = world().await;
    let client = Client::plain(world.envoy.http);
    for call in [
        Call::get("notes.localhost", DOCUMENT),
        Call::get("notes.localhost", DOCUMENT).header("x-forwarded-proto", "https"),
        // Wrong in two ways: https counts before authority, method and query.
        Call::get("notes.localhost", &format!("{DOCUMENT}?x")).authority("moved.localhost").method("POST"),
        Call::get("notes.localhost", "/mcp"),
        Call::get("unknown.localhost", "/"),
    ] {
        let answer = client.send(Version::HTTP_11, call.clone()).await.expect("an answer");
        assert_eq!(answer.status, 403, "{call:?}");
        let body: serde_json::Value = serde_json::from_slice(&answer.body).expect("JSON");
        assert_eq!(body["error"], "https_required", "{call:?}");
        assert!(answer.all("location").is_empty());
    }
    assert!(world.upstream.seen().is_empty());
}

/// What is not ours: the MCP path goes on to the upstream, and nothing else does.
#[tokio::test]
async fn the_rest_of_a_route() {
    let world = world().await;
    let client = world.https();
    let send = |call| client.send(Version::HTTP_2, call);
    let mcp = send(Call::get("notes.localhost", "/mcp?session=1").method("POST")).await.expect("an answer");
    assert_eq!((mcp.status, mcp.text()), (200, "the upstream"));
    assert_eq!(mcp.all("content-security-policy"), ["sandbox"]);
    // Of what the upstream would set, keep or learn on our origin, nothing passes.
    for header in ["set-cookie", "nel", "report-to", "refresh"] {
        assert!(mcp.all(header).is_empty(), "{header}: {mcp:?}");
    }
    let with_cookie = Call::get("notes.localhost", "/mcp").header("cookie", "session=1").header("accept", "*/*");
    send(with_cookie).await.expect("an answer");
    assert!(world.upstream.cookies().is_empty(), "no cookie of ours goes to it");
    assert_eq!(world.upstream.seen(), ["POST /mcp?session=1", "GET /mcp"]);
    for path in ["/mcp/../admin", "/mcp/", "/other"] {
        assert_eq!(send(Call::get("notes.localhost", path)).await.expect("an answer").status, 404, "{path}");
    }
    let landing = send(Call::get("notes.localhost", "/")).await.expect("an answer");
    assert!(landing.status == 200 && landing.text().contains("MCP server"), "{landing:?}");
    let worker = send(Call::get("notes.localhost", "/mcp").header("service-worker", "script")).await;
    assert_eq!(worker.expect("an answer").status, 403);
    assert_eq!(world.upstream.seen().len(), 2, "only the MCP requests went on");
}
