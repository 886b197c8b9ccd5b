//! Each limit, what is said above it, what then does not happen, and that the others go on.

use std::{
    future::pending,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use envoy_cimd::{
    contract::{
        choreographer::{Begin, Begun, Choreographer, Complete},
        connection::Connection,
        error::{BeginError, CallError, Incomplete},
        proto::{BeginAuthorizationRequest, begin_authorization_response::Outcome, begin_refusal::Reason},
        tokens::TokenOwner,
    },
    filter::{
        endpoint::{Config, Limits},
        reply::Reply,
    },
    model::{
        client::ClientId,
        scope::Scope,
        shares::ShareLimits,
        trace::Trace,
        upstream::Upstream,
        user::{UserSource, Users},
    },
};
use envoy_types::pb::envoy::service::ext_proc::v3::external_processor_client::ExternalProcessorClient;
use futures_util::{FutureExt, future::BoxFuture};
use http::Version;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};
use tonic::Code;

use crate::{
    authorization_server::Lie,
    choreographer::Mood,
    contract::{ask, endpoints_of, reply},
    exchange::Party,
    flow::{self, Flows, WHO, at, honest, press, with_people, with_query},
    lifecycle::open_stream,
    stack::{Answered, Call, Cimd, get, grpc::channel},
    tokens::{begin, in_process, person},
    world::{CALLBACK, DOCUMENT, START, Wish, World, executable, metadata, virtual_hosts},
};

const NOTES: &str = "notes.localhost";
const TICKETS: &str = "tickets.localhost";

#[tokio::test]
async fn streams() {
    let mut world = World::start(Wish { cimd: &["--max-streams=2"], ..Wish::default() }).await;
    let channel = channel(&world.cimd.ext_proc).await;
    let first = open_stream(channel.clone()).await;
    let second = open_stream(channel.clone()).await;
    let third = ExternalProcessorClient::new(channel).process(tokio_stream::pending()).await;
    assert_eq!(third.expect_err("refused").code(), Code::ResourceExhausted);
    let answer = world.https().send(Version::HTTP_2, Call::get(NOTES, DOCUMENT)).await.expect("an answer");
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(world.metric("envoy_cimd_refused_streams_total{reason=\"too_many_streams\"}").await, Some(2));
    world.cimd.process.line(|line| line.contains("too_many_streams").then_some(())).await;
    drop(first);
    while world.metric("envoy_cimd_streams").await > Some(1) {
        tokio::task::yield_now().await;
    }
    assert_eq!(world.document(NOTES).await.0, 200);
    assert!(world.upstream.seen().is_empty());
    drop(second);
}

/// A slow choreographer leaves streams for documents.
#[tokio::test]
async fn calls() {
    let flows = Flows::with(&["--single-user", "--max-calls=1"], &|_| {}).await;
    flows.fake.set(Mood::Hangs);
    let client = flows.world.https();
    let waiting = tokio::spawn(async move { client.send(Version::HTTP_2, press(NOTES, "")).await });
    while flows.fake.begins() == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(flows.send(press(NOTES, "")).await.status, 503);
    assert_eq!(flows.labelled("start", "too_many_flows").await, 1);
    assert_eq!(flows.send(Call::get(NOTES, DOCUMENT)).await.status, 200);
    flows.fake.release();
    assert_eq!(waiting.await.expect("it ends").expect("an answer").status, 303);
    assert_eq!(flows.fake.begins(), 1);
    flows.finish().await;
}

/// People of a filter, and a route each to an upstream of its own, which [`Fake::hold`](crate::choreographer::Fake::hold)
/// knows by its name.
async fn people(limits: &[&str]) -> Flows {
    let edit = |config: &mut Value| {
        with_people(config);
        for host in virtual_hosts(config) {
            let name = host["name"].as_str().unwrap_or_default().to_owned();
            if name != "other" {
                metadata(host)["to"] = format!("https://{name}/mcp").into();
            }
        }
    };
    Flows::with(&[&WHO, limits].concat(), &edit).await
}

/// A request of a person's.
fn by(subject: &str, call: Call) -> Call {
    flow::person(call, "i", subject)
}

/// Sends a request that is going to wait.
fn waits(flows: &Flows, call: Call) -> JoinHandle<Answered> {
    let client = flows.world.https();
    tokio::spawn(async move { client.send(Version::HTTP_2, call).await.expect("an answer") })
}

