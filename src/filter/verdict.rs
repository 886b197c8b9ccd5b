//! What becomes of a request or its answer, before Envoy's protocol says it.

use std::{
    fmt,
    ops::Deref,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use zeroize::Zeroizing;

use super::{
    reply::Reply,
    request::{Request, Sources},
    response::Response,
};
use crate::contract::tokens::TokenTag;

/// One of the roles of the service: what it makes of a request, or of its answer.
pub trait Role: Send + Sync {
    /// `ends` is whether nothing follows the headers.
    fn answer(&self, request: &Request<'_>, sources: &Sources<'_>, ends: bool) -> Verdict;

    /// The same of an answer, of which a role that is there for requests sees none but those of filters before its own.
    fn judge(&self, _: &Response<'_>, _: &Sources<'_>) -> Verdict {
        Verdict::Pass
    }
}

/// What becomes of a request, or of its answer.
pub enum Verdict {
    /// It is none of ours; Envoy goes on with it as it is.
    Pass,
    /// This is the answer, in the place of any other.
    Reply(Reply),
    /// An answer that is given again and again.
    SameReply(Arc<Said<Reply>>),
    /// Envoy goes on with it, changed so.
    Forward(Arc<Said<Edits>>),
    /// It takes a call.
    Later(BoxFuture<'static, Verdict>),
    /// It takes the body, and the trailers of a request that has no body.
    Body(AwaitedBody),
}

/// What is said again and again, and how the edge said it: so that it is put into Envoy's protocol once.
pub struct Said<T> {
    what: T,
    encoded: OnceLock<Bytes>,
}

impl<T> Said<T> {
    pub fn new(what: T) -> Arc<Self> {
        Arc::new(Self { what, encoded: OnceLock::new() })
    }

    /// How it is said; `encode` says it the first time. The bytes are zeroed with the last who has them: a token may be
    /// among them.
    pub fn encoded(&self, encode: impl FnOnce(&T) -> Vec<u8>) -> Bytes {
        self.encoded.get_or_init(|| Bytes::from_owner(Zeroizing::new(encode(&self.what)))).clone()
    }
}

impl<T> Deref for Said<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.what
    }
}

impl<T: fmt::Debug> fmt::Debug for Said<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.what.fmt(f)
    }
}

/// What is changed of a request or an answer that goes on.
#[derive(Default)]
pub struct Edits {
    /// Each of these headers then has this one value, however many it had.
    pub set: Vec<(&'static str, Bytes)>,
    pub remove: &'static [&'static str],
    /// What the token is called, for the filters that come later.
    pub tag: Option<TokenTag>,
    /// What takes the place of the body, where that came whole.
    pub body: Option<Bytes>,
}

/// A token is among the values, and neither the tag nor the body is for logs.
impl fmt::Debug for Edits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let set: Vec<&str> = self.set.iter().map(|(name, _)| *name).collect();
        f.debug_struct("Edits").field("set", &set).field("remove", &self.remove).finish_non_exhaustive()
    }
}

/// A body that is waited for, and what is made of it.
pub struct AwaitedBody {
    /// How long it is waited for at most.
    pub longest: Duration,
    pub then: Box<dyn FnOnce(Body) -> Verdict + Send>,
}

/// As much of a request's body as came.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// The first bytes, or all of them; none where trailers came instead. Where `whole` is false more may be missing, or
    /// nothing: Envoy says that a body has ended only where no trailers follow.
    Came { bytes: Bytes, whole: bool },
    /// It did not come in time.
    Late,
}
