//! What the probe says of an answer: a status line, headers, an empty line, a document.

#![no_main]

use std::time::Duration;

use envoy_cimd::commands::probe::{fetch::Answer, judge};
use envoy_cimd_fuzz::at_both_sizes;
use http::{HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;

const CLIENT_ID: &str = "https://a.example/c.json";

fuzz_target!(|text: &str| at_both_sizes(text, check));

fn check(text: &str) {
    let (head, body) = text.split_once("\n\n").unwrap_or(("200\ncontent-type: application/json", text));
    let (status, headers) = head.split_once('\n').unwrap_or((head, ""));
    let headers = headers.lines().filter_map(|line| {
        let (name, value) = line.split_once(": ")?;
        Some((HeaderName::from_bytes(name.as_bytes()).ok()?, HeaderValue::from_str(value).ok()?))
    });
    let answer = Answer {
        status: status.parse().unwrap_or(200),
        headers: headers.take(1000).collect(),
        body: body.as_bytes().to_vec(),
        elapsed: Duration::ZERO,
    };
    for finding in judge::answer(CLIENT_ID, &answer) {
        let safe = finding.message.len() < 1000 && !finding.message.contains(|c: char| c.is_control());
        assert!(safe, "{finding:?}");
    }
}
