//! An answer comes whole and as it is, within bounds of size and time.

use std::{
    io,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use envoy_cimd::net::outgoing::{
    error::{DEADLINE, FetchError, MAX_BODY},
    packed,
};
use futures_util::future::join_all;
use http::{Request, header::CONTENT_ENCODING};

use super::{
    Connection, FLOOD, HELLO, LOOPBACK, Names, NoAnswer, PATIENCE, World, drip, frame, get, headers_frame, say,
};

#[tokio::test]
async fn an_answer_comes_whole() {
    let world = World::new();
    let server = world.https(say("HTTP/1.1 418 I'm a teapot\r\nx-a: 1\r\ncontent-length: 5\r\n\r\nhello")).await;
    let outgoing = world.outgoing(&["as.example"], Names::fixed(&[LOOPBACK]));
    let request = Request::post(server.url("as.example", "/token?a=b"))
        .header("accept", "application/json")
        .body(b"code=secret".to_vec())
        .expect("a request");
    let answer = outgoing.send(request, None).await.expect("an answer");
    assert_eq!((answer.status().as_u16(), &answer.headers()["x-a"]), (418, &"1".parse().expect("a value")));
    assert_eq!(answer.body(), b"hello");
    let [request] = &server.requests()[..] else { panic!("one request") };
    assert!(request.starts_with("POST /token?a=b HTTP/1.1\r\n"), "{request}");
    assert!(request.ends_with("\r\n\r\ncode=secret"), "{request}");
    let mut headers: Vec<&str> = request.lines().filter_map(|line| Some(line.split_once(": ")?.0)).collect();
    headers.sort_unstable();
    assert_eq!(
        headers,
        ["accept", "accept-encoding", "content-length", "host", "user-agent"],
        "nothing but what is needed"
    );
    assert!(request.contains("\r\naccept-encoding: identity\r\n"), "{request}");
    let agent = concat!("\r\nuser-agent: envoy-cimd/", env!("CARGO_PKG_VERSION"), "\r\n");
    assert!(request.contains(agent), "{request}");
}

#[tokio::test]
async fn over_http_2_too() {
    let world = World::new();
    let server = world.http_2(|stream| [headers_frame(stream), frame(0, 1, stream, b"hello")].concat()).await;
    let outgoing = world.outgoing(&["as.example"], Names::fixed(&[LOOPBACK]));
    let answer = outgoing.send(get(&server, "as.example"), None).await.expect("an answer");
    assert_eq!((answer.version(), &answer.body()[..]), (http::Version::HTTP_2, &b"hello"[..]));
}

/// The variables are the process's, so this runs the first test again in one of its own.
#[tokio::test]
async fn no_proxy_is_asked() {
    let proxy = std::net::TcpListener::bind((LOOPBACK, 0)).expect("a port");
    proxy.set_nonblocking(true).expect("a socket");
    let address = format!("http://{}", proxy.local_addr().expect("an address"));
    let mut child = Command::new(std::env::current_exe().expect("this program"));
    child.args(["--exact", "outgoing::answers::an_answer_comes_whole"]).env_remove("NO_PROXY").env_remove("no_proxy");
    for variable in ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"] {
        child.env(variable, &address);
    }
    let output = tokio::task::spawn_blocking(move || child.output()).await.expect("a thread").expect("a process");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    assert_eq!(proxy.accept().expect_err("nobody came").kind(), io::ErrorKind::WouldBlock);
}

#[tokio::test]
async fn a_redirect_is_an_answer_and_not_followed() {
    let world = World::new();
    let target = world.https(say(HELLO)).await;
    for status in [301, 302, 303, 307, 308] {
        let location = target.url("as.example", "/");
        let text = format!("HTTP/1.1 {status} Away\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n");
        let server = world.https(say(&text)).await;
        let outgoing = world.outgoing(&["as.example"], Names::fixed(&[LOOPBACK]));
        let answer = outgoing.send(get(&server, "as.example"), None).await.expect("an answer");
        assert_eq!((answer.status().as_u16(), answer.headers()["location"].as_bytes()), (status, location.as_bytes()));
    }
    assert_eq!(target.connections(), 0);
}

#[tokio::test]
async fn an_answer_is_not_unpacked() {
    let world = World::new();
    let server = world.https(say("HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 5\r\n\r\nhello")).await;
    let outgoing = world.outgoing(&["as.example"], Names::fixed(&[LOOPBACK]));
    let answer = outgoing.send(get(&server, "as.example"), None).await.expect("an answer");
    assert_eq!(answer.body(), b"hello");
}

#[test]
fn what_an_answer_is_packed_with_is_named() {
    for (coding, named) in [
        (None, None),
        (Some("identity"), None),
        (Some("Identity"), None),
        (Some("gzip"), Some("gzip")),
        (Some(" br "), Some("br")),
        (Some("<secret>"), Some("…")),
        (Some("a-coding-of-more-than-20"), Some("…")),
    ] {
        let headers = coding.map(|coding| (CONTENT_ENCODING, coding.parse().expect("a value"))).into_iter().collect();
        let words =
            named.map(|named| format!("it is packed (`content-encoding: {named}`), though nobody asked for that"));
        assert_eq!(packed(&headers), words, "{coding:?}");
    }
}

