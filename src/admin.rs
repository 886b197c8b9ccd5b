//! The admin listener: `/healthz`, `/readyz`, `/metrics`, `/log`.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    Extension, Router,
    extract::{ConnectInfo, State},
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};

use crate::{log::LogFilter, metrics::Metrics};

/// Whether the process should get traffic, and if not, why.
#[derive(Debug)]
pub struct Readiness(Mutex<Option<&'static str>>);

impl Default for Readiness {
    fn default() -> Self {
        Self(Mutex::new(Some("starting")))
    }
}

impl Readiness {
    pub fn ready(&self) {
        self.set(None);
    }

    pub fn not_ready(&self, reason: &'static str) {
        self.set(Some(reason));
    }

    fn set(&self, reason: Option<&'static str>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = reason;
    }

    fn reason(&self) -> Option<&'static str> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub fn router(metrics: Arc<Metrics>, readiness: Arc<Readiness>, log: LogFilter) -> Router {
    Router::new()
        .route("/log", get(async |State(log): State<LogFilter>| log.text() + "\n").put(set_log))
        .with_state(log)
        .route("/healthz", get("ok\n"))
        .route(
            "/readyz",
            get(|State(readiness): State<Arc<Readiness>>| async move {
                match readiness.reason() {
                    None => (StatusCode::OK, "ready\n".to_owned()),
                    Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
                }
            }),
        )
        .with_state(readiness)
        .route(
            "/metrics",
            get(move || async move {
                ([(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], metrics.text())
                    .into_response()
            }),
        )
}

/// Changes the log's filter to the request's body. Only for callers on this machine: others may be let in to read
/// metrics, and have no say in what is logged. (A browser's page cannot send a PUT here unasked.)
async fn set_log(
    State(log): State<LogFilter>,
    caller: Option<Extension<ConnectInfo<SocketAddr>>>,
    filter: String,
) -> (StatusCode, String) {
    // None on a Unix socket.
    if caller.is_some_and(|Extension(ConnectInfo(caller))| !caller.ip().is_loopback()) {
        return (StatusCode::FORBIDDEN, "only from this machine\n".to_owned());
    }
    match log.set(filter.trim()) {
        Ok(()) => (StatusCode::OK, log.text() + "\n"),
        Err(error) => (StatusCode::BAD_REQUEST, format!("{error:#}\n")),
    }
}
