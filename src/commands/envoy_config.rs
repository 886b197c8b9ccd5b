//! The Envoy configuration for a list of routes: one source for the file that ships, the demo's and the tests'.

use std::net::IpAddr;

use anyhow::{Context, bail};
use askama::Template;
use url::Url;

use super::{
    settings::{
        envoy_config::{EnvoyConfig, Part},
        parse::LoadedFile,
    },
    shared_hosts::several_ports,
};
use crate::{
    edge::{read::ATTRIBUTES, tags},
    filter::request::Header,
    model::{
        origin::Origin,
        paths::{Endpoint, Paths},
        route::{Key, MAX_DOCUMENT_BYTES, NAMESPACE, Route, RouteSpec},
        route_table::RouteTable,
    },
    net::{
        listen::{ListenAddr, bare_host},
        tls::peer::PeerName,
    },
};

mod clusters;
mod refused;
mod sign_in;
mod static_document;
mod traffic;
mod yaml;

use clusters::{Tls, UpstreamCluster, address, is_name};
use sign_in::{Filters as SignInFilters, McpSignIn, SignIn};
use static_document::StaticDocument;
use traffic::{LeftOut, Traffic};
use yaml::quoted;

/// Prints the configuration, or the part of it that was asked for.
///
/// # Errors
/// Where a route is wrong; the error names it.
pub fn render(options: &EnvoyConfig, file: Option<&LoadedFile>) -> anyhow::Result<String> {
    let paths = options.routes.document.paths()?;
    let mut specs = file.map(|file| file.content.routes.clone()).unwrap_or_default();
    specs.extend(options.route.iter().cloned());
    if options.documents_only {
        return documents_only(&specs, &paths, options);
    }
    let sign_in = SignIn::new(options, &paths)?;
    let needs_none = match options.part {
        Some(Part::Cluster | Part::Secrets) => true,
        // The sign-in's names the routes.
        Some(Part::Filter) => sign_in.is_none(),
        Some(Part::Routes) | None => false,
    };
    if specs.is_empty() && !needs_none {
        bail!(NO_ROUTE);
    }
    let table = RouteTable::new(&specs, &paths)?;
    let routes = checked(&specs, &paths, options)?;
    warn_of_ports(&routes);
    let processor = processor(options, file)?;
    let cluster = quoted(&options.cluster);
    let names = Names {
        ours: quoted(&options.filter_name),
        traffic: Traffic::new(options, file.map(|file| &file.content), &processor)?,
        sign_in,
    };
    let has_upstream = routes.iter().any(|route| route.upstream.is_some());
    let users = names.sign_in.as_ref().map(|_| sign_in::NAMESPACE).or(options.routes.user_namespace.as_deref());
    let own = options.routes.dynamic_metadata.then_some(NAMESPACE);
    let namespaces: Vec<&str> = own.into_iter().chain(users).collect();
    let routes_alone: Vec<&Route> = routes.iter().map(|checked| &checked.route).collect();
    let sign_in = names.sign_in.as_ref().map(|sign_in| sign_in.filters(&routes_alone, &paths)).transpose()?;
    let filters = filters(&names, specs.is_empty() || has_upstream, &namespaces, &cluster, sign_in)?;
    let cluster = Cluster::new(cluster, &processor, options)?.render()?;
    let mut clusters = vec![cluster];
    let mut secrets = None;
    if let Some(sign_in) = &names.sign_in {
        clusters.extend(sign_in.clusters(&options.upstream_ca)?);
        secrets = Some(sign_in.secrets()?);
    }
    let hosts = |plain| virtual_hosts(&routes, &table, &paths, &names, plain, false);
    for upstream in routes.iter().filter_map(|route| route.upstream.as_ref()) {
        clusters.push(upstream.cluster(&options.upstream_ca)?.render()?);
    }
    let part = |pieces: &[String]| pieces.join("\n") + "\n";
    Ok(match options.part {
        Some(Part::Filter) => part(&filters),
        Some(Part::Cluster) => part(&clusters),
        Some(Part::Secrets) => part(&[secrets.context("only --sign-in has secrets")?]),
        Some(Part::Routes) => part(&hosts(false)?),
        None => Whole {
            clusters,
            secrets,
            filters,
            takes_tokens: has_upstream && names.traffic.is_ok(),
            largest_document: options.static_cimd.then_some(MAX_DOCUMENT_BYTES),
            ..Whole::of_hosts(options, &paths, &names, hosts)?
        }
        .render()?,
    })
}

