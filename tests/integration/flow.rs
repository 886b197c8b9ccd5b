//! Start and callback through a real Envoy, against a choreographer that records what reaches it.

use std::sync::Mutex;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use envoy_cimd::{
    filter::{browser::BrowserCookie, state::StateKeys},
    model::{
        client::RedirectUri,
        clock::UnixTime,
        flow::FlowId,
        secret::{Key, Secret, generate_key_line, parse_keys},
    },
};
use http::Version;
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::transport::{Certificate, Identity, ServerTlsConfig};

use crate::{
    choreographer::{Call as Recorded, Fake, ISSUER, Mood, Place},
    stack::{Answered, Call, Certificates, Choreographer, Cimd, get, key_file},
    world::{CALLBACK, DISCONNECT, DOCUMENT, START, Wish, World, executable, http_filters, metadata, virtual_hosts},
};

pub const CODE: &str = "SECRET-the-code";
pub const NOTES: &str = "notes.localhost";
pub const TICKETS: &str = "tickets.localhost";

/// A world with a choreographer, and a list of what must not be in any log.
pub struct Flows {
    pub world: World,
    pub fake: Fake,
    keys: std::path::PathBuf,
    _dir: TempDir,
    secrets: Mutex<Vec<String>>,
}

/// A flow that began in a browser.
#[derive(Clone, Debug)]
pub struct Begun {
    pub state: String,
    /// `name=value`, as the browser sends it back.
    pub cookie: String,
}

impl Begun {
    /// What the answer to a press begins.
    pub fn of(answer: &Answered) -> Self {
        assert_eq!(answer.status, 303, "{answer:?}");
        let [location] = answer.all("location")[..] else { panic!("{answer:?}") };
        let location = url::Url::parse(location).expect("a URL");
        let state = location.query_pairs().find(|(name, _)| name == "state").expect("a state").1.into_owned();
        let [cookie] = answer.all("set-cookie")[..] else { panic!("{answer:?}") };
        Self { state, cookie: cookie.split(';').next().expect("a pair").to_owned() }
    }
}

impl Flows {
    async fn start() -> Self {
        Self::with(&["--single-user"], &|_| {}).await
    }

    pub async fn with(flags: &[&str], edit: &(dyn Fn(&mut Value) + Sync)) -> Self {
        Self::on(Fake::start(), flags, edit).await
    }

    async fn on(fake: Fake, flags: &[&str], edit: &(dyn Fn(&mut Value) + Sync)) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let keys = key_file(dir.path());
        let world = Self::world(&fake, &keys, flags, edit).await;
        Self { world, fake, keys, _dir: dir, secrets: Mutex::default() }
    }

    /// On other routes than usual.
    pub async fn of(routes: &[&str], flags: &[&str]) -> Self {
        Self::of_edited(routes, flags, &[], &|_| {}).await
    }

    /// On other routes than usual, with flags for `envoy-config` too.
    pub async fn of_edited(
        routes: &[&str],
        flags: &[&str],
        envoy_config: &[&str],
        edit: &(dyn Fn(&mut Value) + Sync),
    ) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let (fake, keys) = (Fake::start(), key_file(dir.path()));
        let wish = Wish { routes, envoy_config, edit, ..Wish::default() };
        let world = Self::world_of(wish, &fake, &keys, flags).await;
        Self { world, fake, keys, _dir: dir, secrets: Mutex::default() }
    }

    async fn world(fake: &Fake, keys: &std::path::Path, flags: &[&str], edit: &(dyn Fn(&mut Value) + Sync)) -> World {
        let namespace: Vec<&str> = flags.iter().copied().filter(|flag| flag.starts_with("--user-namespace=")).collect();
        let wish = Wish { routes: &Layout::Hosts.routes(), envoy_config: &namespace, edit, ..Wish::default() };
        Self::world_of(wish, fake, keys, flags).await
    }

    async fn world_of(wish: Wish<'_>, fake: &Fake, keys: &std::path::Path, flags: &[&str]) -> World {
        let url = fake.url();
        let mut cimd = vec!["--choreographer", &url, "--state-keys", keys.to_str().expect("text")];
        cimd.extend(flags);
        World::start(Wish { cimd: &cimd, ..wish }).await
    }

    pub async fn send(&self, call: Call) -> Answered {
        self.world.https().send(Version::HTTP_2, call).await.expect("an answer")
    }

    /// Presses the button.
    pub async fn begin(&self, host: &str, query: &str) -> Begun {
        self.begin_as(press(host, query)).await
    }

    pub async fn begin_as(&self, press: Call) -> Begun {
        let begun = Begun::of(&self.send(press).await);
        let value = begun.cookie.split_once('=').expect("a value").1.to_owned();
        self.secrets.lock().expect("secrets").extend([begun.state.clone(), value]);
        begun
    }

    /// How often the callback ended with this label.
    pub async fn labelled(&self, endpoint: &str, label: &str) -> u64 {
        let name = format!("envoy_cimd_requests_total{{endpoint=\"{endpoint}\",outcome=\"{label}\"}}");
        self.world.metric(&name).await.unwrap_or(0)
    }

    /// No log, metric or trace holds what a browser or an authorization server must keep to themselves.
    pub async fn finish(mut self) {
        let (_, metrics) = get(self.world.cimd.admin.parse().expect("an address"), "/metrics").await.expect("metrics");
        // What they print is there to its end when they are gone.
        self.world.cimd.process.stop().await;
        self.world.envoy.process.signal("-KILL");
        self.world.envoy.process.ended().await;
        let mut secrets = self.secrets.lock().expect("secrets").clone();
        secrets.extend([CODE.to_owned(), "SECRET".to_owned(), "%3Cscript".to_owned(), "<script".to_owned()]);
        let kept = [
            ("envoy-cimd", self.world.cimd.process.output()),
            ("envoy", self.world.envoy.process.output()),
            ("metrics", String::from_utf8(metrics.to_vec()).expect("text")),
        ];
        for (name, text) in kept {
            assert!(!text.is_empty(), "{name} says something");
            let leaked = secrets.iter().find(|secret| text.contains(secret.as_str()));
            assert!(leaked.is_none(), "{name} holds {leaked:?}:\n{text}");
        }
        assert!(self.world.upstream.seen().is_empty(), "nothing of ours reaches the upstream");
    }
}

