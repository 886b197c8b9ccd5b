//! A small identity provider, as a company has one. People sign in by any name, to an application, which is Envoy, or
//! to an MCP client, which registers itself (RFC 7591) and gets tokens for one MCP route. It keeps to OAuth 2.1 and
//! OpenID Connect, but for the password: it asks for none.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use axum::{
    Router,
    extract::{RawQuery, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use envoy_cimd::model::secret::generate_key_line;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::{net::TcpListener, task::JoinSet};
use url::{Host, Url};

use crate::{
    authorization_server::{PATIENCE, form, json_answer},
    pages::{self, Message, SignIn},
    pending::Pending,
    serving,
};

mod signer;

use signer::Signer;

/// The application that people sign in to.
pub const APPLICATION: &str = "gateway";

const CODE_LIFETIME: Duration = Duration::from_secs(60);
const TOKEN_LIFETIME: Duration = Duration::from_secs(3600);
/// What it calls itself on its pages.
const NAME: &str = "login of the company";

/// One that has its address, but does not answer yet.
pub struct IdentityProvider {
    listener: TcpListener,
    shared: Shared,
}

#[derive(Clone)]
struct Shared {
    issuer: String,
    application_secret: String,
    /// The one MCP route that clients get tokens for.
    resource: String,
    signer: Arc<Signer>,
    clients: Arc<Mutex<HashMap<String, Client>>>,
    asked: Arc<Pending<Request>>,
    /// What was asked for, and the name of who signed in.
    codes: Arc<Pending<(Request, String)>>,
}

/// Whom people sign in to.
#[derive(Clone)]
struct Client {
    name: String,
    redirect_uris: Vec<String>,
}

/// A request that was checked.
struct Request {
    client_id: String,
    /// As it was sent, and as a URL.
    redirect_uri: String,
    redirect_url: Url,
    state: Option<String>,
    code_challenge: String,
}

impl IdentityProvider {
    /// Takes a free port of loopback, where plain http does: nobody else listens there.
    pub async fn bind(application_redirect_uri: String, resource: String) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let application = Client { name: "The gateway".to_owned(), redirect_uris: vec![application_redirect_uri] };
        let shared = Shared {
            issuer: format!("http://{}", listener.local_addr()?),
            application_secret: generate_key_line().context("a secret")?,
            resource,
            signer: Arc::new(Signer::new()?),
            clients: Arc::new(Mutex::new(HashMap::from([(APPLICATION.to_owned(), application)]))),
            asked: Arc::new(Pending::new(PATIENCE)),
            codes: Arc::new(Pending::new(CODE_LIFETIME)),
        };
        Ok(Self { listener, shared })
    }

    pub fn issuer(&self) -> &str {
        &self.shared.issuer
    }

    /// What the application proves itself with.
    pub fn application_secret(&self) -> &str {
        &self.shared.application_secret
    }

    /// Answers until the demo ends.
    pub fn serve(self, servers: &mut JoinSet<String>) {
        let Self { listener, shared } = self;
        let what = format!("the identity provider {}", shared.issuer);
        let app = Router::new()
            .route("/.well-known/openid-configuration", get(metadata))
            .route("/.well-known/oauth-authorization-server", get(metadata))
            .route("/keys", get(keys))
            .route("/register", post(register))
            .route("/authorize", get(authorize).post(sign_in))
            .route("/token", post(token))
            .with_state(shared);
        serving::spawn(servers, what, listener, app);
    }
}

