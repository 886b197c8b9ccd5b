//! Refreshes that failed lately, so that the next is not tried at once.

use std::time::{Duration, Instant};

use moka::future::Cache;

use crate::{contract::tokens::TokenError, exchange::oauth::Verdict, store::keys::TokenKey};

/// After a refresh that failed, the next is not tried for this long, doubling up to the second.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// The longest that a server's `retry-after` is heeded.
const LONGEST_ASKED_FOR: Duration = Duration::from_secs(600);
/// How often a server must have refused, and over which time, without a word that ends the grant, until it is taken for
/// over.
const REFUSALS: u32 = 3;
const DEAD_AFTER: Duration = Duration::from_secs(120);
/// How many failures are remembered, and for how long.
const FAILURES: u64 = 10_000;
const REMEMBERED: Duration = Duration::from_secs(3600);

/// The refreshes of this process that failed lately.
#[derive(Clone)]
pub struct Setbacks {
    dead_after: Duration,
    by_token: Cache<TokenKey, Setback>,
}

/// A refresh that failed.
#[derive(Clone)]
struct Setback {
    /// When the next may be tried.
    until: Instant,
    pause: Duration,
    /// When the first of the refusals in a row was, and how many there were.
    refused: Option<(Instant, u32)>,
    /// What was heard.
    reason: String,
}

impl Setbacks {
    pub fn new() -> Self {
        let by_token = Cache::builder().max_capacity(FAILURES).time_to_live(REMEMBERED).build();
        Self { dead_after: DEAD_AFTER, by_token }
    }

    /// # Errors
    /// Where the next refresh of a token is not due yet.
    pub async fn check(&self, key: &TokenKey) -> Result<(), TokenError> {
        match self.by_token.get(key).await.filter(|setback| Instant::now() < setback.until) {
            None => Ok(()),
            Some(setback) => {
                let cause = format!("the last refresh failed, and the next is not due yet: {}", setback.reason);
                Err(TokenError::Unavailable(cause.into()))
            }
        }
    }

    /// Notes that a refresh brought nothing, so that the next is not tried at once. True where the grant is over: the
    /// server says so, or has refused for minutes whatever it calls that.
    pub async fn note(&self, key: TokenKey, verdict: Verdict, reason: &str) -> bool {
        let now = Instant::now();
        let last = self.by_token.get(&key).await;
        let pause = last.as_ref().map_or(SHORTEST_PAUSE, |last| (last.pause * 2).min(LONGEST_PAUSE));
        let asked_for = match verdict {
            Verdict::Ended => return true,
            Verdict::Refused => Duration::ZERO,
            Verdict::Unknown(asked_for) => asked_for.unwrap_or_default().min(LONGEST_ASKED_FOR),
        };
        // What says nothing of the grant does not count for it, nor against it.
        let refused = last.and_then(|last| last.refused);
        let refused = match (verdict, refused) {
            (Verdict::Refused, None) => Some((now, 1)),
            (Verdict::Refused, Some((first, count))) => Some((first, count + 1)),
            (_, refused) => refused,
        };
        let over = matches!(refused, Some((first, count)) if count >= REFUSALS && first.elapsed() >= self.dead_after);
        let setback = Setback { until: now + pause.max(asked_for), pause, refused, reason: reason.to_owned() };
        self.by_token.insert(key, setback).await;
        over && verdict == Verdict::Refused
    }

    /// What came of the next one is not told by those before it.
    pub async fn forget(&self, key: &TokenKey) {
        self.by_token.invalidate(key).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::secret::random;

    #[tokio::test]
    async fn a_server_is_left_alone_for_as_long_as_it_asks() {
        let setbacks = Setbacks::new();
        let pauses = async |verdicts: &[Verdict]| {
            let key = TokenKey::from_bytes(random().expect("randomness"));
            let mut pauses = Vec::new();
            for verdict in verdicts {
                assert!(!setbacks.note(key, *verdict, "").await, "nothing ends");
                let until = setbacks.by_token.get(&key).await.expect("a setback").until;
                pauses.push(until.duration_since(Instant::now()).as_secs_f64().ceil() as u64);
            }
            pauses
        };
        let asks = |seconds| Verdict::Unknown(Some(Duration::from_secs(seconds)));
        assert_eq!(pauses(&[Verdict::Unknown(None); 8]).await, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(pauses(&[asks(30), asks(0), asks(1_000_000)]).await, [30, 2, 600]);
        assert_eq!(pauses(&[Verdict::Refused; 3]).await, [1, 2, 4], "three, but not over minutes");
    }

    #[tokio::test]
    async fn a_grant_is_over_after_definite_refusals_alone() {
        use Verdict::{Ended, Refused, Unknown};
        let setbacks = Setbacks { dead_after: Duration::ZERO, ..Setbacks::new() };
        for (verdicts, over) in [
            (&[Ended][..], true),
            (&[Refused; 2], false),
            (&[Refused; 3], true),
            (&[Refused, Unknown(None), Refused, Refused], true),
            (&[Refused, Refused, Unknown(None)], false),
            (&[Unknown(None); 20], false),
        ] {
            let key = TokenKey::from_bytes(random().expect("randomness"));
            let mut last = false;
            for verdict in verdicts {
                last = setbacks.note(key, *verdict, "").await;
            }
            assert_eq!(last, over, "{verdicts:?}");
        }
    }
}
