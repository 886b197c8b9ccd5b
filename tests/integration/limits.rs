//! Each limit, what is said above it, and what then does not happen.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use envoy_cimd::contract::proto::{
    BeginAuthorizationRequest, begin_authorization_response::Outcome, begin_refusal::Reason,
};
use envoy_types::pb::envoy::service::ext_proc::v3::external_processor_client::ExternalProcessorClient;
use http::Version;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tonic::Code;

use crate::{
    authorization_server::Lie,
    choreographer::Mood,
    exchange::Party,
    flow::{Flows, honest, press, with_query},
    lifecycle::open_stream,
    stack::{Call, Cimd, get, grpc::channel},
    tokens::person,
    world::{CALLBACK, DOCUMENT, START, Wish, World, executable},
};

const NOTES: &str = "notes.localhost";

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
    assert_eq!(world.metric("envoy_cimd_refused_streams_total").await, Some(2));
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

/// An upstream that hangs keeps its look-up, and the next flow that needs one is refused; nothing of it is remembered.
#[tokio::test]
async fn lookups() {
    let party = Party::start(vec![Lie::none("good")], &["--max-lookups=1"]).await;
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let upstream = format!("http://{}/mcp", silent.local_addr().expect("an address"));
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
