//! Where Envoy finds others, and how it speaks to them.

use std::net::IpAddr;

use askama::Template;
use serde_json::json;
use url::Url;

use super::yaml::quoted;
use crate::net::listen::{ListenAddr, bare_host};

#[derive(Template)]
#[template(path = "envoy_upstream.yaml")]
pub struct UpstreamCluster {
    /// Quoted for YAML.
    pub name: String,
    /// Whether its address is a name, which may have one of either family.
    pub is_name: bool,
    pub address: String,
    pub tls: Option<String>,
}

impl UpstreamCluster {
    /// Of this URL, by name; https is trusted by these authorities, a file.
    ///
    /// # Errors
    /// Where a template fails.
    pub fn of(name: String, url: &Url, trusted_ca: &str) -> Result<Self, askama::Error> {
        let host = bare_host(url.host_str().unwrap_or_default()).to_owned();
        let tls = match url.scheme() {
            "https" => Some(Tls::new(&host, trusted_ca).render()?),
            _ => None,
        };
        let port = url.port_or_known_default().unwrap_or_default();
        let is_name = is_name(&host);
        Ok(Self { name, is_name, address: address(&ListenAddr::Tcp { host, port }), tls })
    }
}

/// How Envoy speaks TLS to a cluster, each text quoted for YAML.
#[derive(Template)]
#[template(path = "envoy_tls.yaml")]
pub struct Tls {
    /// None for an address: SNI knows names only.
    pub server_name: Option<String>,
    pub trusted_ca: String,
    pub san_type: &'static str,
    pub san: String,
    /// Envoy's certificate chain and its key.
    pub identity: Option<(String, String)>,
    pub grpc: bool,
}

impl Tls {
    pub fn new(host: &str, trusted_ca: &str) -> Self {
        let is_name = is_name(host);
        Self {
            server_name: is_name.then(|| quoted(host)),
            trusted_ca: quoted(trusted_ca),
            san_type: if is_name { "DNS" } else { "IP_ADDRESS" },
            san: quoted(host),
            identity: None,
            grpc: false,
        }
    }
}

/// Whether a host is a name and not an address.
pub fn is_name(host: &str) -> bool {
    host.parse::<IpAddr>().is_err()
}

/// Envoy's way to write an address.
pub fn address(address: &ListenAddr) -> String {
    match address {
        ListenAddr::Tcp { host, port } => quoted(&json!({
            "socket_address": {"address": bare_host(host), "port_value": port}
        })),
        ListenAddr::Unix(path) => quoted(&json!({"pipe": {"path": path}})),
    }
}
