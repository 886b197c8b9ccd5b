//! The load, by wrk.

use std::net::SocketAddr;

use serde::Deserialize;
use tokio::process::Command;

use crate::configuration::{Host, host};

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

/// Where there is one host, only the report is ours to write: a script that made requests would cost time.
const REPORT: &str = r#"
done = function(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\n{"requests":%d,"seconds":%f,"p50":%f,"p99":%f,"refused":%d,"broken":%d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
"#;

/// With several hosts to ask in turn, none soon after itself, from any of them on: a short run does not come to all.
fn turns(hosts: usize) -> String {
    format!(
        "math.randomseed(os.time())\n\
         local turn = math.random(0, {hosts} - 1)\n\
         request = function()\n\
           turn = (turn + 7919) % {hosts}\n\
           wrk.headers['Host'] = string.format('{}', turn)\n\
           return wrk.format()\n\
         end\n",
        host("%06d")
    )
}

pub async fn wrk(
    address: SocketAddr,
    host: &Host,
    path: &str,
    headers: &[(&str, &str)],
    seconds: usize,
    connections: usize,
) -> Load {
    let dir = tempfile::tempdir().expect("a folder");
    let script = dir.path().join("report.lua");
    let turns = match host {
        Host::One(_) => String::new(),
        Host::Many(hosts) => turns(*hosts),
    };
    std::fs::write(&script, turns + REPORT).expect("the script");
    let mut command = Command::new("wrk");
    command.args(["--threads=1", &format!("--connections={connections}"), &format!("--duration={seconds}s")]);
    // In this spelling, or wrk sends one of its own beside it.
    command.arg("--script").arg(script).arg("--header").arg(format!("Host: {}", host.first()));
    for (name, value) in headers {
        command.arg("--header").arg(format!("{name}: {value}"));
    }
    let output = command.arg(format!("http://{address}{path}")).output().await.expect("wrk runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let load = text.lines().find_map(|line| serde_json::from_str(line).ok());
    load.unwrap_or_else(|| panic!("wrk: {text}{}", String::from_utf8_lossy(&output.stderr)))
}
