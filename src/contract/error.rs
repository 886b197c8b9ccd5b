//! What became of a call of the choreographer that did not do what it was asked. The same in process and over gRPC.

/// Why no flow was begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BeginError {
    /// No authorization server can be used for the upstream. The reason is for the log.
    AuthorizationServerUnusable(String),
    /// As many flows, or look-ups, as may be.
    TooManyFlows,
    Call(CallError),
}

/// Why a flow was not completed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CompleteError {
    /// Browser, user or redirect URI differ from the flow's. It was not consumed.
    WrongContext,
    /// There is no such flow, or it expired.
    UnknownFlow,
    /// RFC 9207, section 2.4. The flow is consumed.
    IssuerMismatch,
    /// The authorization server sent an error; the code, where it is a registered one, is for the log. The flow is
    /// consumed.
    AuthorizationError(String),
    /// It was completed before, in the same context; `return_to` is the choreographer's word, and still to be checked.
    AlreadyUsed {
        return_to: String,
    },
    /// The token endpoint refused, or gave nothing that can be used; why is for the log. The flow is consumed.
    ExchangeFailed(String),
    Call(CallError),
}

/// What became of a call as such.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallError {
    /// Nothing was done, and nothing is lost: no connection could be made, or the store could not be opened.
    Unavailable,
    /// It broke after it may have done something, or what came back keeps no contract.
    Failed,
    /// It took too long, and may have done something.
    Timeout,
}

impl From<CallError> for BeginError {
    fn from(error: CallError) -> Self {
        Self::Call(error)
    }
}

impl From<CallError> for CompleteError {
    fn from(error: CallError) -> Self {
        Self::Call(error)
    }
}

/// What logs, traces and metrics call an error.
pub trait Label {
    fn label(&self) -> &'static str;
}

impl Label for CallError {
    fn label(&self) -> &'static str {
        match self {
            Self::Unavailable => "choreographer_unavailable",
            Self::Failed => "choreographer_failed",
            Self::Timeout => "timeout",
        }
    }
}

impl Label for BeginError {
    fn label(&self) -> &'static str {
        match self {
            Self::AuthorizationServerUnusable(_) => "authorization_server_unusable",
            Self::TooManyFlows => "too_many_flows",
            Self::Call(error) => error.label(),
        }
    }
}

impl Label for CompleteError {
    fn label(&self) -> &'static str {
        match self {
            Self::WrongContext => "wrong_context",
            Self::UnknownFlow => "unknown_flow",
            Self::IssuerMismatch => "issuer_mismatch",
            Self::AuthorizationError(_) => "as_error",
            Self::AlreadyUsed { .. } => "already_used",
            Self::ExchangeFailed(_) => "exchange_failed",
            Self::Call(error) => error.label(),
        }
    }
}
