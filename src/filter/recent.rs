//! What was made lately of something that comes again and again, so that it is not made anew for every request.

use std::{
    hash::{BuildHasher, Hash},
    sync::Arc,
};

use arc_swap::ArcSwapOption;
use foldhash::fast::RandomState;

/// How many values are kept, at some 1 kB each: a document has 5 kB at most.
const PLACES: usize = 2048;

/// Values by their keys. Each key has one place, which it may share with others: then the last one is there. So it
/// never fills up, and needs no lock. It is for what follows from its key alone, which cannot become stale.
#[derive(Debug)]
pub struct Recent<V> {
    places: Vec<ArcSwapOption<V>>,
    /// Whoever finds keys that meet gains a value that is made anew, so a quick one does.
    hasher: RandomState,
}

impl<V> Default for Recent<V> {
    fn default() -> Self {
        Self { places: (0..PLACES).map(|_| ArcSwapOption::empty()).collect(), hasher: RandomState::default() }
    }
}

impl<V> Recent<V> {
    /// The value of a key: the one that is there if it is this key's, or else the one that is made now.
    ///
    /// # Errors
    /// Those of `make`; nothing is kept then.
    pub fn get<E>(
        &self,
        key: impl Hash,
        is_of_key: impl FnOnce(&V) -> bool,
        make: impl FnOnce() -> Result<V, E>,
    ) -> Result<Arc<V>, E> {
        let hash = self.hasher.hash_one(key) % PLACES as u64;
        let Some(place) = usize::try_from(hash).ok().and_then(|place| self.places.get(place)) else {
            return make().map(Arc::new);
        };
        if let Some(kept) = place.load().as_ref()
            && is_of_key(kept)
        {
            return Ok(Arc::clone(kept));
        }
        let made = Arc::new(make()?);
        place.store(Some(Arc::clone(&made)));
        Ok(made)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of more keys than there are places, so that they meet.
    #[test]
    fn each_key_gets_its_own() {
        let recent = Recent::default();
        for _ in 0..2 {
            for key in 0..3 * PLACES {
                let value = recent.get(key, |(of, _)| *of == key, || Ok::<_, ()>((key, key + 1)));
                assert_eq!(value.as_deref(), Ok(&(key, key + 1)));
            }
        }
        assert_eq!(recent.get(PLACES * 9, |_| false, || Err("no")).err(), Some("no"));
    }

    #[test]
    fn what_is_there_is_not_made_again() {
        let recent = Recent::default();
        let first = recent.get("a", |_| true, || Ok::<_, ()>(1)).expect("made");
        let again = recent.get("a", |_| true, || Err(())).expect("there");
        assert!(Arc::ptr_eq(&first, &again));
    }
}
