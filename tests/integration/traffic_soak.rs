//! MCP traffic while everything dies: two hundred people at two routes call tools and hold streams, connect,
//! disconnect, and lose what they had, while envoy-cimd, the choreographer, Redis and Envoy are killed and started again
//! in turn. Run by `make soak`.
//!
//! What is asserted holds however slow the machine is: `traffic_ledger` has what callers sent, what came to the
//! upstream and what callers were told.

use std::{
    collections::BTreeMap,
    future::ready,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{FutureExt, future::BoxFuture, stream};
use http::{Response, StatusCode, Version, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    body::Frame,
    client::conn::http2::{SendRequest, handshake},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    sync::{Mutex, Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    authorization_server::{Lie, Refresh, Servers, Token},
    flow::{person, press_shown},
    gateway::{Ask, Gateway, Payload, Setup, THEIRS},
    mcp_upstream::{Came, Upload},
    soak::{Chance, number},
    stack::{Answered, Call, Client, Process, get, key_file, resident},
    store::Redis,
    traffic_ledger::{Does, Ledger, NUMBER, Told, Whose},
    world::{CALLBACK, DISCONNECT, START},
};

const PEOPLE: usize = 200;
/// `from`, its host and path, the name of its upstream and authorization server, and its MCP path.
static ROUTES: [Route; 2] = [
    // Its tokens live for seconds, and a refresh that was lost on its way can be made again.
    Route { from: "https://notes.localhost", host: "notes.localhost", path: "", name: "notes", mcp: "/notes/mcp" },
    Route { from: "https://other.localhost/a", host: "other.localhost", path: "/a", name: "a", mcp: "/a" },
];
/// How long tokens of the first live, in seconds.
const LIVES: u64 = 15;
/// How often each part dies at least.
const DEATHS: usize = 3;
/// How many may connect or disconnect at once: each takes TLS connections of its own.
const AT_ONCE: usize = 12;
/// When something hangs. Nothing takes nearly as long.
const PATIENCE: Duration = Duration::from_secs(120);
/// As long as what goes on without its caller can change what they have: the exchange, and the store that is waited for.
const SETTLES: Duration = Duration::from_secs(25);
/// What a stream ends with.
const LAST: &str = "event: last\ndata: ";

struct Route {
    from: &'static str,
    host: &'static str,
    path: &'static str,
    name: &'static str,
    mcp: &'static str,
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server, and takes a while: make soak"]
async fn soak_of_mcp() {
    let length = Duration::from_secs(number("SOAK_SECONDS").unwrap_or(600));
    let mut chance = Chance::from_settings();
    let mut bed = Bed::start().await;
    let (over, goes_on) = watch::channel(true);
    let mut visitors = JoinSet::new();
    for person in 0..PEOPLE {
        let line = Arc::new(Line { client: bed.shared.client.clone(), sender: Mutex::default() });
        for route in 0..ROUTES.len() {
            let visitor = Visitor {
                shared: Arc::clone(&bed.shared),
                whose: Whose { person, route },
                line: Arc::clone(&line),
                chance: chance.fork(),
                stands: Stands::Not,
                unsure_until: None,
                is_told: true,
                history: Vec::new(),
                was_revoked: false,
            };
            visitors.spawn(visitor.stay(goes_on.clone()));
        }
    }
    let began = Instant::now();
    let mut recoveries: BTreeMap<Part, Vec<Duration>> = BTreeMap::new();
    while began.elapsed() < length || recoveries.values().map(Vec::len).min().unwrap_or_default() < DEATHS {
        for part in [Part::EnvoyCimd, Part::Choreographer, Part::Redis, Part::Envoy] {
            sleep(Duration::from_millis(chance.below(1500))).await;
            bed.kill(part).await;
            sleep(Duration::from_millis(chance.below(400))).await;
            recoveries.entry(part).or_default().push(bed.start_again(part).await);
            still_there(&mut visitors);
            bed.shared.ledger.holds();
        }
    }
    // Now nothing dies any more: everybody's call works, connected anew where that was lost.
    over.send_replace(false);
    let settling = Instant::now();
    let settled = timeout(PATIENCE, async {
        while let Some(ended) = visitors.join_next().await {
            ended.expect("each call came to what it should");
        }
    });
    settled.await.expect("everybody is served again");
    for (part, mut took) in recoveries {
        took.sort();
        let at = |share: f32| took.get(((took.len() - 1) as f32 * share) as usize).expect("one").as_millis();
        println!("{part:?}: {} times killed; a call worked after {} ms, {} ms at most", took.len(), at(0.5), at(1.0));
    }
    println!("{} s, then {} s to settle", (settling - began).as_secs(), settling.elapsed().as_secs());
    bed.finish().await;
}

fn still_there(visitors: &mut JoinSet<()>) {
    if let Some(ended) = visitors.try_join_next() {
        ended.expect("each call came to what it should");
        panic!("somebody left");
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    EnvoyCimd,
    Choreographer,
    Redis,
    Envoy,
}

struct Bed {
    gateway: Gateway,
    redis: Redis,
    shared: Arc<Shared>,
    _dir: TempDir,
}

struct Shared {
    client: Client,
    servers: Servers,
    ledger: Ledger,
    done: AtomicUsize,
    streams: AtomicUsize,
    connected: AtomicUsize,
    disconnected: AtomicUsize,
    ended: AtomicUsize,
    places: Semaphore,
    /// How often Envoy was killed and started: it is away where that is odd.
    envoy: AtomicUsize,
}

impl Bed {
    async fn start() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let redis = Redis::start(dir.path(), &[], "--port").await;
        let (store, keys) = (redis.url("redis", ""), key_file(dir.path()).display().to_string());
        let lies = vec![
            Lie {
                token: Token::Json(|answer| answer["expires_in"] = json!(LIVES)),
                refresh: Refresh::RotatesWithGrace(LIVES),
                ..Lie::none(ROUTES[0].name)
            },
            Lie::none(ROUTES[1].name),
        ];
        let choreographs = [
            "--store",
            &store,
            "--encryption-keys",
            &keys,
            "--max-flows-per-user=10000",
            // A claim of who was killed ends soon.
            "--patience=5",
            "--token-endpoint-timeout=5",
            "--refresh-claim=10",
        ];
        let setup = Setup {
            routes: &ROUTES.each_ref().map(|route| (route.from, route.name)),
            lies,
            apart: Some(&choreographs),
            // What the libraries say at `trace` would take longer than Envoy waits.
            log: "envoy_cimd=trace,audit=debug,info",
            ..Setup::default()
        };
        let gateway = Gateway::start(setup).await;
        let shared = Arc::new(Shared {
            client: gateway.world.https(),
            servers: gateway.servers.clone(),
            ledger: Ledger::default(),
            done: AtomicUsize::default(),
            streams: AtomicUsize::default(),
            connected: AtomicUsize::default(),
            disconnected: AtomicUsize::default(),
            ended: AtomicUsize::default(),
            places: Semaphore::new(AT_ONCE),
            envoy: AtomicUsize::default(),
        });
        let answering = Arc::clone(&shared);
        gateway.upstream.behave(move |came| answer(&answering, came));
        Self { gateway, redis, shared, _dir: dir }
    }

    async fn kill(&mut self, part: Part) {
        let process = match part {
            Part::EnvoyCimd => &mut self.gateway.world.cimd.process,
            Part::Choreographer => &mut self.gateway.choreographer().process,
            Part::Redis => return self.redis.kill().await,
            Part::Envoy => {
                self.shared.envoy.fetch_add(1, Ordering::SeqCst);
                &mut self.gateway.world.envoy.process
            }
        };
        process.signal("-KILL");
        assert_eq!(process.ended().await, None, "it was killed");
        is_clean(&self.shared.ledger, &format!("{part:?}"), &process.output());
    }

    /// How long it took until a call worked again.
    async fn start_again(&mut self, part: Part) -> Duration {
        let began = Instant::now();
        match part {
            Part::EnvoyCimd => self.gateway.serve_again().await,
            Part::Choreographer => self.gateway.choreograph_again().await,
            Part::Redis => self.redis.start_again().await,
            Part::Envoy => {
                self.gateway.world.envoy_again().await;
                self.shared.envoy.fetch_add(1, Ordering::SeqCst);
            }
        }
        let before = self.shared.done.load(Ordering::Relaxed);
        while self.shared.done.load(Ordering::Relaxed) == before {
            self.shared.ledger.holds();
            assert!(began.elapsed() < PATIENCE, "it does not come back");
            sleep(Duration::from_millis(5)).await;
        }
        began.elapsed()
    }

    async fn finish(mut self) {
        let shared = Arc::clone(&self.shared);
        assert_eq!(self.gateway.upstream.without_token(), 0, "a call came without a token");
        shared.ledger.closes();
        let mut codes = shared.servers.exchanges();
        let all = codes.len();
        codes.sort();
        codes.dedup();
        assert_eq!(codes.len(), all, "a code was redeemed twice");

        let counts = shared.ledger.counts();
        let [streams, connected, disconnected, ended] =
            [&shared.streams, &shared.connected, &shared.disconnected, &shared.ended]
                .map(|count| count.load(Ordering::Relaxed));
        println!(
            "{counts:?}; {streams} streams; {connected} times connected, {disconnected} disconnected, {ended} grants \
             ended; {} refreshes",
            shared.servers.refreshes().len()
        );
        // Each person was served at each route at the end at least, and it came to all that there is.
        assert!(counts.done >= 2 * PEOPLE * ROUTES.len(), "many calls got through");
        assert!(counts.not_connected > 0 && counts.failed > 0, "{counts:?}");
        assert!(counts.refused > 0 && counts.renewed > 0, "{counts:?}");
        assert!(
            streams > 20 && connected > PEOPLE && disconnected > 5 && ended > 0,
            "and all that there is came often"
        );
        assert!(shared.servers.refreshes().len() > 20, "tokens were refreshed");

        for admin in [self.gateway.world.cimd.admin.clone(), self.gateway.choreographer().admin.clone()] {
            let (_, metrics) = get(admin.parse().expect("an address"), "/metrics").await.expect("metrics");
            shared.ledger.finds_no_secret_in("metrics", std::str::from_utf8(&metrics).expect("text"));
        }
        sane("envoy-cimd", &self.gateway.world.cimd.process);
        sane("the choreographer", &self.gateway.choreographer().process);
        for process in [&mut self.gateway.world.envoy.process, &mut self.gateway.world.cimd.process] {
            process.stop().await;
        }
        self.gateway.choreographer().process.stop().await;
        self.redis.stop().await;
        for (name, output) in [
            ("envoy-cimd", self.gateway.world.cimd.process.output()),
            ("the choreographer", self.gateway.choreographer().process.output()),
            ("Envoy", self.gateway.world.envoy.process.output()),
        ] {
            assert!(!output.is_empty(), "{name} says something");
            is_clean(&shared.ledger, name, &output);
        }
    }
}

/// Nothing secret, and nothing that must not happen, is in what a process printed.
fn is_clean(ledger: &Ledger, name: &str, output: &str) {
    ledger.finds_no_secret_in(name, output);
    let bad = output.lines().find(|line| line.contains("panicked") || line.contains("isolation_violation"));
    assert_eq!(bad, None, "{name}");
}

/// What a process has when all is over, which does not depend on how often anything happened.
fn sane(name: &str, process: &Process) {
    let of = |what: &str| std::fs::read_dir(format!("/proc/{}/{what}", process.pid())).expect("the process").count();
    let (kib, threads, files) = (resident(process.pid()), of("task"), of("fd"));
    println!("{name}: {kib} KiB, {threads} threads, {files} files");
    assert!(kib < 256 << 10 && threads < 64 && files < 512, "{name} grows");
}

/// The upstream of both routes.
fn answer(shared: &Arc<Shared>, came: &Came) -> BoxFuture<'static, Response<Upload>> {
    let path = came.path.as_str();
    let route = ROUTES.iter().position(|route| path == format!("/{}/mcp", route.name)).expect("it has two");
    let does = shared.ledger.came(came, route, |token| shared.servers.origin(token));
    let said = |status: StatusCode, kind: &'static str, body: Upload| {
        let mut response = Response::new(body);
        *response.status_mut() = status;
        response.headers_mut().insert(header::CONTENT_TYPE, kind.parse().expect("a value"));
        response
    };
    if does != Some(Does::Runs) {
        let mut refusal = said(StatusCode::UNAUTHORIZED, "text/plain", Full::from("SECRET-of-the-upstream").boxed());
        let challenge = "Bearer error=\"invalid_token\", error_description=\"SECRET-of-the-upstream\"";
        refusal.headers_mut().insert(header::WWW_AUTHENTICATE, challenge.parse().expect("a value"));
        return ready(refusal).boxed();
    }
    let number = came.headers[NUMBER].to_str().expect("a number").to_owned();
    let takes = came.headers.get(TAKES).and_then(|value| value.to_str().ok()).and_then(|value| value.parse().ok());
    let takes = Duration::from_millis(takes.unwrap_or_default());
    if came.headers.get(header::ACCEPT).is_some_and(|accept| accept == "text/event-stream") {
        let last = format!("{LAST}{number}\n\n");
        let events = stream::unfold(0, move |sent| {
            let last = last.clone();
            async move {
                if sent > 0 {
                    sleep(takes).await;
                }
                let event = match sent {
                    0..4 => format!("data: {sent}\n\n"),
                    4 => last,
                    _ => return None,
                };
                Some((Ok(Frame::data(Bytes::from(event))), sent + 1))
            }
        });
        let body = BoxBody::new(StreamBody::new(events));
        return ready(said(StatusCode::OK, "text/event-stream", body)).boxed();
    }
    let number: usize = number.parse().expect("a number");
    async move {
        sleep(takes).await;
        let result = json!({"jsonrpc": "2.0", "id": number, "result": {"content": [], "done": number}});
        said(StatusCode::OK, "application/json", Full::from(result.to_string()).boxed())
    }
    .boxed()
}

/// The header that says for how long a tool works, or what is between two events, in milliseconds.
const TAKES: &str = "x-takes";

/// A person's connection to Envoy, on which all their calls go.
struct Line {
    client: Client,
    sender: Mutex<Option<SendRequest<Upload>>>,
}

impl Line {
    async fn send(&self, ask: &Ask) -> Result<Answered, String> {
        let text = |error: hyper::Error| format!("{error:?}");
        let mut sender = self.sender().await?;
        sender.ready().await.map_err(text)?;
        let answer = sender.send_request(ask.request(Version::HTTP_2)).await.map_err(text)?;
        let (head, body) = answer.into_parts();
        let body = body.collect().await.map_err(text)?.to_bytes();
        Ok(Answered { status: head.status.as_u16(), headers: head.headers, body })
    }

    async fn sender(&self) -> Result<SendRequest<Upload>, String> {
        let mut sender = self.sender.lock().await;
        if let Some(sender) = sender.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        let io = TokioIo::new(self.client.connect(Version::HTTP_2, ROUTES[0].host).await?);
        let (new, connection) =
            handshake(TokioExecutor::new(), io).await.map_err(|error: hyper::Error| format!("{error:?}"))?;
        tokio::spawn(connection);
        Ok(sender.insert(new).clone())
    }
}

/// How somebody stands at a route, as far as they can know.
#[derive(Clone, Debug, PartialEq)]
enum Stands {
    /// Something broke that may still change it, or may have.
    Unknown,
    Not,
    /// By the flow with this code.
    With(String),
    /// Their grant was ended at the authorization server.
    Ended,
}

struct Visitor {
    shared: Arc<Shared>,
    whose: Whose,
    line: Arc<Line>,
    chance: Chance,
    stands: Stands,
    /// Until then, what broke may still change how they stand.
    unsure_until: Option<Instant>,
    /// Whether the last answer said where to connect.
    is_told: bool,
    /// What became of them lately, for who looks into a failure.
    history: Vec<(Instant, String)>,
    /// Whether the upstream refused a token of this connection: the next one that it refuses is not renewed at once.
    was_revoked: bool,
}

impl Visitor {
    async fn stay(mut self, goes_on: watch::Receiver<bool>) {
        while *goes_on.borrow() {
            let pause = self.chance.below(2500);
            sleep(Duration::from_millis(pause)).await;
            if self.is_told && self.chance.below(2) == 0 {
                self.connect().await;
                continue;
            }
            match self.chance.below(40) {
                0..2 => self.disconnect().await,
                2..4 => self.connect().await,
                4..6 => self.revoked(),
                6 => self.ended(),
                7..10 => {
                    let takes = self.chance.below(2000).to_string();
                    self.calls(self.post().header(TAKES, takes)).await;
                }
                10..13 => self.streams("POST").await,
                13..15 => self.streams("GET").await,
                15 => self.leaves().await,
                _ => {
                    self.calls(self.post()).await;
                }
            }
        }
        while self.calls(self.post()).await != Told::Done {
            if self.is_told {
                self.connect().await;
            }
            let pause = 200 + self.chance.below(800);
            sleep(Duration::from_millis(pause)).await;
        }
    }

    fn route(&self) -> &'static Route {
        &ROUTES[self.whose.route]
    }

    fn subject(&self) -> String {
        format!("person {}", self.whose.person)
    }

    fn is_unsure(&self) -> bool {
        self.unsure_until.is_some_and(|until| Instant::now() < until)
    }

    fn is_unsure_now(&mut self) {
        self.unsure_until = Some(Instant::now() + SETTLES);
        self.stands(Stands::Unknown);
    }

    /// They stand so, unless something may still change it.
    fn stands(&mut self, stands: Stands) {
        self.history.push((Instant::now(), format!("{stands:?}")));
        self.stands = if self.is_unsure() { Stands::Unknown } else { stands };
    }

    /// # Panics
    /// With what became of them lately, where something is not as it should be.
    fn holds(&self, is_right: bool, what: &str) {
        let lately = self
            .history
            .iter()
            .rev()
            .take(12)
            .map(|(at, what)| format!("{:.1} s ago {what}", at.elapsed().as_secs_f32()));
        assert!(is_right, "{:?}: {what}; {:?}", self.whose, lately.collect::<Vec<_>>());
    }

    /// A call of a tool, with all that a caller should not send; its number is still to be put in.
    fn post(&self) -> Ask {
        Ask::new("POST").header("content-type", "application/json")
    }

    /// Makes a call, and holds what it came to against how this person stands.
    async fn calls(&mut self, ask: Ask) -> Told {
        let number = self.shared.ledger.sends(self.whose);
        let envoy = self.shared.envoy.load(Ordering::SeqCst);
        let answer = timeout(PATIENCE, self.line.send(&self.numbered(ask, number))).await;
        let answer = answer.unwrap_or_else(|_| panic!("{:?}: call {number} hangs", self.whose));
        let told = match &answer {
            Ok(answer) => told(answer, number, self.route()),
            Err(error) => {
                let was_away = envoy % 2 == 1 || self.shared.envoy.load(Ordering::SeqCst) != envoy;
                self.holds(was_away, &format!("call {number} broke though Envoy is there: {error}"));
                Told::Nothing
            }
        };
        let ran_with = self.shared.ledger.told(number, told);
        match (told, ran_with) {
            (Told::Done, Some(code)) => {
                let is_right = self.stands == Stands::Unknown || self.stands == Stands::With(code.clone());
                self.holds(is_right, &format!("stands {:?}, and call {number} had a token of {code}", self.stands));
                self.stands(Stands::With(code));
                self.is_told = false;
                self.shared.done.fetch_add(1, Ordering::Relaxed);
            }
            (Told::NotConnected, _) => {
                // The first route's authorization server takes an old refresh token where the new one was lost.
                let is_lost = self.whose.route == 0 && matches!(self.stands, Stands::With(_));
                self.holds(!is_lost, &format!("lost their token: {answer:?}"));
                self.stands(Stands::Not);
                self.is_told = true;
            }
            (Told::Failed | Told::Nothing, _) => {
                let pause = 100 + self.chance.below(400);
                sleep(Duration::from_millis(pause)).await;
            }
            // The ledger has it.
            (Told::Done, None) => {}
        }
        told
    }

    fn numbered(&self, ask: Ask, number: usize) -> Ask {
        let body = json!({"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": {"name": "tool"}});
        let ask = match ask.method {
            "POST" => ask.payload(Payload::Whole(body.to_string().into())),
            _ => ask,
        };
        ask.at(self.route().host, self.route().mcp)
            .by(Some(&self.subject()))
            .header(NUMBER, number.to_string())
            .header("authorization", format!("Bearer {THEIRS}"))
            .header("cookie", format!("session={THEIRS}"))
            .header("proxy-authorization", format!("Basic {THEIRS}"))
    }

    /// A stream that goes on for longer than some part lives.
    async fn streams(&mut self, method: &'static str) {
        let between = self.chance.below(700).to_string();
        let told = self.calls(Ask::new(method).header("accept", "text/event-stream").header(TAKES, between)).await;
        self.shared.streams.fetch_add(usize::from(told == Told::Done), Ordering::Relaxed);
    }

    /// Makes a call, and goes away.
    async fn leaves(&mut self) {
        let number = self.shared.ledger.sends(self.whose);
        let ask = self.numbered(self.post().header(TAKES, "100"), number);
        let after = Duration::from_millis(self.chance.below(100));
        // What was read by then is no matter.
        let _ = timeout(after, self.line.send(&ask)).await;
        self.shared.ledger.told(number, Told::Nothing);
    }

    /// Their token is taken no more, and nobody told us.
    fn revoked(&mut self) {
        if !self.was_revoked && matches!(self.stands, Stands::With(_)) {
            self.was_revoked = true;
            self.shared.ledger.revokes(self.whose);
        }
    }

    /// Their grant is over, and nobody told us.
    fn ended(&mut self) {
        // A token that was refused a moment ago is not refreshed again, and so the end of its grant not noticed.
        if let Stands::With(code) = &self.stands
            && !self.was_revoked
        {
            self.shared.ledger.ends(code);
            self.shared.servers.end_grant(code);
            self.shared.ended.fetch_add(1, Ordering::Relaxed);
            self.stands(Stands::Ended);
        }
    }

    /// The answer to a person at a page; none where there was none in time.
    async fn visit(&self, call: Call) -> Option<Answered> {
        self.shared.client.send(Version::HTTP_2, person(call, "i", &self.subject())).await.ok()
    }

    async fn disconnect(&mut self) {
        let shared = Arc::clone(&self.shared);
        let _place = shared.places.acquire().await.expect("never closed");
        let path = format!("{}{DISCONNECT}", self.route().path);
        let call = Call::get(self.route().host, &path).method("POST").header("sec-fetch-site", "same-origin");
        match self.visit(call).await {
            Some(answer) if answer.status == 303 => {
                self.stands(Stands::Not);
                self.is_told = true;
                shared.disconnected.fetch_add(1, Ordering::Relaxed);
            }
            answer => {
                is_down(answer.as_ref());
                self.is_unsure_now();
            }
        }
    }

    async fn connect(&mut self) {
        let (shared, route) = (Arc::clone(&self.shared), self.route());
        let _place = shared.places.acquire().await.expect("never closed");
        let issuer = format!("{}/{}", shared.servers.issuer, route.name);
        let mut press = press_shown(route.host, "", &issuer);
        press.path = format!("{}{}", route.path, press.path);
        let begun = match self.visit(press).await {
            Some(begun) if begun.status == 303 => begun,
            // Nothing that they had is changed by it.
            answer => return is_down(answer.as_ref()),
        };
        let [location] = begun.all("location")[..] else { panic!("{begun:?}") };
        let code = shared.servers.consent(location);
        shared.ledger.connects(self.whose, &code);
        let location = url::Url::parse(location).expect("a URL");
        let state = location.query_pairs().find(|(name, _)| name == "state").expect("a state").1.into_owned();
        let [cookie] = begun.all("set-cookie")[..] else { panic!("{begun:?}") };
        let cookie = cookie.split(';').next().expect("a pair");
        shared.ledger.hides(&state);
        shared.ledger.hides(cookie.split_once('=').expect("a pair").1);
        let path = format!("{}{CALLBACK}?code={code}&state={state}&iss={issuer}", route.path);
        let callback = Call::get(route.host, &path).header("cookie", cookie);
        // A browser that reloads: 503 says that nothing was consumed, or is Envoy's.
        for _ in 0..20 {
            match self.visit(callback.clone()).await {
                Some(answer) if answer.status == 303 => {
                    self.stands(Stands::With(code));
                    (self.was_revoked, self.is_told) = (false, false);
                    shared.connected.fetch_add(1, Ordering::Relaxed);
                    return;
                }
                Some(answer) if answer.status == 503 => {
                    self.is_unsure_now();
                    sleep(Duration::from_millis(200)).await;
                }
                // An earlier try used it up.
                Some(answer) if answer.status == 409 => break,
                answer => {
                    is_down(answer.as_ref());
                    break;
                }
            }
        }
        self.is_unsure_now();
    }
}

