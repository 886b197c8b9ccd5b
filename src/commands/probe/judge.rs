//! What is wrong with an answer. The rules are those of the CIMD draft and of MCP, and the habits of servers in use.

use std::time::Duration;

use http::HeaderMap;
use serde_json::{Map, Value};
use url::Url;

use super::{fetch::Answer, finding::Finding, object::Object};
use crate::{
    filter::document::{LONGEST_SAFE_CLIENT_ID, MEMBERS},
    model::{loopback::is_loopback, route::MAX_DOCUMENT_BYTES},
    net::outgoing::error::truncate,
};

/// Where servers in use stop reading, in bytes.
const HARD_LIMIT: usize = 5120;
/// What servers in use wait for a document.
const SLOW: Duration = Duration::from_millis(2500);

/// What is said of such a document, read to its end or not.
pub const TOO_LARGE: &str = "the document is larger than the 5 kB (5,120 bytes) that servers read";

/// The findings after which there is no document to look at more closely.
pub const NO_DOCUMENT: [&str; 4] = ["redirect", "blocked", "status", "not_json"];

/// Headers that every document of ours has, besides its `content-type`, which Envoy would fill in.
const OUR_HEADERS: [&str; 3] = ["etag", "cache-control", "access-control-allow-origin"];

/// What is wrong with the URL itself.
pub fn client_id(client_id: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    if client_id.len() > LONGEST_SAFE_CLIENT_ID {
        let text =
            format!("the client_id has {} bytes; some servers take {LONGEST_SAFE_CLIENT_ID} at most", client_id.len());
        findings.push(Finding::warning("client_id_long", text));
    }
    findings
}

/// What is wrong with the answer to a plain GET of `client_id`.
pub fn answer(client_id: &str, answer: &Answer) -> Vec<Finding> {
    let mut findings = Vec::new();
    if answer.elapsed > SLOW {
        let text = format!("the answer took {:.1} s; some servers wait 2.5 s", answer.elapsed.as_secs_f32());
        findings.push(Finding::warning("slow", text));
    }
    if let Some(finding) = status(answer) {
        findings.push(finding);
        return findings;
    }
    let content_type = content_type(answer);
    let bare = content_type.is_some() && !OUR_HEADERS.iter().any(|name| answer.headers.contains_key(*name));
    findings.extend(content_type);
    if answer.headers.contains_key("content-encoding") {
        findings.push(Finding::error("content_encoding", "the document is compressed, though nobody asked for that"));
    }
    findings.extend(caching(&answer.headers));
    if answer.headers.contains_key("set-cookie") {
        findings
            .push(Finding::warning("set_cookie", "a cookie comes with the document, which some caches do not keep"));
    }
    match answer.body.len() {
        size if size > HARD_LIMIT => findings.push(Finding::error("too_large", TOO_LARGE)),
        size if size > MAX_DOCUMENT_BYTES => {
            let text = format!("the document has {size} bytes; some servers read {MAX_DOCUMENT_BYTES}");
            findings.push(Finding::warning("large", text));
        }
        _ => {}
    }
    match serde_json::from_slice::<Object>(&answer.body) {
        Ok(document) => {
            findings.extend(document.repeated.iter().map(|name| {
                let text =
                    format!("\"{}\" is there twice: servers refuse that, or differ in which one counts", said(name));
                Finding::error("duplicate_member", text)
            }));
            members(client_id, &document.members, &mut findings);
            if bare {
                let text = "the document came without any of its headers: an Envoy whose filter has `mutation_rules` that \
                            disallow them takes them away";
                findings.push(Finding::error("mutation_rules", text));
            }
        }
        Err(error) => {
            let text = format!("the body is not a JSON object: {}", said(&error.to_string()));
            findings.push(Finding::error("not_json", text));
        }
    }
    findings
}

/// What the other side said, so that a terminal can show it.
pub fn said(text: &str) -> String {
    truncate(text.escape_debug().to_string())
}

/// A header as text, each byte a character, so that none is lost on the way to [`said`].
fn text(headers: &HeaderMap, name: &str) -> String {
    headers.get(name).map(|value| value.as_bytes().iter().copied().map(char::from).collect()).unwrap_or_default()
}

/// The parts of a header that is a list.
fn parts(headers: &HeaderMap, name: &str) -> Vec<String> {
    let lines = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(|part| part.trim().to_ascii_lowercase()).collect()
}

