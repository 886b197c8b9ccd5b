//! The OAuth Client ID Metadata Document of a route (draft-ietf-oauth-client-id-metadata-document).

use std::{borrow::Cow, fmt, str::FromStr};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{
    outcome::Outcome,
    reply::Reply,
    request::{Header, Request},
};
use crate::model::{
    client::{ClientId, RedirectUri},
    paths::Paths,
    public_url::PublicUrl,
    route::{MAX_DOCUMENT_BYTES, Route, RouteError},
};

/// The longest `client_id` that every server in use takes, in bytes: it is Auth0's limit.
pub const LONGEST_SAFE_CLIENT_ID: usize = 120;

/// What most documents need no more than, in bytes: a buffer that grows is copied.
const USUAL_BYTES: usize = 640;
const ETAG_BYTES: usize = 45;

/// What the endpoint answers to, for `allow` and CORS.
pub const METHODS: &str = "GET, HEAD, OPTIONS";

/// How long a browser may keep the answer to a preflight, in seconds (a day).
const PREFLIGHT_MAX_AGE: &str = "86400";

/// A route's document and its entity tag.
#[derive(Debug, PartialEq)]
pub struct Document {
    pub body: Bytes,
    /// Strong: the hash of the bytes, so that every replica gives the same one.
    pub etag: Bytes,
}

/// The names of the members.
pub const MEMBERS: [&str; 7] = [
    "client_id",
    "client_name",
    "client_uri",
    "redirect_uris",
    "grant_types",
    "response_types",
    "token_endpoint_auth_method",
];

/// The members in the order they are served in. No others: strict servers refuse members they do not know.
#[derive(Serialize)]
struct Members<'a> {
    client_id: ClientId,
    client_name: &'a str,
    client_uri: &'a str,
    redirect_uris: [RedirectUri; 1],
    grant_types: [&'static str; 2],
    response_types: [&'static str; 1],
    /// Written out: RFC 7591, section 2, takes its absence for `client_secret_basic`.
    token_endpoint_auth_method: &'static str,
}

impl Document {
    /// Builds the document from the route alone; nothing a request says gets in.
    ///
    /// # Errors
    /// Where the document would be larger than [`MAX_DOCUMENT_BYTES`].
    pub fn new(route: &Route, paths: &Paths, names: &NameTemplate) -> Result<Self, RouteError> {
        let client_name = &*names.name(route);
        let members = Members {
            client_id: paths.client_id(&route.from),
            client_name,
            client_uri: route.from.as_str(),
            redirect_uris: [paths.redirect_uri(&route.from)],
            grant_types: ["authorization_code", "refresh_token"],
            response_types: ["code"],
            token_endpoint_auth_method: "none",
        };
        let mut body = Vec::with_capacity(USUAL_BYTES);
        // A struct of texts always serializes; were it otherwise, the route would be refused as misconfigured.
        if serde_json::to_writer(&mut body, &members).is_err() || body.len() > MAX_DOCUMENT_BYTES {
            return Err(RouteError::DocumentTooLarge(body.len()));
        }
        let mut etag = String::with_capacity(ETAG_BYTES);
        etag.push('"');
        BASE64_URL_SAFE_NO_PAD.encode_string(Sha256::digest(&body), &mut etag);
        etag.push('"');
        Ok(Self { body: body.into(), etag: etag.into() })
    }

    /// Whether who asks has it already.
    pub fn is_had(&self, request: &Request<'_>) -> bool {
        if_none_match(request, &self.etag)
    }

    /// The answer to a `GET` or `HEAD`; Envoy leaves the body of an answer to `HEAD` away and keeps its length.
    pub fn served(&self, cache_control: &Bytes) -> Reply {
        let reply = Reply::new(Outcome::Served)
            .header("content-type", "application/json")
            .header("x-content-type-options", "nosniff")
            .body(self.body.clone());
        cacheable(reply, self.etag.clone(), cache_control)
    }

    /// The answer to who has it already.
    pub fn not_modified(&self, cache_control: &Bytes) -> Reply {
        cacheable(Reply::new(Outcome::NotModified), self.etag.clone(), cache_control)
    }
}

/// The `cache-control` of a document that may be kept for this many seconds.
pub fn cache_control(max_age: u32) -> Bytes {
    format!("public, max-age={max_age}").into()
}

fn cacheable(reply: Reply, etag: Bytes, cache_control: &Bytes) -> Reply {
    reply
        .header("etag", etag)
        .header("cache-control", cache_control.clone())
        .header("access-control-allow-origin", "*")
        .header("access-control-expose-headers", "etag")
}

/// The answer to a CORS preflight.
pub fn preflight() -> Reply {
    Reply::new(Outcome::Preflight)
        .header("access-control-allow-origin", "*")
        .header("access-control-allow-methods", METHODS)
        .header("access-control-allow-headers", "*")
        .header("access-control-max-age", PREFLIGHT_MAX_AGE)
}

/// RFC 9110, section 13.1.2, with the weak comparison it asks for. A tag of ours holds no comma and no quote within,
/// so splitting a list at its commas cannot make one of somebody else's.
fn if_none_match(request: &Request<'_>, etag: &[u8]) -> bool {
    request.values(Header::IfNoneMatch).any(|value| {
        value.split(|&byte| byte == b',').any(|tag| {
            let tag = tag.trim_ascii();
            tag == b"*" || tag.strip_prefix(b"W/").unwrap_or(tag) == etag
        })
    })
}

/// How a client is named whose route gives no `client_name`: a text in which `{hostname}` stands for the route's host,
/// with the path behind it where the route has one.
#[derive(Clone, Debug, PartialEq)]
pub struct NameTemplate(String);

/// The template unless another one is set.
pub const CLIENT_NAME: &str = "Pomerium MCP Proxy - {hostname}";

const HOSTNAME: &str = "{hostname}";

impl Default for NameTemplate {
    fn default() -> Self {
        Self(CLIENT_NAME.to_owned())
    }
}

impl NameTemplate {
    /// The name of a route's client: its own, or else this template's.
    pub fn name<'a>(&self, route: &'a Route) -> Cow<'a, str> {
        route.client_name().map_or_else(|| self.of(&route.from).into(), Cow::Borrowed)
    }

    fn of(&self, from: &PublicUrl) -> String {
        self.0.replace(HOSTNAME, &[from.origin().host(), from.path()].concat())
    }
}

