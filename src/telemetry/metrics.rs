//! What can be counted, all under one prefix, with labels that no request can add a value to.

use std::{collections::HashMap, hash::Hash, sync::OnceLock, time::Instant};

use foldhash::fast::RandomState;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::{Metric, Registry},
};

use super::{
    exposition::{self, Format},
    lines,
};
use crate::model::{clock::UnixTime, paths::Part};

/// The metrics of one process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    /// Those of them that are expected, found without a lock: every request is counted.
    expected: OnceLock<HashMap<RequestLabels, Counter, RandomState>>,
    pub passed_through: Counter,
    pub handed_out: Counter,
    pub streams: Gauge,
    pub broken_streams: Counter,
    refused_streams: Family<StreamLabels, Counter>,
    reloads: Family<ReloadLabels, Counter>,
    reload_ok: Family<FileLabels, Gauge>,
    refreshes: Family<ResultLabels, Counter>,
    token_lookups: Family<ResultLabels, Counter>,
    pub token_waits: Gauge,
    refused_tokens: Family<RefusedLabels, Counter>,
    reached: Family<PartLabels, Gauge>,
    certificates: Family<CertificateLabels, Gauge>,
    answers: Durations<EndpointLabels>,
    calls: Durations<CallLabels>,
    fetches: Durations<ResultLabels>,
}

/// The files that are read again.
const FILES: [&str; 8] = [
    "config",
    "state_keys",
    "encryption_keys",
    "client_secrets",
    "tls",
    "tokens_tls",
    "choreographer_tls",
    "tokens_client_tls",
];

/// Why a stream is refused before anything of its request is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedStream {
    /// `--max-streams` are open.
    TooMany,
    /// It is for a role that there is not.
    UnknownRole,
    /// It is for a role that its listener does not serve.
    RoleNotServed,
}

impl RefusedStream {
    const ALL: [Self; 3] = [Self::TooMany, Self::UnknownRole, Self::RoleNotServed];

    pub fn label(self) -> &'static str {
        match self {
            Self::TooMany => "too_many_streams",
            Self::UnknownRole => "unknown_role",
            Self::RoleNotServed => "role_not_served",
        }
    }
}

/// What is not in this process, and is needed to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reached {
    Store,
    Choreographer,
    Tokens,
}

impl Reached {
    pub fn label(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::Choreographer => "choreographer",
            Self::Tokens => "tokens",
        }
    }
}

/// The calls of the exchange, named as their spans are.
const CALLS: [&str; 9] = [
    "DescribeUpstream",
    "DescribeConnection",
    "BeginAuthorization",
    "CompleteAuthorization",
    "Disconnect",
    "GetUpstreamToken",
    "AwaitUpstreamToken",
    "ExpectAgain",
    "ReportRefusedToken",
];
/// What comes of a fetch: an answer, of whatever status, or none.
const FETCHES: [&str; 2] = ["answered", "failed"];

/// How long something takes, by its labels.
type Durations<L> = Family<L, Histogram, fn() -> Histogram>;

fn durations<L: Clone + Eq + Hash>() -> Durations<L> {
    // From an answer out of memory to a deadline; in seconds.
    let histogram = || Histogram::new([0.001, 0.01, 0.1, 0.5, 2.0, 10.0]);
    Family::new_with_constructor(histogram as fn() -> Histogram)
}

/// Puts a metric among all that `/metrics` shows, and gives it back.
fn shown<M: Metric + Clone>(all: &mut Registry, name: &str, help: &str, metric: M) -> M {
    all.register(name, help, metric.clone());
    metric
}

