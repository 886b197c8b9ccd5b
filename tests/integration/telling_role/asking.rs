//! Who is asked to open the link, who reads it as text, and in which form.

use envoy_cimd::{
    contract::{
        error::Cause,
        tokens::{Missing, TokenError},
    },
    filter::{json_rpc::message::MAX_READ, verdict::Verdict},
};
use serde_json::{Value, json};

use super::{Bed, Has, NEW, OLD, URL, asked, call, is_told, message};
use crate::traffic_role::{cut, header, json_of, settled, whole};

#[tokio::test]
async fn who_is_asked_and_who_is_told() {
    let bed = Bed::new();
    let tool = r#""name":"a","arguments":{}"#;
    let uri = r#""uri":"file:///a""#;
    let mut expected = 0;
    for (method, params) in [("tools/call", tool), ("prompts/get", tool), ("resources/read", uri)] {
        for capabilities in [URL, r#"{"elicitation":{"url":{}},"sampling":{}}"#] {
            for id in ["7", r#""a""#] {
                let reply = bed.reply(&message(id, method, params, NEW, capabilities, "")).await;
                asked(&reply);
                assert_eq!(json_of(&reply)["id"].to_string(), id);
                expected += 1;
            }
        }
    }
    assert_eq!(bed.marks(), expected, "each was noted");
    let with = |version, capabilities, more| message("7", "tools/call", tool, version, capabilities, more);
    let long = "x".repeat(MAX_READ - 1100);
    for (why, body, is_tool) in [
        ("a form alone", with(NEW, r#"{"elicitation":{}}"#, ""), true),
        ("a form alone", with(NEW, r#"{"elicitation":{"form":{}}}"#, ""), true),
        ("no elicitation", with(NEW, "{}", ""), true),
        ("the older protocol", with(OLD, URL, ""), true),
        ("an upstream's state", with(NEW, URL, r#","requestState":"theirs""#), true),
        ("an upstream's question", with(NEW, URL, r#","inputResponses":{"connect":{"action":"accept"}}"#), true),
        ("too long to come again", with(NEW, URL, &format!(r#","x":"{long}""#)), true),
        ("no name", message("7", "tools/call", uri, NEW, URL, ""), true),
        ("another method", message("7", "tools/list", tool, NEW, URL, ""), false),
        ("another method", message("7", "server/discover", tool, NEW, URL, ""), false),
        ("another method", message("7", "initialize", tool, NEW, URL, ""), false),
        ("no URI", message("7", "resources/read", tool, NEW, URL, ""), false),
    ] {
        let reply = bed.reply(&body).await;
        assert!(is_told(&reply, &json!(7), is_tool) && reply.label == "told", "{why}");
    }
    // What was cut is not known whole.
    let body = call("");
    let Verdict::Reply(reply) = settled(bed.post("anna", &[], cut(&body[..body.len() - 1])).await).await else {
        panic!("a reply")
    };
    assert!(is_told(&reply, &json!(7), true));
    // Whose trailers come after it is.
    let Verdict::Reply(reply) = settled(bed.post("anna", &[], cut(&body)).await).await else { panic!("a reply") };
    asked(&reply);
    // Whoever never connected.
    bed.tokens.gives("anna", Has::Nothing(Missing::Never));
    assert!(is_told(&bed.reply(&call("")).await, &json!(7), true));
    assert_eq!(bed.marks(), expected + 1);
    bed.tokens.gives("anna", Has::Unknown);
    assert_eq!(bed.reply(&call("")).await.label, "token_unavailable");
    assert_eq!((bed.waits(), bed.marks()), (0, expected + 1));
}

/// Both versions in one connection: each request is told as it can be, and one that contradicts itself is refused.
#[tokio::test]
async fn each_request_has_its_own_version() {
    let bed = Bed::new();
    let tool = r#""name":"a""#;
    for (header, version, label) in [
        (NEW, NEW, "asked_to_connect"),
        (OLD, OLD, "told"),
        (NEW, NEW, "asked_to_connect"),
        (OLD, NEW, "version_mismatch"),
        (NEW, OLD, "version_mismatch"),
    ] {
        let body = message("7", "tools/call", tool, version, URL, "");
        let headers = [("mcp-protocol-version", header), ("mcp-session-id", "never-seen")];
        let Verdict::Reply(reply) = settled(bed.post("anna", &headers, whole(&body)).await).await else {
            panic!("a reply")
        };
        assert_eq!(reply.label, label, "{header} {version}");
    }
}

/// A client that takes no JSON gets the same as an event.
#[tokio::test]
async fn each_answer_is_of_a_type_that_its_client_takes() {
    let bed = Bed::new();
    for (accept, is_event) in [
        (&["text/event-stream"][..], true),
        (&["Text/Event-Stream; q=0.9"], true),
        (&["text/html, text/event-stream"], true),
        (&["application/json, text/event-stream"], false),
        (&["text/event-stream", "application/json"], false),
        (&["text/event-stream, */*;q=0.1"], false),
        (&["text/event-stream, application/*"], false),
        (&["application/json"], false),
        (&["*/*"], false),
        (&[], false),
    ] {
        let headers: Vec<_> = accept.iter().map(|accept| ("accept", *accept)).collect();
        for body in [call(""), message("7", "tools/list", "", NEW, URL, "").replace("{,", "{")] {
            let Verdict::Reply(reply) = settled(bed.post("anna", &headers, whole(&body)).await).await else {
                panic!("a reply")
            };
            let content_type = if is_event { "text/event-stream" } else { "application/json" };
            assert_eq!((reply.status, header(&reply, "content-type")), (200, Some(content_type)), "{accept:?}");
            let text = std::str::from_utf8(&reply.body).expect("text");
            let json = match is_event {
                true => text.strip_prefix("event: message\ndata: ").and_then(|text| text.strip_suffix("\n\n")),
                false => Some(text),
            };
            let json: Value = serde_json::from_str(json.expect("one event")).expect("JSON");
            assert_eq!(json["id"], 7);
        }
    }
}

#[tokio::test]
async fn where_nothing_can_be_noted_the_link_is_text() {
    let bed = Bed::new();
    for error in [TokenError::Unavailable(Cause::Borrowed("the store is gone")), TokenError::NotFound(Missing::Never)] {
        *bed.tokens.can_mark.lock().expect("no panic") = Err(error);
        assert!(is_told(&bed.reply(&call("")).await, &json!(7), true));
    }
    assert_eq!(bed.marks(), 2);
}
