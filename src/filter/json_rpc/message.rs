//! The message of an MCP request's body (JSON-RPC 2.0; MCP 2026-07-28, Base Protocol), read as far as it takes to answer
//! in the upstream's place, and those answers.
//!
//! A body may be cut. What stood before the cut counts, and what may go on after it does not.

use std::fmt;

use bytes::Bytes;
use serde::{
    Deserialize, Deserializer as _, Serialize,
    de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Unexpected, Visitor},
};
use serde_json::{Deserializer, value::RawValue};

/// How much of a body is read, in bytes.
pub const MAX_READ: usize = 32 << 10;

/// Where a request of 2026-07-28 or later names its revision of the protocol.
const VERSION: [&str; 3] = ["params", "_meta", "io.modelcontextprotocol/protocolVersion"];

/// What was read of a message.
#[derive(Debug, Default)]
pub struct Message {
    id: Option<Id>,
    method: Option<String>,
    /// The revision of the protocol, as its `_meta` names it.
    pub version: Option<String>,
    /// It has what only an answer has.
    is_response: bool,
    is_cut: bool,
}

/// What a message is to who answers it.
#[derive(Debug)]
pub enum Kind<'a> {
    /// A request, with its method where that stood before the cut.
    Request { id: &'a Id, method: Option<&'a str> },
    /// A notification, or a client's answer to a request of the server's: neither is answered.
    NotARequest,
    /// It was cut before its id.
    Unknown,
}

/// The id of a request, to be repeated byte by byte: a text or an integer (MCP, Base Protocol, Requests).
#[derive(Clone, Debug)]
pub struct Id(Box<RawValue>);

impl Id {
    fn new(value: &RawValue) -> Option<Self> {
        let text = value.get();
        let is_integer = !text.contains(['.', 'e', 'E']) && text.starts_with(|c: char| c == '-' || c.is_ascii_digit());
        (is_integer || text.starts_with('"')).then(|| Self(value.to_owned()))
    }

    /// As it stood in the request.
    pub fn as_json(&self) -> &str {
        self.0.get()
    }
}

/// Why a body holds no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It did not come in time.
    Late,
    Empty,
    NotJson,
    Batch,
    Id,
    Twice,
    Type,
}

impl Fault {
    /// What is wrong with it, for operators.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Late => "the body did not come in time",
            Self::Empty => "the body is empty",
            Self::NotJson => "the body is not JSON, or it is nested too deep",
            Self::Batch => "the body is a batch, which MCP does not have",
            Self::Id => "`id` is neither a text nor an integer",
            Self::Twice => "`id`, `method` or what leads to the protocol version is there twice",
            Self::Type => "the body is not an object, or its `method` or protocol version is not a text",
        }
    }

    /// The code of JSON-RPC's own for it.
    pub fn code(self) -> Code {
        match self {
            Self::Late | Self::Empty | Self::NotJson => Code::Parse,
            Self::Batch | Self::Id | Self::Twice | Self::Type => Code::InvalidRequest,
        }
    }
}

/// The code of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// JSON-RPC 2.0, section 5.1.
    Parse,
    InvalidRequest,
    /// MCP 2026-07-28, Streamable HTTP, Server Validation.
    HeaderMismatch,
    /// Our own, outside of what JSON-RPC keeps for itself: the person is to connect first.
    Connect,
    /// Our own: the request is refused, as its HTTP status says.
    Refused,
}

impl Code {
    fn number(self) -> i32 {
        match self {
            Self::Parse => -32700,
            Self::InvalidRequest => -32600,
            Self::HeaderMismatch => -32020,
            // No code or text of an error may have "401" in it: there are clients that look for that, and then begin an
            // OAuth of their own.
            Self::Connect => -31000,
            Self::Refused => -31001,
        }
    }
}

