//! Origins: one spelling, which every parser agrees on.

#![no_main]

use envoy_cimd::model::origin::Origin;
use envoy_cimd_fuzz::at_both_sizes;
use libfuzzer_sys::fuzz_target;
use url::Url;

fuzz_target!(|text: &str| at_both_sizes(text, check));

fn check(text: &str) {
    let Ok(origin) = text.parse::<Origin>() else { return };
    let spelling = origin.to_string();
    assert_eq!(spelling.parse::<Origin>(), Ok(origin.clone()));
    let url = Url::parse(&spelling).expect("a URL");
    assert_eq!(url.origin().ascii_serialization(), spelling);
    assert_eq!(Url::parse(text).expect("a URL").origin(), url.origin(), "it says what the text said");
    assert!(spelling.starts_with("https://") && !spelling.contains(['@', '?', '#', '%', '\\', ' ']), "{spelling}");
    assert!(spelling.is_ascii() && spelling == spelling.to_ascii_lowercase() && !spelling.ends_with(":443"));
    assert!(origin.is_named_by(origin.authority()) && origin.is_named_by(origin.host()));
    assert!(!origin.is_named_by(&format!("{}.evil.example", origin.host())));
    assert!(!origin.is_named_by(&format!("evil.{}", origin.authority())));
}
