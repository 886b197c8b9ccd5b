//! The flags of `envoy-config`.

use clap::{Args, ValueEnum, builder::NonEmptyStringValueParser};

use super::shared::{FileArg, RouteArgs};
use crate::{
    model::route::{Key, RouteSpec},
    net::{listen::ListenAddr, tls::peer::PeerName},
};

/// `envoy-cimd envoy-config`.
#[derive(Args, Debug)]
pub struct EnvoyConfig {
    #[command(flatten)]
    pub file: FileArg,
    #[arg(long, value_name = "KEY=VALUE,…", value_parser = parse_route, help = route_help())]
    pub route: Vec<RouteSpec>,
    /// Let Envoy serve the documents by itself: print it anew when a route changes. The other paths stay with the filter.
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
    /// What the filter is called in Envoy's chain, and in the routes that switch it on.
    #[arg(long, value_name = "NAME", default_value = "envoy-cimd", value_parser = NonEmptyStringValueParser::new())]
    pub filter_name: String,
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

/// A piece of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum Part {
    /// The virtual hosts.
    Routes,
    /// The ext_proc filter.
    Filter,
    /// The cluster of envoy-cimd, and those of the routes' upstreams.
    Cluster,
}

fn route_help() -> String {
    let keys = Key::NAMES.join(", ");
    format!(
        "A route, as `from=https://…,to=https://…`; the keys are {keys}. Repeatable; the config file's routes come first"
    )
}

fn parse_route(text: &str) -> Result<RouteSpec, String> {
    let mut spec = RouteSpec::default();
    for pair in text.split(',') {
        let (key, value) = pair.split_once('=').ok_or(format!("`{pair}` is not KEY=VALUE"))?;
        spec.set(key, value.to_owned()).map_err(|error| error.to_string())?;
    }
    Ok(spec)
}
