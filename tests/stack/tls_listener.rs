//! Accepts TLS for `axum::serve`.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::Certificates;

/// How long a client may take for its part of the handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// A listener on a free port of 127.0.0.1. A client that does not speak TLS, or dislikes the certificate, is dropped.
pub struct TlsListener {
    tcp: TcpListener,
    acceptor: TlsAcceptor,
    /// Browsers open connections ahead and leave them silent, so none keeps the next one waiting.
    handshakes: JoinSet<Option<(TlsStream<TcpStream>, SocketAddr)>>,
}

impl TlsListener {
    pub async fn bind(certificates: &Certificates) -> io::Result<Self> {
        let chain = vec![CertificateDer::from_pem_file(&certificates.cert).expect("a certificate")];
        let key = PrivateKeyDer::from_pem_file(&certificates.key).expect("a key");
        let mut config =
            rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .expect("versions")
                .with_no_client_auth()
                .with_single_cert(chain, key)
                .expect("a certificate and its key");
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let tcp = TcpListener::bind("127.0.0.1:0").await?;
        Ok(Self { tcp, acceptor: TlsAcceptor::from(Arc::new(config)), handshakes: JoinSet::new() })
    }

    pub fn address(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }
}

impl axum::serve::Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        loop {
            tokio::select! {
                accepted = self.tcp.accept() => match accepted {
                    Ok((stream, address)) => {
                        let handshake = tokio::time::timeout(HANDSHAKE, self.acceptor.accept(stream));
                        self.handshakes.spawn(async move { Some((handshake.await.ok()?.ok()?, address)) });
                    }
                    // As where there are too many open files: at once it would only fail again.
                    Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
                },
                Some(done) = self.handshakes.join_next() => {
                    if let Ok(Some(accepted)) = done {
                        return accepted;
                    }
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }
}
