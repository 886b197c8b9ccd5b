//! The message of an MCP request's body, read as far as it takes to answer in the upstream's place, and to know a call
//! when it comes again.
//!
//! A body may be cut. What stood before the cut counts, and what may go on after it does not.

use std::{fmt, ops::Range};

use bytes::Bytes;
use serde::{
    Deserialize, Deserializer as _,
    de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Unexpected, Visitor},
};
use serde_json::{Deserializer, value::RawValue};

use super::{
    cut::{self, Member},
    digest::Digest,
};
use crate::filter::request_state::PREFIX;

/// How much of a body is read, in bytes.
pub const MAX_READ: usize = 32 << 10;
/// What is left of that for what a client adds to a call when it comes again: our state, its answer, and white space.
const FOR_RETRY: usize = 1 << 10;

/// Where a request of 2026-07-28 or later names its revision of the protocol, in `_meta`, and what its client can do.
const VERSION: &str = "io.modelcontextprotocol/protocolVersion";
const CAPABILITIES: &str = "io.modelcontextprotocol/clientCapabilities";

/// The name of what we ask of a client.
pub const CONNECT: &str = "connect";

/// Whether a revision of the protocol has multi round-trip requests, and types of results. They are dates, so their
/// order is that of the revisions.
pub fn is_new(version: &str) -> bool {
    version >= "2026-07-28"
}

/// What was read of a message.
#[derive(Debug, Default)]
pub struct Message<'a> {
    read: &'a [u8],
    id: Option<Id>,
    method: Option<String>,
    /// The revision of the protocol, as its `_meta` names it.
    pub version: Option<String>,
    /// Whether its client shows a person an address to open, as its `_meta` says (MCP, Elicitation, Capabilities).
    pub opens_urls: bool,
    params: Params<'a>,
    /// It has what only an answer has.
    is_response: bool,
    is_cut: bool,
}

/// What was read of `params`, beside `_meta`.
#[derive(Debug, Default)]
struct Params<'a> {
    name: Option<&'a RawValue>,
    uri: Option<&'a RawValue>,
    arguments: Option<&'a RawValue>,
    /// The state that a client echoes, where it is a text.
    state: Option<String>,
    /// Whether it goes on with what an upstream asked: it has a state, or answers.
    is_round: bool,
    connect: Option<Answered>,
    /// Where what we added stands.
    gaps: Vec<Range<usize>>,
}

/// What a client answered to what we asked of it (MCP 2026-07-28, Elicitation, Response Actions).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answered {
    Accepted,
    /// Declined or cancelled.
    Refused,
    /// In no form that there is.
    Unclear,
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

    /// The same, to be put into an answer.
    pub(super) fn raw(&self) -> &RawValue {
        &self.0
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
}

impl<'a> Message<'a> {
    /// Reads a body's first [`MAX_READ`] bytes; `is_whole` is whether these are all that there is of it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(body: &'a [u8], is_whole: bool) -> Result<Self, Fault> {
        let read = body.get(..MAX_READ).unwrap_or(body);
        let is_cut = !is_whole || read.len() < body.len();
        if read.is_empty() && !is_cut {
            return Err(Fault::Empty);
        }
        let mut reading = Reading { message: Self { read, ..Self::default() }, fault: None };
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

    /// The state that it echoes, where that is one of ours, or pretends to be.
    pub fn state(&self) -> Option<&str> {
        self.params.state.as_deref().filter(|state| state.starts_with(PREFIX))
    }

    /// What its client answered to [`CONNECT`].
    pub fn connect(&self) -> Option<Answered> {
        self.params.connect
    }

    /// What the call is known by when it comes again. None of what may not be asked for more: of methods other than the
    /// three that may (MCP 2026-07-28, Multi Round-Trip Requests, Supported Requests), and of what was cut.
    pub fn digest(&self) -> Option<Digest> {
        if self.is_cut {
            return None;
        }
        let method = self.method.as_deref()?;
        let of = match method {
            "tools/call" | "prompts/get" => self.params.name,
            "resources/read" => self.params.uri,
            _ => None,
        };
        let of: String = serde_json::from_str(of?.get()).ok()?;
        Digest::of(method, &of, self.params.arguments)
    }

    /// Whether it may be answered with a question: it goes on with no other, and when it comes again with an answer,
    /// that is read whole.
    pub fn may_be_asked(&self) -> bool {
        !self.params.is_round && self.read.len() + FOR_RETRY <= MAX_READ
    }

    /// The body without what we had the client add: our state, and its answer to us. Nothing else of it changes, where
    /// `inputResponses` had nothing but that answer it goes as well. What was read of a body that was cut is not it.
    pub fn without_ours(&self) -> Bytes {
        cut::without(self.read, &self.params.gaps).into()
    }
}

/// The members that are looked at, while they are read.
struct Reading<'de> {
    message: Message<'de>,
    fault: Option<Fault>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(field_identifier, rename_all = "lowercase")]
