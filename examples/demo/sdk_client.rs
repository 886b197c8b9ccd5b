//! An MCP client of the official SDK, which runs in Node.js. See `client.mjs`.

use std::{path::Path, process::Stdio};

use serde::Deserialize;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use crate::stack::PATIENCE;

/// It is killed when this is dropped.
pub struct SdkClient {
    calls: ChildStdin,
    news: Lines<BufReader<ChildStdout>>,
    _process: Child,
}

/// What the client has to say to its person.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum News {
    /// The person shall open this in a browser.
    Open(String),
    /// A tool's result.
    Result(ToolResult),
    /// The error in place of one.
    Failed(String),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ToolResult {
    /// All tools that the client found.
    pub tools: Vec<String>,
    pub text: String,
    pub is_error: bool,
}

impl SdkClient {
    /// Starts a client of the MCP server at `url`, with the modules in this folder.
    pub fn start(modules: &Path, url: &str, ca: &Path) -> Result<Self, String> {
        let mut command = Command::new("node");
        // A script without a file of its own finds modules where it runs.
        command.args(["--input-type=module", "--eval", include_str!("client.mjs"), url]).current_dir(modules);
        command.env("NODE_EXTRA_CA_CERTS", ca).kill_on_drop(true).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().map_err(|error| format!("node cannot be started: {error}"))?;
        let (Some(calls), Some(news)) = (process.stdin.take(), process.stdout.take()) else {
            return Err("node has no pipes".to_owned());
        };
        Ok(Self { calls, news: BufReader::new(news).lines(), _process: process })
    }

    /// Calls a tool; what came of it, or what comes before that.
    pub async fn call(&mut self, tool: &str) -> Result<News, String> {
        let line = format!("{tool}\n");
        self.calls.write_all(line.as_bytes()).await.map_err(|error| format!("the client ended: {error}"))?;
        self.news().await
    }

    /// What it says next.
    pub async fn news(&mut self) -> Result<News, String> {
        let line = timeout(PATIENCE, self.news.next_line()).await.map_err(|_| "the client says nothing")?;
        let line = line.map_err(|error| error.to_string())?.ok_or("the client ended")?;
        serde_json::from_str(&line).map_err(|error| format!("the client says {line:?}: {error}"))
    }
}
