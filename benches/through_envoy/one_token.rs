//! A service of tokens that has one.

use std::time::Duration;

use async_trait::async_trait;
use envoy_cimd::{
    contract::tokens::{AccessToken, Refused, Renewal, TokenError, TokenOwner, TokenTag, UpstreamTokens},
    model::{secret::Secret, trace::Trace},
};

/// Has this token for everybody.
pub struct OneToken(pub String);

#[async_trait]
impl UpstreamTokens for OneToken {
    async fn upstream_token(&self, _: TokenOwner, _: &Trace) -> Result<AccessToken, TokenError> {
        let secret = Secret::new(self.0.clone());
        Ok(AccessToken { secret, tag: TokenTag([0; 16]), expires_at: None, again: None })
    }

    async fn awaited_token(&self, of: TokenOwner, _: Duration, trace: &Trace) -> Result<AccessToken, TokenError> {
        self.upstream_token(of, trace).await
    }

    async fn expect_again(&self, _: TokenOwner, _: &Trace) -> Result<(), TokenError> {
        Ok(())
    }

    async fn refused(&self, _: TokenOwner, _: Refused, _: &Trace) -> Result<Renewal, TokenError> {
        Ok(Renewal::TooSoon)
    }

    async fn disconnect(&self, _: TokenOwner, _: &Trace) -> Result<(), TokenError> {
        Ok(())
    }
}
