//! Who a route is to an authorization server: two URLs of its own, which only [`super::paths::Paths`] makes.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The URL of a route's document, which is its `client_id` (draft-ietf-oauth-client-id-metadata-document, section 3).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClientId(String);

/// The URL of a route's redirect endpoint (RFC 6749, section 3.1.2).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RedirectUri(String);

macro_rules! text {
    ($($name:ident)*) => {$(
        impl $name {
            /// One that was made elsewhere: it came over gRPC, or out of a store.
            pub fn new(text: impl Into<String>) -> Self {
                Self(text.into())
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }

            pub fn into_string(self) -> String {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}

text! { ClientId RedirectUri }
