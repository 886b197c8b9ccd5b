//! The audit log: who connected what to where. Its lines have the target `audit`, so that a filter finds them.

use super::lines::STDERR;
use crate::model::{flow::FlowId, user::User};

/// What the lines are found by, and what no filter silences.
pub const TARGET: &str = "audit";

/// Why nothing may begin that is to be audited: what it came to could not be written. Whoever calls [`event`] asks this
/// before anything is done.
pub fn blocked() -> Option<&'static str> {
    STDERR.are_stuck().then_some("the audit log cannot be written: nobody reads stderr")
}

/// Writes an event. It is written when this ends, unless nobody reads the log; then it still waits to be. Nothing in it
/// is secret: the flow is named by its tag, never by its id.
pub async fn event(event: &str, user: &User, client_id: &str, issuer: &str, flow: Option<&FlowId>, outcome: &str) {
    let (user_issuer, user_subject) = match user {
        User::Subject { issuer, subject } => (issuer.as_str(), subject.as_str()),
        User::Single => ("", "single user"),
    };
    let flow = flow.map(FlowId::tag).unwrap_or_default();
    tracing::info!(target: TARGET, event, user_issuer, user_subject, client_id, issuer, flow, outcome);
    STDERR.written().await;
}
