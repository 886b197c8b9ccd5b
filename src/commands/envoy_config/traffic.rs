//! Tokens for MCP requests: the filters that put them in, and what keeps these from being printed.

use std::{collections::BTreeSet, net::IpAddr};

use anyhow::ensure;
use askama::Template;
use serde_json::json;

use super::yaml::quoted;
use crate::{
    commands::{config_file::ConfigFile, settings::envoy_config::EnvoyConfig},
    model::route::Key,
    net::listen::{ListenAddr, bare_host},
};

/// What Envoy is told of MCP requests, each text quoted for YAML.
pub struct Traffic {
    /// What the filter that puts the token in is called.
    pub name: String,
    /// What the one is called that keeps callers' credentials out of trailers.
    pub trailers: String,
    /// What the one is called that sees what upstreams answer that refuse a token; none where nobody would listen to it.
    pub refused: Option<String>,
    /// Whose pages may send MCP requests besides the routes' own, as Envoy matches them; none where nobody's may.
    pub origins: Option<String>,
}

/// Why no token is put into MCP requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LeftOut {
    /// Somebody else carries tokens.
    Asked,
    /// Anybody who reaches envoy-cimd could ask for tokens as Envoy does.
    Unprotected,
    /// By its config file, envoy-cimd would refuse to.
    NotServed,
}

impl Traffic {
    /// # Errors
    /// Where two filters have one name, or a key of the file has a value that it cannot have.
    pub fn new(
        options: &EnvoyConfig,
        file: Option<&ConfigFile>,
        processor: &ListenAddr,
    ) -> anyhow::Result<Result<Self, LeftOut>> {
        let name = &options.traffic_filter_name;
        let trailers = format!("{name}-trailers");
        let names = BTreeSet::from([&options.filter_name, name, &trailers, &options.refused_filter_name]);
        ensure!(
            names.len() == 4,
            "--filter-name, --traffic-filter-name and --refused-filter-name: a route that switches one filter on would \
             switch on the other of its name"
        );
        if options.no_traffic {
            return Ok(Err(LeftOut::Asked));
        }
        let allowed = options.insecure_traffic && is_loopback(processor);
        if !allowed && !is_protected(options, processor) {
            return Ok(Err(LeftOut::Unprotected));
        }
        if let Some(file) = file
            && !serves(file, "traffic", processor)?
        {
            return Ok(Err(LeftOut::NotServed));
        }
        let is_learning = file.map_or(Ok(true), |file| serves(file, "refused", processor))?;
        let origins: Vec<_> = options.allow_origin.iter().map(|origin| json!({"exact": origin.as_str()})).collect();
        Ok(Ok(Self {
            name: quoted(name),
            trailers: quoted(&trailers),
            refused: is_learning.then(|| quoted(&options.refused_filter_name)),
            origins: (!origins.is_empty()).then(|| quoted(&origins)),
        }))
    }

    /// # Errors
    /// Where the template fails.
    pub fn trailers_filter(&self) -> Result<String, askama::Error> {
        TrailersFilter { name: &self.trailers }.render()
    }
}

impl LeftOut {
    /// The comment that says so, without its `#`.
    pub fn lines(self) -> &'static [&'static str] {
        match self {
            Self::Asked => &[
                "No token is put into MCP requests (--no-traffic). Who puts it in must also keep the caller's own credentials",
                "from the upstream.",
            ],
            Self::NotServed => &[
                "No token is put into MCP requests: the config file keeps `serve` from it, which `envoy-cimd check` explains: by",
                "`roles` without traffic, a `choreographer` without `tokens`, or `tls_cert` without `allow_peer`.",
            ],
            Self::Unprotected => &[
                "No token is put into MCP requests: whoever could speak to envoy-cimd as Envoy does would read everybody's.",
                "Let --processor be a Unix socket, or give --processor-ca, --processor-cert and --processor-key (mTLS). For a",
                "demo, --insecure-traffic takes plain TCP on loopback; where somebody else carries tokens, say --no-traffic.",
            ],
        }
    }
}

/// Whether a token needs this key of its route.
pub fn is_needed(key: Key) -> bool {
    match key {
        Key::From | Key::To | Key::RouteId | Key::AuthorizationServer | Key::Resource => true,
        Key::ClientName | Key::Scope | Key::Prompt => false,
    }
}

/// The filter that answers browsers' questions whether a page of another origin may ask.
pub fn cors_filter() -> Result<String, askama::Error> {
    CorsFilter {}.render()
}

/// Whether none but Envoy can speak to envoy-cimd: who may open the socket, or has the certificate.
fn is_protected(options: &EnvoyConfig, processor: &ListenAddr) -> bool {
    match processor {
        ListenAddr::Unix(_) => true,
        ListenAddr::Tcp { .. } => {
            options.processor_ca.is_some() && options.processor_cert.is_some() && options.processor_key.is_some()
        }
    }
}

/// Whether nothing in the file keeps `serve` from the role.
fn serves(file: &ConfigFile, role: &str, processor: &ListenAddr) -> anyhow::Result<bool> {
    let says = |key: &str| file.settings.contains_key(key);
    let roles = file.values("roles")?;
    let takes_part = roles.is_empty() || roles.iter().any(|list| list.split(',').any(|named| named == role));
    let has_tokens = says("tokens") || !says("choreographer");
    let knows_envoy = matches!(processor, ListenAddr::Unix(_)) || says("allow_peer") || !says("tls_cert");
    Ok(takes_part && has_tokens && knows_envoy)
}

fn is_loopback(processor: &ListenAddr) -> bool {
    match processor {
        ListenAddr::Unix(_) => false,
        ListenAddr::Tcp { host, .. } => {
            let host = bare_host(host);
            host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
        }
    }
}

#[derive(Template)]
#[template(path = "envoy_trailers_filter.yaml")]
struct TrailersFilter<'a> {
    name: &'a str,
}

#[derive(Template)]
#[template(path = "envoy_cors_filter.yaml")]
struct CorsFilter {}
