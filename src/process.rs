//! What every long-running command shares: it binds, says that it is ready, runs, and ends in order.

use std::{convert::Infallible, future::Future, sync::Arc, time::Duration};

use anyhow::{Context, anyhow, bail};
use axum::serve::ListenerExt;
use futures_util::{Stream, stream};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{
    service::Routes,
    transport::{
        Server,
        server::{Connected, Router},
    },
};
use tonic_health::ServingStatus;

use crate::{
    admin::{self, Readiness},
    cli::{ProcessArgs, TlsArgs},
    listen::{ListenAddr, Listener, SocketMode},
    log::LogFilter,
    metrics::Metrics,
    tls::{ServerTls, TlsListener, server_tls},
};

/// How many streams of a connection may have been reset before anybody looked at them.
const RESET_STREAMS: usize = 10_000;

/// A gRPC server and what goes with it.
pub struct Process<'a> {
    pub main: GrpcListener,
    /// The gRPC service that health checks ask for.
    pub service: &'static str,
    pub admin_listen: &'a ListenAddr,
    pub args: &'a ProcessArgs,
    pub log: LogFilter,
    pub metrics: Arc<Metrics>,
    /// What must be finished before the process ends.
    pub calls: TaskTracker,
    /// A second gRPC listener, for other callers, which starts and drains with the main one.
    pub second: Option<GrpcListener>,
}

/// A gRPC listener that is not bound yet.
pub struct GrpcListener {
    /// What the log calls it.
    pub name: &'static str,
    pub flag: &'static str,
    pub address: ListenAddr,
    /// Who may connect to a Unix socket.
    pub mode: SocketMode,
    /// None on a Unix socket.
    pub tls: Option<ServerTls>,
    pub routes: Routes,
}

impl Process<'_> {
    /// Serves until SIGTERM or SIGINT; `tasks` run beside it.
    ///
    /// # Errors
    /// Where a listener cannot be bound, or a part of the process ends before it should.
    pub async fn run(self, mut tasks: Tasks) -> anyhow::Result<()> {
        let mut stop = StopSignals::new()?;
        let grpc = bind(self.main.flag, &self.main.address, self.main.mode).await?;
        let second = match self.second {
            Some(second) => Some((bind(second.flag, &second.address, second.mode).await?, second)),
            None => None,
        };
        let admin = bind("admin-listen", self.admin_listen, SocketMode::default()).await?;

        let readiness = Arc::new(Readiness::default());
        log_ready("admin", &admin.address()?);
        let router = admin::router(Arc::clone(&self.metrics), Arc::clone(&readiness), self.log);
        tasks.spawn("the admin listener", admin::serve(admin, router));
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_service_status(self.service, ServingStatus::Serving).await;
        let address = grpc.address()?;
        let drained = CancellationToken::new();
        let mut serving = Tasks::default();
        let mut serve = |name, listener, tls: Option<ServerTls>, routes| {
            if let Some(tls) = tls.clone() {
                tasks.spawn("the watch over the TLS files", tls.watch(Arc::clone(&self.metrics)));
            }
            let router = server().add_routes(routes);
            serving.spawn(name, serve_grpc(name, listener, tls, router, drained.clone()));
        };
        let GrpcListener { name, tls, routes, .. } = self.main;
        serve(name, grpc, tls, routes.add_service(health_service));
        if let Some((listener, GrpcListener { name, tls, routes, .. })) = second {
            log_ready(name, &listener.address()?);
            serve(name, listener, tls, routes);
        }
        readiness.ready();
        // Last, so that whoever reads it finds it true.
        log_ready(name, &address);

        let signal = tokio::select! {
            signal = stop.next() => signal,
            error = tasks.ended() => return Err(error),
            error = serving.ended() => return Err(error),
        };
        readiness.not_ready("stopping");
        health.set_service_status(self.service, ServingStatus::NotServing).await;
        health.set_service_status("", ServingStatus::NotServing).await;
        tracing::info!(signal, "stopping");
        // A second signal ends the wait, not the streams.
        tokio::select! {
            () = sleep(Duration::from_secs(self.args.drain_delay.into())) => {}
            _ = stop.next() => {}
        }
        drained.cancel();
        let deadline = Duration::from_secs(self.args.drain_timeout.into());
        let open = || (self.metrics.streams.get(), self.calls.len());
        tokio::select! {
            finished = timeout(deadline, finish(&mut serving, &self.calls)) => match finished {
                Ok(result) => result?,
                Err(_) => {
                    let (streams, calls) = open();
                    tracing::warn!(streams, calls, "streams or calls were still open at the drain timeout");
                }
            },
            _ = stop.next() => {
                let (streams, calls) = open();
                tracing::warn!(streams, calls, "stopped by a second signal");
            }
        }
        tracing::info!("stopped");
        Ok(())
    }
}

