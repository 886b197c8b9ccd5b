//! The choreographer against an authorization server that may lie: what is refused, with which words for an operator,
//! and that a token that cannot be used is never stored.

use std::{path::Path, time::Duration};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use envoy_cimd::{
    contract::proto::{
        self, BeginAuthorizationRequest, CompleteAuthorizationRequest, DescribeUpstreamRequest, DisconnectRequest,
        DisconnectResponse, authorization_choreographer_client::AuthorizationChoreographerClient,
        begin_authorization_response, begin_refusal, complete_authorization_request::Answer,
        complete_authorization_response, complete_refusal::Reason,
    },
    exchange::embedded::{Config, Embedded},
    model::{
        client::RedirectUri,
        flow::{BrowserHash, FlowId},
        user::User,
    },
    store::{
        keys::{Context, FlowKey},
        vault,
    },
};
use http::Version;
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use crate::{
    authorization_server::{HOST, Lie, Servers, Token},
    flow::press_shown,
    stack::{Call, Certificates, Choreographer, in_process::owner},
    store::Redis,
    tokens::Kept,
    world::{CALLBACK as PATH, Wish, World, executable},
};

pub const CLIENT: &str = "https://notes.localhost/.well-known/mcp-client-metadata.json";
const CONFIG: &str = "config.yaml";
const LATE: &str = "the token endpoint did not answer within 5 s";
pub const CALLBACK: &str = "https://notes.localhost/.pomerium/oauth/callback";

/// A choreographer in a process of its own, and the servers that it finds.
pub struct Party {
    pub servers: Servers,
    pub process: Choreographer,
    client: AuthorizationChoreographerClient<Channel>,
    pub ca: String,
    pub dir: TempDir,
}

impl Party {
    pub async fn start(lies: Vec<Lie>, flags: &[&str]) -> Self {
        Self::with_clients(lies, flags, |_, _| String::new()).await
    }

    /// The same with a config file of `clients:`, which [`Self::configure`] can change. They are of these servers, and may
    /// have their secrets in this folder.
    pub async fn with_clients(lies: Vec<Lie>, flags: &[&str], clients: impl FnOnce(&Servers, &Path) -> String) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let certificates = Certificates::make(dir.path(), &[HOST]);
        let servers = Servers::start(&certificates, lies).await;
        let ca = certificates.ca.to_str().expect("text").to_owned();
        let state = dir.path().join("state");
        let mut all = vec!["--extra-ca", &ca, "--state-dir", state.to_str().expect("text")];
        if !flags.contains(&"--allow-host") {
            all.extend(["--allow-host", HOST]);
        }
        // All that the libraries below can say, so that the scan for secrets at the end means something.
        if !flags.iter().any(|flag| flag.starts_with("--log=")) {
            all.push("--log=trace");
        }
        let config = dir.path().join(CONFIG);
        std::fs::write(&config, clients(&servers, dir.path())).expect("written");
        all.extend(["--config", config.to_str().expect("text")]);
        all.extend(flags);
        let process = Choreographer::start(&executable(), &all).await;
        let endpoint = Endpoint::from_shared(format!("http://{}", process.address)).expect("an address");
        let client = AuthorizationChoreographerClient::new(endpoint.connect().await.expect("a connection"));
        Self { servers, process, client, ca, dir }
    }

    /// Writes the config file anew.
    pub fn configure(&self, content: &str) {
        std::fs::write(self.dir.path().join(CONFIG), content).expect("written");
    }

    async fn begin(&self, name: &str) -> begin_authorization_response::Outcome {
        self.begin_with(self.request(name)).await
    }

    pub fn request(&self, name: &str) -> BeginAuthorizationRequest {
        BeginAuthorizationRequest {
            client_id: CLIENT.to_owned(),
            redirect_uri: CALLBACK.to_owned(),
            upstream: self.servers.upstream_of(name),
            authorization_server: String::new(),
            user: Some(single()),
            browser_hash: vec![7; 32],
            return_to: "/after".to_owned(),
            shown_issuer: format!("{}/{name}", self.servers.issuer),
            ..BeginAuthorizationRequest::default()
        }
    }

    /// As the filter does, over the choreographer's own service.
    pub async fn disconnect(&self, request: DisconnectRequest) -> DisconnectResponse {
        self.client.clone().disconnect(request).await.expect("an answer").into_inner()
    }

    pub async fn begin_with(&self, request: BeginAuthorizationRequest) -> begin_authorization_response::Outcome {
        let answer = self.client.clone().begin_authorization(request).await.expect("an answer");
        answer.into_inner().outcome.expect("an outcome")
    }

    /// What a page would show.
    pub async fn describe(&self, upstream: &str) -> String {
        let request = DescribeUpstreamRequest {
            upstream: upstream.to_owned(),
            authorization_server: String::new(),
            client_id: CLIENT.to_owned(),
            ..DescribeUpstreamRequest::default()
        };
        let answer = self.client.clone().describe_upstream(request).await.expect("an answer");
        answer.into_inner().authorization_server
    }

    async fn begun(&self, name: &str) -> proto::Begun {
        match self.begin(name).await {
            begin_authorization_response::Outcome::Begun(begun) => begun,
            begin_authorization_response::Outcome::Refusal(refusal) => panic!("{name}: {refusal:?}"),
        }
    }

    /// Where the person goes on; else why not, with where they may go on, or the cause.
    pub async fn complete(&self, request: CompleteAuthorizationRequest) -> Result<String, (Reason, String)> {
        self.try_to_complete(request).await.expect("an answer")
    }

    /// The same, where the choreographer may not be able to say.
    pub async fn try_to_complete(
        &self,
        request: CompleteAuthorizationRequest,
    ) -> Result<Result<String, (Reason, String)>, Status> {
        let answer = self.client.clone().complete_authorization(request).await?.into_inner();
        Ok(match answer.outcome.expect("an outcome") {
            complete_authorization_response::Outcome::Completed(completed) => Ok(completed.return_to),
            complete_authorization_response::Outcome::Refusal(refusal) => Err(match refusal.reason() {
                Reason::AlreadyUsed => (Reason::AlreadyUsed, refusal.return_to),
                reason => (reason, refusal.message),
            }),
        })
    }

    /// What an honest browser comes back with.
    pub fn answer(&self, name: &str, begun: &proto::Begun) -> CompleteAuthorizationRequest {
        CompleteAuthorizationRequest {
            flow_id: begun.flow_id.clone(),
            redirect_uri: CALLBACK.to_owned(),
            user: Some(single()),
            browser_hash: vec![7; 32],
            answer: Some(Answer::Code(self.servers.consent(&begun.authorization_url))),
            iss: Some(format!("{}/{name}", self.servers.issuer)),
        }
    }

    /// Ends the process, and looks into its store: the access token of an upstream. Its log holds no secret.
    pub async fn stored(&mut self, names: &[&str]) -> Vec<Option<String>> {
        assert_eq!(self.process.process.stop().await, Some(0));
        let log = self.process.process.output();
        assert!(!log.contains("SECRET"), "{log}");
        self.stored_now(names).await
    }

    /// The same, once the process has ended.
    pub async fn stored_now(&self, names: &[&str]) -> Vec<Option<String>> {
        let state = self.dir.path().join("state");
        let store = vault::Config { state_dir: Some(state), ..vault::Config::default() };
        let embedded = Embedded::new(Config { store, ..Config::default() }).expect("good settings");
        let mut tokens = Vec::new();
        for name in names {
            let token = embedded.tokens.record(&owner(User::Single, CLIENT, &self.servers.upstream_of(name))).await;
            tokens.push(token.expect("a store").map(|token| token.access_token.expose().to_owned()));
        }
        tokens
    }
}

