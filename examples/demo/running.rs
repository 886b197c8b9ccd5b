//! All that runs: how it starts, what a route of it is, how it ends.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use envoy_cimd::model::public_url::PublicUrl;
use tempfile::TempDir;
use tokio::{process::Command, task::JoinSet};

use crate::{
    authorization_server::{self, AuthorizationServer},
    company::{self, Company},
    needs,
    stack::{Certificates, Cimd, Envoy, Process, web::Web},
    upstream::Upstream,
};

const DOCUMENT: &str = "/.well-known/mcp-client-metadata.json";
const CALLBACK: &str = "/.pomerium/oauth/callback";
const START: &str = "/.pomerium/oauth/start";

/// The MCP servers, each with where its route is: two share a host, and one has its own.
const SERVERS: [(&str, &str, &str); 3] =
    [("notes", "mcp.localhost", "/notes"), ("tickets", "mcp.localhost", "/tickets"), ("wiki", "wiki.localhost", "")];

/// What is dropped without [`Running::stop`] is killed, and its folder removed.
pub struct Running {
    pub envoy: Envoy,
    pub cimd: Cimd,
    /// Where envoy-cimd hands out tokens: a socket in the folder, which is this user's alone.
    pub tokens: String,
    pub routes: [Route; 3],
    /// A route beside these, whose people sign in.
    pub company: Company,
    pub certificates: Certificates,
    pub web: Web,
    pub envoy_version: String,
    pub folder: TempDir,
    /// The demo's own servers. Each gives its name, should it ever end.
    servers: JoinSet<String>,
}

/// A route of Envoy's: where the world finds it, the MCP server behind it, and that one's authorization server.
pub struct Route {
    pub name: &'static str,
    pub from: PublicUrl,
    pub upstream: String,
    pub issuer: String,
}

impl Running {
    /// Starts everything, after a look at what a person can mend.
    pub async fn start(port: u16) -> anyhow::Result<Self> {
        needs::refuse_settings()?;
        let executable = needs::executable()?;
        let envoy_version = needs::envoy_version().await?;
        let port = needs::free_port(port)?;

        let folder = tempfile::Builder::new().prefix("envoy-cimd-demo-").tempdir().context("a folder for its files")?;
        let servers = SERVERS.iter().chain([&company::SERVER]);
        let hosts = servers.flat_map(|(name, host, _)| [(*host).to_owned(), authorization_server::host(name)]);
        let hosts = BTreeSet::from_iter(hosts);
        let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
        let certificates = Certificates::make(folder.path(), &hosts);
        let web = Web::new(&certificates.ca);
        let mut servers = JoinSet::new();
        let mut route = async |server| Route::start(server, port, &certificates, &web, &mut servers).await;
        let [notes, tickets, wiki] = SERVERS;
        let routes = [route(notes).await?, route(tickets).await?, route(wiki).await?];
        let tokens = format!("unix:{}", folder.path().join("tokens.sock").display());
        let cimd = start_cimd(&executable, &state_dir(folder.path()), &tokens, &certificates.ca).await?;
        let flags = ["--single-user", "--insecure-traffic"].map(str::to_owned);
        let config = envoy_config(&executable, port, &routes, &certificates, &cimd.ext_proc, &flags).await?;
        let envoy = Envoy::start(folder.path(), &config).await;
        let company = Company::start(&executable, folder.path(), &certificates, &web, &mut servers).await?;
        Ok(Self { envoy, cimd, tokens, routes, company, certificates, web, envoy_version, folder, servers })
    }

    /// What envoy-cimd keeps.
    pub fn state_dir(&self) -> PathBuf {
        state_dir(self.folder.path())
    }

    /// Waits until a part ends, which none should, and says which.
    pub async fn one_ended(&mut self) {
        let company = &mut self.company;
        let (name, process, code) = tokio::select! {
            code = self.envoy.process.exited() => ("Envoy", &self.envoy.process, code),
            code = self.cimd.process.exited() => ("envoy-cimd", &self.cimd.process, code),
            code = company.envoy.process.exited() => ("the company's Envoy", &company.envoy.process, code),
            code = company.cimd.process.exited() => ("the company's envoy-cimd", &company.cimd.process, code),
            Some(server) = self.servers.join_next() => {
                let server = server.unwrap_or_else(|error| error.to_string());
                eprintln!("\ndemo: {server} ended by itself");
                return;
            }
        };
        let how = code.map_or("a signal killed it".to_owned(), |code| format!("exit code {code}"));
        eprintln!("\ndemo: {name} ended by itself ({how})\n");
        print_output_end(name, process);
    }

    /// The end of what the processes printed, for whoever looks for a reason.
    pub fn print_output_ends(&self) {
        print_output_end("Envoy", &self.envoy.process);
        print_output_end("envoy-cimd", &self.cimd.process);
        print_output_end("the company's Envoy", &self.company.envoy.process);
        print_output_end("the company's envoy-cimd", &self.company.cimd.process);
    }