enum Name {
    Id,
    Method,
    Params,
    Result,
    Error,
    #[serde(other)]
    Other,
}

/// Ends the reading.
fn fails<E: serde::de::Error>(at: &mut Option<Fault>, fault: Fault) -> E {
    *at = Some(fault);
    E::custom(fault.reason())
}

impl<'de> Visitor<'de> for &mut Reading<'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON-RPC message")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Reading { message, fault } = self;
        let (mut has_id, mut has_params) = (false, false);
        while let Some(member) = map.next_key()? {
            match member {
                Name::Id if has_id => return Err(fails(fault, Fault::Twice)),
                Name::Id => {
                    has_id = true;
                    let value: &'de RawValue = map.next_value()?;
                    let Some(id) = Id::new(value) else { return Err(fails(fault, Fault::Id)) };
                    // A number at the very end may go on after the cut; a text has its end.
                    let ends_here = value.get().as_bytes().as_ptr_range().end == message.read.as_ptr_range().end;
                    if value.get().starts_with('"') || !ends_here {
                        message.id = Some(id);
                    }
                }
                Name::Method if message.method.is_some() => return Err(fails(fault, Fault::Twice)),
                Name::Method => message.method = Some(map.next_value()?),
                Name::Params if has_params => return Err(fails(fault, Fault::Twice)),
                Name::Params => {
                    has_params = true;
                    map.next_value_seed(InParams { message, fault })?;
                }
                Name::Result | Name::Error | Name::Other => {
                    message.is_response |= !matches!(member, Name::Other);
                    map.next_value_seed(Below { place: Place::Elsewhere, message, fault })?;
                }
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<(), A::Error> {
        Err(fails(&mut self.fault, Fault::Batch))
    }
}

/// The value of `params`.
struct InParams<'r, 'de> {
    message: &'r mut Message<'de>,
    fault: &'r mut Option<Fault>,
}

impl<'de> DeserializeSeed<'de> for InParams<'_, 'de> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

/// Forwards what is not an object: nothing is looked for there.
macro_rules! read_over {
    ($($visit:ident($value:ty);)*) => {$(
        fn $visit<E: serde::de::Error>(self, _: $value) -> Result<(), E> {
            Ok(())
        }
    )*};
}

impl<'de> Visitor<'de> for InParams<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("parameters")
    }

    read_over! {
        visit_str(&str);
        visit_bool(bool);
        visit_i64(i64);
        visit_u64(u64);
        visit_f64(f64);
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<(), A::Error> {
        Below { place: Place::Elsewhere, message: self.message, fault: self.fault }.visit_seq(items)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self { message, fault } = self;
        let (mut members, mut known) = (Vec::new(), Vec::new());
        let mut state = None;
        let mut responses = None;
        while let Some(name) = map.next_key::<&'de RawValue>()? {
            let start = offset(message.read, name.get());
            let Ok(name) = serde_json::from_str::<String>(name.get()) else {
                return Err(fails(fault, Fault::NotJson));
            };
            let is_known =
                ["_meta", "name", "uri", "arguments", "requestState", "inputResponses"].contains(&name.as_str());
            if is_known && known.contains(&name) {
                return Err(fails(fault, Fault::Twice));
            }
            members.push(Member { start, end: start, goes: false });
            let at = members.len() - 1;
            match name.as_str() {
                "_meta" => map.next_value_seed(Below { place: Place::Meta, message, fault })?,
                _ if is_known => {
                    let value: &'de RawValue = map.next_value()?;
                    // As deep as the rest may be.
                    let over = Below { place: Place::Elsewhere, message, fault };
                    if over.deserialize(&mut Deserializer::from_str(value.get())).is_err() {
                        return Err(fails(fault, Fault::NotJson));
                    }
                    let end = offset(message.read, value.get()) + value.get().len();
                    if let Some(member) = members.last_mut() {
                        member.end = end;
                    }
                    match name.as_str() {
                        "name" => message.params.name = Some(value),
                        "uri" => message.params.uri = Some(value),
                        "arguments" => message.params.arguments = Some(value),
                        "requestState" => {
                            state = Some(at);
                            message.params.state = serde_json::from_str(value.get()).ok();
                        }
                        _ => responses = Some((at, value)),
                    }
                }
                _ => map.next_value_seed(Below { place: Place::Elsewhere, message, fault })?,
            }
            if is_known {
                known.push(name);
            }
        }
        message.params.is_round = state.is_some() || responses.is_some();
        let answers = responses.map(|(at, value)| (at, Answers::read(message.read, value)));
        if message.state().is_none() {
            return Ok(());
        }
        // What there is of ours, in the order that it stands in.
        let mut inner = Vec::new();
        if let Some((at, answers)) = answers {
            let Answers { members: of_answers, connect } = match answers {
                Ok(answers) => answers,
                Err(twice) => return Err(fails(fault, twice)),
            };
            message.params.connect = connect;
            if of_answers.iter().all(|answer| answer.goes) {
                goes(&mut members, Some(at));
            } else {
                inner = cut::gaps(message.read, &of_answers);
            }
        }
        goes(&mut members, state);
        let mut gaps = cut::gaps(message.read, &members);
        gaps.extend(inner);
        gaps.sort_by_key(|gap| gap.start);
        message.params.gaps = gaps;
        Ok(())
    }
}

