//! Our side of a connection that others make.

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context, bail};
use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    pki_types::{CertificateDer, UnixTime},
    server::{
        NoServerSessionStorage, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};

use super::{
    files::{Following, Loaded, PemFile, TlsFiles},
    peer::{self, PeerName},
    provider::{ALPN, provider},
};

/// Who we are to those who connect over TCP: with all three files, gRPC is mTLS.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    /// Our certificate chain, a PEM file.
    pub cert: Option<PathBuf>,
    /// The private key of that certificate, a PEM file.
    pub key: Option<PathBuf>,
    /// The authority that the certificates of callers must be from, a PEM file.
    pub client_ca: Option<PathBuf>,
}

/// mTLS for a listener.
pub type ServerTls = Following<ServerConfig>;

/// What the settings ask for; none where they ask for none. `name` is what metrics and log lines call it.
///
/// # Errors
/// Where only a part of it is given, or a file cannot be used.
pub fn server_tls(name: &'static str, files: &Config, allowed: &[PeerName]) -> anyhow::Result<Option<ServerTls>> {
    let (cert, key, authority) = match (&files.cert, &files.key, &files.client_ca) {
        (Some(cert), Some(key), Some(authority)) => (cert, key, authority),
        (None, None, None) if allowed.is_empty() => return Ok(None),
        (None, None, None) => bail!("--allow-peer and --tokens-allow-peer need --tls-cert, --tls-key and --client-ca"),
        _ => bail!("--tls-cert, --tls-key and --client-ca go together"),
    };
    let files = TlsFiles {
        name,
        authority: PemFile::new("client-ca", authority),
        identity: Some([PemFile::new("tls-cert", cert), PemFile::new("tls-key", key)]),
    };
    let allowed = allowed.to_vec();
    Following::new(files, move |loaded| config(loaded, &allowed)).map(Some)
}

fn config(loaded: Loaded, allowed: &[PeerName]) -> anyhow::Result<ServerConfig> {
    let callers = WebPkiClientVerifier::builder_with_provider(Arc::new(loaded.authorities), provider())
        .build()
        .context("--client-ca")?;
    let callers: Arc<dyn ClientCertVerifier> =
        if allowed.is_empty() { callers } else { Arc::new(Named { inner: callers, allowed: allowed.to_vec() }) };
    let (chain, key) = loaded.identity.context("--tls-cert")?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(callers)
        .with_single_cert(chain, key)
        .context("--tls-cert and --tls-key")?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // A resumed session is not verified again: a certificate would let its caller in for as long after its end.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// Lets in who has a good certificate and one of the names.
#[derive(Debug)]
struct Named {
    inner: Arc<dyn ClientCertVerifier>,
    allowed: Vec<PeerName>,
}

impl ClientCertVerifier for Named {
    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.inner.verify_client_cert(certificate, intermediates, now)?;
        peer::check(certificate, &self.allowed)?;
        Ok(verified)
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
