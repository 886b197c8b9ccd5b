//! Certificates and keys of PEM files.

use anyhow::{Context, bail};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

/// The certificates of a text, in their order.
///
/// # Errors
/// Where it is no PEM, or has no certificate.
pub fn certificates(text: &str) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let certificates: Vec<_> =
        CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<_, _>>().context("is not a PEM file")?;
    if certificates.is_empty() {
        bail!("has no certificate");
    }
    Ok(certificates)
}

/// Adds the authorities of a text to those that are trusted.
///
/// # Errors
/// As [`certificates`], and where one is no certificate.
pub fn add_authorities(roots: &mut RootCertStore, text: &str) -> anyhow::Result<()> {
    for certificate in certificates(text)? {
        roots.add(certificate).context("has a bad certificate")?;
    }
    Ok(())
}

/// The first private key of a text.
///
/// # Errors
/// Where there is none.
pub fn private_key(text: &str) -> anyhow::Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_slice(text.as_bytes()).context("has no private key")
}
