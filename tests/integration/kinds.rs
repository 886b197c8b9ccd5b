//! What holds whichever kind of client a route is at its authorization server: by its document, registered by hand, or
//! registered when it was first needed.

use std::path::Path;

use http::Version;
use serde_json::Value;
use tempfile::TempDir;
use url::{Url, form_urlencoded};

use crate::{
    authorization_server::{Auth, HOST, Knows, Lie, Registers, Servers},
    choreographer::{ISSUER, Mood},
    clients::{by_hand, entry},
    flow::{
        Begun, CODE, NOTES, TICKETS, WHO, at, honest,
        outcomes::{Row, rows},
        person, press_shown, with_people,
    },
    stack::{Answered, Call, Certificates},
    world::{DOCUMENT, START, Wish, World},
};

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Document,
    ByHand,
    Registered,
}

impl Kind {
    /// A server that knows clients of this kind alone, and is else as this one.
    pub fn only(self, lie: Lie) -> Lie {
        let knows = match self {
            Self::Document => Knows::Documents,
            Self::ByHand => by_hand(lie.name, Auth::Basic).knows,
            Self::Registered => Knows::Registered(Registers::Honestly(Auth::Post)),
        };
        Lie { knows, ..lie }
    }
}

/// A config file for these servers: the clients that some know by hand are for these routes.
pub fn listed(servers: &Servers, dir: &Path, lies: &[Lie], routes: &[&str]) -> String {
    let of_hand = lies.iter().filter(|lie| matches!(lie.knows, Knows::ByHand(..)));
    let entries: String = of_hand.map(|lie| entry(servers, dir, lie, routes)).collect();
    if entries.is_empty() { entries } else { format!("clients:\n{entries}") }
}

/// Two routes to one upstream, at one issuer; by hand they are one client.
struct Bed {
    kind: Kind,
    world: World,
    servers: Servers,
    issuer: String,
    _dir: TempDir,
}

impl Bed {
    async fn start(kind: Kind) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let certificates = Certificates::make(dir.path(), &[HOST]);
        let lies = vec![kind.only(Lie::none("good"))];
        let servers = Servers::start(&certificates, lies.clone()).await;
        let (issuer, upstream) = (format!("{}/good", servers.issuer), servers.upstream_of("good"));
        let hosts = [NOTES, TICKETS].map(|host| format!("https://{host}"));
        let config = dir.path().join("config.yaml");
        let routes = hosts.each_ref().map(String::as_str);
        std::fs::write(&config, listed(&servers, dir.path(), &lies, &routes)).expect("written");
        let [ca, state, config] =
            [&certificates.ca, &dir.path().join("state"), &config].map(|path| path.display().to_string());
        let mut flags = vec!["--extra-ca", &ca, "--allow-host", HOST, "--state-dir", &state, "--config", &config];
        flags.extend(WHO);
        flags.extend(["--log=trace", "--dynamic-registration", "--max-calls-per-user=60"]);
        let pin = if kind == Kind::ByHand { format!(",authorization_server={issuer}") } else { String::new() };
        let routes = hosts.map(|host| format!("from={host},to={upstream}{pin}"));
        let routes = routes.each_ref().map(String::as_str);
        let wish = Wish { routes: &routes, cimd: &flags, envoy_config: &[WHO[0]], edit: &with_people };
        let world = World::start(wish).await;
        Self { kind, world, servers, issuer, _dir: dir }
    }

    async fn send(&self, who: &str, call: Call) -> Answered {
        self.world.https().send(Version::HTTP_2, person(call, "i", who)).await.expect("an answer")
    }

    /// A flow of a route, and what the authorization server gave for it.
    async fn begin(&self, who: &str, host: &str) -> (Begun, Given) {
        let answer = self.send(who, press_shown(host, "?return_to=/after%3Fa%3Db", &self.issuer)).await;
        let begun = Begun::of(&answer);
        let [location] = answer.all("location")[..] else { panic!("{answer:?}") };
        let code = self.servers.consent(location);
        let location = Url::parse(location).expect("a URL");
        let client_id = location.query_pairs().find(|(name, _)| name == "client_id").expect("a client").1.into_owned();
        (begun, Given { code, client_id })
    }

    /// A row's call as it is here: with this flow's code, and of this issuer. It announces that it says `iss`, and does.
    fn placed(&self, mut call: Call, given: &Given) -> Call {
        call = self.without_iss(call, given);
        if call.path.contains('?') && !call.path.contains("iss=") {
            call.path += &format!("&iss={}", self.issuer);
        }
        call
    }

    /// The same, but for an `iss` where the row has none.
    fn without_iss(&self, mut call: Call, given: &Given) -> Call {
        let encoded: String = form_urlencoded::byte_serialize(ISSUER.as_bytes()).collect();
        call.path = call.path.replace(CODE, &given.code).replace(&encoded, &self.issuer).replace(ISSUER, &self.issuer);
        call
    }

    async fn labelled(&self, label: &str) -> u64 {
        let name = format!("envoy_cimd_requests_total{{endpoint=\"callback\",outcome=\"{label}\"}}");
        self.world.metric(&name).await.unwrap_or(0)
    }
}

