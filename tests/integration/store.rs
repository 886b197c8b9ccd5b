//! What a store promises, held to by every backend: one suite for the file and for Redis, where two handles stand for
//! two processes. `make test-redis` runs the part that needs a redis-server.

use std::{
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

use self::flows::{
    counts_nothing_that_expired, forgets_what_expired, gives_each_flow_to_one_of_many, is_full_at_the_limit,
    keeps_limits_among_many, lets_a_users_oldest_go, takes_a_flow_once, takes_no_id_twice,
};
use crate::stack::key_file;

pub use self::redis_server::Redis;

mod earlier;
mod flows;
mod nodes;
mod redis_alone;
mod redis_server;

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
