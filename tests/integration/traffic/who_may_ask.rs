//! Who may ask for what, and what of a caller's own never goes on.

use bytes::Bytes;
use http::Version;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use super::{
    APP,
    Answer::{Refused, Told},
    CONNECT, LINK, REFUSED, check, head_of,
};
use crate::{
    gateway::{ANNA, Ask, BERT, Gateway, MCP, NOBODY, NOTES, Payload, Setup, THEIRS, VERSIONS},
    stack::{Call, Client},
    world::{manager, metadata, virtual_hosts},
};

#[tokio::test]
async fn methods() {
    let gateway = Gateway::start(Setup::default()).await;
    let code = gateway.connect_anna().await;
    let page = [("accept", "text/html"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")];
    for version in VERSIONS {
        for method in ["GET", "DELETE"] {
            let what = format!("{method} over {version:?}");
            let answered = gateway.send(version, &Ask::new(method)).await;
            assert_eq!(answered.status, 200, "{what}");
            assert_eq!(gateway.token_of(&gateway.upstream.came_alone()), code, "{what}");
            let reached = gateway.upstream.reached();
            for payload in [Payload::None, Payload::Whole("{}".into())] {
                let answered = gateway.send(version, &Ask::new(method).by(BERT).payload(payload)).await;
                check(&answered, &Refused(405, CONNECT), &what);
                assert_eq!(answered.all("allow"), ["POST"], "{what}");
            }
            assert_eq!(gateway.upstream.reached(), reached, "{what}");
        }
        let reached = gateway.upstream.reached();
        // A person who pastes the address into a browser.
        let opened = page.iter().fold(Ask::new("GET"), |ask, (name, value)| ask.header(name, *value));
        let answered = gateway.send(version, &opened.by(BERT)).await;
        assert_eq!((answered.status, answered.all("location")), (303, vec![LINK]), "{version:?}");
        assert_eq!((answered.all("cache-control"), answered.body.len()), (vec!["no-store"], 0));
        // With a token or without: TRACE would show it to the caller.
        for method in ["HEAD", "OPTIONS", "PUT", "PATCH", "TRACE"] {
            for who in [ANNA, BERT] {
                let what = format!("{method} by {who:?} over {version:?}");
                let answered = gateway.send(version, &Ask::new(method).by(who)).await;
                assert_eq!((answered.status, answered.all("allow")), (405, vec!["GET, POST, DELETE"]), "{what}");
                if method == "HEAD" {
                    assert_eq!((answered.body.len(), answered.all("cache-control")), (0, vec!["no-store"]), "{what}");
                } else {
                    check(&answered, &Refused(405, REFUSED), &what);
                }
            }
        }
        assert_eq!(gateway.upstream.reached(), reached, "{version:?}");
    }
    // Envoy has no route for it.
    let mut stream = gateway.world.https().connect(Version::HTTP_11, NOTES).await.expect("a connection");
    stream.write_all(format!("CONNECT {NOTES}:443 HTTP/1.1\r\nhost: {NOTES}\r\n\r\n").as_bytes()).await.expect("sent");
    let head = head_of(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
    gateway.finish().await;
}

/// Pages of the route's own origin and of those that the operator names may ask, and no others.
#[tokio::test]
async fn origins() {
    let allow = format!("--allow-origin={APP}");
    let gateway = Gateway::start(Setup { serve: &[&allow], envoy_config: &[&allow], ..Setup::default() }).await;
    let code = gateway.connect_anna().await;
    let list = r#"{"jsonrpc":"2.0","id":7,"method":"tools/list"}"#;
    for version in VERSIONS {
        for (origins, allowed) in [
            (&["https://notes.localhost"][..], true),
            (&[APP], true),
            (&["https://evil.example"], false),
            (&["null"], false),
            (&[""], false),
            (&["http://notes.localhost"], false),
            (&["https://notes.localhost:8443"], false),
            (&["https://notes.localhost.evil.example"], false),
            (&["https://notes.localhost", "https://notes.localhost"], false),
            (&["https://evil.example", APP], false),
            (&[APP, "https://evil.example"], false),
        ] {
            let what = format!("{origins:?} over {version:?}");
            let ask = origins.iter().fold(Ask::post(list), |ask, origin| ask.header("origin", *origin));
            let reached = gateway.upstream.reached();
            let answered = gateway.send(version, &ask.clone().by(BERT)).await;
            let expected = if allowed { Told(json!(7)) } else { Refused(403, REFUSED) };
            check(&answered, &expected, &what);
            // A page reads its answer where it may ask from another origin, so that the link reaches the person.
            let readable = if origins == [APP] { vec![APP] } else { Vec::new() };
            assert_eq!(answered.all("access-control-allow-origin"), readable, "{what}");
            assert_eq!(gateway.upstream.reached(), reached, "{what}");
            let answered = gateway.send(version, &ask).await;
            if allowed {
                assert_eq!(answered.status, 200, "{what}");
                assert_eq!(answered.all("access-control-allow-origin"), readable, "{what}");
                assert_eq!(gateway.token_of(&gateway.upstream.came_alone()), code, "{what}");
            } else {
                check(&answered, &expected, &what);
                assert_eq!(gateway.upstream.reached(), reached, "{what}");
            }
        }
        // What a browser asks first is answered by Envoy, for those that may.
        let reached = gateway.upstream.reached();
        for (origin, status) in [(APP, 200), ("https://evil.example", 403), ("https://notes.localhost", 405)] {
            let ask = Ask::new("OPTIONS").header("origin", origin).header("access-control-request-method", "POST");
            let answered = gateway.send(version, &ask.by(NOBODY)).await;
            assert_eq!(answered.status, status, "{origin} over {version:?}: {answered:?}");
            let allowed = answered.all("access-control-allow-origin");
            assert_eq!(allowed, if status == 200 { vec![origin] } else { Vec::new() }, "{version:?}");
        }
        assert_eq!(gateway.upstream.reached(), reached, "{version:?}");
    }
    gateway.finish().await;
}

/// What is refused whoever asks: of no user, over http, to another host or address, with much too long headers, or on a
/// route that leads nowhere.
#[tokio::test]
async fn what_is_refused_of_everybody() {
    let routes = [("https://notes.localhost", "notes"), ("https://tickets.localhost:8443", "notes")];
    let edit = |config: &mut Value| {
        let tickets = virtual_hosts(config).iter_mut().find(|host| host["name"] != NOTES);
        let tickets = metadata(tickets.expect("a host")).as_object_mut().expect("keys");
        tickets.remove("to").expect("a `to`");
    };
    let serve = ["--max-header-bytes=4096"];
    let gateway = Gateway::start(Setup { routes: &routes, serve: &serve, edit: &edit, ..Setup::default() }).await;
    gateway.connect_anna().await;
    let list = || Ask::post(r#"{"jsonrpc":"2.0","id":7,"method":"tools/list"}"#);
    let misdirected = Ask { authority: format!("{NOTES}:444"), ..list() };
    let nowhere = Ask { authority: "tickets.localhost:8443".to_owned(), ..list().at("tickets.localhost", MCP) };
    for version in VERSIONS {
        for (name, ask, status) in [
            ("no user", list().by(NOBODY), 403),
            ("no subject", list().by(NOBODY).header("x-issuer", "i"), 403),
            ("another port", misdirected.clone(), 421),
            ("long headers", list().header("accept", "x".repeat(5000)), 431),
            ("no `to`", nowhere.clone(), 500),
        ] {
            check(&gateway.send(version, &ask).await, &Refused(status, REFUSED), name);
        }
        // What Envoy's own configuration says.
        let stranger = Ask { authority: "evil.example".to_owned(), ..list() };
        assert_eq!(gateway.send(version, &stranger).await.status, 421, "another host");
        for path in [
            "/notes",
            "/notes/mcp/",
            "/notes/mcp/more",
            "/notes/mcpx",
            "/notes/mcp;a",
            "/notes/%6Dcp",
            "//notes/mcp",
            "/NOTES/mcp",
            "/notes/./mcp",
            "/mcp",
            "/other",
        ] {
            assert_eq!(gateway.send(version, &list().at(NOTES, path)).await.status, 404, "{path}");
        }
    }
    // Longer than Envoy takes; over HTTP/2 it ends the connection.
    assert_eq!(gateway.send(Version::HTTP_11, &list().header("x-long", "x".repeat(100_000))).await.status, 431);
    let http = Client::plain(gateway.world.envoy.http);
    for method in ["GET", "POST"] {
        let answered = http.send(Version::HTTP_11, Call::get(NOTES, MCP).method(method)).await.expect("an answer");
        assert_eq!(answered.status, 403, "over http");
    }
    assert_eq!(gateway.upstream.reached(), 0);
    gateway.finish().await;
}

/// However it is spelled and how often it comes, in headers or trailers, nothing of the caller's credentials arrives.
#[tokio::test]
async fn the_callers_credentials_never_arrive() {
    let edit = |config: &mut Value| {
        // HTTP/1.1's trailers as well, which Envoy drops unless it is told to keep them.
        let manager = manager(&mut config["static_resources"]["listeners"][0]);
        manager["http_protocol_options"] = json!({"enable_trailers": true});
    };
    let gateway = Gateway::start(Setup { speaks_http2: true, edit: &edit, ..Setup::default() }).await;
    let code = gateway.connect_anna().await;
    let bearer = format!("Bearer {THEIRS}");
    let many = |name: &str, times: usize| vec![(name.to_owned(), bearer.clone()); times];
    let trailers: &[(&str, &str)] = &[
        ("authorization", "Bearer SECRET-of-the-caller"),
        ("authorization", "Basic SECRET-of-the-caller"),
        ("cookie", "a=SECRET-of-the-caller"),
        ("proxy-authorization", "Basic SECRET-of-the-caller"),
        ("x-trailer", "stays"),
    ];
    for version in VERSIONS {
        for headers in [
            Vec::new(),
            many("authorization", 1),
            many("authorization", 5),
            many("proxy-authorization", 2),
            vec![("cookie".to_owned(), format!("a={THEIRS}")), ("cookie".to_owned(), format!("b={THEIRS}"))],
            [many("authorization", 1), many("cookie", 1), many("proxy-authorization", 1)].concat(),
            vec![("authorization".to_owned(), String::new())],
        ] {
            for payload in [
                Payload::None,
                Payload::Whole("{}".into()),
                Payload::Pieces("{}".into(), trailers.to_vec()),
                Payload::Pieces(Bytes::new(), trailers.to_vec()),
            ] {
                let mut ask = Ask { headers: headers.clone(), ..Ask::post("").payload(payload.clone()) };
                if version == Version::HTTP_11 && matches!(payload, Payload::Pieces(..)) {
                    let names: Vec<_> = trailers.iter().map(|(name, _)| *name).collect();
                    ask = ask.header("trailer", names.join(", "));
                }
                let what = format!("{headers:?} {payload:?} over {version:?}");
                assert_eq!(gateway.send(version, &ask).await.status, 200, "{what}");
                let came = gateway.upstream.came_alone();
                assert_eq!(gateway.token_of(&came), code, "{what}");
                let has_trailers = matches!(payload, Payload::Pieces(..));
                assert_eq!(came.trailers.contains_key("x-trailer"), has_trailers, "{what}: the others stay");
                // Without a token, nothing arrives at all.
                let reached = gateway.upstream.reached();
                assert_ne!(gateway.send(version, &ask.by(BERT)).await.status, 401, "{what}");
                assert_eq!(gateway.upstream.reached(), reached, "{what}");
            }
        }
    }
    // As no library sends it.
    for (line, status) in [
        (format!("Authorization: {bearer}"), 200),
        (format!("AUTHORIZATION:{bearer}"), 200),
        (format!("aUtHoRiZaTiOn:\t {bearer} "), 200),
        (format!("authorization: {bearer}\r\nAuthorization: {bearer}\r\nAUTHORIZATION: Basic {THEIRS}"), 200),
        (format!("connection: authorization\r\nauthorization: {bearer}"), 200),
        (format!("te: trailers\r\nconnection: te, authorization\r\nauthorization: {bearer}"), 200),
        // A line that is folded: Envoy makes it one (RFC 9112, section 5.2).
        (format!("authorization: Bearer\r\n {THEIRS}"), 200),
        (format!("authorization : {bearer}"), 400),
        (format!("authorization\0: {bearer}"), 400),
    ] {
        let reached = gateway.upstream.reached();
        let mut stream = gateway.world.https().connect(Version::HTTP_11, NOTES).await.expect("a connection");
        let request = format!(
            "POST {MCP} HTTP/1.1\r\nhost: {NOTES}\r\nx-issuer: i\r\nx-subject: anna\r\n{line}\r\ncontent-length: 2\r\n\r\n{{}}"
        );
        stream.write_all(request.as_bytes()).await.expect("sent");
        let head = head_of(&mut stream).await;
        let what = format!("{line:?}: {head}");
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{what}");
        if status == 200 {
            assert_eq!(gateway.token_of(&gateway.upstream.came_alone()), code, "{what}");
        } else {
            assert_eq!(gateway.upstream.reached(), reached, "{what}");
        }
    }
    gateway.finish().await;
}
