//! Origins and public URLs: one spelling, which every parser agrees on.

#![no_main]

use envoy_cimd::model::{origin::Origin, public_url::PublicUrl};
use envoy_cimd_fuzz::at_both_sizes;
use libfuzzer_sys::fuzz_target;
use url::Url;

fuzz_target!(|text: &str| at_both_sizes(text, check));

fn check(text: &str) {
    let from = text.parse::<PublicUrl>();
    if let Ok(from) = &from {
        assert_eq!(from.as_str().parse::<PublicUrl>().as_ref(), Ok(from));
        assert_eq!(format!("{}{}", from.origin(), from.path()), from.as_str());
        let url = Url::parse(from.as_str()).expect("a URL");
        assert_eq!(url.origin().ascii_serialization(), from.origin().as_str());
        assert_eq!(url.path().trim_end_matches('/'), from.path());
        assert_eq!(Url::parse(text).expect("a URL"), url, "it says what the text said");
    }
    let Ok(origin) = text.parse::<Origin>() else { return };
    // An origin is a URL without a path, but for one that a URL parser takes away (`/.`).
    assert!(from.map_or(true, |from| from.path().is_empty() && *from.origin() == origin));
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
