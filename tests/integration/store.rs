//! What a store promises, held to by every backend: one suite for the file and for Redis, where two handles stand for
//! two processes. `make test-redis` runs the part that needs a redis-server.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use envoy_cimd::{
    model::{clock::UnixTime, secret::generate_key_line},
    store::{
        backend::{Flow, FlowLimits, Found, Holder, Kept, Store, Taken},
        error::{OpenError, StoreError},
        keys::{Context, FlowKey, RegistrationsKey, RouteKey, TokenKey, UserKey},
        open::Opened,
        url::StoreUrl,
    },
};
use tempfile::TempDir;
use tokio::process::Command;

use crate::stack::{Certificates, Process, key_file};

mod nodes;

const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);
const LIMITS: FlowLimits = FlowLimits { of_user: 20, in_all: 100_000 };
const CONTEXT: Context = Context::from_bytes([0xc; 32]);
const OTHER_CONTEXT: Context = Context::from_bytes([1; 32]);
const TOKEN: TokenKey = TokenKey::from_bytes([1; 32]);
const ROUTE: RouteKey = RouteKey::from_bytes([2; 32]);

/// One test a line and backend. A file is for one process, so it has one handle.
macro_rules! on_both {
    ($($file:ident, $redis:ident: $test:ident;)*) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $file() {
            $test(&Bed::file()).await;
        }

        #[tokio::test(flavor = "multi_thread")]
        #[ignore = "needs redis-server: make test-redis"]
        async fn $redis() {
            $test(&Bed::redis().await).await;
        }
    )*

    /// All of it, on a store that is emptied before each.
    async fn suite(bed: &Bed, empty: impl AsyncFn()) {
        $(
            empty().await;
            $test(bed).await;
        )*
    }};
}

on_both! {
    file_takes_a_flow_once, redis_takes_a_flow_once: takes_a_flow_once;
    file_forgets_what_expired, redis_forgets_what_expired: forgets_what_expired;
    file_lets_a_users_oldest_go, redis_lets_a_users_oldest_go: lets_a_users_oldest_go;
    file_is_full_at_the_limit, redis_is_full_at_the_limit: is_full_at_the_limit;
    file_counts_nothing_that_expired, redis_counts_nothing_that_expired: counts_nothing_that_expired;
    file_takes_no_id_twice, redis_takes_no_id_twice: takes_no_id_twice;
    file_gives_each_flow_to_one_of_many, redis_gives_each_flow_to_one_of_many: gives_each_flow_to_one_of_many;
    file_keeps_limits_among_many, redis_keeps_limits_among_many: keeps_limits_among_many;
    file_finds_tokens_by_route, redis_finds_tokens_by_route: finds_tokens_by_route;
    file_changes_only_what_was_read, redis_changes_only_what_was_read: changes_only_what_was_read;
    file_notes_what_is_expected_again, redis_notes_what_is_expected_again: notes_what_is_expected_again;
    file_lets_one_at_a_time_refresh, redis_lets_one_at_a_time_refresh: lets_one_at_a_time_refresh;
    file_keeps_a_routes_registrations, redis_keeps_a_routes_registrations: keeps_a_routes_registrations;
    file_keeps_large_values, redis_keeps_large_values: keeps_large_values;
    file_survives_reopening, redis_survives_reopening: survives_reopening;
    file_knows_its_keys, redis_knows_its_keys: knows_its_keys;
}

async fn takes_a_flow_once(bed: &Bed) {
    let stores = bed.stores().await;
    let (here, there) = (first(&stores), last(&stores));
    here.add_flow(flow(1, 1), LIMITS, NOW).await.expect("added");
    here.add_flow(flow(2, 1), LIMITS, NOW).await.expect("added");
    assert_eq!(take_as(there, 1, OTHER_CONTEXT, NOW).await, Taken::WrongContext);
    assert_eq!(take(there, 1, NOW).await, Taken::Flow(b"sealed 1".into()), "it was not consumed");
    for store in [here, there] {
        assert_eq!(take(store, 1, NOW).await, Taken::Used(b"tombstone 1".into()));
        assert_eq!(
            take_as(store, 1, OTHER_CONTEXT, NOW).await,
            Taken::WrongContext,
            "that it was used is for its browser"
        );
        assert_eq!(take(store, 3, NOW).await, Taken::Unknown);
    }
    assert_eq!(take(here, 2, NOW).await, Taken::Flow(b"sealed 2".into()));
}

async fn forgets_what_expired(bed: &Bed) {
    let store = &bed.store().await;
    for number in 1..=3 {
        store.add_flow(Flow { expires_at: NOW + 10, ..flow(number, 1) }, LIMITS, NOW).await.expect("added");
    }
    store.add_flow(Flow { expires_at: NOW + 11, ..flow(4, 1) }, LIMITS, NOW).await.expect("added");
    assert!(matches!(take(store, 1, NOW + 9).await, Taken::Flow(_)));
    assert!(matches!(take(store, 1, NOW + 9).await, Taken::Used(_)));
    assert_eq!(take(store, 1, NOW + 10).await, Taken::Unknown, "the tombstone goes, too");
    assert_eq!(take(store, 2, NOW + 10).await, Taken::Unknown);
    assert_eq!(take_as(store, 3, OTHER_CONTEXT, NOW + 10).await, Taken::Unknown);
    assert!(matches!(take(store, 4, NOW + 10).await, Taken::Flow(_)));

    for expires_at in [UnixTime::default(), NOW - 1, NOW] {
        store.add_flow(Flow { expires_at, ..flow(5, 1) }, LIMITS, NOW).await.expect("nothing to keep");
        assert_eq!(take(store, 5, NOW).await, Taken::Unknown);
    }
}

