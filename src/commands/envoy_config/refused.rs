//! What upstreams answer that refuse a token: the filter that sees it.

use askama::Template;

use super::{traffic, yaml::quoted};
use crate::{
    edge::{
        read::{ATTRIBUTES, CODE_DETAILS, REQUEST_ATTRIBUTES},
        tags,
    },
    filter::response::{CHALLENGE, OF_UPSTREAM, RESPONSE_HEADERS},
    model::route::Key,
};

/// The filter, as Envoy has it; `name` and `cluster` are quoted for YAML. `namespaces`: the dynamic metadata that says
/// who the user is, and which route it is.
///
/// # Errors
/// Where the template fails.
pub fn filter(name: &str, namespaces: &[&str], cluster: &str) -> Result<String, askama::Error> {
    let forwarded: Vec<&str> = namespaces.iter().copied().chain([tags::NAMESPACE]).collect();
    let of_route = ATTRIBUTES.iter().filter(|(key, _)| is_needed(*key)).flat_map(|(_, names)| names);
    let of_request = REQUEST_ATTRIBUTES.iter().map(|(attribute, _)| *attribute);
    let attributes = of_route.map(String::as_str).chain([CODE_DETAILS]).chain(of_request).collect();
    Filter {
        name,
        cluster,
        headers: RESPONSE_HEADERS,
        attributes,
        forwarded: quoted(&forwarded),
        challenge: CHALLENGE,
        details: CODE_DETAILS.split_once('.').unwrap_or_default(),
        of_upstream: OF_UPSTREAM,
    }
    .render()
}

/// Whether a report of a refused token needs this key of its route: it is as for the token, and what may be asked for.
fn is_needed(key: Key) -> bool {
    traffic::is_needed(key) || key == Key::Scope
}

#[derive(Template)]
#[template(path = "envoy_refused_filter.yaml")]
struct Filter<'a> {
    name: &'a str,
    cluster: &'a str,
    headers: [&'static str; RESPONSE_HEADERS.len()],
    attributes: Vec<&'a str>,
    /// The namespaces of dynamic metadata that envoy-cimd reads, quoted.
    forwarded: String,
    challenge: &'static str,
    /// The attribute that says who made an answer, as object and field.
    details: (&'static str, &'static str),
    of_upstream: &'static str,
}
