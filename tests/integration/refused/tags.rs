//! Whose token was refused is what the tag says, and nothing else.

use std::{path::PathBuf, time::Duration};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use super::{AGAIN, Bed, NOTES, challenge, refused, says};
use crate::{
    stack::PATIENCE,
    world::{http_filters, list},
};

pub fn tags_file(dir: &TempDir) -> PathBuf {
    dir.path().join("tags")
}

/// Has Envoy write down each request's tag, and take another one from who sends one: the filter stands behind ours.
pub fn with_tags(config: &mut Value, file: &str) {
    let filters = http_filters(config);
    let place = filters.len() - 1;
    filters.insert(
        place,
        json!({"name": "tags", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.header_to_metadata.v3.Config",
            "request_rules": [{"header": "x-tag", "remove": true, "on_header_present":
                {"metadata_namespace": "envoy_cimd_traffic", "key": "tag"}}],
        }}),
    );
    let manager = &mut config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"];
    list(&mut manager["access_log"]).push(json!({"name": "tags", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
        "path": file,
        "log_format": {"text_format_source": {"inline_string": "%DYNAMIC_METADATA(envoy_cimd_traffic:tag)%\n"}},
    }}));
}

/// Whose token was refused is what the tag says, and nothing else.
#[tokio::test]
async fn tags_that_are_not_the_current_ones() {
    let bed = Bed::connected().await;
    bed.connect("bob", NOTES, "", "notes").await;
    assert_eq!(bed.call("bob", &[]).await.status, 200);
    bed.answers(|| says(401, challenge("")));
    // No tag of ours: nothing is reported.
    for tag in ["x", "AAAAAAAAAAAAAAAAAAAAAA=="] {
        let told = refused(&bed.call("ann", &[("x-tag", tag)]).await);
        assert_eq!(told, "This MCP server refused the request.", "{tag}");
    }
    assert!(bed.servers.refreshes().is_empty());
    assert_eq!(refused(&bed.call("ann", &[]).await), AGAIN, "her own");
    // Those of both, as Envoy wrote them down: their first calls.
    let tags = timeout(PATIENCE, async {
        loop {
            let tags: Vec<String> = bed.tags().into_iter().filter(|tag| tag.len() == 22).collect();
            if tags.len() >= 2 {
                return tags;
            }
            // Envoy writes down what it has every few seconds.
            sleep(Duration::from_millis(50)).await;
        }
    });
    let tags = tags.await.expect("Envoy writes them down");
    let [of_ann, of_bob, ..] = &tags[..] else { panic!("{tags:?}") };
    assert_ne!(of_ann, of_bob);
    // An old one, another's, and one that nobody has.
    for tag in [of_ann, of_bob, "AAAAAAAAAAAAAAAAAAAAAA"] {
        assert_eq!(refused(&bed.call("ann", &[("x-tag", tag)]).await), AGAIN, "there is a newer one than that");
    }
    assert_eq!(bed.servers.refreshes().len(), 1, "nobody's token was refreshed");
    assert_eq!(refused(&bed.call("bob", &[]).await), AGAIN);
    assert_eq!(bed.servers.refreshes().len(), 2, "his own is");
    bed.finish().await;
}
