//! Bodies that are asked for go nowhere, whatever their length and framing.

use bytes::Bytes;
use envoy_cimd::edge::{conversation::MAX_BODY, server::MAX_MESSAGE};
use http::Version;
use http_body_util::{BodyExt, Full};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{Came, Scene, TOKEN, VERSIONS, endless, is_ours, post, say, send, upload};
use crate::stack::PATIENCE;

/// Whatever its length, and whether that is known before: the body is looked at, and nothing of the request goes on.
#[tokio::test]
async fn a_body_is_answered_and_goes_nowhere() {
    let scene = Scene::start(|_| {}).await;
    for version in VERSIONS {
        for length in [0, 1, MAX_BODY, MAX_BODY + 1, 40_000, 3 << 20, 40 << 20] {
            let of_known_length = Full::new(Bytes::from(vec![b'a'; length])).boxed();
            for body in [upload(length, None), of_known_length] {
                let answer = send(scene.envoy.https, version, post("/body", body)).await;
                assert!(is_ours(&answer), "{version:?} {length}: {answer:?}");
                let expected = (length.min(MAX_BODY), length <= MAX_BODY);
                assert_eq!(scene.role.bodies(), [Some(expected)], "{version:?} {length}");
            }
        }
    }
    scene.idle().await;
    assert!(scene.upstream.is_untouched());
}

/// Envoy's own limits are larger than the printed ones: over HTTP/2 it sends all of 3 MB. What is too long for a message
/// is an error, which the client gets too, and nothing goes on.
#[tokio::test]
async fn buffers_of_any_size_do() {
    let scene = Scene::start(|_| {}).await;
    for version in VERSIONS {
        let answer = send(scene.envoy.http, version, post("/body", upload(3 << 20, None))).await;
        assert!(is_ours(&answer), "{version:?}: {answer:?}");
        assert_eq!(scene.role.bodies(), [Some((MAX_BODY, false))]);
    }
    for path in ["/body", "/hold"] {
        let answer = send(scene.envoy.http, Version::HTTP_2, post(path, upload(40 << 20, None))).await;
        assert_eq!(answer.expect("an answer").status, 503);
        assert_eq!(scene.role.bodies(), []);
    }
    scene.idle().await;
    assert!(scene.upstream.is_untouched());
}

/// The printed window is so small that a body of any length is answered by the role.
#[tokio::test]
async fn the_printed_window_fits_into_a_message() {
    let scene = Scene::start(|_| {}).await;
    let printed = include_str!("../../../src/templates/envoy.yaml");
    let window = printed.split_once("initial_stream_window_size: ").expect("a window").1;
    let window: usize = window.lines().next().and_then(|line| line.trim().parse().ok()).expect("bytes");
    assert_eq!(window, 65_536, "as here");
    assert!(2 * window < MAX_MESSAGE);
    assert!(is_ours(&send(scene.envoy.https, Version::HTTP_2, post("/body", upload(40 << 20, None))).await));
}

#[tokio::test]
async fn a_body_that_does_not_come_is_answered() {
    let scene = Scene::start(|_| {}).await;
    for version in VERSIONS {
        let answer = send(scene.envoy.https, version, post("/late", endless())).await;
        assert!(is_ours(&answer), "{version:?}: {answer:?}");
        assert_eq!(scene.role.bodies(), [None]);
    }
    scene.idle().await;
    assert!(scene.upstream.is_untouched());
}

/// Bodies as only HTTP/1.1 says them.
#[tokio::test]
async fn lengths_and_expectations_of_http_1() {
    let scene = Scene::start(|_| {}).await;
    scene.release.send_replace(true);
    let head = |path, more| format!("POST {path} HTTP/1.1\r\nhost: mcp.example.com\r\nconnection: close\r\n{more}\r\n");
    for (more, expected) in [
        ("content-length: 0\r\n", Some((0, true))),
        ("", Some((0, true))),
        ("content-length: 2\r\nexpect: 100-continue\r\n", Some((2, true))),
    ] {
        let body = if expected == Some((2, true)) { "aa" } else { "" };
        let heard = say(scene.envoy.https, &(head("/body", more) + body)).await;
        assert!(heard.contains("HTTP/1.1 418 ") && heard.ends_with("ours"), "{more}: {heard}");
        assert_eq!(scene.role.bodies(), [expected], "{more}");
    }
    assert!(scene.upstream.is_untouched());
    // A client that waits to be told to go on is told so.
    for path in ["/forward", "/hold"] {
        let mut stream = TcpStream::connect(scene.envoy.https).await.expect("a connection");
        let expects = head(path, "content-length: 2\r\nexpect: 100-continue\r\n");
        stream.write_all(expects.as_bytes()).await.expect("sent");
        let mut told = [0; 25];
        timeout(PATIENCE, stream.read_exact(&mut told)).await.expect("in time").expect("a word");
        assert_eq!(&told, b"HTTP/1.1 100 Continue\r\n\r\n");
        stream.write_all(b"aa").await.expect("sent");
        let mut heard = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut heard)).await.expect("in time").expect("an answer");
        assert!(heard.starts_with("HTTP/1.1 200 "), "{path}: {heard}");
        let came = scene.upstream.came();
        assert_eq!((came.len(), came[0].body, Came::all(&came[0].headers, "authorization")), (1, 2, vec![TOKEN]));
    }
}
