//! The answer to who is refused, in the form of who reads it.

use std::{
    borrow::Cow,
    sync::{Arc, LazyLock},
};

use bytes::Bytes;
use serde::Serialize;

use super::Refusal;
use crate::{
    filter::{
        json_rpc::{
            answers::{self, Code},
            message::Id,
        },
        next_step::next_step,
        outcome::{NOT_CONNECTED, Outcome},
        pages::{self, Link, Page},
        reply::Reply,
    },
    model::brand::Brand,
};

/// Who is answered: what it takes to write the answer in their form.
#[derive(Clone, Debug)]
pub struct Audience<'a> {
    pub reader: Reader,
    /// Envoy's name for the request, so that the person can report it.
    pub request_id: Option<Cow<'a, str>>,
    /// Where the route's connect page is, to start again; none at the document.
    pub start: Option<Cow<'a, str>>,
}

/// Who reads an answer.
#[derive(Clone, Debug)]
pub enum Reader {
    /// A person in a browser, who gets a page with this on it.
    Person(Arc<Brand>),
    /// A program, which gets JSON.
    Program,
    /// An MCP client, which gets a JSON-RPC error; with the id of its request where there is one to answer.
    McpClient(Option<Id>),
}

impl Audience<'_> {
    /// For an answer that is made when the request is gone.
    pub fn into_owned(self) -> Audience<'static> {
        let owned = |text: Option<Cow<'_, str>>| text.map(|text| Cow::Owned(text.into_owned()));
        Audience { reader: self.reader, request_id: owned(self.request_id), start: owned(self.start) }
    }
}

impl Refusal {
    /// The answer, in the form of who reads it.
    pub fn reply(&self, audience: &Audience<'_>) -> Reply {
        let request_id = audience.request_id.as_deref();
        let reply = Reply::new(self.outcome());
        let guard = if audience.start.is_some() { pages::guarded } else { pages::unkept };
        let mut reply = match &audience.reader {
            Reader::Person(brand) => {
                let page = Page {
                    brand,
                    title: self.title(),
                    message: self.message(),
                    next: next_step(self.outcome()),
                    links: self.links(audience),
                    request_id: request_id.unwrap_or_default(),
                };
                guard(pages::page(reply, &page))
            }
            Reader::Program => {
                let body = match self.status() {
                    400 => NOT_CONNECTED_JSON.clone(),
                    _ => json(&Body { error: self.code(), message: self.message() }),
                };
                guard(reply.header("content-type", "application/json").body(body))
            }
            Reader::McpClient(id) => {
                let (code, link) = (self.rpc_code(), audience.start.as_deref());
                let message = match link.filter(|_| code == Code::Connect) {
                    Some(link) => Cow::Owned(with_link(self.message(), link)),
                    None => self.message().into(),
                };
                let body = answers::error(id.as_ref(), code, &message);
                pages::unkept(reply.header("content-type", "application/json").body(body))
            }
        };
        match self {
            Self::MethodNotAllowed { allow } => reply = reply.header("allow", *allow),
            // What else the upstream takes, it may take from who has a token.
            Self::NoToken => reply = reply.header("allow", "POST"),
            _ => {}
        }
        reply.named(request_id)
    }

    fn message(&self) -> &'static str {
        self.outcome().row().message
    }

    /// The ways on, the likeliest first.
    fn links<'a>(&'a self, audience: &'a Audience<'_>) -> Vec<Link<'a>> {
        let mut links = Vec::new();
        if let Self::AlreadyUsed { return_to } = self {
            links.push(Link { text: "Go on", href: return_to });
        }
        let text = match self {
            // That may have been because their sign-in was over.
            Self::UserUnknown(_) => Some("Try again"),
            Self::CrossSite | Self::MethodNotAllowed { .. } => Some("Start again"),
            _ => matches!(self.status(), 400 | 409 | 502 | 503 | 504).then_some("Start again"),
        };
        if let Some((text, href)) = text.zip(audience.start.as_deref()) {
            links.push(Link { text, href });
        }
        links
    }

    fn title(&self) -> &'static str {
        match self.status() {
            409 => "Already used",
            500 | 502..=504 => "Something went wrong",
            _ => "Not connected",
        }
    }

    /// The code of the error that an MCP client gets.
    fn rpc_code(&self) -> Code {
        match self {
            Self::NoToken
            | Self::NotARequest
            | Self::CutBody
            | Self::TooManyBodies(_)
            | Self::TokenLost
            | Self::MoreScope => Code::Connect,
            Self::BadBody(fault) => (*fault).into(),
            Self::VersionMismatch => Code::HeaderMismatch,
            Self::BadRequestState(_) => Code::InvalidParams,
            _ => Code::Refused,
        }
    }
}

#[derive(Serialize)]
struct Body {
    error: &'static str,
    message: &'static str,
}

