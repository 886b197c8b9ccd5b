//! A request that goes on does so once, whoever leaves before its answer.

use std::{sync::Arc, time::Duration};

use http::Version;
use tokio::time::timeout;

use super::{Came, Scene, TAG, THEIRS, TOKEN, VERSIONS, endless, post, send, upload, with_credentials};
use crate::stack::PATIENCE;

#[tokio::test]
async fn a_request_goes_on_with_the_edits_alone() {
    const MUCH: usize = 40 << 20;
    let scene = Scene::start(|_| {}).await;
    scene.release.send_replace(true);
    for version in VERSIONS {
        for path in ["/forward", "/hold"] {
            let request = with_credentials(post(path, upload(MUCH, None)));
            let answer = send(scene.envoy.https, version, request).await;
            let answer = answer.unwrap_or_else(|error| panic!("{version:?} {path}: {error}"));
            assert_eq!((answer.status, answer.text()), (200, "the upstream"), "{version:?} {path}");
            let came = scene.upstream.came();
            let [Came { headers, body, .. }] = &came[..] else { panic!("{} requests", came.len()) };
            assert_eq!(*body, MUCH);
            for (name, values) in [
                ("authorization", &[TOKEN][..]),
                ("cookie", &[]),
                ("proxy-authorization", &[]),
                ("x-other", &["stays"]),
                ("x-tag", &[TAG]),
            ] {
                assert_eq!(Came::all(headers, name), values, "{version:?} {path} {name}");
            }
        }
        // And what is none of ours goes as it came.
        let request = with_credentials(post("/pass", upload(1, None)));
        let answer = send(scene.envoy.https, version, request).await.expect("an answer");
        let came = scene.upstream.came();
        let [Came { headers, .. }] = &came[..] else { panic!("{} requests", came.len()) };
        let theirs = Came::all(headers, "authorization").join(",");
        assert_eq!((answer.status, theirs.matches(THEIRS).count()), (200, 5), "{theirs}");
        assert!(!headers.contains_key("x-tag"));
    }
    scene.idle().await;
}

/// Nothing is left of a client that hangs up, whatever was waited for.
#[tokio::test]
async fn a_client_that_leaves_leaves_nothing() {
    let scene = Scene::start(|_| {}).await;
    for version in VERSIONS {
        for (path, body) in [("/body", endless()), ("/call", upload(1, None)), ("/hold", upload(1, None))] {
            let call = send(scene.envoy.https, version, post(path, body));
            let is_open = async {
                while (scene.streams)() == 0 || Arc::strong_count(&scene.role.alive) == 2 {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            tokio::select! {
                answer = call => panic!("{version:?} {path}: {answer:?}"),
                opened = timeout(PATIENCE, is_open) => opened.expect("a stream"),
            }
            scene.idle().await;
        }
    }
    assert!(scene.upstream.is_untouched());
}

/// A call that waits for the upstream holds no stream, and does not end with the processor.
#[tokio::test]
async fn a_call_outlives_the_processor() {
    let mut scene = Scene::start(|_| {}).await;
    let address = scene.envoy.https;
    let call = tokio::spawn(send(address, Version::HTTP_2, post("/forward?slow", upload(10, None))));
    let mut begun = scene.upstream.begun.clone();
    timeout(PATIENCE, begun.wait_for(|begun| *begun == 1)).await.expect("in time").expect("a request");
    scene.idle().await;
    scene.kill_processor();
    // Envoy knows of it: what comes now is refused, and does not go on.
    let refused = send(address, Version::HTTP_2, post("/forward", upload(10, None))).await.expect("an answer");
    assert_eq!(refused.status, 503);
    scene.upstream.go_on.send_replace(true);
    let answer = call.await.expect("a call").expect("an answer");
    assert_eq!((answer.status, answer.text()), (200, "the upstream"));
    assert_eq!(scene.upstream.came().len(), 1);
}
