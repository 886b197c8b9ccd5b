//! How a person is told, through a real Envoy: asked to open the link by a client that can, and told by every other;
//! and the call that comes again is held until they are connected, and reaches its upstream once, as it was.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream::FuturesUnordered};
use http::Version;
use serde_json::json;
use tokio::{sync::Semaphore, task::JoinSet};

use crate::{
    authorization_server::{Lie, Refresh},
    gateway::{ANNA, Ask, BERT, Gateway, Payload, Setup, VERSIONS, open, send, send_within},
    mcp_upstream::WAITS,
    soak::number,
    stack::{Answered, resident},
    store::Redis,
    telling_role::{NEW, OLD, URL, again, call, message},
    tokens::over,
    traffic::{LINK, Row, bodies, check_refused, json_of},
};

/// People who were connected, and whose grants end when somebody says so.
async fn gateway(setup: Setup<'_>) -> Gateway {
    let gateway = Gateway::start(Setup { lies: vec![over("notes", Refresh::Rotates)], ..setup }).await;
    for who in [ANNA, BERT] {
        gateway.connect("https://notes.localhost", "notes", who).await;
    }
    // What they have is over, and cannot be refreshed.
    gateway.servers.forget_grants();
    gateway
}

fn post(body: impl Into<Bytes>) -> Ask {
    Ask::post(body).header("mcp-protocol-version", NEW).header("accept", "application/json, text/event-stream")
}

/// What becomes of a call that is held for as long as calls are.
async fn held_to_the_end(gateway: &Gateway, version: Version, ask: &Ask) -> Answered {
    send_within(Duration::from_secs(60), &gateway.world, version, ask).await
}

/// The state that goes with a question, which is ours to the letter.
fn asked(answer: &Answered) -> String {
    let body = json_of(answer, "who is told");
    assert_eq!(answer.status, 200, "{body}");
    let state = body["result"]["requestState"].as_str().unwrap_or_else(|| panic!("{body}")).to_owned();
    let message = &body["result"]["inputRequests"]["connect"]["params"]["message"];
    assert!(message.as_str().is_some_and(|message| !message.contains("127.0.0.1")), "{body}");
    let params = json!({"mode": "url", "url": LINK, "message": message});
    let requests = json!({"connect": {"method": "elicitation/create", "params": params}});
    let result = json!({"resultType": "input_required", "inputRequests": requests, "requestState": state});
    assert_eq!(body, json!({"jsonrpc": "2.0", "id": 7, "result": result}));
    state
}

fn still_waits(answer: &Answered) -> String {
    let body = json_of(answer, "who is told");
    let state = body["result"]["requestState"].as_str().unwrap_or_else(|| panic!("{body}")).to_owned();
    let result = json!({"resultType": "input_required", "requestState": state});
    assert_eq!((answer.status, body), (200, json!({"jsonrpc": "2.0", "id": 7, "result": result})));
    state
}

/// The result of a tool that was not called, with the link.
fn is_tool_told(answer: &Answered) -> bool {
    let body = json_of(answer, "who is told");
    let text = &body["result"]["content"][0]["text"];
    answer.status == 200
        && body["id"] == 7
        && body["result"]["isError"] == true
        && text.as_str().is_some_and(|text| text.contains(LINK))
}

fn is_error_told(answer: &Answered) -> bool {
    let body = json_of(answer, "who is told");
    let message = body["error"]["message"].as_str().unwrap_or_default();
    answer.status == 200 && body["id"] == 7 && body["error"]["code"] == -31000 && message.contains(LINK)
}

/// It reached the upstream once, as it was before anything was added to it.
fn came_as(gateway: &Gateway, answer: &Answered, body: &str, code: &str) {
    assert_eq!((answer.status, answer.text()), (200, body), "{answer:?}");
    let came = gateway.upstream.came_alone();
    assert_eq!(String::from_utf8_lossy(&came.body), body);
    assert_eq!(gateway.token_of(&came), code);
    let lengths = came.all("content-length");
    assert!(lengths.is_empty() || lengths == [body.len().to_string()], "{lengths:?}");
}

