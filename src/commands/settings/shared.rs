//! The settings that several commands share.

use std::{path::PathBuf, time::Duration};

use clap::{Args, value_parser};

use super::store_url::StoreUrlParser;
use crate::{
    exchange::{self, deadlines::Deadlines},
    filter::document::{CLIENT_NAME, NameTemplate},
    model::{
        paths::{CALLBACK_PATH, DOCUMENT_PATH, EndpointPath, Paths},
        shares::ShareLimits,
    },
    net::{
        listen::{ListenAddr, SocketMode},
        outgoing::{self, allow_host::AllowHost},
        tls::{peer::PeerName, server},
    },
    process::stop,
    store::{backend::FlowLimits, url::StoreUrl, vault},
    telemetry::directives::Directives,
};

/// The file of `--config`.
#[derive(Args, Debug)]
pub struct FileArg {
    /// A YAML file of settings, routes and clients; its `routes:` and `clients:` are read again when it changes.
    #[arg(long, env = "ENVOY_CIMD_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// What documents are made of, besides their routes.
#[derive(Args, Debug)]
#[command(next_help_heading = "Routes")]
pub struct DocumentArgs {
    /// The path of the document under every route's `from`.
    #[arg(long, env = "ENVOY_CIMD_DOCUMENT_PATH", value_name = "PATH", default_value = DOCUMENT_PATH)]
    document_path: EndpointPath,
    /// The path of the redirect endpoint under every route's `from`; its siblings `start` and `disconnect` are the connect
    /// page and what ends a connection.
    #[arg(long, env = "ENVOY_CIMD_CALLBACK_PATH", value_name = "PATH", default_value = CALLBACK_PATH)]
    callback_path: EndpointPath,
    /// How long a document may be cached, in seconds.
    #[arg(long, env = "ENVOY_CIMD_DOCUMENT_MAX_AGE", value_name = "SECONDS", default_value = "3600")]
    pub document_max_age: u32,
    /// The name of a client whose route gives no `client_name`; {hostname} stands for the route's host, with its path.
    #[arg(
        long,
        env = "ENVOY_CIMD_CLIENT_NAME",
        value_name = "TEXT",
        default_value = CLIENT_NAME
    )]
    pub client_name: NameTemplate,
}

impl DocumentArgs {
    /// # Errors
    /// As [`Paths::new`].
    pub fn paths(&self) -> anyhow::Result<Paths> {
        Paths::new(self.document_path.clone(), self.callback_path.clone())
            .map_err(|error| anyhow::anyhow!("--document-path, --callback-path: {error}"))
    }
}

/// What `serve` and `envoy-config` must agree on.
#[derive(Args, Debug)]
#[command(next_help_heading = "Routes")]
pub struct RouteArgs {
    #[command(flatten)]
    pub document: DocumentArgs,
    /// Let the dynamic metadata of a request name its route. Any filter before ours may write it.
    #[arg(long, env = "ENVOY_CIMD_DYNAMIC_METADATA", default_value = "false", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", value_name = "BOOL")]
    pub dynamic_metadata: bool,
    /// The dynamic metadata of the filter that says who a person is, such as `envoy.filters.http.jwt_authn`.
    #[arg(long, env = "ENVOY_CIMD_USER_NAMESPACE", value_name = "NAMESPACE")]
    pub user_namespace: Option<String>,
}

