//! Why a fetch failed, in words that an operator can act on and that give nothing away.

use std::{error::Error, io, iter, net::IpAddr, time::Duration};

use rustls::CertificateError;
use url::Url;

use super::address::SpecialUse;

/// The longest that a fetch may take unless its caller says otherwise: name look-up, connection, TLS, request and the whole answer.
pub const DEADLINE: Duration = Duration::from_secs(3);
/// The largest body of an answer, in bytes.
pub const MAX_BODY: usize = 1 << 20;

/// Why there is no answer. Messages hold the URL without user name, query and fragment, and nothing of a body.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    #[error("the request has no absolute URL")]
    NoUrl,
    #[error("{url}: {fault}")]
    Url { url: String, fault: UrlFault },
    /// `remedy` is what `--allow-host` would have to name, where that would help.
    #[error("{url}: {address} is {special_use}{}", remedy_text(.remedy.as_deref()))]
    Address { url: String, address: IpAddr, special_use: SpecialUse, remedy: Option<String> },
    #[error("{url}: the host's name cannot be resolved: {reason}")]
    Resolve { url: String, reason: String },
    #[error("{url}: no connection could be made: {reason}")]
    Connect { url: String, reason: String },
    #[error("{url}: {} within {seconds} seconds", missing(*.connected))]
    Timeout { url: String, connected: bool, seconds: u64 },
    #[error("{url}: no whole answer came: {reason}")]
    Broken { url: String, reason: String },
    #[error("{url}: the answer is larger than {MAX_BODY} bytes")]
    TooLarge { url: String },
}

/// What is wrong with a URL as such.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlFault {
    #[error("must be https")]
    NotHttps,
    #[error("must not have a user name or password")]
    Userinfo,
    #[error("must not have a fragment")]
    Fragment,
}

impl FetchError {
    /// Whether the request may have reached the server, so that sending it again may do something twice.
    pub fn may_have_arrived(&self) -> bool {
        match self {
            Self::NoUrl | Self::Url { .. } | Self::Address { .. } | Self::Resolve { .. } | Self::Connect { .. } => {
                false
            }
            Self::Timeout { connected, .. } => *connected,
            Self::Broken { .. } | Self::TooLarge { .. } => true,
        }
    }

    /// Whether the deadline passed.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Timeout { .. })
    }
}

fn remedy_text(remedy: Option<&str>) -> String {
    match remedy {
        Some(host) => format!("; --allow-host {host} would allow it"),
        None => ", which no setting allows".to_owned(),
    }
}

fn missing(connected: bool) -> &'static str {
    if connected { "no whole answer came" } else { "no connection could be made" }
}

/// What of a stranger's words may stand in a message, in bytes.
const MAX_SHOWN: usize = 200;

/// Of a URL what may be shown.
pub fn redacted(url: &Url) -> String {
    match url.scheme() {
        // In a URL of another scheme anything may be a secret, or a whole document.
        scheme @ ("http" | "https") => truncate(format!("{scheme}://{}{}", authority(url), url.path())),
        scheme => truncate(format!("{scheme}:…")),
    }
}

/// `host`, or `host:port` where the URL names a port that is not its scheme's own.
pub(super) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// The beginning of a stranger's text, short enough for a log line.
pub fn truncate(mut text: String) -> String {
    if text.len() > MAX_SHOWN {
        text.truncate(text.floor_char_boundary(MAX_SHOWN));
        text.push('…');
    }
    text
}

/// What went wrong below HTTP. Other layers' words may hold what the other side said, so they are not repeated.
pub(crate) fn reason(error: &reqwest::Error) -> String {
    if let Some(error) = tls_error(error) {
        return tls_reason(error);
    }
    // This names the part that is no HTTP, and quotes nothing.
    if let Some(error) =
        chain(error).find_map(|error| error.downcast_ref::<hyper::Error>().filter(|error| error.is_parse()))
    {
        return error.to_string();
    }
    match chain(error).filter_map(|error| error.downcast_ref::<io::Error>()).last() {
        Some(error) if error.get_ref().is_none() => error.to_string(),
        Some(error) if error.kind() != io::ErrorKind::Other => error.kind().to_string(),
        _ => "it is not HTTP, or breaks off".to_owned(),
    }
}

/// What TLS says of it, where that is what went wrong.
pub(crate) fn tls_error(error: &reqwest::Error) -> Option<&rustls::Error> {
    chain(error).find_map(|error| error.downcast_ref())
}

fn chain(error: &reqwest::Error) -> impl Iterator<Item = &(dyn Error + 'static)> {
    iter::successors(Some(error as &(dyn Error + 'static)), |&error| {
        // An I/O error's `source` skips what it wraps.
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        wrapped.map(|wrapped| wrapped as &(dyn Error + 'static)).or_else(|| error.source())
    })
}

fn tls_reason(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "its certificate is of an authority that is not trusted here; --extra-ca would add one".to_owned()
        }
        // This may quote names of the certificate, with what is not printable escaped.
        error => truncate(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_of_a_url() {
        let long = format!("https://as.example/{}", "a".repeat(1000));
        let cut = format!("https://as.example/{}…", "a".repeat(181));
        for (url, text) in [
            ("https://user:pw@as.example:8443/token?code=secret#s", "https://as.example:8443/token"),
            ("https://as.example:443/a\nb c", "https://as.example/ab%20c"),
            ("https://bücher.example", "https://xn--bcher-kva.example/"),
            ("mailto:secret@as.example", "mailto:…"),
            (&long, &cut),
        ] {
            assert_eq!(redacted(&Url::parse(url).expect(url)), text);
        }
        assert_eq!(truncate("ü".repeat(150)).chars().count(), 101);
    }
}
