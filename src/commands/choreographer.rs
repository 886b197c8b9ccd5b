//! `envoy-cimd choreographer`: the exchange as a process of its own.

use std::sync::Arc;

use opentelemetry::trace::SpanKind;
use tokio_util::task::TaskTracker;

use super::{
    exchange::{embedded, kept_files, watched, watched_tokens},
    listeners::{TokensListener, main_tls},
    notices,
    running::Process,
    settings::{
        ChoreographerCommand,
        parse::{Given, LoadedFile},
    },
    trying::Trying,
    watching::Takers,
};
use crate::{
    contract::{proto::authorization_choreographer_server::AuthorizationChoreographerServer, service::Service},
    filter::outcome::Outcome,
    model::paths::Paths,
    net::grpc::GrpcListener,
    process::tasks::Tasks,
    telemetry::{exposure, log::LogFilter, traces::Exporter},
};

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// Where a setting is wrong, a listener cannot be bound, or a part of the process ends before it should.
pub async fn run(
    settings: ChoreographerCommand,
    file: Option<LoadedFile>,
    given: &Given,
    log: LogFilter,
) -> anyhow::Result<()> {
    let tls = main_tls(&settings.listen, &settings.process, settings.exchange.tokens_listen.as_ref()).await?;
    notices::of_choreographer(&settings, given).iter().for_each(|notice| tracing::warn!("{notice}"));
    let paths = Paths::default().with_document(settings.document_path);
    let embedded = embedded(&settings.exchange, paths, file.as_ref())?;
    let tokens = TokensListener::new(&settings.exchange, &settings.process)?;
    settings.process.warn_of_short_drain(&settings.exchange);
    embedded.check().await?;
    let secret_files = settings.process.tls.tls_key.iter().cloned().chain(kept_files(&embedded));
    secret_files.for_each(|path| exposure::warn(&path));
    let vault = Arc::clone(&embedded.tokens.vault);
    let (calls, metrics) = (embedded.tokens.calls.clone(), Arc::clone(&embedded.tokens.metrics));
    metrics.expect(Outcome::labels());
    let traces = Exporter::start(settings.process.otlp_endpoint.as_deref(), "envoy-cimd-choreographer")?;
    let mut tasks = Tasks::default();
    let trying = Trying::new(settings.process.ready_needs_exchange, &metrics);
    trying.store(&embedded, &mut tasks);
    Takers { endpoints: None, clients: Some(embedded.tokens.clients.clone()) }.watch(file, &metrics, &mut tasks);
    let counted = Arc::clone(&metrics);
    tasks.spawn("the watch over the encryption keys", async move { vault.watch_keys(counted).await });
    let handed_out = || watched_tokens(&traces, SpanKind::Server, &metrics, Arc::new(embedded.tokens.clone()));
    let tokens = tokens.map(|listener| listener.serving(handed_out()));
    let choreographer = watched(&traces, SpanKind::Server, &metrics, Arc::new(embedded));
    let served = TaskTracker::new();
    let service = AuthorizationChoreographerServer::new(Service::new(choreographer, served.clone()));
    let process = Process {
        main: GrpcListener {
            name: "choreographer",
            flag: "listen",
            address: settings.listen,
            mode: settings.process.socket_mode,
            tls,
            service,
        },
        admin_listen: &settings.admin_listen,
        stop: settings.process.stop(),
        log,
        metrics,
        calls: vec![served, calls],
        readiness: trying.readiness,
        list_routes: None,
        tokens,
    };
    let result = process.run(tasks).await;
    traces.end().await;
    result
}