fn status(answer: &Answer) -> Option<Finding> {
    let status = answer.status;
    // A firewall's challenge may come as a 200 too.
    let html = text(&answer.headers, "content-type").starts_with("text/html");
    let ours = serde_json::from_slice::<Value>(&answer.body).ok();
    let label = ours.as_ref().and_then(|body| body.get("error")?.as_str());
    let finding = match status {
        200 if html => {
            Finding::error("blocked", "a web page came, not the document: a sign-in or a firewall stands before it")
        }
        200 => return None,
        300..=399 => {
            let to = said(&text(&answer.headers, "location"));
            Finding::error("redirect", format!("the answer is {status}, a redirect to \"{to}\": servers follow none"))
        }
        401 | 403 | 407 | 429 | 503 if label.is_none() => Finding::error(
            "blocked",
            format!(
                "the answer is {status}: a sign-in or a firewall stands before the document, or limits its callers"
            ),
        ),
        _ => {
            let label = label.map(|label| format!(" ({})", said(label))).unwrap_or_default();
            Finding::error("status", format!("the answer is {status}{label}: servers take 200 only"))
        }
    };
    Some(finding)
}

fn content_type(answer: &Answer) -> Option<Finding> {
    if answer.headers.get_all("content-type").iter().count() > 1 {
        return Some(Finding::error("content_type", "there is more than one content-type"));
    }
    let found = &text(&answer.headers, "content-type");
    let essence = found.split(';').next().unwrap_or_default().trim();
    match found.as_str() {
        "application/json" => None,
        "" => Some(Finding::error("content_type", "there is no content-type; it must be application/json")),
        _ if essence.eq_ignore_ascii_case("application/json") => Some(Finding::warning(
            "content_type_parameters",
            format!("the content-type is \"{}\"; some servers take exactly application/json", said(found)),
        )),
        _ => Some(Finding::error(
            "content_type",
            format!("the content-type is \"{}\"; it must be application/json", said(found)),
        )),
    }
}

fn caching(headers: &HeaderMap) -> Vec<Finding> {
    let values = parts(headers, "cache-control");
    let max_age = values.iter().find_map(|directive| directive.strip_prefix("max-age=")?.parse::<u64>().ok());
    let mut findings = Vec::new();
    // `private="set-cookie"` keeps a header out of caches, and is no different to those who look for the word.
    let forbids = |directive: &&String| {
        matches!(directive.split('=').next().unwrap_or_default(), "private" | "no-cache" | "no-store")
    };
    if let Some(directive) = values.iter().find(forbids) {
        let text = format!("cache-control has \"{}\"; some servers refuse what they must not keep", said(directive));
        findings.push(Finding::warning("not_cacheable", text));
    } else if let Some(max_age) = max_age {
        let age = text(headers, "age").parse().unwrap_or(0);
        if age >= max_age {
            let text = format!("the answer is {age} s old, and max-age is {max_age} s: servers fetch each time");
            findings.push(Finding::warning("stale", text));
        }
    } else {
        let text = "cache-control has no max-age in whole seconds: each server guesses one";
        findings.push(Finding::warning("no_max_age", text));
    }
    if parts(headers, "vary").iter().any(|name| name == "*") {
        findings.push(Finding::warning("vary", "vary is \"*\", so no cache answers with what it has"));
    }
    if !headers.contains_key("etag") {
        findings.push(Finding::warning("no_etag", "there is no etag, so servers fetch the whole document each time"));
    }
    findings
}

