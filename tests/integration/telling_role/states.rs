//! The state that a call comes back with: whose it is, and of which call, route and replica.

use envoy_cimd::{
    contract::tokens::Missing,
    filter::{
        request_state::PREFIX,
        verdict::{AwaitedBody, Verdict},
    },
    model::{clock::UnixTime, route::Key, user::User},
};

use super::{Bed, Has, NEW, URL, again, call, held, is_bad_state, message};
use crate::traffic_role::{Asked, FROM, TO, name, settled, whole};

#[tokio::test]
async fn a_state_that_is_not_of_this_call_is_refused() {
    let bed = Bed::new();
    let state = bed.state(&call("")).await;
    let anna = User::Subject { issuer: "i".to_owned(), subject: "anna".to_owned() };
    let bert = User::Subject { issuer: "i".to_owned(), subject: "bert".to_owned() };
    let client = format!("{FROM}/.well-known/mcp-client-metadata.json");
    let later = UnixTime::now() + 60;
    let other = message("7", "tools/call", r#""name":"count","arguments":{"to":4}"#, NEW, URL, "");
    let own = bed.state_for(&anna, &client, &call(""), later);
    let mut bad = vec![
        bed.state_for(&bert, &client, &call(""), later),
        bed.state_for(&User::Single, &client, &call(""), later),
        bed.state_for(&anna, "https://mcp.example.com/.well-known/mcp-client-metadata.json", &call(""), later),
        bed.state_for(&anna, &client, &other, later),
        bed.state_for(&anna, &client, &call(""), UnixTime::now()),
        bed.state_for(&anna, &client, &call(""), UnixTime::now() - 3600),
        Bed::with(1, &[2]).state_for(&anna, &client, &call(""), later),
        PREFIX.to_owned(),
        format!("{PREFIX}AAAA"),
    ];
    // Bent in each bit that JSON can hold, behind what makes it ours.
    for position in PREFIX.len() * 8..state.len() * 8 {
        let mut bent = state.clone().into_bytes();
        bent[position / 8] ^= 1 << (position % 8);
        let bent = String::from_utf8(bent).ok().filter(|bent| bent.bytes().all(|byte| byte >= b' '));
        bad.extend(bent.filter(|bent| !bent.contains(['"', '\\'])));
    }
    assert!(bad.len() > 500, "{}", bad.len());
    for has in [Has::Nothing(Missing::Lost), Has::Marked, Has::Nothing(Missing::Never)] {
        bed.tokens.gives("anna", has);
        for bad in &bad {
            for action in ["accept", "decline"] {
                assert!(is_bad_state(&bed.reply(&again(bad, action)).await), "{bad}");
            }
        }
    }
    // The call is another, or of another kind.
    bed.tokens.gives("anna", Has::Nothing(Missing::Lost));
    let with = |method: &str, params: &str| {
        let more = format!(r#","inputResponses":{{"connect":{{"action":"accept"}}}},"requestState":"{state}""#);
        message("7", method, params, NEW, URL, &more)
    };
    for body in [
        with("tools/call", r#""name":"count","arguments":{"to":4}"#),
        with("tools/call", r#""name":"count","arguments":{"to":3,"too":1}"#),
        with("tools/call", r#""name":"count""#),
        with("tools/call", r#""name":"discount","arguments":{"to":3}"#),
        with("prompts/get", r#""name":"count","arguments":{"to":3}"#),
        with("tools/list", r#""name":"count","arguments":{"to":3}"#),
    ] {
        for has in [Has::Nothing(Missing::Lost), Has::Marked] {
            bed.tokens.gives("anna", has);
            assert!(is_bad_state(&bed.reply(&body).await), "{body}");
        }
    }
    // Another user brings it, whether they have a token or not.
    for has in [Has::Nothing(Missing::Lost), Has::Marked] {
        bed.tokens.gives("bert", has);
        let Verdict::Reply(reply) = settled(bed.post("bert", &[], whole(&again(&state, "accept"))).await).await else {
            panic!("nothing goes on")
        };
        assert!(is_bad_state(&reply));
    }
    assert_eq!((bed.waits(), bed.marks()), (0, 1));
    assert!(bed.metric("envoy_cimd_handed_out_total 0"));
    // All that is right of it is right.
    bed.tokens.gives("anna", Has::Nothing(Missing::Lost));
    drop(held(bed.post("anna", &[], whole(&again(&own, "accept"))).await).await);
}

/// One replica's state is good at another, while keys rotate as well.
#[tokio::test]
async fn a_state_of_another_replica() {
    let state = Bed::with(1000, &[1]).state(&call("")).await;
    for (keys, is_good) in [(&[1][..], true), (&[1, 2], true), (&[2, 1], true), (&[2], false)] {
        let bed = Bed::with(1000, keys);
        let verdict = bed.post("anna", &[], whole(&again(&state, "accept"))).await;
        match verdict {
            Verdict::Later(_) => assert!(is_good, "{keys:?}"),
            Verdict::Reply(reply) => assert!(!is_good && is_bad_state(&reply), "{keys:?}"),
            other => panic!("{}", name(&other)),
        }
    }
}

/// The routes are told apart.
#[tokio::test]
async fn a_state_of_another_route() {
    let bed = Bed::new();
    let state = bed.state(&call("")).await;
    let other = Asked {
        attributes: vec![(Key::From, "https://mcp.example.com/github"), (Key::To, TO)],
        ends: false,
        ..Asked::with(&[(":path", "/github")])
    };
    for has in [Has::Nothing(Missing::Lost), Has::Marked] {
        bed.tokens.gives("anna", has);
        let Verdict::Body(AwaitedBody { then, .. }) = settled(other.of(&bed.traffic)).await else { panic!("a body") };
        let Verdict::Reply(reply) = settled(then(whole(&again(&state, "accept")))).await else { panic!("a reply") };
        assert!(is_bad_state(&reply));
    }
    assert_eq!(bed.waits(), 0);
}
