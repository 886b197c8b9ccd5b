//! Files that are read again when they change.

use std::{path::PathBuf, sync::Arc, time::Duration};

use sha2::{Digest, Sha256};
use tokio::time::{MissedTickBehavior, interval};

use crate::metrics::Metrics;

/// How often a file is looked at. Comparing its content needs no help of the file system's, and sees the swap of a
/// symbolic link by which Kubernetes updates a mounted ConfigMap.
const PERIOD: Duration = Duration::from_secs(1);

/// A file to watch; `name` is what metrics and log lines call it.
#[derive(Debug)]
pub struct Watched {
    pub name: &'static str,
    pub path: PathBuf,
    /// The hash of what was read at start; the content may be secret, and is not kept.
    pub seen: [u8; 32],
}

pub fn fingerprint(content: &str) -> [u8; 32] {
    Sha256::digest(content).into()
}

/// Calls `apply` with each new content, for ever. Where `apply` or the reading fails, the last good value stays in
/// use, which is counted and logged once a change.
pub async fn watch(
    file: Watched,
    metrics: Arc<Metrics>,
    mut apply: impl FnMut(&str) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let Watched { name, path, seen } = file;
    let mut seen = Ok(seen);
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let read = tokio::fs::read_to_string(&path).await.map_err(|error| error.to_string());
        let now = read.as_deref().map(fingerprint).map_err(String::clone);
        if now == seen {
            continue;
        }
        seen = now;
        let outcome = match read {
            Ok(content) => apply(&content),
            Err(error) => Err(anyhow::anyhow!(error)),
        };
        metrics.reloaded(name, outcome.is_ok());
        let path = path.display();
        match outcome {
            Ok(()) => tracing::info!(file = name, %path, "read again"),
            Err(error) => tracing::warn!(file = name, %path, "not taken, the last good one stays: {error:#}"),
        }
    }
}
