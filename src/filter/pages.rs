//! The pages that a person sees: no script, nothing from elsewhere, one style.

use std::sync::LazyLock;

use askama::Template;
use base64::{Engine, prelude::BASE64_STANDARD};
use sha2::{Digest, Sha256};

use super::reply::Reply;
use crate::model::brand::Brand;

const STYLE: &str = include_str!("../templates/style.css");

/// `form-action` is left out on purpose: Chromium applies it to the redirect that follows the form.
static PAGE_POLICY: LazyLock<String> = LazyLock::new(|| {
    let style = BASE64_STANDARD.encode(Sha256::digest(STYLE));
    format!("default-src 'none'; style-src 'sha256-{style}'; frame-ancestors 'none'")
});
const POLICY: &str = "default-src 'none'; frame-ancestors 'none'";

/// A message, and the ways on.
#[derive(Template)]
#[template(path = "message.html")]
pub struct Page<'a> {
    pub brand: &'a Brand,
    pub title: &'static str,
    pub message: &'static str,
    /// What to do next.
    pub next: &'static str,
    pub links: Vec<Link<'a>>,
    /// Empty where the request has no name.
    pub request_id: &'a str,
}

/// A way on.
#[derive(Debug)]
pub struct Link<'a> {
    pub text: &'static str,
    /// A path on the route's origin.
    pub href: &'a str,
}

/// How a route stands for a person, and what they can do about it. All texts are as they are to be seen.
#[derive(Template)]
#[template(path = "status.html")]
pub struct Status<'a> {
    pub brand: &'a Brand,
    /// The route's client name.
    pub name: &'a str,
    /// Of the upstream.
    pub host: &'a str,
    pub upstream: &'a str,
    pub person: &'a Person,
    pub standing: Standing,
    /// Of the authorization server that the person would be sent to; none while it is not known.
    pub authorization_server: Option<String>,
    /// None while it is not known.
    pub asked: Option<Vec<Asked>>,
    /// How many more scopes there are than are named.
    pub more_asked: usize,
    /// Where the button leads: it says which authorization server was shown.
    pub connect: &'a str,
    pub disconnect: &'a str,
    /// Where the person came from, where that is said.
    pub back: Option<&'a str>,
}

/// Whose connection it is.
#[derive(Debug, PartialEq)]
pub enum Person {
    /// As the trusted metadata call them.
    Named(String),
    /// Somebody who is known, and whose name is not.
    Unnamed,
    /// Whoever can open the page.
    Everybody,
}

/// How the connection stands.
#[derive(Debug, PartialEq)]
pub enum Standing {
    /// Nobody can say at the moment.
    Unknown,
    Never,
    Lost,
    Connected {
        /// None where it is not known.
        since: Option<String>,
        /// Empty where the authorization server does not say.
        scopes: Vec<String>,
        more_scopes: usize,
        issuer: String,
    },
}

/// A scope that will be asked for.
#[derive(Debug, PartialEq)]
pub struct Asked {
    pub scope: String,
    /// Whether it goes beyond what the person has.
    pub is_new: bool,
}

impl Status<'_> {
    fn is_connected(&self) -> bool {
        matches!(self.standing, Standing::Connected { .. })
    }

    /// Whether connecting again asks for more than there is.
    fn asks_more(&self) -> bool {
        self.asked.iter().flatten().any(|asked| asked.is_new)
    }
}

/// Renders a page into a reply.
pub fn page(reply: Reply, page: &impl Template) -> Reply {
    // Rendering into a text does not fail; an empty page is still an answer with the right status.
    let body = page.render().unwrap_or_default();
    reply
        .header("content-type", "text/html; charset=utf-8")
        .header("content-security-policy", PAGE_POLICY.as_str())
        .body(body)
}

/// What every answer but the document's carries: it is not kept, not framed, and tells nobody its address.
pub fn guarded(reply: Reply) -> Reply {
    let has = |name| reply.headers.iter().any(|(header, _)| *header == name);
    let (policy, referrer) = (has("content-security-policy"), has("referrer-policy"));
    let mut reply = unkept(reply);
    if !policy {
        reply = reply.header("content-security-policy", POLICY);
    }
    if !referrer {
        reply = reply.header("referrer-policy", "no-referrer");
    }
    reply
}

/// What every answer of a refusal carries: nobody keeps it, nor takes it for anything else.
pub fn unkept(reply: Reply) -> Reply {
    reply.header("cache-control", "no-store").header("x-content-type-options", "nosniff")
}