pub fn single() -> proto::User {
    proto::User { kind: Some(proto::user::Kind::SingleUser(proto::SingleUser {})) }
}

pub fn refused(outcome: &begin_authorization_response::Outcome) -> (begin_refusal::Reason, &str) {
    match outcome {
        begin_authorization_response::Outcome::Refusal(refusal) => (refusal.reason(), &refusal.message),
        begin_authorization_response::Outcome::Begun(_) => panic!("it began"),
    }
}

/// Each lie of the metadata, and what an operator reads.
#[tokio::test]
async fn metadata_that_lies() {
    fn set(document: &mut Value, member: &str, value: Value) {
        document[member] = value;
    }
    macro_rules! lies {
        ($(($name:literal, $part:ident, $change:expr, $words:expr),)*) => {
            (vec![$(Lie { $part: $change, ..Lie::none($name) }),*], vec![$(($name, $words)),*])
        };
    }
    fn without(document: &mut Value, member: &str) {
        document.as_object_mut().expect("an object").remove(member);
    }
    let (lies, rows) = lies![
        (
            "other-issuer",
            metadata,
            |d| set(d, "issuer", json!("https://evil.example")),
            "names the issuer https://evil.example, which is another"
        ),
        (
            "issuer-with-slash",
            metadata,
            |d| {
                let issuer = format!("{}/", d["issuer"].as_str().expect("text"));
                set(d, "issuer", json!(issuer))
            },
            "which is another"
        ),
        (
            "no-s256",
            metadata,
            |d| set(d, "code_challenge_methods_supported", json!(["plain"])),
            "does not support PKCE with S256"
        ),
        ("no-pkce", metadata, |d| without(d, "code_challenge_methods_supported"), "does not support PKCE with S256"),
        (
            "no-cimd",
            metadata,
            |d| without(d, "client_id_metadata_document_supported"),
            "does not support client ID metadata documents"
        ),
        (
            "cimd-off",
            metadata,
            |d| set(d, "client_id_metadata_document_supported", json!(false)),
            "does not support client ID metadata documents"
        ),
        (
            "no-code-grant",
            metadata,
            |d| set(d, "grant_types_supported", json!(["client_credentials"])),
            "does not support the authorization code grant"
        ),
        (
            "no-code-type",
            metadata,
            |d| set(d, "response_types_supported", json!(["token"])),
            "does not support the response type `code`"
        ),
        ("no-token-endpoint", metadata, |d| without(d, "token_endpoint"), "lacks `token_endpoint`"),
        (
            "no-authorization-endpoint",
            metadata,
            |d| without(d, "authorization_endpoint"),
            "lacks `authorization_endpoint`"
        ),
        (
            "bad-endpoint",
            metadata,
            |d| set(d, "token_endpoint", json!("nowhere")),
            "`token_endpoint` is not a well-formed URL"
        ),
        ("plain-endpoint", metadata, |d| set(d, "token_endpoint", json!("http://as.example/token")), "must be https"),
        ("plain-page", metadata, |d| set(d, "authorization_endpoint", json!("javascript:alert(1)")), "must be https"),
        ("loopback", metadata, |d| set(d, "token_endpoint", json!("https://127.0.0.1/token")), "127.0.0.1 is"),
        (
            "cloud-metadata",
            metadata,
            |d| set(d, "token_endpoint", json!("https://169.254.169.254/token")),
            "169.254.169.254 is"
        ),
        (
            "mapped",
            metadata,
            |d| set(d, "token_endpoint", json!("https://[::ffff:127.0.0.1]/token")),
            "::ffff:127.0.0.1 is"
        ),
        ("decimal", metadata, |d| set(d, "token_endpoint", json!("https://2130706433/token")), "127.0.0.1 is"),
        ("no-json", metadata, |d| *d = json!("text"), "is not metadata: it is not a JSON object"),
        ("a-list", metadata, |d| set(d, "issuer", json!([])), "`issuer` has another type than it must have"),
        (
            "another-type",
            metadata,
            |d| set(d, "code_challenge_methods_supported", json!("SECRET")),
            "`code_challenge_methods_supported` has another type than it must have"
        ),
        (
            "other-resource",
            resource,
            |d| set(d, "resource", json!("https://evil.example/mcp")),
            "`resource` is https://evil.example/mcp"
        ),
        (
            "evil-sibling",
            resource,
            |d| {
                let other = format!("{}-evil", d["resource"].as_str().expect("text"));
                set(d, "resource", json!(other))
            },
            "which is neither the upstream's URL nor a prefix"
        ),
        ("no-server", resource, |d| without(d, "authorization_servers"), "it names no authorization server"),
        (
            "private-server",
            resource,
            |d| set(d, "authorization_servers", json!(["https://10.0.0.1/as"])),
            "10.0.0.1 is"
        ),
        (
            "private-name",
            resource,
            |d| set(d, "authorization_servers", json!(["https://other.localhost/as"])),
            "--allow-host other.localhost would allow it"
        ),
        ("plain-server", resource, |d| set(d, "authorization_servers", json!(["http://as.example"])), "must be https"),
        ("nowhere", resource, |d| set(d, "authorization_servers", json!(["nowhere"])), "is not a well-formed URL"),
        (
            "long-issuer",
            resource,
            |d| set(d, "authorization_servers", json!([format!("https://as.example/{}", "x".repeat(3000))])),
            "`issuer` is not a well-formed URL of at most 2048 bytes"
        ),
        (
            "issuer-query",
            resource,
            |d| set(d, "authorization_servers", json!(["https://as.example/?x"])),
            "`issuer` is not a well-formed URL"
        ),
        (
            "mended-issuer",
            resource,
            |d| set(d, "authorization_servers", json!([" https://as.example"])),
            "`issuer` is not a well-formed URL"
        ),
        (
            "own-parameter",
            metadata,
            |d| {
                let page = format!("{}?client_id=theirs", d["authorization_endpoint"].as_str().expect("text"));
                set(d, "authorization_endpoint", json!(page))
            },
            "`authorization_endpoint` has a `client_id` of its own"
        ),
        (
            "own-request",
            metadata,
            |d| {
                let page = format!("{}?request=theirs", d["authorization_endpoint"].as_str().expect("text"));
                set(d, "authorization_endpoint", json!(page))
            },
            "`authorization_endpoint` has a `request` of its own"
        ),
        (
            "own-request-uri",
            metadata,
            |d| {
                let page = format!("{}?request_uri=theirs", d["authorization_endpoint"].as_str().expect("text"));
                set(d, "authorization_endpoint", json!(page))
            },
            "`authorization_endpoint` has a `request_uri` of its own"
        ),
    ];
    let mut party = Party::start(lies, &[]).await;
    for (name, words) in rows {
        let outcome = party.begin(name).await;
        let (reason, message) = refused(&outcome);
        assert_eq!(reason, begin_refusal::Reason::AuthorizationServerUnusable, "{name}");
        assert!(message.contains(words), "{name}: {message}");
    }
    // An upstream that is down, or has nothing to say.
    let mut request = party.request("other-issuer");
    request.upstream = "http://127.0.0.1:1/mcp".to_owned();
    let outcome = party.begin_with(request.clone()).await;
    assert!(refused(&outcome).1.contains("the upstream http://127.0.0.1:1/mcp: "), "{outcome:?}");
    request.upstream = format!("{}/", party.servers.upstream);
    let outcome = party.begin_with(request).await;
    assert!(refused(&outcome).1.contains("no metadata was found"), "{outcome:?}");
    assert!(party.servers.exchanges().is_empty());
    assert_eq!(party.stored(&["other-issuer"]).await, [None]);
}

