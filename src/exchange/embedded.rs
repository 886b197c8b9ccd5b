//! The choreographer itself: discovery, the authorization request, the exchange, the stored token.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use moka::future::Cache;
use oauth2::{
    AuthUrl, AuthorizationCode, ClientId, CsrfToken, PkceCodeChallenge, PkceCodeVerifier, RedirectUrl, Scope, TokenUrl,
    basic::{BasicClient, BasicTokenResponse},
};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use crate::{
    commands::settings::ExchangeArgs,
    contract::choreographer::{AuthorizationAnswer, Begin, Begun, Choreographer, Complete, Upstream},
    exchange::{
        discovery::{AuthorizationServer, Discovery, DiscoveryError},
        oauth::{OAuthHttp, said, usable},
        tokens::TokenError,
    },
    filter::{
        endpoint::system_clock,
        refusal::Refusal,
        request::Trace,
        state::{FlowId, MAX_LIFETIME},
    },
    model::{
        secret::{random, tagged_hash},
        user::User,
    },
    net::outgoing::{Outgoing, OutgoingSettings},
    store::{Flow, FlowKey, FlowLimits, Opened, RouteKey, StoreError, Taken, TokenKey, UnsealError, vault::Vault},
    telemetry::{audit, metrics::Metrics},
};

/// The longest that Begin and Complete may take in all.
const DEADLINE: Duration = Duration::from_secs(8);
/// How many people `--single-user` stands for, in flows.
const PEOPLE: usize = 50;
/// How many refreshes may be remembered, and for how long what one came to stands.
const REFRESHES: u64 = 10_000;
const REFRESH_STANDS: Duration = Duration::from_secs(1);

/// Runs the exchange in this process.
#[derive(Clone)]
pub struct Embedded {
    pub discovery: Discovery,
    pub outgoing: Outgoing,
    pub vault: Arc<Vault>,
    /// Refuse an authorization server that does not announce `iss`: it closes the mix-up that MCP leaves open.
    pub require_iss: bool,
    limits: FlowLimits,
    /// Seconds since 1970.
    pub clock: fn() -> u64,
    pub metrics: Arc<Metrics>,
    /// What goes on when its caller goes away, and what shutdown waits for.
    pub calls: TaskTracker,
    /// The refreshes under way in this process, each of which many may wait for.
    pub(super) refreshes: Cache<TokenKey, Result<(), TokenError>>,
}

/// What it takes to complete a flow. It is only ever stored sealed.
#[derive(Serialize, Deserialize)]
struct FlowRecord {
    client_id: String,
    redirect_uri: String,
    upstream: String,
    user: User,
    return_to: String,
    issuer: String,
    sends_iss: bool,
    token_endpoint: String,
    revocation_endpoint: Option<String>,
    resource: String,
    scope: Option<String>,
    verifier: String,
}

/// A token as it is kept, sealed. It has no `Debug`.
#[derive(Clone, Serialize, Deserialize)]
pub struct TokenRecord {
    pub access_token: String,
    pub refresh_token: Option<String>,
    /// Seconds since 1970.
    pub issued_at: u64,
    /// Seconds since 1970; none where the server did not say.
    pub expires_at: Option<u64>,
    pub scope: Option<String>,
    pub issuer: String,
    pub token_endpoint: String,
    pub revocation_endpoint: Option<String>,
    pub resource: String,
    pub client_id: String,
}

#[async_trait]
impl Choreographer for Embedded {
    async fn describe(&self, upstream: Upstream, _: &Trace) -> Result<Option<String>, Refusal> {
        let known = self.discovery.known(&upstream).await;
        if known.is_none() {
            // The page does not wait; whoever presses its button finds the look-up done, or under way.
            self.discovery.begin(&upstream).await;
        }
        Ok(known)
    }

    async fn begin(&self, begin: Begin, _: &Trace) -> Result<Begun, Refusal> {
        let (client_id, user) = (begin.client_id.clone(), begin.user.clone());
        let begun = timeout(DEADLINE, self.begin_flow(begin)).await.unwrap_or(Err(Refusal::Timeout));
        match &begun {
            Ok((begun, issuer)) => audit::event("begun", &user, &client_id, issuer, Some(&begun.flow_id), "ok"),
            Err(refusal) => audit::event("begun", &user, &client_id, "", None, refusal.code()),
        }
        begun.map(|(begun, _)| begun)
    }

