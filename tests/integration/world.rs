//! What most tests start: an Envoy, an envoy-cimd, and an upstream behind them.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use axum::{Router, extract::Request, routing::any};
use serde_json::Value;
use tempfile::TempDir;

pub use crate::stack::in_process::{CALLBACK, DOCUMENT};
use crate::stack::{Call, Certificates, Cimd, Client, Envoy, metric};

pub const START: &str = "/.pomerium/oauth/start";
pub const DISCONNECT: &str = "/.pomerium/oauth/disconnect";

/// The hosts of the certificate; tests name their routes after them.
pub const HOSTS: &[&str] =
    &["notes.localhost", "tickets.localhost", "other.localhost", "broken.localhost", "xn--bcher-kva.localhost"];

pub fn executable() -> PathBuf {
    env!("CARGO_BIN_EXE_envoy-cimd").into()
}

/// Runs the program to its end: exit code, stdout, stderr.
pub fn run(args: &[&str], variables: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let output = std::process::Command::new(executable())
        .args(args)
        .envs(variables.iter().copied())
        .output()
        .expect("envoy-cimd runs");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// Has a shell run commands as they stand on a page, with the program on its path.
pub fn shell(commands: &str, dir: &Path) {
    let path =
        format!("{}:{}", executable().parent().expect("a folder").display(), std::env::var("PATH").expect("a path"));
    let output = std::process::Command::new("sh").args(["-euc", commands]).current_dir(dir).env("PATH", path).output();
    let output = output.expect("sh runs");
    assert!(output.status.success(), "{commands}\n{}", String::from_utf8_lossy(&output.stderr));
}

/// The parts, and how to reach them.
#[derive(Debug)]
pub struct World {
    _dir: TempDir,
    pub certificates: Certificates,
    pub upstream: Upstream,
    pub cimd: Cimd,
    pub envoy: Envoy,
}

/// What a test wants otherwise than usual.
pub struct Wish<'a> {
    /// `--route` of `envoy-config`; where one has no `to`, it is [`Upstream`].
    pub routes: &'a [&'a str],
    pub cimd: &'a [&'a str],
    pub envoy_config: &'a [&'a str],
    /// A last change to Envoy's configuration.
    pub edit: &'a (dyn Fn(&mut Value) + Sync),
}

impl Default for Wish<'_> {
    fn default() -> Self {
        Self {
            routes: &["from=https://notes.localhost", "from=https://tickets.localhost:8443,client_name=Tickets"],
            cimd: &[],
            envoy_config: &[],
            edit: &|_| {},
        }
    }
}

impl World {
    pub async fn start(wish: Wish<'_>) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let certificates = Certificates::make(dir.path(), HOSTS);
        let upstream = Upstream::start().await;
        let cimd = Cimd::start(&executable(), wish.cimd).await;
        let config = envoy_config(&certificates, &cimd.ext_proc, &upstream.url, &wish);
        let envoy = Envoy::start(dir.path(), &config).await;
        Self { _dir: dir, certificates, upstream, cimd, envoy }
    }

    /// Starts Envoy anew, on the ports that it had.
    pub async fn envoy_again(&mut self) {
        let dir = self._dir.path();
        let config = std::fs::read_to_string(dir.join("envoy.yaml")).expect("what it was started with");
        let mut config: Value = serde_json::from_str(&config).expect("JSON");
        for listener in list(&mut config["static_resources"]["listeners"]) {
            let bound = if listener["name"] == "https" { self.envoy.https } else { self.envoy.http };
            listener["address"]["socket_address"]["port_value"] = bound.port().into();
        }
        // What is read of its own address is the new one's.
        std::fs::remove_file(dir.join("envoy-admin")).expect("it was written");
        self.envoy = Envoy::start(dir, &config.to_string()).await;
    }

    /// The document of a host, as status and `client_id`.
    pub async fn document(&self, host: &str) -> (u16, Option<String>) {
        let answer = self.https().send(http::Version::HTTP_2, Call::get(host, DOCUMENT)).await.expect("an answer");
        let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        (answer.status, body["client_id"].as_str().map(str::to_owned))
    }

    /// The value of a metric, with its labels as they stand in the text.
    pub async fn metric(&self, name: &str) -> Option<u64> {
        metric(&self.cimd.admin, name).await
    }

    pub fn https(&self) -> Client {
        Client::tls(self.envoy.https, &self.certificates.ca)
    }
}

