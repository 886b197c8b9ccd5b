//! The document as routes that Envoy answers by itself: the filter's own replies, each under the condition that the
//! filter would give it on.

use std::borrow::Cow;

use serde_json::{Value, json};

use super::yaml::quoted;
use crate::{
    commands::settings::shared::DocumentArgs,
    filter::{
        document::{self, Document},
        refusal::{
            Refusal,
            answer::{Audience, Reader},
        },
        reply::Reply,
    },
    model::{
        paths::{Endpoint, Paths},
        route::{Route, RouteError},
    },
};

/// What Envoy is told of one document, each text quoted for YAML.
pub struct StaticDocument {
    pub path: String,
    /// In the order in which `endpoint` checks: Envoy takes the first whose conditions hold.
    pub answers: Vec<Answer>,
}

/// One Envoy route.
pub struct Answer {
    /// Envoy's header matchers; all must hold.
    pub conditions: String,
    pub status: u16,
    pub body: Option<String>,
    pub headers: Vec<(&'static str, String)>,
}

impl StaticDocument {
    /// # Errors
    /// As [`Document::new`].
    pub fn new(route: &Route, paths: &Paths, settings: &DocumentArgs) -> Result<Self, RouteError> {
        let document = Document::new(route, paths, &settings.client_name)?;
        let cache_control = document::cache_control(settings.document_max_age);
        let origin = route.from.origin();
        let authority = format!("(?i){}(:{})?", literally(origin.host()), origin.port());
        let methods = document::METHODS.replace(", ", "|");
        let tag = literally(&text(&document.etag));
        // As `document` reads it, with several header lines joined by commas.
        let has_tag = format!(r"(.*,)?[ \t]*(\*|(W/)?{tag})[ \t]*(,.*)?");
        let answers = vec![
            Answer::new(Some(unless("x-forwarded-proto", "https")), refused(&Refusal::HttpsRequired)),
            Answer::new(Some(unless(":authority", &authority)), refused(&Refusal::MisdirectedRequest)),
            Answer::new(
                Some(unless(":method", &methods)),
                refused(&Refusal::MethodNotAllowed { allow: document::METHODS }),
            ),
            Answer::new(Some(json!({"name": ":path", "string_match": {"contains": "?"}})), refused(&Refusal::NotFound)),
            Answer::new(Some(when(":method", "OPTIONS")), document::preflight()),
            Answer::new(Some(when("if-none-match", &has_tag)), document.not_modified(&cache_control)),
            Answer::new(None, document.served(&cache_control)),
        ];
        Ok(Self { path: quoted(&paths.on(&route.from, Endpoint::Document)), answers })
    }
}

impl Answer {
    fn new(condition: Option<Value>, reply: Reply) -> Self {
        Self {
            conditions: quoted(&Vec::from_iter(condition)),
            status: reply.status,
            body: (!reply.body.is_empty()).then(|| quoted(&text(&reply.body))),
            headers: reply.headers.iter().map(|(name, value)| (*name, quoted(&text(value)))).collect(),
        }
    }
}

/// Replies are made of texts.
fn text(bytes: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

/// Envoy fills in its name for the request. (No other header of ours has a `%`.)
fn refused(refusal: &Refusal) -> Reply {
    refusal.reply(&Audience { reader: Reader::Program, request_id: Some("%REQ(X-REQUEST-ID)%".into()), start: None })
}

fn when(header: &str, regex: &str) -> Value {
    json!({"name": header, "string_match": {"safe_regex": {"regex": regex}}})
}

/// A header that is missing counts as an empty one, since Envoy would otherwise not look at the condition.
fn unless(header: &str, regex: &str) -> Value {
    json!({
        "name": header,
        "string_match": {"safe_regex": {"regex": regex}},
        "invert_match": true,
        "treat_missing_header_as_empty": true
    })
}

/// A regular expression of this text.
pub fn literally(text: &str) -> String {
    text.chars().flat_map(|char| (!char.is_alphanumeric()).then_some('\\').into_iter().chain([char])).collect()
}
