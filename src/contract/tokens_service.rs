//! The tokens served over gRPC, to whoever carries MCP traffic.

use opentelemetry::trace::SpanKind;
use prost_types::Timestamp;
use tonic::{Request, Response, Status};

use crate::{
    contract::{
        proto::{self, upstream_tokens_server::UpstreamTokens},
        service::{person, trace, upstream},
    },
    exchange::{embedded::Embedded, tokens::TokenError},
    telemetry::traces::Span,
};

/// Serves tokens. Whoever may call it may have every user's token.
pub struct TokensService(pub Embedded);

#[tonic::async_trait]
impl UpstreamTokens for TokensService {
    async fn get_upstream_token(
        &self,
        request: Request<proto::GetUpstreamTokenRequest>,
    ) -> Result<Response<proto::GetUpstreamTokenResponse>, Status> {
        let span = Span::of(&trace(&request), "GetUpstreamToken", SpanKind::Server);
        let request = request.into_inner();
        let user = person(request.user)?;
        let upstream = upstream(request.upstream, request.authorization_server);
        let token = span.cover(self.0.upstream_token(&user, &request.client_id, &upstream)).await.map_err(status)?;
        let expires_at = token.expires_at.and_then(|seconds| i64::try_from(seconds).ok());
        Ok(Response::new(proto::GetUpstreamTokenResponse {
            access_token: token.secret,
            expires_at: expires_at.map(|seconds| Timestamp { seconds, nanos: 0 }),
        }))
    }

    async fn disconnect(
        &self,
        request: Request<proto::DisconnectRequest>,
    ) -> Result<Response<proto::DisconnectResponse>, Status> {
        let span = Span::of(&trace(&request), "Disconnect", SpanKind::Server);
        let request = request.into_inner();
        let user = person(request.user)?;
        let upstream = upstream(request.upstream, String::new());
        span.cover(self.0.disconnect(&user, &request.client_id, &upstream)).await.map_err(status)?;
        Ok(Response::new(proto::DisconnectResponse {}))
    }
}

fn status(error: TokenError) -> Status {
    match error {
        TokenError::NotFound => Status::not_found("this user has no token for this route"),
        TokenError::Unavailable => Status::unavailable("no token can be had at the moment"),
    }
}
