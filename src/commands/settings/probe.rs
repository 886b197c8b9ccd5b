//! The flags of `probe`.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, value_parser};

use crate::{
    commands::probe::{
        ready::{DEFAULT_READY, ReadyUrl},
        target::Target,
    },
    model::paths::{DOCUMENT_PATH, EndpointPath},
};

/// `envoy-cimd probe`.
#[derive(Args, Debug)]
pub struct Probe {
    /// What to fetch: a route's `from`, such as `https://mcp.example.com/linear`, or the URL of a document.
    #[arg(value_name = "URL", required_unless_present_any = ["ready", "expect"], conflicts_with = "ready")]
    pub url: Option<Target>,
    /// Say as well what differs from the document in this file, as `envoy-cimd documents` wrote it; without URL, its
    /// `client_id` is fetched.
    #[arg(long, value_name = "FILE", conflicts_with = "ready")]
    pub expect: Option<PathBuf>,
    /// Ask only whether a process is ready, for a container's health check: the `http://host:port` of its admin
    /// listener, with or without /readyz, or `unix:/path`. Exit code 0: it is. 1: it is not.
    #[arg(long, value_name = "URL", num_args = 0..=1, default_missing_value = DEFAULT_READY)]
    pub ready: Option<ReadyUrl>,
    /// The path of the document under a `from`.
    #[arg(long, env = "ENVOY_CIMD_DOCUMENT_PATH", value_name = "PATH", default_value = DOCUMENT_PATH)]
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
    /// Print the report as JSON: `client_id`, `verdict` (`fine`, `different`, `refused` or `not_asked`) and `findings`, each with
    /// `severity` (`error` or `warning`), `code` and `message`.
    #[arg(long)]
    pub json: bool,
}
