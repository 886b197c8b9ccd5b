//! Who signs in where: what has Envoy check people's sessions and MCP clients' tokens, and tell both where to get one.

use std::collections::BTreeMap;

use anyhow::{bail, ensure};
use askama::Template;
use serde_json::{Map, Value, json};

use super::{clusters::UpstreamCluster, static_document::literally, yaml::quoted};
use crate::{
    commands::settings::{envoy_config::EnvoyConfig, sign_in::SignInUrl},
    filter::document,
    model::{
        paths::{Endpoint, Paths},
        route::Route,
    },
    net::listen::bare_host,
};

/// Under which Envoy's `jwt_authn` says who somebody is, whatever it is called in the chain.
pub const NAMESPACE: &str = "envoy.filters.http.jwt_authn";

/// Where a person comes back to from the provider, on each host.
const CALLBACK: &str = "/.pomerium/sign-in/callback";
/// Where a person's session ends.
const OUT: &str = "/.pomerium/sign-in/out";

/// Where a protected resource describes itself (RFC 9728, section 3.1).
const RESOURCE_METADATA: &str = "/.well-known/oauth-protected-resource";

/// What Envoy is told of signing in, each text quoted for YAML.
pub struct SignIn<'a> {
    pub issuer: &'a str,
    /// What the filters are called.
    pub tokens: String,
    pub session: String,
    pub challenge: String,
    pub callback: &'static str,
    pub out: &'static str,
    /// A regular expression of the paths that people come to, on whatever route.
    pub pages: String,
    authorization_endpoint: &'a SignInUrl,
    token_endpoint: &'a SignInUrl,
    jwks_uri: &'a SignInUrl,
    options: &'a EnvoyConfig,
}

/// The filters of signing in, as Envoy has them; none where it is not ours.
#[derive(Default)]
pub struct Filters {
    /// What is before all others.
    pub challenge: Option<String>,
    /// What is before our own.
    pub people_and_clients: Vec<String>,
}

/// How the MCP clients of one route sign in, each text quoted for YAML.
pub struct McpSignIn {
    /// What the filter of tokens calls what it requires here.
    pub requirement: String,
    /// Whom a client without a good token is sent to ask.
    pub challenge: String,
    /// Where the route describes itself, and how.
    pub metadata_paths: Vec<String>,
    pub metadata: String,
    pub cache_control: String,
    /// The path of the route's connect page.
    pub start: String,
}

impl<'a> SignIn<'a> {
    /// None where nobody asked for it.
    ///
    /// # Errors
    /// Where the flags contradict each other.
    pub fn new(options: &'a EnvoyConfig, paths: &Paths) -> anyhow::Result<Option<Self>> {
        let args = &options.sign_in;
        let (Some(issuer), Some(authorization_endpoint), Some(token_endpoint), Some(jwks_uri)) =
            (&args.issuer, &args.authorization_endpoint, &args.token_endpoint, &args.jwks_uri)
        else {
            return Ok(None);
        };
        ensure!(!options.single_user, "--sign-in says who people are, and --single-user that everybody is one");
        if let Some(namespace) = &options.routes.user_namespace
            && namespace != NAMESPACE
        {
            bail!("--sign-in has people come from {NAMESPACE}, and --user-namespace names {namespace}");
        }
        ensure!(
            args.scope.tokens().any(|token| token == "openid"),
            "--sign-in-scope must have `openid`: without it the provider does not say who signed in"
        );
        let name = &args.filter_name;
        let names = [name.clone(), format!("{name}-session"), format!("{name}-challenge")];
        let traffic = &options.traffic_filter_name;
        let others = [&options.filter_name, traffic, &format!("{traffic}-trailers"), &options.refused_filter_name];
        ensure!(
            names.iter().all(|name| !others.contains(&name)),
            "--sign-in-filter-name: a route that switches one filter on would switch on the other of its name"
        );
        let [tokens, session, challenge] = names.map(|name| quoted(&name));
        Ok(Some(Self {
            issuer: issuer.as_str(),
            tokens,
            session,
            challenge,
            callback: CALLBACK,
            out: OUT,
            pages: quoted(&paths_ending_in(&[Endpoint::Start, Endpoint::Callback, Endpoint::Disconnect], paths)),
            authorization_endpoint,
            token_endpoint,
            jwks_uri,
            options,
        }))
    }

