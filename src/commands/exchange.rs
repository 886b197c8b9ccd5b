//! The exchange that the settings ask for: in this process, or another's that is called.

use std::{path::PathBuf, sync::Arc};

use anyhow::bail;
use opentelemetry::trace::SpanKind;

use super::{
    listeners::TokensListener,
    settings::{parse::LoadedFile, serve::Serve, shared::ExchangeArgs},
    watching::CLIENTS_ELSEWHERE,
};
use crate::{
    contract::{
        choreographer::Choreographer, client::Client, timed::Timed, tokens::UpstreamTokens,
        tokens_client::TokensClient, traced::Traced,
    },
    exchange::{clients::configured::ClientError, embedded::Embedded},
    model::paths::Paths,
    net::{
        callee::{CHOREOGRAPHER, TOKENS},
        dial::{self, Connection, Plain},
    },
    store::url::StoreUrl,
    telemetry::{
        metrics::{Metrics, Reached},
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

impl Exchange {
    /// Another process, or the choreographer in this.
    ///
    /// # Errors
    /// Where a setting is wrong.
    pub async fn new(settings: &Serve, file: Option<&LoadedFile>) -> anyhow::Result<Self> {
        let shared =
            settings.choreographer.is_some() || settings.exchange.store.as_ref().is_some_and(StoreUrl::is_shared);
        if shared && settings.state_keys.is_none() {
            bail!(
                "--choreographer, and a store in Redis, need --state-keys: other replicas cannot verify what is signed \
                 with a random key"
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
            return Ok(Self {
                choreographer: Arc::new(embedded.clone()),
                tokens: Some(Arc::new(embedded.tokens.clone())),
                metrics: Arc::clone(&embedded.tokens.metrics),
                side: Side::Here(embedded, TokensListener::new(&settings.exchange, &settings.process)?),
            });
        };
        if settings.exchange.tokens_listen.is_some() {
            bail!(
                "--tokens-listen is for the process that has the tokens: with --choreographer, that is the other one"
            );
        }
        if let Some(file) = file.filter(|file| !file.content.clients.is_empty()) {
            bail!("{}: {CLIENTS_ELSEWHERE}", file.path.display());
        }
        let to_tokens = tokens.as_ref().map(|tokens| TokensClient::new(tokens.channel.clone()));
        let to_choreographer = Client::new(choreographer.channel.clone());
        let tokens = tokens.map(|tokens| (Reached::Tokens, tokens));
        let side = Side::There([(Reached::Choreographer, choreographer)].into_iter().chain(tokens).collect());
        Ok(Self {
            choreographer: Arc::new(to_choreographer),
            tokens: to_tokens.map(|tokens| Arc::new(tokens) as Arc<dyn UpstreamTokens>),
            metrics: Arc::default(),
            side,
        })
    }
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
    pub fn kind(&self) -> SpanKind {
        match self {
            Self::Here(..) => SpanKind::Internal,
            Self::There(_) => SpanKind::Client,
        }
    }
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
pub fn traced_tokens(traces: &Exporter, kind: SpanKind, tokens: Arc<dyn UpstreamTokens>) -> Arc<dyn UpstreamTokens> {
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

/// The files of the exchange that hold secrets: the store's, and those of clients.
pub fn kept_files(embedded: &Embedded) -> Vec<PathBuf> {
    let clients = embedded.tokens.clients.configured();
    let of_clients = clients.secret_files().map(|file| file.path.clone());
    embedded.tokens.vault.files().into_iter().chain(of_clients).collect()
}
