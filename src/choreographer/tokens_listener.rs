//! The listener that tokens are handed out on: a Unix socket, or mTLS.

use std::path::Path;

use anyhow::{Context, bail};
use tonic::transport::{Certificate, Identity, ServerTlsConfig};

use crate::{cli::ExchangeArgs, listen::ListenAddr};

/// Where, and with which proof on either side.
pub struct TokensListener {
    pub address: ListenAddr,
    /// None on a Unix socket, whose file's permissions say who may connect.
    pub tls: Option<ServerTlsConfig>,
}

impl TokensListener {
    /// What the settings ask for; none where they ask for none.
    ///
    /// # Errors
    /// Where the address is neither a Unix socket nor has all that mTLS takes, or a file cannot be read.
    pub fn new(settings: &ExchangeArgs) -> anyhow::Result<Option<Self>> {
        let Some(address) = settings.tokens_listen.clone() else {
            return Ok(None);
        };
        let read =
            |flag: &str, path: &Path| std::fs::read(path).with_context(|| format!("--{flag} {}", path.display()));
        let tls = match (&address, &settings.tls_cert, &settings.tls_key, &settings.client_ca) {
            (ListenAddr::Unix(_), None, None, None) => None,
            (ListenAddr::Unix(_), ..) => {
                bail!("--tls-cert, --tls-key and --client-ca are for a --tokens-listen of TCP")
            }
            (ListenAddr::Tcp { .. }, Some(cert), Some(key), Some(ca)) => Some(
                ServerTlsConfig::new()
                    .identity(Identity::from_pem(read("tls-cert", cert)?, read("tls-key", key)?))
                    .client_ca_root(Certificate::from_pem(read("client-ca", ca)?)),
            ),
            (ListenAddr::Tcp { .. }, ..) => bail!(
                "--tokens-listen {address}: whoever reaches it may have every user's token, so it is a Unix socket \
                 (unix:/path) or has --tls-cert, --tls-key and --client-ca"
            ),
        };
        Ok(Some(Self { address, tls }))
    }
}
