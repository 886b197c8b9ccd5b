//! Files that are read again when they change.

use std::{
    collections::HashMap,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use sha2::{Digest, Sha256};
use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::{Interval, MissedTickBehavior, interval, sleep, timeout},
};
use zeroize::Zeroizing;

use super::metrics::Metrics;

/// How often a file is looked at. Comparing its content needs no help of the file system's, and sees the swap of a
/// symbolic link by which Kubernetes updates a mounted ConfigMap.
const PERIOD: Duration = Duration::from_secs(1);
/// A change is looked at once more after this long: a file that is written in place is empty, or half there, for a moment,
/// and half a list of routes is a list of routes.
const SETTLED: Duration = Duration::from_millis(100);

/// How long reading may take: a share that hangs answers never.
const LONGEST: Duration = Duration::from_secs(5);
/// How many readings may hang at once; each has a thread of its own.
const HUNG: usize = 4;

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
    let mut state = State::new(paths, seen);
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
            let state = states.entry(path.clone()).or_insert_with(|| State::new(vec![path.clone()], seen));
            state
                .look(name, &metrics, &mut |contents| apply(&path, contents.first().copied().unwrap_or_default()))
                .await;
        }
        // The good one that was read last says nothing of a bad one that was read before it, nor a bad one that is none of
        // them any more.
        metrics.all_good(name, states.values().all(|state| state.is_good));
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
    /// Whether it was taken.
    is_good: bool,
    readings: Readings,
}

impl State {
    fn new(paths: Vec<PathBuf>, seen: [u8; 32]) -> Self {
        Self { paths, seen: Ok(seen), is_good: true, readings: Readings::default() }
    }

