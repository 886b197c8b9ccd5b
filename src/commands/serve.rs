//! `envoy-cimd serve`: the ext_proc filter.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use opentelemetry::trace::SpanKind;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::task::TaskTracker;
use tonic::{server::NamedService, service::Routes};
use zeroize::Zeroizing;

use super::{
    listeners::{TokensListener, main_tls},
    notices,
    roles::{Served, roles},
    running::Process,
    settings::{
        parse::{Given, LoadedFile},
        serve::Serve,
        shared::ExchangeArgs,
    },
    trying::Trying,
    watching::{CLIENTS_ELSEWHERE, Takers, watch_state_keys},
};
use crate::{
    contract::{
        choreographer::Choreographer, client::Client, timed::Timed, tokens::UpstreamTokens,
        tokens_client::TokensClient, traced::Traced,
    },
    edge::{
        ext_proc::{ExtProc, Shared},
        roles::Roles,
        server::Server,
    },
    exchange::{clients::configured::ClientError, embedded::Embedded},
    filter::{endpoint::Endpoints, refused::Refused, route_book, state::StateKeys, traffic::Traffic},
    model::{
        paths::Paths,
        route_table::RouteTable,
        secret::{Key, parse_keys, random},
    },
    net::{
        callee::{CHOREOGRAPHER, TOKENS},
        dial::{self, Connection, Plain},
        grpc::GrpcListener,
        listen::ListenAddr,
    },
    process::tasks::Tasks,
    store::url::StoreUrl,
    telemetry::{
        exposure,
        log::LogFilter,
        metrics::{Metrics, Reached},
        reload::fingerprint,
        traces::Exporter,
    },
};

/// The choreographer that the settings ask for, and what goes with it.
pub struct Exchange {
    pub choreographer: Arc<dyn Choreographer>,
    /// Where tokens come from; none where nobody says so.
    pub tokens: Option<Arc<dyn UpstreamTokens>>,
    pub metrics: Arc<Metrics>,
    pub side: Side,
}

/// Where the choreographer is.
#[expect(clippy::large_enum_variant, reason = "there is one in a process")]
pub enum Side {
    /// In this process, with where its tokens are handed out.
    Here(Embedded, Option<TokensListener>),
    /// In another, with the connections to it.
    There(Vec<(Reached, Connection)>),
}

impl Side {
    /// Which side of the exchange's calls this process is.
    fn kind(&self) -> SpanKind {
        match self {
            Self::Here(..) => SpanKind::Internal,
            Self::There(_) => SpanKind::Client,
        }
    }
}

/// Another process, or the choreographer in this.
///
/// # Errors
/// Where a setting is wrong.
pub async fn exchange(settings: &Serve, file: Option<&LoadedFile>) -> anyhow::Result<Exchange> {
    let shared = settings.choreographer.is_some() || settings.exchange.store.as_ref().is_some_and(StoreUrl::is_shared);
    if shared && settings.state_keys.is_none() {
        bail!(
            "--choreographer and a store in Redis need --state-keys: a replica's random key is nothing to the others"
        );
    }
    let plain = if settings.process.insecure_grpc { Plain::Anywhere } else { Plain::OnLoopback };
    let tls = settings.choreographer_tls();
    let choreographer = dial::connect(&CHOREOGRAPHER, settings.choreographer.as_ref(), &tls, plain).await?;
    let (url, tls) = (settings.traffic.tokens.as_ref(), settings.traffic.tokens_tls(tls));
    let tokens = dial::connect(&TOKENS, url, &tls, Plain::Nowhere).await?;
    let Some(choreographer) = choreographer else {
        if tokens.is_some() {
            bail!("--tokens is for --choreographer: without it, this process has the tokens");
        }
        let embedded = embedded(&settings.exchange, settings.routes.document.paths()?, file)?;
        return Ok(Exchange {
            choreographer: Arc::new(embedded.clone()),
            tokens: Some(Arc::new(embedded.tokens.clone())),
            metrics: Arc::clone(&embedded.tokens.metrics),
            side: Side::Here(embedded, TokensListener::new(&settings.exchange, &settings.process)?),
        });
    };
    if settings.exchange.tokens_listen.is_some() {
        bail!("--tokens-listen is for the process that has the tokens: with --choreographer, that is the other one");
    }
    if let Some(file) = file.filter(|file| !file.content.clients.is_empty()) {
        bail!("{}: {CLIENTS_ELSEWHERE}", file.path.display());
    }
    let to_tokens = tokens.as_ref().map(|tokens| TokensClient::new(tokens.channel.clone()));
    let to_choreographer = Client::new(choreographer.channel.clone());
    let tokens = tokens.map(|tokens| (Reached::Tokens, tokens));
    let side = Side::There([(Reached::Choreographer, choreographer)].into_iter().chain(tokens).collect());
    Ok(Exchange {
        choreographer: Arc::new(to_choreographer),
        tokens: to_tokens.map(|tokens| Arc::new(tokens) as Arc<dyn UpstreamTokens>),
        metrics: Arc::default(),
        side,
    })
}

