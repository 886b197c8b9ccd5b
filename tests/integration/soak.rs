//! Death at any moment: `kill -9` of the choreographer, and of Redis, at random points of a loop of flows and
//! refreshes. No code is redeemed twice, no grant is lost, no flow is half-done, and the store opens. Run by
//! `make soak`.
//!
//! Where exactly a death falls is left to chance, since the moments that nobody thought of are the purpose. The seed
//! repeats the choices of a run, not its timing. What is asserted holds however fast the machine is.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use envoy_cimd::{
    contract::proto::{
        authorization_choreographer_client::AuthorizationChoreographerClient,
        upstream_tokens_client::UpstreamTokensClient,
    },
    exchange::embedded::Embedded,
    model::{paths::Paths, user::User},
};
use tempfile::TempDir;
use tokio::{
    process::Command,
    sync::watch,
    task::{JoinSet, yield_now},
    time::{sleep, timeout},
};
use tonic::transport::{Channel, Endpoint};

use self::person::Person;
use crate::{
    authorization_server::{HOST, Refresh, Servers},
    exchange::CLIENT,
    stack::{Certificates, Process, in_process::owner, key_file, ready_address},
    store::Redis,
    tokens::over,
    world::executable,
};

mod person;

const PEOPLE: usize = 16;
const NAME: &str = "soak";
const ISSUER: &str = "i";

/// After how many deaths everybody is waited for.
const SETTLES_AFTER: usize = 10;

/// When something hangs. Nothing takes nearly as long.
const PATIENCE: Duration = Duration::from_secs(90);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a while: make soak"]
async fn soak_on_a_file() {
    let (points, mut chance) = settings();
    dies_while_its_store_is_made(points, &mut chance).await;
    soak(Bed::start(None).await, points, chance).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server, and takes a while: make soak"]
async fn soak_on_redis() {
    let (points, chance) = settings();
    let dir = tempfile::tempdir().expect("a folder");
    let redis = Redis::start(dir.path(), &[], "--port").await;
    soak(Bed::start(Some(redis)).await, points, chance).await;
}

fn settings() -> (usize, Chance) {
    (number("SOAK_POINTS").map_or(100, |points| usize::try_from(points).expect("few")), Chance::from_settings())
}

/// A number from the environment.
pub fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect(name))
}

async fn soak(mut bed: Bed, points: usize, mut chance: Chance) {
    let began = Instant::now();
    let (tell, told) = watch::channel(Some(0));
    let mut people = JoinSet::new();
    for number in 0..PEOPLE {
        let person = Person {
            subject: format!("user {number}"),
            number,
            lives: 1,
            chance: chance.fork(),
            shared: Arc::clone(&bed.shared),
        };
        people.spawn(person.live(told.clone()));
    }
    let (mut kills, mut redis_kills, mut killed_starts, mut settled) = (0, 0, 0, 0);
    for point in 1..=points {
        bed.random_moment(&mut chance).await;
        still_there(&mut people, "nothing was lost");
        // Where there is a Redis, it dies at every fourth, alone or with the process.
        let redis_dies = bed.redis.is_some() && point % 4 == 3;
        let dies = !redis_dies || chance.below(2) == 0;
        let mut redis = bed.redis.take();
        if let Some(redis) = redis.as_mut().filter(|_| redis_dies) {
            redis.kill().await;
            redis_kills += 1;
            if !dies {
                // Some are to find it gone.
                sleep(Duration::from_millis(chance.below(300))).await;
            }
        }
        if dies {
            bed.kill().await;
            kills += 1;
        }
        if let Some(redis) = redis.as_mut().filter(|_| redis_dies) {
            redis.start_again().await;
        }
        bed.redis = redis;
        if dies {
            bed.look().await;
            if chance.below(4) == 0 {
                // It dies once more, perhaps before it is ready.
                bed.spawn();
                sleep(Duration::from_millis(chance.below(150))).await;
                bed.kill().await;
                killed_starts += 1;
            }
            bed.spawn();
            bed.ready().await;
        }
        bed.codes_went_once();
        if point % SETTLES_AFTER == 0 || point == points {
            settled += 1;
            tell.send_replace(Some(settled));
            let waited = timeout(PATIENCE, async {
                while bed.shared.counts.settled.load(Ordering::Relaxed) < settled * PEOPLE {
                    still_there(&mut people, "nothing was lost");
                    sleep(Duration::from_millis(5)).await;
                }
            });
            waited.await.expect("everybody has a token, or has started again and has one");
        }
    }
    tell.send_replace(None);
    while let Some(ended) = people.join_next().await {
        ended.expect("nothing was lost");
    }
    assert_eq!(bed.process.as_mut().expect("a process").stop().await, Some(0));
    bed.look().await;
    bed.codes_went_once();
    let Counts { begun, completed, tokens, broken, open, again, .. } = &bed.shared.counts;
    let [begun, completed, tokens, broken, open, again] =
        [begun, completed, tokens, broken, open, again].map(|count| count.load(Ordering::Relaxed));
    let mut sent = bed.shared.servers.refreshes();
    let refreshes = sent.len();
    sent.sort();
    sent.dedup();
    println!(
        "{kills} kills of the process, {killed_starts} more as it started, {redis_kills} of Redis; {begun} flows begun, \
         {completed} completed, {broken} broken off: {open} were still open, {again} times somebody started again; \
         {} codes redeemed, {refreshes} refreshes, {} of which had been answered to somebody who died, {tokens} tokens \
         handed out; {} s",
        bed.shared.servers.exchanges().len(),
        refreshes - sent.len(),
        began.elapsed().as_secs()
    );
}

