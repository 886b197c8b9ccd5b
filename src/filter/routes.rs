//! Which route a request is of: three sources, of which the first that gives `from` is taken whole.

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::{
    recent::Recent,
    request::{Request, Sources},
    route_book::{RouteBook, Source},
};
use crate::model::{
    route::{Key, Route, RouteError, RouteMetadata},
    route_table::RouteTable,
};

/// Where routes come from.
#[derive(Debug)]
pub struct Routes {
    /// The routes that came with requests lately.
    recent: Recent<Route>,
    /// The config file's routes, the newest good ones.
    pub table: ArcSwap<RouteTable>,
    /// Whether the dynamic metadata of a request may name its route.
    dynamic_metadata: bool,
    /// Those that requests brought.
    pub book: RouteBook,
}

impl Routes {
    pub fn new(table: RouteTable, dynamic_metadata: bool) -> Self {
        Self {
            recent: Recent::default(),
            table: ArcSwap::from_pointee(table),
            dynamic_metadata,
            book: RouteBook::default(),
        }
    }

    /// The JSON text that says which there are.
    pub fn list(&self) -> String {
        self.book.list(&self.table.load())
    }

    /// The route of a path of ours under `path`; none where no route has that path.
    pub fn of_endpoint(
        &self,
        request: &Request<'_>,
        sources: &Sources<'_>,
        path: &str,
    ) -> Option<Result<Arc<Route>, RouteError>> {
        // A route that is misconfigured answers for itself, since nobody knows what its path should be.
        let has_path = |route: &Result<Arc<Route>, _>| route.as_ref().map_or(true, |route| route.from.path() == path);
        if let Some(route) = self.of_attributes(sources) {
            return Some(route).filter(has_path);
        }
        let table = self.table.load();
        let host = table.host(request.authority());
        if let Some(route) = host.and_then(|host| host.at(path)) {
            return Some(Ok(Arc::clone(route)));
        }
        if let Some(route) = self.of_dynamic_metadata(sources) {
            return Some(route).filter(has_path);
        }
        // Where nobody knows the host, Envoy was told to ask us and not of what: no reason to let a code pass.
        host.is_none().then_some(Err(RouteError::NoFrom))
    }

    /// The route of an MCP request. Envoy knows which one it is; the config file's routes are told apart by their
    /// paths.
    ///
    /// # Errors
    /// Where no source gives one, or it cannot be served.
    pub fn of_mcp(&self, request: &Request<'_>, sources: &Sources<'_>) -> Result<Arc<Route>, RouteError> {
        if let Some(route) = self.of_attributes(sources) {
            return route;
        }
        let (path, _) = request.path_and_query();
        if let Some(route) = self.table.load().host(request.authority()).and_then(|host| host.covering(path)) {
            return Ok(Arc::clone(route));
        }
        self.of_dynamic_metadata(sources).unwrap_or(Err(RouteError::NoFrom))
    }

    fn of_attributes(&self, sources: &Sources<'_>) -> Option<Result<Arc<Route>, RouteError>> {
        let metadata = &sources.attributes;
        gives_from(metadata).then(|| {
            let make = || self.noted(Source::Attributes, metadata);
            self.recent.get(metadata, |route| route.is_of(metadata), make)
        })
    }

    fn of_dynamic_metadata(&self, sources: &Sources<'_>) -> Option<Result<Arc<Route>, RouteError>> {
        let metadata = &sources.dynamic_metadata;
        (self.dynamic_metadata && gives_from(metadata))
            .then(|| self.noted(Source::DynamicMetadata, metadata).map(Arc::new))
    }

    /// A route that is made now.
    fn noted(&self, source: Source, metadata: &RouteMetadata<'_>) -> Result<Route, RouteError> {
        let route = Route::new(metadata);
        self.book.note(source, metadata, route.as_ref());
        route
    }
}

