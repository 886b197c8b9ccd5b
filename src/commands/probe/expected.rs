//! What should be served, to compare with what is.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::Value;

use super::{finding::Finding, judge::said, object::Object, target::Target};
use crate::net::outgoing::error::truncate;

/// The finding that says of a member that it is another one.
pub const DIFFERS: &str = "differs";

/// A document as `envoy-cimd documents` writes it.
pub struct Expected {
    file: PathBuf,
    bytes: Vec<u8>,
    document: Object,
}

impl Expected {
    /// # Errors
    /// Where the file cannot be read, or is not a document.
    pub fn read(file: &Path) -> anyhow::Result<Self> {
        let named = || format!("--expect {}", file.display());
        let bytes = std::fs::read(file).with_context(named)?;
        let document = serde_json::from_slice(&bytes).context("is not a JSON object").with_context(named)?;
        Ok(Self { file: file.to_owned(), bytes, document })
    }

    /// Where it should be served: at its `client_id`.
    ///
    /// # Errors
    /// Where it has none, or one that is not the URL of a document.
    pub fn target(&self) -> anyhow::Result<Target> {
        let file = self.file.display();
        let client_id = self.document.members.get("client_id").and_then(Value::as_str);
        let client_id = client_id.with_context(|| format!("--expect {file}: has no `client_id`"))?;
        client_id.parse().map_err(|error| anyhow::anyhow!("--expect {file}: its `client_id` {error}"))
    }

    /// What is served otherwise. White space and order are no matter for servers, but for their caches.
    pub fn differences(&self, served: &[u8]) -> Vec<Finding> {
        // What is not an object is found by who judges the answer.
        let Ok(found) = serde_json::from_slice::<Object>(served) else { return Vec::new() };
        let expected = &self.document.members;
        let mut names: Vec<&String> = expected.keys().chain(found.members.keys()).collect();
        names.sort();
        names.dedup();
        let mut findings = Vec::new();
        for name in names {
            let message = match (found.members.get(name), expected.get(name)) {
                (Some(found), Some(expected)) if found == expected => continue,
                (Some(found), Some(expected)) => {
                    format!("{} is {}; it should be {}", said(name), shown(found), shown(expected))
                }
                (Some(found), None) => format!("{} is {}; it should not be there", said(name), shown(found)),
                (None, expected) => {
                    format!("{} is not there; it should be {}", said(name), expected.map(shown).unwrap_or_default())
                }
            };
            findings.push(Finding::error(DIFFERS, message));
        }
        if findings.is_empty() && served != self.bytes {
            let text =
                "the members are as expected, but not the bytes: somebody wrote them anew, so their tag is another";
            findings.push(Finding::warning("other_bytes", text));
        }
        findings
    }
}

/// A value, so that a terminal can show it.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => format!("\"{}\"", said(text)),
        Value::Array(values) => truncate(format!("[{}]", values.iter().map(shown).collect::<Vec<_>>().join(", "))),
        value => said(&value.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn differences(expected: &str, served: &str) -> Vec<String> {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), expected).expect("written");
        let expected = Expected::read(file.path()).expect("a document");
        let findings = expected.differences(served.as_bytes());
        findings.into_iter().map(|finding| format!("{}: {}", finding.code, finding.message)).collect()
    }

    #[test]
    fn every_member_that_differs_is_named() {
        const EXPECTED: &str = r#"{"client_id":"https://a.example/c","redirect_uris":["https://a.example/cb"]}"#;
        for (served, found) in [
            (EXPECTED, &[][..]),
            (
                r#"{"redirect_uris": ["https://a.example/cb"], "client_id": "https://a.example/c"}"#,
                &[
                    "other_bytes: the members are as expected, but not the bytes: somebody wrote them anew, so their tag is another",
                ],
            ),
            (
                r#"{"client_id":"https://a.example/d","redirect_uris":["https://a.example/cb","https://evil.example"]}"#,
                &[
                    r#"differs: client_id is "https://a.example/d"; it should be "https://a.example/c""#,
                    r#"differs: redirect_uris is ["https://a.example/cb", "https://evil.example"]; it should be ["https://a.example/cb"]"#,
                ],
            ),
            (
                r#"{"client_id":"https://a.example/c","logo\u001b":null}"#,
                &[
                    r"differs: logo\u{1b} is null; it should not be there",
                    r#"differs: redirect_uris is not there; it should be ["https://a.example/cb"]"#,
                ],
            ),
            // Judged elsewhere.
            ("<html>", &[]),
        ] {
            assert_eq!(differences(EXPECTED, served), found, "{served}");
        }
    }
}
