//! Answers in the upstream's place.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;

use super::message::{CONNECT, Fault, Id, is_new};

/// The code of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// JSON-RPC 2.0, section 5.1.
    Parse,
    InvalidRequest,
    /// MCP 2026-07-28, Streamable HTTP, Server Validation.
    HeaderMismatch,
    /// JSON-RPC 2.0, section 5.1: a parameter is not what it should be.
    InvalidParams,
    /// Our own, outside of what JSON-RPC keeps for itself: the person is to connect first.
    Connect,
    /// Our own: the request is refused, as its HTTP status says.
    Refused,
}

/// What JSON-RPC calls it.
impl From<Fault> for Code {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Late | Fault::Empty | Fault::NotJson => Self::Parse,
            Fault::Batch | Fault::Id | Fault::Twice | Fault::Type => Self::InvalidRequest,
        }
    }
}

impl Code {
    fn number(self) -> i32 {
        match self {
            Self::Parse => -32700,
            Self::InvalidRequest => -32600,
            Self::HeaderMismatch => -32020,
            Self::InvalidParams => -32602,
            // No code or text of an error may have "401" in it: there are clients that look for that, and then begin an
            // OAuth of their own.
            Self::Connect => -31000,
            Self::Refused => -31001,
        }
    }
}

#[derive(Serialize)]
struct Answer<'a, T> {
    jsonrpc: &'static str,
    /// Null where there is none (JSON-RPC 2.0, section 5). MCP's schema would leave it out, but where it is left out, the
    /// Python SDK does not show the error.
    id: Option<&'a RawValue>,
    #[serde(flatten)]
    outcome: T,
}

/// An error; its id is null where there is no request that it answers.
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
    let result_type = version.filter(|version| is_new(version)).map(|_| "complete");
    let content = [Content { r#type: "text", text }];
    answer(Some(id), Outcome { result: ToolResult { result_type, content, is_error: true } })
}

/// A question to the person (MCP 2026-07-28, Multi Round-Trip Requests): to open `url`. Without one, the client is only
/// to come again. Either way it brings `state`.
pub fn input_required(id: &Id, ask: Option<Ask<'_>>, state: &str) -> Bytes {
    #[derive(Serialize)]
    struct Outcome<'a> {
        result: InputRequired<'a>,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct InputRequired<'a> {
        result_type: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        input_requests: Option<BTreeMap<&'static str, Elicitation<'a>>>,
        request_state: &'a str,
    }
    #[derive(Serialize)]
    struct Elicitation<'a> {
        method: &'static str,
        params: Params<'a>,
    }
    #[derive(Serialize)]
    struct Params<'a> {
        mode: &'static str,
        url: &'a str,
        message: &'a str,
    }
    let elicitation = |Ask { url, message }| Elicitation {
        method: "elicitation/create",
        params: Params { mode: "url", url, message },
    };
    let input_requests = ask.map(|ask| BTreeMap::from([(CONNECT, elicitation(ask))]));
    let result = InputRequired { result_type: "input_required", input_requests, request_state: state };
    answer(Some(id), Outcome { result })
}

/// What a person is asked.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    pub url: &'a str,
    pub message: &'a str,
}

/// The same answer as the one event of a stream (MCP, Streamable HTTP). JSON has no line ends of its own.
pub fn event(answer: &[u8]) -> Bytes {
    [b"event: message\ndata: ", answer, b"\n\n"].concat().into()
}

fn answer(id: Option<&Id>, outcome: impl Serialize) -> Bytes {
    // Texts and numbers always serialize.
    serde_json::to_vec(&Answer { jsonrpc: "2.0", id: id.map(Id::raw), outcome }).unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::filter::json_rpc::message::{Kind, Message};

    #[test]
    fn answers_repeat_the_id_byte_by_byte() {
        let message = |id: &str| {
            let body = format!(r#"{{"id":{id},"method":"m"}}"#);
            match Message::read(body.as_bytes(), true).expect("a message").kind() {
                Kind::Request { id, .. } => id.clone(),
                other => panic!("{other:?}"),
            }
        };
        for id in ["1", "-0", "123456789012345678901234567890", r#""\u0061\"""#] {
            let body = error(Some(&message(id)), Code::Connect, "a \"text\"");
            let expected = format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":-31000,"message":"a \"text\""}}}}"#);
            assert_eq!(String::from_utf8_lossy(&body), expected);
        }
        assert_eq!(
            &error(None, Code::Parse, "text")[..],
            br#"{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"text"}}"#
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

    #[test]
    fn a_question_is_as_the_protocol_has_it() {
        let body = r#"{"id":"a","method":"m"}"#;
        let message = Message::read(body.as_bytes(), true).expect("a message");
        let Kind::Request { id, .. } = message.kind() else { panic!("a request") };
        let ask = Ask { url: "https://a.example/start", message: "Why." };
        assert_eq!(
            &input_required(id, Some(ask), "the-state")[..],
            br#"{"jsonrpc":"2.0","id":"a","result":{"resultType":"input_required","inputRequests":{"connect":{"method":"elicitation/create","params":{"mode":"url","url":"https://a.example/start","message":"Why."}}},"requestState":"the-state"}}"#
        );
        assert_eq!(
            &input_required(id, None, "the-state")[..],
            br#"{"jsonrpc":"2.0","id":"a","result":{"resultType":"input_required","requestState":"the-state"}}"#
        );
    }
}
