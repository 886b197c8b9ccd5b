//! A choreographer in another process, called over gRPC.

use std::time::Duration;

use async_trait::async_trait;
use tonic::{Status, transport::Channel};

use super::{
    calling::{DEADLINE, broken_contract, call_error, call_once},
    choreographer::{AuthorizationAnswer, Begin, Begun, Choreographer, Complete},
    connection::{Connection, connection},
    error::{BeginError, CallError, Incomplete},
    proto::{
        self, authorization_choreographer_client::AuthorizationChoreographerClient, begin_authorization_response,
        complete_authorization_request, complete_authorization_response,
    },
    tokens::TokenOwner,
    wire::{text, time},
};
use crate::model::{client::ClientId, flow::FlowId, scope::Scope, trace::Trace, upstream::Upstream};

/// What errors call it.
const SERVICE: &str = "the choreographer";
/// The longest that the page waits for what it can do without.
const DESCRIBE_DEADLINE: Duration = Duration::from_secs(2);

/// A connection that is made when it is first needed, and made again when it breaks.
#[derive(Clone, Debug)]
pub struct Client {
    inner: AuthorizationChoreographerClient<Channel>,
}

impl Client {
    pub fn new(channel: Channel) -> Self {
        Self { inner: AuthorizationChoreographerClient::new(channel) }
    }

    async fn call<Q, A, F>(
        &self,
        deadline: Duration,
        request: Q,
        trace: &Trace,
        call: impl FnOnce(AuthorizationChoreographerClient<Channel>, tonic::Request<Q>) -> F,
    ) -> Result<A, CallError>
    where
        F: Future<Output = Result<tonic::Response<A>, Status>>,
    {
        let answer = call_once(deadline, request, trace, |request| call(self.inner.clone(), request)).await;
        answer.map_err(|status| call_error(SERVICE, &status))
    }
}

#[async_trait]
impl Choreographer for Client {
    async fn describe(
        &self,
        client_id: ClientId,
        upstream: Upstream,
        trace: &Trace,
    ) -> Result<Option<String>, CallError> {
        let request = proto::DescribeUpstreamRequest {
            upstream: upstream.url,
            authorization_server: upstream.authorization_server.unwrap_or_default(),
            client_id: client_id.into_string(),
            resource: text(upstream.resource),
        };
        let answer = self
            .call(DESCRIBE_DEADLINE, request, trace, |mut client, request| async move {
                client.describe_upstream(request).await
            })
            .await?;
        Ok(Some(answer.authorization_server).filter(|issuer| !issuer.is_empty()))
    }

    async fn connection(
        &self,
        owner: TokenOwner,
        scope: Option<Scope>,
        trace: &Trace,
    ) -> Result<Connection, CallError> {
        let request = proto::DescribeConnectionRequest {
            user: Some(owner.user.into()),
            client_id: owner.client_id.into_string(),
            upstream: owner.upstream.url,
            authorization_server: owner.upstream.authorization_server.unwrap_or_default(),
            resource: text(owner.upstream.resource),
            scope: text(scope),
        };
        let answer = self
            .call(DESCRIBE_DEADLINE, request, trace, |mut client, request| async move {
                client.describe_connection(request).await
            })
            .await?;
        connection(answer).ok_or_else(broke_contract)
    }

    async fn begin(&self, begin: Begin, trace: &Trace) -> Result<Begun, BeginError> {
        use begin_authorization_response::Outcome;
        let request = proto::BeginAuthorizationRequest {
            client_id: begin.client_id.into_string(),
            redirect_uri: begin.redirect_uri.into_string(),
            upstream: begin.upstream.url,
            authorization_server: begin.upstream.authorization_server.unwrap_or_default(),
            user: Some(begin.user.into()),
            browser_hash: begin.browser_hash.0.to_vec(),
            return_to: begin.return_to,
            shown_issuer: begin.shown_issuer.unwrap_or_default(),
            resource: text(begin.upstream.resource),
            scope: text(begin.scope),
            prompt: text(begin.prompt),
            client_name: begin.client_name,
        };
        let answer =
            self.call(DEADLINE, request, trace, |mut client, request| async move {
                client.begin_authorization(request).await
            })
            .await?;
        match answer.outcome {
            Some(Outcome::Begun(answer)) => Ok(begun(answer).ok_or_else(broke_contract)?),
            Some(Outcome::Refusal(refusal)) => Err(refusal.into()),
            None => Err(broke_contract().into()),
        }
    }

    async fn complete(&self, complete: Complete, trace: &Trace) -> Result<String, Incomplete> {
        use complete_authorization_request::Answer;
        use complete_authorization_response::Outcome;
        let request = proto::CompleteAuthorizationRequest {
            flow_id: complete.flow_id.0.to_vec(),
            redirect_uri: complete.redirect_uri.into_string(),
            user: Some(complete.user.into()),
            browser_hash: complete.browser_hash.0.to_vec(),
            answer: Some(match complete.answer {
                AuthorizationAnswer::Code(code) => Answer::Code(code.expose().to_owned()),
                AuthorizationAnswer::Error { error, description } => Answer::Error(proto::AuthorizationError {
                    error,
                    error_description: description.unwrap_or_default(),
                }),
            }),
            iss: complete.iss,
        };
        let answer = self
            .call(DEADLINE, request, trace, |mut client, request| async move {
                client.complete_authorization(request).await
            })
            .await?;
        match answer.outcome {
            Some(Outcome::Completed(completed)) => Ok(completed.return_to),
            Some(Outcome::Refusal(refusal)) => Err(refusal.into()),
            None => Err(broke_contract().into()),
        }
    }

    async fn disconnect(&self, owner: TokenOwner, trace: &Trace) -> Result<(), CallError> {
        let request = proto::DisconnectRequest::from(owner);
        let answer =
            self.call(DEADLINE, request, trace, |mut client, request| async move { client.disconnect(request).await });
        answer.await?.refusal.map_or(Ok(()), |refusal| Err(refusal.into()))
    }
}

fn broke_contract() -> CallError {
    CallError::Failed(broken_contract(SERVICE))
}

/// None where the answer keeps no contract.
fn begun(begun: proto::Begun) -> Option<Begun> {
    let flow_id = FlowId(begun.flow_id.try_into().ok()?);
    let expires_at = time(begun.expires_at?)?;
    Some(Begun { flow_id, expires_at, authorization_url: begun.authorization_url })
}