    async fn complete(&self, complete: Complete, _: &Trace) -> Result<String, Refusal> {
        let deadline = Instant::now() + DEADLINE;
        let (flow_id, user) = (complete.flow_id, complete.user.clone());
        let taken = timeout(DEADLINE, self.take(&complete)).await.unwrap_or(Err(Refusal::Timeout));
        let record =
            taken.inspect_err(|refusal| audit::event("refused", &user, "", "", Some(&flow_id), refusal.code()))?;
        let left = deadline.saturating_duration_since(Instant::now());
        let result = self.finish(complete, &record, left).await;
        let outcome = result.as_ref().map_or_else(Refusal::code, |()| "ok");
        audit::event("completed", &user, &record.client_id, &record.issuer, Some(&flow_id), outcome);
        result.map(|()| record.return_to)
    }
}

impl Embedded {
    /// # Errors
    /// Where a setting is wrong; the error names it.
    pub fn new(settings: &ExchangeArgs) -> anyhow::Result<Self> {
        let outgoing = Outgoing::new(&OutgoingSettings {
            allow_hosts: settings.allow_host.clone(),
            extra_ca: settings.extra_ca.clone(),
        })?;
        Ok(Self {
            discovery: Discovery::new(outgoing.clone(), settings.max_lookups),
            outgoing,
            vault: Arc::new(Vault::new(settings)?),
            require_iss: settings.require_iss,
            limits: FlowLimits { of_user: settings.max_flows_per_user, in_all: settings.max_flows },
            clock: system_clock,
            metrics: Arc::default(),
            calls: TaskTracker::new(),
            refreshes: Cache::builder().max_capacity(REFRESHES).time_to_live(REFRESH_STANDS).build(),
        })
    }

    /// What shows at start rather than at the first flow.
    ///
    /// # Errors
    /// As [`Vault::check`].
    pub async fn check(&self) -> anyhow::Result<()> {
        self.vault.check().await
    }

    async fn begin_flow(&self, begin: Begin) -> Result<(Begun, String), Refusal> {
        let found = self.discovery.find(&begin.upstream).await;
        let server = found.map_err(|error| match error {
            DiscoveryError::Busy => Refusal::TooManyFlows,
            error => Refusal::AuthorizationServerUnusable(error.to_string()),
        })?;
        if self.require_iss && !server.sends_iss {
            return Err(Refusal::AuthorizationServerUnusable(format!(
                "the authorization server {}: it does not announce `iss`, which --require-iss asks for",
                server.issuer
            )));
        }
        let flow_id = FlowId(random().map_err(|_| Refusal::ChoreographerFailed)?);
        let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
        let authorization_url = authorization_url(&server, &begin, challenge).ok_or(Refusal::ChoreographerFailed)?;
        let now = (self.clock)();
        let expires_at = now + MAX_LIFETIME;
        let record = FlowRecord {
            client_id: begin.client_id,
            upstream: begin.upstream.url,
            return_to: begin.return_to,
            issuer: server.issuer.clone(),
            sends_iss: server.sends_iss,
            token_endpoint: server.token_endpoint.to_string(),
            revocation_endpoint: server.revocation_endpoint.as_ref().map(ToString::to_string),
            resource: server.resource.clone(),
            scope: server.scope.clone(),
            verifier: verifier.into_secret(),
            redirect_uri: begin.redirect_uri,
            user: begin.user,
        };
        let key = flow_key(&flow_id);
        let open = self.open().await?;
        let sealed = open.seal("flow", &key, &record).ok_or(Refusal::ChoreographerFailed)?;
        let tombstone = open.seal("tombstone", &key, &record.return_to).ok_or(Refusal::ChoreographerFailed)?;
        let of_user = match record.user {
            User::Single => self.limits.of_user.saturating_mul(PEOPLE),
            User::Subject { .. } => self.limits.of_user,
        };
        let flow = Flow {
            id: key,
            context: context(&record.redirect_uri, &record.user, &begin.browser_hash),
            user: hash("envoy-cimd user", &record.user),
            expires_at,
            sealed,
            tombstone,
        };
        let limits = FlowLimits { of_user, ..self.limits };
        open.store.add_flow(flow, limits, now).await.map_err(|error| match error {
            StoreError::Full => Refusal::TooManyFlows,
            error => store_failed(&error),
        })?;
        Ok((Begun { flow_id, expires_at, authorization_url }, record.issuer))
    }

    /// Where nothing can be opened, nothing was done, and the same request may be tried again.
    pub(super) async fn open(&self) -> Result<&Opened, Refusal> {
        self.vault.open().await.map_err(|error| {
            tracing::error!(%error, "the store cannot be opened");
            Refusal::ChoreographerUnavailable
        })
    }

