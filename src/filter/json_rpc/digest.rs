//! What a call is known by when it comes again: its method, what it is of, and its arguments.
//!
//! A client may write the same call in other words the second time: its members in another order, other white space,
//! other escapes, `1.0` for `1`. What is hashed is one spelling of them all.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::model::secret::tagged_hash;

/// SHA-256 over a call in its one spelling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// `of` is the name or URI. None where a text has no value: half of a surrogate pair.
    pub(super) fn of(method: &str, of: &str, arguments: Option<&RawValue>) -> Option<Self> {
        let mut text = Vec::new();
        put(&mut text, b'm', method.as_bytes());
        put(&mut text, b'u', of.as_bytes());
        // None is other than an empty object.
        if let Some(arguments) = arguments {
            spell(arguments, &mut text)?;
        }
        Some(Self(tagged_hash("envoy-cimd request", &text)))
    }
}

/// The length keeps one part from running into the next.
fn put(text: &mut Vec<u8>, kind: u8, part: &[u8]) {
    text.push(kind);
    text.extend((part.len() as u64).to_be_bytes());
    text.extend(part);
}

/// Its depth is that of what a message was read with, which is bounded.
fn spell(value: &RawValue, text: &mut Vec<u8>) -> Option<()> {
    let json = value.get();
    match json.as_bytes().first()? {
        b'{' => {
            let Members(mut members) = serde_json::from_str(json).ok()?;
            // Stable: of two with one name, a reader may take either, so their order counts.
            members.sort_by(|(one, _), (other, _)| one.cmp(other));
            put(text, b'o', &(members.len() as u64).to_be_bytes());
            for (name, value) in members {
                put(text, b's', name.as_bytes());
                spell(value, text)?;
            }
        }
        b'[' => {
            let items: Vec<&RawValue> = serde_json::from_str(json).ok()?;
            put(text, b'a', &(items.len() as u64).to_be_bytes());
            for item in items {
                spell(item, text)?;
            }
        }
        b'"' => put(text, b's', serde_json::from_str::<String>(json).ok()?.as_bytes()),
        b'-' | b'0'..=b'9' => put(text, b'n', number(json).as_bytes()),
        _ => put(text, b'l', json.as_bytes()),
    }
    Some(())
}

/// A number as its digits and the power of ten that they are multiplied with: exact, however long it is.
fn number(text: &str) -> String {
    let (sign, digits) = text.strip_prefix('-').map_or(("", text), |digits| ("-", digits));
    let (mantissa, exponent) = digits.split_once(['e', 'E']).unwrap_or((digits, "0"));
    // Nobody means a number that is so long or so short.
    let Ok(exponent) = exponent.parse::<i64>() else { return text.to_owned() };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = [whole, fraction].concat();
    let significant = digits.trim_start_matches('0').trim_end_matches('0');
    if significant.is_empty() {
        return "0".to_owned();
    }
    let zeros = digits.len() - digits.trim_end_matches('0').len();
    let exponent = i128::from(exponent) + zeros as i128 - fraction.len() as i128;
    format!("{sign}{significant}e{exponent}")
}

/// The members of an object in the order that they stand in, also where there are two of one name.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        let Members(members) = deserializer.deserialize_map(Reader)?;
        Ok(Members(members))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(arguments: &str) -> Digest {
        let arguments: &RawValue = serde_json::from_str(arguments).expect("JSON");
        Digest::of("tools/call", "a", Some(arguments)).expect("a digest")
    }

    #[test]
    fn one_call_in_other_words() {
        for (one, other, same) in [
            (r#"{"a":1,"b":[2,{"c":3,"d":4}]}"#, " { \"b\" : [ 2 , {\"d\":4,\"c\":3} ] , \"a\" : 1 } ", true),
            (r#"{"\u0061":"\u00e9\n"}"#, "{\"a\":\"é\\u000a\"}", true),
            ("1", "1.0", true),
            ("1", "10e-1", true),
            ("100", "1e2", true),
            ("100000000000000000000", "1E+20", true),
            ("0.1", "0.10", true),
            ("-0", "0.0e5", true),
            ("1", "-1", false),
            ("1", "10", false),
            ("1", "0.1", false),
            ("9007199254740993", "9007199254740992", false),
            ("1", r#""1""#, false),
            ("null", r#""null""#, false),
            ("null", "false", false),
            ("{}", "[]", false),
            ("[]", "[[]]", false),
            ("[1,2]", "[2,1]", false),
            ("[1,[2]]", "[[1],2]", false),
            (r#"{"a":1}"#, r#"{"a":1,"a":1}"#, false),
            (r#"{"a":1,"a":2}"#, r#"{"a":2,"a":1}"#, false),
            (r#"{"a":{"b":1}}"#, r#"{"a":{},"b":1}"#, false),
            (r#"["ab","c"]"#, r#"["a","bc"]"#, false),
        ] {
            assert_eq!(of(one) == of(other), same, "{one} {other}");
        }
        let huge = format!("1e{}", "9".repeat(100));
        assert_ne!(of(&huge), of("1"));
        let empty: &RawValue = serde_json::from_str("{}").expect("JSON");
        let all = [
            Digest::of("tools/call", "a", None),
            Digest::of("tools/call", "a", Some(empty)),
            Digest::of("tools/call", "b", None),
            Digest::of("prompts/get", "a", None),
        ];
        for (at, one) in all.iter().enumerate() {
            assert!(all.iter().skip(at + 1).all(|other| one != other), "{at}");
        }
    }

    proptest! {
        /// What a library makes of a call that it read is the same call.
        #[test]
        fn written_anew_it_is_the_same(numbers in proptest::collection::vec(any::<f64>(), 0..5),
                                       integers in proptest::collection::vec(any::<i64>(), 0..5),
                                       texts in proptest::collection::hash_map(".*", ".*", 0..5)) {
            let value = serde_json::json!({"numbers": numbers, "integers": integers, "texts": texts});
            let pretty = serde_json::to_string_pretty(&value).expect("JSON");
            prop_assert_eq!(of(&pretty), of(&value.to_string()));
        }
    }
}
