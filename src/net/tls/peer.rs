//! Who is at the other end, by the names in a certificate.

use std::{fmt, io, str::FromStr, sync::Arc};

use rustls::{
    CertificateError, Error, OtherError,
    pki_types::{CertificateDer, DnsName},
};
use webpki::EndEntityCert;

/// A name that a certificate can have (RFC 5280, section 4.2.1.6): a DNS name, or a URI such as a SPIFFE id. Names are
/// compared as they stand: a wildcard in a certificate is nobody's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerName {
    /// In lower case.
    Dns(String),
    Uri(String),
}

impl FromStr for PeerName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str = "is a DNS name, or a URI such as spiffe://mesh.example/envoy";
        if text.contains("://") {
            let has_host = url::Url::parse(text).is_ok_and(|url| url.host_str().is_some_and(|host| !host.is_empty()));
            return if has_host { Ok(Self::Uri(text.to_owned())) } else { Err(FORM) };
        }
        match DnsName::try_from(text) {
            Ok(name) => Ok(Self::Dns(name.as_ref().to_ascii_lowercase())),
            Err(_) => Err(FORM),
        }
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) | Self::Uri(name) => f.write_str(name),
        }
    }
}

/// Whether a certificate, which must have been verified, has one of the names.
///
/// # Errors
/// Where it has none of them; the error says which it has.
pub fn check(certificate: &CertificateDer<'_>, allowed: &[PeerName]) -> Result<(), Error> {
    let certificate =
        EndEntityCert::try_from(certificate).map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
    let dns = certificate.valid_dns_names().map(|name| PeerName::Dns(name.to_ascii_lowercase()));
    let names: Vec<PeerName> =
        dns.chain(certificate.valid_uri_names().map(|name| PeerName::Uri(name.to_owned()))).collect();
    if names.iter().any(|name| allowed.contains(name)) {
        return Ok(());
    }
    Err(Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(NotAllowed(names))))))
}

/// Why there is no TLS with somebody, in words.
pub fn refusal(error: &io::Error) -> String {
    let tls = error.get_ref().and_then(|error| error.downcast_ref::<Error>());
    match tls {
        Some(Error::InvalidCertificate(CertificateError::Other(OtherError(reason)))) => reason.to_string(),
        _ => error.to_string(),
    }
}

/// How many names an error shows: a certificate can have thousands.
const SHOWN: usize = 5;

/// A certificate of somebody else's.
#[derive(Debug)]
struct NotAllowed(Vec<PeerName>);

impl fmt::Display for NotAllowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no name of the certificate is allowed; it has:")?;
        self.0.iter().take(SHOWN).try_for_each(|name| write!(f, " {name}"))?;
        if self.0.len() > SHOWN { write!(f, " and {} more", self.0.len() - SHOWN) } else { Ok(()) }
    }
}

impl std::error::Error for NotAllowed {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (text, name) in [
            ("envoy.mesh.example", PeerName::Dns("envoy.mesh.example".to_owned())),
            ("Envoy", PeerName::Dns("envoy".to_owned())),
            (
                "spiffe://mesh.example/ns/edge/sa/envoy",
                PeerName::Uri("spiffe://mesh.example/ns/edge/sa/envoy".to_owned()),
            ),
        ] {
            assert_eq!(text.parse(), Ok(name));
        }
        for bad in ["", "*", "*.mesh.example", "a b", "spiffe://", "://a"] {
            assert!(bad.parse::<PeerName>().is_err(), "{bad}");
        }
    }
}
