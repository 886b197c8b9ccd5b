//! The process as such: how it starts, ends, dies, and what it holds on to.

use std::{
    os::unix::fs::PermissionsExt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use envoy_types::pb::envoy::service::ext_proc::v3::{
    ProcessingRequest, ProcessingResponse, external_processor_client::ExternalProcessorClient,
    processing_response::Response,
};
use http::Version;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use crate::{
    stack::{
        Call, Choreographer, Cimd, PATIENCE, get,
        grpc::{channel, fetch_documents},
        in_process::document_of,
        key_file, metric, resident,
    },
    world::{DOCUMENT, Wish, World, executable},
};

pub async fn readiness(admin: &str) -> (u16, String) {
    let (status, body) = get(admin.parse().expect("an address"), "/readyz").await.expect("an answer");
    (status, String::from_utf8(body.to_vec()).expect("text"))
}

/// Whatever is wrong with the store is said without anybody having pressed the button, and documents are served.
#[tokio::test]
async fn a_store_that_cannot_be_had_is_said_and_counts_on_request() {
    let reason = "store: the store cannot be made in /dev/null: is not a folder\n";
    for (more, status, body) in
        [(&[][..], 200, format!("ready\n{reason}")), (&["--ready-needs-exchange"], 503, reason.to_owned())]
    {
        let flags = [&["--state-dir", "/dev/null/none"], more].concat();
        let mut cimd = Cimd::start(&executable(), &flags).await;
        cimd.process.line(|line| line.contains("cannot be reached").then_some(())).await;
        let answer = eventually(|| readiness(&cimd.admin), |answer| *answer == (status, body.clone())).await;
        assert_eq!(answer, (status, body));
        assert_eq!(up(&cimd, "store").await, Some(0));
        fetch_documents(&channel(&cimd.ext_proc).await, 0..1).await;
    }
    // One that is not there yet could be made, and is not.
    let dir = tempfile::tempdir().expect("a folder");
    let state = dir.path().join("state");
    let flags = ["--state-dir", state.to_str().expect("text"), "--ready-needs-exchange"];
    let mut cimd = Cimd::start(&executable(), &flags).await;
    cimd.process.line(|line| line.contains("can be reached").then_some(())).await;
    let ready = (200, "ready\n".to_owned());
    assert_eq!(eventually(|| readiness(&cimd.admin), |answer| *answer == ready).await, ready);
    assert_eq!(up(&cimd, "store").await, Some(1));
    assert!(!state.exists());
}

/// The same of another process, which need not be there first.
#[tokio::test]
async fn a_choreographer_that_is_away_is_said() {
    let dir = tempfile::tempdir().expect("a folder");
    let text = |name: &str| dir.path().join(name).to_str().expect("text").to_owned();
    let (keys, state) = (key_file(dir.path()), text("state"));
    let tokens = format!("unix:{}", text("tokens"));
    let mut choreographer =
        Choreographer::start(&executable(), &["--state-dir", &state, "--tokens-listen", &tokens]).await;
    let at = format!("http://{}", choreographer.address);
    let keys = keys.to_str().expect("text");
    let flags = ["--choreographer", &at, "--tokens", &tokens, "--state-keys", keys, "--listen"];
    let socket = format!("unix:{}", text("ext_proc"));
    let flags = [&flags[..], &[&socket], &["--ready-needs-exchange"]].concat();
    let mut cimd = Cimd::start(&executable(), &flags).await;
    for part in ["choreographer", "tokens"] {
        let reached = format!("\"{part}\"");
        cimd.process.line(|line| (line.contains("can be reached") && line.contains(&reached)).then_some(())).await;
    }
    let ready = (200, "ready\n".to_owned());
    assert_eq!(eventually(|| readiness(&cimd.admin), |answer| *answer == ready).await, ready);
    assert_eq!((up(&cimd, "choreographer").await, up(&cimd, "tokens").await), (Some(1), Some(1)));
    choreographer.process.stop().await;
    cimd.process.line(|line| line.contains("cannot be reached").then_some(())).await;
    // Each is tried in its own time, so the other one may be found gone first.
    let gone = "choreographer: no connection to the choreographer";
    let (status, body) = eventually(|| readiness(&cimd.admin), |(_, body)| body.contains(gone)).await;
    assert!(status == 503 && body.contains(gone), "{status} {body}");
}

/// What is there when it is as it should be, or else in the end.
async fn eventually<T, F: Future<Output = T>>(ask: impl Fn() -> F, is_so: impl Fn(&T) -> bool) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        let answer = ask().await;
        if is_so(&answer) || Instant::now() > end {
            return answer;
        }
        sleep(Duration::from_millis(50)).await;
    }
}

