//! Tokens are the same for whoever asks, whether they are in this process or called over gRPC.

use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use envoy_cimd::{
    contract::{
        error::Cause,
        proto::{
            self,
            upstream_tokens_server::{self, UpstreamTokensServer},
        },
        tokens::{
            AccessToken, LONGEST_WAIT, Missing, Refused, RefusedStatus, Renewal, TokenError, TokenOwner, TokenTag,
            UpstreamTokens,
        },
        tokens_client::TokensClient,
        tokens_service::TokensService,
    },
    model::{clock::UnixTime, secret::Secret, trace::Trace, user::User},
    net::{
        callee::TOKENS,
        dial::{self, Plain},
        tls::client,
    },
};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tonic::{Code, Request, Response, Status, metadata::MetadataMap};

use crate::{
    exchange::CLIENT,
    stack::{
        Choreographer, Cimd,
        in_process::{owner, serve},
        key_file,
    },
    world::executable,
};

/// A client of the tokens at an address, as `serve` makes it.
pub async fn client_of(url: &str, tls: &client::Config) -> TokensClient {
    let url = url.parse().expect("a URL");
    let connection = dial::connect(&TOKENS, Some(&url), tls, Plain::Nowhere).await.expect("good settings");
    TokensClient::new(connection.expect("an address is given").channel)
}

/// A token as it was handed out.
type Handed = (Secret, TokenTag, Option<UnixTime>, Option<UnixTime>);

/// Tokens whose every call comes to the same, and what they were asked.
struct Same {
    token: Result<Handed, TokenError>,
    renewal: Result<Renewal, TokenError>,
    noted: Result<(), TokenError>,
    disconnected: Result<(), TokenError>,
    asked: Mutex<Vec<(TokenOwner, Asked)>>,
}

/// What was asked of an owner.
#[derive(Clone, Debug, PartialEq)]
enum Asked {
    Token(Option<Duration>),
    Again,
    Refused(Refused),
    Disconnect,
}

impl Same {
    fn error(error: &TokenError) -> Self {
        Self {
            token: Err(error.clone()),
            renewal: Err(error.clone()),
            noted: Err(error.clone()),
            disconnected: Err(error.clone()),
            asked: Mutex::default(),
        }
    }

    fn asked(&self, owner: TokenOwner, what: Asked) {
        self.asked.lock().expect("what was asked").push((owner, what));
    }
}

#[async_trait]
impl UpstreamTokens for Same {
    async fn upstream_token(&self, owner: TokenOwner, _: &Trace) -> Result<AccessToken, TokenError> {
        self.asked(owner, Asked::Token(None));
        let (secret, tag, expires_at, again) = self.token.clone()?;
        Ok(AccessToken { secret, tag, expires_at, again })
    }

    async fn awaited_token(&self, of: TokenOwner, longest: Duration, _: &Trace) -> Result<AccessToken, TokenError> {
        self.asked(of, Asked::Token(Some(longest)));
        let (secret, tag, expires_at, again) = self.token.clone()?;
        Ok(AccessToken { secret, tag, expires_at, again })
    }

    async fn expect_again(&self, owner: TokenOwner, _: &Trace) -> Result<(), TokenError> {
        self.asked(owner, Asked::Again);
        self.noted.clone()
    }

    async fn refused(&self, owner: TokenOwner, refused: Refused, _: &Trace) -> Result<Renewal, TokenError> {
        self.asked(owner, Asked::Refused(refused));
        self.renewal.clone()
    }

    async fn disconnect(&self, owner: TokenOwner, _: &Trace) -> Result<(), TokenError> {
        self.asked(owner, Asked::Disconnect);
        self.disconnected.clone()
    }
}

/// A service on a Unix socket, and a client of it.
async fn over_grpc(service: impl upstream_tokens_server::UpstreamTokens) -> (TempDir, TokensClient) {
    let dir = tempfile::tempdir().expect("a folder");
    let socket = dir.path().join("tokens.sock");
    let listener = UnixListener::bind(&socket).expect("a socket");
    tokio::spawn(serve(listener, UpstreamTokensServer::new(service)));
    let client = client_of(&format!("unix:{}", socket.display()), &client::Config::default()).await;
    (dir, client)
}

