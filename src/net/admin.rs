//! The admin listener: `/healthz`, `/readyz`, `/metrics`, `/log`, and `/routes` where there are any.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    Extension, Router,
    body::Body,
    extract::{DefaultBodyLimit, State},
    http::{
        HeaderMap, Request, StatusCode,
        header::{ACCEPT, CONTENT_TYPE, HOST, VARY},
    },
    response::IntoResponse,
    routing::get,
};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep_until, timeout},
};
use tower::ServiceExt;
use url::{Host, Url};

use super::listen::Listener;
use crate::{
    process::readiness::Readiness,
    telemetry::{
        audit,
        directives::{self, Directives},
        exposition::Format,
        log::LogFilter,
        metrics::Metrics,
    },
};

/// How long a caller may take for the head of a request, and leave a connection idle.
const HEAD: Duration = Duration::from_secs(5);
/// How long a connection lives at most.
const CONNECTION: Duration = Duration::from_secs(30);
/// How many there may be. When it is full, one goes for the next.
const CONNECTIONS: usize = 256;
/// How long a connection then has at least: an honest one takes milliseconds.
const SILENT: Duration = Duration::from_millis(200);
/// The same for one that has sent a whole head, whose request is being answered.
const BEING_ANSWERED: Duration = Duration::from_secs(1);

/// The JSON text of `/routes`.
pub type Routes = Arc<dyn Fn() -> String + Send + Sync>;

/// What the listener answers; `routes` is none where there are none.
pub fn router(metrics: Arc<Metrics>, readiness: Arc<Readiness>, log: LogFilter, routes: Option<Routes>) -> Router {
    let of_routes = match routes {
        Some(list) => Router::new()
            .route("/routes", get(async move || ([(CONTENT_TYPE, "application/json")], list()).into_response())),
        None => Router::new(),
    };
    Router::new()
        .route("/log", get(async |State(log): State<LogFilter>| log.text() + "\n").put(set_log))
        .layer(DefaultBodyLimit::max(directives::LONGEST))
        .with_state(log)
        .route("/healthz", get("ok\n"))
        .route(
            "/readyz",
            get(|State(readiness): State<Arc<Readiness>>| async move {
                let answer = readiness.answer(audit::blocked());
                (if answer.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, answer.text)
            }),
        )
        .with_state(readiness)
        .route(
            "/metrics",
            get(async move |headers: HeaderMap| {
                let accept = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
                let format = Format::asked(accept);
                ([(CONTENT_TYPE, format.content_type()), (VARY, "accept")], metrics.text_in(format)).into_response()
            }),
        )
        .merge(of_routes)
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
    let mut connections = Connections::default();
    loop {
        let (stream, caller) = listener.accept().await;
        connections.make_room().await;
        let (router, local) = (router.clone(), Local(is_local(&caller)));
        let answering = Arc::new(AtomicBool::new(false));
        let being_answered = Arc::clone(&answering);
        let service = service_fn(move |request: Request<Incoming>| {
            let (router, answering) = (router.clone(), Arc::clone(&answering));
            async move {
                answering.store(true, Ordering::Relaxed);
                let answer = router.layer(Extension(local)).oneshot(request.map(Body::new)).await;
                answering.store(false, Ordering::Relaxed);
                answer
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD)
            .serve_connection(TokioIo::new(stream), service);
        connections.add(being_answered, connection);
    }
}

/// The connections that there are. They end with this.
#[derive(Default)]
struct Connections {
    tasks: JoinSet<()>,
    /// At most so many as there may be, and the last that ended.
    begun: Vec<Connection>,
}

struct Connection {
    since: Instant,
    /// The head of a request came, and its answer is still to be made.
    being_answered: Arc<AtomicBool>,
    task: AbortHandle,
}

impl Connection {
    /// Until when it need not go for another.
    fn stays_until(&self) -> Instant {
        self.since + if self.being_answered.load(Ordering::Relaxed) { BEING_ANSWERED } else { SILENT }
    }
}

impl Connections {
    /// Waits until there is room for one more. Where there is none, the oldest goes that has sent no whole head, or whose
    /// answer takes too long.
    async fn make_room(&mut self) {
        while self.tasks.try_join_next().is_some() {}
        self.forget_ended();
        while self.tasks.len() >= CONNECTIONS {
            self.forget_ended();
            let Some(next) = self.begun.iter().min_by_key(|connection| connection.stays_until()) else { return };
            let until = next.stays_until();
            if until <= Instant::now() {
                next.task.abort();
                self.tasks.join_next().await;
                continue;
            }
            tokio::select! {
                _ = self.tasks.join_next() => {}
                () = sleep_until(until) => {}
            }
        }
    }

    /// What is known of a connection goes with it, or every probe would leave something behind.
    fn forget_ended(&mut self) {
        self.begun.retain(|connection| !connection.task.is_finished());
    }

    fn add<E>(
        &mut self,
        being_answered: Arc<AtomicBool>,
        connection: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        // However it ends, it is the caller's doing.
        let task = self.tasks.spawn(async { drop(timeout(CONNECTION, connection).await) });
        self.begun.push(Connection { since: Instant::now(), being_answered, task });
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

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, future::ready};

    use super::*;

    #[tokio::test]
    async fn nothing_is_left_of_a_connection_that_ended() {
        let mut connections = Connections::default();
        for _ in 0..1000 {
            connections.make_room().await;
            connections.add(Arc::default(), ready(Ok::<_, Infallible>(())));
            tokio::task::yield_now().await;
        }
        assert!(connections.begun.len() <= 2, "{}", connections.begun.len());
    }
}
