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
use http::{Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::Frame;
use serde_json::json;
use tempfile::TempDir;
use tokio::{
    sync::{Mutex, Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};

use self::visitor::{Line, Stands, Visitor};
use crate::{
    authorization_server::{Lie, Refresh, Servers, Token},
    gateway::{Gateway, Setup},
    mcp_upstream::{Came, Upload},
    soak::{Chance, number, still_there},
    stack::{Client, Process, get, key_file, resident},
    store::Redis,
    traffic_ledger::{Does, Ledger, NUMBER, Whose},
};

mod visitor;

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
            still_there(&mut visitors, "each call came to what it should");
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
