//! The choreographer itself: discovery, the authorization request, the exchange, the stored token.

use std::{
    fmt::Display,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use oauth2::{AuthUrl, AuthorizationCode, CsrfToken, PkceCodeChallenge, PkceCodeVerifier, RedirectUrl, TokenUrl};
use tokio::time::timeout;

use super::{
    clients::{self, Clients, Way, credentials::ActsAs, registration::Wanted, under_way::Registering},
    deadlines::Deadlines,
    discovery::{Discovery, documents::AuthorizationServer, error::DiscoveryError},
    oauth::{OAuthClient, failure, refuses_client, registered},
    records::{Binding, Bound, FlowRecord, TokenRecord, Tombstone},
    step_up::StepUp,
    token_answer::TokenAnswer,
    tokens::Tokens,
};
use crate::{
    contract::{
        choreographer::{AuthorizationAnswer, Begin, Begun, Choreographer, Complete},
        connection::Connection,
        error::{BeginError, CallError, Cause, CompleteError, Incomplete, Label},
        tokens::{TokenError, TokenOwner, TokenTag, UpstreamTokens},
    },
    model::{
        client::ClientId,
        clock::UnixTime,
        flow::{FlowId, MAX_LIFETIME},
        issuer::is_same,
        paths::{Endpoint, Paths},
        scope::Scope,
        seal::UnsealError,
        secret::{Secret, random},
        shares::ShareLimits,
        trace::Trace,
        upstream::Upstream,
    },
    net::outgoing::{self, Outgoing},
    store::{
        backend::{Flow, FlowLimits, Taken},
        error::StoreError,
        keys::{Context, FlowKey, UserKey},
        open::Opened,
        vault::{self, Place, Vault},
    },
    telemetry::{audit, traces::covered},
};

/// The longest that Begin may take in all.
const DEADLINE: Duration = Duration::from_secs(8);
/// How long the page is kept back for the authorization server, and for how the connection stands.
const SHOWN_WITHIN: Duration = Duration::from_millis(1500);

/// What an operator says of the exchange.
#[derive(Clone, Debug)]
pub struct Config {
    pub outgoing: outgoing::Config,
    pub store: vault::Config,
    /// How many upstreams may be looked up at once.
    pub lookups: ShareLimits,
    pub limits: FlowLimits,
    pub deadlines: Deadlines,
    /// Refuse an authorization server that does not announce `iss`: it closes the mix-up that MCP leaves open.
    pub require_iss: bool,
    pub clients: clients::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            outgoing: outgoing::Config::default(),
            store: vault::Config::default(),
            lookups: ShareLimits { in_all: 100, of_user: 20, of_server: 50 },
            limits: FlowLimits { of_user: 20, in_all: 100_000 },
            deadlines: Deadlines::default(),
            require_iss: false,
            clients: clients::Config::default(),
        }
    }
}

/// Runs the exchange in this process.
#[derive(Clone)]
pub struct Embedded {
    /// The tokens that come of it.
    pub tokens: Tokens,
    pub(super) registering: Registering,
    paths: Arc<Paths>,
    require_iss: bool,
    limits: FlowLimits,
}

#[async_trait]
impl Choreographer for Embedded {
    async fn describe(&self, client_id: ClientId, upstream: Upstream, _: &Trace) -> Result<Option<String>, CallError> {
        let discovery = &self.tokens.discovery;
        if let Some(known) = discovery.known(&client_id, &upstream).await {
            return Ok(Some(known));
        }
        // What takes longer goes on, and whoever presses the button meanwhile is shown the page again.
        let found = timeout(SHOWN_WITHIN, discovery.find(&client_id, &upstream, None)).await;
        Ok(found.ok().and_then(Result::ok).map(|server| server.issuer.clone()))
    }

    async fn connection(&self, owner: TokenOwner, scope: Option<Scope>, _: &Trace) -> Result<Connection, CallError> {
        // At once, since a caller in another process does not wait for one after the other.
        let find = timeout(SHOWN_WITHIN, self.tokens.discovery.find(&owner.client_id, &owner.upstream, None));
        let (server, kept) = tokio::join!(find, timeout(SHOWN_WITHIN, self.tokens.kept(&owner)));
        let server = server.ok().and_then(Result::ok);
        let kept =
            kept.map_err(|_| CallError::Timeout("the store did not say in time how the connection stands".into()))??;
        // What was found decides whether a token is the route's.
        let held = self.tokens.held(&owner, kept).await;
        let next = server.map(|server| {
            let wanted = scope.unwrap_or_else(|| wanted(&server, held.missing(&server.issuer)));
            held.next(wanted.asked_of(server.offline_access))
        });
        Ok(Connection { state: held.state(), next })
    }

