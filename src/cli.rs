//! The command line. Each setting is a flag, an `ENVOY_CIMD_…` variable and a key of the config file: a flag wins over
//! a variable, a variable over the file.

use std::{collections::BTreeMap, ffi::OsString, net::SocketAddr, path::PathBuf};

use anyhow::{Context, bail};
use clap::{
    Arg, ArgAction, Args, Command, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum, builder::OsStr,
    error::ErrorKind, value_parser,
};
use clap_complete::Shell;
use tracing_subscriber::EnvFilter;

use crate::{
    choreographer::{ChoreographerUrl, ClientSettings},
    config_file::{self, ConfigFile},
    document::NameTemplate,
    listen::{ListenAddr, SocketMode},
    outgoing::AllowHost,
    probe::{DEFAULT_READY, ReadyUrl, Target},
    route::{EndpointPath, Paths, RouteSpec},
    store::StoreUrl,
    tls::{ClientTlsSettings, PeerName},
    user::{MetadataPath, UserSource, Users},
};

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

#[derive(Args, Debug)]
pub struct Serve {
    #[command(flatten)]
    pub file: FileArg,
    /// Where Envoy's ext_proc filter connects: `host:port` or `unix:/path`.
    #[arg(long, env = "ENVOY_CIMD_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:9001")]
    pub listen: ListenAddr,
    /// Where /healthz, /readyz and /metrics are served: `host:port` or `unix:/path`.
    #[arg(long, env = "ENVOY_CIMD_ADMIN_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:9002")]
    pub admin_listen: ListenAddr,
    /// The authorization choreographer: `http://host:port`, `https://host:port` or `unix:/path`.
    #[arg(long, env = "ENVOY_CIMD_CHOREOGRAPHER", value_name = "URL")]
    pub choreographer: Option<ChoreographerUrl>,
    /// The authority that the choreographer's certificate is from, a PEM file.
    #[arg(long, env = "ENVOY_CIMD_CHOREOGRAPHER_CA", value_name = "FILE")]
    pub choreographer_ca: Option<PathBuf>,
    /// Our certificate for the choreographer, a PEM file.
    #[arg(long, env = "ENVOY_CIMD_CHOREOGRAPHER_CERT", value_name = "FILE")]
    pub choreographer_cert: Option<PathBuf>,
    /// The private key of that certificate, a PEM file.
    #[arg(long, env = "ENVOY_CIMD_CHOREOGRAPHER_KEY", value_name = "FILE")]
    pub choreographer_key: Option<PathBuf>,
    /// The name that the choreographer's certificate must have, instead of the host of --choreographer: a DNS name, or
    /// a URI such as a SPIFFE id.
    #[arg(long, env = "ENVOY_CIMD_CHOREOGRAPHER_PEER", value_name = "SAN")]
    pub choreographer_peer: Option<PeerName>,
    /// The keys that sign states, one a line as `keygen` prints: the first signs, all verify. Read again when it changes.
    #[arg(long, env = "ENVOY_CIMD_STATE_KEYS", value_name = "FILE")]
    pub state_keys: Option<PathBuf>,
    /// Take everybody who reaches the routes for one person: for a demo, or a gateway of your own.
    #[arg(long, env = "ENVOY_CIMD_SINGLE_USER", default_value = "false", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", value_name = "BOOL")]
    pub single_user: bool,
    /// Where in that metadata the person's issuer is, such as `jwt_payload.iss`.
    #[arg(long, env = "ENVOY_CIMD_USER_ISSUER", value_name = "PATH")]
    pub user_issuer: Option<MetadataPath>,
    /// Where in that metadata the person's subject is, such as `jwt_payload.sub`.
    #[arg(long, env = "ENVOY_CIMD_USER_SUBJECT", value_name = "PATH")]
    pub user_subject: Option<MetadataPath>,
    #[command(flatten)]
    pub routes: RouteArgs,
    #[command(flatten)]
    pub limits: Limits,
    #[command(flatten)]
    pub exchange: ExchangeArgs,
    #[command(flatten)]
    pub process: ProcessArgs,
}

