//! What becomes of a request: one list, from which come statuses, words, log lines and metrics.

use crate::model::paths::Part::{self, Callback, Disconnect, Document, Refused, Start, Traffic};

const EVERYWHERE: &[Part] = &[Document, Start, Callback, Disconnect, Traffic];
const FOR_PEOPLE: &[Part] = &[Start, Callback, Disconnect];
/// Where it takes a person.
const OF_USERS: &[Part] = &[Start, Callback, Disconnect, Traffic];
/// Where it takes a token.
const OF_TOKENS: &[Part] = &[Traffic, Refused];

/// What every 400 says: the same for each reason, which only the log has.
pub const NOT_CONNECTED: &str = "The connection was not made, and nothing was changed.";

/// What an MCP client reads where there is no token; behind it comes where to get one.
const NOT_YET: &str = "This MCP server wants you to connect first.";

/// A row of the list.
pub struct Row {
    /// Stable: in log lines, metrics and Envoy's access log.
    pub label: &'static str,
    pub status: u16,
    /// Where it can happen.
    pub parts: &'static [Part],
    /// What the caller is told of a refusal: nothing of the configuration, and nothing of what the request said.
    pub message: &'static str,
}

macro_rules! outcomes {
    ($($name:ident = $label:literal, $status:literal, $parts:expr, $message:expr;)*) => {
        /// What becomes of a request.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Outcome {
            $($name,)*
        }

        impl Outcome {
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// What the list says of it.
            pub const fn row(self) -> Row {
                match self {
                    $(Self::$name => Row {
                        label: $label,
                        status: $status,
                        parts: $parts,
                        message: $message,
                    },)*
                }
            }
        }
    };
}

