//! Which gRPC service of a listener a call is for.

use std::{
    convert::Infallible,
    future::ready,
    task::{Context, Poll},
};

use futures_util::future::{BoxFuture, Either};
use hyper::body::Incoming;
use tonic::{Status, body::Body, server::NamedService};
use tonic_health::{pb::health_server::HealthServer, server::HealthService};
use tower::Service;

type Request = http::Request<Incoming>;
type Response = http::Response<Body>;

/// A gRPC service that a listener is for. Like all of tonic's, it is always ready.
pub trait GrpcService:
    Service<Request, Response = Response, Error = Infallible, Future: Send> + NamedService + Clone + Send + 'static
{
}

impl<S> GrpcService for S where
    S: Service<Request, Response = Response, Error = Infallible, Future: Send> + NamedService + Clone + Send + 'static
{
}

/// The services of a listener: what it is for, and perhaps health checks. A router's table for the two would take as much
/// of each call as finding a token.
#[derive(Clone, Debug)]
pub struct Services<S> {
    pub main: S,
    pub health: Option<HealthServer<HealthService>>,
}

impl<S: GrpcService> Service<Request> for Services<S> {
    type Response = Response;
    type Error = Infallible;
    type Future = Either<S::Future, BoxFuture<'static, Result<Response, Infallible>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let name = service(request.uri().path());
        if name == Some(S::NAME) {
            return Either::Left(self.main.call(request));
        }
        Either::Right(match &mut self.health {
            Some(health) if name == Some(HealthServer::<HealthService>::NAME) => health.call(request),
            _ => Box::pin(ready(Ok(Status::unimplemented("there is no such service").into_http()))),
        })
    }
}

/// The service that a path names (gRPC over HTTP/2, Requests).
fn service(path: &str) -> Option<&str> {
    Some(path.strip_prefix('/')?.split_once('/')?.0)
}
