//! What the process cannot do its work without, tried from its start on, so that nobody has to press a button to learn
//! that it is not there.

use std::{sync::Arc, time::Duration};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;

use crate::{
    contract::calling::answers,
    exchange::embedded::Embedded,
    net::callee::{CHOREOGRAPHER, TOKENS},
    process::{readiness::Readiness, tasks::Tasks},
    telemetry::metrics::{Metrics, Reached},
};

/// Between two tries.
const PERIOD: Duration = Duration::from_secs(10);
/// How long one may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// Where it is said what came of a try.
#[derive(Clone)]
pub struct Trying {
    pub readiness: Arc<Readiness>,
    pub metrics: Arc<Metrics>,
}

impl Trying {
    /// `needs_exchange` is whether nobody should send traffic while a part cannot be reached.
    pub fn new(needs_exchange: bool, metrics: &Arc<Metrics>) -> Self {
        Self { readiness: Arc::new(Readiness::new(needs_exchange)), metrics: Arc::clone(metrics) }
    }

    /// The store of the exchange in this process. A file store that is not there yet is not made.
    pub fn store(&self, embedded: &Embedded, tasks: &mut Tasks) {
        let embedded = embedded.clone();
        let attempt = move || {
            let embedded = embedded.clone();
            async move { embedded.try_store().await }
        };
        self.keep_trying(Reached::Store, tasks, one_at_a_time(attempt));
    }

    /// Another process.
    pub fn process(&self, part: Reached, channel: Channel, tasks: &mut Tasks) {
        let name = if part == Reached::Tokens { TOKENS.name } else { CHOREOGRAPHER.name };
        self.keep_trying(part, tasks, move || answers(name, channel.clone()));
    }

    fn keep_trying<F>(&self, part: Reached, tasks: &mut Tasks, mut attempt: impl FnMut() -> F + Send + 'static)
    where
        F: Future<Output = Result<(), String>> + Send,
    {
        let Self { readiness, metrics } = self.clone();
        // Until the first try is over nothing is known, and nothing is promised.
        metrics.reached(part, false);
        readiness.untried(part.label());
        tasks.spawn("the tries of what the process needs", async move {
            let mut before = None;
            loop {
                let outcome = timeout(DEADLINE, attempt()).await;
                let outcome = outcome.unwrap_or_else(|_| Err(format!("no answer within {} s", DEADLINE.as_secs())));
                metrics.reached(part, outcome.is_ok());
                let is_news = before.as_ref() != Some(&outcome.is_ok());
                match &outcome {
                    Ok(()) if is_news => tracing::info!(part = part.label(), "can be reached"),
                    Err(reason) if is_news => tracing::warn!(part = part.label(), reason, "cannot be reached"),
                    Ok(()) | Err(_) => {}
                }
                before = Some(outcome.is_ok());
                readiness.note(part.label(), outcome.err());
                sleep(PERIOD).await;
            }
        });
    }
}

/// What did not come to an end in time is waited for again, and no other begins meanwhile: where a disk hangs, each try of
/// a file store has a thread that hangs with it.
fn one_at_a_time<T, F>(begin: impl Fn() -> F) -> impl FnMut() -> Shared<BoxFuture<'static, T>>
where
    T: Clone + Send + Sync + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let mut last: Option<Shared<BoxFuture<'static, T>>> = None;
    move || {
        let under_way = last.take().filter(|last| last.peek().is_none());
        last.insert(under_way.unwrap_or_else(|| begin().boxed().shared())).clone()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn no_try_begins_while_another_hangs() {
        let (begun, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
        let mut attempt = one_at_a_time(|| {
            let (number, gate) = (begun.fetch_add(1, Relaxed) + 1, Arc::clone(&gate));
            async move {
                gate.acquire().await.expect("open").forget();
                number
            }
        });
        for _ in 0..3 {
            assert_eq!(attempt().now_or_never(), None, "it hangs");
        }
        assert_eq!(begun.load(Relaxed), 1);
        gate.add_permits(2);
        assert_eq!(attempt().await, 1, "what hung comes to its end");
        assert_eq!(attempt().await, 2);
    }
}
