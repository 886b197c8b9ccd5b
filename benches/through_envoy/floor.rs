//! The floor: a processor that reads what Envoy sends, and answers the same each time.
//!
//! It does for a stream what [`envoy_cimd::edge::ext_proc`] does beside thinking: no task of its own, one message read, one
//! answer made, and the stream left open until Envoy closes it. It has our gRPC server, service and codec, and is a
//! process of its own, with the system's allocator, our link-time optimization and our runtime. The bare one has tonic's
//! server and codec, and the service that tonic generates: what somebody would write who thinks of nothing but the header.

use std::{
    future::{Ready, ready},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use envoy_cimd::{
    edge::{codec::Answer, server::Server},
    net::{
        grpc::{serve_grpc, services::Services},
        listen::{ListenAddr, Listener, SocketMode},
    },
};
use envoy_types::pb::{
    envoy::{
        config::core::v3::{HeaderValue, HeaderValueOption, header_value_option::HeaderAppendAction},
        service::{
            auth::v3::{
                CheckRequest, CheckResponse, OkHttpResponse,
                authorization_server::{Authorization, AuthorizationServer},
                check_response::HttpResponse,
            },
            ext_proc::v3::{
                CommonResponse, HeaderMutation, HeadersResponse, ProcessingRequest, ProcessingResponse,
                external_processor_server::{ExternalProcessor, ExternalProcessorServer},
                processing_response::Response,
            },
        },
    },
    google::rpc,
};
use futures_util::{Stream, TryStreamExt, stream::BoxStream};
use serde_json::json;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Status, Streaming,
    server::StreamingService,
    transport::{self, server::TcpIncoming},
};
use tonic_health::{
    pb::health_server::HealthServer,
    server::{HealthReporter, HealthService},
};

use crate::{
    configuration::{document, host},
    people::authorization,
    stack::{Process, ready_address},
};

/// A running floor.
pub struct Floor {
    pub process: Process,
    pub address: String,
}

impl Floor {
    /// One that answers `what`, which is `document`, `token` or `bare-token`, at a port of its own choice or a Unix socket.
    pub async fn start(what: &str, address: &str) -> Self {
        let mut command = tokio::process::Command::new(std::env::current_exe().expect("this executable"));
        command.args(["floor", what, address]);
        let mut process = Process::spawn("the floor", command);
        let address = process.line(|line| ready_address(line, "ext_proc")).await;
        Self { process, address }
    }
}

/// Serves until it is killed.
pub async fn serve(what: &str, address: &str) {
    let answer = match what {
        "document" => Response::ImmediateResponse(document(&host("b"))),
        "token" | "bare-token" => Response::RequestHeaders(HeadersResponse { response: Some(with_token()) }),
        other => panic!("there is `document`, `token` and `bare-token`, and no `{other}`"),
    };
    let answer = Arc::new(ProcessingResponse { response: Some(answer), ..ProcessingResponse::default() });
    let health = HealthServer::new(HealthService::from_health_reporter(HealthReporter::new()));
    let address: ListenAddr = address.parse().expect("an address");
    let listener = address.bind(SocketMode::default()).await.expect("a listener");
    let address = listener.address().expect("an address");
    println!("{}", json!({"message": "ready", "listener": "ext_proc", "address": address}));
    if what != "bare-token" {
        let services = Services { main: Server::new(Constant(answer)), health: Some(health) };
        return serve_grpc("the floor", listener, None, services, CancellationToken::new()).await;
    }
    // As many as envoy-cimd takes of streams that Envoy resets before anybody looked at them.
    let mut server = transport::Server::builder().http2_max_pending_accept_reset_streams(Some(10_000));
    let router = server.add_service(ExternalProcessorServer::new(Constant(answer)));
    let router = router.add_service(AuthorizationServer::new(Checks(checked()))).add_service(health);
    let served = match listener {
        Listener::Unix(listener, _file) => router.serve_with_incoming(UnixListenerStream::new(listener)).await,
        Listener::Tcp(listener) => {
            router.serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true))).await
        }
    };
    served.expect("it serves");
}

fn token() -> HeaderValueOption {
    let raw_value = authorization(0).into_bytes();
    HeaderValueOption {
        header: Some(HeaderValue { key: "authorization".to_owned(), raw_value, ..HeaderValue::default() }),
        append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
        ..HeaderValueOption::default()
    }
}

fn with_token() -> CommonResponse {
    let mutation = HeaderMutation { set_headers: vec![token()], ..HeaderMutation::default() };
    CommonResponse { header_mutation: Some(mutation), ..CommonResponse::default() }
}

/// The same in the words of Envoy's ext_authz, which reads no `raw_value`.
fn checked() -> CheckResponse {
    let value = authorization(0);
    let token = HeaderValueOption {
        header: Some(HeaderValue { key: "authorization".to_owned(), value, ..HeaderValue::default() }),
        ..token()
    };
    CheckResponse {
        status: Some(rpc::Status::default()),
        http_response: Some(HttpResponse::OkResponse(OkHttpResponse {
            headers: vec![token],
            ..OkHttpResponse::default()
        })),
        ..CheckResponse::default()
    }
}

struct Checks(CheckResponse);

#[tonic::async_trait]
impl Authorization for Checks {
    async fn check(&self, _: tonic::Request<CheckRequest>) -> Result<tonic::Response<CheckResponse>, Status> {
        Ok(tonic::Response::new(self.0.clone()))
    }
}

#[derive(Clone)]
struct Constant(Arc<ProcessingResponse>);

impl StreamingService<ProcessingRequest> for Constant {
    type Response = Answer;
    type ResponseStream = Answers;
    type Future = Ready<Result<tonic::Response<Answers>, Status>>;

    fn call(&mut self, request: tonic::Request<Streaming<ProcessingRequest>>) -> Self::Future {
        let answers = Answers { answer: Arc::clone(&self.0), messages: request.into_inner(), replied: false };
        ready(Ok(tonic::Response::new(answers)))
    }
}

#[tonic::async_trait]
impl ExternalProcessor for Constant {
    type ProcessStream = BoxStream<'static, Result<ProcessingResponse, Status>>;

    async fn process(
        &self,
        request: tonic::Request<Streaming<ProcessingRequest>>,
    ) -> Result<tonic::Response<Self::ProcessStream>, Status> {
        let Self(answer) = self.clone();
        let answers = request.into_inner().map_ok(move |_| ProcessingResponse::clone(&answer));
        Ok(tonic::Response::new(Box::pin(answers)))
    }
}

struct Answers {
    answer: Arc<ProcessingResponse>,
    messages: Streaming<ProcessingRequest>,
    replied: bool,
}

impl Stream for Answers {
    type Item = Result<Answer, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            match ready!(Pin::new(&mut self.messages).poll_next(context)) {
                Some(Ok(_)) if self.replied => {}
                Some(Ok(_)) => {
                    self.replied = true;
                    return Poll::Ready(Some(Ok(ProcessingResponse::clone(&self.answer).into())));
                }
                Some(Err(status)) => return Poll::Ready(Some(Err(status))),
                None => return Poll::Ready(None),
            }
        }
    }
}