/// An upstream of our own network names an address of its own, which is anything but metadata. Nobody asks for it: what
/// is exempt is the upstream's metadata alone, and that is found where it belongs.
#[tokio::test]
async fn an_upstream_has_us_ask_for_its_metadata_alone() {
    let named = [
        ("admin", "/admin/delete"),
        ("dots", "/.well-known/oauth-protected-resource/../../admin/delete"),
        ("encoded", "/.well-known/oauth-protected-resource/..%2f..%2fadmin/delete"),
        ("parameters", "/.well-known/oauth-protected-resource/..;/..;/admin/delete"),
        ("query", "/.well-known/oauth-protected-resource?then=/admin/delete"),
        ("sibling", "/.well-known/oauth-protected-resource-admin"),
    ];
    let mut lies: Vec<Lie> = named.map(|(name, path)| Lie { named: Some(path), ..Lie::none(name) }).into();
    lies.push(Lie { named: Some("/admin/delete"), resource: |d| *d = Value::Null, ..Lie::none("nowhere") });
    // Below the well-known name it may be where it likes.
    let elsewhere = "/.well-known/oauth-protected-resource/apart/mcp";
    lies.push(Lie { named: Some(elsewhere), ..Lie::none("elsewhere") });
    lies.push(Lie {
        resource: |d| {
            let moved = d["resource"].as_str().expect("text").replace("/apart/", "/elsewhere/");
            d["resource"] = json!(moved);
        },
        ..Lie::none("apart")
    });
    let party = Party::start(lies, &[]).await;
    let mut asked = Vec::new();
    for (name, _) in named {
        party.begun(name).await;
        asked.extend([format!("resource {name}"), format!("server {name}")]);
        assert_eq!(party.servers.fetches(), asked, "{name}");
    }
    let issuer = format!("{}/apart", party.servers.issuer);
    let request = BeginAuthorizationRequest { shown_issuer: issuer, ..party.request("elsewhere") };
    let begun = party.begin_with(request).await;
    assert!(matches!(begun, begin_authorization_response::Outcome::Begun(_)), "{begun:?}");
    asked.extend(["resource apart".to_owned(), "server apart".to_owned()]);
    assert_eq!(party.servers.fetches(), asked);
    let outcome = party.begin("nowhere").await;
    assert!(refused(&outcome).1.contains("/admin/delete: must be https"), "{outcome:?}");
    asked.extend(["resource nowhere".to_owned(), "unserved /.well-known/oauth-protected-resource".to_owned()]);
    assert_eq!(party.servers.fetches(), asked);
}