/// Waits until the choreographer has had so many presses.
async fn begun(flows: &Flows, presses: usize) {
    while flows.fake.begins() < presses {
        tokio::task::yield_now().await;
    }
}

/// Who presses again and again on a slow route takes nobody else's turn, and is told apart in no log.
#[tokio::test]
async fn calls_of_one_user() {
    let mut flows = people(&["--max-calls=4", "--max-calls-per-user=3"]).await;
    flows.fake.hold(NOTES);
    let waiting = [(); 3].map(|()| waits(&flows, by("SECRET-anna", press(NOTES, ""))));
    begun(&flows, 3).await;
    for _ in 0..20 {
        for host in [NOTES, TICKETS] {
            assert_eq!(flows.send(by("SECRET-anna", press(host, ""))).await.status, 503);
        }
        assert_eq!(flows.send(by("bert", press(TICKETS, ""))).await.status, 303);
    }
    assert_eq!(flows.labelled("start", "too_many_flows").await, 40);
    flows.world.cimd.process.line(|line| line.contains("--max-calls-per-user allows").then_some(())).await;
    flows.fake.release();
    for answer in waiting {
        assert_eq!(answer.await.expect("it ends").status, 303);
    }
    assert_eq!(flows.send(by("SECRET-anna", press(NOTES, ""))).await.status, 303, "her turn came back");
    assert_eq!(flows.fake.begins(), 3 + 20 + 1);
    flows.finish().await;
}

/// However many people press at a slow upstream, those of the others go on.
#[tokio::test]
async fn calls_at_one_upstream() {
    let mut flows = people(&["--max-calls=3", "--max-calls-per-upstream=2"]).await;
    flows.fake.hold(NOTES);
    let waiting = ["anna", "bert"].map(|name| waits(&flows, by(name, press(NOTES, ""))));
    begun(&flows, 2).await;
    for _ in 0..20 {
        assert_eq!(flows.send(by("carl", press(NOTES, ""))).await.status, 503);
        assert_eq!(flows.send(by("carl", press(TICKETS, ""))).await.status, 303);
    }
    flows.world.cimd.process.line(|line| line.contains("--max-calls-per-upstream allows").then_some(())).await;
    flows.fake.release();
    for answer in waiting {
        assert_eq!(answer.await.expect("it ends").status, 303);
    }
    assert_eq!(flows.fake.begins(), 2 + 20);
    flows.finish().await;
}

/// Who consented can finish while no more may begin.
#[tokio::test]
async fn callbacks_beside_presses() {
    let flows = people(&["--max-calls=2"]).await;
    let flow = flows.begin_as(by("carl", press(TICKETS, ""))).await;
    flows.fake.hold(NOTES);
    let waiting = ["anna", "bert"].map(|name| waits(&flows, by(name, press(NOTES, ""))));
    begun(&flows, 3).await;
    assert_eq!(flows.send(by("carl", press(TICKETS, ""))).await.status, 503);
    assert_eq!(flows.send(by("carl", at(honest(&flow), TICKETS))).await.status, 303);
    assert_eq!((flows.fake.begins(), flows.fake.completions()), (3, 1));
    flows.fake.release();
    for answer in waiting {
        assert_eq!(answer.await.expect("it ends").status, 303);
    }
    flows.finish().await;
}

/// Callbacks of one user that wait are no more than that user's share, and one that is refused loses nothing.
#[tokio::test]
async fn callbacks_of_one_user() {
    let flows = people(&["--max-calls=2", "--max-calls-per-user=1"]).await;
    let mut begun = Vec::new();
    for (name, host) in [("anna", NOTES), ("anna", TICKETS), ("bert", TICKETS)] {
        begun.push(flows.begin_as(by(name, press(host, ""))).await);
    }
    flows.fake.hold(NOTES);
    let waiting = waits(&flows, by("anna", honest(&begun[0])));
    while flows.fake.completions() == 0 {
        tokio::task::yield_now().await;
    }
    let second = || by("anna", at(honest(&begun[1]), TICKETS));
    assert_eq!(flows.send(second()).await.status, 503);
    assert_eq!(flows.send(by("bert", at(honest(&begun[2]), TICKETS))).await.status, 303);
    flows.fake.release();
    assert_eq!(waiting.await.expect("it ends").status, 303);
    assert_eq!(flows.send(second()).await.status, 303);
    assert_eq!(flows.fake.completions(), 3);
    flows.finish().await;
}