/// The request of the button on the connect page, which named the authorization server of [`Fake`].
pub fn press(host: &str, query: &str) -> Call {
    press_shown(host, query, ISSUER)
}

/// The same of a page that named this one.
pub fn press_shown(host: &str, query: &str, issuer: &str) -> Call {
    let and = if query.is_empty() { '?' } else { '&' };
    Call::get(host, &format!("{START}{query}{and}issuer={issuer}"))
        .method("POST")
        .header("sec-fetch-site", "same-origin")
        .header("origin", format!("https://{host}"))
}

/// The callback of an honest browser.
pub fn honest(begun: &Begun) -> Call {
    with_query(begun, &format!("code={CODE}&state={}", begun.state))
}

pub fn with_query(begun: &Begun, query: &str) -> Call {
    Call::get(NOTES, &format!("{CALLBACK}?{query}")).header("cookie", format!("session=1; {}", begun.cookie))
}

pub fn without_cookie(mut call: Call) -> Call {
    call.headers.retain(|(name, _)| *name != "cookie");
    call
}

pub fn at(mut call: Call, host: &str) -> Call {
    call.host = host.to_owned();
    call.authority(host)
}

/// One row of the outcome table: a flow is begun, the choreographer is put in a mood, and then this is sent.
pub struct Row {
    pub name: &'static str,
    pub mood: Mood,
    pub callback: fn(&Begun) -> Call,
    pub status: u16,
    pub label: &'static str,
    pub consumed: bool,
    pub called: bool,
}

/// (name, mood, callback, status, label, consumed, called)
macro_rules! table {
    ($(($name:expr, $mood:ident, $callback:expr, $status:expr, $label:expr, $consumed:expr, $called:expr),)*) => {
        vec![$(Row { name: $name, mood: Mood::$mood, callback: $callback, status: $status, label: $label,
            consumed: $consumed, called: $called }),*]
    };
}

#[rustfmt::skip]
pub fn rows() -> Vec<Row> {
    table![
        ("success", Correct, honest, 303, "completed", true, true),
        ("success with `iss`", Correct, |b| with_query(b, &format!("code={CODE}&state={}&iss=https%3A%2F%2Fas.example", b.state)), 303, "completed", true, true),
        ("unknown parameters are ignored", Correct, |b| with_query(b, &format!("x=1&code={CODE}&state={}&x=2&session_state=%25", b.state)), 303, "completed", true, true),
        ("a forwarded host is no host", Correct, |b| honest(b).header("x-forwarded-host", "evil.example"), 303, "completed", true, true),
        ("a navigation", Correct, |b| honest(b).header("sec-fetch-dest", "document").header("sec-fetch-site", "cross-site"), 303, "completed", true, true),
        ("no query", Correct, |b| { let mut call = honest(b); call.path = CALLBACK.to_owned(); call }, 400, "bad_request", false, false),
        ("no state", Correct, |b| with_query(b, &format!("code={CODE}")), 400, "bad_request", false, false),
        ("an empty state", Correct, |b| with_query(b, &format!("code={CODE}&state=")), 400, "bad_request", false, false),
        ("neither code nor error", Correct, |b| with_query(b, &format!("state={}", b.state)), 400, "bad_request", false, false),
        ("an empty code", Correct, |b| with_query(b, &format!("code=&state={}", b.state)), 400, "bad_request", false, false),
        ("both code and error", Correct, |b| with_query(b, &format!("code={CODE}&error=x&state={}", b.state)), 400, "bad_request", false, false),
        ("two codes", Correct, |b| with_query(b, &format!("code={CODE}&code={CODE}&state={}", b.state)), 400, "bad_request", false, false),
        ("two states", Correct, |b| with_query(b, &format!("code={CODE}&state={0}&state={0}", b.state)), 400, "bad_request", false, false),
        ("two iss", Correct, |b| with_query(b, &format!("code={CODE}&state={}&iss=a&iss=a", b.state)), 400, "bad_request", false, false),
        ("two errors", Correct, |b| with_query(b, &format!("error=a&error=a&state={}", b.state)), 400, "bad_request", false, false),
        ("two descriptions", Correct, |b| with_query(b, &format!("error=a&error_description=a&error_description=a&state={}", b.state)), 400, "bad_request", false, false),
        ("bad percent-encoding", Correct, |b| with_query(b, &format!("code={CODE}%&state={}", b.state)), 400, "bad_request", false, false),
        ("bad UTF-8", Correct, |b| with_query(b, &format!("code={CODE}&state={}&x=%FF", b.state)), 400, "bad_request", false, false),
        ("over 8 kB", Correct, |b| with_query(b, &format!("code={CODE}&state={}&x={}", b.state, "x".repeat(8192))), 400, "bad_request", false, false),
        ("an image", Correct, |b| honest(b).header("sec-fetch-dest", "image"), 400, "bad_request", false, false),
        ("a frame", Correct, |b| honest(b).header("sec-fetch-dest", "iframe"), 400, "bad_request", false, false),
        ("a random state", Correct, |b| with_query(b, &format!("code={CODE}&state=nonsense")), 400, "malformed", false, false),
        ("10,000 random bytes as state", Correct, |b| with_query(b, &format!("code={CODE}&state={}", random_text(5_900))), 400, "malformed", false, false),
        ("a state encoded twice", Correct, |b| with_query(b, &format!("code={CODE}&state={}%253D", b.state)), 400, "malformed", false, false),
        ("somebody else's key", Correct, |b| with_query(b, &format!("code={CODE}&state={}", foreign_state())), 400, "unknown_key", false, false),
        ("a flipped bit", Correct, |b| with_query(b, &format!("code={CODE}&state={}", flipped(&b.state))), 400, "bad_mac", false, false),
        ("another route's state", Correct, |b| at(honest(b), TICKETS), 400, "wrong_route", false, false),
        ("no cookie", Correct, |b| without_cookie(honest(b)), 400, "wrong_browser", false, false),
        ("another cookie", Correct, |b| without_cookie(honest(b)).header("cookie", format!("{}x", b.cookie)), 400, "wrong_browser", false, false),
        ("a stolen cookie under another name", Correct, |b| without_cookie(honest(b)).header("cookie", format!("x{}", b.cookie)), 400, "wrong_browser", false, false),
        ("wrong `iss`", Correct, |b| with_query(b, &format!("code={CODE}&state={}&iss=https://evil.example", b.state)), 400, "issuer_mismatch", true, true),
        ("`iss` with a slash", Correct, |b| with_query(b, &format!("code={CODE}&state={}&iss={ISSUER}/", b.state)), 400, "issuer_mismatch", true, true),
        ("`iss` with :443", Correct, |b| with_query(b, &format!("code={CODE}&state={}&iss={ISSUER}:443", b.state)), 400, "issuer_mismatch", true, true),
        ("`iss` on an error", Correct, |b| with_query(b, &format!("error=access_denied&state={}&iss=https://evil.example", b.state)), 400, "issuer_mismatch", true, true),
        ("no `iss` though advertised", WantsIss, honest, 400, "issuer_mismatch", true, true),
        ("denied", Correct, |b| with_query(b, &format!("error=access_denied&error_description=%3Cscript%3ESECRET&state={}", b.state)), 400, "as_error", true, true),
        ("the token endpoint refuses", NoToken, honest, 502, "exchange_failed", true, true),
        ("the choreographer fails", Fails, honest, 502, "choreographer_failed", false, true),
        ("the choreographer answers garbage", Garbage, honest, 502, "choreographer_failed", false, true),
        ("a `return_to` that leads away", BadReturn, honest, 502, "choreographer_failed", true, true),
        ("a prefetch", Correct, |b| honest(b).header("sec-purpose", "prefetch"), 503, "prefetch", false, false),
        ("a prefetch of another browser", Correct, |b| honest(b).header("purpose", "prefetch"), 503, "prefetch", false, false),
        ("POST", Correct, |b| honest(b).method("POST"), 405, "method_not_allowed", false, false),
        ("HEAD", Correct, |b| honest(b).method("HEAD"), 405, "method_not_allowed", false, false),
        ("another port", Correct, |b| honest(b).authority("notes.localhost:8443"), 421, "misdirected_request", false, false),
    ]
}

