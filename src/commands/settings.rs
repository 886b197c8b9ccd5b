//! The command line. Each setting is a flag, an `ENVOY_CIMD_…` variable and a key of the config file: a flag wins over
//! a variable, a variable over the file.

use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use tracing_subscriber::EnvFilter;

use crate::{
    filter::document::NameTemplate,
    model::route::{EndpointPath, Paths},
    net::{
        listen::{ListenAddr, SocketMode},
        outgoing::AllowHost,
        tls::PeerName,
    },
    store::StoreUrl,
};

mod envoy_config;
mod parse;
mod probe;
mod serve;

pub use envoy_config::{EnvoyConfig, Part};
pub use parse::{LoadedFile, Parsed, parse, setting_keys};
pub use probe::Probe;
pub use serve::{Limits, Serve};

/// The path of the document unless another one is set.
const DOCUMENT_PATH: &str = "/.well-known/mcp-client-metadata.json";

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "envoy-cimd",
    version,
    about,
    max_term_width = 110,
    after_help = "Each setting is a flag, a variable, or a key of the file of --config: a flag wins over a variable, a \
                  variable over the file. Data goes to stdout, logs and errors to stderr."
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Task,
}

/// A command, with its settings.
#[derive(Debug, Subcommand)]
pub enum Task {
    /// Answer Envoy: serve every route's client metadata document, connect page and redirect endpoint.
    #[command(
        after_help = "Routes come from the metadata of Envoy's routes, or from the `routes:` of the file. For a look around:\n\n  \
                            envoy-cimd serve --single-user"
    )]
    Serve(Box<Serve>),
    /// Run the OAuth exchange of every route in a process of its own, for several `serve` to share.
    #[command(after_help = "For example:\n\n  \
                            envoy-cimd choreographer --listen unix:/run/envoy-cimd/choreographer.sock\n  \
                            envoy-cimd serve --choreographer unix:/run/envoy-cimd/choreographer.sock --state-keys FILE")]
    Choreographer(Box<ChoreographerCommand>),
    /// Check a config file and say what would be served.
    Check(Check),
    /// Print an Envoy configuration for a list of routes.
    #[command(after_help = "For example:\n\n  \
                            envoy-cimd envoy-config --route from=https://mcp.example.com,to=https://mcp.internal.example/mcp")]
    EnvoyConfig(Box<EnvoyConfig>),
    /// Print a fresh key, a line for a key file.
    Keygen,
    /// Print what makes a shell complete these commands and flags.
    Completions {
        /// The shell, whose start-up file is to load what is printed.
        shell: Shell,
    },
    /// Fetch a document as an authorization server would, and say what would make one refuse it.
    ///
    /// Exit code 0: nothing would; warnings do not count. 1: something would. 2: the command line is wrong, or the host
    /// could not be asked.
    Probe(Box<Probe>),
}

/// `envoy-cimd choreographer`.
#[derive(Args, Debug)]
pub struct ChoreographerCommand {
    #[command(flatten)]
    pub file: FileArg,
    /// Where `serve` connects: `host:port` or `unix:/path`.
    #[arg(long, env = "ENVOY_CIMD_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:9003")]
    pub listen: ListenAddr,
    /// Where /healthz, /readyz, /metrics and /log are served: `host:port` or `unix:/path`.
    #[arg(long, env = "ENVOY_CIMD_ADMIN_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:9004")]
    pub admin_listen: ListenAddr,
    #[command(flatten)]
    pub exchange: ExchangeArgs,
    #[command(flatten)]
    pub process: ProcessArgs,
}

/// `envoy-cimd check`.
#[derive(Args, Debug)]
pub struct Check {
    /// The YAML file to check, as `serve` would read it.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

/// The file of `--config`.
#[derive(Args, Debug)]
pub struct FileArg {
    /// A YAML file of settings and routes; while `serve` runs, its `routes:` are read again when it changes.
    #[arg(long, env = "ENVOY_CIMD_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// What `serve` and `envoy-config` must agree on.
#[derive(Args, Debug)]
#[command(next_help_heading = "Routes")]
pub struct RouteArgs {
    /// The path of the document on every route.
    #[arg(long, env = "ENVOY_CIMD_DOCUMENT_PATH", value_name = "PATH", default_value = DOCUMENT_PATH)]
    document_path: EndpointPath,
    /// The path of the redirect endpoint on every route; the connect page is its sibling `start`.
    #[arg(long, env = "ENVOY_CIMD_CALLBACK_PATH", value_name = "PATH", default_value = "/.pomerium/oauth/callback")]
    callback_path: EndpointPath,
    /// How long a document may be cached, in seconds.
    #[arg(long, env = "ENVOY_CIMD_DOCUMENT_MAX_AGE", value_name = "SECONDS", default_value = "3600")]
    document_max_age: u32,
    /// The name of a client whose route gives no `client_name`; {hostname} stands for the route's host.
    #[arg(
        long,
        env = "ENVOY_CIMD_CLIENT_NAME",
        value_name = "TEXT",
        default_value = "Pomerium MCP Proxy - {hostname}"
    )]
    pub client_name: NameTemplate,
    /// Let the dynamic metadata of a request name its route. Any filter before ours may write it.
    #[arg(long, env = "ENVOY_CIMD_DYNAMIC_METADATA", default_value = "false", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", value_name = "BOOL")]
    pub dynamic_metadata: bool,
    /// The dynamic metadata of the filter that says who a person is, such as `envoy.filters.http.jwt_authn`.
    #[arg(long, env = "ENVOY_CIMD_USER_NAMESPACE", value_name = "NAMESPACE")]
    pub user_namespace: Option<String>,
}