/// All that one user can have waiting leaves streams for the others.
#[tokio::test]
async fn streams_of_one_user() {
    let flows = people(&["--max-streams=5", "--max-calls-per-user=1"]).await;
    let [first, second] =
        [flows.begin_as(by("anna", press(NOTES, ""))).await, flows.begin_as(by("anna", press(NOTES, ""))).await];
    flows.fake.hold(NOTES);
    let waiting = [by("anna", press(NOTES, "")), by("anna", honest(&first))].map(|call| waits(&flows, call));
    // It is shown in any case, when the choreographer has not answered for a while.
    let page = waits(&flows, by("anna", Call::get(NOTES, START)));
    while (flows.fake.begins(), flows.fake.completions(), flows.fake.descriptions()) != (3, 1, 1) {
        tokio::task::yield_now().await;
    }
    for (call, status) in [
        (by("anna", press(NOTES, "")), 503),
        (by("anna", honest(&second)), 503),
        (by("anna", Call::get(NOTES, START)), 200),
        (Call::get(NOTES, DOCUMENT), 200),
        (by("bert", Call::get(TICKETS, START)), 200),
        (by("bert", press(TICKETS, "")), 303),
    ] {
        assert_eq!(flows.send(call).await.status, status);
        while flows.world.metric("envoy_cimd_streams").await > Some(3) {
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(flows.world.metric("envoy_cimd_refused_streams_total{reason=\"too_many_streams\"}").await, Some(0));
    flows.fake.release();
    for answer in waiting {
        assert_eq!(answer.await.expect("it ends").status, 303);
    }
    assert_eq!(page.await.expect("it ends").status, 200);
    flows.finish().await;
}

/// Never says what it knows of an upstream, and counts how often it was asked.
#[derive(Default)]
struct Silent(AtomicUsize);

#[async_trait]
impl Choreographer for Silent {
    async fn describe(&self, _: ClientId, _: Upstream, _: &Trace) -> Result<Option<String>, CallError> {
        self.0.fetch_add(1, Ordering::SeqCst);
        pending().await
    }

    async fn connection(&self, _: TokenOwner, _: Option<Scope>, _: &Trace) -> Result<Connection, CallError> {
        pending().await
    }

    async fn begin(&self, _: Begin, _: &Trace) -> Result<Begun, BeginError> {
        Err(CallError::Unavailable("it is silent".into()).into())
    }

    async fn complete(&self, _: Complete, _: &Trace) -> Result<String, Incomplete> {
        Err(CallError::Unavailable("it is silent".into()).into())
    }

    async fn disconnect(&self, _: TokenOwner, _: &Trace) -> Result<(), CallError> {
        Err(CallError::Unavailable("it is silent".into()))
    }
}

/// A user whose pages wait for a name gets the next without one, at once; the others' are looked for.
#[tokio::test]
async fn pages() {
    let path = |text: &str| text.parse().expect("a path");
    let source = UserSource { namespace: "who".to_owned(), issuer: path("iss"), subject: path("sub"), display: None };
    let calls = ShareLimits { in_all: 3, of_user: 2, of_server: 3 };
    let limits = Limits { calls, ..Config::default().limits };
    let choreographer = Arc::new(Silent::default());
    let config = Config { users: Users::From(source), limits, ..Config::default() };
    let endpoints = endpoints_of(config, Arc::clone(&choreographer) as Arc<dyn Choreographer>);
    let page = |subject| -> BoxFuture<'static, Reply> {
        Box::pin(reply(ask(&endpoints, &[(":method", "GET"), (":path", START)], Some(("i", subject)))))
    };
    let asked = || choreographer.0.load(Ordering::SeqCst);
    let mut waiting = [page("anna"), page("anna")];
    assert!(waiting.iter_mut().all(|page| page.now_or_never().is_none()));
    let shown = page("anna").now_or_never().expect("at once");
    assert_eq!((shown.status, shown.label, asked()), (200, "shown", 2));
    let mut other = page("bert");
    assert!((&mut other).now_or_never().is_none());
    assert_eq!(asked(), 3, "it was looked for");
    drop(waiting);
    assert!(page("anna").now_or_never().is_none());
    assert_eq!(asked(), 4, "whoever leaves gives the share back");
}

#[tokio::test]
async fn headers_and_queries() {
    let flags = ["--single-user", "--max-header-bytes=1500", "--max-query-bytes=700"];
    let flows = Flows::with(&flags, &|_| {}).await;
    let begun = flows.begin(NOTES, "").await;
    let long = "x".repeat(1500);
    for (endpoint, call) in [
        ("document", Call::get(NOTES, DOCUMENT)),
        ("start", Call::get(NOTES, START)),
        ("start", press(NOTES, "")),
        ("callback", honest(&begun)),
    ] {
        let answer = flows.send(call.header("cookie", format!("a={long}"))).await;
        assert_eq!(answer.status, 431, "{endpoint} {answer:?}");
        assert!(answer.text().contains("headers_too_large"), "{answer:?}");
        assert_ne!(flows.labelled(endpoint, "headers_too_large").await, 0);
    }
    let long = "x".repeat(700);
    for call in [
        with_query(&begun, &format!("code=x&state={}&more={long}", begun.state)),
        Call::get(NOTES, &format!("{START}?return_to=/{long}")),
        press(NOTES, &format!("?return_to=/{long}")),
    ] {
        let answer = flows.send(call).await;
        assert_eq!(answer.status, 400, "{answer:?}");
    }
    assert_eq!((flows.fake.begins(), flows.fake.completions()), (1, 0), "nothing of it went on");
    assert!(!flows.fake.consumed());
    assert_eq!(flows.send(honest(&begun)).await.status, 303);
    assert!(honest(&begun).path.starts_with(CALLBACK));
    flows.finish().await;
}

fn refused(outcome: &Outcome) -> Option<Reason> {
    match outcome {
        Outcome::Refusal(refusal) => Some(refusal.reason()),
        Outcome::Begun(_) => None,
    }
}

#[tokio::test]
async fn flows_of_one_and_of_all() {
    let party = Party::start(vec![Lie::none("good")], &["--max-flows-per-user=1", "--max-flows=2"]).await;
    let of = |subject| BeginAuthorizationRequest { user: Some(person("i", subject)), ..party.request("good") };
    let Outcome::Begun(oldest) = party.begin_with(of("anna")).await else { panic!("it began") };
    let Outcome::Begun(newest) = party.begin_with(of("anna")).await else { panic!("it began") };
    assert_eq!(refused(&party.begin_with(of("bert")).await), None);
    assert_eq!(refused(&party.begin_with(of("carl")).await), Some(Reason::TooManyFlows));
    for (begun, good) in [(oldest, false), (newest, true)] {
        let mut answer = party.answer("good", &begun);
        answer.user = Some(person("i", "anna"));
        assert_eq!(party.complete(answer).await.is_ok(), good);
    }
    assert_eq!(party.servers.exchanges().len(), 1);
}

/// An upstream that accepts connections and says nothing on them.
pub async fn silence() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    (listener, url)
}