/// A first flow, on nothing: the process dies while it makes its keys and its file, and can be started again.
async fn dies_while_its_store_is_made(times: usize, chance: &mut Chance) {
    let began = Instant::now();
    let mut bed = Bed::start(None).await;
    let mut someone = Person {
        subject: "first".to_owned(),
        number: 0,
        lives: 1,
        chance: chance.fork(),
        shared: Arc::clone(&bed.shared),
    };
    for _ in 0..times {
        let first = someone.begin();
        let moment = Duration::from_micros(chance.below(40_000));
        let _ = timeout(moment, first).await;
        bed.kill().await;
        bed.spawn();
        bed.ready().await;
        let begun = async {
            while someone.begin().await.is_none() {
                yield_now().await;
            }
        };
        timeout(PATIENCE, begun).await.expect("a flow on a store that was made, or made anew");
        bed.kill().await;
        std::fs::remove_dir_all(bed.dir.path().join("state")).expect("a store");
        bed.spawn();
        bed.ready().await;
    }
    println!("{times} deaths while a store was made; {} s", began.elapsed().as_secs());
}

/// Whoever goes on until told otherwise goes on: nobody of these failed, or left.
pub fn still_there(people: &mut JoinSet<()>, what: &str) {
    if let Some(ended) = people.try_join_next() {
        ended.expect(what);
        panic!("somebody left");
    }
}

/// The process, its store, and those who use it.
struct Bed {
    dir: TempDir,
    flags: Vec<String>,
    process: Option<Process>,
    redis: Option<Redis>,
    shared: Arc<Shared>,
}

struct Shared {
    servers: Servers,
    choreographer: AuthorizationChoreographerClient<Channel>,
    tokens: UpstreamTokensClient<Channel>,
    ledger: Mutex<BTreeMap<String, Account>>,
    counts: Counts,
}

/// What somebody is owed.
#[derive(Clone, Default)]
struct Account {
    /// Their codes, in order.
    codes: Vec<String>,
    /// Of which of them on there is a token: they were told so, or were given it.
    since: Option<usize>,
}

#[derive(Default)]
struct Counts {
    steps: AtomicUsize,
    begun: AtomicUsize,
    completed: AtomicUsize,
    tokens: AtomicUsize,
    /// Complete was not answered, or with a failure of the choreographer's.
    broken: AtomicUsize,
    /// Of those, the flows that could still be completed.
    open: AtomicUsize,
    /// Who had no token then, and had to start again.
    again: AtomicUsize,
    settled: AtomicUsize,
}

