//! Envoy's virtual hosts: the routes of an origin, each with our paths and its upstream.

use anyhow::{Context, bail};
use askama::Template;
use url::Url;

use super::{
    clusters::UpstreamCluster,
    filters::Names,
    sign_in::{McpSignIn, SignIn},
    static_document::StaticDocument,
    traffic::{LeftOut, Traffic},
    yaml::quoted,
};
use crate::{
    commands::settings::envoy_config::EnvoyConfig,
    model::{
        origin::Origin,
        paths::{Endpoint, Paths},
        route::{Key, Route, RouteSpec},
        route_table::RouteTable,
    },
};

/// The endpoints that people come to.
pub const FOR_PEOPLE: [Endpoint; 3] = [Endpoint::Start, Endpoint::Callback, Endpoint::Disconnect];

/// A route with what Envoy must know of its upstream, if it has one.
pub struct Checked {
    spec: RouteSpec,
    pub route: Route,
    pub upstream: Option<Upstream>,
    /// The document, where Envoy is to serve it by itself.
    document: Option<StaticDocument>,
}

/// The routes, checked.
///
/// # Errors
/// Where one is wrong; the error names it.
pub fn checked(specs: &[RouteSpec], paths: &Paths, options: &EnvoyConfig) -> anyhow::Result<Vec<Checked>> {
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

/// One virtual host for each origin, with all of its routes: `plain` ones of the listener without TLS, or those of https.
///
/// # Errors
/// Where a template fails.
pub fn virtual_hosts(
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
pub struct Upstream {
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

    /// Its cluster, where https is trusted by these authorities, a file.
    ///
    /// # Errors
    /// Where a template fails.
    pub fn cluster(&self, trusted_ca: &str) -> Result<UpstreamCluster, askama::Error> {
        UpstreamCluster::of(self.cluster.clone(), &self.url, trusted_ca)
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