/// One user's look-ups, and those at one host, leave room for the others'.
#[tokio::test]
async fn lookups_of_one_user_and_at_one_host() {
    let limits = ["--max-lookups=4", "--max-lookups-per-user=2", "--max-lookups-per-host=3"];
    let party = Party::start(vec![Lie::none("good")], &limits).await;
    let (listener, silent) = silence().await;
    let of = |subject, upstream: &str| BeginAuthorizationRequest {
        user: Some(person("i", subject)),
        upstream: upstream.to_owned(),
        ..party.request("good")
    };
    let slow = |subject, name| party.begin_with(of(subject, &format!("{silent}/{name}")));
    let good = party.servers.upstream_of("good");
    let others = async {
        let _open = [listener.accept().await, listener.accept().await, listener.accept().await];
        let full = |outcome: &Outcome, setting| match outcome {
            Outcome::Refusal(refusal) => refusal.reason() == Reason::TooManyFlows && refusal.message.contains(setting),
            Outcome::Begun(_) => false,
        };
        let anna = party.begin_with(of("anna", &good)).await;
        assert!(full(&anna, "--max-lookups-per-user"), "{anna:?}");
        let carl = slow("carl", "d").await;
        assert!(full(&carl, "--max-lookups-per-host"), "{carl:?}");
        assert_eq!(refused(&party.begin_with(of("carl", &good)).await), None);
        assert_eq!(refused(&party.begin_with(of("anna", &good)).await), None, "what is known takes no look-up");
    };
    let (a, b, c, ()) = tokio::join!(slow("anna", "a"), slow("anna", "b"), slow("bert", "c"), others);
    for outcome in [a, b, c] {
        assert_eq!(refused(&outcome), Some(Reason::AuthorizationServerUnusable));
    }
}

