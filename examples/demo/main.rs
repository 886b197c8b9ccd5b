//! Two MCP routes behind a real Envoy on this machine, and a look at them as an authorization server takes it.

use std::{
    io::ErrorKind,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, bail};
use clap::Parser;
use envoy_cimd::origin::Origin;
use tempfile::TempDir;
use tokio::{
    process::Command,
    signal::unix::{Signal, SignalKind, signal},
};

use crate::{
    checks::{Checks, DOCUMENT},
    stack::{Certificates, Cimd, Client, Envoy, Process, envoy_executable},
};

mod checks;
#[path = "../../tests/stack/mod.rs"]
#[expect(dead_code, reason = "the tests use all of it")]
mod stack;
mod upstream;

/// Two MCP routes behind a real Envoy on this machine, each an OAuth client of its own.
///
/// It starts two small MCP servers, envoy-cimd and Envoy on loopback, fetches both client metadata documents through
/// Envoy as an authorization server would, and says what to try next. When it ends, so does all that it started, and
/// its files are removed.
#[derive(Parser)]
#[command(name = "demo", max_term_width = 110, after_help = AFTER_HELP)]
struct Options {
    /// End after the checks.
    #[arg(long)]
    once: bool,
    /// The port of both routes, on 127.0.0.1; 0 takes a free one.
    #[arg(long, value_name = "PORT", default_value_t = 8443)]
    port: u16,
}

