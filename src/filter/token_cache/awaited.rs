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
mod tests;