/// What is looked up for pages that are only opened keeps no sign-in out, nor the end of the process.
#[tokio::test]
async fn lookups_of_pages() {
    let flags = ["--max-lookups=1", "--drain-delay=0", "--drain-timeout=2"];
    let mut party = Party::start(vec![Lie::none("good"), Lie::none("other")], &flags).await;
    let (listener, silent) = silence().await;
    let mut open = Vec::new();
    assert_eq!(party.describe(&silent).await, "");
    open.push(listener.accept().await);
    assert_eq!(party.describe(&party.servers.upstream_of("other")).await, "");
    assert_eq!(refused(&party.begin_with(party.request("good")).await), None);
    assert_eq!(party.servers.challenges("other"), 0, "one page at a time");
    assert_eq!(party.process.process.stop().await, Some(0));
    assert!(!party.process.process.output().contains("drain timeout"), "{}", party.process.process.output());
}

/// A look-up goes on when all who wait for it leave, and whoever comes next has it.
#[tokio::test]
async fn lookups_that_nobody_waits_for() {
    let (_dir, servers, embedded) = in_process(Lie { late: true, ..Lie::none("late") }).await;
    let trace = Trace::default();
    let mut leaves = embedded.begin(begin(&servers, "late"), &trace);
    while servers.challenges("late") == 0 {
        assert!((&mut leaves).now_or_never().is_none());
        tokio::task::yield_now().await;
    }
    drop(leaves);
    servers.answer();
    embedded.begin(begin(&servers, "late"), &trace).await.unwrap_or_else(|error| panic!("{error:?}"));
    assert_eq!(servers.challenges("late"), 1);
    assert_eq!(servers.fetches(), ["resource late", "server late"]);
}

/// An upstream that hangs keeps its look-up, and the next flow that needs one is refused; nothing of it is remembered.
#[tokio::test]
async fn lookups() {
    let party = Party::start(vec![Lie::none("good")], &["--max-lookups=1"]).await;
    let (silent, upstream) = silence().await;
    let hanging = BeginAuthorizationRequest { upstream, ..party.request("good") };
    let (slow, refusal) = tokio::join!(party.begin_with(hanging), async {
        let _open = silent.accept().await.expect("it is being looked up");
        refused(&party.begin_with(party.request("good")).await)
    });
    assert_eq!(refusal, Some(Reason::TooManyFlows));
    assert_eq!(refused(&slow), Some(Reason::AuthorizationServerUnusable));
    assert_eq!(refused(&party.begin_with(party.request("good")).await), None);
}

/// Callers who say nothing, or not all of it, keep nobody out for long, also where each comes again as soon as it has to
/// go.
#[tokio::test(flavor = "multi_thread")]
async fn slow_callers_of_the_admin_listener() {
    let cimd = Cimd::start(&executable(), &[]).await;
    let address: SocketAddr = cimd.admin.parse().expect("an address");
    let gone = Arc::new(AtomicUsize::new(0));
    let mut slow = JoinSet::new();
    for number in 0..300 {
        let gone = Arc::clone(&gone);
        let said: &[u8] = match number % 3 {
            0 => b"",
            1 => b"GET /hea",
            _ => b"PUT /log HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n",
        };
        slow.spawn(async move {
            loop {
                let mut stream = TcpStream::connect(address).await.expect("a connection");
                // Either may find that it had to go.
                let _ = stream.write_all(said).await;
                let _ = stream.read_to_end(&mut Vec::new()).await;
                gone.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let mut answered = 0;
    while answered < 20 || gone.load(Ordering::Relaxed) < 300 {
        assert_eq!(get(address, "/readyz").await.expect("an answer").0, 200);
        answered += 1;
    }
    slow.shutdown().await;
    assert_eq!(get(address, "/log").await.expect("an answer"), (200, "info\n".into()));
}