async fn lets_a_users_oldest_go(bed: &Bed) {
    let stores = bed.stores().await;
    let (here, there) = (first(&stores), last(&stores));
    let limits = FlowLimits { of_user: 3, ..LIMITS };
    here.add_flow(flow(10, 2), limits, NOW).await.expect("another user's");
    // Of one second, so only the order tells.
    for number in [5, 1, 3] {
        here.add_flow(flow(number, 1), limits, NOW).await.expect("added");
    }
    there.add_flow(flow(4, 1), limits, NOW).await.expect("added");
    assert_eq!(take(here, 5, NOW).await, Taken::Unknown, "the first that came went");
    assert!(matches!(take(there, 1, NOW).await, Taken::Flow(_)));
    assert!(matches!(take(here, 1, NOW).await, Taken::Used(_)));
    here.add_flow(flow(6, 1), limits, NOW).await.expect("added");
    assert_eq!(take(here, 1, NOW).await, Taken::Unknown, "what was taken counts, and goes in its turn");

    here.add_flow(Flow { expires_at: NOW + 5, ..flow(7, 1) }, limits, NOW).await.expect("added");
    assert_eq!(take(here, 3, NOW).await, Taken::Unknown);
    here.add_flow(flow(8, 1), limits, NOW + 4).await.expect("added");
    assert_eq!(take(here, 7, NOW + 4).await, Taken::Unknown, "the first to expire goes first");
    here.add_flow(Flow { expires_at: NOW + 10, ..flow(9, 3) }, limits, NOW + 4).await.expect("added");
    for number in [11, 12, 13] {
        here.add_flow(flow(number, 3), limits, NOW + 10).await.expect("added");
    }
    for number in [4, 6, 8, 10, 11, 12, 13] {
        assert!(matches!(take(there, number, NOW + 10).await, Taken::Flow(_)), "{number}: what expired does not count");
    }

    // As where the limit was lowered; and none at all would be of no use.
    for number in [20, 21, 22] {
        here.add_flow(flow(number, 1), limits, NOW).await.expect("added");
    }
    here.add_flow(flow(23, 1), FlowLimits { of_user: 0, ..LIMITS }, NOW).await.expect("added");
    for number in [20, 21, 22] {
        assert_eq!(take(here, number, NOW).await, Taken::Unknown);
    }
    assert!(matches!(take(here, 23, NOW).await, Taken::Flow(_)));
}

async fn is_full_at_the_limit(bed: &Bed) {
    let stores = bed.stores().await;
    let (here, there) = (first(&stores), last(&stores));
    let limits = FlowLimits { of_user: 2, in_all: 4 };
    let full = |result| matches!(result, Err(StoreError::Full));
    for (number, user) in [(1, 1), (2, 1), (3, 2)] {
        here.add_flow(flow(number, user), limits, NOW).await.expect("added");
    }
    there.add_flow(Flow { expires_at: NOW + 5, ..flow(4, 3) }, limits, NOW).await.expect("added");
    assert!(full(here.add_flow(flow(5, 4), limits, NOW).await));
    assert_eq!(take(here, 5, NOW).await, Taken::Unknown);
    here.add_flow(flow(6, 1), limits, NOW).await.expect("in the place of one of this user's own");
    assert_eq!(take(here, 1, NOW).await, Taken::Unknown);

    assert!(matches!(take(here, 2, NOW).await, Taken::Flow(_)));
    assert!(full(there.add_flow(flow(5, 4), limits, NOW + 4).await), "what was taken counts until it expires");
    assert!(full(there.add_flow(flow(7, 5), limits, NOW + 4).await));
    there.add_flow(flow(7, 5), limits, NOW + 5).await.expect("in the place of what expired");
    assert!(full(there.add_flow(flow(8, 6), limits, NOW + 5).await));
    // Where a limit was lowered, one's own does not make room enough; then it does not go either.
    assert!(full(here.add_flow(flow(8, 5), FlowLimits { of_user: 1, in_all: 3 }, NOW + 5).await));
    for number in [3, 6, 7] {
        assert!(matches!(take(there, number, NOW + 5).await, Taken::Flow(_)), "{number} is still there");
    }
    assert!(full(here.add_flow(flow(8, 6), FlowLimits { of_user: 1, in_all: 0 }, NOW + 5).await));

    let limits = FlowLimits { of_user: 1, in_all: 2 };
    let later = NOW + 1000;
    let until = |seconds, flow| Flow { expires_at: later + seconds, ..flow };
    here.add_flow(until(1, flow(20, 20)), limits, later).await.expect("added");
    here.add_flow(until(9, flow(21, 21)), limits, later).await.expect("added");
    there.add_flow(until(9, flow(22, 22)), limits, later + 1).await.expect("in the place of what expired");
    assert!(full(there.add_flow(until(9, flow(23, 20)), limits, later + 1).await), "room is made only once");
}

/// Of more flows than one call removes.
async fn counts_nothing_that_expired(bed: &Bed) {
    let store = &bed.store().await;
    let limits = FlowLimits { of_user: 250, in_all: 250 };
    for number in 0..250 {
        store.add_flow(Flow { expires_at: NOW + 5, ..flow(number, number / 200) }, limits, NOW).await.expect("added");
    }
    for number in [249, 0, 248] {
        assert_eq!(take(store, number, NOW + 5).await, Taken::Unknown);
    }
    for number in 0..250 {
        store.add_flow(Flow { expires_at: NOW + 6, ..flow(number, number) }, limits, NOW + 5).await.expect("added");
    }
    let limits = FlowLimits { of_user: 1, in_all: 1 };
    store.add_flow(flow(250, 250), limits, NOW + 6).await.expect("added");
    assert!(matches!(store.add_flow(flow(251, 251), limits, NOW + 6).await, Err(StoreError::Full)));
}

async fn takes_no_id_twice(bed: &Bed) {
    let store = &bed.store().await;
    let again = Flow { context: OTHER_CONTEXT, sealed: b"other".into(), ..flow(1, 2) };
    store.add_flow(flow(1, 1), LIMITS, NOW).await.expect("added");
    assert!(matches!(store.add_flow(again.clone(), LIMITS, NOW).await, Err(StoreError::Failed(_))));
    assert_eq!(take(store, 1, NOW).await, Taken::Flow(b"sealed 1".into()));
    assert!(matches!(store.add_flow(again.clone(), LIMITS, NOW).await, Err(StoreError::Failed(_))));
    assert_eq!(take(store, 1, NOW).await, Taken::Used(b"tombstone 1".into()));
    let later = NOW + 600;
    store.add_flow(Flow { expires_at: later + 600, ..again }, LIMITS, later).await.expect("nothing is left of it");
    assert_eq!(take_as(store, 1, OTHER_CONTEXT, later).await, Taken::Flow(b"other".into()));
}

