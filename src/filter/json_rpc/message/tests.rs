//! Tests of what is read of a message, whole or cut, and of what is left of it without ours.

use proptest::prelude::*;
use serde_json::Value;

use super::{
    reading::{CAPABILITIES, VERSION},
    *,
};

/// What a whole body is: its id and method where it is a request.
fn whole(body: &str) -> Result<Option<(String, Option<String>)>, Fault> {
    Message::read(body.as_bytes(), true).map(|message| known(&message))
}

fn known(message: &Message<'_>) -> Option<(String, Option<String>)> {
    match message.kind() {
        Kind::Request { id, method } => Some((id.as_json().to_owned(), method.map(str::to_owned))),
        Kind::NotARequest | Kind::Unknown => None,
    }
}

#[test]
fn ids_are_texts_and_integers() {
    for (id, taken) in [
        ("1", true),
        ("0", true),
        ("-7", true),
        ("9007199254740993", true),
        ("123456789012345678901234567890", true),
        (r#""""#, true),
        (r#""a""#, true),
        (r#""\u0061\"\\\u00e9""#, true),
        (r#""ä""#, true),
        ("null", false),
        ("true", false),
        ("1.0", false),
        ("1e3", false),
        ("1E3", false),
        ("[1]", false),
        (r#"{"a":1}"#, false),
    ] {
        let body = format!(r#"{{"jsonrpc":"2.0", "id" : {id} ,"method":"m"}}"#);
        let expected = if taken { Ok(Some((id.to_owned(), Some("m".to_owned())))) } else { Err(Fault::Id) };
        assert_eq!(whole(&body), expected, "{id}");
    }
}

#[test]
fn whole_bodies() {
    let request = |id: &str, method: &str| Ok(Some((id.to_owned(), Some(method.to_owned()))));
    let deep = |depth: usize| {
        format!(r#"{{"id":1,"method":"m","params":{}1{}}}"#, r#"{"a":["#.repeat(depth / 2), "]}".repeat(depth / 2))
    };
    for (body, expected) in [
        (r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{}}"#, request("1", "tools/call")),
        (r#"{"params":{"arguments":[{},null,1.5,-1,true,"x"]},"method":"m","id":"a"}"#, request(r#""a""#, "m")),
        (r#" {"\u0069d":1,"m\u0065thod":"\u006d"} "#, request("1", "m")),
        (r#"{"id":1,"method":"m","params":null}"#, request("1", "m")),
        (r#"{"id":1,"method":"m","params":[{"_meta":1}]}"#, request("1", "m")),
        // Nested members of these names are others.
        (r#"{"params":{"id":7,"method":"x"},"id":1,"method":"m"}"#, request("1", "m")),
        (r#"{"method":"notifications/initialized"}"#, Ok(None)),
        (r#"{"id":1,"result":{}}"#, Ok(None)),
        (r#"{"id":1,"error":{"code":1,"message":"m"}}"#, Ok(None)),
        (r#"{"id":1}"#, Ok(None)),
        ("{}", Ok(None)),
        ("", Err(Fault::Empty)),
        (" ", Err(Fault::NotJson)),
        ("hello", Err(Fault::NotJson)),
        ("\u{feff}{}", Err(Fault::NotJson)),
        (r#"{"id":1,"method":"m""#, Err(Fault::NotJson)),
        (r#"{"id":1,"method":"m"}{}"#, Err(Fault::NotJson)),
        (r#"{"id":1,"method":"m",}"#, Err(Fault::NotJson)),
        (r#"{"id":01,"method":"m"}"#, Err(Fault::NotJson)),
        ("[]", Err(Fault::Batch)),
        (r#"[{"id":1,"method":"m"}]"#, Err(Fault::Batch)),
        ("1", Err(Fault::Type)),
        (r#""a""#, Err(Fault::Type)),
        ("null", Err(Fault::Type)),
        (r#"{"id":1,"id":1,"method":"m"}"#, Err(Fault::Twice)),
        (r#"{"id":1,"\u0069d":2,"method":"m"}"#, Err(Fault::Twice)),
        (r#"{"id":1,"method":"m","method":"n"}"#, Err(Fault::Twice)),
        (r#"{"id":1,"method":"m","params":{},"params":{}}"#, Err(Fault::Twice)),
        (r#"{"id":1,"method":"m","params":{"_meta":{},"_meta":{}}}"#, Err(Fault::Twice)),
        (r#"{"id":1,"method":7}"#, Err(Fault::Type)),
        (r#"{"id":1,"method":null}"#, Err(Fault::Type)),
        (&deep(100), request("1", "m")),
        (&deep(1_000), Err(Fault::NotJson)),
        (&"[".repeat(1_000), Err(Fault::Batch)),
        (&r#"{"a":"#.repeat(1_000), Err(Fault::NotJson)),
    ] {
        assert_eq!(whole(body), expected, "{body}");
    }
    assert_eq!(Message::read(b"{\"id\":1,\"method\":\"\xff\"}", true).err(), Some(Fault::NotJson));
}

#[test]
fn the_version_is_that_of_meta() {
    let version = |meta: &str| {
        let body = format!(r#"{{"id":1,"method":"m","params":{{"_meta":{meta}}}}}"#);
        Message::read(body.as_bytes(), true).map(|message| message.version)
    };
    let is = |version: &str| Ok(Some(version.to_owned()));
    let name = VERSION;
    assert_eq!(version(&format!(r#"{{"a":[1],"{name}":"2026-07-28","b":{{}}}}"#)), is("2026-07-28"));
    assert_eq!(version(&format!(r#"{{"{name}":"a","{name}":"b"}}"#)), Err(Fault::Twice));
    for other in ["1", "null", "true", "1.5", "[]", "{}"] {
        assert_eq!(version(&format!(r#"{{"{name}":{other}}}"#)), Err(Fault::Type), "{other}");
    }
    for none in ["{}", "[]", "null", r#""a""#, &format!(r#"{{"a":{{"{name}":"b"}}}}"#)] {
        assert_eq!(version(none), Ok(None), "{none}");
    }
    let elsewhere = format!(r#"{{"id":1,"method":"m","_meta":{{"{name}":"2026-07-28"}},"params":{{}}}}"#);
    assert_eq!(Message::read(elsewhere.as_bytes(), true).map(|message| message.version), Ok(None));
}

#[test]
fn what_stood_before_the_cut_counts() {
    let cut = |body: &str| Message::read(body.as_bytes(), false).map(|message| known(&message));
    let request = |id: &str, method: Option<&str>| Ok(Some((id.to_owned(), method.map(str::to_owned))));
    for (body, expected) in [
        ("", Ok(None)),
        ("{", Ok(None)),
        (r#"{"id":1"#, Ok(None)),
        (r#"{"id":12,"#, request("12", None)),
        (r#"{"id":12 "#, request("12", None)),
        (r#"{"id":"a""#, request(r#""a""#, None)),
        (r#"{"id":"a"#, Ok(None)),
        (r#"{"id":1,"method":"tools/ca"#, request("1", None)),
        (r#"{"id":1,"method":"tools/call","params":{"x":""#, request("1", Some("tools/call"))),
        (r#"{"method":"tools/call","params":{"x":""#, Ok(None)),
        (r#"{"id":1,"result":{"content":""#, Ok(None)),
        (r#"{"id":1,"method":"m"}"#, request("1", Some("m"))),
        (r#"{"id":null"#, Err(Fault::Id)),
        (r#"{"id":1,"id":2"#, Err(Fault::Twice)),
        (r#"{"id":1,x"#, Err(Fault::NotJson)),
        ("[", Err(Fault::Batch)),
    ] {
        assert_eq!(cut(body), expected, "{body}");
    }
    let kind = |body: &str| format!("{:?}", Message::read(body.as_bytes(), false).expect("no fault").kind());
    assert_eq!(kind(r#"{"method":"tools/call","params":{"x":""#), "Unknown");
    assert_eq!(kind(r#"{"result":{"#), "NotARequest");
}

#[test]
fn no_more_is_read_than_32_kb() {
    let of_length = |length: usize| {
        let (before, after) = (r#"{"params":{"x":""#, r#""},"id":1,"method":"m"}"#);
        format!("{before}{}{after}", "x".repeat(length - before.len() - after.len()))
    };
    let exactly = of_length(MAX_READ);
    assert_eq!(exactly.len(), 32 * 1024);
    assert_eq!(whole(&exactly), Ok(Some(("1".to_owned(), Some("m".to_owned())))));
    let longer = of_length(MAX_READ + 1);
    let more = Message::read(longer.as_bytes(), true).expect("cut");
    assert!(more.is_cut, "its last byte is not read");
    // The id ends one byte before the end, and the method too.
    assert_eq!(known(&more), Some(("1".to_owned(), Some("m".to_owned()))));
    let late = format!("{}{}", " ".repeat(MAX_READ), r#"{"id":1,"method":"m"}"#);
    assert_eq!(whole(&late), Ok(None));
}

fn read(body: &str) -> Message<'_> {
    Message::read(body.as_bytes(), true).expect("a message")
}

#[test]
fn a_client_that_opens_addresses_says_so() {
    let opens = |capabilities: &str| {
        let body = format!(r#"{{"id":1,"method":"m","params":{{"_meta":{{"{CAPABILITIES}":{capabilities}}}}}}}"#);
        Message::read(body.as_bytes(), true).map(|message| message.opens_urls)
    };
    for (capabilities, expected) in [
        (r#"{"elicitation":{"url":{}}}"#, Ok(true)),
        (r#"{"x":[{}],"\u0065licitation":{"form":{},"\u0075rl":{"a":1}},"y":1}"#, Ok(true)),
        // A form alone.
        (r#"{"elicitation":{}}"#, Ok(false)),
        (r#"{"elicitation":{"form":{}}}"#, Ok(false)),
        (r#"{"elicitation":{"url":null}}"#, Ok(false)),
        (r#"{"elicitation":{"url":true}}"#, Ok(false)),
        (r#"{"elicitation":{"url":[]}}"#, Ok(false)),
        (r#"{"elicitation":{"url":"{}"}}"#, Ok(false)),
        (r#"{"elicitation":{"form":{"url":{}}}}"#, Ok(false)),
        (r#"{"elicitation":[{"url":{}}]}"#, Ok(false)),
        (r#"{"url":{}}"#, Ok(false)),
        ("null", Ok(false)),
        ("[]", Ok(false)),
        (r#"{"elicitation":{"url":{}},"elicitation":{}}"#, Err(Fault::Twice)),
        (r#"{"elicitation":{"url":{},"url":{}}}"#, Err(Fault::Twice)),
    ] {
        assert_eq!(opens(capabilities), expected, "{capabilities}");
    }
    let elsewhere =
        format!(r#"{{"id":1,"method":"m","{CAPABILITIES}":{{"elicitation":{{"url":{{}}}}}},"params":{{}}}}"#);
    assert!(!read(&elsewhere).opens_urls);
}

#[test]
fn calls_that_may_be_asked_for_more() {
    for (body, has) in [
        (r#"{"id":1,"method":"tools/call","params":{"name":"a"}}"#, true),
        (r#"{"params":{"arguments":{"a":1},"name":"a"},"method":"prompts/get","id":1}"#, true),
        (r#"{"id":1,"method":"resources/read","params":{"uri":"file:///a"}}"#, true),
        (r#"{"id":1,"method":"resources/read","params":{"name":"a"}}"#, false),
        (r#"{"id":1,"method":"tools/call","params":{"uri":"a"}}"#, false),
        (r#"{"id":1,"method":"tools/call","params":{"name":1}}"#, false),
        (r#"{"id":1,"method":"tools/call","params":[]}"#, false),
        (r#"{"id":1,"method":"tools/call"}"#, false),
        (r#"{"id":1,"method":"tools/list","params":{"name":"a"}}"#, false),
        (r#"{"id":1,"method":"initialize","params":{"name":"a"}}"#, false),
    ] {
        assert_eq!(read(body).digest().is_some(), has, "{body}");
    }
    let whole = r#"{"method":"tools/call","params":{"name":"a"},"id":1}"#;
    for end in 0..whole.len() {
        let cut = Message::read(&whole.as_bytes()[..end], false).expect("no fault");
        assert_eq!(cut.digest(), None, "{end}");
    }
    // Its trailers come after it, so that nobody says that it is whole.
    assert_eq!(Message::read(whole.as_bytes(), false).expect("all of it").digest(), read(whole).digest());
    let digest = |arguments: &str| {
        read(&format!(r#"{{"id":1,"method":"tools/call","params":{{"name":"a"{arguments}}}}}"#)).digest()
    };
    assert_eq!(digest(r#","arguments":{"a":1,"b":2}"#), digest(r#", "arguments" : { "b":2.0, "\u0061":1 }"#));
    assert_eq!(digest(""), digest(r#","_meta":{"progressToken":7},"requestState":"a","inputResponses":{}"#));
    assert_ne!(digest(""), digest(r#","arguments":{}"#));
    let deep = format!(r#","arguments":{}{}"#, "[".repeat(1000), "]".repeat(1000));
    let deep = format!(r#"{{"id":1,"method":"tools/call","params":{{"name":"a"{deep}}}}}"#);
    assert_eq!(Message::read(deep.as_bytes(), true).err(), Some(Fault::NotJson));
    for twice in ["name", "uri", "arguments", "requestState", "inputResponses"] {
        let body = format!(r#"{{"id":1,"method":"m","params":{{"{twice}":{{}},"a":1,"{twice}":{{}}}}}}"#);
        assert_eq!(Message::read(body.as_bytes(), true).err(), Some(Fault::Twice), "{twice}");
    }
}

#[test]
fn what_goes_on_with_another_question_is_not_asked() {
    let body = |more: &str| format!(r#"{{"id":1,"method":"tools/call","params":{{"name":"a"{more}}}}}"#);
    for (more, may) in [
        ("", true),
        (r#","requestState":"theirs""#, false),
        (r#","inputResponses":{}"#, false),
        (r#","arguments":{"requestState":"a","inputResponses":{}}"#, true),
    ] {
        assert_eq!(read(&body(more)).may_be_asked(), may, "{more}");
    }
    // There is room for what comes with it the next time.
    let long = |length: usize| body(&format!(r#","arguments":"{}""#, "x".repeat(length - body("").len() - 15)));
    assert_eq!(long(MAX_READ - FOR_RETRY).len(), MAX_READ - FOR_RETRY);
    assert!(read(&long(MAX_READ - FOR_RETRY)).may_be_asked());
    assert!(!read(&long(MAX_READ - FOR_RETRY + 1)).may_be_asked());
}

/// What is cut out of `params`, and what is left.
#[test]
fn what_was_added_is_cut_out() {
    use Answered::{Accepted, Refused, Unclear};
    for (params, left, connect) in [
        (r#"{"name":"a","requestState":"envoy-cimd-x"}"#, r#"{"name":"a"}"#, None),
        (r#"{"requestState":"envoy-cimd-x","name":"a"}"#, r#"{"name":"a"}"#, None),
        (r#"{"requestState":"envoy-cimd-x"}"#, "{}", None),
        ("{ \"requestState\" : \"envoy-cimd-x\" }", "{  }", None),
        ("{ \"a\" : 1 , \"requestState\" : \"envoy-cimd-x\" , \"b\" : 2 }", "{ \"a\" : 1 , \"b\" : 2 }", None),
        ("{ \"a\" : 1 , \"requestState\" : \"envoy-cimd-x\" }", "{ \"a\" : 1  }", None),
        (r#"{"inputResponses":{"connect":{"action":"accept"}},"requestState":"envoy-cimd-x"}"#, "{}", Some(Accepted)),
        (
            r#"{"a":1,"inputResponses":{"connect":{"action":"accept"}},"requestState":"envoy-cimd-x","b":2}"#,
            r#"{"a":1,"b":2}"#,
            Some(Accepted),
        ),
        (
            r#"{"inputResponses":{"connect":{"action":"accept"}},"a":1,"requestState":"envoy-cimd-x"}"#,
            r#"{"a":1}"#,
            Some(Accepted),
        ),
        (
            r#"{"requestState":"envoy-cimd-x","a":1,"inputResponses":{"connect":{"action":"decline"}}}"#,
            r#"{"a":1}"#,
            Some(Refused),
        ),
        // Answers to others stay.
        (
            r#"{"inputResponses":{"b":{},"connect":{"action":"cancel"}},"requestState":"envoy-cimd-x"}"#,
            r#"{"inputResponses":{"b":{}}}"#,
            Some(Refused),
        ),
        (
            r#"{"requestState":"envoy-cimd-x","inputResponses":{"connect":{"action":"accept"}, "b":{}}}"#,
            r#"{"inputResponses":{"b":{}}}"#,
            Some(Accepted),
        ),
        (
            r#"{"requestState":"envoy-cimd-x","inputResponses":{"a":1,"connect":0,"b":{}},"c":2}"#,
            r#"{"inputResponses":{"a":1,"b":{}},"c":2}"#,
            Some(Unclear),
        ),
        (r#"{"inputResponses":[1],"requestState":"envoy-cimd-x"}"#, r#"{"inputResponses":[1]}"#, None),
        // However the names and the state are spelled.
        (
            r#"{"\u0072equestState":"\u0065nvoy-cimd-x","inputRe\u0073ponses":{"\u0063onnect":{"\u0061ction":"\u0061ccept"}},"b":"\u0062"}"#,
            r#"{"b":"\u0062"}"#,
            Some(Accepted),
        ),
        // Texts that look like ours, and members that are elsewhere.
        (
            r#"{"arguments":{"requestState":"envoy-cimd-x","inputResponses":{"connect":{}}},"requestState":"envoy-cimd-,\"requestState\":"}"#,
            r#"{"arguments":{"requestState":"envoy-cimd-x","inputResponses":{"connect":{}}}}"#,
            None,
        ),
        (
            r#"{"a":"\",\"requestState\":\"envoy-cimd-x","requestState":"envoy-cimd-x"}"#,
            r#"{"a":"\",\"requestState\":\"envoy-cimd-x"}"#,
            None,
        ),
    ] {
        let body = |params: &str| format!(" {{ \"id\":1,\t\"method\":\"m\",\"params\": {params} , \"x\":\"é\"}}\n");
        let whole = body(params);
        let message = read(&whole);
        assert!(message.state().is_some(), "{params}");
        assert_eq!(message.connect(), connect, "{params}");
        assert_eq!(String::from_utf8_lossy(&message.without_ours()), body(left), "{params}");
    }
    for action in ["Accept", "accepted", "", "yes"] {
        let body = format!(
            r#"{{"id":1,"method":"m","params":{{"requestState":"envoy-cimd-","inputResponses":{{"connect":{{"action":"{action}"}}}}}}}}"#
        );
        assert_eq!(read(&body).connect(), Some(Unclear), "{action}");
    }
    // What an upstream asked stays, also where it calls it as we do.
    for theirs in [r#""theirs""#, r#""Envoy-cimd-x""#, r#"" envoy-cimd-x""#, "1", "null", r#"["envoy-cimd-x"]"#] {
        let body = format!(
            r#"{{"id":1,"method":"m","params":{{"requestState":{theirs},"inputResponses":{{"connect":{{"action":"accept"}}}}}}}}"#
        );
        let message = read(&body);
        assert_eq!((message.state(), message.connect()), (None, None), "{theirs}");
        assert_eq!(message.without_ours(), body, "{theirs}");
    }
    let twice = r#"{"id":1,"params":{"requestState":"envoy-cimd-x","inputResponses":{"connect":1,"\u0063onnect":2}}}"#;
    assert_eq!(Message::read(twice.as_bytes(), true).err(), Some(Fault::Twice));
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".*".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map(".*", inner, 0..4).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn no_body_breaks_it(body in prop::collection::vec(any::<u8>(), 0..200), is_whole: bool) {
        let _ = Message::read(&body, is_whole);
    }

    /// Whatever else there is, and wherever it stands: without ours, a call is what it was before ours were added.
    #[test]
    fn without_ours_a_call_is_what_it_was(
        members in prop::collection::vec((".{0,8}", value()), 0..5),
        others in prop::collection::vec((".{0,8}", value()), 0..3),
        places in any::<[prop::sample::Index; 3]>(),
        space in "[ \t\n]{0,2}",
    ) {
        let is_ours = |name: &str| ["requestState", "inputResponses", CONNECT].contains(&name);
        let known = ["_meta", "name", "uri", "arguments"];
        let taken = |name: &str| known.contains(&name) || is_ours(name);
        let text = |(name, value): &(String, Value)| format!("{}{space}:{space}{value}", Value::from(name.as_str()));
        let object = |members: &[String]| format!("{{{}}}", members.join(&format!("{space},{space}")));
        let free = |all: &[(String, Value)]| all.iter().filter(|(name, _)| !taken(name)).map(text).collect::<Vec<_>>();
        let (kept, answers) = (free(&members), free(&others));
        let mut all = answers.clone();
        all.insert(places[0].index(all.len() + 1), r#""connect":{"action":"accept"}"#.to_owned());
        let (mut before, mut after) = (kept.clone(), kept);
        let at = places[1].index(after.len() + 1);
        after.insert(at, format!(r#""inputResponses":{}"#, object(&all)));
        if !answers.is_empty() {
            before.insert(at, format!(r#""inputResponses":{}"#, object(&answers)));
        }
        after.insert(places[2].index(after.len() + 1), r#""requestState":"envoy-cimd-x""#.to_owned());
        let body = |params: &[String]| format!(r#"{{"id":1,"method":"m","params":{}}}"#, object(params));
        let (before, after) = (body(&before), body(&after));
        let message = Message::read(after.as_bytes(), true).expect("a message");
        prop_assert_eq!(message.connect(), Some(Answered::Accepted));
        let left = message.without_ours();
        // Byte for byte, but that the white space at the end of an object stays where its last member went.
        let squeezed = |text: &[u8]| -> Vec<u8> {
            let value: Value = serde_json::from_slice(text).expect("JSON");
            value.to_string().into_bytes()
        };
        prop_assert_eq!(squeezed(&left), squeezed(before.as_bytes()));
        if space.is_empty() {
            prop_assert_eq!(String::from_utf8_lossy(&left), before);
        }
    }

    /// However much of a message came, what is known of it is what stands in it.
    #[test]
    fn every_cut_of_a_message(id in prop_oneof![any::<u32>().prop_map(Value::from), ".*".prop_map(Value::from)],
                              method in ".*", params in value(), order in 0_usize..6) {
        let mut members = vec![("id", &id), ("params", &params)];
        let method = Value::from(method);
        members.insert(order % 3, ("method", &method));
        if order > 2 {
            members.reverse();
        }
        let text: Vec<String> = members.iter().map(|(name, value)| format!("\"{name}\": {value}")).collect();
        let body = format!("{{{}}}", text.join(" ,"));
        for end in 0..=body.len() {
            let read = Message::read(&body.as_bytes()[..end], false);
            let message = read.expect("a message up to its cut has no fault");
            if let Kind::Request { id: found, method: by } = message.kind() {
                prop_assert_eq!(found.as_json(), id.to_string());
                prop_assert!(by.is_none_or(|by| method == by));
            }
        }
        let message = Message::read(body.as_bytes(), true).expect("a message");
        let is_request = matches!(message.kind(), Kind::Request { method: Some(by), .. } if method == by);
        prop_assert!(is_request);
    }
}