async fn up(cimd: &Cimd, part: &str) -> Option<u64> {
    metric(&cimd.admin, &format!("envoy_cimd_exchange_up{{part=\"{part}\"}}")).await
}

async fn health(channel: Channel, service: &str) -> ServingStatus {
    let request = HealthCheckRequest { service: service.to_owned() };
    HealthClient::new(channel).check(request).await.expect("a status").into_inner().status()
}

/// A stream that Envoy has opened and not sent anything on.
pub async fn open_stream(channel: Channel) -> (mpsc::Sender<ProcessingRequest>, Streaming<ProcessingResponse>) {
    let (sender, receiver) = mpsc::channel(1);
    let answers = ExternalProcessorClient::new(channel).process(ReceiverStream::new(receiver)).await;
    (sender, answers.expect("a stream").into_inner())
}

#[tokio::test]
async fn no_socket_file_is_left_after_a_clean_stop() {
    let dir = tempfile::tempdir().expect("a folder");
    let flags = ["listen", "admin-listen", "tokens-listen"]
        .map(|name| format!("--{name}=unix:{}", dir.path().join(name).display()));
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let mut cimd = Cimd::start(&executable(), &flags).await;
    let left = || std::fs::read_dir(dir.path()).expect("a folder").count();
    assert_eq!(left(), 3);
    assert_eq!(cimd.process.stop().await, Some(0));
    assert_eq!(left(), 0);
}

#[tokio::test]
async fn a_signal_fails_readiness_and_then_finishes_the_streams() {
    for signal in ["-TERM", "-INT"] {
        let mut cimd = Cimd::start(&executable(), &["--drain-delay=60"]).await;
        let channel = channel(&cimd.ext_proc).await;
        let (status, body) = readiness(&cimd.admin).await;
        assert!(status == 200 && body.starts_with("ready\n"), "{body}");
        for service in ["", "envoy.service.ext_proc.v3.ExternalProcessor"] {
            assert_eq!(health(channel.clone(), service).await, ServingStatus::Serving, "{service}");
        }
        let (sender, mut answers) = open_stream(channel.clone()).await;

        cimd.process.signal(signal);
        cimd.process.line(|line| line.contains("stopping").then_some(())).await;
        assert_eq!(readiness(&cimd.admin).await, (503, "stopping\n".to_owned()));
        let (status, _) = get(cimd.admin.parse().expect("an address"), "/healthz").await.expect("an answer");
        assert_eq!(status, 200, "it is alive");
        for service in ["", "envoy.service.ext_proc.v3.ExternalProcessor"] {
            assert_eq!(health(channel.clone(), service).await, ServingStatus::NotServing, "{service}");
        }
        // While Envoy takes notice, new streams are served.
        let (late, mut late_answers) = open_stream(channel.clone()).await;
        late.send(document_of("https://a.example")).await.expect("sent");
        assert!(late_answers.message().await.expect("an answer").is_some());

        // A second signal ends that delay; the stream from before is finished all the same.
        cimd.process.signal(signal);
        sender.send(document_of("https://a.example")).await.expect("sent");
        let answer = answers.message().await.expect("an answer").expect("a message");
        assert!(matches!(answer.response, Some(Response::ImmediateResponse(_))));
        drop((sender, late));
        assert_eq!(cimd.process.ended().await, Some(0));
        assert!(cimd.process.output().contains("\"message\":\"stopped\""));
    }
}

#[tokio::test]
async fn streams_that_do_not_finish_are_cut_at_the_deadline() {
    let mut cimd = Cimd::start(&executable(), &["--drain-timeout=1"]).await;
    let stream = open_stream(channel(&cimd.ext_proc).await).await;
    assert_eq!(cimd.process.stop().await, Some(0));
    assert!(cimd.process.output().contains("streams or calls were still open at the drain timeout"));
    drop(stream);
}

