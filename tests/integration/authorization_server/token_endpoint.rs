//! Its token endpoint, and whom it knows.

use std::{collections::HashMap, io, sync::Arc};

use axum::{
    extract::{Path as UrlPath, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::time::sleep;

use super::{Auth, Knows, Refresh, Shared, Token, axum_json, begins};

pub async fn token(
    State(shared): State<Arc<Shared>>,
    UrlPath(name): UrlPath<String>,
    headers: HeaderMap,
    body: String,
) -> Response {
    let sent: HashMap<String, String> = url::form_urlencoded::parse(body.as_bytes()).into_owned().collect();
    if !is_known(&shared, &name, &headers, &sent) {
        shared.exchanges.lock().expect("exchanges").extend(sent.get("code").cloned());
        shared.refreshes.lock().expect("refreshes").extend(sent.get("refresh_token").cloned());
        return (StatusCode::UNAUTHORIZED, axum_json(&json!({"error": "invalid_client"}))).into_response();
    }
    if let Some(token) = sent.get("refresh_token") {
        return refresh(&shared, shared.lies[name.as_str()].refresh, token).await;
    }
    let code = sent["code"].clone();
    shared.exchanges.lock().expect("exchanges").push(code.clone());
    let asked = shared.codes.lock().expect("codes").remove(&code);
    let challenge = BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(&sent["code_verifier"]));
    let right = asked.as_ref().is_some_and(|asked| {
        let client = presented(&headers, &sent).map(|(client_id, ..)| client_id);
        asked.get("client_id") == client.as_ref()
            && ["redirect_uri", "resource"].iter().all(|name| asked.get(*name) == sent.get(*name))
            && asked["code_challenge"] == challenge
            && sent["grant_type"] == "authorization_code"
            && headers.get(header::ACCEPT).is_some_and(|accept| accept == "application/json")
    });
    if !right {
        return (StatusCode::BAD_REQUEST, axum_json(&json!({"error": "invalid_grant"}))).into_response();
    }
    let mut answer = json!({
        "access_token": format!("SECRET-access-of-{code}"),
        "refresh_token": format!("SECRET-refresh-of-{code}"),
        "token_type": "bEaReR",
        "expires_in": 3600,
    });
    shared.good.lock().expect("grants").insert(format!("SECRET-refresh-of-{code}"));
    for kind in ["access", "refresh"] {
        shared.origins.lock().expect("origins").insert(format!("SECRET-{kind}-of-{code}"), code.clone());
    }
    match shared.lies[name.as_str()].token {
        Token::Honest => axum_json(&answer),
        Token::Json(change) => {
            change(&mut answer);
            axum_json(&answer)
        }
        Token::Status(status, body) => {
            (StatusCode::from_u16(status).expect("a status"), [(header::CONTENT_TYPE, "application/json")], body)
                .into_response()
        }
        Token::As(status, content_type, body) => {
            (StatusCode::from_u16(status).expect("a status"), [(header::CONTENT_TYPE, content_type)], body)
                .into_response()
        }
        Token::Html => ([(header::CONTENT_TYPE, "text/html")], "<h1>SECRET</h1>").into_response(),
        Token::Form => {
            let body = "access_token=SECRET&token_type=bearer";
            ([(header::CONTENT_TYPE, "application/x-www-form-urlencoded")], body).into_response()
        }
        Token::Redirects => (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, "stolen")]).into_response(),
        Token::Hangs => std::future::pending().await,
        Token::Late => {
            shared.released().await;
            axum_json(&answer)
        }
        Token::Huge => {
            let chunk = Bytes::from_static(&[b' '; 1 << 20]);
            begins(stream::iter((0..200).map(move |_| Ok(chunk.clone()))))
        }
        Token::Endless => begins(stream::pending()),
        Token::Dies => dies(),
        Token::Pieces(pause) => {
            let answer = answer.to_string().split_off(1);
            let pieces: Vec<_> =
                answer.as_bytes().chunks(answer.len().div_ceil(10)).map(Bytes::copy_from_slice).collect();
            begins(stream::iter(pieces).then(move |piece| async move {
                sleep(pause).await;
                Ok(piece)
            }))
        }
    }
}

