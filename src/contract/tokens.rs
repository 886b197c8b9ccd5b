//! The tokens, as whoever carries MCP traffic sees them.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::error::{Cause, Label};
use crate::model::{
    client::ClientId,
    clock::UnixTime,
    scope::Scope,
    secret::Secret,
    trace::Trace,
    upstream::Upstream,
    user::{User, UserRef},
};

/// Hands out tokens. One trait for the exchange in this process and the one that is called. Whoever may call it may have
/// every user's token.
#[async_trait]
pub trait UpstreamTokens: Send + Sync {
    /// The owner's access token, valid now: refreshed where it is over, and in the background where it soon is.
    ///
    /// # Errors
    /// Where there is none, or none can be had now.
    async fn upstream_token(&self, owner: TokenOwner, trace: &Trace) -> Result<AccessToken, TokenError>;

    /// The same; where there is none, the one that comes within `longest`, of which [`LONGEST_WAIT`] counts at most. It
    /// may come by a process that shares the store, and is seen within a second. Whoever drops the wait ends it.
    ///
    /// # Errors
    /// [`TokenError::NotFound`] where none came, [`TokenError::Unavailable`] as soon as it cannot be known.
    async fn awaited_token(
        &self,
        owner: TokenOwner,
        longest: Duration,
        trace: &Trace,
    ) -> Result<AccessToken, TokenError>;

    /// Notes that requests of this owner may come again with members of ours in their bodies, for [`COMES_AGAIN`] from
    /// now: each token that is handed out says so until then.
    ///
    /// # Errors
    /// [`TokenError::NotFound`] where this owner has nothing, and had nothing that ended by itself: only who was connected
    /// is asked so. [`TokenError::Unavailable`] where it was not noted, as far as is known.
    async fn expect_again(&self, owner: TokenOwner, trace: &Trace) -> Result<(), TokenError>;

    /// Says that the upstream refused a token: one refresh for all who say so of one token, and at most one a minute for
    /// an owner, doubling to ten. Where a scope was missing, the token stays, and what the upstream asked for joins what
    /// this owner's next authorization asks for: in at most three rounds in ten minutes, and in one for what was granted
    /// already.
    ///
    /// # Errors
    /// [`TokenError::NotFound`] where no token can come of it, [`TokenError::Unavailable`] where none can be had now.
    async fn refused(&self, owner: TokenOwner, refused: Refused, trace: &Trace) -> Result<Renewal, TokenError>;

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

/// A [`TokenOwner`] that is borrowed: most requests find their token by it, and need none of their own.
#[derive(Clone, Copy, Debug)]
pub struct OwnerRef<'a> {
    pub user: UserRef<'a>,
    pub client_id: &'a ClientId,
    pub upstream: &'a Upstream,
}

impl OwnerRef<'_> {
    pub fn to_owner(self) -> TokenOwner {
        let Self { user, client_id, upstream } = self;
        TokenOwner { user: user.to_user(), client_id: client_id.clone(), upstream: upstream.clone() }
    }
}

impl<'a> From<&'a TokenOwner> for OwnerRef<'a> {
    fn from(owner: &'a TokenOwner) -> Self {
        let TokenOwner { user, client_id, upstream } = owner;
        Self { user: user.into(), client_id, upstream }
    }
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

/// A token that the upstream refused, and what it said: a stranger's words.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Refused {
    pub tag: TokenTag,
    pub status: RefusedStatus,
    /// The challenge's `scope`, as it was sent.
    pub scope: Option<String>,
    /// The challenge's `resource_metadata` (RFC 9728, section 5.1), as it was sent. The exchange does not follow it: a
    /// look-up reads what the upstream says to whoever comes without a token.
    pub resource_metadata: Option<String>,
    /// What the operator says to ask for, which is all that is ever asked for; none where the route does not say. The
    /// one thing here that is not the upstream's.
    pub route_scope: Option<Scope>,
}

impl Refused {
    /// A refusal with a challenge that says nothing else.
    pub fn unauthorized(tag: TokenTag) -> Self {
        Self { tag, status: RefusedStatus::Unauthorized, scope: None, resource_metadata: None, route_scope: None }
    }
}

/// How an upstream refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefusedStatus {
    /// 401: the token is not valid.
    Unauthorized,
    /// 403 with `insufficient_scope` (RFC 6750, section 3.1): it is valid, and not enough.
    InsufficientScope,
}

/// What a report of a refused token came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// There is a newer token than the one that was refused.
    Renewed,
    /// The last one was refused too, a short while ago, and no other was asked for.
    TooSoon,
    /// A scope was missing, and will be asked for when the person connects again.
    Connect,
    /// A scope was missing, and connecting again would not bring it: the route's scope does not have it, it was asked
    /// for too often, or the upstream did not say what it wants.
    NoMore,
}

/// A token with no more than this left is not handed out any more, in seconds: it would end on its way.
pub const TOO_LATE: u64 = 5;

/// The longest that a token is waited for.
pub const LONGEST_WAIT: Duration = Duration::from_secs(20);

/// How much longer the answer may take to get to who waited, the hand-out included.
pub const AFTER_WAIT: Duration = Duration::from_secs(4);

/// For how long a request may come again, in seconds: a little longer than what it comes with is good for.
pub const COMES_AGAIN: u64 = 660;

/// An access token.
#[derive(Debug)]
pub struct AccessToken {
    pub secret: Secret,
    pub tag: TokenTag,
    /// None where the authorization server did not say.
    pub expires_at: Option<UnixTime>,
    /// Until when its owner's requests may come again with members of ours in their bodies; none where none is expected.
    pub again: Option<UnixTime>,
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

/// What was last found in the place of a token that is waited for; nothing where nobody could say yet.
#[derive(Debug, Default)]
pub struct LastSeen(Mutex<Option<Missing>>);

impl LastSeen {
    pub fn set(&self, missing: Missing) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(missing);
    }

    /// What becomes of a wait that is over. `unknown` is why nobody could say.
    pub fn error(&self, unknown: &'static str) -> TokenError {
        match *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(missing) => TokenError::NotFound(missing),
            None => TokenError::Unavailable(unknown.into()),
        }
    }
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
