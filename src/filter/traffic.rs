//! MCP requests on their way to the upstream: each with its user's token, or none of them.

use std::time::Duration;

use crate::model::origin::Origin;

/// What an operator says of MCP traffic.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The web origins, besides each route's own, whose pages may send MCP requests.
    pub allow_origins: Vec<Origin>,
    /// How long a token is kept at most, since it was handed out; zero: never.
    pub token_cache: Duration,
    /// How many tokens are kept.
    pub max_cached_tokens: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { allow_origins: Vec::new(), token_cache: Duration::from_secs(5), max_cached_tokens: 100_000 }
    }
}
