//! Redis on several servers: real nodes of a cluster, and a master with replicas and sentinels.

use std::{net::TcpListener, time::Duration};

use envoy_cimd::{
    contract::proto::{begin_authorization_response::Outcome, complete_refusal::Reason},
    model::{client::ClientId, user::User},
};
use redis::FromRedisValue;
use tokio::{
    process::Command,
    time::{sleep, timeout},
};

use super::*;
use crate::{
    authorization_server::{Lie, Refresh},
    exchange::{CLIENT, single},
    stack::{PATIENCE, Process},
    tokens::{Kept, connect, over, party, token},
};

/// The slot of [`TOKEN`] and [`ROUTE`], which are nobody's.
const NOBODYS: &str = "{AAAAAAAA}";
/// How long a server is missed until another takes its place: short, for a test.
const MISSED: &str = "1000";

async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let holds = async {
        while !holds().await {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, holds).await.unwrap_or_else(|_| panic!("{what}"));
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").port()
}

impl Redis {
    async fn ask<T: FromRedisValue>(&self, command: &str) -> T {
        let mut words = command.split(' ');
        let mut command = redis::cmd(words.next().expect("a command"));
        words.for_each(|word| {
            command.arg(word);
        });
        command.query_async(&mut self.connection().await).await.expect("an answer")
    }

    /// Where it answers at all: one that changes its role hangs up.
    async fn says(&self, command: &str, words: &str) -> bool {
        let client = redis::Client::open(self.url("redis", "")).expect("a URL");
        let Ok(mut connection) = client.get_multiplexed_async_connection().await else { return false };
        let words_of_command: Vec<_> = command.split(' ').collect();
        let (name, arguments) = words_of_command.split_first().expect("a command");
        let said = redis::cmd(name).arg(arguments).query_async::<String>(&mut connection).await;
        said.is_ok_and(|said| said.contains(words))
    }
}

/// Nodes of a cluster. The first ones have the keys.
struct Cluster {
    nodes: Vec<Redis>,
    _dir: TempDir,
}

impl Cluster {
    /// A node for each range of slots, and so many replicas of the first.
    async fn start(ranges: &[(u16, u16)], replicas: usize) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let mut nodes = Vec::new();
        while nodes.len() < ranges.len() + replicas {
            let (port, bus, dir) = (free_port(), free_port(), dir.path().join(nodes.len().to_string()));
            std::fs::create_dir_all(&dir).expect("a folder");
            let flags = format!(
                "--cluster-enabled yes --cluster-node-timeout {MISSED} --port {port} --cluster-port {bus} \
                 --repl-diskless-sync-delay 0"
            );
            let flags = flags.split(' ').map(str::to_owned).collect();
            nodes.extend(Redis::start_at(port, &dir, flags).await);
        }
        let cluster = Self { nodes, _dir: dir };
        let mut ids: Vec<String> = Vec::new();
        for (number, node) in cluster.nodes.iter().enumerate() {
            if let Some((first, last)) = ranges.get(number) {
                node.ask::<()>(&format!("CLUSTER ADDSLOTSRANGE {first} {last}")).await;
            }
            node.ask::<()>(&format!("CLUSTER SET-CONFIG-EPOCH {}", number + 1)).await;
            ids.push(node.ask("CLUSTER MYID").await);
            let bus: (String, String) = cluster.nodes[0].ask("CONFIG GET cluster-port").await;
            let meet = format!("CLUSTER MEET 127.0.0.1 {} {}", cluster.nodes[0].port, bus.1);
            if number > 0 {
                node.ask::<()>(&meet).await;
            }
        }
        let all = format!("cluster_known_nodes:{}", cluster.nodes.len());
        for node in &cluster.nodes {
            until("all meet", async || node.says("CLUSTER INFO", &all).await).await;
        }
        for replica in &cluster.nodes[ranges.len()..] {
            until("it knows its master", async || replica.says("CLUSTER NODES", &ids[0]).await).await;
            replica.ask::<()>(&format!("CLUSTER REPLICATE {}", ids[0])).await;
            until("it is a replica", async || replica.says("INFO replication", "master_link_status:up").await).await;
        }
        for node in &cluster.nodes {
            until("it is whole", async || node.says("CLUSTER INFO", "cluster_state:ok").await).await;
        }
        cluster
    }

    /// Three nodes with a third of the keys each.
    async fn of_three() -> Self {
        Self::start(&[(0, 5460), (5461, 10922), (10923, 16383)], 0).await
    }

    fn url(&self) -> String {
        let nodes: Vec<_> = self.nodes.iter().take(3).map(|node| format!("127.0.0.1:{}", node.port)).collect();
        format!("redis+cluster://{}", nodes.join(","))
    }

    async fn empty(&self) {
        for node in &self.nodes {
            node.ask::<()>("FLUSHALL").await;
        }
    }

    fn bed(&self) -> Bed {
        Bed::new(tempfile::tempdir().expect("a folder"), self.url(), None)
    }
}

