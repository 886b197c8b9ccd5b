//! The lines on their way to stderr. A thread of its own writes them, so that nobody who logs waits for who reads the
//! log, also where nobody does.

use std::{
    io::{self, Write},
    sync::{Condvar, LazyLock, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use prometheus_client::metrics::counter::Counter;
use tokio::{sync::Notify, time::timeout};
use tracing_subscriber::fmt::MakeWriter;

/// What the log says of itself has this target, and no filter silences it.
pub const TARGET: &str = "envoy_cimd::log";
/// How many bytes of lines that may be lost can wait. What does not fit is dropped and counted.
const LOSSY: usize = 4 << 20;
/// With so many bytes of the others waiting, nothing is to begin that would add to them.
const KEPT: usize = 1 << 20;
/// Where nothing was taken for this long, nobody reads.
const STUCK: Duration = Duration::from_secs(2);
/// How long a line is waited for until it is written: what it is about may then be answered all the same.
const PATIENCE: Duration = Duration::from_secs(1);
/// The most that a pipe takes whole or not at all (PIPE_BUF): others may write to it too.
const CHUNK: usize = 4096;
/// Between two attempts where stderr takes nothing: its reader is gone, or the disk is full.
const RETRY: Duration = Duration::from_millis(50);
/// A buffer that a flood made larger is not kept.
const SPARE: usize = 64 << 10;

/// The lines of this process.
pub static STDERR: Lines = Lines::new();
/// How many were dropped.
pub static DROPPED: LazyLock<Counter> = LazyLock::new(Counter::default);

/// Whether a line may be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It may, where there is no room.
    Lossy,
    /// It waits for as long as it takes. Who adds to these asks first whether they can be written.
    Kept,
}

/// Lines that wait to be written, in their order.
#[derive(Debug)]
pub struct Lines {
    state: Mutex<State>,
    /// For the thread that writes.
    news: Condvar,
    /// For a thread, and for tasks, that wait until something is written.
    progress: Condvar,
    told: Notify,
}

#[derive(Debug)]
struct State {
    waiting: Vec<u8>,
    /// How many of these bytes may be lost.
    lossy: usize,
    /// How many must not be, those in the writer's hands too.
    kept: usize,
    /// How many bytes there ever were, and how many of them are written.
    pushed: u64,
    written: u64,
    /// How many lines were dropped since the log last said so.
    dropped: u64,
    /// Since when the writer has had something in its hands without getting rid of any.
    trying_since: Option<Instant>,
    /// The writer waits for news.
    resting: bool,
}

impl Lines {
    const fn new() -> Self {
        let state = State {
            waiting: Vec::new(),
            lossy: 0,
            kept: 0,
            pushed: 0,
            written: 0,
            dropped: 0,
            trying_since: None,
            resting: false,
        };
        Self { state: Mutex::new(state), news: Condvar::new(), progress: Condvar::new(), told: Notify::const_new() }
    }

    /// Starts the thread that writes.
    ///
    /// # Errors
    /// Where the system gives none.
    pub fn write_to(&'static self, mut out: impl Write + Send + 'static) -> io::Result<()> {
        let write = move || {
            let mut batch = Vec::new();
            loop {
                self.write_batch(&mut batch, &mut out);
            }
        };
        thread::Builder::new().name("log".to_owned()).spawn(write).map(drop)
    }

    /// Whether lines that must not be lost cannot be written at the moment.
    pub fn are_stuck(&self) -> bool {
        let state = self.state();
        state.kept > KEPT || state.trying_since.is_some_and(|since| since.elapsed() > STUCK)
    }

    /// Waits until all that was logged so far is written, though not where nobody reads.
    pub async fn written(&self) {
        let pushed = self.state().pushed;
        let written = async {
            loop {
                let told = self.told.notified();
                if self.state().written >= pushed {
                    return;
                }
                told.await;
            }
        };
        if !self.are_stuck() {
            let _ = timeout(PATIENCE, written).await;
        }
    }

    /// Waits until nothing is left to be written, for so long at most.
    pub fn finish(&self, patience: Duration) {
        let is_left = |state: &mut State| state.written < state.pushed || state.dropped > 0;
        drop(self.progress.wait_timeout_while(self.state(), patience, is_left));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, kind: Kind, line: &[u8]) {
        let mut state = self.state();
        match kind {
            Kind::Kept => state.kept += line.len(),
            Kind::Lossy if state.lossy + line.len() > LOSSY => {
                state.dropped += 1;
                DROPPED.inc();
                return;
            }
            Kind::Lossy => state.lossy += line.len(),
        }
        state.waiting.extend_from_slice(line);
        state.pushed += line.len() as u64;
        if std::mem::take(&mut state.resting) {
            self.news.notify_one();
        }
    }

    /// Writes all that waits, however long it takes, and says what had no room meanwhile.
    fn write_batch(&self, batch: &mut Vec<u8>, out: &mut impl Write) {
        batch.clear();
        if batch.capacity() > SPARE {
            *batch = Vec::new();
        }
        let kept = {
            let mut state = self.state();
            while state.waiting.is_empty() {
                state.resting = true;
                state = self.news.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            std::mem::swap(&mut state.waiting, batch);
            state.lossy = 0;
            state.trying_since = Some(Instant::now());
            state.kept
        };
        let mut rest = batch.as_slice();
        while !rest.is_empty() {
            match out.write(whole_lines(rest)) {
                Ok(0) | Err(_) => thread::sleep(RETRY),
                Ok(taken) => {
                    rest = rest.get(taken..).unwrap_or_default();
                    let mut state = self.state();
                    state.written += taken as u64;
                    state.trying_since = Some(Instant::now());
                    drop(state);
                    self.tell();
                }
            }
        }
        let mut state = self.state();
        state.trying_since = None;
        state.kept -= kept;
        let dropped = state.dropped;
        drop(state);
        if dropped > 0 {
            tracing::warn!(target: TARGET, lines = dropped, "lines of the log were dropped: nobody read it in time");
            self.state().dropped -= dropped;
            self.tell();
        }
    }

    fn tell(&self) {
        self.progress.notify_all();
        self.told.notify_waiters();
    }
}

/// As many of the lines as a pipe takes whole, or one that is longer.
fn whole_lines(lines: &[u8]) -> &[u8] {
    let Some(first) = lines.get(..CHUNK) else { return lines };
    let is_end = |byte: &u8| *byte == b'\n';
    let end = first.iter().rposition(is_end).or_else(|| lines.iter().position(is_end));
    end.and_then(|end| lines.get(..=end)).unwrap_or(lines)
}

/// Takes each line, whole, for those that wait.
#[derive(Clone, Copy, Debug)]
pub struct LineWriter {
    pub lines: &'static Lines,
    pub kind: Kind,
}

impl Write for LineWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.lines.push(self.kind, line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for LineWriter {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        *self
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    use super::*;

    /// A reader that takes a chunk when it is told to, and then fails as often as it was told.
    struct Reader {
        takes: Receiver<io::Result<usize>>,
        taken: SyncSender<Vec<u8>>,
    }

    impl Write for Reader {
        fn write(&mut self, chunk: &[u8]) -> io::Result<usize> {
            // Whoever told it has gone: the test is over.
            let count = self.takes.recv().unwrap_or(Ok(usize::MAX))?.min(chunk.len());
            let _ = self.taken.send(chunk[..count].to_vec());
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn lines() -> (&'static Lines, SyncSender<io::Result<usize>>, Receiver<Vec<u8>>) {
        let lines = Box::leak(Box::new(Lines::new()));
        let (takes, told) = sync_channel(100);
        let (taken, read) = sync_channel(100_000);
        lines.write_to(Reader { takes: told, taken }).expect("a thread");
        (lines, takes, read)
    }

    #[test]
    fn what_is_kept_outlives_a_flood_and_a_reader_that_fails() {
        let (lines, takes, read) = lines();
        let ordinary = [b'x'; 1000];
        for number in 0..10_000 {
            lines.push(Kind::Lossy, &ordinary);
            if number % 1000 == 0 {
                lines.push(Kind::Kept, format!("kept {number}\n").as_bytes());
            }
        }
        let state = || {
            let state = lines.state();
            (state.waiting.len(), state.dropped, state.kept, state.written, state.pushed)
        };
        let (waiting, dropped, ..) = state();
        assert!(waiting <= LOSSY + 1000 && dropped > 1000, "{waiting} {dropped}");
        lines.finish(Duration::ZERO);
        assert_eq!(state().3, 0, "who ends does not wait for ever");
        for answer in [Err(io::ErrorKind::BrokenPipe.into()), Err(io::ErrorKind::WouldBlock.into()), Ok(0), Ok(1)] {
            takes.send(answer).expect("told");
        }
        drop(takes);
        lines.finish(Duration::from_secs(60));
        let all = String::from_utf8(read.try_iter().flatten().collect()).expect("text");
        let length = all.len() as u64;
        assert_eq!(state(), (0, 0, 0, length, length));
        let kept = (0..10_000).step_by(1000).map(|number| all.find(&format!("kept {number}\n")).expect("it is kept"));
        let kept: Vec<usize> = kept.collect();
        assert!(kept.is_sorted(), "{kept:?}");
    }

    #[test]
    fn a_pipe_gets_whole_lines() {
        for (lines, count) in [
            (["a\n".repeat(10), String::new()].concat(), 20),
            ("a\n".repeat(4000), CHUNK),
            (["x".repeat(4000), "\n".to_owned(), "y".repeat(4000), "\n".to_owned()].concat(), 4001),
            (["x".repeat(5000), "\n".to_owned(), "y".repeat(4000), "\n".to_owned()].concat(), 5001),
            ("x".repeat(5000), 5000),
        ] {
            assert_eq!(whole_lines(lines.as_bytes()).len(), count);
        }
    }

    #[test]
    fn too_many_that_must_be_written_are_as_bad_as_no_reader() {
        let (lines, takes, _read) = lines();
        let line = [b'x'; 1024];
        for _ in 0..KEPT / line.len() {
            lines.push(Kind::Kept, &line);
        }
        assert!(!lines.are_stuck());
        lines.push(Kind::Kept, b"\n");
        assert!(lines.are_stuck());
        drop(takes);
        lines.finish(Duration::from_secs(60));
        while lines.state().kept > 0 {
            thread::yield_now();
        }
        assert!(!lines.are_stuck());
    }
}