/// What the choreographer needs, in `serve` or in a process of its own.
#[derive(Args, Debug)]
#[command(next_help_heading = "The exchange and its store")]
pub struct ExchangeArgs {
    /// Where the file store is: by default $STATE_DIRECTORY, else $XDG_STATE_HOME/envoy-cimd, else ~/.local/state/envoy-cimd.
    #[arg(long, env = "ENVOY_CIMD_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Where flows and tokens are kept: `file:PATH`, `redis://…`, `redis+sentinel://…` or `redis+cluster://…` (over TLS `rediss…`); by default a file in the state directory.
    #[arg(long, env = "ENVOY_CIMD_STORE", value_name = "URL", hide_env_values = true, value_parser = StoreUrlParser)]
    pub store: Option<StoreUrl>,
    /// The keys that seal what is kept, one a line as `keygen` prints; by default beside the file store, made when needed. Read again when it changes.
    #[arg(long, env = "ENVOY_CIMD_ENCRYPTION_KEYS", value_name = "FILE")]
    pub encryption_keys: Option<PathBuf>,
    /// Where tokens are handed out: `unix:/path`, or `host:port` with mTLS. Whoever reaches it may have every user's token.
    #[arg(long, env = "ENVOY_CIMD_TOKENS_LISTEN", value_name = "ADDR")]
    pub tokens_listen: Option<ListenAddr>,
    /// Who may connect to the Unix socket of --tokens-listen, as octal file permissions.
    #[arg(long, env = "ENVOY_CIMD_TOKENS_SOCKET_MODE", value_name = "MODE", default_value = "600")]
    pub tokens_socket_mode: SocketMode,
    /// Whom --tokens-listen lets in over TCP, as --allow-peer says for --listen, and instead of it. Repeatable.
    #[arg(long, env = "ENVOY_CIMD_TOKENS_ALLOW_PEER", value_name = "SAN", value_delimiter = ',')]
    pub tokens_allow_peer: Vec<PeerName>,
    /// A host that discovered URLs may name although its address is private or otherwise special-use: for every route,
    /// or only for the one of this `from`. Link-local addresses stay refused. Repeatable.
    #[arg(long, env = "ENVOY_CIMD_ALLOW_HOST", value_name = "HOST[:PORT][=FROM]", value_delimiter = ',')]
    pub allow_host: Vec<AllowHost>,
    /// Authorities to trust for outgoing https besides the system's, a PEM file.
    #[arg(long, env = "ENVOY_CIMD_EXTRA_CA", value_name = "FILE")]
    pub extra_ca: Option<PathBuf>,
    /// Refuse an authorization server that does not announce `iss` (RFC 9207), which closes the mix-up attack.
    #[arg(long, env = "ENVOY_CIMD_REQUIRE_ISS", default_value = "false", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", value_name = "BOOL")]
    pub require_iss: bool,
    /// Register a client at an authorization server that takes no metadata documents, and where `clients:` has none for it
    /// (RFC 7591): one for each route, at most five an hour.
    #[arg(long, env = "ENVOY_CIMD_DYNAMIC_REGISTRATION", default_value = "false", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", value_name = "BOOL")]
    pub dynamic_registration: bool,
    /// How long to wait for the answer of a token endpoint once the request was sent, in seconds, also where the caller
    /// has left.
    #[arg(long, env = "ENVOY_CIMD_TOKEN_ENDPOINT_TIMEOUT", value_name = "SECONDS", default_value = "30", value_parser = value_parser!(u16).range(1..))]
    pub token_endpoint_timeout: u16,
    /// How long a caller waits for an exchange or a refresh, in seconds, 9 at most. What was sent is not given up then.
    #[arg(long, env = "ENVOY_CIMD_PATIENCE", value_name = "SECONDS", default_value = "8", value_parser = value_parser!(u16).range(1..=9))]
    pub patience: u16,
    /// How long one attempt to refresh a token keeps other processes from it, in seconds; at least 5 more than
    /// --token-endpoint-timeout.
    #[arg(long, env = "ENVOY_CIMD_REFRESH_CLAIM", value_name = "SECONDS", default_value = "35", value_parser = value_parser!(u16).range(1..))]
    pub refresh_claim: u16,
    /// How many flows of one user are kept, pending or just ended; the next one takes the place of the oldest.
    /// --single-user has 50 times as many.
    #[arg(long, env = "ENVOY_CIMD_MAX_FLOWS_PER_USER", value_name = "COUNT", default_value = "20", value_parser = at_least_one)]
    pub max_flows_per_user: usize,
    /// How many flows are kept in all. The next one gets 503.
    #[arg(long, env = "ENVOY_CIMD_MAX_FLOWS", value_name = "COUNT", default_value = "100000", value_parser = at_least_one)]
    pub max_flows: usize,
    /// How many upstreams may be looked up at once for those who press the button, and as many again for those who only
    /// open the page. A flow that needs one more gets 503.
    #[arg(long, env = "ENVOY_CIMD_MAX_LOOKUPS", value_name = "COUNT", default_value = "100", value_parser = at_least_one)]
    pub max_lookups: usize,
    /// How many of them one user may have begun, so that the others can sign in; --single-user has 50 times as many.
    #[arg(long, env = "ENVOY_CIMD_MAX_LOOKUPS_PER_USER", value_name = "COUNT", default_value = "20", value_parser = at_least_one)]
    pub max_lookups_per_user: usize,
    /// How many of them may be at one host and port of upstreams, so that a slow one leaves room for the others.
    #[arg(long, env = "ENVOY_CIMD_MAX_LOOKUPS_PER_HOST", value_name = "COUNT", default_value = "50", value_parser = at_least_one)]
    pub max_lookups_per_host: usize,
}

impl ExchangeArgs {
    /// `paths` tell a route by its `client_id`.
    pub fn config(&self, paths: Paths) -> exchange::embedded::Config {
        exchange::embedded::Config {
            outgoing: outgoing::Config { allow_hosts: self.allow_host.clone(), paths, extra_ca: self.extra_ca.clone() },
            store: vault::Config {
                url: self.store.clone(),
                state_dir: self.state_dir.clone(),
                encryption_keys: self.encryption_keys.clone(),
                extra_ca: self.extra_ca.clone(),
            },
            lookups: ShareLimits {
                in_all: self.max_lookups,
                of_user: self.max_lookups_per_user,
                of_server: self.max_lookups_per_host,
            },
            limits: FlowLimits { of_user: self.max_flows_per_user, in_all: self.max_flows },
            deadlines: Deadlines {
                token_endpoint: Duration::from_secs(self.token_endpoint_timeout.into()),
                patience: Duration::from_secs(self.patience.into()),
                claim: Duration::from_secs(self.refresh_claim.into()),
            },
            require_iss: self.require_iss,
            clients: exchange::clients::Config {
                dynamic_registration: self.dynamic_registration,
                ..exchange::clients::Config::default()
            },
        }
    }
}

