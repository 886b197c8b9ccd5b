//! Everything at once: honest documents and flows, forged callbacks, slow clients and broken streams, while envoy-cimd,
//! the choreographer and Redis are stopped, killed and started again in turn. Run by `make soak`.
//!
//! What is asserted holds however slow the machine is; how long each recovery took is printed.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use envoy_cimd::{
    contract::proto::{GetUpstreamTokenRequest, upstream_tokens_client::UpstreamTokensClient},
    model::secret::random,
};
use envoy_types::pb::envoy::service::ext_proc::v3::external_processor_client::ExternalProcessorClient;
use http::Version;
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    sync::{mpsc, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code,
    transport::{Channel, Endpoint},
};

use crate::{
    authorization_server::{HOST, Lie, Servers},
    exchange::single,
    flow::press_shown,
    soak::{Chance, number, still_there},
    stack::{
        Answered, Call, Certificates, Choreographer, Cimd, Client, Envoy, in_process::document_of, key_file, resident,
    },
    store::Redis,
    world::{CALLBACK, DOCUMENT, Wish, envoy_config, executable},
};

/// Each has a route, and so a token, of its own.
const PEOPLE: usize = 8;
const NAME: &str = "good";
/// When something hangs. Nothing takes nearly as long.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server, and takes a while: make soak"]
async fn soak_of_everything_at_once() {
    let length = Duration::from_secs(number("SOAK_SECONDS").unwrap_or(600));
    let mut chance = Chance::from_settings();
    let mut bed = Bed::start().await;
    let (over, ended) = watch::channel(false);
    let mut load = JoinSet::new();
    for who in 0..PEOPLE {
        load.spawn(connects(Arc::clone(&bed.shared), who, chance.fork(), ended.clone()));
        load.spawn(fetches(Arc::clone(&bed.shared), who, ended.clone()));
    }
    load.spawn(forges(Arc::clone(&bed.shared), ended.clone()));
    load.spawn(dawdles(Arc::clone(&bed.shared), chance.fork(), ended.clone()));
    load.spawn(breaks_off(Arc::clone(&bed.shared), chance.fork(), ended));

    let began = Instant::now();
    let mut recoveries: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
    // Three quarters of the time in chaos, and one in which nothing may grow any more.
    while began.elapsed() < length.mul_f32(0.75) {
        for (name, part) in
            [("envoy-cimd", Part::Filter), ("the choreographer", Part::Choreographer), ("Redis", Part::Redis)]
        {
            for signal in ["-TERM", "-KILL"] {
                sleep(Duration::from_millis(chance.below(1000))).await;
                bed.end(part, signal).await;
                sleep(Duration::from_millis(chance.below(300))).await;
                let took = bed.start_again(part).await;
                recoveries.entry(name).or_default().push(took);
                still_there(&mut load, "whoever was honest was served, or told that something was down");
                bed.shared.codes_went_once();
            }
        }
    }
    let parts = [
        bed.filter.as_ref().expect("it runs").process.pid(),
        bed.choreographer.as_ref().expect("it runs").process.pid(),
    ];
    let mut samples: Vec<[Sample; 2]> = Vec::new();
    while began.elapsed() < length {
        sleep(Duration::from_millis(250)).await;
        samples.push(parts.map(Sample::of));
        still_there(&mut load, "whoever was honest was served, or told that something was down");
    }
    over.send_replace(true);
    while let Some(ended) = load.join_next().await {
        ended.expect("whoever was honest was served, or told that something was down");
    }
    bed.shared.codes_went_once();
    bed.everybody_has_a_token().await;
    let counts = &bed.shared.counts;
    let [documents, connected, refused, forged, dawdled, broken] =
        [&counts.documents, &counts.connected, &counts.refused, &counts.forged, &counts.dawdled, &counts.broken]
            .map(|count| count.load(Ordering::Relaxed));
    println!(
        "{documents} documents, {connected} people connected, {refused} told that something was down, {forged} forged \
         callbacks, {dawdled} slow clients, {broken} streams broken off; {} s",
        began.elapsed().as_secs()
    );
    for (name, mut took) in recoveries {
        took.sort();
        let at = |share: f32| took.get(((took.len() - 1) as f32 * share) as usize).expect("one").as_millis();
        println!("{name}: {} times gone; back after {} ms, {} ms at most", took.len(), at(0.5), at(1.0));
    }
    flat(&samples);
    for output in [
        bed.filter.take().expect("it runs").process.output(),
        bed.choreographer.take().expect("it runs").process.output(),
    ] {
        assert!(!output.contains("panicked") && !output.contains("isolation_violation"), "{output}");
    }
}

