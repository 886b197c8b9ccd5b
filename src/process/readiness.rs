//! Whether the process should get traffic.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

/// Whether the process should get traffic, and if not, why; and which part of it cannot be reached.
#[derive(Debug)]
pub struct Readiness {
    reason: Mutex<Option<&'static str>>,
    /// Why a part cannot be reached, by the part's name.
    faults: Mutex<BTreeMap<&'static str, String>>,
    /// Whether a process should get no traffic while it cannot reach a part.
    needs_parts: bool,
}

/// What becomes of who asks.
#[derive(Debug, PartialEq)]
pub struct Answer {
    pub ready: bool,
    /// A line for each reason.
    pub text: String,
}

impl Readiness {
    /// `needs_parts` is whether a process should get no traffic while it cannot reach a part.
    pub fn new(needs_parts: bool) -> Self {
        Self { reason: Mutex::new(Some("starting")), faults: Mutex::default(), needs_parts }
    }

    /// From now on it should.
    pub fn ready(&self) {
        self.set(None);
    }

    /// From now on it should not; the reason is what callers are told.
    pub fn not_ready(&self, reason: &'static str) {
        self.set(Some(reason));
    }

    fn set(&self, reason: Option<&'static str>) {
        *self.reason.lock().unwrap_or_else(PoisonError::into_inner) = reason;
    }

    /// A part was not tried yet, and is waited for where it is needed.
    pub fn untried(&self, part: &'static str) {
        if self.needs_parts {
            self.note(part, Some("was not tried yet".to_owned()));
        }
    }

    /// What came of trying to reach a part; none where it can be reached.
    pub fn note(&self, part: &'static str, fault: Option<String>) {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        match fault {
            Some(fault) => faults.insert(part, fault),
            None => faults.remove(part),
        };
    }

    /// `blocked` is why it should get no traffic for another reason.
    pub fn answer(&self, blocked: Option<&'static str>) -> Answer {
        let reason = *self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reason) = reason.or(blocked) {
            return Answer { ready: false, text: format!("{reason}\n") };
        }
        let faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        let ready = faults.is_empty() || !self.needs_parts;
        let first = if ready { "ready\n" } else { "" };
        let lines = faults.iter().map(|(part, fault)| format!("{part}: {}\n", fault.replace(['\r', '\n'], " ")));
        Answer { ready, text: first.to_owned() + &lines.collect::<String>() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_reached_is_said_and_counts_on_request() {
        for needs_parts in [false, true] {
            let readiness = Readiness::new(needs_parts);
            let is = |blocked, ready, text: &str| {
                assert_eq!(readiness.answer(blocked), Answer { ready, text: text.to_owned() }, "{needs_parts}");
            };
            is(None, false, "starting\n");
            readiness.ready();
            is(None, true, "ready\n");
            readiness.note("store", Some("is\naway".to_owned()));
            is(None, !needs_parts, if needs_parts { "store: is away\n" } else { "ready\nstore: is away\n" });
            is(Some("nobody reads the log"), false, "nobody reads the log\n");
            readiness.note("store", None);
            is(None, true, "ready\n");
            readiness.not_ready("stopping");
            is(None, false, "stopping\n");
        }
    }
}
