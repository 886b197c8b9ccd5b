//! The choreographer's contract served over gRPC.

use std::sync::Arc;

use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status};

use super::{
    choreographer::{AuthorizationAnswer, Begin, Choreographer, Complete},
    error::CallError,
    proto::{
        self, authorization_choreographer_server::AuthorizationChoreographer, begin_authorization_response,
        complete_authorization_request, complete_authorization_response,
    },
    wire::{bytes, owner, parsed, timestamp, trace, upstream, user},
};
use crate::model::{
    client::{ClientId, RedirectUri},
    flow::{BrowserHash, FlowId},
    secret::Secret,
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
        let upstream = upstream(request.upstream, request.authorization_server, &request.resource)?;
        let client_id = ClientId::new(request.client_id);
        let known = self.choreographer.describe(client_id, upstream, &trace).await;
        let authorization_server = known.map_err(status)?.unwrap_or_default();
        Ok(Response::new(proto::DescribeUpstreamResponse { authorization_server }))
    }

    async fn describe_connection(
        &self,
        request: Request<proto::DescribeConnectionRequest>,
    ) -> Result<Response<proto::DescribeConnectionResponse>, Status> {
        let trace = trace(&request);
        let request = request.into_inner();
        let (client_id, pin) = (request.client_id, request.authorization_server);
        let owner = owner(request.user, client_id, request.upstream, pin, &request.resource)?;
        let scope = parsed("scope", &request.scope)?;
        let connection = self.choreographer.connection(owner, scope, &trace).await;
        Ok(Response::new(connection.map_err(status)?.into()))
    }

    async fn begin_authorization(
        &self,
        request: Request<proto::BeginAuthorizationRequest>,
    ) -> Result<Response<proto::BeginAuthorizationResponse>, Status> {
        use begin_authorization_response::Outcome;
        let trace = trace(&request);
        let request = request.into_inner();
        let begin = Begin {
            client_id: ClientId::new(request.client_id),
            redirect_uri: RedirectUri::new(request.redirect_uri),
            client_name: request.client_name,
            upstream: upstream(request.upstream, request.authorization_server, &request.resource)?,
            scope: parsed("scope", &request.scope)?,
            prompt: parsed("prompt", &request.prompt)?,
            user: user(request.user)?,
            browser_hash: BrowserHash(bytes("browser_hash", request.browser_hash)?),
            return_to: request.return_to,
            shown_issuer: Some(request.shown_issuer).filter(|issuer| !issuer.is_empty()),
        };
        // A task of its own, so that a flow that is kept has its line in the audit log, whoever left.
        let choreographer = Arc::clone(&self.choreographer);
        let task = self.calls.spawn(async move { choreographer.begin(begin, &trace).await });
        let outcome = match task.await.map_err(|_| Status::internal("the flow failed to begin"))? {
            Ok(begun) => Outcome::Begun(proto::Begun {
                flow_id: begun.flow_id.0.to_vec(),
                expires_at: timestamp(begun.expires_at),
                authorization_url: begun.authorization_url,
            }),
            Err(error) => Outcome::Refusal(error.into()),
        };
        Ok(Response::new(proto::BeginAuthorizationResponse { outcome: Some(outcome) }))
    }

    async fn complete_authorization(
        &self,
        request: Request<proto::CompleteAuthorizationRequest>,
    ) -> Result<Response<proto::CompleteAuthorizationResponse>, Status> {
        use complete_authorization_request::Answer;
        use complete_authorization_response::Outcome;
        let trace = trace(&request);
        let request = request.into_inner();
        let complete = Complete {
            flow_id: FlowId(bytes("flow_id", request.flow_id)?),
            redirect_uri: RedirectUri::new(request.redirect_uri),
            user: user(request.user)?,
            browser_hash: BrowserHash(bytes("browser_hash", request.browser_hash)?),
            answer: match request.answer {
                Some(Answer::Code(code)) => AuthorizationAnswer::Code(Secret::new(code)),
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
        let outcome = Some(match result {
            Ok(return_to) => Outcome::Completed(proto::Completed { return_to }),
            Err(error) => Outcome::Refusal(error.into()),
        });
        Ok(Response::new(proto::CompleteAuthorizationResponse { outcome }))
    }

    async fn disconnect(
        &self,
        request: Request<proto::DisconnectRequest>,
    ) -> Result<Response<proto::DisconnectResponse>, Status> {
        let trace = trace(&request);
        let request = request.into_inner();
        let owner = owner(request.user, request.client_id, request.upstream, String::new(), &request.resource)?;
        let refusal = self.choreographer.disconnect(owner, &trace).await.err().map(Into::into);
        Ok(Response::new(proto::DisconnectResponse { refusal }))
    }
}

/// The look-ups have no refusal of their own: the page does without.
fn status(error: CallError) -> Status {
    match error {
        CallError::Unavailable(cause) => Status::unavailable(cause),
        CallError::Failed(cause) => Status::internal(cause),
        CallError::Timeout(cause) => Status::deadline_exceeded(cause),
    }
}