/// What a process holds.
#[derive(Clone, Copy, Debug)]
struct Sample {
    kib: u64,
    files: usize,
}

impl Sample {
    fn of(pid: u32) -> Self {
        let files = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("the process").count();
        Self { kib: resident(pid), files }
    }
}

/// In the calm nothing grows: what the last third of the samples has at most is what the first had.
fn flat(samples: &[[Sample; 2]]) {
    let third = samples.len() / 3;
    let most = |of: &[[Sample; 2]], part: usize| {
        let part = of.iter().map(|sample| sample[part]);
        (part.clone().map(|sample| sample.kib).max().unwrap_or(0), part.map(|sample| sample.files).max().unwrap_or(0))
    };
    for (part, name) in ["envoy-cimd", "the choreographer"].into_iter().enumerate() {
        let (first, last) = (most(&samples[..third], part), most(&samples[samples.len() - third..], part));
        println!("{name}: {} KiB and {} files, then {} KiB and {} files", first.0, first.1, last.0, last.1);
        assert!(last.0 <= first.0 + 8 * 1024, "{name}: memory grows");
        assert!(last.1 <= first.1 + 32, "{name}: files stay open");
    }
}

#[derive(Clone, Copy)]
enum Part {
    Filter,
    Choreographer,
    Redis,
}

struct Bed {
    _dir: TempDir,
    filter_flags: Vec<String>,
    filter: Option<Cimd>,
    choreographer_flags: Vec<String>,
    choreographer: Option<Choreographer>,
    redis: Redis,
    _envoy: Envoy,
    shared: Arc<Shared>,
}

struct Shared {
    client: Client,
    http: std::net::SocketAddr,
    ext_proc: String,
    tokens: UpstreamTokensClient<Channel>,
    servers: Servers,
    /// The code of which each was last told that it connected them.
    owed: Mutex<BTreeMap<usize, String>>,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    documents: AtomicUsize,
    connected: AtomicUsize,
    refused: AtomicUsize,
    forged: AtomicUsize,
    dawdled: AtomicUsize,
    broken: AtomicUsize,
}

fn host(who: usize) -> String {
    format!("p{who}.localhost")
}

impl Bed {
    async fn start() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let text = |path: &Path| path.to_str().expect("text").to_owned();
        let hosts: Vec<String> = (0..PEOPLE).map(host).collect();
        let names: Vec<&str> = hosts.iter().map(String::as_str).chain([HOST]).collect();
        let certificates = Certificates::make(dir.path(), &names);
        let servers = Servers::start(&certificates, vec![Lie::none(NAME)]).await;
        let redis = Redis::start(dir.path(), &[], "--port").await;
        let keys = text(&key_file(dir.path()));
        let (ca, store) = (text(&certificates.ca), redis.url("redis", ""));
        let tokens = format!("unix:{}", text(&dir.path().join("tokens.sock")));
        let mut flags = vec!["--store", &store, "--encryption-keys", &keys, "--extra-ca", &ca, "--allow-host", HOST];
        flags.extend(["--tokens-listen", &tokens]);
        let choreographer = Choreographer::start(&executable(), &flags).await;
        let mut choreographer_flags: Vec<String> = flags.into_iter().map(str::to_owned).collect();
        choreographer_flags.extend(["--listen".to_owned(), choreographer.address.clone()]);

        let url = format!("http://{}", choreographer.address);
        let flags = ["--single-user", "--state-keys", &keys, "--choreographer", &url];
        let filter = Cimd::start(&executable(), &flags).await;
        let mut filter_flags: Vec<String> = flags.into_iter().map(str::to_owned).collect();
        filter_flags.extend(["--listen".to_owned(), filter.ext_proc.clone()]);

