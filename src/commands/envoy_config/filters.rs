//! Envoy's chain of HTTP filters.

use askama::Template;

use super::{
    refused,
    sign_in::{Filters as SignInFilters, SignIn},
    traffic::{self, LeftOut, Traffic},
    yaml::quoted,
};
use crate::{
    edge::{read::ATTRIBUTES, tags},
    filter::request::Header,
    model::route::Key,
};

/// What the filters are called in Envoy's chain.
pub struct Names<'a> {
    /// The one that answers our paths, quoted for YAML.
    pub ours: String,
    /// Those of MCP routes.
    pub traffic: Result<Traffic, LeftOut>,
    /// Those of who signs in, where they are ours.
    pub sign_in: Option<SignIn<'a>>,
}

/// The HTTP filters, in Envoy's order. `namespaces`: the dynamic metadata that envoy-cimd reads.
///
/// # Errors
/// Where a template fails.
pub fn filters(
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
