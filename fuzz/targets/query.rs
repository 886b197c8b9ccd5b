//! The query parser, against a plain reading of the rules.

#![no_main]

use std::borrow::Cow;

use envoy_cimd::filter::query::parameters;
use envoy_cimd_fuzz::at_both_sizes;
use libfuzzer_sys::fuzz_target;

const NAMES: [&str; 3] = ["code", "state", "iss"];

fuzz_target!(|text: &str| at_both_sizes(text, check));

fn check(query: &str) {
    let found = parameters(query.as_bytes(), query.len(), NAMES);
    let expected = pairs(query).and_then(|pairs| {
        let values =
            NAMES.map(|name| pairs.iter().filter(|pair| pair.0 == name).map(|pair| &pair.1).collect::<Vec<_>>());
        let alone = values.iter().all(|values| values.len() < 2);
        alone.then(|| {
            values.map(|values| values.first().filter(|value| !value.is_empty()).map(|value| value.to_string()))
        })
    });
    assert_eq!(found.ok().map(|values| values.map(|value| value.map(Cow::into_owned))), expected);
    if !query.is_empty() {
        assert!(parameters(query.as_bytes(), query.len() - 1, NAMES).is_err(), "it is longer than it may be");
    }
}

/// The names and values; none where one of them is no percent-encoded UTF-8.
fn pairs(query: &str) -> Option<Vec<(String, String)>> {
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((decoded(name)?, decoded(value)?))
        })
        .collect()
}

fn decoded(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::new();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(decoded).ok()
}