pub async fn refresh(shared: &Shared, how: Refresh, token: &str) -> Response {
    let number = {
        let mut refreshes = shared.refreshes.lock().expect("refreshes");
        refreshes.push(token.to_owned());
        refreshes.len()
    };
    let answer = json!({"access_token": format!("SECRET-access-{number}"), "token_type": "Bearer", "expires_in": 3600});
    if matches!(how, Refresh::StatusLate(..)) {
        shared.released().await;
    }
    match how {
        Refresh::Status(status, body) | Refresh::StatusLate(status, body) => {
            return (
                StatusCode::from_u16(status).expect("a status"),
                [(header::CONTENT_TYPE, "application/json")],
                body,
            )
                .into_response();
        }
        Refresh::Hangs => return std::future::pending().await,
        Refresh::Keeps
        | Refresh::Rotates
        | Refresh::RotatesWithGrace(_)
        | Refresh::RotatesLate
        | Refresh::RotatesAndDies => {}
    }
    let answer = rotated(shared, how, token, number, answer);
    match how {
        Refresh::RotatesLate => shared.released().await,
        Refresh::RotatesAndDies if answer.status() == StatusCode::OK => return dies(),
        _ => {}
    }
    answer
}

fn dies() -> Response {
    begins(stream::once(async { Err(io::ErrorKind::ConnectionReset.into()) }))
}

fn rotated(shared: &Shared, how: Refresh, token: &str, number: usize, mut answer: Value) -> Response {
    let mut good = shared.good.lock().expect("grants");
    if !good.contains(token) {
        return (StatusCode::BAD_REQUEST, axum_json(&json!({"error": "invalid_grant"}))).into_response();
    }
    if !matches!(how, Refresh::Keeps) {
        let mut predecessors = shared.predecessors.lock().expect("predecessors");
        if !matches!(how, Refresh::RotatesWithGrace(_)) {
            good.remove(token);
        } else if let Some(predecessor) = predecessors.get(token) {
            good.remove(predecessor);
        }
        let fresh = format!("SECRET-refresh-{number}");
        good.insert(fresh.clone());
        predecessors.insert(fresh.clone(), token.to_owned());
        answer["refresh_token"] = json!(fresh);
    }
    if let Refresh::RotatesWithGrace(lives) = how {
        answer["expires_in"] = json!(lives);
    }
    let mut origins = shared.origins.lock().expect("origins");
    if let Some(code) = origins.get(token).cloned() {
        origins.insert(format!("SECRET-access-{number}"), code.clone());
        origins.insert(format!("SECRET-refresh-{number}"), code);
    }
    axum_json(&answer)
}

pub async fn revoke(
    State(shared): State<Arc<Shared>>,
    UrlPath(name): UrlPath<String>,
    headers: HeaderMap,
    body: String,
) -> StatusCode {
    let sent: HashMap<String, String> = url::form_urlencoded::parse(body.as_bytes()).into_owned().collect();
    if !is_known(&shared, &name, &headers, &sent) {
        return StatusCode::UNAUTHORIZED;
    }
    shared.good.lock().expect("grants").remove(&sent["token"]);
    shared.revoked.lock().expect("revoked").push(sent["token"].clone());
    StatusCode::OK
}

/// Whether a request is of a client that a server knows, which authenticates as it should.
fn is_known(shared: &Shared, name: &str, headers: &HeaderMap, sent: &HashMap<String, String>) -> bool {
    let Some((client_id, auth, secret)) = presented(headers, sent) else { return false };
    match shared.lies[name].knows {
        Knows::Documents => client_id.starts_with("https://") && auth == Auth::None,
        Knows::ByHand(..) | Knows::Registered(_) => {
            let clients = shared.clients.lock().expect("clients");
            clients.get(&(name.to_owned(), client_id)) == Some(&(auth, secret))
        }
    }
}

/// Who a client says that it is, how, and with which secret (RFC 6749, section 2.3.1). None where it says it in two ways.
fn presented(headers: &HeaderMap, sent: &HashMap<String, String>) -> Option<(String, Auth, String)> {
    let in_body = |auth, secret: &str| Some((sent.get("client_id")?.clone(), auth, secret.to_owned()));
    let Some(basic) = headers.get(header::AUTHORIZATION) else {
        return match sent.get("client_secret") {
            Some(secret) => in_body(Auth::Post, secret),
            None => in_body(Auth::None, ""),
        };
    };
    let pair = BASE64_STANDARD.decode(basic.to_str().ok()?.strip_prefix("Basic ")?).ok()?;
    let (client_id, secret) = str::from_utf8(&pair).ok()?.split_once(':')?;
    let decoded = |part: &str| {
        let (value, rest) = url::form_urlencoded::parse(part.as_bytes()).next().unwrap_or_default();
        assert!(rest.is_empty(), "an equals sign is to be encoded");
        value.into_owned()
    };
    let alone = !sent.contains_key("client_id") && !sent.contains_key("client_secret");
    alone.then(|| (decoded(client_id), Auth::Basic, decoded(secret)))
}
