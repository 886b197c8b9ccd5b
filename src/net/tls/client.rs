//! Our side of a connection that we make.

use std::{io, path::PathBuf, sync::Arc};

use anyhow::{Context, bail};
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    files::{Following, Loaded, PemFile, TlsFiles},
    peer::{self, PeerName},
    provider::{ALPN, provider},
};
use crate::{net::callee::Callee, telemetry::metrics::Metrics};

/// Whom we trust, and how we prove who we are.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    pub ca: Option<PathBuf>,
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
    /// The name that the other side must have, instead of the host that is called.
    pub peer: Option<PeerName>,
}

impl Config {
    /// With what another says where this says nothing; a certificate and its key are one.
    pub fn or(self, other: Self) -> Self {
        let (cert, key) =
            if self.cert.is_none() && self.key.is_none() { (other.cert, other.key) } else { (self.cert, self.key) };
        Self { ca: self.ca.or(other.ca), cert, key, peer: self.peer.or(other.peer) }
    }

    /// Whether any of it is.
    pub fn is_given(&self) -> bool {
        *self != Self::default()
    }
}

/// TLS to another process of ours.
#[derive(Clone)]
pub struct ClientTls {
    config: Following<ClientConfig>,
    host: ServerName<'static>,
}

impl ClientTls {
    /// # Errors
    /// Where a part is missing, or a file cannot be used.
    pub fn new(callee: &'static Callee, host: &str, settings: &Config) -> anyhow::Result<Self> {
        let flag = callee.flag;
        let Some(authority) = &settings.ca else {
            bail!("an https:// --{flag} needs --{flag}-ca, the authority that its certificate is from");
        };
        let file = |part, path| PemFile::new(format!("{flag}-{part}"), path);
        let files = TlsFiles {
            name: callee.files,
            authority: file("ca", authority),
            identity: match (&settings.cert, &settings.key) {
                (Some(cert), Some(key)) => Some([file("cert", cert), file("key", key)]),
                (None, None) => None,
                _ => bail!("--{flag}-cert and --{flag}-key go together"),
            },
        };
        let peer = settings.peer.clone();
        Ok(Self {
            config: Following::new(files, move |loaded| config(flag, loaded, peer.as_ref()))?,
            host: ServerName::try_from(host.to_owned()).with_context(|| format!("--{flag}"))?,
        })
    }

    /// # Errors
    /// Where the other side is not who it should be, or does not let us in.
    pub async fn connect<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> io::Result<TlsStream<S>> {
        TlsConnector::from(self.config.current()).connect(self.host.clone(), stream).await
    }

    /// Follows the files, for ever.
    pub fn watch(self, metrics: Arc<Metrics>) -> impl Future<Output = anyhow::Result<()>> + Send {
        self.config.watch(metrics)
    }
}

fn config(flag: &str, loaded: Loaded, peer: Option<&PeerName>) -> anyhow::Result<ClientConfig> {
    let authorities = Arc::new(loaded.authorities);
    let by_host = WebPkiServerVerifier::builder_with_provider(Arc::clone(&authorities), provider())
        .build()
        .with_context(|| format!("--{flag}-ca"))?;
    let servers: Arc<dyn ServerCertVerifier> = match peer {
        None => by_host,
        Some(peer) => Arc::new(Named { by_host, authorities, peer: peer.clone() }),
    };
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(servers);
    let mut config = match loaded.identity {
        Some((chain, key)) => {
            builder.with_client_auth_cert(chain, key).with_context(|| format!("--{flag}-cert and --{flag}-key"))?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    // A resumed session is not verified again.
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Trusts a server by its name in the mesh rather than by the host that was called: a SPIFFE certificate names no host.
#[derive(Debug)]
struct Named {
    by_host: Arc<WebPkiServerVerifier>,
    authorities: Arc<RootCertStore>,
    peer: PeerName,
}

impl ServerCertVerifier for Named {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _host: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(certificate)?,
            &self.authorities,
            intermediates,
            now,
            provider().signature_verification_algorithms.all,
        )?;
        peer::check(certificate, std::slice::from_ref(&self.peer))?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.by_host.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.by_host.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.by_host.supported_verify_schemes()
    }
}
