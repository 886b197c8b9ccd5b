//! Where Envoy finds others, and how it speaks to them.

use std::net::IpAddr;

use anyhow::bail;
use askama::Template;
use serde_json::json;
use url::Url;

use super::yaml::quoted;
use crate::{
    commands::settings::{envoy_config::EnvoyConfig, parse::LoadedFile},
    net::{
        listen::{ListenAddr, bare_host},
        tls::peer::PeerName,
    },
};

/// The cluster of somebody else.
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

/// Where envoy-cimd is, and that Envoy is told how to speak to it.
///
/// # Errors
/// Where the config file says otherwise.
pub fn processor(options: &EnvoyConfig, file: Option<&LoadedFile>) -> anyhow::Result<ListenAddr> {
    let says = |key| file.is_some_and(|file| file.content.settings.contains_key(key));
    let address = match (&options.processor, file) {
        (Some(address), _) => address.clone(),
        (None, Some(file)) if says("listen") => {
            let listen = file.content.values("listen")?.join("");
            let address = listen.parse().map_err(|error| anyhow::anyhow!("`listen` {error}"))?;
            if is_every_address(&address) {
                bail!("`listen` is {listen}, all addresses of a machine: --processor says which one Envoy connects to");
            }
            address
        }
        (None, _) => ListenAddr::Tcp { host: "127.0.0.1".to_owned(), port: 9001 },
    };
    if says("tls_cert") && options.processor_ca.is_none() && matches!(address, ListenAddr::Tcp { .. }) {
        bail!("envoy-cimd has `tls_cert`, so Envoy needs --processor-ca, --processor-cert and --processor-key");
    }
    Ok(address)
}

/// Whether it is where to listen and not where to connect: `0.0.0.0` or `[::]`.
fn is_every_address(address: &ListenAddr) -> bool {
    match address {
        ListenAddr::Tcp { host, .. } => bare_host(host).parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified()),
        ListenAddr::Unix(_) => false,
    }
}

/// The cluster of envoy-cimd itself.
#[derive(Template)]
#[template(path = "envoy_cluster.yaml")]
pub struct Cluster {
    name: String,
    discovery: &'static str,
    /// Whether its address is a name, which may have one of either family.
    is_name: bool,
    address: String,
    tls: Option<String>,
}

impl Cluster {
    /// The cluster of envoy-cimd at this address.
    ///
    /// # Errors
    /// Where TLS is asked for on a Unix socket, or a template fails.
    pub fn new(name: String, processor: &ListenAddr, options: &EnvoyConfig) -> anyhow::Result<Self> {
        let (discovery, host) = match processor {
            ListenAddr::Tcp { host, .. } => ("STRICT_DNS", Some(bare_host(host))),
            ListenAddr::Unix(_) => ("STATIC", None),
        };
        let tls = match (&options.processor_ca, host) {
            (Some(ca), Some(host)) => {
                let mut tls = Tls { grpc: true, ..Tls::new(host, ca) };
                if let Some(peer) = &options.processor_san {
                    (tls.san_type, tls.san) = match peer {
                        PeerName::Dns(name) => ("DNS", quoted(name)),
                        PeerName::Uri(name) => ("URI", quoted(name)),
                    };
                }
                if let (Some(cert), Some(key)) = (&options.processor_cert, &options.processor_key) {
                    tls.identity = Some((quoted(cert), quoted(key)));
                }
                Some(tls.render()?)
            }
            (Some(_), None) => bail!("--processor-ca is for a --processor of TCP"),
            (None, _) => None,
        };
        Ok(Self { name, discovery, is_name: host.is_some_and(is_name), address: address(processor), tls })
    }
}
