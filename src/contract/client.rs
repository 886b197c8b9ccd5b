//! A choreographer in another process, called over gRPC.

use std::{error::Error, iter::successors, time::Duration};

use async_trait::async_trait;
use tokio::time::timeout;
use tonic::{Code, ConnectError, Status, TimeoutExpired, transport::Channel};

use super::{
    choreographer::{AuthorizationAnswer, Begin, Begun, Choreographer, Complete},
    error::{BeginError, CallError, Cause, CompleteError},
    proto::{
        self, authorization_choreographer_client::AuthorizationChoreographerClient, begin_authorization_response,
        complete_authorization_request, complete_authorization_response,
    },
    tokens::TokenOwner,
    wire::{set_trace, text, time},
};
use crate::model::{client::ClientId, flow::FlowId, trace::Trace, upstream::Upstream};

/// The longest a call may take in all. The choreographer's own limit (`--patience`) is less, Envoy's 15 s.
const DEADLINE: Duration = Duration::from_secs(10);
/// The longest that the page waits for a name that it can do without.
const DESCRIBE_DEADLINE: Duration = Duration::from_secs(2);

const NO_ANSWER: Cause = Cause::Borrowed("the choreographer did not answer in time");
const NO_CONTRACT: Cause = Cause::Borrowed("the choreographer's answer does not keep the contract");

/// A connection that is made when it is first needed, and made again when it breaks.
#[derive(Clone, Debug)]
pub struct Client {
    inner: AuthorizationChoreographerClient<Channel>,
}

impl Client {
    pub fn new(channel: Channel) -> Self {
        Self { inner: AuthorizationChoreographerClient::new(channel) }
    }

    /// Calls once, and never again: the request may have arrived whatever is heard of it.
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
        let mut request = tonic::Request::new(request);
        set_trace(&mut request, trace);
        request.set_timeout(deadline);
        match timeout(deadline, call(self.inner.clone(), request)).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(call_error(&status)),
            Err(_) => Err(CallError::Timeout(NO_ANSWER)),
        }
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
            Some(Outcome::Begun(answer)) => Ok(begun(answer).ok_or(CallError::Failed(NO_CONTRACT))?),
            Some(Outcome::Refusal(refusal)) => Err(refusal.into()),
            None => Err(CallError::Failed(NO_CONTRACT).into()),
        }
    }

    async fn complete(&self, complete: Complete, trace: &Trace) -> Result<String, CompleteError> {
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
            None => Err(CallError::Failed(NO_CONTRACT).into()),
        }
    }

    async fn disconnect(&self, owner: TokenOwner, trace: &Trace) -> Result<(), CallError> {
        let request = proto::DisconnectRequest {
            user: Some(owner.user.into()),
            client_id: owner.client_id.into_string(),
            upstream: owner.upstream.url,
            resource: text(owner.upstream.resource),
        };
        let answer =
            self.call(DEADLINE, request, trace, |mut client, request| async move { client.disconnect(request).await });
        answer.await?.refusal.map_or(Ok(()), |refusal| Err(refusal.into()))
    }
}

/// Only a failed connection proves that nothing was sent. (A code says less: a connection that breaks is `CANCELLED`,
/// as a deadline is.)
fn call_error(status: &Status) -> CallError {
    let sources = || successors(Error::source(status), |error| (*error).source());
    let innermost = sources().last().map(ToString::to_string);
    if sources().any(|error| error.is::<ConnectError>()) {
        return CallError::Unavailable(cause("no connection to the choreographer", innermost));
    }
    if status.code() == Code::DeadlineExceeded || sources().any(|error| error.is::<TimeoutExpired>()) {
        return CallError::Timeout(NO_ANSWER);
    }
    // With TLS 1.3 it shows only here that the other side does not let us in.
    let said = innermost.or_else(|| Some(format!("{:?}, {}", status.code(), status.message())));
    CallError::Failed(cause("the call of the choreographer broke", said))
}

fn cause(what: &str, why: Option<String>) -> Cause {
    why.map_or_else(|| what.to_owned(), |why| format!("{what}: {why}")).into()
}

/// None where the answer keeps no contract.
fn begun(begun: proto::Begun) -> Option<Begun> {
    let flow_id = FlowId(begun.flow_id.try_into().ok()?);
    let expires_at = time(begun.expires_at?)?;
    Some(Begun { flow_id, expires_at, authorization_url: begun.authorization_url })
}
