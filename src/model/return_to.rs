//! Where a person goes after the flow: a path on the route's own origin.

use std::fmt;

use url::Url;

use super::origin::Origin;

/// The longest `return_to`, in bytes.
const MAX_LENGTH: usize = 2048;

/// A path, with query and fragment, that stays on its origin however a browser reads it.
#[derive(Clone, Debug, PartialEq)]
pub struct ReturnTo(String);

impl ReturnTo {
    /// Reads a `return_to` for an origin; none where it could lead away, or is not a path.
    pub fn parse(text: &str, origin: &Origin) -> Option<Self> {
        // Browsers drop tabs and newlines and take a backslash for a slash, so a text with one of these is not what
        // it looks like. Two slashes begin a host, be it our own. The rest is the URL standard's to say.
        let local = text.starts_with('/') && !text.starts_with("//");
        let plain = local && !text.contains(|c: char| c.is_ascii_control() || c == '\\');
        if text.len() > MAX_LENGTH || !plain {
            return None;
        }
        let base = Url::parse(origin.as_str()).ok()?;
        let url = base.join(text).ok()?;
        if url.origin() != base.origin() || !url.username().is_empty() || url.password().is_some() {
            return None;
        }
        let path = url.as_str().strip_prefix(origin.as_str())?;
        // `/.//evil.example` comes out as `//evil.example`, which is a host where it stands alone.
        (path.starts_with('/') && !path.starts_with("//")).then(|| Self(path.to_owned()))
    }

    /// The root, for who did not ask for anything.
    pub fn root() -> Self {
        Self("/".to_owned())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ReturnTo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn origin() -> Origin {
        "https://mcp.example.com:8443".parse().expect("an origin")
    }

    #[test]
    fn paths_stay_and_all_else_is_refused() {
        for (text, expected) in [
            ("/", Some("/")),
            ("/a/b?c=d&e#f", Some("/a/b?c=d&e#f")),
            ("/a/../b", Some("/b")),
            ("/a//b", Some("/a//b")),
            ("/ä b", Some("/%C3%A4%20b")),
            ("/?u=https://evil.example", Some("/?u=https://evil.example")),
            ("/@evil.example", Some("/@evil.example")),
            ("/:80", Some("/:80")),
            ("", None),
            ("a", None),
            ("?a", None),
            ("//evil.example", None),
            ("///evil.example", None),
            ("//mcp.example.com:8443/a", None),
            ("/\\evil.example", None),
            ("\\/evil.example", None),
            ("/\t/evil.example", None),
            ("/\n/evil.example", None),
            ("\t//evil.example", None),
            ("/a\0", None),
            ("/.//evil.example", None),
            ("/a/..//evil.example", None),
            ("/%2e//evil.example", None),
            ("https://mcp.example.com:8443/a", None),
            ("https://evil.example/", None),
            ("javascript:alert(1)", None),
            (" /a", None),
        ] {
            let found = ReturnTo::parse(text, &origin());
            assert_eq!(found.as_ref().map(ReturnTo::as_str), expected, "{text:?}");
        }
        assert!(ReturnTo::parse(&format!("/{}", "a".repeat(MAX_LENGTH)), &origin()).is_none());
    }

    proptest! {
        /// By the `url` crate, and by what a browser does first: trim, drop tabs and newlines, turn backslashes.
        #[test]
        fn an_accepted_one_stays_on_the_origin(text in prop_oneof![any::<String>(), "[/\\\\\t\n\r .%2eE:@a?#-]{0,12}", "/[/\\\\\t\n .]{0,6}evil.example"]) {
            if let Some(accepted) = ReturnTo::parse(&text, &origin()) {
                let base = Url::parse(origin().as_str()).expect("a URL");
                for spelling in [accepted.as_str(), text.as_str()] {
                    let resolved = base.join(spelling).expect("a URL");
                    prop_assert_eq!(resolved.origin(), base.origin());
                    let browser = spelling.trim().replace(['\t', '\n', '\r'], "").replace('\\', "/");
                    prop_assert!(browser.starts_with('/') && !browser.starts_with("//"), "{}", browser);
                }
                prop_assert_eq!(ReturnTo::parse(accepted.as_str(), &origin()), Some(accepted.clone()));
            }
        }
    }
}
