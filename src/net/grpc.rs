//! gRPC on a listener, with TLS or without.

use std::pin::pin;

use axum::serve::{Listener as Accepting, ListenerExt};
use hyper::server::conn::http2;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::select;
use tokio_util::sync::CancellationToken;

pub mod services;

use self::services::{GrpcService, Services};
use super::{
    listen::{ListenAddr, Listener, SocketMode},
    tls::{listener::TlsListener, server::ServerTls},
};

/// How many streams of a connection may have been reset before anybody looked at them. Where many clients of Envoy's go
/// away at once, it resets as many streams, some before they were looked at; HTTP/2 takes more than 20 of those for an
/// attack, and ends the connection with all that is on it. Whoever may connect here is trusted, so neither streams nor the
/// frames that come too late for them are limited.
const RESET_STREAMS: usize = 10_000;

/// A gRPC listener that is not bound yet.
pub struct GrpcListener<S> {
    /// What the log calls it.
    pub name: &'static str,
    /// The setting that names its address, for errors.
    pub flag: &'static str,
    pub address: ListenAddr,
    /// Who may connect to a Unix socket.
    pub mode: SocketMode,
    /// None on a Unix socket.
    pub tls: Option<ServerTls>,
    pub service: S,
}

/// Serves until it is `drained` and its streams have ended.
pub async fn serve_grpc<S: GrpcService>(
    name: &'static str,
    listener: Listener,
    tls: Option<ServerTls>,
    services: Services<S>,
    drained: CancellationToken,
) {
    match (listener, tls) {
        (Listener::Tcp(listener), Some(tls)) => {
            serve(TlsListener::new(name, listener, move || tls.current()), services, drained).await;
        }
        (Listener::Tcp(listener), None) => {
            // One that is gone already fails when it is read.
            serve(listener.tap_io(|stream| drop(stream.set_nodelay(true))), services, drained).await;
        }
        (Listener::Unix(listener, _file), _) => serve(listener, services, drained).await,
    }
}

/// The same, of whatever gives connections. hyper alone, without tonic's server and its router: they make seventeen allocations
/// of each call's own, for limits, deadlines and interceptors that are none of ours.
pub async fn serve<S: GrpcService>(mut listener: impl Accepting, services: Services<S>, drained: CancellationToken) {
    let mut http2 = http2::Builder::new(TokioExecutor::new());
    http2
        .timer(TokioTimer::new())
        .max_concurrent_streams(None)
        .max_pending_accept_reset_streams(RESET_STREAMS)
        .max_local_error_reset_streams(None)
        .auto_date_header(false);
    let connections = GracefulShutdown::new();
    let mut drained = pin!(drained.cancelled());
    loop {
        let stream = select! {
            () = &mut drained => break,
            (stream, _) = listener.accept() => stream,
        };
        let connection = http2.serve_connection(TokioIo::new(stream), TowerToHyperService::new(services.clone()));
        let connection = connections.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(error = &error as &dyn std::error::Error, "a gRPC connection failed");
            }
        });
    }
    // Nobody new is let in and left without an answer.
    drop(listener);
    connections.shutdown().await;
}