impl Message {
    /// Reads a body's first [`MAX_READ`] bytes; `is_whole` is whether these are all that there is of it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(body: &[u8], is_whole: bool) -> Result<Self, Fault> {
        let read = body.get(..MAX_READ).unwrap_or(body);
        let is_cut = !is_whole || read.len() < body.len();
        if read.is_empty() && !is_cut {
            return Err(Fault::Empty);
        }
        let mut reading = Reading { read, message: Self::default(), fault: None };
        let mut json = Deserializer::from_slice(read);
        let ended = json.deserialize_any(&mut reading).and_then(|()| json.end());
        let Reading { mut message, fault, .. } = reading;
        match ended {
            Ok(()) => Ok(message),
            Err(error) if fault.is_none() && error.is_eof() && is_cut => {
                message.is_cut = true;
                Ok(message)
            }
            Err(error) => Err(fault.unwrap_or(if error.is_data() { Fault::Type } else { Fault::NotJson })),
        }
    }

    pub fn kind(&self) -> Kind<'_> {
        match (&self.id, self.method.as_deref()) {
            (_, None) if self.is_response || !self.is_cut => Kind::NotARequest,
            (Some(id), method) => Kind::Request { id, method },
            (None, _) if self.is_cut => Kind::Unknown,
            (None, _) => Kind::NotARequest,
        }
    }
}

/// The members that are looked at, while they are read.
struct Reading<'de> {
    read: &'de [u8],
    message: Message,
    fault: Option<Fault>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(field_identifier, rename_all = "lowercase")]
enum Member {
    Id,
    Method,
    Params,
    Result,
    Error,
    #[serde(other)]
    Other,
}

impl Reading<'_> {
    /// Ends the reading.
    fn fails<E: serde::de::Error>(&mut self, fault: Fault) -> E {
        self.fault = Some(fault);
        E::custom(fault.reason())
    }
}

impl<'de> Visitor<'de> for &mut Reading<'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON-RPC message")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let [_, within_params @ ..] = VERSION;
        let (mut has_id, mut has_params) = (false, false);
        while let Some(member) = map.next_key()? {
            match member {
                Member::Id if has_id => return Err(self.fails(Fault::Twice)),
                Member::Id => {
                    has_id = true;
                    let value: &'de RawValue = map.next_value()?;
                    let Some(id) = Id::new(value) else { return Err(self.fails(Fault::Id)) };
                    // A number at the very end may go on after the cut; a text has its end.
                    let ends_here = value.get().as_bytes().as_ptr_range().end == self.read.as_ptr_range().end;
                    if value.get().starts_with('"') || !ends_here {
                        self.message.id = Some(id);
                    }
                }
                Member::Method if self.message.method.is_some() => return Err(self.fails(Fault::Twice)),
                Member::Method => self.message.method = Some(map.next_value()?),
                Member::Params if has_params => return Err(self.fails(Fault::Twice)),
                Member::Params => {
                    has_params = true;
                    let Reading { message, fault, .. } = &mut *self;
                    map.next_value_seed(At { path: Some(&within_params), text: &mut message.version, fault })?;
                }
                Member::Result | Member::Error | Member::Other => {
                    self.message.is_response |= !matches!(member, Member::Other);
                    map.next_value_seed(At { path: None, text: &mut None, fault: &mut self.fault })?;
                }
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<(), A::Error> {
        Err(self.fails(Fault::Batch))
    }
}

/// The text at a path of names from here; none looks for nothing. All else is only read over, value by value, so that
/// what is nested too deep fails as it does elsewhere in `serde_json`: to ignore it would let any depth pass.
struct At<'a> {
    path: Option<&'a [&'static str]>,
    text: &'a mut Option<String>,
    fault: &'a mut Option<Fault>,
}

impl At<'_> {
    fn no_text<E: serde::de::Error>(&self, found: Unexpected<'_>) -> Result<(), E> {
        match self.path {
            Some([]) => Err(E::invalid_type(found, self)),
            _ => Ok(()),
        }
    }
}

impl<'de> DeserializeSeed<'de> for At<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for At<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        if self.path == Some(&[]) {
            *self.text = Some(text.to_owned());
        }
        Ok(())
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<(), E> {
        self.no_text(Unexpected::Bool(value))
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        self.no_text(Unexpected::Signed(value))
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        self.no_text(Unexpected::Unsigned(value))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        self.no_text(Unexpected::Float(value))
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        self.no_text(Unexpected::Unit)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        self.no_text::<A::Error>(Unexpected::Seq)?;
        while items.next_element_seed(At { path: None, text: &mut *self.text, fault: &mut *self.fault })?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        self.no_text::<A::Error>(Unexpected::Map)?;
        let mut found = false;
        while let Some(name) = members.next_key::<String>()? {
            let path = self.path.and_then(|path| path.split_first()).filter(|(first, _)| **first == name);
            if path.is_some() && std::mem::replace(&mut found, true) {
                *self.fault = Some(Fault::Twice);
                return Err(A::Error::custom(Fault::Twice.reason()));
            }
            let path = path.map(|(_, rest)| rest);
            members.next_value_seed(At { path, text: &mut *self.text, fault: &mut *self.fault })?;
        }
        Ok(())
    }
}