/// The choreographer in this process, with the clients of the file.
///
/// # Errors
/// Where a setting is wrong, or a client.
pub fn embedded(settings: &ExchangeArgs, paths: Paths, file: Option<&LoadedFile>) -> anyhow::Result<Embedded> {
    let mut config = settings.config(paths);
    config.clients.listed = file.map(|file| file.content.clients.clone()).unwrap_or_default();
    let named = |error: anyhow::Error| match file {
        Some(file) if error.is::<ClientError>() => error.context(file.path.display().to_string()),
        _ => error,
    };
    Embedded::new(config).map_err(named)
}

/// Tokens whose calls are timed, and traced where there is a collector.
pub fn watched_tokens(
    traces: &Exporter,
    kind: SpanKind,
    metrics: &Arc<Metrics>,
    tokens: Arc<dyn UpstreamTokens>,
) -> Arc<dyn UpstreamTokens> {
    traced_tokens(traces, kind, Arc::new(Timed::new(Arc::clone(metrics), tokens)))
}

/// Where there is a collector, tokens whose calls are traced; else the same.
fn traced_tokens(traces: &Exporter, kind: SpanKind, tokens: Arc<dyn UpstreamTokens>) -> Arc<dyn UpstreamTokens> {
    if traces.is_on() { Arc::new(Traced::new(kind, tokens)) } else { tokens }
}

/// A choreographer whose calls are timed, and traced where there is a collector.
pub fn watched(
    traces: &Exporter,
    kind: SpanKind,
    metrics: &Arc<Metrics>,
    choreographer: Arc<dyn Choreographer>,
) -> Arc<dyn Choreographer> {
    let choreographer: Arc<dyn Choreographer> = Arc::new(Timed::new(Arc::clone(metrics), choreographer));
    if traces.is_on() { Arc::new(Traced::new(kind, choreographer)) } else { choreographer }
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

/// The files of the exchange that hold secrets: the store's, and those of clients.
pub fn kept_files(embedded: &Embedded) -> Vec<PathBuf> {
    let clients = embedded.tokens.clients.configured();
    let of_clients = clients.secret_files().map(|file| file.path.clone());
    embedded.tokens.vault.files().into_iter().chain(of_clients).collect()
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// Where a setting is wrong, a listener cannot be bound, or a part of the process ends before it should.
pub async fn serve(settings: Serve, file: Option<LoadedFile>, given: &Given, log: LogFilter) -> anyhow::Result<()> {
    let tls = main_tls(&settings.listen, &settings.process, settings.exchange.tokens_listen.as_ref()).await?;
    let roles = roles(&settings).await?;
    let mut exchange = exchange(&settings, file.as_ref()).await?;
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
            routes: Routes::new(ext_proc),
        },
        service: Server::<ExtProc>::NAME,
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
