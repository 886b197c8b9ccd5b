//! The demo's own servers, all of which answer until it ends.

use std::fmt::Debug;

use axum::{Router, serve::Listener};
use tokio::task::JoinSet;

/// Has `app` answer among the other servers. `what` it is is said where it stops.
pub fn spawn<L>(servers: &mut JoinSet<String>, what: String, listener: L, app: Router)
where
    L: Listener,
    L::Addr: Debug,
{
    servers.spawn(async move {
        // It has no end, not even one with an error.
        let _ = axum::serve(listener, app).await;
        what
    });
}
