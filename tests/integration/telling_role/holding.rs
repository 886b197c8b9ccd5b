//! Calls that are held until their person is connected: how that ends, and how many there may be.

use std::{collections::HashMap, time::Duration};

use envoy_cimd::{
    contract::tokens::Missing,
    filter::{reply::Reply, verdict::Verdict},
};
use futures_util::FutureExt;
use serde_json::json;

use super::{Bed, Has, NEW, URL, again, asked, call, goes_on_as, goes_on_as_it_is, held, is_told, message};
use crate::traffic_role::{json_of, name, settled, whole};

#[tokio::test]
async fn a_call_that_was_accepted_is_held_and_goes_on() {
    let bed = Bed::new();
    let state = bed.state(&call("")).await;
    // As another client would write it: the call is the same.
    let spellings = [
        again(&state, "accept"),
        format!(
            r#"{{"params":{{"requestState":"{state}","arguments":{{"to":3.0}},"_meta":{{"progressToken":1}},"name":"co\u0075nt","inputResponses":{{"connect":{{"content":{{}},"action":"accept"}}}}}},"id":8,"method":"tools/call"}}"#
        ),
    ];
    let expected = [
        call(""),
        r#"{"params":{"arguments":{"to":3.0},"_meta":{"progressToken":1},"name":"co\u0075nt"},"id":8,"method":"tools/call"}"#
            .to_owned(),
    ];
    let mut waiting = Vec::new();
    for body in &spellings {
        waiting.push(held(bed.post("anna", &[], whole(body)).await).await);
    }
    assert_eq!((bed.waits(), bed.waiting()), (1, 1), "one wait for both");
    assert!(bed.metric("envoy_cimd_handed_out_total 0"));
    bed.tokens.gives("anna", Has::Marked);
    for (held, expected) in waiting.into_iter().zip(&expected) {
        goes_on_as(&held.await, expected);
    }
    assert!(bed.metric("envoy_cimd_handed_out_total 2"));
    assert_eq!(bed.waiting(), 0);
    // Whoever is connected by now, in this client or another, does not wait.
    for (body, expected) in spellings.iter().zip(&expected) {
        goes_on_as(&bed.post("anna", &[], whole(body)).await, expected);
    }
    assert_eq!((bed.waits(), bed.marks()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_hold_that_ends_without_a_token_goes_on_with_the_next_call() {
    let bed = Bed::new();
    let state = bed.state(&call("")).await;
    let began = tokio::time::Instant::now();
    let Verdict::Reply(reply) = settled(bed.post("anna", &[], whole(&again(&state, "accept"))).await).await else {
        panic!("a reply")
    };
    assert_eq!(began.elapsed(), Duration::from_secs(20));
    assert_eq!((reply.status, reply.label), (200, "still_waits"));
    let body = json_of(&reply);
    let next = body["result"]["requestState"].as_str().expect("a state").to_owned();
    let result = json!({ "resultType": "input_required", "requestState": next });
    assert_eq!(body, json!({ "jsonrpc": "2.0", "id": 7, "result": result }), "nothing is asked anew");
    // It comes again without an answer, which it had.
    let body = call(&format!(r#","requestState":"{next}""#));
    let hold = held(bed.post("anna", &[], whole(&body)).await).await;
    bed.tokens.gives("anna", Has::Marked);
    goes_on_as(&hold.await, &call(""));
    assert_eq!((bed.waiting(), bed.marks()), (0, 1));
}

#[tokio::test]
async fn what_else_a_person_says() {
    let bed = Bed::new();
    let state = bed.state(&call("")).await;
    for action in ["decline", "cancel"] {
        assert!(is_told(&bed.reply(&again(&state, action)).await, &json!(7), true), "{action}");
    }
    let uri = r#""uri":"file:///a""#;
    let read = |more: &str| message("7", "resources/read", uri, NEW, URL, more);
    let of_read = bed.state(&read("")).await;
    let declined =
        read(&format!(r#","inputResponses":{{"connect":{{"action":"decline"}}}},"requestState":"{of_read}""#));
    assert!(is_told(&bed.reply(&declined).await, &json!(7), false));
    // What is not answered is asked again, for no longer than it was.
    for more in [
        String::new(),
        r#","inputResponses":{}"#.to_owned(),
        r#","inputResponses":[]"#.to_owned(),
        r#","inputResponses":{"other":{"action":"accept"}}"#.to_owned(),
        r#","inputResponses":{"connect":null}"#.to_owned(),
        r#","inputResponses":{"connect":{"action":"maybe"}}"#.to_owned(),
        r#","inputResponses":{"connect":{"action":"accept","action":"accept"}}"#.to_owned(),
    ] {
        let body = call(&format!(r#","requestState":"{state}"{more}"#));
        asked(&bed.reply(&body).await);
    }
    assert_eq!((bed.waits(), bed.marks()), (0, 2));
    assert!(bed.metric("envoy_cimd_handed_out_total 0"));
    // No is no, wherever else the person connected since; and what is left open does not matter to whoever is
    // connected.
    bed.tokens.gives("anna", Has::Marked);
    assert!(is_told(&bed.reply(&again(&state, "decline")).await, &json!(7), true));
    let open = call(&format!(r#","requestState":"{state}""#));
    goes_on_as(&bed.post("anna", &[], whole(&open)).await, &call(""));
}

#[tokio::test]
async fn what_ends_a_hold() {
    let bed = Bed::new();
    let state = bed.state(&call("")).await;
    let body = again(&state, "accept");
    // The person disconnects: they are told, as who never connected.
    bed.tokens.gives("anna", Has::Nothing(Missing::Never));
    assert!(is_told(&bed.reply(&body).await, &json!(7), true));
    assert_eq!(bed.waits(), 0, "nor is it held then");
    // Nobody can say any more: nothing goes on.
    bed.tokens.gives("anna", Has::Nothing(Missing::Lost));
    let hold = held(bed.post("anna", &[], whole(&body)).await).await;
    bed.tokens.gives("anna", Has::Unknown);
    let Verdict::Reply(reply) = hold.await else { panic!("a reply") };
    assert_eq!((reply.status, reply.label, json_of(&reply)["id"].as_i64()), (502, "token_unavailable", Some(7)));
    // The client leaves.
    bed.tokens.gives("anna", Has::Nothing(Missing::Lost));
    let hold = held(bed.post("anna", &[], whole(&body)).await).await;
    assert_eq!(bed.waiting(), 1);
    drop(hold);
    assert_eq!(bed.waiting(), 0, "its wait ends with it");
    assert!(bed.metric("envoy_cimd_handed_out_total 0"));
}

#[tokio::test(start_paused = true)]
async fn a_disconnect_while_a_call_is_held() {
    let bed = Bed::new();
    let state = bed.state(&call("")).await;
    let hold = held(bed.post("anna", &[], whole(&again(&state, "accept"))).await).await;
    bed.tokens.gives("anna", Has::Nothing(Missing::Never));
    let Verdict::Reply(reply) = hold.await else { panic!("a reply") };
    assert!(is_told(&reply, &json!(7), true));
}

/// What is held is bounded, for each person and for all; above the limit the link is text, and others go on.
#[tokio::test]
async fn holds_leave_room_for_others() {
    let bed = Bed::with(10, &[1]);
    let full = |reply: &Reply| {
        assert!(is_told(reply, &json!(7), true));
        assert_eq!((reply.status, reply.label), (200, "too_many_holds"));
    };
    let mut holds = Vec::new();
    let mut states = HashMap::new();
    for who in ["anna", "bert", "carl"] {
        bed.tokens.gives(who, Has::Nothing(Missing::Lost));
        let Verdict::Reply(reply) = settled(bed.post(who, &[], whole(&call(""))).await).await else {
            panic!("a reply")
        };
        states.insert(who, asked(&reply));
    }
    let comes = async |who| settled_or_held(bed.post(who, &[], whole(&again(&states[who], "accept"))).await).await;
    for who in ["anna"; 8] {
        holds.push(comes(who).await.expect("it is held"));
    }
    full(&comes("anna").await.err().expect("one too many of hers"));
    for who in ["bert"; 2] {
        holds.push(comes(who).await.expect("it is held"));
    }
    full(&comes("carl").await.err().expect("one too many of all"));
    assert_eq!((bed.waits(), bed.waiting()), (2, 2), "one for each who waits");
    // Others are served, and told.
    bed.tokens.gives("dora", Has::Token);
    assert!(matches!(bed.headers("dora", &[]).await, Verdict::Forward(_)));
    let Verdict::Reply(reply) = settled(bed.post("emil", &[], whole(&call(""))).await).await else { panic!("a reply") };
    assert!(is_told(&reply, &json!(7), true));
    // Whoever leaves makes room at once.
    drop(holds.remove(0));
    holds.push(comes("carl").await.expect("it is held"));
    assert!(bed.metric(r#"envoy_cimd_requests_total{endpoint="traffic",outcome="too_many_holds"} 2"#));
}

async fn settled_or_held(verdict: Verdict) -> Result<futures_util::future::BoxFuture<'static, Verdict>, Reply> {
    match verdict {
        Verdict::Later(_) => Ok(held(verdict).await),
        Verdict::Reply(reply) => Err(reply),
        other => panic!("{}", name(&other)),
    }
}

/// A thousand calls of 125 people, and others are served; each has a wait of its own, and no more.
#[tokio::test]
async fn a_thousand_held() {
    let bed = Bed::new();
    let mut holds = Vec::new();
    for person in 0..125 {
        let who = format!("person-{person}");
        bed.tokens.gives(&who, Has::Nothing(Missing::Lost));
        let Verdict::Reply(reply) = settled(bed.post(&who, &[], whole(&call(""))).await).await else {
            panic!("a reply")
        };
        let body = again(&asked(&reply), "accept");
        for _ in 0..8 {
            holds.push((who.clone(), held(bed.post(&who, &[], whole(&body)).await).await));
        }
    }
    assert_eq!((holds.len(), bed.waiting()), (1000, 125));
    bed.tokens.gives("anna", Has::Token);
    for _ in 0..100 {
        assert!(goes_on_as_it_is(&bed.headers("anna", &[]).await));
    }
    // One of them connects, and their eight go on; the others wait.
    bed.tokens.gives("person-7", Has::Token);
    let (own, others): (Vec<_>, Vec<_>) = holds.into_iter().partition(|(who, _)| who == "person-7");
    for (_, hold) in own {
        let Verdict::Forward(edits) = hold.await else { panic!("it goes on") };
        assert_eq!(edits.set[0].1, "Bearer token-of-person-7");
        assert_eq!(edits.body.as_deref(), Some(call("").as_bytes()));
    }
    for (who, mut hold) in others {
        assert!((&mut hold).now_or_never().is_none(), "{who}");
    }
    assert_eq!(bed.waiting(), 0, "whoever left waits no more");
}
