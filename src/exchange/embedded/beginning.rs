//! How a flow begins: the client that it is for, the authorization request, and what is kept until it comes back.

use oauth2::{AuthUrl, CsrfToken, PkceCodeChallenge, RedirectUrl};

use super::{Embedded, call_failed, flow_failed, wanted};
use crate::{
    contract::{
        choreographer::{Begin, Begun},
        error::{BeginError, CallError, Cause},
        tokens::TokenOwner,
    },
    exchange::{
        clients::{Way, credentials::ActsAs, registration::Wanted},
        discovery::{documents::AuthorizationServer, error::DiscoveryError},
        oauth::OAuthClient,
        records::{Binding, FlowRecord, Tombstone},
    },
    model::{
        client::ClientId,
        flow::{FlowId, MAX_LIFETIME},
        issuer::is_same,
        paths::Endpoint,
        scope::Scope,
        secret::{Secret, random},
    },
    store::{
        backend::{Flow, FlowLimits},
        error::StoreError,
        keys::{Context, FlowKey, UserKey},
        vault::Place,
    },
};

const NOT_SEALED: CallError = CallError::Failed(Cause::Borrowed("the record cannot be sealed"));

impl Embedded {
    /// Begins a flow; the issuer comes along.
    pub(super) async fn begin_flow(&self, begin: Begin) -> Result<(Begun, String), BeginError> {
        let found = self.tokens.discovery.find(&begin.client_id, &begin.upstream, Some(&begin.user)).await;
        let server = found.map_err(|error| match error {
            DiscoveryError::Busy(_) => BeginError::TooManyFlows(error.to_string().into()),
            error => BeginError::AuthorizationServerUnusable(error.to_string().into()),
        })?;
        if self.require_iss && !server.sends_iss {
            let lacks = "it does not announce `iss`, which --require-iss asks for";
            let cause = format!("the authorization server {}: {lacks}", server.issuer).into();
            return Err(BeginError::AuthorizationServerUnusable(cause));
        }
        if !begin.shown_issuer.as_ref().is_some_and(|shown| is_same(shown, &server.issuer)) {
            return Err(BeginError::IssuerChanged(server.issuer.clone()));
        }
        let clients = &self.tokens.clients;
        let pin = begin.upstream.authorization_server.as_deref();
        let unusable = |cause: String| BeginError::AuthorizationServerUnusable(cause.into());
        let acts_as = match clients.choose(&begin.client_id, pin, &server).map_err(unusable)? {
            Way::Is(acts_as) => acts_as,
            Way::Registers(endpoint, method) => {
                let wanted = Wanted {
                    client_uri: self.client_uri(&begin.client_id),
                    document: begin.client_id.clone(),
                    redirect_uri: begin.redirect_uri.clone(),
                    client_name: begin.client_name.clone(),
                    issuer: server.issuer.clone(),
                    endpoint,
                    method,
                };
                ActsAs::Registered(self.registered(wanted, &begin.user).await?)
            }
        };
        let flow_id = FlowId(random().map_err(call_failed)?);
        let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
        let wanted = match begin.scope.clone() {
            Some(scope) => scope,
            None => {
                let owner = TokenOwner {
                    user: begin.user.clone(),
                    client_id: begin.client_id.clone(),
                    upstream: begin.upstream.clone(),
                };
                wanted(&server, self.tokens.missing(&owner, &server.issuer).await?)
            }
        };
        let scope = wanted.asked_of(server.offline_access);
        let authorization_url =
            authorization_url(&server, acts_as.client_id(&begin.client_id), &begin, &scope, challenge)
                .ok_or(CallError::Failed("the route's redirect URI is not a URL".into()))?;
        let now = self.now();
        let expires_at = now + MAX_LIFETIME;
        let context = Context::of(&begin.redirect_uri, &begin.user, &begin.browser_hash);
        let binding = Binding::new(&context, expires_at);
        let record = FlowRecord {
            client_id: begin.client_id,
            upstream: begin.upstream.url,
            return_to: begin.return_to,
            issuer: server.issuer.clone(),
            sends_iss: server.sends_iss,
            token_endpoint: server.token_endpoint.to_string(),
            revocation_endpoint: server.revocation_endpoint.as_ref().map(ToString::to_string),
            resource: server.resource.clone(),
            scope: scope.text(),
            verifier: Secret::new(verifier.into_secret()),
            redirect_uri: begin.redirect_uri,
            user: begin.user,
            binding: Some(binding),
            acts_as,
        };
        let key = FlowKey::of(&flow_id);
        let open = self.open().await?;
        let sealed = open.seal(Place::Flow(&key), &record).ok_or(NOT_SEALED)?;
        let tombstone = Tombstone::Bound { return_to: record.return_to.clone(), binding };
        let tombstone = open.seal(Place::Tombstone(&key), &tombstone).ok_or(NOT_SEALED)?;
        let of_user = self.limits.of_user.saturating_mul(record.user.people());
        let flow = Flow { id: key, context, user: UserKey::of(&record.user), expires_at, sealed, tombstone };
        let limits = FlowLimits { of_user, ..self.limits };
        open.store.add_flow(flow, limits, now).await.map_err(|error| match error {
            StoreError::Full => BeginError::TooManyFlows("as many flows are kept as --max-flows allows".into()),
            error @ (StoreError::Away(_) | StoreError::Failed(_)) => flow_failed(&error).into(),
        })?;
        Ok((Begun { flow_id, expires_at, authorization_url }, record.issuer))
    }

    /// The public URL of a route, by its document.
    fn client_uri(&self, document: &ClientId) -> String {
        let path = self.paths.of(Endpoint::Document).as_str();
        document.as_str().strip_suffix(path).unwrap_or(document.as_str()).to_owned()
    }
}

/// The authorization request with every parameter but `state`. None where a URL is none that `oauth2` takes.
fn authorization_url(
    server: &AuthorizationServer,
    client_id: &str,
    begin: &Begin,
    scope: &Scope,
    challenge: PkceCodeChallenge,
) -> Option<String> {
    let client = OAuthClient::new(oauth2::ClientId::new(client_id.to_owned()))
        .set_auth_uri(AuthUrl::from_url(server.authorization_endpoint.clone()))
        .set_redirect_uri(RedirectUrl::new(begin.redirect_uri.to_string()).ok()?);
    let mut request = client
        .authorize_url(|| CsrfToken::new(String::new()))
        .set_pkce_challenge(challenge)
        .add_extra_param("resource", &server.resource)
        .add_scopes(scope.tokens().map(|token| oauth2::Scope::new(token.to_owned())));
    let prompt = match &begin.prompt {
        Some(prompt) => prompt.sent(),
        // OpenID Connect Core, section 11: without the prompt, a server may leave the refresh token out.
        None => scope.has_offline_access().then_some("consent"),
    };
    if let Some(prompt) = prompt {
        request = request.add_extra_param("prompt", prompt);
    }
    let (mut url, _) = request.url();
    // The caller signs its own `state` when it knows the flow's id.
    let pairs: Vec<(String, String)> = url
        .query_pairs()
        .filter(|(name, _)| name != "state")
        .map(|(name, value)| (name.into(), value.into()))
        .collect();
    url.query_pairs_mut().clear().extend_pairs(pairs);
    Some(url.into())
}