/// What every long-running command has.
#[derive(Args, Debug)]
#[command(next_help_heading = "The process")]
pub struct ProcessArgs {
    /// How many threads answer. One answers more requests than a worker of Envoy sends, and takes the least CPU for
    /// each.
    #[arg(long, env = "ENVOY_CIMD_THREADS", value_name = "COUNT", default_value = "1", value_parser = at_least_one)]
    pub threads: usize,
    /// Who may connect to the Unix socket of --listen, as octal file permissions.
    #[arg(long, env = "ENVOY_CIMD_SOCKET_MODE", value_name = "MODE", default_value = "660")]
    pub socket_mode: SocketMode,
    /// Allow plain gRPC on an address that other machines reach.
    #[arg(long, env = "ENVOY_CIMD_INSECURE_GRPC", default_value = "false", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", value_name = "BOOL")]
    pub insecure_grpc: bool,
    /// Have /readyz answer 503 while the store, the choreographer or the place that tokens come from cannot be reached.
    /// Otherwise it names them and answers 200: documents are served without them.
    #[arg(long, env = "ENVOY_CIMD_READY_NEEDS_EXCHANGE", default_value = "false", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", value_name = "BOOL")]
    pub ready_needs_exchange: bool,
    /// After SIGTERM, how long to go on answering while Envoy's health check takes notice, in seconds.
    #[arg(long, env = "ENVOY_CIMD_DRAIN_DELAY", value_name = "SECONDS", default_value = "3")]
    pub drain_delay: u16,
    /// After the drain delay, how long open streams, and exchanges and refreshes that were sent, may take to finish, in
    /// seconds.
    #[arg(long, env = "ENVOY_CIMD_DRAIN_TIMEOUT", value_name = "SECONDS", default_value = "35")]
    pub drain_timeout: u16,
    /// The OpenTelemetry collector that traces are sent to over OTLP (gRPC), such as `http://127.0.0.1:4317`; without
    /// it, no traces are made.
    #[arg(long, env = "ENVOY_CIMD_OTLP_ENDPOINT", value_name = "URL", value_parser = parse_otlp)]
    pub otlp_endpoint: Option<String>,
    /// What is logged to stderr: `error`, `warn`, `info`, `debug`, `trace`, `off`, or a filter such as
    /// `envoy_cimd=debug,warn`. What is audited is logged whatever it says.
    #[arg(long, env = "ENVOY_CIMD_LOG", value_name = "FILTER", default_value = "info")]
    pub log: Directives,
    #[command(flatten)]
    pub tls: TlsArgs,
}

impl ProcessArgs {
    /// Says that a stop may lose what a token endpoint was asked for.
    pub fn warn_of_short_drain(&self, exchange: &ExchangeArgs) {
        if self.drain_timeout < exchange.token_endpoint_timeout {
            tracing::warn!(
                "--drain-timeout is shorter than --token-endpoint-timeout: a stop may cut off an exchange or a refresh, \
                 and its token is lost"
            );
        }
    }

    pub fn stop(&self) -> stop::Config {
        stop::Config {
            drain_delay: Duration::from_secs(self.drain_delay.into()),
            drain_timeout: Duration::from_secs(self.drain_timeout.into()),
        }
    }
}

/// Who we are to those who connect over TCP, and whom we let in.
#[derive(Args, Debug, Default, PartialEq)]
#[command(next_help_heading = "Encryption between the parts")]
pub struct TlsArgs {
    /// Our certificate chain, a PEM file. With it, --tls-key and --client-ca, gRPC over TCP is mTLS. Read again when it changes.
    #[arg(long, env = "ENVOY_CIMD_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// The private key of that certificate, a PEM file.
    #[arg(long, env = "ENVOY_CIMD_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// The authority that the certificates of callers must be from, a PEM file.
    #[arg(long, env = "ENVOY_CIMD_CLIENT_CA", value_name = "FILE")]
    pub client_ca: Option<PathBuf>,
    /// A name that the certificate of a caller must have, a DNS name or a URI such as a SPIFFE id; without one, any
    /// certificate of --client-ca is let in. Repeatable.
    #[arg(long, env = "ENVOY_CIMD_ALLOW_PEER", value_name = "SAN", value_delimiter = ',')]
    pub allow_peer: Vec<PeerName>,
}

impl TlsArgs {
    /// Whether any of it is.
    pub fn is_given(&self) -> bool {
        *self != Self::default()
    }

    pub fn files(&self) -> server::Config {
        server::Config { cert: self.tls_cert.clone(), key: self.tls_key.clone(), client_ca: self.client_ca.clone() }
    }
}

pub fn at_least_one(text: &str) -> Result<usize, &'static str> {
    text.parse().ok().filter(|count| *count > 0).ok_or("is a number from 1 on")
}

fn parse_otlp(text: &str) -> Result<String, &'static str> {
    match url::Url::parse(text) {
        Ok(url) if url.scheme() == "http" && url.has_host() => Ok(text.to_owned()),
        _ => Err("is a URL such as http://127.0.0.1:4317"),
    }
}
