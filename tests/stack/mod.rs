//! The real parts that tests and demo run: certificates, envoy-cimd as a process, Envoy as a process, and a client that
//! sends exactly what it is told to.

use std::{
    fs::Permissions,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::{Child, Command},
    sync::watch,
};

pub use self::client::{Answered, Call, Client};

pub mod browser;
mod client;
pub mod grpc;
pub mod in_process;
pub mod tls_listener;
pub mod web;

/// How long anything here may take before the test or demo gives up.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A certificate authority of our own.
pub struct Authority {
    pub ca: PathBuf,
    dir: PathBuf,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub fn make(dir: &Path) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "envoy-cimd test authority");
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a CA");
        let ca = dir.join("ca.pem");
        std::fs::write(&ca, issuer.pem()).expect("a certificate file");
        Self { ca, dir: dir.to_owned(), issuer }
    }

    /// A certificate for a list of hosts, addresses and URIs, in files of this name.
    pub fn issue(&self, name: &str, names: &[&str]) -> Certificates {
        self.issue_edited(name, names, |_| {})
    }

    /// The same with a last change.
    pub fn issue_edited(&self, name: &str, names: &[&str], edit: impl FnOnce(&mut CertificateParams)) -> Certificates {
        let key = KeyPair::generate().expect("a key");
        let (uris, hosts): (Vec<&str>, Vec<&str>) = names.iter().partition(|name| name.contains("://"));
        let hosts: Vec<String> = hosts.into_iter().map(str::to_owned).collect();
        let mut params = CertificateParams::new(hosts).expect("host names");
        params.subject_alt_names.extend(uris.into_iter().map(|uri| SanType::URI(uri.try_into().expect("a URI"))));
        edit(&mut params);
        let leaf = params.signed_by(&key, &self.issuer).expect("a certificate");
        let write = |kind: &str, text: String| {
            let path = self.dir.join(format!("{name}.{kind}"));
            std::fs::write(&path, text).expect("a certificate file");
            path
        };
        Certificates { ca: self.ca.clone(), cert: write("crt", leaf.pem()), key: write("key", key.serialize_pem()) }
    }
}

/// A certificate and the authority that it is from, as files.
#[derive(Debug)]
pub struct Certificates {
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl Certificates {
    /// One of an authority of its own.
    pub fn make(dir: &Path, hosts: &[&str]) -> Self {
        Authority::make(dir).issue("tls", hosts)
    }

    /// What has a listener of ours use it.
    pub fn flags(&self) -> [&str; 6] {
        let [cert, key, ca] = [&self.cert, &self.key, &self.ca].map(|path| path.to_str().expect("text"));
        ["--tls-cert", cert, "--tls-key", key, "--client-ca", ca]
    }
}

/// A file with a fresh key, as `keygen` prints it.
pub fn key_file(dir: &Path) -> PathBuf {
    let path = dir.join("keys");
    std::fs::write(&path, envoy_cimd::model::secret::generate_key_line().expect("a key")).expect("a key file");
    set_mode(&path, 0o600);
    path
}

/// Gives a file these permissions.
pub fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, Permissions::from_mode(mode)).expect("permissions");
}

/// A process whose output is kept, line by line. It is killed when this is dropped.
#[derive(Debug)]
pub struct Process {
    name: &'static str,
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    news: watch::Receiver<usize>,
    is_read: watch::Sender<bool>,
}

impl Process {
    pub fn spawn(name: &'static str, mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{name} cannot be started: {error}"));
        let lines = Arc::default();
        let (tell, news) = watch::channel(0);
        let tell = Arc::new(tell);
        let is_read = watch::Sender::new(true);
        keep_lines(child.stdout.take().expect("piped"), &lines, &tell, is_read.subscribe());
        keep_lines(child.stderr.take().expect("piped"), &lines, &tell, is_read.subscribe());
        Self { name, child, lines, news, is_read }
    }

    /// Whether what it prints is read. Where it is not, its pipes fill up.
    pub fn read(&self, is_read: bool) {
        self.is_read.send_replace(is_read);
    }

    pub fn pid(&self) -> u32 {
        self.child.id().expect("it still runs")
    }

