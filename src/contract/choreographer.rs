//! The authorization choreographer, as the endpoints see it: begins flows and ends them, and ends connections.

use async_trait::async_trait;

use super::{
    connection::Connection,
    error::{BeginError, CallError, Incomplete},
    tokens::TokenOwner,
};
use crate::model::{
    client::{ClientId, RedirectUri},
    clock::UnixTime,
    flow::{BrowserHash, FlowId},
    prompt::Prompt,
    scope::Scope,
    secret::Secret,
    trace::Trace,
    upstream::Upstream,
    user::User,
};

/// Runs the OAuth exchange. One trait for the one in this process and the one that is called.
#[async_trait]
pub trait Choreographer: Send + Sync {
    /// The issuer of the authorization server of a route's upstream, where it is known or soon found.
    ///
    /// # Errors
    /// What became of the call.
    async fn describe(
        &self,
        client_id: ClientId,
        upstream: Upstream,
        trace: &Trace,
    ) -> Result<Option<String>, CallError>;

    /// Whether the owner is connected, and what their next authorization would ask for, as far as that is known or soon
    /// found. `scope` is what the operator says to ask for.
    ///
    /// # Errors
    /// What became of the call.
    async fn connection(&self, owner: TokenOwner, scope: Option<Scope>, trace: &Trace)
    -> Result<Connection, CallError>;

    /// Begins a flow.
    ///
    /// # Errors
    /// Why none was begun.
    async fn begin(&self, begin: Begin, trace: &Trace) -> Result<Begun, BeginError>;

    /// Ends a flow, and gives its `return_to`.
    ///
    /// # Errors
    /// Why it was not completed.
    async fn complete(&self, complete: Complete, trace: &Trace) -> Result<String, Incomplete>;

    /// Forgets and revokes the owner's tokens, as [`super::tokens::UpstreamTokens::disconnect`] does; where there are
    /// none, that is well too.
    ///
    /// # Errors
    /// What became of the call.
    async fn disconnect(&self, owner: TokenOwner, trace: &Trace) -> Result<(), CallError>;
}

/// What a flow begins with.
pub struct Begin {
    pub client_id: ClientId,
    pub redirect_uri: RedirectUri,
    /// The name in the route's document.
    pub client_name: String,
    pub upstream: Upstream,
    /// What to ask for, where the operator says so.
    pub scope: Option<Scope>,
    /// What the operator says of the request's `prompt`.
    pub prompt: Option<Prompt>,
    pub user: User,
    pub browser_hash: BrowserHash,
    pub return_to: String,
    /// The issuer that the page named, on which the person pressed the button.
    pub shown_issuer: Option<String>,
}

/// A flow that began.
#[derive(Debug)]
pub struct Begun {
    pub flow_id: FlowId,
    pub expires_at: UnixTime,
    /// The authorization request with every parameter but `state`.
    pub authorization_url: String,
}

/// What ends a flow.
pub struct Complete {
    pub flow_id: FlowId,
    pub redirect_uri: RedirectUri,
    pub user: User,
    pub browser_hash: BrowserHash,
    pub answer: AuthorizationAnswer,
    /// RFC 9207, form-decoded and otherwise untouched.
    pub iss: Option<String>,
}

/// What the authorization server sent the browser back with (RFC 6749, section 4.1.2).
pub enum AuthorizationAnswer {
    Code(Secret),
    /// The server's words, which may hold anything.
    Error {
        error: String,
        description: Option<String>,
    },
}
