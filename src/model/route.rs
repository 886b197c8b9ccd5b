//! A route: what an operator says of it, checked once.

use std::{collections::HashMap, fmt, str::FromStr, sync::Arc};

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, Visitor},
};
use url::Url;

use super::{
    origin::{DEFAULT_PORT, Origin},
    paths::{Endpoint, Paths},
    prompt::Prompt,
    public_url::{PublicUrl, PublicUrlError},
    resource::ResourceIndicator,
    scope::Scope,
};

/// The metadata namespace that a route's keys live in.
pub const NAMESPACE: &str = "envoy_cimd";

macro_rules! keys {
    ($($(#[$meta:meta])* $key:ident = $name:literal,)*) => {
        /// A key of [`NAMESPACE`]. This list is the only one: what sources say, the config file and `--route` follow it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Key {
            $($(#[$meta])* $key,)*
        }

        impl Key {
            pub const ALL: [Self; Self::NAMES.len()] = [$(Self::$key),*];
            /// In the order of [`Self::ALL`].
            pub const NAMES: [&str; [$($name),*].len()] = [$($name),*];

            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$key => $name,)*
                }
            }

            fn named(name: &str) -> Option<Self> {
                Self::ALL.into_iter().find(|key| key.name() == name)
            }
        }
    };
}

keys! {
    /// The route's public URL; required.
    From = "from",
    /// The URL of the upstream MCP server; needed to connect.
    To = "to",
    /// A label for logs.
    RouteId = "route_id",
    ClientName = "client_name",
    /// The issuer that the operator pins.
    AuthorizationServer = "authorization_server",
    /// What the upstream calls itself (RFC 8707), where that is another URL than `to`.
    Resource = "resource",
    /// What to ask for, in place of what the upstream says.
    Scope = "scope",
    /// The `prompt` of authorization requests.
    Prompt = "prompt",
}

/// Something for each [`Key`].
#[derive(Clone, Copy, Debug, Default, Hash, PartialEq)]
pub struct Keyed<T>([T; Key::ALL.len()]);

impl<T> Keyed<T> {
    pub fn new(value: impl FnMut(Key) -> T) -> Self {
        Self(Key::ALL.map(value))
    }

    pub fn get(&self, key: Key) -> &T {
        // `Key::ALL` is in the order of the variants, so each key has its place.
        &self.0[key as usize]
    }

    pub fn get_mut(&mut self, key: Key) -> &mut T {
        &mut self.0[key as usize]
    }

    pub fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        Key::ALL.into_iter().zip(&self.0)
    }
}

/// What one source says of a route, unchecked.
pub type RouteMetadata<'a> = Keyed<Option<Field<'a>>>;

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
    pub from: PublicUrl,
    /// A label for logs; authority and path of `from` unless the operator gave one.
    pub id: String,
    /// What the operator wrote, none of it empty; `from` in its one spelling.
    texts: Keyed<Option<String>>,
}

/// The largest document that is served, in bytes: the draft, section 6.6, names 5 kB as what servers read.
pub const MAX_DOCUMENT_BYTES: usize = 5000;

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
    From(#[from] PublicUrlError),
    #[error("`{key}` {problem}")]
    Value { key: &'static str, problem: &'static str },
    #[error("the document would take {0} bytes, more than authorization servers accept ({max})", max = MAX_DOCUMENT_BYTES)]
    DocumentTooLarge(usize),
}

impl Route {
    /// Checks what a source says. What only connecting needs is looked at when it is needed, so that a mistake in it does
    /// not take the document away.
    ///
    /// # Errors
    /// The first key that cannot be served, in the order of [`Key::ALL`].
    pub fn new(metadata: &RouteMetadata<'_>) -> Result<Self, RouteError> {
        let mut texts = Keyed::<Option<String>>::default();
        let mut from = None;
        for (key, field) in metadata.iter() {
            match field {
                None => {}
                Some(Field::Text("")) => return Err(RouteError::Empty(key.name())),
                Some(Field::NotText) => return Err(RouteError::NotText(key.name())),
                // Parsed last, so that a key of the wrong kind is named whatever `from` is.
                Some(Field::Text(text)) if key == Key::From => from = Some(*text),
                Some(Field::Text(text)) => *texts.get_mut(key) = Some((*text).to_owned()),
            }
        }
        let from: PublicUrl = from.ok_or(RouteError::NoFrom)?.parse()?;
        *texts.get_mut(Key::From) = Some(from.as_str().to_owned());
        let id = texts.get(Key::RouteId).clone().unwrap_or_else(|| from.label().to_owned());
        Ok(Self { from, id, texts })
    }