fn members(client_id: &str, document: &Map<String, Value>, findings: &mut Vec<Finding>) {
    match document.get("client_id") {
        Some(Value::String(found)) if found == client_id => {}
        Some(Value::String(found)) if differ_in_port(found, client_id) => findings.push(Finding::error(
            "other_port",
            format!(
                "client_id is \"{}\", of another port of this host: an Envoy that sets strip_any_host_port (or \
                 strip_matching_host_port) serves the routes of several ports as one",
                said(found)
            ),
        )),
        Some(Value::String(found)) => findings.push(Finding::error(
            "client_id_mismatch",
            format!("client_id is \"{}\"; it must be the URL of the document, byte by byte", said(found)),
        )),
        _ => findings.push(Finding::error("client_id_missing", "there is no client_id, or it is not a text")),
    }
    if !matches!(document.get("client_name"), Some(Value::String(name)) if !name.trim().is_empty()) {
        findings.push(Finding::error("client_name_missing", "there is no client_name, which MCP requires"));
    }
    redirect_uris(client_id, document.get("redirect_uris"), findings);
    match document.get("client_uri").map(|uri| uri.as_str().unwrap_or_default()) {
        Some("") => findings.push(Finding::error("client_uri_empty", "client_uri is there and is not a URL")),
        Some(uri) if !same_origin(uri, client_id) => findings.push(other_origin("client_uri", uri)),
        _ => {}
    }
    let has = |member, fits: fn(&Value) -> bool| document.get(member).is_some_and(fits);
    let has_keys = has("jwks", Value::is_object) || has("jwks_uri", Value::is_string);
    match document.get("token_endpoint_auth_method").map(|method| method.as_str().unwrap_or_default()) {
        Some(method @ ("private_key_jwt" | "self_signed_tls_client_auth")) if !has_keys => {
            findings.push(Finding::error(
                "keys_missing",
                format!("token_endpoint_auth_method is \"{method}\", and there is neither jwks nor jwks_uri"),
            ))
        }
        Some("none" | "private_key_jwt" | "tls_client_auth" | "self_signed_tls_client_auth") => {}
        None => findings.push(Finding::error(
            "auth_method_missing",
            "there is no token_endpoint_auth_method, which means client_secret_basic; write \"none\"",
        )),
        Some(method) => findings.push(Finding::error(
            "auth_method",
            format!(
                "token_endpoint_auth_method is \"{}\"; a shared secret is forbidden here, and nothing else is known",
                said(method)
            ),
        )),
    }
    listed(document, "grant_types", "authorization_code", findings);
    listed(document, "response_types", "code", findings);
    let refreshes =
        |grants: &Value| grants.as_array().is_some_and(|grants| grants.iter().any(|grant| grant == "refresh_token"));
    if !document.get("grant_types").is_some_and(refreshes) {
        findings.push(Finding::warning(
            "no_refresh_grant",
            "grant_types lacks \"refresh_token\": some servers then give no refresh token",
        ));
    }
    for (name, value) in document {
        let shown = said(name);
        if name.starts_with("client_secret") {
            findings.push(Finding::error("secret", format!("\"{shown}\" is there: the document is public")));
        } else if value.is_null() {
            findings.push(Finding::error("null", format!("\"{shown}\" is null; leave it out")));
        } else if !MEMBERS.contains(&name.as_str()) {
            let text = format!("\"{shown}\" is there: strict servers refuse members that they do not know");
            findings.push(Finding::warning("extra_member", text));
        }
    }
}

fn redirect_uris(client_id: &str, uris: Option<&Value>, findings: &mut Vec<Finding>) {
    let uris = uris.and_then(Value::as_array).filter(|uris| !uris.is_empty());
    let Some(uris) = uris else {
        findings.push(Finding::error("redirect_uris_missing", "redirect_uris is missing, empty or no list"));
        return;
    };
    findings.extend(uris.iter().filter_map(|uri| redirect_uri(client_id, uri.as_str().unwrap_or_default())));
}

fn redirect_uri(client_id: &str, uri: &str) -> Option<Finding> {
    let fault = |fault| Some(Finding::error("redirect_uri", format!("\"{}\" in redirect_uris {fault}", said(uri))));
    let Ok(url) = Url::parse(uri) else { return fault("is not a URL") };
    let loopback = url.host().as_ref().is_some_and(is_loopback);
    match url.scheme() {
        _ if url.fragment().is_some() => fault("has a fragment"),
        _ if !url.username().is_empty() || url.password().is_some() => fault("has a user name or password"),
        _ if url.host_str().unwrap_or_default().contains('*') || url.path().contains('*') => {
            fault("has a `*`: servers compare it byte by byte, or refuse it")
        }
        "https" if same_origin(uri, client_id) => None,
        "https" => Some(other_origin("redirect_uris", uri)),
        "http" if loopback => {
            let text =
                format!("\"{}\" in redirect_uris is http on this machine; some servers take https only", said(uri));
            Some(Finding::warning("redirect_uri_loopback", text))
        }
        _ => fault("is not https"),
    }
}

