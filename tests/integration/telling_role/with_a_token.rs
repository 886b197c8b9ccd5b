//! Bodies of people who have a token, and whose calls may come again.

use std::time::Duration;

use bytes::Bytes;
use envoy_cimd::filter::{
    json_rpc::message::MAX_READ,
    verdict::{Body, Verdict},
};

use super::{Bed, Has, again, call, goes_on_as_it_is};
use crate::traffic_role::{Asked, cut, header, name, settled, whole};

/// Whoever has a token, and may bring a call again: all that is not ours goes on as it is.
#[tokio::test]
async fn what_is_not_ours_goes_on_untouched() {
    let bed = Bed::new();
    let state = bed.state(&call("")).await;
    let long = |before: &str| format!("{before}{}", "x".repeat(2 * MAX_READ));
    bed.tokens.gives("anna", Has::Marked);
    for body in [
        whole(&call("")),
        cut(&call("")),
        whole(r#"{"jsonrpc":"2.0","id":7,"method":"tools/list"}"#),
        whole(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#),
        whole(r#"{"jsonrpc":"2.0","id":7,"result":{}}"#),
        // What it means is for the upstream to say.
        whole("hello"),
        whole("[]"),
        whole(r#"[{"jsonrpc":"2.0","id":7,"method":"tools/list"}]"#),
        whole(r#"{"id":null}"#),
        whole(r#"{"id":7,"id":7,"method":"m"}"#),
        whole(&format!("{}{}", "[".repeat(1000), "]".repeat(1000))),
        Body::Came { bytes: Bytes::from_static(b"\x1f\x8b\x08\x00envoy-cimd-"), whole: true },
        Body::Came { bytes: Bytes::new(), whole: false },
        // Another's state, and texts that look like ours.
        whole(&call(r#","requestState":"theirs","inputResponses":{"connect":{"action":"accept"}}"#)),
        whole(&call(r#","requestState":7"#)),
        whole(&call(r#","requestState":"Envoy-cimd-x""#)),
        whole(&call(&format!(r#","requeststate":"{state}""#))),
        whole(&call(&format!(r#","x":{{"requestState":"{state}"}}"#))),
        whole(&call(&format!(r#","x":"\"requestState\":\"{state}\"""#))),
        whole(&format!(r#"{{"id":7,"method":"m","requestState":"{state}","params":{{}}}}"#)),
        // The beginning of what is longer than what is read, with no state as far as that goes.
        cut(&long(r#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"count","arguments":{"text":""#)),
        whole(&long(r#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"count","arguments":{"text":""#)),
    ] {
        let shown = format!("{body:?}").chars().take(200).collect::<String>();
        assert!(goes_on_as_it_is(&bed.post("anna", &[], body).await), "{shown}");
    }
    assert_eq!(bed.waits(), 0);
}

/// What is not looked at, since nothing of ours can be in it.
#[tokio::test]
async fn who_is_not_kept_waiting_for_a_body() {
    let bed = Bed::new();
    bed.tokens.gives("anna", Has::Marked);
    let limit = MAX_READ.to_string();
    let (more, huge) = ((MAX_READ + 1).to_string(), "41943040");
    for (length, is_asked) in [
        (Some("0"), true),
        (Some(limit.as_str()), true),
        (Some(&more), false),
        (Some(huge), false),
        (Some("18446744073709551616"), true),
        (Some("a lot"), true),
        (None, true),
    ] {
        let headers: Vec<_> = length.iter().map(|length| ("content-length", *length)).collect();
        let verdict = bed.headers("anna", &headers).await;
        assert_eq!(matches!(verdict, Verdict::Body(_)), is_asked, "{length:?}");
        assert!(is_asked || goes_on_as_it_is(&verdict), "{length:?}");
    }
    for method in ["GET", "DELETE"] {
        let asked = Asked { ends: false, ..Asked::with(&[(":method", method)]) };
        assert!(goes_on_as_it_is(&settled(asked.of(&bed.traffic)).await), "{method}");
    }
    let ends = Asked { ends: true, ..Asked::with(&[]) };
    assert!(goes_on_as_it_is(&settled(ends.of(&bed.traffic)).await));
    // Whoever has none to expect.
    bed.tokens.gives("anna", Has::Token);
    assert!(goes_on_as_it_is(&bed.headers("anna", &[]).await));
}

/// Whoever has a token: what could hide a state of ours does not go on.
#[tokio::test]
async fn what_could_hide_a_state_does_not_go_on() {
    let bed = Bed::new();
    let state = bed.state(&call("")).await;
    bed.tokens.gives("anna", Has::Marked);
    let body = again(&state, "accept");
    let twice = call(&format!(r#","requestState":"{state}","requestState":"theirs""#));
    for (body, label) in [
        (whole(&twice), "bad_body"),
        (whole(&format!("[{body}]")), "bad_body"),
        (whole(&format!("{body}x")), "bad_body"),
        (whole(&body.replace("\"id\":7", "\"id\":null")), "bad_body"),
        (cut(&body[..body.len() - 1]), "bad_request_state"),
        (Body::Late, "bad_body"),
        (whole(""), "bad_body"),
    ] {
        let shown = format!("{body:?}");
        match bed.post("anna", &[], body).await {
            Verdict::Reply(reply) => assert_eq!((reply.status, reply.label), (400, label), "{shown}"),
            other => panic!("{}: {shown}", name(&other)),
        }
    }
    assert!(bed.metric("envoy_cimd_handed_out_total 0"));
}

/// Bodies that are waited for, of people who have a token.
#[tokio::test]
async fn uploads_of_one_user_are_bounded() {
    let bed = Bed::new();
    bed.tokens.gives("anna", Has::Marked);
    let mut waiting = Vec::new();
    for _ in 0..100 {
        let Verdict::Body(body) = bed.headers("anna", &[]).await else { panic!("it takes the body") };
        assert_eq!(body.longest, Duration::from_secs(60), "a slow upload is theirs to make");
        waiting.push(body);
    }
    let Verdict::Reply(reply) = bed.headers("anna", &[]).await else { panic!("one too many") };
    assert_eq!((reply.status, reply.label), (503, "too_many_calls"));
    assert_eq!(header(&reply, "cache-control"), Some("no-store"));
    bed.tokens.gives("bert", Has::Token);
    assert!(matches!(bed.headers("bert", &[]).await, Verdict::Forward(_)));
    waiting.pop();
    assert!(matches!(bed.headers("anna", &[]).await, Verdict::Body(_)));
}