outcomes! {
    Served = "served", 200, &[Document], "";
    NotModified = "not_modified", 304, &[Document], "";
    Preflight = "preflight", 204, &[Document], "";
    Shown = "shown", 200, &[Start], "";
    Begun = "begun", 303, &[Start], "";
    Completed = "completed", 303, &[Callback], "";
    Disconnected = "disconnected", 303, &[Disconnect], "";
    Told = "told", 200, &[Traffic], "";
    AskedToConnect = "asked_to_connect", 200, &[Traffic], "";
    StillWaits = "still_waits", 200, &[Traffic], "";
    TooManyHolds = "too_many_holds", 200, &[Traffic], "";
    SentToConnect = "sent_to_connect", 303, OF_TOKENS, "";

    HeadersTooLarge = "headers_too_large", 431, EVERYWHERE, "The headers of the request are too large.";
    MisconfiguredRoute = "misconfigured_route", 500, EVERYWHERE,
        "This route is misconfigured. Its operator finds the reason in the log.";
    HttpsRequired = "https_required", 403, EVERYWHERE, "This address is served over https only.";
    MisdirectedRequest = "misdirected_request", 421, EVERYWHERE, "This server does not serve that host and port.";
    MethodNotAllowed = "method_not_allowed", 405, EVERYWHERE, "This address does not take that method.";
    NotFound = "not_found", 404, &[Document], "There is nothing at this address.";

    UserUnknown = "user_unknown", 403, OF_USERS,
        "Nobody told this service who you are. Its operator has to put an authentication filter before this address, \
         and name the filter's metadata with --user-namespace, --user-issuer and --user-subject; or to say \
         --single-user where only one person can get here.";
    CrossSite = "cross_site", 403, &[Start, Disconnect],
        "Another page tried to start or end this sign-in. That has to be done on its own page.";
    Prefetch = "prefetch", 503, &[Callback], "This address is not for fetching ahead.";

    BadRequest = "bad_request", 400, FOR_PEOPLE, NOT_CONNECTED;
    Malformed = "malformed", 400, &[Callback], NOT_CONNECTED;
    UnknownKey = "unknown_key", 400, &[Callback], NOT_CONNECTED;
    BadMac = "bad_mac", 400, &[Callback], NOT_CONNECTED;
    Expired = "expired", 400, &[Callback], NOT_CONNECTED;
    WrongRoute = "wrong_route", 400, &[Callback], NOT_CONNECTED;
    WrongBrowser = "wrong_browser", 400, &[Callback], NOT_CONNECTED;
    WrongContext = "wrong_context", 400, &[Callback], NOT_CONNECTED;
    UnknownFlow = "unknown_flow", 400, &[Callback], NOT_CONNECTED;
    IssuerMismatch = "issuer_mismatch", 400, &[Callback], NOT_CONNECTED;
    AuthorizationError = "as_error", 400, &[Callback], NOT_CONNECTED;
    AlreadyUsed = "already_used", 409, &[Callback],
        "This sign-in ended before, and can be used only once. If it worked, go on; if it did not, start again.";
    ExchangeFailed = "exchange_failed", 502, &[Callback], "The authorization server did not give access.";

    AuthorizationServerUnusable = "authorization_server_unusable", 502, &[Start],
        "No authorization server was found that can be used. Send the operator the request id of this answer: with it, the \
         log says why, and what would help.";
    TooManyFlows = "too_many_flows", 503, FOR_PEOPLE, "Too many sign-ins are going on. Try again in a few minutes.";
    ChoreographerFailed = "choreographer_failed", 502, FOR_PEOPLE,
        "The service that signs in failed, and the sign-in may be lost.";
    ChoreographerUnavailable = "choreographer_unavailable", 503, FOR_PEOPLE,
        "The service that signs in cannot be reached, and nothing is lost: reload this page in a moment.";
    Timeout = "timeout", 504, FOR_PEOPLE, "The service that signs in took too long, and the sign-in may be lost.";

    ForbiddenOrigin = "forbidden_origin", 403, &[Traffic], "Pages of that origin may not send MCP requests here.";
    NoToken = "no_token", 405, &[Traffic], NOT_YET;
    NotARequest = "not_a_request", 403, &[Traffic], NOT_YET;
    CutBody = "cut_body", 502, &[Traffic], NOT_YET;
    BadBody = "bad_body", 400, &[Traffic], "The body is not one JSON-RPC message.";
    VersionMismatch = "version_mismatch", 400, &[Traffic],
        "The header mcp-protocol-version and the protocol version in `_meta` differ.";
    BadRequestState = "bad_request_state", 400, &[Traffic],
        "The call came with what does not belong to it, or came too late. Call again.";
    TooManyCalls = "too_many_calls", 503, OF_TOKENS, "Too many requests are waiting for a token. Try again in a moment.";
    TooManyBodies = "too_many_bodies", 503, &[Traffic], NOT_YET;
    TokenUnavailable = "token_unavailable", 502, OF_TOKENS,
        "It cannot be said at the moment whether you are connected. Try again in a moment.";

    TokenRenewed = "token_renewed", 502, &[Refused],
        "This MCP server did not take your access any more. It was renewed: try again.";
    RefusedAgain = "refused_again", 502, &[Refused],
        "This MCP server does not take your access, though it was renewed a short while ago. Try again in a few minutes.";
    TokenLost = "token_lost", 502, &[Refused], "This MCP server wants you to connect again.";
    MoreScope = "more_scope", 502, &[Refused],
        "This MCP server wants you to allow more than you did when you connected.";
    NoMoreScope = "no_more_scope", 502, &[Refused],
        "This MCP server wants you to allow more than can be asked for here.";
    UpstreamRefused = "upstream_refused", 502, &[Refused], "This MCP server refused the request.";
}

impl Outcome {
    /// The label of each outcome, with where it can happen.
    pub fn labels() -> impl Iterator<Item = (Part, &'static str)> {
        Self::ALL.iter().flat_map(|outcome| {
            let Row { label, parts, .. } = outcome.row();
            parts.iter().map(move |part| (*part, label))
        })
    }
}
