//! The log: its filter, what no filter silences, and what happens where nobody reads it.

use std::{io::Write, process::Stdio, time::Duration};

use envoy_cimd::contract::proto::{begin_authorization_response::Outcome, begin_refusal, complete_refusal};
use http::Version;
use serde_json::Value;
use tokio::{net::TcpListener, process::Command, time::timeout};
use tonic::transport::Channel;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use crate::{
    authorization_server::{HOST, Lie, Servers},
    exchange::{Party, with_upstream},
    flow::press_shown,
    lifecycle::readiness,
    stack::{Answered, Call, Certificates, Cimd, Client, Process, get, grpc::channel, metric},
    world::{CALLBACK, Wish, World, executable, run},
};

const NOTES: &str = "notes.localhost";
/// One that looks into lines with a pattern, which would take for ever to be made ready.
const PATTERN: &str =
    "info,[{x=(0|1)*1(0|1)(0|1)(0|1)(0|1)(0|1)(0|1)(0|1)(0|1)(0|1)(0|1)(0|1)(0|1)(0|1)(0|1)(0|1)(0|1)}]=debug";

async fn log(address: &str, method: &'static str, filter: &str) -> Answered {
    let client = Client::plain(address.parse().expect("an address"));
    let call = Call::get("localhost", "/log").method(method).body(filter);
    client.send(Version::HTTP_11, call).await.expect("an answer")
}

#[tokio::test]
async fn its_filter_changes_while_it_runs() {
    let mut cimd = Cimd::start(&executable(), &[]).await;
    assert_eq!(log(&cimd.admin, "GET", "").await.text(), "info\n");
    let audit = ["info,audit[{event}]=off", "error,audit[{user_subject}]=off", "[{event}]=off", "[a]=off"];
    for bad in [&["a=b=c", "", " \n", "loud=5", PATTERN], &audit[..]].concat() {
        let answer = log(&cimd.admin, "PUT", bad).await;
        assert_eq!(answer.status, 400, "{bad:?}");
        assert!(answer.text().contains("directive") || answer.text().contains("a level is one of"), "{answer:?}");
    }
    for long in [2000, 1 << 20] {
        let answer = log(&cimd.admin, "PUT", &"a=info,".repeat(long / 7)).await;
        assert_eq!(answer.status, 413, "{answer:?}");
    }
    let client = Client::plain(cimd.admin.parse().expect("an address"));
    let rebound = Call::get("rebound.example", "/log").method("PUT").body("off");
    assert_eq!(client.send(Version::HTTP_11, rebound).await.expect("an answer").status, 403);
    assert_eq!(log(&cimd.admin, "GET", "").await.text(), "info\n", "the one before stays");
    assert!(!cimd.process.output().contains("\"DEBUG\""));
    assert!(!cimd.process.output().contains("was changed"));
    assert_eq!(log(&cimd.admin, "PUT", "debug\n").await.text(), "debug\n");
    // What HTTP/2 says of a connection, at that level.
    drop(channel(&cimd.ext_proc).await);
    cimd.process.line(|line| line.contains("\"DEBUG\"").then_some(())).await;
    // That somebody silenced it is said all the same, and that it stays silent too.
    for filter in ["off", "envoy_cimd=off", "envoy_cimd::log=off,off"] {
        assert_eq!(log(&cimd.admin, "PUT", filter).await.status, 200);
        let said = format!("\"filter\":\"{filter}\"");
        cimd.process.line(|line| line.contains(&said).then_some(())).await;
    }
    cimd.process.stop().await;
    assert!(!cimd.process.output().contains("\"stopping\""));
}

#[test]
fn what_is_no_filter_is_refused_at_the_start() {
    for (filter, error) in [
        (PATTERN, "`[{x=(0|1)"),
        ("info,audit[{event}]=off", "`audit[{event}]=off`: a directive is"),
        ("loud=5", "a level is one of off, error, warn, info, debug, trace"),
        (&"a=info,".repeat(2000), "at most 1024 bytes"),
    ] {
        let (code, _, error_output) = run(&["serve", "--log", filter], &[]);
        assert_eq!(code, Some(2), "{error_output}");
        assert!(error_output.contains(error) && error_output.contains("--log"), "{error_output}");
    }
}

