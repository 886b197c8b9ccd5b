//! A flow ends once, however often and wherever its callback comes.

use super::{CODE, Flows, NOTES, honest, is_guarded, without_cookie};
use crate::choreographer::Mood;

#[tokio::test]
async fn flows_that_are_over() {
    let flows = Flows::start().await;
    // Expired in the moment that it began.
    flows.fake.set(Mood::Stale);
    let stale = flows.begin(NOTES, "").await;
    flows.fake.set(Mood::Correct);
    let answer = flows.send(honest(&stale)).await;
    assert_eq!((answer.status, flows.labelled("callback", "expired").await), (400, 1));
    assert_eq!(flows.fake.completions(), 0);

    let begun = flows.begin(NOTES, "?return_to=/a%22%3E%3Cb%3E%26c").await;
    assert_eq!(flows.send(honest(&begun)).await.status, 303);
    // The same browser once more: told so, with a way on, and no second exchange.
    let replay = flows.send(honest(&begun).header("accept", "text/html")).await;
    assert_eq!((replay.status, flows.labelled("callback", "already_used").await), (409, 1));
    assert!(replay.text().contains("href=\"/a%22%3E%3Cb%3E&#38;c\""), "{}", replay.text());
    is_guarded(&replay, "a replay");
    // Another browser learns nothing.
    let stolen = flows.send(without_cookie(honest(&begun))).await;
    assert_eq!((stolen.status, flows.labelled("callback", "wrong_browser").await), (400, 1));
    assert_eq!(flows.fake.exchanges(), [CODE]);

    let lost = flows.begin(NOTES, "").await;
    flows.fake.forget_flows();
    let answer = flows.send(honest(&lost)).await;
    assert_eq!((answer.status, flows.labelled("callback", "unknown_flow").await), (400, 1));
    flows.finish().await;
}

#[tokio::test]
async fn fifty_identical_callbacks_at_once() {
    let flows = Flows::start().await;
    let begun = flows.begin(NOTES, "").await;
    let calls = (0..50).map(|_| flows.send(honest(&begun)));
    let answers = futures_util::future::join_all(calls).await;
    let count = |status| answers.iter().filter(|answer| answer.status == status).count();
    assert_eq!((count(303), count(409)), (1, 49));
    assert_eq!(flows.fake.exchanges(), [CODE]);
    flows.finish().await;
}

/// Two tabs have a cookie each, and both finish, in either order.
#[tokio::test]
async fn parallel_tabs() {
    let flows = Flows::start().await;
    let (one, two) = (flows.begin(NOTES, "?return_to=/1").await, flows.begin(NOTES, "?return_to=/2").await);
    let both = format!("{}; {}", one.cookie, two.cookie);
    for (begun, location) in [(&two, "/2"), (&one, "/1")] {
        let answer = flows.send(without_cookie(honest(begun)).header("cookie", both.clone())).await;
        assert_eq!(answer.all("location"), [location]);
    }
    flows.finish().await;
}
