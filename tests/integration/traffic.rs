//! MCP requests of every kind through a real Envoy with the printed configuration: with a token they go on untouched but
//! for the caller's credentials; without one nothing goes on, and the answer is what an MCP client can show.

use bytes::Bytes;
use futures_util::{StreamExt, stream::FuturesUnordered};
use http::Version;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use crate::{
    gateway::{ANNA, Ask, BERT, Gateway, MCP, NOBODY, NOTES, Payload, Setup, THEIRS, VERSIONS, open},
    mcp_upstream::EVENTS,
    stack::{Answered, Call, Client, PATIENCE},
    world::{START, http_filters, list, manager, metadata, virtual_hosts, without_metadata},
};

pub const LINK: &str = "https://notes.localhost/.pomerium/oauth/start";
const APP: &str = "https://app.example";

/// JSON-RPC's own codes, and ours outside of what it keeps for itself.
const PARSE: i64 = -32700;
const INVALID: i64 = -32600;
const MISMATCH: i64 = -32020;
const CONNECT: i64 = -31000;
const REFUSED: i64 = -31001;

/// How a request is answered for whom there is no token.
#[derive(Clone, Debug)]
pub enum Answer {
    /// The JSON-RPC error of this request, with the link.
    Told(Value),
    /// The result of this tool call, with the link, in the protocol's newer form or not.
    ToolTold(Value, bool),
    /// A status and a JSON-RPC error whose id is null.
    Refused(u16, i64),
    /// The same with the id of the request.
    RefusedRequest(u16, i64, Value),
}
use Answer::{Refused, RefusedRequest, Told, ToolTold};

pub struct Row {
    pub name: &'static str,
    pub ask: Ask,
    pub answer: Answer,
}

fn row(name: &'static str, ask: Ask, answer: Answer) -> Row {
    Row { name, ask, answer }
}