async fn gives_each_flow_to_one_of_many(bed: &Bed) {
    let stores = bed.stores().await;
    for number in 0..50 {
        first(&stores).add_flow(flow(number, number), LIMITS, NOW).await.expect("added");
    }
    let takers: Vec<_> = (0..200)
        .map(|taker: u8| {
            let store = Arc::clone(stores.get(usize::from(taker) % stores.len()).expect("a store"));
            // Four in a row for one flow, so that they meet.
            tokio::spawn(async move { (taker / 4, take(&store, taker / 4, NOW).await) })
        })
        .collect();
    let mut flows = [0; 50];
    for taker in takers {
        let (number, taken) = taker.await.expect("no panic");
        match taken {
            Taken::Flow(sealed) => {
                assert_eq!(sealed, flow(number, number).sealed);
                *flows.get_mut(usize::from(number)).expect("a flow") += 1;
            }
            taken => assert_eq!(taken, Taken::Used(flow(number, number).tombstone)),
        }
    }
    assert_eq!(flows, [1; 50]);
}

async fn keeps_limits_among_many(bed: &Bed) {
    let stores = bed.stores().await;
    let add_all = |flows: Vec<Flow>, limits| {
        let adding = flows.into_iter().zip(stores.iter().cycle().cloned());
        let adding: Vec<_> =
            adding.map(|(flow, store)| tokio::spawn(async move { store.add_flow(flow, limits, NOW).await })).collect();
        async move {
            let mut added = 0;
            for adding in adding {
                match adding.await.expect("no panic") {
                    Ok(()) => added += 1,
                    Err(error) => assert!(matches!(error, StoreError::Full), "{error}"),
                }
            }
            added
        }
    };
    let limits = FlowLimits { of_user: 20, in_all: 50 };
    assert_eq!(add_all((0..40).map(|number| flow(number, 1)).collect(), limits).await, 40);
    assert_eq!(add_all((100..180).map(|number| flow(number, number)).collect(), limits).await, 30);
    let mut left = 0;
    for number in (0..40).chain(100..180) {
        left += u8::from(matches!(take(first(&stores), number, NOW).await, Taken::Flow(_)));
    }
    assert_eq!(left, 50);
}

async fn finds_tokens_by_route(bed: &Bed) {
    let stores = bed.stores().await;
    let (here, there) = (first(&stores), last(&stores));
    let [key, other_key] = [1, 2].map(|byte| TokenKey::from_bytes([byte; 32]));
    let [route, other_route] = [1, 3].map(|byte| RouteKey::from_bytes([byte; 32]));
    let found = async |route| kept(there, route).await;
    assert_eq!(found(route).await, None);
    assert!(!here.remove_token(key, route, b"one".into()).await.expect("a store"), "there is none");

    here.put_token(key, route, b"one".into()).await.expect("kept");
    assert_eq!(found(route).await, Some((key, b"one".into())));
    assert_eq!(found(other_route).await, None);
    there.put_token(key, route, b"two".into()).await.expect("kept");
    assert_eq!(found(route).await, Some((key, b"two".into())), "the newest counts");

    let replaced = here.put_token(key, other_route, b"three".into()).await.expect("kept");
    assert_eq!(replaced, None, "what is under the same key is not another");
    assert_eq!(found(route).await, Some((key, b"three".into())), "two routes may have one token");
    let replaced = here.put_token(other_key, route, b"four".into()).await.expect("kept");
    assert_eq!(replaced, Some((key, b"three".into())));
    assert_eq!(found(route).await, Some((other_key, b"four".into())));
    assert_eq!(found(other_route).await, None, "it is forgotten for both");

    assert!(!here.remove_token(key, route, b"three".into()).await.expect("a store"));
    assert_eq!(found(route).await, Some((other_key, b"four".into())), "the index points at another token");
    there.put_token(key, other_route, b"five".into()).await.expect("kept");
    assert_eq!(found(other_route).await, Some((key, b"five".into())));
    assert!(there.remove_token(key, other_route, b"five".into()).await.expect("removed"));
    assert!(here.remove_token(other_key, route, b"four".into()).await.expect("removed"));
    assert_eq!((found(route).await, found(other_route).await), (None, None));
    here.put_token(key, RouteKey::from_bytes([9; 32]), b"six".into()).await.expect("kept");
    assert_eq!(found(other_route).await, None, "the index went with the token");
}

async fn notes_what_is_expected_again(bed: &Bed) {
    let stores = bed.stores().await;
    let (here, there) = (first(&stores), last(&stores));
    let other_route = RouteKey::from_bytes([3; 32]);
    let again = async |route| there.token(route).await.expect("a store").expect("a token").again;
    assert!(!here.expect_again(ROUTE, NOW + 660, NOW).await.expect("a store"), "nobody was connected");
    here.put_token(TOKEN, ROUTE, b"one".into()).await.expect("kept");
    assert_eq!(again(ROUTE).await, None, "what was refused left nothing");
    here.put_token(TOKEN, other_route, b"one".into()).await.expect("kept");
    assert!(here.expect_again(ROUTE, NOW + 660, NOW).await.expect("a store"));
    assert_eq!(again(ROUTE).await, Some(NOW + 660));
    assert_eq!(again(other_route).await, None, "it is of one route");
    assert!(there.expect_again(ROUTE, NOW + 700, NOW + 40).await.expect("a store"));
    assert_eq!(again(ROUTE).await, Some(NOW + 700));
    // Whatever becomes of the token: requests that are to come again still may.
    assert!(here.replace_token(TOKEN, b"one".into(), b"two".into()).await.expect("a store"));
    assert_eq!(again(ROUTE).await, Some(NOW + 700));
    here.put_token(TokenKey::from_bytes([7; 32]), ROUTE, b"three".into()).await.expect("kept");
    assert_eq!(again(ROUTE).await, Some(NOW + 700));
    assert!(here.remove_token(TokenKey::from_bytes([7; 32]), ROUTE, b"three".into()).await.expect("removed"));
    assert_eq!(there.token(ROUTE).await.expect("a store"), None);
    here.put_token(TOKEN, ROUTE, b"four".into()).await.expect("kept");
    assert_eq!(again(ROUTE).await, Some(NOW + 700));
}

async fn changes_only_what_was_read(bed: &Bed) {
    let stores = bed.stores().await;
    let (here, there) = (first(&stores), last(&stores));
    let (key, route) = (TOKEN, ROUTE);
    let (old, new, other) = (b"old".to_vec(), b"new".to_vec(), b"other".to_vec());
    assert!(!here.replace_token(key, old.clone(), new.clone()).await.expect("a store"), "there is none");
    assert_eq!(kept(there, route).await, None);
    here.put_token(key, route, old.clone()).await.expect("put");
    assert!(!there.replace_token(key, other.clone(), new.clone()).await.expect("a store"));
    assert!(there.replace_token(key, old.clone(), new.clone()).await.expect("a store"));
    assert!(!here.replace_token(key, old.clone(), other).await.expect("a store"), "it was read before");
    assert!(!here.remove_token(key, route, old).await.expect("a store"));
    assert_eq!(kept(there, route).await, Some((key, new.clone())), "nor is another removed");
    assert!(here.remove_token(key, route, new).await.expect("removed"));
    assert_eq!(kept(there, route).await, None);
}

