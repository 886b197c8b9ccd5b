//! What we look at of an upstream's answer: a view that borrows from the message it came in.

use super::request::Request;
use crate::contract::tokens::TokenTag;

/// What Envoy says of an answer that is the upstream's own. All others are its own words for why there is none.
pub const OF_UPSTREAM: &str = "via_upstream";

/// All that is read of an answer's headers, so that Envoy forwards no more.
pub const RESPONSE_HEADERS: [&str; 2] = [STATUS, CHALLENGE];

/// The pseudo-header that has the status.
pub const STATUS: &str = ":status";
/// The header that has an answer's challenges.
pub const CHALLENGE: &str = "www-authenticate";

/// The headers of an answer as far as they are read, and the request that it answers.
#[derive(Debug, Default)]
pub struct Response<'a> {
    /// None where it is not a number.
    pub status: Option<u16>,
    /// The values of `www-authenticate`, one a header line.
    pub challenges: Vec<&'a [u8]>,
    /// Envoy's `response.code_details`: who made the answer, and why.
    pub details: Option<&'a str>,
    /// What the token is called that went along with the request.
    pub tag: Option<TokenTag>,
    /// As far as it can still be read.
    pub request: Request<'a>,
}

impl Response<'_> {
    /// Whether the upstream made it, and not Envoy or one of its filters.
    pub fn is_of_upstream(&self) -> bool {
        self.details == Some(OF_UPSTREAM)
    }
}
