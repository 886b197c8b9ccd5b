//! Why no authorization server is found, in words for operators.

use std::{fmt, time::Duration};

use http::StatusCode;

use crate::{
    model::shares::UsedUp,
    net::outgoing::error::{FetchError, truncate},
};

/// The longest URL that is taken of a stranger, in bytes.
pub const MAX_URL: usize = 2048;

/// Why no authorization server can be used. For operators.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DiscoveryError {
    #[error("the upstream {0}: {1}")]
    Upstream(String, Problem),
    #[error("the protected resource metadata of {0}: {1}")]
    Resource(String, Problem),
    #[error("the authorization server {0}: {1}")]
    Server(String, Problem),
    /// The first of several authorization servers.
    #[error("{0}; the upstream also names {1}: to use that, pin it with `authorization_server`")]
    FirstOf(Box<Self>, Others),
    #[error(
        "the upstream {0} answers who comes without a token, and there is no metadata of it anywhere: this server needs no \
         sign-in. Its route is to be without the filter that puts tokens in, which lets nothing go on without one"
    )]
    NoSignIn(String),
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

/// The other authorization servers that an upstream names, of which there is at least one.
#[derive(Clone, Debug)]
pub struct Others(Vec<String>);

impl Others {
    /// How many are named, at most.
    const MAX: usize = 3;

    /// None where there is none.
    pub fn of(issuers: impl Iterator<Item = String>) -> Option<Self> {
        let named: Vec<_> = issuers.take(Self::MAX).map(truncate).collect();
        (!named.is_empty()).then_some(Self(named))
    }
}

impl fmt::Display for Others {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(" and "))
    }
}

/// What is wrong with one of the three.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Problem {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("no metadata was found; the last address tried, {0}, answered {1}")]
    NoMetadata(String, StatusCode),
    #[error("{0} is not metadata: {1}")]
    NotMetadata(String, String),
    #[error("`{0}` is not a well-formed URL of at most {MAX_URL} bytes")]
    NotUrl(&'static str),
    #[error("`{0}` is there twice")]
    Twice(&'static str),
    #[error("`{0}` has another type than it must have")]
    WrongType(&'static str),
    #[error("`authorization_endpoint` has a `{0}` of its own")]
    OwnParameter(String),
    #[error(
        "`resource` is {0}, which is neither the upstream's URL nor a prefix of it; set the route's `resource` to {0} if \
         that is this upstream"
    )]
    ForeignResource(String),
    #[error("`resource` is {0}, and the route's `resource` is {1}: they must be the same, character by character")]
    OtherResource(String, String),
    #[error("it names no authorization server: `authorization_servers` is empty; pin one with `authorization_server`")]
    NoServer,
    #[error("its metadata names the issuer {0}, which is another")]
    ForeignIssuer(String),
    #[error("its metadata lacks `{0}`")]
    Lacks(&'static str),
    #[error("it does not support {0}")]
    Unsupported(&'static str),
    #[error("it demands {0}, which this client does not send")]
    Demands(&'static str),
}

impl Problem {
    /// Whether an address led to no document, for whatever reason.
    pub fn leads_nowhere(&self) -> bool {
        self.is_absence() || matches!(self, Self::Fetch(_) | Self::NotUrl("resource_metadata"))
    }

    /// Whether there is no document, so that it may be elsewhere. One that lies is one.
    pub fn is_absence(&self) -> bool {
        matches!(self, Self::NoMetadata(..) | Self::NotMetadata(..) | Self::Fetch(FetchError::TooLarge { .. }))
    }

    /// Whether it is the word of somebody else than who was asked. Any other may be the fault of a server that is to be
    /// done without.
    pub fn is_foreign(&self) -> bool {
        matches!(self, Self::ForeignResource(_) | Self::OtherResource(..))
    }
}
