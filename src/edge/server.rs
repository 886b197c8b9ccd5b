//! The gRPC service `envoy.service.ext_proc.v3.ExternalProcessor`, with a codec of our own: `envoy-types` generates one
//! too, but with tonic's usual buffers.

use std::{
    convert::Infallible,
    future::ready,
    task::{Context, Poll},
};

use envoy_types::pb::envoy::service::ext_proc::v3::{ProcessingRequest, external_processor_server::SERVICE_NAME};
use futures_util::future::BoxFuture;
use tonic::{
    Status,
    body::Body,
    codegen::{Body as HttpBody, StdError},
    server::{Grpc, NamedService, StreamingService},
};

use super::codec::{Answer, Codec};

/// How long a message may be, in bytes. A longer one ends its stream with an error, and nothing of the request goes on.
/// Only a request's body makes a message long: what Envoy's buffers hold of it, which is little more than the printed
/// `initial_stream_window_size`. A stream keeps that much memory until it ends.
pub const MAX_MESSAGE: usize = 4 << 20;

/// The service's one method.
const PROCESS: &str = "/envoy.service.ext_proc.v3.ExternalProcessor/Process";

/// Serves streams by what answers them.
#[derive(Clone, Debug)]
pub struct Server<S>(S);

impl<S> Server<S> {
    pub fn new(streams: S) -> Self {
        Self(streams)
    }
}

impl<S> NamedService for Server<S> {
    const NAME: &'static str = SERVICE_NAME;
}

impl<S, B> tower::Service<http::Request<B>> for Server<S>
where
    S: StreamingService<ProcessingRequest, Response = Answer> + Clone + Send + 'static,
    S::ResponseStream: Send + 'static,
    S::Future: Send,
    B: HttpBody + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        if request.uri().path() != PROCESS {
            return Box::pin(ready(Ok(Status::unimplemented("there is no such method").into_http())));
        }
        let streams = self.0.clone();
        Box::pin(async move {
            let mut grpc = Grpc::new(Codec).max_decoding_message_size(MAX_MESSAGE);
            Ok(grpc.streaming(streams, request).await)
        })
    }
}
