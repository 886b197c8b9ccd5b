//! What the printed configuration has Envoy hold open for one client, and what it lets through all the same.

use std::{io, time::Duration};

use axum::{Router, body::to_bytes, extract::Request, routing::any};
use http::{StatusCode, Version};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use crate::{
    e2e::lead_to,
    stack::{Call, PATIENCE, get},
    world::{DOCUMENT, Wish, World, manager},
};

const NOTES: &str = "notes.localhost";
const MCP: &str = "/mcp";

/// Sets what is printed already, on both listeners.
fn set_on_both(config: &mut Value, name: &str, printed: Value, value: &Value) {
    for listener in config["static_resources"]["listeners"].as_array_mut().expect("listeners") {
        let manager = manager(listener);
        assert_eq!(manager[name], printed, "what is printed");
        manager[name] = value.clone();
    }
}

/// All that comes until the other side closes, which it must.
async fn until_closed(stream: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut came = Vec::new();
    match timeout(PATIENCE, stream.read_to_end(&mut came)).await.expect("it is closed") {
        Ok(_) => came,
        Err(error) => {
            assert!([io::ErrorKind::ConnectionReset, io::ErrorKind::UnexpectedEof].contains(&error.kind()), "{error}");
            came
        }
    }
}

/// A head that never ends, and of which a byte comes now and then, is closed all the same.
async fn trickle(stream: impl AsyncRead + AsyncWrite + Unpin) -> String {
    let (mut answer, mut head) = split(stream);
    head.write_all(b"GET / HTTP/1.1\r\nhost: notes.localhost\r\nx-slow: ").await.expect("sent");
    let trickle = async {
        while head.write_all(b"x").await.is_ok() && head.flush().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // It may notice later than who reads.
        std::future::pending().await
    };
    tokio::select! {
        came = until_closed(&mut answer) => String::from_utf8(came).expect("text"),
        () = trickle => unreachable!(),
    }
}

#[tokio::test]
async fn an_unfinished_head_is_closed() {
    let world = World::start(Wish {
        edit: &|config| set_on_both(config, "request_headers_timeout", json!("10s"), &json!("0.5s")),
        ..Wish::default()
    })
    .await;
    let plain = TcpStream::connect(world.envoy.http).await.expect("a connection");
    let answer = trickle(plain).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    let tls = world.https().connect(Version::HTTP_11, NOTES).await.expect("a connection");
    let answer = trickle(tls).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert_eq!(world.document(NOTES).await.0, 200, "a whole one is answered");
}

/// A TLS handshake that does not go on.
#[tokio::test]
async fn an_unfinished_handshake_is_closed() {
    let world = World::start(Wish {
        edit: &|config| {
            let chain = &mut config["static_resources"]["listeners"][0]["filter_chains"][0];
            assert_eq!(chain["transport_socket_connect_timeout"], "10s", "what is printed");
            chain["transport_socket_connect_timeout"] = json!("0.5s");
        },
        ..Wish::default()
    })
    .await;
    let mut silent = TcpStream::connect(world.envoy.https).await.expect("a connection");
    assert!(until_closed(&mut silent).await.is_empty());
    assert_eq!(world.document(NOTES).await.0, 200, "a whole one is answered");
}

/// Above its number, a connection waits in vain, and Envoy's own interface is there.
#[tokio::test]
async fn connections_are_bounded() {
    let world = World::start(Wish {
        edit: &|config| {
            let monitor = &mut config["overload_manager"]["resource_monitors"][0]["typed_config"];
            assert_eq!(monitor["max_active_downstream_connections"], 50_000, "what is printed");
            monitor["max_active_downstream_connections"] = json!(1);
        },
        ..Wish::default()
    })
    .await;
    let held = world.https().connect(Version::HTTP_11, NOTES).await.expect("a connection");
    let mut more = TcpStream::connect(world.envoy.http).await.expect("the system takes it");
    assert!(until_closed(&mut more).await.is_empty());
    assert_eq!(get(world.envoy.admin, "/ready").await.expect("an answer").0, 200);
    drop(held);
    let freed = timeout(PATIENCE, async {
        while world.https().send(Version::HTTP_11, Call::get(NOTES, DOCUMENT)).await.is_err() {
            tokio::task::yield_now().await;
        }
    });
    freed.await.expect("there is room again");
}

/// A frame of HTTP/2 (RFC 9113, section 4.1).
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const ACK: u8 = 1;