/// A body that never ends is nothing to whoever wants the headers.
#[tokio::test]
async fn headers_are_there_before_the_body() {
    let world = World::new();
    let outgoing = world.outgoing(&["as.example"], Names::fixed(&[LOOPBACK]));
    let http_1 = world
        .https(async |mut connection: Connection| {
            connection.request().await?;
            connection.write_all(b"HTTP/1.1 401 No\r\nx-a: 1\r\ncontent-length: 5\r\n\r\nhe").await?;
            std::future::pending().await
        })
        .await;
    let http_2 = world.http_2(|stream| [headers_frame(stream), frame(0, 0, stream, b"he")].concat()).await;
    for (server, status, header) in [(http_1, 401, Some("1")), (http_2, 200, None)] {
        let answer = outgoing.send_for_headers(get(&server, "as.example"), None).await.expect("an answer");
        assert_eq!(answer.status().as_u16(), status);
        assert_eq!(answer.headers().get("x-a").map(|value| value.to_str().expect("text")), header);
        assert!(answer.body().is_empty());
    }
    let error = outgoing.send_for_headers(Request::get("http://as.example").body(Vec::new()).expect("a request"), None);
    assert!(matches!(error.await, Err(FetchError::Url { .. })), "the same rules");
}

#[tokio::test]
async fn large_bodies_are_cut() {
    let world = World::new();
    let outgoing = world.outgoing(&["as.example"], Names::fixed(&[LOOPBACK]));
    let chunk = [b"1000\r\n".to_vec(), vec![b'a'; 0x1000], b"\r\n".to_vec()].concat();
    let plain = vec![b'a'; 0x1000];
    for (head, repeated, body) in [
        ("content-length: 209715200", &plain, None),
        ("content-length: 1048577", &plain, None),
        ("content-length: 9223372036854775807", &plain, None),
        ("transfer-encoding: chunked", &chunk, None),
        ("connection: close", &plain, None),
        ("content-length: 1048576", &plain, Some(MAX_BODY)),
        ("content-length: 5", &plain, Some(5)),
    ] {
        let sent = Arc::new(AtomicUsize::new(0));
        let (head, repeated, count) = (format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n"), repeated.clone(), sent.clone());
        let server = world
            .https(move |mut connection: Connection| {
                let (head, repeated, sent) = (head.clone(), repeated.clone(), count.clone());
                async move {
                    connection.request().await?;
                    connection.write_all(head.as_bytes()).await?;
                    while sent.load(Ordering::SeqCst) < FLOOD {
                        connection.write_all(&repeated).await?;
                        sent.fetch_add(repeated.len(), Ordering::SeqCst);
                    }
                    Ok(())
                }
            })
            .await;
        let outcome = outgoing.send(get(&server, "as.example"), None).await;
        match body {
            Some(length) => assert_eq!(outcome.expect("an answer").body().len(), length),
            None => {
                let error = outcome.expect_err("too large");
                assert_eq!(error, FetchError::TooLarge { url: server.url("as.example", "/") });
                assert!(error.may_have_arrived() && !error.is_timeout());
            }
        }
        server.ended(1).await;
        assert!(sent.load(Ordering::SeqCst) < FLOOD, "the server was told to stop");
    }
}

#[tokio::test]
async fn the_deadline_holds_for_everything() {
    let world = World::new();
    let silent = world.plain(|mut connection: Connection| async move { connection.until_closed().await }).await;
    let mute = world.https(|mut connection: Connection| async move {
        connection.request().await?;
        connection.until_closed().await
    });
    let (mute, slow_head, slow_body) = (
        mute.await,
        world.https(drip("HTTP/1.1 200 OK\r\n", "x-a: 1\r\n")).await,
        world.https(drip("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", "1\r\na\r\n")).await,
    );
    let fixed = world.outgoing(&["as.example"], Names::fixed(&[LOOPBACK]));
    let nameless = world.outgoing(&["as.example"], Arc::new(NoAnswer));
    let cases = [
        ("the name", &nameless, &silent, false),
        ("the handshake", &fixed, &silent, false),
        ("the answer", &fixed, &mute, true),
        ("the headers", &fixed, &slow_head, true),
        ("the body", &fixed, &slow_body, true),
    ];
    join_all(cases.map(|(waits_for, outgoing, server, arrived)| async move {
        let start = Instant::now();
        let sent = tokio::time::timeout(PATIENCE, outgoing.send(get(server, "as.example"), None)).await;
        let error = sent.expect("an outcome").expect_err(waits_for);
        assert!(start.elapsed() >= DEADLINE, "{waits_for}");
        assert_eq!(error, FetchError::Timeout { url: server.url("as.example", "/"), connected: arrived, seconds: 3 });
        assert_eq!((error.is_timeout(), error.may_have_arrived()), (true, arrived), "{waits_for}");
    }))
    .await;
    for server in [&silent, &mute, &slow_head, &slow_body] {
        server.ended(1).await;
    }
}