const NO_ROUTE: &str = "no route was given: --route from=https://…,to=https://…";

fn warn_of_ports(routes: &[Checked]) {
    for warning in several_ports(routes.iter().map(|checked| &checked.route.from)) {
        eprintln!("envoy-cimd: warning: {warning}");
    }
}

/// An Envoy of the documents alone. Of the routes it knows what their documents say.
fn documents_only(specs: &[RouteSpec], paths: &Paths, options: &EnvoyConfig) -> anyhow::Result<String> {
    if specs.is_empty() {
        bail!(NO_ROUTE);
    }
    let table = RouteTable::new(specs, paths)?;
    let mut routes = checked(specs, paths, options)?;
    warn_of_ports(&routes);
    for checked in &mut routes {
        checked.upstream = None;
    }
    let names = Names { ours: quoted(&options.filter_name), traffic: Err(LeftOut::Asked), sign_in: None };
    let hosts = |plain| virtual_hosts(&routes, &table, paths, &names, plain, true);
    Ok(match options.part {
        Some(Part::Routes) => hosts(false)?.join("\n") + "\n",
        Some(_) => bail!("--documents-only has no filter, no cluster and no secrets"),
        None => Whole {
            largest_document: Some(MAX_DOCUMENT_BYTES),
            documents_only: true,
            ..Whole::of_hosts(options, paths, &names, hosts)?
        }
        .render()?,
    })
}

/// What the filters are called in Envoy's chain.
struct Names<'a> {
    /// The one that answers our paths, quoted for YAML.
    ours: String,
    /// Those of MCP routes.
    traffic: Result<Traffic, LeftOut>,
    /// Those of who signs in, where they are ours.
    sign_in: Option<SignIn<'a>>,
}

/// The HTTP filters, in Envoy's order. `namespaces`: the dynamic metadata that envoy-cimd reads.
fn filters(
    names: &Names<'_>,
    has_traffic: bool,
    namespaces: &[&str],
    cluster: &str,
    sign_in: Option<SignInFilters>,
) -> anyhow::Result<Vec<String>> {
    let ours = Filter::of_our_paths(&names.ours, namespaces, cluster).render()?;
    let SignInFilters { challenge, people_and_clients } = sign_in.unwrap_or_default();
    let mut filters = Vec::new();
    match &names.traffic {
        _ if !has_traffic => filters.extend(people_and_clients.into_iter().chain([ours])),
        Ok(traffic) => {
            let cors = traffic.origins.as_ref().map(|_| traffic::cors_filter()).transpose()?;
            filters.extend(challenge.into_iter().chain(cors).chain(people_and_clients));
            filters.extend([ours, traffic.trailers_filter()?]);
            filters
                .extend(traffic.refused.as_ref().map(|name| refused::filter(name, namespaces, cluster)).transpose()?);
            filters.push(Filter::of_traffic(&traffic.name, namespaces, cluster).render()?);
        }
        Err(why) => {
            filters.extend(challenge.into_iter().chain(people_and_clients).chain([ours]));
            filters.push(why.lines().iter().map(|line| format!("# {line}")).collect::<Vec<_>>().join("\n"));
        }
    }
    Ok(filters)
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
            let document = match options.static_cimd || options.documents_only {
                true => Some(
                    StaticDocument::new(&route, paths, &options.routes.document)
                        .with_context(|| route.from.to_string())?,
                ),
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
    names: &Names<'_>,
    plain: bool,
    documents_only: bool,
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
            metadata: routes.first().filter(|_| alone && !documents_only).map(|checked| metadata(checked)),
            filter_name: &names.ours,
            traffic: &names.traffic,
            sign_in: names.sign_in.as_ref().filter(|_| !plain),
            plain,
            landing: !plain && routes.iter().any(|checked| checked.upstream.is_some()) && !routes.iter().any(root),
            routes: routes
                .into_iter()
                .map(|checked| HostRoute {
                    from: quoted(checked.route.from.as_str()),
                    metadata: (!alone && !documents_only).then(|| metadata(checked)),
                    document: checked.document.as_ref(),
                    our_paths: match documents_only {
                        true => Vec::new(),
                        false => our_paths(checked, paths, names.sign_in.is_some()),
                    },
                    upstream: checked.upstream.as_ref(),
                    sign_in: names.sign_in.as_ref().and_then(|sign_in| sign_in.of_mcp(&checked.route, paths, alone)),
                })
                .collect(),
        };
        Ok(host.render()?)
    };
    by_origin.into_iter().map(host).collect()
}

