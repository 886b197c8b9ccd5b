//! What every long-running command shares: it binds, says that it is ready, runs, and ends in order.

use std::sync::Arc;

use futures_util::FutureExt;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic_health::{
    ServingStatus,
    pb::health_server::HealthServer,
    server::{HealthReporter, HealthService},
};

use super::listeners::{TokensServer, bind};
use crate::{
    net::{
        admin,
        grpc::{
            GrpcListener, serve_grpc,
            services::{GrpcService, Services},
        },
        listen::{ListenAddr, SocketMode},
        tls::server::ServerTls,
    },
    process::{
        readiness::Readiness,
        stop::{self, Running, StopSignals},
        tasks::Tasks,
    },
    telemetry::{log::LogFilter, metrics::Metrics},
};

/// A gRPC server and what goes with it.
pub struct Process<'a, S> {
    /// Its service is the one that health checks ask for.
    pub main: GrpcListener<S>,
    pub admin_listen: &'a ListenAddr,
    pub stop: stop::Config,
    pub log: LogFilter,
    pub metrics: Arc<Metrics>,
    /// What must be finished before the process ends.
    pub calls: Vec<TaskTracker>,
    pub readiness: Arc<Readiness>,
    /// What the admin listener says of routes.
    pub list_routes: Option<admin::Routes>,
    /// Where tokens are handed out: it starts and drains with the main one.
    pub tokens: Option<GrpcListener<TokensServer>>,
}

impl<S: GrpcService> Process<'_, S> {
    /// Serves until SIGTERM or SIGINT; `tasks` run beside it.
    ///
    /// # Errors
    /// Where a listener cannot be bound, or a part of the process ends before it should.
    pub async fn run(self, mut tasks: Tasks) -> anyhow::Result<()> {
        let stop = StopSignals::new()?;
        let grpc = bind(self.main.flag, &self.main.address, self.main.mode).await?;
        let tokens = match self.tokens {
            Some(tokens) => Some((bind(tokens.flag, &tokens.address, tokens.mode).await?, tokens)),
            None => None,
        };
        let admin = bind("admin-listen", self.admin_listen, SocketMode::default()).await?;

        let readiness = self.readiness;
        log_ready("admin", &admin.address()?);
        let router = admin::router(Arc::clone(&self.metrics), Arc::clone(&readiness), self.log, self.list_routes);
        tasks.spawn("the admin listener", admin::serve(admin, router));
        let health = HealthReporter::new();
        let health_service = HealthServer::new(HealthService::from_health_reporter(health.clone()));
        health.set_service_status(S::NAME, ServingStatus::Serving).await;
        let address = grpc.address()?;
        let drained = CancellationToken::new();
        let mut serving = Tasks::default();
        let mut watch = |tls: &Option<ServerTls>| {
            if let Some(tls) = tls.clone() {
                tasks.spawn("the watch over the TLS files", tls.watch(Arc::clone(&self.metrics)));
            }
        };
        let GrpcListener { name, tls, service: main, .. } = self.main;
        watch(&tls);
        let services = Services { main, health: Some(health_service) };
        serving.spawn(name, serve_grpc(name, grpc, tls, services, drained.clone()).map(Ok));
        if let Some((listener, GrpcListener { name, tls, service: main, .. })) = tokens {
            log_ready(name, &listener.address()?);
            watch(&tls);
            let services = Services { main, health: None };
            serving.spawn(name, serve_grpc(name, listener, tls, services, drained.clone()).map(Ok));
        }
        readiness.ready();
        // Last, so that whoever reads it finds it true.
        log_ready(name, &address);

        let (metrics, calls) = (self.metrics, self.calls);
        let stopping = async || {
            readiness.not_ready("stopping");
            health.set_service_status(S::NAME, ServingStatus::NotServing).await;
            health.set_service_status("", ServingStatus::NotServing).await;
        };
        Running { serving, drained, tasks, calls }
            .until_stopped(stop, self.stop, stopping, || metrics.streams.get())
            .await
    }
}

/// The one line that says a listener is ready, and where: with port 0, only it knows.
fn log_ready(listener: &'static str, address: &str) {
    tracing::info!(listener, address, "ready");
}
