//! How a person's connection stands, and what their next authorization would ask for: what the exchange says of it, and
//! that it is the same over gRPC.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use envoy_cimd::{
    contract::{
        choreographer::{Begin, Begun, Choreographer, Complete},
        client::Client,
        connection::{Connection, ConnectionState, Granted, NextAuthorization},
        error::{BeginError, CallError, Incomplete},
        proto::authorization_choreographer_server::AuthorizationChoreographerServer,
        service::Service,
        tokens::{Refused, RefusedStatus, TokenOwner, UpstreamTokens},
    },
    exchange::embedded::{self, Embedded},
    model::{client::ClientId, clock::UnixTime, scope::Scope, trace::Trace, upstream::Upstream, user::User},
    net::{
        callee::CHOREOGRAPHER,
        dial::{self, Plain},
        tls::client,
    },
    store::vault,
};
use tokio::net::UnixListener;

use crate::{
    authorization_server::{Lie, Refresh, Token},
    exchange::CLIENT,
    limits::silence,
    stack::{
        in_process::{owner, serve},
        key_file,
    },
    tokens::{begin, connect_in_process, in_process_with, over},
};

fn scope(text: &str) -> Scope {
    Scope::of([text])
}

async fn stands(embedded: &Embedded, owner: &TokenOwner) -> Connection {
    stands_with(embedded, owner, None).await
}

async fn stands_with(embedded: &Embedded, owner: &TokenOwner, of_route: Option<&str>) -> Connection {
    let connection = embedded.connection(owner.clone(), of_route.map(scope), &Trace::default()).await;
    connection.unwrap_or_else(|error| panic!("{error:?}"))
}

fn granted(connection: &Connection) -> &Granted {
    match &connection.state {
        ConnectionState::Connected(granted) => granted,
        other => panic!("{other:?}"),
    }
}

fn next(scope_text: &str, added: &str) -> Option<NextAuthorization> {
    Some(NextAuthorization { scope: scope(scope_text), added: scope(added) })
}

/// The scopes that the servers of the tests list.
const LISTED: &str = "read write offline_access";

const BEGAN: UnixTime = UnixTime::from_secs(4_000_000_000);

/// From never, over connected, refreshed and short of a scope, to disconnected; one person's alone, and nothing of it is
/// handed out or refreshed by looking.
#[tokio::test]
async fn a_connection_is_described_as_it_stands() {
    let (_dir, servers, mut embedded) = in_process_with(vec![Lie::none("good"), Lie::none("other")]).await;
    let ours = owner(User::Single, CLIENT, &servers.upstream_of("good"));
    let ann = User::Subject { issuer: "i".to_owned(), subject: "ann".to_owned() };
    let theirs = owner(ann, CLIENT, &servers.upstream_of("good"));
    embedded.tokens.clock = || BEGAN;
    let never = Connection { state: ConnectionState::Never, next: next(LISTED, "") };
    assert_eq!(stands(&embedded, &ours).await, never);
    // What the operator says is all that is asked for, with `offline_access`, since the server lists that.
    assert_eq!(
        stands_with(&embedded, &ours, Some("files offline_access")).await.next,
        next("files offline_access", "")
    );

    let sent_to = connect_in_process(&servers, &embedded, begin(&servers, "good")).await;
    let sent_to = url::Url::parse(&sent_to).expect("a URL");
    let asked = sent_to.query_pairs().find(|(name, _)| name == "scope").map(|(_, scope)| scope.into_owned());
    assert_eq!(asked.as_deref(), Some(LISTED), "what was said to be asked for");
    let connection = stands(&embedded, &ours).await;
    let first = Granted {
        since: Some(BEGAN),
        scope: granted(&connection).scope.clone(),
        issuer: format!("{}/good", servers.issuer),
    };
    assert_eq!(granted(&connection), &first);
    assert!(!first.scope.is_empty() && connection.next == next(LISTED, ""), "{connection:?}");
    assert_eq!(stands(&embedded, &theirs).await, never, "of another person");
    // What it would ask for beyond what there is.
    assert_eq!(
        stands_with(&embedded, &ours, Some("files read")).await.next,
        next("files read offline_access", "files")
    );

    // A scope is missing: what is asked for has it, marked as new; of this person alone.
    let token = embedded.tokens.upstream_token(ours.clone(), &Trace::default()).await.expect("a token");
    let refused = Refused {
        status: RefusedStatus::InsufficientScope,
        scope: Some("admin".to_owned()),
        ..Refused::unauthorized(token.tag)
    };
    embedded.tokens.refused(ours.clone(), refused, &Trace::default()).await.expect("noted");
    assert_eq!(stands(&embedded, &ours).await.next, next("read write admin offline_access", "admin"));
    assert_eq!(
        stands_with(&embedded, &ours, Some("read")).await.next,
        next("read offline_access", ""),
        "the operator's word"
    );
    assert_eq!(stands(&embedded, &theirs).await, never);
    embedded.tokens.clock = || BEGAN + 600;
    assert_eq!(stands(&embedded, &ours).await.next, next(LISTED, ""), "it is forgotten in time");

    // A refresh is no new connection; and to look is no refresh, though the token is over.
    embedded.tokens.clock = || BEGAN + 7200;
    assert_eq!(granted(&stands(&embedded, &ours).await), &first);
    assert!(servers.refreshes().is_empty());
    embedded.tokens.upstream_token(ours.clone(), &Trace::default()).await.expect("a token");
    assert_eq!((servers.refreshes().len(), granted(&stands(&embedded, &ours).await)), (1, &first));
    // To connect anew is one.
    connect_in_process(&servers, &embedded, begin(&servers, "good")).await;
    assert_eq!(granted(&stands(&embedded, &ours).await).since, Some(BEGAN + 7200));

    embedded.disconnect(ours.clone(), &Trace::default()).await.expect("disconnected");
    assert_eq!(stands(&embedded, &ours).await, never);
}

