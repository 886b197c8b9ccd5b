//! Discovery: a 401's challenges, an upstream's metadata and an authorization server's, with a line `--` between them.
//! A text without one stands for all three.

#![no_main]

use std::sync::LazyLock;

use envoy_cimd::{
    exchange::discovery::{
        documents::{
            Document, ResourceMetadata, ServerMetadata, asks_for_metadata, named_address, resource_addresses,
            server_addresses,
        },
        error::MAX_URL,
        members::Members,
    },
    model::{
        challenge::Challenge,
        issuer::is_same,
        scope::{MAX_SCOPE, Scope},
    },
    net::outgoing::{Config, Outgoing},
};
use envoy_cimd_fuzz::{at_both_sizes, is_public};
use http::{HeaderMap, HeaderValue, header::WWW_AUTHENTICATE};
use libfuzzer_sys::fuzz_target;
use url::Url;

static OUTGOING: LazyLock<Outgoing> = LazyLock::new(|| Outgoing::new(&Config::default()).expect("a client"));
static UPSTREAM: LazyLock<Url> = LazyLock::new(|| Url::parse("https://u.example/a/mcp").expect("a URL"));

/// The parameters that only we may give.
const OURS: [&str; 5] = ["client_id", "redirect_uri", "state", "scope", "code_challenge"];

fuzz_target!(|text: &str| at_both_sizes(text, check));

fn check(text: &str) {
    let mut parts = text.split("\n--\n");
    let challenge = parts.next().unwrap_or_default();
    let resource = parts.next().unwrap_or(challenge);
    let server = parts.next().unwrap_or(resource);
    let (issuer, resource, scope) = upstream(challenge, resource);
    authorization_server(&issuer, server, resource, scope);
}

/// The issuer, the resource and the scope that the upstream's words come to.
fn upstream(challenge: &str, metadata: &str) -> (String, String, Scope) {
    let unnamed = ("https://as.example".to_owned(), UPSTREAM.to_string(), Scope::default());
    let challenge = Challenge::read(challenges(challenge).get_all(WWW_AUTHENTICATE).iter().map(HeaderValue::as_bytes));
    match named_address(&challenge) {
        Ok(Some(url)) => {
            assert!(url.as_str().len() <= MAX_URL && url.username().is_empty());
            // What is exempt on the upstream's own origin.
            let below = url.path().starts_with("/.well-known/oauth-protected-resource") && url.query().is_none();
            assert!(!asks_for_metadata(&url) || below && !url.path().contains(['%', ';']), "{url}");
        }
        Ok(None) => assert!(resource_addresses(&UPSTREAM).iter().all(asks_for_metadata)),
        Err(problem) => is_short(&problem),
    }
    let Some(metadata) = document::<ResourceMetadata>(metadata) else { return unnamed };
    match metadata.check(&UPSTREAM, None) {
        Ok(()) => {
            let named = Url::parse(&metadata.resource).expect("a URL");
            assert_eq!(named.origin(), UPSTREAM.origin());
            assert!(["/a/mcp", "/a/mcp/", "/a", "/a/", "/"].contains(&named.path()), "{named}");
        }
        Err(problem) => {
            is_short(&problem);
            return unnamed;
        }
    }
    let scope = metadata.scope(&challenge, UPSTREAM.as_str());
    assert!(scope.to_string().len() <= MAX_SCOPE);
    for listed in [true, false] {
        let asked = scope.asked_of(listed);
        assert!(!asked.has_offline_access() || listed && asked.tokens().count() > 1, "{asked}");
        assert!(asked.tokens().all(|token| !token.is_empty() && !token.contains(char::is_whitespace)), "{asked}");
    }
    let issuer = metadata.authorization_servers().map_or(unnamed.0, |(first, _)| first.to_owned());
    (issuer, metadata.resource, scope)
}

fn document<T: Document>(text: &str) -> Option<T> {
    let members = Members::read(text.as_bytes()).inspect_err(|why| is_short(why)).ok()?;
    T::of(&members).inspect_err(|problem| is_short(problem)).ok()
}

/// Each line as a header, and as a challenge of the scheme that is looked for.
fn challenges(text: &str) -> HeaderMap {
    let values = text.lines().flat_map(|line| [line.to_owned(), format!("Bearer {line}")]);
    values.filter_map(|value| Some((WWW_AUTHENTICATE, HeaderValue::from_str(&value).ok()?))).collect()
}

fn authorization_server(issuer: &str, metadata: &str, resource: String, scope: Scope) {
    match server_addresses(issuer) {
        Ok(addresses) => {
            let issuer = Url::parse(issuer).expect("a URL");
            for address in addresses {
                assert_eq!(address.origin().ascii_serialization(), issuer.origin().ascii_serialization(), "{address}");
                assert!(address.path().contains("/.well-known/"), "{address}");
                assert!(address.query().is_none() && address.fragment().is_none() && address.username().is_empty());
            }
        }
        Err(problem) => is_short(&problem),
    }
    let Some(metadata) = document::<ServerMetadata>(metadata) else { return };
    match metadata.server(OUTGOING.reach(), issuer, resource.clone(), scope.clone()) {
        Ok(server) => {
            assert!(is_same(&server.issuer, issuer) && server.resource == resource && server.scope == scope);
            let endpoints = [Some(&server.authorization_endpoint), Some(&server.token_endpoint)];
            let registration = server.registration_endpoint.as_ref().inspect_err(|why| is_short(why)).ok();
            let optional = [server.revocation_endpoint.as_ref(), registration.and_then(Option::as_ref)];
            for endpoint in endpoints.into_iter().chain(optional).flatten() {
                assert!(is_public(endpoint) && endpoint.as_str().len() <= MAX_URL, "{endpoint}");
            }
            assert!(!server.authorization_endpoint.query_pairs().any(|(name, _)| OURS.contains(&name.as_ref())));
        }
        Err(problem) => is_short(&problem),
    }
}

/// What a stranger says does not fill the log.
fn is_short(problem: &impl ToString) {
    let text = problem.to_string();
    assert!(text.len() < MAX_URL + 1000, "{text}");
}
