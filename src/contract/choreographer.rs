//! The authorization choreographer, as the endpoints see it: begins flows and ends them.

use std::borrow::Cow;

use async_trait::async_trait;

use crate::{
    filter::{refusal::Refusal, request::Trace, state::FlowId},
    model::user::User,
};

/// Runs the OAuth exchange. One trait for the one in this process and the one that is called.
#[async_trait]
pub trait Choreographer: Send + Sync {
    /// The issuer of an upstream's authorization server, where it is known.
    ///
    /// # Errors
    /// What became of the call.
    async fn describe(&self, upstream: Upstream, trace: &Trace) -> Result<Option<String>, Refusal>;

    /// Begins a flow.
    ///
    /// # Errors
    /// [`Refusal::AuthorizationServerUnusable`], [`Refusal::TooManyFlows`], or what became of the call.
    async fn begin(&self, begin: Begin, trace: &Trace) -> Result<Begun, Refusal>;

    /// Ends a flow, and gives its `return_to`.
    ///
    /// # Errors
    /// As the outcome table: from [`Refusal::WrongContext`] to [`Refusal::ExchangeFailed`], or what became of the
    /// call.
    async fn complete(&self, complete: Complete, trace: &Trace) -> Result<String, Refusal>;
}

/// An upstream MCP server, as the operator wrote it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Upstream {
    pub url: String,
    /// The issuer that the operator pins.
    pub authorization_server: Option<String>,
}

/// What a flow begins with. It has no `Debug`: the hash stands for a secret.
pub struct Begin {
    pub client_id: String,
    pub redirect_uri: String,
    pub upstream: Upstream,
    pub user: User,
    pub browser_hash: [u8; 32],
    pub return_to: String,
}

/// A flow that began. It has no `Debug`: whoever knows the flow's id is nearer to a state.
pub struct Begun {
    pub flow_id: FlowId,
    /// Seconds since 1970.
    pub expires_at: u64,
    /// The authorization request with every parameter but `state`.
    pub authorization_url: String,
}

/// What ends a flow. It has no `Debug`: it holds an authorization code.
pub struct Complete {
    pub flow_id: FlowId,
    pub redirect_uri: String,
    pub user: User,
    pub browser_hash: [u8; 32],
    pub answer: AuthorizationAnswer,
    /// RFC 9207, form-decoded and otherwise untouched.
    pub iss: Option<String>,
}

/// What the authorization server sent the browser back with (RFC 6749, section 4.1.2).
pub enum AuthorizationAnswer<T = String> {
    Code(T),
    Error { error: T, description: Option<T> },
}

impl AuthorizationAnswer<Cow<'_, str>> {
    /// For a call, which outlives the query.
    pub fn into_owned(self) -> AuthorizationAnswer {
        match self {
            Self::Code(code) => AuthorizationAnswer::Code(code.into_owned()),
            Self::Error { error, description } => {
                AuthorizationAnswer::Error { error: error.into_owned(), description: description.map(Cow::into_owned) }
            }
        }
    }
}
