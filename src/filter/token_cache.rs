//! The tokens that MCP traffic has just used, so that not every request takes a call.
//!
//! A look-up is made once for all who want the same token, and what it brings is kept for a short while. What is being
//! replaced or ended is forgotten before and after, with the look-ups that are under way: these began too early to know.

use std::{
    fmt,
    ops::Deref,
    panic::AssertUnwindSafe,
    sync::{Arc, MutexGuard, atomic::Ordering::Relaxed},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{FutureExt, future::ready};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

mod awaited;
mod known;

use super::bearer::Bearer;
use crate::{
    contract::tokens::{
        AccessToken, OwnerRef, Refused, RefusedStatus, Renewal, TokenError, TokenOwner, UpstreamTokens,
    },
    model::{
        shares::{ShareLimits, Shares, UsedUp},
        trace::Trace,
    },
};
use awaited::{Awaited, Wait};
use known::{Begun, Known, LookUp, Place, UnderWay};

/// How long a look-up may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// Tokens, of which those that were just handed out are kept.
pub struct Cached {
    inner: Arc<dyn UpstreamTokens>,
    known: Arc<Known>,
    /// The look-ups under way: a user's, so that one who has many clients leaves something for the others, and an
    /// upstream's, so that a slow authorization server holds up nobody but who needs it. Who waits for the look-up of
    /// another request takes nothing.
    shares: Shares,
    awaited: Awaited,
    calls: TaskTracker,
}

impl Cached {
    /// Keeps each token for `longest` at most, and `most` of them. `limits` is for the look-ups; `calls` are where these
    /// go, which shutdown waits for.
    pub fn new(
        inner: Arc<dyn UpstreamTokens>,
        longest: Duration,
        most: u64,
        limits: ShareLimits,
        calls: TaskTracker,
    ) -> Self {
        let (known, shares) = (Arc::new(Known::new(longest, most)), Shares::new(limits));
        Self { awaited: Awaited::new(Arc::clone(&inner)), inner, known, shares, calls }
    }

    /// The owner's token, if it is here. One that is no longer young is looked up again behind the caller's back; where
    /// that fails, it stays to its end.
    pub fn cached<'a>(&self, owner: impl Into<OwnerRef<'a>>) -> Option<Arc<Bearer>> {
        let owner = owner.into();
        let now = (self.known.now)();
        let kept = self.known.fresh(owner, now)?;
        if kept.renew_at <= now && !kept.is_renewing.swap(true, Relaxed) {
            // No request waits for this call, so it is in no request's trace.
            let begun = self.begin(self.known.lock(), &owner.to_owner(), &Trace::default());
            kept.is_renewing.store(begun.is_ok(), Relaxed);
        }
        Some(Arc::clone(&kept.bearer))
    }

    /// The look-up of the owner's token that is under way, or one that begins now.
    ///
    /// # Errors
    /// Where one would have to begin, and as many are under way as may be: whose part is in use.
    pub fn look_up(&self, owner: &TokenOwner, trace: &Trace) -> Result<LookUp, UsedUp> {
        let under_way = self.known.lock();
        // One that ended since the caller saw that there is no token.
        if let Some(kept) = self.known.fresh(owner.into(), (self.known.now)()) {
            return Ok(ready(Ok(Arc::clone(&kept.bearer))).boxed().shared());
        }
        self.begin(under_way, owner, trace)
    }

    fn begin(
        &self,
        mut under_way: MutexGuard<'_, UnderWay>,
        owner: &TokenOwner,
        trace: &Trace,
    ) -> Result<LookUp, UsedUp> {
        let place = Place(owner.clone());
        if let Some(begun) = under_way.by_place.get(&place).filter(|begun| begun.owner == *owner) {
            return Ok(begun.look_up.clone());
        }
        let share = self.shares.take(Some(&owner.user), &owner.upstream.url)?;
        under_way.begun += 1;
        let (number, at) = (under_way.begun, (self.known.now)());
        let (inner, known, of, trace) =
            (Arc::clone(&self.inner), Arc::clone(&self.known), owner.clone(), trace.clone());
        // A task of its own: others may wait for it when the one who began it leaves, and a bug in it ends it alone.
        let task = self.calls.spawn(async move {
            let _share = share;
            let call = AssertUnwindSafe(inner.upstream_token(of.clone(), &trace)).catch_unwind();
            let result = match timeout(DEADLINE, call).await {
                Ok(Ok(result)) => result.and_then(Bearer::new).map(Arc::new),
                Ok(Err(_)) => Err(unavailable("the look-up ended without an answer: a fault of envoy-cimd itself")),
                Err(_) => Err(unavailable("the look-up of the token took too long")),
            };
            known.end(of, number, &result);
            result
        });
        let look_up =
            async move { task.await.unwrap_or_else(|_| Err(unavailable("the look-up was ended: this process stops"))) }
                .boxed()
                .shared();
        let begun = Begun { number, at, owner: owner.clone(), look_up: look_up.clone(), keeps: true };
        under_way.by_place.insert(place, begun);
        Ok(look_up)
    }

    /// Waits for the owner's token to come, for as long as a request may be held. What it brings is not kept.
    pub fn awaited(&self, owner: &TokenOwner, trace: &Trace) -> Wait {
        self.awaited.wait(owner, trace)
    }

    /// Forgets what is kept of an owner, now and again when the change that is being made is over, however it ends.
    pub fn changing(self: &Arc<Self>, owner: TokenOwner) -> Changing<Arc<Self>> {
        Changing::of(Arc::clone(self), owner)
    }

    /// Lets go of what is over; to be called again and again.
    pub fn tidy(&self) {
        self.known.tidy();
    }
}