impl Bed {
    async fn start(redis: Option<Redis>) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let text = |path: &Path| path.to_str().expect("text").to_owned();
        let certificates = Certificates::make(dir.path(), &[HOST]);
        let servers = Servers::start(&certificates, vec![over(NAME, Refresh::RotatesWithGrace(1))]).await;
        let socket = |name: &str| format!("unix:{}", text(&dir.path().join(name)));
        let (listen, tokens_listen) = (socket("choreographer.sock"), socket("tokens.sock"));
        let mut flags =
            ["--listen", &listen, "--tokens-listen", &tokens_listen, "--admin-listen", "127.0.0.1:0"].to_vec();
        let (ca, state, keys) = (text(&certificates.ca), text(&dir.path().join("state")), text(&key_file(dir.path())));
        flags.extend(["--extra-ca", &ca, "--allow-host", HOST, "--drain-delay", "0", "--state-dir", &state]);
        let store = redis.as_ref().map(|redis| redis.url("redis", ""));
        if let Some(store) = &store {
            flags.extend(["--store", store, "--encryption-keys", &keys]);
        }
        // They find it again whenever it is there.
        let channel = |address: &str| Endpoint::from_shared(address.to_owned()).expect("an address").connect_lazy();
        let shared = Arc::new(Shared {
            servers,
            choreographer: AuthorizationChoreographerClient::new(channel(&listen)),
            tokens: UpstreamTokensClient::new(channel(&tokens_listen)),
            ledger: Mutex::default(),
            counts: Counts::default(),
        });
        let flags = flags.into_iter().map(str::to_owned).collect();
        let mut bed = Self { dir, flags, process: None, redis, shared };
        bed.spawn();
        bed.ready().await;
        bed
    }

    fn spawn(&mut self) {
        let mut command = Command::new(executable());
        command.arg("choreographer").args(&self.flags);
        self.process = Some(Process::spawn("envoy-cimd", command));
    }

    /// Fails where the store does not open: the process then ends.
    async fn ready(&mut self) {
        let process = self.process.as_mut().expect("a process");
        for listener in ["choreographer", "tokens"] {
            process.line(|line| ready_address(line, listener)).await;
        }
    }

    async fn kill(&mut self) {
        let mut process = self.process.take().expect("a process");
        process.signal("-KILL");
        assert_eq!(process.ended().await, None, "it ended before:\n{}", process.output());
        let output = process.output();
        for bad in ["panicked", "isolation_violation", "stored record cannot", "stored token cannot"] {
            assert!(!output.contains(bad), "{output}");
        }
    }

    /// After some steps of the people's or some requests to the token endpoint, and then a bit. The second is for the
    /// moment when a token is on its way into the store.
    async fn random_moment(&self, chance: &mut Chance) {
        let at_token_endpoint = chance.below(2) == 0;
        let done = || match at_token_endpoint {
            true => self.shared.servers.asked(),
            false => self.shared.counts.steps.load(Ordering::Relaxed),
        };
        let goal = done() + 1 + usize::try_from(chance.below(60)).expect("few");
        let bit = Duration::from_micros(chance.below(8_000));
        // Nobody goes on where all wait for the claims of one that died.
        let began = Instant::now();
        while done() < goal && began.elapsed() < Duration::from_secs(2) {
            sleep(Duration::from_millis(1)).await;
        }
        let began = Instant::now();
        while began.elapsed() < bit {
            yield_now().await;
        }
    }

    fn codes_went_once(&self) {
        let mut codes = self.shared.servers.exchanges();
        codes.sort();
        let twice: Vec<_> = codes.windows(2).filter(|pair| pair.first() == pair.last()).collect();
        assert!(twice.is_empty(), "redeemed twice: {twice:?}");
    }

    /// Looks into the store of a process that is not there: whoever is owed a token has it, of that flow or a later
    /// one, and its refresh token is good. A file is copied, so that it is the process that mends it.
    async fn look(&self) {
        let owed = self.shared.ledger.lock().expect("ledger").clone();
        let copy = tempfile::tempdir().expect("a folder");
        let state = self.dir.path().join("state");
        if let Ok(files) = std::fs::read_dir(&state) {
            for file in files.map(|file| file.expect("a file")) {
                std::fs::copy(file.path(), copy.path().join(file.file_name())).expect("a copy");
            }
        }
        let args = ["envoy-cimd", "choreographer"].map(OsString::from).into_iter();
        let args = args.chain(self.flags.iter().map(|flag| match Path::new(flag) == state {
            true => copy.path().into(),
            false => flag.into(),
        }));
        let task = envoy_cimd::commands::settings::parse::parse(args).expect("good flags").task;
        let envoy_cimd::commands::settings::Task::Choreographer(settings) = task else { panic!("choreographer") };
        let embedded = Embedded::new(settings.exchange.config(Paths::default())).expect("good settings");
        let servers = &self.shared.servers;
        for (subject, Account { codes, since }) in owed {
            let Some(since) = since else { continue };
            let user = User::Subject { issuer: ISSUER.to_owned(), subject: subject.clone() };
            let stored = embedded.tokens.record(&owner(user, CLIENT, &servers.upstream_of(NAME))).await;
            let token = stored.expect("the store opens").unwrap_or_else(|| panic!("{subject}: the token is lost"));
            let refresh_token = token.refresh_token.unwrap_or_else(|| panic!("{subject}: the refresh token is lost"));
            let origin = servers.origin(refresh_token.expose()).expect("one of the server's");
            let of = codes.iter().position(|code| *code == origin).expect("one of this user's");
            assert!(of >= since, "{subject}: has the token of flow {of}, and was told that flow {since} was completed");
            assert!(servers.is_good(refresh_token.expose()), "{subject}: the grant is lost");
        }
    }
}

/// Random numbers that a seed repeats (SplitMix64).
pub struct Chance(u64);

impl Chance {
    /// Of `SOAK_SEED`, or of the moment; it is printed.
    pub fn from_settings() -> Self {
        let seed = number("SOAK_SEED").unwrap_or_else(|| {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
            u64::from(now.subsec_nanos()) ^ now.as_secs()
        });
        println!("SOAK_SEED={seed}");
        Self(seed)
    }

    /// Another, which goes its own way.
    pub fn fork(&mut self) -> Self {
        Self(self.next())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from 0 to `limit` - 1.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}