        let routes: Vec<String> = hosts.iter().map(|host| format!("from=https://{host}")).collect();
        let routes: Vec<&str> = routes.iter().map(String::as_str).collect();
        let wish = Wish { routes: &routes, ..Wish::default() };
        let config = envoy_config(&certificates, &filter.ext_proc, &servers.upstream_of(NAME), &wish);
        let envoy = Envoy::start(dir.path(), &config).await;
        let shared = Shared {
            client: Client::tls(envoy.https, &certificates.ca),
            http: envoy.http,
            ext_proc: filter.ext_proc.clone(),
            tokens: UpstreamTokensClient::new(Endpoint::from_shared(tokens).expect("an address").connect_lazy()),
            servers,
            owed: Mutex::default(),
            counts: Counts::default(),
        };
        Self {
            _dir: dir,
            filter_flags,
            filter: Some(filter),
            choreographer_flags,
            choreographer: Some(choreographer),
            redis,
            _envoy: envoy,
            shared: Arc::new(shared),
        }
    }

    async fn end(&mut self, part: Part, signal: &str) {
        let process = match part {
            Part::Filter => &mut self.filter.as_mut().expect("it runs").process,
            Part::Choreographer => &mut self.choreographer.as_mut().expect("it runs").process,
            Part::Redis => return if signal == "-KILL" { self.redis.kill().await } else { self.redis.stop().await },
        };
        process.signal(signal);
        let code = process.ended().await;
        assert_eq!(code, (signal == "-TERM").then_some(0), "{}", process.output());
        assert!(!process.output().contains("panicked"), "{}", process.output());
    }

    /// How long it took until what needs this part worked again.
    async fn start_again(&mut self, part: Part) -> Duration {
        let began = Instant::now();
        let counts = &self.shared.counts;
        let (works, before) = match part {
            Part::Filter => {
                let flags: Vec<&str> = self.filter_flags.iter().map(String::as_str).collect();
                self.filter = Some(Cimd::start(&executable(), &flags).await);
                (&counts.documents, counts.documents.load(Ordering::Relaxed))
            }
            Part::Choreographer => {
                let flags: Vec<&str> = self.choreographer_flags.iter().map(String::as_str).collect();
                self.choreographer = Some(Choreographer::start(&executable(), &flags).await);
                (&counts.connected, counts.connected.load(Ordering::Relaxed))
            }
            Part::Redis => {
                self.redis.start_again().await;
                (&counts.connected, counts.connected.load(Ordering::Relaxed))
            }
        };
        while works.load(Ordering::Relaxed) == before {
            assert!(began.elapsed() < PATIENCE, "it does not come back");
            sleep(Duration::from_millis(1)).await;
        }
        began.elapsed()
    }

    async fn everybody_has_a_token(&self) {
        let owed = self.shared.owed.lock().expect("accounts").clone();
        assert_eq!(owed.len(), PEOPLE, "everybody connected at some time");
        for who in owed.into_keys() {
            self.shared.has_a_token(who).await.expect("the choreographer is there");
        }
    }
}

impl Shared {
    async fn send(&self, call: Call) -> Answered {
        self.client.send(Version::HTTP_2, call).await.expect("Envoy answers")
    }

    fn codes_went_once(&self) {
        let mut codes = self.servers.exchanges();
        let all = codes.len();
        codes.sort();
        codes.dedup();
        assert_eq!(codes.len(), all, "a code was redeemed twice");
    }

    /// Whoever was told that they are connected has a token.
    async fn has_a_token(&self, who: usize) -> Result<(), Code> {
        let request = GetUpstreamTokenRequest {
            user: Some(single()),
            client_id: format!("https://{}{DOCUMENT}", host(who)),
            upstream: self.servers.upstream_of(NAME),
            authorization_server: String::new(),
            ..GetUpstreamTokenRequest::default()
        };
        match self.tokens.clone().get_upstream_token(request).await {
            Ok(token) => {
                let token = token.into_inner().access_token;
                assert!(self.servers.origin(&token).is_some(), "{who} has a token that nobody gave");
                Ok(())
            }
            Err(status) => {
                assert_ne!(status.code(), Code::NotFound, "the token of {who} is lost");
                Err(status.code())
            }
        }
    }
}

/// Gets a document, over and over.
async fn fetches(shared: Arc<Shared>, who: usize, over: watch::Receiver<bool>) {
    while !*over.borrow() {
        let answer = shared.send(Call::get(&host(who), DOCUMENT)).await;
        match answer.status {
            200 => {
                let document: Value = serde_json::from_slice(&answer.body).expect("JSON");
                assert_eq!(document["client_id"], format!("https://{}{DOCUMENT}", host(who)));
                shared.counts.documents.fetch_add(1, Ordering::Relaxed);
            }
            503 => drop(shared.counts.refused.fetch_add(1, Ordering::Relaxed)),
            status => panic!("a document: {status} {answer:?}"),
        }
    }
}