/// RFC 8414, and OpenID Connect Discovery.
async fn metadata(State(provider): State<Shared>) -> Response {
    let issuer = &provider.issuer;
    json_answer(
        StatusCode::OK,
        &json!({
            "issuer": issuer,
            "authorization_endpoint": format!("{issuer}/authorize"),
            "token_endpoint": format!("{issuer}/token"),
            "registration_endpoint": format!("{issuer}/register"),
            "jwks_uri": format!("{issuer}/keys"),
            "response_types_supported": ["code"],
            "grant_types_supported": ["authorization_code"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
            "code_challenge_methods_supported": ["S256"],
            "token_endpoint_auth_methods_supported": ["none", "client_secret_basic"],
            "authorization_response_iss_parameter_supported": true,
        }),
    )
}

async fn keys(State(provider): State<Shared>) -> Response {
    json_answer(StatusCode::OK, &provider.signer.public_keys())
}

/// RFC 7591. Whoever registers is a public client.
async fn register(State(provider): State<Shared>, body: String) -> Response {
    let mut metadata = match serde_json::from_str(&body) {
        Ok(metadata @ Value::Object(_)) => metadata,
        _ => return json_answer(StatusCode::BAD_REQUEST, &json!({"error": "invalid_client_metadata"})),
    };
    let uris = metadata["redirect_uris"].as_array().map(Vec::as_slice).unwrap_or_default();
    let redirect_uris: Vec<String> = uris.iter().filter_map(|uri| uri.as_str().map(str::to_owned)).collect();
    let is_good = |uri: &String| Url::parse(uri).is_ok_and(|url| url.scheme() == "https" || is_loopback(&url));
    if redirect_uris.is_empty() || redirect_uris.len() < uris.len() || !redirect_uris.iter().all(is_good) {
        return json_answer(StatusCode::BAD_REQUEST, &json!({"error": "invalid_redirect_uri"}));
    }
    let Ok(client_id) = generate_key_line() else { return StatusCode::INTERNAL_SERVER_ERROR.into_response() };
    let name = metadata["client_name"].as_str().unwrap_or("An MCP client without a name").to_owned();
    metadata["client_id"] = json!(client_id);
    metadata["token_endpoint_auth_method"] = json!("none");
    metadata["grant_types"] = json!(["authorization_code"]);
    provider.clients().insert(client_id, Client { name, redirect_uris });
    json_answer(StatusCode::CREATED, &metadata)
}

/// Asks who the person is, once the request is known to be good. Whatever is wrong is said on a page.
async fn authorize(State(provider): State<Shared>, RawQuery(query): RawQuery) -> Response {
    let (request, client) = match Request::check(query.as_deref().unwrap_or_default(), &provider) {
        Ok(checked) => checked,
        Err(why) => return refused(&why),
    };
    let resource = (request.client_id != APPLICATION).then_some(provider.resource.as_str());
    let Some(id) = provider.asked.add(request) else { return refused("The system gives no randomness.") };
    let page = SignIn { host: NAME, client_name: &client.name, resource, request: &id };
    pages::page(StatusCode::OK, &page)
}

/// The name that the person gave.
async fn sign_in(State(provider): State<Shared>, body: String) -> Response {
    let sent = form(&body).unwrap_or_default();
    let of = |name| sent.get(name).map(String::as_str).unwrap_or_default();
    let login = of("login").trim();
    if login.is_empty() {
        return refused("There was no name in the form.");
    }
    let Some(request) = provider.asked.take(of("request")) else {
        return refused("This page was used before, or too long ago. Start again where you came from.");
    };
    let (mut location, state) = (request.redirect_url.clone(), request.state.clone());
    let Some(code) = provider.codes.add((request, login.to_owned())) else {
        return refused("The system gives no randomness.");
    };
    location.query_pairs_mut().append_pair("code", &code).append_pair("iss", &provider.issuer);
    if let Some(state) = state {
        location.query_pairs_mut().append_pair("state", &state);
    }
    let headers = [(header::LOCATION, location.as_str()), (header::CACHE_CONTROL, "no-store")];
    (StatusCode::SEE_OTHER, headers).into_response()
}

/// RFC 6749, section 5; OpenID Connect Core, section 3.1.3.
async fn token(State(provider): State<Shared>, headers: HeaderMap, body: String) -> Response {
    match form(&body).map_err(|_| "invalid_request").and_then(|sent| provider.tokens(&headers, &sent)) {
        Ok(tokens) => json_answer(StatusCode::OK, &tokens),
        Err(error) => json_answer(StatusCode::BAD_REQUEST, &json!({"error": error})),
    }
}

impl Shared {
    fn clients(&self) -> MutexGuard<'_, HashMap<String, Client>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tokens for a code, or the error of RFC 6749, section 5.2: an ID token for the application, which is who
    /// signed in, and an access token for the route to an MCP client.
    fn tokens(&self, headers: &HeaderMap, sent: &HashMap<String, String>) -> Result<Value, &'static str> {
        let of = |name| sent.get(name).map(String::as_str).ok_or("invalid_request");
        if of("grant_type")? != "authorization_code" {
            return Err("unsupported_grant_type");
        }
        let (request, login) = self.codes.take(of("code")?).ok_or("invalid_grant")?;
        let challenge = BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(of("code_verifier")?));
        if of("redirect_uri")? != request.redirect_uri || challenge != request.code_challenge {
            return Err("invalid_grant");
        }
        let lifetime = TOKEN_LIFETIME.as_secs();
        if request.client_id != APPLICATION {
            if of("client_id")? != request.client_id {
                return Err("invalid_grant");
            }
            let access_token = self.sign(&login, &self.resource)?;
            return Ok(json!({"access_token": access_token, "token_type": "Bearer", "expires_in": lifetime}));
        }
        let credentials = BASE64_STANDARD.encode(format!("{APPLICATION}:{}", self.application_secret));
        if headers.get(header::AUTHORIZATION).is_none_or(|value| *value != format!("Basic {credentials}")) {
            return Err("invalid_client");
        }
        Ok(json!({
            // It is for nothing: the provider has no more to say of a person.
            "access_token": generate_key_line().map_err(|_| "server_error")?,
            "id_token": self.sign(&login, APPLICATION)?,
            "token_type": "Bearer",
            "expires_in": lifetime,
        }))
    }

    fn sign(&self, login: &str, audience: &str) -> Result<String, &'static str> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|_| "server_error")?.as_secs();
        let claims = json!({
            "iss": self.issuer, "sub": login, "aud": audience, "iat": now, "exp": now + TOKEN_LIFETIME.as_secs(),
        });
        self.signer.sign(&claims).map_err(|_| "server_error")
    }
}

