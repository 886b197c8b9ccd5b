//! One thing that is measured, and what one measurement of it says.

use std::net::SocketAddr;

use crate::{
    configuration::{Host, document},
    people::{People, TRANSPORT},
    stack::{Answered, Call, Client, Process},
    upstream::CAME,
    wrk::{Load, Sent, wrk},
};

/// A request that is sent over and over.
pub struct Variant<'a> {
    /// Its letter, and what tells it from others of the same.
    pub key: &'static str,
    pub name: String,
    pub host: Host,
    pub address: SocketAddr,
    pub path: String,
    pub accept: Option<&'static str>,
    /// Who sends it, where it is an MCP request.
    pub people: Option<People>,
    /// Who is to have sent one each, shortly before it is measured.
    pub before: Option<People>,
    pub expected: Expected,
    /// Whose CPU time is measured beside Envoy's.
    pub process: Option<&'a Process>,
}

/// What every answer must be.
#[derive(Clone, PartialEq)]
pub enum Expected {
    Document,
    Refusal,
    Other,
    /// The upstream's, to a request that came with this `authorization`, or with none.
    Upstream(Option<String>),
}

/// One measurement.
pub struct Sample {
    pub requests: u64,
    pub per_second: f64,
    /// Milliseconds.
    pub p50: f64,
    pub p99: f64,
    /// CPU seconds of a million requests: Envoy's, and the processor's.
    pub envoy: f64,
    pub processor: Option<f64>,
}

impl Variant<'_> {
    /// Whether it has one of these letters; no letters are all.
    pub fn is_among(&self, letters: &str) -> bool {
        letters.is_empty() || self.key.chars().next().is_some_and(|letter| letters.contains(letter))
    }

    /// Asks once, and looks at the answer.
    pub async fn check(&self) {
        let mut call = Call::get(&self.host.first(), &self.path);
        for (name, value) in self.headers() {
            call = call.header(name, value);
        }
        if let Some(people) = &self.people {
            call = people.first(call);
        }
        let answer = Client::plain(self.address).send(http::Version::HTTP_11, call).await.expect(&self.name);
        match &self.expected {
            Expected::Document => self.check_document(&answer),
            Expected::Refusal => {
                assert_eq!((answer.status, answer.all("cache-control")), (400, vec!["no-store"]), "{answer:?}");
            }
            Expected::Other => assert_eq!((answer.status, answer.text()), (200, "other traffic")),
            Expected::Upstream(token) => {
                assert_eq!(answer.status, 200, "{}: {answer:?}", self.name);
                let came = answer.all(CAME);
                assert!(came.iter().copied().eq(token.as_deref()), "{}: with another token, or none", self.name);
            }
        }
    }

    fn check_document(&self, answer: &Answered) {
        let expected = document(&self.host.first());
        assert_eq!((answer.status, &answer.body[..]), (200, &expected.body[..]), "{}", self.name);
        for header in expected.headers.iter().flat_map(|set| &set.set_headers).flat_map(|set| &set.header) {
            assert_eq!(answer.all(&header.key), [String::from_utf8_lossy(&header.raw_value)], "{}", self.name);
        }
    }

    /// Makes connections, caches and pages of memory be there before anything counts; where everybody is to have sent a
    /// request just now, lets them.
    pub async fn prepare(&self, connections: usize) {
        let Some(people) = &self.before else { return };
        let mut requests = 0;
        while requests < people.count() {
            requests += self.load(Some(people), 1, connections).await.requests;
        }
    }

    /// Sends it for a while, on some connections at once.
    pub async fn measure(&self, envoy: &Process, seconds: usize, connections: usize) -> Sample {
        self.prepare(connections).await;
        let processes = [Some(envoy), self.process];
        let before = processes.map(|process| process.map(Process::cpu));
        let load = self.load(self.people.as_ref(), seconds, connections).await;
        let after = processes.map(|process| process.map(Process::cpu));
        let million = load.requests as f64 / 1e6;
        let mut costs =
            before.into_iter().zip(after).map(|(before, after)| Some((after? - before?).as_secs_f64() / million));
        Sample {
            requests: load.requests,
            per_second: load.requests as f64 / load.seconds,
            p50: load.p50,
            p99: load.p99,
            envoy: costs.next().flatten().unwrap_or_default(),
            processor: costs.next().flatten(),
        }
    }

    /// No request may break, or be answered as it should not be.
    async fn load(&self, people: Option<&People>, seconds: usize, connections: usize) -> Load {
        let (host, headers) = (self.host.first(), self.headers());
        let script = match people {
            Some(people) => people.script(),
            None => self.host.script(),
        };
        let sent = Sent { address: self.address, host: &host, path: &self.path, headers: &headers, script };
        let load = wrk(sent, seconds, connections).await;
        if let Some(people) = people {
            people.sent(load.requests);
        }
        assert!(load.requests > 0 && load.broken == 0, "{}: {} requests broke", self.name, load.broken);
        let refused = if self.expected == Expected::Refusal { load.requests } else { 0 };
        assert_eq!(load.refused, refused, "{}: answers of 400 and above", self.name);
        load
    }

    fn headers(&self) -> Vec<(&'static str, &'static str)> {
        let mut headers = vec![("x-forwarded-proto", "https")];
        headers.extend(self.accept.map(|accept| ("accept", accept)));
        headers.extend(self.people.iter().flat_map(|_| TRANSPORT));
        headers
    }
}