fn random_text(bytes: usize) -> String {
    let random = envoy_cimd::model::secret::random::<5_900>().expect("randomness");
    BASE64_URL_SAFE_NO_PAD.encode(random.get(..bytes).expect("enough"))
}

fn foreign_state() -> String {
    let keys = StateKeys::new(vec![Key::new([9; 32])]);
    let redirect_uri = RedirectUri::new(format!("https://{NOTES}{CALLBACK}"));
    let now = UnixTime::from_secs(1_800_000_000);
    keys.mint(FlowId([1; 16]), &redirect_uri, &BrowserCookie::from(Secret::new("c")), now, UnixTime::MAX)
        .expect("a key")
}

/// A bit of the flow's id is another.
fn flipped(state: &str) -> String {
    let mut bytes = BASE64_URL_SAFE_NO_PAD.decode(state).expect("base64url");
    bytes[20] ^= 1;
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

fn is_guarded(answer: &Answered, row: &str) {
    assert_eq!(answer.all("cache-control"), ["no-store"], "{row}");
    assert_eq!(answer.all("referrer-policy"), ["no-referrer"], "{row}");
    assert_eq!(answer.all("x-content-type-options"), ["nosniff"], "{row}");
    let [policy] = answer.all("content-security-policy")[..] else { panic!("{row}") };
    assert!(policy.starts_with("default-src 'none';") && policy.contains("frame-ancestors 'none'"), "{row}");
    assert!(!policy.contains("form-action") && !policy.contains("unsafe"), "{row}");
}

/// Where the routes of the table are.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Layout {
    /// Each on a host of its own.
    Hosts,
    /// Both on one host, each under a path of its own.
    Paths,
}

impl Layout {
    fn routes(self) -> [&'static str; 2] {
        match self {
            Self::Hosts => ["from=https://notes.localhost", "from=https://tickets.localhost"],
            Self::Paths => ["from=https://notes.localhost/first", "from=https://notes.localhost/second"],
        }
    }

    /// The same call, where the routes are here.
    fn place(self, mut call: Call) -> Call {
        if self == Self::Paths {
            let path = if call.host == TICKETS { "/second" } else { "/first" };
            call.path.insert_str(0, path);
            call.authority = call.authority.replace(TICKETS, NOTES);
            call.host = NOTES.to_owned();
        }
        call
    }
}

#[tokio::test]
async fn the_outcome_table() {
    outcome_table(Layout::Hosts).await;
}

#[tokio::test]
async fn the_outcome_table_between_two_paths() {
    outcome_table(Layout::Paths).await;
}

/// What a link to start again has behind it, for who wanted to go to `/after?a=b`.
const WANTED: &str = "?return_to=%2Fafter%3Fa%3Db";

async fn outcome_table(layout: Layout) {
    let flows = Flows::of(&layout.routes(), &["--single-user"]).await;
    let mut bodies_of_400 = Vec::new();
    for html in [false, true] {
        for Row { name, mood, callback, status, label, consumed, called } in rows() {
            flows.fake.set(Mood::Correct);
            flows.fake.forget_flows();
            let begun = flows.begin_as(layout.place(press(NOTES, "?return_to=/after%3Fa%3Db"))).await;
            flows.fake.set(mood);
            let (labelled, completions) = (flows.labelled("callback", label).await, flows.fake.completions());
            let exchanges = flows.fake.exchanges().len();
            let mut call = layout.place(callback(&begun));
            if html {
                call = call.header("accept", "text/html,*/*;q=0.8");
            }
            let method = call.method;
            let start = format!("{}{START}", call.path.split("/.pomerium").next().unwrap_or_default());
            let answer = flows.send(call).await;
            let row = format!("{name}, html {html}: {answer:?}");
            assert_eq!(answer.status, status, "{row}");
            assert_eq!(flows.labelled("callback", label).await, labelled + 1, "{label}; {row}");
            assert_eq!(flows.fake.consumed(), consumed, "consumed; {row}");
            assert_eq!(flows.fake.completions(), completions + usize::from(called), "called; {row}");
            let redeems = status == 303 || matches!(mood, Mood::NoToken | Mood::BadReturn);
            assert_eq!(flows.fake.exchanges().len(), exchanges + usize::from(redeems), "exchanged; {row}");
            is_guarded(&answer, &row);
            assert!(answer.all("set-cookie").is_empty(), "{row}");
            if status == 303 {
                assert_eq!(answer.all("location"), ["/after?a=b"], "{row}");
                assert_eq!(answer.text(), "", "{row}");
                continue;
            }
            assert!(answer.all("location").is_empty(), "{row}");
            for secret in [CODE, &begun.state, "SECRET", "<script", "evil", "notes"] {
                assert!(!answer.text().contains(secret), "{secret}; {row}");
            }
            if method == "HEAD" {
                continue;
            }
            let [id] = answer.all("x-request-id")[..] else { panic!("{row}") };
            if html {
                assert_eq!(answer.all("content-type"), ["text/html; charset=utf-8"], "{row}");
                assert!(answer.text().contains("<html lang=\"en\">") && answer.text().contains(id), "{row}");
                // Who is known to be the one who began goes on from there to where they wanted.
                let is_known = ["issuer_mismatch", "as_error", "exchange_failed"].contains(&label);
                let query = if is_known { WANTED } else { "" };
                let again = answer.text().contains(&format!("href=\"{start}{query}\""));
                assert_eq!(again, matches!(status, 400 | 405 | 502 | 503), "a way to start again; {row}");
            } else {
                assert_eq!(answer.all("content-type"), ["application/json"], "{row}");
                let body: Value = serde_json::from_slice(&answer.body).expect(&row);
                let shown = if status == 400 { "bad_request" } else { label };
                assert_eq!(body["error"], shown, "{row}");
            }
            if status == 400 {
                // But for the way to start again, which is the route's own, and that person's.
                bodies_of_400.push((html, answer.text().replace(id, "ID").replace(&start, START).replace(WANTED, "")));
            }
        }
    }
    bodies_of_400.dedup();
    assert_eq!(bodies_of_400.len(), 2, "400 bodies are all alike: {bodies_of_400:#?}");
    flows.finish().await;
}

