//! What a route connects to.

use super::resource::ResourceIndicator;

/// An upstream MCP server, as the operator wrote it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Upstream {
    pub url: String,
    /// The issuer that the operator pins.
    pub authorization_server: Option<String>,
    /// What it calls itself, where the operator says so.
    pub resource: Option<ResourceIndicator>,
}

impl Upstream {
    /// What tokens are asked for where its metadata does not say: what the operator says it calls itself, else its URL.
    pub fn default_resource(&self) -> &str {
        self.resource.as_ref().map_or(&self.url, ResourceIndicator::as_str)
    }
}