/// What one process takes on at once, and of one request.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Limits")]
pub struct Limits {
    /// How many requests may be under way. Those above are refused by gRPC's RESOURCE_EXHAUSTED, which Envoy makes a 503.
    #[arg(long, env = "ENVOY_CIMD_MAX_STREAMS", value_name = "COUNT", default_value = "10000", value_parser = at_least_one)]
    pub max_streams: usize,
    /// How many calls of the choreographer may be under way: each holds a stream, for seconds. Those above get 503.
    #[arg(long, env = "ENVOY_CIMD_MAX_CALLS", value_name = "COUNT", default_value = "1000", value_parser = at_least_one)]
    pub max_calls: usize,
    /// How long the headers of a request may be, those that Envoy sends us, names and values in all. Longer ones get 431.
    #[arg(long, env = "ENVOY_CIMD_MAX_HEADER_BYTES", value_name = "BYTES", default_value = "65536", value_parser = at_least_one)]
    pub max_header_bytes: usize,
    /// How long the query of a request may be. Longer ones get 400.
    #[arg(long, env = "ENVOY_CIMD_MAX_QUERY_BYTES", value_name = "BYTES", default_value = "8192", value_parser = at_least_one)]
    pub max_query_bytes: usize,
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

#[derive(Args, Debug)]
pub struct ChoreographerCommand {
    #[command(flatten)]
    pub file: FileArg,
    /// Where `serve` connects: `host:port` or `unix:/path`.
    #[arg(long, env = "ENVOY_CIMD_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:9003")]
    pub listen: ListenAddr,
    /// Where /healthz, /readyz and /metrics are served: `host:port` or `unix:/path`.
    #[arg(long, env = "ENVOY_CIMD_ADMIN_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:9004")]
    pub admin_listen: ListenAddr,
    #[command(flatten)]
    pub exchange: ExchangeArgs,
    #[command(flatten)]
    pub process: ProcessArgs,
}

impl Serve {
    /// How people are known.
    ///
    /// # Errors
    /// Where only a part of it is said, or two ways at once.
    pub fn users(&self) -> anyhow::Result<Users> {
        match (self.single_user, &self.routes.user_namespace, &self.user_issuer, &self.user_subject) {
            (false, None, None, None) => Ok(Users::Unknown),
            (true, None, None, None) => Ok(Users::Single),
            (false, Some(namespace), Some(issuer), Some(subject)) if !namespace.is_empty() => {
                Ok(Users::From(UserSource {
                    namespace: namespace.clone(),
                    issuer: issuer.clone(),
                    subject: subject.clone(),
                }))
            }
            (true, ..) => bail!("--single-user and --user-namespace, --user-issuer, --user-subject exclude each other"),
            (false, ..) => bail!("--user-namespace, --user-issuer and --user-subject go together"),
        }
    }

    /// How the choreographer is reached, where it is another process.
    ///
    /// # Errors
    /// Where it is said how, but not where.
    pub fn client(&self) -> anyhow::Result<Option<ClientSettings>> {
        let tls = ClientTlsSettings {
            ca: self.choreographer_ca.clone(),
            cert: self.choreographer_cert.clone(),
            key: self.choreographer_key.clone(),
            peer: self.choreographer_peer.clone(),
        };
        match &self.choreographer {
            Some(url) => Ok(Some(ClientSettings { url: url.clone(), tls })),
            None if tls == ClientTlsSettings::default() => Ok(None),
            // The flows and tokens would be kept here, and nobody would notice.
            None => bail!(
                "--choreographer-ca, --choreographer-cert, --choreographer-key and --choreographer-peer need \
                 --choreographer"
            ),
        }
    }
}

/// What `serve` and `envoy-config` must agree on.
#[derive(Args, Debug)]
#[command(next_help_heading = "Routes")]
pub struct RouteArgs {
    /// The path of the document on every route.
    #[arg(
        long,
        env = "ENVOY_CIMD_DOCUMENT_PATH",
        value_name = "PATH",
        default_value = "/.well-known/mcp-client-metadata.json"
    )]
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

