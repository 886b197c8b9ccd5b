//! An identity provider in the test, as a company has one: people sign in to an application, and MCP clients get tokens
//! for a route. It does what the test says, and no more. For one that nobody here wrote, `make e2e` has oidc-provider.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, AtomicUsize, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::IntoResponse,
    routing::{get, post},
};
use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use hmac::{Hmac, Mac};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::{sync::watch, time::timeout};
use url::{Url, form_urlencoded};

use crate::stack::PATIENCE;

/// The application that people sign in to.
pub const APPLICATION: &str = "gateway";
pub const APPLICATION_SECRET: &str = "SECRET-of-the-application";

/// A token's life, in seconds.
pub const LIFE: i64 = 3600;

pub struct IdentityProvider {
    pub issuer: String,
    shared: Arc<Shared>,
}

/// What it does now.
#[derive(Clone)]
pub struct Manners {
    /// The keys that it publishes, of which the first one signs.
    pub keys: Vec<&'static str>,
    /// Whether it answers nothing but 503.
    pub is_down: bool,
    /// How long a session lasts, in seconds.
    pub session: i64,
    /// Whether sessions can be renewed.
    pub renews: bool,
    /// Whether each application knows a person by another `sub`; by `oid`, all know the same.
    pub is_pairwise: bool,
    /// Whether its tokens say from when on they are good.
    pub says_not_before: bool,
    /// How long its tokens live, in seconds.
    pub life: i64,
}

struct Shared {
    issuer: String,
    manners: Mutex<Manners>,
    /// How far its clock is ahead, in seconds.
    ahead: AtomicI64,
    codes: Mutex<HashMap<String, Consent>>,
    sessions: Mutex<HashMap<String, String>>,
    /// How often it was asked for its keys, whether it told them or not.
    asked: watch::Sender<usize>,
    given: AtomicUsize,
    /// What no log may hold.
    secrets: Mutex<Vec<String>>,
}

struct Consent {
    subject: String,
    redirect_uri: String,
    challenge: String,
}

impl IdentityProvider {
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let issuer = format!("http://{}", listener.local_addr().expect("an address"));
        let manners = Manners {
            keys: vec!["first"],
            is_down: false,
            session: LIFE,
            renews: false,
            is_pairwise: false,
            says_not_before: false,
            life: LIFE,
        };
        let shared = Arc::new(Shared {
            issuer: issuer.clone(),
            manners: Mutex::new(manners),
            ahead: AtomicI64::new(0),
            codes: Mutex::default(),
            sessions: Mutex::default(),
            asked: watch::Sender::new(0),
            given: AtomicUsize::new(0),
            secrets: Mutex::new(vec![APPLICATION_SECRET.to_owned()]),
        });
        let app =
            Router::new().route("/keys", get(publish)).route("/token", post(redeem)).with_state(Arc::clone(&shared));
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { issuer, shared }
    }

    /// Changes what it does.
    pub fn behave(&self, change: impl FnOnce(&mut Manners)) {
        change(&mut self.shared.manners.lock().expect("manners"));
    }

    /// Sets its clock.
    pub fn is_ahead(&self, seconds: i64) {
        self.shared.ahead.store(seconds, Ordering::Relaxed);
    }

    /// Lets a person sign in whom Envoy sent here; the path that the browser comes back to.
    pub fn consent(&self, location: &str, subject: &str) -> String {
        let url = Url::parse(location).expect("a URL");
        assert!(location.starts_with(&format!("{}/authorize?", self.issuer)), "{location}");
        let query: HashMap<String, String> = url.query_pairs().into_owned().collect();
        assert_eq!(query["client_id"], APPLICATION);
        assert_eq!(query["response_type"], "code");
        assert_eq!(query["code_challenge_method"], "S256");
        assert!(query["scope"].split(' ').any(|scope| scope == "openid"), "{location}");
        let code = self.shared.secret("code");
        let redirect_uri = Url::parse(&query["redirect_uri"]).expect("a URL");
        let consent = Consent {
            subject: subject.to_owned(),
            redirect_uri: query["redirect_uri"].clone(),
            challenge: query["code_challenge"].clone(),
        };
        self.shared.codes.lock().expect("codes").insert(code.clone(), consent);
        let back = form_urlencoded::Serializer::new(String::new())
            .append_pair("code", &code)
            .append_pair("state", &query["state"])
            .finish();
        format!("{}?{back}", redirect_uri.path())
    }

    /// The token that an MCP client of this person gets for this resource.
    pub fn token(&self, subject: &str, resource: &str) -> String {
        self.shared.token(subject, resource, "of an MCP client")
    }

    /// The token that says who signed in to the application.
    pub fn id_token(&self, subject: &str) -> String {
        self.shared.token(subject, APPLICATION, APPLICATION)
    }

    /// Any claims, under its signature.
    pub fn sign(&self, claims: &Value) -> String {
        self.shared.sign(claims)
    }

    /// How often it was asked for its keys.
    pub fn asked(&self) -> usize {
        *self.shared.asked.borrow()
    }

    /// Waits until it was asked for its keys so often.
    pub async fn asked_by(&self, times: usize) {
        let mut asked = self.shared.asked.subscribe();
        let waited = timeout(PATIENCE, asked.wait_for(|asked| *asked >= times)).await;
        waited.expect("it is asked").expect("it runs");
    }

    /// Lets logs hold a token.
    pub fn told(&self, token: &str) {
        self.shared.secrets.lock().expect("secrets").retain(|secret| secret != token);
    }

    /// What no log may hold.
    pub fn secrets(&self) -> Vec<String> {
        self.shared.secrets.lock().expect("secrets").clone()
    }
}

