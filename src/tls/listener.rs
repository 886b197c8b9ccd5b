//! Accepts TLS.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// How long a caller may take for its part of the handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// How many handshakes go on at once; more callers wait in the listener's queue.
const MAX_HANDSHAKES: usize = 1000;
/// Between two lines of the log: whoever reaches the port can cause them.
const QUIET: Duration = Duration::from_secs(1);

/// A listener for callers who speak TLS; others are dropped. `config` is asked anew for each.
pub struct TlsListener<F> {
    tcp: TcpListener,
    config: F,
    /// None keeps the next one waiting: a caller may be slow, or open a connection and leave it silent.
    handshakes: JoinSet<(io::Result<TlsStream<TcpStream>>, SocketAddr)>,
    last_line: Option<Instant>,
    unlogged: u64,
}

impl<F> TlsListener<F> {
    pub fn new(tcp: TcpListener, config: F) -> Self {
        Self { tcp, config, handshakes: JoinSet::new(), last_line: None, unlogged: 0 }
    }

    /// The operator must learn why a caller gets no further; the caller hears no more than an alert.
    fn note(&mut self, error: &io::Error, caller: SocketAddr) {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            // It only looked whether somebody listens, as load balancers do all day.
            return;
        }
        let now = Instant::now();
        if self.last_line.is_some_and(|last| now.duration_since(last) < QUIET) {
            self.unlogged += 1;
            return;
        }
        self.last_line = Some(now);
        tracing::warn!(%caller, unlogged = std::mem::take(&mut self.unlogged), "no TLS with a caller: {error}");
    }
}

impl<F: Fn() -> Arc<ServerConfig> + Send + 'static> axum::serve::Listener for TlsListener<F> {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        loop {
            tokio::select! {
                (stream, caller) = axum::serve::Listener::accept(&mut self.tcp), if self.handshakes.len() < MAX_HANDSHAKES => {
                    // One that is gone already fails in the handshake.
                    let _ = stream.set_nodelay(true);
                    let handshake = timeout(HANDSHAKE, TlsAcceptor::from((self.config)()).accept(stream));
                    self.handshakes.spawn(async move {
                        (handshake.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())), caller)
                    });
                }
                Some(done) = self.handshakes.join_next() => match done {
                    Ok((Ok(stream), caller)) => return (stream, caller),
                    Ok((Err(error), caller)) => self.note(&error, caller),
                    Err(error) => tracing::error!("a TLS handshake failed: {error}"),
                },
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }
}