fn gives_from(metadata: &RouteMetadata<'_>) -> bool {
    metadata.get(Key::From).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        paths::Paths,
        route::{Field, Keyed, RouteSpec},
    };

    fn table(froms: &[&str]) -> RouteTable {
        let specs: Vec<RouteSpec> = froms
            .iter()
            .map(|from| {
                let mut spec = RouteSpec::default();
                spec.set("from", (*from).to_owned()).expect("a key");
                spec
            })
            .collect();
        RouteTable::new(&specs, &Paths::default()).expect("good routes")
    }

    fn of<'a>(from: &'a str) -> RouteMetadata<'a> {
        Keyed::new(|key| (key == Key::From).then_some(Field::Text(from)))
    }

    #[test]
    fn an_mcp_request_is_of_the_longest_path() {
        let routes = Routes::new(
            table(&[
                "https://a.example",
                "https://a.example/linear",
                "https://a.example/linear/eu",
                "https://b.example/linear",
            ]),
            false,
        );
        for (authority, path, from) in [
            ("a.example", "/linear", Some("https://a.example/linear")),
            ("a.example", "/linear?x=/linear/eu", Some("https://a.example/linear")),
            ("a.example", "/linear/", Some("https://a.example/linear")),
            ("a.example", "/linear/mcp/more", Some("https://a.example/linear")),
            ("a.example", "/linear/eu/mcp", Some("https://a.example/linear/eu")),
            ("a.example", "/linear/europe", Some("https://a.example/linear")),
            ("A.example:443", "/linear/europe", Some("https://a.example/linear")),
            // No whole segment, another spelling, or no path at all: the route at the root.
            ("a.example", "/linear-evil/mcp", Some("https://a.example")),
            ("a.example", "/Linear", Some("https://a.example")),
            ("a.example", "/%6Cinear", Some("https://a.example")),
            ("a.example", "//linear", Some("https://a.example")),
            ("a.example", "", Some("https://a.example")),
            ("a.example", "*", None),
            ("b.example", "/linear/x", Some("https://b.example/linear")),
            ("b.example", "/", None),
            ("b.example", "/x/linear", None),
            ("c.example", "/linear", None),
        ] {
            let mut request = Request::default();
            request.push(b":authority", authority.as_bytes());
            request.push(b":path", path.as_bytes());
            let found = routes.of_mcp(&request, &Sources::default());
            let expected = from.ok_or(RouteError::NoFrom);
            assert_eq!(
                found.as_ref().map(|route| route.from.as_str()),
                expected.as_ref().copied(),
                "{authority}{path}"
            );
        }
    }

    #[test]
    fn the_first_source_that_gives_from_is_taken_whole() {
        let mut request = Request::default();
        request.push(b":authority", b"a.example");
        request.push(b":path", b"/mcp");
        let found = |table: RouteTable, dynamic: bool, sources: &Sources<'_>| {
            Routes::new(table, dynamic).of_mcp(&request, sources).map(|route| route.from.as_str().to_owned())
        };
        let file = || table(&["https://a.example"]);
        let metadata = |attributes, dynamic_metadata| Sources { attributes, dynamic_metadata, ..Sources::default() };
        let (none, one, other) = (RouteMetadata::default(), of("https://one.example"), of("https://other.example"));
        let is = |from: &str| Ok(from.to_owned());
        assert_eq!(found(file(), true, &metadata(one, other)), is("https://one.example"));
        assert_eq!(found(file(), true, &metadata(none, other)), is("https://a.example"));
        assert_eq!(found(RouteTable::default(), true, &metadata(none, other)), is("https://other.example"));
        assert_eq!(found(RouteTable::default(), false, &metadata(none, other)), Err(RouteError::NoFrom));
        // A bad one is not passed over for the next source.
        let bad = Keyed::new(|key| (key == Key::From).then_some(Field::NotText));
        assert_eq!(found(file(), true, &metadata(bad, other)), Err(RouteError::NotText("from")));
    }
}