#[derive(Args, Debug)]
pub struct FileArg {
    /// A YAML file of settings and routes; while `serve` runs, its `routes:` are read again when it changes.
    #[arg(long, env = "ENVOY_CIMD_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct Check {
    /// The YAML file to check, as `serve` would read it.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

#[derive(Args, Debug)]
pub struct EnvoyConfig {
    #[command(flatten)]
    pub file: FileArg,
    /// A route, as `from=https://…,to=https://…`, also with route_id=, client_name= and authorization_server=.
    /// Repeatable; the config file's routes come first.
    #[arg(long, value_name = "KEY=VALUE,…", value_parser = parse_route)]
    pub route: Vec<RouteSpec>,
    /// Let Envoy serve the documents by itself: print it anew when a route changes. Start and callback stay with the filter.
    #[arg(long)]
    pub static_cimd: bool,
    /// Print only a piece, to paste into a configuration of your own.
    #[arg(long, value_name = "PART")]
    pub part: Option<Part>,
    /// Where envoy-cimd listens, as Envoy reaches it; the config file's `listen` unless given.
    #[arg(long, value_name = "ADDR")]
    pub processor: Option<ListenAddr>,
    /// The authority that envoy-cimd's certificate is from, a PEM file: Envoy then speaks TLS to it.
    #[arg(long, value_name = "FILE")]
    pub processor_ca: Option<String>,
    /// Envoy's certificate for envoy-cimd, a PEM file.
    #[arg(long, value_name = "FILE", requires_all = ["processor_ca", "processor_key"])]
    pub processor_cert: Option<String>,
    /// The private key of that certificate, a PEM file.
    #[arg(long, value_name = "FILE", requires = "processor_cert")]
    pub processor_key: Option<String>,
    /// The name that envoy-cimd's certificate must have; the host of --processor unless given.
    #[arg(long, value_name = "SAN", requires = "processor_ca")]
    pub processor_san: Option<PeerName>,
    /// What envoy-cimd's cluster is called, such as the `outbound|9001||host` of a mesh.
    #[arg(long, value_name = "NAME", default_value = "envoy-cimd")]
    pub cluster: String,
    /// Where Envoy listens for https.
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:8443")]
    pub https_listen: ListenAddr,
    /// Where Envoy listens for plain http, only to refuse it.
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:8080")]
    pub http_listen: ListenAddr,
    /// Where Envoy's own admin interface listens.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9901")]
    pub envoy_admin: ListenAddr,
    /// Envoy's certificate chain for the routes' hosts, a PEM file.
    #[arg(long, value_name = "FILE", default_value = "/etc/envoy/tls.crt")]
    pub downstream_cert: String,
    /// The private key of that certificate, a PEM file.
    #[arg(long, value_name = "FILE", default_value = "/etc/envoy/tls.key")]
    pub downstream_key: String,
    /// The authorities that Envoy trusts when it connects to an https upstream, a PEM file.
    #[arg(long, value_name = "FILE", default_value = "/etc/ssl/certs/ca-certificates.crt")]
    pub upstream_ca: String,
    #[command(flatten)]
    pub routes: RouteArgs,
}

#[derive(Args, Debug)]
pub struct Probe {
    /// What to fetch: an origin such as `https://mcp.example.com`, or the URL of a document.
    #[arg(value_name = "URL", required_unless_present = "ready", conflicts_with = "ready")]
    pub url: Option<Target>,
    /// Ask only whether a process is ready, for a container's health check: the `http://host:port` of its admin
    /// listener, with or without /readyz, or `unix:/path`. Exit code 0: it is. 1: it is not.
    #[arg(long, value_name = "URL", num_args = 0..=1, default_missing_value = DEFAULT_READY)]
    pub ready: Option<ReadyUrl>,
    /// The path of the document, where URL is an origin.
    #[arg(
        long,
        env = "ENVOY_CIMD_DOCUMENT_PATH",
        value_name = "PATH",
        default_value = "/.well-known/mcp-client-metadata.json"
    )]
    pub document_path: EndpointPath,
    /// Authorities to trust besides the system's, a PEM file. No server outside knows them.
    #[arg(long, value_name = "FILE")]
    pub extra_ca: Option<PathBuf>,
    /// Connect to this address whatever DNS says, as before DNS is set up. Addresses are not judged then.
    #[arg(long, value_name = "IP:PORT")]
    pub connect_to: Option<SocketAddr>,
    /// How long each fetch may take, in seconds.
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = value_parser!(u16).range(1..))]
    pub timeout: u16,
    /// Print the report as JSON: `client_id`, `verdict` (`fine`, `refused` or `not_asked`) and `findings`, each with
    /// `severity` (`error` or `warning`), `code` and `message`.
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum Part {
    /// The virtual hosts.
    Routes,
    /// The ext_proc filter.
    Filter,
    /// The cluster of envoy-cimd, and those of the routes' upstreams.
    Cluster,
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

fn parse_route(text: &str) -> Result<RouteSpec, String> {
    let mut spec = RouteSpec::default();
    for pair in text.split(',') {
        let (key, value) = pair.split_once('=').ok_or(format!("`{pair}` is not KEY=VALUE"))?;
        let slot = match key {
            "from" => &mut spec.from,
            "to" => &mut spec.to,
            "route_id" => &mut spec.route_id,
            "client_name" => &mut spec.client_name,
            "authorization_server" => &mut spec.authorization_server,
            _ => return Err(format!("there is no key `{key}`")),
        };
        if slot.replace(value.to_owned()).is_some() {
            return Err(format!("`{key}` is there twice"));
        }
    }
    Ok(spec)
}

/// What was asked for, and the config file that came with it.
#[derive(Debug)]
pub struct Parsed {
    pub task: Task,
    pub file: Option<LoadedFile>,
}

/// A config file as it was read at start.
#[derive(Debug)]
pub struct LoadedFile {
    pub path: PathBuf,
    pub text: String,
    pub content: ConfigFile,
}

/// Reads command line, environment and config file, in this order of precedence: the file's values take the place of
/// the built-in defaults, and clap does the rest.
///
/// # Errors
/// A [`clap::Error`] where the command line or a variable is wrong (or help is asked for); another error where the
/// file is.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> anyhow::Result<Parsed> {
    let args: Vec<OsString> = args.into_iter().collect();
    let command = Cli::command();
    let matches = command.clone().try_get_matches_from(&args)?;
    let path =
        matches.subcommand().and_then(|(_, matches)| matches.try_get_one::<PathBuf>("config").ok().flatten().cloned());
    let task = |matches| Ok::<_, clap::Error>(Cli::from_arg_matches(&matches)?.command);
    let Some(path) = path else {
        return Ok(Parsed { task: task(matches)?, file: None });
    };
    let text = config_file::read(&path)?;
    let named = || path.display().to_string();
    let content = ConfigFile::parse(&text, &setting_keys()).with_context(named)?;
    let command = with_defaults_of(&content, command).with_context(named)?;
    let matches = command.try_get_matches_from(&args).map_err(|error| in_file(&error)).with_context(named)?;
    Ok(Parsed { task: task(matches)?, file: Some(LoadedFile { path, text, content }) })
}

