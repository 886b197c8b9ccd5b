//! What MCP requests ask of Redis, counted by Redis itself.

use std::{collections::BTreeMap, path::Path, time::Duration};

use envoy_cimd::store::url::StoreUrl;
use tokio::{process::Command, time::interval};

use crate::{
    executable,
    people::{self, WHO},
    stack::{Cimd, Process, grpc, key_file},
};

/// How long is counted.
const SECONDS: u64 = 60;

/// One person who sends a request every so often, for a minute.
pub async fn count() {
    let dir = tempfile::tempdir().expect("a folder");
    let (_redis, url) = start(dir.path()).await;
    let keys = key_file(dir.path()).display().to_string();
    let upstream = "https://upstream.bench.example/mcp";
    let store: StoreUrl = url.parse().expect("a URL");
    let open = store.open(Some(Path::new(&keys)), None).await.expect("a store");
    people::put(&open, 0..2, upstream).await;
    let flags = ["--state-keys", &keys, "--encryption-keys", &keys, "--store", &url, "--insecure-traffic"];
    let cimd = Cimd::start(&executable(), &[&WHO[..], &flags].concat()).await;
    let channel = grpc::channel(&cimd.ext_proc).await;
    // The connection is made, and the script is there.
    people::ask(&channel, 1, upstream).await;
    println!(
        "\n## Redis\n\n| one person asks | requests | `EVALSHA` a minute | all commands |\n| --- | ---: | ---: | --- |"
    );
    for every in [Duration::from_millis(20), Duration::from_secs(1), Duration::from_secs(6)] {
        // What was kept for the last row is over.
        tokio::time::sleep(Duration::from_secs(6)).await;
        let before = commands(&url).await;
        let mut ticks = interval(every);
        let requests = SECONDS * 1000 / u64::try_from(every.as_millis()).expect("short");
        for _ in 0..requests {
            ticks.tick().await;
            people::ask(&channel, 0, upstream).await;
        }
        let mut calls = commands(&url).await;
        calls.iter_mut().for_each(|(command, calls)| *calls -= before.get(command).unwrap_or(&0));
        calls.retain(|command, calls| *calls > 0 && command != "info");
        let scripts = calls.get("evalsha").copied().unwrap_or_default();
        println!("| every {every:?} | {requests} | {scripts} | {calls:?} |");
    }
}

/// It cannot choose a port itself, so one is tried that is free a moment before.
async fn start(dir: &Path) -> (Process, String) {
    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").port();
    let mut command = Command::new(std::env::var("REDIS_SERVER").unwrap_or_else(|_| "redis-server".to_owned()));
    command.arg("--dir").arg(dir).args(["--bind", "127.0.0.1", "--save", "", "--port", &port.to_string()]);
    let mut process = Process::spawn("redis-server", command);
    process.line(|line| line.contains("Ready to accept connections").then_some(())).await;
    (process, format!("redis://127.0.0.1:{port}"))
}

/// How often each command was called.
async fn commands(url: &str) -> BTreeMap<String, i64> {
    let client = ::redis::Client::open(url).expect("a URL");
    let mut connection = client.get_multiplexed_async_connection().await.expect("Redis");
    let stats: String =
        ::redis::cmd("INFO").arg("commandstats").query_async(&mut connection).await.expect("statistics");
    let calls = |line: &str| {
        let (command, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
        Some((command.to_owned(), rest.split(',').next()?.parse().ok()?))
    };
    stats.lines().filter_map(calls).collect()
}
