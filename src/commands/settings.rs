//! The command line. Each setting is a flag, an `ENVOY_CIMD_…` variable and a key of the config file: a flag wins over
//! a variable, a variable over the file.

use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use crate::{
    model::paths::{DOCUMENT_PATH, EndpointPath},
    net::listen::ListenAddr,
};

pub(crate) mod documents;
pub(crate) mod envoy_config;
pub mod parse;
pub(crate) mod probe;
pub(crate) mod serve;
pub(crate) mod shared;
pub(crate) mod sign_in;
mod store_url;
pub(crate) mod traffic;

use documents::Documents;
use envoy_config::EnvoyConfig;
use probe::Probe;
use serve::Serve;
use shared::{ExchangeArgs, FileArg, ProcessArgs};

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
    /// Write every route's document as a file for a static host, and say what that host must send.
    ///
    /// For a gateway that is not on the internet.
    #[command(after_help = "For example:\n\n  envoy-cimd documents --config envoy-cimd.yaml --out public\n\n\
                            docs/split-horizon.md has the rest.")]
    Documents(Box<Documents>),
    /// Print a fresh key, a line for a key file.
    Keygen,
    /// Print what makes a shell complete these commands and flags.
    Completions {
        /// The shell, whose start-up file is to load what is printed.
        shell: Shell,
    },
    /// Fetch a document as an authorization server would, and say what would make one refuse it.
    ///
    /// Exit code 0: nothing would; warnings do not count. 1: something would, or it is not the document of --expect. 2:
    /// the command line is wrong, or the host could not be asked.
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
    /// The path of the document under every route's `from`.
    #[arg(long, env = "ENVOY_CIMD_DOCUMENT_PATH", value_name = "PATH", default_value = DOCUMENT_PATH)]
    pub document_path: EndpointPath,
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

/// A shell's completion script.
pub fn completions(shell: Shell) -> String {
    let mut script = Vec::new();
    let mut command = Cli::command();
    let name = command.get_name().to_owned();
    clap_complete::generate(shell, &mut command, name, &mut script);
    String::from_utf8_lossy(&script).into_owned()
}
