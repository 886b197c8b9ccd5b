//! What happens on the routes while a person tries them, from envoy-cimd's log.

use std::convert::Infallible;

use serde_json::Value;

use crate::stack::Lines;

/// Says in a line each what becomes of the connect pages and of those who come back. That the log ends is for
/// others to notice.
pub async fn tell(mut log: Lines) -> Infallible {
    while let Some(line) = log.next().await {
        if let Some(event) = serde_json::from_str(&line).ok().as_ref().and_then(event) {
            println!("  {event}");
        }
    }
    std::future::pending().await
}

fn event(line: &Value) -> Option<String> {
    let of = |name: &str| line[name].as_str().unwrap_or_default();
    let (route, label, reason) = (of("route"), of("label"), of("reason"));
    if route.is_empty() {
        // A sum of what was said before.
        return None;
    }
    Some(match (of("message"), of("endpoint"), label) {
        ("served", "start", "begun") => {
            format!("{route}: somebody pressed the button, and went to the authorization server")
        }
        ("served", "callback", "completed") => format!("{route} is connected: its token is in envoy-cimd's store"),
        ("refused", _, "as_error") => format!("{route} was not connected: the authorization server said no"),
        ("refused", _, "already_used") => format!("{route}: somebody came back once more; nothing changed"),
        ("refused", ..) if reason.is_empty() => format!("{route}: refused, {label}"),
        ("refused", ..) => format!("{route}: refused, {label} ({reason})"),
        _ => return None,
    })
}
