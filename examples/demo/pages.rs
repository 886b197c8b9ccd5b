//! The pages of the demo's own servers: no script, nothing from elsewhere, and another look than envoy-cimd's, since
//! they are another party's.

use std::sync::LazyLock;

use askama::Template;
use axum::{
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use sha2::{Digest, Sha256};

const STYLE: &str = include_str!("pages/style.css");

/// Without `form-action`, which Chromium would apply to the redirect that follows the form.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    // The templates include it without its last newline.
    let style = BASE64_STANDARD.encode(Sha256::digest(STYLE.trim_end()));
    format!("default-src 'none'; style-src 'sha256-{style}'; base-uri 'none'; frame-ancestors 'none'")
});

/// Whether a client may use an MCP server.
#[derive(Template)]
#[template(path = "consent.html", config = "examples/demo/pages/askama.toml")]
pub struct Consent<'a> {
    pub host: &'a str,
    pub server: &'a str,
    pub client_name: &'a str,
    pub client_id: &'a str,
    pub redirect_host: &'a str,
    pub resource: &'a str,
    /// What the form sends along.
    pub request: &'a str,
}

/// Who somebody is.
#[derive(Template)]
#[template(path = "sign_in.html", config = "examples/demo/pages/askama.toml")]
pub struct SignIn<'a> {
    pub host: &'a str,
    pub client_name: &'a str,
    /// What the client asks to use.
    pub resource: Option<&'a str>,
    /// What the form sends along.
    pub request: &'a str,
}

/// What such a server has to say otherwise.
#[derive(Template)]
#[template(path = "message.html", config = "examples/demo/pages/askama.toml")]
pub struct Message<'a> {
    pub host: &'a str,
    pub title: &'a str,
    pub message: &'a str,
}

/// An MCP endpoint that a person looks at.
#[derive(Template)]
#[template(path = "endpoint.html", config = "examples/demo/pages/askama.toml")]
pub struct Endpoint<'a> {
    pub name: &'a str,
    pub resource: &'a str,
    pub issuer: &'a str,
    pub clients: &'a [String],
}

pub fn page(status: StatusCode, page: &impl Template) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY.as_str()),
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    // Rendering into a text does not fail.
    (status, headers, page.render().unwrap_or_default()).into_response()
}
