//! What upstreams and authorization servers say of themselves in metadata, read and checked without a network. All of it is a
//! stranger's word.

use url::Url;

use super::{error::Problem, members::Members, strangers_url::strangers_url};
use crate::{
    model::{
        challenge::Challenge,
        issuer::is_same,
        resource::ResourceIndicator,
        scope::{MAX_SCOPE, Scope},
        upstream::Upstream,
    },
    net::outgoing::{
        error::{redacted, truncate},
        reach::Reach,
    },
};

/// An authorization server that can be used, and what it takes to ask it for one upstream.
#[derive(Clone, Debug, PartialEq)]
pub struct AuthorizationServer {
    /// Exactly as its metadata spells it.
    pub issuer: String,
    pub authorization_endpoint: Url,
    pub token_endpoint: Url,
    /// RFC 7009, where it offers that.
    pub revocation_endpoint: Option<Url>,
    /// Whether it announces `iss` in its answers (RFC 9207, section 3).
    pub sends_iss: bool,
    /// Whether it takes metadata documents for clients.
    pub takes_documents: bool,
    /// Where it registers clients (RFC 7591), if it does; else why that cannot be used.
    pub registration_endpoint: Result<Option<Url>, String>,
    /// The names of the ways in which its clients authenticate; none where it does not say.
    pub auth_methods: Option<Vec<String>>,
    /// The `resource` to ask for (RFC 8707): the upstream, as its own metadata spells it.
    pub resource: String,
    /// What to ask for; empty where nobody says.
    pub scope: Scope,
    /// Whether it lists `offline_access`.
    pub offline_access: bool,
}

/// Where an upstream's metadata is unless it says otherwise: at the path's address, else at the root's (RFC 9728,
/// section 3.1).
pub fn resource_addresses(upstream: &Url) -> Vec<Url> {
    well_known(upstream, RESOURCE)
}

/// Whether a URL is below the well-known name, so that its server takes it for nothing but a question for metadata. What
/// some servers read otherwise than the URL standard does (an encoded slash, `..;`) is not.
pub fn asks_for_metadata(url: &Url) -> bool {
    let below = url.path().strip_prefix("/.well-known/").and_then(|path| path.strip_prefix(RESOURCE));
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    url.query().is_none()
        && below.is_some_and(|rest| (rest.is_empty() || rest.starts_with('/')) && rest.bytes().all(plain))
}

const RESOURCE: &str = "oauth-protected-resource";

/// A kind of metadata.
pub trait Document: Sized {
    /// The member that says whose it is: without it, a JSON object is not such a document.
    const WHOSE: &str;

    /// # Errors
    /// What is wrong with a member that is needed.
    fn of(members: &Members) -> Result<Self, Problem>;
}

/// Protected resource metadata, as far as it is read (RFC 9728, section 2).
#[derive(Debug)]
pub struct ResourceMetadata {
    pub resource: String,
    authorization_servers: Result<Vec<String>, Problem>,
    scope: Scope,
}

impl Document for ResourceMetadata {
    const WHOSE: &str = "resource";

    fn of(members: &Members) -> Result<Self, Problem> {
        let resource = members.text("resource")?.ok_or(Problem::Lacks("resource"))?;
        Ok(Self {
            authorization_servers: members.list("authorization_servers").map(Option::unwrap_or_default),
            scope: scopes(members, &resource),
            resource,
        })
    }
}

impl ResourceMetadata {
    /// Whether it is this upstream's (RFC 9728, section 3.3), or where the operator says what that calls itself, of that
    /// name.
    ///
    /// # Errors
    /// Where its `resource` is not a URL, or is another's.
    pub fn check(&self, upstream: &Url, name: Option<&ResourceIndicator>) -> Result<(), Problem> {
        let named = strangers_url("resource", &self.resource)?;
        match name {
            Some(name) if name.as_str() == self.resource => Ok(()),
            Some(name) => Err(Problem::OtherResource(redacted(&named), truncate(name.to_string()))),
            None if is_prefix(&named, upstream) => Ok(()),
            None => Err(Problem::ForeignResource(redacted(&named))),
        }
    }

    /// The issuers that it names: the first, and the others.
    ///
    /// # Errors
    /// Where there is none.
    pub fn authorization_servers(&self) -> Result<(&str, &[String]), Problem> {
        let (first, others) =
            self.authorization_servers.as_ref().map_err(Clone::clone)?.split_first().ok_or(Problem::NoServer)?;
        Ok((first, others))
    }

    /// What to ask for: what the upstream's challenge says, else what is listed here.
    pub fn scope(&self, challenge: &Challenge, upstream: &str) -> Scope {
        let asked = challenged(challenge, upstream);
        if asked.is_empty() { self.scope.clone() } else { asked }
    }
}

