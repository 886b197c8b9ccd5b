//! A metadata document as JSON: an object whose members are looked at one by one, so that one that nobody needs spoils
//! nothing.

use std::{collections::HashMap, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, MapAccess, Visitor},
};
use serde_json::{Value, error::Category, value::RawValue};

use super::error::Problem;

/// The members of a JSON object (RFC 8414, section 3.2; RFC 9728, section 3.2).
#[derive(Debug)]
pub struct Members(HashMap<String, Member>);

#[derive(Debug)]
enum Member {
    Once(Box<RawValue>),
    /// RFC 8259, section 4, leaves it open which of two counts.
    Twice,
}

impl Members {
    /// # Errors
    /// Why it is not a JSON object, in words of ours: a parser's quote what a stranger wrote.
    pub fn read(body: &[u8]) -> Result<Self, String> {
        // RFC 8259, section 8.1, lets a parser ignore a byte order mark.
        let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
        serde_json::from_slice(body).map_err(|error| {
            let what = match error.classify() {
                Category::Data => "it is not a JSON object",
                Category::Syntax | Category::Io => "it is not JSON",
                Category::Eof => "it ends too early",
            };
            format!("{what}, at line {}, column {}", error.line(), error.column())
        })
    }

    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// A text. None where it is not there, or `null`.
    ///
    /// # Errors
    /// Where it is something else, or is there twice.
    pub fn text(&self, name: &'static str) -> Result<Option<String>, Problem> {
        self.value(name)
    }

    /// A list of texts. None where it is not there, or `null`.
    ///
    /// # Errors
    /// Where it is something else, or is there twice.
    pub fn list(&self, name: &'static str) -> Result<Option<Vec<String>>, Problem> {
        self.value(name)
    }

    /// Whether it is `true`, which some write as a text.
    ///
    /// # Errors
    /// Where it is there twice.
    pub fn is_true(&self, name: &'static str) -> Result<bool, Problem> {
        Ok(matches!(self.raw(name)?, Some("true" | "\"true\"")))
    }

    /// A count of seconds, which some write as a text. None where it is not there, or `null`.
    ///
    /// # Errors
    /// Where it is something else, or is there twice.
    pub fn seconds(&self, name: &'static str) -> Result<Option<u64>, Problem> {
        let seconds = |value: Value| match value {
            Value::Number(number) => number.as_u64(),
            Value::String(text) => text.parse().ok(),
            _ => None,
        };
        let value = self.value::<Value>(name)?;
        value.map(|value| seconds(value).ok_or(Problem::WrongType(name))).transpose()
    }

    fn value<T: DeserializeOwned>(&self, name: &'static str) -> Result<Option<T>, Problem> {
        let Some(raw) = self.raw(name)? else { return Ok(None) };
        serde_json::from_str(raw).map_err(|_| Problem::WrongType(name))
    }

    fn raw(&self, name: &'static str) -> Result<Option<&str>, Problem> {
        match self.0.get(name) {
            None => Ok(None),
            Some(Member::Once(value)) => Ok(Some(value.get())),
            Some(Member::Twice) => Err(Problem::Twice(name)),
        }
    }
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Object)
    }
}

struct Object;

impl<'de> Visitor<'de> for Object {
    type Value = Members;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
        let mut members = HashMap::new();
        while let Some((name, value)) = map.next_entry::<String, _>()? {
            let twice = members.contains_key(&name);
            members.insert(name, if twice { Member::Twice } else { Member::Once(value) });
        }
        Ok(Members(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(text: &str) -> Members {
        Members::read(text.as_bytes()).expect(text)
    }

    #[test]
    fn members_are_read_one_by_one() {
        let deep = "[".repeat(1000) + &"]".repeat(1000);
        let text = format!(
            "\u{feff}{{\"a\":\"text\",\"b\":null,\"c\":1,\"d\":[\"x\"],\"e\":[1],\"f\":{deep},\"g\":1,\"\\u0067\":2}}"
        );
        let members = members(&text);
        assert!(matches!(members.text("a"), Ok(Some(text)) if text == "text"));
        for absent in ["b", "z"] {
            assert!(matches!((members.text(absent), members.list(absent)), (Ok(None), Ok(None))), "{absent}");
            assert!(matches!(members.is_true(absent), Ok(false)), "{absent}");
        }
        assert!(matches!(members.list("d"), Ok(Some(list)) if list == ["x"]));
        for wrong in ["c", "e", "f"] {
            assert!(matches!(members.list(wrong), Err(Problem::WrongType(name)) if name == wrong), "{wrong}");
        }
        assert!(matches!(members.text("g"), Err(Problem::Twice("g"))), "however it is escaped");
        assert!(matches!(members.is_true("g"), Err(Problem::Twice("g"))));
    }

    #[test]
    fn seconds_are_a_text_too() {
        for (value, seconds) in [
            ("0", Some(Some(0))),
            ("1800000000", Some(Some(1_800_000_000))),
            ("\"1800000000\"", Some(Some(1_800_000_000))),
            ("null", Some(None)),
            ("-1", None),
            ("1.5", None),
            ("\"soon\"", None),
            ("[]", None),
        ] {
            assert_eq!(members(&format!("{{\"a\":{value}}}")).seconds("a").ok(), seconds, "{value}");
        }
        assert!(matches!(members("{}").seconds("a"), Ok(None)));
    }

    #[test]
    fn true_is_a_text_too() {
        for (value, is_true) in [("true", true), ("\"true\"", true), ("false", false), ("1", false), ("[true]", false)]
        {
            assert_eq!(members(&format!("{{\"a\": {value} }}")).is_true("a").ok(), Some(is_true), "{value}");
        }
    }

    #[test]
    fn what_is_not_an_object_is_said_without_its_words() {
        for (text, why) in [
            ("", "it ends too early, at line 1, column 0"),
            ("<html>SECRET", "it is not JSON, at line 1, column 1"),
            ("\"SECRET\"", "it is not a JSON object, at line 1, column 8"),
            ("[]", "it is not a JSON object, at line 1, column 0"),
            ("{\"SECRET\":", "it ends too early, at line 1, column 10"),
            ("{} SECRET", "it is not JSON, at line 1, column 4"),
        ] {
            assert_eq!(Members::read(text.as_bytes()).expect_err(text), why, "{text}");
        }
    }
}
