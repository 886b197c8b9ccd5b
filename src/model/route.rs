//! A route: what an operator says of it, checked once, and the URLs that follow from it.

use std::{collections::HashMap, sync::Arc};

use serde::Deserialize;
use url::Url;

use crate::model::origin::{Origin, OriginError};

/// The metadata namespace that a route's keys live in.
pub const NAMESPACE: &str = "envoy_cimd";

/// The keys of [`NAMESPACE`], in the order of [`Fields`].
pub const KEYS: [&str; 5] = ["from", "to", "route_id", "client_name", "authorization_server"];

/// What one source says of a route, unchecked, in the order of [`KEYS`].
#[derive(Clone, Copy, Debug, Default, Hash, PartialEq)]
pub struct Fields<'a>(pub [Option<Field<'a>>; KEYS.len()]);

/// The value of one key of a route.
#[derive(Clone, Copy, Debug, Hash, PartialEq)]
pub enum Field<'a> {
    Text(&'a str),
    /// A number, list or the like, which no key takes.
    NotText,
}

/// A route that can be served.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    pub origin: Origin,
    /// A label for logs; the authority of `from` unless the operator gave one.
    pub id: String,
    pub client_name: Option<String>,
    to: Option<String>,
    authorization_server: Option<String>,
}

/// Why a route cannot be served. The message is for operators.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RouteError {
    #[error("no source gives `from`: Envoy sends the metadata of the route that has our path, and of its virtual host")]
    NoFrom,
    #[error("`{0}` must be a text")]
    NotText(&'static str),
    #[error("`{0}` is empty")]
    Empty(&'static str),
    #[error("`from` {0}")]
    From(#[from] OriginError),
    #[error("`{key}` {problem}")]
    Url { key: &'static str, problem: &'static str },
    #[error("the document would take {0} bytes, more than authorization servers accept ({max})", max = crate::filter::document::MAX_BYTES)]
    DocumentTooLarge(usize),
}

impl Route {
    /// Checks what a source says. `to` and `authorization_server` are looked at when they are needed, so that a
    /// mistake in them does not take the document away.
    ///
    /// # Errors
    /// The first key that cannot be served, in the order of [`KEYS`].
    pub fn new(fields: &Fields<'_>) -> Result<Self, RouteError> {
        let mut texts = [None; KEYS.len()];
        for ((text, field), key) in texts.iter_mut().zip(fields.0).zip(KEYS) {
            *text = match field {
                None => None,
                Some(Field::Text("")) => return Err(RouteError::Empty(key)),
                Some(Field::Text(text)) => Some(text),
                Some(Field::NotText) => return Err(RouteError::NotText(key)),
            };
        }
        let [from, to, id, client_name, authorization_server] = texts;
        let origin: Origin = from.ok_or(RouteError::NoFrom)?.parse()?;
        Ok(Self {
            id: id.unwrap_or(origin.authority()).to_owned(),
            client_name: client_name.map(str::to_owned),
            to: to.map(str::to_owned),
            authorization_server: authorization_server.map(str::to_owned),
            origin,
        })
    }

    /// Whether this is what a source says, in the one spelling of `from`.
    pub fn is_of(&self, fields: &Fields<'_>) -> bool {
        let Fields([from, to, id, client_name, authorization_server]) = fields;
        let is = |field: &Option<Field<'_>>, text: Option<&str>| *field == text.map(Field::Text);
        is(from, Some(self.origin.as_str()))
            && (is(id, Some(&self.id)) || id.is_none() && self.id == self.origin.authority())
            && is(to, self.to.as_deref())
            && is(client_name, self.client_name.as_deref())
            && is(authorization_server, self.authorization_server.as_deref())
    }

    /// The upstream MCP server's URL, in the operator's spelling.
    ///
    /// # Errors
    /// Where it is missing, or no http or https URL with a host and without userinfo or fragment.
    pub fn upstream(&self) -> Result<&str, RouteError> {
        let error = |problem| RouteError::Url { key: "to", problem };
        let to = self.to.as_deref().ok_or(error("is missing"))?;
        // It is shown to people, and sent to the authorization server as the `resource`: no place for an API key.
        match http_url(to).map_err(error)?.query() {
            Some(_) => Err(error("must not have a query")),
            None => Ok(to),
        }
    }

    /// The issuer that the operator pins, if any. RFC 8414, section 2: https, no query, no fragment.
    ///
    /// # Errors
    /// Where it is no such URL.
    pub fn pinned_issuer(&self) -> Result<Option<&str>, RouteError> {
        let Some(issuer) = self.authorization_server.as_deref() else {
            return Ok(None);
        };
        let error = |problem| RouteError::Url { key: "authorization_server", problem };
        let url = http_url(issuer).map_err(error)?;
        if url.query().is_some() {
            return Err(error("must not have a query"));
        }
        Ok(Some(issuer))
    }

    /// Checks all that is otherwise looked at late, for a file that an operator wrote.
    ///
    /// # Errors
    /// As [`Self::upstream`] (a missing `to` is none) and [`Self::pinned_issuer`].
    pub fn check(&self) -> Result<(), RouteError> {
        if self.to.is_some() {
            self.upstream()?;
        }
        self.pinned_issuer().map(drop)
    }
}

fn http_url(text: &str) -> Result<Url, &'static str> {
    let url = Url::parse(text).map_err(|_| "is not a URL")?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err("must be an http or https URL");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not have a user name or password");
    }
    if url.fragment().is_some() {
        return Err("must not have a fragment");
    }
    Ok(url)
}

