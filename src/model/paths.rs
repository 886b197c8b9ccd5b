//! The paths of our endpoints, and the one builder of every URL of a route.

use url::Url;

use super::{
    client::{ClientId, RedirectUri},
    public_url::PublicUrl,
};

/// The path of the document unless another one is set.
pub const DOCUMENT_PATH: &str = "/.well-known/mcp-client-metadata.json";
/// The path of the redirect endpoint unless another one is set.
pub const CALLBACK_PATH: &str = "/.pomerium/oauth/callback";

/// The paths of our endpoints under a route's `from`, the same on every route.
#[derive(Clone, Debug, PartialEq)]
pub struct Paths {
    document: EndpointPath,
    callback: EndpointPath,
    start: EndpointPath,
    disconnect: EndpointPath,
}

/// An absolute URL path in the spelling that browsers and authorization servers send it in.
#[derive(Clone, Debug, PartialEq)]
pub struct EndpointPath(String);

/// One of our endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    Document,
    Start,
    Callback,
    Disconnect,
}

impl Endpoint {
    pub const ALL: [Self; 4] = [Self::Document, Self::Start, Self::Callback, Self::Disconnect];

    /// Its label in log lines and metrics.
    pub fn name(self) -> &'static str {
        Part::from(self).name()
    }
}

/// A part of the service that answers requests: an endpoint, what carries MCP traffic, or what answers for upstreams that
/// refuse a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    Document,
    Start,
    Callback,
    Disconnect,
    Traffic,
    Refused,
}

impl Part {
    pub const ALL: [Self; 6] =
        [Self::Document, Self::Start, Self::Callback, Self::Disconnect, Self::Traffic, Self::Refused];

    /// Its label in log lines and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Document => "document",
            Self::Start => "start",
            Self::Callback => "callback",
            Self::Disconnect => "disconnect",
            Self::Traffic => "traffic",
            Self::Refused => "refused",
        }
    }
}

impl From<Endpoint> for Part {
    fn from(endpoint: Endpoint) -> Self {
        match endpoint {
            Endpoint::Document => Self::Document,
            Endpoint::Start => Self::Start,
            Endpoint::Callback => Self::Callback,
            Endpoint::Disconnect => Self::Disconnect,
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
        Self {
            document: path(DOCUMENT_PATH),
            callback: path(CALLBACK_PATH),
            start: path("/.pomerium/oauth/start"),
            disconnect: path("/.pomerium/oauth/disconnect"),
        }
    }
}

impl Paths {
    /// Start and disconnect are the callback's siblings of these names.
    ///
    /// # Errors
    /// Where one of the paths ends in another one: a request could then be for two routes.
    pub fn new(document: EndpointPath, callback: EndpointPath) -> Result<Self, &'static str> {
        let parent = callback.0.rsplit_once('/').map_or("", |(parent, _)| parent);
        let sibling = |name: &str| EndpointPath(format!("{parent}/{name}"));
        let (start, disconnect) = (sibling("start"), sibling("disconnect"));
        let paths = Self { document, callback, start, disconnect };
        for one in Endpoint::ALL {
            for other in Endpoint::ALL.into_iter().filter(|other| *other != one) {
                if paths.of(one).0.ends_with(paths.of(other).as_str()) {
                    return Err("of the document's path, the callback's path and the callback's siblings `start` and \
                                `disconnect`, none may be or end in another one");
                }
            }
        }
        Ok(paths)
    }

    /// The same with another path of the document, for who serves none and only tells routes by their documents.
    #[must_use]
    pub fn with_document(self, document: EndpointPath) -> Self {
        Self { document, ..self }
    }

    /// The path of an endpoint under `from`.
    pub fn of(&self, endpoint: Endpoint) -> &EndpointPath {
        match endpoint {
            Endpoint::Document => &self.document,
            Endpoint::Start => &self.start,
            Endpoint::Callback => &self.callback,
            Endpoint::Disconnect => &self.disconnect,
        }
    }

    /// Which endpoint a request's path (without its query) is, byte for byte, and the path of the route that it would be
    /// of: what stands before the endpoint's own.
    pub fn find<'a>(&self, path: &'a str) -> Option<(&'a str, Endpoint)> {
        Endpoint::ALL.into_iter().find_map(|endpoint| Some((path.strip_suffix(self.of(endpoint).as_str())?, endpoint)))
    }

    /// The path of a route's endpoint on the route's origin.
    pub fn on(&self, from: &PublicUrl, endpoint: Endpoint) -> String {
        [from.path(), self.of(endpoint).as_str()].concat()
    }

    /// The URL of a route's endpoint.
    pub fn url(&self, from: &PublicUrl, endpoint: Endpoint) -> String {
        [from.as_str(), self.of(endpoint).as_str()].concat()
    }

    /// The URL of the document, which is the route's `client_id`.
    pub fn client_id(&self, from: &PublicUrl) -> ClientId {
        ClientId::new(self.url(from, Endpoint::Document))
    }

    /// The route's redirect URI.
    pub fn redirect_uri(&self, from: &PublicUrl) -> RedirectUri {
        RedirectUri::new(self.url(from, Endpoint::Callback))
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
        for (found, of, endpoint) in [
            ("/client.json", "", Endpoint::Document),
            ("/oauth/callback", "", Endpoint::Callback),
            ("/linear/oauth/start", "/linear", Endpoint::Start),
            ("/a/b/oauth/disconnect", "/a/b", Endpoint::Disconnect),
            // The path of no route, which is for who looks for one to find out.
            ("/x/../client.json", "/x/..", Endpoint::Document),
        ] {
            assert_eq!(paths.find(found), Some((of, endpoint)), "{found}");
        }
        for other in ["/client.json/", "/client%2Ejson", "/Client.json", "/xclient.json", "/linear", ""] {
            assert_eq!(paths.find(other), None, "{other}");
        }
        let linear: PublicUrl = "https://mcp.example.com/linear".parse().expect("a URL");
        assert_eq!(paths.on(&linear, Endpoint::Start), "/linear/oauth/start");
        assert_eq!(paths.client_id(&linear).as_str(), "https://mcp.example.com/linear/client.json");
        assert_eq!(paths.redirect_uri(&linear).as_str(), "https://mcp.example.com/linear/oauth/callback");
        assert!(Paths::new(path("/a"), path("/a")).is_err());
        assert!(Paths::new(path("/a"), path("/start")).is_err());
        assert!(Paths::new(path("/o/start"), path("/o/callback")).is_err());
        assert!(Paths::new(path("/o/disconnect"), path("/o/callback")).is_err());
        assert!(Paths::new(path("/o/callback"), path("/callback")).is_err());
    }
}
