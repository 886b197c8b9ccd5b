//! MCP requests while parts fail, end or start anew: no token, no request at the upstream; and what was under way ends
//! well.

use http::Version;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::json;
use tokio::time::timeout;

use crate::{
    authorization_server::{Lie, Refresh, Token},
    gateway::{Ask, BERT, Gateway, Setup, VERSIONS, open, send},
    mcp_upstream::{EVENTS, WAITS},
    stack::{Answered, PATIENCE},
    store::Redis,
    tokens::over,
};

fn list() -> Ask {
    Ask::post(r#"{"jsonrpc":"2.0","id":7,"method":"tools/list"}"#)
}

/// The answer where nobody can say whether there is a token.
fn is_unavailable(answered: &Answered) {
    assert_eq!(answered.status, 502, "{answered:?}");
    assert_eq!(answered.all("cache-control"), ["no-store"]);
    let body: serde_json::Value = serde_json::from_slice(&answered.body).expect("JSON");
    let message = &body["error"]["message"];
    assert!(message.as_str().is_some_and(|message| message.contains("Try again")), "{body}");
    assert_eq!(body, json!({"jsonrpc": "2.0", "id": null, "error": {"code": -31001, "message": message}}));
}

fn is_told(answered: &Answered) -> bool {
    answered.status == 200 && answered.text().contains("/.pomerium/oauth/start")
}

/// Sends it until the answer is this, for whatever takes a moment.
async fn until(gateway: &Gateway, version: Version, is: impl Fn(&Answered) -> bool) {
    let sent = async { while !is(&gateway.send(version, &list()).await) {} };
    timeout(PATIENCE, sent).await.expect("it comes to that");
}

#[tokio::test]
async fn a_choreographer_that_is_down_or_hangs() {
    let setup = Setup { apart: Some(&[]), serve: &["--token-cache=0"], ..Setup::default() };
    let mut gateway = Gateway::start(setup).await;
    let code = gateway.connect_anna().await;
    assert_eq!(gateway.send(Version::HTTP_2, &list()).await.status, 200);
    assert_eq!(gateway.token_of(&gateway.upstream.came_alone()), code);

    gateway.choreographer().process.signal("-STOP");
    let [one, two] = VERSIONS.map(|version| (version, list()));
    let hung = tokio::join!(gateway.send(one.0, &one.1), gateway.send(two.0, &two.1));
    is_unavailable(&hung.0);
    is_unavailable(&hung.1);
    gateway.choreographer().process.signal("-CONT");
    until(&gateway, Version::HTTP_2, |answered| answered.status == 200).await;
    assert_eq!(gateway.token_of(gateway.upstream.came().last().expect("one")), code);

    gateway.choreographer().process.signal("-KILL");
    gateway.choreographer().process.ended().await;
    let reached = gateway.upstream.reached();
    for version in VERSIONS {
        is_unavailable(&gateway.send(version, &list()).await);
        // Who is not connected is not told to connect: nobody knows it.
        is_unavailable(&gateway.send(version, &list().by(BERT)).await);
    }
    assert_eq!(gateway.upstream.reached(), reached);
    gateway.choreograph_again().await;
    until(&gateway, Version::HTTP_11, |answered| answered.status == 200).await;
    assert_eq!(gateway.token_of(gateway.upstream.came().last().expect("one")), code);
    gateway.finish().await;
}

#[tokio::test]
#[ignore = "needs redis-server: make test-redis"]
async fn redis_that_is_down() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut redis = Redis::start(dir.path(), &[], "--port").await;
    let (url, keys) = (redis.url("redis", ""), crate::stack::key_file(dir.path()).display().to_string());
    let serve = ["--token-cache=0", "--store", &url, "--encryption-keys", &keys, "--state-keys", &keys];
    let gateway = Gateway::start(Setup { serve: &serve, ..Setup::default() }).await;
    let code = gateway.connect_anna().await;
    assert_eq!(gateway.send(Version::HTTP_2, &list()).await.status, 200);
    assert_eq!(gateway.token_of(&gateway.upstream.came_alone()), code);
    redis.stop().await;
    let reached = gateway.upstream.reached();
    for version in VERSIONS {
        is_unavailable(&gateway.send(version, &list()).await);
        is_unavailable(&gateway.send(version, &list().by(BERT)).await);
    }
    assert_eq!(gateway.upstream.reached(), reached);
    redis.start_again().await;
    until(&gateway, Version::HTTP_2, |answered| answered.status == 200).await;
    assert_eq!(gateway.token_of(gateway.upstream.came().last().expect("one")), code);
    gateway.finish().await;
}

