//! Work that is done once for all who wait for it, and only as long as somebody does.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared, WeakShared},
};

/// The work under way, by what it is for. `S` is what those who wait can see of it meanwhile, `T` what it comes to.
pub struct Joined<K, S, T: Clone>(Arc<Mutex<UnderWay<K, S, T>>>);

/// Work that is under way. It goes on while somebody polls it, and ends when the last one drops it.
pub type Work<T> = Shared<BoxFuture<'static, T>>;

struct UnderWay<K, S, T: Clone> {
    /// How many began; each has its number.
    begun: u64,
    by_key: HashMap<K, One<S, T>>,
}

struct One<S, T: Clone> {
    number: u64,
    seen: Arc<S>,
    work: WeakShared<BoxFuture<'static, T>>,
}

impl<K: Clone + Eq + Hash + Send + 'static, S, T> Joined<K, S, T>
where
    S: Default + Send + Sync + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// The work for this key that is under way, or what `begin` begins, which nobody else does until it is over.
    pub fn join<F>(&self, key: &K, begin: impl FnOnce(Arc<S>) -> F) -> (Arc<S>, Work<T>)
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut under_way = lock(&self.0);
        if let Some((seen, work)) = under_way.by_key.get(key).and_then(|one| Some((&one.seen, one.work.upgrade()?))) {
            return (Arc::clone(seen), work);
        }
        under_way.begun += 1;
        let number = under_way.begun;
        let seen = Arc::<S>::default();
        let place = Place { all: self.clone(), key: key.clone(), number };
        let work = begin(Arc::clone(&seen));
        let work = async move {
            // It goes with the work, done or dropped; and before anybody has what the work came to, so that whoever
            // comes later does not get that.
            let _place = place;
            work.await
        };
        let work = work.boxed().shared();
        if let Some(weak) = work.downgrade() {
            under_way.by_key.insert(key.clone(), One { number, seen: Arc::clone(&seen), work: weak });
        }
        (seen, work)
    }
}

impl<K, S, T: Clone> Joined<K, S, T> {
    /// How many are under way.
    pub fn count(&self) -> usize {
        lock(&self.0).by_key.len()
    }
}

impl<K, S, T: Clone> Clone for Joined<K, S, T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K, S, T: Clone> Default for Joined<K, S, T> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(UnderWay { begun: 0, by_key: HashMap::new() })))
    }
}

/// The place of some work among what is under way.
struct Place<K: Eq + Hash, S, T: Clone> {
    all: Joined<K, S, T>,
    key: K,
    number: u64,
}

impl<K: Eq + Hash, S, T: Clone> Drop for Place<K, S, T> {
    fn drop(&mut self) {
        let mut under_way = lock(&self.all.0);
        // Since the last one left, other work may have begun.
        if under_way.by_key.get(&self.key).is_some_and(|one| one.number == self.number) {
            under_way.by_key.remove(&self.key);
        }
    }
}

fn lock<K, S, T: Clone>(all: &Mutex<UnderWay<K, S, T>>) -> MutexGuard<'_, UnderWay<K, S, T>> {
    all.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use tokio::sync::Semaphore;

    use super::*;

    /// Work for a key, which is over when it is let through, and how often it began.
    #[derive(Clone)]
    struct Bench {
        joined: Joined<&'static str, AtomicUsize, usize>,
        begun: Arc<AtomicUsize>,
        gate: Arc<Semaphore>,
    }

    impl Bench {
        fn new() -> Self {
            Self { joined: Joined::default(), begun: Arc::default(), gate: Arc::new(Semaphore::new(0)) }
        }

        fn join(&self, key: &'static str) -> (Arc<AtomicUsize>, Work<usize>) {
            let (begun, gate) = (Arc::clone(&self.begun), Arc::clone(&self.gate));
            self.joined.join(&key, |seen| async move {
                let number = begun.fetch_add(1, Relaxed) + 1;
                seen.store(number, Relaxed);
                gate.acquire().await.expect("open").forget();
                number
            })
        }
    }

    #[tokio::test]
    async fn many_have_one() {
        let bench = Bench::new();
        let all: Vec<_> = (0..200).map(|_| bench.join("a")).collect();
        let (_, mut other) = bench.join("b");
        assert_eq!(bench.joined.count(), 2);
        assert!((&mut other).now_or_never().is_none());
        for (seen, work) in &all {
            assert!(work.clone().now_or_never().is_none());
            assert_eq!(seen.load(Relaxed), 2, "what shows of it shows to each");
        }
        bench.gate.add_permits(2);
        for (_, work) in all {
            assert_eq!(work.await, 2);
        }
        assert_eq!(other.await, 1);
        assert_eq!((bench.begun.load(Relaxed), bench.joined.count()), (2, 0));
    }

    #[tokio::test]
    async fn it_ends_with_the_last_who_leaves_and_not_before() {
        let bench = Bench::new();
        let (_, mut first) = bench.join("a");
        assert!((&mut first).now_or_never().is_none());
        let (_, second) = bench.join("a");
        drop(first);
        assert_eq!(bench.joined.count(), 1);
        drop(second);
        assert_eq!(bench.joined.count(), 0, "nobody waits, and nothing is left");
        let (seen, third) = bench.join("a");
        assert_eq!(seen.load(Relaxed), 0, "it is another");
        bench.gate.add_permits(1);
        assert_eq!(third.await, 2);
    }

    /// Who was polled last may leave: another takes over.
    #[tokio::test]
    async fn it_goes_on_when_who_drove_it_leaves() {
        let bench = Bench::new();
        let (_, mut driver) = bench.join("a");
        let (_, waiting) = bench.join("a");
        let waiting = tokio::spawn(waiting);
        tokio::task::yield_now().await;
        assert!((&mut driver).now_or_never().is_none());
        drop(driver);
        bench.gate.add_permits(1);
        assert_eq!(waiting.await.expect("no panic"), 1);
    }

    /// Who still holds what is over does not give it to those who come later.
    #[tokio::test]
    async fn what_is_over_is_nobodys_answer() {
        let bench = Bench::new();
        bench.gate.add_permits(2);
        let (_, first) = bench.join("a");
        let kept = first.clone();
        assert_eq!(first.await, 1);
        assert_eq!(bench.join("a").1.await, 2);
        assert_eq!(kept.await, 1);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn coming_and_going_at_once_leaves_nothing() {
        let bench = Bench::new();
        let all: Vec<_> = (0..4)
            .map(|_| {
                let bench = bench.clone();
                tokio::spawn(async move {
                    for _ in 0..1000 {
                        let (_, mut work) = bench.join("a");
                        assert!((&mut work).now_or_never().is_none());
                    }
                })
            })
            .collect();
        for one in all {
            one.await.expect("no panic");
        }
        assert_eq!(bench.joined.count(), 0);
    }
}
