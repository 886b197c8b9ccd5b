//! Whose token goes along: people on routes, two of them on one host, who call, connect and disconnect at once. The
//! upstream says what came to it, and each caller knows what should have.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use envoy_cimd::model::public_url::PublicUrl;
use http::Version;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{sync::Semaphore, task::JoinSet};

use crate::{
    authorization_server::{HOST, Lie, Refresh, Servers},
    flow::{WHO, person, press_shown, with_people},
    kinds::{self, Kind},
    soak::{Chance, number},
    stack::{Answered, Call, Certificates},
    tokens::over,
    world::{CALLBACK, DISCONNECT, START, Wish, World},
};

/// The routes: `from`, their upstream, and their authorization server, each by its name. Two are on one host, where
/// they are one client that was registered by hand, and one has another port.
const ROUTES: [(&str, &str, &str); 5] = [
    ("https://notes.localhost", "notes", "notes"),
    ("https://tickets.localhost:8443", "tickets", "tickets"),
    ("https://other.localhost/a", "a", "by-hand"),
    ("https://other.localhost/b", "b", "by-hand"),
    ("https://broken.localhost", "rotating", "rotating"),
];
/// How many requests may be under way: more would only wait for two cores.
const AT_ONCE: usize = 60;

/// What becomes of a call.
#[derive(Debug, PartialEq)]
enum Became {
    /// It reached the upstream with one token, of the flow with this code.
    WithTokenOf(String),
    /// It was answered with the route's link, and reached nobody.
    ToldToConnect,
}

struct Bed {
    world: World,
    servers: Servers,
    places: Semaphore,
    calls: AtomicUsize,
    /// Who was given each code.
    codes: Mutex<HashMap<String, (usize, usize)>>,
    _dir: TempDir,
}

/// Somebody at one route.
struct Visitor {
    bed: Arc<Bed>,
    person: usize,
    route: usize,
    /// The code of the flow that connected them.
    code: Option<String>,
}

impl fmt::Debug for Visitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "person {} at {}", self.person, ROUTES[self.route].0)
    }
}