impl RouteArgs {
    /// The `cache-control` of a document.
    pub fn cache_control(&self) -> String {
        format!("public, max-age={}", self.document_max_age)
    }

    /// # Errors
    /// As [`Paths::new`].
    pub fn paths(&self) -> anyhow::Result<Paths> {
        Paths::new(self.document_path.clone(), self.callback_path.clone())
            .map_err(|error| anyhow::anyhow!("--document-path, --callback-path: {error}"))
    }
}

/// What the choreographer needs, in `serve` or in a process of its own.
#[derive(Args, Debug)]
#[command(next_help_heading = "The exchange and its store")]
pub struct ExchangeArgs {
    /// Where the file store is: by default $STATE_DIRECTORY, else $XDG_STATE_HOME/envoy-cimd, else ~/.local/state/envoy-cimd.
    #[arg(long, env = "ENVOY_CIMD_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Where flows and tokens are kept: `file:PATH`, `redis://…` or `rediss://…`; by default a file in the state directory.
    #[arg(long, env = "ENVOY_CIMD_STORE", value_name = "URL", hide_env_values = true)]
    pub store: Option<StoreUrl>,
    /// The keys that seal what is kept, one a line as `keygen` prints; by default beside the file store, made when needed.
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
    /// A host that discovered URLs may name though its address is special-use; never link-local. Repeatable.
    #[arg(long, env = "ENVOY_CIMD_ALLOW_HOST", value_name = "HOST[:PORT]", value_delimiter = ',')]
    pub allow_host: Vec<AllowHost>,
    /// Authorities to trust for outgoing https besides the system's, a PEM file.
    #[arg(long, env = "ENVOY_CIMD_EXTRA_CA", value_name = "FILE")]
    pub extra_ca: Option<PathBuf>,
    /// Refuse an authorization server that does not announce `iss` (RFC 9207), which closes the mix-up attack.
    #[arg(long, env = "ENVOY_CIMD_REQUIRE_ISS", default_value = "false", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", value_name = "BOOL")]
    pub require_iss: bool,
    /// How many flows of one user are kept, pending or just ended; the oldest goes for the next. --single-user has 50
    /// times as many.
    #[arg(long, env = "ENVOY_CIMD_MAX_FLOWS_PER_USER", value_name = "COUNT", default_value = "20", value_parser = at_least_one)]
    pub max_flows_per_user: usize,
    /// How many flows are kept in all. The next one gets 503.
    #[arg(long, env = "ENVOY_CIMD_MAX_FLOWS", value_name = "COUNT", default_value = "100000", value_parser = at_least_one)]
    pub max_flows: usize,
    /// How many upstreams may be looked up at once. A flow that needs the next gets 503.
    #[arg(long, env = "ENVOY_CIMD_MAX_LOOKUPS", value_name = "COUNT", default_value = "100", value_parser = at_least_one)]
    pub max_lookups: usize,
}

/// What every long-running command has.
#[derive(Args, Debug)]
#[command(next_help_heading = "The process")]
pub struct ProcessArgs {
    /// How many threads answer. One takes more requests than a worker of Envoy's sends, and the fewest cycles for each.
    #[arg(long, env = "ENVOY_CIMD_THREADS", value_name = "COUNT", default_value = "1", value_parser = at_least_one)]
    pub threads: usize,
    /// Who may connect to the Unix socket of --listen, as octal file permissions.
    #[arg(long, env = "ENVOY_CIMD_SOCKET_MODE", value_name = "MODE", default_value = "660")]
    pub socket_mode: SocketMode,
    /// Allow plain gRPC on an address that other machines reach.
    #[arg(long, env = "ENVOY_CIMD_INSECURE_GRPC", default_value = "false", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", value_name = "BOOL")]
    pub insecure_grpc: bool,
    /// After SIGTERM, how long to go on answering while Envoy's health check takes notice, in seconds.
    #[arg(long, env = "ENVOY_CIMD_DRAIN_DELAY", value_name = "SECONDS", default_value = "3")]
    pub drain_delay: u16,
    /// After the drain delay, how long open streams may take to finish, in seconds.
    #[arg(long, env = "ENVOY_CIMD_DRAIN_TIMEOUT", value_name = "SECONDS", default_value = "15")]
    pub drain_timeout: u16,
    /// The OpenTelemetry collector that traces are sent to over OTLP (gRPC), such as `http://127.0.0.1:4317`; none are made without.
    #[arg(long, env = "ENVOY_CIMD_OTLP_ENDPOINT", value_name = "URL", value_parser = parse_otlp)]
    pub otlp_endpoint: Option<String>,
    /// What is logged to stderr: `error`, `warn`, `info`, `debug`, or a filter such as `envoy_cimd=debug,warn`.
    #[arg(long, env = "ENVOY_CIMD_LOG", value_name = "FILTER", default_value = "info", value_parser = parse_log)]
    pub log: String,
    #[command(flatten)]
    pub tls: TlsArgs,
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

/// A shell's completion script.
pub fn completions(shell: Shell) -> String {
    let mut script = Vec::new();
    let mut command = Cli::command();
    let name = command.get_name().to_owned();
    clap_complete::generate(shell, &mut command, name, &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

fn at_least_one(text: &str) -> Result<usize, &'static str> {
    text.parse().ok().filter(|count| *count > 0).ok_or("is a number from 1 on")
}

fn parse_otlp(text: &str) -> Result<String, &'static str> {
    match url::Url::parse(text) {
        Ok(url) if url.scheme() == "http" && url.has_host() => Ok(text.to_owned()),
        _ => Err("is a URL such as http://127.0.0.1:4317"),
    }
}

fn parse_log(text: &str) -> Result<String, String> {
    match EnvFilter::try_new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(error.to_string()),
    }
}
