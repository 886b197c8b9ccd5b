//! `envoy-cimd serve`: the ext_proc filter.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use opentelemetry::trace::SpanKind;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::task::TaskTracker;
use zeroize::Zeroizing;

use super::{
    exchange::{Exchange, Side, kept_files, traced_tokens, watched, watched_tokens},
    listeners::main_tls,
    notices,
    roles::{Served, roles},
    running::Process,
    settings::{
        parse::{Given, LoadedFile},
        serve::Serve,
    },
    trying::Trying,
    watching::{Takers, watch_state_keys},
};
use crate::{
    contract::{timed::Timed, tokens::UpstreamTokens},
    edge::{
        ext_proc::{ExtProc, Shared},
        roles::Roles,
        server::Server,
    },
    filter::{endpoint::Endpoints, refused::Refused, route_book, state::StateKeys, traffic::Traffic},
    model::{
        route_table::RouteTable,
        secret::{Key, parse_keys, random},
    },
    net::{dial::Connection, grpc::GrpcListener, listen::ListenAddr},
    process::tasks::Tasks,
    telemetry::{exposure, log::LogFilter, reload::fingerprint, traces::Exporter},
};

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// Where a setting is wrong, a listener cannot be bound, or a part of the process ends before it should.
pub async fn serve(settings: Serve, file: Option<LoadedFile>, given: &Given, log: LogFilter) -> anyhow::Result<()> {
    let tls = main_tls(&settings.listen, &settings.process, settings.exchange.tokens_listen.as_ref()).await?;
    let roles = roles(&settings).await?;
    let mut exchange = Exchange::new(&settings, file.as_ref()).await?;
    if let Side::Here(embedded, _) = &exchange.side {
        settings.process.warn_of_short_drain(&settings.exchange);
        embedded.check().await?;
    }
    let traces = Exporter::start(settings.process.otlp_endpoint.as_deref(), "envoy-cimd")?;
    let kind = exchange.side.kind();
    exchange.choreographer = watched(&traces, kind.clone(), &exchange.metrics, exchange.choreographer);
    let (mut endpoints, state_keys) = endpoints(&settings, file.as_ref(), &exchange)?;
    let tokens_of_users = exchange.tokens.take().filter(|_| roles.traffic || roles.refused);
    let kept = tokens_of_users.map(|tokens| {
        let tokens = watched_tokens(&traces, kind, &exchange.metrics, tokens);
        settings.traffic.config().cached(tokens, settings.limits.calls(), endpoints.calls.clone())
    });
    endpoints.tools.tokens = kept.clone();
    let endpoints = Arc::new(endpoints);
    route_book::say_file(&endpoints.routes.table.load());
    tracing::info!(%roles, left_out = roles.left_out, "what is served");
    warn_of(&settings, &roles);
    notices::of_serve(&settings, &roles, given).iter().for_each(|notice| tracing::warn!("{notice}"));
    secret_files(&settings, &exchange).iter().for_each(|path| exposure::warn(path));
    let mut tasks = Tasks::default();
    let refusals = Arc::clone(&endpoints.refusals);
    tasks.spawn("the log of refusals", each_second(move || refusals.flush()));
    if let Some(kept) = kept.clone() {
        tasks.spawn("the tokens that are over", each_second(move || kept.tidy()));
    }
    let clients = match &exchange.side {
        Side::Here(embedded, _) => Some(embedded.tokens.clients.clone()),
        Side::There(_) => None,
    };
    Takers { endpoints: Some(Arc::clone(&endpoints)), clients }.watch(file, &endpoints.metrics, &mut tasks);
    if let Some(path) = settings.state_keys.clone() {
        tasks.spawn("the watch over the state keys", watch_state_keys(path, state_keys, Arc::clone(&endpoints)));
    }
    let trying = Trying::new(settings.process.ready_needs_exchange, &endpoints.metrics);
    let mut calls = vec![endpoints.calls.clone()];
    let mut tokens = None;
    match exchange.side {
        Side::Here(embedded, listener) => {
            calls.push(embedded.tokens.calls.clone());
            let (vault, metrics) = (Arc::clone(&embedded.tokens.vault), Arc::clone(&endpoints.metrics));
            tasks.spawn("the watch over the encryption keys", async move { vault.watch_keys(metrics).await });
            trying.store(&embedded, &mut tasks);
            // What others end through this listener is forgotten for MCP traffic as well; what they ask for is not kept.
            let handed_out: Arc<dyn UpstreamTokens> = match &kept {
                // Its own calls are timed.
                Some(kept) => Arc::clone(kept) as _,
                None => Arc::new(Timed::new(Arc::clone(&endpoints.metrics), Arc::new(embedded.tokens) as _)),
            };
            let handed_out = traced_tokens(&traces, SpanKind::Server, handed_out);
            tokens = listener.map(|listener| listener.serving(handed_out));
        }
        Side::There(connections) => {
            for (part, Connection { channel, tls }) in connections {
                trying.process(part, channel, &mut tasks);
                let Some(tls) = tls else { continue };
                tasks.spawn("the watch over the choreographer's TLS files", tls.watch(Arc::clone(&endpoints.metrics)));
            }
        }
    }
    let shared = Shared {
        metrics: Arc::clone(&endpoints.metrics),
        refusals: Arc::clone(&endpoints.refusals),
        users: endpoints.tools.users.source().cloned(),
    };
    let refused = kept.clone().filter(|_| roles.refused);
    let refused = refused
        .map(|kept| Arc::new(Refused::new(settings.traffic.config(), &endpoints, kept, settings.limits.calls())) as _);
    let traffic = kept.filter(|_| roles.traffic);
    let traffic = traffic.map(|kept| Arc::new(Traffic::new(settings.traffic.config(), &endpoints, kept)) as _);
    let roles = Roles { endpoints: roles.endpoints.then(|| Arc::clone(&endpoints) as _), traffic, refused };
    let ext_proc = Server::new(ExtProc::new(roles, shared, settings.streams()));
    let listed = Arc::clone(&endpoints.routes);
    let process = Process {
        main: GrpcListener {
            name: "ext_proc",
            flag: "listen",
            address: settings.listen,
            mode: settings.process.socket_mode,
            tls,
            service: ext_proc,
        },
        admin_listen: &settings.admin_listen,
        stop: settings.process.stop(),
        log,
        metrics: Arc::clone(&endpoints.metrics),
        calls,
        readiness: trying.readiness,
        list_routes: Some(Arc::new(move || listed.list())),
        tokens,
    };
    let result = process.run(tasks).await;
    endpoints.refusals.flush();
    traces.end().await;
    result
}