/// How the main listener is protected. What is sent over plain gRPC is trusted, so other machines must not reach it
/// unasked.
///
/// # Errors
/// Where they would, where a TLS setting is wrong or without use, or where the address cannot be resolved.
pub async fn main_tls(
    address: &ListenAddr,
    args: &ProcessArgs,
    tokens_listen: Option<&ListenAddr>,
) -> anyhow::Result<Option<ServerTls>> {
    if let ListenAddr::Unix(_) = address {
        if args.tls != TlsArgs::default() && !matches!(tokens_listen, Some(ListenAddr::Tcp { .. })) {
            bail!(
                "--tls-cert, --tls-key, --client-ca and --allow-peer are for gRPC over TCP, and nothing listens there"
            );
        }
        return Ok(None);
    }
    let tls = server_tls("tls", &args.tls, &args.tls.allow_peer)?;
    let plain = tls.is_none() && !args.insecure_grpc;
    if plain && !address.is_local().await.with_context(|| cannot_listen("listen", address))? {
        bail!(
            "--listen {address}: other machines reach this address, and what they send over plain gRPC is trusted; \
             give --tls-cert, --tls-key and --client-ca, listen on loopback or a Unix socket, or say --insecure-grpc"
        );
    }
    Ok(tls)
}

async fn bind(flag: &str, address: &ListenAddr, mode: SocketMode) -> anyhow::Result<Listener> {
    address.bind(mode).await.with_context(|| cannot_listen(flag, address))
}

fn cannot_listen(flag: &str, address: &ListenAddr) -> String {
    format!("--{flag} {address}: cannot listen there")
}

/// The one line that says a listener is ready, and where: with port 0, only it knows.
fn log_ready(listener: &'static str, address: &str) {
    tracing::info!(listener, address, "ready");
}

/// A gRPC server. Where many clients of Envoy's go away at once, it resets as many streams, some before they were looked
/// at; HTTP/2 takes more than 20 of those for an attack, and ends the connection with all that is on it. Whoever may
/// connect here is trusted.
pub fn server() -> Server {
    Server::builder().http2_max_pending_accept_reset_streams(Some(RESET_STREAMS))
}

async fn serve_grpc(
    name: &'static str,
    listener: Listener,
    tls: Option<ServerTls>,
    router: Router,
    drained: CancellationToken,
) -> anyhow::Result<()> {
    let drained = drained.cancelled_owned();
    match (listener, tls) {
        (Listener::Tcp(listener), Some(tls)) => {
            let listener = TlsListener::new(name, listener, move || tls.current());
            router.serve_with_incoming_shutdown(incoming(listener), drained).await?;
        }
        (Listener::Tcp(listener), None) => {
            // One that is gone already fails when it is read.
            let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
            router.serve_with_incoming_shutdown(incoming(listener), drained).await?;
        }
        (Listener::Unix(listener, _file), _) => {
            router.serve_with_incoming_shutdown(incoming(listener), drained).await?;
        }
    }
    Ok(())
}

/// A listener's connections as tonic wants them. What goes wrong with one, or with too many, ends at the listener:
/// tonic would take it for the end of all.
fn incoming<L>(listener: L) -> impl Stream<Item = Result<L::Io, Infallible>>
where
    L: axum::serve::Listener<Io: Connected>,
{
    stream::unfold(listener, async |mut listener| {
        let (stream, _) = listener.accept().await;
        Some((Ok(stream), listener))
    })
}

/// Waits for the streams, and for the exchanges whose browser has gone.
async fn finish(serving: &mut Tasks, calls: &TaskTracker) -> anyhow::Result<()> {
    serving.finish().await?;
    calls.close();
    calls.wait().await;
    Ok(())
}

/// SIGTERM and SIGINT.
struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    fn new() -> anyhow::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Tasks that are all to run until the process ends: whichever ends first takes it down, with a reason.
#[derive(Default)]
pub struct Tasks(JoinSet<(&'static str, anyhow::Result<()>)>);

impl Tasks {
    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
        self.0.spawn(async move { (name, task.await) });
    }

    /// Why one of them ended.
    async fn ended(&mut self) -> anyhow::Error {
        match self.0.join_next().await {
            Some(Ok((name, Ok(())))) => anyhow!("{name} ended"),
            Some(Ok((name, Err(error)))) => error.context(format!("{name} failed")),
            Some(Err(error)) => anyhow!("a part of the process failed: {error}"),
            None => std::future::pending().await,
        }
    }

    /// Waits until all have ended well.
    async fn finish(&mut self) -> anyhow::Result<()> {
        while let Some(ended) = self.0.join_next().await {
            let (name, result) = ended?;
            result.with_context(|| format!("{name} failed"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever ends one of them, the others do not go on looking healthy.
    #[tokio::test]
    async fn a_task_that_ends_says_so() {
        let said = async |task: std::pin::Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>| {
            let mut tasks = Tasks::default();
            tasks.spawn("the other", std::future::pending());
            tasks.spawn("the one", task);
            format!("{:#}", tasks.ended().await)
        };
        assert_eq!(said(Box::pin(async { Ok(()) })).await, "the one ended");
        assert_eq!(said(Box::pin(async { bail!("it is over") })).await, "the one failed: it is over");
        let panicked = said(Box::pin(async { panic!("a bug") })).await;
        assert!(panicked.starts_with("a part of the process failed: ") && panicked.contains("a bug"), "{panicked}");
    }
}
