//! The keys of the state: the same at every replica, and changed while flows are under way.

use envoy_cimd::model::secret::generate_key_line;
use http::Version;

use super::{Flows, NOTES, honest};
use crate::{stack::Cimd, world::executable};

/// Begun on one replica, ended on the other.
#[tokio::test]
async fn two_replicas_with_the_same_keys() {
    let flows = Flows::start().await;
    let other = Flows::world(&flows.fake, &flows.keys, &["--single-user"], &|_| {}).await;
    let begun = flows.begin(NOTES, "?return_to=/x").await;
    let answer = other.https().send(Version::HTTP_2, honest(&begun)).await.expect("an answer");
    assert_eq!(answer.all("location"), ["/x"]);
    flows.finish().await;
}

/// A flow that began under the old key finishes under the new; a bad file changes nothing.
#[tokio::test]
async fn keys_rotate_and_a_bad_file_changes_nothing() {
    let mut flows = Flows::start().await;
    let old = std::fs::read_to_string(&flows.keys).expect("the keys");
    let new = generate_key_line().expect("a key");
    let begun = flows.begin(NOTES, "").await;
    for (content, said) in [
        (format!("{old}\n{new}\n"), "read again"),
        (format!("{new}\n{old}\n"), "read again"),
        (String::new(), "has no key"),
        (format!("{new}\n{new}\n"), "line 2 has the key of an earlier line"),
        ("A".repeat(43), "line 1 is one byte over and over"),
        (format!("{new}\n{}", &old[1..]), "line 2 is not a base64url key"),
    ] {
        let reloads = |ok: bool| {
            format!("envoy_cimd_reloads_total{{file=\"state_keys\",result=\"{}\"}}", if ok { "ok" } else { "failed" })
        };
        let counter = reloads(said == "read again");
        let before = flows.world.metric(&counter).await.unwrap_or(0);
        std::fs::write(&flows.keys, content).expect("written");
        while flows.world.metric(&counter).await.unwrap_or(0) == before {
            tokio::task::yield_now().await;
        }
        flows.world.cimd.process.line(|line| line.contains(said).then_some(())).await;
    }
    assert_eq!(flows.world.metric("envoy_cimd_reload_ok{file=\"state_keys\"}").await, Some(0));
    assert_eq!(flows.send(honest(&begun)).await.status, 303, "begun under the old key");
    let fresh = flows.begin(NOTES, "").await;
    std::fs::write(&flows.keys, &new).expect("written");
    while flows.world.metric("envoy_cimd_reload_ok{file=\"state_keys\"}").await != Some(1) {
        tokio::task::yield_now().await;
    }
    assert_eq!(flows.send(honest(&fresh)).await.status, 303, "begun under the new key, which is alone now");
    assert_eq!(flows.send(honest(&begun)).await.status, 400);
    assert_eq!(flows.labelled("callback", "unknown_key").await, 1);
    flows.secrets.lock().expect("secrets").extend([old, new]);
    flows.world.cimd.process.stop().await;
    flows.world.cimd = Cimd::start(&executable(), &["--state-keys", flows.keys.to_str().expect("text")]).await;
    flows.finish().await;
}