/// Nothing but a part that is away keeps a person from their page.
fn is_down(answer: Option<&Answered>) {
    assert!(answer.is_none_or(|answer| (502..=504).contains(&answer.status)), "{answer:?}");
}

/// What an answer says to the caller.
fn told(answer: &Answered, number: usize, route: &Route) -> Told {
    let text = String::from_utf8_lossy(&answer.body);
    assert!(!text.contains("SECRET") && answer.all("www-authenticate").is_empty(), "{answer:?}");
    let link = format!("{}{START}", route.from);
    match answer.status {
        200 if text.ends_with(&format!("{LAST}{number}\n\n")) => Told::Done,
        200 => {
            // Who takes nothing but a stream of events is answered with one.
            let body = text.strip_prefix("event: message\ndata: ").unwrap_or(&text);
            let body: Value = serde_json::from_str(body).unwrap_or_else(|_| panic!("{answer:?}"));
            assert_eq!(body["id"], number, "{answer:?}");
            if body["result"]["done"] == number {
                return Told::Done;
            }
            assert!(body["result"]["isError"] == true && text.contains(&link), "{answer:?}");
            Told::NotConnected
        }
        // A GET has no message that could be answered.
        405 if text.contains(&link) => Told::NotConnected,
        502..=504 => Told::Failed,
        _ => panic!("call {number}: {answer:?}"),
    }
}