async fn lets_one_at_a_time_refresh(bed: &Bed) {
    let stores = bed.stores().await;
    let (here, there) = (first(&stores), last(&stores));
    let (key, one, two) = (TOKEN, Holder([1; 16]), Holder([2; 16]));
    assert!(here.claim(key, one, 60).await.expect("a store"));
    assert!(!there.claim(key, two, 60).await.expect("a store"), "another has it");
    assert!(there.claim(TokenKey::from_bytes([2; 32]), two, 60).await.expect("a store"), "another token's is free");
    there.release(key, two).await.expect("a store");
    assert!(!there.claim(key, two, 60).await.expect("a store"), "it is not this one's to give up");
    here.release(key, one).await.expect("a store");
    assert!(there.claim(key, two, 1).await.expect("a store"));
    // A holder that died is waited for until its claim ends, and no longer.
    while !here.claim(key, one, 60).await.expect("a store") {
        tokio::task::yield_now().await;
    }
}

async fn keeps_a_routes_registrations(bed: &Bed) {
    let stores = bed.stores().await;
    let (here, there) = (first(&stores), last(&stores));
    let (key, other) = (RegistrationsKey::from_bytes([1; 32]), RegistrationsKey::from_bytes([2; 32]));
    let [old, new] = [b"old\0".to_vec(), b"new".to_vec()];
    let replace = async |store: &Arc<dyn Store>, old: Option<&Vec<u8>>, new: &Vec<u8>| {
        store.replace_registrations(key, old.cloned(), new.clone()).await.expect("a store")
    };
    assert_eq!(here.registrations(key).await.expect("a store"), None);
    assert!(!replace(here, Some(&old), &new).await, "there was none");
    assert!(replace(here, None, &old).await);
    assert!(!replace(there, None, &new).await, "there is one by now");
    assert_eq!(there.registrations(key).await.expect("a store"), Some(old.clone()));
    assert!(replace(there, Some(&old), &new).await);
    assert!(!replace(here, Some(&old), &old).await, "it was read before");
    assert_eq!(here.registrations(key).await.expect("a store"), Some(new));
    assert_eq!(here.registrations(other).await.expect("a store"), None);
}

async fn keeps_large_values(bed: &Bed) {
    let store = &bed.store().await;
    let large: Vec<u8> = (0..4_000_000_u32).map(|number| number.to_le_bytes()[0]).collect();
    store.put_token(TOKEN, ROUTE, large.clone()).await.expect("kept");
    assert!(kept(store, ROUTE).await == Some((TOKEN, large.clone())));
    let flow = Flow { sealed: large.clone(), tombstone: large.clone(), ..flow(100, 1) };
    store.add_flow(flow, LIMITS, NOW).await.expect("added");
    assert!(take(store, 100, NOW).await == Taken::Flow(large.clone()));
    assert!(take(store, 100, NOW).await == Taken::Used(large));
}

async fn survives_reopening(bed: &Bed) {
    let Opened { store, sealer, .. } = bed.open().await;
    let key = TOKEN;
    let sealed = sealer.load().seal("token", key.as_bytes(), b"a token").expect("sealed");
    store.put_token(key, ROUTE, sealed).await.expect("kept");
    assert!(store.expect_again(ROUTE, NOW + 660, NOW).await.expect("a store"));
    store.add_flow(flow(1, 1), LIMITS, NOW).await.expect("added");
    store.add_flow(flow(2, 1), LIMITS, NOW).await.expect("added");
    assert!(matches!(take(&store, 1, NOW).await, Taken::Flow(_)));
    drop(store);
    let Opened { store, sealer, .. } = bed.open().await;
    let Found { kept: (found, sealed), again } = store.token(ROUTE).await.expect("a store").expect("a token");
    assert_eq!(again, Some(NOW + 660));
    assert_eq!(
        sealer.load().open("token", found.as_bytes(), &sealed).expect("its key").plaintext.as_slice(),
        b"a token"
    );
    assert!(matches!(take(&store, 1, NOW).await, Taken::Used(_)));
    assert!(matches!(take(&store, 2, NOW).await, Taken::Flow(_)));
}

async fn knows_its_keys(bed: &Bed) {
    let Opened { sealer, .. } = bed.open().await;
    let sealed = sealer.load().seal("test", &[], b"secret").expect("sealed");
    let old = std::fs::read_to_string(&bed.keys).expect("the keys");
    let new = generate_key_line().expect("a key");
    let open_with = async |keys: &str| {
        std::fs::write(&bed.keys, keys).expect("a key file");
        bed.url.open(Some(&bed.keys), None).await
    };
    let error = open_with(&new).await.err().expect("other keys");
    assert!(matches!(&error, OpenError::Keys { path, .. } if *path == bed.keys), "{error}");
    let error = error.to_string();
    assert!(error.contains(bed.keys.to_str().expect("text")) && error.contains("none of the keys"), "{error}");
    assert!(!error.contains(&new), "{error}");

    let rotated = open_with(&format!("{new}\n{old}")).await.expect("its keys, the new one first").sealer;
    assert!(rotated.load().open("test", &[], &sealed).expect("its key").stale);
    open_with(&new).await.expect("by now, the new one is the store's");
    open_with(&old).await.err().expect("and the old one is none of its keys any more");
}

