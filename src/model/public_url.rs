//! The public URL of a route, its `from`: an origin, and a path where several routes share it.

use std::{fmt, str::FromStr};

use super::origin::{Origin, OriginError};

/// An origin, and a path of plain segments or none, in the one canonical spelling.
///
/// Every URL of a route is this text with something behind it, and authorization servers compare those byte by byte. So
/// the path may hold only what no browser, proxy or server ever spells otherwise: RFC 3986's unreserved characters.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PublicUrl {
    text: String,
    origin: Origin,
}

/// Why a text is no [`PublicUrl`]. The message does not repeat the text, which may hold a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PublicUrlError {
    #[error(transparent)]
    Origin(#[from] OriginError),
    #[error("must not end with a slash")]
    SlashAtEnd,
    #[error("must not have an empty segment in its path")]
    EmptySegment,
    #[error("must not have a dot segment in its path")]
    DotSegment,
    #[error("must not have a percent-encoded character in its path")]
    Encoded,
    #[error("must not have a character in its path but letters, digits and -._~")]
    Reserved,
    #[error("must not have a path in /.well-known, which is reserved (RFC 8615)")]
    WellKnown,
}

impl PublicUrl {
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The path, which begins with a slash and does not end with one; empty where there is none.
    pub fn path(&self) -> &str {
        self.text.strip_prefix(self.origin.as_str()).unwrap_or_default()
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Without the scheme, which is always the same: what logs call a route, and people see.
    pub fn label(&self) -> &str {
        self.text.strip_prefix("https://").unwrap_or(&self.text)
    }
}

impl FromStr for PublicUrl {
    type Err = PublicUrlError;

    fn from_str(text: &str) -> Result<Self, PublicUrlError> {
        // The path is cut out as it was written, since a URL parser would mend it; what stands before and behind it is
        // for `Origin` to judge.
        let authority = text.find("//").map_or(0, |slashes| slashes + 2);
        let (before, rest) = split_at_any(text, authority, &['/', '?', '#']);
        let (path, behind) = split_at_any(rest, 0, &['?', '#']);
        let origin: Origin = [before, behind].concat().parse()?;
        let path = if path == "/" { "" } else { path };
        check(path)?;
        Ok(Self { text: [origin.as_str(), path].concat(), origin })
    }
}

/// Splits before the first of these characters that is not before `from`.
fn split_at_any<'a>(text: &'a str, from: usize, characters: &[char]) -> (&'a str, &'a str) {
    let behind = text.get(from..).unwrap_or_default();
    text.split_at(behind.find(characters).map_or(text.len(), |found| from + found))
}

fn check(path: &str) -> Result<(), PublicUrlError> {
    let mut segments = path.split('/').skip(1).peekable();
    let is_well_known = segments.peek() == Some(&".well-known");
    while let Some(segment) = segments.next() {
        match segment {
            "" if segments.peek().is_none() => return Err(PublicUrlError::SlashAtEnd),
            "" => return Err(PublicUrlError::EmptySegment),
            "." | ".." => return Err(PublicUrlError::DotSegment),
            _ if segment.contains('%') => return Err(PublicUrlError::Encoded),
            _ if !segment.bytes().all(is_unreserved) => return Err(PublicUrlError::Reserved),
            _ => {}
        }
    }
    if is_well_known { Err(PublicUrlError::WellKnown) } else { Ok(()) }
}

/// RFC 3986, section 2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

impl fmt::Display for PublicUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use url::Url;

    use super::*;

    #[test]
    fn one_spelling() {
        for (text, canonical, path) in [
            ("https://mcp.example.com", "https://mcp.example.com", ""),
            ("https://mcp.example.com/", "https://mcp.example.com", ""),
            ("HTTPS://MCP.Example.com:443/Linear", "https://mcp.example.com/Linear", "/Linear"),
            ("https://mcp.example.com:8443/a/b-c._~9", "https://mcp.example.com:8443/a/b-c._~9", "/a/b-c._~9"),
            ("https://[2001:DB8::1]/...", "https://[2001:db8::1]/...", "/..."),
            ("https://mcp.example.com/a/.well-known", "https://mcp.example.com/a/.well-known", "/a/.well-known"),
        ] {
            let url: PublicUrl = text.parse().expect(text);
            assert_eq!((url.as_str(), url.path()), (canonical, path), "{text}");
            assert_eq!(format!("https://{}", url.label()), canonical);
        }
    }

    #[test]
    fn bad_ones_are_named() {
        use PublicUrlError::{DotSegment, EmptySegment, Encoded, Reserved, SlashAtEnd, WellKnown};
        for (path, error) in [
            ("/linear/", SlashAtEnd),
            ("//linear", EmptySegment),
            ("/a//b", EmptySegment),
            ("//", EmptySegment),
            ("/.", DotSegment),
            ("/../linear", DotSegment),
            ("/a/./b", DotSegment),
            ("/%6cinear", Encoded),
            ("/a%2fb", Encoded),
            ("/%2e%2e", Encoded),
            ("/a;b", Reserved),
            ("/a:b", Reserved),
            ("/a@b", Reserved),
            ("/a b", Reserved),
            ("/a\tb", Reserved),
            ("/a\\b", Reserved),
            ("/ä", Reserved),
            ("/{a}", Reserved),
            ("/.well-known", WellKnown),
            ("/.well-known/oauth-protected-resource", WellKnown),
            ("/a?b", OriginError::Query.into()),
            ("/a?", OriginError::Query.into()),
            ("/a#b", OriginError::Fragment.into()),
            ("?/a", OriginError::Query.into()),
            ("\\a", OriginError::Irregular(url::SyntaxViolation::Backslash).into()),
        ] {
            assert_eq!(format!("https://mcp.example.com{path}").parse::<PublicUrl>(), Err(error), "{path:?}");
        }
        for (text, error) in [
            ("http://mcp.example.com/linear", OriginError::NotHttps),
            ("https://user:pw@mcp.example.com/linear", OriginError::Userinfo),
            ("https:mcp.example.com/linear", OriginError::Irregular(url::SyntaxViolation::ExpectedDoubleSlash)),
            ("https:///linear", OriginError::NotUrl(url::ParseError::EmptyHost)),
            ("/linear", OriginError::NotUrl(url::ParseError::RelativeUrlWithoutBase)),
        ] {
            assert_eq!(text.parse::<PublicUrl>(), Err(error.into()), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_taken_is_what_everybody_reads(path in "([/?#][/a-zA-Z0-9._~%;@ \\\\\u{e4}?#-]{0,12})?") {
            let text = format!("https://mcp.example.com{path}");
            if let Ok(url) = text.parse::<PublicUrl>() {
                prop_assert_eq!(url.as_str().parse::<PublicUrl>(), Ok(url.clone()));
                let read = Url::parse(url.as_str()).expect("a URL");
                prop_assert_eq!(read.path().trim_end_matches('/'), url.path());
                prop_assert_eq!(url.as_str(), text.trim_end_matches('/'));
            }
        }
    }
}
