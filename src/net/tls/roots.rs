//! Whom we trust when we go out: the system's certificate authorities, and those of a file.

use std::path::Path;

use anyhow::Context;
use rustls::{RootCertStore, pki_types::CertificateDer};

use super::pem;

/// The authorities that rustls can use, those of the PEM file first.
///
/// # Errors
/// Where the file cannot be read, or holds no certificate or a bad one.
pub fn authorities(extra_ca: Option<&Path>) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let mut authorities = match extra_ca {
        Some(path) => of_file(path)?,
        None => Vec::new(),
    };
    let found = rustls_native_certs::load_native_certs();
    for error in found.errors {
        tracing::warn!(%error, "some of the system's certificate authorities cannot be read");
    }
    // Systems ship certificates too odd for rustls: the rest must do.
    let mut roots = RootCertStore::empty();
    authorities.extend(found.certs.into_iter().filter(|certificate| roots.add(certificate.clone()).is_ok()));
    Ok(authorities)
}

fn of_file(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let text = std::fs::read_to_string(path).context("cannot be read")?;
    pem::add_authorities(&mut RootCertStore::empty(), &text)?;
    pem::certificates(&text)
}
