//! `return_to`: whatever is accepted stays on its origin, for the URL standard and for a browser.

#![no_main]

use envoy_cimd::model::{origin::Origin, return_to::ReturnTo};
use envoy_cimd_fuzz::{at_both_sizes, is_local};
use libfuzzer_sys::fuzz_target;
use url::Url;

const ORIGINS: [&str; 3] = ["https://mcp.example.com", "https://mcp.example.com:8443", "https://[2001:db8::1]"];

fuzz_target!(|text: &str| at_both_sizes(text, check));

fn check(text: &str) {
    for origin in ORIGINS {
        let base = Url::parse(origin).expect("a URL");
        let origin: Origin = origin.parse().expect("an origin");
        let Some(accepted) = ReturnTo::parse(text, &origin) else { continue };
        assert_eq!(ReturnTo::parse(accepted.as_str(), &origin).as_ref(), Some(&accepted));
        assert!(http::HeaderValue::from_str(accepted.as_str()).is_ok(), "{accepted}");
        for spelling in [text, accepted.as_str()] {
            assert!(is_local(spelling), "{spelling}");
            assert_eq!(base.join(spelling).expect("a URL").origin(), base.origin(), "{spelling}");
        }
    }
}
