//! Why no authorization server is found, in words for operators.

use std::time::Duration;

use http::StatusCode;

use crate::{model::shares::UsedUp, net::outgoing::error::FetchError};

/// The longest URL that is taken of a stranger, in bytes.
pub const MAX_URL: usize = 2048;
/// The longest scope, in bytes: it goes into an address too.
pub const MAX_SCOPE: usize = 4096;

/// Why no authorization server can be used. For operators.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DiscoveryError {
    #[error("the upstream {0}: {1}")]
    Upstream(String, Problem),
    #[error("the protected resource metadata of {0}: {1}")]
    Resource(String, Problem),
    #[error("the authorization server {0}: {1}")]
    Server(String, Problem),
    #[error("the upstream {0}: to look it up, and its authorization server, took longer than {1:?} in all")]
    TooSlow(String, Duration),
    #[error("the upstream {0}: its look-up broke off, which is a bug")]
    Broken(String),
    /// No look-up was made.
    #[error("as many upstreams are being looked up as {} allows", setting(*.0))]
    Busy(UsedUp),
}

/// The setting that limits look-ups.
fn setting(used_up: UsedUp) -> &'static str {
    match used_up {
        UsedUp::InAll => "--max-lookups",
        UsedUp::OfUser => "--max-lookups-per-user",
        UsedUp::OfServer => "--max-lookups-per-host",
    }
}

/// What is wrong with one of the three.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Problem {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("no metadata was found; the last address tried, {0}, answered {1}")]
    NoMetadata(String, StatusCode),
    #[error("{0} is not JSON metadata: {1}")]
    NotMetadata(String, String),
    #[error("`{0}` is not a well-formed URL of at most {MAX_URL} bytes")]
    NotUrl(&'static str),
    #[error("`scopes_supported` takes more than {MAX_SCOPE} bytes")]
    LongScope,
    #[error("`authorization_endpoint` has a `{0}` of its own")]
    OwnParameter(String),
    #[error("`resource` is {0}, which is neither the upstream's URL nor a prefix of it")]
    ForeignResource(String),
    #[error("it names no authorization server: `authorization_servers` is empty; pin one with `authorization_server`")]
    NoServer,
    #[error("its metadata names the issuer {0}, which is another")]
    ForeignIssuer(String),
    #[error("its metadata lacks `{0}`")]
    Lacks(&'static str),
    #[error("it does not support {0}")]
    Unsupported(&'static str),
}