/// What every 400 says to a program, made once: floods of forged callbacks get it.
static NOT_CONNECTED_JSON: LazyLock<Bytes> =
    LazyLock::new(|| json(&Body { error: "bad_request", message: NOT_CONNECTED }));

fn json(body: &Body) -> Bytes {
    // A struct of texts always serializes.
    serde_json::to_vec(body).unwrap_or_default().into()
}

/// Where to get a token, for a person to whom an MCP client shows it.
pub fn told(link: &str) -> String {
    with_link(Outcome::NoToken.row().message, link)
}

fn with_link(message: &str, link: &str) -> String {
    format!("{message} Open {link} in your browser, and try again after that.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        contract::error::Cause,
        filter::{json_rpc::message::Fault, state::StateError},
    };

    const CAUSE: Cause = Cause::Borrowed("a cause");

    /// Whatever the reason, the answer is the same to the byte.
    #[test]
    fn all_400_are_alike() {
        let refusals = [
            Refusal::BadRequest("a reason"),
            Refusal::State(StateError::BadMac),
            Refusal::State(StateError::Expired { ago: 1 }),
            Refusal::WrongContext,
            Refusal::UnknownFlow,
            Refusal::IssuerMismatch(CAUSE),
            Refusal::AuthorizationError("access_denied".into()),
        ];
        for reader in [Reader::Person(Arc::default()), Reader::Program] {
            let audience = Audience { reader, request_id: Some("id".into()), start: Some("/start".into()) };
            let replies = refusals.each_ref().map(|refusal| {
                let reply = refusal.reply(&audience);
                (reply.status, reply.headers, reply.body)
            });
            assert!(replies.windows(2).all(|pair| pair.first() == pair.last()), "{replies:?}");
        }
    }

    /// An MCP client gets one form for all: a JSON-RPC error, whose id is null where no request is answered.
    #[test]
    fn an_mcp_client_gets_a_json_rpc_error() {
        let link = "https://a.example/.pomerium/oauth/start";
        let told = |text: &str| format!("{text} Open {link} in your browser, and try again after that.");
        let first = "This MCP server wants you to connect first.";
        for (refusal, status, code, message) in [
            (Refusal::MisdirectedRequest, 421, -31001, "This server does not serve that host and port.".to_owned()),
            (
                Refusal::TokenUnavailable(CAUSE),
                502,
                -31001,
                "It cannot be said at the moment whether you are connected. Try again in a moment.".to_owned(),
            ),
            (Refusal::NoToken, 405, -31000, told(first)),
            (Refusal::NotARequest, 403, -31000, told(first)),
            (Refusal::CutBody, 502, -31000, told(first)),
            (Refusal::TokenLost, 502, -31000, told("This MCP server wants you to connect again.")),
            (
                Refusal::MoreScope,
                502,
                -31000,
                told("This MCP server wants you to allow more than you did when you connected."),
            ),
            (
                Refusal::TokenRenewed,
                502,
                -31001,
                "This MCP server did not take your access any more. It was renewed: try again.".to_owned(),
            ),
            (
                Refusal::NoMoreScope,
                502,
                -31001,
                "This MCP server wants you to allow more than can be asked for here.".to_owned(),
            ),
            (Refusal::UpstreamRefused(CAUSE), 502, -31001, "This MCP server refused the request.".to_owned()),
            (Refusal::BadBody(Fault::NotJson), 400, -32700, "The body is not one JSON-RPC message.".to_owned()),
            (Refusal::BadBody(Fault::Batch), 400, -32600, "The body is not one JSON-RPC message.".to_owned()),
            (
                Refusal::VersionMismatch,
                400,
                -32020,
                "The header mcp-protocol-version and the protocol version in `_meta` differ.".to_owned(),
            ),
        ] {
            let audience = Audience {
                reader: Reader::McpClient(None),
                request_id: Some("the-request".into()),
                start: Some(link.into()),
            };
            let reply = refusal.reply(&audience);
            let body: serde_json::Value = serde_json::from_slice(&reply.body).expect("JSON");
            let error = serde_json::json!({ "code": code, "message": message });
            assert_eq!(body, serde_json::json!({ "jsonrpc": "2.0", "id": null, "error": error }));
            assert_eq!((reply.status, reply.label), (status, refusal.code()));
            let header = |name| reply.headers.iter().find(|(other, _)| *other == name).map(|(_, value)| &value[..]);
            assert_eq!(header("content-type"), Some(&b"application/json"[..]));
            assert_eq!(header("cache-control"), Some(&b"no-store"[..]));
            assert_eq!(header("x-request-id"), Some(&b"the-request"[..]));
            assert_eq!(header("allow"), (refusal == Refusal::NoToken).then_some(&b"POST"[..]));
        }
    }
}