/// At once in the process that was told; in another when what it keeps is over.
#[tokio::test]
async fn a_disconnect() {
    let setup = || Setup { apart: Some(&[]), serve: &["--token-cache=2"], ..Setup::default() };
    let gateway = Gateway::start(setup()).await;
    let another = gateway.another(&setup()).await;
    let code = gateway.connect_anna().await;
    for version in VERSIONS {
        for world in [&gateway.world, &another] {
            assert_eq!(send(world, version, &list()).await.status, 200);
            assert_eq!(gateway.token_of(&gateway.upstream.came_alone()), code);
        }
    }
    gateway.disconnect(crate::gateway::ANNA).await;
    let reached = gateway.upstream.reached();
    for version in VERSIONS {
        assert!(is_told(&gateway.send(version, &list()).await));
    }
    assert_eq!(gateway.upstream.reached(), reached);
    let felt = async { while !is_told(&send(&another, Version::HTTP_2, &list()).await) {} };
    timeout(PATIENCE, felt).await.expect("it is felt");
    let reached = gateway.upstream.reached();
    // For good.
    for version in VERSIONS {
        assert!(is_told(&send(&another, version, &list()).await));
    }
    assert_eq!(gateway.upstream.reached(), reached);

    // The same of a new connection, whose token is another.
    let new = gateway.connect_anna().await;
    gateway.upstream.came();
    for world in [&gateway.world, &another] {
        assert_eq!(send(world, Version::HTTP_2, &list()).await.status, 200);
        assert_eq!(gateway.token_of(&gateway.upstream.came_alone()), new);
    }
    gateway.finish().await;
}

/// What is over is not sent, however long tokens are kept: neither one that was over when it came, nor one that ended
/// since.
#[tokio::test]
async fn a_token_that_ends() {
    for lives in [1, 7] {
        let token = match lives {
            1 => Token::Json(|answer| answer["expires_in"] = json!(1)),
            _ => Token::Json(|answer| answer["expires_in"] = json!(7)),
        };
        let lies = vec![Lie { token, ..over("notes", Refresh::Rotates) }];
        let gateway = Gateway::start(Setup { lies, serve: &["--token-cache=60"], ..Setup::default() }).await;
        let code = gateway.connect_anna().await;
        let first = format!("Bearer SECRET-access-of-{code}");
        let mut sent = 0;
        let refreshed = async {
            loop {
                assert_eq!(gateway.send(Version::HTTP_2, &list()).await.status, 200);
                let came = gateway.upstream.came_alone();
                assert_eq!(gateway.token_of(&came), code);
                if came.all("authorization") != [first.as_str()] {
                    break;
                }
                sent += 1;
            }
        };
        timeout(PATIENCE, refreshed).await.expect("it is refreshed");
        assert!(lives > 1 || sent == 0, "it was over when it came");
        // The one that it was refreshed to lasts.
        let refreshes = gateway.servers.refreshes().len();
        for version in VERSIONS {
            assert_eq!(gateway.send(version, &list()).await.status, 200);
            assert_ne!(gateway.upstream.came_alone().all("authorization"), [first.as_str()]);
        }
        assert_eq!((refreshes, gateway.servers.refreshes().len()), (1, 1));
        gateway.finish().await;
    }
}