/// A shell's completion script.
pub fn completions(shell: Shell) -> String {
    let mut script = Vec::new();
    let mut command = Cli::command();
    let name = command.get_name().to_owned();
    clap_complete::generate(shell, &mut command, name, &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// The keys that a config file may have besides `routes`: those of all settings, of any command.
pub fn setting_keys() -> Vec<String> {
    let mut keys: Vec<String> = Cli::command()
        .get_subcommands()
        .flat_map(Command::get_arguments)
        .filter(|arg| arg.get_env().is_some() && arg.get_id() != "config")
        .map(|arg| arg.get_id().to_string())
        .collect();
    keys.sort();
    keys.dedup();
    keys
}

fn with_defaults_of(file: &ConfigFile, command: Command) -> anyhow::Result<Command> {
    let names: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    let mut defaults = BTreeMap::new();
    for key in file.settings.keys() {
        let values: Vec<OsStr> = file.values(key)?.into_iter().map(OsStr::from).collect();
        let mut args =
            command.get_subcommands().flat_map(Command::get_arguments).filter(|arg| arg.get_id() == key.as_str());
        if values.len() != 1 && !args.any(|arg| matches!(arg.get_action(), ArgAction::Append)) {
            bail!("`{key}` takes one value, not a list");
        }
        defaults.insert(key.as_str(), values);
    }
    let with_defaults = |arg: Arg| match defaults.get(arg.get_id().as_str()) {
        Some(values) if arg.get_env().is_some() => arg.default_values(values.clone()),
        _ => arg,
    };
    Ok(names.into_iter().fold(command, |command, name| command.mut_subcommand(name, |sub| sub.mut_args(with_defaults))))
}

/// The command line was good without the file, so what is wrong now is the file's: clap names the flag, and the key is
/// the same word.
fn in_file(error: &clap::Error) -> anyhow::Error {
    use clap::error::{ContextKind, ContextValue};
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        _ => String::new(),
    };
    let flag = text(ContextKind::InvalidArg);
    let key = flag.trim_start_matches("--").split([' ', '=', '[']).next().unwrap_or_default().replace('-', "_");
    let reason = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
    match error.kind() {
        ErrorKind::ValueValidation | ErrorKind::InvalidValue if !key.is_empty() => {
            anyhow::anyhow!("`{key}`: bad value {:?}{reason}", text(ContextKind::InvalidValue))
        }
        // A parser of its own said it all, without repeating the value.
        _ => anyhow::anyhow!("{}", error.to_string().trim_start_matches("error: ").trim_end()),
    }
}
