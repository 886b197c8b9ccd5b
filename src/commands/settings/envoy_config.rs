//! The flags of `envoy-config`.

use clap::{Args, ValueEnum, builder::NonEmptyStringValueParser};

use super::{
    shared::{FileArg, RouteArgs},
    sign_in::SignInArgs,
};
use crate::{
    model::{
        page_origin::PageOrigin,
        route::{Key, RouteSpec},
    },
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
    /// Print an Envoy that serves the documents by itself and nothing else: the outer side of a gateway that is not on the
    /// internet. It needs neither envoy-cimd nor the upstreams, and knows of neither. See docs/split-horizon.md.
    #[arg(long, conflicts_with_all = ["static_cimd", "sign_in", "processor", "processor_ca"])]
    pub documents_only: bool,
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
    /// Put no tokens into MCP requests: for who carries them otherwise. With tokens, Envoy speaks to envoy-cimd over a
    /// Unix socket or mTLS, or on loopback with --insecure-traffic.
    #[arg(long)]
    pub no_traffic: bool,
    /// Put tokens in also where Envoy speaks to envoy-cimd over plain TCP on loopback: for a demo, since whoever may
    /// connect there can read every user's tokens.
    #[arg(long, env = "ENVOY_CIMD_INSECURE_TRAFFIC", default_value = "false", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", value_name = "BOOL")]
    pub insecure_traffic: bool,
    /// A web origin, besides each route's own, whose pages may send MCP requests: Envoy answers their preflights. https, or
    /// http on loopback. Repeatable.
    #[arg(long, env = "ENVOY_CIMD_ALLOW_ORIGIN", value_name = "ORIGIN", value_delimiter = ',')]
    pub allow_origin: Vec<PageOrigin>,
    /// Let Envoy listen on loopback unless told otherwise, since everybody who reaches it is one person.
    #[arg(long, env = "ENVOY_CIMD_SINGLE_USER", default_value = "false", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", value_name = "BOOL")]
    pub single_user: bool,
    /// What the filter of our paths is called in Envoy's chain, and in the routes that switch it on.
    #[arg(long, value_name = "NAME", default_value = "envoy-cimd", value_parser = NonEmptyStringValueParser::new())]
    pub filter_name: String,
    /// What the filter that puts tokens into MCP requests is called there. The one that keeps callers' credentials out
    /// of their trailers has this name with `-trailers` behind it.
    #[arg(long, value_name = "NAME", default_value = "envoy-cimd-traffic", value_parser = NonEmptyStringValueParser::new())]
    pub traffic_filter_name: String,
    /// What the filter is called there that sees what upstreams answer that refuse a token.
    #[arg(long, value_name = "NAME", default_value = "envoy-cimd-refused", value_parser = NonEmptyStringValueParser::new())]
    pub refused_filter_name: String,
    /// What envoy-cimd's cluster is called, such as the `outbound|9001||host` of a mesh.
    #[arg(long, value_name = "NAME", default_value = "envoy-cimd")]
    pub cluster: String,
    /// Where Envoy listens for https: port 8443 of all addresses unless given, with --single-user of 127.0.0.1.
    #[arg(long, value_name = "ADDR")]
    https_listen: Option<ListenAddr>,
    /// Where Envoy listens for plain http, only to refuse it: likewise, port 8080.
    #[arg(long, value_name = "ADDR")]
    http_listen: Option<ListenAddr>,
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
    pub sign_in: SignInArgs,
    #[command(flatten)]
    pub routes: RouteArgs,
}

impl EnvoyConfig {
    pub fn https_listen(&self) -> ListenAddr {
        self.https_listen.clone().unwrap_or_else(|| self.listen(8443))
    }

    pub fn http_listen(&self) -> ListenAddr {
        self.http_listen.clone().unwrap_or_else(|| self.listen(8080))
    }

    fn listen(&self, port: u16) -> ListenAddr {
        // Documents are for everybody, whoever the routes are for.
        let host = if self.single_user && !self.documents_only { "127.0.0.1" } else { "0.0.0.0" };
        ListenAddr::Tcp { host: host.to_owned(), port }
    }
}

/// A piece of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum Part {
    /// The virtual hosts.
    Routes,
    /// The HTTP filters, each off until a route switches it on.
    Filter,
    /// The cluster of envoy-cimd, those of the routes' upstreams, and with --sign-in the provider's.
    Cluster,
    /// With --sign-in, the secrets that Envoy reads for it.
    Secrets,
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