/// The paths of ours that the filter answers, quoted for YAML, each with what it needs of the filters before ours.
fn our_paths(checked: &Checked, paths: &Paths, is_signed_in: bool) -> Vec<OurPath> {
    let document = (Endpoint::Document, "No authentication filter before this one.");
    let for_people = match is_signed_in {
        true => "By the session of who signed in; what has none is denied, but for a GET of the connect page.",
        false => "Your authentication filter before this one; let it deny, never redirect.",
    };
    let others = FOR_PEOPLE.map(|endpoint| (endpoint, for_people));
    let documents = checked.document.is_none().then_some(document);
    let all = documents.into_iter().chain(others);
    all.map(|(endpoint, filters)| OurPath {
        path: quoted(&paths.on(&checked.route.from, endpoint)),
        filters,
        is_for_people: endpoint != Endpoint::Document,
    })
    .collect()
}

/// A path of ours that the filter answers.
struct OurPath {
    /// Quoted for YAML.
    path: String,
    /// What it needs of the filters before ours.
    filters: &'static str,
    is_for_people: bool,
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

    fn cluster(&self, trusted_ca: &str) -> Result<UpstreamCluster, askama::Error> {
        UpstreamCluster::of(self.cluster.clone(), &self.url, trusted_ca)
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
    clusters: Vec<String>,
    secrets: Option<String>,
    sign_in: Option<&'a SignIn<'a>>,
    /// For `max_direct_response_body_size_bytes`.
    largest_document: Option<usize>,
    /// Whether there is nothing else.
    documents_only: bool,
}

impl<'a> Whole<'a> {
    /// What every configuration has: where it listens, and its virtual hosts, of which `hosts` gives those for https, or the
    /// plain ones.
    fn of_hosts(
        options: &EnvoyConfig,
        paths: &'a Paths,
        names: &'a Names<'_>,
        hosts: impl Fn(bool) -> anyhow::Result<Vec<String>>,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            admin: address(&options.envoy_admin),
            https: address(&options.https_listen()),
            http: address(&options.http_listen()),
            cert: quoted(&options.downstream_cert),
            key: quoted(&options.downstream_key),
            hosts: hosts(false)?,
            plain_hosts: hosts(true)?,
            clusters: Vec::new(),
            secrets: None,
            filters: Vec::new(),
            sign_in: names.sign_in.as_ref(),
            document: paths.of(Endpoint::Document).as_str(),
            filter_name: &names.ours,
            takes_tokens: false,
            others: FOR_PEOPLE.map(|endpoint| paths.of(endpoint).as_str()),
            largest_document: None,
            documents_only: false,
        })
    }
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
    fn of_our_paths(name: &'a str, namespaces: &[&str], cluster: &'a str) -> Self {
        let headers = Header::OF_ENDPOINTS.map(Header::name).to_vec();
        Self::new("endpoints", name, namespaces, cluster, headers, |_| true)
    }

    fn of_traffic(name: &'a str, namespaces: &[&str], cluster: &'a str) -> Self {
        let headers = Header::OF_TRAFFIC.map(Header::name).to_vec();
        Self::new("traffic", name, namespaces, cluster, headers, traffic::is_needed)
    }

    fn new(
        role: &'static str,
        name: &'a str,
        namespaces: &[&str],
        cluster: &'a str,
        headers: Vec<&'static str>,
        reads: fn(Key) -> bool,
    ) -> Self {
        Self {
            name,
            role,
            cluster,
            headers,
            attributes: ATTRIBUTES.iter().filter(|(key, _)| reads(*key)).flat_map(|(_, names)| names).collect(),
            forwarded: (!namespaces.is_empty()).then(|| quoted(namespaces)),
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
    /// None on the plain listener.
    sign_in: Option<&'a SignIn<'a>>,
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
    /// The filter's.
    our_paths: Vec<OurPath>,
    upstream: Option<&'a Upstream>,
    /// How its MCP clients sign in, where Envoy sees to that.
    sign_in: Option<McpSignIn>,
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