    /// Takes the flow: after this, nobody else can complete it.
    async fn take(&self, complete: &Complete) -> Result<FlowRecord, Refusal> {
        let key = flow_key(&complete.flow_id);
        let context = context(&complete.redirect_uri, &complete.user, &complete.browser_hash);
        let open = self.open().await?;
        let taken = open.store.take_flow(key, context, (self.clock)()).await.map_err(|error| store_failed(&error))?;
        match taken {
            Taken::Flow(sealed) => unsealed(open.unseal("flow", &key, &sealed)),
            Taken::WrongContext => Err(Refusal::WrongContext),
            Taken::Unknown => Err(Refusal::UnknownFlow),
            Taken::Used(tombstone) => {
                let return_to = unsealed(open.unseal("tombstone", &key, &tombstone))?;
                Err(Refusal::AlreadyUsed { return_to })
            }
        }
    }

    /// What follows once the flow is taken, with this much time left for the exchange. `iss` is looked at first, on
    /// errors too (MCP; RFC 9207, section 2.4).
    async fn finish(&self, complete: Complete, record: &FlowRecord, left: Duration) -> Result<(), Refusal> {
        check_issuer(complete.iss.as_deref(), &record.issuer, record.sends_iss || self.require_iss)?;
        let code = match complete.answer {
            AuthorizationAnswer::Code(code) => code,
            AuthorizationAnswer::Error { .. } => return Err(Refusal::AuthorizationError),
        };
        // Only the exchange is cut off: a token that came is stored, however late it is.
        let token = timeout(left, self.exchange(code, record)).await.unwrap_or(Err(Refusal::Timeout))?;
        let route = route_key(&record.user, &record.client_id, &record.upstream);
        let key = token_key(&record.user, &record.client_id, &record.issuer, &record.resource);
        let open = self.open().await?;
        let sealed = open.seal("token", &key, &token).ok_or(Refusal::ChoreographerFailed)?;
        open.store.put_token(key, route, sealed).await.map_err(|error| store_failed(&error))
    }

    /// Redeems the code, once, at the token endpoint that was recorded before the redirect.
    async fn exchange(&self, code: String, record: &FlowRecord) -> Result<TokenRecord, Refusal> {
        let failed = |reason: String| {
            tracing::warn!(issuer = record.issuer, client_id = record.client_id, reason, "the exchange failed");
            Refusal::ExchangeFailed
        };
        let client = BasicClient::new(ClientId::new(record.client_id.clone()))
            .set_token_uri(TokenUrl::new(record.token_endpoint.clone()).map_err(|error| failed(error.to_string()))?)
            .set_redirect_uri(
                RedirectUrl::new(record.redirect_uri.clone()).map_err(|error| failed(error.to_string()))?,
            );
        let http = OAuthHttp(self.outgoing.clone());
        let response: BasicTokenResponse = client
            .exchange_code(AuthorizationCode::new(code))
            .set_pkce_verifier(PkceCodeVerifier::new(record.verifier.clone()))
            .add_extra_param("resource", &record.resource)
            .request_async(&http)
            .await
            .map_err(|error| failed(said(&error)))?;
        let token = usable(&response).map_err(|reason| failed(reason.to_owned()))?;
        let now = (self.clock)();
        Ok(TokenRecord {
            access_token: token.access_token,
            refresh_token: token.refresh_token,
            issued_at: now,
            expires_at: token.expires_in.map(|lifetime| now.saturating_add(lifetime)),
            scope: token.scope.or_else(|| record.scope.clone()),
            issuer: record.issuer.clone(),
            token_endpoint: record.token_endpoint.clone(),
            revocation_endpoint: record.revocation_endpoint.clone(),
            resource: record.resource.clone(),
            client_id: record.client_id.clone(),
        })
    }
}

