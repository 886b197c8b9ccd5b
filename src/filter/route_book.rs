//! Which routes were seen, where each is from, and whether it can be served: for an operator who wonders what of their
//! configuration came through.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use serde::Serialize;

use crate::{
    model::{
        route::{Field, Key, Route, RouteError, RouteMetadata},
        route_table::RouteTable,
    },
    telemetry::throttle::Throttle,
};

/// How many routes are kept. Where dynamic metadata names them, there may be as many as requests.
const MOST: usize = 4096;
/// How many are listed at once.
const LISTED: usize = 1000;
/// How long a name may be that is not that of a good route, in characters.
const LONGEST_NAME: usize = 200;

/// Where a route is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The metadata of a route of Envoy's, or of its virtual host.
    Attributes,
    /// The config file.
    File,
    DynamicMetadata,
}

impl Source {
    fn name(self) -> &'static str {
        match self {
            Self::Attributes => "attributes",
            Self::File => "file",
            Self::DynamicMetadata => "dynamic_metadata",
        }
    }
}

/// What can be done with a route.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "state", content = "reason", rename_all = "snake_case")]
pub enum State {
    /// Its people can connect.
    Connects,
    /// It has no `to`: its document is served, and nothing else.
    DocumentOnly,
    /// What it says cannot be used, or not to connect. The reason has nothing of the value.
    Misconfigured(String),
}

impl State {
    /// That of a route which has a document.
    pub fn of(route: &Route) -> Self {
        match route.check() {
            Err(error) => Self::Misconfigured(error.to_string()),
            Ok(()) if route.upstream().is_err() => Self::DocumentOnly,
            Ok(()) => Self::Connects,
        }
    }

    /// In words.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Connects => "connects",
            Self::DocumentOnly => "document_only",
            Self::Misconfigured(_) => "misconfigured",
        }
    }
}

/// What is listed of a route: nothing of its upstream, whose path may be a secret.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Entry {
    route_id: String,
    #[serde(flatten)]
    state: State,
}

/// The routes that requests brought.
#[derive(Debug, Default)]
pub struct RouteBook(Mutex<Book>);

#[derive(Debug, Default)]
struct Book {
    /// By `from`, or what is there in its place.
    routes: BTreeMap<(Source, String), Entry>,
    is_full: bool,
    /// Of lines about routes that are another by now: dynamic metadata can have one change with every request.
    changes: Throttle,
}

impl RouteBook {
    /// Notes a route, with a line where it is new or another than before.
    pub fn note(&self, source: Source, metadata: &RouteMetadata<'_>, route: Result<&Route, &RouteError>) {
        let (from, entry) = match route {
            Ok(route) => {
                (route.from.as_str().to_owned(), Entry { route_id: route.id.clone(), state: State::of(route) })
            }
            Err(error) => {
                let from = name_of(metadata);
                (from.clone(), Entry { route_id: from, state: State::Misconfigured(error.to_string()) })
            }
        };
        let mut book = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Book { routes, is_full, changes } = &mut *book;
        let len = routes.len();
        let key = (source, from);
        match routes.get_mut(&key) {
            Some(known) if *known == entry => return,
            Some(known) => {
                *known = entry.clone();
                if changes.due(Instant::now()).is_none() {
                    return;
                }
            }
            None if len >= MOST => {
                if !std::mem::replace(is_full, true) {
                    tracing::warn!("{MOST} routes were seen: those that come now have no line, and are not in /routes");
                }
                return;
            }
            None => drop(routes.insert(key.clone(), entry.clone())),
        }
        drop(book);
        say(source, &key.1, &entry);
    }

    /// The JSON text of `/routes`: what the config file has by now, and what requests brought.
    pub fn list(&self, table: &RouteTable) -> String {
        #[derive(Serialize)]
        struct Listed<'a> {
            from: &'a str,
            source: Source,
            #[serde(flatten)]
            entry: &'a Entry,
        }
        #[derive(Serialize)]
        struct List<'a> {
            routes: Vec<Listed<'a>>,
            left_out: usize,
        }
        let of_file = entries(table);
        let book = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = book.routes.iter().map(|((source, from), entry)| Listed { from, source: *source, entry });
        let of_file_listed = of_file.iter().map(|(from, entry)| Listed { from, source: Source::File, entry });
        let all = book.routes.len() + of_file.len();
        let routes: Vec<_> = seen.chain(of_file_listed).take(LISTED).collect();
        let left_out = all - routes.len();
        serde_json::to_string(&List { routes, left_out }).unwrap_or_default() + "\n"
    }
}

