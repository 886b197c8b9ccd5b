//! What the process cannot do its work without, tried from its start on, so that nobody has to press a button to learn
//! that it is not there.

use std::{sync::Arc, time::Duration};

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
        self.keep_trying(Reached::Store, tasks, move || {
            let embedded = embedded.clone();
            async move { embedded.try_store().await }
        });
    }

    /// Another process.
    pub fn process(&self, part: Reached, channel: Channel, tasks: &mut Tasks) {
        let name = if part == Reached::Tokens { TOKENS.name } else { CHOREOGRAPHER.name };
        self.keep_trying(part, tasks, move || answers(name, channel.clone()));
    }

    fn keep_trying<F>(&self, part: Reached, tasks: &mut Tasks, attempt: impl Fn() -> F + Send + 'static)
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
