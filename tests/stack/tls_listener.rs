//! TLS without a client's certificate, for `axum::serve`, accepted as envoy-cimd accepts it.

use std::{io, sync::Arc};

use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio::net::TcpListener;

use super::Certificates;

pub type TlsListener = envoy_cimd::net::tls::listener::TlsListener<Box<dyn Fn() -> Arc<ServerConfig> + Send>>;

/// A listener on a free port of 127.0.0.1. A client that does not speak TLS, or dislikes the certificate, is dropped.
pub async fn bind(certificates: &Certificates) -> io::Result<TlsListener> {
    let chain = vec![CertificateDer::from_pem_file(&certificates.cert).expect("a certificate")];
    let key = PrivateKeyDer::from_pem_file(&certificates.key).expect("a key");
    let mut config = ServerConfig::builder_with_provider(envoy_cimd::net::tls::provider::provider())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("a certificate and its key");
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let config = Arc::new(config);
    let tcp = TcpListener::bind("127.0.0.1:0").await?;
    Ok(TlsListener::new("the stack's", tcp, Box::new(move || Arc::clone(&config))))
}
