//! The tokens, as whoever carries MCP traffic sees them.

use async_trait::async_trait;

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

    /// Revokes the owner's tokens at the authorization server, where it offers that (RFC 7009), and forgets them. What
    /// the authorization server says does not keep them.
    ///
    /// # Errors
    /// [`TokenError::Unavailable`] where the store cannot be reached: nothing was forgotten.
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

/// An access token.
#[derive(Debug)]
pub struct AccessToken {
    pub secret: Secret,
    /// None where the authorization server did not say.
    pub expires_at: Option<UnixTime>,
}

/// Why there is no token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TokenError {
    /// This user has none for this route: never connected, ended by the authorization server, or of an authorization
    /// server that is not the route's any more.
    NotFound,
    /// There may be one, and it may work later: the store or the authorization server cannot be reached.
    Unavailable,
}
