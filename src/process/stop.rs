//! The end of a process: signals, the drain, and what is waited for.

use std::time::Duration;

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::tasks::Tasks;

/// How long the last parts may take to go once they are told.
const LAST: Duration = Duration::from_secs(2);

/// How long the parts of an orderly end may take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config {
    /// How long to go on answering while Envoy's health check takes notice.
    pub drain_delay: Duration,
    /// After that, how long open streams may take to finish.
    pub drain_timeout: Duration,
}

/// SIGTERM and SIGINT.
pub struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    /// From now on they do not end the process by themselves.
    ///
    /// # Errors
    /// Where the system does not deliver them.
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// What runs until a signal comes.
pub struct Running {
    /// What serves requests, until it is `drained`.
    pub serving: Tasks,
    pub drained: CancellationToken,
    /// What runs beside it to the very end.
    pub tasks: Tasks,
    /// What must be finished before the process ends.
    pub calls: Vec<TaskTracker>,
}

impl Running {
    /// Waits for a signal, calls `stopping`, and ends in order. `streams` says how many are open.
    ///
    /// # Errors
    /// Where a part ends before it should.
    pub async fn until_stopped(
        mut self,
        mut stop: StopSignals,
        config: Config,
        stopping: impl AsyncFnOnce(),
        streams: impl Fn() -> i64,
    ) -> anyhow::Result<()> {
        let signal = tokio::select! {
            signal = stop.next() => signal,
            error = self.tasks.ended() => return Err(error),
            error = self.serving.ended() => return Err(error),
        };
        stopping().await;
        tracing::info!(signal, "stopping");
        // A second signal ends the wait, not the streams.
        tokio::select! {
            () = sleep(config.drain_delay) => {}
            _ = stop.next() => {}
        }
        self.drained.cancel();
        let cut_off = tokio::select! {
            finished = timeout(config.drain_timeout, finish(&mut self.serving, &self.calls)) => match finished {
                Ok(result) => {
                    result?;
                    None
                }
                Err(_) => Some("streams or calls were still open at the drain timeout"),
            },
            _ = stop.next() => Some("stopped by a second signal"),
        };
        if let Some(why) = cut_off {
            let (streams, calls) = (streams(), self.calls.iter().map(TaskTracker::len).sum::<usize>());
            tracing::warn!(streams, calls, "{why}");
        }
        // With the listeners go the files of their sockets.
        let stopped = timeout(LAST, async {
            self.serving.stop().await;
            self.tasks.stop().await;
        });
        if stopped.await.is_err() {
            tracing::warn!("a part of the process does not stop, and is left behind");
        }
        tracing::info!("stopped");
        Ok(())
    }
}

/// Waits for the streams, and for the exchanges whose browser has gone.
async fn finish(serving: &mut Tasks, calls: &[TaskTracker]) -> anyhow::Result<()> {
    serving.finish().await?;
    // In their order: those of the first may begin some of the next.
    for calls in calls {
        calls.close();
        calls.wait().await;
    }
    Ok(())
}
