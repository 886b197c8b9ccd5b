//! Start and callback through a real Envoy, against a choreographer that records what reaches it.

use std::sync::Mutex;

use http::Version;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    choreographer::{Fake, ISSUER},
    stack::{Answered, Call, get, key_file},
    world::{CALLBACK, START, Wish, World, http_filters},
};

mod buttons;
mod faults;
pub mod outcomes;
mod people;
mod replays;
mod state_keys;
mod to_the_choreographer;

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