#[derive(Serialize)]
struct Answer<'a, T> {
    jsonrpc: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a RawValue>,
    #[serde(flatten)]
    outcome: T,
}

/// An error; without an id where there is no request that it answers.
pub fn error(id: Option<&Id>, code: Code, message: &str) -> Bytes {
    #[derive(Serialize)]
    struct Outcome<'a> {
        error: Error<'a>,
    }
    #[derive(Serialize)]
    struct Error<'a> {
        code: i32,
        message: &'a str,
    }
    answer(id, Outcome { error: Error { code: code.number(), message } })
}

/// The result of a tool that did not do what it was called for (MCP, Tools, Error Handling): a model reads the text.
pub fn tool_error(id: &Id, text: &str, version: Option<&str>) -> Bytes {
    #[derive(Serialize)]
    struct Outcome<'a> {
        result: ToolResult<'a>,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct ToolResult<'a> {
        #[serde(skip_serializing_if = "Option::is_none")]
        result_type: Option<&'static str>,
        content: [Content<'a>; 1],
        is_error: bool,
    }
    #[derive(Serialize)]
    struct Content<'a> {
        r#type: &'static str,
        text: &'a str,
    }
    // Dates, so their order is that of the revisions.
    let result_type = version.filter(|version| *version >= "2026-07-28").map(|_| "complete");
    let content = [Content { r#type: "text", text }];
    answer(Some(id), Outcome { result: ToolResult { result_type, content, is_error: true } })
}

fn answer(id: Option<&Id>, outcome: impl Serialize) -> Bytes {
    // Texts and numbers always serialize.
    serde_json::to_vec(&Answer { jsonrpc: "2.0", id: id.map(|id| &*id.0), outcome }).unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    /// What a whole body is: its id and method where it is a request.
    fn whole(body: &str) -> Result<Option<(String, Option<String>)>, Fault> {
        Message::read(body.as_bytes(), true).map(|message| known(&message))
    }

    fn known(message: &Message) -> Option<(String, Option<String>)> {
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
        let name = VERSION[2];
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
        let more = Message::read(of_length(MAX_READ + 1).as_bytes(), true).expect("cut");
        assert!(more.is_cut, "its last byte is not read");
        // The id ends one byte before the end, and the method too.
        assert_eq!(known(&more), Some(("1".to_owned(), Some("m".to_owned()))));
        let late = format!("{}{}", " ".repeat(MAX_READ), r#"{"id":1,"method":"m"}"#);
        assert_eq!(whole(&late), Ok(None));
    }

    #[test]
    fn answers_repeat_the_id_byte_by_byte() {
        let message = |id: &str| {
            Message::read(format!(r#"{{"id":{id},"method":"m"}}"#).as_bytes(), true)
                .expect("a message")
                .id
                .expect("an id")
        };
        for id in ["1", "-0", "123456789012345678901234567890", r#""\u0061\"""#] {
            let body = error(Some(&message(id)), Code::Connect, "a \"text\"");
            let expected = format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":-31000,"message":"a \"text\""}}}}"#);
            assert_eq!(String::from_utf8_lossy(&body), expected);
        }
        assert_eq!(
            &error(None, Code::Parse, "text")[..],
            br#"{"jsonrpc":"2.0","error":{"code":-32700,"message":"text"}}"#
        );
        let result = |version| {
            let body = tool_error(&message("7"), "text", version);
            serde_json::from_slice::<Value>(&body).expect("JSON")
        };
        let content = json!([{ "type": "text", "text": "text" }]);
        for old in [None, Some("2025-11-25"), Some("")] {
            let expected = json!({ "jsonrpc": "2.0", "id": 7, "result": { "content": content, "isError": true } });
            assert_eq!(result(old), expected);
        }
        assert_eq!(
            result(Some("2026-07-28"))["result"],
            json!({ "resultType": "complete", "content": content, "isError": true })
        );
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
}