/// What `serve` and `check` agree is good, and the fingerprint of the state keys as they were read.
///
/// # Errors
/// The first setting that is wrong, by name.
pub fn endpoints(
    settings: &Serve,
    file: Option<&LoadedFile>,
    exchange: &Exchange,
) -> anyhow::Result<(Endpoints, [u8; 32])> {
    let config = settings.endpoints()?;
    let routes = match file {
        Some(file) => file.content.route_table(&config.paths).with_context(|| file.path.display().to_string())?,
        None => RouteTable::default(),
    };
    let (seen, state_keys) = state_keys(settings.state_keys.as_deref())?;
    let (choreographer, metrics) = (Arc::clone(&exchange.choreographer), Arc::clone(&exchange.metrics));
    Ok((Endpoints::new(config, routes, state_keys, choreographer, metrics, TaskTracker::new()), seen))
}

/// The files that hold secrets: those that the settings name, and the store's.
pub fn secret_files(settings: &Serve, exchange: &Exchange) -> Vec<PathBuf> {
    let (choreographer, tokens) = (&settings.choreographer_key, &settings.traffic.tokens_key);
    let named = [&settings.state_keys, choreographer, tokens, &settings.process.tls.tls_key];
    let kept = match &exchange.side {
        Side::Here(embedded, _) => kept_files(embedded),
        Side::There(_) => Vec::new(),
    };
    named.into_iter().flatten().cloned().chain(kept).collect()
}

/// The keys of the file, and what was read; a random one where there is no file.
fn state_keys(path: Option<&Path>) -> anyhow::Result<([u8; 32], StateKeys)> {
    match path {
        Some(path) => {
            let named = || format!("--state-keys {}", path.display());
            let text = Zeroizing::new(std::fs::read_to_string(path).with_context(named)?);
            Ok((fingerprint(&[&text]), StateKeys::new(parse_keys(&text).with_context(named)?)))
        }
        None => Ok(([0; 32], StateKeys::new(vec![Key::new(random()?)]))),
    }
}

/// What is allowed, and should not go unnoticed.
fn warn_of(settings: &Serve, roles: &Served) {
    if roles.traffic || roles.refused {
        match settings.listen {
            ListenAddr::Tcp { .. } if !settings.process.tls.is_given() => {
                tracing::warn!("--insecure-traffic: every account of this machine can have every user's token");
            }
            ListenAddr::Unix(_) if settings.process.socket_mode.lets_everybody_in() => {
                tracing::warn!("--socket-mode: every account that reaches the socket can have every user's token");
            }
            ListenAddr::Tcp { .. } | ListenAddr::Unix(_) => {}
        }
    }
    if settings.single_user {
        tracing::warn!(
            "--single-user: everybody who reaches the routes is taken for one person, and shares their tokens"
        );
    }
    if settings.state_keys.is_none() {
        tracing::warn!("no --state-keys: states are signed with a random key, and end with this process");
    }
}

async fn each_second(work: impl Fn()) -> anyhow::Result<()> {
    let mut ticks = interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        work();
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        commands::settings::{Task, parse::parse},
        edge::ext_proc,
        exchange::embedded,
        filter::{endpoint, traffic},
    };

    /// What a test makes without flags is what the program is without flags.
    #[test]
    fn each_default_stands_for_the_same() {
        let args = ["envoy-cimd", "serve", "--state-dir", "/tmp"].map(Into::into);
        let Task::Serve(settings) = parse(args).expect("no flags").task else { panic!("serve") };
        let shown = |value: &dyn std::fmt::Debug| format!("{value:?}");
        let endpoints = settings.endpoints().expect("good settings");
        assert_eq!(shown(&endpoints), shown(&endpoint::Config::default()));
        assert_eq!(settings.streams(), ext_proc::Config::default());
        assert_eq!(settings.traffic.config(), traffic::Config::default());
        let mut exchange = settings.exchange.config(settings.routes.document.paths().expect("paths"));
        exchange.store.state_dir = None;
        assert_eq!(shown(&exchange), shown(&embedded::Config::default()));
    }
}
