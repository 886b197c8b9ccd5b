//! What the exchange makes of a token that an upstream refused: looks it up anew, or asks for more; seldom, and for that
//! person alone.

use std::collections::BTreeSet;

use envoy_cimd::{
    contract::{
        choreographer::{Begin, Choreographer as _},
        proto::{
            BeginAuthorizationRequest, ReportRefusedTokenRequest, User, begin_authorization_response::Outcome as Begun,
            report_refused_token_request::Status, report_refused_token_response::Outcome,
            upstream_tokens_client::UpstreamTokensClient,
        },
        tokens::{Missing, Refused, RefusedStatus, Renewal, TokenError, TokenOwner, TokenTag, UpstreamTokens},
    },
    exchange::embedded::Embedded,
    model::{client::ClientId, clock::UnixTime, trace::Trace, user::User as Person},
};
use serde_json::Value;
use tonic::{Code, transport::Channel};
use url::Url;

use crate::{
    authorization_server::{Lie, Refresh, Servers},
    exchange::{CLIENT, Party, single},
    stack::{in_process::owner, metric},
    tokens::{
        self, Kept, audited, begin, connect, connect_in_process, disconnect, in_process_with, over, party, person,
    },
};

const NOW: UnixTime = UnixTime::from_secs(4_000_000_000);
const NEVER: TokenError = TokenError::NotFound(Missing::Never);
const LOST: TokenError = TokenError::NotFound(Missing::Lost);
const OTHER_ROUTE: &str = "https://tickets.localhost/.well-known/mcp-client-metadata.json";

/// The exchange in this process, its servers, and a person who is connected to the first of them.
struct World {
    _dir: tempfile::TempDir,
    servers: Servers,
    embedded: Embedded,
    name: &'static str,
}

impl World {
    async fn connected(lies: Vec<Lie>) -> Self {
        let name = lies[0].name;
        let (_dir, servers, mut embedded) = in_process_with(lies).await;
        embedded.tokens.clock = || NOW;
        let world = Self { _dir, servers, embedded, name };
        world.connect(world.begin()).await;
        world
    }

    fn begin(&self) -> Begin {
        begin(&self.servers, self.name)
    }

    fn begin_as(&self, user: Person) -> Begin {
        Begin { user, ..self.begin() }
    }

    /// The scopes that a person was asked to agree to.
    async fn connect(&self, begin: Begin) -> BTreeSet<String> {
        asked(&connect_in_process(&self.servers, &self.embedded, begin).await)
    }

    /// The same, where the person goes no further.
    async fn asks(&self, begin: Begin) -> BTreeSet<String> {
        asked(&self.embedded.begin(begin, &Trace::default()).await.expect("it begins").authorization_url)
    }

    fn owner(&self) -> TokenOwner {
        owner(Person::Single, CLIENT, &self.servers.upstream_of(self.name))
    }

    async fn tag(&self) -> TokenTag {
        self.tag_of(&self.owner()).await
    }

    async fn tag_of(&self, owner: &TokenOwner) -> TokenTag {
        let token = self.embedded.tokens.record(owner).await.expect("a store").expect("a token");
        token.tag.expect("a tag")
    }

    async fn report(&self, refused: Refused) -> Result<Renewal, TokenError> {
        self.report_as(self.owner(), refused).await
    }

    async fn report_as(&self, owner: TokenOwner, refused: Refused) -> Result<Renewal, TokenError> {
        self.embedded.tokens.refused(owner, refused, &Trace::default()).await
    }

    /// That a scope is missing in the person's token.
    async fn lacks(&self, scope: &str) -> Result<Renewal, TokenError> {
        self.report(lacks(self.tag().await, scope)).await
    }

    /// How often the upstream was looked up.
    fn lookups(&self) -> usize {
        let fetches = self.servers.fetches();
        fetches.iter().filter(|fetch| **fetch == format!("resource {}", self.name)).count()
    }
}