    /// Has what the files have by now applied, where that is not what was seen last.
    async fn look(
        &mut self,
        name: &'static str,
        metrics: &Metrics,
        apply: &mut impl FnMut(&[&str]) -> anyhow::Result<()>,
    ) {
        let Self { paths, seen, is_good, readings } = self;
        let found = readings.read(paths).await;
        let now = state_of(&found);
        if now == *seen {
            return;
        }
        sleep(SETTLED).await;
        // One that hangs is not changed while it is looked at.
        let is_settled = readings.are_hung() || state_of(&readings.read(paths).await) == now;
        if !is_settled {
            // It is still being written; the next look sees what it came to.
            return;
        }
        *seen = now;
        let outcome = match found {
            Ok(contents) => apply(&contents.iter().map(|content| content.as_str()).collect::<Vec<_>>()),
            Err(error) => Err(anyhow::anyhow!(error)),
        };
        *is_good = outcome.is_ok();
        metrics.reloaded(name, *is_good);
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

/// Readings of one value's files, each on a thread that may block, so that nothing waits for a share that hangs.
#[derive(Default)]
struct Readings {
    /// Those that did not end in time.
    hung: Vec<JoinHandle<Found>>,
}

impl Readings {
    async fn read(&mut self, paths: &[PathBuf]) -> Found {
        let paths = paths.to_owned();
        self.within(LONGEST, move || read(&paths)).await
    }

    async fn within(&mut self, longest: Duration, read: impl FnOnce() -> Found + Send + 'static) -> Found {
        self.hung.retain(|reading| !reading.is_finished());
        let hangs = || Err("reading does not end: is it on a share that hangs?".to_owned());
        if self.hung.len() >= HUNG {
            return hangs();
        }
        let mut reading = spawn_blocking(read);
        match timeout(longest, &mut reading).await {
            Ok(found) => found.unwrap_or_else(|_| Err("reading ended early".to_owned())),
            Err(_) => {
                self.hung.push(reading);
                hangs()
            }
        }
    }

    fn are_hung(&self) -> bool {
        self.hung.iter().any(|reading| !reading.is_finished())
    }
}

fn read(paths: &[PathBuf]) -> Found {
    let named = |path: &Path, error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    paths
        .iter()
        .map(|path| {
            // A pipe would be waited for until somebody writes to it.
            let is_file = std::fs::metadata(path).map_err(|error| named(path, &error))?.is_file();
            if !is_file {
                return Err(named(path, &"is not a regular file"));
            }
            let mut content = Zeroizing::new(String::new());
            let mut file = File::open(path).map_err(|error| named(path, &error))?;
            file.read_to_string(&mut content).map_err(|error| named(path, &error))?;
            Ok(content)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    };

    use tokio::time::timeout;

    use super::*;

    /// A reading that hangs is given up, and only so many do; when it ends, files are read again.
    #[tokio::test]
    async fn what_hangs_is_given_up() {
        let mut readings = Readings::default();
        let found = |text: &str| Ok(vec![Zeroizing::new(text.to_owned())]);
        let mut ends = Vec::new();
        for hung in 1..=HUNG {
            let (end, ended) = std::sync::mpsc::channel::<()>();
            ends.push(end);
            let hangs = move || {
                let _ = ended.recv();
                Ok(Vec::new())
            };
            let given_up = readings.within(Duration::from_millis(1), hangs).await;
            assert!(given_up.is_err_and(|error| error.contains("does not end")));
            assert_eq!(readings.hung.len(), hung);
        }
        assert!(readings.within(LONGEST * 10, move || found("x")).await.is_err() && readings.are_hung());
        ends.clear();
        for reading in readings.hung.drain(..) {
            reading.await.expect("it ends").expect("nothing");
        }
        assert_eq!(readings.within(LONGEST * 10, move || found("x")).await, found("x"));
        assert!(!readings.are_hung());
    }

    /// A pipe in the place of a file is said, and not waited for; and then the file that comes in its place is taken.
    #[tokio::test]
    async fn a_pipe_is_not_waited_for() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("file");
        let made = std::process::Command::new("mkfifo").arg(&path).status().expect("mkfifo");
        assert!(made.success());
        let metrics = Metrics::default();
        let mut state = State::new(vec![path.clone()], fingerprint(&["old"]));
        let taken = Mutex::new(Vec::new());
        let mut apply = |contents: &[&str]| {
            taken.lock().expect("taken").push(contents.concat());
            Ok(())
        };
        state.look("config", &metrics, &mut apply).await;
        let is = |value| metrics.text().contains(&format!("envoy_cimd_reload_ok{{file=\"config\"}} {value}\n"));
        assert!(is(0), "{}", metrics.text());
        assert!(state.seen.as_ref().is_err_and(|error| error.contains("is not a regular file")), "{:?}", state.seen);
        std::fs::remove_file(&path).expect("removed");
        std::fs::write(&path, "new").expect("written");
        state.look("config", &metrics, &mut apply).await;
        assert!(is(1), "{}", metrics.text());
        assert_eq!(*taken.lock().expect("taken"), ["new"]);
    }

    /// A bad file counts for as long as it is one of those that are watched.
    #[tokio::test(start_paused = true)]
    async fn a_bad_file_that_nobody_names_any_more_is_forgotten() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("file");
        std::fs::write(&path, "bad").expect("written");
        let (metrics, named) = (Arc::new(Metrics::default()), AtomicBool::new(true));
        let files = || Vec::from_iter(named.load(Relaxed).then(|| (path.clone(), fingerprint(&["good"]))));
        let watching = watch_each("client_secrets", Arc::clone(&metrics), files, |_, _| anyhow::bail!("it is bad"));
        let is = |value| metrics.text().contains(&format!("envoy_cimd_reload_ok{{file=\"client_secrets\"}} {value}\n"));
        let seen = async {
            while !is(0) {
                sleep(PERIOD).await;
            }
            named.store(false, Relaxed);
            while !is(1) {
                sleep(PERIOD).await;
            }
        };
        tokio::select! {
            ended = watching => panic!("{ended:?}"),
            () = seen => {}
        }
    }

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