fn goes(members: &mut [Member], at: Option<usize>) {
    if let Some(member) = at.and_then(|at| members.get_mut(at)) {
        member.goes = true;
    }
}

/// Where a part of a text stands in it.
fn offset(text: &[u8], part: &str) -> usize {
    part.as_ptr().addr().saturating_sub(text.as_ptr().addr())
}

/// The members of `inputResponses`, of which ours goes.
struct Answers {
    members: Vec<Member>,
    connect: Option<Answered>,
}

#[derive(Deserialize)]
struct Response {
    action: Action,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Action {
    Accept,
    Decline,
    Cancel,
}

impl Answers {
    /// What is no object has no members.
    ///
    /// # Errors
    /// Where ours is there twice.
    fn read(text: &[u8], value: &RawValue) -> Result<Self, Fault> {
        let mut of = ReadingAnswers { text, answers: Self { members: Vec::new(), connect: None }, is_twice: false };
        let is_object = Deserializer::from_str(value.get()).deserialize_map(&mut of).is_ok();
        match of {
            ReadingAnswers { is_twice: true, .. } => Err(Fault::Twice),
            ReadingAnswers { answers, .. } if is_object => Ok(answers),
            // Whatever it is, it stays.
            _ => Ok(Self { members: vec![Member { start: 0, end: 0, goes: false }], connect: None }),
        }
    }
}

struct ReadingAnswers<'t> {
    text: &'t [u8],
    answers: Answers,
    is_twice: bool,
}

impl<'de> Visitor<'de> for &mut ReadingAnswers<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("answers")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<&'de RawValue>()? {
            let value: &'de RawValue = map.next_value()?;
            let start = offset(self.text, name.get());
            let end = offset(self.text, value.get()) + value.get().len();
            let goes = serde_json::from_str::<String>(name.get()).is_ok_and(|name| name == CONNECT);
            if goes && self.answers.connect.is_some() {
                self.is_twice = true;
                return Err(A::Error::custom(Fault::Twice.reason()));
            }
            if goes {
                self.answers.connect = Some(match serde_json::from_str(value.get()) {
                    Ok(Response { action: Action::Accept }) => Answered::Accepted,
                    Ok(Response { action: Action::Decline | Action::Cancel }) => Answered::Refused,
                    Err(_) => Answered::Unclear,
                });
            }
            self.answers.members.push(Member { start, end, goes });
        }
        Ok(())
    }
}

/// What is looked for at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Nothing.
    Elsewhere,
    Meta,
    /// A text.
    Version,
    Capabilities,
    Elicitation,
    /// An object: that it is there.
    Url,
}

impl Place {
    fn below(self, name: &str) -> Self {
        match (self, name) {
            (Self::Meta, VERSION) => Self::Version,
            (Self::Meta, CAPABILITIES) => Self::Capabilities,
            (Self::Capabilities, "elicitation") => Self::Elicitation,
            (Self::Elicitation, "url") => Self::Url,
            _ => Self::Elsewhere,
        }
    }
}

/// A value at a place. What nothing is looked for in is only read over, value by value, so that what is nested too deep
/// fails as it does elsewhere in `serde_json`: to ignore it would let any depth pass.
struct Below<'r, 'de> {
    place: Place,
    message: &'r mut Message<'de>,
    fault: &'r mut Option<Fault>,
}

impl Below<'_, '_> {
    fn no_text<E: serde::de::Error>(&self, found: Unexpected<'_>) -> Result<(), E> {
        match self.place {
            Place::Version => Err(E::invalid_type(found, &"a text")),
            _ => Ok(()),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Below<'_, '_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Below<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        if self.place == Place::Version {
            self.message.version = Some(text.to_owned());
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
        let Self { message, fault, .. } = self;
        while items.next_element_seed(Below { place: Place::Elsewhere, message, fault })?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        self.no_text::<A::Error>(Unexpected::Map)?;
        let Self { place, message, fault } = self;
        message.opens_urls |= place == Place::Url;
        let mut found = Vec::new();
        while let Some(name) = members.next_key::<String>()? {
            let place = place.below(&name);
            if place != Place::Elsewhere {
                if found.contains(&place) {
                    return Err(fails(fault, Fault::Twice));
                }
                found.push(place);
            }
            members.next_value_seed(Below { place, message, fault })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

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
            (
                r#"{"inputResponses":{"connect":{"action":"accept"}},"requestState":"envoy-cimd-x"}"#,
                "{}",
                Some(Accepted),
            ),
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
        let twice =
            r#"{"id":1,"params":{"requestState":"envoy-cimd-x","inputResponses":{"connect":1,"\u0063onnect":2}}}"#;
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
}
