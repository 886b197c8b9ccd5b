//! `envoy-cimd serve`: binds, runs, and ends in order.

use std::{
    future::Future,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, anyhow, bail};
use arc_swap::ArcSwap;
use envoy_types::pb::envoy::service::ext_proc::v3::external_processor_server::ExternalProcessorServer;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::{Server, server::TcpIncoming};
use zeroize::Zeroizing;

use crate::{
    admin::{self, Readiness},
    choreographer::{Choreographer, Client},
    cli::{LoadedFile, Serve, setting_keys},
    config_file::ConfigFile,
    endpoint::{Endpoints, system_clock},
    ext_proc::ExtProc,
    listen::Listener,
    metrics::Metrics,
    refusal_log::RefusalLog,
    reload::{Watched, fingerprint, watch},
    route::RouteTable,
    secret::{Key, parse_keys, random},
    state::StateKeys,
};

/// What `serve` and `check` agree is good.
///
/// # Errors
/// The first setting that is not, by name.
pub fn endpoints(settings: &Serve, file: Option<&LoadedFile>) -> anyhow::Result<Endpoints> {
    let routes = match file {
        Some(file) => file.content.route_table().with_context(|| file.path.display().to_string())?,
        None => RouteTable::default(),
    };
    let client = settings.client();
    if client.is_some() && settings.state_keys.is_none() {
        bail!("--choreographer needs --state-keys: without them, a replica's states are nothing to the others");
    }
    let choreographer = match client {
        Some(client) => Some(Arc::new(Client::new(&client)?) as Arc<dyn Choreographer>),
        None => None,
    };
    Ok(Endpoints {
        paths: settings.routes.paths()?,
        names: settings.client_name.clone(),
        cache_control: format!("public, max-age={}", settings.document_max_age),
        routes: Arc::new(ArcSwap::from_pointee(routes)),
        dynamic_metadata: settings.routes.dynamic_metadata,
        users: settings.users()?,
        state_keys: Arc::new(ArcSwap::from_pointee(state_keys(settings.state_keys.as_deref())?.1)),
        choreographer,
        clock: system_clock,
        metrics: Arc::default(),
        refusals: Arc::default(),
        calls: TaskTracker::new(),
    })
}

