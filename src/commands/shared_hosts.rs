//! Hosts that several routes share, and what whoever configures Envoy has to know of them.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::public_url::PublicUrl;

/// A line for each host with routes on several ports.
pub fn several_ports<'a>(routes: impl IntoIterator<Item = &'a PublicUrl>) -> Vec<String> {
    let mut ports: BTreeMap<&str, BTreeSet<u16>> = BTreeMap::new();
    for from in routes {
        ports.entry(from.origin().host()).or_default().insert(from.origin().port());
    }
    ports
        .into_iter()
        .filter(|(_, ports)| ports.len() > 1)
        .map(|(host, ports)| {
            let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
            format!(
                "{host} has routes on the ports {}: an Envoy that sets strip_any_host_port (or strip_matching_host_port) \
                 serves them the documents of one another",
                ports.join(", ")
            )
        })
        .collect()
}

/// A line for each origin with several routes.
pub fn several_routes<'a>(routes: impl IntoIterator<Item = &'a PublicUrl>) -> Vec<String> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for from in routes {
        *counts.entry(from.origin().as_str()).or_default() += 1;
    }
    counts
        .into_iter()
        .filter(|(_, count)| *count > 1)
        .map(|(origin, count)| {
            format!(
                "{count} routes share {origin}, which is one site to a browser: what any of their upstreams answers must \
                 get `content-security-policy: sandbox`, and requests for service workers must be refused, as \
                 `envoy-config` prints it"
            )
        })
        .collect()
}