#[tokio::test]
async fn over_a_unix_socket() {
    let dir = tempfile::tempdir().expect("a folder");
    let socket = dir.path().join("cimd.sock");
    let address = format!("unix:{}", socket.display());
    let tokens = dir.path().join("tokens.sock");
    let tokens_address = format!("unix:{}", tokens.display());
    let flags = ["--listen", &address, "--tokens-listen", &tokens_address, "--socket-mode", "666"];
    let mut world = World::start(Wish { cimd: &flags, ..Wish::default() }).await;
    assert_eq!(world.cimd.ext_proc, address);
    let mode = |path| std::fs::metadata(path).expect("a socket").permissions().mode() & 0o777;
    // Who lets Envoy in does not hand everybody's tokens out.
    assert_eq!((mode(&socket), mode(&tokens)), (0o666, 0o600));
    assert_eq!(world.document("notes.localhost").await.0, 200);
    assert_eq!(world.cimd.process.stop().await, Some(0));
    assert!(!socket.exists(), "the socket goes with the process");
    assert_eq!(world.document("notes.localhost").await.0, 503);
}

/// Killed under load, and back on the same port.
#[tokio::test]
async fn killed_under_load_only_our_paths_notice() {
    let mut world = World::start(Wish::default()).await;
    let done = Arc::new(AtomicBool::new(false));
    let load: Vec<_> = [DOCUMENT, "/mcp"]
        .map(|path| {
            let (client, done) = (world.https(), Arc::clone(&done));
            tokio::spawn(async move {
                let mut statuses = Vec::new();
                while !done.load(Ordering::Relaxed) {
                    let answer = client.send(Version::HTTP_2, Call::get("notes.localhost", path)).await;
                    statuses.push(answer.expect("Envoy answers").status);
                }
                statuses
            })
        })
        .into();
    let served = "envoy_cimd_requests_total{endpoint=\"document\",outcome=\"served\"}";
    while world.metric(served).await < Some(10) {
        tokio::task::yield_now().await;
    }
    world.cimd.process.signal("-KILL");
    assert_eq!(world.cimd.process.ended().await, None);
    assert_eq!(world.document("notes.localhost").await, (503, None));
    let address = world.cimd.ext_proc.clone();
    world.cimd = Cimd::start(&executable(), &["--listen", &address]).await;
    assert_eq!(world.document("notes.localhost").await.0, 200, "the next request after its return");
    done.store(true, Ordering::Relaxed);
    let mut load = load.into_iter();
    let mut next = async || load.next().expect("a load").await.expect("it ends");
    let (ours, upstreams) = (next().await, next().await);
    assert!(ours.iter().all(|status| [200, 503].contains(status)), "{ours:?}");
    assert!(ours.contains(&503) && ours.contains(&200), "{ours:?}");
    assert!(upstreams.iter().all(|status| *status == 200), "{upstreams:?}");
    assert!(world.upstream.seen().iter().all(|request| request == "GET /mcp"), "nothing of ours went on");
}

/// Of routes only so many are kept: a hundred thousand of them leave no trace.
#[tokio::test]
async fn memory_stays_flat_over_distinct_origins() {
    const ORIGINS: usize = 100_000;
    let cimd = Cimd::start(&executable(), &[]).await;
    let channel = channel(&cimd.ext_proc).await;
    fetch_documents(&channel, 0..ORIGINS / 10).await;
    let after_a_tenth = resident(cimd.process.pid());
    let lines = async || {
        let (_, text) = get(cimd.admin.parse().expect("an address"), "/metrics").await.expect("metrics");
        text.split(|byte| *byte == b'\n').count()
    };
    let lines_after_a_tenth = lines().await;
    fetch_documents(&channel, ORIGINS / 10..ORIGINS).await;
    let served = metric(&cimd.admin, "envoy_cimd_requests_total{endpoint=\"document\",outcome=\"served\"}").await;
    assert_eq!(served, Some(ORIGINS as u64));
    assert_eq!(lines().await, lines_after_a_tenth, "no metric grows with them");
    let growth = resident(cimd.process.pid()).saturating_sub(after_a_tenth);
    assert!(growth < 4096, "{growth} KiB more after 90,000 further origins");
}

/// Help is data for a person, errors are not.
#[test]
fn help_goes_to_stdout_and_a_gone_reader_is_no_panic() {
    let (code, stdout, stderr) = crate::world::run(&["--help"], &[]);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    assert!(stdout.contains("serve"));
    let mut child = std::process::Command::new(executable())
        .args(["envoy-config", "--route", "from=https://a.example"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("it runs");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert!(!String::from_utf8_lossy(&output.stderr).contains("panicked"));
}
