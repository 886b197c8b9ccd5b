//! What the demo tells whoever runs it: what there is, and what to try.

use std::path::PathBuf;

use anyhow::Context;

use crate::{
    clients::{Client, clients},
    running::{Route, Running},
};

/// What an MCP client says first, as short as it gets.
const INITIALIZE: &str = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"curl","version":"1"}}}"#;

/// What runs where.
pub fn introduce(running: &Running) {
    let row = |what: &str, is: &str| println!("  {what:<38}  {is}");
    println!(
        "Three MCP routes behind Envoy {}, two of them on one host. envoy-cimd makes each an OAuth client of its own.\n\
         A fourth is a company's: people and their MCP clients sign in there, at the company's identity provider.",
        running.envoy_version
    );
    println!("\nRunning, all on this machine\n");
    let company = &running.company;
    for Route { name, from, upstream, .. } in running.routes.iter().chain([&company.route]) {
        row(from.as_str(), &format!("a route of Envoy, to the {name} MCP server at {upstream}"));
    }
    for Route { name, issuer, .. } in running.routes.iter().chain([&company.route]) {
        row(issuer, &format!("the authorization server of the {name} MCP server"));
    }
    row(&company.issuer, "the company's identity provider");
    row(&format!("http://{}", running.envoy.http), "Envoy's plain http port, which only refuses");
    row(&format!("http://{}", running.envoy.admin), "Envoy's admin interface");
    row(&running.cimd.ext_proc, "envoy-cimd, which Envoy asks (ext_proc)");
    row(&format!("http://{}", running.cimd.admin), "envoy-cimd's health and metrics");
    row(&running.tokens, "where envoy-cimd hands out tokens (UpstreamTokens)");
    row(&running.folder.path().display().to_string(), "the demo's files: envoy.yaml, certificates, state");
}

/// What to try in a terminal, each command complete.
pub fn suggest(running: &Running, etag: &str) -> anyhow::Result<()> {
    let options = curl_options(running)?;
    let curl = format!("curl -K {}", options.display());
    let [notes, ..] = &running.routes;
    let client_id = notes.client_id();
    let origin = notes.from.origin();
    let plain = client_id.replace(origin.as_str(), &format!("http://{}:{}", origin.host(), running.envoy.http.port()));
    println!("\nTry in another terminal (with -K, curl reads our CA and the hosts' addresses from a file)");
    for (what, command) in [
        ("the document", format!("{curl} {client_id}")),
        ("its headers", format!("{curl} -I {client_id}")),
        ("not sent again to whoever has it: 304", format!("{curl} -i -H 'if-none-match: {etag}' {client_id}")),
        ("read-only: 405", format!("{curl} -i -X POST {client_id}")),
        ("never over plain http: 403", format!("{curl} -i {plain}")),
        (
            "the MCP server, as an MCP client calls it: where to connect, and once it is connected, an answer",
            format!("{curl} --json '{INITIALIZE}' {}", notes.mcp()),
        ),
        (
            "what its authorization server can do",
            format!("{curl} {}/.well-known/oauth-authorization-server", notes.issuer),
        ),
        ("what envoy-cimd counted", format!("curl http://{}/metrics", running.cimd.admin)),
        ("what Envoy counted", format!("curl 'http://{}/stats?usedonly&filter=https.ext_proc'", running.envoy.admin)),
    ] {
        println!("\n  # {what}\n  {command}");
    }
    Ok(())
}

/// Where to connect the routes.
pub fn invite(running: &Running) {
    println!("\nConnect the routes in a browser\n");
    for route in &running.routes {
        println!("  {}", route.connect_page());
    }
    println!(
        "\n  Chromium and Firefox find *.localhost by themselves. They do not know who made the demo's certificates: \
         accept\n  the warning, once for each of the five hosts, or trust this authority while the demo runs:\n  {}",
        running.certificates.ca.display()
    );
}

/// How people's own MCP clients use a route.
pub fn offer(running: &Running) {
    let [notes, ..] = &running.routes;
    println!("\nUse the {} route with an MCP client of yours; it says where to connect", notes.name);
    for Client { what, paste } in clients(notes, &running.certificates.ca) {
        println!("\n  # {what}\n  {paste}");
    }
    println!(
        "\n  Where it does not find {host}, this line in /etc/hosts helps:\n  127.0.0.1 {host} {company}",
        host = notes.from.origin().host(),
        company = running.company.route.from.origin().host(),
    );
    println!(
        "\n  The company's route is {}. A client that is given this instead\n  has you sign in first, by any \
         name; by the same name you then sign in where you connect.",
        running.company.route.mcp()
    );
}

/// The file for curl's -K. Programs do not resolve `*.localhost` as browsers do, and a proxy could not.
fn curl_options(running: &Running) -> anyhow::Result<PathBuf> {
    let mut text = format!("cacert = {:?}\nnoproxy = \"*\"\nsilent\nshow-error\n", running.certificates.ca);
    // A document has no newline at its end; the terminal's next prompt wants one.
    text += "write-out = \"\\n\"\n";
    for Route { from, issuer, .. } in &running.routes {
        for port in [running.envoy.https.port(), running.envoy.http.port()] {
            text += &format!("resolve = \"{}:{port}:127.0.0.1\"\n", from.origin().host());
        }
        text += &format!("resolve = \"{}:127.0.0.1\"\n", issuer.trim_start_matches("https://"));
    }
    let path = running.folder.path().join("curlrc");
    std::fs::write(&path, text).context("the options of curl")?;
    Ok(path)
}
