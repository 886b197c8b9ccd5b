//! The load, by wrk.

use std::net::SocketAddr;

use serde::Deserialize;
use tokio::process::Command;

/// What wrk saw.
#[derive(Deserialize)]
pub struct Load {
    pub requests: u64,
    pub seconds: f64,
    /// Milliseconds.
    pub p50: f64,
    pub p99: f64,
    /// Answers of 400 and above.
    pub refused: u64,
    /// Requests that had no answer.
    pub broken: u64,
}

/// What wrk sends.
pub struct Sent<'a> {
    pub address: SocketAddr,
    pub host: &'a str,
    pub path: &'a str,
    pub headers: &'a [(&'static str, &'static str)],
    /// Lua that makes each request, where they are not all the same: that costs time.
    pub script: String,
}

const REPORT: &str = r#"
done = function(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\n{"requests":%d,"seconds":%f,"p50":%f,"p99":%f,"refused":%d,"broken":%d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
"#;

pub async fn wrk(sent: Sent<'_>, seconds: usize, connections: usize) -> Load {
    let dir = tempfile::tempdir().expect("a folder");
    let script = dir.path().join("report.lua");
    std::fs::write(&script, sent.script + REPORT).expect("the script");
    let mut command = Command::new("wrk");
    command.args(["--threads=1", &format!("--connections={connections}"), &format!("--duration={seconds}s")]);
    // In this spelling, or wrk sends one of its own beside it.
    command.arg("--script").arg(script).arg("--header").arg(format!("Host: {}", sent.host));
    for (name, value) in sent.headers {
        command.arg("--header").arg(format!("{name}: {value}"));
    }
    let output = command.arg(format!("http://{}{}", sent.address, sent.path)).output().await.expect("wrk runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let load = text.lines().find_map(|line| serde_json::from_str(line).ok());
    load.unwrap_or_else(|| panic!("wrk: {text}{}", String::from_utf8_lossy(&output.stderr)))
}