/// A host that is exempt for one route is out of another's reach, also when what is there is known already.
#[tokio::test]
async fn a_host_is_exempt_for_one_route() {
    const OTHER: &str = "https://tickets.localhost/.well-known/mcp-client-metadata.json";
    let exempt = format!("{HOST}=https://notes.localhost");
    let mut party = Party::start(vec![Lie::none("honest")], &["--allow-host", &exempt]).await;
    let others = BeginAuthorizationRequest { client_id: OTHER.to_owned(), ..party.request("honest") };
    let described = async |client_id: &str| {
        let request = DescribeUpstreamRequest {
            upstream: party.servers.upstream_of("honest"),
            authorization_server: String::new(),
            client_id: client_id.to_owned(),
            ..DescribeUpstreamRequest::default()
        };
        party.client.clone().describe_upstream(request).await.expect("an answer").into_inner().authorization_server
    };
    let begun = party.begun("honest").await;
    for _ in 0..2 {
        let outcome = party.begin_with(others.clone()).await;
        let (reason, message) = refused(&outcome);
        assert_eq!(reason, begin_refusal::Reason::AuthorizationServerUnusable);
        assert!(message.contains("is a loopback address; --allow-host as.localhost:"), "{message}");
    }
    assert_eq!(described(CLIENT).await, format!("{}/honest", party.servers.issuer));
    assert_eq!(described(OTHER).await, "");
    assert_eq!(described("").await, "");
    assert_eq!(party.complete(party.answer("honest", &begun)).await, Ok("/after".to_owned()));
    let servers = party.servers.fetches().into_iter().filter(|fetch| fetch == "server honest").count();
    assert_eq!((servers, party.servers.exchanges().len()), (1, 1), "nobody else went there");
    assert!(party.stored(&["honest"]).await[0].is_some());

    // A route is told by its document, wherever documents are.
    let flags = ["--allow-host", &exempt, "--document-path", "/client.json"];
    let party = Party::start(vec![Lie::none("honest")], &flags).await;
    let at = |client_id: &str| BeginAuthorizationRequest { client_id: client_id.to_owned(), ..party.request("honest") };
    refused(&party.begin_with(at(CLIENT)).await);
    let outcome = party.begin_with(at("https://notes.localhost/client.json")).await;
    assert!(matches!(outcome, begin_authorization_response::Outcome::Begun(_)), "{outcome:?}");
}

