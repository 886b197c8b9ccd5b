//! The Envoy configuration for a list of routes: one source for the file that ships, the demo's and the tests'.

use anyhow::{Context, bail};
use askama::Template;

use super::{
    settings::{
        envoy_config::{EnvoyConfig, Part},
        parse::LoadedFile,
    },
    shared_hosts::several_ports,
};
use crate::model::{
    paths::{Endpoint, Paths},
    route::{MAX_DOCUMENT_BYTES, NAMESPACE, Route, RouteSpec},
    route_table::RouteTable,
};

mod clusters;
mod filters;
mod hosts;
mod refused;
mod sign_in;
mod static_document;
mod traffic;
mod yaml;

use clusters::{Cluster, address, processor};
use filters::{Names, filters};
use hosts::{Checked, FOR_PEOPLE, checked, virtual_hosts};
use sign_in::SignIn;
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