    /// The CPU time it took so far, its threads' too.
    pub fn cpu(&self) -> Duration {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.pid())).expect("the process");
        // Nanoseconds that a thread ran; `stat` counts in hundredths of a second.
        let ran = threads.filter_map(|thread| {
            let line = std::fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        });
        Duration::from_nanos(ran.sum())
    }

    /// All that it has printed.
    pub fn output(&self) -> String {
        self.lines.lock().expect("lines").join("\n")
    }

    /// Its lines from the first on, those to come too.
    pub fn lines(&self) -> Lines {
        Lines { lines: Arc::clone(&self.lines), news: self.news.clone(), next: 0 }
    }

    /// Waits for a line in which `find` finds something. Fails, with the output, if the process ends before.
    pub async fn line<T>(&mut self, find: impl Fn(&str) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut next = 0;
        loop {
            let known: Vec<String> = self.lines.lock().expect("lines").iter().skip(next).cloned().collect();
            next += known.len();
            if let Some(found) = known.iter().find_map(|line| find(line)) {
                return found;
            }
            if *self.news.borrow_and_update() > next {
                continue;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match tokio::time::timeout(left, self.news.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => panic!("{} ended:\n{}", self.name, self.output()),
                Err(_) => panic!("{} did not print what was waited for:\n{}", self.name, self.output()),
            }
        }
    }

    pub fn signal(&self, signal: &str) {
        let status = std::process::Command::new("kill").args([signal, &self.pid().to_string()]).status();
        assert!(status.expect("kill").success());
    }

    /// Waits for its end and for the end of its output, however long it takes; the exit code, or none where a signal
    /// killed it.
    pub async fn exited(&mut self) -> Option<i32> {
        let status = self.child.wait().await.expect("wait");
        self.read(true);
        while self.news.changed().await.is_ok() {}
        status.code()
    }

    /// The same, but it must not take long.
    pub async fn ended(&mut self) -> Option<i32> {
        let ended = tokio::time::timeout(PATIENCE, self.exited()).await;
        ended.unwrap_or_else(|_| panic!("{} does not end:\n{}", self.name, self.output()))
    }

    /// Asks it to stop, if it still runs, and waits.
    pub async fn stop(&mut self) -> Option<i32> {
        if self.child.id().is_some() {
            self.signal("-TERM");
        }
        self.ended().await
    }
}

/// Resident memory of a process, in KiB.
pub fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// A reader of what a process prints.
#[derive(Debug)]
pub struct Lines {
    lines: Arc<Mutex<Vec<String>>>,
    news: watch::Receiver<usize>,
    next: usize,
}

impl Lines {
    /// The next line, once there is one; none after the last.
    pub async fn next(&mut self) -> Option<String> {
        loop {
            self.news.borrow_and_update();
            let line = self.lines.lock().expect("lines").get(self.next).cloned();
            if line.is_some() {
                self.next += 1;
                return line;
            }
            self.news.changed().await.ok()?;
        }
    }
}

fn keep_lines(
    output: impl AsyncRead + Unpin + Send + 'static,
    lines: &Arc<Mutex<Vec<String>>>,
    tell: &Arc<watch::Sender<usize>>,
    mut is_read: watch::Receiver<bool>,
) {
    let (lines, tell) = (Arc::clone(lines), Arc::clone(tell));
    tokio::spawn(async move {
        let mut output = BufReader::new(output).lines();
        loop {
            // Whose process has been dropped reads to the end.
            let _ = is_read.wait_for(|is_read| *is_read).await;
            let Ok(Some(line)) = output.next_line().await else { return };
            lines.lock().expect("lines").push(line);
            tell.send_modify(|count| *count += 1);
        }
    });
}

/// A running `envoy-cimd serve`.
#[derive(Debug)]
pub struct Cimd {
    pub process: Process,
    pub ext_proc: String,
    pub admin: String,
}

impl Cimd {
    /// Starts the executable with these flags, on ports of its own choice unless they say otherwise.
    pub async fn start(executable: &Path, flags: &[&str]) -> Self {
        let mut process = long_running(executable, "serve", flags);
        let ext_proc = process.line(|line| ready_address(line, "ext_proc")).await;
        let admin = process.line(|line| ready_address(line, "admin")).await;
        Self { process, ext_proc, admin }
    }
}

/// A running `envoy-cimd choreographer`.
#[derive(Debug)]
pub struct Choreographer {
    pub process: Process,
    pub address: String,
    pub admin: String,
}