/// The grant ends by itself, and the next call says where to connect.
#[tokio::test]
async fn a_grant_that_ends() {
    let refused = Refresh::Status(400, r#"{"error":"invalid_grant"}"#);
    let lies = vec![over("notes", refused)];
    let gateway = Gateway::start(Setup { lies, ..Setup::default() }).await;
    gateway.connect_anna().await;
    for version in VERSIONS {
        assert!(is_told(&gateway.send(version, &list()).await));
    }
    assert_eq!(gateway.upstream.reached(), 0);
    gateway.finish().await;
}

/// An authorization server that does not refresh is no reason to send what is over, nor to ask the person again.
#[tokio::test]
async fn a_refresh_that_fails() {
    let gateway =
        Gateway::start(Setup { lies: vec![over("notes", Refresh::Status(503, "{}"))], ..Setup::default() }).await;
    gateway.connect_anna().await;
    for version in VERSIONS {
        is_unavailable(&gateway.send(version, &list()).await);
    }
    assert_eq!(gateway.upstream.reached(), 0);
    gateway.finish().await;
}

/// Killed while a tool is at work: the call ends as the upstream ends it. What comes then is refused, and nothing of it
/// goes on, until there is a process again.
#[tokio::test]
async fn a_process_that_is_killed() {
    for version in VERSIONS {
        let mut gateway = Gateway::start(Setup::default()).await;
        let code = gateway.connect_anna().await;
        let slow = list().header(WAITS, "1");
        let (answer, ()) = tokio::join!(open(&gateway.world, version, &slow), async {
            gateway.upstream.reached_by(1).await;
            gateway.world.cimd.process.signal("-KILL");
            for version in VERSIONS {
                // It may be answered by who is dying.
                let refused = async { while send(&gateway.world, version, &list().by(BERT)).await.status != 503 {} };
                timeout(PATIENCE, refused).await.expect("it is down");
            }
            for who in [crate::gateway::ANNA, BERT] {
                assert_eq!(gateway.send(Version::HTTP_2, &list().by(who)).await.status, 503);
            }
            gateway.upstream.go_on(true);
        });
        let answer = answer.expect("an answer");
        assert_eq!(answer.status(), 200, "the call ends well");
        let body = answer.into_body().collect().await.expect("whole").to_bytes();
        assert_eq!(body, r#"{"jsonrpc":"2.0","id":7,"method":"tools/list"}"#);
        assert_eq!(gateway.token_of(&gateway.upstream.came_alone()), code);
        assert_eq!(gateway.upstream.reached(), 1, "and once");
        gateway.world.cimd.process.ended().await;
        gateway.serve_again().await;
        until(&gateway, version, |answered| answered.status == 200).await;
        assert_eq!(gateway.token_of(gateway.upstream.came().last().expect("one")), code);
        gateway.finish().await;
    }
}

/// Streams go on over whatever becomes of who let them begin: killed, started anew, and killed again.
#[tokio::test]
async fn streams_outlive_the_process() {
    for version in VERSIONS {
        let mut gateway = Gateway::start(Setup::default()).await;
        let code = gateway.connect_anna().await;
        let mut streams = Vec::new();
        for method in ["GET", "POST"] {
            let ask = Ask::new(method).header("accept", "text/event-stream");
            let mut answer = open(&gateway.world, version, &ask).await.expect("an answer");
            assert_eq!(answer.status(), 200, "{method} over {version:?}");
            reads(answer.body_mut(), EVENTS[0]).await;
            assert_eq!(gateway.token_of(&gateway.upstream.came_alone()), code);
            streams.push((method, answer.into_body()));
        }
        for deaths in 1..=3 {
            gateway.world.cimd.process.signal("-KILL");
            gateway.world.cimd.process.ended().await;
            until(&gateway, version, |answered| answered.status == 503).await;
            if deaths < 3 {
                gateway.serve_again().await;
                until(&gateway, version, |answered| answered.status == 200).await;
                assert_eq!(gateway.token_of(gateway.upstream.came().last().expect("one")), code);
            }
        }
        // Nobody is there now, and the rest comes all the same.
        let reached = gateway.upstream.reached();
        gateway.upstream.go_on(true);
        for (method, mut body) in streams {
            reads(&mut body, EVENTS[1]).await;
            let rest = timeout(PATIENCE, body.collect()).await.expect("it ends").expect("it ends well");
            assert!(rest.to_bytes().is_empty(), "{method} over {version:?}: there is no more");
        }
        assert_eq!(gateway.upstream.reached(), reached, "nobody asked for them twice");
        gateway.serve_again().await;
        gateway.finish().await;
    }
}

/// Reads this much of a body, no more and nothing else.
async fn reads(body: &mut Incoming, expected: &str) {
    let mut came = String::new();
    while came.len() < expected.len() {
        let frame = timeout(PATIENCE, body.frame()).await.expect("it comes in time");
        let data = frame.expect("it goes on").expect("no error").into_data().expect("data");
        came.push_str(std::str::from_utf8(&data).expect("text"));
    }
    assert_eq!(came, expected);
}