/// What becomes of a refresh.
const REFRESHES: [&str; 5] = ["ok", "failed", "ended", "superseded", "not_stored"];
/// What comes of asking for a token.
const LOOKUPS: [&str; 4] = ["handed_out", "never", "lost", "unavailable"];
/// How an upstream refuses a token, and what a report of that comes to.
const REFUSED: [(&str, &[&str]); 2] = [
    ("401", &["renewed", "too_soon", "never", "lost", "unavailable"]),
    ("403", &["renewed", "connect", "no_more", "never", "lost", "unavailable"]),
];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    endpoint: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StreamLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ReloadLabels {
    file: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct FileLabels {
    file: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RefusedLabels {
    status: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PartLabels {
    part: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CertificateLabels {
    file: &'static str,
    of: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct EndpointLabels {
    endpoint: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CallLabels {
    call: &'static str,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("envoy_cimd");
        registry.register("build", "The version that runs", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        let all = &mut registry;
        let mut metrics = Self {
            requests: shown(
                all,
                "requests",
                "Requests answered, by endpoint (or `traffic`) and outcome",
                Default::default(),
            ),
            passed_through: shown(
                all,
                "passed_through",
                "Requests left to Envoy because their path is not one of ours",
                Default::default(),
            ),
            handed_out: shown(
                all,
                "handed_out",
                "MCP requests that went on to their upstream, each with its user's token",
                Default::default(),
            ),
            streams: shown(all, "streams", "ext_proc streams open now", Default::default()),
            broken_streams: shown(
                all,
                "broken_streams",
                "ext_proc streams that were reset, or brought a message that cannot be read",
                Default::default(),
            ),
            refused_streams: shown(
                all,
                "refused_streams",
                "ext_proc streams that were refused before anything of their request was read, by reason",
                Default::default(),
            ),
            reloads: shown(all, "reloads", "Files read again after a change, by file and result", Default::default()),
            reload_ok: shown(
                all,
                "reload_ok",
                "1 where the last reading of a file was good, 0 where the last good value is still used",
                Default::default(),
            ),
            refreshes: shown(all, "refreshes", "Tokens refreshed, by result", Default::default()),
            token_lookups: shown(
                all,
                "token_lookups",
                "Tokens asked for where the store is, by result",
                Default::default(),
            ),
            token_waits: shown(
                all,
                "token_waits",
                "Tokens that are waited for now where the store is, each by one or more",
                Default::default(),
            ),
            refused_tokens: shown(
                all,
                "refused_tokens",
                "Reports that an upstream refused a token, by its status and what the report came to",
                Default::default(),
            ),
            certificates: shown(
                all,
                "certificate_not_after_timestamp_seconds",
                "When the certificate that ends first ends, of those of a file, in seconds since 1970",
                Default::default(),
            ),
            reached: shown(
                all,
                "exchange_up",
                "1 where this part of the exchange answered when it was last tried, 0 where it did not",
                Default::default(),
            ),
            answers: shown(
                all,
                "answer_seconds",
                "How long answers took, by endpoint, from the request's headers on; MCP requests that went on are not among them",
                durations(),
            ),
            calls: shown(
                all,
                "call_seconds",
                "How long calls of the exchange took, by the name of the call, in this process and to another",
                durations(),
            ),
            fetches: shown(
                all,
                "fetch_seconds",
                "How long fetches from upstreams and authorization servers took, by result",
                durations(),
            ),
            expected: OnceLock::new(),
            registry,
        };
        // There is one log in a process, and it starts before this.
        let (dropped, help) =
            ("log_lines_dropped", "Lines of the log that were dropped because nobody read it in time");
        metrics.registry.register(dropped, help, lines::DROPPED.clone());
        // At zero from the start: a counter that appears with its first event hides that event from a rate.
        for file in FILES {
            for result in ["ok", "failed"] {
                drop(metrics.reloads.get_or_create(&ReloadLabels { file, result }));
            }
            metrics.reload_ok.get_or_create(&FileLabels { file }).set(1);
        }
        for part in Part::ALL {
            drop(metrics.answers.get_or_create(&EndpointLabels { endpoint: part.name() }));
        }
        for call in CALLS {
            drop(metrics.calls.get_or_create(&CallLabels { call }));
        }
        for result in FETCHES {
            drop(metrics.fetches.get_or_create(&ResultLabels { result }));
        }
        for reason in RefusedStream::ALL.map(RefusedStream::label) {
            drop(metrics.refused_streams.get_or_create(&StreamLabels { reason }));
        }
        for result in REFRESHES {
            drop(metrics.refreshes.get_or_create(&ResultLabels { result }));
        }
        for result in LOOKUPS {
            drop(metrics.token_lookups.get_or_create(&ResultLabels { result }));
        }
        for (status, results) in REFUSED {
            for result in results {
                drop(metrics.refused_tokens.get_or_create(&RefusedLabels { status, result }));
            }
        }
        metrics
    }
}

impl Metrics {
    /// Shows the outcomes that there can be at zero.
    pub fn expect(&self, outcomes: impl Iterator<Item = (Part, &'static str)>) {
        let expected = outcomes.map(|(part, outcome)| {
            let labels = RequestLabels { endpoint: part.name(), outcome };
            let counter = self.requests.get_or_create(&labels).clone();
            (labels, counter)
        });
        // Whoever comes later expects the same: there is one list of outcomes.
        drop(self.expected.set(expected.collect()));
    }

    /// Counts an answer; `outcome` is its label.
    pub fn answered(&self, part: impl Into<Part>, outcome: &'static str) {
        let labels = RequestLabels { endpoint: part.into().name(), outcome };
        match self.expected.get().and_then(|expected| expected.get(&labels)) {
            Some(counter) => counter.inc(),
            None => self.requests.get_or_create(&labels).inc(),
        };
    }

    /// Notes how long an answer took that [`Self::answered`] counts.
    pub fn answered_since(&self, part: impl Into<Part>, began: Instant) {
        let labels = EndpointLabels { endpoint: part.into().name() };
        self.answers.get_or_create(&labels).observe(began.elapsed().as_secs_f64());
    }

    /// Notes how long a call of the exchange took.
    pub fn called_since(&self, call: &'static str, began: Instant) {
        self.calls.get_or_create(&CallLabels { call }).observe(began.elapsed().as_secs_f64());
    }

    /// Notes how long a fetch took, and whether an answer came.
    pub fn fetched_since(&self, is_answered: bool, began: Instant) {
        let result = if is_answered { "answered" } else { "failed" };
        self.fetches.get_or_create(&ResultLabels { result }).observe(began.elapsed().as_secs_f64());
    }

    /// Counts a stream that was refused.
    pub fn refused_stream(&self, reason: RefusedStream) {
        self.refused_streams.get_or_create(&StreamLabels { reason: reason.label() }).inc();
    }

    /// Shows when the certificates of a file end.
    pub fn certificate_ends(&self, file: &'static str, of: &'static str, end: UnixTime) {
        let end = i64::try_from(end.secs()).unwrap_or(i64::MAX);
        self.certificates.get_or_create(&CertificateLabels { file, of }).set(end);
    }

    /// Shows whether a part could be reached.
    pub fn reached(&self, part: Reached, ok: bool) {
        self.reached.get_or_create(&PartLabels { part: part.label() }).set(i64::from(ok));
    }

    /// Counts a reading of files after a change, and whether they were good.
    pub fn reloaded(&self, file: &'static str, ok: bool) {
        let result = if ok { "ok" } else { "failed" };
        self.reloads.get_or_create(&ReloadLabels { file, result }).inc();
        self.reload_ok.get_or_create(&FileLabels { file }).set(i64::from(ok));
    }

    /// Shows whether all of several files are good.
    pub fn all_good(&self, file: &'static str, ok: bool) {
        self.reload_ok.get_or_create(&FileLabels { file }).set(i64::from(ok));
    }

    /// Counts a refresh; `result` is one of the table in `docs/operations.md`.
    pub fn refreshed(&self, result: &'static str) {
        self.refreshes.get_or_create(&ResultLabels { result }).inc();
    }

    /// Counts a token that was asked for; `result` is one of the table in `docs/operations.md`.
    pub fn token_looked_up(&self, result: &'static str) {
        self.token_lookups.get_or_create(&ResultLabels { result }).inc();
    }

    /// Counts a report of a refused token; `result` is one of the table in `docs/operations.md`.
    pub fn refused_token(&self, status: &'static str, result: &'static str) {
        self.refused_tokens.get_or_create(&RefusedLabels { status, result }).inc();
    }

    /// The text of `/metrics` in a format.
    pub fn text_in(&self, format: Format) -> String {
        match format {
            Format::OpenMetrics => self.text(),
            Format::Plain => exposition::plain(&self.text()),
        }
    }

    /// The OpenMetrics text of `/metrics`.
    pub fn text(&self) -> String {
        let mut text = String::new();
        match encode(&mut text, &self.registry) {
            Ok(()) => text,
            // Writing to a String does not fail; an empty page would still be better than a dead listener.
            Err(std::fmt::Error) => String::new(),
        }
    }
}
