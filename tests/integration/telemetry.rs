//! Traces, as a collector sees them.

use std::sync::{Arc, Mutex};

use envoy_cimd::{
    contract::tokens::UpstreamTokens,
    model::{trace::Trace, user::User},
    net::tls::client,
};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value::Value as Attribute,
    trace::v1::{Span, span::SpanKind},
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use crate::{
    authorization_server::{HOST, Lie, Servers},
    exchange::{CLIENT, connect_through, with_upstream},
    stack::{Certificates, Choreographer, in_process::owner, key_file},
    tokens_client::client_of,
    world::{Wish, World, executable},
};

/// Keeps the spans that come, each with the name of the service that sent it.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<(String, Span)>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for resource in request.into_inner().resource_spans {
            let attributes = resource.resource.expect("a resource").attributes;
            let service = attributes.into_iter().find(|attribute| attribute.key == "service.name").expect("a name");
            let Some(Attribute::StringValue(service)) = service.value.and_then(|value| value.value) else {
                panic!("the name is a text");
            };
            let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            self.0.lock().expect("spans").extend(spans.map(|span| (service.clone(), span)));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    async fn start() -> (Self, String) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let collector = Self::default();
        let service = TraceServiceServer::new(collector.clone());
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        (collector, url)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A flow's spans continue the browser's trace through the filter and the choreographer to what it fetches, also where
/// Envoy said not to sample; and no secret of the flow is in them.
#[tokio::test]
async fn traces_join_envoys_and_hold_no_secret() {
    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const PARENT: &str = "b7ad6b7169203331";
    let (collector, url) = Collector::start().await;
    let dir = tempfile::tempdir().expect("a folder");
    let certificates = Certificates::make(dir.path(), &[HOST]);
    let servers = Servers::start(&certificates, vec![Lie::none("good")]).await;
    let keys = key_file(dir.path());
    let state = dir.path().join("state");
    let text = |path: &std::path::Path| path.to_str().expect("text").to_owned();
    let (ca, keys, state) = (text(&certificates.ca), text(&keys), text(&state));
    let flags = ["--otlp-endpoint", &url, "--extra-ca", &ca, "--allow-host", HOST, "--state-dir", &state];
    let mut choreographer = Choreographer::start(&executable(), &flags).await;
    let at = format!("http://{}", choreographer.address);
    let flags = ["--single-user", "--otlp-endpoint", &url, "--state-keys", &keys, "--choreographer", &at];
    let upstream = servers.upstream_of("good");
    let edit = |config: &mut serde_json::Value| with_upstream(config, &upstream);
    let mut world = World::start(Wish { cimd: &flags, edit: &edit, ..Wish::default() }).await;
    let secrets = connect_through(&world, &servers, &format!("00-{TRACE}-{PARENT}-00")).await;
    assert_eq!(world.cimd.process.stop().await, Some(0));
    assert_eq!(choreographer.process.stop().await, Some(0));

    let spans = collector.0.lock().expect("spans").clone();
    assert!(spans.iter().all(|(_, span)| hex(&span.trace_id) == TRACE), "{spans:#?}");
    for call in ["BeginAuthorization", "CompleteAuthorization"] {
        let find = |service: &str| {
            let mut found = spans.iter().filter(|(of, span)| of == service && span.name == call);
            let (_, span) = found.next().expect("a span");
            assert!(found.next().is_none(), "{call} {service}");
            span
        };
        let (ours, theirs) = (find("envoy-cimd"), find("envoy-cimd-choreographer"));
        assert_eq!((ours.kind(), theirs.kind()), (SpanKind::Client, SpanKind::Server));
        assert_eq!(hex(&ours.parent_span_id), PARENT);
        assert_eq!(theirs.parent_span_id, ours.span_id);
        let fetches = spans.iter().filter(|(_, span)| span.name == "fetch" && span.parent_span_id == theirs.span_id);
        assert_ne!(fetches.count(), 0, "{call}");
    }
    let all = format!("{spans:?}");
    assert!(all.contains(HOST) && !all.contains("SECRET"), "{all}");
    for secret in &secrets {
        assert!(!all.contains(secret), "{secret}");
    }
}

/// A hand-out has a span, which fails where a token could not be had, and not where there is none.
#[tokio::test]
async fn calls_for_tokens_have_spans() {
    let dir = tempfile::tempdir().expect("a folder");
    let text = |name: &str| dir.path().join(name).to_str().expect("text").to_owned();
    for (state, label) in [(text("state"), None), ("/dev/null/none".to_owned(), Some("unavailable"))] {
        let (collector, url) = Collector::start().await;
        let tokens = format!("unix:{}", text("tokens.sock"));
        let flags = ["--otlp-endpoint", &url, "--tokens-listen", &tokens, "--state-dir", &state];
        let mut choreographer = Choreographer::start(&executable(), &flags).await;
        let client = client_of(&tokens, &client::Config::default()).await;
        let owner = owner(User::Single, CLIENT, "https://upstream.example/mcp");
        assert!(client.upstream_token(owner, &Trace::default()).await.is_err());
        assert_eq!(choreographer.process.stop().await, Some(0));
        let spans = collector.0.lock().expect("spans").clone();
        let [(_, span)] = &spans[..] else { panic!("{spans:?}") };
        assert_eq!((span.name.as_str(), span.kind()), ("GetUpstreamToken", SpanKind::Server));
        let failed = span.status.as_ref().map(|status| status.message.as_str()).filter(|message| !message.is_empty());
        assert_eq!(failed, label, "{span:?}");
        let noted = span.attributes.iter().any(|attribute| attribute.key == "envoy_cimd.label");
        assert_eq!(noted, label.is_none(), "{span:?}");
    }
}

/// A collector that is away costs its spans, and nothing else.
#[tokio::test]
async fn without_its_collector_it_serves() {
    let flags = ["--otlp-endpoint", "http://127.0.0.1:1"];
    let mut world = World::start(Wish { cimd: &flags, ..Wish::default() }).await;
    assert_eq!(world.document("notes.localhost").await.0, 200);
    assert_eq!(world.cimd.process.stop().await, Some(0));
}