#[tokio::test]
#[ignore = "needs redis-server: make test-redis"]
async fn redis_may_be_gone_for_a_while() {
    let mut bed = Bed::redis().await;
    let store = bed.store().await;
    store.put_token(TOKEN, ROUTE, b"sealed".into()).await.expect("kept");
    store.add_flow(flow(1, 1), LIMITS, NOW).await.expect("added");
    store.add_flow(flow(2, 1), LIMITS, NOW).await.expect("added");
    assert!(matches!(take(&store, 1, NOW).await, Taken::Flow(_)));

    let redis = bed.redis.as_mut().expect("Redis");
    redis.kill().await;
    for _ in 0..3 {
        let error = fails_soon(store.token(ROUTE)).await;
        assert!(error.contains(&format!("redis://127.0.0.1:{}/0: ", redis.port)), "{error}");
        fails_soon(store.take_flow(flow(2, 1).id, CONTEXT, NOW)).await;
        fails_soon(store.add_flow(flow(3, 1), LIMITS, NOW)).await;
    }
    redis.start_again().await;
    assert_eq!(kept(&store, ROUTE).await, Some((TOKEN, b"sealed".into())), "the first attempt");
    assert!(matches!(take(&store, 1, NOW).await, Taken::Used(_)));
    assert!(matches!(take(&store, 2, NOW).await, Taken::Flow(_)));
    assert_eq!(take(&store, 3, NOW).await, Taken::Unknown);

    // It is there, and does not answer: neither on a connection nor to a new one.
    let redis = bed.redis.as_ref().expect("Redis");
    redis.process.signal("-STOP");
    assert!(fails_soon(store.token(ROUTE)).await.contains("no answer within 3 seconds"));
    fails_soon(store.token(ROUTE)).await;
    redis.process.signal("-CONT");
    assert!(store.token(ROUTE).await.expect("a store").is_some());
}

/// A server that has just started refuses everything until it has read what it keeps, and did nothing of it.
#[tokio::test]
#[ignore = "needs redis-server: make test-redis"]
async fn redis_that_still_loads_is_waited_for() {
    let mut bed = Bed::redis().await;
    let store = bed.store().await;
    store.put_token(TOKEN, ROUTE, b"sealed".into()).await.expect("kept");
    let redis = bed.redis.as_mut().expect("Redis");
    redis.fill(4096).await;
    redis.kill().await;
    // It looks at its clients after each 1,024 commands.
    redis.start_loading(&["--key-load-delay", "300"]).await;
    assert_eq!(kept(&store, ROUTE).await, Some((TOKEN, b"sealed".into())), "the first attempt");
    assert!(redis.info("errorstats").await.contains("errorstat_LOADING:"), "it was not loading");
}

#[tokio::test]
#[ignore = "needs redis-server: make test-redis"]
async fn redis_is_found_again_behind_a_connection_that_went_silent() {
    let dir = tempfile::tempdir().expect("a folder");
    let redis = Redis::start(dir.path(), &[], "--port").await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("redis://{}", listener.local_addr().expect("an address"));
    let (silence, port) = (Arc::new(tokio::sync::Notify::new()), redis.port);
    let falls = Arc::clone(&silence);
    // As where a machine is gone, and a firewall drops what is sent to it.
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let falls = Arc::clone(&falls);
            tokio::spawn(async move {
                let mut server = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.expect("Redis");
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                    () = falls.notified() => std::future::pending().await,
                }
            });
        }
    });
    let bed = Bed::new(dir, url, Some(redis));
    let store = bed.store().await;
    assert_eq!(kept(&store, ROUTE).await, None);
    silence.notify_waiters();
    assert!(fails_soon(store.token(ROUTE)).await.contains("no answer within 3 seconds"));
    assert_eq!(kept(&store, ROUTE).await, None);
}

#[tokio::test]
#[ignore = "needs redis-server: make test-redis"]
async fn redis_is_told_when_what_is_to_go() {
    let bed = Bed::redis().await;
    let store = bed.store().await;
    let limits = FlowLimits { of_user: 3, in_all: 100 };
    for number in 1..=5 {
        store.add_flow(flow(number, 1), limits, NOW).await.expect("added");
    }
    store.add_flow(Flow { expires_at: NOW + 60, ..flow(6, 2) }, limits, NOW).await.expect("added");
    assert!(matches!(take(&store, 5, NOW).await, Taken::Flow(_)));
    store.put_token(TOKEN, ROUTE, b"sealed".into()).await.expect("kept");
    assert!(store.expect_again(ROUTE, NOW + 660, NOW).await.expect("a store"));
    let client = redis::Client::open(bed.redis.as_ref().expect("Redis").url("redis", "")).expect("a client");
    let mut connection = client.get_multiplexed_async_connection().await.expect("a connection");
    let keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut connection).await.expect("keys");
    let mut kinds = std::collections::BTreeMap::<_, Vec<i64>>::new();
    for key in &keys {
        let lives: i64 = redis::cmd("TTL").arg(key).query_async(&mut connection).await.expect("seconds");
        let kind = key.strip_prefix("envoy_cimd:v1:").expect("our namespace").split(':').next().expect("a kind");
        kinds.entry(kind.to_owned()).or_default().push(lives);
    }
    let within = |kind: &str, lives: &[std::ops::RangeInclusive<i64>]| {
        let mut found = kinds.get(kind).expect(kind).clone();
        found.sort_unstable();
        assert_eq!(found.len(), lives.len(), "{kind}: {found:?}");
        assert!(found.iter().zip(lives).all(|(found, lives)| lives.contains(found)), "{kind}: {found:?}");
    };
    within("flow", &[1..=60, 61..=600, 61..=600, 61..=600]);
    within("flows", &[1..=60, 61..=600, 61..=600]);
    for kind in ["key_check", "sequence", "token", "route"] {
        within(kind, &[-1..=-1]);
    }
    within("again", &[601..=660]);
    assert_eq!(kinds.len(), 7, "{kinds:?}");
}

#[tokio::test]
#[ignore = "needs redis-server: make test-redis"]
async fn redis_wants_a_password() {
    let dir = tempfile::tempdir().expect("a folder");
    let redis = Redis::start(dir.path(), &["--requirepass", "p@ss word"], "--port").await;
    let bed = Bed::new(dir, redis.url("redis", ":p%40ss%20word@"), Some(redis));
    takes_a_flow_once(&bed).await;
    let redis = bed.redis.as_ref().expect("Redis");
    for (login, secret) in [("", "hunter2"), (":hunter2@", "hunter2"), ("ann:p%40ss%20word@", "p@ss")] {
        let url: StoreUrl = redis.url("redis", login).parse().expect("a URL");
        let error = url.open(Some(&bed.keys), None).await.err().expect("refused");
        assert!(matches!(error, OpenError::Store(StoreError::Away(_))), "{error:?}");
        let error = error.to_string();
        assert!(error.contains("NOAUTH") || error.contains("WRONGPASS"), "{error}");
        assert!(!error.contains(secret) && !error.contains("ann"), "{error}");
    }
}

