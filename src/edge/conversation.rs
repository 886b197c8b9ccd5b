//! What is said on one stream, which is one HTTP request of Envoy's.

use std::{
    mem,
    pin::Pin,
    sync::{Arc, Once},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use envoy_types::pb::envoy::service::ext_proc::v3::{
    CommonResponse, HttpBody, ProcessingRequest, ProcessingResponse, processing_request::Request as Phase,
};
use futures_util::{FutureExt, future::BoxFuture};
use prost::Message;
use tokio::time::{Sleep, sleep};
use tonic::Status;

use super::{
    codec::Answer,
    read::{request, response, sources},
    roles::RoleName,
    tags, write,
};
use crate::{
    filter::verdict::{AwaitedBody, Body, Edits, Role, Said, Verdict},
    model::user::UserSource,
};

/// How much of a body is handed on, in bytes, of the much that Envoy's buffers may hold.
pub const MAX_BODY: usize = 32 << 10;

/// The state of a stream, apart from its connection: messages are taken in, and answers come out.
pub struct Conversation {
    role: Arc<dyn Role>,
    /// What Envoy is asked for where an answer takes a call, in seconds.
    patience: i64,
    state: State,
    /// Whether Envoy was asked for time since its last message. It heeds that once a message.
    asked_for_time: bool,
    /// Whether the request's headers came: what follows them was decided with them.
    has_headers: bool,
    /// What was changed of a request that went on: its trailers must not have those headers either.
    forwarded: Option<Arc<Said<Edits>>>,
}

/// What comes next.
enum State {
    /// A message of Envoy's.
    Listening,
    /// The end of a call. Envoy sends nothing meanwhile.
    Calling(Asked, BoxFuture<'static, Verdict>),
    /// The body, or the end of its time.
    Awaiting { until: Pin<Box<Sleep>>, then: Box<dyn FnOnce(Body) -> Verdict + Send> },
    /// Nothing: Envoy closes the stream after an immediate response. Were we to close it first, its own last frame would
    /// find no stream, and a thousand such frames end the connection (h2).
    Replied,
}

/// What Envoy waits for an answer to.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Asked {
    /// `ends` is whether they are the whole request.
    Headers {
        ends: bool,
    },
    Body,
    Trailers,
    /// The headers of an answer.
    Answer,
    /// Nothing: it is still receiving what it was asked for. Only an immediate response can be sent then.
    Nothing,
}

impl Conversation {
    pub fn new(role: Arc<dyn Role>, name: RoleName) -> Self {
        Self {
            role,
            patience: name.patience(),
            state: State::Listening,
            asked_for_time: false,
            has_headers: false,
            forwarded: None,
        }
    }

    /// Takes a message in, and gives the answer where there is one at once; else [`Self::poll_answer`] does. `users` is
    /// where the metadata says who is there.
    ///
    /// # Errors
    /// A message of a kind that is not known, or out of turn.
    pub fn take(&mut self, message: ProcessingRequest, users: Option<&UserSource>) -> Result<Option<Answer>, Status> {
        let state = mem::replace(&mut self.state, State::Listening);
        if matches!(state, State::Replied) {
            self.state = state;
            return Ok(None);
        }
        let Some(phase) = &message.request else {
            return Err(Status::unimplemented("a message of a kind that this version does not know"));
        };
        self.asked_for_time = false;
        match (state, phase) {
            (State::Awaiting { then, .. }, Phase::RequestBody(body)) => self.settle(Asked::Body, then(came(body))),
            // Only where there was no body: one that has trailers comes before them.
            (State::Awaiting { then, .. }, Phase::RequestTrailers(_)) => {
                self.settle(Asked::Trailers, then(Body::Came { bytes: Bytes::new(), whole: true }))
            }
            (State::Awaiting { .. }, Phase::RequestHeaders(_)) => {
                Err(Status::failed_precondition("request headers in the place of a body"))
            }
            // Envoy only watches, and heeds no answer: to redeem a code would use it up for nobody, and a token would
            // be handed out for nothing.
            (_, Phase::RequestHeaders(_)) if message.observability_mode => {
                static WARNED: Once = Once::new();
                WARNED.call_once(|| tracing::warn!("the filter is in observability_mode, so nothing is served"));
                Ok(Some(write::untouched(phase).into()))
            }
            (_, Phase::RequestHeaders(headers)) => {
                self.has_headers = true;
                let ends = headers.end_of_stream;
                let verdict = self.role.answer(&request(headers), &sources(&message, users), ends);
                self.settle(Asked::Headers { ends }, verdict)
            }
            // A filter that keeps the headers to itself: to let the rest pass would let the request pass, without a token.
            (_, Phase::RequestBody(_) | Phase::RequestTrailers(_))
                if !self.has_headers && !message.observability_mode =>
            {
                Err(Status::failed_precondition("a body or trailers without the request's headers"))
            }
            (state, Phase::RequestTrailers(_)) if let Some(edits) = &self.forwarded => {
                self.state = state;
                Ok(Some(write::trailers_without(edits).into()))
            }
            (State::Listening, Phase::ResponseHeaders(headers)) if !message.observability_mode => {
                let verdict = self.role.judge(&response(headers, &message), &sources(&message, users));
                self.settle(Asked::Answer, verdict)
            }
            // What else there is passes.
            (state, _) => {
                self.state = state;
                Ok(Some(write::untouched(phase).into()))
            }
        }
    }

    /// The next answer that takes no further message: after a call, or where a body did not come in time.
    pub fn poll_answer(&mut self, context: &mut Context<'_>) -> Poll<Result<Answer, Status>> {
        loop {
            let (asked, verdict) = match &mut self.state {
                State::Calling(asked, call) => match call.poll_unpin(context) {
                    Poll::Ready(verdict) => (*asked, verdict),
                    // Envoy counts no time where it waits for nothing.
                    Poll::Pending if self.asked_for_time || *asked == Asked::Nothing => return Poll::Pending,
                    Poll::Pending => {
                        self.asked_for_time = true;
                        return Poll::Ready(Ok(write::more_time(self.patience).into()));
                    }
                },
                State::Awaiting { until, .. } => {
                    ready!(until.poll_unpin(context));
                    let State::Awaiting { then, .. } = mem::replace(&mut self.state, State::Listening) else {
                        return Poll::Pending;
                    };
                    (Asked::Nothing, then(Body::Late))
                }
                State::Listening | State::Replied => return Poll::Pending,
            };
            self.state = State::Listening;
            match self.settle(asked, verdict) {
                Ok(Some(answer)) => return Poll::Ready(Ok(answer)),
                Ok(None) => {}
                Err(status) => return Poll::Ready(Err(status)),
            }
        }
    }

    /// Whether the next thing said is ours.
    pub fn is_calling(&self) -> bool {
        matches!(self.state, State::Calling(..))
    }

    /// Says a verdict, or notes what it waits for.
    fn settle(&mut self, asked: Asked, verdict: Verdict) -> Result<Option<Answer>, Status> {
        match verdict {
            Verdict::Pass => goes_on(asked, None).map(|answer| Some(answer.into())),
            Verdict::Forward(edits) => self.forward(asked, edits).map(Some),
            Verdict::Reply(reply) => {
                self.state = State::Replied;
                Ok(Some(write::immediate(&reply).into()))
            }
            Verdict::SameReply(reply) => {
                self.state = State::Replied;
                Ok(Some(Answer::Again(reply.encoded(|reply| write::immediate(reply).encode_to_vec()))))
            }
            Verdict::Later(call) => {
                self.state = State::Calling(asked, call);
                Ok(None)
            }
            Verdict::Body(AwaitedBody { longest, then }) => match asked {
                Asked::Headers { ends: false } => {
                    self.state = State::Awaiting { until: Box::pin(sleep(longest)), then };
                    Ok(Some(write::ask_for_body().into()))
                }
                Asked::Headers { ends: true } => {
                    let verdict = then(Body::Came { bytes: Bytes::new(), whole: true });
                    self.settle(asked, verdict)
                }
                _ => Err(Status::internal("a body is asked for once, in the answer to headers")),
            },
        }
    }

    fn forward(&mut self, asked: Asked, edits: Arc<Said<Edits>>) -> Result<Answer, Status> {
        let answer = match asked {
            _ if edits.body.is_some() && asked != Asked::Body => {
                return Err(Status::internal("a body is changed in the answer to it"));
            }
            // Most requests of most people: the token is the same for as long as it is kept.
            Asked::Headers { .. } => {
                let made = |edits: &Edits| tagged(write::headers(Some(write::change(edits))), edits);
                Answer::Again(edits.encoded(|edits| made(edits).encode_to_vec()))
            }
            // Envoy would change the trailers by it.
            Asked::Trailers => return Err(Status::internal("headers cannot be changed when trailers came")),
            _ => tagged(goes_on(asked, Some(write::change(&edits)))?, &edits).into(),
        };
        self.forwarded = Some(edits);
        Ok(answer)
    }
}

/// With what the token of these edits is called.
fn tagged(answer: ProcessingResponse, edits: &Edits) -> ProcessingResponse {
    ProcessingResponse { dynamic_metadata: edits.tag.map(tags::tagged), ..answer }
}

/// Lets a request or an answer go on, with a change or as it is.
fn goes_on(asked: Asked, change: Option<CommonResponse>) -> Result<ProcessingResponse, Status> {
    match asked {
        Asked::Headers { .. } => Ok(write::headers(change)),
        Asked::Body => Ok(write::body(change)),
        Asked::Trailers => Ok(write::trailers()),
        Asked::Answer => Ok(write::response_headers(change)),
        Asked::Nothing => Err(Status::internal("a request whose body did not come cannot go on")),
    }
}

/// The part of a body that is handed on. It is a copy, so that the rest does not stay with it.
fn came(body: &HttpBody) -> Body {
    let first = body.body.get(..MAX_BODY).unwrap_or(&body.body);
    Body::Came { bytes: Bytes::copy_from_slice(first), whole: body.end_of_stream && first.len() == body.body.len() }
}

#[cfg(test)]
mod tests;