fn lacks(tag: TokenTag, scope: &str) -> Refused {
    Refused {
        status: RefusedStatus::InsufficientScope,
        scope: Some(scope.to_owned()).filter(|scope| !scope.is_empty()),
        ..Refused::unauthorized(tag)
    }
}

fn asked(authorization_url: &str) -> BTreeSet<String> {
    let url = Url::parse(authorization_url).expect("a URL");
    let scope = url.query_pairs().find(|(name, _)| name == "scope").expect("a scope").1;
    let named: Vec<_> = scope.split(' ').map(str::to_owned).collect();
    let all: BTreeSet<_> = named.iter().cloned().collect();
    assert_eq!(all.len(), named.len(), "none twice: {scope}");
    all
}

fn scopes(text: &str) -> BTreeSet<String> {
    text.split(' ').map(str::to_owned).collect()
}

/// What is asked for without any refusal: what the challenge of who comes without a token says.
const USUAL: &str = "read write offline_access";

fn ann() -> Person {
    Person::Subject { issuer: "i".to_owned(), subject: "ann".to_owned() }
}

/// Whoever says so and through whichever route: an upstream is looked up anew once a minute, and the refreshes become
/// fewer.
#[tokio::test]
async fn refusals_without_end_cost_one_look_up_a_minute() {
    // The time of each report, what it came to, and how many look-ups there were by then.
    type Report = (fn() -> UnixTime, Renewal, usize);
    const REPORTS: [Report; 8] = [
        (|| NOW, Renewal::Renewed, 2),
        (|| NOW + 1, Renewal::TooSoon, 2),
        (|| NOW + 59, Renewal::TooSoon, 2),
        (|| NOW + 60, Renewal::Renewed, 3),
        (|| NOW + 119, Renewal::TooSoon, 3),
        (|| NOW + 120, Renewal::TooSoon, 4),
        (|| NOW + 180, Renewal::Renewed, 5),
        // A clock that was set back says nothing of when the last one was.
        (|| NOW - 3600, Renewal::Renewed, 6),
    ];
    let mut world = World::connected(vec![Lie::none("good")]).await;
    let of_another = Begin { client_id: ClientId::new(OTHER_ROUTE), ..world.begin_as(ann()) };
    world.connect(of_another).await;
    assert_eq!(world.lookups(), 1);
    for (place, (clock, renewal, lookups)) in REPORTS.into_iter().enumerate() {
        world.embedded.tokens.clock = clock;
        assert_eq!(world.report(Refused::unauthorized(world.tag().await)).await, Ok(renewal), "report {place}");
        while world.lookups() < lookups {
            tokio::task::yield_now().await;
        }
        assert_eq!(world.lookups(), lookups, "report {place}");
    }
    let other = owner(ann(), OTHER_ROUTE, &world.servers.upstream_of("good"));
    let refused = Refused::unauthorized(world.tag_of(&other).await);
    assert_eq!(world.report_as(other, refused).await, Ok(Renewal::Renewed));
    // What is no refusal of a token that is there asks nobody anything.
    world.embedded.tokens.clock = || NOW + 7200;
    assert_eq!(world.report(Refused::unauthorized(TokenTag([9; 16]))).await, Ok(Renewal::Renewed));
    assert_eq!(world.lacks("admin").await, Ok(Renewal::Connect));
    assert_eq!((world.lookups(), world.servers.refreshes().len()), (6, 5));
}