const AFTER_HELP: &str = "\
Options reach it through make as ARGS: make demo ARGS=\"--once --port 9443\"
The variable ENVOY names the Envoy to run; without it, that is the `envoy` on the PATH.
It exits with 0 if every check passed and nothing ended by itself, and with 1 otherwise.";

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    // What the demo shares with the tests panics where it fails; whoever runs the demo needs the message alone.
    std::panic::set_hook(Box::new(|panic| eprintln!("demo: {}", panic.payload_as_str().unwrap_or("a bug in it"))));
    match tokio::spawn(demo(options)).await {
        Ok(Ok(true)) => ExitCode::SUCCESS,
        Ok(Ok(false)) | Err(_) => ExitCode::FAILURE,
        Ok(Err(error)) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The demo from start to end; whether all of it went well.
async fn demo(options: Options) -> anyhow::Result<bool> {
    let mut stop = StopSignals::new()?;
    let start = async {
        let running = Running::start(options.port).await?;
        running.introduce();
        let checks = running.check().await;
        Ok::<_, anyhow::Error>((running, checks))
    };
    // A Ctrl-C at a terminal reaches the children too: that they end is then no news, so the signal is looked at first.
    let (mut running, checks) = tokio::select! {
        biased;
        () = stop.next() => bail!("interrupted before the checks were done; what was started is stopped"),
        started = start => started?,
    };

    let mut well = checks.failed == 0;
    println!("\n{}", checks.summary());
    if options.once {
        if !well {
            eprintln!();
            print_output_end("Envoy", &running.envoy.process);
            print_output_end("envoy-cimd", &running.cimd.process);
        }
    } else {
        running.suggest(checks.etag.as_deref().unwrap_or("*"));
        println!("\nAll of it runs until you press Ctrl-C.");
        tokio::select! {
            biased;
            () = stop.next() => println!(),
            () = running.one_ended() => well = false,
        }
    }

    tokio::select! {
        stopped = running.stop() => println!("{}", stopped?),
        () = stop.next() => bail!("did not wait for an orderly end; what was started is killed"),
    }
    Ok(well)
}

/// What ends the demo. SIGHUP is a closed terminal, which Envoy alone would survive.
struct StopSignals([Signal; 3]);

impl StopSignals {
    fn new() -> anyhow::Result<Self> {
        let [interrupt, terminate, hangup] = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        Ok(Self([signal(interrupt)?, signal(terminate)?, signal(hangup)?]))
    }

    async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

/// All that runs. What is dropped without [`Running::stop`] is killed, and its folder removed.
struct Running {
    envoy: Envoy,
    cimd: Cimd,
    routes: [Route; 2],
    certificates: Certificates,
    envoy_version: String,
    folder: TempDir,
}

/// A route of Envoy's: where the world finds it, and the MCP server behind it.
struct Route {
    name: &'static str,
    origin: Origin,
    upstream: String,
}

impl Running {
    /// Starts everything, after a look at what a person can mend.
    async fn start(port: u16) -> anyhow::Result<Self> {
        refuse_settings()?;
        let executable = executable()?;
        let envoy_version = envoy_version().await?;
        let port = free_port(port)?;

        let folder = tempfile::Builder::new().prefix("envoy-cimd-demo-").tempdir().context("a folder for its files")?;
        let routes = [Route::start("notes", port).await?, Route::start("tickets", port).await?];
        let certificates = Certificates::make(folder.path(), &[routes[0].origin.host(), routes[1].origin.host()]);
        let cimd = Cimd::start(&executable, &[]).await;
        let config = envoy_config(&executable, port, &routes, &certificates, &cimd.ext_proc).await?;
        let envoy = Envoy::start(folder.path(), &config).await;
        let running = Self { envoy, cimd, routes, certificates, envoy_version, folder };
        std::fs::write(running.curl_options(), running.curl_options_text()).context("the options of curl")?;
        Ok(running)
    }

    fn introduce(&self) {
        let row = |what: &str, is: &str| println!("  {what:<32}  {is}");
        println!(
            "Two MCP routes behind Envoy {}. envoy-cimd makes each an OAuth client of its own.",
            self.envoy_version
        );
        println!("\nRunning, all on this machine\n");
        for Route { name, origin, upstream } in &self.routes {
            row(origin.as_str(), &format!("a route of Envoy, to the {name} MCP server at {upstream}"));
        }
        row(&format!("http://{}", self.envoy.http), "Envoy's plain http port, which only refuses");
        row(&format!("http://{}", self.envoy.admin), "Envoy's admin interface");
        row(&self.cimd.ext_proc, "envoy-cimd, which Envoy asks (ext_proc)");
        row(&format!("http://{}", self.cimd.admin), "envoy-cimd's health and metrics");
        row(&self.folder.path().display().to_string(), "the demo's files: envoy.yaml and certificates");
    }

    async fn check(&self) -> Checks {
        println!("\nChecked, as an authorization server would");
        let mut checks = Checks::new(Client::tls(self.envoy.https, &self.certificates.ca));
        for route in &self.routes {
            checks.route(route).await;
        }
        checks.documents_differ();
        checks
    }

    /// What to try, each command complete.
    fn suggest(&self, etag: &str) {
        let curl = format!("curl -K {}", self.curl_options().display());
        let notes = &self.routes[0].origin;
        let client_id = format!("{notes}{DOCUMENT}");
        let plain = format!("http://{}:{}{DOCUMENT}", notes.host(), self.envoy.http.port());
        println!("\nTry next, in another terminal (with -K, curl reads our CA and the hosts' addresses from a file)");
        for (what, command) in [
            ("the document", format!("{curl} {client_id}")),
            ("its headers", format!("{curl} -I {client_id}")),
            ("not sent again to whoever has it: 304", format!("{curl} -i -H 'if-none-match: {etag}' {client_id}")),
            ("read-only: 405", format!("{curl} -i -X POST {client_id}")),
            ("never over plain http: 403", format!("{curl} -i {plain}")),
            ("what envoy-cimd counted", format!("curl http://{}/metrics", self.cimd.admin)),
            ("what Envoy counted", format!("curl 'http://{}/stats?usedonly&filter=https.ext_proc'", self.envoy.admin)),
        ] {
            println!("\n  # {what}\n  {command}");
        }
    }

    /// Waits until a child ends, which none should, and says which.
    async fn one_ended(&mut self) {
        let (name, code) = tokio::select! {
            code = self.envoy.process.exited() => ("Envoy", code),
            code = self.cimd.process.exited() => ("envoy-cimd", code),
        };
        let how = code.map_or("a signal killed it".to_owned(), |code| format!("exit code {code}"));
        eprintln!("\ndemo: {name} ended by itself ({how})\n");
        print_output_end(name, if name == "Envoy" { &self.envoy.process } else { &self.cimd.process });
    }

    /// Ends everything, and says so.
    async fn stop(mut self) -> anyhow::Result<String> {
        self.envoy.process.stop().await;
        self.cimd.process.stop().await;
        let path = self.folder.path().display().to_string();
        self.folder.close().with_context(|| format!("{path} cannot be removed"))?;
        Ok(format!("Stopped: no process is left, and {path} is removed."))
    }

    fn curl_options(&self) -> PathBuf {
        self.folder.path().join("curlrc")
    }

    /// Programs do not resolve `*.localhost` as browsers do, and a proxy could not.
    fn curl_options_text(&self) -> String {
        let mut text = format!("cacert = {:?}\nnoproxy = \"*\"\nsilent\nshow-error\n", self.certificates.ca);
        // A document has no newline at its end; the terminal's next prompt wants one.
        text += "write-out = \"\\n\"\n";
        for Route { origin, .. } in &self.routes {
            for port in [self.envoy.https.port(), self.envoy.http.port()] {
                text += &format!("resolve = \"{}:{port}:127.0.0.1\"\n", origin.host());
            }
        }
        text
    }
}

impl Route {
    async fn start(name: &'static str, port: u16) -> anyhow::Result<Self> {
        let origin = format!("https://{name}.localhost:{port}").parse()?;
        let upstream = upstream::start(name).await.with_context(|| format!("the {name} MCP server"))?;
        Ok(Self { name, origin, upstream })
    }
}

/// envoy-cimd reads its environment, and the demo shows the defaults.
fn refuse_settings() -> anyhow::Result<()> {
    let names = std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned());
    match names.into_iter().find(|name| name.starts_with("ENVOY_CIMD_")) {
        Some(name) => bail!("{name} is set, which would change what the demo shows: unset it"),
        None => Ok(()),
    }
}

/// The program, which cargo puts one folder above its examples.
fn executable() -> anyhow::Result<PathBuf> {
    let demo = std::env::current_exe().context("where the demo is")?;
    let executable = demo.ancestors().nth(2).unwrap_or(Path::new(".")).join("envoy-cimd");
    if !executable.is_file() {
        bail!("there is no {}: `make demo` builds it", executable.display());
    }
    Ok(executable)
}

/// The version of the Envoy that will be started, asked of itself.
async fn envoy_version() -> anyhow::Result<String> {
    let envoy = envoy_executable();
    let mend = "set ENVOY to an Envoy 1.40, or leave it unset and `make demo` gets one";
    let output = match Command::new(&envoy).arg("--version").output().await {
        Ok(output) => output,
        Err(error) => bail!("{envoy} cannot be run: {error}; {mend}"),
    };
    // It prints `envoy  version: COMMIT/1.40.0/Clean/RELEASE/BoringSSL`.
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.split_once("version: ").and_then(|(_, version)| version.split('/').nth(1));
    version.map(str::to_owned).with_context(|| format!("{envoy} is no Envoy; {mend}"))
}

/// The port, which is free, or a free one in place of 0.
fn free_port(port: u16) -> anyhow::Result<u16> {
    let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).and_then(|listener| listener.local_addr());
    let other = if port == 9443 { 8443 } else { 9443 };
    match bound {
        Ok(address) => Ok(address.port()),
        Err(error) => {
            let why = match error.kind() {
                ErrorKind::AddrInUse => "is taken".to_owned(),
                _ => format!("cannot be had: {error}"),
            };
            bail!("port {port} of 127.0.0.1 {why}; choose another: make demo ARGS=\"--port {other}\"")
        }
    }
}

/// The configuration as the program itself prints it.
async fn envoy_config(
    executable: &Path,
    port: u16,
    routes: &[Route],
    certificates: &Certificates,
    processor: &str,
) -> anyhow::Result<String> {
    let mut command = Command::new(executable);
    command.args(["envoy-config", "--processor", processor]);
    command.args(["--https-listen", &format!("127.0.0.1:{port}")]);
    command.args(["--http-listen", "127.0.0.1:0", "--envoy-admin", "127.0.0.1:0"]);
    command.arg("--downstream-cert").arg(&certificates.cert).arg("--downstream-key").arg(&certificates.key);
    for Route { origin, upstream, .. } in routes {
        command.arg("--route").arg(format!("from={origin},to={upstream}"));
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
