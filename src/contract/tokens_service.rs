//! The tokens served over gRPC, to whoever carries MCP traffic.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::{
    proto::{self, upstream_tokens_server},
    tokens::{Renewal, TokenTag, UpstreamTokens},
    wire::{bytes, owner, timestamp, trace},
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
        let token = self.0.upstream_token(owner, &trace).await?;
        Ok(Response::new(proto::GetUpstreamTokenResponse {
            access_token: token.secret.expose().to_owned(),
            expires_at: token.expires_at.and_then(timestamp),
            tag: token.tag.0.to_vec(),
        }))
    }

    async fn report_refused_token(
        &self,
        request: Request<proto::ReportRefusedTokenRequest>,
    ) -> Result<Response<proto::ReportRefusedTokenResponse>, Status> {
        use proto::report_refused_token_response::Outcome;
        let trace = trace(&request);
        let request = request.into_inner();
        let (issuer, resource) = (request.authorization_server, &request.resource);
        let owner = owner(request.user, request.client_id, request.upstream, issuer, resource)?;
        let tag = TokenTag(bytes("tag", request.tag)?);
        let outcome = match self.0.refused(owner, tag, &trace).await? {
            Renewal::Renewed => Outcome::Renewed,
            Renewal::TooSoon => Outcome::TooSoon,
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