/// Connects, over and over; reloads where the answer was that something was down, or where the browser gave up.
async fn connects(shared: Arc<Shared>, who: usize, mut chance: Chance, over: watch::Receiver<bool>) {
    let (host, refused) = (host(who), &shared.counts.refused);
    while !*over.borrow() {
        let begun = shared.send(press_shown(&host, "", &format!("{}/{NAME}", shared.servers.issuer))).await;
        if begun.status != 303 {
            assert!([502, 503, 504].contains(&begun.status), "a start: {begun:?}");
            refused.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        let location = begun.all("location").join("");
        let code = shared.servers.consent(&location);
        let url = url::Url::parse(&location).expect("a URL");
        let state = url.query_pairs().find(|(name, _)| name == "state").expect("a state").1.into_owned();
        let cookie = begun.all("set-cookie").join("").split(';').next().expect("a pair").to_owned();
        let query = format!("code={code}&state={state}&iss={}/{NAME}", shared.servers.issuer);
        let call = Call::get(&host, &format!("{CALLBACK}?{query}")).header("cookie", cookie);
        if chance.below(5) == 0 {
            // The browser goes away.
            let moment = Duration::from_micros(chance.below(10_000));
            let _ = timeout(moment, shared.client.send(Version::HTTP_2, call.clone())).await;
        }
        let mut answer = shared.send(call.clone()).await;
        // Nothing was consumed then, so nothing is lost.
        while answer.status == 503 && !*over.borrow() {
            refused.fetch_add(1, Ordering::Relaxed);
            answer = shared.send(call.clone()).await;
        }
        match answer.status {
            303 => {
                shared.owed.lock().expect("accounts").insert(who, code);
                shared.counts.connected.fetch_add(1, Ordering::Relaxed);
                let _ = shared.has_a_token(who).await;
            }
            // It was used up by a browser that went away, or by a call that broke.
            409 | 502..=504 => drop(refused.fetch_add(1, Ordering::Relaxed)),
            status => panic!("a callback: {status} {answer:?}"),
        }
    }
}

async fn forges(shared: Arc<Shared>, over: watch::Receiver<bool>) {
    use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
    while !*over.borrow() {
        let state = BASE64_URL_SAFE_NO_PAD.encode(random::<100>().expect("randomness"));
        let call = Call::get(&host(0), &format!("{CALLBACK}?code=forged&state={state}"));
        let answer = shared.send(call).await;
        assert!([400, 503].contains(&answer.status), "{answer:?}");
        shared.counts.forged.fetch_add(1, Ordering::Relaxed);
    }
    assert!(!shared.servers.exchanges().iter().any(|code| code == "forged"));
}

/// Connects to Envoy, sends half a request, and leaves after a while.
async fn dawdles(shared: Arc<Shared>, mut chance: Chance, over: watch::Receiver<bool>) {
    while !*over.borrow() {
        let mut slow = Vec::new();
        for _ in 0..20 {
            let mut stream = TcpStream::connect(shared.http).await.expect("Envoy listens");
            stream
                .write_all(format!("GET {DOCUMENT} HTTP/1.1\r\nhost: {}\r\n", host(0)).as_bytes())
                .await
                .expect("sent");
            slow.push(stream);
            shared.counts.dawdled.fetch_add(1, Ordering::Relaxed);
        }
        sleep(Duration::from_millis(chance.below(500))).await;
    }
}

/// Resets streams: Envoy's, by a browser that leaves, and some of its own, which Envoy would never leave open.
async fn breaks_off(shared: Arc<Shared>, mut chance: Chance, over: watch::Receiver<bool>) {
    while !*over.borrow() {
        let document = shared.client.send(Version::HTTP_2, Call::get(&host(1), DOCUMENT));
        let _ = timeout(Duration::from_micros(chance.below(5000)), document).await;
        let address = Endpoint::from_shared(format!("http://{}", shared.ext_proc)).expect("an address");
        if let Ok(channel) = address.connect().await {
            let (sender, messages) = mpsc::channel(1);
            // The process may go at any moment of this.
            let answers = ExternalProcessorClient::new(channel).process(ReceiverStream::new(messages)).await;
            if chance.below(2) == 0 {
                let _ = sender.send(document_of("https://a.example")).await;
            }
            drop((sender, answers));
        }
        shared.counts.broken.fetch_add(1, Ordering::Relaxed);
    }
}
