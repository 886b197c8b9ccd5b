//! The gRPC edge: Envoy's `ExternalProcessor` streams, each a conversation with one of our roles.

use std::{
    future::{Ready, ready},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use envoy_types::pb::envoy::service::ext_proc::v3::ProcessingRequest;
use futures_util::Stream;
use tonic::{Request, Response, Status, Streaming, server::StreamingService};

use super::{codec::Answer, conversation::Conversation, roles::Roles};
use crate::{
    filter::refusal_log::RefusalLog,
    model::user::UserSource,
    telemetry::metrics::{Metrics, RefusedStream},
};

/// What answers the calls of Envoy's ext_proc filters.
#[derive(Clone, Debug)]
pub struct ExtProc(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    roles: Roles,
    shared: Shared,
    config: Config,
}

/// What the streams of all roles need.
#[derive(Debug)]
pub struct Shared {
    pub metrics: Arc<Metrics>,
    pub refusals: Arc<RefusalLog>,
    /// Where the metadata of a request says who is there.
    pub users: Option<UserSource>,
}

/// What an operator says of the streams.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config {
    /// How many requests may be under way.
    pub max_streams: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { max_streams: 10_000 }
    }
}

impl ExtProc {
    pub fn new(roles: Roles, shared: Shared, config: Config) -> Self {
        Self(Arc::new(Parts { roles, shared, config }))
    }

    /// Refuses a stream before anything of its request is read. Envoy makes of it what `status_on_error` says; nothing
    /// of the request goes on to the upstream.
    fn open(&self, request: Request<Streaming<ProcessingRequest>>) -> Result<Answers, Status> {
        let Parts { roles, shared, config } = &*self.0;
        let refused = |reason, status| {
            shared.metrics.refused_stream(reason);
            shared.refusals.note_stream(reason);
            status
        };
        let (name, role) =
            roles.chosen(request.metadata()).map_err(|refusal| refused(refusal.reason(), refusal.status()))?;
        let open = OpenStream::new(shared, config.max_streams).ok_or_else(|| {
            let status = Status::resource_exhausted("as many requests are under way as --max-streams allows");
            refused(RefusedStream::TooMany, status)
        })?;
        Ok(Answers {
            parts: Arc::clone(&self.0),
            conversation: Conversation::new(role, name),
            messages: request.into_inner(),
            _open: open,
        })
    }
}

impl StreamingService<ProcessingRequest> for ExtProc {
    type Response = Answer;
    type ResponseStream = Answers;
    type Future = Ready<Result<Response<Answers>, Status>>;

    fn call(&mut self, request: Request<Streaming<ProcessingRequest>>) -> Self::Future {
        ready(self.open(request).map(Response::new))
    }
}

/// The answers of one stream, each made when it is polled for. There is no task and no channel of its own, since every
/// request pays for what this does.
pub struct Answers {
    parts: Arc<Parts>,
    conversation: Conversation,
    messages: Streaming<ProcessingRequest>,
    _open: OpenStream,
}

impl Stream for Answers {
    type Item = Result<Answer, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let shared = &this.parts.shared;
        loop {
            if let Poll::Ready(answer) = this.conversation.poll_answer(context) {
                return Poll::Ready(Some(answer));
            }
            if this.conversation.is_calling() {
                return Poll::Pending;
            }
            let message = match ready!(Pin::new(&mut this.messages).poll_next(context)) {
                Some(Ok(message)) => message,
                // A message that cannot be read must not end the stream well: Envoy would take that for consent, and
                // the request would go on. Where the stream was reset instead, nobody is left to be told.
                Some(Err(status)) => {
                    shared.metrics.broken_streams.inc();
                    return Poll::Ready(Some(Err(status)));
                }
                None => return Poll::Ready(None),
            };
            match this.conversation.take(message, shared.users.as_ref()) {
                Ok(Some(answer)) => return Poll::Ready(Some(Ok(answer))),
                Ok(None) => {}
                Err(status) => return Poll::Ready(Some(Err(status))),
            }
        }
    }
}

/// Counts a stream for as long as it lives.
#[derive(Debug)]
struct OpenStream(Arc<Metrics>);

impl OpenStream {
    /// None where there are too many.
    fn new(shared: &Shared, max_streams: usize) -> Option<Self> {
        let stream = Self(Arc::clone(&shared.metrics));
        let others = stream.0.streams.inc();
        let is_too_many = usize::try_from(others).is_ok_and(|others| others >= max_streams);
        (!is_too_many).then_some(stream)
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.streams.dec();
    }
}
