//! Calls of which it is noted how long they take.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;

use super::{
    choreographer::{Begin, Begun, Choreographer, Complete},
    connection::Connection,
    error::{BeginError, CallError, Incomplete},
    tokens::{AccessToken, Refused, Renewal, TokenError, TokenOwner, UpstreamTokens},
};
use crate::{
    model::{client::ClientId, scope::Scope, trace::Trace, upstream::Upstream},
    telemetry::metrics::Metrics,
};

/// A choreographer, or tokens, whose calls are timed.
pub struct Timed<T: ?Sized> {
    metrics: Arc<Metrics>,
    inner: Arc<T>,
}

impl<T: ?Sized> Timed<T> {
    pub fn new(metrics: Arc<Metrics>, inner: Arc<T>) -> Self {
        Self { metrics, inner }
    }

    /// A call whose caller left is not among them: nobody knows how long it takes.
    async fn note<A>(&self, name: &'static str, call: impl Future<Output = A>) -> A {
        let began = Instant::now();
        let answer = call.await;
        self.metrics.called_since(name, began);
        answer
    }
}

#[async_trait]
impl Choreographer for Timed<dyn Choreographer> {
    async fn describe(
        &self,
        client_id: ClientId,
        upstream: Upstream,
        trace: &Trace,
    ) -> Result<Option<String>, CallError> {
        self.note("DescribeUpstream", self.inner.describe(client_id, upstream, trace)).await
    }

    async fn connection(
        &self,
        owner: TokenOwner,
        scope: Option<Scope>,
        trace: &Trace,
    ) -> Result<Connection, CallError> {
        self.note("DescribeConnection", self.inner.connection(owner, scope, trace)).await
    }

    async fn begin(&self, begin: Begin, trace: &Trace) -> Result<Begun, BeginError> {
        self.note("BeginAuthorization", self.inner.begin(begin, trace)).await
    }

    async fn complete(&self, complete: Complete, trace: &Trace) -> Result<String, Incomplete> {
        self.note("CompleteAuthorization", self.inner.complete(complete, trace)).await
    }

    async fn disconnect(&self, owner: TokenOwner, trace: &Trace) -> Result<(), CallError> {
        self.note("Disconnect", self.inner.disconnect(owner, trace)).await
    }
}

#[async_trait]
impl UpstreamTokens for Timed<dyn UpstreamTokens> {
    async fn upstream_token(&self, owner: TokenOwner, trace: &Trace) -> Result<AccessToken, TokenError> {
        self.note("GetUpstreamToken", self.inner.upstream_token(owner, trace)).await
    }

    async fn awaited_token(
        &self,
        owner: TokenOwner,
        longest: Duration,
        trace: &Trace,
    ) -> Result<AccessToken, TokenError> {
        self.note("AwaitUpstreamToken", self.inner.awaited_token(owner, longest, trace)).await
    }

    async fn expect_again(&self, owner: TokenOwner, trace: &Trace) -> Result<(), TokenError> {
        self.note("ExpectAgain", self.inner.expect_again(owner, trace)).await
    }

    async fn refused(&self, owner: TokenOwner, refused: Refused, trace: &Trace) -> Result<Renewal, TokenError> {
        self.note("ReportRefusedToken", self.inner.refused(owner, refused, trace)).await
    }

    async fn disconnect(&self, owner: TokenOwner, trace: &Trace) -> Result<(), TokenError> {
        self.note("Disconnect", self.inner.disconnect(owner, trace)).await
    }
}