/// The token is one of a server that is not the upstream's any more: the person connects at the new one. Where what is
/// found cannot be used, everything stays.
#[tokio::test]
async fn a_server_that_moved_is_found() {
    let broken = Lie { metadata: |document| *document = Value::Null, ..Lie::none("broken") };
    let mut world = World::connected(vec![Lie::none("good"), Lie::none("other"), broken]).await;
    world.servers.moves("good", "broken");
    let refused = Refused::unauthorized(world.tag().await);
    assert_eq!(world.report(refused).await, Ok(Renewal::Renewed));
    assert!(world.servers.fetches().contains(&"server broken".to_owned()), "it was looked at");
    assert!(world.embedded.tokens.upstream_token(world.owner(), &Trace::default()).await.is_ok());
    assert_eq!(world.asks(world.begin()).await, scopes(USUAL), "at the old one");

    world.servers.moves("good", "other");
    world.embedded.tokens.clock = || NOW + 60;
    let refused = Refused::unauthorized(world.tag().await);
    assert_eq!(world.report(refused).await, Err(NEVER));
    let token = world.embedded.tokens.upstream_token(world.owner(), &Trace::default()).await;
    assert_eq!(token.map(drop), Err(NEVER));
    let moved = Begin { shown_issuer: Some(format!("{}/other", world.servers.issuer)), ..world.begin() };
    world.connect(moved).await;
    assert!(world.embedded.tokens.upstream_token(world.owner(), &Trace::default()).await.is_ok());
}

/// What is missing joins what is asked for: once more, of this person, at this route.
#[tokio::test]
async fn what_was_missing_is_asked_for_once_more() {
    let world = World::connected(vec![Lie::none("good")]).await;
    world.connect(world.begin_as(ann())).await;
    let of_route = Begin { client_id: ClientId::new(OTHER_ROUTE), ..world.begin() };
    world.connect(of_route).await;
    let before = world.tag().await;
    assert_eq!(world.lacks("admin write").await, Ok(Renewal::Connect));
    assert_eq!(world.lacks("audit").await, Ok(Renewal::Connect));
    assert_eq!(world.tag().await, before, "the token stays");

    let more = scopes("read write offline_access admin audit");
    assert_eq!(world.asks(world.begin()).await, more);
    assert_eq!(world.asks(world.begin_as(ann())).await, scopes(USUAL), "nobody else is asked");
    let of_route = Begin { client_id: ClientId::new(OTHER_ROUTE), ..world.begin() };
    assert_eq!(world.asks(of_route).await, scopes(USUAL), "nor at another route");
    let fixed = Begin { scope: Some("read".parse().expect("a scope")), ..world.begin() };
    assert_eq!(world.asks(fixed).await, scopes("read offline_access"), "what the operator says is all");
    assert_eq!(world.connect(world.begin()).await, more);
    assert_eq!(world.asks(world.begin()).await, scopes(USUAL), "it was granted");
    assert_eq!((world.servers.refreshes().len(), world.lookups()), (0, 1));
}

/// Each report of a missing scope that changes nothing, and what it comes to.
#[tokio::test]
async fn what_cannot_be_asked_for() {
    let world = World::connected(vec![Lie::none("good")]).await;
    world.connect(world.begin_as(ann())).await;
    let (tag, anns) = (world.tag().await, owner(ann(), CLIENT, &world.servers.upstream_of("good")));
    let before = world.embedded.tokens.record(&world.owner()).await.expect("a store").expect("a token").step_up;
    let within =
        |scope: &str, all: &str| Refused { route_scope: Some(all.parse().expect("a scope")), ..lacks(tag, scope) };
    let too_long = "x".repeat(4097);
    for (refused, renewal) in [
        (lacks(tag, ""), Renewal::NoMore),
        (lacks(tag, " "), Renewal::NoMore),
        // It is asked for wherever the server offers it, and for nothing but refresh tokens.
        (lacks(tag, "offline_access"), Renewal::NoMore),
        (lacks(tag, &too_long), Renewal::NoMore),
        (lacks(tag, &too_long[..4096]), Renewal::NoMore),
        (within("admin", "read write"), Renewal::NoMore),
        (within("read admin", "read write"), Renewal::NoMore),
        (lacks(TokenTag([9; 16]), "admin"), Renewal::Renewed),
        (lacks(world.tag_of(&anns).await, "admin"), Renewal::Renewed),
    ] {
        assert_eq!(world.report(refused.clone()).await, Ok(renewal), "{refused:?}");
    }
    let nobodys = Person::Subject { issuer: "i".to_owned(), subject: "eve".to_owned() };
    let nobodys = owner(nobodys, CLIENT, &world.servers.upstream_of("good"));
    assert_eq!(world.report_as(nobodys, lacks(tag, "admin")).await, Err(NEVER));
    let after = world.embedded.tokens.record(&world.owner()).await.expect("a store").expect("a token").step_up;
    assert_eq!(before, after, "nothing is kept of it");
    assert_eq!(world.asks(world.begin()).await, scopes(USUAL));
    assert_eq!(world.asks(world.begin_as(ann())).await, scopes(USUAL));
    // What the operator allows is asked for as ever, and the person can bring it by connecting again.
    assert_eq!(world.report(within("read", "read write")).await, Ok(Renewal::Connect));
}