fn ann() -> TokenOwner {
    let ann = User::Subject { issuer: "https://idp.example".to_owned(), subject: "ann".to_owned() };
    let mut owner = owner(ann, CLIENT, "https://upstream.example/mcp");
    owner.upstream.authorization_server = Some("https://as.example".to_owned());
    owner
}

const TAG: TokenTag = TokenTag([7; 16]);

/// Whatever a report may say.
fn insufficient() -> Refused {
    Refused {
        tag: TAG,
        status: RefusedStatus::InsufficientScope,
        scope: Some("read  ünd \"write\"".to_owned()),
        resource_metadata: Some("nowhere".to_owned()),
        route_scope: Some("read write".parse().expect("a scope")),
    }
}

type Outcomes = (
    [Result<Handed, TokenError>; 3],
    Result<Renewal, TokenError>,
    Result<Renewal, TokenError>,
    [Result<(), TokenError>; 2],
);

/// What each call comes to.
async fn outcomes(tokens: &dyn UpstreamTokens) -> Outcomes {
    let trace = Trace::default();
    let handed = |AccessToken { secret, tag, expires_at, again }| (secret, tag, expires_at, again);
    (
        [
            tokens.upstream_token(ann(), &trace).await.map(handed),
            tokens.awaited_token(ann(), Duration::from_millis(1_500), &trace).await.map(handed),
            tokens.awaited_token(ann(), LONGEST_WAIT, &trace).await.map(handed),
        ],
        tokens.refused(ann(), Refused::unauthorized(TAG), &trace).await,
        tokens.refused(ann(), insufficient(), &trace).await,
        [tokens.expect_again(ann(), &trace).await, tokens.disconnect(ann(), &trace).await],
    )
}

/// In this process and over gRPC, each call is asked the same and comes to the same.
async fn the_same_both_ways(same: Same) {
    let same = Arc::new(same);
    let expected = outcomes(&*same).await;
    let (_dir, there) = over_grpc(TokensService(Arc::clone(&same) as Arc<dyn UpstreamTokens>)).await;
    assert_eq!(outcomes(&there).await, expected);
    let asked = same.asked.lock().expect("what was asked").clone();
    let (here, there) = asked.split_at(7);
    assert_eq!(here[..5], there[..5]);
    // Which authorization server it is makes no difference to these.
    for (here, there) in here[5..].iter().zip(&there[5..]) {
        let mut here = here.clone();
        here.0.upstream.authorization_server = None;
        assert_eq!(*there, here);
    }
}

#[tokio::test]
async fn each_error_crosses_the_wire() {
    let unavailable = |cause: &str| TokenError::Unavailable(Cause::Owned(cause.to_owned()));
    for error in [
        TokenError::NotFound(Missing::Never),
        TokenError::NotFound(Missing::Lost),
        unavailable("a cause"),
        unavailable("a cause\nof two lines, ünd more: 100 %"),
        unavailable(""),
    ] {
        the_same_both_ways(Same::error(&error)).await;
    }
}

#[tokio::test]
async fn each_answer_crosses_the_wire() {
    let later = Some(UnixTime::from_secs(4_000_000_000));
    for (expires_at, again, renewal) in [
        (None, None, Renewal::Renewed),
        (later, None, Renewal::TooSoon),
        (None, later, Renewal::Connect),
        (later, later, Renewal::NoMore),
    ] {
        the_same_both_ways(Same {
            token: Ok((Secret::new("SECRET"), TAG, expires_at, again)),
            renewal: Ok(renewal),
            noted: Ok(()),
            disconnected: Ok(()),
            asked: Mutex::default(),
        })
        .await;
    }
}

/// A service that answers with what it is given, and hangs once it has nothing more.
#[derive(Default)]
struct Raw(Mutex<Vec<Result<proto::GetUpstreamTokenResponse, Status>>>);