impl Shared {
    fn manners(&self) -> Manners {
        self.manners.lock().expect("manners").clone()
    }

    /// A text that is given out once.
    fn secret(&self, what: &str) -> String {
        let secret = format!("SECRET-{what}-{}", self.given.fetch_add(1, Ordering::Relaxed));
        self.secrets.lock().expect("secrets").push(secret.clone());
        secret
    }

    fn token(&self, subject: &str, audience: &str, application: &str) -> String {
        let manners = self.manners();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time").as_secs();
        let now = i64::try_from(now).expect("a time") + self.ahead.load(Ordering::Relaxed);
        let of_application =
            if manners.is_pairwise { format!("{subject} of {application}") } else { subject.to_owned() };
        let mut claims = json!({
            "iss": self.issuer, "aud": audience, "sub": of_application, "oid": subject,
            "iat": now, "exp": now + manners.life,
        });
        if manners.says_not_before {
            claims["nbf"] = json!(now);
        }
        self.sign(&claims)
    }

    fn sign(&self, claims: &Value) -> String {
        let key = self.manners().keys[0];
        let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&json!({"alg": "HS256", "kid": key})), part(claims));
        let mut mac = Hmac::<Sha256>::new_from_slice(&bytes_of(key)).expect("a key");
        mac.update(signed.as_bytes());
        let token = format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes()));
        self.secrets.lock().expect("secrets").push(token.clone());
        token
    }
}

fn bytes_of(key: &str) -> Vec<u8> {
    format!("a key of the test, thirty-two bytes and more: {key}").into_bytes()
}

/// A key is secret and public here, since nobody but the test has it.
async fn publish(State(shared): State<Arc<Shared>>) -> Result<impl IntoResponse, StatusCode> {
    let manners = shared.manners();
    let answer = (!manners.is_down).then(|| {
        let keys: Vec<Value> = manners
            .keys
            .iter()
            .map(|key| {
                json!({"kty": "oct", "alg": "HS256", "kid": key, "k": BASE64_URL_SAFE_NO_PAD.encode(bytes_of(key))})
            })
            .collect();
        as_json(&json!({"keys": keys}))
    });
    shared.asked.send_modify(|asked| *asked += 1);
    answer.ok_or(StatusCode::SERVICE_UNAVAILABLE)
}

async fn redeem(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    body: String,
) -> Result<impl IntoResponse, StatusCode> {
    let manners = shared.manners();
    if manners.is_down {
        return Err(StatusCode::SERVICE_UNAVAILABLE);
    }
    let basic = format!("Basic {}", BASE64_STANDARD.encode(format!("{APPLICATION}:{APPLICATION_SECRET}")));
    let form: HashMap<String, String> = form_urlencoded::parse(body.as_bytes()).into_owned().collect();
    if headers.get("authorization").is_none_or(|value| *value != *basic) {
        return Err(StatusCode::UNAUTHORIZED);
    }
    let field = |name: &str| form.get(name).cloned().unwrap_or_default();
    let subject = match field("grant_type").as_str() {
        "authorization_code" => {
            let consent = shared.codes.lock().expect("codes").remove(&field("code")).ok_or(StatusCode::BAD_REQUEST)?;
            let proof = BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(field("code_verifier")));
            if proof != consent.challenge || field("redirect_uri") != consent.redirect_uri {
                return Err(StatusCode::BAD_REQUEST);
            }
            consent.subject
        }
        "refresh_token" => {
            shared.sessions.lock().expect("sessions").remove(&field("refresh_token")).ok_or(StatusCode::BAD_REQUEST)?
        }
        _ => return Err(StatusCode::BAD_REQUEST),
    };
    let mut answer = json!({
        "token_type": "Bearer",
        "access_token": shared.secret("access-token"),
        "id_token": shared.token(&subject, APPLICATION, APPLICATION),
        "expires_in": manners.session,
    });
    if manners.renews {
        let renewal = shared.secret("refresh-token");
        shared.sessions.lock().expect("sessions").insert(renewal.clone(), subject);
        answer["refresh_token"] = json!(renewal);
    }
    Ok(as_json(&answer))
}

fn as_json(value: &Value) -> impl IntoResponse + use<> {
    ([("content-type", "application/json")], value.to_string())
}