/// Neither the filter that it starts with, nor any that comes later.
#[tokio::test]
async fn no_filter_silences_what_is_audited() {
    // With the `ready` lines, which tests wait for.
    let party = Party::start(vec![Lie::none("good")], &["--log=error,envoy_cimd::commands=info"]).await;
    let admin = &party.process.admin;
    let begin = async || {
        let begun = party.begin_with(party.request("good")).await;
        assert!(matches!(begun, Outcome::Begun(_)), "{begun:?}");
    };
    begin().await;
    let filters = ["error", "off", "audit=off", "audit=error,off", "envoy_cimd=off,audit=off,off"];
    for filter in filters {
        assert_eq!(log(admin, "PUT", filter).await.status, 200, "{filter}");
        begin().await;
    }
    let mut party = party;
    assert_eq!(party.process.process.stop().await, Some(0));
    let output = party.process.process.output();
    assert_eq!(audited(&output, "begun", "ok"), 1 + filters.len(), "{output}");
    assert!(!output.contains("\"stopped\""), "the filter holds for the rest");
}

/// How often the audit log has an event with this outcome.
fn audited(output: &str, event: &str, outcome: &str) -> usize {
    let lines = output.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["target"] == "audit" && line["event"] == event && line["outcome"] == outcome).count()
}

/// The lines that the log says were dropped.
fn dropped(output: &str) -> u64 {
    let lines = output.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let lines = lines.filter(|line| line["message"].as_str().is_some_and(|text| text.contains("were dropped")));
    lines.filter_map(|line| line["lines"].as_u64()).sum()
}

const DROPPED: &str = "envoy_cimd_log_lines_dropped_total";

async fn check_health(channel: &Channel) {
    let health = HealthClient::new(channel.clone()).check(HealthCheckRequest::default()).await;
    assert_eq!(health.expect("a status").into_inner().status(), ServingStatus::Serving);
}

/// Stops reading what a process logs, and has it log until it notices, and lines are dropped.
pub async fn stop_reading(process: &Process, admin: &str, channel: &Channel, meanwhile: impl AsyncFn()) {
    process.read(false);
    while readiness(admin).await.0 == 200 {
        check_health(channel).await;
        meanwhile().await;
    }
    assert_eq!(readiness(admin).await, (503, "the audit log cannot be written: nobody reads stderr\n".to_owned()));
    while metric(admin, DROPPED).await == Some(0) {
        check_health(channel).await;
    }
}

