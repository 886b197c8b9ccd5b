//! The floor: an external processor that reads what Envoy sends, and answers the same each time.
//!
//! It does for a stream what [`envoy_cimd::edge::ext_proc`] does beside thinking: no task of its own, one message read, one
//! answer made, and the stream left open until Envoy closes it. It has our gRPC service and codec, and is a process of its
//! own, with our allocator, our link-time optimization and our runtime.

use std::{
    future::{Ready, ready},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use envoy_cimd::{edge::server::Server, net::grpc::server};
use envoy_types::pb::envoy::service::ext_proc::v3::{
    ProcessingRequest, ProcessingResponse, processing_response::Response,
};
use futures_util::Stream;
use serde_json::json;
use tonic::{Status, Streaming, server::StreamingService, transport::server::TcpIncoming};

use crate::{
    configuration::{document, host},
    stack::{Process, ready_address},
};

/// A running floor.
pub struct Floor {
    pub process: Process,
    pub address: String,
}

impl Floor {
    pub async fn start() -> Self {
        let mut command = tokio::process::Command::new(std::env::current_exe().expect("this executable"));
        command.arg("floor");
        let mut process = Process::spawn("the floor", command);
        let address = process.line(|line| ready_address(line, "ext_proc")).await;
        Self { process, address }
    }
}

/// Serves until it is killed.
pub async fn serve() {
    let incoming = TcpIncoming::bind(([127, 0, 0, 1], 0).into()).expect("a port").with_nodelay(Some(true));
    let address = incoming.local_addr().expect("an address").to_string();
    println!("{}", json!({"message": "ready", "listener": "ext_proc", "address": address}));
    let answer = ProcessingResponse {
        response: Some(Response::ImmediateResponse(document(&host("b")))),
        ..ProcessingResponse::default()
    };
    let (_health, health_service) = tonic_health::server::health_reporter();
    let floor = Server::new(Constant(Arc::new(answer)));
    server().add_service(floor).add_service(health_service).serve_with_incoming(incoming).await.expect("it serves");
}

#[derive(Clone)]
struct Constant(Arc<ProcessingResponse>);

impl StreamingService<ProcessingRequest> for Constant {
    type Response = ProcessingResponse;
    type ResponseStream = Answers;
    type Future = Ready<Result<tonic::Response<Answers>, Status>>;

    fn call(&mut self, request: tonic::Request<Streaming<ProcessingRequest>>) -> Self::Future {
        let answers = Answers { answer: Arc::clone(&self.0), messages: request.into_inner(), replied: false };
        ready(Ok(tonic::Response::new(answers)))
    }
}

struct Answers {
    answer: Arc<ProcessingResponse>,
    messages: Streaming<ProcessingRequest>,
    replied: bool,
}

impl Stream for Answers {
    type Item = Result<ProcessingResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            match ready!(Pin::new(&mut self.messages).poll_next(context)) {
                Some(Ok(_)) if self.replied => {}
                Some(Ok(_)) => {
                    self.replied = true;
                    return Poll::Ready(Some(Ok(ProcessingResponse::clone(&self.answer))));
                }
                Some(Err(status)) => return Poll::Ready(Some(Err(status))),
                None => return Poll::Ready(None),
            }
        }
    }
}