/// Few people, for whom each order of steps comes often.
#[tokio::test(flavor = "multi_thread")]
async fn each_call_has_its_own_token() {
    let mut chance = Chance::from_settings();
    let bed = Bed::start().await;
    bed.visited_by(8, &mut chance, |steps| steps < 8).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a while: make soak"]
async fn soak_of_two_hundred_people_on_five_routes() {
    let until = Instant::now() + Duration::from_secs(number("SOAK_SECONDS").unwrap_or(600));
    let mut chance = Chance::from_settings();
    let bed = Bed::start().await;
    bed.visited_by(200, &mut chance, move |steps| steps == 0 || Instant::now() < until).await;
}

impl Bed {
    async fn start() -> Arc<Self> {
        let dir = tempfile::tempdir().expect("a folder");
        let certificates = Certificates::make(dir.path(), &[HOST]);
        let mut lies: Vec<Lie> = ["notes", "a", "b"].map(Lie::none).into();
        // Their tokens are over when they come, so that the first call of each refreshes.
        for (name, kind) in [("rotating", Kind::Document), ("by-hand", Kind::ByHand), ("tickets", Kind::Registered)] {
            lies.push(kind.only(over(name, Refresh::Rotates)));
        }
        let servers = Servers::start(&certificates, lies.clone()).await;
        let routes = ROUTES.map(|(from, upstream, server)| {
            servers.moves(upstream, server);
            let (to, pin) = (servers.upstream_of(upstream), servers.pin(server));
            if pin.is_empty() {
                format!("from={from},to={to}")
            } else {
                format!("from={from},to={to},authorization_server={pin}")
            }
        });
        let config = dir.path().join("config.yaml");
        let by_hand: Vec<&str> = ROUTES.iter().filter(|route| route.2 == "by-hand").map(|route| route.0).collect();
        std::fs::write(&config, kinds::listed(&servers, dir.path(), &lies, &by_hand)).expect("written");
        let [ca, socket, state, config] = [
            certificates.ca.display().to_string(),
            format!("unix:{}", dir.path().join("cimd.sock").display()),
            dir.path().join("state").display().to_string(),
            config.display().to_string(),
        ];
        let mut flags = ["--listen", &socket, "--extra-ca", &ca, "--allow-host", HOST, "--state-dir", &state].to_vec();
        flags.extend(["--config", &config, "--dynamic-registration"]);
        flags.extend(WHO);
        let routes: Vec<&str> = routes.iter().map(String::as_str).collect();
        let wish = Wish { routes: &routes, cimd: &flags, envoy_config: &[WHO[0]], edit: &with_people };
        let world = World::start(wish).await;
        let (places, codes) = (Semaphore::new(AT_ONCE), Mutex::default());
        Arc::new(Self { world, servers, places, calls: AtomicUsize::new(0), codes, _dir: dir })
    }

    /// Everybody takes steps at every route, as long as `goes_on` says of how many there were.
    async fn visited_by(
        self: &Arc<Self>,
        people: usize,
        chance: &mut Chance,
        goes_on: impl Fn(usize) -> bool + Clone + Send + 'static,
    ) {
        let mut visitors = JoinSet::new();
        for person in 0..people {
            for route in 0..ROUTES.len() {
                let visitor = Visitor { bed: Arc::clone(self), person, route, code: None };
                visitors.spawn(visitor.stay(chance.fork(), goes_on.clone()));
            }
        }
        while let Some(ended) = visitors.join_next().await {
            ended.expect("each call had the token that it should");
        }
        let (sent, came) = (self.calls.load(Ordering::Relaxed), self.servers.calls());
        assert_eq!(self.servers.registrations("tickets").len(), 1, "once, however many came first");
        println!("{came} of {sent} calls reached an upstream; {} connections", self.servers.exchanges().len());
        assert!(came > 0 && came < sent, "some were connected, some were not");
    }
}

impl Visitor {
    async fn stay(mut self, mut chance: Chance, goes_on: impl Fn(usize) -> bool) {
        let mut steps = 0;
        while goes_on(steps) {
            match chance.below(6) {
                0 => self.connect().await,
                1 => self.disconnect().await,
                _ => self.call().await,
            }
            steps += 1;
        }
        // Whoever began with nothing but luck has been connected at least once.
        self.connect().await;
        self.call().await;
    }

    async fn connect(&mut self) {
        let (from, _, server) = ROUTES[self.route];
        let issuer = format!("{}/{server}", self.bed.servers.issuer);
        let mut press = press_shown(&self.host(), "", &issuer);
        press.path = format!("{}{}", self.path(), press.path);
        press.headers.retain(|(header, _)| *header != "origin");
        let begun = self.send(press).await;
        assert_eq!(begun.status, 303, "{self:?}: {begun:?}");
        let [location] = begun.all("location")[..] else { panic!("{begun:?}") };
        let code = self.bed.servers.consent(location);
        self.bed.codes.lock().expect("codes").insert(code.clone(), (self.person, self.route));
        let location = url::Url::parse(location).expect("a URL");
        let state = location.query_pairs().find(|(name, _)| name == "state").expect("a state").1.into_owned();
        let [cookie] = begun.all("set-cookie")[..] else { panic!("{begun:?}") };
        let cookie = cookie.split(';').next().expect("a pair");
        let path = format!("{}{CALLBACK}?code={code}&state={state}&iss={issuer}", self.path());
        let callback = Call::get(&self.host(), &path).header("cookie", cookie);
        let completed = self.send(callback).await;
        assert_eq!(completed.status, 303, "{self:?} at {from}: {completed:?}");
        self.code = Some(code);
    }

    async fn disconnect(&mut self) {
        let path = format!("{}{DISCONNECT}", self.path());
        let call = Call::get(&self.host(), &path).method("POST").header("sec-fetch-site", "same-origin");
        let answer = self.send(call).await;
        assert_eq!(answer.status, 303, "{self:?}: {answer:?}");
        self.code = None;
    }

    /// Sends what a caller should not, and looks whether it gets through.
    async fn call(&self) {
        let mine = format!("Bearer SECRET-of-person-{}", self.person);
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}).to_string();
        let call = Call::get(&self.host(), &self.mcp_path())
            .method("POST")
            .header("content-type", "application/json")
            .header("authorization", mine.clone())
            .header("Authorization", mine)
            .header("cookie", "session=SECRET")
            .header("proxy-authorization", "Basic SECRET")
            .body(body);
        self.bed.calls.fetch_add(1, Ordering::Relaxed);
        let answer = self.send(call).await;
        let expected = match &self.code {
            Some(code) => Became::WithTokenOf(code.clone()),
            None => Became::ToldToConnect,
        };
        assert_eq!(self.became(&answer), expected, "{self:?}: {answer:?}");
        if let Some(code) = &self.code {
            let of = self.bed.codes.lock().expect("codes")[code];
            assert_eq!(of, (self.person, self.route), "{self:?}");
        }
    }

    fn became(&self, answer: &Answered) -> Became {
        assert_eq!(answer.status, 200, "{self:?}: {answer:?}");
        let body: Value = serde_json::from_slice(&answer.body).expect("JSON");
        let Some(came) = body.get("result") else {
            let told = body["error"]["message"].as_str().expect("a message");
            assert!(told.contains(&format!("{}{START}", ROUTES[self.route].0)), "{self:?}: {told}");
            return Became::ToldToConnect;
        };
        assert_eq!((&came["cookies"], &came["proxy"]), (&json!(0), &json!(0)), "{self:?}");
        assert_eq!(came["upstream"], ROUTES[self.route].1, "{self:?}");
        let [token] = came["authorization"].as_array().expect("a list").as_slice() else { panic!("{self:?}: {body}") };
        let token = token.as_str().and_then(|token| token.strip_prefix("Bearer ")).expect("a token");
        Became::WithTokenOf(self.bed.servers.origin(token).unwrap_or_else(|| panic!("{self:?}: {token}")))
    }

    async fn send(&self, call: Call) -> Answered {
        let _place = self.bed.places.acquire().await.expect("never closed");
        let call = person(call, "i", &format!("person {}", self.person)).authority(self.authority());
        self.bed.world.https().send(Version::HTTP_2, call).await.expect("an answer")
    }

    fn from(&self) -> PublicUrl {
        ROUTES[self.route].0.parse().expect("a public URL")
    }

    fn host(&self) -> String {
        self.authority().split(':').next().expect("a host").to_owned()
    }

    fn authority(&self) -> String {
        let from = ROUTES[self.route].0.trim_start_matches("https://");
        from.split('/').next().expect("an authority").to_owned()
    }

    fn path(&self) -> String {
        self.from().path().to_owned()
    }

    /// What people give to their clients.
    fn mcp_path(&self) -> String {
        match self.path().as_str() {
            "" => format!("/{}/mcp", ROUTES[self.route].1),
            path => path.to_owned(),
        }
    }
}
