//! The choreographer's contract served over gRPC.

use std::sync::Arc;

use prost_types::Timestamp;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status};

use crate::{
    contract::{
        choreographer::{AuthorizationAnswer, Begin, Choreographer, Complete, Upstream},
        proto::{
            self, authorization_choreographer_server::AuthorizationChoreographer, begin_authorization_response,
            begin_refusal, complete_authorization_request, complete_authorization_response, complete_refusal, user,
        },
    },
    filter::{refusal::Refusal, request::Trace, state::FlowId},
    model::user::User,
};

/// Serves a choreographer to the filters of other processes.
pub struct Service {
    choreographer: Arc<dyn Choreographer>,
    /// An exchange that began goes on when its caller goes away, and shutdown waits for it.
    calls: TaskTracker,
}

impl Service {
    pub fn new(choreographer: Arc<dyn Choreographer>, calls: TaskTracker) -> Self {
        Self { choreographer, calls }
    }
}

#[tonic::async_trait]
impl AuthorizationChoreographer for Service {
    async fn describe_upstream(
        &self,
        request: Request<proto::DescribeUpstreamRequest>,
    ) -> Result<Response<proto::DescribeUpstreamResponse>, Status> {
        let trace = trace(&request);
        let request = request.into_inner();
        let known = self.choreographer.describe(upstream(request.upstream, request.authorization_server), &trace).await;
        let authorization_server = known.map_err(|refusal| status(&refusal))?.unwrap_or_default();
        Ok(Response::new(proto::DescribeUpstreamResponse { authorization_server }))
    }

    async fn begin_authorization(
        &self,
        request: Request<proto::BeginAuthorizationRequest>,
    ) -> Result<Response<proto::BeginAuthorizationResponse>, Status> {
        use begin_authorization_response::Outcome;
        use begin_refusal::Reason;
        let trace = trace(&request);
        let request = request.into_inner();
        let begin = Begin {
            client_id: request.client_id,
            redirect_uri: request.redirect_uri,
            upstream: upstream(request.upstream, request.authorization_server),
            user: person(request.user)?,
            browser_hash: bytes("browser_hash", request.browser_hash)?,
            return_to: request.return_to,
        };
        let refused =
            |reason: Reason, message| Outcome::Refusal(proto::BeginRefusal { reason: reason.into(), message });
        let outcome = match self.choreographer.begin(begin, &trace).await {
            Ok(begun) => Outcome::Begun(proto::Begun {
                flow_id: begun.flow_id.0.to_vec(),
                expires_at: Some(Timestamp { seconds: i64::try_from(begun.expires_at).unwrap_or(i64::MAX), nanos: 0 }),
                authorization_url: begun.authorization_url,
            }),
            Err(Refusal::AuthorizationServerUnusable(message)) => refused(Reason::AuthorizationServerUnusable, message),
            Err(Refusal::TooManyFlows) => refused(Reason::TooManyFlows, String::new()),
            Err(refusal) => return Err(status(&refusal)),
        };
        Ok(Response::new(proto::BeginAuthorizationResponse { outcome: Some(outcome) }))
    }

    async fn complete_authorization(
        &self,
        request: Request<proto::CompleteAuthorizationRequest>,
    ) -> Result<Response<proto::CompleteAuthorizationResponse>, Status> {
        use complete_authorization_request::Answer;
        use complete_authorization_response::Outcome;
        use complete_refusal::Reason;
        let trace = trace(&request);
        let request = request.into_inner();
        let complete = Complete {
            flow_id: FlowId(bytes("flow_id", request.flow_id)?),
            redirect_uri: request.redirect_uri,
            user: person(request.user)?,
            browser_hash: bytes("browser_hash", request.browser_hash)?,
            answer: match request.answer {
                Some(Answer::Code(code)) => AuthorizationAnswer::Code(code),
                Some(Answer::Error(error)) => AuthorizationAnswer::Error {
                    error: error.error,
                    description: Some(error.error_description).filter(|text| !text.is_empty()),
                },
                None => return Err(Status::invalid_argument("`answer` is missing")),
            },
            iss: request.iss,
        };
        let choreographer = Arc::clone(&self.choreographer);
        let task = self.calls.spawn(async move { choreographer.complete(complete, &trace).await });
        let result = task.await.map_err(|_| Status::internal("the exchange failed"))?;
        let (reason, return_to) = match result {
            Ok(return_to) => {
                let outcome = Some(Outcome::Completed(proto::Completed { return_to }));
                return Ok(Response::new(proto::CompleteAuthorizationResponse { outcome }));
            }
            Err(Refusal::WrongContext) => (Reason::WrongContext, String::new()),
            Err(Refusal::UnknownFlow) => (Reason::UnknownFlow, String::new()),
            Err(Refusal::IssuerMismatch) => (Reason::IssuerMismatch, String::new()),
            Err(Refusal::AuthorizationError) => (Reason::AuthorizationError, String::new()),
            Err(Refusal::AlreadyUsed { return_to }) => (Reason::AlreadyUsed, return_to),
            Err(Refusal::ExchangeFailed) => (Reason::ExchangeFailed, String::new()),
            Err(refusal) => return Err(status(&refusal)),
        };
        let outcome = Some(Outcome::Refusal(proto::CompleteRefusal { reason: reason.into(), return_to }));
        Ok(Response::new(proto::CompleteAuthorizationResponse { outcome }))
    }
}

/// What the contract has no refusal for.
fn status(refusal: &Refusal) -> Status {
    match refusal {
        Refusal::Timeout => Status::deadline_exceeded(refusal.code()),
        _ => Status::internal(refusal.code()),
    }
}

pub(super) fn trace<T>(request: &Request<T>) -> Trace {
    let text = |name| request.metadata().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    Trace { parent: text("traceparent"), state: text("tracestate") }
}

pub(super) fn upstream(url: String, authorization_server: String) -> Upstream {
    Upstream { url, authorization_server: Some(authorization_server).filter(|issuer| !issuer.is_empty()) }
}

pub(super) fn person(user: Option<proto::User>) -> Result<User, Status> {
    match user.and_then(|user| user.kind) {
        Some(user::Kind::SingleUser(_)) => Ok(User::Single),
        Some(user::Kind::Subject(proto::Subject { issuer, subject })) if !issuer.is_empty() && !subject.is_empty() => {
            Ok(User::Subject { issuer, subject })
        }
        _ => Err(Status::invalid_argument("`user` is missing, or has an empty part")),
    }
}

fn bytes<const N: usize>(name: &str, bytes: Vec<u8>) -> Result<[u8; N], Status> {
    bytes.try_into().map_err(|_| Status::invalid_argument(format!("`{name}` does not have {N} bytes")))
}
