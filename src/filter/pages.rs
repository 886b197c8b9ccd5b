//! The pages that a person sees: no script, nothing from elsewhere, one style.

use std::sync::LazyLock;

use askama::Template;
use base64::{Engine, prelude::BASE64_STANDARD};
use sha2::{Digest, Sha256};

use super::reply::Reply;

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
    pub title: &'static str,
    pub message: &'static str,
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

/// The page that asks whether to connect.
#[derive(Template)]
#[template(path = "connect.html")]
pub struct Connect<'a> {
    /// The route's authority, and path where it has one.
    pub route: &'a str,
    pub upstream: &'a str,
    pub authorization_server: Option<&'a str>,
    /// Where the button leads: it says which authorization server was shown.
    pub action: &'a str,
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
