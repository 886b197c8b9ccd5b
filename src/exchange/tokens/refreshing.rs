//! The refreshes under way in this process: many may wait for each.

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use moka::future::Cache;
use tokio_util::task::TaskTracker;

use super::errors::ENDED_EARLY;
use crate::{
    contract::tokens::{TokenError, TokenTag},
    store::keys::TokenKey,
};

/// How many refreshes may be remembered, and for how long what one came to stands.
const REFRESHES: u64 = 10_000;
const STANDS: Duration = Duration::from_secs(1);

/// What a refresh comes to.
pub type Outcome = Shared<BoxFuture<'static, Result<(), TokenError>>>;

/// The refreshes under way, by the token that is refreshed.
#[derive(Clone)]
pub struct Refreshes(Cache<(TokenKey, Option<TokenTag>), Refreshing>);

/// A refresh under way, or what one came to.
#[derive(Clone)]
struct Refreshing {
    outcome: Outcome,
    ended: Arc<OnceLock<Instant>>,
}

impl Refreshes {
    /// `longest` is what a refresh may take: one that a bug ended without a word does not stay for ever.
    pub fn new(longest: Duration) -> Self {
        Self(Cache::builder().max_capacity(REFRESHES).time_to_live(longest * 2).build())
    }

    /// The refresh of a token that is under way, or was over a moment ago; else this one, as a task that goes on when
    /// those who wait for it leave.
    pub async fn one_of(
        &self,
        key: TokenKey,
        tag: Option<TokenTag>,
        calls: &TaskTracker,
        refresh: impl Future<Output = Result<(), TokenError>> + Send + 'static,
    ) -> Outcome {
        let begin = async {
            let ended = Arc::new(OnceLock::new());
            let ends = Arc::clone(&ended);
            let task = calls.spawn(async move {
                let result = refresh.await;
                // It is set once.
                let _ = ends.set(Instant::now());
                result
            });
            let outcome = task.map(|result| result.unwrap_or(Err(ENDED_EARLY))).boxed().shared();
            Refreshing { outcome, ended }
        };
        self.0.entry((key, tag)).or_insert_with_if(begin, Refreshing::is_past).await.into_value().outcome
    }
}

impl Refreshing {
    fn is_past(&self) -> bool {
        self.ended.get().is_some_and(|ended| ended.elapsed() > STANDS)
    }
}