impl Choreographer {
    /// As [`Cimd::start`].
    pub async fn start(executable: &Path, flags: &[&str]) -> Self {
        let mut process = long_running(executable, "choreographer", flags);
        let address = process.line(|line| ready_address(line, "choreographer")).await;
        let admin = process.line(|line| ready_address(line, "admin")).await;
        Self { process, address, admin }
    }
}

fn long_running(executable: &Path, command: &'static str, flags: &[&str]) -> Process {
    let mut process = Command::new(executable);
    // As variables, so that a flag can say otherwise.
    process.env("ENVOY_CIMD_LISTEN", "127.0.0.1:0").env("ENVOY_CIMD_ADMIN_LISTEN", "127.0.0.1:0");
    process.env("ENVOY_CIMD_DRAIN_DELAY", "0");
    // Nothing of whoever runs this is read or written.
    process.env("ENVOY_CIMD_STATE_DIR", "/dev/null/envoy-cimd");
    process.arg(command).args(flags);
    Process::spawn("envoy-cimd", process)
}

/// The address in the log line that says that a listener is ready.
pub fn ready_address(line: &str, listener: &str) -> Option<String> {
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    (line["message"] == "ready" && line["listener"] == listener).then(|| line["address"].as_str().map(str::to_owned))?
}

/// A running Envoy.
#[derive(Debug)]
pub struct Envoy {
    pub process: Process,
    pub admin: SocketAddr,
    pub https: SocketAddr,
    pub http: SocketAddr,
}

/// The Envoy to use: `$ENVOY`, which `make` sets, or the one on the PATH.
pub fn envoy_executable() -> String {
    std::env::var("ENVOY").unwrap_or_else(|_| "envoy".to_owned())
}

impl Envoy {
    /// Starts Envoy with a configuration in YAML or JSON, and waits until it is ready.
    pub async fn start(dir: &Path, config: &str) -> Self {
        let (path, address) = (dir.join("envoy.yaml"), dir.join("envoy-admin"));
        std::fs::write(&path, config).expect("the configuration");
        let mut command = Command::new(envoy_executable());
        // Hot restart would leave a file in /dev/shm behind, even at a clean end.
        command.args(["--disable-hot-restart", "--log-level", "warning", "--concurrency", "1", "--drain-time-s", "1"]);
        command.arg("-c").arg(&path).arg("--admin-address-path").arg(&address);
        let mut process = Process::spawn("envoy", command);
        let deadline = Instant::now() + PATIENCE;
        let admin = loop {
            assert!(process.child.try_wait().expect("wait").is_none(), "envoy ended:\n{}", process.output());
            assert!(Instant::now() < deadline, "envoy is not ready:\n{}", process.output());
            let written = std::fs::read_to_string(&address).ok().and_then(|text| text.parse().ok());
            if let Some(admin) = written
                && matches!(get(admin, "/ready").await, Ok((200, _)))
            {
                break admin;
            }
            // Envoy has no way to tell that it is ready but being asked.
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        Self { admin, https: listener(admin, "https").await, http: listener(admin, "http").await, process }
    }

    /// The address of a listener.
    pub async fn listener(&self, name: &str) -> SocketAddr {
        listener(self.admin, name).await
    }
}

async fn listener(admin: SocketAddr, name: &str) -> SocketAddr {
    let (_, listeners) = get(admin, "/listeners?format=json").await.expect("the listeners");
    let listeners: serde_json::Value = serde_json::from_slice(&listeners).expect("JSON");
    let listeners = listeners["listener_statuses"].as_array().expect("listeners");
    let listener = listeners.iter().find(|listener| listener["name"] == name).expect("a listener");
    let port = listener["local_address"]["socket_address"]["port_value"].as_u64().expect("a port");
    ([127, 0, 0, 1], u16::try_from(port).expect("a port")).into()
}

/// A plain GET.
pub async fn get(address: SocketAddr, path: &str) -> Result<(u16, Bytes), String> {
    let reply = Client::plain(address).send(http::Version::HTTP_11, Call::get("localhost", path)).await?;
    Ok((reply.status, reply.body))
}

/// The value of a metric of the process with this admin address.
pub async fn metric(admin: &str, name: &str) -> Option<u64> {
    let (_, text) = get(admin.parse().expect("an address"), "/metrics").await.expect("metrics");
    let text = String::from_utf8(text.to_vec()).expect("text");
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}
