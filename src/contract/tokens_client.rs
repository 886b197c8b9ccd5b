//! The tokens of another process, called over gRPC.

use std::time::Duration;

use async_trait::async_trait;
use tonic::{Status, transport::Channel};

use super::{
    calling::{DEADLINE, broken_contract, call_error, call_once},
    proto::{self, report_refused_token_request, report_refused_token_response, upstream_tokens_client},
    tokens::{
        AFTER_WAIT, AccessToken, LONGEST_WAIT, Refused, RefusedStatus, Renewal, TokenError, TokenOwner, TokenTag,
        UpstreamTokens,
    },
    wire::{text, time, token_error},
};
use crate::model::{secret::Secret, trace::Trace};

/// What errors call it.
const SERVICE: &str = "the service of tokens";

/// A connection that is made when it is first needed, and made again when it breaks.
#[derive(Clone, Debug)]
pub struct TokensClient {
    inner: upstream_tokens_client::UpstreamTokensClient<Channel>,
}

impl TokensClient {
    pub fn new(channel: Channel) -> Self {
        Self { inner: upstream_tokens_client::UpstreamTokensClient::new(channel) }
    }
}

#[async_trait]
impl UpstreamTokens for TokensClient {
    async fn upstream_token(&self, owner: TokenOwner, trace: &Trace) -> Result<AccessToken, TokenError> {
        self.token(owner, None, trace).await
    }

    async fn awaited_token(
        &self,
        owner: TokenOwner,
        longest: Duration,
        trace: &Trace,
    ) -> Result<AccessToken, TokenError> {
        self.token(owner, Some(longest.min(LONGEST_WAIT)), trace).await
    }

    async fn expect_again(&self, owner: TokenOwner, trace: &Trace) -> Result<(), TokenError> {
        let request = proto::ExpectAgainRequest {
            user: Some(owner.user.into()),
            client_id: owner.client_id.into_string(),
            upstream: owner.upstream.url,
        };
        let mut client = self.inner.clone();
        let call = async |request| client.expect_again(request).await;
        call_once(DEADLINE, request, trace, call).await.map(drop).map_err(|status| refusal(&status))
    }

    async fn refused(&self, owner: TokenOwner, refused: Refused, trace: &Trace) -> Result<Renewal, TokenError> {
        use report_refused_token_request::Status;
        use report_refused_token_response::Outcome;
        let status = match refused.status {
            RefusedStatus::Unauthorized => Status::Unauthorized,
            RefusedStatus::InsufficientScope => Status::InsufficientScope,
        };
        let request = proto::ReportRefusedTokenRequest {
            user: Some(owner.user.into()),
            client_id: owner.client_id.into_string(),
            upstream: owner.upstream.url,
            authorization_server: owner.upstream.authorization_server.unwrap_or_default(),
            resource: text(owner.upstream.resource),
            tag: refused.tag.0.to_vec(),
            status: status.into(),
            scope: refused.scope.unwrap_or_default(),
            resource_metadata: refused.resource_metadata.unwrap_or_default(),
            route_scope: text(refused.route_scope),
        };
        let mut client = self.inner.clone();
        let call = async |request| client.report_refused_token(request).await;
        let answer = call_once(DEADLINE, request, trace, call).await.map_err(|status| refusal(&status))?;
        match answer.outcome() {
            Outcome::Renewed => Ok(Renewal::Renewed),
            Outcome::TooSoon => Ok(Renewal::TooSoon),
            Outcome::Connect => Ok(Renewal::Connect),
            Outcome::NoMore => Ok(Renewal::NoMore),
            Outcome::Unspecified => Err(broke_contract()),
        }
    }

    async fn disconnect(&self, owner: TokenOwner, trace: &Trace) -> Result<(), TokenError> {
        let request = proto::DisconnectRequest::from(owner);
        let mut client = self.inner.clone();
        let call = async |request| client.disconnect(request).await;
        call_once(DEADLINE, request, trace, call).await.map(drop).map_err(|status| refusal(&status))
    }
}

impl TokensClient {
    /// `wait` is for how long a token that is not there is waited for.
    async fn token(&self, owner: TokenOwner, wait: Option<Duration>, trace: &Trace) -> Result<AccessToken, TokenError> {
        let request = proto::GetUpstreamTokenRequest {
            user: Some(owner.user.into()),
            client_id: owner.client_id.into_string(),
            upstream: owner.upstream.url,
            authorization_server: owner.upstream.authorization_server.unwrap_or_default(),
            resource: text(owner.upstream.resource),
            wait: wait.and_then(|wait| wait.try_into().ok()),
        };
        let deadline = wait.map_or(DEADLINE, |wait| DEADLINE.max(wait + AFTER_WAIT));
        let mut client = self.inner.clone();
        // Where it is dropped, the stream is reset, and the other side ends the wait.
        let call = async |request| client.get_upstream_token(request).await;
        let answer = call_once(deadline, request, trace, call).await.map_err(|status| refusal(&status))?;
        token(answer).ok_or_else(broke_contract)
    }
}

/// What the service said, or what became of the call.
fn refusal(status: &Status) -> TokenError {
    token_error(status).unwrap_or_else(|| TokenError::Unavailable(call_error(SERVICE, status).cause().clone()))
}

fn broke_contract() -> TokenError {
    TokenError::Unavailable(broken_contract(SERVICE))
}

/// None where the answer keeps no contract.
fn token(answer: proto::GetUpstreamTokenResponse) -> Option<AccessToken> {
    let expires_at = match answer.expires_at {
        Some(at) => Some(time(at)?),
        None => None,
    };
    let again = answer.again_until.and_then(time);
    let secret = Some(answer.access_token).filter(|token| !token.is_empty())?;
    Some(AccessToken { secret: Secret::new(secret), tag: TokenTag(answer.tag.try_into().ok()?), expires_at, again })
}
