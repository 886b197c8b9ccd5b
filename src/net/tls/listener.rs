//! Accepts TLS.

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::peer;
use crate::telemetry::throttle::Throttle;

/// How long a caller may take for its part of the handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// How many handshakes go on at once. The oldest goes for the next: an honest one takes milliseconds.
const MAX_HANDSHAKES: usize = 1000;

/// A listener for callers who speak TLS; others are dropped. `config` is asked anew for each.
pub struct TlsListener<F> {
    /// What the log calls it.
    name: &'static str,
    tcp: TcpListener,
    config: F,
    /// None keeps the next one waiting: a caller may be slow, or open a connection and leave it silent.
    handshakes: JoinSet<(io::Result<TlsStream<TcpStream>>, SocketAddr)>,
    /// In the order in which they began; some have ended.
    begun: VecDeque<AbortHandle>,
    /// Whoever reaches the port can cause lines.
    throttle: Throttle,
}

impl<F> TlsListener<F> {
    /// `config` is asked for the newest configuration; `name` is what the log calls the listener.
    pub fn new(name: &'static str, tcp: TcpListener, config: F) -> Self {
        let (handshakes, begun) = (JoinSet::new(), VecDeque::new());
        Self { name, tcp, config, handshakes, begun, throttle: Throttle::default() }
    }

    fn make_room(&mut self) {
        while self.begun.front().is_some_and(AbortHandle::is_finished) {
            self.begun.pop_front();
        }
        if self.begun.len() >= MAX_HANDSHAKES
            && let Some(oldest) = self.begun.pop_front()
        {
            oldest.abort();
        }
    }

    /// The operator must learn why a caller gets no further; the caller hears no more than an alert.
    fn note(&mut self, error: &io::Error, caller: SocketAddr) {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            // It only looked whether somebody listens, as load balancers do all day.
            return;
        }
        let Some(unlogged) = self.throttle.due(Instant::now()) else { return };
        let listener = self.name;
        tracing::warn!(listener, %caller, unlogged, "no TLS with a caller: {}", peer::refusal(error));
    }
}

impl<F: Fn() -> Arc<ServerConfig> + Send + 'static> axum::serve::Listener for TlsListener<F> {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        loop {
            tokio::select! {
                (stream, caller) = axum::serve::Listener::accept(&mut self.tcp) => {
                    // One that is gone already fails in the handshake.
                    let _ = stream.set_nodelay(true);
                    let handshake = timeout(HANDSHAKE, TlsAcceptor::from((self.config)()).accept(stream));
                    self.make_room();
                    self.begun.push_back(self.handshakes.spawn(async move {
                        (handshake.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())), caller)
                    }));
                }
                Some(done) = self.handshakes.join_next() => match done {
                    Ok((Ok(stream), caller)) => return (stream, caller),
                    Ok((Err(error), caller)) => self.note(&error, caller),
                    Err(error) if error.is_cancelled() => {}
                    Err(error) => tracing::error!("a TLS handshake failed: {error}"),
                },
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }
}
