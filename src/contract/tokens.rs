//! The tokens, as whoever carries MCP traffic sees them.

use std::fmt;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::error::{Cause, Label};
use crate::model::{client::ClientId, clock::UnixTime, secret::Secret, trace::Trace, upstream::Upstream, user::User};

/// Hands out tokens. One trait for the exchange in this process and the one that is called. Whoever may call it may have
/// every user's token.
#[async_trait]
pub trait UpstreamTokens: Send + Sync {
    /// The owner's access token, valid now: refreshed where it is over, and in the background where it soon is.
    ///
    /// # Errors
    /// Where there is none, or none can be had now.
    async fn upstream_token(&self, owner: TokenOwner, trace: &Trace) -> Result<AccessToken, TokenError>;

    /// Says that the upstream refused the token with this tag: one refresh for all who say so of one token, and at most
    /// one a minute for an owner, doubling to ten.
    ///
    /// # Errors
    /// [`TokenError::NotFound`] where no token can come of it, [`TokenError::Unavailable`] where none can be had now.
    async fn refused(&self, owner: TokenOwner, tag: TokenTag, trace: &Trace) -> Result<Renewal, TokenError>;

    /// Revokes the owner's tokens at the authorization server, where it offers that (RFC 7009), and forgets them. What
    /// the authorization server says does not keep them.
    ///
    /// # Errors
    /// [`TokenError::Unavailable`] where the store cannot be reached, or nothing can be audited: nothing was forgotten. Of
    /// another process, where the call broke; it may have been done.
    async fn disconnect(&self, owner: TokenOwner, trace: &Trace) -> Result<(), TokenError>;
}

/// Whose token, for which upstream, through which route.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TokenOwner {
    pub user: User,
    /// The route.
    pub client_id: ClientId,
    pub upstream: Upstream,
}

/// What a token is called where its own text must not be. Random, and stored with the token: no hash of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TokenTag(pub [u8; 16]);

/// It is in no log either.
impl fmt::Debug for TokenTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenTag(…)")
    }
}

/// What a report of a refused token came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// There is a newer token than the one that was refused.
    Renewed,
    /// The last one was refused too, a short while ago, and no other was asked for.
    TooSoon,
}

/// A token with no more than this left is not handed out any more, in seconds: it would end on its way.
pub const TOO_LATE: u64 = 5;

/// An access token.
#[derive(Debug)]
pub struct AccessToken {
    pub secret: Secret,
    pub tag: TokenTag,
    /// None where the authorization server did not say.
    pub expires_at: Option<UnixTime>,
}

/// Why there is no token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenError {
    /// This user has none for this route, and can have one by connecting.
    NotFound(Missing),
    /// There may be one, and it may work later: the store, the authorization server or the process that has the tokens
    /// cannot be reached, or nothing can be audited.
    Unavailable(Cause),
}

/// What became of a token that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// There was none: never connected, disconnected, or connected to an authorization server or for a resource that
    /// is not the route's any more.
    Never,
    /// The grant ended by itself: the authorization server ended it, or refuses to renew it for good.
    Lost,
}

impl Label for TokenError {
    fn label(&self) -> &'static str {
        match self {
            Self::NotFound(Missing::Never) => "never",
            Self::NotFound(Missing::Lost) => "lost",
            Self::Unavailable(_) => "unavailable",
        }
    }
}
