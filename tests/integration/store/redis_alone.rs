//! What Redis alone does: it goes away, starts slowly, runs full, and wants to know who asks.

use std::{path::Path, sync::Arc};

use envoy_cimd::store::{
    backend::{Flow, FlowLimits, Taken},
    error::{OpenError, StoreError},
    url::StoreUrl,
};

use super::{
    Bed, CONTEXT, LIMITS, NOW, ROUTE, TOKEN, fails_soon, finds_tokens_by_route, flow,
    flows::{lets_a_users_oldest_go, takes_a_flow_once},
    keeps_large_values, kept,
    redis_server::Redis,
    take,
};
use crate::stack::Certificates;

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
