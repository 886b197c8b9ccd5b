//! Between the messages of the contracts and the values that they stand for.

use std::{error::Error, str::FromStr};

use prost_types::Timestamp;
use tonic::{
    Code, Request, Status,
    metadata::{MetadataMap, MetadataValue},
};

use super::{
    error::{BeginError, CallError, Cause, CompleteError, Incomplete},
    proto::{self, begin_refusal, complete_refusal, disconnect_refusal, user},
    tokens::{Missing, TokenError, TokenOwner},
};
use crate::model::{client::ClientId, clock::UnixTime, trace::Trace, upstream::Upstream, user::User};

/// The reason of a version that this one does not know is none.
const UNKNOWN_REASON: Cause = Cause::Borrowed("the choreographer refused for a reason that this version does not know");

/// Where a `NOT_FOUND` of the tokens says what became of the one that is not there: metadata, so that whoever knows the
/// code alone needs nothing more.
const NOT_FOUND: &str = "envoy-cimd-not-found";
const NEVER: &str = "never";
const LOST: &str = "lost";

impl From<User> for proto::User {
    fn from(user: User) -> Self {
        let kind = match user {
            User::Subject { issuer, subject } => user::Kind::Subject(proto::Subject { issuer, subject }),
            User::Single => user::Kind::SingleUser(proto::SingleUser {}),
        };
        Self { kind: Some(kind) }
    }
}

impl From<TokenOwner> for proto::DisconnectRequest {
    fn from(owner: TokenOwner) -> Self {
        Self {
            user: Some(owner.user.into()),
            client_id: owner.client_id.into_string(),
            upstream: owner.upstream.url,
            resource: text(owner.upstream.resource),
        }
    }
}

/// # Errors
/// `INVALID_ARGUMENT` where it is missing, or has an empty part.
pub(super) fn user(user: Option<proto::User>) -> Result<User, Status> {
    match user.and_then(|user| user.kind) {
        Some(user::Kind::SingleUser(_)) => Ok(User::Single),
        Some(user::Kind::Subject(proto::Subject { issuer, subject })) if !issuer.is_empty() && !subject.is_empty() => {
            Ok(User::Subject { issuer, subject })
        }
        _ => Err(Status::invalid_argument("`user` is missing, or has an empty part")),
    }
}

/// # Errors
/// As [`user`].
pub(super) fn owner(
    of: Option<proto::User>,
    client_id: String,
    url: String,
    authorization_server: String,
    resource: &str,
) -> Result<TokenOwner, Status> {
    let upstream = upstream(url, authorization_server, resource)?;
    Ok(TokenOwner { user: user(of)?, client_id: ClientId::new(client_id), upstream })
}

/// # Errors
/// `INVALID_ARGUMENT` where `resource` is not a resource indicator.
pub(super) fn upstream(url: String, authorization_server: String, resource: &str) -> Result<Upstream, Status> {
    let authorization_server = Some(authorization_server).filter(|issuer| !issuer.is_empty());
    Ok(Upstream { url, authorization_server, resource: parsed("resource", resource)? })
}

/// What a route's key says; none where it is not set.
///
/// # Errors
/// `INVALID_ARGUMENT` where it is wrong.
pub(super) fn parsed<T: FromStr<Err = &'static str>>(name: &str, text: &str) -> Result<Option<T>, Status> {
    let bad = |problem| Status::invalid_argument(format!("`{name}` {problem}"));
    (!text.is_empty()).then(|| text.parse().map_err(bad)).transpose()
}