/// The authorization request with every parameter but `state`. None where a URL is none that `oauth2` takes.
fn authorization_url(server: &AuthorizationServer, begin: &Begin, challenge: PkceCodeChallenge) -> Option<String> {
    let client = BasicClient::new(ClientId::new(begin.client_id.clone()))
        .set_auth_uri(AuthUrl::from_url(server.authorization_endpoint.clone()))
        .set_redirect_uri(RedirectUrl::new(begin.redirect_uri.clone()).ok()?);
    let mut request = client
        .authorize_url(|| CsrfToken::new(String::new()))
        .set_pkce_challenge(challenge)
        .add_extra_param("resource", &server.resource)
        .add_scopes(server.scope.iter().flat_map(|scope| scope.split(' ')).map(|scope| Scope::new(scope.to_owned())));
    if server.offline_access {
        // OpenID Connect Core, section 11: without the prompt, a server may leave the refresh token out.
        request = request.add_scope(Scope::new("offline_access".to_owned())).add_extra_param("prompt", "consent");
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

fn store_failed(error: &StoreError) -> Refusal {
    tracing::error!(%error, "the store failed");
    Refusal::ChoreographerFailed
}

/// A record that does not open is lost to whoever asked for it.
fn unsealed<T>(record: Result<(T, bool), UnsealError>) -> Result<T, Refusal> {
    record.map(|(value, _)| value).map_err(|error| {
        tracing::error!(%error, "a stored record cannot be opened");
        Refusal::ChoreographerFailed
    })
}

fn flow_key(flow_id: &FlowId) -> FlowKey {
    tagged_hash("envoy-cimd flow", &flow_id.0)
}

fn context(redirect_uri: &str, user: &User, browser_hash: &[u8; 32]) -> [u8; 32] {
    hash("envoy-cimd context", &(redirect_uri, user, BASE64_URL_SAFE_NO_PAD.encode(browser_hash)))
}

pub(super) fn route_key(user: &User, client_id: &str, upstream: &str) -> RouteKey {
    hash("envoy-cimd route", &(user, client_id, upstream))
}

pub(super) fn token_key(user: &User, client_id: &str, issuer: &str, resource: &str) -> TokenKey {
    hash("envoy-cimd token", &(user, client_id, issuer, resource))
}

/// A hash of several values. As JSON, no two lists of values have the same bytes.
fn hash(purpose: &str, values: &impl Serialize) -> [u8; 32] {
    tagged_hash(purpose, &serde_json::to_vec(values).unwrap_or_default())
}

/// Whether an answer may be the recorded issuer's: `iss` is the same, byte for byte, and there where it must be.
fn check_issuer(iss: Option<&str>, recorded: &str, must_be_there: bool) -> Result<(), Refusal> {
    match iss {
        Some(iss) if iss == recorded => Ok(()),
        None if !must_be_there => Ok(()),
        Some(_) | None => Err(Refusal::IssuerMismatch),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What one may do with another's is decided by these.
    #[test]
    fn keys_differ_in_each_of_their_parts() {
        let anna = User::Subject { issuer: "i".to_owned(), subject: "anna".to_owned() };
        let bert = User::Subject { issuer: "i".to_owned(), subject: "bert".to_owned() };
        // The same characters, cut elsewhere.
        let cut = User::Subject { issuer: "ia".to_owned(), subject: "nna".to_owned() };
        let keys = [
            flow_key(&FlowId([1; 16])),
            flow_key(&FlowId([2; 16])),
            context("r", &anna, &[1; 32]),
            context("s", &anna, &[1; 32]),
            context("r", &bert, &[1; 32]),
            context("r", &anna, &[2; 32]),
            route_key(&anna, "c", "u"),
            route_key(&bert, "c", "u"),
            route_key(&cut, "c", "u"),
            route_key(&User::Single, "c", "u"),
            route_key(&anna, "d", "u"),
            route_key(&anna, "c", "v"),
            route_key(&anna, "cu", ""),
            token_key(&anna, "c", "i", "r"),
            token_key(&bert, "c", "i", "r"),
            token_key(&anna, "d", "i", "r"),
            token_key(&anna, "c", "j", "r"),
            token_key(&anna, "c", "i", "s"),
        ];
        for (index, key) in keys.iter().enumerate() {
            assert!(!keys[..index].contains(key) && *key != [0; 32], "{index}");
        }
        assert_eq!(route_key(&anna, "c", "u"), keys[6], "and are the same each time");
    }

    #[test]
    fn issuers_are_compared_as_they_stand() {
        let recorded = "https://as.example";
        for (iss, must_be_there, good) in [
            (Some(recorded), true, true),
            (Some(recorded), false, true),
            (Some("https://as.example/"), false, false),
            (Some("https://as.example:443"), false, false),
            (Some("https://AS.example"), false, false),
            (Some("https://other.example"), true, false),
            (Some(""), false, false),
            (None, false, true),
            (None, true, false),
        ] {
            assert_eq!(check_issuer(iss, recorded, must_be_there).is_ok(), good, "{iss:?} {must_be_there}");
        }
    }
}
