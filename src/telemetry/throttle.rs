//! At most a line a second: whoever can cause lines in floods shall not fill the log.

use std::time::{Duration, Instant};

/// Between two lines.
const QUIET: Duration = Duration::from_secs(1);

/// One kind of line.
#[derive(Debug, Default)]
pub struct Throttle {
    last_line: Option<Instant>,
    /// What had no line since.
    unlogged: u64,
}

impl Throttle {
    /// Whether a line may be written now; if so, how many came since the last without one. Else this one is counted.
    pub fn due(&mut self, now: Instant) -> Option<u64> {
        if self.is_quiet(now) {
            self.unlogged += 1;
            return None;
        }
        self.last_line = Some(now);
        Some(std::mem::take(&mut self.unlogged))
    }

    /// The sum that no later line has carried out, where there is one and a line may be written now.
    pub fn take_sum(&mut self, now: Instant) -> Option<u64> {
        if self.unlogged == 0 || self.is_quiet(now) {
            return None;
        }
        self.due(now)
    }

    /// Whether nothing is left of it: the next would be as the first.
    pub fn is_spent(&self, now: Instant) -> bool {
        self.unlogged == 0 && !self.is_quiet(now)
    }

    fn is_quiet(&self, now: Instant) -> bool {
        self.last_line.is_some_and(|last| now.duration_since(last) < QUIET)
    }
}