#[tokio::test]
#[ignore = "needs redis-server: make test-redis"]
async fn redis_over_tls_with_a_user_that_may_only_what_is_ours() {
    let dir = tempfile::tempdir().expect("a folder");
    let certificates = Certificates::make(dir.path(), &["localhost"]);
    let text = |path: &Path| path.to_str().expect("text").to_owned();
    let (ca, cert, key) = (text(&certificates.ca), text(&certificates.cert), text(&certificates.key));
    let flags = [
        &["--tls-cert-file", &cert, "--tls-key-file", &key, "--tls-ca-cert-file", &ca, "--tls-auth-clients", "no"][..],
        &["--port", "0", "--user", "default", "off"],
        &["--user", "ann", "on", ">hunter2", "~envoy_cimd:v1:*", "+@all"],
    ]
    .concat();
    let redis = Redis::start(dir.path(), &flags, "--tls-port").await;
    let mut bed = Bed::new(dir, redis.url("rediss", "ann:hunter2@").replace("127.0.0.1", "localhost"), Some(redis));
    let error = bed.url.open(Some(&bed.keys), None).await.err().expect("nobody knows this authority").to_string();
    assert!(error.contains("rediss://…@localhost:") && error.contains("invalid peer certificate"), "{error}");
    let error = bed.url.open(Some(&bed.keys), Some(&bed.keys)).await.err().expect("no certificate").to_string();
    assert!(error.starts_with("--extra-ca") && error.ends_with("has no certificate"), "{error}");
    bed.extra_ca = Some(certificates.ca.clone());
    lets_a_users_oldest_go(&bed).await;
    finds_tokens_by_route(&bed).await;
    keeps_large_values(&bed).await;

    let elsewhere = bed.redis.as_ref().expect("Redis").url("rediss", "ann:hunter2@");
    let url: StoreUrl = elsewhere.parse().expect("a URL");
    let error = url.open(Some(&bed.keys), bed.extra_ca.as_deref()).await.err().expect("another host").to_string();
    assert!(error.contains("not valid for name"), "{error}");
}

#[tokio::test]
async fn a_store_in_redis_needs_keys_that_all_share() {
    let url: StoreUrl = "redis://127.0.0.1".parse().expect("a URL");
    assert!(url.is_shared());
    let error = url.open(None, None).await.err().expect("no keys");
    assert!(matches!(error, OpenError::NoKeys) && error.to_string().contains("--encryption-keys"), "{error}");
    let error = url.open(Some(Path::new("/missing/keys")), None).await.err().expect("no keys").to_string();
    assert!(error.starts_with("encryption keys /missing/keys: "), "{error}");
}

/// What an earlier version stored for Anna, as it is in `tests/fixtures`: a pending flow, one that was used, a token.
mod earlier {
    use std::sync::atomic::{AtomicU64, Ordering};

    use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
    use envoy_cimd::{
        contract::{
            choreographer::{AuthorizationAnswer, Choreographer as _, Complete},
            error::CompleteError,
            proto::{BeginAuthorizationRequest, CompleteAuthorizationRequest, begin_authorization_response::Outcome},
        },
        exchange::embedded::{Config, Embedded},
        model::{
            client::{ClientId, RedirectUri},
            clock::UnixTime,
            flow::{BrowserHash, FlowId},
            secret::Secret,
            trace::Trace,
            user::User,
        },
        store::vault,
    };
    use serde_json::{Value, json};
    use sha2::{Digest, Sha256};

    use super::*;
    use crate::{
        authorization_server::Lie,
        exchange::{CALLBACK, CLIENT},
        stack::in_process::owner,
        tokens::{Kept, connect, party, person, token},
    };

    const UPSTREAM: &str = "https://upstream.example/mcp";

    fn fixture(name: &str, dir: &Path) {
        std::fs::copy(fixtures("v1").join(name), dir.join(name)).expect("a fixture");
    }

    fn fixtures(version: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(version)
    }

    /// When what is in `v2` was stored.
    static STORED_AT: AtomicU64 = AtomicU64::new(0);

    /// The same as above, with what was added since: when requests may come again, and all that a record has by now.
    /// `RENEW_FIXTURES=1` stores it anew, of this version.
    #[tokio::test]
    #[ignore = "needs redis-server: make test-redis"]
    async fn redis_with_all_that_a_record_has_opens() {
        let (dir, fixtures) = (tempfile::tempdir().expect("a folder"), fixtures("v2"));
        if std::env::var_os("RENEW_FIXTURES").is_some() {
            store_for_the_next_version(&fixtures).await;
        }
        let about: Value =
            serde_json::from_slice(&std::fs::read(fixtures.join("about.json")).expect("it")).expect("it");
        let text = |member: &str| about[member].as_str().expect(member).to_owned();
        std::fs::copy(fixtures.join("dump.rdb"), dir.path().join("dump.rdb")).expect("a fixture");
        let redis = Redis::start(dir.path(), &["--appendonly", "no"], "--port").await;
        let store = vault::Config {
            url: Some(redis.url("redis", "").parse().expect("a URL")),
            encryption_keys: Some(fixtures.join("store.keys")),
            ..vault::Config::default()
        };
        let mut exchange = Embedded::new(Config { store, ..Config::default() }).expect("good settings");
        exchange.check().await.expect("it opens");
        STORED_AT.store(about["stored_at"].as_u64().expect("a time"), Ordering::Relaxed);
        exchange.tokens.clock = || UnixTime::from_secs(STORED_AT.load(Ordering::Relaxed));

        let owner = owner(anna(), CLIENT, &text("upstream"));
        let token = exchange.tokens.record(&owner).await.expect("a store").expect("a token");
        assert_eq!(token.access_token.expose(), text("access_token"));
        assert!(token.tag.is_some() && token.since.is_some() && !token.ended);
        let route = RouteKey::of(&owner.user, &owner.client_id, &text("upstream"));
        let open = exchange.tokens.vault.open().await.expect("a store");
        assert_eq!(open.store.token(route).await.expect("a store").expect("a token").again, Some(AGAIN));

        let complete = async |flow: &str, browser: u8| {
            let flow_id = BASE64_URL_SAFE_NO_PAD.decode(text(flow)).expect("an id").try_into().expect("16 bytes");
            let complete = Complete {
                flow_id: FlowId(flow_id),
                redirect_uri: RedirectUri::new(CALLBACK),
                user: anna(),
                browser_hash: BrowserHash([browser; 32]),
                answer: AuthorizationAnswer::Code(Secret::new("code")),
                iss: Some("https://other.example".to_owned()),
            };
            exchange.complete(complete, &Trace::default()).await.map_err(|incomplete| incomplete.error)
        };
        let used = Err(CompleteError::AlreadyUsed { return_to: "/after".to_owned() });
        assert_eq!(complete("pending", 8).await, Err(CompleteError::WrongContext));
        assert!(matches!(complete("pending", 7).await, Err(CompleteError::IssuerMismatch(_))), "the record opened");
        assert_eq!(complete("pending", 7).await, used);
        assert_eq!(complete("used", 7).await, used);
    }

