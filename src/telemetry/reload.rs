//! Files that are read again when they change.

use std::{path::PathBuf, sync::Arc, time::Duration};

use sha2::{Digest, Sha256};
use tokio::time::{MissedTickBehavior, interval};
use zeroize::Zeroizing;

use super::metrics::Metrics;

/// How often a file is looked at. Comparing its content needs no help of the file system's, and sees the swap of a
/// symbolic link by which Kubernetes updates a mounted ConfigMap.
const PERIOD: Duration = Duration::from_secs(1);

/// Files to watch that make one value; `name` is what metrics and log lines call them.
#[derive(Debug)]
pub struct Watched {
    pub name: &'static str,
    pub paths: Vec<PathBuf>,
    /// The hash of what was read at start; the content may be secret, and is not kept.
    pub seen: [u8; 32],
}

/// What tells one state of the files from another: a hash of their contents, in order.
pub fn fingerprint(contents: &[&str]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for content in contents {
        // With its length, so that what moves from one file to the next is a change.
        hash.update(content.len().to_le_bytes());
        hash.update(content);
    }
    hash.finalize().into()
}

/// Calls `apply` with the new contents after each change, for ever. Where `apply` or the reading fails, the last good
/// value stays in use, which is counted and logged once a change.
pub async fn watch(
    files: Watched,
    metrics: Arc<Metrics>,
    mut apply: impl FnMut(&[&str]) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let Watched { name, paths, seen } = files;
    let mut seen = Ok(seen);
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let read = read(&paths).await;
        let read: Result<Vec<&str>, _> = match &read {
            Ok(contents) => Ok(contents.iter().map(|content| content.as_str()).collect()),
            Err(error) => Err(error),
        };
        let now = match &read {
            Ok(contents) => Ok(fingerprint(contents)),
            Err(error) => Err((*error).clone()),
        };
        if now == seen {
            continue;
        }
        seen = now;
        let outcome = match read {
            Ok(contents) => apply(&contents),
            Err(error) => Err(anyhow::anyhow!(error.clone())),
        };
        metrics.reloaded(name, outcome.is_ok());
        match outcome {
            Ok(()) => tracing::info!(file = name, ?paths, "read again"),
            Err(error) => tracing::warn!(file = name, ?paths, "not taken, the last good one stays: {error:#}"),
        }
    }
}

async fn read(paths: &[PathBuf]) -> Result<Vec<Zeroizing<String>>, String> {
    let mut contents = Vec::with_capacity(paths.len());
    for path in paths {
        let content = tokio::fs::read_to_string(path).await;
        contents.push(Zeroizing::new(content.map_err(|error| format!("{}: {error}", path.display()))?));
    }
    Ok(contents)
}
