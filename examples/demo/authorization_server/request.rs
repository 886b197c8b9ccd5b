//! An authorization request, and what must be true of it before a person is asked.

use url::Url;

use super::{Shared, form};
use crate::client_document::ClientDocument;

/// A request that was checked, with its client's document.
pub struct AuthorizationRequest {
    pub client_id: String,
    /// As it was sent, and as a URL.
    pub redirect_uri: String,
    pub redirect_url: Url,
    pub state: String,
    pub code_challenge: String,
    pub resource: String,
}

impl AuthorizationRequest {
    /// Checks a request and its client, whose document it fetches; else what is wrong, for the person.
    pub(super) async fn check(query: &str, server: &Shared) -> Result<(Self, ClientDocument), String> {
        let mut sent = form(query)?;
        let mut take = |name: &str| sent.remove(name).ok_or(format!("The request has no {name}."));
        let (client_id, redirect_uri) = (take("client_id")?, take("redirect_uri")?);
        check_client_id(&client_id, server.clients_port)?;
        let document = ClientDocument::fetch(&server.web, &client_id).await;
        let document =
            document.map_err(|why| format!("The client's document {client_id} cannot be fetched: {why}."))?;
        document.check().map_err(|why| format!("The client's document {client_id} is not good. {why}"))?;
        // To the letter: what is nearly a redirect URI may be somebody else's.
        if !document.has_redirect_uri(&redirect_uri) {
            return Err(format!("The client's document {client_id} does not list the redirect URI {redirect_uri}."));
        }
        let redirect_url = Url::parse(&redirect_uri).map_err(|error| format!("The redirect URI is bad: {error}."))?;
        for (name, wanted) in
            [("response_type", "code"), ("code_challenge_method", "S256"), ("resource", &server.resource)]
        {
            let value = take(name)?;
            if value != wanted {
                return Err(format!("The request's {name} is {value}; this server takes {wanted} alone."));
            }
        }
        let (state, code_challenge) = (take("state")?, take("code_challenge")?);
        // A SHA-256 in base64url (RFC 7636, section 4.2).
        if code_challenge.len() != 43 {
            return Err("The request's code_challenge is none of S256.".to_owned());
        }
        let resource = server.resource.clone();
        Ok((Self { client_id, redirect_uri, redirect_url, state, code_challenge, resource }, document))
    }

    /// The host that an answer goes to, with its port where it has one.
    pub fn redirect_host(&self) -> String {
        self.redirect_url[url::Position::BeforeHost..url::Position::AfterPort].to_owned()
    }
}

/// A `client_id` has one spelling, and says where it is. This server asks nobody but the demo's Envoy: one that fetched
/// whatever a stranger names could be sent into its own network.
fn check_client_id(client_id: &str, clients_port: u16) -> Result<(), String> {
    let refused = |why: &str| Err(format!("The client_id {client_id} {why}."));
    let Ok(url) = Url::parse(client_id) else { return refused("is not a URL") };
    if url.as_str() != client_id {
        return refused("is not spelled as URLs are");
    }
    if url.scheme() != "https" || url.path() == "/" {
        return refused("is no https URL with a path");
    }
    if url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() || url.password().is_some() {
        return refused("has more than a host, a port and a path");
    }
    let local = url.host_str().is_some_and(|host| host.ends_with(".localhost"));
    if !local || url.port_or_known_default() != Some(clients_port) {
        return refused("is on another server than the demo's Envoy, which is all that this one asks");
    }
    Ok(())
}
