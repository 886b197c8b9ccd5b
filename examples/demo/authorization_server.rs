//! A small authorization server for one MCP server. It knows no client before one comes: a client's name is the URL of
//! its metadata document, which is fetched through Envoy and checked before anybody is asked for anything. Nobody signs
//! in, so whoever sees its page may allow; otherwise it keeps to OAuth 2.1.

use std::{collections::HashMap, io, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{RawQuery, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
    serve::Listener,
};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{
    pages::{self, Consent, Message},
    pending::Pending,
    serving,
    stack::{
        Certificates,
        tls_listener::{self, TlsListener},
        web::Web,
    },
};

mod grants;
mod request;

pub use grants::Grants;
use grants::TokenError;
use request::AuthorizationRequest;

/// How long a person may think.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// One that has its address, but does not answer yet.
pub struct AuthorizationServer {
    listener: TlsListener,
    shared: Shared,
}

#[derive(Clone)]
struct Shared {
    /// The MCP server's name, for people.
    name: &'static str,
    issuer: String,
    host: String,
    /// The one MCP server that it gives tokens for, as that spells itself.
    resource: String,
    /// Where clients' documents are: the port of the demo's Envoy. Nothing else of this machine is asked.
    clients_port: u16,
    web: Web,
    pending: Arc<Pending<AuthorizationRequest>>,
    grants: Arc<Grants>,
}

impl AuthorizationServer {
    /// Takes a free port for the authorization server of this MCP server.
    pub async fn bind(
        name: &'static str,
        resource: &str,
        clients_port: u16,
        certificates: &Certificates,
        web: &Web,
    ) -> io::Result<Self> {
        let listener = tls_listener::bind(certificates).await?;
        let host = host(name);
        let shared = Shared {
            name,
            issuer: format!("https://{host}:{}", listener.local_addr()?.port()),
            host,
            resource: resource.to_owned(),
            clients_port,
            web: web.clone(),
            pending: Arc::new(Pending::new(PATIENCE)),
            grants: Arc::default(),
        };
        Ok(Self { listener, shared })
    }

    pub fn issuer(&self) -> &str {
        &self.shared.issuer
    }

    /// What it has given, for the MCP server to ask of each token that it sees.
    pub fn grants(&self) -> Arc<Grants> {
        Arc::clone(&self.shared.grants)
    }

    /// Answers until the demo ends.
    pub fn serve(self, servers: &mut JoinSet<String>) {
        let Self { listener, shared } = self;
        let what = format!("the authorization server {}", shared.issuer);
        let app = Router::new()
            .route("/.well-known/oauth-authorization-server", get(metadata))
            .route("/authorize", get(authorize).post(decide))
            .route("/token", post(token))
            .fallback(elsewhere)
            .with_state(shared);
        serving::spawn(servers, what, listener, app);
    }
}

/// The host of an MCP server's authorization server.
pub fn host(name: &str) -> String {
    format!("login-{name}.localhost")
}

/// RFC 8414.
async fn metadata(State(server): State<Shared>) -> Response {
    let issuer = &server.issuer;
    json_answer(
        StatusCode::OK,
        &json!({
            "issuer": issuer,
            "authorization_endpoint": format!("{issuer}/authorize"),
            "token_endpoint": format!("{issuer}/token"),
            "response_types_supported": ["code"],
            "grant_types_supported": ["authorization_code", "refresh_token"],
            "code_challenge_methods_supported": ["S256"],
            "token_endpoint_auth_methods_supported": ["none"],
            "client_id_metadata_document_supported": true,
            "authorization_response_iss_parameter_supported": true,
            "protected_resources": [server.resource],
        }),
    )
}

/// Asks the person, once the request and the client's document are known to be good. Whatever is wrong is said on a
/// page: who is told by a redirect may be whom the request should not reach.
async fn authorize(State(server): State<Shared>, RawQuery(query): RawQuery) -> Response {
    let (request, client) = match AuthorizationRequest::check(query.as_deref().unwrap_or_default(), &server).await {
        Ok(checked) => checked,
        Err(why) => return refused(&server, StatusCode::BAD_REQUEST, why),
    };
    let redirect_host = request.redirect_host();
    let client_id = request.client_id.clone();
    let Some(id) = server.pending.add(request) else { return no_randomness(&server) };
    pages::page(
        StatusCode::OK,
        &Consent {
            host: &server.host,
            server: server.name,
            client_name: client.name(),
            client_id: &client_id,
            redirect_host: &redirect_host,
            resource: &server.resource,
            request: &id,
        },
    )
}

/// The button that the person pressed. A request is answered once: its code or its error is gone with the redirect.
async fn decide(State(server): State<Shared>, body: String) -> Response {
    let sent = form(&body).unwrap_or_default();
    let of = |name| sent.get(name).map(String::as_str).unwrap_or_default();
    let allowed = match of("decision") {
        "allow" => true,
        "deny" => false,
        _ => return refused(&server, StatusCode::BAD_REQUEST, "The form was not sent by one of its buttons.".into()),
    };
    let Some(request) = server.pending.take(of("request")) else {
        let why = "This question was answered before, or too long ago. Start again where you came from.";
        return refused(&server, StatusCode::BAD_REQUEST, why.into());
    };
    let answer = if allowed {
        let Some(code) = server.grants.allow(&request) else { return no_randomness(&server) };
        ("code", code)
    } else {
        ("error", "access_denied".to_owned())
    };
    let mut location = request.redirect_url;
    location
        .query_pairs_mut()
        .append_pair(answer.0, &answer.1)
        .append_pair("state", &request.state)
        .append_pair("iss", &server.issuer);
    let headers = [(header::LOCATION, location.as_str()), (header::CACHE_CONTROL, "no-store")];
    (StatusCode::SEE_OTHER, headers).into_response()
}

/// RFC 6749, section 5.
async fn token(State(server): State<Shared>, body: String) -> Response {
    let issued = form(&body).map_err(|_| TokenError::InvalidRequest).and_then(|sent| {
        let of = |name| sent.get(name).map(String::as_str).ok_or(TokenError::InvalidRequest);
        match of("grant_type")? {
            "authorization_code" => {
                let (redirect_uri, verifier) = (of("redirect_uri")?, of("code_verifier")?);
                server.grants.redeem(of("code")?, of("client_id")?, of("resource")?, redirect_uri, verifier)
            }
            "refresh_token" => server.grants.refresh(of("refresh_token")?, of("client_id")?, of("resource")?),
            _ => Err(TokenError::UnsupportedGrantType),
        }
    });
    match issued {
        Ok(issued) => json_answer(StatusCode::OK, &issued),
        Err(error) => json_answer(StatusCode::BAD_REQUEST, &json!({"error": error.code()})),
    }
}

async fn elsewhere(State(server): State<Shared>) -> Response {
    let what = format!(
        "This is the authorization server of the {} MCP server. Start at the connect page of its route, and you will \
         be sent here.",
        server.name
    );
    let page = Message { host: &server.host, title: "There is nothing here", message: &what };
    pages::page(StatusCode::NOT_FOUND, &page)
}

fn refused(server: &Shared, status: StatusCode, why: String) -> Response {
    let title = "No access was given";
    pages::page(status, &Message { host: &server.host, title, message: &why })
}

fn no_randomness(server: &Shared) -> Response {
    refused(server, StatusCode::INTERNAL_SERVER_ERROR, "The system gives no randomness.".into())
}

pub fn json_answer(status: StatusCode, body: &Value) -> Response {
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
    (status, headers, body.to_string()).into_response()
}

/// What a form or a query holds. Nothing of OAuth's may be there twice (RFC 6749, section 3.1).
pub fn form(text: &str) -> Result<HashMap<String, String>, String> {
    let mut found = HashMap::new();
    for (name, value) in url::form_urlencoded::parse(text.as_bytes()).into_owned() {
        if let Some(_twice) = found.insert(name.clone(), value) {
            return Err(format!("The request has {name} twice."));
        }
    }
    Ok(found)
}
