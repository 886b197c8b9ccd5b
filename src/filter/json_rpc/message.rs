//! The message of an MCP request's body, read as far as it takes to answer in the upstream's place, and to know a call
//! when it comes again.
//!
//! A body may be cut. What stood before the cut counts, and what may go on after it does not.

use std::ops::Range;

use bytes::Bytes;
use serde_json::value::RawValue;

mod input_responses;
mod reading;

use super::{cut, digest::Digest};
use crate::filter::request_state::PREFIX;

/// How much of a body is read, in bytes.
pub const MAX_READ: usize = 32 << 10;
/// What is left of that for what a client adds to a call when it comes again: our state, its answer, and white space.
const FOR_RETRY: usize = 1 << 10;

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
    /// What it is to who answers it.
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

#[cfg(test)]
mod tests;
