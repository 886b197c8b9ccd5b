//! What each backend must hold to.

use async_trait::async_trait;

use super::{
    error::StoreError,
    keys::{Context, FlowKey, RegistrationsKey, RouteKey, TokenKey, UserKey},
};
use crate::model::clock::UnixTime;

/// Keeps flows and tokens. Everything that is secret comes sealed: a store never sees a token, a code verifier or a
/// person's name in the clear.
///
/// `now` is by the caller's clock; a flow is gone from the second on in which it expires.
#[async_trait]
pub trait Store: Send + Sync {
    /// Keeps a fresh flow until it expires. Where its user has as many as `limits` allow, the oldest goes: the
    /// first to expire and, of those that expire in the same second, the first that came.
    ///
    /// # Errors
    /// [`StoreError::Full`] where there are as many flows in all as may be, and none of this user's goes for it.
    /// [`StoreError::Failed`], too, where there is a flow of this id: one that was used must not come back.
    async fn add_flow(&self, flow: Flow, limits: FlowLimits, now: UnixTime) -> Result<(), StoreError>;

    /// Takes a flow, once: the context is compared and the flow marked as used in one atomic step. Of several callers
    /// with the right context, exactly one gets [`Taken::Flow`].
    async fn take_flow(&self, id: FlowKey, context: Context, now: UnixTime) -> Result<Taken, StoreError>;

    /// Stores a token under its key, over whatever was there, and points the route's index at it. A token under another
    /// key that the index pointed at before is forgotten, and given back: of two who connect at once, none is left behind.
    async fn put_token(&self, key: TokenKey, route: RouteKey, sealed: Vec<u8>) -> Result<Option<Kept>, StoreError>;

    /// The token that a route's index points at.
    async fn token(&self, route: RouteKey) -> Result<Option<Found>, StoreError>;

    /// Notes until when requests of a route may come again, where its index points at a token, or at what is left of one:
    /// so there is no more of these notes than of tokens. Each is forgotten when its time is over, whatever becomes of the
    /// token. False where the index points at nothing.
    async fn expect_again(&self, route: RouteKey, until: UnixTime, now: UnixTime) -> Result<bool, StoreError>;

    /// Stores a token in the place of `old`, as it was read. False where that is not there any more: somebody forgot
    /// it meanwhile, or connected anew.
    async fn replace_token(&self, key: TokenKey, old: Vec<u8>, sealed: Vec<u8>) -> Result<bool, StoreError>;

    /// Claims the right to refresh a token, for at most `seconds`. False where another has it: of all processes that
    /// share the store, one at a time refreshes, and one that dies is waited for no longer than that.
    async fn claim(&self, key: TokenKey, holder: Holder, seconds: u64) -> Result<bool, StoreError>;

    /// Gives a claim up, where this holder still has it.
    async fn release(&self, key: TokenKey, holder: Holder) -> Result<(), StoreError>;

    /// The record that tells the store's keys, which is `offered` from now on where there was none, or where `instead_of`
    /// was there.
    async fn check_record(&self, offered: Vec<u8>, instead_of: Option<Vec<u8>>) -> Result<Vec<u8>, StoreError>;

    /// Forgets a token, as it was read, and the route's index where it points at that token. False where `old` is not there
    /// any more: somebody forgot or changed it meanwhile.
    async fn remove_token(&self, key: TokenKey, route: RouteKey, old: Vec<u8>) -> Result<bool, StoreError>;

    /// The clients that were registered for a route.
    async fn registrations(&self, key: RegistrationsKey) -> Result<Option<Vec<u8>>, StoreError>;

    /// Stores a route's registrations in the place of `old`, as they were read; of nothing, where there were none. False
    /// where that is not what is there any more.
    async fn replace_registrations(
        &self,
        key: RegistrationsKey,
        old: Option<Vec<u8>>,
        sealed: Vec<u8>,
    ) -> Result<bool, StoreError>;
}

/// A token as it was found: its key, and what is sealed.
pub type Kept = (TokenKey, Vec<u8>);

/// A token that a route's index points at.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    pub kept: Kept,
    /// Until when requests of the route may come again, where it was noted; it may be over.
    pub again: Option<UnixTime>,
}

/// The random name of one attempt to refresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder(pub [u8; 16]);

/// A flow as it is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Flow {
    pub id: FlowKey,
    pub context: Context,
    pub user: UserKey,
    /// Nothing of the flow is left after it.
    pub expires_at: UnixTime,
    /// What it takes to complete the flow, the context among it: what is not sealed, whoever writes the store can change.
    /// Gone once it is taken.
    pub sealed: Vec<u8>,
    /// What is left once it is taken: where the person goes.
    pub tombstone: Vec<u8>,
}

/// How many flows may be kept: all that have not expired, those too of which only the tombstone is left. What one user
/// can make the store keep is thus bounded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FlowLimits {
    /// Of this flow's user, at least one.
    pub of_user: usize,
    pub in_all: usize,
}

/// What came of an attempt to take a flow.
#[derive(Clone, Debug, PartialEq)]
pub enum Taken {
    /// It was taken now: what was sealed.
    Flow(Vec<u8>),
    /// The context is another's; nothing was taken. Says nothing about whether it was used.
    WrongContext,
    /// It was taken before, in the same context: its tombstone.
    Used(Vec<u8>),
    /// There is none, or it expired.
    Unknown,
}