/// A master, two replicas and three sentinels.
struct Watched {
    servers: Vec<Redis>,
    sentinels: Vec<Redis>,
    _dir: TempDir,
}

impl Watched {
    async fn start(flags: &str, sentinel: &str) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let mut servers: Vec<Redis> = Vec::new();
        for number in 0..3 {
            let dir = dir.path().join(number.to_string());
            std::fs::create_dir_all(&dir).expect("a folder");
            let mut all = format!("--repl-diskless-sync-delay 0 {flags}");
            if let Some(master) = servers.first() {
                all += &format!(" --replicaof 127.0.0.1 {}", master.port);
            }
            let all: Vec<&str> = all.split_whitespace().collect();
            servers.push(Redis::start(&dir, &all, "--port").await);
        }
        let mut sentinels = Vec::new();
        let password = if flags.is_empty() { "" } else { "sentinel auth-pass mymaster hunter2" };
        while sentinels.len() < 3 {
            let (port, master) = (free_port(), servers[0].port);
            let file = dir.path().join(format!("sentinel-{port}.conf"));
            let text = format!(
                "port {port}\nbind 127.0.0.1\n{sentinel}\nsentinel monitor mymaster 127.0.0.1 {master} 2\n\
                 sentinel down-after-milliseconds mymaster {MISSED}\nsentinel failover-timeout mymaster 3000\n{password}\n"
            );
            std::fs::write(&file, text).expect("a file");
            let executable = std::env::var("REDIS_SERVER").unwrap_or_else(|_| "redis-server".to_owned());
            let mut command = Command::new(executable);
            command.arg(&file).arg("--sentinel");
            let mut process = Process::spawn("a sentinel", command);
            let ready = process.line(|line| match line {
                line if line.contains("+monitor master mymaster") => Some(true),
                line if line.contains("Address already in use") => Some(false),
                _ => None,
            });
            if ready.await {
                sentinels.push(Redis { process, port, dir: dir.path().to_owned(), flags: Vec::new() });
            }
        }
        let watched = Self { servers, sentinels, _dir: dir };
        let watches = if flags.is_empty() { 3 } else { 0 };
        for sentinel in watched.sentinels.iter().take(watches) {
            until("they know each other", async || {
                let known: std::collections::HashMap<String, String> = sentinel.ask("SENTINEL MASTER mymaster").await;
                known["num-slaves"] == "2" && known["num-other-sentinels"] == "2" && known["flags"] == "master"
            })
            .await;
        }
        watched
    }

    fn url(&self, login: &str) -> String {
        let sentinels: Vec<_> = self.sentinels.iter().map(|sentinel| format!("127.0.0.1:{}", sentinel.port)).collect();
        format!("redis+sentinel://{login}{}/mymaster", sentinels.join(","))
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server: make test-redis"]
async fn redis_cluster_is_held_to_the_suite() {
    let cluster = Cluster::of_three().await;
    suite(&cluster.bed(), async || cluster.empty().await).await;
}

/// Each person's tokens are on one node, and people on all.
#[tokio::test]
#[ignore = "needs redis-server: make test-redis"]
async fn redis_cluster_spreads_people() {
    let cluster = Cluster::of_three().await;
    let store = cluster.bed().store().await;
    let client = ClientId::new(CLIENT);
    let routes: Vec<_> = (0..60)
        .map(|number| {
            let user = User::Subject { issuer: "i".to_owned(), subject: number.to_string() };
            RouteKey::of(&user, &client, "u")
        })
        .collect();
    let token_of = |route: &RouteKey| TokenKey::from_bytes(*route.as_bytes()).of_owner(route.owner());
    for route in &routes {
        store.put_token(token_of(route), *route, b"sealed".into()).await.expect("kept");
    }
    for route in &routes {
        assert_eq!(kept(&store, *route).await, Some((token_of(route), b"sealed".into())));
    }
    for node in &cluster.nodes {
        let keys: Vec<String> = node.ask("KEYS envoy_cimd:v1:*").await;
        assert!(keys.iter().filter(|key| key.contains(":route:")).count() > 5, "{keys:?}");
        assert!(keys.iter().all(|key| key.starts_with("envoy_cimd:v1:{")), "{keys:?}");
    }
}

/// A node that is gone takes its keys with it for that time, and no others.
#[tokio::test]
#[ignore = "needs redis-server: make test-redis"]
async fn redis_cluster_may_miss_a_node_for_a_while() {
    let mut cluster = Cluster::of_three().await;
    for node in &cluster.nodes {
        node.ask::<()>("CONFIG SET cluster-require-full-coverage no").await;
    }
    let store = cluster.bed().store().await;
    store.put_token(TOKEN, ROUTE, b"sealed".into()).await.expect("kept");
    store.add_flow(flow(1, 1), LIMITS, NOW).await.expect("added");
    let slot: u16 = cluster.nodes[0].ask("CLUSTER KEYSLOT {flows}").await;
    let tokens: u16 = cluster.nodes[0].ask(&format!("CLUSTER KEYSLOT {NOBODYS}")).await;
    let node = usize::from(slot / 5461);
    assert_ne!(usize::from(tokens / 5461), node, "on another one");
    cluster.nodes[node].kill().await;
    for _ in 0..3 {
        let error = fails_soon(store.take_flow(flow(1, 1).id, CONTEXT, NOW)).await;
        assert!(error.contains("redis+cluster://127.0.0.1:"), "{error}");
        let again = store.take_flow(flow(1, 1).id, CONTEXT, NOW).await;
        assert!(matches!(again, Err(StoreError::Away(_))), "nothing was done");
        fails_soon(store.add_flow(flow(2, 1), LIMITS, NOW)).await;
        assert_eq!(kept(&store, ROUTE).await, Some((TOKEN, b"sealed".into())));
    }
    cluster.nodes[node].start_again().await;
    until("it is there again", async || store.add_flow(flow(3, 1), LIMITS, NOW).await.is_ok()).await;
    assert!(matches!(take(&store, 1, NOW).await, Taken::Flow(_)), "nothing was consumed");
    assert_eq!(take(&store, 2, NOW).await, Taken::Unknown);
}

/// A slot moves from one node to another while it is in use.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server: make test-redis"]
async fn redis_cluster_may_move_keys() {
    let cluster = Cluster::of_three().await;
    let store = cluster.bed().store().await;
    let slot: u16 = cluster.nodes[0].ask(&format!("CLUSTER KEYSLOT {NOBODYS}")).await;
    let (from, to) = (&cluster.nodes[usize::from(slot / 5461)], &cluster.nodes[usize::from(slot / 5461 + 1) % 3]);
    let ids: [String; 2] = [from.ask("CLUSTER MYID").await, to.ask("CLUSTER MYID").await];
    store.put_token(TOKEN, ROUTE, b"one".into()).await.expect("kept");
    assert!(store.expect_again(ROUTE, NOW + 660, NOW).await.expect("noted"));
    to.ask::<()>(&format!("CLUSTER SETSLOT {slot} IMPORTING {}", ids[0])).await;
    from.ask::<()>(&format!("CLUSTER SETSLOT {slot} MIGRATING {}", ids[1])).await;
    // What is not there any more, or not yet, is where it goes to.
    assert!(store.claim(TOKEN, Holder([1; 16]), 60).await.expect("a store"));
    assert!(!store.claim(TOKEN, Holder([2; 16]), 60).await.expect("a store"));
    assert_eq!(from.ask::<usize>(&format!("CLUSTER COUNTKEYSINSLOT {slot}")).await, 3);
    assert_eq!(to.ask::<usize>(&format!("CLUSTER COUNTKEYSINSLOT {slot}")).await, 1);
    assert_eq!(kept(&store, ROUTE).await, Some((TOKEN, b"one".into())), "where it was");
    let keys: Vec<String> = from.ask(&format!("CLUSTER GETKEYSINSLOT {slot} 10")).await;
    let (token, others): (Vec<_>, Vec<_>) = keys.iter().partition(|key| key.contains(":token:"));
    let move_keys = async |keys: &[&String]| {
        for key in keys {
            from.ask::<()>(&format!("MIGRATE 127.0.0.1 {} {key} 0 5000", to.port)).await;
        }
    };
    move_keys(&token).await;
    // Half here, half there: it is asked for again, and nobody is told that there is none.
    let asked = async || {
        let calls = [from.command_calls().await, to.command_calls().await];
        calls.iter().filter_map(|calls| calls.get("evalsha")).sum::<u64>()
    };
    let before = asked().await;
    let finding = tokio::spawn({
        let store = Arc::clone(&store);
        async move { kept(&store, ROUTE).await }
    });
    until("it is asked for again", async || asked().await > before + 2).await;
    move_keys(&others).await;
    assert_eq!(finding.await.expect("no panic"), Some((TOKEN, b"one".into())));
    assert!(store.replace_token(TOKEN, b"one".into(), b"two".into()).await.expect("a store"));
    for node in &cluster.nodes {
        node.ask::<()>(&format!("CLUSTER SETSLOT {slot} NODE {}", ids[1])).await;
    }
    assert_eq!(kept(&store, ROUTE).await, Some((TOKEN, b"two".into())), "where it is now");
    assert!(!store.claim(TOKEN, Holder([3; 16]), 60).await.expect("a store"));
    store.release(TOKEN, Holder([1; 16])).await.expect("a store");
    assert!(
        from.says("INFO errorstats", "errorstat_MOVED").await && from.says("INFO errorstats", "errorstat_ASK").await
    );
}

/// What was stored, and said to be, is there after another server has taken the place of one that dies.
async fn what_counts_is_kept(store: &Arc<dyn Store>, fail_over: impl AsyncFnOnce()) {
    let writer = {
        let store = Arc::clone(store);
        tokio::spawn(async move {
            let (mut kept, mut failed) = (Vec::new(), 0);
            for number in 0..=u8::MAX {
                let (token, route) = (TokenKey::from_bytes([number; 32]), RouteKey::from_bytes([number; 32]));
                match store.put_token(token, route, vec![number]).await {
                    Ok(_) => kept.push((token, route, vec![number])),
                    Err(_) => failed += 1,
                }
                sleep(Duration::from_millis(if failed == 0 { 1 } else { 50 })).await;
                if failed > 0 && kept.last().is_some_and(|(_, _, last)| *last == [number]) {
                    break;
                }
            }
            (kept, failed)
        })
    };
    sleep(Duration::from_millis(20)).await;
    fail_over().await;
    let (all, _) = writer.await.expect("no panic");
    until("it is served", async || store.token(ROUTE).await.is_ok()).await;
    for (token, route, sealed) in all {
        assert_eq!(kept(store, route).await, Some((token, sealed)));
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server: make test-redis"]
async fn redis_cluster_fails_over() {
    let mut cluster = Cluster::start(&[(0, 16381), (16382, 16382), (16383, 16383)], 1).await;
    let store = cluster.bed().store().await;
    let [first, .., replica] = &mut cluster.nodes[..] else { panic!("nodes") };
    what_counts_is_kept(&store, async || first.kill().await).await;
    assert!(replica.says("INFO replication", "role:master").await);
    // What was the master comes back as a replica, and the other way round.
    first.start_again().await;
    until("it is a replica", async || first.says("INFO replication", "master_link_status:up").await).await;
    let (kept_before, route) = (kept(&store, RouteKey::from_bytes([0; 32])).await, RouteKey::from_bytes([0; 32]));
    first.ask::<()>("CLUSTER FAILOVER TAKEOVER").await;
    until("it is the master", async || first.says("INFO replication", "role:master").await).await;
    assert_eq!(kept(&store, route).await, kept_before, "the first attempt");
    store.put_token(TOKEN, ROUTE, b"new".into()).await.expect("kept");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server: make test-redis"]
async fn redis_sentinels_fail_over() {
    let watched = Watched::start("", "").await;
    let bed = Bed::new(tempfile::tempdir().expect("a folder"), watched.url(""), None);
    takes_a_flow_once(&bed).await;
    let store = bed.store().await;
    // It hangs, and comes back as if nothing had been.
    what_counts_is_kept(&store, async || watched.servers[0].process.signal("-STOP")).await;
    watched.servers[0].process.signal("-CONT");
    until("it is a replica", async || watched.servers[0].says("INFO replication", "role:slave").await).await;
    store.put_token(TOKEN, ROUTE, b"new".into()).await.expect("kept");
    assert_eq!(kept(&store, ROUTE).await, Some((TOKEN, b"new".into())));
}

/// Servers want a password; sentinels want none, or the same.
#[tokio::test]
#[ignore = "needs redis-server: make test-redis"]
async fn redis_sentinels_may_want_a_password() {
    for sentinel in ["", "requirepass hunter2"] {
        let watched = Watched::start("--requirepass hunter2 --masterauth hunter2", sentinel).await;
        let bed = Bed::new(tempfile::tempdir().expect("a folder"), watched.url(":hunter2@"), None);
        takes_a_flow_once(&bed).await;
        let url: StoreUrl = watched.url(":wrong@").parse().expect("a URL");
        let error = url.open(Some(&bed.keys), None).await.err().expect("refused").to_string();
        assert!(!error.contains("wrong@") && !error.contains("hunter2"), "{error}");
        let url: StoreUrl = watched.url(":hunter2@").replace("mymaster", "another").parse().expect("a URL");
        let error = url.open(Some(&bed.keys), None).await.err().expect("refused").to_string();
        assert!(error.contains("the sentinels know no master of this name"), "{error}");
    }
}

/// Another server takes the place of the one that has everything, in the midst of a flow and of a refresh: the flow ends
/// well, what was connected before is, and the refresh brought its token.
async fn in_mid_flow(url: String, fail_over: impl AsyncFnOnce()) {
    let stored = Kept::at(&url);
    let flags = stored.flags();
    let lies = vec![Lie::none("before"), Lie::none("amid"), over("refreshed", Refresh::RotatesLate)];
    let (party, client) = party(lies, &flags.iter().map(String::as_str).collect::<Vec<_>>()).await;
    connect(&party, "before", single(), CLIENT).await;
    connect(&party, "refreshed", single(), CLIENT).await;
    let tokens = async |name| token(&client, &party, name, single(), CLIENT).await;
    let before = tokens("before").await.expect("a token");
    let Outcome::Begun(begun) = party.begin_with(party.request("amid")).await else { panic!("it began") };

    let rest = async {
        until("the refresh is under way", async || party.servers.refreshes().len() == 1).await;
        fail_over().await;
        party.servers.answer();
        let answer = party.answer("amid", &begun);
        let completed = async {
            loop {
                match party.try_to_complete(answer.clone()).await {
                    // What was under way when it died.
                    Ok(Err((Reason::Failed | Reason::Unavailable, _))) => {}
                    outcome => break outcome.expect("an answer"),
                }
                sleep(Duration::from_millis(50)).await;
            }
        };
        assert_eq!(timeout(PATIENCE, completed).await.expect("it is served again"), Ok("/after".to_owned()));
        until("the refresh is kept", async || tokens("refreshed").await.is_ok()).await;
    };
    // Whoever asked for it may be told that nobody knows.
    let _ = tokio::join!(tokens("refreshed"), rest);
    assert_eq!(tokens("before").await, Ok(before));
    assert!(tokens("amid").await.is_ok());
    for mut sent in [party.servers.exchanges(), party.servers.refreshes()] {
        let all = sent.len();
        sent.sort();
        sent.dedup();
        assert_eq!(sent.len(), all, "nothing was sent twice");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server: make test-redis"]
async fn redis_cluster_fails_over_in_mid_flow() {
    let mut cluster = Cluster::start(&[(0, 16381), (16382, 16382), (16383, 16383)], 1).await;
    let url = cluster.url();
    in_mid_flow(url, async || cluster.nodes[0].kill().await).await;
    assert!(cluster.nodes[3].says("INFO replication", "role:master").await);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server: make test-redis"]
async fn redis_sentinels_fail_over_in_mid_flow() {
    let mut watched = Watched::start("", "").await;
    let url = watched.url("");
    in_mid_flow(url, async || watched.servers[0].kill().await).await;
}
