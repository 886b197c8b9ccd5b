//! Whoever has no token is told where to connect, in the form that their request takes.

use envoy_cimd::filter::verdict::Body;
use serde_json::json;

use super::{Asked, Gateway, LINK, cut, error_of, header, json_of, whole};

#[tokio::test]
async fn what_ends_with_its_headers_is_answered_at_once() {
    let gateway = Gateway::unconnected();
    let page = [(":method", "GET"), ("accept", "text/html,*/*;q=0.8")];
    for headers in [&page[..], &[page[0], page[1], ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")]] {
        for ends in [true, false] {
            let reply = gateway.reply(&Asked { ends, ..Asked::with(headers) }).await;
            assert_eq!((reply.status, reply.label), (303, "sent_to_connect"), "{headers:?}");
            assert_eq!((header(&reply, "location"), header(&reply, "cache-control")), (Some(LINK), Some("no-store")));
            assert!(reply.body.is_empty());
        }
    }
    for headers in [
        &[(":method", "GET")][..],
        &[(":method", "GET"), ("accept", "text/event-stream")],
        &[page[0], page[1], ("sec-fetch-mode", "cors")],
        &[page[0], page[1], ("sec-fetch-dest", "image")],
        &[page[0], page[1], ("sec-fetch-dest", "iframe"), ("sec-fetch-mode", "navigate")],
        &[(":method", "DELETE"), page[1]],
    ] {
        for ends in [true, false] {
            let reply = gateway.reply(&Asked { ends, ..Asked::with(headers) }).await;
            assert_eq!((reply.status, reply.label), (405, "no_token"), "{headers:?}");
            assert_eq!(header(&reply, "allow"), Some("POST"));
            assert!(error_of(&reply).1.contains(LINK));
        }
    }
    let reply = gateway.reply(&Asked::with(&[(":method", "POST"), page[1]])).await;
    assert_eq!((reply.status, reply.label), (400, "bad_body"), "it has no body");
    assert_eq!(error_of(&reply).0, -32700);
}

#[tokio::test]
async fn a_request_is_told_where_to_connect() {
    let gateway = Gateway::unconnected();
    for (body, id) in [
        (whole(r#"{"jsonrpc":"2.0","id":0,"method":"initialize","params":{}}"#), json!(0)),
        (whole(r#"{"params":{"a":[1]},"method":"tools/list","id":"a"}"#), json!("a")),
        (whole(r#"{"id":1,"method":"tools/call/"}"#), json!(1)),
        (cut(r#"{"id":-2,"method":"resources/read","params":{"uri":"file:"#), json!(-2)),
        // Its method was not seen, so nobody knows that it is a tool's call.
        (cut(r#"{"id":3,"params":{"name":"x","arguments":{"text":""#), json!(3)),
    ] {
        let reply = gateway.told(&[], body).await;
        assert_eq!((reply.status, reply.label), (200, "told"));
        let body = json_of(&reply);
        let (code, message) = (body["error"]["code"].as_i64().expect("a code"), &body["error"]["message"]);
        assert!(!(-32768..=-32000).contains(&code) && !code.to_string().contains("401"));
        assert!(message.as_str().expect("a text").contains(LINK));
        assert_eq!(body, json!({ "jsonrpc": "2.0", "id": id, "error": { "code": code, "message": message } }));
    }
    // The id is the client's to the byte.
    let reply = gateway.told(&[], whole(r#"{"id":"\u0061","method":"m"}"#)).await;
    assert!(reply.body.starts_with(br#"{"jsonrpc":"2.0","id":"\u0061","#));
    let huge = "123456789012345678901234567890";
    let reply = gateway.told(&[], whole(&format!(r#"{{"id":{huge},"method":"m"}}"#))).await;
    assert!(String::from_utf8_lossy(&reply.body).contains(&format!(r#""id":{huge},"#)));
    assert!(gateway.metric("envoy_cimd_handed_out_total 0"));
    assert!(gateway.metric(r#"envoy_cimd_requests_total{endpoint="traffic",outcome="told"} 7"#));
}

#[tokio::test]
async fn a_tools_call_is_told_as_its_result() {
    let gateway = Gateway::unconnected();
    let meta = |version: &str| {
        format!(
            r#"{{"id":1,"method":"tools/call","params":{{"name":"x","_meta":{{"io.modelcontextprotocol/protocolVersion":"{version}"}}}}}}"#
        )
    };
    let plain = r#"{"id":1,"method":"tools/call","params":{"name":"x"}}"#;
    let (old, new) = ("2025-11-25", "2026-07-28");
    for (headers, body, is_new) in [
        (&[][..], whole(plain), false),
        (&[("mcp-protocol-version", old)], whole(plain), false),
        (&[("mcp-protocol-version", new)], whole(plain), true),
        (&[("mcp-protocol-version", new)], whole(&meta(new)), true),
        (&[], whole(&meta(new)), true),
        (&[], whole(&meta(old)), false),
        (&[("mcp-protocol-version", new)], cut(r#"{"method":"tools/call","id":1,"params":{"argu"#), true),
    ] {
        let reply = gateway.told(headers, body).await;
        assert_eq!((reply.status, reply.label), (200, "told"));
        let body = json_of(&reply);
        let text = &body["result"]["content"][0]["text"];
        assert!(text.as_str().expect("a text").contains(LINK));
        let mut result = json!({ "content": [{ "type": "text", "text": text }], "isError": true });
        if is_new {
            result["resultType"] = "complete".into();
        }
        assert_eq!(body, json!({ "jsonrpc": "2.0", "id": 1, "result": result }));
    }
}

#[tokio::test]
async fn versions_that_differ_are_refused() {
    let gateway = Gateway::unconnected();
    let of = |id: &str, method: &str, version: &str| {
        whole(&format!(
            r#"{{{id}"method":"{method}","params":{{"_meta":{{"io.modelcontextprotocol/protocolVersion":"{version}"}}}}}}"#
        ))
    };
    let named = |version| ("mcp-protocol-version", version);
    let (old, new) = (named("2025-11-25"), named("2026-07-28"));
    for (headers, id, method, answered) in [
        (&[old][..], r#""id":7,"#, "tools/call", Some(7)),
        (&[old], r#""id":7,"#, "tools/list", Some(7)),
        (&[new, new], r#""id":7,"#, "tools/list", Some(7)),
        (&[named("")], r#""id":7,"#, "tools/list", Some(7)),
        (&[old], "", "notifications/x", None),
    ] {
        let reply = gateway.told(headers, of(id, method, "2026-07-28")).await;
        assert_eq!((reply.status, reply.label), (400, "version_mismatch"), "{headers:?} {method}");
        let body = json_of(&reply);
        assert_eq!((body["error"]["code"].as_i64(), body["id"].as_i64()), (Some(-32020), answered));
    }
}

#[tokio::test]
async fn what_is_no_request_is_refused() {
    let gateway = Gateway::unconnected();
    let deep = format!(r#"{{"id":1,"method":"m","params":{}1{}}}"#, "[".repeat(1_000), "]".repeat(1_000));
    let long = |length: usize| {
        let (before, after) = (r#"{"method":"tools/call","params":{"x":""#, r#""},"id":1}"#);
        format!("{before}{}{after}", "x".repeat(length - before.len() - after.len()))
    };
    let huge = long(40_000_000);
    for (body, status, label, code) in [
        (whole(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#), 403, "not_a_request", -31000),
        (whole(r#"{"jsonrpc":"2.0","id":1,"result":{}}"#), 403, "not_a_request", -31000),
        (whole(r#"{"jsonrpc":"2.0","id":1,"error":{"code":-1,"message":"x"}}"#), 403, "not_a_request", -31000),
        (whole("{}"), 403, "not_a_request", -31000),
        (cut(r#"{"jsonrpc":"2.0","id":1,"result":{"content":""#), 403, "not_a_request", -31000),
        (cut(r#"{"jsonrpc":"2.0","method":"tools/call","params":{"x":""#), 502, "cut_body", -31000),
        (cut(""), 502, "cut_body", -31000),
        (whole(&long((32 << 10) + 1)), 502, "cut_body", -31000),
        (whole(&huge), 502, "cut_body", -31000),
        (Body::Late, 400, "bad_body", -32700),
        (whole(""), 400, "bad_body", -32700),
        (whole("hello"), 400, "bad_body", -32700),
        (whole(r#"{"id":1,"method":"tools/call""#), 400, "bad_body", -32700),
        (whole(&deep), 400, "bad_body", -32700),
        (whole(r#"[{"id":1,"method":"tools/call"}]"#), 400, "bad_body", -32600),
        (whole(r#"{"id":1,"id":2,"method":"tools/call"}"#), 400, "bad_body", -32600),
        (whole(r#"{"id":null,"method":"tools/call"}"#), 400, "bad_body", -32600),
        (whole(r#"{"id":1.5,"method":"tools/call"}"#), 400, "bad_body", -32600),
        (whole(r#"{"id":{},"method":"tools/call"}"#), 400, "bad_body", -32600),
        (whole(r#"{"id":1,"method":["tools/call"]}"#), 400, "bad_body", -32600),
    ] {
        let shown = match &body {
            Body::Came { bytes, .. } => String::from_utf8_lossy(&bytes[..bytes.len().min(80)]).into_owned(),
            Body::Late => "none in time".to_owned(),
        };
        let reply = gateway.told(&[], body).await;
        assert_eq!((reply.status, reply.label), (status, label), "{shown}");
        let (found, message) = error_of(&reply);
        assert_eq!((found, message.contains(LINK)), (code, status != 400), "{shown}");
    }
    // To the last byte of what is read, it is answered.
    let reply = gateway.told(&[], whole(&long(32 << 10))).await;
    assert_eq!((reply.status, reply.label, json_of(&reply)["id"].as_i64()), (200, "told", Some(1)));
    assert!(gateway.metric("envoy_cimd_handed_out_total 0"));
}