    const AGAIN: UnixTime = UnixTime::from_secs(4_000_000_000);

    async fn store_for_the_next_version(fixtures: &Path) {
        let dir = tempfile::tempdir().expect("a folder");
        let redis = Redis::start(dir.path(), &["--appendonly", "no"], "--port").await;
        let kept = Kept::new(tempfile::tempdir().expect("a folder"), Some(redis.url("redis", "")));
        let flags = kept.flags();
        let lies = vec![Lie::none("good")];
        let (mut party, client) = party(lies, &flags.iter().map(String::as_str).collect::<Vec<_>>()).await;
        let user = person("https://idp.example", "anna");
        connect(&party, "good", user.clone(), CLIENT).await;
        let mut flows = Vec::new();
        for _ in 0..2 {
            let request = BeginAuthorizationRequest { user: Some(user.clone()), ..party.request("good") };
            let Outcome::Begun(begun) = party.begin_with(request).await else { panic!("it began") };
            flows.push(begun);
        }
        let used = CompleteAuthorizationRequest { user: Some(user.clone()), ..party.answer("good", &flows[1]) };
        party.complete(used).await.expect("completed");
        let access_token = token(&client, &party, "good", user, CLIENT).await.expect("a token");
        assert_eq!(party.process.process.stop().await, Some(0));
        let upstream = party.servers.upstream_of("good");
        let route = RouteKey::of(&anna(), &ClientId::new(CLIENT), &upstream);
        let now = UnixTime::now();
        assert!(kept.open().await.store.expect_again(route, AGAIN, now).await.expect("a store"));
        let mut connection = redis.connection().await;
        let keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut connection).await.expect("keys");
        for key in keys {
            // Redis would forget it when its time is over.
            redis::cmd("PERSIST").arg(key).query_async::<()>(&mut connection).await.expect("an answer");
        }
        redis::cmd("SAVE").query_async::<()>(&mut connection).await.expect("saved");
        std::fs::create_dir_all(fixtures).expect("a folder");
        std::fs::copy(dir.path().join("dump.rdb"), fixtures.join("dump.rdb")).expect("a fixture");
        std::fs::copy(&kept.keys, fixtures.join("store.keys")).expect("a fixture");
        let id = |number: usize| BASE64_URL_SAFE_NO_PAD.encode(&flows[number].flow_id);
        let about = json!({
            "stored_at": now.secs(), "upstream": upstream, "access_token": access_token, "pending": id(0), "used": id(1),
        });
        std::fs::write(fixtures.join("about.json"), format!("{about:#}\n")).expect("a fixture");
    }

    fn anna() -> User {
        User::Subject { issuer: "https://idp.example".to_owned(), subject: "anna".to_owned() }
    }

    async fn opens(url: &str, dir: &Path) {
        fixture("store.keys", dir);
        let store = vault::Config {
            url: Some(url.parse().expect("a URL")),
            encryption_keys: Some(dir.join("store.keys")),
            ..vault::Config::default()
        };
        let mut exchange = Embedded::new(Config { store, ..Config::default() }).expect("good settings");
        exchange.check().await.expect("it opens");
        exchange.tokens.clock = || NOW;
        let owner = owner(anna(), "https://mcp.example.com/.well-known/mcp-client-metadata.json", UPSTREAM);
        let token = exchange.tokens.record(&owner).await.expect("a store").expect("a token");
        assert_eq!(token.access_token.expose(), "fixture-access-token");
        assert_eq!(token.refresh_token.as_ref().map(Secret::expose), Some("fixture-refresh-token"));
        assert_eq!((token.resource.as_str(), token.issuer.as_str()), (UPSTREAM, "https://as.example"));
        assert_eq!(token.expires_at, Some(UnixTime::from_secs(4_000_000_000)));

        let cookie = "c29tZSBicm93c2VyJ3Mgc2VjcmV0LCAzMiBieXRlcyA";
        let complete = async |flow: u8, cookie: &str| {
            let complete = Complete {
                flow_id: FlowId([flow; 16]),
                redirect_uri: RedirectUri::new("https://mcp.example.com/.pomerium/oauth/callback"),
                user: anna(),
                browser_hash: BrowserHash(Sha256::digest(cookie).into()),
                // Of another issuer, so that nothing is sent anywhere.
                answer: AuthorizationAnswer::Code(Secret::new("code")),
                iss: Some("https://other.example".to_owned()),
            };
            exchange.complete(complete, &Trace::default()).await.map_err(|incomplete| incomplete.error)
        };
        let used = Err(CompleteError::AlreadyUsed { return_to: "/back?to=here".to_owned() });
        assert_eq!(complete(0x11, "another").await, Err(CompleteError::WrongContext));
        let mismatch = Err(CompleteError::IssuerMismatch("`iss` is not https://as.example".into()));
        assert_eq!(complete(0x11, cookie).await, mismatch, "the record opened");
        assert_eq!(complete(0x11, cookie).await, used);
        assert_eq!(complete(0x22, cookie).await, used);
    }

    #[tokio::test]
    async fn file_of_an_earlier_version_opens() {
        let dir = tempfile::tempdir().expect("a folder");
        fixture("store.redb", dir.path());
        opens(&format!("file:{}", dir.path().join("store.redb").display()), dir.path()).await;
    }

    #[tokio::test]
    #[ignore = "needs redis-server: make test-redis"]
    async fn redis_of_an_earlier_version_opens() {
        let dir = tempfile::tempdir().expect("a folder");
        fixture("dump.rdb", dir.path());
        let redis = Redis::start(dir.path(), &["--appendonly", "no"], "--port").await;
        opens(&redis.url("redis", ""), dir.path()).await;
    }
}

/// A place for a store, with a key file.
struct Bed {
    _dir: TempDir,
    url: StoreUrl,
    keys: PathBuf,
    extra_ca: Option<PathBuf>,
    redis: Option<Redis>,
}

impl Bed {
    fn new(dir: TempDir, url: String, redis: Option<Redis>) -> Self {
        let keys = key_file(dir.path());
        Self { url: url.parse().expect("a URL"), keys, extra_ca: None, redis, _dir: dir }
    }