    /// Whether this is what a source says, in the one spelling of `from`.
    pub fn is_of(&self, metadata: &RouteMetadata<'_>) -> bool {
        self.texts.iter().all(|(key, text)| *metadata.get(key) == text.as_deref().map(Field::Text))
    }

    /// The client's name, where the operator gives one.
    pub fn client_name(&self) -> Option<&str> {
        self.text(Key::ClientName)
    }

    fn text(&self, key: Key) -> Option<&str> {
        self.texts.get(key).as_deref()
    }

    /// The upstream MCP server's URL, in the operator's spelling.
    ///
    /// # Errors
    /// Where it is missing, or no http or https URL with a host and without userinfo or fragment.
    pub fn upstream(&self) -> Result<&str, RouteError> {
        let error = |problem| RouteError::Value { key: Key::To.name(), problem };
        let to = self.text(Key::To).ok_or(error("is missing"))?;
        // It is shown to people, and sent to the authorization server as the `resource`: no place for an API key.
        match http_url(to).map_err(error)?.query() {
            Some(_) => Err(error("must not have a query")),
            None => Ok(to),
        }
    }

    /// The path of the route's MCP address on its origin: that of `from`, or of `to` where `from` has none. None where
    /// `to` gives none.
    pub fn mcp_path(&self) -> Option<String> {
        match self.from.path() {
            "" => Some(Url::parse(self.upstream().ok()?).ok()?.path().to_owned()),
            path => Some(path.to_owned()),
        }
    }

    /// The issuer that the operator pins, if any. RFC 8414, section 2: https, no query, no fragment.
    ///
    /// # Errors
    /// Where it is no such URL.
    pub fn pinned_issuer(&self) -> Result<Option<&str>, RouteError> {
        let Some(issuer) = self.text(Key::AuthorizationServer) else {
            return Ok(None);
        };
        let error = |problem| RouteError::Value { key: Key::AuthorizationServer.name(), problem };
        let url = http_url(issuer).map_err(error)?;
        if url.query().is_some() {
            return Err(error("must not have a query"));
        }
        Ok(Some(issuer))
    }

    /// What the upstream calls itself, where the operator says so.
    ///
    /// # Errors
    /// Where it is no resource indicator.
    pub fn resource(&self) -> Result<Option<ResourceIndicator>, RouteError> {
        self.parsed(Key::Resource)
    }

    /// What to ask for, where the operator says so.
    ///
    /// # Errors
    /// Where it is no scope.
    pub fn scope(&self) -> Result<Option<Scope>, RouteError> {
        self.parsed(Key::Scope)
    }

    /// What the operator says of the `prompt` of authorization requests.
    ///
    /// # Errors
    /// Where it is no prompt that is sent, nor that none is.
    pub fn prompt(&self) -> Result<Option<Prompt>, RouteError> {
        self.parsed(Key::Prompt)
    }

    fn parsed<T: FromStr<Err = &'static str>>(&self, key: Key) -> Result<Option<T>, RouteError> {
        let error = |problem| RouteError::Value { key: key.name(), problem };
        self.text(key).map(|text| text.parse().map_err(error)).transpose()
    }

    /// Checks all that is otherwise looked at late, for a file that an operator wrote.
    ///
    /// # Errors
    /// The first key that is wrong; a missing `to` is not.
    pub fn check(&self) -> Result<(), RouteError> {
        if self.text(Key::To).is_some() {
            self.upstream()?;
        }
        self.pinned_issuer()?;
        self.resource()?;
        self.scope()?;
        self.prompt().map(drop)
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
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RouteSpec(Keyed<Option<String>>);

impl RouteSpec {
    pub fn get(&self, key: Key) -> Option<&str> {
        self.0.get(key).as_deref()
    }

    /// Sets a key by its name.
    ///
    /// # Errors
    /// Where there is no such key, or it is set already.
    pub fn set(&mut self, name: &str, value: String) -> Result<(), RouteSpecError> {
        let key = Key::named(name).ok_or_else(|| RouteSpecError::Unknown(name.to_owned()))?;
        match self.0.get_mut(key).replace(value) {
            None => Ok(()),
            Some(_) => Err(RouteSpecError::Twice(key.name())),
        }
    }

    /// # Errors
    /// As [`Route::new`] and [`Route::check`].
    pub fn route(&self) -> Result<Route, RouteError> {
        let route = Route::new(&Keyed::new(|key| self.get(key).map(Field::Text)))?;
        route.check()?;
        Ok(route)
    }
}

/// A key that cannot be set.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum RouteSpecError {
    #[error("there is no key `{0}`")]
    Unknown(String),
    #[error("`{0}` is there twice")]
    Twice(&'static str),
}

impl<'de> Deserialize<'de> for RouteSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(SpecVisitor)
    }
}

