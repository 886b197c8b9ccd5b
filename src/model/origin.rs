//! The public origin of a route: scheme, host and port of its `from`.

use std::{cell::Cell, fmt, str::FromStr};

use url::{Host, SyntaxViolation, Url};

/// A public https origin in its one canonical spelling: `https://host` or `https://host:port`.
///
/// The host is lower-case, an IDN is punycode, the default port is dropped. Authorization servers compare a
/// `client_id` byte by byte (draft-ietf-oauth-client-id-metadata-document, section 3), so nothing but this
/// spelling may reach a document.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    text: String,
    host: String,
    port: u16,
}

/// Why a text is no [`Origin`]. The message does not repeat the text, which may hold a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OriginError {
    #[error("is not a URL: {0}")]
    NotUrl(#[from] url::ParseError),
    #[error("is not a well-formed URL: {0}")]
    Irregular(SyntaxViolation),
    #[error("must be https")]
    NotHttps,
    /// Of a [`PageOrigin`](super::page_origin::PageOrigin).
    #[error("must be https, or http on loopback, such as http://localhost:6274")]
    NotHttpsNorLoopback,
    #[error("must not have a user name or password")]
    Userinfo,
    #[error("must not have a path")]
    Path,
    #[error("must not have a query")]
    Query,
    #[error("must not have a fragment")]
    Fragment,
    #[error("has a host that is neither a DNS name nor an address")]
    Host,
    #[error("must not have port 0")]
    PortZero,
}

/// The port of https (RFC 9110, section 4.2.2).
pub const DEFAULT_PORT: u16 = 443;

/// RFC 1035, section 2.3.4: the longest name, and the longest label, in bytes.
const MAX_NAME: usize = 253;
const MAX_LABEL: usize = 63;

impl Origin {
    /// The host alone: a DNS name, an IPv4 address, or an IPv6 address in brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port, 443 where the text names none.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `host`, or `host:port` where the port is not 443.
    pub fn authority(&self) -> &str {
        self.text.strip_prefix("https://").unwrap_or(&self.text)
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether a request's `:authority` means this origin: the host, and the port where it names one. (Some
    /// authorization servers leave the port out of `Host` when they fetch a document.)
    pub fn is_named_by(&self, authority: &str) -> bool {
        let Some((host, rest)) = authority.split_at_checked(self.host.len()) else {
            return false;
        };
        host.eq_ignore_ascii_case(&self.host)
            && (rest.is_empty() || rest.strip_prefix(':') == Some(self.port.to_string().as_str()))
    }
}

impl FromStr for Origin {
    type Err = OriginError;

