//! Parts that are down, hang or die, and what then becomes of a flow.

use envoy_cimd::{
    filter::{browser::BrowserCookie, state::StateKeys},
    model::{
        client::RedirectUri,
        clock::UnixTime,
        flow::FlowId,
        secret::{Secret, generate_key_line, parse_keys},
    },
};
use http::Version;

use super::{Begun, CODE, Flows, NOTES, honest, is_guarded, press, with_query, without_cookie};
use crate::{
    choreographer::Mood,
    stack::{Call, Choreographer},
    world::{CALLBACK, DOCUMENT, START, Wish, World, executable},
};

/// Without a connection nothing is sent, so nothing is lost: 503, and the same callback works when it is back.
#[tokio::test]
async fn a_choreographer_that_is_down() {
    let mut flows = Flows::start().await;
    let begun = flows.begin(NOTES, "").await;
    flows.fake.kill();
    let answer = flows.send(honest(&begun)).await;
    // The connection from before may break under the first call; then it is not known what arrived.
    assert!([502, 503].contains(&answer.status), "{answer:?}");
    let answer = flows.send(honest(&begun)).await;
    assert_eq!((answer.status, flows.labelled("callback", "choreographer_unavailable").await >= 1), (503, true));
    assert_eq!(flows.send(press(NOTES, "")).await.status, 503);
    let page = flows.send(Call::get(NOTES, START).header("accept", "text/html")).await;
    assert!(page.status == 200 && page.text().contains("Not known yet"), "{page:?}");
    // State is checked all the same.
    assert_eq!(flows.send(without_cookie(honest(&begun))).await.status, 400);
    assert!(!flows.fake.consumed());
    flows.fake.restart();
    let answer = loop {
        let answer = flows.send(honest(&begun)).await;
        if answer.status != 503 {
            break answer;
        }
    };
    assert_eq!(answer.status, 303);
    assert_eq!(flows.fake.exchanges(), [CODE]);
    flows.finish().await;
}

#[tokio::test]
async fn a_choreographer_that_hangs_or_dies_in_mid_call() {
    let mut flows = Flows::start().await;
    let begun = flows.begin(NOTES, "").await;
    flows.fake.set(Mood::Hangs);
    let answer = flows.send(honest(&begun).header("accept", "text/html")).await;
    assert_eq!((answer.status, flows.labelled("callback", "timeout").await), (504, 1), "{answer:?}");
    is_guarded(&answer, "a timeout");
    let completions = flows.fake.completions();
    let call = tokio::spawn({
        let (client, call) = (flows.world.https(), honest(&begun));
        async move { client.send(Version::HTTP_2, call).await.expect("an answer").status }
    });
    while flows.fake.completions() == completions {
        tokio::task::yield_now().await;
    }
    flows.fake.kill();
    assert_eq!(call.await.expect("it ends"), 502);
    assert_eq!(flows.fake.completions(), completions + 1, "nothing is retried");
    flows.finish().await;
}

/// The browser goes away in mid-exchange: the exchange goes on, and shutdown waits for it.
#[tokio::test]
async fn a_browser_that_goes_away() {
    let mut flows = Flows::start().await;
    let begun = flows.begin(NOTES, "").await;
    flows.fake.set(Mood::Hangs);
    let call = tokio::spawn({
        let (client, call) = (flows.world.https(), honest(&begun));
        async move { client.send(Version::HTTP_11, call).await }
    });
    while flows.fake.completions() == 0 {
        tokio::task::yield_now().await;
    }
    call.abort();
    // Envoy tells by resetting the stream.
    while flows.world.metric("envoy_cimd_streams").await != Some(0) {
        tokio::task::yield_now().await;
    }
    assert!(flows.fake.exchanges().is_empty());
    flows.world.cimd.process.signal("-TERM");
    flows.world.cimd.process.line(|line| line.contains("stopping").then_some(())).await;
    flows.fake.release();
    flows.world.cimd.process.line(|line| line.contains("\"completed\"").then_some(())).await;
    assert_eq!(flows.fake.exchanges(), [CODE]);
    assert_eq!(flows.world.cimd.process.ended().await, Some(0));
}

/// A choreographer, in the process or in another, whose store cannot be opened: states are checked first, nothing is
/// consumed, and the answer is the same to the byte.
#[tokio::test]
async fn a_store_that_cannot_be_opened() {
    let dir = tempfile::tempdir().expect("a folder");
    let keys = dir.path().join("keys");
    let line = generate_key_line().expect("a key");
    std::fs::write(&keys, &line).expect("the keys");
    let flags = ["--single-user", "--state-keys", keys.to_str().expect("text")];
    // The state directory of either is a place where nothing can be made.
    let choreographer = Choreographer::start(&executable(), &[]).await;
    let apart = ["--choreographer", &format!("http://{}", choreographer.address)];
    let keys = StateKeys::new(parse_keys(&line).expect("a key"));
    let flow = FlowId([1; 16]);
    let redirect_uri = RedirectUri::new(format!("https://{NOTES}{CALLBACK}"));
    let state = keys
        .mint(flow, &redirect_uri, &BrowserCookie::from(Secret::new("value")), UnixTime::now(), UnixTime::MAX)
        .expect("a key");
    let begun = Begun { state, cookie: format!("__Host-envoy_cimd_{}=value", flow.tag()) };
    let mut answers = Vec::new();
    for flags in [flags.to_vec(), [&flags[..], &apart].concat()] {
        let world = World::start(Wish { cimd: &flags, ..Wish::default() }).await;
        for (call, status) in [
            (honest(&begun), 503),
            (without_cookie(honest(&begun)), 400),
            (with_query(&begun, "code=x&state=y"), 400),
            (Call::get(NOTES, START), 200),
            (Call::get(NOTES, DOCUMENT), 200),
        ] {
            let answer = world.https().send(Version::HTTP_2, call).await.expect("an answer");
            assert_eq!(answer.status, status, "{answer:?}");
            // The page names the upstream, which is each world's own.
            if status != 200 {
                answers.push(answer.body);
            }
        }
        let unavailable = "envoy_cimd_requests_total{endpoint=\"callback\",outcome=\"choreographer_unavailable\"}";
        assert_eq!(world.metric(unavailable).await, Some(1));
    }
    let (here, there) = answers.split_at(answers.len() / 2);
    assert_eq!(here, there);
}

/// With the filter down, or its paths spelled otherwise, nothing of a callback goes on to the upstream.
#[tokio::test]
async fn nothing_of_a_callback_reaches_the_upstream() {
    let mut flows = Flows::start().await;
    let begun = flows.begin(NOTES, "").await;
    for path in
        [format!("{CALLBACK}/"), "/.pomerium/oauth/%63allback".to_owned(), "/.pomerium/x/../oauth/callback".to_owned()]
    {
        let mut call = honest(&begun);
        call.path = format!("{path}?code={CODE}&state={}", begun.state);
        assert_eq!(flows.send(call).await.status, 404, "{path}");
    }
    flows.world.cimd.process.stop().await;
    assert_eq!(flows.send(honest(&begun)).await.status, 503);
    assert_eq!(flows.send(press(NOTES, "")).await.status, 503);
    assert!(flows.world.upstream.seen().is_empty());
    assert!(!flows.fake.consumed() && flows.fake.completions() == 0);
    let envoy = flows.world.envoy.process.output();
    assert!(!envoy.contains(CODE) && !envoy.contains(&begun.state), "{envoy}");
}