    /// How a route's MCP clients sign in; none where it has no MCP address. `is_alone`: it is the only one of its host.
    pub fn of_mcp(&self, route: &Route, paths: &Paths, is_alone: bool) -> Option<McpSignIn> {
        let origin = route.from.origin().as_str();
        let path = route.mcp_path()?;
        let own = format!("{RESOURCE_METADATA}{}", path.trim_end_matches('/'));
        let mut challenge = format!(r#"Bearer resource_metadata="{origin}{own}""#);
        let mut metadata = Map::new();
        metadata.insert("resource".to_owned(), resource(route)?.into());
        metadata.insert("authorization_servers".to_owned(), json!([self.issuer]));
        metadata.insert("bearer_methods_supported".to_owned(), json!(["header"]));
        if let Some(scope) = &self.options.sign_in.mcp_scope {
            challenge.push_str(&format!(r#", scope="{scope}""#));
            metadata.insert("scopes_supported".to_owned(), scope.tokens().collect());
        }
        let mut metadata_paths = vec![quoted(&own)];
        if is_alone && own != RESOURCE_METADATA {
            metadata_paths.push(quoted(RESOURCE_METADATA));
        }
        let cache_control = document::cache_control(self.options.routes.document.document_max_age);
        Some(McpSignIn {
            requirement: quoted(&resource(route)?),
            // Envoy reads a `%` as the beginning of a command.
            challenge: quoted(&challenge.replace('%', "%%")),
            metadata_paths,
            metadata: quoted(&Value::Object(metadata).to_string()),
            cache_control: quoted(&String::from_utf8_lossy(&cache_control)),
            start: quoted(&paths.on(&route.from, Endpoint::Start)),
        })
    }

    /// The filters that it needs.
    ///
    /// # Errors
    /// Where the MCP address of a route is a path of the sign-in.
    pub fn filters(&self, routes: &[&Route], paths: &Paths) -> anyhow::Result<Filters> {
        let mut resources = Vec::new();
        let mut hosts: Vec<String> = Vec::new();
        for route in routes {
            let path = route.mcp_path().unwrap_or_default();
            if [CALLBACK, OUT].contains(&&*path) || path.starts_with(RESOURCE_METADATA) {
                bail!("{}: {path} is a path of the sign-in", route.from);
            }
            resources.extend(resource(route).map(|resource| quoted(&resource)));
            let host = quoted(bare_host(route.from.origin().host()));
            if !hosts.contains(&host) {
                hosts.push(host);
            }
        }
        let args = &self.options.sign_in;
        let session = SessionFilter {
            name: &self.session,
            authorization_endpoint: quoted(self.authorization_endpoint.as_str()),
            token_endpoint: quoted(self.token_endpoint.as_str()),
            token_cluster: quoted(&cluster_name(self.token_endpoint)),
            callback: CALLBACK,
            out: OUT,
            client_id: quoted(args.client_id.as_deref().unwrap_or_default()),
            scopes: quoted(&args.scope.tokens().collect::<Vec<_>>()),
            hosts,
            start: quoted(&paths_ending_in(&[Endpoint::Start], paths)),
        };
        let tokens = TokensFilter {
            name: &self.tokens,
            issuer: quoted(self.issuer),
            client_id: quoted(args.client_id.as_deref().unwrap_or_default()),
            jwks_uri: quoted(self.jwks_uri.as_str()),
            jwks_cluster: quoted(&cluster_name(self.jwks_uri)),
            resources,
        };
        Ok(Filters {
            challenge: Some(ChallengeFilter { name: &self.challenge }.render()?),
            people_and_clients: vec![session.render()?, tokens.render()?],
        })
    }

    /// Where Envoy finds the provider.
    pub fn clusters(&self, trusted_ca: &str) -> anyhow::Result<Vec<String>> {
        let urls = [self.token_endpoint, self.jwks_uri].map(|url| (cluster_name(url), url));
        let clusters = BTreeMap::from(urls);
        clusters
            .into_iter()
            .map(|(name, url)| Ok(UpstreamCluster::of(quoted(&name), url.url(), trusted_ca)?.render()?))
            .collect()
    }

    pub fn secrets(&self) -> Result<String, askama::Error> {
        let args = &self.options.sign_in;
        Secrets { client_secret: quoted(&args.client_secret), session_key: quoted(&args.session_key) }.render()
    }
}

/// What a route's tokens are for: its MCP address. None where it has no upstream.
fn resource(route: &Route) -> Option<String> {
    route.upstream().ok()?;
    Some(format!("{}{}", route.from.origin().as_str(), route.mcp_path()?))
}

/// A regular expression of these endpoints' paths, under whatever `from`, with a query or without.
fn paths_ending_in(endpoints: &[Endpoint], paths: &Paths) -> String {
    let paths: Vec<_> = endpoints.iter().map(|endpoint| literally(paths.of(*endpoint).as_str())).collect();
    format!(r"[^?]*({})(\?.*)?", paths.join("|"))
}

fn cluster_name(url: &SignInUrl) -> String {
    let port = url.url().port_or_known_default().unwrap_or_default();
    format!("sign-in {}:{port}", url.url().host_str().unwrap_or_default())
}

#[derive(Template)]
#[template(path = "envoy_sign_in_challenge_filter.yaml")]
struct ChallengeFilter<'a> {
    name: &'a str,
}

/// Each text quoted for YAML, but those of ours.
#[derive(Template)]
#[template(path = "envoy_sign_in_session_filter.yaml")]
struct SessionFilter<'a> {
    name: &'a str,
    authorization_endpoint: String,
    token_endpoint: String,
    token_cluster: String,
    callback: &'static str,
    out: &'static str,
    client_id: String,
    scopes: String,
    hosts: Vec<String>,
    /// A regular expression of the connect page's paths.
    start: String,
}

/// Each text quoted for YAML.
#[derive(Template)]
#[template(path = "envoy_sign_in_filter.yaml")]
struct TokensFilter<'a> {
    name: &'a str,
    issuer: String,
    client_id: String,
    jwks_uri: String,
    jwks_cluster: String,
    resources: Vec<String>,
}

#[derive(Template)]
#[template(path = "envoy_sign_in_secrets.yaml")]
struct Secrets {
    client_secret: String,
    session_key: String,
}
