//! gRPC on a listener, with TLS or without.

use std::convert::Infallible;

use axum::serve::ListenerExt;
use futures_util::{Stream, stream};
use tokio_util::sync::CancellationToken;
use tonic::{
    service::Routes,
    transport::{
        Server,
        server::{Connected, Router},
    },
};

use super::{
    listen::{ListenAddr, Listener, SocketMode},
    tls::{listener::TlsListener, server::ServerTls},
};

/// How many streams of a connection may have been reset before anybody looked at them.
const RESET_STREAMS: usize = 10_000;

/// A gRPC listener that is not bound yet.
pub struct GrpcListener {
    /// What the log calls it.
    pub name: &'static str,
    /// The setting that names its address, for errors.
    pub flag: &'static str,
    pub address: ListenAddr,
    /// Who may connect to a Unix socket.
    pub mode: SocketMode,
    /// None on a Unix socket.
    pub tls: Option<ServerTls>,
    pub routes: Routes,
}

/// A gRPC server. Where many clients of Envoy's go away at once, it resets as many streams, some before they were looked
/// at; HTTP/2 takes more than 20 of those for an attack, and ends the connection with all that is on it. Whoever may
/// connect here is trusted.
pub fn server() -> Server {
    Server::builder().http2_max_pending_accept_reset_streams(Some(RESET_STREAMS))
}

/// Serves until it is `drained` and its streams have ended.
///
/// # Errors
/// Where the server fails.
pub async fn serve_grpc(
    name: &'static str,
    listener: Listener,
    tls: Option<ServerTls>,
    router: Router,
    drained: CancellationToken,
) -> anyhow::Result<()> {
    let drained = drained.cancelled_owned();
    match (listener, tls) {
        (Listener::Tcp(listener), Some(tls)) => {
            let listener = TlsListener::new(name, listener, move || tls.current());
            router.serve_with_incoming_shutdown(incoming(listener), drained).await?;
        }
        (Listener::Tcp(listener), None) => {
            // One that is gone already fails when it is read.
            let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
            router.serve_with_incoming_shutdown(incoming(listener), drained).await?;
        }
        (Listener::Unix(listener, _file), _) => {
            router.serve_with_incoming_shutdown(incoming(listener), drained).await?;
        }
    }
    Ok(())
}

/// A listener's connections as tonic wants them. What goes wrong with one, or with too many, ends at the listener:
/// tonic would take it for the end of all.
fn incoming<L>(listener: L) -> impl Stream<Item = Result<L::Io, Infallible>>
where
    L: axum::serve::Listener<Io: Connected>,
{
    stream::unfold(listener, async |mut listener| {
        let (stream, _) = listener.accept().await;
        Some((Ok(stream), listener))
    })
}