/// Whatever the libraries below us say when they are asked to say everything.
#[tokio::test]
async fn nothing_leaks_at_any_log_level() {
    let flows = Flows::with(&["--single-user", "--log=trace"], &|_| {}).await;
    let begun = flows.begin(NOTES, "").await;
    assert_eq!(flows.send(honest(&begun)).await.status, 303);
    assert_eq!(flows.send(honest(&begun)).await.status, 409);
    let begun = flows.begin(NOTES, "").await;
    let denied = format!("error=access_denied&error_description=%3Cscript%3ESECRET&state={}", begun.state);
    assert_eq!(flows.send(with_query(&begun, &denied)).await.status, 400);
    assert!(flows.world.cimd.process.output().contains("\"TRACE\""));
    flows.finish().await;
}

#[tokio::test]
async fn flows_that_are_over() {
    let flows = Flows::start().await;
    // Expired in the moment that it began.
    flows.fake.set(Mood::Stale);
    let stale = flows.begin(NOTES, "").await;
    flows.fake.set(Mood::Correct);
    let answer = flows.send(honest(&stale)).await;
    assert_eq!((answer.status, flows.labelled("callback", "expired").await), (400, 1));
    assert_eq!(flows.fake.completions(), 0);

    let begun = flows.begin(NOTES, "?return_to=/a%22%3E%3Cb%3E%26c").await;
    assert_eq!(flows.send(honest(&begun)).await.status, 303);
    // The same browser once more: told so, with a way on, and no second exchange.
    let replay = flows.send(honest(&begun).header("accept", "text/html")).await;
    assert_eq!((replay.status, flows.labelled("callback", "already_used").await), (409, 1));
    assert!(replay.text().contains("href=\"/a%22%3E%3Cb%3E&#38;c\""), "{}", replay.text());
    is_guarded(&replay, "a replay");
    // Another browser learns nothing.
    let stolen = flows.send(without_cookie(honest(&begun))).await;
    assert_eq!((stolen.status, flows.labelled("callback", "wrong_browser").await), (400, 1));
    assert_eq!(flows.fake.exchanges(), [CODE]);

    let lost = flows.begin(NOTES, "").await;
    flows.fake.forget_flows();
    let answer = flows.send(honest(&lost)).await;
    assert_eq!((answer.status, flows.labelled("callback", "unknown_flow").await), (400, 1));
    flows.finish().await;
}

#[tokio::test]
async fn fifty_identical_callbacks_at_once() {
    let flows = Flows::start().await;
    let begun = flows.begin(NOTES, "").await;
    let calls = (0..50).map(|_| flows.send(honest(&begun)));
    let answers = futures_util::future::join_all(calls).await;
    let count = |status| answers.iter().filter(|answer| answer.status == status).count();
    assert_eq!((count(303), count(409)), (1, 49));
    assert_eq!(flows.fake.exchanges(), [CODE]);
    flows.finish().await;
}

/// Two tabs have a cookie each, and both finish, in either order.
#[tokio::test]
async fn parallel_tabs() {
    let flows = Flows::start().await;
    let (one, two) = (flows.begin(NOTES, "?return_to=/1").await, flows.begin(NOTES, "?return_to=/2").await);
    let both = format!("{}; {}", one.cookie, two.cookie);
    for (begun, location) in [(&two, "/2"), (&one, "/1")] {
        let answer = flows.send(without_cookie(honest(begun)).header("cookie", both.clone())).await;
        assert_eq!(answer.all("location"), [location]);
    }
    flows.finish().await;
}

