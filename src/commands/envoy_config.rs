//! The Envoy configuration for a list of routes: one source for the file that ships, the demo's and the tests'.

use std::net::IpAddr;

use anyhow::{Context, bail};
use askama::Template;
use serde_json::json;
use url::Url;

use super::settings::{
    envoy_config::{EnvoyConfig, Part},
    parse::LoadedFile,
    shared::RouteArgs,
};
use crate::{
    edge::ext_proc::ATTRIBUTES,
    filter::request::Header,
    model::{
        paths::Paths,
        route::{Key, MAX_DOCUMENT_BYTES, NAMESPACE, Route, RouteSpec, RouteTable},
    },
    net::{
        listen::{ListenAddr, bare_host},
        tls::peer::PeerName,
    },
};

mod static_document;
mod yaml;

use static_document::StaticDocument;
use yaml::quoted;

/// Prints the configuration, or the part of it that was asked for.
///
/// # Errors
/// Where a route is wrong; the error names it.
pub fn render(options: &EnvoyConfig, file: Option<&LoadedFile>) -> anyhow::Result<String> {
    let paths = options.routes.paths()?;
    let mut specs = file.map(|file| file.content.routes.clone()).unwrap_or_default();
    specs.extend(options.route.iter().cloned());
    if specs.is_empty() && !matches!(options.part, Some(Part::Filter | Part::Cluster)) {
        bail!("no route was given: --route from=https://…,to=https://…");
    }
    let routes = checked(&specs, &paths, options)?;
    let processor = processor(options, file)?;
    let cluster = quoted(&options.cluster);
    let filter = Filter::new(&options.routes, cluster.clone()).render()?;
    let cluster = Cluster::new(cluster, &processor, options)?.render()?;
    let hosts = |plain| virtual_hosts(&routes, &paths, plain);
    let upstreams: Vec<String> = routes
        .iter()
        .filter_map(|route| route.upstream.as_ref())
        .map(|upstream| Ok(upstream.cluster(&options.upstream_ca)?.render()?))
        .collect::<anyhow::Result<_>>()?;
    let part = |pieces: &[String]| pieces.join("\n") + "\n";
    Ok(match options.part {
        Some(Part::Filter) => part(&[filter]),
        Some(Part::Cluster) => part(&[&[cluster], &upstreams[..]].concat()),
        Some(Part::Routes) => part(&hosts(false)?),
        None => Whole {
            admin: address(&options.envoy_admin),
            https: address(&options.https_listen),
            http: address(&options.http_listen),
            cert: quoted(&options.downstream_cert),
            key: quoted(&options.downstream_key),
            hosts: hosts(false)?,
            plain_hosts: hosts(true)?,
            upstreams,
            filter,
            cluster,
            paths,
            largest_document: options.static_cimd.then_some(MAX_DOCUMENT_BYTES),
        }
        .render()?,
    })
}

/// Where envoy-cimd is, and that Envoy is told how to speak to it.
fn processor(options: &EnvoyConfig, file: Option<&LoadedFile>) -> anyhow::Result<ListenAddr> {
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

/// A route with what Envoy must know of its upstream, if it has one.
struct Checked {
    spec: RouteSpec,
    route: Route,
    upstream: Option<Upstream>,
    /// The document, where Envoy is to serve it by itself.
    document: Option<StaticDocument>,
}

fn checked(specs: &[RouteSpec], paths: &Paths, options: &EnvoyConfig) -> anyhow::Result<Vec<Checked>> {
    RouteTable::new(specs)?;
    specs
        .iter()
        .map(|spec| {
            let route = spec.route()?;
            let upstream = match spec.get(Key::To) {
                Some(_) => Some(Upstream::new(&route, paths).with_context(|| format!("{}: `to`", route.origin))?),
                None => None,
            };
            let document = match options.static_cimd {
                true => Some(
                    StaticDocument::new(&route, paths, &options.routes).with_context(|| route.origin.to_string())?,
                ),
                false => None,
            };
            Ok(Checked { spec: spec.clone(), route, upstream, document })
        })
        .collect()
}

fn virtual_hosts(routes: &[Checked], paths: &Paths, plain: bool) -> anyhow::Result<Vec<String>> {
    let mut seen: Vec<&str> = Vec::new();
    let mut hosts = Vec::new();
    for Checked { spec, route, upstream, document } in routes {
        let (host, port) = (route.origin.host(), route.origin.port());
        // The first route of a host also takes the requests that name no port, or one that no route has: the
        // filter then tells them apart.
        let domains = if seen.contains(&host) {
            vec![format!("{host}:{port}")]
        } else {
            vec![host.to_owned(), format!("{host}:*")]
        };
        seen.push(host);
        let mut our_paths = vec![
            (&paths.document, "No authentication filter before this one."),
            (&paths.start, "Your authentication filter before this one; let it deny, never redirect."),
            (&paths.callback, "Your authentication filter before this one; let it deny, never redirect."),
        ];
        if document.is_some() {
            our_paths.retain(|(path, _)| *path != &paths.document);
        }
        hosts.push(
            Host {
                name: quoted(route.origin.authority()),
                domains: quoted(&domains),
                metadata: quoted(&metadata(spec, route)),
                document: document.as_ref(),
                our_paths: our_paths.into_iter().map(|(path, filters)| (quoted(&path.to_string()), filters)).collect(),
                plain,
                upstream: upstream.as_ref(),
                landing: !plain && upstream.as_ref().is_some_and(|upstream| upstream.url.path() != "/"),
            }
            .render()?,
        );
    }
    Ok(hosts)
}

/// What the operator said of the route, `from` in its one spelling.
fn metadata(spec: &RouteSpec, route: &Route) -> serde_json::Map<String, serde_json::Value> {
    Key::ALL
        .into_iter()
        .filter_map(|key| {
            let value = if key == Key::From { Some(route.origin.as_str()) } else { spec.get(key) };
            Some((key.name().to_owned(), value?.into()))
        })
        .collect()
}

/// The upstream MCP server of a route, each text quoted for YAML.
struct Upstream {
    cluster: String,
    authority: String,
    path: String,
    url: Url,
}

impl Upstream {
    fn new(route: &Route, paths: &Paths) -> anyhow::Result<Self> {
        let url = Url::parse(route.upstream()?)?;
        if paths.endpoint(url.path()).is_some() {
            bail!("is one of our own paths on the route");
        }
        let host = url.host_str().unwrap_or_default();
        let authority = match url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        };
        Ok(Self {
            cluster: quoted(&format!("upstream {}", route.origin.authority())),
            authority: quoted(&authority),
            path: quoted(url.path()),
            url,
        })
    }

    fn cluster(&self, trusted_ca: &str) -> anyhow::Result<UpstreamCluster> {
        let host = bare_host(self.url.host_str().unwrap_or_default()).to_owned();
        let tls = match self.url.scheme() {
            "https" => Some(Tls::new(&host, trusted_ca).render()?),
            _ => None,
        };
        let port = self.url.port_or_known_default().unwrap_or_default();
        Ok(UpstreamCluster { name: self.cluster.clone(), address: address(&ListenAddr::Tcp { host, port }), tls })
    }
}

