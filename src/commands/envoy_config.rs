//! The Envoy configuration for a list of routes: one source for the file that ships, the demo's and the tests'.

use std::net::IpAddr;

use anyhow::{Context, bail};
use askama::Template;
use serde_json::json;
use url::Url;

use super::{
    settings::{
        envoy_config::{EnvoyConfig, Part},
        parse::LoadedFile,
        shared::RouteArgs,
    },
    shared_hosts::several_ports,
};
use crate::{
    edge::{read::ATTRIBUTES, tags},
    filter::request::{Header, TRAFFIC_HEADERS},
    model::{
        origin::Origin,
        paths::{Endpoint, Paths},
        route::{Key, MAX_DOCUMENT_BYTES, NAMESPACE, Route, RouteSpec, RouteTable},
    },
    net::{
        listen::{ListenAddr, bare_host},
        tls::peer::PeerName,
    },
};

mod refused;
mod static_document;
mod traffic;
mod yaml;

use static_document::StaticDocument;
use traffic::{LeftOut, Traffic};
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
    let table = RouteTable::new(&specs, &paths)?;
    let routes = checked(&specs, &paths, options)?;
    for warning in several_ports(routes.iter().map(|checked| &checked.route.from)) {
        eprintln!("envoy-cimd: warning: {warning}");
    }
    let processor = processor(options, file)?;
    let cluster = quoted(&options.cluster);
    let names = Names {
        ours: quoted(&options.filter_name),
        traffic: Traffic::new(options, file.map(|file| &file.content), &processor)?,
    };
    let has_upstream = routes.iter().any(|route| route.upstream.is_some());
    let filters = filters(&names, specs.is_empty() || has_upstream, &options.routes, &cluster)?;
    let cluster = Cluster::new(cluster, &processor, options)?.render()?;
    let hosts = |plain| virtual_hosts(&routes, &table, &paths, &names, plain);
    let upstreams: Vec<String> = routes
        .iter()
        .filter_map(|route| route.upstream.as_ref())
        .map(|upstream| Ok(upstream.cluster(&options.upstream_ca)?.render()?))
        .collect::<anyhow::Result<_>>()?;
    let part = |pieces: &[String]| pieces.join("\n") + "\n";
    Ok(match options.part {
        Some(Part::Filter) => part(&filters),
        Some(Part::Cluster) => part(&[&[cluster], &upstreams[..]].concat()),
        Some(Part::Routes) => part(&hosts(false)?),
        None => Whole {
            admin: address(&options.envoy_admin),
            https: address(&options.https_listen()),
            http: address(&options.http_listen()),
            cert: quoted(&options.downstream_cert),
            key: quoted(&options.downstream_key),
            hosts: hosts(false)?,
            plain_hosts: hosts(true)?,
            upstreams,
            filters,
            cluster,
            document: paths.of(Endpoint::Document).as_str(),
            filter_name: &names.ours,
            takes_tokens: has_upstream && names.traffic.is_ok(),
            others: FOR_PEOPLE.map(|endpoint| paths.of(endpoint).as_str()),
            largest_document: options.static_cimd.then_some(MAX_DOCUMENT_BYTES),
        }
        .render()?,
    })
}

/// What the filters are called in Envoy's chain.
struct Names {
    /// The one that answers our paths, quoted for YAML.
    ours: String,
    /// Those of MCP routes.
    traffic: Result<Traffic, LeftOut>,
}