/// Where an upstream's challenge says that its metadata is.
///
/// # Errors
/// Where that is not a URL.
pub fn named_address(challenge: &Challenge) -> Result<Option<Url>, Problem> {
    challenge.resource_metadata().map(|address| strangers_url("resource_metadata", address)).transpose()
}

/// What an upstream's challenge says to ask for; empty where it does not say.
pub fn challenged(challenge: &Challenge, upstream: &str) -> Scope {
    short(challenge.scope().clone(), upstream)
}

/// Whether a token for this resource is one for a route of this upstream: what [`ResourceMetadata::check`] takes, and the
/// upstream itself. So it stays the right one when the metadata cannot be read for a while, or names another part of the
/// upstream's path.
pub fn is_resource_of(resource: &str, upstream: &Upstream) -> bool {
    match &upstream.resource {
        Some(name) => name.as_str() == resource,
        None if resource == upstream.url => true,
        None => Url::parse(resource)
            .ok()
            .zip(Url::parse(&upstream.url).ok())
            .is_some_and(|(named, url)| is_prefix(&named, &url)),
    }
}

/// `scopes_supported` of a document; empty where it cannot be used.
fn scopes(members: &Members, of: &str) -> Scope {
    let scope = spare(members.list("scopes_supported"), of).unwrap_or_default();
    short(Scope::of(scope.iter().map(String::as_str)), of)
}

/// What fits into an address; else nothing, as if nothing had been said.
fn short(scope: Scope, of: &str) -> Scope {
    if !scope.fits() {
        let of = truncate(of.to_owned());
        tracing::warn!(
            of,
            "a scope takes more than {MAX_SCOPE} bytes, and is not asked for; the route may set its own"
        );
        return Scope::default();
    }
    scope
}

/// A member that can be done without. One that cannot be used counts as not said.
fn spare<T>(member: Result<Option<T>, Problem>, of: &str) -> Option<T> {
    member.unwrap_or_else(|problem| {
        let of = truncate(of.to_owned());
        tracing::warn!(of, %problem, "a member of its metadata cannot be used, and counts as not said");
        None
    })
}

/// Authorization server metadata, as far as it is read (RFC 8414, section 2).
#[derive(Debug)]
pub struct ServerMetadata {
    issuer: String,
    authorization_endpoint: Option<String>,
    token_endpoint: Option<String>,
    revocation_endpoint: Option<String>,
    registration_endpoint: Result<Option<String>, Problem>,
    auth_methods: Option<Vec<String>>,
    response_types: Option<Vec<String>>,
    grant_types: Option<Vec<String>>,
    challenge_methods: Vec<String>,
    lists_offline_access: bool,
    sends_iss: bool,
    takes_documents: bool,
    wants_pushed_requests: bool,
    wants_signed_requests: bool,
}

impl Document for ServerMetadata {
    const WHOSE: &str = "issuer";

    fn of(members: &Members) -> Result<Self, Problem> {
        let issuer = members.text("issuer")?.ok_or(Problem::Lacks("issuer"))?;
        Ok(Self {
            authorization_endpoint: members.text("authorization_endpoint")?,
            token_endpoint: members.text("token_endpoint")?,
            revocation_endpoint: spare(members.text("revocation_endpoint"), &issuer),
            registration_endpoint: members.text("registration_endpoint"),
            auth_methods: spare(members.list("token_endpoint_auth_methods_supported"), &issuer),
            response_types: spare(members.list("response_types_supported"), &issuer),
            grant_types: spare(members.list("grant_types_supported"), &issuer),
            challenge_methods: members.list("code_challenge_methods_supported")?.unwrap_or_default(),
            lists_offline_access: spare(members.list("scopes_supported"), &issuer)
                .is_some_and(|scopes| Scope::of(scopes.iter().map(String::as_str)).has_offline_access()),
            sends_iss: members.is_true("authorization_response_iss_parameter_supported")?,
            takes_documents: members.is_true("client_id_metadata_document_supported")?,
            wants_pushed_requests: members.is_true("require_pushed_authorization_requests")?,
            wants_signed_requests: members.is_true("require_signed_request_object")?,
            issuer,
        })
    }
}