/// An upstream that is never content, and a server that grants whatever it is asked for.
#[tokio::test]
async fn nobody_is_sent_for_more_than_three_times() {
    let mut world = World::connected(vec![Lie::none("good")]).await;
    for round in 0..3 {
        let scope = format!("more-{round}");
        assert_eq!(world.lacks(&scope).await, Ok(Renewal::Connect), "{round}");
        assert!(world.connect(world.begin()).await.contains(&scope), "{round}");
    }
    for scope in ["more-3", "more-0", "read"] {
        assert_eq!(world.lacks(scope).await, Ok(Renewal::NoMore), "{scope}");
    }
    world.embedded.tokens.clock = || NOW + 599;
    assert_eq!(world.lacks("more-3").await, Ok(Renewal::NoMore));
    world.embedded.tokens.clock = || NOW + 600;
    assert_eq!(world.lacks("more-3").await, Ok(Renewal::Connect), "ten minutes later");
    // What nobody comes for is forgotten.
    world.embedded.tokens.clock = || NOW + 1200;
    assert_eq!(world.asks(world.begin()).await, scopes(USUAL));
}

/// It was granted and is refused all the same: after a second time, a third would not bring it either.
#[tokio::test]
async fn nobody_is_sent_for_the_same_again_and_again() {
    for scope in ["admin", "read"] {
        let world = World::connected(vec![Lie::none("good")]).await;
        assert_eq!(world.lacks(scope).await, Ok(Renewal::Connect), "{scope}");
        world.connect(world.begin()).await;
        let before = world.tag().await;
        assert_eq!(world.lacks(scope).await, Ok(Renewal::NoMore), "{scope}");
        assert_eq!(world.tag().await, before, "the token stays");
        assert_eq!(world.asks(world.begin()).await, scopes(USUAL), "nothing is kept of it");
        assert_eq!(world.lacks("other").await, Ok(Renewal::Connect), "more than that is another matter");
    }
}

#[tokio::test]
async fn who_disconnects_is_asked_for_nothing_more() {
    let world = World::connected(vec![Lie::none("good")]).await;
    for scope in ["admin", "audit", "more"] {
        assert_eq!(world.lacks(scope).await, Ok(Renewal::Connect));
        world.connect(world.begin()).await;
    }
    assert_eq!(world.lacks("admin").await, Ok(Renewal::NoMore));
    world.embedded.tokens.disconnect(world.owner(), &Trace::default()).await.expect("disconnected");
    assert_eq!(world.connect(world.begin()).await, scopes(USUAL));
    assert_eq!(world.lacks("admin").await, Ok(Renewal::Connect));
    world.embedded.tokens.disconnect(world.owner(), &Trace::default()).await.expect("disconnected");
    assert_eq!(world.asks(world.begin()).await, scopes(USUAL));
}