    fn from_str(text: &str) -> Result<Self, OriginError> {
        let is_https = |url: &Url| url.scheme() == "https";
        let Spelled { text, host, port } =
            spelled(text, |url| is_https(url).then_some(()).ok_or(OriginError::NotHttps))?;
        Ok(Self { text, host, port: port.unwrap_or(DEFAULT_PORT) })
    }
}

/// An origin in its one canonical spelling.
pub(super) struct Spelled {
    pub text: String,
    pub host: String,
    /// None for the default port of its scheme.
    pub port: Option<u16>,
}

/// Reads an origin whose scheme and host `check` takes.
pub(super) fn spelled(text: &str, check: impl FnOnce(&Url) -> Result<(), OriginError>) -> Result<Spelled, OriginError> {
    // The URL standard mends much silently (backslashes, tabs, missing slashes). An operator who wrote such a
    // thing meant something else, so each mend is an error here.
    let violation = Cell::new(None);
    let note = |found| violation.set(Some(found));
    let url = Url::options().syntax_violation_callback(Some(&note)).parse(text)?;
    check(&url)?;
    if !url.username().is_empty() || url.password().is_some() || text.contains('@') {
        return Err(OriginError::Userinfo);
    }
    if url.query().is_some() {
        return Err(OriginError::Query);
    }
    if url.fragment().is_some() {
        return Err(OriginError::Fragment);
    }
    if let Some(violation) = violation.get() {
        return Err(OriginError::Irregular(violation));
    }
    if url.path() != "/" {
        return Err(OriginError::Path);
    }
    let host = match url.host() {
        Some(Host::Domain(name)) if is_dns_name(name) => name.to_owned(),
        Some(host @ (Host::Ipv4(_) | Host::Ipv6(_))) => host.to_string(),
        _ => return Err(OriginError::Host),
    };
    let (scheme, port) = (url.scheme(), url.port());
    let text = match port {
        Some(0) => return Err(OriginError::PortZero),
        Some(port) => format!("{scheme}://{host}:{port}"),
        None => [scheme, "://", &host].concat(),
    };
    Ok(Spelled { text, host, port })
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The URL standard lets a host hold `*`, `"` or `{`; certificates and DNS do not.
fn is_dns_name(name: &str) -> bool {
    name.len() <= MAX_NAME
        && name.split('.').all(|label| {
            (1..=MAX_LABEL).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_spelling() {
        for (text, canonical, host, port) in [
            ("https://mcp.example.com", "https://mcp.example.com", "mcp.example.com", 443),
            ("https://mcp.example.com/", "https://mcp.example.com", "mcp.example.com", 443),
            ("HTTPS://MCP.Example.COM:443", "https://mcp.example.com", "mcp.example.com", 443),
            ("https://mcp.example.com:8443", "https://mcp.example.com:8443", "mcp.example.com", 8443),
            ("https://bücher.example", "https://xn--bcher-kva.example", "xn--bcher-kva.example", 443),
            ("https://a_b.example", "https://a_b.example", "a_b.example", 443),
            ("https://192.0.2.7:8443", "https://192.0.2.7:8443", "192.0.2.7", 8443),
            ("https://[2001:DB8::1]", "https://[2001:db8::1]", "[2001:db8::1]", 443),
        ] {
            let origin: Origin = text.parse().expect(text);
            assert_eq!((origin.as_str(), origin.host(), origin.port()), (canonical, host, port), "{text}");
            assert_eq!(format!("https://{}", origin.authority()), canonical);
        }
    }

    #[test]
    fn bad_ones_are_named() {
        let long_label = format!("https://{}.example", "a".repeat(64));
        let long_name = format!("https://{}example", "abcdefgh.".repeat(30));
        for (text, error) in [
            ("http://mcp.example.com", OriginError::NotHttps),
            ("https://user@mcp.example.com", OriginError::Userinfo),
            ("https://user:pw@mcp.example.com", OriginError::Userinfo),
            ("https://@mcp.example.com", OriginError::Userinfo),
            ("https://mcp.example.com/mcp", OriginError::Path),
            ("https://mcp.example.com//", OriginError::Path),
            ("https://mcp.example.com?", OriginError::Query),
            ("https://mcp.example.com#", OriginError::Fragment),
            ("https://mcp.example.com:0", OriginError::PortZero),
            ("https://mcp.example.com.", OriginError::Host),
            ("https://*.example.com", OriginError::Host),
            ("https://a\"b.example", OriginError::Host),
            (&long_label, OriginError::Host),
            (&long_name, OriginError::Host),
            ("https://mcp.example.com\\", OriginError::Irregular(SyntaxViolation::Backslash)),
            ("https:mcp.example.com", OriginError::Irregular(SyntaxViolation::ExpectedDoubleSlash)),
            ("https://mcp.exa\tmple.com", OriginError::Irregular(SyntaxViolation::TabOrNewlineIgnored)),
            (" https://mcp.example.com", OriginError::Irregular(SyntaxViolation::C0SpaceIgnored)),
            ("https://", OriginError::NotUrl(url::ParseError::EmptyHost)),
            ("https://mcp.example.com:99999", OriginError::NotUrl(url::ParseError::InvalidPort)),
            ("https://mcp example.com", OriginError::NotUrl(url::ParseError::IdnaError)),
            ("mcp.example.com", OriginError::NotUrl(url::ParseError::RelativeUrlWithoutBase)),
            ("", OriginError::NotUrl(url::ParseError::RelativeUrlWithoutBase)),
        ] {
            assert_eq!(text.parse::<Origin>(), Err(error), "{text:?}");
        }
    }

    #[test]
    fn authority() {
        for (origin, authority, named) in [
            ("https://mcp.example.com", "mcp.example.com", true),
            ("https://mcp.example.com", "MCP.example.com:443", true),
            ("https://mcp.example.com", "mcp.example.com:8443", false),
            ("https://mcp.example.com", "mcp.example.com:", false),
            ("https://mcp.example.com", "mcp.example.com.", false),
            ("https://mcp.example.com", "mcp.example.com.evil.example", false),
            ("https://mcp.example.com", "user@mcp.example.com", false),
            ("https://mcp.example.com", "evil.example", false),
            ("https://mcp.example.com", "", false),
            ("https://mcp.example.com:8443", "mcp.example.com", true),
            ("https://mcp.example.com:8443", "mcp.example.com:8443", true),
            ("https://mcp.example.com:8443", "mcp.example.com:08443", false),
            ("https://mcp.example.com:8443", "mcp.example.com:443", false),
            ("https://[2001:db8::1]", "[2001:db8::1]:443", true),
        ] {
            let parsed: Origin = origin.parse().expect(origin);
            assert_eq!(parsed.is_named_by(authority), named, "{origin} {authority}");
        }
    }

    /// Texts that are near enough to an origin for a part of them to pass.
    fn nearly_origins() -> impl Strategy<Value = String> {
        prop_oneof![
            any::<String>(),
            "(https|HTTPS|http)[:/\\\\]{0,4}[a-zA-Z0-9.@*_%\u{fc}\u{df}\u{3002}\\[\\]-]{0,20}(:[0-9]{0,6})?[/?#\\\\\t ]{0,2}",
        ]
    }

    proptest! {
        #[test]
        fn parsing_is_idempotent_and_never_panics(text in nearly_origins()) {
            if let Ok(origin) = text.parse::<Origin>() {
                prop_assert_eq!(origin.as_str().parse::<Origin>(), Ok(origin.clone()));
                prop_assert!(origin.is_named_by(origin.authority()));
                prop_assert_eq!(origin.as_str(), origin.as_str().to_ascii_lowercase());
            }
        }
    }
}