/// Reads it again, and waits until the process notices.
pub async fn read_again(process: &Process, admin: &str) {
    process.read(true);
    while readiness(admin).await.0 != 200 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_nobody_reads_stops_what_is_audited_and_nothing_else() {
    let dir = tempfile::tempdir().expect("a folder");
    let certificates = Certificates::make(dir.path(), &[HOST]);
    let servers = Servers::start(&certificates, vec![Lie::none("good")]).await;
    let (ca, state) = (certificates.ca.to_str().expect("text"), dir.path().join("state"));
    let state = state.to_str().expect("text");
    let flags = ["--single-user", "--extra-ca", ca, "--allow-host", HOST, "--state-dir", state, "--log=trace"];
    let upstream = servers.upstream_of("good");
    let edit = |config: &mut Value| with_upstream(config, &upstream);
    let mut world = World::start(Wish { cimd: &flags, edit: &edit, ..Wish::default() }).await;
    let admin = world.cimd.admin.clone();
    let https = world.https();
    let send = async |call| https.send(Version::HTTP_2, call).await.expect("an answer");

    let issuer = format!("{}/good", servers.issuer);
    let begun = send(press_shown(NOTES, "?return_to=/done", &issuer)).await;
    assert_eq!(begun.status, 303, "{begun:?}");
    let location = begun.all("location").join("");
    let state = url::Url::parse(&location).expect("a URL");
    let state = state.query_pairs().find(|(name, _)| name == "state").expect("a state").1.into_owned();
    let code = servers.consent(&location);
    let cookie = begun.all("set-cookie").join("").split(';').next().expect("a pair").to_owned();
    let callback = || {
        let query = format!("code={code}&state={state}&iss={}/good", servers.issuer);
        Call::get(NOTES, &format!("{CALLBACK}?{query}")).header("cookie", cookie.clone())
    };

    let flows = std::sync::Mutex::new(1);
    let begin = async || match send(press_shown(NOTES, "", &issuer)).await.status {
        303 => *flows.lock().expect("flows") += 1,
        status => assert_eq!(status, 503),
    };
    let health = channel(&world.cimd.ext_proc).await;
    stop_reading(&world.cimd.process, &admin, &health, begin).await;
    let refused = "envoy_cimd_requests_total{endpoint=\"start\",outcome=\"choreographer_unavailable\"}";
    let before = metric(&admin, refused).await.expect("a metric");
    assert_eq!(send(press_shown(NOTES, "", &issuer)).await.status, 503);
    assert_eq!(metric(&admin, refused).await, Some(before + 1));
    assert_eq!(send(callback()).await.status, 503);
    assert_eq!(servers.exchanges(), [] as [&str; 0], "the code is not used");
    assert_eq!(world.document(NOTES).await.0, 200);
    check_health(&health).await;
    let answer = log(&admin, "PUT", "off").await;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(log(&admin, "GET", "").await.text(), "trace\n");
    assert_eq!(get(admin.parse().expect("an address"), "/healthz").await.expect("an answer").0, 200);

    read_again(&world.cimd.process, &admin).await;
    let done = send(callback()).await;
    assert_eq!((done.status, done.all("location")), (303, vec!["/done"]), "the flow was not consumed");
    assert_eq!(servers.exchanges().concat(), code);
    assert_eq!(log(&admin, "PUT", "off").await.status, 200);
    let lost = metric(&admin, DROPPED).await;
    assert_eq!(world.cimd.process.stop().await, Some(0));
    let output = world.cimd.process.output();
    assert_eq!(audited(&output, "begun", "ok"), *flows.lock().expect("flows"), "each that began is there");
    assert_eq!(audited(&output, "completed", "ok"), 1);
    assert_eq!(Some(dropped(&output)), lost);
}

/// A choreographer of its own says so to whoever calls it, and ends in order also where nobody reads what it says of that.
#[tokio::test(flavor = "multi_thread")]
async fn a_choreographer_that_nobody_hears_is_unavailable_and_ends() {
    let mut party = Party::start(vec![Lie::none("good")], &[]).await;
    let Outcome::Begun(begun) = party.begin_with(party.request("good")).await else { panic!("it began") };
    let answer = party.answer("good", &begun);
    let health = channel(&party.process.address).await;
    stop_reading(&party.process.process, &party.process.admin, &health, async || {}).await;
    let Outcome::Refusal(refusal) = party.begin_with(party.request("good")).await else { panic!("it is refused") };
    assert_eq!(refusal.reason(), begin_refusal::Reason::Unavailable);
    let (reason, _) = party.complete(answer).await.expect_err("it is refused");
    assert_eq!(reason, complete_refusal::Reason::Unavailable);
    assert_eq!(party.servers.exchanges(), [] as [&str; 0]);
    assert_eq!(party.process.process.stop().await, Some(0));
}

/// Why a process ends is for whoever reads; it ends where nobody does.
#[tokio::test]
async fn an_end_with_an_error_waits_for_no_reader() {
    let taken = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let (_unread, mut pipe) = std::io::pipe().expect("a pipe");
    // All that a pipe holds.
    pipe.write_all(&[b'\n'; 1 << 16]).expect("it fits");
    let mut process = Command::new(executable());
    process.args(["serve", "--single-user", "--listen", &address, "--admin-listen", "127.0.0.1:0"]);
    process.env("ENVOY_CIMD_STATE_DIR", "/dev/null/envoy-cimd").stdout(Stdio::null()).stderr(pipe).kill_on_drop(true);
    let mut child = process.spawn().expect("it runs");
    let status = timeout(Duration::from_secs(60), child.wait()).await.expect("it ends").expect("a status");
    assert_eq!(status.code(), Some(1));
}