/// Says which routes a config file has, in a line each, the first of them.
pub fn say_file(table: &RouteTable) {
    const LINES: usize = 100;
    let entries = entries(table);
    entries.iter().take(LINES).for_each(|(from, entry)| say(Source::File, from, entry));
    if let Some(more) = entries.len().checked_sub(LINES).filter(|more| *more > 0) {
        tracing::info!(source = Source::File.name(), more, "routes without a line of their own");
    }
}

fn entries(table: &RouteTable) -> BTreeMap<String, Entry> {
    let entry = |route: &Route| Entry { route_id: route.id.clone(), state: State::of(route) };
    table.routes().map(|route| (route.from.as_str().to_owned(), entry(route))).collect()
}

fn say(source: Source, from: &str, Entry { route_id, state }: &Entry) {
    let (source, name) = (source.name(), state.name());
    match state {
        State::Misconfigured(reason) => {
            tracing::warn!(source, from, route = route_id, state = name, reason, "a route");
        }
        State::Connects | State::DocumentOnly => {
            tracing::info!(source, from, route = route_id, state = name, "a route");
        }
    }
}

/// What a route that has no document is called. A text with an @ may hold a password.
fn name_of(metadata: &RouteMetadata<'_>) -> String {
    match metadata.get(Key::From) {
        Some(Field::Text(from)) if !from.contains('@') => from.chars().take(LONGEST_NAME).collect(),
        _ => "no good `from`".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{paths::Paths, route::Keyed};

    fn metadata<'a>(from: &'a str, to: Option<&'a str>) -> RouteMetadata<'a> {
        Keyed::new(|key| match key {
            Key::From => Some(Field::Text(from)),
            Key::To => to.map(Field::Text),
            _ => None,
        })
    }

    fn note(book: &RouteBook, source: Source, from: &str, to: Option<&str>) {
        let metadata = metadata(from, to);
        book.note(source, &metadata, Route::new(&metadata).as_ref());
    }

    #[test]
    fn each_is_listed_once_with_its_source_and_state_and_no_secret() {
        let book = RouteBook::default();
        for _ in 0..2 {
            note(&book, Source::Attributes, "https://a.example", Some("https://up.example/api/SECRET/mcp"));
            note(&book, Source::Attributes, "https://b.example", None);
            note(&book, Source::Attributes, "https://c.example", Some("https://u:SECRET@up.example/"));
            note(&book, Source::DynamicMetadata, "https://u:SECRET@d.example/", None);
            note(&book, Source::DynamicMetadata, "http://e.example", None);
        }
        let spec = crate::model::route::RouteSpec::default();
        let mut spec = spec;
        spec.set("from", "https://f.example".to_owned()).expect("a key");
        let text = book.list(&RouteTable::new(&[spec], &Paths::default()).expect("a route"));
        assert!(!text.contains("SECRET"), "{text}");
        let list: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let row = |route: &serde_json::Value| {
            ["from", "source", "state"].map(|key| route[key].as_str().expect("text").to_owned()).join(" ")
        };
        let rows: Vec<String> = list["routes"].as_array().expect("routes").iter().map(row).collect();
        assert_eq!(
            rows,
            [
                "https://a.example attributes connects",
                "https://b.example attributes document_only",
                "https://c.example attributes misconfigured",
                "http://e.example dynamic_metadata misconfigured",
                "no good `from` dynamic_metadata misconfigured",
                "https://f.example file document_only",
            ]
        );
        assert_eq!(list["left_out"], 0);
        assert_eq!(list["routes"][2]["reason"], "`to` must not have a user name or password");
        // What is mended is said anew.
        note(&book, Source::Attributes, "https://c.example", Some("https://up.example/"));
        let list: serde_json::Value = serde_json::from_str(&book.list(&RouteTable::default())).expect("JSON");
        assert_eq!(row(&list["routes"][2]), "https://c.example attributes connects");
    }

    #[test]
    fn there_is_an_end_to_them() {
        let book = RouteBook::default();
        for route in 0..MOST + 10 {
            note(&book, Source::DynamicMetadata, &format!("https://r{route}.example"), None);
        }
        let list: serde_json::Value = serde_json::from_str(&book.list(&RouteTable::default())).expect("JSON");
        assert_eq!(list["routes"].as_array().expect("routes").len(), LISTED);
        assert_eq!(list["left_out"], MOST - LISTED);
    }
}