#[derive(Template)]
#[template(path = "envoy.yaml")]
struct Whole {
    paths: Paths,
    admin: String,
    https: String,
    http: String,
    cert: String,
    key: String,
    filter: String,
    hosts: Vec<String>,
    plain_hosts: Vec<String>,
    cluster: String,
    upstreams: Vec<String>,
    /// For `max_direct_response_body_size_bytes`.
    largest_document: Option<usize>,
}

#[derive(Template)]
#[template(path = "envoy_filter.yaml")]
struct Filter {
    cluster: String,
    headers: [&'static str; Header::NAMES.len()],
    attributes: Vec<&'static String>,
    namespaces: Option<String>,
}

impl Filter {
    fn new(routes: &RouteArgs, cluster: String) -> Self {
        let own = routes.dynamic_metadata.then_some(NAMESPACE);
        let namespaces: Vec<&str> = own.into_iter().chain(routes.user_namespace.as_deref()).collect();
        Self {
            cluster,
            headers: Header::NAMES.map(|(name, _)| name),
            attributes: ATTRIBUTES.iter().flat_map(|(_, names)| names).collect(),
            namespaces: (!namespaces.is_empty()).then(|| quoted(&namespaces)),
        }
    }
}

#[derive(Template)]
#[template(path = "envoy_host.yaml")]
struct Host<'a> {
    name: String,
    domains: String,
    metadata: String,
    document: Option<&'a StaticDocument>,
    /// The filter's. Each with what it needs of the filters before ours.
    our_paths: Vec<(String, &'static str)>,
    /// Whether it is the one on the plain listener, which serves nothing.
    plain: bool,
    upstream: Option<&'a Upstream>,
    /// Whether this is all there is of the host, and its root nobody else's.
    landing: bool,
}

#[derive(Template)]
#[template(path = "envoy_cluster.yaml")]
struct Cluster {
    name: String,
    discovery: &'static str,
    address: String,
    tls: Option<String>,
}

impl Cluster {
    fn new(name: String, processor: &ListenAddr, options: &EnvoyConfig) -> anyhow::Result<Self> {
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
        Ok(Self { name, discovery, address: address(processor), tls })
    }
}

#[derive(Template)]
#[template(path = "envoy_upstream.yaml")]
struct UpstreamCluster {
    name: String,
    address: String,
    tls: Option<String>,
}

/// How Envoy speaks TLS to a cluster, each text quoted for YAML.
#[derive(Template)]
#[template(path = "envoy_tls.yaml")]
struct Tls {
    /// None for an address: SNI knows names only.
    server_name: Option<String>,
    trusted_ca: String,
    san_type: &'static str,
    san: String,
    /// Envoy's certificate chain and its key.
    identity: Option<(String, String)>,
    grpc: bool,
}

impl Tls {
    fn new(host: &str, trusted_ca: &str) -> Self {
        let is_name = host.parse::<IpAddr>().is_err();
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

/// Envoy's way to write an address.
fn address(address: &ListenAddr) -> String {
    match address {
        ListenAddr::Tcp { host, port } => quoted(&json!({
            "socket_address": {"address": bare_host(host), "port_value": port}
        })),
        ListenAddr::Unix(path) => quoted(&json!({"pipe": {"path": path}})),
    }
}
