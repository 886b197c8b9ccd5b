//! What an earlier version stored for Anna, as it is in `tests/fixtures`: a pending flow, one that was used, a token.

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
    let about: Value = serde_json::from_slice(&std::fs::read(fixtures.join("about.json")).expect("it")).expect("it");
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
    let kept = Kept::at(&redis.url("redis", ""));
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
