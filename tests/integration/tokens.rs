//! Tokens handed out: fresh, once, and to nobody else.

use std::path::Path;

use envoy_cimd::{
    contract::{
        choreographer::{AuthorizationAnswer, Begin, Choreographer as _, Complete},
        proto::{
            self, DisconnectRequest, DisconnectResponse, GetUpstreamTokenRequest, Subject, User,
            begin_authorization_response::Outcome, upstream_tokens_client::UpstreamTokensClient, user,
        },
        tokens::{AccessToken, Missing, Refused, Renewal, TokenError, TokenOwner, UpstreamTokens},
        tokens_client::TokensClient,
    },
    exchange::{
        clients,
        embedded::{self, Embedded},
    },
    model::{
        client::{ClientId, RedirectUri},
        clock::UnixTime,
        flow::BrowserHash,
        secret::{Secret, generate_key_line},
        trace::Trace,
        upstream::Upstream,
        user::User as Person,
    },
    net::{outgoing, tls::client},
    store::{keys::RouteKey, open::Opened, url::StoreUrl, vault},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::timeout;
use tonic::{
    Code,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use crate::{
    authorization_server::{HOST, Lie, Refresh, Servers, Token},
    exchange::{CALLBACK, CLIENT, Party, single},
    kinds::{self, Kind},
    log::{read_again, stop_reading},
    stack::{Certificates, Choreographer, PATIENCE, grpc::channel, in_process::owner, key_file, metric, ready_address},
    store::Redis,
    tokens_client::client_of,
    world::{DOCUMENT, executable, run},
};

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

#[tokio::test]
async fn a_token_is_refreshed_when_it_is_over() {
    let refused = r#"{"error":"invalid_grant"}"#;
    let lies = vec![
        Lie::none("fresh"),
        over("rotates", Refresh::Rotates),
        over("keeps", Refresh::Keeps),
        over("busy", Refresh::Status(429, refused)),
        over("broken", Refresh::Status(503, refused)),
        over("hangs", Refresh::Hangs),
        over("dies", Refresh::RotatesAndDies),
        over("html", Refresh::Status(200, "<h1>SECRET</h1>")),
        over("ended", Refresh::Status(400, refused)),
        over("unauthorized", Refresh::Status(400, r#"{"error":"unauthorized_client"}"#)),
        over("client", Refresh::Status(401, r#"{"error":"invalid_client"}"#)),
        Lie {
            token: Token::Json(|answer| {
                answer["expires_in"] = json!(1);
                answer.as_object_mut().expect("an object").remove("refresh_token");
            }),
            ..Lie::none("no-refresh")
        },
    ];
    let patience = ["--patience=5", "--token-endpoint-timeout=5", "--refresh-claim=10"];
    let (mut party, client) = party(lies, &patience).await;
    for (name, first, second, refreshes) in [
        ("fresh", Ok(()), Ok(()), 0),
        ("rotates", Ok(()), Ok(()), 1),
        ("keeps", Ok(()), Ok(()), 1),
        // Nothing is lost: the old one is tried again, once what was just heard is a second old.
        ("busy", Err(Code::Unavailable), Err(Code::Unavailable), 1),
        ("broken", Err(Code::Unavailable), Err(Code::Unavailable), 1),
        ("hangs", Err(Code::Unavailable), Err(Code::Unavailable), 1),
        ("dies", Err(Code::Unavailable), Err(Code::Unavailable), 1),
        ("html", Err(Code::Unavailable), Err(Code::Unavailable), 1),
        ("client", Err(Code::Unavailable), Err(Code::Unavailable), 1),
        // It is over.
        ("ended", Err(Code::NotFound), Err(Code::NotFound), 1),
        ("unauthorized", Err(Code::NotFound), Err(Code::NotFound), 1),
        ("no-refresh", Err(Code::NotFound), Err(Code::NotFound), 0),
        ("never-connected", Err(Code::NotFound), Err(Code::NotFound), 0),
    ] {
        if name != "never-connected" {
            connect(&party, name, single(), CLIENT).await;
        }
        let before = party.servers.refreshes().len();
        for expected in [first, second] {
            let got = token(&client, &party, name, single(), CLIENT).await;
            assert_eq!(got.as_ref().map(drop), expected.as_ref().map(drop), "{name}");
        }
        assert_eq!(party.servers.refreshes().len(), before + refreshes, "{name}");
    }
    for (result, count) in [("ok", 2), ("failed", 6), ("ended", 3)] {
        let name = format!("envoy_cimd_refreshes_total{{result=\"{result}\"}}");
        assert_eq!(metric(&party.process.admin, &name).await, Some(count), "{result}");
    }
    let lasting = ["rotates", "keeps", "busy", "broken", "hangs", "dies", "html", "client", "fresh"];
    let stored = party.stored(&lasting).await;
    assert!(stored.iter().all(Option::is_some), "none of these is lost: {stored:?}");
    assert_eq!(party.stored_now(&["ended", "unauthorized", "no-refresh"]).await, [None, None, None]);
    let audit = audited(&party, "refreshed");
    let count = |outcome: &str| audit.iter().filter(|other| *other == outcome).count();
    assert_eq!((count("ok"), count("failed"), count("ended")), (2, 6, 3), "{audit:?}");
}

/// Nobody has the token that such a server rotated to. That shows at the next refresh, and the user can connect again.
#[tokio::test]
async fn a_server_that_rotates_and_dies() {
    let (_dir, servers, embedded) = in_process_and_connected(over("dies", Refresh::RotatesAndDies)).await;
    let owner = owner(Person::Single, CLIENT, &servers.upstream_of("dies"));
    let mut answers = Vec::new();
    while answers.last() != Some(&Some(TokenError::NotFound(Missing::Lost))) {
        answers.push(embedded.tokens.upstream_token(owner.clone(), &Trace::default()).await.err());
        tokio::task::yield_now().await;
    }
    assert!(
        answers.iter().rev().skip(1).all(|answer| matches!(answer, Some(TokenError::Unavailable(_)))),
        "{answers:?}"
    );
    assert_eq!(servers.refreshes().len(), 2, "one that was lost, and one that was refused");
    assert!(embedded.tokens.record(&owner).await.expect("a store").is_none());
}

/// A token that was revoked behind our back is over at the next refresh, and the user can connect again.
#[tokio::test]
async fn a_grant_that_ended_behind_our_back() {
    let (party, client) = party(vec![over("rotates", Refresh::Rotates)], &[]).await;
    connect(&party, "rotates", single(), CLIENT).await;
    party.servers.forget_grants();
    assert_eq!(token(&client, &party, "rotates", single(), CLIENT).await, Err(Code::NotFound));
    connect(&party, "rotates", person("i", "other"), CLIENT).await;
    assert!(token(&client, &party, "rotates", person("i", "other"), CLIENT).await.is_ok());
}

const NEVER: TokenError = TokenError::NotFound(Missing::Never);
const LOST: TokenError = TokenError::NotFound(Missing::Lost);

/// A grant that ended is remembered for its owner alone, until they connect anew or disconnect.
async fn ended_grants(kept: Kept) {
    let flags = kept.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let no_refresh = Token::Json(|answer| {
        answer["expires_in"] = json!(1);
        answer.as_object_mut().expect("an object").remove("refresh_token");
    });
    let refuses = Refresh::Status(400, r#"{"error":"invalid_grant"}"#);
    let lies = vec![
        over("rotates", Refresh::Rotates),
        Lie { token: no_refresh, ..Lie::none("no-refresh") },
        Lie { refresh: refuses, ..Lie::none("refuses") },
        Lie::none("good"),
    ];
    let dir = tempfile::tempdir().expect("a folder");
    let address = format!("unix:{}", dir.path().join("tokens.sock").display());
    let flags = [&["--tokens-listen", &address], &flags[..]].concat();
    let mut party = Party::start(lies, &flags).await;
    let tokens = client_of(&address, &client::Config::default()).await;
    let of = |user: Person, name: &str| owner(user, CLIENT, &party.servers.upstream_of(name));
    let ask = async |tokens: &TokensClient, owner: TokenOwner| {
        let token = tokens.upstream_token(owner, &Trace::default()).await;
        token.map(|AccessToken { secret, .. }| secret)
    };
    for name in ["rotates", "no-refresh", "refuses"] {
        assert_eq!(ask(&tokens, of(Person::Single, name)).await, Err(NEVER), "{name}");
        connect(&party, name, single(), CLIENT).await;
    }
    party.servers.forget_grants();
    let refused =
        tokens.upstream_token(of(Person::Single, "refuses"), &Trace::default()).await.expect("still good").tag;
    let reported =
        tokens.refused(of(Person::Single, "refuses"), Refused::unauthorized(refused), &Trace::default()).await;
    assert_eq!(reported, Err(LOST));
    let refreshes = party.servers.refreshes().len();
    for name in ["rotates", "no-refresh", "refuses", "rotates", "no-refresh", "refuses"] {
        assert_eq!(ask(&tokens, of(Person::Single, name)).await, Err(LOST), "{name}");
    }
    assert_eq!(party.servers.refreshes().len(), refreshes + 1, "once it is over, nobody is asked again");
    let reported =
        tokens.refused(of(Person::Single, "refuses"), Refused::unauthorized(refused), &Trace::default()).await;
    assert_eq!(reported, Err(LOST));

    // Nobody else's, no other route's, and no other authorization server's.
    let ann = Person::Subject { issuer: "i".to_owned(), subject: "ann".to_owned() };
    let other_route = "https://notes.localhost/linear/.well-known/mcp-client-metadata.json";
    let mut pinned = of(Person::Single, "rotates");
    pinned.upstream.authorization_server = Some("https://other.example".to_owned());
    for other in [
        of(ann, "rotates"),
        owner(Person::Single, other_route, &party.servers.upstream_of("rotates")),
        of(Person::Single, "good"),
        pinned,
    ] {
        assert_eq!(ask(&tokens, other).await, Err(NEVER));
    }

    // It outlives the process.
    assert_eq!(party.process.process.stop().await, Some(0));
    let log = party.process.process.output();
    assert!(!log.contains("SECRET") && !log.contains("isolation_violation"), "{log}");
    let again = ["--extra-ca", &party.ca, "--allow-host", HOST, "--listen", &party.process.address];
    let state = party.dir.path().join("state").display().to_string();
    let again = [&flags[..], &again, &["--state-dir", &state]].concat();
    let again = Choreographer::start(&executable(), &again).await;
    party.process = again;
    assert_eq!(ask(&tokens, of(Person::Single, "no-refresh")).await, Err(LOST));

    // Disconnected, it is as if there never was one, and there is nothing to revoke.
    for _ in 0..2 {
        tokens.disconnect(of(Person::Single, "no-refresh"), &Trace::default()).await.expect("disconnected");
        assert_eq!(ask(&tokens, of(Person::Single, "no-refresh")).await, Err(NEVER));
    }
    // Connected anew, there is a token, at this authorization server or another.
    connect(&party, "rotates", single(), CLIENT).await;
    assert!(ask(&tokens, of(Person::Single, "rotates")).await.is_ok());
    let mut request = party.request("refuses");
    request.authorization_server = format!("{}/good", party.servers.issuer);
    request.shown_issuer.clone_from(&request.authorization_server);
    let Outcome::Begun(begun) = party.begin_with(request).await else { panic!("it began") };
    party.complete(party.answer("good", &begun)).await.expect("completed");
    let mut moved = of(Person::Single, "refuses");
    moved.upstream.authorization_server = Some(format!("{}/good", party.servers.issuer));
    assert!(ask(&tokens, moved.clone()).await.is_ok());
    assert_eq!(party.servers.revoked(), Vec::<String>::new(), "what ended needs no revocation");
    tokens.disconnect(moved.clone(), &Trace::default()).await.expect("disconnected");
    assert_eq!(ask(&tokens, moved).await, Err(NEVER));
    assert_eq!(party.servers.revoked().len(), 1);
}

#[tokio::test]
async fn a_grant_that_ended_is_told_from_none() {
    ended_grants(Kept::new(tempfile::tempdir().expect("a folder"), None)).await;
}

#[tokio::test]
#[ignore = "needs redis-server: make test-redis"]
async fn redis_a_grant_that_ended_is_told_from_none() {
    let dir = tempfile::tempdir().expect("a folder");
    let redis = Redis::start(dir.path(), &[], "--port").await;
    ended_grants(Kept::new(tempfile::tempdir().expect("a folder"), Some(redis.url("redis", "")))).await;
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

/// A token that has some time left is handed out at once, and renewed meanwhile.
#[tokio::test]
async fn a_token_that_is_old_is_refreshed_in_the_background() {
    let (_dir, servers, mut embedded) = in_process_and_connected(Lie::none("good")).await;
    let owner = owner(Person::Single, CLIENT, &servers.upstream_of("good"));
    let ask = async |embedded: &Embedded| {
        let token = embedded.tokens.upstream_token(owner.clone(), &Trace::default()).await;
        token.unwrap_or_else(|error| panic!("{error:?}")).secret
    };
    let first = ask(&embedded).await;
    assert!(servers.refreshes().is_empty(), "it is fresh");
    // An hour's token, 50 seconds before its end.
    embedded.tokens.clock = || UnixTime::now() + 3550;
    assert_eq!(ask(&embedded).await, first, "nobody waits");
    while ask(&embedded).await == first {
        tokio::task::yield_now().await;
    }
    assert_eq!(servers.refreshes().len(), 1);
}

const NOW: UnixTime = UnixTime::from_secs(4_000_000_000);

/// An upstream that refuses every token costs a refresh a minute, and then fewer.
#[tokio::test]
async fn refusals_without_end_cost_few_refreshes() {
    // The time of each report, and whether it was worth a refresh.
    const REPORTS: [(fn() -> UnixTime, Renewal); 11] = [
        (|| NOW, Renewal::Renewed),
        (|| NOW + 1, Renewal::TooSoon),
        (|| NOW + 59, Renewal::TooSoon),
        (|| NOW + 60, Renewal::Renewed),
        (|| NOW + 179, Renewal::TooSoon),
        (|| NOW + 180, Renewal::Renewed),
        (|| NOW + 419, Renewal::TooSoon),
        (|| NOW + 420, Renewal::Renewed),
        // A clock that was set back says nothing of when the last one was.
        (|| NOW - 3600, Renewal::Renewed),
        (|| NOW - 3599, Renewal::TooSoon),
        // Long after the last, it is the first again.
        (|| NOW, Renewal::Renewed),
    ];
    let (_dir, servers, mut embedded) = in_process_and_connected(no_lifetime("no-lifetime")).await;
    let owner = owner(Person::Single, CLIENT, &servers.upstream_of("no-lifetime"));
    for (place, (clock, expected)) in REPORTS.into_iter().enumerate() {
        embedded.tokens.clock = clock;
        let token = embedded.tokens.record(&owner).await.expect("a store").expect("a token");
        let tag = token.tag.expect("a tag");
        let came_to = embedded.tokens.refused(owner.clone(), Refused::unauthorized(tag), &Trace::default()).await;
        assert_eq!(came_to, Ok(expected), "report {place}");
    }
    assert_eq!(servers.refreshes().len(), 6);
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

fn no_lifetime(name: &'static str) -> Lie {
    let token = Token::Json(|answer| drop(answer.as_object_mut().expect("an object").remove("expires_in")));
    Lie { token, ..Lie::none(name) }
}

fn refusable() -> Vec<Lie> {
    let ended = Refresh::Status(400, r#"{"error":"invalid_grant"}"#);
    vec![Lie::none("good"), no_lifetime("no-lifetime"), Lie { refresh: ended, ..Lie::none("ended") }]
}

/// However many report a token, and to whichever replica, it is refreshed once.
async fn tokens_that_were_refused(party: &Party, clients: [&UpstreamTokensClient<Channel>; 2]) {
    use proto::report_refused_token_response::Outcome::{Renewed, TooSoon};
    let [one, other] = clients;
    connect(party, "good", single(), CLIENT).await;
    let old = tag(one, party, "good").await;
    assert_eq!(old.len(), 16);
    assert_eq!(tag(other, party, "good").await, old, "a token has one tag");
    let reports = (0..200).map(|number| report(clients[number % 2], party, "good", &old));
    let reports = futures_util::future::join_all(reports).await;
    assert!(reports.iter().all(|outcome| *outcome == Ok(Renewed)), "{reports:?}");
    assert_eq!(party.servers.refreshes().len(), 1);
    let new = tag(other, party, "good").await;
    assert_ne!(new, old);
    assert_eq!(report(one, party, "good", &new).await, Ok(TooSoon), "the new one at once");
    assert_eq!(report(other, party, "good", &old).await, Ok(Renewed), "there is a newer one");
    assert_eq!(report(other, party, "good", &[0; 16]).await, Ok(Renewed), "nor is one of nobody's");
    assert_eq!(report(one, party, "good", &[0; 15]).await, Err(Code::InvalidArgument));
    assert_eq!(party.servers.refreshes().len(), 1, "and nothing more is asked for");

    // Without a lifetime, it is good until then.
    connect(party, "no-lifetime", single(), CLIENT).await;
    let tag_of_it = tag(one, party, "no-lifetime").await;
    assert_eq!(tag(one, party, "no-lifetime").await, tag_of_it);
    assert_eq!(report(other, party, "no-lifetime", &tag_of_it).await, Ok(Renewed));
    assert_eq!(party.servers.refreshes().len(), 2);

    // A grant that ended behind our back.
    connect(party, "ended", single(), CLIENT).await;
    let last = tag(one, party, "ended").await;
    assert_eq!(report(one, party, "ended", &last).await, Err(Code::NotFound));
    assert_eq!(token(other, party, "ended", single(), CLIENT).await, Err(Code::NotFound));
    assert_eq!(report(other, party, "ended", &last).await, Err(Code::NotFound));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_was_refused_is_refreshed_once() {
    let (mut party, client) = party(refusable(), &[]).await;
    tokens_that_were_refused(&party, [&client, &client]).await;
    assert_eq!(party.process.process.stop().await, Some(0));
    assert_eq!(audited(&party, "refused_token"), ["refreshing"; 3], "one line a refresh");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server: make test-redis"]
async fn redis_a_token_that_two_replicas_saw_refused_is_refreshed_once() {
    let dir = tempfile::tempdir().expect("a folder");
    let redis = Redis::start(dir.path(), &[], "--port").await;
    let kept = Kept::new(tempfile::tempdir().expect("a folder"), Some(redis.url("redis", "")));
    let flags = kept.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let (party, one) = party(refusable(), &flags).await;
    let (_other, other) = kept.again(&party).await;
    tokens_that_were_refused(&party, [&one, &other]).await;
}

/// Connected anew, what was there before is forgotten. It is revoked only where it is another server's: revoking may end
/// the whole grant, and the new token with it.
#[tokio::test]
async fn a_reconnect_forgets_what_it_replaces() {
    let (mut party, client) = party(vec![Lie::none("good"), Lie::none("other")], &[]).await;
    connect(&party, "good", single(), CLIENT).await;
    let first = token(&client, &party, "good", single(), CLIENT).await.expect("a token");
    connect(&party, "good", single(), CLIENT).await;
    let second = token(&client, &party, "good", single(), CLIENT).await.expect("a token");
    assert_ne!(first, second);
    assert_eq!(party.servers.revoked(), Vec::<String>::new());

    // The operator pins another server.
    let mut request = party.request("good");
    request.authorization_server = format!("{}/other", party.servers.issuer);
    request.shown_issuer.clone_from(&request.authorization_server);
    let Outcome::Begun(begun) = party.begin_with(request).await else { panic!("it began") };
    party.complete(party.answer("other", &begun)).await.expect("completed");
    assert_eq!(party.servers.revoked(), [second.replace("access", "refresh")]);
    assert_eq!(audited(&party, "revoked"), ["ok"]);
    // Disconnected, nothing is left, and each server was told.
    disconnect(&client, &party, "good", single(), CLIENT).await;
    assert_eq!(party.servers.revoked().len(), 2);
    assert_eq!(party.process.process.stop().await, Some(0));
    const TOKENS: redb::TableDefinition<&[u8; 32], &[u8]> = redb::TableDefinition::new("tokens-v1");
    let store = redb::Database::open(party.dir.path().join("state/store.redb")).expect("a store");
    let reading = redb::ReadableDatabase::begin_read(&store).expect("a transaction");
    let tokens = reading.open_table(TOKENS).expect("tokens");
    assert!(redb::ReadableTableMetadata::is_empty(&tokens).expect("a number"));
}

/// Who disconnects while a refresh is under way is rid of what it brings, too.
#[tokio::test]
async fn a_disconnect_outlasts_a_refresh() {
    let (mut party, client) = party(vec![over("late", Refresh::RotatesLate)], &["--patience=1"]).await;
    connect(&party, "late", single(), CLIENT).await;
    assert_eq!(token(&client, &party, "late", single(), CLIENT).await, Err(Code::Unavailable), "it is under way");
    disconnect(&client, &party, "late", single(), CLIENT).await;
    party.servers.answer();
    let both = |line: &str| line.contains("\"superseded\"").then_some(());
    party.process.process.line(both).await;
    assert_eq!(party.stored(&["late"]).await, [None]);
    assert_eq!(party.servers.revoked(), ["SECRET-refresh-of-SECRET-code-0", "SECRET-refresh-1"]);
    assert_eq!(audited(&party, "revoked"), ["ok", "ok"]);
}

/// The code is used up: what it brings is kept though the store was away when it came.
#[tokio::test]
#[ignore = "needs redis-server: make test-redis"]
async fn redis_may_be_away_when_a_token_comes() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut redis = Redis::start(dir.path(), &[], "--port").await;
    let kept = Kept::new(tempfile::tempdir().expect("a folder"), Some(redis.url("redis", "")));
    let flags = kept.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let lie = Lie { token: Token::Late, ..Lie::none("late") };
    let (party, client) = party(vec![lie], &[&flags[..], &["--patience=1"]].concat()).await;
    let Outcome::Begun(begun) = party.begin_with(party.request("late")).await else { panic!("it began") };
    assert!(party.complete(party.answer("late", &begun)).await.is_err(), "nobody waits any more");
    redis.stop().await;
    party.servers.answer();
    redis.start_again().await;
    let mut party = party;
    let completed = |line: &str| (line.contains("\"completed\"") && line.contains("audit")).then(|| line.to_owned());
    let line = party.process.process.line(completed).await;
    assert!(line.contains("\"outcome\":\"ok\""), "{line}");
    assert!(token(&client, &party, "late", single(), CLIENT).await.is_ok());
}

/// What a refresh brought and no store took is counted and audited, be it a token or the end of the grant; and nobody is
/// told that their grant is over where the next refresh may say so again.
#[tokio::test]
#[ignore = "needs redis-server: make test-redis"]
async fn redis_may_be_away_when_a_refresh_ends() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut redis = Redis::start(dir.path(), &[], "--port").await;
    let kept = Kept::new(tempfile::tempdir().expect("a folder"), Some(redis.url("redis", "")));
    let flags = kept.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let ended = Refresh::StatusLate(400, r#"{"error":"invalid_grant"}"#);
    let lies = vec![over("token", Refresh::RotatesLate), over("end", ended)];
    let (mut party, client) = party(lies, &[&flags[..], &["--patience=1"]].concat()).await;
    for name in ["token", "end"] {
        connect(&party, name, single(), CLIENT).await;
        assert_eq!(token(&client, &party, name, single(), CLIENT).await, Err(Code::Unavailable), "it is under way");
    }
    assert_eq!(party.servers.refreshes().len(), 2);
    redis.stop().await;
    party.servers.answer();
    let audited = |line: &str| {
        let line: Value = serde_json::from_str(line).ok()?;
        (line["target"] == "audit" && line["event"] == "refreshed").then(|| line["outcome"].to_string())
    };
    let mut lines = party.process.process.lines();
    for _ in 0..2 {
        let outcome = loop {
            let line = timeout(PATIENCE, lines.next()).await.expect("it is told").expect("it runs");
            if let Some(outcome) = audited(&line) {
                break outcome;
            }
        };
        assert_eq!(outcome, "\"not_stored\"");
    }
    for (result, count) in [("ok", 0), ("failed", 0), ("ended", 0), ("superseded", 0), ("not_stored", 2)] {
        let name = format!("envoy_cimd_refreshes_total{{result=\"{result}\"}}");
        assert_eq!(metric(&party.process.admin, &name).await, Some(count), "{result}");
    }
    redis.start_again().await;
    for name in ["token", "end"] {
        assert_eq!(token(&client, &party, name, single(), CLIENT).await, Err(Code::Unavailable), "{name}");
    }
    assert_eq!(party.process.process.stop().await, Some(0));
}

/// A server that rotates tokens has rotated when its answer is late: whoever asked may leave, and the answer is kept.
#[tokio::test]
async fn a_refresh_that_is_late_is_not_lost() {
    let (mut party, client) = party(vec![over("late", Refresh::RotatesLate)], &["--patience=1"]).await;
    connect(&party, "late", single(), CLIENT).await;
    assert_eq!(token(&client, &party, "late", single(), CLIENT).await, Err(Code::Unavailable));
    assert_eq!(token(&client, &party, "late", single(), CLIENT).await, Err(Code::Unavailable), "nor is it sent again");
    party.servers.answer();
    while token(&client, &party, "late", single(), CLIENT).await.is_err() {
        tokio::task::yield_now().await;
    }
    assert_eq!(party.servers.refreshes().len(), 1);
    party.process.process.line(|line| line.contains("\"refreshed\"").then_some(())).await;
    assert_eq!(audited(&party, "refreshed"), ["ok"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_ask_and_one_refreshes() {
    let (party, client) = party(vec![over("rotates", Refresh::Rotates)], &[]).await;
    connect(&party, "rotates", single(), CLIENT).await;
    let asked = (0..1000).map(|_| token(&client, &party, "rotates", single(), CLIENT));
    let mut tokens = futures_util::future::join_all(asked).await;
    tokens.dedup();
    assert_eq!((tokens.len(), party.servers.refreshes().len()), (1, 1), "{tokens:?}");
    assert!(tokens.iter().all(Result::is_ok), "{tokens:?}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server: make test-redis"]
async fn redis_a_thousand_ask_two_replicas_and_one_refreshes() {
    let dir = tempfile::tempdir().expect("a folder");
    let redis = Redis::start(dir.path(), &[], "--port").await;
    let kept = Kept::new(tempfile::tempdir().expect("a folder"), Some(redis.url("redis", "")));
    let flags = kept.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let (party, one) = party(vec![over("rotates", Refresh::Rotates)], &flags).await;
    let (_other, other) = kept.again(&party).await;
    connect(&party, "rotates", single(), CLIENT).await;
    let asked = (0..1000).map(|number| {
        let client = if number % 2 == 0 { &one } else { &other };
        token(client, &party, "rotates", single(), CLIENT)
    });
    let mut tokens = futures_util::future::join_all(asked).await;
    tokens.dedup();
    assert_eq!((tokens.len(), party.servers.refreshes().len()), (1, 1), "{tokens:?}");
    assert!(tokens.iter().all(Result::is_ok), "{tokens:?}");
    // Forgotten in one is forgotten in the other.
    disconnect(&one, &party, "rotates", single(), CLIENT).await;
    assert_eq!(token(&other, &party, "rotates", single(), CLIENT).await, Err(Code::NotFound));
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

/// Refreshes and revocations are within the reach of the token's own route.
#[tokio::test]
async fn a_host_that_is_exempt_for_one_route_renews_its_tokens() {
    let exempt = format!("{HOST}=https://notes.localhost");
    let (party, client) = party(vec![over("rotates", Refresh::Rotates)], &["--allow-host", &exempt]).await;
    connect(&party, "rotates", single(), CLIENT).await;
    token(&client, &party, "rotates", single(), CLIENT).await.expect("refreshed");
    assert_eq!(party.servers.refreshes().len(), 1);
    disconnect(&client, &party, "rotates", single(), CLIENT).await;
    assert_eq!((party.servers.revoked().len(), audited(&party, "revoked")), (1, vec!["ok".to_owned()]));
}

#[tokio::test]
async fn disconnecting_revokes_and_forgets() {
    let no_revocation = Lie {
        metadata: |document| drop(document.as_object_mut().expect("an object").remove("revocation_endpoint")),
        ..Lie::none("no-revocation")
    };
    let (party, client) = party(vec![Lie::none("good"), no_revocation], &[]).await;
    for name in ["good", "no-revocation"] {
        connect(&party, name, single(), CLIENT).await;
        connect(&party, name, person("i", "ann"), CLIENT).await;
        disconnect(&client, &party, name, single(), CLIENT).await;
        assert_eq!(token(&client, &party, name, single(), CLIENT).await, Err(Code::NotFound));
        assert!(token(&client, &party, name, person("i", "ann"), CLIENT).await.is_ok(), "nobody else is disconnected");
        disconnect(&client, &party, name, single(), CLIENT).await;
    }
    assert_eq!(party.servers.revoked(), ["SECRET-refresh-of-SECRET-code-0"]);
    assert_eq!(audited(&party, "revoked"), ["ok", "not_offered"]);
}

/// The filter's own way to disconnect does the same, to this person and this route alone: not to another path of its host.
#[tokio::test]
async fn the_choreographer_disconnects_one_route() {
    let (party, client) = party(vec![Lie::none("good")], &[]).await;
    let linear = "https://notes.localhost/linear/.well-known/mcp-client-metadata.json";
    let owners = [(single(), linear), (single(), CLIENT), (person("i", "ann"), linear)];
    for (user, client_id) in &owners {
        connect(&party, "good", user.clone(), client_id).await;
    }
    let request = DisconnectRequest {
        user: Some(single()),
        client_id: linear.to_owned(),
        upstream: party.servers.upstream_of("good"),
        ..DisconnectRequest::default()
    };
    for _ in 0..2 {
        assert_eq!(party.disconnect(request.clone()).await, DisconnectResponse::default());
        for (index, (user, client_id)) in owners.iter().enumerate() {
            let token = token(&client, &party, "good", user.clone(), client_id).await;
            assert_eq!(token.is_ok(), index > 0, "{user:?} {client_id} {token:?}");
        }
    }
    assert_eq!(party.servers.revoked(), ["SECRET-refresh-of-SECRET-code-0"]);
}

/// What would have to be audited is not done; what need not be is.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_refreshed_or_ended_while_nobody_reads_the_log() {
    let (party, client) = party(vec![Lie::none("good"), over("rotates", Refresh::Rotates)], &[]).await;
    for name in ["good", "rotates"] {
        connect(&party, name, single(), CLIENT).await;
    }
    let good = token(&client, &party, "good", single(), CLIENT).await.expect("a token");
    let last = tag(&client, &party, "good").await;
    let (process, admin) = (&party.process.process, &party.process.admin);
    stop_reading(process, admin, &channel(&party.process.address).await, async || {}).await;
    assert_eq!(token(&client, &party, "rotates", single(), CLIENT).await, Err(Code::Unavailable));
    assert_eq!(report(&client, &party, "good", &last).await, Err(Code::Unavailable));
    assert_eq!(try_to_disconnect(&client, &party, "good", single(), CLIENT).await, Err(Code::Unavailable));
    assert_eq!(token(&client, &party, "good", single(), CLIENT).await, Ok(good), "it is still there");
    assert_eq!((party.servers.refreshes().len(), party.servers.revoked().len()), (0, 0));

    read_again(process, admin).await;
    assert!(token(&client, &party, "rotates", single(), CLIENT).await.is_ok());
    assert!(report(&client, &party, "good", &last).await.is_ok());
    disconnect(&client, &party, "good", single(), CLIENT).await;
    assert_eq!((party.servers.refreshes().len(), party.servers.revoked().len()), (2, 1));
    let mut party = party;
    assert_eq!(party.process.process.stop().await, Some(0));
    assert_eq!((audited(&party, "refreshed"), audited(&party, "revoked")), (vec!["ok".into(); 2], vec!["ok".into()]));
    assert_eq!(audited(&party, "refused_token"), ["refreshing"]);
}

#[tokio::test]
async fn nothing_of_one_is_reachable_from_another() {
    isolation(&[]).await;
}

#[tokio::test]
#[ignore = "needs redis-server: make test-redis"]
async fn redis_nothing_of_one_is_reachable_from_another() {
    let dir = tempfile::tempdir().expect("a folder");
    let redis = Redis::start(dir.path(), &[], "--port").await;
    let kept = Kept::new(tempfile::tempdir().expect("a folder"), Some(redis.url("redis", "")));
    let flags = kept.flags();
    isolation(&flags.iter().map(String::as_str).collect::<Vec<_>>()).await;
}

/// Users, routes, and issuers with their upstreams, each of which knows another kind of client: whatever differs, there
/// is nothing.
async fn isolation(flags: &[&str]) {
    const ROUTES: [&str; 3] =
        ["https://notes.localhost", "https://tickets.localhost", "https://notes.localhost/linear"];
    const KINDS: [(&str, Kind); 3] = [("one", Kind::Document), ("two", Kind::ByHand), ("three", Kind::Registered)];
    let lies = Vec::from(KINDS.map(|(name, kind)| kind.only(Lie::none(name))));
    let known = lies.clone();
    let clients = move |servers: &Servers, dir: &Path| kinds::listed(servers, dir, &known, &ROUTES);
    let (party, client) = party_with_clients(lies, &[&["--dynamic-registration"], flags].concat(), clients).await;
    let clients = ROUTES.map(|from| format!("{from}{DOCUMENT}"));
    let clients = clients.each_ref().map(String::as_str);
    let users = [person("i", "s"), person("j", "s"), person("i", "t"), person("", "i s"), single()];
    let mut combinations = Vec::new();
    for user in &users {
        for client_id in clients {
            for (name, _) in KINDS {
                combinations.push((user.clone(), client_id, name));
            }
        }
    }
    // One at a time, so that each sees all others empty.
    for (user, client_id, name) in &combinations {
        let nobody = *user == person("", "i s");
        if !nobody {
            connect(&party, name, user.clone(), client_id).await;
        }
        for (other_user, other_client, other_name) in &combinations {
            let got = token(&client, &party, other_name, other_user.clone(), other_client).await;
            let same = (other_user, other_client, other_name) == (user, client_id, name);
            match (same, nobody) {
                _ if *other_user == person("", "i s") => assert_eq!(got, Err(Code::InvalidArgument)),
                (true, false) => assert!(got.is_ok()),
                _ => assert_eq!(got, Err(Code::NotFound), "{other_user:?} {other_client} {other_name}"),
            }
        }
        if !nobody {
            disconnect(&client, &party, name, user.clone(), client_id).await;
        }
    }
    // A route that pins another authorization server than the token's own.
    connect(&party, "one", single(), CLIENT).await;
    for (issuer, found) in [(format!("{}/one", party.servers.issuer), true), ("https://evil.example".to_owned(), false)]
    {
        let request = GetUpstreamTokenRequest {
            user: Some(single()),
            client_id: CLIENT.to_owned(),
            upstream: party.servers.upstream_of("one"),
            authorization_server: issuer,
            ..GetUpstreamTokenRequest::default()
        };
        assert_eq!(client.clone().get_upstream_token(request).await.is_ok(), found);
    }
    assert!(audited(&party, "isolation_violation").is_empty());
    let registrations: Vec<usize> = KINDS.map(|(name, _)| party.servers.registrations(name).len()).into();
    assert_eq!(registrations, [0, 0, ROUTES.len()], "one for each route that may need it");
    assert_eq!(party.servers.revoked().len(), ROUTES.len() * KINDS.len() * 4, "each was ended as who it was begun as");
}

/// Keys are rotated while processes run; a file that is no good, or another store's, changes nothing.
async fn keys_rotate(kept: Kept) {
    let flags = kept.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let (mut party, client) = party(vec![Lie::none("good")], &flags).await;
    connect(&party, "good", single(), CLIENT).await;
    let had = token(&client, &party, "good", single(), CLIENT).await.expect("a token");
    let shared = if kept.url.is_shared() { Some(kept.again(&party).await) } else { None };
    let (mut other, others) = shared.unzip();
    let old = std::fs::read_to_string(&kept.keys).expect("the keys").trim().to_owned();
    let (new, strange) = (generate_key_line().expect("a key"), generate_key_line().expect("a key"));
    let mut reloads = 0;
    let mut change = async |party: &mut Party, text: &str, words: &str| {
        std::fs::write(&kept.keys, text).expect("a key file");
        for process in [Some(&mut party.process), other.as_mut()].into_iter().flatten() {
            let line = loop {
                let output = process.process.output();
                let told = |line: &&str| {
                    line.contains("\"file\":\"encryption_keys\"") && line.contains("envoy_cimd::telemetry::reload")
                };
                if let Some(line) = output.lines().filter(told).nth(reloads) {
                    break line.to_owned();
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            };
            assert!(line.contains(words), "{line}");
            let ok = metric(&process.admin, "envoy_cimd_reload_ok{file=\"encryption_keys\"}").await;
            assert_eq!(ok, Some(u64::from(words == "read again")), "{words}");
        }
        for client in [Some(&client), others.as_ref()].into_iter().flatten() {
            assert_eq!(token(client, party, "good", single(), CLIENT).await.as_ref(), Ok(&had), "{words}");
        }
        reloads += 1;
    };
    change(&mut party, "no-key", "line 1 is not a base64url key of 256 bits").await;
    change(&mut party, &strange, "has none of the keys that the store was sealed with").await;
    change(&mut party, &format!("{old}\n{new}\n"), "read again").await;
    change(&mut party, &new, "has none of the keys that the store was sealed with").await;
    change(&mut party, &format!("{new}\n{old}"), "read again").await;
    // What was read since is sealed with the new one, and the store knows it.
    change(&mut party, &new, "read again").await;
    connect(&party, "good", single(), CLIENT).await;
    for process in [Some(&mut party.process), other.as_mut()].into_iter().flatten() {
        assert_eq!(process.process.stop().await, Some(0));
        let output = process.process.output();
        assert!([&old, &new, &strange].iter().all(|key| !output.contains(key.as_str())), "{output}");
    }
    let (_again, client) = kept.again(&party).await;
    assert!(token(&client, &party, "good", single(), CLIENT).await.is_ok());
}

#[tokio::test]
async fn encryption_keys_change_while_it_runs() {
    keys_rotate(Kept::new(tempfile::tempdir().expect("a folder"), None)).await;
}

#[tokio::test]
#[ignore = "needs redis-server: make test-redis"]
async fn redis_encryption_keys_change_at_two_replicas() {
    let dir = tempfile::tempdir().expect("a folder");
    let redis = Redis::start(dir.path(), &[], "--port").await;
    keys_rotate(Kept::new(tempfile::tempdir().expect("a folder"), Some(redis.url("redis", "")))).await;
}

/// What a test needs of a store that outlives the process: its place, its keys, and the flags that name both.
pub struct Kept {
    pub url: StoreUrl,
    pub keys: std::path::PathBuf,
    dir: TempDir,
}

impl Kept {
    pub fn new(dir: TempDir, url: Option<String>) -> Self {
        let keys = key_file(dir.path());
        let url = url.unwrap_or_else(|| format!("file:{}", dir.path().join("store.redb").display()));
        Self { url: url.parse().expect("a URL"), keys, dir }
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

/// Somebody who can write to the store moves one user's record to another: it does not open there, or is not of there.
async fn moved_records(kept: Kept) {
    let flags = kept.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let (mut party, _) = party(vec![Lie::none("good")], &flags).await;
    for subject in ["ann", "bob", "eve"] {
        connect(&party, "good", person("i", subject), CLIENT).await;
    }
    assert_eq!(party.process.process.stop().await, Some(0));
    let upstream = party.servers.upstream_of("good");
    let route = |subject: &str| {
        let user = Person::Subject { issuer: "i".to_owned(), subject: subject.to_owned() };
        RouteKey::of(&user, &ClientId::new(CLIENT), &upstream)
    };
    let opened = kept.open().await;
    let store = &opened.store;
    let found = async |subject| store.token(route(subject)).await.expect("a store").expect("a token").kept;
    let ((anns, sealed), (bobs, _)) = (found("ann").await, found("bob").await);
    // Ann's record where Bob's was, and Eve's index at Ann's record.
    store.put_token(bobs, route("bob"), sealed.clone()).await.expect("moved");
    store.put_token(anns, route("eve"), sealed).await.expect("moved");
    drop(opened);
    let (again, client) = kept.again(&party).await;
    for (subject, found) in [("ann", true), ("bob", false), ("eve", false)] {
        let got = token(&client, &party, "good", person("i", subject), CLIENT).await;
        assert_eq!(got.is_ok(), found, "{subject}: {got:?}");
        assert!(found || got == Err(Code::NotFound), "{subject}: {got:?}");
    }
    let log = again.process.output();
    assert_eq!(log.matches("isolation_violation").count(), 2, "{log}");
    assert!(!log.contains("SECRET"));
}

#[tokio::test]
async fn a_record_that_was_moved_is_nobodys() {
    moved_records(Kept::new(tempfile::tempdir().expect("a folder"), None)).await;
}

#[tokio::test]
#[ignore = "needs redis-server: make test-redis"]
async fn redis_a_record_that_was_moved_is_nobodys() {
    let dir = tempfile::tempdir().expect("a folder");
    let redis = Redis::start(dir.path(), &[], "--port").await;
    moved_records(Kept::new(tempfile::tempdir().expect("a folder"), Some(redis.url("redis", "")))).await;
}

/// A record under an older key is sealed anew when it is read, so that the older key can go.
#[tokio::test]
async fn encryption_keys_rotate() {
    let kept = Kept::new(tempfile::tempdir().expect("a folder"), None);
    let flags = kept.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let (mut party, _) = party(vec![Lie::none("good")], &flags).await;
    connect(&party, "good", single(), CLIENT).await;
    assert_eq!(party.process.process.stop().await, Some(0));
    let old = std::fs::read_to_string(&kept.keys).expect("the keys");
    let new = generate_key_line().expect("a key");
    for keys in [format!("{new}\n{old}\n"), new.clone()] {
        std::fs::write(&kept.keys, keys).expect("the keys");
        let (mut again, client) = kept.again(&party).await;
        assert!(token(&client, &party, "good", single(), CLIENT).await.is_ok());
        assert_eq!(again.process.stop().await, Some(0));
    }
    // The old key alone is another store's now, and the error names the file.
    std::fs::write(&kept.keys, old).expect("the keys");
    let flags = kept.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let (code, _, stderr) =
        run(&[&["choreographer", "--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0"], &flags[..]].concat(), &[]);
    assert!(code == Some(1) && stderr.contains(kept.keys.to_str().expect("text")), "{stderr}");
}

/// A listener that anybody could reach is refused; with mTLS, so is who proves nothing.
#[tokio::test]
async fn only_a_unix_socket_or_mtls() {
    for (flags, error) in [
        (&["--tokens-listen", "127.0.0.1:0"][..], "whoever reaches it may have every user's token"),
        (&["--tokens-listen", "127.0.0.1:0", "--insecure-grpc"], "whoever reaches it may have every user's token"),
        (&["--tokens-listen", "127.0.0.1:0", "--tls-cert", "/nowhere", "--tls-key", "/nowhere"], "--client-ca"),
        (
            &[
                "--tokens-listen",
                "127.0.0.1:0",
                "--tls-cert",
                "/nowhere",
                "--tls-key",
                "/nowhere",
                "--client-ca",
                "/nowhere",
            ],
            "--client-ca /nowhere: No such file",
        ),
        (
            &["--tokens-listen", "unix:/dev/null/s", "--tls-cert", "/nowhere"],
            "--tls-cert, --tls-key and --client-ca go together",
        ),
    ] {
        for command in ["serve", "choreographer"] {
            let (code, _, stderr) = run(
                &[&[command, "--state-dir=/dev/null/x", "--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0"], flags]
                    .concat(),
                &[],
            );
            assert_eq!(code, Some(1), "{stderr}");
            assert!(stderr.contains(error) && !stderr.contains("\"ready\""), "{stderr}");
        }
    }
    let (ours, others) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let certificates = Certificates::make(ours.path(), &["localhost"]);
    let strangers = Certificates::make(others.path(), &["localhost"]);
    let text = |path: &std::path::Path| path.to_str().expect("text").to_owned();
    let (cert, key, ca) = (text(&certificates.cert), text(&certificates.key), text(&certificates.ca));
    let flags = ["--tokens-listen", "127.0.0.1:0", "--tls-cert", &cert, "--tls-key", &key, "--client-ca", &ca];
    let mut process =
        Choreographer::start(&executable(), &[&flags[..], &["--state-dir", "/dev/null/x"]].concat()).await;
    let address = process.process.line(|line| ready_address(line, "tokens")).await;
    let port = address.rsplit_once(':').expect("a port").1.to_owned();
    // With a list of its own, --allow-peer is not asked.
    let lists = ["--allow-peer", "localhost", "--tokens-allow-peer", "another.example"];
    let mut closed = Choreographer::start(&executable(), &[&flags[..], &lists].concat()).await;
    let other = closed.process.line(|line| ready_address(line, "tokens")).await;
    let other = other.rsplit_once(':').expect("a port").1.to_owned();
    let read = |path: &std::path::Path| std::fs::read(path).expect("a file");
    for (port, client, good) in [
        (&port, Some(&certificates), true),
        (&port, None, false),
        (&port, Some(&strangers), false),
        (&other, Some(&certificates), false),
    ] {
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(&certificates.ca)));
        if let Some(client) = client {
            tls = tls.identity(Identity::from_pem(read(&client.cert), read(&client.key)));
        }
        let endpoint = Endpoint::from_shared(format!("https://localhost:{port}")).expect("an address");
        let channel = endpoint.tls_config(tls).expect("certificates").connect().await;
        let answered = match channel {
            Ok(channel) => {
                UpstreamTokensClient::new(channel).get_upstream_token(GetUpstreamTokenRequest::default()).await
            }
            Err(error) => Err(tonic::Status::from_error(Box::new(error))),
        };
        // Who is let in is told what is wrong with the request.
        let code = answered.expect_err("no token").code();
        assert_eq!(code == Code::InvalidArgument, good, "{code:?}");
    }
    let plain = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).expect("an address").connect().await;
    let refused = match plain {
        Ok(channel) => UpstreamTokensClient::new(channel).get_upstream_token(GetUpstreamTokenRequest::default()).await,
        Err(error) => Err(tonic::Status::from_error(Box::new(error))),
    };
    assert_ne!(refused.expect_err("no token").code(), Code::InvalidArgument);
}
