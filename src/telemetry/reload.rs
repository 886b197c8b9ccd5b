//! Files that are read again when they change.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use sha2::{Digest, Sha256};
use tokio::time::{Interval, MissedTickBehavior, interval, sleep};
use zeroize::Zeroizing;

use super::metrics::Metrics;

/// How often a file is looked at. Comparing its content needs no help of the file system's, and sees the swap of a
/// symbolic link by which Kubernetes updates a mounted ConfigMap.
const PERIOD: Duration = Duration::from_secs(1);
/// A change is looked at once more after this long: a file that is written in place is empty, or half there, for a moment,
/// and half a list of routes is a list of routes.
const SETTLED: Duration = Duration::from_millis(100);

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
    let mut state = State { paths, seen: Ok(seen) };
    let mut ticks = ticks();
    loop {
        ticks.tick().await;
        state.look(name, &metrics, &mut apply).await;
    }
}

/// The same of files that each make a value of their own, and of which there are others from time to time: `files` says
/// which they are, each with the hash of what was read of it when it came. One that is bad keeps no other from being taken.
pub async fn watch_each(
    name: &'static str,
    metrics: Arc<Metrics>,
    files: impl Fn() -> Vec<(PathBuf, [u8; 32])>,
    mut apply: impl FnMut(&Path, &str) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut states: HashMap<PathBuf, State> = HashMap::new();
    let mut ticks = ticks();
    loop {
        ticks.tick().await;
        let files: HashMap<_, _> = files().into_iter().collect();
        states.retain(|path, _| files.contains_key(path));
        for (path, seen) in files {
            let state =
                states.entry(path.clone()).or_insert_with(|| State { paths: vec![path.clone()], seen: Ok(seen) });
            state
                .look(name, &metrics, &mut |contents| apply(&path, contents.first().copied().unwrap_or_default()))
                .await;
        }
    }
}

fn ticks() -> Interval {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// What was seen last of the files of one value.
struct State {
    paths: Vec<PathBuf>,
    seen: Result<[u8; 32], String>,
}

impl State {
    /// Has what the files have by now applied, where that is not what was seen last.
    async fn look(
        &mut self,
        name: &'static str,
        metrics: &Metrics,
        apply: &mut impl FnMut(&[&str]) -> anyhow::Result<()>,
    ) {
        let Self { paths, seen } = self;
        let found = read(paths).await;
        let now = state_of(&found);
        if now == *seen {
            return;
        }
        sleep(SETTLED).await;
        if state_of(&read(paths).await) != now {
            // It is still being written; the next look sees what it came to.
            return;
        }
        *seen = now;
        let outcome = match found {
            Ok(contents) => apply(&contents.iter().map(|content| content.as_str()).collect::<Vec<_>>()),
            Err(error) => Err(anyhow::anyhow!(error)),
        };
        metrics.reloaded(name, outcome.is_ok());
        match outcome {
            Ok(()) => tracing::info!(file = name, ?paths, "read again"),
            Err(error) => tracing::warn!(file = name, ?paths, "not taken, the last good one stays: {error:#}"),
        }
    }
}

type Found = Result<Vec<Zeroizing<String>>, String>;

/// What tells one outcome of reading from another: an error counts by its words.
fn state_of(found: &Found) -> Result<[u8; 32], String> {
    let contents = found.as_ref().map_err(Clone::clone)?;
    Ok(fingerprint(&contents.iter().map(|content| content.as_str()).collect::<Vec<_>>()))
}

async fn read(paths: &[PathBuf]) -> Found {
    let mut contents = Vec::with_capacity(paths.len());
    for path in paths {
        let content = tokio::fs::read_to_string(path).await;
        contents.push(Zeroizing::new(content.map_err(|error| format!("{}: {error}", path.display()))?));
    }
    Ok(contents)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::time::timeout;

    use super::*;

    /// What is half written is never taken, nor what is not there for a moment.
    #[tokio::test(start_paused = true)]
    async fn a_file_that_is_being_written_is_left_alone() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("file");
        std::fs::write(&path, "old").expect("written");
        let taken: Arc<Mutex<Vec<String>>> = Arc::default();
        let writer = async {
            sleep(PERIOD / 2).await;
            std::fs::write(&path, "ha").expect("written");
            // Between the two looks.
            sleep(PERIOD / 2 + SETTLED / 2).await;
            std::fs::write(&path, "half and half").expect("written");
            sleep(PERIOD - SETTLED).await;
            std::fs::remove_file(&path).expect("removed");
            sleep(SETTLED).await;
            std::fs::write(&path, "whole").expect("written");
            std::future::pending::<()>().await;
        };
        let watched = Watched { name: "file", paths: vec![path.clone()], seen: fingerprint(&["old"]) };
        let taking = watch(watched, Arc::default(), |contents| {
            taken.lock().expect("taken").push(contents.concat());
            Ok(())
        });
        let both = async { tokio::join!(writer, taking) };
        assert!(timeout(PERIOD * 6, both).await.is_err(), "neither ends");
        assert_eq!(*taken.lock().expect("taken"), ["whole"]);
    }
}