impl ServerMetadata {
    /// The server, where it can be used: RFC 8414, section 3.3, what MCP asks of a server, and the rules for what
    /// is fetched, with what is exempt of them.
    ///
    /// # Errors
    /// What it lacks, or demands of us.
    pub fn server(
        self,
        reach: &Reach,
        issuer: &str,
        resource: String,
        scope: Scope,
    ) -> Result<AuthorizationServer, Problem> {
        if !is_same(&self.issuer, issuer) {
            return Err(Problem::ForeignIssuer(truncate(self.issuer)));
        }
        if self.issuer != issuer {
            let (issuer, asked) = (truncate(self.issuer.clone()), truncate(issuer.to_owned()));
            tracing::warn!(issuer, asked, "its metadata spells the issuer with another slash at its end, and is taken");
        }
        let has = |list: &[String], value: &str| list.iter().any(|item| item == value);
        if !has(&self.challenge_methods, "S256") {
            return Err(Problem::Unsupported("PKCE with S256 (`code_challenge_methods_supported`)"));
        }
        if self.grant_types.is_some_and(|list| !has(&list, "authorization_code")) {
            return Err(Problem::Unsupported("the authorization code grant (`grant_types_supported`)"));
        }
        if self.response_types.is_some_and(|list| !has(&list, "code")) {
            return Err(Problem::Unsupported("the response type `code` (`response_types_supported`)"));
        }
        if self.wants_pushed_requests {
            return Err(Problem::Demands("pushed authorization requests (`require_pushed_authorization_requests`)"));
        }
        if self.wants_signed_requests {
            return Err(Problem::Demands("signed authorization requests (`require_signed_request_object`)"));
        }
        let endpoint = |name, url: Option<String>| {
            let url = strangers_url(name, &url.ok_or(Problem::Lacks(name))?)?;
            reach.check_url(&url, None)?;
            Ok::<_, Problem>(url)
        };
        let authorization_endpoint = endpoint("authorization_endpoint", self.authorization_endpoint)?;
        // Ours would come second, and it is not known which of two a server heeds.
        if let Some((own, _)) = authorization_endpoint.query_pairs().find(|(name, _)| OURS.contains(&name.as_ref())) {
            return Err(Problem::OwnParameter(own.into_owned()));
        }
        let registration = self.registration_endpoint.and_then(|url| {
            let url = url.filter(|url| !url.is_empty());
            url.map(|url| endpoint("registration_endpoint", Some(url))).transpose()
        });
        let revocation = self.revocation_endpoint.filter(|url| !url.is_empty());
        Ok(AuthorizationServer {
            authorization_endpoint,
            token_endpoint: endpoint("token_endpoint", self.token_endpoint)?,
            revocation_endpoint: revocation
                .and_then(|url| spare(endpoint("revocation_endpoint", Some(url)).map(Some), &self.issuer)),
            sends_iss: self.sends_iss,
            takes_documents: self.takes_documents,
            registration_endpoint: registration.map_err(|problem| problem.to_string()),
            auth_methods: self.auth_methods,
            offline_access: self.lists_offline_access,
            issuer: self.issuer,
            resource,
            scope,
        })
    }
}

