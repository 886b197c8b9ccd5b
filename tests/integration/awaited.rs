//! Tokens that are waited for, and the mark of those whose requests may come again.

use std::{path::PathBuf, time::Duration};

use envoy_cimd::{
    contract::{
        proto::{
            ExpectAgainRequest, GetUpstreamTokenRequest, GetUpstreamTokenResponse, User,
            upstream_tokens_client::UpstreamTokensClient,
        },
        tokens::{AFTER_WAIT, COMES_AGAIN, LONGEST_WAIT, Missing, TokenError, UpstreamTokens as _},
    },
    exchange::embedded::{self, Embedded},
    model::{clock::UnixTime, trace::Trace, user::User as Person},
    net::tls::client,
    store::vault,
};
use futures_util::future::join_all;
use prost_types::Timestamp;
use tokio::{
    task::{JoinHandle, yield_now},
    time::{Instant, timeout},
};
use tonic::{Code, transport::Channel};

use crate::{
    authorization_server::{Lie, Refresh},
    exchange::{CLIENT, Party, single},
    stack::{Choreographer, in_process::owner, metric},
    store::Redis,
    tokens::{Kept, audited, begin, connect, connect_in_process, disconnect, in_process_with, over, party, person},
    tokens_client::client_of,
    world::executable,
};

type Tokens = UpstreamTokensClient<Channel>;

/// A process where people connect, and one where others wait for what comes of it; they may be the same.
struct Room {
    party: Party,
    waits_at: String,
    client: Tokens,
    other: Option<Choreographer>,
    redis: Option<Redis>,
}

impl Room {
    /// One process, which has the file.
    async fn file(lies: Vec<Lie>) -> Self {
        let (party, client) = party(lies, &[]).await;
        Self { waits_at: party.process.admin.clone(), party, client, other: None, redis: None }
    }

    /// Two that share a store.
    async fn redis(lies: Vec<Lie>) -> Self {
        let dir = tempfile::tempdir().expect("a folder").keep();
        let redis = Redis::start(&dir, &[], "--port").await;
        let kept = Kept::at(&redis.url("redis", ""));
        let flags = kept.flags();
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let (party, _) = party(lies, &flags).await;
        let (other, client) = kept.again(&party).await;
        Self { waits_at: other.admin.clone(), party, client, other: Some(other), redis: Some(redis) }
    }

    fn asks(&self, name: &str, user: User, seconds: i64) -> GetUpstreamTokenRequest {
        GetUpstreamTokenRequest {
            user: Some(user),
            client_id: CLIENT.to_owned(),
            upstream: self.party.servers.upstream_of(name),
            wait: Some(prost_types::Duration { seconds, nanos: 0 }),
            ..GetUpstreamTokenRequest::default()
        }
    }

    fn wait(&self, request: GetUpstreamTokenRequest) -> JoinHandle<Result<GetUpstreamTokenResponse, Code>> {
        let mut client = self.client.clone();
        tokio::spawn(async move {
            let answer = client.get_upstream_token(request).await;
            answer.map(|answer| answer.into_inner()).map_err(|status| status.code())
        })
    }

    /// Until as many tokens are waited for in that process.
    async fn waited_for(&self, tokens: u64) {
        waited_for(&self.waits_at, tokens).await;
    }

    /// What a token is handed out with, where that is.
    async fn mark(&self, name: &str, user: User) -> Option<u64> {
        let request = GetUpstreamTokenRequest { wait: None, ..self.asks(name, user, 0) };
        let answer = self.client.clone().get_upstream_token(request).await.expect("a token").into_inner();
        answer.again_until.map(|Timestamp { seconds, .. }| seconds.try_into().expect("after 1970"))
    }

    async fn expect_again(&self, name: &str, user: User) -> Result<(), Code> {
        let request = ExpectAgainRequest {
            user: Some(user),
            client_id: CLIENT.to_owned(),
            upstream: self.party.servers.upstream_of(name),
        };
        self.client.clone().expect_again(request).await.map(drop).map_err(|status| status.code())
    }
}

