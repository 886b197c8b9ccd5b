//! TLS of outgoing fetches: whom it trusts.

use std::path::Path;

use anyhow::Context;
use rustls::{ClientConfig, RootCertStore};

use crate::net::tls::{provider::provider, roots};

/// TLS 1.2 or 1.3, and the system's certificate authorities besides those of a file.
///
/// # Errors
/// Where the file cannot be read, or holds no certificate or a bad one.
pub(crate) fn client_config(extra_ca: Option<&Path>) -> anyhow::Result<ClientConfig> {
    let authorities = roots::authorities(extra_ca).with_context(|| match extra_ca {
        Some(path) => format!("--extra-ca {}", path.display()),
        None => "certificate authorities".to_owned(),
    })?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(authorities);
    if roots.is_empty() {
        // Documents are served all the same.
        tracing::warn!("no certificate authority is known, so no https fetch can succeed: --extra-ca adds some");
    }
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .context("TLS")?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_flag_and_the_file() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("ca.pem");
        let error = || {
            let error = format!("{:#}", client_config(Some(&path)).expect_err("a bad file"));
            let named = format!("--extra-ca {}: ", path.display());
            error.strip_prefix(&named).expect(&error).to_owned()
        };
        assert!(error().starts_with("cannot be read: "), "{}", error());
        for (text, message) in [
            ("", "has no certificate"),
            ("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "has no certificate"),
            ("-----BEGIN CERTIFICATE-----\nAAAA\n", "is not a PEM file: "),
            ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "has a bad certificate: "),
        ] {
            std::fs::write(&path, text).expect("write");
            assert!(error().starts_with(message), "{text}: {}", error());
        }
    }
}