/// The HTTP filters, in Envoy's order.
fn filters(names: &Names, has_traffic: bool, routes: &RouteArgs, cluster: &str) -> anyhow::Result<Vec<String>> {
    let ours = Filter::of_our_paths(&names.ours, routes, cluster).render()?;
    Ok(match &names.traffic {
        _ if !has_traffic => vec![ours],
        Ok(traffic) => {
            let cors = traffic.origins.as_ref().map(|_| traffic::cors_filter()).transpose()?;
            let of_traffic = Filter::of_traffic(&traffic.name, routes, cluster).render()?;
            let of_refused = traffic.refused.as_ref().map(|name| refused::filter(name, routes, cluster)).transpose()?;
            let before = cors.into_iter().chain([ours, traffic.trailers_filter()?]);
            before.chain(of_refused).chain([of_traffic]).collect()
        }
        Err(why) => vec![ours, why.lines().iter().map(|line| format!("# {line}")).collect::<Vec<_>>().join("\n")],
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

/// The endpoints that people come to.
const FOR_PEOPLE: [Endpoint; 3] = [Endpoint::Start, Endpoint::Callback, Endpoint::Disconnect];

/// A route with what Envoy must know of its upstream, if it has one.
struct Checked {
    spec: RouteSpec,
    route: Route,
    upstream: Option<Upstream>,
    /// The document, where Envoy is to serve it by itself.
    document: Option<StaticDocument>,
}

fn checked(specs: &[RouteSpec], paths: &Paths, options: &EnvoyConfig) -> anyhow::Result<Vec<Checked>> {
    specs
        .iter()
        .map(|spec| {
            let route = spec.route()?;
            let upstream = match spec.get(Key::To) {
                Some(_) => Some(Upstream::new(&route, paths).with_context(|| format!("{}: `to`", route.from))?),
                None => None,
            };
            let document = match options.static_cimd {
                true => {
                    Some(StaticDocument::new(&route, paths, &options.routes).with_context(|| route.from.to_string())?)
                }
                false => None,
            };
            Ok(Checked { spec: spec.clone(), route, upstream, document })
        })
        .collect()
}

/// One virtual host for each origin, with all of its routes.
fn virtual_hosts(
    routes: &[Checked],
    table: &RouteTable,
    paths: &Paths,
    names: &Names,
    plain: bool,
) -> anyhow::Result<Vec<String>> {
    let mut by_origin: Vec<(&Origin, Vec<&Checked>)> = Vec::new();
    for checked in routes {
        let origin = checked.route.from.origin();
        match by_origin.iter_mut().find(|(other, _)| *other == origin) {
            Some((_, routes)) => routes.push(checked),
            None => by_origin.push((origin, vec![checked])),
        }
    }
    let host = |(origin, routes): (&Origin, Vec<&Checked>)| {
        let (host, port) = (origin.host(), origin.port());
        // Requests that name no port, or one that no route has, go where our own table has them go: the filter then tells
        // them apart.
        let domains = match table.is_default(origin) {
            true => vec![host.to_owned(), format!("{host}:*")],
            false => vec![format!("{host}:{port}")],
        };
        let alone = routes.len() == 1;
        let metadata = |checked: &Checked| quoted(&metadata(&checked.spec, &checked.route));
        let root = |checked: &&Checked| !plain && checked.route.mcp_path().as_deref() == Some("/");
        let host = Host {
            name: quoted(origin.authority()),
            domains: quoted(&domains),
            metadata: routes.first().filter(|_| alone).map(|checked| metadata(checked)),
            filter_name: &names.ours,
            traffic: &names.traffic,
            plain,
            landing: !plain && routes.iter().any(|checked| checked.upstream.is_some()) && !routes.iter().any(root),
            routes: routes
                .into_iter()
                .map(|checked| HostRoute {
                    from: quoted(checked.route.from.as_str()),
                    metadata: (!alone).then(|| metadata(checked)),
                    document: checked.document.as_ref(),
                    our_paths: our_paths(checked, paths),
                    upstream: checked.upstream.as_ref(),
                })
                .collect(),
        };
        Ok(host.render()?)
    };
    by_origin.into_iter().map(host).collect()
}

/// The paths of ours that the filter answers, quoted for YAML, each with what it needs of the filters before ours.
fn our_paths(checked: &Checked, paths: &Paths) -> Vec<(String, &'static str)> {
    let document = (Endpoint::Document, "No authentication filter before this one.");
    let for_people = "Your authentication filter before this one; let it deny, never redirect.";
    let others = FOR_PEOPLE.map(|endpoint| (endpoint, for_people));
    let documents = checked.document.is_none().then_some(document);
    let all = documents.into_iter().chain(others);
    all.map(|(endpoint, filters)| (quoted(&paths.on(&checked.route.from, endpoint)), filters)).collect()
}

/// What the operator said of the route, `from` in its one spelling.
fn metadata(spec: &RouteSpec, route: &Route) -> serde_json::Map<String, serde_json::Value> {
    Key::ALL
        .into_iter()
        .filter_map(|key| {
            let value = if key == Key::From { Some(route.from.as_str()) } else { spec.get(key) };
            Some((key.name().to_owned(), value?.into()))
        })
        .collect()
}

/// The upstream MCP server of a route, each text quoted for YAML.
struct Upstream {
    cluster: String,
    authority: String,
    /// The path of the route's MCP address.
    path: String,
    /// The upstream's own, where that is another one.
    rewrite: Option<String>,
    url: Url,
}

impl Upstream {
    fn new(route: &Route, paths: &Paths) -> anyhow::Result<Self> {
        let url = Url::parse(route.upstream()?)?;
        let path = route.mcp_path().unwrap_or_default();
        if Endpoint::ALL.into_iter().any(|endpoint| paths.on(&route.from, endpoint) == path) {
            bail!("is one of our own paths on the route");
        }
        let host = url.host_str().unwrap_or_default();
        let authority = match url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        };
        Ok(Self {
            cluster: quoted(&format!("upstream {}", route.from.label())),
            authority: quoted(&authority),
            rewrite: (path != url.path()).then(|| quoted(url.path())),
            path: quoted(&path),
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
        let (name, is_name) = (self.cluster.clone(), is_name(&host));
        Ok(UpstreamCluster { name, is_name, address: address(&ListenAddr::Tcp { host, port }), tls })
    }
}

#[derive(Template)]
#[template(path = "envoy.yaml")]
struct Whole<'a> {
    document: &'a str,
    filter_name: &'a str,
    /// Whether tokens are put in, of whomever the authentication filter names.
    takes_tokens: bool,
    others: [&'a str; FOR_PEOPLE.len()],
    admin: String,
    https: String,
    http: String,
    cert: String,
    key: String,
    filters: Vec<String>,
    hosts: Vec<String>,
    plain_hosts: Vec<String>,
    cluster: String,
    upstreams: Vec<String>,
    /// For `max_direct_response_body_size_bytes`.
    largest_document: Option<usize>,
}

#[derive(Template)]
#[template(path = "envoy_filter.yaml")]
struct Filter<'a> {
    name: &'a str,
    /// What envoy-cimd is asked to be: `endpoints` or `traffic`.
    role: &'static str,
    cluster: &'a str,
    headers: Vec<&'static str>,
    attributes: Vec<&'static String>,
    /// The namespaces of dynamic metadata that envoy-cimd reads, quoted.
    forwarded: Option<String>,
}

impl<'a> Filter<'a> {
    fn of_our_paths(name: &'a str, routes: &RouteArgs, cluster: &'a str) -> Self {
        let headers = Header::NAMES.map(|(name, _)| name).to_vec();
        Self::new("endpoints", name, routes, cluster, headers, |_| true)
    }

    fn of_traffic(name: &'a str, routes: &RouteArgs, cluster: &'a str) -> Self {
        Self::new("traffic", name, routes, cluster, TRAFFIC_HEADERS.map(|(name, _)| name).to_vec(), traffic::is_needed)
    }

    fn new(
        role: &'static str,
        name: &'a str,
        routes: &RouteArgs,
        cluster: &'a str,
        headers: Vec<&'static str>,
        reads: fn(Key) -> bool,
    ) -> Self {
        let own = routes.dynamic_metadata.then_some(NAMESPACE);
        let namespaces: Vec<&str> = own.into_iter().chain(routes.user_namespace.as_deref()).collect();
        Self {
            name,
            role,
            cluster,
            headers,
            attributes: ATTRIBUTES.iter().filter(|(key, _)| reads(*key)).flat_map(|(_, names)| names).collect(),
            forwarded: (!namespaces.is_empty()).then(|| quoted(&namespaces)),
        }
    }
}

#[derive(Template)]
#[template(path = "envoy_host.yaml")]
struct Host<'a> {
    name: String,
    domains: String,
    /// Of the only route; several have theirs each.
    metadata: Option<String>,
    filter_name: &'a str,
    traffic: &'a Result<Traffic, LeftOut>,
    routes: Vec<HostRoute<'a>>,
    /// Whether it is the one on the plain listener, which serves nothing.
    plain: bool,
    /// Whether its root is nobody's.
    landing: bool,
}

/// One of our routes on its virtual host, which is several of Envoy's.
struct HostRoute<'a> {
    from: String,
    /// Where the virtual host has none.
    metadata: Option<String>,
    document: Option<&'a StaticDocument>,
    /// The filter's. Each with what it needs of the filters before ours.
    our_paths: Vec<(String, &'static str)>,
    upstream: Option<&'a Upstream>,
}

#[derive(Template)]
#[template(path = "envoy_cluster.yaml")]
struct Cluster {
    name: String,
    discovery: &'static str,
    /// Whether its address is a name, which may have one of either family.
    is_name: bool,
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
        Ok(Self { name, discovery, is_name: host.is_some_and(is_name), address: address(processor), tls })
    }
}

#[derive(Template)]
#[template(path = "envoy_upstream.yaml")]
struct UpstreamCluster {
    name: String,
    is_name: bool,
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
fn is_name(host: &str) -> bool {
    host.parse::<IpAddr>().is_err()
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
