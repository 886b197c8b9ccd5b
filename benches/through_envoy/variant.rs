//! One thing that is measured, and what one measurement of it says.

use std::net::SocketAddr;

use crate::{
    configuration::{Host, document},
    stack::{Answered, Call, Client, Process},
    wrk::wrk,
};

/// A request that is sent over and over.
pub struct Variant<'a> {
    pub name: &'static str,
    pub host: Host,
    pub address: SocketAddr,
    pub path: String,
    pub accept: Option<&'static str>,
    pub expected: Expected,
    /// Whose CPU time is measured beside Envoy's.
    pub process: Option<&'a Process>,
}

/// What every answer must be.
#[derive(Clone, Copy, PartialEq)]
pub enum Expected {
    Document,
    Refusal,
    Other,
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
    /// Asks once, and looks at the answer.
    pub async fn check(&self) {
        let mut call = Call::get(&self.host.first(), &self.path);
        for (name, value) in self.headers() {
            call = call.header(name, value);
        }
        let answer = Client::plain(self.address).send(http::Version::HTTP_11, call).await.expect(self.name);
        match self.expected {
            Expected::Document => self.check_document(&answer),
            Expected::Refusal => {
                assert_eq!((answer.status, answer.all("cache-control")), (400, vec!["no-store"]), "{answer:?}");
            }
            Expected::Other => assert_eq!((answer.status, answer.text()), (200, "other traffic")),
        }
    }

    fn check_document(&self, answer: &Answered) {
        let expected = document(&self.host.first());
        assert_eq!((answer.status, &answer.body[..]), (200, &expected.body[..]), "{}", self.name);
        for header in expected.headers.iter().flat_map(|set| &set.set_headers).flat_map(|set| &set.header) {
            assert_eq!(answer.all(&header.key), [String::from_utf8_lossy(&header.raw_value)], "{}", self.name);
        }
    }

    /// Sends it for a while, on some connections at once.
    pub async fn measure(&self, envoy: &Process, seconds: usize, connections: usize) -> Sample {
        let processes = [Some(envoy), self.process];
        let before = processes.map(|process| process.map(Process::cpu));
        let load = wrk(self.address, &self.host, &self.path, &self.headers(), seconds, connections).await;
        let after = processes.map(|process| process.map(Process::cpu));
        assert!(load.requests > 0 && load.broken == 0, "{}: {} requests broke", self.name, load.broken);
        let refused = if self.expected == Expected::Refusal { load.requests } else { 0 };
        assert_eq!(load.refused, refused, "{}: answers of 400 and above", self.name);
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

    fn headers(&self) -> Vec<(&'static str, &'static str)> {
        let mut headers = vec![("x-forwarded-proto", "https")];
        headers.extend(self.accept.map(|accept| ("accept", accept)));
        headers
    }
}
