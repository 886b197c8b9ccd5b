//! Tokens that are not there yet, and are waited for.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    contract::tokens::{LONGEST_WAIT, LastSeen, TokenError, TokenOwner, UpstreamTokens},
    filter::bearer::Bearer,
    model::{joined::Joined, trace::Trace},
};

/// How long one call waits for a token to come: less than who waits does, so that it is known by then what there is.
const CALL: Duration = Duration::from_secs(10);
/// After a call that did not wait, the next is not made for this long.
const PAUSE: Duration = Duration::from_secs(1);

/// A wait for a token to come. Whoever drops it waits no longer.
pub type Wait = BoxFuture<'static, Result<Arc<Bearer>, TokenError>>;

/// The waits under way: one for all who wait for the same token.
pub(super) struct Awaited {
    inner: Arc<dyn UpstreamTokens>,
    under_way: Joined<TokenOwner, LastSeen, Result<Arc<Bearer>, TokenError>>,
}

impl Awaited {
    pub fn new(inner: Arc<dyn UpstreamTokens>) -> Self {
        Self { inner, under_way: Joined::default() }
    }

    /// Waits for the owner's token to come, for [`LONGEST_WAIT`] at most: one call for all who wait for it, which ends when
    /// the last of them leaves. It takes no share of the look-ups: whoever waits holds a request, and as many wait as may be
    /// held. What it brings is not kept.
    pub fn wait(&self, owner: &TokenOwner, trace: &Trace) -> Wait {
        let (last, wait) = self.under_way.join(owner, |last| {
            let (inner, owner, trace) = (Arc::clone(&self.inner), owner.clone(), trace.clone());
            async move {
                loop {
                    let began = Instant::now();
                    let call = AssertUnwindSafe(inner.awaited_token(owner.clone(), CALL, &trace)).catch_unwind();
                    match call.await {
                        Ok(Err(TokenError::NotFound(missing))) => last.set(missing),
                        Ok(result) => return result.and_then(Bearer::new).map(Arc::new),
                        Err(_) => {
                            let cause = "the wait ended early: a fault of envoy-cimd itself";
                            return Err(TokenError::Unavailable(cause.into()));
                        }
                    }
                    // A service of an earlier version does not wait.
                    if began.elapsed() < CALL / 2 {
                        sleep(PAUSE).await;
                    }
                }
            }
        });
        let result = async move {
            let late = || last.error("it did not show in time whether a token came");
            timeout(LONGEST_WAIT, wait).await.unwrap_or_else(|_| Err(late()))
        };
        result.boxed()
    }

    /// How many tokens are waited for.
    #[cfg(test)]
    pub fn count(&self) -> usize {
        self.under_way.count()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;
    use crate::{
        filter::token_cache::fake::{DOWN, FIVE, LOST, MANY, cached, close, is, owner, settle, text, token},
        model::{client::ClientId, shares::ShareLimits},
    };

    #[tokio::test]
    async fn those_who_wait_for_a_token_share_one_wait() {
        let (cached, fake) = cached(FIVE, MANY);
        close(&fake);
        let all: Vec<_> = (0..200).map(|_| tokio::spawn(cached.awaited(&owner(), &Trace::default()))).collect();
        settle().await;
        assert_eq!((fake.calls(), fake.waiting.load(Relaxed)), (1, 1));
        fake.gate.add_permits(1);
        for wait in all {
            assert_eq!(wait.await.expect("no panic").map(|bearer| text(&bearer)), is("token-1"));
        }
        assert_eq!((fake.calls(), fake.waiting.load(Relaxed), cached.awaited.count()), (1, 0, 0));
        assert!(cached.cached(&owner()).is_none(), "it may have been long on its way");
    }

    #[tokio::test]
    async fn a_wait_ends_with_the_last_who_leaves() {
        let (cached, fake) = cached(FIVE, MANY);
        close(&fake);
        let [first, second] = [(); 2].map(|()| tokio::spawn(cached.awaited(&owner(), &Trace::default())));
        settle().await;
        first.abort();
        settle().await;
        assert_eq!(fake.waiting.load(Relaxed), 1);
        second.abort();
        settle().await;
        assert_eq!((fake.calls(), fake.waiting.load(Relaxed), cached.awaited.count()), (1, 0, 0));
    }

    /// However many hold a request, others get their tokens.
    #[tokio::test]
    async fn waits_take_nothing_from_look_ups() {
        let (cached, fake) = cached(FIVE, ShareLimits { in_all: 1, of_user: 1, of_server: 1 });
        close(&fake);
        let of = |route: usize| TokenOwner { client_id: ClientId::new(route.to_string()), ..owner() };
        let waits: Vec<_> = (0..100).map(|route| tokio::spawn(cached.awaited(&of(route), &Trace::default()))).collect();
        settle().await;
        assert_eq!(fake.waiting.load(Relaxed), 100, "each has one of its own");
        let look_up = cached.look_up(&of(100), &Trace::default()).expect("a share");
        fake.gate.add_permits(101);
        assert!(look_up.await.is_ok());
        for wait in waits {
            assert!(wait.await.expect("no panic").is_ok());
        }
    }

    /// Each has a time of its own, though one began before.
    #[tokio::test(start_paused = true)]
    async fn a_wait_that_brings_nothing_ends() {
        let (cached, fake) = cached(FIVE, MANY);
        close(&fake);
        let begin = Instant::now();
        let first = tokio::spawn(cached.awaited(&owner(), &Trace::default()));
        sleep(Duration::from_secs(13)).await;
        let second = tokio::spawn(cached.awaited(&owner(), &Trace::default()));
        assert_eq!(first.await.expect("no panic").err(), Some(LOST));
        assert_eq!(begin.elapsed().as_secs(), 20);
        assert_eq!(fake.waiting.load(Relaxed), 1, "it goes on for the other");
        assert_eq!(second.await.expect("no panic").err(), Some(LOST));
        assert_eq!(begin.elapsed().as_secs(), 33);
        settle().await;
        assert_eq!((fake.calls(), fake.waiting.load(Relaxed), cached.awaited.count()), (4, 0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_that_does_not_wait_is_asked_once_a_second() {
        let (cached, fake) = cached(FIVE, MANY);
        fake.answers(|call| if call < 8 { Err(LOST) } else { Ok(token(call)) });
        let begin = Instant::now();
        assert_eq!(cached.awaited(&owner(), &Trace::default()).await.map(|bearer| text(&bearer)), is("token-8"));
        assert_eq!(begin.elapsed().as_secs(), 7);
        fake.answers(|_| Err(LOST));
        assert_eq!(cached.awaited(&owner(), &Trace::default()).await.err(), Some(LOST));
        assert!(fake.calls() <= 29, "{}", fake.calls());
    }

    #[tokio::test]
    async fn a_wait_fails_at_once_where_nobody_can_say() {
        let (cached, fake) = cached(FIVE, MANY);
        fake.answers(|_| Err(DOWN));
        assert_eq!(cached.awaited(&owner(), &Trace::default()).await.err(), Some(DOWN));
        fake.answers(|_| panic!("a bug"));
        let [first, second] = [(); 2].map(|()| cached.awaited(&owner(), &Trace::default()));
        assert!(matches!(first.await, Err(TokenError::Unavailable(_))));
        assert!(matches!(second.await, Err(TokenError::Unavailable(_))));
        assert_eq!(cached.awaited.count(), 0);
    }
}