struct SpecVisitor;

impl<'de> Visitor<'de> for SpecVisitor {
    type Value = RouteSpec;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the keys of a route")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RouteSpec, A::Error> {
        let mut spec = RouteSpec::default();
        while let Some(name) = map.next_key::<String>()? {
            let key = Key::named(&name).ok_or_else(|| A::Error::unknown_field(&name, &Key::NAMES))?;
            let slot = spec.0.get_mut(key);
            if slot.is_some() {
                return Err(A::Error::duplicate_field(key.name()));
            }
            *slot = map.next_value()?;
        }
        Ok(spec)
    }
}

/// The routes of the config file, found by a request's authority and path.
#[derive(Debug, Default)]
pub struct RouteTable {
    /// By `host:port`; and by `host`, for requests that name no port, or one that no route has.
    hosts: HashMap<String, Arc<HostRoutes>>,
}

/// The routes of one host and port, by the path of their `from`.
#[derive(Debug, Default)]
pub struct HostRoutes(HashMap<String, Arc<Route>>);

/// A `routes:` entry that cannot be used.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum RouteTableError {
    #[error("routes[{index}] ({from}): {error}")]
    Route { index: usize, from: String, error: RouteError },
    #[error("routes[{index}]: {from} is there twice")]
    Twice { index: usize, from: PublicUrl },
    #[error("routes[{index}] ({from}): {path} would be an address of routes[{other}] too")]
    Meets { index: usize, from: PublicUrl, path: String, other: usize },
}

impl RouteTable {
    /// # Errors
    /// The first entry that is wrong, has the `from` of an earlier one, or shares an address with one: an MCP address, or
    /// a path of ours.
    pub fn new(specs: &[RouteSpec], paths: &Paths) -> Result<Self, RouteTableError> {
        let mut by_origin: HashMap<String, HostRoutes> = HashMap::new();
        let mut default_ports: HashMap<String, u16> = HashMap::new();
        // Which entry has an address, by origin and path.
        let mut addresses: HashMap<String, usize> = HashMap::new();
        for (index, spec) in specs.iter().enumerate() {
            let route = spec.route().map_err(|error| RouteTableError::Route {
                index,
                // A text with an @ may hold a password.
                from: match spec.get(Key::From) {
                    Some(from) if from.contains('@') => "a `from` with a user name".to_owned(),
                    Some(from) => from.to_owned(),
                    None => "no `from`".to_owned(),
                },
                error,
            })?;
            let route = Arc::new(route);
            let (from, origin) = (&route.from, route.from.origin());
            let routes = by_origin.entry(format!("{}:{}", origin.host(), origin.port())).or_default();
            if routes.0.insert(from.path().to_owned(), Arc::clone(&route)).is_some() {
                return Err(RouteTableError::Twice { index, from: from.clone() });
            }
            let ours = Endpoint::ALL.into_iter().map(|endpoint| paths.on(from, endpoint));
            for path in ours.chain(route.mcp_path()) {
                if let Some(other) = addresses.insert(format!("{origin}{path}"), index).filter(|other| *other != index)
                {
                    return Err(RouteTableError::Meets { index, from: from.clone(), path, other });
                }
            }
            // What names no port means port 443, or where that has no route, the first that has one.
            let default = default_ports.entry(origin.host().to_owned()).or_insert(origin.port());
            if origin.port() == DEFAULT_PORT {
                *default = DEFAULT_PORT;
            }
        }
        let mut hosts: HashMap<String, Arc<HostRoutes>> =
            by_origin.into_iter().map(|(authority, routes)| (authority, Arc::new(routes))).collect();
        for (host, port) in default_ports {
            if let Some(routes) = hosts.get(&format!("{host}:{port}")).cloned() {
                hosts.insert(host, routes);
            }
        }
        Ok(Self { hosts })
    }

    /// All of them, some perhaps twice.
    pub fn routes(&self) -> impl Iterator<Item = &Route> {
        self.hosts.values().flat_map(|host| host.0.values()).map(Arc::as_ref)
    }

    /// Whether a request that names this origin's host and no port means this origin.
    pub fn is_default(&self, origin: &Origin) -> bool {
        let [by_host, by_origin] =
            [origin.host(), &format!("{}:{}", origin.host(), origin.port())].map(|authority| self.hosts.get(authority));
        by_host.zip(by_origin).is_some_and(|(by_host, by_origin)| Arc::ptr_eq(by_host, by_origin))
    }

