//! The documents that were asked for lately, so that each is built and hashed once rather than for every request.

use std::{
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

use arc_swap::ArcSwapOption;

use crate::{
    document::{Document, NameTemplate},
    origin::Origin,
    route::{Paths, Route, RouteError},
};

/// How many are kept, at about 1 kB each. A route has one place, which it may share: then the last one is there.
const PLACES: usize = 1024;

/// It never fills up and needs no lock, and what it keeps cannot be stale: a document follows from the route's origin
/// and name, and from settings that stay.
#[derive(Debug)]
pub struct Documents {
    places: Vec<ArcSwapOption<Kept>>,
    hasher: RandomState,
}

#[derive(Debug)]
struct Kept {
    origin: Origin,
    client_name: Option<String>,
    document: Arc<Document>,
}

impl Default for Documents {
    fn default() -> Self {
        Self { places: (0..PLACES).map(|_| ArcSwapOption::empty()).collect(), hasher: RandomState::new() }
    }
}

impl Documents {
    /// The document of a route; `paths` and `names` are the same each time.
    ///
    /// # Errors
    /// As [`Document::new`].
    pub fn of(&self, route: &Route, paths: &Paths, names: &NameTemplate) -> Result<Arc<Document>, RouteError> {
        let Route { origin, client_name, .. } = route;
        let hash = self.hasher.hash_one((origin.as_str(), client_name));
        let place = usize::try_from(hash % PLACES as u64).ok().and_then(|place| self.places.get(place));
        if let Some(kept) = place.map(ArcSwapOption::load).as_deref().and_then(Option::as_ref)
            && kept.origin == *origin
            && kept.client_name == *client_name
        {
            return Ok(Arc::clone(&kept.document));
        }
        let document = Arc::new(Document::new(route, paths, names)?);
        if let Some(place) = place {
            let (origin, client_name) = (origin.clone(), client_name.clone());
            place.store(Some(Arc::new(Kept { origin, client_name, document: Arc::clone(&document) })));
        }
        Ok(document)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::RouteSpec;

    /// Of more routes than there are places, so that they meet.
    #[test]
    fn each_route_gets_its_own() {
        let path = |text: &str| text.parse().expect("a path");
        let paths = Paths::new(path("/client.json"), path("/oauth/callback")).expect("differ");
        let names = "Client of {hostname}".parse().expect("a template");
        let documents = Documents::default();
        for _ in 0..2 {
            for number in 0..3 * PLACES {
                for client_name in [None, Some("A".to_owned())] {
                    let from = Some(format!("https://route-{number}.example"));
                    let spec = RouteSpec { from, client_name, ..RouteSpec::default() };
                    let route = spec.route().expect("a good route");
                    let ours = documents.of(&route, &paths, &names).expect("a document");
                    assert_eq!(*ours, Document::new(&route, &paths, &names).expect("a document"));
                }
            }
        }
    }
}
