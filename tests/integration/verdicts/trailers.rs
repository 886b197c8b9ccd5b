//! Trailers carry no credentials on, and nothing where there is no token.

use http::Version;
use serde_json::json;

use super::{Came, Scene, THEIRS, TOKEN, is_ours, manager, post, say, send, trailers, upload, with_credentials};

/// Headers and trailers without a body would go on, were trailers not asked for.
#[tokio::test]
async fn headers_and_trailers_alone_go_nowhere() {
    let scene = Scene::start(|_| {}).await;
    scene.release.send_replace(true);
    let sum = || Some(trailers(&[("x-sum", "1")]));
    let answer = send(scene.envoy.https, Version::HTTP_2, post("/body", upload(0, sum()))).await;
    assert!(is_ours(&answer), "{answer:?}");
    // Not even with a token: when trailers came, the headers cannot be changed any more.
    let answer = send(scene.envoy.https, Version::HTTP_2, post("/hold", upload(0, sum()))).await;
    assert_eq!(answer.expect("an answer").status, 503);
    assert_eq!(scene.role.bodies(), [Some((0, true)), Some((0, true))]);
    scene.idle().await;
    assert!(scene.upstream.is_untouched());
}

/// A body that has trailers is all there, and Envoy does not say so. The trailers then lose what the headers lost.
#[tokio::test]
async fn trailers_after_a_body_that_was_asked_for() {
    let scene = Scene::start(|_| {}).await;
    scene.release.send_replace(true);
    let theirs = || Some(trailers(&[("authorization", THEIRS), ("cookie", "a=b"), ("x-sum", "1")]));
    let request = with_credentials(post("/hold", upload(10, theirs())));
    let answer = send(scene.envoy.https, Version::HTTP_2, request).await.expect("an answer");
    assert_eq!((answer.status, scene.role.bodies()), (200, vec![Some((10, false))]));
    let came = scene.upstream.came();
    let [Came { headers, body, trailers }] = &came[..] else { panic!("{} requests", came.len()) };
    assert_eq!((Came::all(headers, "authorization"), *body), (vec![TOKEN], 10));
    assert_eq!(trailers, &self::trailers(&[("x-sum", "1")]));
    scene.idle().await;
}

/// Where the headers got a token at once, the filter sees no trailers: Envoy's own `header_mutation` filter removes what
/// must not be in them.
#[tokio::test]
async fn trailers_lose_credentials_before_they_reach_the_upstream() {
    let scene = Scene::start(|config| {
        for listener in config["static_resources"]["listeners"].as_array_mut().expect("listeners") {
            let filters = manager(listener)["http_filters"].as_array_mut().expect("filters");
            let removed = ["authorization", "cookie", "proxy-authorization"].map(|name| json!({"remove": name}));
            let filter = json!({
                "name": "envoy-cimd-trailers",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation",
                    "mutations": {"request_trailers_mutations": removed},
                },
            });
            filters.insert(0, filter);
        }
    })
    .await;
    let theirs = [("authorization", THEIRS), ("cookie", "a=b"), ("proxy-authorization", THEIRS), ("x-sum", "1")];
    let request = post("/forward", upload(10, Some(trailers(&theirs))));
    let answer = send(scene.envoy.https, Version::HTTP_2, request).await.expect("an answer");
    assert_eq!(answer.status, 200);
    // Over HTTP/1.1 as well, where Envoy is told to let trailers through.
    let chunked = format!(
        "POST /forward HTTP/1.1\r\nhost: mcp.example.com\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n\
         a\r\naaaaaaaaaa\r\n0\r\nAuthorization: {THEIRS}\r\ncookie: a=b\r\nproxy-authorization: {THEIRS}\r\nx-sum: \
         1\r\n\r\n"
    );
    assert!(say(scene.envoy.https, &chunked).await.starts_with("HTTP/1.1 200 "));
    let came = scene.upstream.came();
    assert_eq!(came.len(), 2);
    for Came { headers, body, trailers } in came {
        assert_eq!((Came::all(&headers, "authorization"), body), (vec![TOKEN], 10));
        assert_eq!(trailers, self::trailers(&[("x-sum", "1")]));
    }
}