/// The keys of the file, and what was read; a random one where there is no file.
fn state_keys(path: Option<&Path>) -> anyhow::Result<([u8; 32], StateKeys)> {
    match path {
        Some(path) => {
            let named = || format!("--state-keys {}", path.display());
            let text = Zeroizing::new(std::fs::read_to_string(path).with_context(named)?);
            Ok((fingerprint(&text), StateKeys::new(parse_keys(&text).with_context(named)?)))
        }
        None => Ok(([0; 32], StateKeys::new(vec![Key::new(random()?)]))),
    }
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// Where a setting is wrong, a listener cannot be bound, or a part of the process ends before it should.
pub async fn serve(settings: Serve, file: Option<LoadedFile>) -> anyhow::Result<()> {
    let endpoints = Arc::new(endpoints(&settings, file.as_ref())?);
    warn_of(&settings);
    let mut stop = StopSignals::new()?;
    let grpc = bind_grpc(&settings).await?;
    let admin = settings
        .admin_listen
        .bind()
        .await
        .with_context(|| format!("--admin-listen {}: cannot listen there", settings.admin_listen))?;

    let readiness = Arc::new(Readiness::default());
    let (health, health_service) = tonic_health::server::health_reporter();
    let drained = CancellationToken::new();
    let mut tasks = Tasks::default();

    log_ready("admin", &admin.address()?);
    tasks.spawn("the admin listener", serve_admin(admin, Arc::clone(&endpoints.metrics), Arc::clone(&readiness)));
    tasks.spawn("the log of refusals", flush_refusals(Arc::clone(&endpoints.refusals)));
    if let Some(file) = file {
        tasks.spawn("the watch over the config file", watch_routes(file, Arc::clone(&endpoints)));
    }
    if let Some(path) = settings.state_keys.clone() {
        tasks.spawn("the watch over the state keys", watch_state_keys(path, Arc::clone(&endpoints)));
    }
    let router = Server::builder()
        .add_service(health_service)
        .add_service(ExternalProcessorServer::new(ExtProc::new(Arc::clone(&endpoints))));
    health.set_serving::<ExternalProcessorServer<ExtProc>>().await;
    let address = grpc.address()?;
    let mut serving = Tasks::default();
    serving.spawn("the ext_proc listener", {
        let drained = drained.clone();
        async move {
            match grpc {
                Listener::Tcp(listener) => {
                    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
                    router.serve_with_incoming_shutdown(incoming, drained.cancelled_owned()).await?;
                }
                Listener::Unix(listener, _file) => {
                    let incoming = UnixListenerStream::new(listener);
                    router.serve_with_incoming_shutdown(incoming, drained.cancelled_owned()).await?;
                }
            }
            Ok(())
        }
    });
    readiness.ready();
    // Last, so that whoever reads it finds it true.
    log_ready("ext_proc", &address);

    let signal = tokio::select! {
        signal = stop.next() => signal,
        error = tasks.ended() => return Err(error),
        error = serving.ended() => return Err(error),
    };
    readiness.not_ready("stopping");
    health.set_not_serving::<ExternalProcessorServer<ExtProc>>().await;
    health.set_service_status("", tonic_health::ServingStatus::NotServing).await;
    tracing::info!(signal, "stopping");
    // A second signal ends the wait, not the streams.
    tokio::select! {
        () = sleep(Duration::from_secs(settings.drain_delay.into())) => {}
        _ = stop.next() => {}
    }
    drained.cancel();
    let deadline = Duration::from_secs(settings.drain_timeout.into());
    tokio::select! {
        finished = timeout(deadline, finish(&mut serving, &endpoints)) => match finished {
            Ok(result) => result?,
            Err(_) => tracing::warn!(streams = endpoints.metrics.streams.get(), "streams were still open at the drain timeout"),
        },
        _ = stop.next() => tracing::warn!(streams = endpoints.metrics.streams.get(), "stopped by a second signal"),
    }
    endpoints.refusals.flush();
    tracing::info!("stopped");
    Ok(())
}

/// Waits for the streams, and for the exchanges whose browser has gone.
async fn finish(serving: &mut Tasks, endpoints: &Endpoints) -> anyhow::Result<()> {
    serving.finish().await?;
    endpoints.calls.close();
    endpoints.calls.wait().await;
    Ok(())
}

/// What is allowed, and should not go unnoticed.
fn warn_of(settings: &Serve) {
    if settings.single_user {
        tracing::warn!(
            "--single-user: everybody who reaches the routes is taken for one person, and shares their tokens"
        );
    }
    if settings.state_keys.is_none() {
        tracing::warn!("no --state-keys: states are signed with a random key, and end with this process");
    }
}

async fn bind_grpc(settings: &Serve) -> anyhow::Result<Listener> {
    let address = &settings.listen;
    let named = || format!("--listen {address}: cannot listen there");
    if !settings.insecure_grpc && !address.is_local().await.with_context(named)? {
        bail!(
            "--listen {address}: other machines reach this address, and what they send over plain gRPC is trusted; \
             listen on loopback or a Unix socket, or say --insecure-grpc"
        );
    }
    address.bind().await.with_context(named)
}

/// The one line that says a listener is ready, and where: with port 0, only it knows.
fn log_ready(listener: &'static str, address: &str) {
    tracing::info!(listener, address, "ready");
}

async fn serve_admin(listener: Listener, metrics: Arc<Metrics>, readiness: Arc<Readiness>) -> anyhow::Result<()> {
    let router = admin::router(metrics, readiness);
    match listener {
        Listener::Tcp(listener) => axum::serve(listener, router).await?,
        Listener::Unix(listener, _file) => axum::serve(listener, router).await?,
    }
    Ok(())
}

async fn flush_refusals(refusals: Arc<RefusalLog>) -> anyhow::Result<()> {
    let mut ticks = interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        refusals.flush();
    }
}

async fn watch_routes(file: LoadedFile, endpoints: Arc<Endpoints>) -> anyhow::Result<()> {
    let keys = setting_keys();
    let started_with = file.content.settings;
    let watched = Watched { name: "config", path: file.path, seen: fingerprint(&file.text) };
    watch(watched, Arc::clone(&endpoints.metrics), move |text| {
        let file = ConfigFile::parse(text, &keys)?;
        endpoints.routes.store(Arc::new(file.route_table()?));
        if file.settings != started_with {
            tracing::warn!(
                "only `routes` is read again: the other settings that changed take effect at the next start"
            );
        }
        Ok(())
    })
    .await
}

async fn watch_state_keys(path: PathBuf, endpoints: Arc<Endpoints>) -> anyhow::Result<()> {
    // Read once more: what changed since the start is then a change.
    let (seen, keys) = state_keys(Some(&path))?;
    endpoints.state_keys.store(Arc::new(keys));
    watch(Watched { name: "state_keys", path, seen }, Arc::clone(&endpoints.metrics), move |text| {
        endpoints.state_keys.store(Arc::new(StateKeys::new(parse_keys(text)?)));
        Ok(())
    })
    .await
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
struct Tasks(JoinSet<(&'static str, anyhow::Result<()>)>);

impl Tasks {
    fn spawn(&mut self, name: &'static str, task: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
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
