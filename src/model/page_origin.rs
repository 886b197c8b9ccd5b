//! The origin of web pages.

use std::str::FromStr;

use super::{
    loopback::is_loopback,
    origin::{OriginError, Spelled, spelled},
};

/// The origin of web pages as a browser writes it into `Origin` (RFC 6454, section 6.2): https, or http of the browser's
/// own machine, where tools for developers are served. What comes over http from elsewhere, anybody on the way can write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageOrigin(String);

impl PageOrigin {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PageOrigin {
    type Err = OriginError;

    fn from_str(text: &str) -> Result<Self, OriginError> {
        let Spelled { text, .. } = spelled(text, |url| match (url.scheme(), url.host()) {
            ("https", _) => Ok(()),
            ("http", Some(host)) if is_loopback(&host) => Ok(()),
            _ => Err(OriginError::NotHttpsNorLoopback),
        })?;
        Ok(Self(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn https_or_http_on_loopback_as_browsers_spell_it() {
        for (text, spelled) in [
            ("https://app.example", "https://app.example"),
            ("HTTPS://App.Example:443/", "https://app.example"),
            ("https://[2001:DB8::1]:8443", "https://[2001:db8::1]:8443"),
            ("http://localhost:6274", "http://localhost:6274"),
            ("http://LOCALHOST:80/", "http://localhost"),
            ("http://localhost:443", "http://localhost:443"),
            ("http://inspector.localhost:6274", "http://inspector.localhost:6274"),
            ("http://127.0.0.1:6274", "http://127.0.0.1:6274"),
            ("http://[::1]:6274", "http://[::1]:6274"),
        ] {
            assert_eq!(text.parse::<PageOrigin>().expect(text).as_str(), spelled);
        }
        for (text, error) in [
            ("http://app.example", OriginError::NotHttpsNorLoopback),
            ("http://10.0.0.7:6274", OriginError::NotHttpsNorLoopback),
            ("http://localhost.example", OriginError::NotHttpsNorLoopback),
            ("http://127.0.0.1.example", OriginError::NotHttpsNorLoopback),
            ("ws://localhost:6274", OriginError::NotHttpsNorLoopback),
            ("file:///index.html", OriginError::NotHttpsNorLoopback),
            ("http://localhost:6274/page", OriginError::Path),
            ("http://user@localhost:6274", OriginError::Userinfo),
            ("http://localhost:0", OriginError::PortZero),
            ("https://*.example", OriginError::Host),
            ("null", OriginError::NotUrl(url::ParseError::RelativeUrlWithoutBase)),
        ] {
            assert_eq!(text.parse::<PageOrigin>(), Err(error), "{text}");
        }
    }
}
