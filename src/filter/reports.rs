//! Reports of tokens that an upstream refused, each made once for all who have the same to say: hundreds may be refused
//! with one token, and one refresh helps them all.

use std::{
    collections::HashMap,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use crate::{
    contract::tokens::{Refused, Renewal, TokenError, TokenOwner, UpstreamTokens},
    model::{
        shares::{ShareLimits, Shares, UsedUp},
        trace::Trace,
    },
};

/// How long a report may take. What it asked for goes on.
const DEADLINE: Duration = Duration::from_secs(10);

/// A report that is under way, or what it came to.
pub type Report = Shared<BoxFuture<'static, Result<Renewal, TokenError>>>;

/// Reports, of which those under way are known.
pub struct Reports {
    tokens: Arc<dyn UpstreamTokens>,
    under_way: Arc<UnderWay>,
    /// As for look-ups. Who waits for the report of another request takes nothing.
    shares: Shares,
    calls: TaskTracker,
}

#[derive(Default)]
struct UnderWay(Mutex<HashMap<(TokenOwner, Refused), Report>>);

impl UnderWay {
    fn lock(&self) -> MutexGuard<'_, HashMap<(TokenOwner, Refused), Report>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reports {
    /// `limits` is for the calls; `calls` are where these go, which shutdown waits for.
    pub fn new(tokens: Arc<dyn UpstreamTokens>, limits: ShareLimits, calls: TaskTracker) -> Self {
        Self { tokens, under_way: Arc::default(), shares: Shares::new(limits), calls }
    }

    /// The same report that is under way, or one that begins now. It goes on when those who wait for it leave.
    ///
    /// # Errors
    /// Where one would have to begin, and as many are under way as may be: whose part is in use.
    pub fn make(&self, owner: TokenOwner, refused: Refused, trace: Trace) -> Result<Report, UsedUp> {
        let mut under_way = self.under_way.lock();
        let key = (owner, refused);
        if let Some(report) = under_way.get(&key) {
            return Ok(report.clone());
        }
        let (owner, refused) = &key;
        let share = self.shares.take(Some(&owner.user), &owner.upstream.url)?;
        let (tokens, all, of) = (Arc::clone(&self.tokens), Arc::clone(&self.under_way), key.clone());
        let (owner, refused) = (owner.clone(), refused.clone());
        // A task of its own: others may wait for it when the one who began it leaves, and a bug in it ends it alone.
        let task = self.calls.spawn(async move {
            let _share = share;
            let call = AssertUnwindSafe(tokens.refused(owner, refused, &trace)).catch_unwind();
            let result = match timeout(DEADLINE, call).await {
                Ok(Ok(result)) => result,
                Ok(Err(_)) => Err(unavailable("the report ended without an answer: a fault of envoy-cimd itself")),
                Err(_) => Err(unavailable("the report of the refused token took too long")),
            };
            all.lock().remove(&of);
            result
        });
        let report =
            async move { task.await.unwrap_or_else(|_| Err(unavailable("the report was ended: this process stops"))) }
                .boxed()
                .shared();
        under_way.insert(key, report.clone());
        Ok(report)
    }
}

fn unavailable(cause: &'static str) -> TokenError {
    TokenError::Unavailable(cause.into())
}
