//! Who sends MCP requests: people whom a filter before ours finds in headers, and whose tokens a store has.

use std::{
    path::Path,
    pin::pin,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use envoy_cimd::{
    contract::tokens::{TokenOwner, TokenTag},
    edge::roles::ROLE_KEY,
    exchange::records::TokenRecord,
    model::{clock::UnixTime, paths::Paths, secret::Secret, user::User},
    store::{
        keys::{Issuer, Resource, RouteKey, TokenKey},
        open::Opened,
        url::StoreUrl,
        vault::Place,
    },
};
use envoy_types::pb::{
    envoy::{
        config::core::v3::Metadata,
        service::ext_proc::v3::{
            ProcessingRequest, external_processor_client::ExternalProcessorClient, processing_response::Response,
        },
    },
    google::protobuf::{Struct, Value, value::Kind},
};
use futures_util::StreamExt;
use serde_json::json;
use tonic::transport::Channel;

use crate::{
    stack::{
        Call,
        in_process::{self, attribute, message},
    },
    upstream::SHOW,
};

/// The one route, whose listeners differ in their filters alone.
pub const HOST: &str = "mcp.bench.example";
/// Where the filter of [`who`] names people.
pub const NAMESPACE: &str = "who";
pub const WHO: [&str; 3] = ["--user-namespace=who", "--user-issuer=iss", "--user-subject=sub"];
/// What MCP's transport has a client send with each request.
pub const TRANSPORT: [(&str, &str); 4] = [
    ("accept", "application/json, text/event-stream"),
    ("content-type", "application/json"),
    ("mcp-protocol-version", "2025-11-25"),
    ("x-issuer", ISSUER),
];

const ISSUER: &str = "https://idp.bench.example";
const AUTHORIZATION_SERVER: &str = "https://as.bench.example";
const BODY: &str =
    r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"search","arguments":{"q":"envoy"}}}"#;
/// As long as the access tokens are that are JWTs.
const TOKEN_LENGTH: usize = 1000;
/// How far the next one is: nobody comes soon after themselves.
const STEP: usize = 7919;

/// So many in turn.
pub struct People {
    count: usize,
    /// Whose turn it is.
    next: AtomicUsize,
}

impl People {
    pub fn new(count: usize) -> Self {
        Self { count, next: AtomicUsize::new(0) }
    }

    /// How many requests let each of them send one.
    pub fn count(&self) -> u64 {
        self.count as u64
    }

    /// The next run goes on where this one ended.
    pub fn sent(&self, requests: u64) {
        let requests = usize::try_from(requests).expect("few");
        self.next.store((self.next.load(Relaxed) + requests % self.count * STEP) % self.count, Relaxed);
    }

    /// A request of the first of them.
    pub fn first(&self, call: Call) -> Call {
        call.method("POST").header("x-subject", subject("000000")).header(SHOW, "1").body(BODY)
    }

    /// The same work for one as for many.
    pub fn script(&self) -> String {
        let (count, next) = (self.count, self.next.load(Relaxed));
        format!(
            "local turn = {next}\n\
             request = function()\n\
               turn = (turn + {STEP}) % {count}\n\
               wrk.headers['x-subject'] = string.format('{}', turn)\n\
               return wrk.format('POST', nil, nil, '{BODY}')\n\
             end\n",
            subject("%06d")
        )
    }
}

/// The stand-in for an authentication filter.
pub fn who() -> serde_json::Value {
    let rule = |header, key| json!({"header": header, "remove": true, "on_header_present": {"metadata_namespace": NAMESPACE, "key": key}});
    json!({"name": NAMESPACE, "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.header_to_metadata.v3.Config",
        "request_rules": [rule("x-issuer", "iss"), rule("x-subject", "sub")],
    }})
}

/// `authorization` with a person's token.
pub fn authorization(person: usize) -> String {
    format!("Bearer {}", token(person))
}

/// A file store with a token of each, and its keys beside it. Each is put there by itself, as a flow would do it.
pub async fn fill(store: &Path, count: usize, upstream: &str) {
    let open = StoreUrl::File(store.to_owned()).open(None, None).await.expect("a store");
    put(&open, 0..count, upstream).await;
}

/// Puts the tokens of people into a store.
pub async fn put(open: &Opened, people: std::ops::Range<usize>, upstream: &str) {
    for person in people {
        let TokenOwner { user, client_id, upstream } = owner(person, upstream);
        let key = TokenKey::of(&user, &client_id, Issuer(AUTHORIZATION_SERVER), Resource(&upstream.url));
        let route = RouteKey::of(&user, &client_id, &upstream.url);
        let record = TokenRecord {
            access_token: Secret::new(token(person)),
            refresh_token: None,
            issued_at: UnixTime::now(),
            since: None,
            expires_at: Some(UnixTime::now() + 86_400),
            scope: None,
            issuer: AUTHORIZATION_SERVER.to_owned(),
            token_endpoint: format!("{AUTHORIZATION_SERVER}/token"),
            revocation_endpoint: None,
            resource: upstream.url.clone(),
            client_id,
            tag: Some(TokenTag(std::array::from_fn(|byte| (person >> (8 * (byte % 4))) as u8))),
            refused: None,
            ended: false,
            step_up: Default::default(),
            acts_as: Default::default(),
        };
        let sealed = open.seal(Place::Token(&key), &record).expect("a key");
        open.store.put_token(key, route, sealed).await.expect("it is kept");
    }
}

/// Has a person's token put into a request, as Envoy would ask for it.
pub async fn ask(channel: &Channel, person: usize, upstream: &str) {
    let text = |text: &str| Value { kind: Some(Kind::StringValue(text.to_owned())) };
    let claims = [("iss".to_owned(), text(ISSUER)), ("sub".to_owned(), text(&subject(&format!("{person:06}"))))];
    let metadata = [(NAMESPACE.to_owned(), Struct { fields: claims.into() })];
    let from = format!("https://{HOST}");
    let pairs = [(":method", "POST"), (":scheme", "https"), (":authority", HOST), (":path", "/mcp")];
    let attributes = [(attribute("route", "from"), from.as_str()), (attribute("route", "to"), upstream)];
    let message = ProcessingRequest {
        metadata_context: Some(Metadata { filter_metadata: metadata.into(), ..Metadata::default() }),
        ..message(&pairs, &attributes)
    };
    let mut request = tonic::Request::new(tokio_stream::once(message));
    request.metadata_mut().insert(ROLE_KEY, "traffic".parse().expect("a value"));
    let answers = ExternalProcessorClient::new(channel.clone()).process(request).await.expect("a stream");
    // The first asks for time, where the token has to be fetched.
    let answer = answers.into_inner().filter_map(async |answer| answer.expect("an answer").response);
    let Some(Response::RequestHeaders(answer)) = pin!(answer).next().await else { panic!("no token was put in") };
    let set = answer.response.and_then(|change| change.header_mutation).expect("a change").set_headers;
    assert_eq!(set[0].header.as_ref().expect("a header").raw_value, authorization(person).as_bytes(), "another token");
}

/// Whose token a person has.
pub fn owner(person: usize, upstream: &str) -> TokenOwner {
    let user = User::Subject { issuer: ISSUER.to_owned(), subject: subject(&format!("{person:06}")) };
    let from = format!("https://{HOST}").parse().expect("a public URL");
    in_process::owner(user, Paths::default().client_id(&from).as_str(), upstream)
}

fn token(person: usize) -> String {
    format!("{person:0>TOKEN_LENGTH$}")
}

fn subject(number: &str) -> String {
    format!("auth0|6f1d2c3b4a59687{number}")
}
