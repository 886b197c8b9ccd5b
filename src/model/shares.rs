//! What there is for all, handed out so that no one takes it from the others.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::user::User;

/// How much there is, and how much of it may be in use at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShareLimits {
    pub in_all: usize,
    /// For one user.
    pub of_user: usize,
    /// At one server: a slow one holds what it is given for long, whoever asks for it.
    pub of_server: usize,
}

/// Whose part is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UsedUp {
    InAll,
    OfUser,
    OfServer,
}

/// Hands out shares, and knows of nobody who has none: its memory is bounded by what there is in all.
#[derive(Clone, Debug)]
pub struct Shares {
    limits: ShareLimits,
    in_use: Arc<Mutex<InUse>>,
    hasher: RandomState,
}

/// One share. It comes back when it is dropped.
#[derive(Debug)]
pub struct Share {
    in_use: Arc<Mutex<InUse>>,
    keys: [Option<u64>; 2],
}

/// How many shares are out: in all, and by the hashes of users and servers that have any.
#[derive(Debug, Default)]
struct InUse {
    in_all: usize,
    by_key: HashMap<u64, usize>,
}

impl Shares {
    pub fn new(limits: ShareLimits) -> Self {
        Self { limits, in_use: Arc::default(), hasher: RandomState::new() }
    }

    /// A share for a user, where it is anybody's, at a server.
    ///
    /// # Errors
    /// Whose part is in use; where there are several, the smallest.
    pub fn take(&self, user: Option<&User>, server: impl Hash) -> Result<Share, UsedUp> {
        let user = user.map(|user| {
            let limit = self.limits.of_user.saturating_mul(user.people());
            (self.hasher.hash_one(("user", user)), limit, UsedUp::OfUser)
        });
        let server = (self.hasher.hash_one(("server", server)), self.limits.of_server, UsedUp::OfServer);
        let mut in_use = lock(&self.in_use);
        for (key, limit, used_up) in user.into_iter().chain([server]) {
            if in_use.by_key.get(&key).is_some_and(|count| *count >= limit) {
                return Err(used_up);
            }
        }
        if in_use.in_all >= self.limits.in_all {
            return Err(UsedUp::InAll);
        }
        let keys = [user.map(|(key, ..)| key), Some(server.0)];
        in_use.in_all += 1;
        for key in keys.into_iter().flatten() {
            *in_use.by_key.entry(key).or_default() += 1;
        }
        Ok(Share { in_use: Arc::clone(&self.in_use), keys })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut in_use = lock(&self.in_use);
        in_use.in_all = in_use.in_all.saturating_sub(1);
        for key in self.keys.into_iter().flatten() {
            if let Some(count) = in_use.by_key.get_mut(&key) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    in_use.by_key.remove(&key);
                }
            }
        }
    }
}

fn lock(in_use: &Mutex<InUse>) -> MutexGuard<'_, InUse> {
    in_use.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn person(subject: &str) -> User {
        User::Subject { issuer: "i".to_owned(), subject: subject.to_owned() }
    }

    #[test]
    fn each_has_a_part_and_gives_it_back() {
        let shares = Shares::new(ShareLimits { in_all: 5, of_user: 2, of_server: 3 });
        let take = |subject, server| shares.take(Some(&person(subject)), server);
        let anna = [take("anna", "slow"), take("anna", "slow")].map(|share| share.expect("her part"));
        assert_eq!(take("anna", "slow").err(), Some(UsedUp::OfUser));
        assert_eq!(take("anna", "fast").err(), Some(UsedUp::OfUser), "wherever it is");
        let bert = take("bert", "slow").expect("his part");
        assert_eq!(take("bert", "slow").err(), Some(UsedUp::OfServer), "whoever it is");
        assert_eq!(shares.take(None, "slow").err(), Some(UsedUp::OfServer), "nobody is no way around");
        let rest = [take("bert", "fast"), take("carl", "fast")].map(|share| share.expect("a part"));
        assert_eq!(take("dora", "fast").err(), Some(UsedUp::InAll));
        drop(bert);
        assert!(take("dora", "slow").is_ok());
        drop((anna, rest));
        let in_use = lock(&shares.in_use);
        assert_eq!((in_use.in_all, in_use.by_key.len()), (0, 0), "nothing is left of who has nothing");
    }

    #[test]
    fn what_is_refused_takes_nothing() {
        let shares = Shares::new(ShareLimits { in_all: 9, of_user: 1, of_server: 9 });
        let _anna = shares.take(Some(&person("anna")), "a").expect("her part");
        assert!(shares.take(Some(&person("anna")), "b").is_err());
        let in_use = lock(&shares.in_use);
        assert_eq!((in_use.in_all, in_use.by_key.len()), (1, 2));
    }

    #[test]
    fn the_single_user_is_many_people() {
        let shares = Shares::new(ShareLimits { in_all: 1000, of_user: 1, of_server: 1000 });
        let taken: Vec<_> = (0..User::Single.people()).map(|_| shares.take(Some(&User::Single), "a")).collect();
        assert!(taken.len() > 1 && taken.iter().all(Result::is_ok));
        assert_eq!(shares.take(Some(&User::Single), "a").err(), Some(UsedUp::OfUser));
    }
}