/// A list of texts that may be left out; where it is there, it has what we need.
fn listed(document: &Map<String, Value>, member: &'static str, needed: &str, findings: &mut Vec<Finding>) {
    let fits = |list: &Vec<Value>| list.iter().all(Value::is_string) && list.iter().any(|value| value == needed);
    match document.get(member) {
        None => {}
        Some(Value::Array(list)) if fits(list) => {}
        Some(_) => {
            let text = format!("{member} is there and is not a list of texts with \"{needed}\"");
            findings.push(Finding::error(member, text));
        }
    }
}

fn other_origin(member: &str, uri: &str) -> Finding {
    Finding::warning(
        "other_origin",
        format!("{member} has \"{}\"; some servers want all URLs on the client_id's origin", said(uri)),
    )
}

/// Whether two URLs are the same but for their ports.
fn differ_in_port(one: &str, other: &str) -> bool {
    let without_port = |text: &str| {
        let mut url = Url::parse(text).ok()?;
        let port = url.port_or_known_default();
        url.set_port(None).ok()?;
        Some((url, port))
    };
    matches!((without_port(one), without_port(other)), (Some(one), Some(other)) if one.0 == other.0 && one.1 != other.1)
}

fn same_origin(uri: &str, client_id: &str) -> bool {
    match (Url::parse(uri), Url::parse(client_id)) {
        (Ok(uri), Ok(client_id)) => uri.origin() == client_id.origin(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, header::LOCATION};

    use super::*;

    const CLIENT_ID: &str = "https://a.example/c.json";
    const GOOD: &str = r#"{"client_id":"https://a.example/c.json","client_name":"A","client_uri":"https://a.example","redirect_uris":["https://a.example/cb"],"grant_types":["authorization_code","refresh_token"],"response_types":["code"],"token_endpoint_auth_method":"none"}"#;

    fn codes(answer: &Answer) -> Vec<&'static str> {
        super::answer(CLIENT_ID, answer).iter().map(|finding| finding.code).collect()
    }

    fn good() -> Answer {
        let headers =
            [("content-type", "application/json"), ("cache-control", "public, max-age=3600"), ("etag", "\"x\"")];
        let headers = headers.map(|(name, value)| (name.parse().expect(name), value.parse().expect(value)));
        Answer { status: 200, headers: headers.into_iter().collect(), body: GOOD.into(), elapsed: SLOW }
    }

    #[test]
    fn a_good_answer_and_a_slow_one() {
        assert_eq!(codes(&good()), [""; 0]);
        assert_eq!(codes(&Answer { elapsed: SLOW + Duration::from_millis(1), ..good() }), ["slow"]);
    }

    /// What one change to the good document is found as.
    #[test]
    fn each_rule_of_the_members() {
        for (from, to, found) in [
            (
                r#""client_id":"https://a.example/c.json""#,
                r#""client_id":"https://a.example/c.json/""#,
                "client_id_mismatch",
            ),
            (
                r#""client_id":"https://a.example/c.json""#,
                r#""client_id":"https://a.example:8443/c.json""#,
                "other_port",
            ),
            (r#""client_id":"https://a.example/c.json","#, "", "client_id_missing"),
            (r#""client_name":"A","#, "", "client_name_missing"),
            (r#""client_name":"A""#, r#""client_name":" ""#, "client_name_missing"),
            (r#""client_uri":"https://a.example""#, r#""client_uri":"""#, "client_uri_empty"),
            (r#""client_uri":"https://a.example""#, r#""client_uri":"https://b.example""#, "other_origin"),
            (r#"["https://a.example/cb"]"#, "[]", "redirect_uris_missing"),
            (r#"["https://a.example/cb"]"#, r#""https://a.example/cb""#, "redirect_uris_missing"),
            (r#"["https://a.example/cb"]"#, "[7]", "redirect_uri"),
            (r#""https://a.example/cb""#, r#""https://a.example/cb#x""#, "redirect_uri"),
            (r#""https://a.example/cb""#, r#""https://a.example:444/cb""#, "other_origin"),
            (r#""https://a.example/cb""#, r#""javascript:alert(1)""#, "redirect_uri"),
            (r#""https://a.example/cb""#, r#""data:text/html,x""#, "redirect_uri"),
            (r#""https://a.example/cb""#, r#""com.example.app:/cb""#, "redirect_uri"),
            (r#""https://a.example/cb""#, r#""http://a.example/cb""#, "redirect_uri"),
            (r#""https://a.example/cb""#, r#""http://127.0.0.1:7/cb""#, "redirect_uri_loopback"),
            (r#""https://a.example/cb""#, r#""http://[::1]/cb""#, "redirect_uri_loopback"),
            (r#""https://a.example/cb""#, r#""http://localhost/cb""#, "redirect_uri_loopback"),
            (r#""https://a.example/cb""#, r#""http://10.0.0.1/cb""#, "redirect_uri"),
            (r#""https://a.example/cb""#, r#""https://u@a.example/cb""#, "redirect_uri"),
            (r#""https://a.example/cb""#, r#""https://:p@a.example/cb""#, "redirect_uri"),
            (r#""https://a.example/cb""#, r#""https://*.a.example/cb""#, "redirect_uri"),
            (r#""https://a.example/cb""#, r#""https://a.example/*""#, "redirect_uri"),
            (r#""https://a.example/cb""#, r#""https://a.example/cb","javascript:alert(1)""#, "redirect_uri"),
            (r#","token_endpoint_auth_method":"none""#, "", "auth_method_missing"),
            (r#""none""#, r#""client_secret_post""#, "auth_method"),
            (r#""none""#, "7", "auth_method"),
            (r#""none""#, r#""private_key_jwt""#, "keys_missing"),
            (r#""none""#, r#""self_signed_tls_client_auth""#, "keys_missing"),
            (r#""none""#, r#""private_key_jwt","jwks_uri":"https://a.example/k""#, "extra_member"),
            (r#""none""#, r#""private_key_jwt","jwks":{"keys":[]}"#, "extra_member"),
            (r#""authorization_code","#, "", "grant_types"),
            (r#","refresh_token""#, "", "no_refresh_grant"),
            (r#"["code"]"#, r#"["token"]"#, "response_types"),
            (r#"["code"]"#, r#"["code",7]"#, "response_types"),
            (r#""refresh_token"]"#, r#""refresh_token",{}]"#, "grant_types"),
            (r#"{"client_id":"#, r#"{"client_id":"https://b.example/c.json","client_id":"#, "duplicate_member"),
            (r#"{"client_id":"#, r#"{"client\u005fid":7,"client_id":"#, "duplicate_member"),
            (r#""none""#, r#""none","client_secret":"x""#, "secret"),
            (r#""none""#, r#""none","client_secret_expires_at":0"#, "secret"),
            (r#""none""#, r#""none","logo_uri":null"#, "null"),
            (r#""none""#, r#""none","logo_uri":"https://a.example/l.png""#, "extra_member"),
        ] {
            let body = GOOD.replace(from, to);
            assert_ne!(body, GOOD, "{from}");
            assert_eq!(codes(&Answer { body: body.into(), ..good() }), [found], "{to}");
        }
    }

    #[test]
    fn sizes() {
        for (size, found) in [
            (MAX_DOCUMENT_BYTES, None),
            (MAX_DOCUMENT_BYTES + 1, Some("large")),
            (HARD_LIMIT, Some("large")),
            (HARD_LIMIT + 1, Some("too_large")),
        ] {
            let body = GOOD.to_owned() + &" ".repeat(size - GOOD.len());
            assert_eq!(codes(&Answer { body: body.into(), ..good() }), Vec::from_iter(found), "{size}");
        }
    }

    #[test]
    fn what_strangers_say_is_safe_to_show() {
        let shown = said(&format!("\u{1b}[2J\r\n{}", "ü".repeat(1000)));
        assert!(shown.len() < 210 && !shown.contains(['\u{1b}', '\n', '\r']), "{shown}");
        let location = HeaderValue::from_bytes(b"/\t\x9b2J").expect("a value");
        let headers = [(LOCATION, location)].into_iter().collect();
        let found = super::answer(CLIENT_ID, &Answer { status: 302, headers, ..good() });
        let message = found.first().map(|finding| finding.message.as_str());
        assert_eq!(message, Some(r#"the answer is 302, a redirect to "/\t\u{9b}2J": servers follow none"#));
    }

    #[test]
    fn long_urls() {
        let url = |length: usize| format!("https://a.example/{}", "a".repeat(length - 18));
        assert!(client_id(&url(120)).is_empty());
        assert_eq!(client_id(&url(121)).len(), 1);
    }
}
