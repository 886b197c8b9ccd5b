//! The log of refusals: a line for the first of a kind, then at most one a second, so that a flood of them cannot fill
//! it.

use std::{
    sync::{Mutex, PoisonError},
    time::Instant,
};

use super::{outcome::Outcome, refusal::Refusal};
use crate::telemetry::{metrics::RefusedStream, throttle::Throttle};

/// How many misconfigured routes have lines of their own in a second. A request may name any host, so there is an end.
const ROUTES: usize = 32;

/// The kinds of refusals that were logged, each under its label; misconfigured routes each under its name besides, since
/// each has a reason of its own.
#[derive(Debug, Default)]
pub struct RefusalLog {
    kinds: Mutex<Vec<(&'static str, Throttle)>>,
    routes: Mutex<Vec<(String, Throttle)>>,
}

impl RefusalLog {
    /// Logs a refusal, or counts it where a line of its kind is younger than a second. `route` is the operator's
    /// name for the route, or the request's authority where no route was found.
    pub fn note(&self, refusal: &Refusal, route: &str, request_id: Option<&str>) {
        let now = Instant::now();
        let due = match refusal {
            Refusal::MisconfiguredRoute(_) => self.due_of_route(route, now),
            _ => None,
        };
        let Some(unlogged) = due.unwrap_or_else(|| self.due(refusal.code(), now)) else {
            return;
        };
        let label = refusal.code();
        let request_id = request_id.unwrap_or_default();
        let reason = refusal.reason();
        if refusal.status() >= 500 {
            tracing::warn!(label, route, request_id, %reason, unlogged, "refused");
        } else {
            tracing::info!(label, route, request_id, %reason, unlogged, "refused");
        }
    }

    /// The same for a stream that was refused before anything of its request was known.
    pub fn note_stream(&self, reason: RefusedStream) {
        let label = reason.label();
        if let Some(unlogged) = self.due(label, Instant::now()) {
            tracing::warn!(label, unlogged, "refused");
        }
    }

    /// The same as [`Self::due`] for a misconfigured route; none where too many others have lines in this second.
    fn due_of_route(&self, route: &str, now: Instant) -> Option<Option<u64>> {
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, throttle)) = routes.iter_mut().find(|(known, _)| known == route) {
            return Some(throttle.due(now));
        }
        if routes.len() >= ROUTES {
            routes.retain(|(_, throttle)| !throttle.is_spent(now));
        }
        if routes.len() >= ROUTES {
            return None;
        }
        let mut throttle = Throttle::default();
        let due = throttle.due(now);
        routes.push((route.to_owned(), throttle));
        Some(due)
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
        let now = Instant::now();
        for (label, unlogged) in self.take_sums(now) {
            tracing::info!(label, unlogged, "refused");
        }
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        for (route, throttle) in routes.iter_mut() {
            if let Some(unlogged) = throttle.take_sum(now) {
                tracing::info!(label = Outcome::MisconfiguredRoute.row().label, route, unlogged, "refused");
            }
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

    #[test]
    fn each_misconfigured_route_has_its_own_line() {
        let log = RefusalLog::default();
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        assert_eq!(log.due_of_route("one", at(0)), Some(Some(0)));
        assert_eq!(log.due_of_route("other", at(1)), Some(Some(0)), "within the same second");
        assert_eq!(log.due_of_route("one", at(2)), Some(None));
        for route in 2..ROUTES {
            assert_eq!(log.due_of_route(&format!("host-{route}.example"), at(900)), Some(Some(0)));
        }
        assert_eq!(log.due_of_route("one-too-many", at(901)), None, "it shares the label's line");
        assert_eq!(log.due_of_route("one", at(1000)), Some(Some(1)));
        assert_eq!(log.due_of_route("one-too-many", at(3000)), Some(Some(0)), "others had their turn");
        assert!(log.routes.lock().expect("no panic").len() <= ROUTES);
    }
}