impl FromStr for NameTemplate {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.trim().is_empty() {
            return Err("must not be empty");
        }
        if text.replace(HOSTNAME, "").contains(['{', '}']) {
            return Err("knows no placeholder but {hostname}");
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for NameTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::route::RouteSpec;

    fn document(from: &str, client_name: Option<&str>) -> Result<Document, RouteError> {
        let mut spec = RouteSpec::default();
        spec.set("from", from.to_owned()).expect("a key");
        if let Some(name) = client_name {
            spec.set("client_name", name.to_owned()).expect("a key");
        }
        Document::new(&spec.route()?, &Paths::default(), &NameTemplate::default())
    }

    /// The exact bytes, written out: servers compare some of them, and operators see the rest.
    #[test]
    fn the_bytes() {
        for (from, client_name, expected) in [
            (
                "https://mcp.example.com",
                None,
                r#"{"client_id":"https://mcp.example.com/.well-known/mcp-client-metadata.json","client_name":"Pomerium MCP Proxy - mcp.example.com","client_uri":"https://mcp.example.com","redirect_uris":["https://mcp.example.com/.pomerium/oauth/callback"],"grant_types":["authorization_code","refresh_token"],"response_types":["code"],"token_endpoint_auth_method":"none"}"#,
            ),
            (
                "https://MCP.example.com:8443/",
                None,
                r#"{"client_id":"https://mcp.example.com:8443/.well-known/mcp-client-metadata.json","client_name":"Pomerium MCP Proxy - mcp.example.com","client_uri":"https://mcp.example.com:8443","redirect_uris":["https://mcp.example.com:8443/.pomerium/oauth/callback"],"grant_types":["authorization_code","refresh_token"],"response_types":["code"],"token_endpoint_auth_method":"none"}"#,
            ),
            (
                "https://bücher.example",
                None,
                r#"{"client_id":"https://xn--bcher-kva.example/.well-known/mcp-client-metadata.json","client_name":"Pomerium MCP Proxy - xn--bcher-kva.example","client_uri":"https://xn--bcher-kva.example","redirect_uris":["https://xn--bcher-kva.example/.pomerium/oauth/callback"],"grant_types":["authorization_code","refresh_token"],"response_types":["code"],"token_endpoint_auth_method":"none"}"#,
            ),
            (
                "https://mcp.example.com/Linear/v1",
                None,
                r#"{"client_id":"https://mcp.example.com/Linear/v1/.well-known/mcp-client-metadata.json","client_name":"Pomerium MCP Proxy - mcp.example.com/Linear/v1","client_uri":"https://mcp.example.com/Linear/v1","redirect_uris":["https://mcp.example.com/Linear/v1/.pomerium/oauth/callback"],"grant_types":["authorization_code","refresh_token"],"response_types":["code"],"token_endpoint_auth_method":"none"}"#,
            ),
            (
                "https://mcp.example.com",
                Some("Müller's \"MCP\" <b>"),
                r#"{"client_id":"https://mcp.example.com/.well-known/mcp-client-metadata.json","client_name":"Müller's \"MCP\" <b>","client_uri":"https://mcp.example.com","redirect_uris":["https://mcp.example.com/.pomerium/oauth/callback"],"grant_types":["authorization_code","refresh_token"],"response_types":["code"],"token_endpoint_auth_method":"none"}"#,
            ),
        ] {
            let document = document(from, client_name).expect(from);
            assert_eq!(String::from_utf8_lossy(&document.body), expected);
        }
    }

    #[test]
    fn too_large_is_refused() {
        let most = document("https://a.example", Some("")).expect_err("an empty name");
        assert_eq!(most, RouteError::Empty("client_name"));
        let base = document("https://a.example", Some("x")).expect("small").body.len() - 1;
        assert!(document("https://a.example", Some(&"x".repeat(MAX_DOCUMENT_BYTES - base))).is_ok());
        assert_eq!(
            document("https://a.example", Some(&"x".repeat(MAX_DOCUMENT_BYTES - base + 1))),
            Err(RouteError::DocumentTooLarge(MAX_DOCUMENT_BYTES + 1))
        );
        // The path is there four times.
        let long = document(&format!("https://a.example/{}", "x".repeat(2000)), None);
        assert!(matches!(long, Err(RouteError::DocumentTooLarge(8000..))), "{long:?}");
    }

    #[test]
    fn entity_tags() {
        let document = document("https://a.example", None).expect("a document");
        let etag = document.etag;
        let ours = String::from_utf8(etag.to_vec()).expect("text");
        for (values, matches) in [
            (vec![ours.clone()], true),
            (vec![format!("W/{ours}")], true),
            (vec!["*".to_owned()], true),
            (vec![format!("\"x\", {ours},\"y\"")], true),
            (vec!["\"x\"".to_owned(), ours.clone()], true),
            (vec![], false),
            (vec!["\"x\"".to_owned()], false),
            (vec![ours.trim_matches('"').to_owned()], false),
            (vec![format!("w/{ours}")], false),
            (vec![String::new()], false),
        ] {
            let mut request = Request::default();
            for value in &values {
                request.push(b"if-none-match", value.as_bytes());
            }
            assert_eq!(if_none_match(&request, &etag), matches, "{values:?}");
        }
    }

    #[test]
    fn templates() {
        for (text, error) in [("", "must not be empty"), ("{host}", "knows no placeholder but {hostname}")] {
            assert_eq!(text.parse::<NameTemplate>(), Err(error));
        }
        let template: NameTemplate = "{hostname} by {hostname}".parse().expect("a template");
        for (from, name) in [
            ("https://a.example:8443", "a.example by a.example"),
            ("https://a.example:8443/linear", "a.example/linear by a.example/linear"),
        ] {
            assert_eq!(template.of(&from.parse().expect("a URL")), name);
        }
    }
}