/// Where an authorization server's metadata may be, in the order that MCP asks for.
///
/// # Errors
/// Where the issuer is not a URL, or not one that RFC 8414, section 2, allows.
pub fn server_addresses(issuer: &str) -> Result<Vec<Url>, Problem> {
    let url = strangers_url("issuer", issuer)?;
    // Without a host there is nobody to ask: `mailto:` and its like.
    if !url.has_host() || url.query().is_some() || url.fragment().is_some() {
        return Err(Problem::NotUrl("issuer"));
    }
    // Of each the one for the whole issuer, never the root's: that would be another issuer's.
    let inserted = ["oauth-authorization-server", "openid-configuration"];
    let mut addresses: Vec<Url> =
        inserted.iter().filter_map(|name| well_known(&url, name).into_iter().next()).collect();
    if url.path() != "/" {
        // OpenID Connect Discovery, section 4.1, appends where RFC 8414 inserts.
        addresses.extend(Url::parse(&format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'))));
    }
    Ok(addresses)
}

/// The parameters of an authorization request that are ours to give.
const OURS: &[&str] = &[
    "client_id",
    "code_challenge",
    "code_challenge_method",
    "prompt",
    "redirect_uri",
    // RFC 9101: it would stand for all of the others.
    "request",
    "request_uri",
    "resource",
    "response_type",
    "scope",
    "state",
];

/// Where the metadata of a URL may be: its path inserted after the well-known name, then the root.
fn well_known(url: &Url, name: &str) -> Vec<Url> {
    let at = |path: &str| {
        let mut address = url.clone();
        address.set_path(&format!("/.well-known/{name}{path}"));
        address.set_query(None);
        address.set_fragment(None);
        address
    };
    match url.path().trim_end_matches('/') {
        "" => vec![at("")],
        path => vec![at(path), at("")],
    }
}

/// Whether `prefix` is `url`, or a part of its path by whole segments, on the same origin.
fn is_prefix(prefix: &Url, url: &Url) -> bool {
    let bare = prefix.query().is_none() && prefix.fragment().is_none() && prefix.username().is_empty();
    if prefix == url {
        return true;
    }
    bare && prefix.origin() == url.origin() && {
        let path = prefix.path().strip_suffix('/').unwrap_or(prefix.path());
        url.path().strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).expect(text)
    }

    #[test]
    fn a_challenges_address_is_a_url() {
        let named = |value: &str| named_address(&Challenge::read([value.as_bytes()]));
        for (value, good) in [
            (r#"Bearer resource_metadata="https://u.example/m""#, true),
            (r#"Bearer resource_metadata="/m""#, false),
            (r#"Bearer resource_metadata="""#, false),
            (r#"Bearer resource_metadata="https://u.example/é""#, false),
        ] {
            assert_eq!(named(value).is_ok(), good, "{value}");
        }
        assert!(matches!(named("Bearer"), Ok(None)));
    }

    #[test]
    fn a_resource_is_the_upstream_or_a_part_of_its_path() {
        for (resource, upstream, good) in [
            ("https://u.example/mcp", "https://u.example/mcp", true),
            ("https://u.example/mcp/", "https://u.example/mcp", true),
            ("https://u.example", "https://u.example/mcp", true),
            ("https://u.example/a", "https://u.example/a/mcp", true),
            ("https://u.example/mcp", "https://u.example/mcp-evil", false),
            ("https://u.example/mcp/x", "https://u.example/mcp", false),
            ("https://u.example:8443/mcp", "https://u.example/mcp", false),
            ("http://u.example/mcp", "https://u.example/mcp", false),
            ("https://v.example/mcp", "https://u.example/mcp", false),
            ("https://u.example/?x", "https://u.example/mcp", false),
            ("https://u.example//", "https://u.example/mcp", false),
            ("https://u.example/mcp//", "https://u.example/mcp", false),
        ] {
            assert_eq!(is_prefix(&url(resource), &url(upstream)), good, "{resource} {upstream}");
        }
    }

    /// What an upstream may have us ask for on its own origin, which may be one of our own network.
    #[test]
    fn metadata_is_below_its_well_known_name() {
        for (path, good) in [
            ("/.well-known/oauth-protected-resource", true),
            ("/.well-known/oauth-protected-resource/", true),
            ("/.well-known/oauth-protected-resource/a/mcp", true),
            ("/.well-known/oauth-protected-resource/a.b-c_d~e", true),
            ("/", false),
            ("/admin/delete", false),
            ("/.well-known/oauth-protected-resource-admin", false),
            ("/.well-known/oauth-protected-resource/../../admin", false),
            ("/.well-known/oauth-protected-resource/%2e%2e/%2E%2E/admin", false),
            ("/.well-known/oauth-protected-resource/..%2f..%2fadmin", false),
            ("/.well-known/oauth-protected-resource/..\\..\\admin", false),
            ("/.well-known/oauth-protected-resource/..%5c..%5cadmin", false),
            ("/.well-known/oauth-protected-resource/..;/..;/admin", false),
            ("/.well-known/oauth-protected-resource?admin", false),
            ("/.well-known%2foauth-protected-resource/admin", false),
            ("/.Well-Known/oauth-protected-resource", false),
            ("/admin/.well-known/oauth-protected-resource", false),
            ("/.well-known/openid-configuration", false),
        ] {
            assert_eq!(asks_for_metadata(&url(&format!("http://10.0.0.7{path}"))), good, "{path}");
        }
        for upstream in ["http://10.0.0.7", "http://10.0.0.7/a/mcp"] {
            assert!(resource_addresses(&url(upstream)).iter().all(asks_for_metadata), "{upstream}");
        }
    }

    #[test]
    fn an_issuer_has_a_host() {
        for (issuer, good) in [
            ("https://as.example", true),
            ("https://as.example/t", true),
            ("https://as.example/?t", false),
            ("https://as.example/#t", false),
            ("https://u@as.example/", false),
            ("https:as.example", false),
            ("mailto:as@as.example", false),
            ("as:/t", false),
            ("", false),
        ] {
            assert_eq!(server_addresses(issuer).is_ok(), good, "{issuer}");
        }
    }

    #[test]
    fn well_known_addresses() {
        let found =
            |text: &str| -> Vec<String> { well_known(&url(text), "x").iter().map(ToString::to_string).collect() };
        assert_eq!(found("https://u.example"), ["https://u.example/.well-known/x"]);
        assert_eq!(
            found("https://u.example/a/b/?q#f"),
            ["https://u.example/.well-known/x/a/b", "https://u.example/.well-known/x"]
        );
    }
}