/// Both change what is stored: neither undoes the other, and no grant is revoked for it.
#[tokio::test]
async fn what_is_missing_is_noted_while_a_refresh_is_under_way() {
    let world = World::connected(vec![over("late", Refresh::RotatesLate)]).await;
    let before = world.tag().await;
    let (exchange, owner) = (world.embedded.tokens.clone(), world.owner());
    let refreshing = tokio::spawn(async move { exchange.upstream_token(owner, &Trace::default()).await.map(drop) });
    while world.servers.refreshes().is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(world.lacks("admin").await, Ok(Renewal::Connect));
    world.servers.answer();
    assert_eq!(refreshing.await.expect("no panic"), Ok(()));
    assert_ne!(world.tag().await, before);
    assert!(world.servers.revoked().is_empty());
    assert_eq!(world.asks(world.begin()).await, scopes("read write offline_access admin"));
    assert_eq!(world.report(lacks(before, "other")).await, Ok(Renewal::Renewed), "there is a newer one");
}

/// The grant is over, so the person connects in any case: what the upstream said of them is asked for then.
#[tokio::test]
async fn what_a_401_asks_for_is_asked_of_who_must_connect_anew() {
    let ended = Refresh::Status(400, r#"{"error":"invalid_grant"}"#);
    let world = World::connected(vec![Lie { refresh: ended, ..Lie::none("ended") }]).await;
    world.connect(world.begin_as(ann())).await;
    let refused =
        Refused { scope: Some("admin offline_access".to_owned()), ..Refused::unauthorized(world.tag().await) };
    assert_eq!(world.report(refused.clone()).await, Err(LOST));
    assert_eq!(world.asks(world.begin_as(ann())).await, scopes(USUAL), "for that person alone");
    assert_eq!(world.connect(world.begin()).await, scopes("read write offline_access admin"));
    for round in 0..3 {
        let scope = format!("more-{round}");
        assert_eq!(world.lacks(&scope).await, Ok(Renewal::Connect), "that was not a round: {round}");
        world.connect(world.begin()).await;
    }
    // Where the operator says what is asked for, nothing is noted.
    let anns = owner(ann(), CLIENT, &world.servers.upstream_of("ended"));
    let tag = world.tag_of(&anns).await;
    let refused = Refused { route_scope: Some("read".parse().expect("a scope")), tag, ..refused };
    assert_eq!(world.report_as(anns, refused).await, Err(LOST));
    assert_eq!(world.asks(world.begin_as(ann())).await, scopes(USUAL));
}

async fn report(
    client: &UpstreamTokensClient<Channel>,
    party: &Party,
    user: User,
    tag: &[u8],
    scope: &str,
) -> Result<Outcome, Code> {
    let request = ReportRefusedTokenRequest {
        user: Some(user),
        client_id: CLIENT.to_owned(),
        upstream: party.servers.upstream_of("good"),
        tag: tag.to_vec(),
        status: Status::InsufficientScope.into(),
        scope: scope.to_owned(),
        ..ReportRefusedTokenRequest::default()
    };
    client.clone().report_refused_token(request).await.map(|answer| answer.into_inner().outcome()).map_err(|s| s.code())
}

async fn asked_of(party: &Party, user: User) -> BTreeSet<String> {
    let request = BeginAuthorizationRequest { user: Some(user), ..party.request("good") };
    let Begun::Begun(begun) = party.begin_with(request).await else { panic!("it began") };
    asked(&begun.authorization_url)
}

/// However many report what is missing, and to whichever replica, it adds up and is one round; and three rounds are three
/// for all replicas.
async fn missing_scopes(party: &Party, clients: [&UpstreamTokensClient<Channel>; 2]) {
    let [one, other] = clients;
    connect(party, "good", person("i", "ann"), CLIENT).await;
    for round in 0..3 {
        connect(party, "good", single(), CLIENT).await;
        let tag = tokens::tag(one, party, "good").await;
        let named = |number: usize| format!("read round-{round}-{}", number % 10);
        let tag = tag.as_slice();
        let reports = (0..200).map(|number| {
            let scope = named(number);
            async move { report(clients[number % 2], party, single(), tag, &scope).await }
        });
        let reports = futures_util::future::join_all(reports).await;
        assert!(reports.iter().all(|outcome| *outcome == Ok(Outcome::Connect)), "{reports:?}");
        let mut more = scopes(USUAL);
        more.extend((0..10).map(|number| format!("round-{round}-{number}")));
        assert!(asked_of(party, single()).await.is_superset(&more));
        assert_eq!(asked_of(party, person("i", "ann")).await, scopes(USUAL));
        assert_eq!(report(other, party, person("i", "ann"), tag, "admin").await, Ok(Outcome::Renewed), "not hers");
    }
    connect(party, "good", single(), CLIENT).await;
    let tag = tokens::tag(other, party, "good").await;
    for client in clients {
        assert_eq!(report(client, party, single(), &tag, "read").await, Ok(Outcome::NoMore));
    }
    assert_eq!(asked_of(party, single()).await, scopes(USUAL));
    disconnect(other, party, "good", single(), CLIENT).await;
    connect(party, "good", single(), CLIENT).await;
    let tag = tokens::tag(one, party, "good").await;
    assert_eq!(report(one, party, single(), &tag, "admin").await, Ok(Outcome::Connect));
    let unknown = ReportRefusedTokenRequest {
        user: Some(single()),
        client_id: CLIENT.to_owned(),
        upstream: party.servers.upstream_of("good"),
        tag,
        status: 7,
        ..ReportRefusedTokenRequest::default()
    };
    let code = one.clone().report_refused_token(unknown).await.expect_err("a later version's").code();
    assert_eq!(code, Code::InvalidArgument);
    assert_eq!(party.servers.refreshes().len(), 0);
}

/// Each is counted, and is in the audit log: what changes something always, the rest where the log's filter asks for it.
#[tokio::test(flavor = "multi_thread")]
async fn missing_scopes_add_up() {
    let (mut party, client) = party(vec![Lie::none("good")], &[]).await;
    missing_scopes(&party, [&client, &client]).await;
    for (result, count) in [("connect", 601), ("no_more", 2), ("renewed", 3), ("lost", 0)] {
        let name = format!("envoy_cimd_refused_tokens_total{{status=\"403\",result=\"{result}\"}}");
        assert_eq!(metric(&party.process.admin, &name).await, Some(count), "{result}");
    }
    let handed_out = "envoy_cimd_token_lookups_total{result=\"handed_out\"}";
    assert_eq!(metric(&party.process.admin, handed_out).await, Some(5));
    assert_eq!(party.process.process.stop().await, Some(0));
    let log = party.process.process.output();
    assert!(!log.contains("SECRET") && !log.contains("round-"), "nothing of what a stranger said");
    let noted = audited(&party, "refused_token");
    assert_eq!(noted, ["insufficient_scope"; 31], "ten a round, and the last");
    assert_eq!((audited(&party, "reported").len(), audited(&party, "handed_out").len()), (606, 5));
}

#[tokio::test]
async fn what_changes_nothing_is_audited_where_it_is_asked_for() {
    let (mut party, client) = party(vec![Lie::none("good")], &["--log=info"]).await;
    connect(&party, "good", single(), CLIENT).await;
    let tag = tokens::tag(&client, &party, "good").await;
    assert_eq!(report(&client, &party, single(), &tag, "admin").await, Ok(Outcome::Connect));
    assert_eq!(party.process.process.stop().await, Some(0));
    assert_eq!(audited(&party, "refused_token"), ["insufficient_scope"]);
    assert!(audited(&party, "reported").is_empty() && audited(&party, "handed_out").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server: make test-redis"]
async fn redis_missing_scopes_add_up_over_two_replicas() {
    let (kept, _redis) = Kept::in_redis().await;
    let flags = kept.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let (party, one) = party(vec![Lie::none("good")], &flags).await;
    let (_other, other) = kept.again(&party).await;
    missing_scopes(&party, [&one, &other]).await;
}