/// What the button and its page refuse, and that nothing begins.
#[tokio::test]
async fn start() {
    let flows = Flows::start().await;
    let page = |query: &str| Call::get(NOTES, &format!("{START}{query}")).header("accept", "text/html");
    let bare = |query: &str| {
        let mut call = press(NOTES, query);
        call.headers.clear();
        call
    };
    let rows: Vec<(&str, Mood, Call, u16, &str)> = vec![
        ("the page", Mood::Correct, page("?return_to=/x"), 200, "shown"),
        ("the page, the name unknown", Mood::Fails, page(""), 200, "shown"),
        ("HEAD", Mood::Correct, page("").method("HEAD"), 405, "method_not_allowed"),
        ("another site", Mood::Correct, bare("").header("sec-fetch-site", "cross-site"), 403, "cross_site"),
        (
            "a sibling",
            Mood::Correct,
            bare("").header("sec-fetch-site", "same-site").header("origin", "https://notes.localhost"),
            403,
            "cross_site",
        ),
        ("typed in", Mood::Correct, bare("").header("sec-fetch-site", "none"), 403, "cross_site"),
        ("neither header", Mood::Correct, bare(""), 403, "cross_site"),
        (
            "an origin of another site",
            Mood::Correct,
            bare("").header("origin", "https://tickets.localhost"),
            403,
            "cross_site",
        ),
        ("no origin", Mood::Correct, bare("").header("origin", "null"), 403, "cross_site"),
        ("away", Mood::Correct, press(NOTES, "?return_to=//evil.example"), 400, "bad_request"),
        ("away, GET", Mood::Correct, page("?return_to=//evil.example"), 400, "bad_request"),
        ("away with a backslash", Mood::Correct, press(NOTES, "?return_to=/%5Cevil.example"), 400, "bad_request"),
        ("away with a tab", Mood::Correct, press(NOTES, "?return_to=/%09/evil.example"), 400, "bad_request"),
        ("away with dots", Mood::Correct, press(NOTES, "?return_to=/.//evil.example"), 400, "bad_request"),
        ("absolute", Mood::Correct, press(NOTES, "?return_to=https://evil.example/"), 400, "bad_request"),
        ("absolute, ours", Mood::Correct, press(NOTES, "?return_to=https://notes.localhost/"), 400, "bad_request"),
        ("two", Mood::Correct, press(NOTES, "?return_to=/a&return_to=/b"), 400, "bad_request"),
        ("bad encoding", Mood::Correct, press(NOTES, "?return_to=/%zz"), 400, "bad_request"),
        ("no server", Mood::NoServer, press(NOTES, ""), 502, "authorization_server_unusable"),
        ("too many", Mood::Full, press(NOTES, ""), 503, "too_many_flows"),
        ("it fails", Mood::Fails, press(NOTES, ""), 502, "choreographer_failed"),
        ("garbage", Mood::Garbage, press(NOTES, ""), 502, "choreographer_failed"),
        ("a place to send nobody", Mood::BadUrl, press(NOTES, ""), 502, "choreographer_failed"),
    ];
    for (name, mood, call, status, label) in rows {
        flows.fake.set(mood);
        let (labelled, begins) = (flows.labelled("start", label).await, flows.fake.begins());
        let answer = flows.send(call.clone()).await;
        let row = format!("{name}: {answer:?}");
        assert_eq!((answer.status, flows.labelled("start", label).await), (status, labelled + 1), "{row}");
        assert!(answer.all("set-cookie").is_empty() && answer.all("location").is_empty(), "{row}");
        let reaches = call.method == "POST" && status >= 500;
        assert_eq!(flows.fake.begins(), begins + usize::from(reaches), "{row}");
        if status != 200 {
            is_guarded(&answer, &row);
            assert!(!answer.text().contains("evil"), "{row}");
        }
    }
    flows.fake.set(Mood::Correct);
    // The page itself.
    let answer = flows.send(page("?return_to=/x")).await;
    assert_eq!(answer.all("referrer-policy"), ["same-origin"]);
    assert_eq!(answer.all("cache-control"), ["no-store"]);
    let policy = answer.all("content-security-policy").join("");
    assert!(policy.contains("style-src 'sha256-") && !policy.contains("form-action"), "{policy}");
    let form = format!("<form method=\"post\" action=\"{START}?return_to=%2Fx&#38;issuer=https%3A%2F%2Fas.example\">");
    for shown in ["notes.localhost", ISSUER, &flows.world.upstream.url, &form] {
        assert!(answer.text().contains(shown), "{shown}: {}", answer.text());
    }
    assert!(!answer.text().contains("<script"));
    // The button, where a browser has no Fetch Metadata.
    let begun = flows.begin_as(bare("").header("origin", "https://notes.localhost")).await;
    assert_eq!(flows.send(honest(&begun)).await.all("location"), [START], "the page that says how it stands");
    flows.finish().await;
}

/// A press on a page that named no authorization server, or another than there is now, is the page again, naming it.
#[tokio::test]
async fn the_button_leads_where_its_page_said() {
    let flows = Flows::start().await;
    let bare = |query: &str| {
        let mut call = press(NOTES, "");
        call.path = format!("{START}{query}");
        call
    };
    const OTHER: &str = "https://other.example";
    for (mood, query, named) in [
        (Mood::Correct, "", ISSUER),
        (Mood::Correct, "?issuer=", ISSUER),
        (Mood::Correct, "?issuer=https://evil.example", ISSUER),
        (Mood::Correct, "?issuer=https://as.example/", ISSUER),
        (Mood::Moved, "?issuer=https://as.example", OTHER),
    ] {
        flows.fake.set(mood);
        let begins = flows.fake.begins();
        let answer = flows.send(bare(query)).await;
        let row = format!("{query}: {answer:?}");
        assert_eq!(answer.status, 200, "{row}");
        assert!(answer.all("set-cookie").is_empty() && answer.all("location").is_empty(), "{row}");
        assert_eq!(answer.all("referrer-policy"), ["same-origin"], "{row}");
        assert!(
            answer.text().contains(&format!("<dd><bdi>{named}</bdi></dd>")) && !answer.text().contains("evil"),
            "{row}"
        );
        let issuer: String = url::form_urlencoded::byte_serialize(named.as_bytes()).collect();
        assert!(answer.text().contains(&format!("action=\"{START}?issuer={issuer}\"")), "{row}");
        assert_eq!((flows.fake.begins(), flows.fake.flows()), (begins + 1, 0), "{row}");
    }
    // And that one's button begins.
    flows.begin_as(bare(&format!("?issuer={OTHER}"))).await;
    assert_eq!(flows.fake.flows(), 1);
    let answer = flows.send(bare(&format!("?issuer={OTHER}&issuer={OTHER}"))).await;
    assert_eq!(answer.status, 400);
    flows.finish().await;
}

