//! How keys are named. What one step touches lies on one shelf: in a cluster, that is one slot, so one server has it.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};

use crate::store::keys::{Owner, RegistrationsKey};

/// All our keys begin with this: an operator may give us a part of a server by it.
const NAMESPACE: &str = "envoy_cimd:v1:";

/// Keys that lie together.
pub struct Shelf {
    prefix: String,
    /// Where a cluster has it.
    pub slot: u16,
}

/// How shelves are named.
#[derive(Clone, Copy, PartialEq)]
pub enum Naming {
    /// As on one server, where all keys are together anyway.
    Plain,
    /// In a cluster, the name of the shelf is in the key, in braces: what is between them decides on the slot.
    Tagged,
}

impl Naming {
    /// What is there once.
    pub fn of_store(self) -> Shelf {
        self.shelf("store")
    }

    /// All flows: they are counted together, and their number is limited.
    pub fn of_flows(self) -> Shelf {
        self.shelf("flows")
    }

    /// One owner's tokens, and what is noted beside them.
    pub fn of(self, owner: Owner) -> Shelf {
        self.shelf(&text(owner.as_bytes()))
    }

    /// The clients that were registered for one route.
    pub fn of_registrations(self, key: RegistrationsKey) -> Shelf {
        self.shelf(&text(key.as_bytes()))
    }

    fn shelf(self, name: &str) -> Shelf {
        let prefix = match self {
            Self::Plain => NAMESPACE.to_owned(),
            Self::Tagged => format!("{NAMESPACE}{{{name}}}:"),
        };
        Shelf { prefix, slot: slot(name) }
    }
}

impl Shelf {
    pub fn key(&self, kind: &str) -> String {
        format!("{}{kind}", self.prefix)
    }

    /// The key of one of many.
    pub fn key_of(&self, kind: &str, hash: &[u8; 32]) -> String {
        self.prefix_of(kind) + &text(hash)
    }

    /// What the keys of one kind begin with.
    pub fn prefix_of(&self, kind: &str) -> String {
        format!("{}{kind}:", self.prefix)
    }
}

pub fn text(hash: &[u8]) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(hash)
}

/// The slot of keys that have this between braces: CRC-16/XMODEM, of which 14 bits count.
fn slot(tag: &str) -> u16 {
    let crc = tag.bytes().fold(0_u16, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(byte) << 8), |crc, _| (crc << 1) ^ if crc & 0x8000 == 0 { 0 } else { 0x1021 })
    });
    crc & 0x3fff
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::keys::RouteKey;

    #[test]
    fn slots_are_those_of_redis() {
        // As `CLUSTER KEYSLOT` tells; the first is the check value of the specification.
        for (tag, slot_of_redis) in [("123456789", 0x31c3), ("foo", 12182), ("", 0)] {
            assert_eq!(slot(tag), slot_of_redis, "{tag}");
        }
    }

    #[test]
    fn names_on_one_server_stay() {
        let owner = RouteKey::from_bytes([0; 32]).owner();
        let plain = Naming::Plain;
        assert_eq!(plain.of_store().key("key_check"), "envoy_cimd:v1:key_check");
        assert_eq!(plain.of_flows().key_of("flow", &[0; 32]), format!("envoy_cimd:v1:flow:{}", "A".repeat(43)));
        assert_eq!(plain.of(owner).prefix_of("token"), "envoy_cimd:v1:token:");
        assert_eq!(Naming::Tagged.of(owner).key("x"), "envoy_cimd:v1:{AAAAAAAA}:x");
        assert_eq!(Naming::Tagged.of_flows().key("flows"), "envoy_cimd:v1:{flows}:flows");
    }
}