/// A message of this length, with its id before all that is long, or behind it.
fn long(length: usize, id_first: bool) -> Bytes {
    let (before, after) = if id_first {
        (r#"{"jsonrpc":"2.0","id":7,"method":"resources/read","params":{"text":""#, r#""}}"#)
    } else {
        (r#"{"jsonrpc":"2.0","params":{"text":""#, r#""},"method":"resources/read","id":7}"#)
    };
    let filling = "x".repeat(length - before.len() - after.len());
    Bytes::from([before, &filling, after].concat())
}

fn versioned(version: &str) -> String {
    json!({"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {
        "name": "x", "_meta": {"io.modelcontextprotocol/protocolVersion": version},
    }})
    .to_string()
}

/// Bodies of every kind.
pub fn bodies() -> Vec<Row> {
    const CALL: &str = r#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"x"}}"#;
    const LIST: &str = r#"{"jsonrpc":"2.0","id":7,"method":"tools/list"}"#;
    let with_id = |id: &str| Ask::post(format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/list"}}"#));
    let deep = format!(r#"{{"id":7,"method":"m","params":{}1{}}}"#, "[".repeat(1000), "]".repeat(1000));
    let (old, new) = ("2025-11-25", "2026-07-28");
    let of_version = |ask: Ask, version: &str| ask.header("mcp-protocol-version", version);
    let huge = 40 << 20;
    let mut rows = vec![
        row("no JSON", Ask::post("hello"), Refused(400, PARSE)),
        row("JSON that ends early", Ask::post(&CALL[..40]), Refused(400, PARSE)),
        row("a batch", Ask::post(format!("[{CALL}]")), Refused(400, INVALID)),
        row("a thousand levels", Ask::post(deep), Refused(400, PARSE)),
        row("an id twice", Ask::post(r#"{"id":7,"id":8,"method":"tools/list"}"#), Refused(400, INVALID)),
        row("params before the id", Ask::post(r#"{"params":{"a":[1]},"method":"tools/list","id":7}"#), Told(json!(7))),
        row("32 kB", Ask::post(long(32 << 10, false)), Told(json!(7))),
        row("a byte more", Ask::post(long((32 << 10) + 1, false)), Refused(502, CONNECT)),
        row("3 MB", Ask::post(long(3 << 20, true)), Told(json!(7))),
        row("3 MB before the id", Ask::post(long(3 << 20, false)), Refused(502, CONNECT)),
        row("40 MB", Ask::post(long(huge, true)), Told(json!(7))),
        row("40 MB before the id", Ask::post(long(huge, false)), Refused(502, CONNECT)),
        row(
            "40 MB of unknown length",
            Ask::post("").payload(Payload::Pieces(long(huge, true), Vec::new())),
            Told(json!(7)),
        ),
        row("an empty body", Ask::post(""), Refused(400, PARSE)),
        row("no body", Ask::new("POST").header("content-length", "0"), Refused(400, PARSE)),
        row(
            "trailers alone",
            Ask::post("").payload(Payload::Pieces(Bytes::new(), vec![("x-trailer", "a")])),
            Refused(400, PARSE),
        ),
        row(
            "a body and trailers",
            Ask::post("").payload(Payload::Pieces(LIST.into(), vec![("x-trailer", "a")])),
            Told(json!(7)),
        ),
        row(
            "a notification",
            Ask::post(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#),
            Refused(403, CONNECT),
        ),
        row("a client's response", Ask::post(r#"{"jsonrpc":"2.0","id":7,"result":{}}"#), Refused(403, CONNECT)),
        row(
            "initialize",
            Ask::post(r#"{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25"}}"#),
            Told(json!(0)),
        ),
        row("a tool's call", Ask::post(CALL), ToolTold(json!(7), false)),
        row("of the older protocol", of_version(Ask::post(versioned(old)), old), ToolTold(json!(7), false)),
        row("of the newer protocol", of_version(Ask::post(versioned(new)), new), ToolTold(json!(7), true)),
        row("of two protocols", of_version(Ask::post(versioned(new)), old), RefusedRequest(400, MISMATCH, json!(7))),
        row("with a page's headers", Ask::post(LIST).header("origin", "https://notes.localhost"), Told(json!(7))),
        row("a query", Ask { path: format!("{MCP}?a=b"), ..Ask::post(LIST) }, Told(json!(7))),
    ];
    for (id, answer) in [
        ("7", Told(json!(7))),
        ("-7", Told(json!(-7))),
        (r#""a\u00e9""#, Told(json!("aé"))),
        ("9007199254740993", Told(json!(9_007_199_254_740_993_u64))),
        ("null", Refused(400, INVALID)),
        ("true", Refused(400, INVALID)),
        ("1.5", Refused(400, INVALID)),
        ("[7]", Refused(400, INVALID)),
        ("{}", Refused(400, INVALID)),
    ] {
        rows.push(row("an id", with_id(id), answer));
    }
    rows
}

/// What is right of every answer in the upstream's place.
fn json_of(answer: &Answered, what: &str) -> Value {
    assert_eq!(answer.all("content-type"), ["application/json"], "{what}: {answer:?}");
    assert_eq!(answer.all("cache-control"), ["no-store"], "{what}");
    assert_eq!(answer.all("x-request-id").len(), 1, "{what}");
    assert!(answer.all("www-authenticate").is_empty(), "{what}");
    serde_json::from_slice(&answer.body).unwrap_or_else(|error| panic!("{what}: {error}: {answer:?}"))
}

/// A request that is refused with this error.
pub fn check_refused(answer: &Answered, status: u16, code: i64, id: &Value) {
    check(answer, &RefusedRequest(status, code, id.clone()), "it is refused");
}

fn check(answer: &Answered, expected: &Answer, what: &str) {
    let body = json_of(answer, what);
    let message = || body["error"]["message"].as_str().unwrap_or_else(|| panic!("{what}: {body}"));
    match expected {
        Told(id) => {
            assert_eq!(answer.status, 200, "{what}: {body}");
            let error = json!({"code": CONNECT, "message": message()});
            assert_eq!(body, json!({"jsonrpc": "2.0", "id": id, "error": error}), "{what}");
            assert!(message().contains(LINK) && !(-32768..=-32000).contains(&CONNECT), "{what}: {body}");
        }
        ToolTold(id, is_new) => {
            assert_eq!(answer.status, 200, "{what}: {body}");
            let text = &body["result"]["content"][0]["text"];
            let mut result = json!({"content": [{"type": "text", "text": text}], "isError": true});
            if *is_new {
                result["resultType"] = json!("complete");
            }
            assert_eq!(body, json!({"jsonrpc": "2.0", "id": id, "result": result}), "{what}");
            assert!(text.as_str().is_some_and(|text| text.contains(LINK)), "{what}: {body}");
        }
        Refused(status, code) => {
            assert_eq!(answer.status, *status, "{what}: {body}");
            let error = json!({"code": code, "message": message()});
            assert_eq!(body, json!({"jsonrpc": "2.0", "id": null, "error": error}), "{what}");
            assert_eq!(message().contains(LINK), *code == CONNECT, "{what}: {body}");
        }
        RefusedRequest(status, code, id) => {
            assert_eq!(answer.status, *status, "{what}: {body}");
            let error = json!({"code": code, "message": message()});
            assert_eq!(body, json!({"jsonrpc": "2.0", "id": id, "error": error}), "{what}");
        }
    }
}

#[tokio::test]
async fn without_a_token_nothing_goes_on() {
    let gateway = Gateway::start(Setup { speaks_http2: true, ..Setup::default() }).await;
    for version in VERSIONS {
        for Row { name, ask, answer } in bodies() {
            let answered = gateway.send(version, &ask.by(BERT)).await;
            check(&answered, &answer, &format!("{name} over {version:?}"));
        }
    }
    assert_eq!(gateway.upstream.reached(), 0);
    assert_eq!(gateway.world.metric("envoy_cimd_handed_out_total").await, Some(0));
    gateway.finish().await;
}

/// It is waited for no longer than it takes to be sure, and whoever waits takes nothing from others.
#[tokio::test]
async fn a_body_that_never_comes() {
    let gateway = Gateway::start(Setup { speaks_http2: true, ..Setup::default() }).await;
    let begin = Bytes::from_static(br#"{"jsonrpc":"2.0","id":7,"#);
    let asks = [Bytes::new(), begin].map(|begin| Ask::post("").payload(Payload::Endless(begin)).by(BERT));
    let [a, b] = VERSIONS;
    let answers = tokio::join!(
        gateway.send(a, &asks[0]),
        gateway.send(b, &asks[0]),
        gateway.send(a, &asks[1]),
        gateway.send(b, &asks[1])
    );
    for answer in [answers.0, answers.1, answers.2, answers.3] {
        check(&answer, &Refused(400, PARSE), "a body that never comes");
    }
    assert_eq!(gateway.upstream.reached(), 0);
    gateway.finish().await;
}

/// One who has no token cannot keep the others out, with bodies that never come.
#[tokio::test]
async fn bodies_of_one_user() {
    let gateway = Gateway::start(Setup { serve: &["--max-streams=10"], ..Setup::default() }).await;
    let code = gateway.connect_anna().await;
    let endless = Ask::post("").payload(Payload::Endless(Bytes::new())).by(BERT);
    // Whichever of them comes last is answered first.
    let mut asked: FuturesUnordered<_> = (0..9).map(|_| gateway.send(Version::HTTP_2, &endless)).collect();
    let refused = asked.next().await.expect("an answer");
    check(&refused, &Refused(503, CONNECT), "one more than may wait");
    let others = async {
        for version in VERSIONS {
            gateway.has_at_most(8).await;
            assert_eq!(gateway.send(version, &Ask::post("{}")).await.status, 200, "Anna's call");
            assert_eq!(gateway.token_of(&gateway.upstream.came_alone()), code);
            gateway.has_at_most(8).await;
            assert_eq!(gateway.world.document(NOTES).await.0, 200);
        }
    };
    let (waited, ()) = tokio::join!(asked.collect::<Vec<_>>(), others);
    assert_eq!(waited.len(), 8);
    for answered in waited {
        check(&answered, &Refused(400, PARSE), "a body that never comes");
    }
    assert_eq!(gateway.upstream.reached(), 2);
    gateway.finish().await;
}

/// Whoever goes away is not waited for.
#[tokio::test]
async fn a_client_that_leaves() {
    let gateway = Gateway::start(Setup::default()).await;
    for version in VERSIONS {
        let ask = Ask::post("").payload(Payload::Endless(Bytes::from_static(b"{"))).by(BERT);
        let left = open(&gateway.world, version, &ask);
        tokio::select! {
            answer = left => panic!("{answer:?}"),
            () = gateway.has_streams(1) => {}
        }
        gateway.has_streams(0).await;
    }
    assert_eq!(gateway.upstream.reached(), 0);
    gateway.finish().await;
}

/// With a token, what the body is makes no difference: it goes on byte for byte, and so does the answer.
#[tokio::test]
async fn with_a_token_everything_goes_on_untouched() {
    let gateway = Gateway::start(Setup { speaks_http2: true, ..Setup::default() }).await;
    let code = gateway.connect_anna().await;
    for version in VERSIONS {
        for Row { name, ask, .. } in bodies() {
            let what = format!("{name} over {version:?}");
            let (body, trailers) = match &ask.payload {
                Payload::Whole(body) => (body.clone(), Vec::new()),
                Payload::Pieces(body, trailers) => (body.clone(), trailers.clone()),
                Payload::None | Payload::Endless(_) => (Bytes::new(), Vec::new()),
            };
            let answered = gateway.send(version, &ask).await;
            assert_eq!(answered.status, 200, "{what}: {answered:?}");
            let came = gateway.upstream.came_alone();
            assert!(came.body == body && answered.body == body, "{what}: byte for byte");
            assert_eq!((came.method.as_str(), &came.path), (ask.method, &ask.path), "{what}");
            for (name, value) in &ask.headers {
                assert!(came.all(name).contains(&value.as_str()), "{what}: {name} in {:?}", came.headers);
            }
            if version == Version::HTTP_2 {
                let trailers: Vec<_> = trailers.iter().map(|(name, value)| (*name, *value)).collect();
                let sent: Vec<_> =
                    came.trailers.iter().map(|(name, value)| (name.as_str(), value.to_str().expect("text"))).collect();
                assert_eq!(sent, trailers, "{what}");
            }
            assert_eq!(gateway.token_of(&came), code, "{what}");
        }
    }
    gateway.finish().await;
}

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

/// The head of an answer over HTTP/1.1.
async fn head_of(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let read = async {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.expect("an answer"));
        }
        String::from_utf8(head).expect("text")
    };
    timeout(PATIENCE, read).await.expect("an answer in time")
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

/// A stream of events is passed on as it comes: each event before the next is there.
#[tokio::test]
async fn streams_of_events() {
    let gateway = Gateway::start(Setup::default()).await;
    let code = gateway.connect_anna().await;
    for version in VERSIONS {
        for method in ["GET", "POST"] {
            gateway.upstream.go_on(false);
            let ask = Ask::new(method).header("accept", "text/event-stream");
            let mut answer = open(&gateway.world, version, &ask).await.expect("an answer");
            assert_eq!(
                (answer.status().as_u16(), &answer.headers()["content-type"]),
                (200, &"text/event-stream".parse().expect("a value"))
            );
            let mut came = String::new();
            for (event, rest) in EVENTS.iter().enumerate() {
                let up_to = EVENTS[..event].concat().len() + rest.len();
                while came.len() < up_to {
                    let frame = timeout(PATIENCE, answer.body_mut().frame()).await.expect("an event in time");
                    let data = frame.expect("it goes on").expect("no error").into_data().expect("data");
                    came.push_str(std::str::from_utf8(&data).expect("text"));
                }
                assert_eq!(came, EVENTS[..=event].concat(), "{method} over {version:?}");
                // Nothing of envoy-cimd's is open meanwhile.
                gateway.has_streams(0).await;
                gateway.upstream.go_on(true);
            }
            let rest = timeout(PATIENCE, answer.collect()).await.expect("it ends").expect("no error");
            assert!(rest.to_bytes().is_empty(), "and there is no more");
            assert_eq!(gateway.token_of(&gateway.upstream.came_alone()), code);
        }
    }
    gateway.finish().await;
}

/// A client that asks first whether it may send a body is told so, and what it then sends goes on.
#[tokio::test]
async fn expect_100_continue() {
    let gateway = Gateway::start(Setup::default()).await;
    let code = gateway.connect_anna().await;
    let body = r#"{"jsonrpc":"2.0","id":7,"method":"tools/list"}"#;
    for (who, is_connected) in [("anna", true), ("bert", false)] {
        let mut stream = gateway.world.https().connect(Version::HTTP_11, NOTES).await.expect("a connection");
        let head = format!(
            "POST {MCP} HTTP/1.1\r\nhost: {NOTES}\r\nx-issuer: i\r\nx-subject: {who}\r\nexpect: 100-continue\r\n\
             content-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.expect("sent");
        let answer = head_of(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 100 "), "{who}: {answer}");
        stream.write_all(body.as_bytes()).await.expect("sent");
        let answer = head_of(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{who}: {answer}");
        if is_connected {
            let came = gateway.upstream.came_alone();
            assert_eq!((gateway.token_of(&came), &came.body[..]), (code.clone(), body.as_bytes()));
        }
    }
    assert_eq!(gateway.upstream.reached(), 1);
    gateway.finish().await;
}

/// WebSocket is no transport of MCP, and the printed configuration has none; where an operator allows it, the token goes
/// into its handshake, and what follows passes untouched.
#[tokio::test]
async fn web_sockets() {
    let allow = |config: &mut Value| {
        let manager = manager(&mut config["static_resources"]["listeners"][0]);
        manager["upgrade_configs"] = json!([{"upgrade_type": "websocket"}]);
    };
    let handshake = |who: &str| {
        format!(
            "GET {MCP} HTTP/1.1\r\nhost: {NOTES}\r\nx-issuer: i\r\nx-subject: {who}\r\nconnection: upgrade\r\n\
             upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\
             authorization: Bearer {THEIRS}\r\n\r\n"
        )
    };
    let edits: [&(dyn Fn(&mut Value) + Sync); 2] = [&|_| {}, &allow];
    for (is_allowed, edit) in edits.into_iter().enumerate() {
        let is_allowed = is_allowed == 1;
        let gateway = Gateway::start(Setup { edit, ..Setup::default() }).await;
        let code = gateway.connect_anna().await;
        for (who, status) in
            [("bert", if is_allowed { 405 } else { 403 }), ("anna", if is_allowed { 101 } else { 403 })]
        {
            let mut stream = gateway.world.https().connect(Version::HTTP_11, NOTES).await.expect("a connection");
            stream.write_all(handshake(who).as_bytes()).await.expect("sent");
            let head = head_of(&mut stream).await;
            assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{who}: {head}");
            if status == 101 {
                assert_eq!(gateway.token_of(&gateway.upstream.came_alone()), code);
                let sent: Vec<u8> = (0..=255).collect();
                stream.write_all(&sent).await.expect("sent");
                let mut came = vec![0; sent.len()];
                timeout(PATIENCE, stream.read_exact(&mut came)).await.expect("in time").expect("sent back");
                assert_eq!(came, sent);
                gateway.has_streams(0).await;
            } else {
                assert_eq!(gateway.upstream.reached(), 0, "{who}");
            }
        }
        gateway.finish().await;
    }
}

/// Everybody is one person, and still the token is the route's.
#[tokio::test]
async fn a_single_user() {
    let gateway = Gateway::start(Setup { single_user: true, ..Setup::default() }).await;
    let list = Ask::post(r#"{"jsonrpc":"2.0","id":7,"method":"tools/list"}"#);
    for version in VERSIONS {
        check(&gateway.send(version, &list).await, &Told(json!(7)), "nobody is connected");
    }
    assert_eq!(gateway.upstream.reached(), 0);
    let code = gateway.connect("https://notes.localhost", "notes", NOBODY).await;
    for (version, who) in VERSIONS.into_iter().zip([NOBODY, BERT]) {
        assert_eq!(gateway.send(version, &list.clone().by(who)).await.status, 200);
        assert_eq!(gateway.token_of(&gateway.upstream.came_alone()), code);
    }
    gateway.finish().await;
}

/// The config file's routes are told apart by their paths, whole segments of them, however wide Envoy's own routes are.
#[tokio::test]
async fn routes_of_the_config_file() {
    let routes = [("https://other.localhost/a", "a"), ("https://other.localhost/a/b", "b")];
    let edit = |config: &mut Value| {
        without_metadata(config);
        for host in virtual_hosts(config) {
            let routes = list(&mut host["routes"]);
            for route in routes.iter_mut() {
                route.as_object_mut().expect("a route").remove("metadata");
            }
            // All that is no path of ours goes to one upstream, which is to see whose token came.
            if let Some(route) = routes.iter().find(|route| route.get("route").is_some()).cloned() {
                let mut wide = route;
                wide["match"] = json!({"prefix": "/"});
                wide["route"].as_object_mut().expect("an action").remove("prefix_rewrite");
                routes.retain(|route| route.get("route").is_none() && route["match"]["path"] != "/");
                routes.push(wide);
            }
        }
    };
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("config.yaml");
    std::fs::write(&file, "routes: []\n").expect("a file");
    let serve = ["--config", file.to_str().expect("text")];
    let lies = routes.iter().map(|(_, name)| crate::authorization_server::Lie::none(name)).collect();
    let mut gateway =
        Gateway::start(Setup { routes: &routes, lies, serve: &serve, edit: &edit, ..Setup::default() }).await;
    let list = |path: &str| Ask::post(r#"{"jsonrpc":"2.0","id":7,"method":"tools/list"}"#).at("other.localhost", path);
    check(&gateway.send(Version::HTTP_2, &list("/a")).await, &Refused(500, REFUSED), "no route");
    let written = routes.map(|(from, name)| format!("- {{from: '{from}', to: '{}'}}\n", gateway.upstream.url(name)));
    std::fs::write(&file, format!("routes:\n{}", written.concat())).expect("a file");
    gateway.world.cimd.process.line(|line| line.contains("read again").then_some(())).await;

    let mut codes = Vec::new();
    for (from, name) in routes {
        codes.push(gateway.connect(from, name, ANNA).await);
    }
    for version in VERSIONS {
        for (path, code) in [
            ("/a", Some(&codes[0])),
            ("/a?x=/a/b", Some(&codes[0])),
            ("/a/", Some(&codes[0])),
            ("/a/c", Some(&codes[0])),
            ("/a/bc", Some(&codes[0])),
            ("/a/%62", Some(&codes[0])),
            ("/a/b", Some(&codes[1])),
            ("/a/b/c?d", Some(&codes[1])),
            ("/ab", None),
            ("/A", None),
            ("/%61", None),
            ("//a", None),
            ("/", None),
            ("/b", None),
        ] {
            let what = format!("{path} over {version:?}");
            let reached = gateway.upstream.reached();
            let answered = gateway.send(version, &list(path)).await;
            match code {
                Some(code) => {
                    assert_eq!(answered.status, 200, "{what}: {answered:?}");
                    assert_eq!(&gateway.token_of(&gateway.upstream.came_alone()), code, "{what}");
                }
                None => {
                    check(&answered, &Refused(500, REFUSED), &what);
                    assert_eq!(gateway.upstream.reached(), reached, "{what}");
                }
            }
            let told = gateway.send(version, &list(path).by(BERT)).await;
            assert_eq!(told.status, if code.is_some() { 200 } else { 500 }, "{what}");
            let link = match code {
                Some(code) if *code == codes[0] => format!("https://other.localhost/a{START}"),
                _ => format!("https://other.localhost/a/b{START}"),
            };
            assert_eq!(told.text().contains(&format!("{link} ")), code.is_some(), "{what}: {}", told.text());
        }
    }
    gateway.finish().await;
}

/// A filter may name the route, where the operator lets it.
#[tokio::test]
async fn routes_of_dynamic_metadata() {
    for is_allowed in [false, true] {
        let edit = |config: &mut Value| {
            let to = virtual_hosts(config).first_mut().map(|host| metadata(host)["to"].clone());
            without_metadata(config);
            let value = json!({"from": "https://notes.localhost", "to": to.expect("a host")});
            http_filters(config).insert(
                0,
                json!({"name": "set_metadata", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.set_metadata.v3.Config",
                    "metadata": [{"metadata_namespace": "envoy_cimd", "value": value}],
                }}),
            );
        };
        let serve: &[&str] = if is_allowed { &["--dynamic-metadata"] } else { &[] };
        let setup = Setup { serve, envoy_config: &["--dynamic-metadata"], edit: &edit, ..Setup::default() };
        let gateway = Gateway::start(setup).await;
        let list = Ask::post(r#"{"jsonrpc":"2.0","id":7,"method":"tools/list"}"#);
        for version in VERSIONS {
            let answered = gateway.send(version, &list.clone().by(BERT)).await;
            check(&answered, &if is_allowed { Told(json!(7)) } else { Refused(500, REFUSED) }, "not connected");
        }
        assert_eq!(gateway.upstream.reached(), 0);
        if is_allowed {
            let code = gateway.connect_anna().await;
            for version in VERSIONS {
                assert_eq!(gateway.send(version, &list).await.status, 200);
                assert_eq!(gateway.token_of(&gateway.upstream.came_alone()), code);
            }
        }
        gateway.finish().await;
    }
}