/// A route as an operator writes it, in the `routes:` list or with `--route`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct RouteSpec {
    pub from: Option<String>,
    pub to: Option<String>,
    pub route_id: Option<String>,
    pub client_name: Option<String>,
    pub authorization_server: Option<String>,
}

impl RouteSpec {
    /// # Errors
    /// As [`Route::new`] and [`Route::check`].
    pub fn route(&self) -> Result<Route, RouteError> {
        let texts = [&self.from, &self.to, &self.route_id, &self.client_name, &self.authorization_server];
        let route = Route::new(&Fields(texts.map(|text| text.as_deref().map(Field::Text))))?;
        route.check()?;
        Ok(route)
    }
}

/// The routes of the config file, found by a request's authority.
#[derive(Debug, Default)]
pub struct RouteTable {
    by_authority: HashMap<String, Arc<Route>>,
}

/// A `routes:` entry that cannot be used.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum RouteTableError {
    #[error("routes[{index}] ({from}): {error}")]
    Route { index: usize, from: String, error: RouteError },
    #[error("routes[{index}]: {from} is there twice")]
    Twice { index: usize, from: Origin },
}

impl RouteTable {
    /// # Errors
    /// The first entry that is wrong, or that names the origin of an earlier one.
    pub fn new(specs: &[RouteSpec]) -> Result<Self, RouteTableError> {
        let mut by_authority = HashMap::new();
        for (index, spec) in specs.iter().enumerate() {
            let route = spec.route().map_err(|error| RouteTableError::Route {
                index,
                // A text with an @ may hold a password.
                from: match &spec.from {
                    Some(from) if from.contains('@') => "a `from` with a user name".to_owned(),
                    Some(from) => from.clone(),
                    None => "no `from`".to_owned(),
                },
                error,
            })?;
            let route = Arc::new(route);
            let (host, port) = (route.origin.host(), route.origin.port());
            if by_authority.insert(format!("{host}:{port}"), Arc::clone(&route)).is_some() {
                return Err(RouteTableError::Twice { index, from: route.origin.clone() });
            }
            // Where one host has several ports, a request that names no port means the first of them.
            by_authority.entry(host.to_owned()).or_insert(route);
        }
        Ok(Self { by_authority })
    }