impl Frame {
    fn new(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Self {
        Self { kind, flags, stream, payload: payload.to_vec() }
    }

    async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Self> {
        let mut head = [0; 9];
        from.read_exact(&mut head).await?;
        let [a, b, c, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        from.read_exact(&mut payload).await?;
        Ok(Self { kind, flags, stream: u32::from_be_bytes(stream), payload })
    }

    async fn write(&self, to: &mut (impl AsyncWrite + Unpin)) {
        let length = u32::try_from(self.payload.len()).expect("short").to_be_bytes();
        let mut bytes = length[1..].to_vec();
        bytes.extend([self.kind, self.flags]);
        bytes.extend(self.stream.to_be_bytes());
        bytes.extend(&self.payload);
        to.write_all(&bytes).await.expect("sent");
        to.flush().await.expect("sent");
    }
}

/// A GET of the MCP endpoint (RFC 7541, appendix A and section 6.2.2), whole.
fn request(stream: u32) -> Frame {
    let mut block = vec![0x82, 0x87];
    for (name, value) in [(0x04, MCP), (0x01, NOTES)] {
        block.extend([name, u8::try_from(value.len()).expect("short")]);
        block.extend(value.as_bytes());
    }
    Frame::new(HEADERS, 0x04 | 0x01, stream, &block)
}

/// An upstream that takes connections and says nothing, so that requests stay open.
async fn silent() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.expect("a port")
}

fn origin(listener: &TcpListener) -> String {
    format!("http://{}", listener.local_addr().expect("an address"))
}

#[tokio::test]
async fn a_connection_has_so_many_streams() {
    let upstream = silent().await;
    let url = origin(&upstream);
    let world = World::start(Wish { edit: &|config| lead_to(config, &url), ..Wish::default() }).await;
    let mut connection = world.https().connect(Version::HTTP_2, NOTES).await.expect("a connection");
    connection.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("sent");
    Frame::new(SETTINGS, 0, 0, &[]).write(&mut connection).await;
    let settings = Frame::read(&mut connection).await.expect("a frame");
    assert_eq!((settings.kind, settings.flags), (SETTINGS, 0));
    let settings: Vec<(u8, u32)> = settings
        .payload
        .chunks_exact(6)
        .map(|setting| (setting[1], u32::from_be_bytes(setting[2..].try_into().expect("four bytes"))))
        .collect();
    assert!(settings.contains(&(3, 100)) && settings.contains(&(4, 65_536)), "streams and their windows: {settings:?}");
    Frame::new(SETTINGS, ACK, 0, &[]).write(&mut connection).await;
    let nth = |number: u32| 2 * number - 1;
    for number in 1..=100 {
        request(nth(number)).write(&mut connection).await;
    }
    // Its answer comes after what there is to say of those.
    Frame::new(PING, 0, 0, &[0; 8]).write(&mut connection).await;
    let mut frames = Vec::new();
    while frames.last().is_none_or(|(kind, _)| *kind != PING) {
        let frame = timeout(PATIENCE, Frame::read(&mut connection)).await.expect("a frame").expect("it is open");
        frames.push((frame.kind, frame.stream));
    }
    assert!(frames.iter().all(|(_, stream)| *stream == 0), "nothing is said of a stream: {frames:?}");
    // A client that does not keep to it.
    request(nth(101)).write(&mut connection).await;
    let refused = timeout(PATIENCE, async {
        loop {
            match Frame::read(&mut connection).await {
                Ok(frame) if frame.kind == RST_STREAM => break Some(frame.stream),
                Ok(frame) => assert_ne!(frame.kind, HEADERS, "an answer, on stream {}", frame.stream),
                Err(_) => break None,
            }
        }
    });
    let refused = refused.await.expect("the one above is refused");
    assert!([Some(nth(101)), None].contains(&refused), "the stream is reset, or the connection closed: {refused:?}");
    assert_eq!(world.document(NOTES).await.0, 200, "other connections are served");
}

/// What a request may have is no smaller for it: a long head, a long upload, and a long answer.
#[tokio::test]
async fn much_passes_through_small_buffers() {
    const MUCH: usize = 40 << 20;
    let echo = Router::new().fallback(any(|request: Request| async {
        let head: usize = request.headers().values().map(|value| value.len()).sum();
        let body = to_bytes(request.into_body(), usize::MAX).await.map_err(|_| StatusCode::BAD_REQUEST)?;
        Ok::<_, StatusCode>(([("x-head", head.to_string())], body))
    }));
    let listener = silent().await;
    let url = origin(&listener);
    tokio::spawn(async move { axum::serve(listener, echo).await });
    let world = World::start(Wish {
        edit: &|config| {
            lead_to(config, &url);
            for of in ["listeners", "clusters"] {
                let of = config["static_resources"][of].as_array().expect("a list");
                let limits = of.iter().filter(|one| one["name"] != "envoy-cimd");
                assert!(limits.map(|one| &one["per_connection_buffer_limit_bytes"]).all(|limit| *limit == 32_768));
            }
        },
        ..Wish::default()
    })
    .await;
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let long = "x".repeat(50_000);
        let answer =
            world.https().send(version, Call::get(NOTES, MCP).header("x-long", long)).await.expect("an answer");
        assert_eq!(answer.status, 200, "{version:?}");
        assert!(answer.all("x-head")[0].parse::<usize>().expect("a number") >= 50_000);
        let body = "y".repeat(MUCH);
        let call = Call::get(NOTES, MCP).method("POST").body(body);
        let answer = world.https().send(version, call).await.expect("an answer");
        assert_eq!((answer.status, answer.body.len()), (200, MUCH), "{version:?}");
    }
}
