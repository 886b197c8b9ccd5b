//! Traces over OTLP, where `--otlp-endpoint` asks for them: a span for each call of the choreographer, on either side,
//! and one for each outgoing fetch, joined to Envoy's by the `traceparent` of the request. No span holds more than
//! names, hosts and outcomes.

use std::{borrow::Cow, collections::HashMap, time::Duration};

use anyhow::anyhow;
use opentelemetry::{
    Context, KeyValue, Value, global,
    propagation::TextMapPropagator,
    trace::{FutureExt, SpanBuilder, SpanKind, Status, TraceContextExt, Tracer},
};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{Sampler, SdkTracerProvider},
};

use crate::model::trace::Trace;

const NAME: &str = env!("CARGO_PKG_NAME");
/// How long the end of the process waits for the last spans to be taken.
const LAST: Duration = Duration::from_secs(2);

/// Sends what is traced, until it is told to end.
#[derive(Debug)]
pub struct Exporter(Option<SdkTracerProvider>);

impl Exporter {
    /// Starts to send to a collector, if there is one. `service` is the `service.name` of the spans.
    ///
    /// # Errors
    /// Where the endpoint is none.
    pub fn start(endpoint: Option<&str>, service: &'static str) -> anyhow::Result<Self> {
        let Some(endpoint) = endpoint else {
            return Ok(Self(None));
        };
        let exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint).build();
        let exporter = exporter.map_err(|error| anyhow!("--otlp-endpoint {endpoint}: {error}"))?;
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            // Whatever Envoy samples: it is told not to sample the callback, whose query it would record.
            .with_sampler(Sampler::AlwaysOn)
            .with_resource(Resource::builder().with_service_name(service).with_attribute(version).build())
            .build();
        global::set_tracer_provider(provider.clone());
        Ok(Self(Some(provider)))
    }

    /// Whether there is a collector.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Sends the last spans.
    pub async fn end(self) {
        let Some(provider) = self.0 else { return };
        // It blocks until they are sent.
        let ended = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(LAST)).await;
        if !matches!(ended, Ok(Ok(()))) {
            tracing::warn!("the last spans were not taken by the collector of --otlp-endpoint");
        }
    }
}

/// What is covered by the caller's span, where it runs as a task of its own.
pub fn covered<F: Future>(future: F) -> impl Future<Output = F::Output> {
    future.with_context(Context::current())
}

/// A span, and the context in which what it covers runs. It ends when it is dropped.
pub struct Span(Context);

impl Span {
    /// One that continues somebody's trace.
    pub fn of(trace: &Trace, name: &'static str, kind: SpanKind) -> Self {
        let carrier: HashMap<String, String> = [("traceparent", &trace.parent), ("tracestate", &trace.state)]
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value.clone()?)))
            .collect();
        Self::under(&TraceContextPropagator::new().extract_with_context(&Context::new(), &carrier), name, kind)
    }

    /// A part of the one that covers the caller.
    pub fn part(name: &'static str, kind: SpanKind) -> Self {
        Self::under(&Context::current(), name, kind)
    }

    fn under(parent: &Context, name: &'static str, kind: SpanKind) -> Self {
        let span = global::tracer(NAME).build_with_context(SpanBuilder::from_name(name).with_kind(kind), parent);
        Self(parent.with_span(span))
    }

    /// Gives it an attribute, which must hold no secret.
    pub fn set(&self, key: &'static str, value: impl Into<Value>) {
        self.0.span().set_attribute(KeyValue::new(key, value));
    }

    /// Notes why it failed, in words that may be logged.
    pub fn failed(&self, reason: impl Into<Cow<'static, str>>) {
        self.0.span().set_status(Status::error(reason));
    }

    /// How others continue this trace.
    pub fn trace(&self) -> Trace {
        let mut carrier = HashMap::new();
        TraceContextPropagator::new().inject_context(&self.0, &mut carrier);
        Trace { parent: carrier.remove("traceparent"), state: carrier.remove("tracestate") }
    }

    /// Runs what the span is about: spans that are made meanwhile are its parts.
    pub async fn cover<F: Future>(&self, future: F) -> F::Output {
        future.with_context(self.0.clone()).await
    }
}
