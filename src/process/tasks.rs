//! What runs until the process ends.

use anyhow::{Context, anyhow};
use tokio::task::JoinSet;

/// Tasks that are all to run until the process ends: whichever ends first takes it down, with a reason.
#[derive(Default)]
pub struct Tasks(JoinSet<(&'static str, anyhow::Result<()>)>);

impl Tasks {
    /// Adds a task; `name` is what errors call it.
    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
        self.0.spawn(async move { (name, task.await) });
    }

    /// Why one of them ended.
    pub async fn ended(&mut self) -> anyhow::Error {
        match self.0.join_next().await {
            Some(Ok((name, Ok(())))) => anyhow!("{name} ended"),
            Some(Ok((name, Err(error)))) => error.context(format!("{name} failed")),
            Some(Err(error)) => anyhow!("a part of the process failed: {error}"),
            None => std::future::pending().await,
        }
    }

    /// Ends all that still run, and waits until they are gone.
    pub async fn stop(mut self) {
        self.0.shutdown().await;
    }

    /// Waits until all have ended.
    ///
    /// # Errors
    /// Where one of them ended badly.
    pub async fn finish(&mut self) -> anyhow::Result<()> {
        while let Some(ended) = self.0.join_next().await {
            let (name, result) = ended?;
            result.with_context(|| format!("{name} failed"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    /// Whatever ends one of them, the others do not go on looking healthy.
    #[tokio::test]
    async fn a_task_that_ends_says_so() {
        let said = async |task: std::pin::Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>| {
            let mut tasks = Tasks::default();
            tasks.spawn("the other", std::future::pending());
            tasks.spawn("the one", task);
            format!("{:#}", tasks.ended().await)
        };
        assert_eq!(said(Box::pin(async { Ok(()) })).await, "the one ended");
        assert_eq!(said(Box::pin(async { bail!("it is over") })).await, "the one failed: it is over");
        let panicked = said(Box::pin(async { panic!("a bug") })).await;
        assert!(panicked.starts_with("a part of the process failed: ") && panicked.contains("a bug"), "{panicked}");
    }
}
