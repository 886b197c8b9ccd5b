//! What becomes of an MCP request when it is known whether there is a token: where there is none, its person is told.
//!
//! How they are told depends on what their client can show. One that opens addresses is asked to, and brings the call
//! again with what we gave it (`requestState`) and with what its person said. That call is held until there is a token,
//! and then goes on without what we added.

use std::{
    borrow::Cow,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio::time::timeout;

use super::{
    bearer::Bearer,
    browser,
    json_rpc::{
        answers::{self, Ask, Code},
        digest::Digest,
        message::{Answered, Fault, Id, Kind, MAX_READ, Message, is_new},
    },
    mcp_routes::McpRoute,
    outcome::Outcome,
    pages,
    refusal::{
        Refusal,
        answer::{Audience, Reader, told},
    },
    refusal_log::RefusalLog,
    reply::Reply,
    request::{Header, Request},
    request_state::{Call, LIFETIME, PREFIX, RequestState},
    state::StateKeys,
    token_cache::Cached,
    verdict::{AwaitedBody, Body, Verdict},
    waits::Waits,
};
use crate::{
    contract::tokens::{Missing, TokenError, TokenOwner, UpstreamTokens},
    model::{
        clock::{Clock, UnixTime},
        paths::Part,
        shares::Share,
        trace::Trace,
    },
    telemetry::metrics::Metrics,
};

/// How long a body is waited for.
const BODY: Duration = Duration::from_secs(5);
/// The same where there is a token, and only somebody who may bring a call again is looked for: a slow upload is theirs
/// to make, and takes nothing from others but its stream.
const UPLOAD: Duration = Duration::from_secs(60);
/// How long a call is held at most, with what it takes to hand the token out: a second less than Envoy is asked for.
const HELD: Duration = Duration::from_secs(23);
/// How long it may take to note that a call may come again.
const NOTED: Duration = Duration::from_secs(5);

/// What all requests need.
pub(super) struct Desk {
    pub metrics: Arc<Metrics>,
    pub refusals: Arc<RefusalLog>,
    pub tokens: Arc<Cached>,
    pub waits: Waits,
    pub state_keys: Arc<ArcSwap<StateKeys>>,
    pub clock: Clock,
}

impl Desk {
    pub fn forward(&self, bearer: &Bearer) -> Verdict {
        self.metrics.handed_out.inc();
        Verdict::Forward(Arc::clone(&bearer.edits))
    }

    fn answer(&self, reply: Reply, began: Instant) -> Reply {
        self.metrics.answered(Part::Traffic, reply.label);
        self.metrics.answered_since(Part::Traffic, began);
        reply
    }

    pub fn refuse(
        &self,
        refusal: &Refusal,
        route: &str,
        request_id: Option<&str>,
        link: Option<&str>,
        id: Option<&Id>,
        began: Instant,
    ) -> Reply {
        self.refusals.note(refusal, route, request_id);
        let audience = Audience {
            reader: Reader::McpClient(id.cloned()),
            request_id: request_id.map(Cow::from),
            start: link.map(Cow::from),
        };
        self.answer(refusal.reply(&audience), began)
    }
}

/// What is still needed of a request when it is known whether there is a token.
pub(super) struct Asked {
    /// When its headers came.
    pub began: Instant,
    pub route: Arc<McpRoute>,
    pub owner: TokenOwner,
    pub request_id: Option<String>,
    /// The revision of the protocol, as the headers name it.
    pub version: Option<Vec<u8>>,
    pub way: Way,
    /// Whether its client takes server-sent events, and no JSON.
    pub takes_events: bool,
    pub trace: Trace,
    pub desk: Arc<Desk>,
}

/// What kind of request it is.
pub(super) enum Way {
    /// A person's browser: without a token it goes to the connect page.
    Opened,
    /// It is to open a stream, or end a session.
    NoMessage,
    Message {
        /// Nothing follows the headers.
        ends: bool,
        /// Its body is longer than what is read of one.
        is_long: bool,
    },
}

impl Way {
    pub fn of(request: &Request<'_>, ends: bool) -> Self {
        match request.method() {
            "POST" => {
                let is_long = request.content_length().is_some_and(|length| length > MAX_READ as u64);
                Self::Message { ends, is_long }
            }
            _ if browser::is_opened(request) => Self::Opened,
            _ => Self::NoMessage,
        }
    }
}

/// A request of the client's, and how it is answered.
struct Caller {
    id: Id,
    is_tool: bool,
    /// The revision of the protocol that it speaks.
    version: Option<String>,
}

/// A call that comes again.
struct Round {
    caller: Caller,
    digest: Digest,
    /// For how long its person is waited for.
    expires_at: UnixTime,
}

impl Asked {
    pub fn verdict(self, found: Result<Arc<Bearer>, TokenError>) -> Verdict {
        match found {
            Ok(bearer) => self.with_token(bearer),
            Err(TokenError::Unavailable(cause)) => Verdict::Reply(self.refuse(&Refusal::TokenUnavailable(cause))),
            Err(TokenError::NotFound(missing)) => self.without_token(missing),
        }
    }

    /// Lets a request go on with its token. Where its owner may bring a call again, that takes the body: members of
    /// ours may be in it, which are not the upstream's.
    ///
    /// What we ask is asked of calls that are read whole, with room for what comes with them the next time. So a body
    /// that is longer than what is read of one has nothing of ours, or is not what we asked about. Where its headers
    /// say that it is so long, it is not even looked at, and an upload goes on as ever; where they do not, it goes on
    /// when the first part of it has no state of ours. A state that somebody puts behind that reaches the upstream: it
    /// is sealed, and good for nothing there. The same goes for the seconds in which another replica still has a token
    /// that it kept before its owner was asked.
    pub fn with_token(self, bearer: Arc<Bearer>) -> Verdict {
        let Way::Message { ends: false, is_long: false } = self.way else { return self.desk.forward(&bearer) };
        if !bearer.comes_again() {
            return self.desk.forward(&bearer);
        }
        match self.desk.waits.for_token(&self.owner.user) {
            Ok(place) => Verdict::Body(AwaitedBody {
                longest: UPLOAD,
                then: Box::new(move |body| {
                    drop(place);
                    self.again(&bearer, &body)
                }),
            }),
            Err(refusal) => Verdict::Reply(self.refuse(&refusal)),
        }
    }

    /// Lets a request go on whose owner has a token, without what is ours in it.
    fn again(&self, bearer: &Bearer, body: &Body) -> Verdict {
        let refused = |refusal: &Refusal, id| Verdict::Reply(self.refuse_request(refusal, id));
        let (bytes, whole) = match body {
            Body::Late => return refused(&Refusal::BadBody(Fault::Late), None),
            // No message of MCP is empty. Trailers may have come in its place, and then the headers cannot be changed.
            Body::Came { bytes, whole: true } if bytes.is_empty() => {
                return refused(&Refusal::BadBody(Fault::Empty), None);
            }
            Body::Came { bytes, whole } => (bytes, *whole),
        };
        let message = match Message::read(bytes, whole) {
            Ok(message) => message,
            // It is the upstream's to say what is wrong with it, but for what could hide a state.
            Err(fault) if may_have_state(bytes) => return refused(&Refusal::BadBody(fault), None),
            Err(_) => return self.desk.forward(bearer),
        };
        let Some(state) = message.state() else { return self.desk.forward(bearer) };
        let caller = match message.kind() {
            Kind::Request { id, method } => Some(self.caller(&message, id, method)),
            Kind::NotARequest | Kind::Unknown => None,
        };
        match (self.opened(state, &message), message.connect(), caller) {
            (Err(refusal), _, caller) => refused(&refusal, caller.as_ref().map(|caller| &caller.id)),
            // Whoever says no is not overruled by having connected elsewhere.
            (Ok(_), Some(Answered::Refused), Some(caller)) => Verdict::Reply(self.told(&caller, Outcome::Told)),
            (Ok(_), ..) => self.forward_without_ours(bearer, message.without_ours()),
        }
    }

    fn forward_without_ours(&self, bearer: &Bearer, body: Bytes) -> Verdict {
        self.desk.metrics.handed_out.inc();
        Verdict::Forward(bearer.edits_with(body))
    }

    fn without_token(self, missing: Missing) -> Verdict {
        match self.way {
            Way::Opened => {
                let reply = Reply::new(Outcome::SentToConnect).header("location", self.route.link.clone());
                Verdict::Reply(self.desk.answer(pages::guarded(reply).named(self.request_id.as_deref()), self.began))
            }
            Way::NoMessage => Verdict::Reply(self.refuse(&Refusal::NoToken)),
            Way::Message { ends: true, .. } => Verdict::Reply(self.refuse(&Refusal::BadBody(Fault::Empty))),
            Way::Message { ends: false, .. } => match self.desk.waits.for_body(&self.owner.user) {
                Ok(place) => Verdict::Body(AwaitedBody {
                    longest: BODY,
                    then: Box::new(move |body| self.tell(&body, missing, place)),
                }),
                Err(refusal) => Verdict::Reply(self.refuse(&refusal)),
            },
        }
    }

    /// Answers a message in the upstream's place, or holds it. `place` is that of its body.
    fn tell(self, body: &Body, missing: Missing, place: Share) -> Verdict {
        let read = match body {
            Body::Late => Err(Fault::Late),
            Body::Came { bytes, whole } => Message::read(bytes, *whole),
        };
        let message = match read {
            Ok(message) => message,
            Err(fault) => return Verdict::Reply(self.refuse(&Refusal::BadBody(fault))),
        };
        let versions = (self.version.as_deref(), message.version.as_deref());
        let differ = matches!(versions, (Some(header), Some(body)) if header != body.as_bytes());
        let refusal = match message.kind() {
            Kind::Request { id, .. } if differ => {
                return Verdict::Reply(self.refuse_request(&Refusal::VersionMismatch, Some(id)));
            }
            _ if differ => Refusal::VersionMismatch,
            Kind::Unknown => Refusal::CutBody,
            Kind::NotARequest => Refusal::NotARequest,
            Kind::Request { id, method } => {
                let caller = self.caller(&message, id, method);
                return self.tell_caller(&message, caller, missing, place);
            }
        };
        Verdict::Reply(self.refuse(&refusal))
    }

    /// Answers a request: with a question where its client can show one, with the link as text where it cannot; or
    /// holds it.
    fn tell_caller(self, message: &Message<'_>, caller: Caller, missing: Missing, place: Share) -> Verdict {
        let (state, asks) = match message.state() {
            Some(state) => {
                let state = match self.opened(state, message) {
                    Ok(state) => state,
                    Err(refusal) => return Verdict::Reply(self.refuse_request(&refusal, Some(&caller.id))),
                };
                match (message.connect(), state.is_accepted) {
                    // Whoever disconnected is told as whoever never connected.
                    _ if missing == Missing::Never => return Verdict::Reply(self.told(&caller, Outcome::Told)),
                    (Some(Answered::Refused), _) => return Verdict::Reply(self.told(&caller, Outcome::Told)),
                    (Some(Answered::Accepted), _) | (None, true) => (Some(state), false),
                    // What was asked is not answered: it is asked again, and for no longer than before.
                    (Some(Answered::Unclear) | None, _) => (Some(state), true),
                }
            }
            None => (None, true),
        };
        let can_be_asked = missing == Missing::Lost
            && caller.version.as_deref().is_some_and(is_new)
            && message.opens_urls
            && (state.is_some() || message.may_be_asked());
        let Some(digest) = message.digest().filter(|_| can_be_asked || !asks) else {
            return Verdict::Reply(self.told(&caller, Outcome::Told));
        };
        let expires_at = state.map_or_else(|| (self.desk.clock)() + LIFETIME, |state| state.expires_at);
        let round = Round { caller, digest, expires_at };
        if asks {
            return self.ask(round, state.is_none(), place);
        }
        drop(place);
        self.hold(round, message.without_ours())
    }

    /// Has the client ask its person to connect. The first time, it is noted that the call may come again; only then
    /// may it.
    fn ask(self, round: Round, is_first: bool, place: Share) -> Verdict {
        Verdict::Later(Box::pin(async move {
            let _place = place;
            let noted = || timeout(NOTED, self.desk.tokens.expect_again(self.owner.clone(), &self.trace));
            let state = match !is_first || matches!(noted().await, Ok(Ok(()))) {
                true => self.state(&round, false),
                false => None,
            };
            Verdict::Reply(match state {
                Some(state) => {
                    let ask = Ask { url: &self.route.link, message: ASKED };
                    let body = answers::input_required(&round.caller.id, Some(ask), &state);
                    self.answered(Outcome::AskedToConnect, body)
                }
                None => self.told(&round.caller, Outcome::Told),
            })
        }))
    }

    /// Holds a call until there is a token. Whoever leaves drops what waits, and with it its place.
    fn hold(self, round: Round, body: Bytes) -> Verdict {
        let place = match self.desk.waits.for_hold(&self.owner.user) {
            Ok(place) => place,
            Err(refusal) => {
                self.desk.refusals.note(&refusal, &self.route.route.id, self.request_id.as_deref());
                return Verdict::Reply(self.told(&round.caller, refusal.outcome()));
            }
        };
        Verdict::Later(Box::pin(async move {
            let _place = place;
            let caller = &round.caller;
            let awaited = self.desk.tokens.awaited(&self.owner, &self.trace);
            Verdict::Reply(match timeout(HELD, awaited).await {
                Ok(Ok(bearer)) => return self.forward_without_ours(&bearer, body),
                // Disconnected meanwhile.
                Ok(Err(TokenError::NotFound(Missing::Never))) => self.told(caller, Outcome::Told),
                Ok(Err(TokenError::Unavailable(cause))) => {
                    self.refuse_request(&Refusal::TokenUnavailable(cause), Some(&caller.id))
                }
                Ok(Err(TokenError::NotFound(Missing::Lost))) | Err(_) => match self.state(&round, true) {
                    Some(state) => {
                        self.answered(Outcome::StillWaits, answers::input_required(&caller.id, None, &state))
                    }
                    None => self.told(caller, Outcome::Told),
                },
            })
        }))
    }

    /// What the call is to come again with; none where nothing can be sealed.
    fn state(&self, round: &Round, is_accepted: bool) -> Option<String> {
        let TokenOwner { user, client_id, .. } = &self.owner;
        let state = RequestState { expires_at: round.expires_at, is_accepted };
        let call = Call { user, client_id, digest: round.digest };
        self.desk.state_keys.load().request_states.seal(state, &call)
    }

    /// Who is to be answered, of a request.
    fn caller(&self, message: &Message<'_>, id: &Id, method: Option<&str>) -> Caller {
        let header = || self.version.as_deref().and_then(|version| std::str::from_utf8(version).ok());
        let version = message.version.as_deref().or_else(header).map(str::to_owned);
        Caller { id: id.clone(), is_tool: method == Some("tools/call"), version }
    }

    /// What a state of ours says, where it is this user's, for this route and this call.
    fn opened(&self, state: &str, message: &Message<'_>) -> Result<RequestState, Refusal> {
        let TokenOwner { user, client_id, .. } = &self.owner;
        let keys = self.desk.state_keys.load();
        let opened = keys.request_states.open(state, user, client_id, message.digest(), (self.desk.clock)());
        opened.map_err(Refusal::BadRequestState)
    }

    /// Answers a request with the link, as text.
    fn told(&self, caller: &Caller, outcome: Outcome) -> Reply {
        let link = &self.route.link;
        let body = if caller.is_tool {
            answers::tool_error(&caller.id, &told_to_a_model(link), caller.version.as_deref())
        } else {
            answers::error(Some(&caller.id), Code::Connect, &told(link))
        };
        self.answered(outcome, body)
    }

    fn answered(&self, outcome: Outcome, body: Bytes) -> Reply {
        let (content_type, body) = match self.takes_events {
            true => ("text/event-stream", answers::event(&body)),
            false => ("application/json", body),
        };
        let reply = Reply::new(outcome).header("content-type", content_type).body(body);
        self.desk.answer(pages::unkept(reply).named(self.request_id.as_deref()), self.began)
    }

    pub fn refuse(&self, refusal: &Refusal) -> Reply {
        self.refuse_request(refusal, None)
    }

    fn refuse_request(&self, refusal: &Refusal, id: Option<&Id>) -> Reply {
        let McpRoute { route, link, .. } = &*self.route;
        self.desk.refuse(refusal, &route.id, self.request_id.as_deref(), Some(link), id, self.began)
    }
}

/// Whether a client takes server-sent events alone. MCP has it take both (Streamable HTTP, Sending Messages).
pub(super) fn takes_events_alone(request: &Request<'_>) -> bool {
    let names = |wanted: &[&str]| {
        let accepted = request.values(Header::Accept).filter_map(|value| std::str::from_utf8(value).ok());
        let types = accepted.flat_map(|value| value.split(',')).filter_map(|range| range.split(';').next());
        types.map(str::trim).any(|range| wanted.iter().any(|wanted| range.eq_ignore_ascii_case(wanted)))
    };
    names(&["text/event-stream"]) && !names(&["application/json", "application/*", "*/*"])
}

/// Whether a text in what cannot be read begins as our states do.
fn may_have_state(bytes: &[u8]) -> bool {
    let (before, prefix) = (b'"', PREFIX.as_bytes());
    bytes.windows(prefix.len() + 1).any(|part| part.split_first() == Some((&before, prefix)))
}

/// What a person reads who is asked to open the link.
const ASKED: &str = "This MCP server wants you to connect again. Open this page in your browser; what you called goes \
                     on after that.";

/// Where to get a token, for a model that called a tool.
fn told_to_a_model(link: &str) -> String {
    format!(
        "This MCP server wants its user to connect first. Ask them to open {link} in their browser, and call the tool \
         again after that."
    )
}
