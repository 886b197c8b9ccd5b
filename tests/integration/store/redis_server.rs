//! A redis-server of a test's own.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use tokio::process::Command;

use crate::stack::Process;

/// A redis-server that loses nothing.
pub struct Redis {
    pub process: Process,
    pub port: u16,
    pub dir: PathBuf,
    pub flags: Vec<String>,
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

    pub async fn start_at(port: u16, dir: &Path, flags: Vec<String>) -> Option<Self> {
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
    pub async fn start_loading(&mut self, more: &[&str]) {
        let mut process = Process::spawn("redis-server", Self::command(&self.dir, &self.flags, more));
        process.line(|line| line.contains("Server initialized").then_some(())).await;
        self.process = process;
    }

    /// Puts in so many keys that are none of ours.
    pub async fn fill(&self, keys: usize) {
        let mut pipe = redis::pipe();
        for key in 0..keys {
            pipe.cmd("SET").arg(format!("other:{key}")).arg("x").ignore();
        }
        pipe.query_async::<()>(&mut self.connection().await).await.expect("an answer");
    }

    pub async fn info(&self, section: &str) -> String {
        redis::cmd("INFO").arg(section).query_async(&mut self.connection().await).await.expect("an answer")
    }

    pub fn command(dir: &Path, flags: &[String], more: &[&str]) -> Command {
        let executable = std::env::var("REDIS_SERVER").unwrap_or_else(|_| "redis-server".to_owned());
        let mut command = Command::new(executable);
        command.arg("--dir").arg(dir).args(["--bind", "127.0.0.1", "--save", ""]);
        // What it wrote outlives its process, which is all that is killed here; waiting for a busy disk would be a stall.
        command.args(["--appendonly", "yes", "--appendfsync", "no"]).args(flags).args(more);
        command
    }

    /// None where somebody else took the port.
    pub async fn run(dir: &Path, flags: &[String]) -> Option<Process> {
        let mut process = Process::spawn("redis-server", Self::command(dir, flags, &[]));
        let ready = process.line(|line| match line {
            line if line.contains("Ready to accept connections") => Some(true),
            line if line.contains("Address already in use") => Some(false),
            _ => None,
        });
        ready.await.then_some(process)
    }

    pub async fn connection(&self) -> redis::aio::MultiplexedConnection {
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