/// A token of another authorization server than the route's is no connection; nor is a grant that ended.
#[tokio::test]
async fn what_is_no_connection_any_more() {
    let silent = Lie {
        token: Token::Json(|answer| drop(answer.as_object_mut().expect("an object").remove("refresh_token"))),
        ..Lie::none("silent")
    };
    let lies = vec![over("dead", Refresh::Status(400, r#"{"error":"invalid_grant"}"#)), silent, Lie::none("good")];
    let (_dir, servers, mut embedded) = in_process_with(lies).await;
    let of = |name: &str| owner(User::Single, CLIENT, &servers.upstream_of(name));
    connect_in_process(&servers, &embedded, begin(&servers, "dead")).await;
    embedded.tokens.upstream_token(of("dead"), &Trace::default()).await.expect_err("it cannot be renewed");
    let connection = stands(&embedded, &of("dead")).await;
    assert_eq!((connection.state, connection.next), (ConnectionState::Lost, next(LISTED, "")));

    // One that is over, with nothing to renew it, has ended before anybody asks for it.
    connect_in_process(&servers, &embedded, begin(&servers, "silent")).await;
    granted(&stands(&embedded, &of("silent")).await);
    embedded.tokens.clock = || UnixTime::now() + 7200;
    assert_eq!(stands(&embedded, &of("silent")).await.state, ConnectionState::Lost);

    connect_in_process(&servers, &embedded, begin(&servers, "good")).await;
    let mut pinned = of("good");
    pinned.upstream.authorization_server = Some(format!("{}/silent", servers.issuer));
    assert_eq!(stands(&embedded, &pinned).await.state, ConnectionState::Never);
    granted(&stands(&embedded, &of("good")).await);
}

/// Where nothing can be looked up, what is stored is said all the same; where the store cannot be opened, nobody can say.
#[tokio::test]
async fn what_cannot_be_known_is_left_out() {
    let (_dir, servers, embedded) = in_process_with(vec![Lie::none("good")]).await;
    let nowhere = owner(User::Single, CLIENT, "https://nowhere.invalid/mcp");
    assert_eq!(stands(&embedded, &nowhere).await, Connection { state: ConnectionState::Never, next: None });
    let store = vault::Config { state_dir: Some("/dev/null/envoy-cimd".into()), ..vault::Config::default() };
    let closed = Embedded::new(embedded::Config { store, ..embedded::Config::default() }).expect("good settings");
    let ours = owner(User::Single, CLIENT, &servers.upstream_of("good"));
    let error = closed.connection(ours, None, &Trace::default()).await.expect_err("there is no store");
    assert!(matches!(error, CallError::Unavailable(_)), "{error:?}");
}

/// An upstream and a store that both say nothing keep a page back no longer than either: a caller in another process
/// gives up after 2 s. The clock is the test's own.
#[tokio::test]
async fn who_says_nothing_is_waited_for_once() {
    let ((_upstream, url), (_store, store)) = (silence().await, silence().await);
    let dir = tempfile::tempdir().expect("a folder");
    let store = vault::Config {
        url: Some(store.replace("http://", "redis://").parse().expect("a URL")),
        encryption_keys: Some(key_file(dir.path())),
        ..vault::Config::default()
    };
    let embedded = Embedded::new(embedded::Config { store, ..embedded::Config::default() }).expect("good settings");
    let ours = owner(User::Single, CLIENT, &format!("{url}/mcp"));
    tokio::time::pause();
    let began = tokio::time::Instant::now();
    embedded.connection(ours, None, &Trace::default()).await.expect_err("the store says nothing");
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

/// A choreographer that says what it is told to, and what it was asked.
struct Telling {
    connection: Connection,
    asked: (TokenOwner, Option<Scope>),
}

#[async_trait]
impl Choreographer for Telling {
    async fn describe(&self, _: ClientId, _: Upstream, _: &Trace) -> Result<Option<String>, CallError> {
        panic!("nobody looks")
    }

    async fn connection(&self, owner: TokenOwner, scope: Option<Scope>, _: &Trace) -> Result<Connection, CallError> {
        assert_eq!((owner, scope), self.asked);
        Ok(self.connection.clone())
    }

    async fn begin(&self, _: Begin, _: &Trace) -> Result<Begun, BeginError> {
        panic!("nobody begins")
    }

    async fn complete(&self, _: Complete, _: &Trace) -> Result<String, Incomplete> {
        panic!("nobody completes")
    }

    async fn disconnect(&self, _: TokenOwner, _: &Trace) -> Result<(), CallError> {
        panic!("nobody disconnects")
    }
}

#[tokio::test]
async fn it_is_the_same_over_grpc() {
    let of = |since, scope_text| {
        ConnectionState::Connected(Granted {
            since,
            scope: scope(scope_text),
            issuer: "https://as.example/".to_owned(),
        })
    };
    let connections = [
        Connection { state: ConnectionState::Never, next: None },
        Connection { state: ConnectionState::Never, next: next("", "") },
        Connection { state: ConnectionState::Lost, next: next("a b", "") },
        Connection { state: of(Some(BEGAN), "a b"), next: next("a b c", "c") },
        Connection { state: of(None, ""), next: None },
    ];
    let ann = User::Subject { issuer: "i".to_owned(), subject: "ann".to_owned() };
    let full = TokenOwner {
        upstream: Upstream {
            url: "https://upstream.example/mcp".to_owned(),
            authorization_server: Some("https://as.example".to_owned()),
            resource: Some("https://upstream.example".parse().expect("a resource")),
        },
        ..owner(ann, CLIENT, "")
    };
    let plain = owner(User::Single, CLIENT, "https://upstream.example/mcp");
    let questions = [(full, Some(scope("read write"))), (plain, None)];
    for (connection, asked) in connections.iter().flat_map(|one| questions.iter().map(move |asked| (one, asked))) {
        let dir = tempfile::tempdir().expect("a folder");
        let socket = dir.path().join("choreographer.sock");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let telling = Arc::new(Telling { connection: connection.clone(), asked: asked.clone() });
        let service = AuthorizationChoreographerServer::new(Service::new(telling, Default::default()));
        let server = tokio::spawn(serve(listener, service));
        let url = format!("unix:{}", socket.display()).parse().expect("a URL");
        let there = dial::connect(&CHOREOGRAPHER, Some(&url), &client::Config::default(), Plain::OnLoopback).await;
        let there = Client::new(there.expect("good settings").expect("an address is given").channel);
        let (owner, of_route) = asked.clone();
        assert_eq!(there.connection(owner, of_route, &Trace::default()).await.as_ref(), Ok(connection));
        server.abort();
    }
}
