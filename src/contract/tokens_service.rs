//! The tokens served over gRPC, to whoever carries MCP traffic.

use std::{sync::Arc, time::Duration};

use tonic::{Request, Response, Status};

use super::{
    proto::{self, upstream_tokens_server},
    tokens::{Refused, RefusedStatus, Renewal, TokenTag, UpstreamTokens},
    wire::{bytes, owner, parsed, timestamp, trace},
};

/// Serves tokens. Whoever may call it may have every user's token.
pub struct TokensService(pub Arc<dyn UpstreamTokens>);

#[tonic::async_trait]
impl upstream_tokens_server::UpstreamTokens for TokensService {
    async fn get_upstream_token(
        &self,
        request: Request<proto::GetUpstreamTokenRequest>,
    ) -> Result<Response<proto::GetUpstreamTokenResponse>, Status> {
        let trace = trace(&request);
        let request = request.into_inner();
        let (issuer, resource) = (request.authorization_server, &request.resource);
        let owner = owner(request.user, request.client_id, request.upstream, issuer, resource)?;
        let wait = request.wait.map(Duration::try_from).transpose();
        let wait = wait.map_err(|_| Status::invalid_argument("`wait` is no time that one can wait"))?;
        let token = match wait.filter(|wait| !wait.is_zero()) {
            // Whoever makes the call may go away: the wait is dropped with it.
            Some(longest) => self.0.awaited_token(owner, longest, &trace).await?,
            None => self.0.upstream_token(owner, &trace).await?,
        };
        Ok(Response::new(proto::GetUpstreamTokenResponse {
            access_token: token.secret.expose().to_owned(),
            expires_at: token.expires_at.and_then(timestamp),
            tag: token.tag.0.to_vec(),
            again_until: token.again.and_then(timestamp),
        }))
    }

    async fn expect_again(
        &self,
        request: Request<proto::ExpectAgainRequest>,
    ) -> Result<Response<proto::ExpectAgainResponse>, Status> {
        let trace = trace(&request);
        let request = request.into_inner();
        let owner = owner(request.user, request.client_id, request.upstream, String::new(), "")?;
        self.0.expect_again(owner, &trace).await?;
        Ok(Response::new(proto::ExpectAgainResponse {}))
    }

    async fn report_refused_token(
        &self,
        request: Request<proto::ReportRefusedTokenRequest>,
    ) -> Result<Response<proto::ReportRefusedTokenResponse>, Status> {
        use proto::{report_refused_token_request::Status as Refusal, report_refused_token_response::Outcome};
        let trace = trace(&request);
        let request = request.into_inner();
        let (issuer, resource) = (request.authorization_server, &request.resource);
        let owner = owner(request.user, request.client_id, request.upstream, issuer, resource)?;
        let status = match Refusal::try_from(request.status) {
            Ok(Refusal::Unauthorized) => RefusedStatus::Unauthorized,
            Ok(Refusal::InsufficientScope) => RefusedStatus::InsufficientScope,
            Err(_) => return Err(Status::invalid_argument("`status` is not one that this version knows")),
        };
        let said = |text: String| (!text.is_empty()).then_some(text);
        let refused = Refused {
            tag: TokenTag(bytes("tag", request.tag)?),
            status,
            scope: said(request.scope),
            resource_metadata: said(request.resource_metadata),
            route_scope: parsed("route_scope", &request.route_scope)?,
        };
        let outcome = match self.0.refused(owner, refused, &trace).await? {
            Renewal::Renewed => Outcome::Renewed,
            Renewal::TooSoon => Outcome::TooSoon,
            Renewal::Connect => Outcome::Connect,
            Renewal::NoMore => Outcome::NoMore,
        };
        Ok(Response::new(proto::ReportRefusedTokenResponse { outcome: outcome.into() }))
    }

    async fn disconnect(
        &self,
        request: Request<proto::DisconnectRequest>,
    ) -> Result<Response<proto::DisconnectResponse>, Status> {
        let trace = trace(&request);
        let request = request.into_inner();
        let owner = owner(request.user, request.client_id, request.upstream, String::new(), &request.resource)?;
        self.0.disconnect(owner, &trace).await?;
        Ok(Response::new(proto::DisconnectResponse::default()))
    }
}