impl fmt::Debug for Cached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cached").field("kept", &self.known.count()).finish_non_exhaustive()
    }
}

/// A change of an owner's token that is under way.
pub struct Changing<C: Deref<Target = Cached>> {
    cached: C,
    owner: TokenOwner,
}

impl<C: Deref<Target = Cached>> Changing<C> {
    fn of(cached: C, owner: TokenOwner) -> Self {
        cached.known.forget(&owner);
        Self { cached, owner }
    }
}

impl<C: Deref<Target = Cached>> Drop for Changing<C> {
    fn drop(&mut self) {
        self.cached.known.forget(&self.owner);
    }
}

/// For other processes: what they change is forgotten here, and what they are given is what there is now. They keep it
/// themselves, and two such times, one after the other, would be longer than any of them promises.
#[async_trait]
impl UpstreamTokens for Cached {
    async fn upstream_token(&self, owner: TokenOwner, trace: &Trace) -> Result<AccessToken, TokenError> {
        self.inner.upstream_token(owner, trace).await
    }

    async fn awaited_token(
        &self,
        owner: TokenOwner,
        longest: Duration,
        trace: &Trace,
    ) -> Result<AccessToken, TokenError> {
        self.inner.awaited_token(owner, longest, trace).await
    }

    async fn expect_again(&self, owner: TokenOwner, trace: &Trace) -> Result<(), TokenError> {
        // What is kept does not say so.
        let _marking = Changing::of(self, owner.clone());
        self.inner.expect_again(owner, trace).await
    }

    async fn refused(&self, owner: TokenOwner, refused: Refused, trace: &Trace) -> Result<Renewal, TokenError> {
        // One that is not enough for one request is for others.
        let bad = (refused.status == RefusedStatus::Unauthorized).then_some(refused.tag);
        let forget = || bad.into_iter().for_each(|tag| self.known.drop_refused(&owner, tag));
        forget();
        let result = self.inner.refused(owner.clone(), refused, trace).await;
        // A look-up that began before the refresh was over may have brought it back.
        forget();
        result
    }

    async fn disconnect(&self, owner: TokenOwner, trace: &Trace) -> Result<(), TokenError> {
        let _ending = Changing::of(self, owner.clone());
        self.inner.disconnect(owner, trace).await
    }
}

fn unavailable(cause: &'static str) -> TokenError {
    TokenError::Unavailable(cause.into())
}

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;