    /// The route of an authority; one with a port that no route has finds the host's, which then refuses it as
    /// misdirected.
    pub fn find(&self, authority: &str) -> Option<&Arc<Route>> {
        let authority = authority.to_ascii_lowercase();
        self.by_authority.get(&authority).or_else(|| self.by_authority.get(authority.rsplit_once(':')?.0))
    }
}

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
    pub fn client_id(&self, origin: &Origin) -> String {
        [origin.as_str(), &self.document.0].concat()
    }

    /// The route's redirect URI.
    pub fn redirect_uri(&self, origin: &Origin) -> String {
        [origin.as_str(), &self.callback.0].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(from: &str) -> RouteSpec {
        RouteSpec { from: Some(from.to_owned()), ..RouteSpec::default() }
    }

    #[test]
    fn a_route_says_what_is_wrong_with_it() {
        let text = |text| Some(Field::Text(text));
        for (fields, error) in [
            (
                [None; 5],
                "no source gives `from`: Envoy sends the metadata of the route that has our path, and of its virtual host",
            ),
            ([Some(Field::NotText), None, None, None, None], "`from` must be a text"),
            ([text(""), None, None, None, None], "`from` is empty"),
            ([text("http://a.example"), None, None, None, None], "`from` must be https"),
            ([text("https://a.example"), None, None, text(""), None], "`client_name` is empty"),
            ([text("https://a.example"), Some(Field::NotText), None, None, None], "`to` must be a text"),
        ] {
            let error_of = Route::new(&Fields(fields)).expect_err(error);
            assert_eq!(error_of.to_string(), error);
        }
    }

    #[test]
    fn a_route_knows_what_it_was_made_of() {
        let text = |text| Some(Field::Text(text));
        let fields =
            [text("https://a.example"), text("https://b.example"), text("id"), text("name"), text("https://c.example")];
        let route = Route::new(&Fields(fields)).expect("a good route");
        assert!(route.is_of(&Fields(fields)));
        for changed in 0..fields.len() {
            for other in [None, text("https://d.example"), Some(Field::NotText)] {
                let mut fields = fields;
                fields[changed] = other;
                assert!(!route.is_of(&Fields(fields)), "{fields:?}");
            }
        }
        let bare = Fields([text("https://a.example"), None, None, None, None]);
        assert!(Route::new(&bare).expect("a good route").is_of(&bare));
        assert!(!Route::new(&bare).expect("a good route").is_of(&Fields(fields)));
        // Another spelling is made anew each time.
        let other = Fields([text("https://A.example"), None, None, None, None]);
        assert!(!Route::new(&other).expect("a good route").is_of(&other));
    }

    #[test]
    fn a_file_is_checked_whole() {
        for (change, error) in [
            (
                RouteSpec { to: Some("ftp://b.example".into()), ..spec("https://a.example") },
                "`to` must be an http or https URL",
            ),
            (
                RouteSpec { to: Some("https://u:p@b.example".into()), ..spec("https://a.example") },
                "`to` must not have a user name or password",
            ),
            (
                RouteSpec { to: Some("https://u@b.example".into()), ..spec("https://a.example") },
                "`to` must not have a user name or password",
            ),
            (
                RouteSpec { to: Some("https://:p@b.example".into()), ..spec("https://a.example") },
                "`to` must not have a user name or password",
            ),
            (
                RouteSpec { to: Some("https://b.example/#x".into()), ..spec("https://a.example") },
                "`to` must not have a fragment",
            ),
            (
                RouteSpec { authorization_server: Some("https://b.example/?x".into()), ..spec("https://a.example") },
                "`authorization_server` must not have a query",
            ),
        ] {
            let table = RouteTable::new(&[change]).expect_err(error);
            assert_eq!(table.to_string(), format!("routes[0] (https://a.example): {error}"));
        }
        let twice = RouteTable::new(&[spec("https://a.example"), spec("https://A.example:443/")]);
        assert_eq!(twice.expect_err("twice").to_string(), "routes[1]: https://a.example is there twice");
    }

    #[test]
    fn the_table_is_searched_by_authority() {
        let table =
            RouteTable::new(&[spec("https://a.example:8443"), spec("https://a.example"), spec("https://b.example")])
                .expect("good routes");
        for (authority, found) in [
            ("a.example", Some("https://a.example:8443")),
            ("A.example:8443", Some("https://a.example:8443")),
            ("a.example:443", Some("https://a.example")),
            ("b.example:9", Some("https://b.example")),
            ("c.example", None),
            ("", None),
        ] {
            assert_eq!(table.find(authority).map(|route| route.origin.as_str()), found, "{authority}");
        }
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
