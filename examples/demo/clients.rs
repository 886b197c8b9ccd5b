//! What to paste into MCP clients that people have, so that they use a route; each as its own documentation has it.

use std::path::Path;

use serde_json::{Value, json};

use crate::{running::Route, upstream::WHOAMI};

/// The Inspector whose command this is; it needs Node.js 22.
const INSPECTOR: &str = "@modelcontextprotocol/inspector@2.12.0";

/// A client, and what to paste for it.
pub struct Client {
    pub what: &'static str,
    pub paste: String,
}

/// The clients. Those that run in Node.js are told whose certificates to trust.
pub fn clients(route: &Route, ca: &Path) -> [Client; 3] {
    let Route { name, .. } = route;
    let url = route.mcp();
    let trust = format!("NODE_EXTRA_CA_CERTS='{}'", ca.display());
    [
        Client {
            what: "Claude Code, in a terminal",
            paste: format!("export {trust}\n  claude mcp add --transport http {name} {url}\n  claude"),
        },
        Client {
            what: "VS Code, as .vscode/mcp.json; it trusts whom the system trusts",
            paste: vscode(route).to_string(),
        },
        Client {
            what: "the MCP Inspector, in a terminal",
            paste: format!(
                "{trust} npx {INSPECTOR} --cli {url} --transport http --method tools/call --tool-name {WHOAMI}"
            ),
        },
    ]
}

impl Client {
    /// Where the client is sent.
    pub fn url(&self) -> Option<&str> {
        self.paste.split([' ', '"', '\n']).find(|word| word.starts_with("https://"))
    }
}

/// The file `mcp.json` of VS Code.
fn vscode(route: &Route) -> Value {
    json!({"servers": {route.name: {"type": "http", "url": route.mcp()}}})
}