    /// The routes of an authority; one with a port that no route has finds those of the host, which then refuse it as
    /// misdirected.
    pub fn host(&self, authority: &str) -> Option<&HostRoutes> {
        let authority = authority.to_ascii_lowercase();
        let found = self.hosts.get(&authority).or_else(|| self.hosts.get(authority.rsplit_once(':')?.0));
        found.map(Arc::as_ref)
    }
}

impl HostRoutes {
    /// The route whose `from` has this path.
    pub fn at(&self, path: &str) -> Option<&Arc<Route>> {
        self.0.get(path)
    }

    /// The route of a request with this path: the longest `from` whose path it is, or begins with, by whole segments.
    pub fn covering(&self, path: &str) -> Option<&Arc<Route>> {
        let mut path = path;
        loop {
            if let Some(route) = self.at(path) {
                return Some(route);
            }
            path = path.rsplit_once('/')?.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(from: &str) -> RouteSpec {
        with(RouteSpec::default(), Key::From, from)
    }

    fn with(mut spec: RouteSpec, key: Key, value: &str) -> RouteSpec {
        spec.set(key.name(), value.to_owned()).expect("a key");
        spec
    }

    #[test]
    fn a_route_says_what_is_wrong_with_it() {
        let text = |text| Some(Field::Text(text));
        let only_from = |from| Keyed::new(|key| Some(from).filter(|_| key == Key::From));
        for (metadata, error) in [
            (
                Keyed::default(),
                "no source gives `from`: Envoy sends the metadata of the route that has our path, and of its virtual host",
            ),
            (only_from(Field::NotText), "`from` must be a text"),
            (only_from(Field::Text("")), "`from` is empty"),
            (only_from(Field::Text("http://a.example")), "`from` must be https"),
        ] {
            let error_of = Route::new(&metadata).expect_err(error);
            assert_eq!(error_of.to_string(), error);
        }
        for key in Key::ALL {
            for (field, problem) in [(text(""), "is empty"), (Some(Field::NotText), "must be a text")] {
                let mut metadata = only_from(Field::Text("https://a.example"));
                *metadata.get_mut(key) = field;
                let error = format!("`{}` {problem}", key.name());
                assert_eq!(Route::new(&metadata).expect_err(&error).to_string(), error);
            }
        }
    }

    #[test]
    fn a_route_knows_what_it_was_made_of() {
        let text = |text| Some(Field::Text(text));
        let whole = Keyed::new(|key| match key {
            Key::From => text("https://a.example"),
            key => text(key.name()),
        });
        let route = Route::new(&whole).expect("a good route");
        assert!(route.is_of(&whole));
        for changed in Key::ALL {
            for other in [None, text("https://d.example"), Some(Field::NotText)] {
                let mut metadata = whole;
                *metadata.get_mut(changed) = other;
                assert!(!route.is_of(&metadata), "{metadata:?}");
            }
        }
        let only_from = |from| Keyed::new(|key| text(from).filter(|_| key == Key::From));
        let bare = only_from("https://a.example");
        assert!(Route::new(&bare).expect("a good route").is_of(&bare));
        assert!(!Route::new(&bare).expect("a good route").is_of(&whole));
        // Another spelling is made anew each time.
        let other = only_from("https://A.example");
        assert!(!Route::new(&other).expect("a good route").is_of(&other));
    }

    #[test]
    fn a_file_is_checked_whole() {
        for (change, error) in [
            (with(spec("https://a.example"), Key::To, "ftp://b.example"), "`to` must be an http or https URL"),
            (
                with(spec("https://a.example"), Key::To, "https://u:p@b.example"),
                "`to` must not have a user name or password",
            ),
            (
                with(spec("https://a.example"), Key::To, "https://u@b.example"),
                "`to` must not have a user name or password",
            ),
            (
                with(spec("https://a.example"), Key::To, "https://:p@b.example"),
                "`to` must not have a user name or password",
            ),
            (with(spec("https://a.example"), Key::To, "https://b.example/#x"), "`to` must not have a fragment"),
            (
                with(spec("https://a.example"), Key::AuthorizationServer, "https://b.example/?x"),
                "`authorization_server` must not have a query",
            ),
            (with(spec("https://a.example"), Key::Resource, "/mcp"), "`resource` is not an absolute URI"),
            (
                with(spec("https://a.example"), Key::Resource, "https://b.example/#x"),
                "`resource` must not have a fragment",
            ),
            (with(spec("https://a.example"), Key::Scope, " "), "`scope` names no scope"),
            (
                with(spec("https://a.example"), Key::Prompt, "ask"),
                "`prompt` must be `none`, or some of `login`, `consent` and `select_account` with a space between two",
            ),
        ] {
            let table = RouteTable::new(&[change], &Paths::default()).expect_err(error);
            assert_eq!(table.to_string(), format!("routes[0] (https://a.example): {error}"));
        }
        let refused = |specs: &[RouteSpec]| RouteTable::new(specs, &Paths::default()).expect_err("refused").to_string();
        for from in ["https://a.example", "https://a.example/linear"] {
            let twice = [spec(from), spec(&from.replace("https://a.example", "https://A.example:443"))];
            assert_eq!(refused(&twice), format!("routes[1]: {from} is there twice"));
        }
        let to = |from: &str, path: &str| with(spec(from), Key::To, &format!("https://b.example{path}"));
        for (one, other, path) in [
            (to("https://a.example", "/linear"), spec("https://a.example/linear"), "/linear"),
            (
                to("https://a.example", "/linear/.pomerium/oauth/callback"),
                spec("https://a.example/linear"),
                "/linear/.pomerium/oauth/callback",
            ),
            (
                spec("https://a.example/linear"),
                spec("https://a.example/linear/.pomerium/oauth/disconnect"),
                "/linear/.pomerium/oauth/disconnect",
            ),
            (spec("https://a.example"), spec("https://a.example/.pomerium/oauth/start"), "/.pomerium/oauth/start"),
        ] {
            for pair in [[one.clone(), other.clone()], [other, one]] {
                let from = pair[1].get(Key::From).expect("a `from`").to_owned();
                let error = format!("routes[1] ({from}): {path} would be an address of routes[0] too");
                assert_eq!(refused(&pair), error);
            }
        }
        let apart = [
            to("https://a.example", "/mcp"),
            to("https://a.example/linear", "/mcp"),
            to("https://a.example/linear/x", "/mcp"),
            to("https://a.example/Linear", "/mcp"),
            to("https://a.example:8443", "/linear"),
            to("https://b.example", "/linear"),
        ];
        assert!(RouteTable::new(&apart, &Paths::default()).is_ok());
    }

    #[test]
    fn the_table_is_searched_by_authority_and_path() {
        let specs = [
            "https://a.example:8443",
            "https://a.example",
            "https://a.example/linear",
            "https://b.example/linear",
            "https://c.example:9443",
            "https://c.example:8443",
            "https://[2001:db8::1]:8443",
            "https://[2001:db8::1]",
        ]
        .map(spec);
        let reversed: Vec<RouteSpec> = specs.iter().rev().cloned().collect();
        let found = |table: &RouteTable, authority: &str, path: &str| {
            table.host(authority).map(|host| host.at(path).map(|route| route.from.to_string()))
        };
        for specs in [&specs[..], &reversed] {
            let table = RouteTable::new(specs, &Paths::default()).expect("good routes");
            for (authority, path, expected) in [
                ("a.example", "", Some(Some("https://a.example"))),
                ("A.example:8443", "", Some(Some("https://a.example:8443"))),
                ("a.example:443", "", Some(Some("https://a.example"))),
                ("a.example", "/linear", Some(Some("https://a.example/linear"))),
                ("a.example:9", "/linear", Some(Some("https://a.example/linear"))),
                ("a.example", "/Linear", Some(None)),
                ("a.example:8443", "/linear", Some(None)),
                ("b.example:9", "/linear", Some(Some("https://b.example/linear"))),
                ("b.example", "", Some(None)),
                ("[2001:db8::1]", "", Some(Some("https://[2001:db8::1]"))),
                ("[2001:DB8::1]:443", "", Some(Some("https://[2001:db8::1]"))),
                ("[2001:db8::1]:8443", "", Some(Some("https://[2001:db8::1]:8443"))),
                ("[2001:db8::2]", "", None),
                ("d.example", "", None),
                ("", "", None),
            ] {
                let expected = expected.map(|route| route.map(str::to_owned));
                assert_eq!(found(&table, authority, path), expected, "{authority} {path}");
            }
            // Without port 443, the first one answers for whoever names no port.
            let first = specs.iter().filter_map(|spec| spec.get(Key::From)).find(|from| from.contains("c.example"));
            assert_eq!(found(&table, "c.example", ""), Some(first.map(str::to_owned)));
        }
    }
}
