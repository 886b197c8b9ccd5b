//! What is asked for on the command line.

use std::str::FromStr;

use crate::model::{origin::Origin, paths::EndpointPath};

/// What is asked for: a route's `from`, whose document is at the usual path under it, or a document.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    pub origin: Origin,
    pub path: Option<EndpointPath>,
}

impl Target {
    /// The path of the document. There are two where the path of the target may be either: first as that of a `from`.
    pub fn documents(&self, document_path: &EndpointPath) -> Vec<EndpointPath> {
        let Some(path) = &self.path else { return vec![document_path.clone()] };
        let is_document = path.as_str().ends_with(document_path.as_str()) || path.as_str().ends_with(".json");
        let under = (!is_document).then(|| format!("{path}{document_path}").parse().ok()).flatten();
        under.into_iter().chain([path.clone()]).collect()
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let rest = text.strip_prefix("https://").ok_or("must be https")?;
        let (origin, path) = match rest.find('/') {
            Some(index) => text.split_at(text.len() - rest.len() + index),
            None => (text, ""),
        };
        let parsed: Origin = origin.parse().map_err(|error| format!("{error}"))?;
        if path.trim_start_matches('/').is_empty() {
            return Ok(Self { origin: parsed, path: None });
        }
        // A `client_id` is compared byte by byte, so another spelling is another client.
        if parsed.as_str() != origin {
            return Err(format!("is not a client_id: the one spelling is {parsed}{path}"));
        }
        let path = path.parse().map_err(|error| format!("is not a client_id: its path {error}"))?;
        Ok(Self { origin: parsed, path: Some(path) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        let default = "/default".parse().expect("a path");
        for (text, urls) in [
            ("https://mcp.example.com", &["https://mcp.example.com/default"][..]),
            ("https://mcp.example.com/", &["https://mcp.example.com/default"]),
            ("https://MCP.example.com:443", &["https://mcp.example.com/default"]),
            ("https://mcp.example.com:8443/a/b.json", &["https://mcp.example.com:8443/a/b.json"]),
            ("https://mcp.example.com/linear/default", &["https://mcp.example.com/linear/default"]),
            (
                "https://mcp.example.com/linear",
                &["https://mcp.example.com/linear/default", "https://mcp.example.com/linear"],
            ),
        ] {
            let target: Target = text.parse().expect(text);
            let documents = target.documents(&default);
            let found: Vec<String> = documents.iter().map(|path| format!("{}{path}", target.origin)).collect();
            assert_eq!(found, urls);
        }
        for (text, error) in [
            ("http://mcp.example.com", "must be https"),
            ("mcp.example.com", "must be https"),
            ("https://u:p@mcp.example.com/a", "must not have a user name or password"),
            ("https://mcp.example.com?x", "must not have a query"),
            ("https://MCP.example.com/a", "is not a client_id: the one spelling is https://mcp.example.com/a"),
            ("https://mcp.example.com:443/a", "is not a client_id: the one spelling is https://mcp.example.com/a"),
            ("https://mcp.example.com/a?x", "is not a client_id: its path must be a plain absolute path"),
            ("https://mcp.example.com/a/../b", "is not a client_id: its path must be a plain absolute path"),
            ("https://mcp.example.com/a/", "is not a client_id: its path must not start with two slashes"),
        ] {
            let found = text.parse::<Target>().expect_err(text);
            assert!(found.starts_with(error), "{text}: {found}");
        }
    }
}