#[tonic::async_trait]
impl upstream_tokens_server::UpstreamTokens for Raw {
    async fn get_upstream_token(
        &self,
        _: Request<proto::GetUpstreamTokenRequest>,
    ) -> Result<Response<proto::GetUpstreamTokenResponse>, Status> {
        let next = self.0.lock().expect("answers").pop();
        match next {
            Some(answer) => answer.map(Response::new),
            None => std::future::pending().await,
        }
    }

    async fn expect_again(
        &self,
        _: Request<proto::ExpectAgainRequest>,
    ) -> Result<Response<proto::ExpectAgainResponse>, Status> {
        Err(Status::unimplemented("as a version before it says"))
    }

    async fn report_refused_token(
        &self,
        _: Request<proto::ReportRefusedTokenRequest>,
    ) -> Result<Response<proto::ReportRefusedTokenResponse>, Status> {
        Ok(Response::new(proto::ReportRefusedTokenResponse::default()))
    }

    async fn disconnect(
        &self,
        _: Request<proto::DisconnectRequest>,
    ) -> Result<Response<proto::DisconnectResponse>, Status> {
        Err(Status::internal("SECRETS are not quoted"))
    }
}

fn not_found(reason: Option<&'static str>) -> Status {
    let mut metadata = MetadataMap::new();
    if let Some(reason) = reason {
        metadata.insert("envoy-cimd-not-found", reason.parse().expect("a value"));
    }
    Status::with_metadata(Code::NotFound, "a message", metadata)
}

/// As a version says it that knows of no marks.
fn good() -> proto::GetUpstreamTokenResponse {
    let access_token = "token".to_owned();
    proto::GetUpstreamTokenResponse { access_token, expires_at: None, tag: vec![7; 16], again_until: None }
}

/// What another version or another program may say.
#[tokio::test]
async fn an_answer_that_keeps_no_contract_is_no_token() {
    let good = good();
    let broken = TokenError::Unavailable("the answer of the service of tokens does not keep the contract".into());
    let before_1970 = prost_types::Timestamp { seconds: -1, nanos: 0 };
    for (answer, expected) in [
        (Ok(good.clone()), None),
        (Ok(proto::GetUpstreamTokenResponse { tag: vec![7; 15], ..good.clone() }), Some(broken.clone())),
        (Ok(proto::GetUpstreamTokenResponse { tag: Vec::new(), ..good.clone() }), Some(broken.clone())),
        (Ok(proto::GetUpstreamTokenResponse { access_token: String::new(), ..good.clone() }), Some(broken.clone())),
        (Ok(proto::GetUpstreamTokenResponse { expires_at: Some(before_1970), ..good }), Some(broken.clone())),
        // A version before `lost`, and one after this.
        (Err(not_found(None)), Some(TokenError::NotFound(Missing::Never))),
        (Err(not_found(Some("for another reason"))), Some(TokenError::NotFound(Missing::Never))),
        (Err(not_found(Some("lost"))), Some(TokenError::NotFound(Missing::Lost))),
    ] {
        let case = format!("{answer:?}");
        let (_dir, client) = over_grpc(Raw(Mutex::new(vec![answer]))).await;
        assert_eq!(client.upstream_token(ann(), &Trace::default()).await.err(), expected, "{case}");
    }
    let (_dir, client) = over_grpc(Raw::default()).await;
    assert_eq!(client.refused(ann(), Refused::unauthorized(TAG), &Trace::default()).await, Err(broken));
    let Err(TokenError::Unavailable(cause)) = client.disconnect(ann(), &Trace::default()).await else {
        panic!("it failed")
    };
    assert!(cause.starts_with("the call of the service of tokens broke: Internal, "), "{cause}");
    let Err(TokenError::Unavailable(cause)) = client.expect_again(ann(), &Trace::default()).await else {
        panic!("nobody noted it")
    };
    assert!(cause.contains("Unimplemented"), "{cause}");
}

