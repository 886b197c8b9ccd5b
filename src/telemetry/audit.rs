//! The audit log: who connected what to where. Its lines have the target `audit`, so that a filter finds them.

use tracing::Level;

use super::lines::STDERR;
use crate::model::{flow::FlowId, user::User};

/// What the lines are found by.
pub const TARGET: &str = "audit";

/// Whether a line is one that no filter silences, and that is never dropped.
pub fn is_kept(line: &tracing::Metadata<'_>) -> bool {
    line.target() == TARGET && *line.level() <= Level::INFO
}

/// Why nothing may begin that is to be audited: what it came to could not be written. Whoever calls [`event`] asks this
/// before anything is done.
pub fn blocked() -> Option<&'static str> {
    STDERR.are_stuck().then_some("the audit log cannot be written: nobody reads stderr")
}

/// Writes an event. It is written when this ends, unless nobody reads the log; then it still waits to be. Nothing in it
/// is secret: the flow is named by its tag, never by its id.
pub async fn event(event: &str, user: &User, client_id: &str, issuer: &str, flow: Option<&FlowId>, outcome: &str) {
    let (user_issuer, user_subject) = named(user);
    let flow = flow.map(FlowId::tag).unwrap_or_default();
    tracing::info!(target: TARGET, event, user_issuer, user_subject, client_id, issuer, flow, outcome);
    STDERR.written().await;
}

/// Writes an event that there may be one of for each request: a token that was handed out, or refused. At `debug`, so that
/// it is written where the log's filter asks for it (`audit=debug`), and dropped where nobody reads the log.
pub fn detail(event: &str, user: &User, client_id: &str, issuer: &str, outcome: &str) {
    let (user_issuer, user_subject) = named(user);
    tracing::debug!(target: TARGET, event, user_issuer, user_subject, client_id, issuer, outcome);
}

/// How a line names a user.
fn named(user: &User) -> (&str, &str) {
    match user {
        User::Subject { issuer, subject } => (issuer, subject),
        User::Single => ("", "single user"),
    }
}