    /// Ends everything, and says so.
    pub async fn stop(mut self) -> anyhow::Result<String> {
        for process in [
            &mut self.envoy.process,
            &mut self.cimd.process,
            &mut self.company.envoy.process,
            &mut self.company.cimd.process,
        ] {
            process.stop().await;
        }
        let path = self.folder.path().display().to_string();
        self.folder.close().with_context(|| format!("{path} cannot be removed"))?;
        Ok(format!("Stopped: no process is left, and {path} is removed."))
    }
}

impl Route {
    pub async fn start(
        (name, host, path): (&'static str, &str, &str),
        port: u16,
        certificates: &Certificates,
        web: &Web,
        servers: &mut JoinSet<String>,
    ) -> anyhow::Result<Self> {
        let from = format!("https://{host}:{port}{path}").parse()?;
        let upstream = Upstream::bind(name).await.with_context(|| format!("the {name} MCP server"))?;
        let server = AuthorizationServer::bind(name, upstream.url(), port, certificates, web).await;
        let server = server.with_context(|| format!("the authorization server of {name}"))?;
        let route = Self { name, from, upstream: upstream.url().to_owned(), issuer: server.issuer().to_owned() };
        upstream.serve(&server, servers);
        server.serve(servers);
        Ok(route)
    }

    /// What people know it by.
    pub fn client_name(&self) -> String {
        format!("Pomerium MCP Proxy - {}{}", self.from.origin().host(), self.from.path())
    }

    pub fn client_id(&self) -> String {
        format!("{}{DOCUMENT}", self.from)
    }

    pub fn redirect_uri(&self) -> String {
        format!("{}{CALLBACK}", self.from)
    }

    pub fn start_page(&self) -> String {
        format!("{}{START}", self.from)
    }

    pub fn connect_page(&self) -> String {
        format!("{}?return_to={}", self.start_page(), self.mcp_path())
    }

    /// The MCP server, through Envoy.
    pub fn mcp(&self) -> String {
        format!("{}{}", self.from.origin(), self.mcp_path())
    }

    /// The path of that, where people also go on to once they are connected: the MCP server has a page for them.
    pub fn mcp_path(&self) -> &str {
        if self.from.path().is_empty() { "/mcp" } else { self.from.path() }
    }
}

/// Each route with another one.
pub fn pairs([one, two, three]: &[Route; 3]) -> [(&Route, &Route); 3] {
    [(one, two), (two, three), (three, one)]
}

fn state_dir(folder: &Path) -> PathBuf {
    folder.join("state")
}

/// Starts envoy-cimd for one person, whoever that is, with the demo's authorization servers allowed: they are on
/// loopback, and their certificates are from the demo's own authority. It listens on loopback too, where every account
/// of this machine could ask it for that person's tokens.
async fn start_cimd(executable: &Path, state_dir: &Path, tokens: &str, ca: &Path) -> anyhow::Result<Cimd> {
    let (state_dir, ca) = (text(state_dir)?, text(ca)?);
    let hosts = SERVERS.map(|(name, ..)| authorization_server::host(name));
    let mut flags = vec![
        "--single-user",
        "--insecure-traffic",
        "--state-dir",
        &state_dir,
        "--tokens-listen",
        tokens,
        "--extra-ca",
        &ca,
    ];
    for host in &hosts {
        flags.extend(["--allow-host", host]);
    }
    Ok(Cimd::start(executable, &flags).await)
}

/// A path as flags have it.
pub fn text(path: &Path) -> anyhow::Result<String> {
    path.to_str().map(str::to_owned).with_context(|| format!("{} is not a text", path.display()))
}

/// The configuration as the program itself prints it.
pub async fn envoy_config(
    executable: &Path,
    port: u16,
    routes: &[Route],
    certificates: &Certificates,
    processor: &str,
    flags: &[String],
) -> anyhow::Result<String> {
    let mut command = Command::new(executable);
    command.args(["envoy-config", "--processor", processor]).args(flags);
    command.args(["--https-listen", &format!("127.0.0.1:{port}")]);
    command.args(["--http-listen", "127.0.0.1:0", "--envoy-admin", "127.0.0.1:0"]);
    command.arg("--downstream-cert").arg(&certificates.cert).arg("--downstream-key").arg(&certificates.key);
    for Route { from, upstream, .. } in routes {
        command.arg("--route").arg(format!("from={from},to={upstream}"));
    }
    let output = command.output().await.with_context(|| executable.display().to_string())?;
    if !output.status.success() {
        bail!("no configuration for Envoy: {}", String::from_utf8_lossy(&output.stderr).trim_end());
    }
    String::from_utf8(output.stdout).context("the configuration for Envoy")
}

fn print_output_end(name: &str, process: &Process) {
    let output = process.output();
    let lines: Vec<&str> = output.lines().collect();
    eprintln!("The end of what {name} printed:");
    for line in &lines[lines.len().saturating_sub(15)..] {
        eprintln!("  {line}");
    }
    eprintln!();
}
