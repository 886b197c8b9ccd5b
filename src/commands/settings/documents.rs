//! The flags of `documents`.

use std::path::PathBuf;

use clap::Args;

use super::shared::DocumentArgs;

/// `envoy-cimd documents`.
#[derive(Args, Debug)]
pub struct Documents {
    /// The YAML file whose `routes:` have the documents, as `serve` would read it.
    #[arg(long, env = "ENVOY_CIMD_CONFIG", value_name = "FILE")]
    pub config: PathBuf,
    /// The folder to write to, made if it is not there: each folder in it is the root of one https host, with its port
    /// where that is not 443. Files of routes that are gone are named and left.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Print the report as JSON: `documents`, each with `state` (`written`, `unchanged` or `stale`), `file`, `client_id`
    /// and `etag`, then `headers` and `preflight`.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub document: DocumentArgs,
}