/// What the button of disconnect refuses, and whose token it forgets.
#[tokio::test]
async fn disconnect() {
    let flows = Flows::of(&Layout::Paths.routes(), &["--single-user"]).await;
    let button = |headers: &[(&'static str, &str)]| {
        let call = Call::get(NOTES, &format!("/first{DISCONNECT}")).method("POST");
        headers.iter().fold(call, |call, (name, value)| call.header(name, *value))
    };
    let ours = [("sec-fetch-site", "same-origin"), ("accept", "text/html")];
    let mut to_get = button(&ours);
    to_get.method = "GET";
    let mut long = button(&ours);
    long.path.push_str(&format!("?{}", "x".repeat(8193)));
    for (name, mood, call, status, label) in [
        ("GET", Mood::Correct, to_get, 405, "method_not_allowed"),
        ("another site", Mood::Correct, button(&[("sec-fetch-site", "cross-site")]), 403, "cross_site"),
        ("neither header", Mood::Correct, button(&[]), 403, "cross_site"),
        ("another origin", Mood::Correct, button(&[("origin", "https://tickets.localhost")]), 403, "cross_site"),
        (
            "an origin with a path",
            Mood::Correct,
            button(&[("origin", "https://notes.localhost/first")]),
            403,
            "cross_site",
        ),
        ("a long query", Mood::Correct, long, 400, "bad_request"),
        ("another port", Mood::Correct, button(&ours).authority("notes.localhost:8443"), 421, "misdirected_request"),
        ("it fails", Mood::Fails, button(&ours), 502, "choreographer_failed"),
        ("done", Mood::Correct, button(&ours), 303, "disconnected"),
        (
            "done, without Fetch Metadata",
            Mood::Correct,
            button(&[("origin", "https://notes.localhost")]),
            303,
            "disconnected",
        ),
    ] {
        flows.fake.set(mood);
        let (labelled, called) = (flows.labelled("disconnect", label).await, flows.fake.disconnects().len());
        let answer = flows.send(call).await;
        let row = format!("{name}: {answer:?}");
        assert_eq!((answer.status, flows.labelled("disconnect", label).await), (status, labelled + 1), "{row}");
        assert_eq!(flows.fake.disconnects().len(), called + usize::from(status == 303 || status == 502), "{row}");
        let there = if status == 303 { vec!["/first/.pomerium/oauth/start"] } else { vec![] };
        assert_eq!((answer.all("location"), answer.all("set-cookie").len()), (there, 0), "{row}");
        is_guarded(&answer, &row);
    }
    // The other route's own, and nothing of this one's.
    for request in flows.fake.disconnects() {
        assert_eq!(request.client_id, format!("https://{NOTES}/first{DOCUMENT}"));
        assert_eq!(request.upstream, flows.world.upstream.url);
    }
    let flows_before = flows.fake.calls().len();
    assert_eq!(flows.send(button(&[("cookie", "x=y"), ("sec-fetch-site", "none")])).await.status, 403);
    assert_eq!(flows.fake.calls().len(), flows_before);
    flows.finish().await;
}

/// A route that leads nowhere has a document, and no connect page, whatever else is wrong with the request.
#[tokio::test]
async fn a_route_without_an_upstream() {
    let edit = |config: &mut Value| {
        for host in virtual_hosts(config) {
            match host["name"].as_str() {
                Some(NOTES) => drop(metadata(host).as_object_mut().expect("metadata").remove("to")),
                Some(TICKETS) => metadata(host)["to"] = "https://u.example/mcp?key=SECRET".into(),
                _ => {}
            }
        }
    };
    let flows = Flows::with(&["--single-user"], &edit).await;
    for host in [NOTES, TICKETS] {
        for call in [Call::get(host, START), press(host, ""), Call::get(host, START).method("PUT")] {
            let answer = flows.send(call).await;
            assert_eq!(answer.status, 500, "{answer:?}");
            assert!(!answer.text().contains("SECRET"));
        }
        assert_eq!(flows.send(Call::get(host, DOCUMENT)).await.status, 200);
    }
    assert_eq!(flows.fake.begins(), 0);
    flows.finish().await;
}

/// What reaches the choreographer, field by field.
#[tokio::test]
async fn what_is_handed_on() {
    let flows = Flows::start().await;
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let begun = flows.begin_as(press(NOTES, "?return_to=/a%2Fb").header("traceparent", trace)).await;
    let query = format!("error=access_denied&error_description=a+b&state={}&iss={ISSUER}", begun.state);
    flows.send(with_query(&begun, &query)).await;
    let [Recorded::Begin(begin), Recorded::Complete(complete)] = &flows.fake.calls()[..] else { panic!("two calls") };
    assert_eq!(begin.client_id, format!("https://{NOTES}{DOCUMENT}"));
    assert_eq!(begin.redirect_uri, format!("https://{NOTES}{CALLBACK}"));
    assert_eq!((&begin.upstream, begin.return_to.as_str()), (&flows.world.upstream.url, "/a/b"));
    let value = begun.cookie.split_once('=').expect("a value").1;
    assert_eq!(begin.browser_hash, <sha2::Sha256 as sha2::Digest>::digest(value).to_vec());
    assert_eq!((&complete.user, &complete.browser_hash), (&begin.user, &begin.browser_hash));
    assert_eq!((complete.redirect_uri.as_str(), complete.iss.as_deref()), (begin.redirect_uri.as_str(), Some(ISSUER)));
    let Some(envoy_cimd::contract::proto::complete_authorization_request::Answer::Error(error)) = &complete.answer
    else {
        panic!("an error")
    };
    assert_eq!((error.error.as_str(), error.error_description.as_str()), ("access_denied", "a b"));
    assert_eq!(flows.fake.traces().first().map(String::as_str), Some(trace));
    flows.finish().await;
}

/// Where the filter of [`with_people`] names them.
pub const WHO: [&str; 3] = ["--user-namespace=who", "--user-issuer=iss", "--user-subject=sub"];

/// A stand-in for the operator's authentication filter. It takes a client's word, so it is none for production.
pub fn with_people(config: &mut Value) {
    let rule = |header, key| json!({"header": header, "remove": true, "on_header_present": {"metadata_namespace": "who", "key": key}});
    http_filters(config).insert(
        0,
        json!({"name": "who", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.header_to_metadata.v3.Config",
            "request_rules": [rule("x-issuer", "iss"), rule("x-subject", "sub")],
        }}),
    );
}

/// A person's request, for that filter.
pub fn person(call: Call, issuer: &str, subject: &str) -> Call {
    call.header("x-issuer", issuer).header("x-subject", subject)
}

