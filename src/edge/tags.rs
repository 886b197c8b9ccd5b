//! What a request's token is called in dynamic metadata, which the filters that come later read.

use std::collections::HashMap;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use envoy_types::pb::{
    envoy::config::core::v3::Metadata,
    google::protobuf::{Struct, Value, value::Kind},
};

use crate::contract::tokens::TokenTag;

/// The namespace in which a request's token is named.
pub const NAMESPACE: &str = "envoy_cimd_traffic";
/// The key of the token's tag in it.
const TAG: &str = "tag";

/// Metadata that names the token.
pub(super) fn tagged(tag: TokenTag) -> Struct {
    let entry = |key: &str, kind| Struct { fields: HashMap::from([(key.to_owned(), Value { kind: Some(kind) })]) };
    let tag = entry(TAG, Kind::StringValue(BASE64_URL_SAFE_NO_PAD.encode(tag.0)));
    entry(NAMESPACE, Kind::StructValue(tag))
}

/// The tag that metadata names; none where it names none that we could have made.
pub(super) fn tag(metadata: &Metadata) -> Option<TokenTag> {
    let text = match metadata.filter_metadata.get(NAMESPACE)?.fields.get(TAG)?.kind.as_ref()? {
        Kind::StringValue(text) => text,
        _ => return None,
    };
    Some(TokenTag(BASE64_URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: Kind) -> Option<TokenTag> {
        let ours = Struct { fields: HashMap::from([(TAG.to_owned(), Value { kind: Some(value) })]) };
        tag(&Metadata { filter_metadata: HashMap::from([(NAMESPACE.to_owned(), ours)]), ..Metadata::default() })
    }

    #[test]
    fn a_tag_is_read_as_it_was_written() {
        let written = tagged(TokenTag([0xfe; 16]));
        let Some(Kind::StructValue(ours)) = &written.fields[NAMESPACE].kind else { panic!("a struct") };
        assert!(read(ours.fields[TAG].kind.clone().expect("a value")) == Some(TokenTag([0xfe; 16])));
        for other in ["", "AAAA", "AAAAAAAAAAAAAAAAAAAAAAA", "AAAAAAAAAAAAAAAAAAAAAA==", "AAAAAAAAAAAAAAAAAAAA A", "é"]
        {
            assert!(read(Kind::StringValue(other.to_owned())).is_none(), "{other}");
        }
        for other in [Kind::NumberValue(1.0), Kind::NullValue(0), Kind::StructValue(Struct::default())] {
            assert!(read(other).is_none());
        }
        assert!(tag(&Metadata::default()).is_none());
    }
}
