//! The routes of the config file, found by a request's authority and path.

use std::{collections::HashMap, sync::Arc};

use super::{
    origin::{DEFAULT_PORT, Origin},
    paths::{Endpoint, Paths},
    public_url::PublicUrl,
    route::{Key, Route, RouteError, RouteSpec},
};

/// The routes of the config file.
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
