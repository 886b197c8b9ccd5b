//! Its registration endpoint.

use std::sync::Arc;

use axum::{
    extract::{Path as UrlPath, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::stream;
use serde_json::{Value, json};

use super::{Auth, Knows, Registers, Shared, axum_json, begins};

pub async fn register(
    State(shared): State<Arc<Shared>>,
    UrlPath(name): UrlPath<String>,
    headers: HeaderMap,
    body: String,
) -> Response {
    assert_eq!(headers[header::CONTENT_TYPE], "application/json");
    assert!(!headers.contains_key(header::AUTHORIZATION));
    let sent: Value = serde_json::from_str(&body).expect("JSON");
    let number = {
        let mut registrations = shared.registrations.lock().expect("registrations");
        registrations.push((name.clone(), sent.clone()));
        registrations.len()
    };
    let Knows::Registered(how) = shared.lies[name.as_str()].knows else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let (auth, change): (Auth, fn(&mut Value)) = match how {
        Registers::Honestly(auth) => (auth, |_| {}),
        Registers::Json(auth, change) => (auth, change),
        Registers::Late(auth) => {
            shared.released().await;
            (auth, |_| {})
        }
        Registers::Status(status, body) => {
            let status = StatusCode::from_u16(status).expect("a status");
            return (status, [(header::CONTENT_TYPE, "application/json")], body).into_response();
        }
        Registers::Html => return ([(header::CONTENT_TYPE, "text/html")], "<h1>SECRET</h1>").into_response(),
        Registers::Hangs => return std::future::pending().await,
        Registers::Redirects => {
            return (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, "stolen")]).into_response();
        }
        Registers::Huge => {
            let chunk = Bytes::from_static(&[b' '; 1 << 20]);
            return begins(stream::iter((0..200).map(move |_| Ok(chunk.clone()))));
        }
    };
    let mut answer = sent;
    answer["client_id"] = json!(format!("client-{number}"));
    answer["registration_client_uri"] = json!("https://elsewhere.example/SECRET-management");
    answer["registration_access_token"] = json!("SECRET-registration-token");
    let secret = match auth {
        Auth::None => String::new(),
        Auth::Basic | Auth::Post => format!("SECRET of+client%{number}:"),
    };
    answer["token_endpoint_auth_method"] = match auth {
        Auth::None => json!("none"),
        Auth::Basic => json!("client_secret_basic"),
        Auth::Post => json!("client_secret_post"),
    };
    if auth != Auth::None {
        answer["client_secret"] = json!(secret);
        answer["client_secret_expires_at"] = json!(0);
    }
    change(&mut answer);
    let client_id = answer["client_id"].as_str().unwrap_or_default().to_owned();
    shared.clients.lock().expect("clients").insert((name, client_id), (auth, secret));
    (StatusCode::CREATED, axum_json(&answer)).into_response()
}