/// What stands for a value of [`parsed`].
pub(super) fn text(value: Option<impl ToString>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

/// # Errors
/// `INVALID_ARGUMENT` where they have another length.
pub(super) fn bytes<const N: usize>(name: &str, bytes: Vec<u8>) -> Result<[u8; N], Status> {
    bytes.try_into().map_err(|_| Status::invalid_argument(format!("`{name}` does not have {N} bytes")))
}

/// None where it is too late for a timestamp.
pub(super) fn timestamp(time: UnixTime) -> Option<Timestamp> {
    Some(Timestamp { seconds: i64::try_from(time.secs()).ok()?, nanos: 0 })
}

/// None before 1970.
pub(super) fn time(timestamp: Timestamp) -> Option<UnixTime> {
    u64::try_from(timestamp.seconds).ok().map(UnixTime::from_secs)
}

/// The trace of a call, in its metadata (W3C Trace Context).
pub(super) fn trace<T>(request: &Request<T>) -> Trace {
    let text = |name| request.metadata().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    Trace { parent: text("traceparent"), state: text("tracestate") }
}

pub(super) fn set_trace<T>(request: &mut Request<T>, trace: &Trace) {
    for (name, value) in [("traceparent", &trace.parent), ("tracestate", &trace.state)] {
        if let Some(value) = value.as_ref().and_then(|value| value.parse().ok()) {
            request.metadata_mut().insert(name, value);
        }
    }
}

impl From<BeginError> for proto::BeginRefusal {
    fn from(error: BeginError) -> Self {
        use begin_refusal::Reason;
        let mut issuer = String::new();
        let (reason, message) = match error {
            BeginError::IssuerChanged(found) => {
                issuer = found;
                (Reason::IssuerChanged, String::new())
            }
            BeginError::AuthorizationServerUnusable(message) => {
                (Reason::AuthorizationServerUnusable, message.into_owned())
            }
            BeginError::TooManyFlows(message) => (Reason::TooManyFlows, message.into_owned()),
            BeginError::Call(CallError::Unavailable(cause)) => (Reason::Unavailable, cause.into_owned()),
            BeginError::Call(CallError::Failed(cause)) => (Reason::Failed, cause.into_owned()),
            BeginError::Call(CallError::Timeout(cause)) => (Reason::TimedOut, cause.into_owned()),
        };
        Self { reason: reason.into(), message, issuer }
    }
}

impl From<proto::BeginRefusal> for BeginError {
    fn from(refusal: proto::BeginRefusal) -> Self {
        use begin_refusal::Reason;
        let reason = refusal.reason();
        let cause = refusal.message.into();
        match reason {
            Reason::AuthorizationServerUnusable => Self::AuthorizationServerUnusable(cause),
            Reason::TooManyFlows => Self::TooManyFlows(cause),
            Reason::IssuerChanged => Self::IssuerChanged(refusal.issuer),
            Reason::Unavailable => Self::Call(CallError::Unavailable(cause)),
            Reason::Failed => Self::Call(CallError::Failed(cause)),
            Reason::Unspecified => Self::Call(CallError::Failed(UNKNOWN_REASON)),
            Reason::TimedOut => Self::Call(CallError::Timeout(cause)),
        }
    }
}

impl From<Incomplete> for proto::CompleteRefusal {
    fn from(Incomplete { error, return_to }: Incomplete) -> Self {
        let refusal = Self::from(error);
        match return_to {
            Some(return_to) => Self { return_to, ..refusal },
            None => refusal,
        }
    }
}

impl From<proto::CompleteRefusal> for Incomplete {
    fn from(refusal: proto::CompleteRefusal) -> Self {
        let return_to = Some(refusal.return_to.clone()).filter(|return_to| !return_to.is_empty());
        let error = CompleteError::from(refusal);
        // Who asked may be somebody else, or it says so itself.
        let is_known = !matches!(
            error,
            CompleteError::WrongContext | CompleteError::UnknownFlow | CompleteError::AlreadyUsed { .. }
        );
        Self { error, return_to: return_to.filter(|_| is_known) }
    }
}

impl From<CompleteError> for proto::CompleteRefusal {
    fn from(error: CompleteError) -> Self {
        use complete_refusal::Reason;
        let none = String::new;
        let (reason, return_to, message) = match error {
            CompleteError::WrongContext => (Reason::WrongContext, none(), none()),
            CompleteError::UnknownFlow => (Reason::UnknownFlow, none(), none()),
            CompleteError::IssuerMismatch(cause) => (Reason::IssuerMismatch, none(), cause.into_owned()),
            CompleteError::AuthorizationError(code) => (Reason::AuthorizationError, none(), code.into_owned()),
            CompleteError::AlreadyUsed { return_to } => (Reason::AlreadyUsed, return_to, none()),
            CompleteError::ExchangeFailed(cause) => (Reason::ExchangeFailed, none(), cause.into_owned()),
            CompleteError::Call(CallError::Unavailable(cause)) => (Reason::Unavailable, none(), cause.into_owned()),
            CompleteError::Call(CallError::Failed(cause)) => (Reason::Failed, none(), cause.into_owned()),
            CompleteError::Call(CallError::Timeout(cause)) => (Reason::TimedOut, none(), cause.into_owned()),
        };
        Self { reason: reason.into(), return_to, message }
    }
}

impl From<proto::CompleteRefusal> for CompleteError {
    fn from(refusal: proto::CompleteRefusal) -> Self {
        use complete_refusal::Reason;
        let reason = refusal.reason();
        let cause = refusal.message.into();
        match reason {
            Reason::WrongContext => Self::WrongContext,
            Reason::UnknownFlow => Self::UnknownFlow,
            Reason::IssuerMismatch => Self::IssuerMismatch(cause),
            Reason::AuthorizationError => Self::AuthorizationError(cause),
            Reason::AlreadyUsed => Self::AlreadyUsed { return_to: refusal.return_to },
            Reason::ExchangeFailed => Self::ExchangeFailed(cause),
            Reason::Unavailable => Self::Call(CallError::Unavailable(cause)),
            Reason::Failed => Self::Call(CallError::Failed(cause)),
            Reason::Unspecified => Self::Call(CallError::Failed(UNKNOWN_REASON)),
            Reason::TimedOut => Self::Call(CallError::Timeout(cause)),
        }
    }
}

impl From<CallError> for proto::DisconnectRefusal {
    fn from(error: CallError) -> Self {
        use disconnect_refusal::Reason;
        let (reason, message) = match error {
            CallError::Unavailable(cause) => (Reason::Unavailable, cause),
            CallError::Failed(cause) => (Reason::Failed, cause),
            CallError::Timeout(cause) => (Reason::TimedOut, cause),
        };
        Self { reason: reason.into(), message: message.into_owned() }
    }
}

impl From<proto::DisconnectRefusal> for CallError {
    fn from(refusal: proto::DisconnectRefusal) -> Self {
        use disconnect_refusal::Reason;
        let reason = refusal.reason();
        let cause = refusal.message.into();
        match reason {
            Reason::Unavailable => Self::Unavailable(cause),
            Reason::Failed => Self::Failed(cause),
            Reason::Unspecified => Self::Failed(UNKNOWN_REASON),
            Reason::TimedOut => Self::Timeout(cause),
        }
    }
}

impl From<TokenError> for Status {
    fn from(error: TokenError) -> Self {
        let (missing, message) = match error {
            TokenError::NotFound(Missing::Never) => (NEVER, "this user is not connected to this route"),
            TokenError::NotFound(Missing::Lost) => (LOST, "this user's grant has ended"),
            TokenError::Unavailable(cause) => return Self::unavailable(cause),
        };
        let mut metadata = MetadataMap::new();
        metadata.insert(NOT_FOUND, MetadataValue::from_static(missing));
        Self::with_metadata(Code::NotFound, message, metadata)
    }
}

/// What the tokens' service said; none where it is not the service that says it.
pub(super) fn token_error(status: &Status) -> Option<TokenError> {
    match status.code() {
        // A version before `lost` says nothing more, and a later one may say what this one does not know.
        Code::NotFound => Some(TokenError::NotFound(match status.metadata().get(NOT_FOUND) {
            Some(missing) if missing == LOST => Missing::Lost,
            _ => Missing::Never,
        })),
        // What the connection says of itself has a source.
        Code::Unavailable if status.source().is_none() => {
            Some(TokenError::Unavailable(status.message().to_owned().into()))
        }
        _ => None,
    }
}