impl Request {
    /// Checks a request, and whose it is; else what is wrong, for the person.
    fn check(query: &str, provider: &Shared) -> Result<(Self, Client), String> {
        let mut sent = form(query)?;
        let state = sent.remove("state");
        let mut take = |name: &str| sent.remove(name).ok_or(format!("The request has no {name}."));
        let (client_id, redirect_uri) = (take("client_id")?, take("redirect_uri")?);
        let client = provider.clients().get(&client_id).cloned();
        let client = client.ok_or("This client is not known here; it may be from an earlier run of the demo.")?;
        let redirect_url = Url::parse(&redirect_uri).map_err(|error| format!("The redirect URI is bad: {error}."))?;
        if !client.redirect_uris.iter().any(|registered| is_redirect_uri(registered, &redirect_url)) {
            return Err(format!("This client has not registered the redirect URI {redirect_uri}."));
        }
        let mut wanted = vec![("response_type", "code"), ("code_challenge_method", "S256")];
        if client_id != APPLICATION {
            wanted.push(("resource", provider.resource.as_str()));
        }
        for (name, wanted) in wanted {
            let value = take(name)?;
            if value != wanted {
                return Err(format!("The request's {name} is {value}; this server takes {wanted} alone."));
            }
        }
        let code_challenge = take("code_challenge")?;
        Ok((Self { client_id, redirect_uri, redirect_url, state, code_challenge }, client))
    }
}

/// To the letter, but that a program on the person's machine listens where there is a free port (RFC 8252, section
/// 7.3).
fn is_redirect_uri(registered: &str, asked: &Url) -> bool {
    let without_port = |url: &Url| {
        let mut url = url.clone();
        let _ = url.set_port(None);
        url
    };
    Url::parse(registered).is_ok_and(|registered| {
        registered == *asked || (is_loopback(asked) && without_port(&registered) == without_port(asked))
    })
}

fn is_loopback(url: &Url) -> bool {
    url.scheme() == "http"
        && match url.host() {
            Some(Host::Domain(name)) => name == "localhost",
            Some(Host::Ipv4(address)) => address.is_loopback(),
            Some(Host::Ipv6(address)) => address.is_loopback(),
            None => false,
        }
}

fn refused(why: &str) -> Response {
    pages::page(StatusCode::BAD_REQUEST, &Message { host: NAME, title: "Nobody is signed in", message: why })
}
