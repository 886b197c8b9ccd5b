//! How many requests may wait, and for whom they leave room.

use envoy_cimd::{
    contract::tokens::{Missing, TokenError},
    filter::{
        endpoint::{self},
        reply::Reply,
        traffic::{self},
        verdict::{AwaitedBody, Body, Verdict},
    },
    model::{route::Key, route_table::RouteTable, shares::ShareLimits, user::Claims},
};

use super::{Asked, FROM, Gateway, LINK, TO, error_of};

#[tokio::test]
async fn at_the_limit_nothing_is_forwarded() {
    let limits = endpoint::Limits {
        calls: ShareLimits { in_all: 2, of_user: 1, of_server: 2 },
        ..endpoint::Config::default().limits
    };
    let endpoints = endpoint::Config { limits, ..endpoint::Config::default() };
    let gateway = Gateway::with(traffic::Config::default(), endpoints, RouteTable::default(), true);
    let other = "https://mcp.example.com/github";
    let to = |from, subject| Asked {
        attributes: vec![(Key::From, from), (Key::To, TO)],
        user: Some(Claims { issuer: Some("i"), subject: Some(subject) }),
        ..Asked::with(&[])
    };
    let waits = [to(FROM, "anna"), to(FROM, "anna"), to(FROM, "bert")].map(|asked| asked.of(&gateway.traffic));
    assert!(waits.iter().all(|verdict| matches!(verdict, Verdict::Later(_))));
    for full in [to(other, "anna"), to(FROM, "carl")] {
        let Verdict::Reply(reply) = full.of(&gateway.traffic) else { panic!("it is at once") };
        assert_eq!((reply.status, reply.label), (503, "too_many_calls"));
        error_of(&reply);
    }
    tokio::task::yield_now().await;
    assert_eq!(gateway.tokens.calls(), 2);
}

/// Whoever waits for what somebody else looks up holds a stream as well, and so does a body that does not come.
#[tokio::test]
async fn those_who_wait_leave_room_for_others() {
    let by = |subject| Asked { user: Some(Claims { issuer: Some("i"), subject: Some(subject) }), ..Asked::with(&[]) };
    let config = |max_holds| traffic::Config { max_holds, ..traffic::Config::default() };
    let full = |reply: &Reply, label, has_link| {
        assert_eq!((reply.status, reply.label), (503, label));
        let (code, message) = error_of(reply);
        assert_eq!((code, message.contains(LINK)), (if has_link { -31000 } else { -31001 }, has_link));
    };
    let gateway = Gateway::with(config(102), endpoint::Config::default(), RouteTable::default(), true);
    let mut waiting: Vec<_> = (0..100).map(|_| by("anna").of(&gateway.traffic)).collect();
    assert!(waiting.iter().all(|verdict| matches!(verdict, Verdict::Later(_))));
    full(&gateway.reply(&by("anna")).await, "too_many_calls", false);
    waiting.extend(["bert", "bert"].map(|subject| by(subject).of(&gateway.traffic)));
    full(&gateway.reply(&by("carl")).await, "too_many_calls", false);
    waiting.pop();
    assert!(matches!(by("carl").of(&gateway.traffic), Verdict::Later(_)), "its place came back");

    let gateway = Gateway::with(config(10), endpoint::Config::default(), RouteTable::default(), false);
    gateway.tokens.answers(Err(TokenError::NotFound(Missing::Never)));
    let by = |subject| Asked { ends: false, ..by(subject) };
    let mut waiting = Vec::new();
    for subject in ["anna"; 8].into_iter().chain(["bert"; 2]) {
        let Verdict::Body(awaited) = gateway.ask(&by(subject)).await else { panic!("it takes the body") };
        waiting.push(awaited);
        if subject == "anna" && waiting.len() == 8 {
            full(&gateway.reply(&by("anna")).await, "too_many_bodies", true);
        }
    }
    full(&gateway.reply(&by("carl")).await, "too_many_bodies", true);
    // Those that end with their headers wait for none.
    assert_eq!(gateway.reply(&Asked::with(&[(":method", "DELETE")])).await.label, "no_token");
    // Whether a body came or its client left, the place comes back.
    let AwaitedBody { then, .. } = waiting.pop().expect("one of Bert's");
    assert!(matches!(then(Body::Late), Verdict::Reply(_)));
    waiting.remove(0);
    for subject in ["anna", "bert"] {
        assert!(matches!(gateway.ask(&by(subject)).await, Verdict::Body(_)), "{subject}");
    }
}
