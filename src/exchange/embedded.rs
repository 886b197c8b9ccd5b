//! The choreographer itself: discovery, the authorization request, the exchange, the stored token.

use std::{
    fmt::Display,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use tokio::time::timeout;

mod beginning;
mod completing;
mod registering;

use super::{
    clients::{self, Clients, under_way::Registering},
    deadlines::Deadlines,
    discovery::{Discovery, documents::AuthorizationServer},
    tokens::Tokens,
};
use crate::{
    contract::{
        choreographer::{Begin, Begun, Choreographer, Complete},
        connection::Connection,
        error::{BeginError, CallError, Cause, Incomplete, Label},
        tokens::{TokenError, TokenOwner, UpstreamTokens},
    },
    model::{
        client::ClientId, clock::UnixTime, paths::Paths, scope::Scope, shares::ShareLimits, trace::Trace,
        upstream::Upstream,
    },
    net::outgoing::{self, Outgoing},
    store::{
        backend::FlowLimits,
        error::StoreError,
        open::Opened,
        vault::{self, Vault},
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
    registering: Registering,
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

const ENDED_EARLY: CallError =
    CallError::Failed(Cause::Borrowed("the exchange ended early: a fault of envoy-cimd itself"));

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
