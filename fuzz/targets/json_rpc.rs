//! The body of an MCP request, cut anywhere: what is read of it is what stands in it. The first byte says where it is cut.

#![no_main]

use envoy_cimd::filter::json_rpc::message::{CONNECT, Kind, MAX_READ, Message};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|data: &[u8]| {
    let Some((cut, body)) = data.split_first() else { return };
    check(body);
    let before = body.get(..body.len() * usize::from(*cut) / 256).unwrap_or_default();
    let read = Message::read(before, false);
    // A message that is whole has no fault before its end, and its id is the one that it has.
    if body.len() <= MAX_READ
        && let Ok(whole) = Message::read(body, true)
        && let Ok(read) = read
        && let (Kind::Request { id, .. }, Kind::Request { id: expected, .. }) = (read.kind(), whole.kind())
    {
        assert_eq!(id.as_json(), expected.as_json());
    }
    // What is long is read as what stands before its cut.
    let long = [body, " ".repeat(MAX_READ + 1).as_bytes()].concat();
    assert_eq!(Message::read(&long, true).is_ok(), Message::read(&long[..MAX_READ], false).is_ok());
});

fn check(body: &[u8]) {
    let Ok(message) = Message::read(body, true) else { return };
    if body.len() > MAX_READ {
        return;
    }
    // An id is repeated and not understood: it may be a number or a text that is JSON and has no value here.
    let Ok(value) = serde_json::from_slice::<Value>(body) else { return };
    let members = value.as_object().expect("and an object");
    if let Kind::Request { id, method } = message.kind() {
        assert_eq!(members.get("method").and_then(Value::as_str), method);
        let id: Value = serde_json::from_str(id.as_json()).expect("JSON");
        assert_eq!(members.get("id"), Some(&id));
        assert!(id.is_string() || id.is_number());
    }
    let version = value.pointer("/params/_meta/io.modelcontextprotocol~1protocolVersion");
    assert_eq!(version.and_then(Value::as_str), message.version.as_deref());
    // Without ours it is the same, but for ours.
    let left: Value = serde_json::from_slice(&message.without_ours()).expect("JSON");
    let mut expected = value.clone();
    if message.state().is_some()
        && let Some(params) = expected.get_mut("params").and_then(Value::as_object_mut)
    {
        params.remove("requestState");
        let others = params.get_mut("inputResponses").and_then(Value::as_object_mut).map(|answers| {
            answers.remove(CONNECT);
            answers.len()
        });
        if others == Some(0) {
            params.remove("inputResponses");
        }
    }
    assert_eq!(left, expected);
}
