//! What a route connects to.

/// An upstream MCP server, as the operator wrote it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Upstream {
    pub url: String,
    /// The issuer that the operator pins.
    pub authorization_server: Option<String>,
}