#[tokio::test]
async fn each_is_told_as_their_client_can() {
    let gateway = gateway(Setup { speaks_http2: true, ..Setup::default() }).await;
    let (tool, uri) = (r#""name":"count","arguments":{}"#, r#""uri":"file:///a""#);
    let of = |method, params, version, capabilities| message("7", method, params, version, capabilities, "");
    for version in VERSIONS {
        for body in
            [of("tools/call", tool, NEW, URL), of("prompts/get", tool, NEW, URL), of("resources/read", uri, NEW, URL)]
        {
            asked(&gateway.send(version, &post(body.clone())).await);
            // Of unknown length, and with trailers.
            let trailers = vec![("x-trailer", "a")];
            let pieces = post("").payload(Payload::Pieces(body.clone().into(), trailers));
            asked(&gateway.send(version, &pieces).await);
            // In a session that nobody here began.
            asked(&gateway.send(version, &post(body).header("mcp-session-id", "never-seen")).await);
        }
        for (capabilities, what) in [(r#"{"elicitation":{}}"#, "a form alone"), ("{}", "nothing"), ("null", "null")] {
            let answer = gateway.send(version, &post(of("tools/call", tool, NEW, capabilities))).await;
            assert!(is_tool_told(&answer), "{what}");
            let answer = gateway.send(version, &post(of("prompts/get", tool, NEW, capabilities))).await;
            assert!(is_error_told(&answer), "{what}");
        }
        for method in ["initialize", "server/discover", "tools/list", "resources/list", "prompts/list", "ping"] {
            assert!(is_error_told(&gateway.send(version, &post(of(method, tool, NEW, URL))).await), "{method}");
        }
        // The older protocol, on the same connections.
        let old = Ask::post(of("tools/call", tool, OLD, URL)).header("mcp-protocol-version", OLD);
        assert!(is_tool_told(&gateway.send(version, &old).await));
        let both = Ask::post(of("tools/call", tool, NEW, URL)).header("mcp-protocol-version", OLD);
        assert_eq!(gateway.send(version, &both).await.status, 400);
        // Whoever never connected.
        let never = post(call("")).by(Some("carl"));
        assert!(is_tool_told(&gateway.send(version, &never).await));
    }
    assert_eq!(gateway.upstream.reached(), 0);
    assert_eq!(gateway.world.metric("envoy_cimd_handed_out_total").await, Some(0));
    gateway.finish().await;
}

/// With one question and no second call by hand: it is held, and goes on when its person is connected.
#[tokio::test]
async fn a_call_is_held_and_goes_on() {
    for version in VERSIONS {
        let gateway = gateway(Setup { speaks_http2: true, ..Setup::default() }).await;
        let state = asked(&gateway.send(version, &post(call(""))).await);
        let held = post(again(&state, "accept"));
        let (answer, code) = tokio::join!(gateway.send(version, &held), async {
            gateway.has_streams(1).await;
            gateway.connect_anna().await
        });
        came_as(&gateway, &answer, &call(""), &code);
        assert_eq!(gateway.upstream.reached(), 1);
        // By another client, and of another form: whoever is connected goes on at once.
        let spelled = format!(
            r#" {{"params":{{"requestState":"{state}", "name":"count","arguments":{{"to":3}},"inputResponses":{{"connect":{{"action":"accept"}}}}}},"method":"tools/call","id":"é"}} "#
        );
        let expected = r#" {"params":{"name":"count","arguments":{"to":3}},"method":"tools/call","id":"é"} "#;
        let trailers = vec![("x-trailer", "a"), ("authorization", "Bearer SECRET-of-the-caller")];
        for payload in [Payload::Whole(spelled.clone().into()), Payload::Pieces(spelled.into(), trailers)] {
            came_as(&gateway, &gateway.send(version, &post("").payload(payload)).await, expected, &code);
        }
        assert_eq!(gateway.upstream.reached(), 3);
        gateway.finish().await;
    }
}

/// While calls may come again, all that are none go on byte for byte, as ever.
#[tokio::test]
async fn what_else_somebody_sends_is_untouched() {
    let gateway = gateway(Setup { speaks_http2: true, ..Setup::default() }).await;
    let state = asked(&gateway.send(Version::HTTP_2, &post(call(""))).await);
    let code = gateway.connect_anna().await;
    // It is expected: a call that comes again is noticed.
    came_as(&gateway, &gateway.send(Version::HTTP_2, &post(again(&state, "accept"))).await, &call(""), &code);
    for version in VERSIONS {
        for Row { name, ask, .. } in bodies() {
            let what = format!("{name} over {version:?}");
            let (body, trailers) = match &ask.payload {
                Payload::Whole(body) => (body.clone(), 0),
                Payload::Pieces(body, trailers) => (body.clone(), trailers.len()),
                Payload::None | Payload::Endless(_) => (Bytes::new(), 0),
            };
            let answer = gateway.send(version, &ask).await;
            // A body is asked for, and there is none, perhaps since trailers came in its place: headers cannot be
            // changed then.
            if name == "trailers alone" {
                assert_eq!(answer.status, 400, "{what}");
                continue;
            }
            assert_eq!(answer.status, 200, "{what}: {answer:?}");
            let came = gateway.upstream.came_alone();
            assert!(came.body == body && answer.body == body, "{what}: byte for byte");
            assert_eq!(gateway.token_of(&came), code, "{what}");
            if version == Version::HTTP_2 {
                assert_eq!(came.trailers.len(), trailers, "{what}");
            }
        }
        for method in ["GET", "DELETE"] {
            assert_eq!(gateway.send(version, &Ask::new(method)).await.status, 200, "{method}");
            assert_eq!(gateway.token_of(&gateway.upstream.came_alone()), code);
        }
    }
    gateway.finish().await;
}

/// What a person says that is not yes, and what comes with another's state: nothing is held, and nothing goes on.
#[tokio::test]
async fn what_is_not_accepted_goes_nowhere() {
    let gateway = gateway(Setup::default()).await;
    for version in VERSIONS {
        let state = asked(&gateway.send(version, &post(call(""))).await);
        for action in ["decline", "cancel"] {
            assert!(is_tool_told(&gateway.send(version, &post(again(&state, action))).await), "{action}");
        }
        asked(&gateway.send(version, &post(again(&state, "perhaps"))).await);
        // Of another user, of another call, and bent.
        let last = if state.ends_with('A') { "B" } else { "A" };
        let bent = format!("{}{last}", &state[..state.len() - 1]);
        let other = again(&state, "accept").replace(r#""to":3"#, r#""to":4"#);
        for ask in [
            post(again(&state, "accept")).by(BERT),
            post(again(&state, "accept")).by(Some("carl")),
            post(other),
            post(again(&bent, "accept")),
        ] {
            check_refused(&gateway.send(version, &ask).await, 400, -32602, &json!(7));
        }
    }
    assert_eq!(gateway.upstream.reached(), 0);
    // Somebody else who is connected cannot use it either, nor is Anna's call theirs.
    let state = asked(&gateway.send(Version::HTTP_2, &post(call(""))).await);
    asked(&gateway.send(Version::HTTP_2, &post(call("")).by(BERT)).await);
    gateway.connect("https://notes.localhost", "notes", BERT).await;
    for version in VERSIONS {
        let answer = gateway.send(version, &post(again(&state, "accept")).by(BERT)).await;
        check_refused(&answer, 400, -32602, &json!(7));
    }
    assert_eq!(gateway.upstream.reached(), 0);
    gateway.finish().await;
}

/// A link that somebody else opens connects that person, and the call waits on for its own.
#[tokio::test]
async fn a_link_that_another_opens_gives_the_caller_nothing() {
    let gateway = gateway(Setup::default()).await;
    let state = asked(&gateway.send(Version::HTTP_2, &post(call(""))).await);
    let held = post(again(&state, "accept"));
    let (answer, ()) = tokio::join!(held_to_the_end(&gateway, Version::HTTP_2, &held), async {
        gateway.has_streams(1).await;
        let code = gateway.connect("https://notes.localhost", "notes", BERT).await;
        assert_eq!(gateway.send(Version::HTTP_2, &post(call("")).by(BERT)).await.status, 200);
        assert_eq!(gateway.token_of(&gateway.upstream.came_alone()), code);
    });
    still_waits(&answer);
    assert_eq!(gateway.upstream.reached(), 1, "Bert's own");
    gateway.finish().await;
}

/// Nobody opens the link: the client is told to come again, and is held again without being asked.
#[tokio::test]
async fn a_link_that_nobody_opens() {
    let gateway = gateway(Setup::default()).await;
    let state = asked(&gateway.send(Version::HTTP_2, &post(call(""))).await);
    let held = post(again(&state, "accept"));
    let [one, two] = VERSIONS;
    let (answer, same) = tokio::join!(held_to_the_end(&gateway, one, &held), held_to_the_end(&gateway, two, &held));
    still_waits(&same);
    let next = still_waits(&answer);
    let held = post(call(&format!(r#","requestState":"{next}""#)));
    let (answer, code) = tokio::join!(gateway.send(one, &held), async {
        gateway.has_streams(1).await;
        gateway.connect_anna().await
    });
    came_as(&gateway, &answer, &call(""), &code);
    assert_eq!(gateway.upstream.reached(), 1);
    gateway.finish().await;
}

#[tokio::test]
async fn a_disconnect_while_a_call_is_held_or_runs() {
    let gateway = gateway(Setup::default()).await;
    let state = asked(&gateway.send(Version::HTTP_2, &post(call(""))).await);
    let held = post(again(&state, "accept"));
    let (answer, ()) = tokio::join!(held_to_the_end(&gateway, Version::HTTP_2, &held), async {
        gateway.has_streams(1).await;
        gateway.disconnect(ANNA).await;
    });
    assert!(is_tool_told(&answer));
    assert!(is_tool_told(&gateway.send(Version::HTTP_2, &held).await), "and so is what comes after it");
    assert_eq!(gateway.upstream.reached(), 0);
    // What runs, runs to its end.
    let code = gateway.connect_anna().await;
    let slow = post(call("")).header(WAITS, "1");
    let (answer, ()) = tokio::join!(gateway.send(Version::HTTP_2, &slow), async {
        gateway.upstream.reached_by(1).await;
        gateway.disconnect(ANNA).await;
        gateway.upstream.go_on(true);
    });
    came_as(&gateway, &answer, &call(""), &code);
    assert!(is_tool_told(&gateway.send(Version::HTTP_2, &post(call(""))).await));
    gateway.finish().await;
}

#[tokio::test]
async fn a_client_that_leaves_is_not_held() {
    let gateway = gateway(Setup::default()).await;
    let state = asked(&gateway.send(Version::HTTP_2, &post(call(""))).await);
    let held = post(again(&state, "accept"));
    for version in VERSIONS {
        tokio::select! {
            answer = open(&gateway.world, version, &held) => panic!("{answer:?}"),
            () = gateway.has_streams(1) => {}
        }
        gateway.has_streams(0).await;
    }
    // Their places came back: eight may be held.
    let asks: FuturesUnordered<_> = (0..8).map(|_| gateway.send(Version::HTTP_2, &held)).collect();
    let connects = async {
        gateway.has_streams(8).await;
        gateway.connect_anna().await
    };
    let (answers, _) = tokio::join!(asks.collect::<Vec<_>>(), connects);
    assert!(answers.iter().all(|answer| answer.status == 200 && answer.text() == call("")));
    assert_eq!(gateway.upstream.came().len(), 8, "each once");
    gateway.finish().await;
}

/// Above the limit of one person, and of all, the link is text; others are served.
#[tokio::test]
async fn holds_are_bounded() {
    for (max_holds, places) in [("--max-holds=1000", 8), ("--max-holds=3", 3)] {
        let gateway = gateway(Setup { serve: &[max_holds], ..Setup::default() }).await;
        let state = asked(&gateway.send(Version::HTTP_2, &post(call(""))).await);
        let held = post(again(&state, "accept"));
        let asks: FuturesUnordered<_> = (0..places).map(|_| gateway.send(Version::HTTP_2, &held)).collect();
        let full = async {
            gateway.has_streams(places).await;
            let told = gateway.send(Version::HTTP_2, &held).await;
            assert!(is_tool_told(&told));
            assert_eq!(gateway.outcome("too_many_holds").await, Some(1));
            assert_eq!(gateway.world.document("notes.localhost").await.0, 200);
            gateway.connect_anna().await
        };
        let (answers, _) = tokio::join!(asks.collect::<Vec<_>>(), full);
        assert!(answers.iter().all(|answer| answer.status == 200 && answer.text() == call("")));
        assert_eq!(gateway.upstream.came().len(), answers.len(), "each once");
        gateway.finish().await;
    }
}

/// Each route is on its own, on one host as well.
#[tokio::test]
async fn a_state_of_another_route_is_refused() {
    let routes = [("https://other.localhost/a", "a"), ("https://other.localhost/b", "b")];
    let lies: Vec<Lie> = routes.iter().map(|(_, name)| over(name, Refresh::Rotates)).collect();
    let gateway = Gateway::start(Setup { routes: &routes, lies, ..Setup::default() }).await;
    for (from, name) in routes {
        gateway.connect(from, name, ANNA).await;
    }
    gateway.servers.forget_grants();
    let at = |body: String, path: &str| post(body).at("other.localhost", path);
    for version in VERSIONS {
        let answer = gateway.send(version, &at(call(""), "/a")).await;
        let body = json_of(&answer, "who is told");
        let state = body["result"]["requestState"].as_str().unwrap_or_else(|| panic!("{body}"));
        let answer = gateway.send(version, &at(again(state, "accept"), "/b")).await;
        check_refused(&answer, 400, -32602, &json!(7));
    }
    assert_eq!(gateway.upstream.reached(), 0);
    gateway.finish().await;
}

/// A thousand calls are held while nobody connects, each of a client that comes again as it is told to. Memory stays flat, and
/// whoever has a token is served. Then one person connects, and theirs alone go on.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a while: make soak"]
async fn soak_of_a_thousand_held_calls() {
    const PEOPLE: usize = 125;
    const OF_ONE: usize = 8;
    const HELD: usize = PEOPLE * OF_ONE;
    // A round of all of them takes as long as a call is held.
    let rounds = usize::try_from(number("SOAK_SECONDS").unwrap_or(600)).expect("few").div_ceil(20).max(3);
    let gateway = Arc::new(gateway(Setup { log: "info", ..Setup::default() }).await);
    let names: Vec<String> = (0..PEOPLE).map(|person| format!("person-{person}")).collect();
    for who in &names {
        gateway.connect("https://notes.localhost", "notes", Some(who)).await;
    }
    gateway.servers.forget_grants();
    let code = gateway.connect_anna().await;
    let ended = Arc::new(AtomicUsize::new(0));
    // A thousand new connections at one moment are another test than a thousand calls that are held.
    let askers = Arc::new(Semaphore::new(8));
    let mut waiting = JoinSet::new();
    for who in names.iter().cycle().take(HELD).cloned() {
        let (gateway, ended, askers) = (Arc::clone(&gateway), Arc::clone(&ended), Arc::clone(&askers));
        waiting.spawn(async move {
            let turn = askers.acquire_owned().await.expect("open");
            let state = asked(&gateway.send(Version::HTTP_2, &post(call("")).by(Some(&who))).await);
            drop(turn);
            let mut body = again(&state, "accept");
            loop {
                let answer = held_to_the_end(&gateway, Version::HTTP_2, &post(body).by(Some(&who))).await;
                if answer.text() == call("") {
                    return who;
                }
                body = call(&format!(r#","requestState":"{}""#, still_waits(&answer)));
                ended.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let mut served = 0;
    let mut others_are_served_until = async |holds: usize| {
        while ended.load(Ordering::Relaxed) < holds {
            let answer = gateway.send(Version::HTTP_2, &post(call(""))).await;
            assert_eq!((answer.status, answer.text()), (200, call("").as_str()), "Anna is served");
            assert_eq!(gateway.token_of(&gateway.upstream.came_alone()), code, "and nothing else went on");
            served += 1;
        }
        resident(gateway.world.cimd.process.pid())
    };
    let before = others_are_served_until(2 * HELD).await;
    let after = others_are_served_until(rounds * HELD).await;
    println!("{served} calls of others; {before} KiB, then {after} KiB");
    assert!(after < before + 16 * 1024, "{before} KiB, then {after} KiB");
    let code = gateway.connect("https://notes.localhost", "notes", Some(&names[0])).await;
    for _ in 0..OF_ONE {
        assert_eq!(waiting.join_next().await.expect("one of theirs").expect("it goes on"), names[0]);
    }
    let came = gateway.upstream.came();
    assert_eq!(came.len(), OF_ONE, "each once");
    assert!(came.iter().all(|came| gateway.token_of(came) == code));
    waiting.shutdown().await;
    Arc::into_inner(gateway).expect("the last").finish().await;
}

/// Two replicas on one store: the call is held by one, and the callback ends at the other. The one that holds is
/// killed, and the call that comes again is held by the other.
#[tokio::test]
#[ignore = "needs redis-server: make test-redis"]
async fn redis_whoever_holds_is_woken_by_another() {
    let dir = tempfile::tempdir().expect("a folder");
    let redis = Redis::start(dir.path(), &[], "--port").await;
    let (url, keys) = (redis.url("redis", ""), crate::stack::key_file(dir.path()).display().to_string());
    let serve = ["--token-cache=0", "--store", &url, "--encryption-keys", &keys, "--state-keys", &keys];
    let setup = || Setup { serve: &serve, ..Setup::default() };
    let gateway = gateway(setup()).await;
    let mut another = gateway.another(&setup()).await;
    let streams = async |world: &crate::world::World, streams| {
        while world.metric("envoy_cimd_streams").await != Some(streams) {}
    };
    let state = asked(&gateway.send(Version::HTTP_2, &post(call(""))).await);
    let held = post(again(&state, "accept"));
    let (answer, code) = tokio::join!(send(&another, Version::HTTP_2, &held), async {
        streams(&another, 1).await;
        gateway.connect_anna().await
    });
    came_as(&gateway, &answer, &call(""), &code);

    gateway.disconnect(ANNA).await;
    gateway.connect_anna().await;
    gateway.servers.forget_grants();
    let state = asked(&send(&another, Version::HTTP_2, &post(call(""))).await);
    let held = post(again(&state, "accept"));
    let (killed, ()) = tokio::join!(send(&another, Version::HTTP_2, &held), async {
        streams(&another, 1).await;
        another.cimd.process.signal("-KILL");
    });
    assert!(killed.status >= 500, "{killed:?}");
    another.cimd.process.ended().await;
    let (answer, code) = tokio::join!(gateway.send(Version::HTTP_2, &held), async {
        gateway.has_streams(1).await;
        gateway.connect_anna().await
    });
    came_as(&gateway, &answer, &call(""), &code);
    gateway.finish().await;
}
