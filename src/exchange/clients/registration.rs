//! The registration of a client (RFC 7591), as it is asked for and as it is answered. What is answered is a stranger's
//! word.

use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{ACCEPT, CONTENT_TYPE},
};
use serde::Serialize;
use url::Url;

use super::{
    credentials::{AuthMethod, Credentials, Proof},
    registrations::Registration,
    secret_file::MAX_SECRET,
};
use crate::{
    exchange::discovery::{error::Problem, members::Members},
    model::{
        client::{ClientId, RedirectUri},
        clock::UnixTime,
        flow::MAX_LIFETIME,
        secret::Secret,
    },
    net::outgoing::packed,
};

/// The longest `client_id` that is taken, in bytes: it goes into an address.
const MAX_CLIENT_ID: usize = 1024;

/// What a client is registered with.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The route's document, whose members are the client's.
    pub document: ClientId,
    pub redirect_uri: RedirectUri,
    pub client_name: String,
    /// The route's public URL.
    pub client_uri: String,
    pub issuer: String,
    pub endpoint: Url,
    pub method: AuthMethod,
}

/// The members of the route's document without its `client_id`, and what only registrations have (RFC 7591, section 2;
/// OpenID Connect Dynamic Client Registration, section 2).
#[derive(Serialize)]
struct ClientMetadata<'a> {
    client_name: &'a str,
    client_uri: &'a str,
    redirect_uris: [&'a str; 1],
    grant_types: [&'static str; 2],
    response_types: [&'static str; 1],
    token_endpoint_auth_method: &'static str,
    application_type: &'static str,
}

impl Wanted {
    /// None where it is no request, which no URL that was checked comes to.
    pub fn request(&self) -> Option<Request<Vec<u8>>> {
        let metadata = ClientMetadata {
            client_name: &self.client_name,
            client_uri: &self.client_uri,
            redirect_uris: [self.redirect_uri.as_str()],
            grant_types: ["authorization_code", "refresh_token"],
            response_types: ["code"],
            token_endpoint_auth_method: self.method.name(),
            application_type: "web",
        };
        let json = HeaderValue::from_static("application/json");
        let request = Request::builder().method(Method::POST).uri(self.endpoint.as_str());
        request.header(ACCEPT, &json).header(CONTENT_TYPE, &json).body(serde_json::to_vec(&metadata).ok()?).ok()
    }

    /// The client that an answer gives us. What it says of managing that (RFC 7592) is not read: an address of a
    /// stranger's choice, and a token for it, are nothing that we need.
    ///
    /// # Errors
    /// Why the answer cannot be used, in words of ours.
    pub fn registration(&self, answer: &Response<Vec<u8>>, now: UnixTime) -> Result<Registration, String> {
        if !answer.status().is_success() {
            return Err(refusal(answer.status(), answer.body()));
        }
        let members = Members::read(answer.body()).map_err(|why| {
            let why = packed(answer.headers()).unwrap_or(why);
            format!("the registration endpoint answered with a success that cannot be used: {why}")
        })?;
        let unusable = |problem: Problem| format!("the registration endpoint's answer: {problem}");
        let credentials = self.credentials(&members).map_err(unusable)?;
        let expires_at = match credentials.proof {
            Proof::None => None,
            Proof::Basic(_) | Proof::Post(_) => members.seconds("client_secret_expires_at").map_err(unusable)?,
        };
        // Zero means never.
        let expires_at = expires_at.filter(|seconds| *seconds > 0).map(UnixTime::from_secs);
        let registration =
            Registration { credentials, redirect_uri: self.redirect_uri.clone(), registered_at: now, expires_at };
        if registration.ends_within_a_flow(now) {
            return Err(format!(
                "the registration endpoint's answer: the secret ends within the {} minutes that a sign-in may take",
                MAX_LIFETIME / 60
            ));
        }
        Ok(registration)
    }

    fn credentials(&self, members: &Members) -> Result<Credentials, Problem> {
        let client_id = members.text("client_id")?.ok_or(Problem::Lacks("client_id"))?;
        if !is_visible(&client_id, MAX_CLIENT_ID) {
            return Err(Problem::WrongType("client_id"));
        }
        // A server says what it made of the request, and may have made something else of it (section 3.2.1).
        let lacks =
            |list: Option<Vec<String>>, item: &str| list.is_some_and(|list| !list.iter().any(|one| one == item));
        if lacks(members.list("redirect_uris")?, self.redirect_uri.as_str()) {
            return Err(Problem::Unsupported("our redirect URI (`redirect_uris`)"));
        }
        if lacks(members.list("grant_types")?, "authorization_code") {
            return Err(Problem::Unsupported("the authorization code grant for this client (`grant_types`)"));
        }
        let secret = members.text("client_secret")?;
        if secret.as_ref().is_some_and(|secret| !is_visible(secret, MAX_SECRET)) {
            return Err(Problem::WrongType("client_secret"));
        }
        let method = match members.text("token_endpoint_auth_method")?.as_deref() {
            // Section 2: what is not said is `client_secret_basic`, for which there must be a secret.
            None if secret.is_some() => AuthMethod::ClientSecretBasic,
            None | Some("none") => AuthMethod::None,
            Some("client_secret_basic") => AuthMethod::ClientSecretBasic,
            Some("client_secret_post") => AuthMethod::ClientSecretPost,
            Some(_) => {
                return Err(Problem::Demands(
                    "another `token_endpoint_auth_method` than none, client_secret_basic and client_secret_post",
                ));
            }
        };
        // With `none`, a client has no secret (section 2): one that comes all the same is neither sent nor kept.
        let proof = Proof::new(method, secret.map(Secret::new)).ok_or(Problem::Lacks("client_secret"))?;
        Ok(Credentials { client_id, proof })
    }
}

fn is_visible(text: &str, longest: usize) -> bool {
    !text.is_empty() && text.len() <= longest && text.bytes().all(|byte| matches!(byte, b' '..=b'~'))
}

/// What went wrong, with the error's code (section 3.2.2) if it is a registered one, else `other`.
fn refusal(status: StatusCode, body: &[u8]) -> String {
    const CODES: [&str; 6] = [
        "access_denied",
        "invalid_client_metadata",
        "invalid_redirect_uri",
        "invalid_software_statement",
        "invalid_token",
        "unapproved_software_statement",
    ];
    let code = Members::read(body).ok().and_then(|members| members.text("error").ok().flatten());
    let code = code.map(|code| CODES.into_iter().find(|known| *known == code).unwrap_or("other"));
    let with_code = code.map(|code| format!(" with the error `{code}`")).unwrap_or_default();
    let advice = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            "; it registers only whom its operator lets in: register a client by hand, for `clients:`"
        }
        _ => "",
    };
    format!("the registration endpoint answered {}{with_code}{advice}", status.as_u16())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

    fn wanted() -> Wanted {
        Wanted {
            document: ClientId::new("https://a.example/.well-known/mcp-client-metadata.json"),
            redirect_uri: RedirectUri::new("https://a.example/callback"),
            client_name: "A \"client\"".to_owned(),
            client_uri: "https://a.example".to_owned(),
            issuer: "https://as.example".to_owned(),
            endpoint: Url::parse("https://as.example/register").expect("a URL"),
            method: AuthMethod::None,
        }
    }

    fn answered(status: u16, body: &str) -> Result<Registration, String> {
        let answer = Response::builder().status(status).body(body.as_bytes().to_vec()).expect("an answer");
        wanted().registration(&answer, NOW)
    }

    #[test]
    fn the_members_are_the_documents() {
        let request = wanted().request().expect("a request");
        assert_eq!(
            (request.method(), request.uri().to_string().as_str()),
            (&Method::POST, "https://as.example/register")
        );
        let body: Value = serde_json::from_slice(request.body()).expect("JSON");
        let expected = json!({
            "client_name": "A \"client\"",
            "client_uri": "https://a.example",
            "redirect_uris": ["https://a.example/callback"],
            "grant_types": ["authorization_code", "refresh_token"],
            "response_types": ["code"],
            "token_endpoint_auth_method": "none",
            "application_type": "web",
        });
        assert_eq!(body, expected);
    }

    /// What is taken, as far as it is safe.
    #[test]
    fn what_a_server_may_make_of_it() {
        let secret = || Secret::new("SECRET");
        for (answer, proof) in [
            (json!({}), Proof::None),
            (
                json!({"token_endpoint_auth_method": "none", "client_secret": "SECRET", "client_secret_expires_at": 1}),
                Proof::None,
            ),
            (json!({"client_secret": "SECRET"}), Proof::Basic(secret())),
            (
                json!({"client_secret": "SECRET", "token_endpoint_auth_method": "client_secret_post"}),
                Proof::Post(secret()),
            ),
            (json!({"client_secret": "SECRET", "client_secret_expires_at": 0}), Proof::Basic(secret())),
            (json!({"redirect_uris": ["https://b.example", "https://a.example/callback"]}), Proof::None),
            (json!({"registration_client_uri": 1, "registration_access_token": 2, "scope": null}), Proof::None),
        ] {
            let mut body = answer.clone();
            body["client_id"] = json!("c");
            let registration = answered(201, &body.to_string()).unwrap_or_else(|why| panic!("{answer}: {why}"));
            assert_eq!(registration.credentials, Credentials { client_id: "c".to_owned(), proof }, "{answer}");
            assert_eq!(registration.expires_at, None, "{answer}");
        }
        let expires = json!({"client_id": "c", "client_secret": "s", "client_secret_expires_at": "1800000601"});
        assert_eq!(answered(200, &expires.to_string()).expect("taken").expires_at, Some(NOW + 601));
    }

    #[test]
    fn what_cannot_be_used_has_words_of_ours() {
        let long = "x".repeat(5_000);
        let in_a_minute =
            json!({"client_id": "c", "client_secret": "SECRET", "client_secret_expires_at": NOW.secs() + 60});
        let with = |member: &str, value: Value| {
            let mut body = json!({"client_id": "c"});
            body[member] = value;
            body.to_string()
        };
        for (status, body, words) in [
            (
                400,
                r#"{"error":"invalid_client_metadata","error_description":"SECRET"}"#.to_owned(),
                "answered 400 with the error `invalid_client_metadata`",
            ),
            (400, r#"{"error":"SECRET"}"#.to_owned(), "answered 400 with the error `other`"),
            (401, "SECRET".to_owned(), "answered 401; it registers only whom its operator lets in"),
            (307, String::new(), "answered 307"),
            (500, "<h1>SECRET".to_owned(), "answered 500"),
            (200, "<h1>SECRET".to_owned(), "answered with a success that cannot be used: it is not JSON"),
            (201, "[]".to_owned(), "it is not a JSON object"),
            (201, "{}".to_owned(), "answer: its metadata lacks `client_id`"),
            (201, r#"{"client_id":"a","client_id":"b"}"#.to_owned(), "`client_id` is there twice"),
            (201, with("client_id", json!(1)), "`client_id` has another type"),
            (201, with("client_id", json!(long)), "`client_id` has another type"),
            (201, with("client_secret", json!(long)), "`client_secret` has another type"),
            (201, with("client_secret", json!("SECRET\n")), "`client_secret` has another type"),
            (201, with("redirect_uris", json!(["https://SECRET.example"])), "it does not support our redirect URI"),
            (201, with("grant_types", json!(["SECRET"])), "the authorization code grant for this client"),
            (
                201,
                with("token_endpoint_auth_method", json!("private_key_jwt")),
                "it demands another `token_endpoint_auth_method`",
            ),
            (201, with("token_endpoint_auth_method", json!("client_secret_post")), "lacks `client_secret`"),
            (201, in_a_minute.to_string(), "the secret ends within the 10 minutes that a sign-in may take"),
        ] {
            let error = answered(status, &body).expect_err(&body);
            assert!(error.contains(words) && !error.contains("SECRET"), "{body}: {error}");
        }
    }
}