/// Who a person is comes from a filter's metadata, and who starts must finish.
#[tokio::test]
async fn users() {
    let flows = Flows::with(&WHO, &with_people).await;
    for (call, status) in [
        (Call::get(NOTES, START), 403),
        (press(NOTES, ""), 403),
        (press(NOTES, "").header("x-issuer", "i"), 403),
        (press(NOTES, "").header("x-subject", "s"), 403),
        (person(Call::get(NOTES, START), "i", "s"), 200),
    ] {
        let answer = flows.send(call.header("accept", "text/html")).await;
        assert_eq!(answer.status, status);
        assert_eq!(answer.text().contains("--user-namespace"), status == 403, "what the operator must set");
    }
    assert_eq!(flows.fake.begins(), 0);
    let begun = flows.begin_as(person(press(NOTES, ""), "i", "ann")).await;
    // Nobody, and then somebody else, at the same browser: refused, and nothing is consumed.
    assert_eq!(flows.send(honest(&begun)).await.status, 403);
    assert_eq!(flows.fake.completions(), 0);
    for (issuer, subject) in [("i", "bob"), ("j", "ann")] {
        assert_eq!(flows.send(person(honest(&begun), issuer, subject)).await.status, 400);
        assert!(!flows.fake.consumed());
    }
    assert_eq!(flows.labelled("callback", "wrong_context").await, 2);
    assert_eq!(flows.send(person(honest(&begun), "i", "ann")).await.status, 303);
    flows.finish().await;
}

/// Without a connection nothing is sent, so nothing is lost: 503, and the same callback works when it is back.
#[tokio::test]
async fn a_choreographer_that_is_down() {
    let mut flows = Flows::start().await;
    let begun = flows.begin(NOTES, "").await;
    flows.fake.kill();
    let answer = flows.send(honest(&begun)).await;
    // The connection from before may break under the first call; then it is not known what arrived.
    assert!([502, 503].contains(&answer.status), "{answer:?}");
    let answer = flows.send(honest(&begun)).await;
    assert_eq!((answer.status, flows.labelled("callback", "choreographer_unavailable").await >= 1), (503, true));
    assert_eq!(flows.send(press(NOTES, "")).await.status, 503);
    let page = flows.send(Call::get(NOTES, START).header("accept", "text/html")).await;
    assert!(page.status == 200 && page.text().contains("Not known yet"), "{page:?}");
    // State is checked all the same.
    assert_eq!(flows.send(without_cookie(honest(&begun))).await.status, 400);
    assert!(!flows.fake.consumed());
    flows.fake.restart();
    let answer = loop {
        let answer = flows.send(honest(&begun)).await;
        if answer.status != 503 {
            break answer;
        }
    };
    assert_eq!(answer.status, 303);
    assert_eq!(flows.fake.exchanges(), [CODE]);
    flows.finish().await;
}

#[tokio::test]
async fn a_choreographer_that_hangs_or_dies_in_mid_call() {
    let mut flows = Flows::start().await;
    let begun = flows.begin(NOTES, "").await;
    flows.fake.set(Mood::Hangs);
    let answer = flows.send(honest(&begun).header("accept", "text/html")).await;
    assert_eq!((answer.status, flows.labelled("callback", "timeout").await), (504, 1), "{answer:?}");
    is_guarded(&answer, "a timeout");
    let completions = flows.fake.completions();
    let call = tokio::spawn({
        let (client, call) = (flows.world.https(), honest(&begun));
        async move { client.send(Version::HTTP_2, call).await.expect("an answer").status }
    });
    while flows.fake.completions() == completions {
        tokio::task::yield_now().await;
    }
    flows.fake.kill();
    assert_eq!(call.await.expect("it ends"), 502);
    assert_eq!(flows.fake.completions(), completions + 1, "nothing is retried");
    flows.finish().await;
}

/// The browser goes away in mid-exchange: the exchange goes on, and shutdown waits for it.
#[tokio::test]
async fn a_browser_that_goes_away() {
    let mut flows = Flows::start().await;
    let begun = flows.begin(NOTES, "").await;
    flows.fake.set(Mood::Hangs);
    let call = tokio::spawn({
        let (client, call) = (flows.world.https(), honest(&begun));
        async move { client.send(Version::HTTP_11, call).await }
    });
    while flows.fake.completions() == 0 {
        tokio::task::yield_now().await;
    }
    call.abort();
    // Envoy tells by resetting the stream.
    while flows.world.metric("envoy_cimd_streams").await != Some(0) {
        tokio::task::yield_now().await;
    }
    assert!(flows.fake.exchanges().is_empty());
    flows.world.cimd.process.signal("-TERM");
    flows.world.cimd.process.line(|line| line.contains("stopping").then_some(())).await;
    flows.fake.release();
    flows.world.cimd.process.line(|line| line.contains("\"completed\"").then_some(())).await;
    assert_eq!(flows.fake.exchanges(), [CODE]);
    assert_eq!(flows.world.cimd.process.ended().await, Some(0));
}

#[tokio::test]
async fn a_choreographer_on_a_unix_socket() {
    let dir = tempfile::tempdir().expect("a folder");
    let flows = Flows::on(Fake::at(Place::Unix(dir.path().join("c.sock"))), &["--single-user"], &|_| {}).await;
    let begun = flows.begin(NOTES, "").await;
    assert_eq!(flows.send(honest(&begun)).await.status, 303);
    flows.finish().await;
}

/// Each side proves who it is; without that, or with somebody else's proof, nothing is begun.
#[tokio::test]
async fn a_choreographer_behind_mtls() {
    let (ours, others) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let certificates = Certificates::make(ours.path(), &["localhost"]);
    let strangers = Certificates::make(others.path(), &["localhost"]);
    let read = |path: &std::path::Path| std::fs::read(path).expect("a file");
    let tls = ServerTlsConfig::new()
        .identity(Identity::from_pem(read(&certificates.cert), read(&certificates.key)))
        .client_ca_root(Certificate::from_pem(read(&certificates.ca)));
    let text = |path: &std::path::Path| path.to_str().expect("text").to_owned();
    for (ca, client, good) in [
        (&certificates, Some(&certificates), true),
        (&certificates, None, false),
        (&certificates, Some(&strangers), false),
        (&strangers, Some(&certificates), false),
    ] {
        let mut flags = vec!["--single-user".to_owned(), "--choreographer-ca".to_owned(), text(&ca.ca)];
        if let Some(client) = client {
            flags.extend(["--choreographer-cert".to_owned(), text(&client.cert)]);
            flags.extend(["--choreographer-key".to_owned(), text(&client.key)]);
        }
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let fake = Fake::at(Place::Tls(([127, 0, 0, 1], 0).into(), Box::new(tls.clone())));
        let flows = Flows::on(fake, &flags, &|_| {}).await;
        let answer = flows.send(press(NOTES, "")).await;
        assert_eq!(answer.status == 303, good, "{answer:?}");
        assert!(good || [502, 503].contains(&answer.status), "{answer:?}");
        assert_eq!(flows.fake.begins(), usize::from(good));
    }
}