async fn waited_for(admin: &str, tokens: u64) {
    while metric(admin, "envoy_cimd_token_waits").await != Some(tokens) {
        yield_now().await;
    }
}

/// Generous, and far below what the waits are for.
async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(12), what).await.expect("it ends when it should")
}

async fn wakes_who_waits(mut room: Room) {
    let ann = || person("https://idp.example", "ann");
    let waits: Vec<_> = (0..200).map(|_| room.wait(room.asks("good", ann(), 20))).collect();
    room.waited_for(1).await;
    // Others, who get nothing of it: another user, another upstream, and a route that pins another server.
    let pinned = GetUpstreamTokenRequest {
        authorization_server: "https://evil.example".to_owned(),
        ..room.asks("good", ann(), 20)
    };
    let others = [
        room.asks("good", person("https://idp.example", "bob"), 20),
        room.asks("good", person("https://evil.example", "ann"), 20),
        room.asks("other", ann(), 20),
        pinned,
    ]
    .map(|request| room.wait(request));
    room.waited_for(5).await;
    connect(&room.party, "good", ann(), CLIENT).await;
    let answers = soon(join_all(waits)).await;
    let mut tokens = Vec::new();
    for answer in answers {
        tokens.push(answer.expect("no panic").expect("a token").access_token);
    }
    tokens.dedup();
    assert_eq!(tokens.len(), 1, "{tokens:?}");
    room.waited_for(4).await;
    for other in &others {
        assert!(!other.is_finished(), "it is not theirs");
        other.abort();
    }
    room.waited_for(0).await;
    let handed_out = "envoy_cimd_token_lookups_total{result=\"handed_out\"}";
    assert_eq!(metric(&room.waits_at, handed_out).await, Some(200), "each is a hand-out");
    if room.other.is_none() {
        assert_eq!(room.party.process.process.stop().await, Some(0));
        assert_eq!(audited(&room.party, "handed_out"), ["ok"; 200]);
        assert!(!room.party.process.process.output().contains("SECRET"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_wakes_all_who_wait_for_it() {
    wakes_who_waits(Room::file(vec![Lie::none("good"), Lie::none("other")]).await).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server: make test-redis"]
async fn redis_a_token_wakes_all_who_wait_for_it_at_another_replica() {
    wakes_who_waits(Room::redis(vec![Lie::none("good"), Lie::none("other")]).await).await;
}

/// A token that is there is not waited for, a grant that ended is, and a wait that brings nothing says what there is.
#[tokio::test(flavor = "multi_thread")]
async fn a_wait_says_what_a_look_up_says() {
    let room = Room::file(vec![over("ends", Refresh::Rotates), Lie::none("good")]).await;
    let tokens = async |request| soon(room.wait(request)).await.expect("no panic").map(|answer| answer.access_token);
    assert_eq!(tokens(room.asks("good", single(), 1)).await, Err(Code::NotFound));
    connect(&room.party, "good", single(), CLIENT).await;
    assert!(tokens(room.asks("good", single(), 20)).await.is_ok());
    assert!(tokens(room.asks("good", single(), 0)).await.is_ok());
    let backwards = prost_types::Duration { seconds: -1, nanos: 0 };
    let request = GetUpstreamTokenRequest { wait: Some(backwards), ..room.asks("good", single(), 0) };
    assert_eq!(tokens(request).await, Err(Code::InvalidArgument));

    connect(&room.party, "ends", single(), CLIENT).await;
    room.party.servers.forget_grants();
    let request = room.asks("ends", single(), 1);
    let status = room.client.clone().get_upstream_token(request).await.expect_err("it is over");
    let missing = status.metadata().get("envoy-cimd-not-found").map(|missing| missing.to_str().expect("text"));
    assert_eq!((status.code(), missing), (Code::NotFound, Some("lost")));
    let wait = room.wait(room.asks("ends", single(), 20));
    room.waited_for(1).await;
    connect(&room.party, "ends", single(), CLIENT).await;
    assert!(soon(wait).await.expect("no panic").is_ok());
}

/// Whoever leaves is gone at the other side at once, the last one with all that was done for them.
#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_ends_the_wait_over_grpc() {
    let dir = tempfile::tempdir().expect("a folder");
    let text = |path: PathBuf| path.to_str().expect("text").to_owned();
    let address = format!("unix:{}", text(dir.path().join("tokens.sock")));
    let flags = ["--tokens-listen", &address, "--state-dir", &text(dir.path().join("state"))];
    let process = Choreographer::start(&executable(), &flags).await;
    let client = client_of(&address, &client::Config::default()).await;
    let wait = || {
        let (client, owner) = (client.clone(), owner(Person::Single, CLIENT, "https://upstream.example/mcp"));
        tokio::spawn(async move { client.awaited_token(owner, LONGEST_WAIT, &Trace::default()).await })
    };
    for waiting in [1, 50] {
        let waits: Vec<_> = (0..waiting).map(|_| wait()).collect();
        soon(waited_for(&process.admin, 1)).await;
        waits.iter().for_each(JoinHandle::abort);
        soon(waited_for(&process.admin, 0)).await;
    }
    // A client that is killed takes its connection with it.
    let dropped = client_of(&address, &client::Config::default()).await;
    let runtime = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
        let owner = owner(Person::Single, CLIENT, "https://upstream.example/mcp");
        runtime.spawn(async move { dropped.awaited_token(owner, LONGEST_WAIT, &Trace::default()).await });
        runtime
    });
    let runtime = runtime.join().expect("no panic");
    soon(waited_for(&process.admin, 1)).await;
    runtime.shutdown_background();
    soon(waited_for(&process.admin, 0)).await;
}

/// However many wait for a token that does not come, the store is asked as for one.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server: make test-redis"]
async fn redis_a_thousand_who_wait_cost_what_ten_do() {
    let room = Room::redis(vec![Lie::none("good")]).await;
    let redis = room.redis.as_ref().expect("Redis");
    let scripts = async || redis.command_calls().await.get("evalsha").copied().unwrap_or_default();
    let subject = |number: usize| person("https://idp.example", &(number % 10).to_string());
    // The script is there from now on.
    assert_eq!(room.wait(room.asks("good", subject(0), 1)).await.expect("no panic"), Err(Code::NotFound));
    let before = scripts().await;
    let waits: Vec<_> = (0..1000).map(|number| room.wait(room.asks("good", subject(number), 4))).collect();
    room.waited_for(10).await;
    for wait in waits {
        assert_eq!(wait.await.expect("no panic"), Err(Code::NotFound));
    }
    let calls = scripts().await - before;
    assert!((20..=500).contains(&calls), "{calls} for ten owners who waited a few seconds");
    room.waited_for(0).await;
}

/// Nobody waits for what nobody can know, and a store that comes back is not stormed.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server: make test-redis"]
async fn redis_that_goes_away_ends_the_waits() {
    let mut room = Room::redis(vec![Lie::none("good")]).await;
    let waits: Vec<_> = (0..50).map(|_| room.wait(room.asks("good", single(), 20))).collect();
    room.waited_for(1).await;
    room.redis.as_mut().expect("Redis").kill().await;
    for wait in waits {
        assert_eq!(soon(wait).await.expect("no panic"), Err(Code::Unavailable));
    }
    assert_eq!(soon(room.wait(room.asks("good", single(), 20))).await.expect("no panic"), Err(Code::Unavailable));
    assert_eq!(soon(room.expect_again("good", single())).await, Err(Code::Unavailable));
    room.waited_for(0).await;
    room.redis.as_mut().expect("Redis").start_again().await;
    let wait = room.wait(room.asks("good", single(), 20));
    room.waited_for(1).await;
    connect(&room.party, "good", single(), CLIENT).await;
    assert!(soon(wait).await.expect("no panic").is_ok());
}

async fn marks(room: Room) {
    let ann = || person("https://idp.example", "ann");
    assert_eq!(room.expect_again("good", ann()).await, Err(Code::NotFound), "she never connected");
    for (name, user) in [("good", ann()), ("other", ann()), ("good", single())] {
        connect(&room.party, name, user, CLIENT).await;
    }
    assert_eq!(room.mark("good", ann()).await, None);
    let before = UnixTime::now();
    assert_eq!(room.expect_again("good", ann()).await, Ok(()));
    let marked = room.mark("good", ann()).await.expect("a mark");
    assert!((before.secs() + COMES_AGAIN..=UnixTime::now().secs() + COMES_AGAIN).contains(&marked));
    assert_eq!(room.mark("other", ann()).await, None, "it is of one route");
    assert_eq!(room.mark("good", single()).await, None, "and of one user");
    // What comes after a wait has it, too; and what the client has to send again it sends whoever disconnected.
    disconnect(&room.client, &room.party, "good", ann(), CLIENT).await;
    let wait = room.wait(room.asks("good", ann(), 20));
    room.waited_for(1).await;
    connect(&room.party, "good", ann(), CLIENT).await;
    let answer = soon(wait).await.expect("no panic").expect("a token");
    assert_eq!(answer.again_until.map(|at| at.seconds.unsigned_abs()), Some(marked));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mark_comes_with_each_hand_out() {
    marks(Room::file(vec![Lie::none("good"), Lie::none("other")]).await).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server: make test-redis"]
async fn redis_a_mark_comes_with_each_hand_out_of_each_replica() {
    marks(Room::redis(vec![Lie::none("good"), Lie::none("other")]).await).await;
}

/// Of a grant that ended by itself, as where a person is asked to connect again.
#[tokio::test]
async fn a_mark_ends_by_itself() {
    const BEGAN: UnixTime = UnixTime::from_secs(1_800_000_000);
    let (_dir, servers, mut embedded) = in_process_with(vec![Lie::none("good")]).await;
    let of = owner(Person::Single, CLIENT, &servers.upstream_of("good"));
    embedded.tokens.clock = || BEGAN;
    connect_in_process(&servers, &embedded, begin(&servers, "good")).await;
    let again = async |embedded: &Embedded| {
        let token = embedded.tokens.upstream_token(of.clone(), &Trace::default()).await.expect("a token");
        token.again
    };
    assert_eq!(embedded.tokens.expect_again(of.clone(), &Trace::default()).await, Ok(()));
    assert_eq!(again(&embedded).await, Some(BEGAN + 660));
    embedded.tokens.clock = || BEGAN + 659;
    assert_eq!(again(&embedded).await, Some(BEGAN + 660));
    embedded.tokens.clock = || BEGAN + 660;
    assert_eq!(again(&embedded).await, None);
}

/// Whatever is asked for, no wait is longer; and no hold is: the answer comes within 24 seconds.
#[tokio::test(start_paused = true)]
async fn no_wait_is_longer_than_the_longest() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = vault::Config { state_dir: Some(dir.path().join("state")), ..vault::Config::default() };
    let embedded = Embedded::new(embedded::Config { store, ..embedded::Config::default() }).expect("good settings");
    let begin = Instant::now();
    let owner = owner(Person::Single, CLIENT, "https://upstream.example/mcp");
    let found = embedded.tokens.awaited_token(owner, Duration::MAX, &Trace::default()).await;
    assert_eq!(found.err(), Some(TokenError::NotFound(Missing::Never)));
    assert_eq!(begin.elapsed().as_secs(), 20);
    assert_eq!((LONGEST_WAIT + AFTER_WAIT).as_secs(), 24);
}