/// The program's own configuration, on free ports.
pub fn envoy_config(certificates: &Certificates, processor: &str, upstream: &str, wish: &Wish<'_>) -> String {
    let text = |path: &Path| path.to_str().expect("text").to_owned();
    let mut args = vec!["envoy-config".to_owned()];
    // A socket is logged as it is bound.
    let processor = if processor.starts_with('/') { format!("unix:{processor}") } else { processor.to_owned() };
    for (flag, value) in [
        ("--processor", processor),
        ("--https-listen", "127.0.0.1:0".to_owned()),
        ("--http-listen", "127.0.0.1:0".to_owned()),
        ("--envoy-admin", "127.0.0.1:0".to_owned()),
        ("--downstream-cert", text(&certificates.cert)),
        ("--downstream-key", text(&certificates.key)),
    ] {
        args.extend([flag.to_owned(), value]);
    }
    args.extend(wish.routes.iter().map(|route| match route.contains(",to=") {
        true => format!("--route={route}"),
        false => format!("--route={route},to={upstream}"),
    }));
    args.extend(wish.envoy_config.iter().map(|arg| (*arg).to_owned()));
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let (code, yaml, error) = run(&args, &[]);
    assert_eq!(code, Some(0), "{error}");
    assert!(error.lines().all(|line| line.starts_with("envoy-cimd: warning: ")), "{error}");
    let mut config: Value = serde_saphyr::from_str(&yaml).expect("YAML");
    (wish.edit)(&mut config);
    config.to_string()
}

/// The virtual hosts of the https listener.
pub fn virtual_hosts(config: &mut Value) -> &mut Vec<Value> {
    list(&mut manager(&mut config["static_resources"]["listeners"][0])["route_config"]["virtual_hosts"])
}

/// The connection manager of a listener.
pub fn manager(listener: &mut Value) -> &mut Value {
    &mut listener["filter_chains"][0]["filters"][0]["typed_config"]
}

pub fn list(value: &mut Value) -> &mut Vec<Value> {
    value.as_array_mut().expect("a list")
}

/// What a route or a virtual host tells our filter.
pub fn metadata(of: &mut Value) -> &mut Value {
    &mut of["metadata"]["filter_metadata"]["envoy_cimd"]
}

/// Removes what the generated configuration says of every route, so that another source can.
pub fn without_metadata(config: &mut Value) {
    for host in virtual_hosts(config) {
        host.as_object_mut().expect("a virtual host").remove("metadata");
    }
}

/// The HTTP filters of the https listener.
pub fn http_filters(config: &mut Value) -> &mut Vec<Value> {
    list(&mut manager(&mut config["static_resources"]["listeners"][0])["http_filters"])
}

/// An upstream that answers everything and remembers what it was asked.
#[derive(Debug)]
pub struct Upstream {
    pub url: String,
    seen: Arc<Mutex<Vec<String>>>,
    cookies: Arc<Mutex<Vec<String>>>,
}

impl Upstream {
    pub async fn start() -> Self {
        let seen: Arc<Mutex<Vec<String>>> = Arc::default();
        let cookies: Arc<Mutex<Vec<String>>> = Arc::default();
        let (keep, taste) = (Arc::clone(&seen), Arc::clone(&cookies));
        let app = Router::new().fallback(any(move |request: Request| async move {
            keep.lock().expect("requests").push(format!("{} {}", request.method(), request.uri()));
            let cookie = request.headers().get("cookie").and_then(|cookie| cookie.to_str().ok());
            taste.lock().expect("cookies").extend(cookie.map(str::to_owned));
            // What an upstream that wants the browser for itself would send.
            let reach = [
                ("set-cookie", "__Host-envoy_cimd_x=y; Secure; Path=/"),
                ("nel", r#"{"report_to":"e","max_age":60}"#),
                ("report-to", r#"{"group":"e","max_age":60,"endpoints":[{"url":"https://evil.example"}]}"#),
                ("refresh", "1;url=/.pomerium/oauth/callback?code=x"),
            ];
            (reach, "the upstream")
        }));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/mcp", listener.local_addr().expect("an address"));
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { url, seen, cookies }
    }

    /// The cookies that reached it.
    pub fn cookies(&self) -> Vec<String> {
        self.cookies.lock().expect("cookies").clone()
    }

    /// The requests that reached it, as `METHOD path`.
    pub fn seen(&self) -> Vec<String> {
        self.seen.lock().expect("requests").clone()
    }
}
