//! What an upstream is called where tokens are asked for.

use std::{cell::Cell, fmt, str::FromStr};

use url::Url;

/// The longest, in bytes: it goes into an address.
pub const MAX_RESOURCE: usize = 2048;

/// A resource indicator (RFC 8707, section 2): an absolute URI without a fragment, kept as it was written, since it is
/// sent and compared byte by byte.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ResourceIndicator(String);

impl ResourceIndicator {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn into_string(self) -> String {
        self.0
    }
}

impl FromStr for ResourceIndicator {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > MAX_RESOURCE {
            return Err("takes more than 2048 bytes");
        }
        let mended = Cell::new(false);
        let note = |_| mended.set(true);
        let url = Url::options().syntax_violation_callback(Some(&note)).parse(text);
        let url = url.map_err(|_| "is not an absolute URI")?;
        // It is shown to the browser.
        if !url.username().is_empty() || url.password().is_some() {
            return Err("must not have a user name or password");
        }
        if url.fragment().is_some() {
            return Err("must not have a fragment");
        }
        // What a parser has to mend is not a URI, and others would mend it otherwise.
        if mended.get() || !text.is_ascii() {
            return Err("is not an absolute URI");
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for ResourceIndicator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_is_an_absolute_uri_without_a_fragment() {
        for good in [
            "https://mcp.example.com",
            "https://mcp.example.com/",
            "https://MCP.example.com:443/mcp?tenant=1",
            "http://10.0.0.7:3000/mcp",
            "api://5e2a3f5c-0d3b-4b0e-9c0a-9f6f4b8d1c11",
            "urn:example:mcp",
        ] {
            assert_eq!(good.parse::<ResourceIndicator>().expect(good).as_str(), good, "as it was written");
        }
        let long = format!("https://mcp.example.com/{}", "x".repeat(MAX_RESOURCE));
        for (bad, problem) in [
            ("", "is not an absolute URI"),
            ("/mcp", "is not an absolute URI"),
            ("mcp.example.com/mcp", "is not an absolute URI"),
            ("https:mcp.example.com", "is not an absolute URI"),
            ("https://", "is not an absolute URI"),
            (" https://mcp.example.com", "is not an absolute URI"),
            ("https://mcp.example.com/a b", "is not an absolute URI"),
            ("https://mcp.example.com\\mcp", "is not an absolute URI"),
            ("https://mcp.example.com/%zz", "is not an absolute URI"),
            ("https://bücher.example/mcp", "is not an absolute URI"),
            ("https://mcp.example.com/mcp#", "must not have a fragment"),
            ("urn:example:mcp#tools", "must not have a fragment"),
            ("https://user@mcp.example.com", "must not have a user name or password"),
            ("https://:secret@mcp.example.com", "must not have a user name or password"),
            (&long, "takes more than 2048 bytes"),
        ] {
            assert_eq!(bad.parse::<ResourceIndicator>(), Err(problem), "{bad}");
        }
    }
}
