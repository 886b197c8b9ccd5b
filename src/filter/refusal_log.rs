//! The log of refusals: a line for the first of a kind, then at most one a second, so that a flood of them cannot fill
//! it.

use std::{
    sync::{Mutex, PoisonError},
    time::Instant,
};

use super::refusal::Refusal;
use crate::telemetry::throttle::Throttle;

/// The kinds of refusals that were logged, each under its label.
#[derive(Debug, Default)]
pub struct RefusalLog {
    kinds: Mutex<Vec<(&'static str, Throttle)>>,
}

impl RefusalLog {
    /// Logs a refusal, or counts it where a line of its kind is younger than a second. `route` is the operator's
    /// name for the route, or the request's authority where no route was found.
    pub fn note(&self, refusal: &Refusal, route: &str, request_id: Option<&str>) {
        let Some(unlogged) = self.due(refusal.code(), Instant::now()) else {
            return;
        };
        let label = refusal.code();
        let request_id = request_id.unwrap_or_default();
        let reason = refusal.reason().unwrap_or_default();
        if refusal.status() >= 500 {
            tracing::warn!(label, route, request_id, reason, unlogged, "refused");
        } else {
            tracing::info!(label, route, request_id, reason, unlogged, "refused");
        }
    }

    /// The same for a stream that was refused before anything of its request was known.
    pub fn note_stream(&self) {
        let label = "too_many_streams";
        if let Some(unlogged) = self.due(label, Instant::now()) {
            tracing::warn!(label, unlogged, "refused");
        }
    }

    /// Whether a line may be written now; if so, how many refusals of the kind came since the last without one.
    fn due(&self, label: &'static str, now: Instant) -> Option<u64> {
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        // There are few, so a look at each costs less than a hash.
        if let Some((_, throttle)) = kinds.iter_mut().find(|(kind, _)| *kind == label) {
            return throttle.due(now);
        }
        let mut throttle = Throttle::default();
        let due = throttle.due(now);
        kinds.push((label, throttle));
        due
    }

    /// Writes the sums that no later refusal has carried out; called every second, and once at the end.
    pub fn flush(&self) {
        for (label, unlogged) in self.take_sums(Instant::now()) {
            tracing::info!(label, unlogged, "refused");
        }
    }

    fn take_sums(&self, now: Instant) -> Vec<(&'static str, u64)> {
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        kinds.iter_mut().filter_map(|(label, throttle)| Some((*label, throttle.take_sum(now)?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_flood_is_one_line_a_second_a_label() {
        let log = RefusalLog::default();
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        assert_eq!(log.due("not_found", at(0)), Some(0), "the first is logged at once");
        for millis in 1..1000 {
            assert_eq!(log.due("not_found", at(millis)), None);
        }
        assert_eq!(log.due("https_required", at(500)), Some(0), "another label has its own line");
        assert_eq!(log.take_sums(at(999)), []);
        assert_eq!(log.due("not_found", at(1000)), Some(999), "none is lost");
        assert_eq!(log.due("not_found", at(1001)), None);
        assert_eq!(log.take_sums(at(2000)), [("not_found", 1)], "nor the last ones");
        assert_eq!(log.take_sums(at(3000)), []);
    }
}
