//! Tokens handed out: fresh, once, and to nobody else.

use std::path::Path;

use envoy_cimd::{
    contract::{
        choreographer::{AuthorizationAnswer, Begin, Choreographer as _, Complete},
        proto::{
            self, DisconnectRequest, GetUpstreamTokenRequest, Subject, User, begin_authorization_response::Outcome,
            upstream_tokens_client::UpstreamTokensClient, user,
        },
    },
    exchange::{
        clients,
        embedded::{self, Embedded},
    },
    model::{
        client::{ClientId, RedirectUri},
        flow::BrowserHash,
        secret::Secret,
        trace::Trace,
        upstream::Upstream,
        user::User as Person,
    },
    net::outgoing,
    store::{open::Opened, url::StoreUrl, vault},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::{
    Code,
    transport::{Channel, Endpoint},
};

use crate::{
    authorization_server::{HOST, Lie, Refresh, Servers, Token},
    exchange::{CALLBACK, CLIENT, Party, single},
    stack::{Certificates, Choreographer, key_file},
    store::Redis,
    world::executable,
};

mod disconnect;
mod encryption_keys;
mod ended;
mod isolation;
mod listener;
mod refresh;
mod refused;
mod store_away;

/// A lie whose tokens are over when they come, so that whoever wants one has to refresh it.
pub fn over(name: &'static str, refresh: Refresh) -> Lie {
    Lie { token: Token::Json(|answer| answer["expires_in"] = json!(1)), refresh, ..Lie::none(name) }
}

/// A choreographer that hands out tokens on a Unix socket.
pub async fn party(lies: Vec<Lie>, flags: &[&str]) -> (Party, UpstreamTokensClient<Channel>) {
    party_with_clients(lies, flags, |_, _| String::new()).await
}

/// The same with a config file of `clients:`.
pub async fn party_with_clients(
    lies: Vec<Lie>,
    flags: &[&str],
    clients: impl FnOnce(&Servers, &Path) -> String,
) -> (Party, UpstreamTokensClient<Channel>) {
    let dir = tempfile::tempdir().expect("a folder").keep();
    let address = format!("unix:{}", dir.join("tokens.sock").display());
    let party = Party::with_clients(lies, &[&["--tokens-listen", &address], flags].concat(), clients).await;
    (party, client(&address).await)
}

pub async fn client(address: &str) -> UpstreamTokensClient<Channel> {
    let endpoint = Endpoint::from_shared(address.to_owned()).expect("an address");
    UpstreamTokensClient::new(endpoint.connect().await.expect("a connection"))
}

pub fn person(issuer: &str, subject: &str) -> User {
    User { kind: Some(user::Kind::Subject(Subject { issuer: issuer.to_owned(), subject: subject.to_owned() })) }
}

/// Takes a user through a flow, so that there is a token.
pub async fn connect(party: &Party, name: &str, user: User, client_id: &str) {
    let mut request = party.request(name);
    (request.user, request.client_id) = (Some(user.clone()), client_id.to_owned());
    request.authorization_server = party.servers.pin(name);
    let Outcome::Begun(begun) = party.begin_with(request).await else { panic!("it began") };
    let mut answer = party.answer(name, &begun);
    answer.user = Some(user);
    party.complete(answer).await.expect("completed");
}

pub async fn token(
    client: &UpstreamTokensClient<Channel>,
    party: &Party,
    name: &str,
    user: User,
    client_id: &str,
) -> Result<String, Code> {
    let request = GetUpstreamTokenRequest {
        user: Some(user),
        client_id: client_id.to_owned(),
        upstream: party.servers.upstream_of(name),
        authorization_server: party.servers.pin(name),
        ..GetUpstreamTokenRequest::default()
    };
    client.clone().get_upstream_token(request).await.map(|token| token.into_inner().access_token).map_err(|s| s.code())
}

/// The outcomes of the audit log for an event, in order.
pub fn audited(party: &Party, event: &str) -> Vec<String> {
    let lines = party.process.process.output();
    let lines = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines
        .filter(|line| line["target"] == "audit" && line["event"] == event)
        .filter_map(|line| line["outcome"].as_str().map(str::to_owned))
        .collect()
}

/// The exchange in this process, and the servers of a lie.
pub async fn in_process(lie: Lie) -> (TempDir, Servers, Embedded) {
    in_process_with(vec![lie]).await
}

/// The same with several lies.
pub async fn in_process_with(lies: Vec<Lie>) -> (TempDir, Servers, Embedded) {
    in_process_of(lies, clients::Config::default()).await
}

/// The same where clients are registered.
pub async fn in_process_registering(lies: Vec<Lie>) -> (TempDir, Servers, Embedded) {
    in_process_of(lies, clients::Config { dynamic_registration: true, ..clients::Config::default() }).await
}

async fn in_process_of(lies: Vec<Lie>, clients: clients::Config) -> (TempDir, Servers, Embedded) {
    let dir = tempfile::tempdir().expect("a folder");
    let certificates = Certificates::make(dir.path(), &[HOST]);
    let servers = Servers::start(&certificates, lies).await;
    let embedded = Embedded::new(embedded::Config {
        outgoing: outgoing::Config {
            allow_hosts: vec![HOST.parse().expect("a host")],
            extra_ca: Some(certificates.ca.clone()),
            ..outgoing::Config::default()
        },
        store: vault::Config { state_dir: Some(dir.path().join("state")), ..vault::Config::default() },
        clients,
        ..embedded::Config::default()
    });
    (dir, servers, embedded.expect("good settings"))
}

/// What a flow at an upstream begins with.
pub fn begin(servers: &Servers, name: &str) -> Begin {
    Begin {
        client_id: ClientId::new(CLIENT),
        redirect_uri: RedirectUri::new(CALLBACK),
        client_name: "Notes".to_owned(),
        upstream: Upstream { url: servers.upstream_of(name), authorization_server: None, resource: None },
        scope: None,
        prompt: None,
        user: Person::Single,
        browser_hash: BrowserHash([7; 32]),
        return_to: "/".to_owned(),
        shown_issuer: Some(format!("{}/{name}", servers.issuer)),
    }
}

/// The same with one person connected; its clock can be set.
async fn in_process_and_connected(lie: Lie) -> (TempDir, Servers, Embedded) {
    let name = lie.name;
    let (dir, servers, embedded) = in_process(lie).await;
    connect_in_process(&servers, &embedded, begin(&servers, name)).await;
    (dir, servers, embedded)
}

/// Takes a person through a flow, and gives the address that they were sent to.
pub async fn connect_in_process(servers: &Servers, embedded: &Embedded, begin: Begin) -> String {
    let trace = Trace::default();
    let (user, redirect_uri, iss) = (begin.user.clone(), begin.redirect_uri.clone(), begin.shown_issuer.clone());
    let begun = embedded.begin(begin, &trace).await.unwrap_or_else(|error| panic!("{error:?}"));
    let complete = Complete {
        flow_id: begun.flow_id,
        redirect_uri,
        user,
        browser_hash: BrowserHash([7; 32]),
        answer: AuthorizationAnswer::Code(Secret::new(servers.consent(&begun.authorization_url))),
        iss,
    };
    embedded.complete(complete, &trace).await.expect("completed");
    begun.authorization_url
}

pub async fn tag(client: &UpstreamTokensClient<Channel>, party: &Party, name: &str) -> Vec<u8> {
    let request = GetUpstreamTokenRequest {
        user: Some(single()),
        client_id: CLIENT.to_owned(),
        upstream: party.servers.upstream_of(name),
        authorization_server: String::new(),
        ..GetUpstreamTokenRequest::default()
    };
    client.clone().get_upstream_token(request).await.expect("a token").into_inner().tag
}

async fn report(
    client: &UpstreamTokensClient<Channel>,
    party: &Party,
    name: &str,
    tag: &[u8],
) -> Result<proto::report_refused_token_response::Outcome, Code> {
    let request = proto::ReportRefusedTokenRequest {
        user: Some(single()),
        client_id: CLIENT.to_owned(),
        upstream: party.servers.upstream_of(name),
        authorization_server: String::new(),
        tag: tag.to_vec(),
        ..proto::ReportRefusedTokenRequest::default()
    };
    client.clone().report_refused_token(request).await.map(|answer| answer.into_inner().outcome()).map_err(|s| s.code())
}

pub async fn disconnect(
    client: &UpstreamTokensClient<Channel>,
    party: &Party,
    name: &str,
    user: User,
    client_id: &str,
) {
    try_to_disconnect(client, party, name, user, client_id).await.expect("disconnected");
}

async fn try_to_disconnect(
    client: &UpstreamTokensClient<Channel>,
    party: &Party,
    name: &str,
    user: User,
    client_id: &str,
) -> Result<(), Code> {
    let request = DisconnectRequest {
        user: Some(user),
        client_id: client_id.to_owned(),
        upstream: party.servers.upstream_of(name),
        ..DisconnectRequest::default()
    };
    client.clone().disconnect(request).await.map(drop).map_err(|status| status.code())
}

/// What a test needs of a store that outlives the process: its place, its keys, and the flags that name both.
pub struct Kept {
    pub url: StoreUrl,
    pub keys: std::path::PathBuf,
    dir: TempDir,
}

impl Kept {
    pub fn in_file() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let url = format!("file:{}", dir.path().join("store.redb").display());
        Self::new(dir, &url)
    }

    /// With a Redis of its own.
    pub async fn in_redis() -> (Self, Redis) {
        let dir = tempfile::tempdir().expect("a folder");
        let of_redis = dir.path().join("redis");
        std::fs::create_dir(&of_redis).expect("a folder");
        let redis = Redis::start(&of_redis, &[], "--port").await;
        (Self::new(dir, &redis.url("redis", "")), redis)
    }

    /// In a store that others have too.
    pub fn at(url: &str) -> Self {
        Self::new(tempfile::tempdir().expect("a folder"), url)
    }

    fn new(dir: TempDir, url: &str) -> Self {
        Self { url: url.parse().expect("a URL"), keys: key_file(dir.path()), dir }
    }

    pub fn flags(&self) -> Vec<String> {
        let keys = self.keys.to_str().expect("text").to_owned();
        vec!["--store".to_owned(), self.url.to_string(), "--encryption-keys".to_owned(), keys]
    }

    pub async fn open(&self) -> Opened {
        self.url.open(Some(&self.keys), None).await.expect("a store")
    }

    /// A process on this store, and a client of its tokens.
    pub async fn again(&self, party: &Party) -> (Choreographer, UpstreamTokensClient<Channel>) {
        let address = format!("unix:{}", self.dir.path().join("again.sock").display());
        let flags = self.flags();
        let mut all: Vec<&str> = flags.iter().map(String::as_str).collect();
        all.extend(["--extra-ca", &party.ca, "--allow-host", HOST, "--tokens-listen", &address]);
        let process = Choreographer::start(&executable(), &all).await;
        (process, client(&address).await)
    }
}
