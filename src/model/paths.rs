//! The paths of our endpoints, and the one builder of every URL of a route.

use url::Url;

use super::{
    client::{ClientId, RedirectUri},
    origin::Origin,
};

/// The path of the document unless another one is set.
pub const DOCUMENT_PATH: &str = "/.well-known/mcp-client-metadata.json";
/// The path of the redirect endpoint unless another one is set.
pub const CALLBACK_PATH: &str = "/.pomerium/oauth/callback";

/// The paths of our three endpoints, the same on every route.
#[derive(Clone, Debug, PartialEq)]
pub struct Paths {
    pub document: EndpointPath,
    pub callback: EndpointPath,
    pub start: EndpointPath,
}

/// An absolute URL path in the spelling that browsers and authorization servers send it in.
#[derive(Clone, Debug, PartialEq)]
pub struct EndpointPath(String);

/// One of the three.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    Document,
    Start,
    Callback,
}

impl Endpoint {
    /// Its label in log lines and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Document => "document",
            Self::Start => "start",
            Self::Callback => "callback",
        }
    }
}

impl std::str::FromStr for EndpointPath {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let url = Url::parse("https://localhost").and_then(|base| base.join(text)).map_err(|_| "is not a URL path")?;
        // Anything that does not come out of a URL as it went in (a query, a dot segment, a space, another host)
        // would never match a request. CIMD, section 3, forbids dot segments too.
        if url.as_str() != format!("https://localhost{text}") || url.query().is_some() || url.fragment().is_some() {
            return Err("must be a plain absolute path: no query, no fragment, no dot segment, nothing to encode");
        }
        if text.ends_with('/') || text.starts_with("//") {
            return Err("must not start with two slashes or end with one");
        }
        Ok(Self(text.to_owned()))
    }
}

impl EndpointPath {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for EndpointPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl Default for Paths {
    fn default() -> Self {
        let path = |text: &str| EndpointPath(text.to_owned());
        Self { document: path(DOCUMENT_PATH), callback: path(CALLBACK_PATH), start: path("/.pomerium/oauth/start") }
    }
}

impl Paths {
    /// Start is the callback's sibling `start`.
    ///
    /// # Errors
    /// Where two of the three would be the same.
    pub fn new(document: EndpointPath, callback: EndpointPath) -> Result<Self, &'static str> {
        let parent = callback.0.rsplit_once('/').map_or("", |(parent, _)| parent);
        let start = EndpointPath(format!("{parent}/start"));
        if document == callback || document == start || callback == start {
            return Err("the document's path, the callback's path and the callback's sibling `start` must differ");
        }
        Ok(Self { document, callback, start })
    }

    /// Which endpoint a request's path (without its query) is, byte for byte.
    pub fn endpoint(&self, path: &str) -> Option<Endpoint> {
        [(&self.document, Endpoint::Document), (&self.callback, Endpoint::Callback), (&self.start, Endpoint::Start)]
            .into_iter()
            .find_map(|(ours, endpoint)| (ours.0 == path).then_some(endpoint))
    }

    /// The URL of the document, which is the route's `client_id`.
    pub fn client_id(&self, origin: &Origin) -> ClientId {
        ClientId::new([origin.as_str(), &self.document.0].concat())
    }

    /// The route's redirect URI.
    pub fn redirect_uri(&self, origin: &Origin) -> RedirectUri {
        RedirectUri::new([origin.as_str(), &self.callback.0].concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_paths_are_good_ones() {
        let path = |text: &str| text.parse().expect("a path");
        assert_eq!(Paths::new(path(DOCUMENT_PATH), path(CALLBACK_PATH)), Ok(Paths::default()));
    }

    #[test]
    fn paths() {
        for bad in [
            "",
            "x",
            "/a?b",
            "/a#b",
            "/a/../b",
            "/a b",
            "//evil.example/x",
            "/a/",
            "/",
            "/é",
            "https://x/y",
            "/a\\b",
            "/a\tb",
        ] {
            assert!(bad.parse::<EndpointPath>().is_err(), "{bad:?}");
        }
        let path = |text: &str| text.parse::<EndpointPath>().expect(text);
        let paths = Paths::new(path("/client.json"), path("/oauth/callback")).expect("differ");
        assert_eq!(paths.endpoint("/client.json"), Some(Endpoint::Document));
        assert_eq!(paths.endpoint("/oauth/callback"), Some(Endpoint::Callback));
        assert_eq!(paths.endpoint("/oauth/start"), Some(Endpoint::Start));
        for other in ["/client.json/", "/client%2Ejson", "/x/../client.json", "/Client.json", ""] {
            assert_eq!(paths.endpoint(other), None, "{other}");
        }
        assert!(Paths::new(path("/a"), path("/a")).is_err());
        assert!(Paths::new(path("/a"), path("/start")).is_err());
        assert!(Paths::new(path("/o/start"), path("/o/callback")).is_err());
    }
}