    fn file() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let url = format!("file:{}", dir.path().join("store.redb").display());
        Self::new(dir, url, None)
    }

    async fn redis() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let redis = Redis::start(dir.path(), &[], "--port").await;
        Self::new(dir, redis.url("redis", ""), Some(redis))
    }

    async fn open(&self) -> Opened {
        self.url.open(Some(&self.keys), self.extra_ca.as_deref()).await.expect("a store")
    }

    async fn store(&self) -> Arc<dyn Store> {
        self.open().await.store
    }

    /// As many handles as processes may have it open.
    async fn stores(&self) -> Vec<Arc<dyn Store>> {
        let mut stores = vec![self.store().await];
        if self.url.is_shared() {
            stores.push(self.store().await);
        }
        stores
    }
}

/// A redis-server that loses nothing.
pub struct Redis {
    process: Process,
    port: u16,
    dir: PathBuf,
    flags: Vec<String>,
}

impl Redis {
    /// It cannot choose a port itself, so one is tried that is free a moment before.
    pub async fn start(dir: &Path, flags: &[&str], port_flag: &str) -> Self {
        loop {
            let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").port();
            let port_flags = [port_flag, &port.to_string()];
            let flags: Vec<_> = flags.iter().copied().chain(port_flags).map(str::to_owned).collect();
            if let Some(redis) = Self::start_at(port, dir, flags).await {
                return redis;
            }
        }
    }

    async fn start_at(port: u16, dir: &Path, flags: Vec<String>) -> Option<Self> {
        let process = Self::run(dir, &flags).await?;
        Some(Self { process, port, dir: dir.to_owned(), flags })
    }

    pub async fn kill(&mut self) {
        self.process.signal("-KILL");
        self.process.ended().await;
    }

    pub async fn stop(&mut self) {
        self.process.stop().await;
    }

    pub async fn start_again(&mut self) {
        self.process = Self::run(&self.dir, &self.flags).await.expect("its port is still free");
    }

    /// Starts again, and is not waited for until it has read what it keeps.
    async fn start_loading(&mut self, more: &[&str]) {
        let mut process = Process::spawn("redis-server", Self::command(&self.dir, &self.flags, more));
        process.line(|line| line.contains("Server initialized").then_some(())).await;
        self.process = process;
    }

    /// Puts in so many keys that are none of ours.
    async fn fill(&self, keys: usize) {
        let mut pipe = redis::pipe();
        for key in 0..keys {
            pipe.cmd("SET").arg(format!("other:{key}")).arg("x").ignore();
        }
        pipe.query_async::<()>(&mut self.connection().await).await.expect("an answer");
    }

    async fn info(&self, section: &str) -> String {
        redis::cmd("INFO").arg(section).query_async(&mut self.connection().await).await.expect("an answer")
    }

    fn command(dir: &Path, flags: &[String], more: &[&str]) -> Command {
        let executable = std::env::var("REDIS_SERVER").unwrap_or_else(|_| "redis-server".to_owned());
        let mut command = Command::new(executable);
        command.arg("--dir").arg(dir).args(["--bind", "127.0.0.1", "--save", ""]);
        // What it wrote outlives its process, which is all that is killed here; waiting for a busy disk would be a stall.
        command.args(["--appendonly", "yes", "--appendfsync", "no"]).args(flags).args(more);
        command
    }

    /// None where somebody else took the port.
    async fn run(dir: &Path, flags: &[String]) -> Option<Process> {
        let mut process = Process::spawn("redis-server", Self::command(dir, flags, &[]));
        let ready = process.line(|line| match line {
            line if line.contains("Ready to accept connections") => Some(true),
            line if line.contains("Address already in use") => Some(false),
            _ => None,
        });
        ready.await.then_some(process)
    }

    async fn connection(&self) -> redis::aio::MultiplexedConnection {
        let client = redis::Client::open(self.url("redis", "")).expect("a URL");
        client.get_multiplexed_async_connection().await.expect("Redis")
    }

    /// Writes behind everybody's back: a field of a hash that is there.
    pub async fn set_field(&self, key: &str, field: &str, value: &[u8]) {
        let mut connection = self.connection().await;
        let added: u8 =
            redis::cmd("HSET").arg(key).arg(field).arg(value).query_async(&mut connection).await.expect("an answer");
        assert_eq!(added, 0, "{key} {field} was there");
    }

    /// How often each command ran so far, those of scripts too.
    pub async fn command_calls(&self) -> BTreeMap<String, u64> {
        let stats = self.info("commandstats").await;
        let calls = |line: &str| {
            let (command, stats) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
            Some((command.to_owned(), stats.split(',').next()?.parse().ok()?))
        };
        stats.lines().filter_map(calls).collect()
    }

    pub fn url(&self, scheme: &str, login: &str) -> String {
        format!("{scheme}://{login}127.0.0.1:{}", self.port)
    }
}

fn flow(number: u8, user: u8) -> Flow {
    Flow {
        id: FlowKey::from_bytes([number; 32]),
        context: CONTEXT,
        user: UserKey::from_bytes([user; 32]),
        expires_at: NOW + 600,
        sealed: format!("sealed {number}").into(),
        tombstone: format!("tombstone {number}").into(),
    }
}

/// What a route's index points at.
async fn kept(store: &Arc<dyn Store>, route: RouteKey) -> Option<Kept> {
    store.token(route).await.expect("a store").map(|found| found.kept)
}

async fn take(store: &Arc<dyn Store>, number: u8, now: UnixTime) -> Taken {
    take_as(store, number, CONTEXT, now).await
}

async fn take_as(store: &Arc<dyn Store>, number: u8, context: Context, now: UnixTime) -> Taken {
    store.take_flow(FlowKey::from_bytes([number; 32]), context, now).await.expect("a store")
}

/// The error of an operation that does not keep anybody waiting.
async fn fails_soon<T>(operation: impl Future<Output = Result<T, StoreError>>) -> String {
    let began = Instant::now();
    match operation.await {
        Err(StoreError::Away(error) | StoreError::Failed(error)) => {
            assert!(began.elapsed() < Duration::from_secs(5), "{error}");
            error
        }
        Err(StoreError::Full) => panic!("full"),
        Ok(_) => panic!("it worked"),
    }
}

fn first(stores: &[Arc<dyn Store>]) -> &Arc<dyn Store> {
    stores.first().expect("a store")
}

fn last(stores: &[Arc<dyn Store>]) -> &Arc<dyn Store> {
    stores.last().expect("a store")
}