/// Begun on one replica, ended on the other.
#[tokio::test]
async fn two_replicas_with_the_same_keys() {
    let flows = Flows::start().await;
    let other = Flows::world(&flows.fake, &flows.keys, &["--single-user"], &|_| {}).await;
    let begun = flows.begin(NOTES, "?return_to=/x").await;
    let answer = other.https().send(Version::HTTP_2, honest(&begun)).await.expect("an answer");
    assert_eq!(answer.all("location"), ["/x"]);
    flows.finish().await;
}

/// A flow that began under the old key finishes under the new; a bad file changes nothing.
#[tokio::test]
async fn keys_rotate_and_a_bad_file_changes_nothing() {
    let mut flows = Flows::start().await;
    let old = std::fs::read_to_string(&flows.keys).expect("the keys");
    let new = generate_key_line().expect("a key");
    let begun = flows.begin(NOTES, "").await;
    for (content, said) in [
        (format!("{old}\n{new}\n"), "read again"),
        (format!("{new}\n{old}\n"), "read again"),
        (String::new(), "has no key"),
        (format!("{new}\n{new}\n"), "line 2 has the key of an earlier line"),
        ("A".repeat(43), "line 1 is one byte over and over"),
        (format!("{new}\n{}", &old[1..]), "line 2 is not a base64url key"),
    ] {
        let reloads = |ok: bool| {
            format!("envoy_cimd_reloads_total{{file=\"state_keys\",result=\"{}\"}}", if ok { "ok" } else { "failed" })
        };
        let counter = reloads(said == "read again");
        let before = flows.world.metric(&counter).await.unwrap_or(0);
        std::fs::write(&flows.keys, content).expect("written");
        while flows.world.metric(&counter).await.unwrap_or(0) == before {
            tokio::task::yield_now().await;
        }
        flows.world.cimd.process.line(|line| line.contains(said).then_some(())).await;
    }
    assert_eq!(flows.world.metric("envoy_cimd_reload_ok{file=\"state_keys\"}").await, Some(0));
    assert_eq!(flows.send(honest(&begun)).await.status, 303, "begun under the old key");
    let fresh = flows.begin(NOTES, "").await;
    std::fs::write(&flows.keys, &new).expect("written");
    while flows.world.metric("envoy_cimd_reload_ok{file=\"state_keys\"}").await != Some(1) {
        tokio::task::yield_now().await;
    }
    assert_eq!(flows.send(honest(&fresh)).await.status, 303, "begun under the new key, which is alone now");
    assert_eq!(flows.send(honest(&begun)).await.status, 400);
    assert_eq!(flows.labelled("callback", "unknown_key").await, 1);
    flows.secrets.lock().expect("secrets").extend([old, new]);
    flows.world.cimd.process.stop().await;
    flows.world.cimd = Cimd::start(&executable(), &["--state-keys", flows.keys.to_str().expect("text")]).await;
    flows.finish().await;
}

/// A choreographer, in the process or in another, whose store cannot be opened: states are checked first, nothing is
/// consumed, and the answer is the same to the byte.
#[tokio::test]
async fn a_store_that_cannot_be_opened() {
    let dir = tempfile::tempdir().expect("a folder");
    let keys = dir.path().join("keys");
    let line = generate_key_line().expect("a key");
    std::fs::write(&keys, &line).expect("the keys");
    let flags = ["--single-user", "--state-keys", keys.to_str().expect("text")];
    // The state directory of either is a place where nothing can be made.
    let choreographer = Choreographer::start(&executable(), &[]).await;
    let apart = ["--choreographer", &format!("http://{}", choreographer.address)];
    let keys = StateKeys::new(parse_keys(&line).expect("a key"));
    let flow = FlowId([1; 16]);
    let redirect_uri = RedirectUri::new(format!("https://{NOTES}{CALLBACK}"));
    let state = keys
        .mint(flow, &redirect_uri, &BrowserCookie::from(Secret::new("value")), UnixTime::now(), UnixTime::MAX)
        .expect("a key");
    let begun = Begun { state, cookie: format!("__Host-envoy_cimd_{}=value", flow.tag()) };
    let mut answers = Vec::new();
    for flags in [flags.to_vec(), [&flags[..], &apart].concat()] {
        let world = World::start(Wish { cimd: &flags, ..Wish::default() }).await;
        for (call, status) in [
            (honest(&begun), 503),
            (without_cookie(honest(&begun)), 400),
            (with_query(&begun, "code=x&state=y"), 400),
            (Call::get(NOTES, START), 200),
            (Call::get(NOTES, DOCUMENT), 200),
        ] {
            let answer = world.https().send(Version::HTTP_2, call).await.expect("an answer");
            assert_eq!(answer.status, status, "{answer:?}");
            // The page names the upstream, which is each world's own.
            if status != 200 {
                answers.push(answer.body);
            }
        }
        let unavailable = "envoy_cimd_requests_total{endpoint=\"callback\",outcome=\"choreographer_unavailable\"}";
        assert_eq!(world.metric(unavailable).await, Some(1));
    }
    let (here, there) = answers.split_at(answers.len() / 2);
    assert_eq!(here, there);
}

/// With the filter down, or its paths spelled otherwise, nothing of a callback goes on to the upstream.
#[tokio::test]
async fn nothing_of_a_callback_reaches_the_upstream() {
    let mut flows = Flows::start().await;
    let begun = flows.begin(NOTES, "").await;
    for path in
        [format!("{CALLBACK}/"), "/.pomerium/oauth/%63allback".to_owned(), "/.pomerium/x/../oauth/callback".to_owned()]
    {
        let mut call = honest(&begun);
        call.path = format!("{path}?code={CODE}&state={}", begun.state);
        assert_eq!(flows.send(call).await.status, 404, "{path}");
    }
    flows.world.cimd.process.stop().await;
    assert_eq!(flows.send(honest(&begun)).await.status, 503);
    assert_eq!(flows.send(press(NOTES, "")).await.status, 503);
    assert!(flows.world.upstream.seen().is_empty());
    assert!(!flows.fake.consumed() && flows.fake.completions() == 0);
    let envoy = flows.world.envoy.process.output();
    assert!(!envoy.contains(CODE) && !envoy.contains(&begun.state), "{envoy}");
}
