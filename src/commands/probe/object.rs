//! A JSON object as strict parsers see it: serde_json's own type keeps the last of two members of one name, others keep
//! the first, or refuse both.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::{Map, Value};

/// An object's members, the last of a name where there are several.
#[derive(Default)]
pub struct Object {
    pub members: Map<String, Value>,
    /// The names that came again.
    pub repeated: Vec<String>,
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Self::default())
    }
}

impl<'de> Visitor<'de> for Object {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Self, A::Error> {
        while let Some((name, value)) = map.next_entry::<String, Value>()? {
            if self.members.insert(name.clone(), value).is_some() {
                self.repeated.push(name);
            }
        }
        Ok(self)
    }
}
