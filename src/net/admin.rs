//! The admin listener: `/healthz`, `/readyz`, `/metrics`, `/log`.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use axum::{
    Extension, Router,
    body::Body,
    extract::{DefaultBodyLimit, State},
    http::{
        HeaderMap, Request, StatusCode,
        header::{CONTENT_TYPE, HOST},
    },
    response::IntoResponse,
    routing::get,
};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{sync::Semaphore, time::timeout};
use tower::ServiceExt;
use url::{Host, Url};

use super::listen::Listener;
use crate::{
    process::readiness::Readiness,
    telemetry::{
        audit,
        directives::{self, Directives},
        log::LogFilter,
        metrics::Metrics,
    },
};

/// How long a caller may take for the head of a request, and leave a connection idle.
const HEAD: Duration = Duration::from_secs(5);
/// How long a connection lives at most.
const CONNECTION: Duration = Duration::from_secs(30);
/// How many there may be; more callers wait.
const CONNECTIONS: usize = 64;

/// What the listener answers.
pub fn router(metrics: Arc<Metrics>, readiness: Arc<Readiness>, log: LogFilter) -> Router {
    Router::new()
        .route("/log", get(async |State(log): State<LogFilter>| log.text() + "\n").put(set_log))
        .layer(DefaultBodyLimit::max(directives::LONGEST))
        .with_state(log)
        .route("/healthz", get("ok\n"))
        .route(
            "/readyz",
            get(|State(readiness): State<Arc<Readiness>>| async move {
                match readiness.reason().or_else(audit::blocked) {
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

/// Serves until it is dropped. Slow callers are cut off, and only so many are served at once, so that they cannot take
/// the process's file descriptors from Envoy.
pub async fn serve(listener: Listener, router: Router) -> anyhow::Result<()> {
    match listener {
        // What a mesh's proxy passes on comes from other addresses of loopback.
        Listener::Tcp(listener) => {
            accept(listener, router, |caller| {
                [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()].contains(&caller.ip())
            })
            .await
        }
        Listener::Unix(listener, _file) => accept(listener, router, |_| true).await,
    }
}

/// Whether the caller is on this machine.
#[derive(Clone, Copy)]
struct Local(bool);

async fn accept<L: axum::serve::Listener>(
    mut listener: L,
    router: Router,
    is_local: fn(&L::Addr) -> bool,
) -> anyhow::Result<()> {
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let permit = Arc::clone(&connections).acquire_owned().await?;
        let (stream, caller) = listener.accept().await;
        let (router, local) = (router.clone(), Local(is_local(&caller)));
        let service = service_fn(move |request: Request<Incoming>| {
            router.clone().layer(Extension(local)).oneshot(request.map(Body::new))
        });
        tokio::spawn(async move {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD)
                .serve_connection(TokioIo::new(stream), service);
            // However it ends, it is the caller's doing.
            let _ = timeout(CONNECTION, connection).await;
            drop(permit);
        });
    }
}

/// Changes the log's filter to the request's body. Only for callers on this machine: others may be let in to read
/// metrics, and have no say in what is logged.
async fn set_log(
    State(log): State<LogFilter>,
    Extension(Local(local)): Extension<Local>,
    headers: HeaderMap,
    filter: String,
) -> (StatusCode, String) {
    // A browser on this machine could be made to call, with a name that a stranger points here.
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let named = Url::parse(&format!("http://{host}")).is_ok_and(|url| match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(_) | Host::Ipv6(_)) => true,
        None => false,
    });
    if !local || !named {
        return (StatusCode::FORBIDDEN, "only from this machine, as localhost or by an address\n".to_owned());
    }
    let directives = match filter.trim().parse::<Directives>() {
        Ok(directives) => directives,
        Err(error) => return (StatusCode::BAD_REQUEST, format!("{error}\n")),
    };
    if let Some(reason) = audit::blocked() {
        return (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n"));
    }
    match log.set(directives).await {
        Ok(()) => (StatusCode::OK, log.text() + "\n"),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")),
    }
}