/// Whatever breaks, there may be a token later: nobody is told to connect.
#[tokio::test]
async fn a_service_that_is_gone_or_hangs_is_unavailable() {
    let trace = Trace::default();
    let nowhere = client_of("unix:/nowhere/tokens.sock", &client::Config::default()).await;
    let cause = "no connection to the service of tokens: No such file or directory (os error 2)";
    let unavailable = TokenError::Unavailable(cause.into());
    assert_eq!(nowhere.upstream_token(ann(), &trace).await.err(), Some(unavailable));

    let (_dir, client) = over_grpc(Raw(Mutex::new(vec![Ok(good())]))).await;
    assert!(client.upstream_token(ann(), &trace).await.is_ok(), "there is a connection");
    // After the 10 seconds of the deadline.
    let cause = "the service of tokens did not answer in time";
    let unavailable = TokenError::Unavailable(cause.into());
    assert_eq!(client.upstream_token(ann(), &trace).await.err(), Some(unavailable));
}

/// Notes how long each call may take.
struct Timed(Arc<Mutex<Vec<String>>>);

#[tonic::async_trait]
impl upstream_tokens_server::UpstreamTokens for Timed {
    async fn get_upstream_token(
        &self,
        request: Request<proto::GetUpstreamTokenRequest>,
    ) -> Result<Response<proto::GetUpstreamTokenResponse>, Status> {
        let deadline = request.metadata().get("grpc-timeout").expect("a deadline").to_str().expect("text").to_owned();
        self.0.lock().expect("deadlines").push(deadline);
        Ok(Response::new(good()))
    }

    async fn expect_again(
        &self,
        _: Request<proto::ExpectAgainRequest>,
    ) -> Result<Response<proto::ExpectAgainResponse>, Status> {
        Err(Status::internal("nobody asks"))
    }

    async fn report_refused_token(
        &self,
        _: Request<proto::ReportRefusedTokenRequest>,
    ) -> Result<Response<proto::ReportRefusedTokenResponse>, Status> {
        Err(Status::internal("nobody asks"))
    }

    async fn disconnect(
        &self,
        _: Request<proto::DisconnectRequest>,
    ) -> Result<Response<proto::DisconnectResponse>, Status> {
        Err(Status::internal("nobody asks"))
    }
}

/// A call that waits is given up later than its wait is over, and no later than 24 seconds.
#[tokio::test]
async fn a_wait_has_the_time_it_needs() {
    let deadlines = Arc::<Mutex<Vec<String>>>::default();
    let (_dir, client) = over_grpc(Timed(Arc::clone(&deadlines))).await;
    let trace = Trace::default();
    client.upstream_token(ann(), &trace).await.expect("a token");
    for seconds in [1, 10, 20, 3600] {
        client.awaited_token(ann(), Duration::from_secs(seconds), &trace).await.expect("a token");
    }
    let deadlines = deadlines.lock().expect("deadlines").clone();
    assert_eq!(deadlines, ["10000000u", "10000000u", "14000000u", "24000000u", "24000000u"]);
}

/// A `serve` whose tokens are another process's has the role traffic, and follows where that process is.
#[tokio::test]
async fn tokens_of_another_process_over_a_unix_socket() {
    let dir = tempfile::tempdir().expect("a folder");
    let text = |path: &Path| path.to_str().expect("text").to_owned();
    let at = |name: &str| format!("unix:{}", text(&dir.path().join(name)));
    let (listen, tokens, ext_proc) = (at("choreographer.sock"), at("tokens.sock"), at("ext_proc.sock"));
    let (keys, state) = (text(&key_file(dir.path())), text(&dir.path().join("state")));
    let flags = ["--listen", &listen, "--tokens-listen", &tokens, "--state-dir", &state];
    let _choreographer = Choreographer::start(&executable(), &flags).await;
    let client = client_of(&tokens, &client::Config::default()).await;
    let answer = client.upstream_token(ann(), &Trace::default()).await.err();
    assert_eq!(answer, Some(TokenError::NotFound(Missing::Never)), "it is asked, and its store is");
    let flags = ["--choreographer", &listen, "--tokens", &tokens, "--state-keys", &keys, "--listen", &ext_proc];
    let cimd = Cimd::start(&executable(), &flags).await;
    let output = cimd.process.output();
    assert!(output.contains("\"roles\":\"endpoints, traffic, refused\""), "{output}");
}
