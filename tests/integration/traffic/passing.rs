//! With a token, everything passes as it is: bodies, streams, uploads that ask first, WebSocket.

use bytes::Bytes;
use http::Version;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use super::{Row, bodies, head_of};
use crate::{
    gateway::{Ask, Gateway, MCP, NOTES, Payload, Setup, THEIRS, VERSIONS, open},
    mcp_upstream::EVENTS,
    stack::PATIENCE,
    world::manager,
};

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
