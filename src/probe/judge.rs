//! What is wrong with an answer. The rules are those of the CIMD draft and of MCP, and the habits of servers in use.

use std::time::Duration;

use http::HeaderMap;
use serde_json::{Map, Value};
use url::Url;

use super::{Finding, fetch::Answer};
use crate::{
    check::LONGEST_SAFE_CLIENT_ID,
    document::{MAX_BYTES, MEMBERS},
    outgoing::cut,
};

/// Where servers in use stop reading, in bytes.
const HARD_LIMIT: usize = 5120;
/// What servers in use wait for a document.
const SLOW: Duration = Duration::from_millis(2500);

pub const TOO_LARGE: &str = "the document is larger than the 5 kB (5,120 bytes) that servers read";

/// The findings after which there is no document to look at more closely.
pub const NO_DOCUMENT: [&str; 4] = ["redirect", "blocked", "status", "not_json"];

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
    findings.extend(content_type(answer));
    if answer.headers.contains_key("content-encoding") {
        findings.push(Finding::error("content_encoding", "the document is compressed, though nobody asked for that"));
    }
    findings.extend(caching(&answer.headers));
    match answer.body.len() {
        size if size > HARD_LIMIT => findings.push(Finding::error("too_large", TOO_LARGE)),
        size if size > MAX_BYTES => {
            let text = format!("the document has {size} bytes; some servers read {MAX_BYTES}");
            findings.push(Finding::warning("large", text));
        }
        _ => {}
    }
    match serde_json::from_slice(&answer.body) {
        Ok(Value::Object(document)) => members(client_id, &document, &mut findings),
        Ok(_) => findings.push(Finding::error("not_json", "the body is no JSON object")),
        Err(error) => {
            // Its text names a place, and nothing of what is there.
            findings.push(Finding::error("not_json", format!("the body is no JSON: {}", said(&error.to_string()))));
        }
    }
    findings
}

/// What the other side said, so that a terminal can show it.
pub fn said(text: &str) -> String {
    cut(text.escape_debug().to_string())
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
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
            let to = said(text(&answer.headers, "location"));
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
    let found = text(&answer.headers, "content-type");
    let essence = found.split(';').next().unwrap_or_default().trim();
    match found {
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
    let values: Vec<String> = headers
        .get_all("cache-control")
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|directive| directive.trim().to_ascii_lowercase())
        .collect();
    let mut findings = Vec::new();
    // `private="set-cookie"` keeps a header out of caches, and is no different to those who look for the word.
    let forbids = |directive: &&String| {
        matches!(directive.split('=').next().unwrap_or_default(), "private" | "no-cache" | "no-store")
    };
    if let Some(directive) = values.iter().find(forbids) {
        let text = format!("cache-control has \"{}\"; some servers refuse what they must not keep", said(directive));
        findings.push(Finding::warning("not_cacheable", text));
    } else if !values.iter().any(|directive| directive.starts_with("max-age=")) {
        findings.push(Finding::warning("no_max_age", "cache-control has no max-age: each server guesses one"));
    }
    if !headers.contains_key("etag") {
        findings.push(Finding::warning("no_etag", "there is no etag, so servers fetch the whole document each time"));
    }
    findings
}

fn members(client_id: &str, document: &Map<String, Value>, findings: &mut Vec<Finding>) {
    match document.get("client_id") {
        Some(Value::String(found)) if found == client_id => {}
        Some(Value::String(found)) => findings.push(Finding::error(
            "client_id_mismatch",
            format!("client_id is \"{}\"; it must be the URL of the document, byte by byte", said(found)),
        )),
        _ => findings.push(Finding::error("client_id_missing", "there is no client_id, or it is no text")),
    }
    if !matches!(document.get("client_name"), Some(Value::String(name)) if !name.trim().is_empty()) {
        findings.push(Finding::error("client_name_missing", "there is no client_name, which MCP requires"));
    }
    redirect_uris(client_id, document.get("redirect_uris"), findings);
    match document.get("client_uri").map(|uri| uri.as_str().unwrap_or_default()) {
        Some("") => findings.push(Finding::error("client_uri_empty", "client_uri is there and is no URL")),
        Some(uri) if !same_origin(uri, client_id) => findings.push(other_origin("client_uri", uri)),
        _ => {}
    }
    match document.get("token_endpoint_auth_method").map(|method| method.as_str().unwrap_or_default()) {
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
    for uri in uris {
        let uri = uri.as_str().unwrap_or_default();
        match Url::parse(uri) {
            Ok(url) if url.fragment().is_none() => {
                if !same_origin(uri, client_id) {
                    findings.push(other_origin("redirect_uris", uri));
                }
            }
            _ => findings.push(Finding::error(
                "redirect_uri",
                format!("\"{}\" in redirect_uris is no URL without a fragment", said(uri)),
            )),
        }
    }
}

/// A list that may be left out; where it is there, it has what we need.
fn listed(document: &Map<String, Value>, member: &'static str, needed: &str, findings: &mut Vec<Finding>) {
    let has = |list: &Vec<Value>| list.iter().any(|value| value == needed);
    match document.get(member) {
        None => {}
        Some(Value::Array(list)) if has(list) => {}
        Some(_) => findings.push(Finding::error(member, format!("{member} is there and lacks \"{needed}\""))),
    }
}

fn other_origin(member: &str, uri: &str) -> Finding {
    Finding::warning(
        "other_origin",
        format!("{member} has \"{}\"; some servers want all URLs on the client_id's origin", said(uri)),
    )
}

fn same_origin(uri: &str, client_id: &str) -> bool {
    match (Url::parse(uri), Url::parse(client_id)) {
        (Ok(uri), Ok(client_id)) => uri.origin() == client_id.origin(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
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
            (r#","token_endpoint_auth_method":"none""#, "", "auth_method_missing"),
            (r#""none""#, r#""client_secret_post""#, "auth_method"),
            (r#""none""#, "7", "auth_method"),
            (r#""authorization_code","#, "", "grant_types"),
            (r#","refresh_token""#, "", "no_refresh_grant"),
            (r#"["code"]"#, r#"["token"]"#, "response_types"),
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
            (MAX_BYTES, None),
            (MAX_BYTES + 1, Some("large")),
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
    }

    #[test]
    fn long_urls() {
        let url = |length: usize| format!("https://a.example/{}", "a".repeat(length - 18));
        assert!(client_id(&url(120)).is_empty());
        assert_eq!(client_id(&url(121)).len(), 1);
    }
}