/// Each lie of the token endpoint, and what an operator reads: refused, consumed, and nothing stored.
#[tokio::test]
async fn token_endpoints_that_lie() {
    let answered = |what: &str| format!("the token endpoint answered {what}");
    let not_json = || answered("with a success that is not a JSON object");
    let rows = [
        ("redirects", Token::Redirects, answered("307")),
        ("html", Token::Html, not_json()),
        ("form", Token::Form, not_json()),
        ("empty", Token::Status(200, ""), not_json()),
        ("a-list", Token::Status(200, r#"["SECRET"]"#), not_json()),
        ("huge", Token::Huge, "the answer is larger than 1048576 bytes".to_owned()),
        ("hangs", Token::Hangs, LATE.to_owned()),
        ("never-ends", Token::Endless, LATE.to_owned()),
        ("dies", Token::Dies, "no whole answer came: unexpected end of file".to_owned()),
        (
            "refuses",
            Token::Status(400, r#"{"error":"invalid_grant","error_description":"SECRET"}"#),
            answered("400 with the error `invalid_grant`"),
        ),
        ("own-code", Token::Status(400, r#"{"error":"SECRET"}"#), answered("400 with the error `other`")),
        ("breaks", Token::Status(500, "SECRET"), answered("500")),
        ("busy", Token::Status(429, "SECRET"), answered("429")),
        (
            "called-a-success",
            Token::Status(200, r#"{"error":"invalid_grant"}"#),
            answered("200 with the error `invalid_grant`"),
        ),
        ("without-a-word", Token::Status(401, ""), answered("401")),
        ("mac", Token::Json(|d| d["token_type"] = json!("mac")), "`token_type` is not Bearer".to_owned()),
        (
            "no-token",
            Token::Json(|d| drop(d.as_object_mut().expect("an object").remove("access_token"))),
            "`access_token` is missing".to_owned(),
        ),
        ("a-number", Token::Json(|d| d["access_token"] = json!(1)), "`access_token` is not a text".to_owned()),
        ("empty-token", Token::Json(|d| d["access_token"] = json!("")), "`access_token` is empty".to_owned()),
        (
            "a-header",
            Token::Json(|d| d["access_token"] = json!("a\r\nx: y")),
            "`access_token` has characters that no token has".to_owned(),
        ),
        (
            "too-long",
            Token::Json(|d| d["access_token"] = json!("x".repeat(100_000))),
            "`access_token` is longer than 16 kB".to_owned(),
        ),
        (
            "twice",
            Token::Status(200, r#"{"access_token":"SECRET","access_token":"SECRET"}"#),
            "`access_token` is there twice".to_owned(),
        ),
    ];
    let names = rows.each_ref().map(|(name, ..)| *name);
    let lies = rows.each_ref().map(|(name, token, _)| Lie { token: *token, ..Lie::none(name) });
    let patience = ["--patience=5", "--token-endpoint-timeout=10", "--refresh-claim=15"];
    let mut party = Party::start(lies.into(), &patience).await;
    for (name, _, words) in &rows {
        let begun = party.begun(name).await;
        let answer = party.answer(name, &begun);
        let before = party.servers.exchanges().len();
        let reason = if words == LATE { Reason::TimedOut } else { Reason::ExchangeFailed };
        let (refused, cause) = party.complete(answer.clone()).await.expect_err(name);
        assert_eq!(refused, reason, "{name}");
        assert!(cause.ends_with(words), "{name}: {cause}");
        assert_eq!(party.complete(answer).await, Err((Reason::AlreadyUsed, "/after".to_owned())), "consumed: {name}");
        assert_eq!(party.servers.exchanges().len(), before + 1, "sent once: {name}");
    }
    let stored = party.stored(&names).await;
    assert!(stored.iter().all(Option::is_none), "{stored:?}");
}

/// The code is used up when the answer comes: what is unambiguous in it is taken.
#[tokio::test]
async fn token_answers_as_servers_write_them() {
    let token = |name, token| Lie { token, ..Lie::none(name) };
    let lies = vec![
        token("no-type", Token::Json(|d| drop(d.as_object_mut().expect("an object").remove("token_type")))),
        token("negative", Token::Json(|d| d["expires_in"] = json!(-1))),
        token("soon", Token::Json(|d| d["expires_in"] = json!("soon"))),
        token("a-text", Token::Json(|d| d["expires_in"] = json!("3600"))),
        token("a-float", Token::Json(|d| d["expires_in"] = json!(3600.0))),
        token("no-lifetime", Token::Json(|d| drop(d.as_object_mut().expect("an object").remove("expires_in")))),
        token("a-list", Token::Json(|d| d["scope"] = json!(["a", "b"]))),
        token("nulls", Token::Json(|d| (d["scope"], d["id_token"]) = (Value::Null, Value::Null))),
        token("long", Token::Json(|d| d["access_token"] = json!("x".repeat(16 << 10)))),
        token("long-refresh", Token::Json(|d| d["refresh_token"] = json!("x".repeat(100_000)))),
        token("created", Token::As(201, "application/json", r#"{"access_token":"SECRET","token_type":"bearer"}"#)),
        token(
            "plain",
            Token::As(200, "text/plain; charset=utf-8", r#"{"access_token":"SECRET","token_type":"bearer"}"#),
        ),
    ];
    let names: Vec<&str> = lies.iter().map(|lie| lie.name).collect();
    let mut party = Party::start(lies, &[]).await;
    for name in &names {
        let begun = party.begun(name).await;
        assert_eq!(party.complete(party.answer(name, &begun)).await, Ok("/after".to_owned()), "{name}");
    }
    let unread = "members of the token endpoint's answer cannot be read";
    assert_eq!(party.process.process.output().matches(unread).count(), 3, "negative, soon, long-refresh");
    let stored = party.stored(&names).await;
    assert!(stored.iter().all(Option::is_some), "{stored:?}");
}

/// Whoever waits is answered in time; the code is used up by then, and the token that it brings is kept.
#[tokio::test]
async fn an_exchange_that_is_late_is_not_lost() {
    let lies = [("late", Token::Late), ("in-pieces", Token::Pieces(Duration::from_millis(700)))];
    let lies = lies.map(|(name, token)| Lie { token, ..Lie::none(name) });
    let names = lies.map(|lie| lie.name);
    let mut party = Party::start(lies.into(), &["--patience=1"]).await;
    for name in names {
        let begun = party.begun(name).await;
        let answer = party.answer(name, &begun);
        let late = "the token endpoint did not answer within 1 s".to_owned();
        assert_eq!(party.complete(answer.clone()).await, Err((Reason::TimedOut, late)));
        assert_eq!(party.complete(answer).await, Err((Reason::AlreadyUsed, "/after".to_owned())));
        party.servers.answer();
        let issuer = format!("\"issuer\":\"{}/{name}\"", party.servers.issuer);
        let stored = |line: &str| {
            let completed = line.contains("\"completed\"") && line.contains(&issuer);
            (completed && line.contains("\"outcome\":\"ok\"")).then_some(())
        };
        party.process.process.line(stored).await;
    }
    assert_eq!(party.servers.exchanges().len(), 2, "each sent once");
    assert!(party.stored(&names).await.iter().all(Option::is_some));
}

/// The honest flow, each way that it can end, and what is asked for.
#[tokio::test]
async fn flows_begin_and_end() {
    let honest = Lie::none;
    let no_iss =
        Lie { metadata: |d| d["authorization_response_iss_parameter_supported"] = json!(false), ..honest("no-iss") };
    let bare = Lie {
        metadata: |d| drop(d.as_object_mut().expect("an object").remove("scopes_supported")),
        token: Token::Json(|d| drop(d.as_object_mut().expect("an object").remove("expires_in"))),
        ..honest("bare")
    };
    let mut party = Party::start(vec![honest("good"), honest("fresh"), no_iss, bare], &[]).await;
    let begun = party.begun("good").await;
    let url = url::Url::parse(&begun.authorization_url).expect("a URL");
    let sent = |name: &str| url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned());
    assert_eq!(sent("client_id").as_deref(), Some(CLIENT));
    assert_eq!(sent("redirect_uri").as_deref(), Some(CALLBACK));
    assert_eq!(sent("resource"), Some(party.servers.upstream_of("good")));
    assert_eq!(sent("scope").as_deref(), Some("read write offline_access"), "the challenge's, and what refreshes");
    assert_eq!(sent("prompt").as_deref(), Some("consent"));
    assert_eq!(sent("state"), None, "the caller's to sign");
    assert_eq!(begun.flow_id.len(), 16);

    // Wrong in each part of the context: refused, and not consumed.
    let right = party.answer("good", &begun);
    let other_user = proto::User {
        kind: Some(proto::user::Kind::Subject(proto::Subject { issuer: "i".into(), subject: "s".into() })),
    };
    for wrong in [
        CompleteAuthorizationRequest { browser_hash: vec![8; 32], ..right.clone() },
        CompleteAuthorizationRequest { redirect_uri: format!("{CALLBACK}x"), ..right.clone() },
        CompleteAuthorizationRequest { user: Some(other_user), ..right.clone() },
    ] {
        assert_eq!(party.complete(wrong).await, Err((Reason::WrongContext, String::new())));
    }
    let unknown = CompleteAuthorizationRequest { flow_id: vec![0; 16], ..right.clone() };
    assert_eq!(party.complete(unknown).await, Err((Reason::UnknownFlow, String::new())));
    assert_eq!(party.complete(right.clone()).await, Ok("/after".to_owned()));
    assert_eq!(party.complete(right).await, Err((Reason::AlreadyUsed, "/after".to_owned())));

    // `iss`: another, in another spelling, absent though announced; also on an error. Consumed, never exchanged.
    let exchanges = party.servers.exchanges().len();
    let issuer = format!("{}/good", party.servers.issuer);
    for (iss, error) in [
        (Some("https://evil.example".to_owned()), false),
        (Some(format!("{issuer}/")), false),
        (Some(issuer.replace("https://", "HTTPS://")), false),
        (None, false),
        (None, true),
    ] {
        let cause = match iss {
            Some(_) => format!("`iss` is not {issuer}"),
            None => "`iss` is missing, and has to be there".to_owned(),
        };
        let begun = party.begun("good").await;
        let mut answer = party.answer("good", &begun);
        answer.iss = iss.clone();
        if error {
            answer.answer = Some(Answer::Error(proto::AuthorizationError {
                error: "SECRET".into(),
                error_description: "SECRET".into(),
            }));
        }
        assert_eq!(party.complete(answer.clone()).await, Err((Reason::IssuerMismatch, cause)), "{iss:?}");
        assert_eq!(party.complete(answer).await, Err((Reason::AlreadyUsed, "/after".to_owned())), "{iss:?}");
    }
    // A refusal of the authorization server's.
    let begun = party.begun("good").await;
    let mut denied = party.answer("good", &begun);
    denied.answer =
        Some(Answer::Error(proto::AuthorizationError { error: "SECRET".into(), error_description: "SECRET".into() }));
    assert_eq!(party.complete(denied).await, Err((Reason::AuthorizationError, "other".to_owned())));
    assert_eq!(party.servers.exchanges().len(), exchanges);
    // Neither announced nor sent: goes on.
    let begun = party.begun("no-iss").await;
    let mut answer = party.answer("no-iss", &begun);
    answer.iss = None;
    assert_eq!(party.complete(answer).await, Ok("/after".to_owned()));
    // Nobody lists `offline_access`, so nobody is asked for it.
    let begun = party.begun("bare").await;
    assert!(!begun.authorization_url.contains("offline_access") && !begun.authorization_url.contains("prompt"));
    let answer = party.answer("bare", &begun);
    assert_eq!(party.complete(answer).await, Ok("/after".to_owned()));
    // One look-up an upstream, however many flows, also of those that begin at once.
    let begins = (0..20).map(|_| party.begin("fresh"));
    futures_util::future::join_all(begins).await;
    let fetches = party.servers.fetches();
    for server in ["server good", "server fresh"] {
        assert_eq!(fetches.iter().filter(|fetch| *fetch == server).count(), 1, "{fetches:?}");
    }

    let audit: Vec<Value> = party
        .process
        .process
        .output()
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .filter(|line: &Value| line["target"] == "audit")
        .collect();
    let events = |event: &str, outcome: &str| {
        audit.iter().filter(|line| line["event"] == event && line["outcome"] == outcome).count()
    };
    assert_eq!(
        (events("begun", "ok"), events("completed", "ok"), events("completed", "issuer_mismatch")),
        (29, 3, 5),
        "{audit:#?}"
    );
    assert_eq!((events("refused", "wrong_context"), events("refused", "unknown_flow")), (3, 1));
    let stored = party.stored(&["good", "no-iss", "bare", "other"]).await;
    assert_eq!(
        stored
            .iter()
            .filter(|token| token.as_ref().is_some_and(|token| token.starts_with("SECRET-access-of-")))
            .count(),
        3
    );
    assert_eq!(stored.last(), Some(&None));
}

/// A pinned authorization server is held to its metadata all the same.
#[tokio::test]
async fn a_pinned_authorization_server() {
    let no_iss =
        Lie { metadata: |d| d["authorization_response_iss_parameter_supported"] = json!(false), ..Lie::none("no-iss") };
    let mut party = Party::start(vec![Lie::none("pinned"), no_iss], &["--require-iss"]).await;
    let mut request = party.request("pinned");
    request.authorization_server = format!("{}/pinned", party.servers.issuer);
    let begin_authorization_response::Outcome::Begun(begun) = party.begin_with(request.clone()).await else {
        panic!("it began")
    };
    let answer = party.answer("pinned", &begun);
    assert_eq!(party.complete(answer).await, Ok("/after".to_owned()));
    request.authorization_server = format!("{}/pinned/", party.servers.issuer);
    let outcome = party.begin_with(request).await;
    assert_eq!(refused(&outcome).0, begin_refusal::Reason::AuthorizationServerUnusable);
    // --require-iss
    let outcome = party.begin("no-iss").await;
    assert!(refused(&outcome).1.contains("it does not announce `iss`"), "{outcome:?}");
    assert_eq!(party.stored(&["pinned", "no-iss"]).await.iter().flatten().count(), 1);
}

/// Two choreographers on one Redis: each of 50 flows is completed by four callbacks at once, two on either, and each
/// code is redeemed once.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server: make test-redis"]
async fn redis_gives_each_flow_to_one_of_two_choreographers() {
    let dir = tempfile::tempdir().expect("a folder");
    let redis = Redis::start(dir.path(), &[], "--port").await;
    let kept = Kept::new(tempfile::tempdir().expect("a folder"), Some(redis.url("redis", "")));
    let flags = kept.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let party = Party::start(vec![Lie::none("good")], &flags).await;
    let other = {
        let certificates = ["--extra-ca", &party.ca, "--allow-host", HOST];
        Choreographer::start(&executable(), &[&flags[..], &certificates[..]].concat()).await
    };
    let endpoint = Endpoint::from_shared(format!("http://{}", other.address)).expect("an address");
    let other_client = AuthorizationChoreographerClient::new(endpoint.connect().await.expect("a connection"));
    let mut answers = Vec::new();
    for _ in 0..50 {
        let user = proto::Subject { issuer: "i".into(), subject: format!("user {}", answers.len() % 5) };
        let user = Some(proto::User { kind: Some(proto::user::Kind::Subject(user)) });
        let request = BeginAuthorizationRequest { user: user.clone(), ..party.request("good") };
        let begin_authorization_response::Outcome::Begun(begun) = party.begin_with(request).await else {
            panic!("it began")
        };
        answers.push(CompleteAuthorizationRequest { user, ..party.answer("good", &begun) });
    }
    let calls = answers.iter().flat_map(|answer| {
        [&party.client, &other_client, &party.client, &other_client].map(|client| {
            let (mut client, answer) = (client.clone(), answer.clone());
            tokio::spawn(async move {
                let outcome = client.complete_authorization(answer).await.expect("an answer").into_inner().outcome;
                matches!(outcome, Some(complete_authorization_response::Outcome::Completed(_)))
            })
        })
    });
    let calls: Vec<_> = calls.collect();
    let mut completed = 0;
    for call in calls {
        completed += usize::from(call.await.expect("it ends"));
    }
    let mut exchanges = party.servers.exchanges();
    exchanges.sort();
    exchanges.dedup();
    assert_eq!((completed, party.servers.exchanges().len(), exchanges.len()), (50, 50, 50));
}

/// What a flow asks of Redis: one script each to keep the flow, to take it, and to keep the token; and before the first and
/// the last, one to read what the token before lacked.
#[tokio::test]
#[ignore = "needs redis-server: make test-redis"]
async fn redis_is_asked_five_times_a_flow() {
    let dir = tempfile::tempdir().expect("a folder");
    let redis = Redis::start(dir.path(), &[], "--port").await;
    let kept = Kept::new(tempfile::tempdir().expect("a folder"), Some(redis.url("redis", "")));
    let flags = kept.flags();
    let party = Party::start(vec![Lie::none("good")], &flags.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let flow = async || {
        let begun = party.begun("good").await;
        party.complete(party.answer("good", &begun)).await.expect("completed");
    };
    // The first flow connects, and sends the scripts.
    flow().await;
    let before = redis.command_calls().await;
    flow().await;
    let mut calls = redis.command_calls().await;
    for (command, before) in before {
        calls.entry(command).and_modify(|calls| *calls -= before);
    }
    calls.retain(|command, calls| *calls > 0 && command != "info");
    println!("{calls:?}");
    assert_eq!(calls.get("evalsha"), Some(&5), "{calls:?}");
}

/// Nobody is sent to an authorization server that no page showed them, as where an upstream names another one between the
/// page and the button: nothing begins, and what there is now is to be shown.
#[tokio::test]
async fn only_to_the_server_that_was_shown() {
    let mut party = Party::start(vec![Lie::none("good")], &[]).await;
    let right = party.request("good");
    for shown in ["", "https://evil.example", &format!("{}/", right.shown_issuer)] {
        let request = BeginAuthorizationRequest { shown_issuer: shown.to_owned(), ..right.clone() };
        let begin_authorization_response::Outcome::Refusal(refusal) = party.begin_with(request).await else {
            panic!("nothing begins")
        };
        assert_eq!(
            (refusal.reason(), &refusal.issuer),
            (begin_refusal::Reason::IssuerChanged, &right.shown_issuer),
            "{shown:?}"
        );
    }
    let begin_authorization_response::Outcome::Begun(begun) = party.begin_with(right).await else { panic!("it began") };
    assert_eq!(party.complete(party.answer("good", &begun)).await, Ok("/after".to_owned()));
    assert_eq!(party.stored(&["good"]).await.iter().flatten().count(), 1);
    let log = party.process.process.output();
    assert_eq!(log.matches("\"issuer_changed\"").count(), 3, "{log}");
}

/// Somebody who can write to the store makes another's flows their own: what is sealed says whose they are.
async fn rewritten_flows(kept: Kept, rewrite: impl AsyncFnOnce(&Kept, [FlowKey; 2], Context)) {
    let flags = kept.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let mut party = Party::start(vec![Lie::none("good")], &flags).await;
    let (pending, used) = (party.begun("good").await, party.begun("good").await);
    let answers = [&pending, &used].map(|begun| party.answer("good", begun));
    assert_eq!(party.complete(answers[1].clone()).await, Ok("/after".to_owned()));
    assert_eq!(party.process.process.stop().await, Some(0));

    let eve = User::Subject { issuer: "i".to_owned(), subject: "eve".to_owned() };
    let context = Context::of(&RedirectUri::new(CALLBACK), &eve, &BrowserHash([9; 32]));
    let ids = [&pending, &used].map(|begun| begun.flow_id.as_slice().try_into().expect("16 bytes"));
    rewrite(&kept, ids.map(|id| FlowKey::of(&FlowId(id))), context).await;
    let again = [&["--extra-ca", &party.ca, "--allow-host", HOST], &flags[..]].concat();
    party.process = Choreographer::start(&executable(), &again).await;
    let endpoint = Endpoint::from_shared(format!("http://{}", party.process.address)).expect("an address");
    party.client = AuthorizationChoreographerClient::new(endpoint.connect().await.expect("a connection"));
    for answer in answers {
        let eves = CompleteAuthorizationRequest { user: Some(eve.clone().into()), browser_hash: vec![9; 32], ..answer };
        assert_eq!(party.complete(eves).await, Err((Reason::WrongContext, String::new())));
    }
    assert_eq!(party.servers.exchanges().len(), 1, "the one from before");
    assert_eq!(party.process.process.output().matches("isolation_violation").count(), 2);
}

#[tokio::test]
async fn a_flow_that_was_rewritten_is_nobodys() {
    let kept = Kept::new(tempfile::tempdir().expect("a folder"), None);
    rewritten_flows(kept, async |kept, flows, context| {
        type Stored<'a> = (&'a [u8; 32], &'a [u8; 32], u64, u64, Option<&'a [u8]>, &'a [u8]);
        const FLOWS: redb::TableDefinition<&[u8; 32], Stored> = redb::TableDefinition::new("flows-v1");
        let file = redb::Database::open(kept.url.to_string().trim_start_matches("file:")).expect("a store");
        let writing = file.begin_write().expect("a transaction");
        for flow in flows {
            let mut table = writing.open_table(FLOWS).expect("flows");
            let stored = table.remove(flow.as_bytes()).expect("a store").expect("a flow");
            let (_, user, expires_at, sequence, sealed, tombstone) = stored.value();
            let (user, sealed, tombstone) = (*user, sealed.map(<[u8]>::to_vec), tombstone.to_vec());
            drop(stored);
            let changed = (context.as_bytes(), &user, expires_at, sequence, sealed.as_deref(), &*tombstone);
            table.insert(flow.as_bytes(), changed).expect("changed");
        }
        writing.commit().expect("changed");
    })
    .await;
}

#[tokio::test]
#[ignore = "needs redis-server: make test-redis"]
async fn redis_a_flow_that_was_rewritten_is_nobodys() {
    let dir = tempfile::tempdir().expect("a folder");
    let redis = Redis::start(dir.path(), &[], "--port").await;
    let kept = Kept::new(tempfile::tempdir().expect("a folder"), Some(redis.url("redis", "")));
    rewritten_flows(kept, async |_, flows, context| {
        for flow in flows {
            let key = format!("envoy_cimd:v1:flow:{}", BASE64_URL_SAFE_NO_PAD.encode(flow.as_bytes()));
            redis.set_field(&key, "context", context.as_bytes()).await;
        }
    })
    .await;
}

/// The whole way, in one process: Envoy, the filter, the embedded choreographer, the authorization server.
#[tokio::test]
async fn the_whole_flow_in_one_process() {
    let dir = tempfile::tempdir().expect("a folder");
    let certificates = Certificates::make(dir.path(), &[HOST]);
    let servers = Servers::start(&certificates, vec![Lie::none("good")]).await;
    let (ca, state) = (certificates.ca.to_str().expect("text"), dir.path().join("state"));
    let flags = ["--single-user", "--extra-ca", ca, "--allow-host", HOST, "--state-dir", state.to_str().expect("text")];
    let upstream = servers.upstream_of("good");
    let edit = |config: &mut Value| with_upstream(config, &upstream);
    let mut world = World::start(Wish { cimd: &flags, edit: &edit, ..Wish::default() }).await;
    assert!(!state.exists(), "documents are served without a store");
    let [code, state, ..] = connect_through(&world, &servers, "").await;
    assert_eq!(servers.exchanges(), [code]);
    assert_eq!(world.cimd.process.stop().await, Some(0));
    let log = world.cimd.process.output();
    assert!(!log.contains("SECRET") && !log.contains(&state), "{log}");
}

/// Configures every route of an Envoy with this upstream.
pub fn with_upstream(config: &mut Value, upstream: &str) {
    for host in crate::world::virtual_hosts(config) {
        if host["name"] != "other" {
            crate::world::metadata(host)["to"] = upstream.into();
        }
    }
}

/// Takes a person through Envoy and a flow of notes.localhost; its code, state and cookie, which nobody else may see.
pub async fn connect_through(world: &World, servers: &Servers, traceparent: &str) -> [String; 3] {
    let send = async |call: Call| {
        let call = call.header("traceparent", traceparent);
        world.https().send(Version::HTTP_2, call).await.expect("an answer")
    };
    let begun = send(press_shown("notes.localhost", "?return_to=/done", &format!("{}/good", servers.issuer))).await;
    assert_eq!(begun.status, 303, "{begun:?}");
    let location = begun.all("location").join("");
    let code = servers.consent(&location);
    let url = url::Url::parse(&location).expect("a URL");
    let state = url.query_pairs().find(|(name, _)| name == "state").expect("a state").1.into_owned();
    let cookie = begun.all("set-cookie").join("").split(';').next().expect("a pair").to_owned();
    let query = format!("code={code}&state={state}&iss={}/good", servers.issuer);
    let call = Call::get("notes.localhost", &format!("{PATH}?{query}")).header("cookie", cookie.clone());
    let done = send(call).await;
    assert_eq!((done.status, done.all("location")), (303, vec!["/done"]), "{done:?}");
    [code, state, cookie]
}
