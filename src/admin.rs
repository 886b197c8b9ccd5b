//! The admin listener: `/healthz`, `/readyz`, `/metrics`.

use std::sync::{Arc, Mutex, PoisonError};

use axum::{
    Router, extract::State, http::StatusCode, http::header::CONTENT_TYPE, response::IntoResponse, routing::get,
};

use crate::metrics::Metrics;

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

pub fn router(metrics: Arc<Metrics>, readiness: Arc<Readiness>) -> Router {
    Router::new()
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