    async fn begin(&self, begin: Begin, _: &Trace) -> Result<Begun, BeginError> {
        can_be_audited()?;
        let (client_id, user) = (begin.client_id.clone(), begin.user.clone());
        let late = || CallError::Timeout(format!("no flow began within {} s", DEADLINE.as_secs()).into());
        let begun = timeout(DEADLINE, self.begin_flow(begin)).await.unwrap_or_else(|_| Err(late().into()));
        let (issuer, flow_id, outcome) = match &begun {
            Ok((begun, issuer)) => (issuer.as_str(), Some(&begun.flow_id), "ok"),
            Err(error) => ("", None, error.label()),
        };
        audit::event("begun", &user, client_id.as_str(), issuer, flow_id, outcome).await;
        begun.map(|(begun, _)| begun)
    }

    async fn complete(&self, complete: Complete, _: &Trace) -> Result<String, Incomplete> {
        can_be_audited()?;
        let patience = self.tokens.deadlines.patience;
        let deadline = Instant::now() + patience;
        let (flow_id, user) = (complete.flow_id, complete.user.clone());
        let late = |what| CallError::Timeout(format!("{what} within {} s", patience.as_secs()).into());
        let taken = timeout(patience, self.take(&complete)).await;
        let taken = taken.unwrap_or_else(|_| Err(late("the store did not answer").into()));
        let record = match taken {
            Ok(record) => record,
            Err(error) => {
                audit::event("refused", &user, "", "", Some(&flow_id), error.label()).await;
                return Err(error.into());
            }
        };
        let (this, return_to) = (self.clone(), record.return_to.clone());
        // A task of its own: the code is used up once it was sent, so its token is waited for and stored, whoever left.
        let finishing = self.tokens.calls.spawn(covered(async move {
            let result = this.finish(complete, &record).await;
            let outcome = result.as_ref().map_or_else(Label::label, |()| "ok");
            audit::event("completed", &user, record.client_id.as_str(), &record.issuer, Some(&flow_id), outcome).await;
            result
        }));
        let left = deadline.saturating_duration_since(Instant::now());
        let result = match timeout(left, finishing).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(ENDED_EARLY.into()),
            // It is waited for further, and what it brings is stored.
            Err(_) => Err(late("the token endpoint did not answer").into()),
        };
        match result {
            Ok(()) => Ok(return_to),
            Err(error) => Err(Incomplete { error, return_to: Some(return_to) }),
        }
    }

    async fn disconnect(&self, owner: TokenOwner, trace: &Trace) -> Result<(), CallError> {
        can_be_audited()?;
        self.open().await?;
        let patience = self.tokens.deadlines.patience;
        match timeout(patience, self.tokens.disconnect(owner, trace)).await {
            Ok(Ok(()) | Err(TokenError::NotFound(_))) => Ok(()),
            Ok(Err(TokenError::Unavailable(cause))) => {
                let cause = format!("the token may be forgotten, and not be revoked: {cause}");
                Err(CallError::Failed(cause.into()))
            }
            Err(_) => {
                let cause = format!("the disconnect did not end within {} s, and goes on", patience.as_secs());
                Err(CallError::Timeout(cause.into()))
            }
        }
    }
}

impl Embedded {
    /// # Errors
    /// Where a setting is wrong; the error names it.
    pub fn new(config: Config) -> anyhow::Result<Self> {
        config.deadlines.check()?;
        let outgoing = Outgoing::new(&config.outgoing)?;
        let clients = Clients::new(&config.clients, config.outgoing.paths.clone())?;
        let discovery = Discovery::new(outgoing.clone(), config.lookups);
        let tokens = Tokens::new(discovery, outgoing.clone(), clients, Vault::new(config.store)?, config.deadlines);
        outgoing.measured_by(&tokens.metrics);
        let paths = Arc::new(config.outgoing.paths);
        Ok(Self {
            tokens,
            registering: Registering::default(),
            paths,
            require_iss: config.require_iss,
            limits: config.limits,
        })
    }

