//! MCP requests of every kind through a real Envoy with the printed configuration: with a token they go on untouched but
//! for the caller's credentials; without one nothing goes on, and the answer is what an MCP client can show.

use bytes::Bytes;
use futures_util::{StreamExt, stream::FuturesUnordered};
use http::Version;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    time::timeout,
};

use crate::{
    gateway::{Ask, BERT, Gateway, MCP, NOTES, Payload, Setup, VERSIONS, open},
    stack::{Answered, PATIENCE},
};

mod passing;
mod routes;
mod who_may_ask;

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
pub fn json_of(answer: &Answered, what: &str) -> Value {
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
