//! The choreographer against an authorization server that may lie: what is refused, with which words for an operator,
//! and that a token that cannot be used is never stored.

use std::path::Path;

use envoy_cimd::{
    contract::proto::{
        self, BeginAuthorizationRequest, CompleteAuthorizationRequest, DescribeUpstreamRequest, DisconnectRequest,
        DisconnectResponse, authorization_choreographer_client::AuthorizationChoreographerClient,
        begin_authorization_response, begin_refusal, complete_authorization_request::Answer,
        complete_authorization_response, complete_refusal::Reason,
    },
    exchange::embedded::{Config, Embedded},
    model::user::User,
    store::vault,
};
use http::Version;
use serde_json::Value;
use tempfile::TempDir;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use crate::{
    authorization_server::{HOST, Lie, Servers},
    flow::press_shown,
    stack::{Call, Certificates, Choreographer, in_process::owner},
    world::{CALLBACK as PATH, World, executable},
};

mod flows;
mod metadata;
mod token_endpoint;

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