    /// What shows at start rather than at the first flow.
    ///
    /// # Errors
    /// As [`Vault::check`].
    pub async fn check(&self) -> anyhow::Result<()> {
        self.tokens.vault.check().await
    }

    /// Whether the store can be used by now.
    ///
    /// # Errors
    /// As [`Vault::try_out`].
    pub async fn try_store(&self) -> Result<(), String> {
        self.tokens.vault.try_out().await
    }

    fn now(&self) -> UnixTime {
        (self.tokens.clock)()
    }

    /// Where nothing can be opened, nothing was done, and the same request may be tried again.
    async fn open(&self) -> Result<&Opened, CallError> {
        let unavailable = |error| CallError::Unavailable(format!("the store cannot be opened: {error}").into());
        self.tokens.open().await.map_err(unavailable)
    }

    async fn begin_flow(&self, begin: Begin) -> Result<(Begun, String), BeginError> {
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

    /// Takes the flow: after this, nobody else can complete it.
    async fn take(&self, complete: &Complete) -> Result<FlowRecord, CompleteError> {
        let key = FlowKey::of(&complete.flow_id);
        let context = Context::of(&complete.redirect_uri, &complete.user, &complete.browser_hash);
        let (open, now) = (self.open().await?, self.now());
        let taken = open.store.take_flow(key, context, now).await.map_err(|error| flow_failed(&error))?;
        match taken {
            Taken::Flow(sealed) => own(complete, open.unseal(Place::Flow(&key), &sealed), &context, now).await,
            Taken::WrongContext => Err(CompleteError::WrongContext),
            Taken::Unknown => Err(CompleteError::UnknownFlow),
            Taken::Used(tombstone) => {
                let opened = open.unseal(Place::Tombstone(&key), &tombstone);
                let tombstone: Tombstone = own(complete, opened, &context, now).await?;
                Err(CompleteError::AlreadyUsed { return_to: tombstone.into_return_to() })
            }
        }
    }

    /// What follows once the flow is taken. `iss` is looked at first, on errors too (MCP; RFC 9207, section 2.4).
    async fn finish(&self, complete: Complete, record: &FlowRecord) -> Result<(), CompleteError> {
        check_issuer(complete.iss.as_deref(), &record.issuer, record.sends_iss || self.require_iss)?;
        let code = match complete.answer {
            AuthorizationAnswer::Code(code) => code,
            AuthorizationAnswer::Error { error, .. } => {
                return Err(CompleteError::AuthorizationError(registered(&error).into()));
            }
        };
        let token = self.exchange(code, record).await?;
        let owner = TokenOwner {
            user: record.user.clone(),
            client_id: record.client_id.clone(),
            upstream: Upstream { url: record.upstream.clone(), authorization_server: None, resource: None },
        };
        self.tokens.put(&owner, token).await.map_err(|error| store_failed(&error).into())
    }

    /// Redeems the code, once, at the token endpoint that was recorded before the redirect.
    async fn exchange(&self, code: Secret, record: &FlowRecord) -> Result<TokenRecord, CompleteError> {
        let failed = |reason: String| {
            tracing::warn!(issuer = record.issuer, client_id = %record.client_id, reason, "the exchange failed");
            CompleteError::ExchangeFailed(reason.into())
        };
        let credentials = self.tokens.clients.credentials(&record.acts_as, &record.client_id, &record.issuer);
        let client = credentials
            .map_err(|gone| failed(gone.to_string()))?
            .oauth_client()
            .set_token_uri(TokenUrl::new(record.token_endpoint.clone()).map_err(|error| failed(error.to_string()))?)
            .set_redirect_uri(
                RedirectUrl::new(record.redirect_uri.to_string()).map_err(|error| failed(error.to_string()))?,
            );
        let http = self.tokens.http(&record.client_id, self.tokens.deadlines.token_endpoint);
        let answer: Result<TokenAnswer, _> = client
            .exchange_code(AuthorizationCode::new(code.expose().to_owned()))
            .set_pkce_verifier(PkceCodeVerifier::new(record.verifier.expose().to_owned()))
            .add_extra_param("resource", &record.resource)
            .request_async(&http)
            .await;
        if answer.as_ref().is_err_and(refuses_client) {
            self.tokens.client_refused(&record.acts_as, &record.client_id, &record.issuer).await;
        }
        let answer = answer.map_err(|error| failed(failure(&error)))?;
        let granted = answer.granted().map_err(|reason| failed(reason.to_owned()))?;
        granted.note_unread(&record.issuer);
        let now = self.now();
        Ok(TokenRecord {
            expires_at: granted.expires_at(now),
            access_token: granted.access_token,
            refresh_token: granted.refresh_token,
            issued_at: now,
            since: Some(now),
            scope: granted.scope.or_else(|| record.scope.clone()),
            issuer: record.issuer.clone(),
            token_endpoint: record.token_endpoint.clone(),
            revocation_endpoint: record.revocation_endpoint.clone(),
            resource: record.resource.clone(),
            client_id: record.client_id.clone(),
            tag: Some(TokenTag(random().map_err(call_failed)?)),
            refused: None,
            ended: false,
            step_up: StepUp::default(),
            acts_as: record.acts_as.clone(),
        })
    }
}

/// # Errors
/// Where what comes of it could not be audited. Nothing is done then, so that the same may be tried again.
fn can_be_audited() -> Result<(), CallError> {
    audit::blocked().map_or(Ok(()), |cause| Err(CallError::Unavailable(cause.into())))
}

/// What is asked for where the operator does not say: what the upstream says, with what it found missing in this person's
/// token.
fn wanted(server: &AuthorizationServer, missing: Scope) -> Scope {
    let all = server.scope.union(&missing);
    // What is granted has what is asked for anyway, as a rule; and the rest is what the person came for.
    if all.fits() { all } else { missing }
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

const ENDED_EARLY: CallError =
    CallError::Failed(Cause::Borrowed("the exchange ended early: a fault of envoy-cimd itself"));
const NOT_SEALED: CallError = CallError::Failed(Cause::Borrowed("the record cannot be sealed"));

fn call_failed(error: impl Display) -> CallError {
    CallError::Failed(error.to_string().into())
}

/// A flow that cannot be kept or taken. Where the store is away, nothing was consumed, and the same may be tried again.
fn flow_failed(error: &StoreError) -> CallError {
    match error {
        StoreError::Away(_) => {
            tracing::error!(%error, "the store cannot be reached");
            CallError::Unavailable(error.to_string().into())
        }
        StoreError::Full | StoreError::Failed(_) => store_failed(error),
    }
}

fn store_failed(error: &StoreError) -> CallError {
    tracing::error!(%error, "the store failed");
    call_failed(error)
}

/// What was sealed for a flow, where it is of who completes it. Its context was compared before, but in the clear, where
/// whoever writes the store can change it.
async fn own<T: Bound>(
    complete: &Complete,
    opened: Result<(T, bool), UnsealError>,
    context: &Context,
    now: UnixTime,
) -> Result<T, CompleteError> {
    let error = match opened {
        Ok((record, _)) if record.binding().is_none_or(|binding| binding.holds(context, now)) => return Ok(record),
        Ok(_) => CompleteError::WrongContext,
        Err(error) => {
            tracing::error!(%error, "a stored record cannot be opened");
            let failed = call_failed(format_args!("a stored record cannot be opened: {error}")).into();
            match error {
                UnsealError::DoesNotOpen => failed,
                _ => return Err(failed),
            }
        }
    };
    audit::event("isolation_violation", &complete.user, "", "", Some(&complete.flow_id), "refused").await;
    Err(error)
}

/// Whether an answer may be the recorded issuer's: `iss` is the same, byte for byte, and there where it must be.
fn check_issuer(iss: Option<&str>, recorded: &str, must_be_there: bool) -> Result<(), CompleteError> {
    match iss {
        Some(iss) if iss == recorded => Ok(()),
        None if !must_be_there => Ok(()),
        Some(_) => Err(CompleteError::IssuerMismatch(format!("`iss` is not {recorded}").into())),
        None => Err(CompleteError::IssuerMismatch("`iss` is missing, and has to be there".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
