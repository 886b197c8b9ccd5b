//! What became of a call of the choreographer that did not do what it was asked. The same in process and over gRPC.

use std::borrow::Cow;

/// Why, in words of ours, for the line with the request id. It quotes nothing that a stranger wrote, and no secret.
pub type Cause = Cow<'static, str>;

/// Why no flow was begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BeginError {
    /// No authorization server can be used for the upstream.
    AuthorizationServerUnusable(Cause),
    /// As many flows, or look-ups, as may be: which limit it is.
    TooManyFlows(Cause),
    /// The authorization server, whose issuer this is, is not the one that the person was shown.
    IssuerChanged(String),
    Call(CallError),
}

/// Why a flow was not completed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CompleteError {
    /// Browser, user or redirect URI differ from the flow's. It was not consumed, unless somebody rewrote it in the store.
    WrongContext,
    /// There is no such flow, or it expired.
    UnknownFlow,
    /// RFC 9207, section 2.4. The flow is consumed.
    IssuerMismatch(Cause),
    /// The authorization server sent an error: its code where that is a registered one, else `other`. The flow is
    /// consumed.
    AuthorizationError(Cause),
    /// It was completed before, in the same context; `return_to` is the choreographer's word, and still to be checked.
    AlreadyUsed {
        return_to: String,
    },
    /// The token endpoint refused, or gave nothing that can be used. The flow is consumed.
    ExchangeFailed(Cause),
    Call(CallError),
}

/// A flow that was not completed, and where its person wanted to go, so that they can start again from there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incomplete {
    pub error: CompleteError,
    /// The choreographer's word, and still to be checked. None unless who asked is known to be who began.
    pub return_to: Option<String>,
}

/// What became of a call as such.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallError {
    /// Nothing was done, and nothing is lost: no connection could be made, the store could not be opened, or nothing can
    /// be audited.
    Unavailable(Cause),
    /// It broke after it may have done something, or what came back keeps no contract.
    Failed(Cause),
    /// It took too long, and may have done something.
    Timeout(Cause),
}

impl CallError {
    /// Why, in words of ours.
    pub fn cause(&self) -> &Cause {
        let (Self::Unavailable(cause) | Self::Failed(cause) | Self::Timeout(cause)) = self;
        cause
    }
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

impl From<CompleteError> for Incomplete {
    fn from(error: CompleteError) -> Self {
        Self { error, return_to: None }
    }
}

impl From<CallError> for Incomplete {
    fn from(error: CallError) -> Self {
        CompleteError::from(error).into()
    }
}

/// What logs, traces and metrics call an error.
pub trait Label {
    /// One of a fixed set of words.
    fn label(&self) -> &'static str;
}

impl Label for CallError {
    fn label(&self) -> &'static str {
        match self {
            Self::Unavailable(_) => "choreographer_unavailable",
            Self::Failed(_) => "choreographer_failed",
            Self::Timeout(_) => "timeout",
        }
    }
}

impl Label for BeginError {
    fn label(&self) -> &'static str {
        match self {
            Self::AuthorizationServerUnusable(_) => "authorization_server_unusable",
            Self::TooManyFlows(_) => "too_many_flows",
            Self::IssuerChanged(_) => "issuer_changed",
            Self::Call(error) => error.label(),
        }
    }
}

impl Label for Incomplete {
    fn label(&self) -> &'static str {
        self.error.label()
    }
}

impl Label for CompleteError {
    fn label(&self) -> &'static str {
        match self {
            Self::WrongContext => "wrong_context",
            Self::UnknownFlow => "unknown_flow",
            Self::IssuerMismatch(_) => "issuer_mismatch",
            Self::AuthorizationError(_) => "as_error",
            Self::AlreadyUsed { .. } => "already_used",
            Self::ExchangeFailed(_) => "exchange_failed",
            Self::Call(error) => error.label(),
        }
    }
}