struct Given {
    code: String,
    client_id: String,
}

#[tokio::test(flavor = "multi_thread")]
async fn the_attacks_on_a_document() {
    attacks(Kind::Document).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_attacks_on_a_client_by_hand() {
    attacks(Kind::ByHand).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_attacks_on_a_registered_client() {
    attacks(Kind::Registered).await;
}

/// The outcome table with nothing faked between the browser and the token endpoint.
async fn attacks(kind: Kind) {
    let mut bed = Bed::start(kind).await;
    // What begins nothing registers nothing.
    let mut elsewhere = press_shown(NOTES, "", &bed.issuer).header("accept", "text/html");
    elsewhere.headers.retain(|(name, _)| *name != "sec-fetch-site" && *name != "origin");
    assert_eq!(bed.send("ann", elsewhere).await.status, 403);
    assert_eq!(bed.send("ann", Call::get(NOTES, START)).await.status, 200);
    assert!(bed.servers.registrations("good").is_empty(), "{kind:?}");

    // The other moods are of a choreographer that fails.
    let ours =
        rows().into_iter().filter(|row| matches!(row.mood, Mood::Correct | Mood::WantsIss)).map(|row| (row, "ann"));
    let theirs = Row {
        name: "another person of the browser",
        mood: Mood::Correct,
        callback: honest,
        status: 400,
        label: "wrong_context",
        consumed: false,
        called: true,
    };
    let mut states = Vec::new();
    for (Row { name, mood, callback, status, label, consumed, .. }, who) in ours.chain([(theirs, "bob")]) {
        let (begun, given) = bed.begin("ann", NOTES).await;
        let (labelled, exchanges) = (bed.labelled(label).await, bed.servers.exchanges().len());
        let call = callback(&begun);
        let call = if mood == Mood::WantsIss { bed.without_iss(call, &given) } else { bed.placed(call, &given) };
        let answer = bed.send(who, call).await;
        let row = format!("{kind:?}, {name}: {answer:?}");
        assert_eq!((answer.status, bed.labelled(label).await), (status, labelled + 1), "{row}");
        let redeemed = usize::from(status == 303);
        assert_eq!(bed.servers.exchanges().len(), exchanges + redeemed, "{row}");
        let there = if status == 303 { vec!["/after?a=b"] } else { vec![] };
        assert_eq!(answer.all("location"), there, "{row}");
        for secret in [&*given.code, &begun.state, "SECRET", "<script", "evil"] {
            assert!(!answer.text().contains(secret), "{secret}; {row}");
        }
        // Whose flow it is can finish it, unless it was consumed; nothing is redeemed twice.
        let answer = bed.send("ann", bed.placed(honest(&begun), &given)).await;
        assert_eq!(answer.status, if consumed { 409 } else { 303 }, "{row}; then {answer:?}");
        assert_eq!(bed.servers.exchanges().len(), exchanges + redeemed.max(usize::from(!consumed)), "{row}");
        states.push(begun.state);
    }
    one_of_many(&bed).await;
    two_routes(&bed).await;

    // What they print is there to its end when they are gone.
    assert_eq!(bed.world.cimd.process.stop().await, Some(0));
    bed.world.envoy.process.signal("-KILL");
    bed.world.envoy.process.ended().await;
    states.push("SECRET".to_owned());
    for text in [bed.world.cimd.process.output(), bed.world.envoy.process.output()] {
        let leaked = states.iter().find(|secret| text.contains(secret.as_str()));
        assert!(!text.is_empty() && leaked.is_none(), "{leaked:?} in {text}");
    }
}

/// Of many callbacks at once, one redeems the code.
async fn one_of_many(bed: &Bed) {
    let (begun, given) = bed.begin("ann", NOTES).await;
    let exchanges = bed.servers.exchanges().len();
    let calls = (0..50).map(|_| bed.send("ann", bed.placed(honest(&begun), &given)));
    let answers = futures_util::future::join_all(calls).await;
    let count = |status| answers.iter().filter(|answer| answer.status == status).count();
    assert_eq!((count(303), count(409), bed.servers.exchanges().len()), (1, 49, exchanges + 1), "{:?}", bed.kind);
}

/// Both routes have a flow of one person: each is finished at its own route alone, whoever they are at the server.
async fn two_routes(bed: &Bed) {
    let (mine, my_code) = bed.begin("ann", NOTES).await;
    let (theirs, their_code) = bed.begin("ann", TICKETS).await;
    let expected = match bed.kind {
        Kind::Document => [NOTES, TICKETS].map(|host| format!("https://{host}{DOCUMENT}")),
        Kind::ByHand => ["by-hand:1", "by-hand:1"].map(str::to_owned),
        Kind::Registered => ["client-1", "client-2"].map(str::to_owned),
    };
    assert_eq!([&my_code.client_id, &their_code.client_id], expected.each_ref(), "{:?}", bed.kind);
    let exchanges = bed.servers.exchanges().len();
    // The state of one with the cookies of both.
    let both = format!("{}; {}", mine.cookie, theirs.cookie);
    let of = |begun: &Begun, given: &Given, host| {
        let begun = Begun { cookie: both.clone(), ..begun.clone() };
        at(bed.placed(honest(&begun), given), host)
    };
    for (begun, given, host) in [(&mine, &my_code, TICKETS), (&theirs, &their_code, NOTES)] {
        assert_eq!(bed.send("ann", of(begun, given, host)).await.status, 400, "{:?}", bed.kind);
    }
    assert_eq!(bed.servers.exchanges().len(), exchanges, "{:?}", bed.kind);
    for (begun, given, host) in [(&mine, &my_code, NOTES), (&theirs, &their_code, TICKETS)] {
        assert_eq!(bed.send("ann", of(begun, given, host)).await.status, 303, "{:?}", bed.kind);
    }
    let redeemed = bed.servers.exchanges().split_off(exchanges);
    assert_eq!(redeemed, [my_code.code, their_code.code], "{:?}", bed.kind);
    // A code of one route in the other's answer: the server would give it to the one client that both are, but for the
    // verifier and the redirect URI, which are the flow's.
    let (_, stolen) = bed.begin("ann", NOTES).await;
    let (begun, _) = bed.begin("bob", TICKETS).await;
    let answer = bed.send("bob", at(bed.placed(honest(&begun), &stolen), TICKETS)).await;
    assert_eq!(answer.status, 502, "{:?}: {answer:?}", bed.kind);
    assert_eq!(bed.servers.origin(&format!("SECRET-access-of-{}", stolen.code)), None, "{:?}", bed.kind);
    let registrations: Vec<Value> = bed.servers.registrations("good");
    let of_registered = if bed.kind == Kind::Registered { 2 } else { 0 };
    assert_eq!(registrations.len(), of_registered, "once a route: {registrations:?}");
}
