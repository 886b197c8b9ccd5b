//! Calls with a span each.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use opentelemetry::trace::SpanKind;

use super::{
    choreographer::{Begin, Begun, Choreographer, Complete},
    connection::Connection,
    error::{BeginError, CallError, CompleteError, Incomplete, Label},
    tokens::{AccessToken, Refused, Renewal, TokenError, TokenOwner, UpstreamTokens},
};
use crate::{
    model::{client::ClientId, scope::Scope, trace::Trace, upstream::Upstream},
    telemetry::traces::Span,
};

/// A choreographer, or tokens, whose calls are traced.
pub struct Traced<T: ?Sized> {
    kind: SpanKind,
    inner: Arc<T>,
}

impl<T: ?Sized> Traced<T> {
    /// `kind` is the side of the call that this is.
    pub fn new(kind: SpanKind, inner: Arc<T>) -> Self {
        Self { kind, inner }
    }

    fn span(&self, trace: &Trace, name: &'static str) -> (Span, Trace) {
        let span = Span::of(trace, name, self.kind.clone());
        let trace = span.trace();
        (span, trace)
    }
}

#[async_trait]
impl Choreographer for Traced<dyn Choreographer> {
    async fn describe(
        &self,
        client_id: ClientId,
        upstream: Upstream,
        trace: &Trace,
    ) -> Result<Option<String>, CallError> {
        let (span, trace) = self.span(trace, "DescribeUpstream");
        note(&span, span.cover(self.inner.describe(client_id, upstream, &trace)).await)
    }

    async fn connection(
        &self,
        owner: TokenOwner,
        scope: Option<Scope>,
        trace: &Trace,
    ) -> Result<Connection, CallError> {
        let (span, trace) = self.span(trace, "DescribeConnection");
        span.set("envoy_cimd.client_id", owner.client_id.to_string());
        note(&span, span.cover(self.inner.connection(owner, scope, &trace)).await)
    }

    async fn begin(&self, begin: Begin, trace: &Trace) -> Result<Begun, BeginError> {
        let (span, trace) = self.span(trace, "BeginAuthorization");
        span.set("envoy_cimd.client_id", begin.client_id.to_string());
        note(&span, span.cover(self.inner.begin(begin, &trace)).await)
    }

    async fn complete(&self, complete: Complete, trace: &Trace) -> Result<String, Incomplete> {
        let (span, trace) = self.span(trace, "CompleteAuthorization");
        span.set("envoy_cimd.redirect_uri", complete.redirect_uri.to_string());
        note(&span, span.cover(self.inner.complete(complete, &trace)).await)
    }

    async fn disconnect(&self, owner: TokenOwner, trace: &Trace) -> Result<(), CallError> {
        let (span, trace) = self.span(trace, "Disconnect");
        span.set("envoy_cimd.client_id", owner.client_id.to_string());
        note(&span, span.cover(self.inner.disconnect(owner, &trace)).await)
    }
}

#[async_trait]
impl UpstreamTokens for Traced<dyn UpstreamTokens> {
    async fn upstream_token(&self, owner: TokenOwner, trace: &Trace) -> Result<AccessToken, TokenError> {
        let (span, trace) = self.span(trace, "GetUpstreamToken");
        span.set("envoy_cimd.client_id", owner.client_id.to_string());
        note(&span, span.cover(self.inner.upstream_token(owner, &trace)).await)
    }

    async fn awaited_token(
        &self,
        owner: TokenOwner,
        longest: Duration,
        trace: &Trace,
    ) -> Result<AccessToken, TokenError> {
        let (span, trace) = self.span(trace, "AwaitUpstreamToken");
        span.set("envoy_cimd.client_id", owner.client_id.to_string());
        note(&span, span.cover(self.inner.awaited_token(owner, longest, &trace)).await)
    }

    async fn expect_again(&self, owner: TokenOwner, trace: &Trace) -> Result<(), TokenError> {
        let (span, trace) = self.span(trace, "ExpectAgain");
        span.set("envoy_cimd.client_id", owner.client_id.to_string());
        note(&span, span.cover(self.inner.expect_again(owner, &trace)).await)
    }

    async fn refused(&self, owner: TokenOwner, refused: Refused, trace: &Trace) -> Result<Renewal, TokenError> {
        let (span, trace) = self.span(trace, "ReportRefusedToken");
        span.set("envoy_cimd.client_id", owner.client_id.to_string());
        note(&span, span.cover(self.inner.refused(owner, refused, &trace)).await)
    }

    async fn disconnect(&self, owner: TokenOwner, trace: &Trace) -> Result<(), TokenError> {
        let (span, trace) = self.span(trace, "Disconnect");
        span.set("envoy_cimd.client_id", owner.client_id.to_string());
        note(&span, span.cover(self.inner.disconnect(owner, &trace)).await)
    }
}

/// Errors whose fault is on this side of the call.
trait Fault: Label {
    fn is_fault(&self) -> bool;
}

impl Fault for CallError {
    fn is_fault(&self) -> bool {
        true
    }
}

impl Fault for BeginError {
    fn is_fault(&self) -> bool {
        !matches!(self, Self::IssuerChanged(_))
    }
}

impl Fault for Incomplete {
    fn is_fault(&self) -> bool {
        self.error.is_fault()
    }
}

impl Fault for CompleteError {
    fn is_fault(&self) -> bool {
        match self {
            // The other side's doing, and not this span's failure.
            Self::WrongContext
            | Self::UnknownFlow
            | Self::IssuerMismatch(_)
            | Self::AuthorizationError(_)
            | Self::AlreadyUsed { .. } => false,
            Self::ExchangeFailed(_) | Self::Call(_) => true,
        }
    }
}

impl Fault for TokenError {
    fn is_fault(&self) -> bool {
        match self {
            // Nobody's: the person has not connected.
            Self::NotFound(_) => false,
            Self::Unavailable(_) => true,
        }
    }
}

fn note<T, E: Fault>(span: &Span, result: Result<T, E>) -> Result<T, E> {
    if let Err(error) = &result {
        if error.is_fault() {
            span.failed(error.label());
        } else {
            span.set("envoy_cimd.label", error.label());
        }
    }
    result
}
