//! What a request costs through a real Envoy, beside what it would cost without us: `make bench`.
//!
//! Everything runs on this machine, over plain HTTP/1.1 with connections kept: that makes Envoy's own part the smallest
//! it can be, and ours the largest. Every round measures every variant, so what else the machine does meets all alike;
//! ratios are of the same round. Nothing here passes or fails by a time: it prints what it found.

use std::{
    env,
    path::{Path, PathBuf},
};

use envoy_cimd::filter::state::StateKeys;
use envoy_cimd::model::secret::parse_keys;

use crate::{
    configuration::{Host, configuration, many_routes},
    floor::Floor,
    stack::{
        Certificates, Cimd, Envoy, get,
        grpc::{channel, fetch_documents},
        in_process::{CALLBACK, DOCUMENT, forged},
        key_file, metric, resident,
    },
    variant::{Expected, Sample, Variant},
};

mod configuration;
mod floor;
mod report;
#[path = "../../tests/stack/mod.rs"]
#[expect(dead_code, reason = "the tests use all of it")]
mod stack;
mod variant;
mod wrk;

/// How many routes many are.
const ROUTES: usize = 100_000;

fn main() {
    // What cargo itself says to a benchmark is `--bench`.
    let part = env::args().skip(1).find(|arg| !arg.starts_with('-'));
    // The floor has the runtime that envoy-cimd has by default.
    let threads = if part.as_deref() == Some("floor") { 1 } else { 2 };
    let done = envoy_cimd::block_on(threads, async {
        match part.as_deref() {
            Some("floor") => floor::serve().await,
            Some("load") => load().await,
            Some("memory") => memory().await,
            None => {
                load().await;
                memory().await;
            }
            Some(other) => panic!("there is `load` and `memory`, and no `{other}`"),
        }
        Ok(())
    });
    done.expect("a runtime");
}

/// How long and how hard, from the environment.
struct Settings {
    rounds: usize,
    seconds: usize,
    connections: usize,
    /// Letters of the variants that are measured; all where it is empty.
    variants: String,
}

impl Settings {
    fn measures(&self, variant: &Variant<'_>) -> bool {
        self.variants.is_empty() || variant.name.chars().nth(1).is_some_and(|letter| self.variants.contains(letter))
    }
}

fn setting(name: &str, default: usize) -> usize {
    env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} must be a number")))
}

fn executable() -> PathBuf {
    env!("CARGO_BIN_EXE_envoy-cimd").into()
}

async fn load() {
    let settings = Settings {
        rounds: setting("BENCH_ROUNDS", 10),
        seconds: setting("BENCH_SECONDS", 3),
        connections: setting("BENCH_CONNECTIONS", 32),
        variants: env::var("BENCH_VARIANTS").unwrap_or_default(),
    };
    let dir = tempfile::tempdir().expect("a folder");
    let keys = key_file(dir.path());
    let keys_flag = format!("--state-keys={}", keys.display());
    let socket = format!("unix:{}", dir.path().join("cimd.sock").display());
    let floor = Floor::start().await;
    let tcp = Cimd::start(&executable(), &[&keys_flag]).await;
    let unix = Cimd::start(&executable(), &[&keys_flag, "--listen", &socket]).await;
    let file = dir.path().join("routes.yaml");
    std::fs::write(&file, many_routes(ROUTES)).expect("the routes");
    let many = Cimd::start(&executable(), &[&keys_flag, "--config", file.to_str().expect("text")]).await;
    let certificates = Certificates::make(dir.path(), &["bench.example"]);
    let config = configuration(&certificates, &floor.address, &tcp.ext_proc, &unix.ext_proc, &many.ext_proc);
    let envoy = Envoy::start(dir.path(), &config.to_string()).await;

    let variants = variants(&envoy, &forged(&state_keys(&keys)), &floor, &tcp, &unix, &many).await;
    assert!(variants.iter().any(|variant| settings.measures(variant)), "BENCH_VARIANTS are letters such as `bcf`");
    for variant in variants.iter().filter(|variant| settings.measures(variant)) {
        variant.check().await;
        // Connections, caches and pages of memory are there before anything counts.
        variant.measure(&envoy.process, 1, settings.connections).await;
    }
    let mut samples: Vec<Vec<Sample>> = variants.iter().map(|_| Vec::new()).collect();
    for round in 0..settings.rounds {
        eprintln!("round {} of {}", round + 1, settings.rounds);
        for (variant, samples) in variants.iter().zip(&mut samples).filter(|(variant, _)| settings.measures(variant)) {
            samples.push(variant.measure(&envoy.process, settings.seconds, settings.connections).await);
        }
    }
    report::print(&settings, &variants, &samples);
    print_connections(&envoy).await;
    println!(
        "\nResident at the end: envoy-cimd over TCP {} KiB, over a Unix socket {} KiB, with {ROUTES} routes of a file {} \
         KiB, the floor {} KiB.",
        resident(tcp.process.pid()),
        resident(unix.process.pid()),
        resident(many.process.pid()),
        resident(floor.process.pid())
    );
    for (processor, variants) in [(&tcp, 5..=6), (&many, 10..=10)] {
        let forged = samples[variants].iter().flatten().map(|sample| sample.requests).sum();
        if forged > 0 {
            assert_refused(&processor.admin, forged).await;
        }
    }
}

fn state_keys(path: &Path) -> StateKeys {
    StateKeys::new(parse_keys(&std::fs::read_to_string(path).expect("the keys")).expect("keys"))
}

async fn variants<'a>(
    envoy: &Envoy,
    forged: &str,
    floor: &'a Floor,
    tcp: &'a Cimd,
    unix: &'a Cimd,
    many: &'a Cimd,
) -> Vec<Variant<'a>> {
    let callback = format!("{CALLBACK}?code=c&state={forged}");
    let mut variants = Vec::new();
    for (name, listener, path, accept, expected, process) in [
        ("(a) `direct_response`", "a", DOCUMENT, None, Expected::Document, None),
        ("(b) the floor", "b", DOCUMENT, None, Expected::Document, Some(&floor.process)),
        ("(c) envoy-cimd, TCP", "c", DOCUMENT, None, Expected::Document, Some(&tcp.process)),
        ("(d) envoy-cimd, Unix socket", "d", DOCUMENT, None, Expected::Document, Some(&unix.process)),
        ("(e) `--static-cimd`", "e", DOCUMENT, None, Expected::Document, None),
        ("(f) forged callback, JSON", "c", &callback, None, Expected::Refusal, Some(&tcp.process)),
        ("(f) forged callback, page", "c", &callback, Some("text/html"), Expected::Refusal, Some(&tcp.process)),
        ("(g) other traffic, no filter", "g", "/mcp", None, Expected::Other, None),
        ("(g) other traffic, filter", "c", "/mcp", None, Expected::Other, Some(&tcp.process)),
        ("(h) as (c), 100,000 routes", "h", DOCUMENT, None, Expected::Document, Some(&many.process)),
        ("(h) as (f), 100,000 routes", "h", &callback, None, Expected::Refusal, Some(&many.process)),
    ] {
        let address = envoy.listener(listener).await;
        let path = path.to_owned();
        let host = if listener == "h" { Host::Many(ROUTES) } else { Host::One(configuration::host(listener)) };
        variants.push(Variant { name, host, address, path, accept, expected, process });
    }
    variants
}

/// How Envoy talks to each processor: connections it opened so far, and streams, one a request, which it resets when it
/// has its answer.
async fn print_connections(envoy: &Envoy) {
    let filter = "/stats?filter=cluster.(b|c|d|h).upstream_(cx_http2_total|cx_destroy_remote|rq_total|rq_tx_reset)$";
    let (_, stats) = get(envoy.admin, filter).await.expect("Envoy's statistics");
    println!("\nEnvoy's connections to each processor, and the streams on them:\n");
    for line in String::from_utf8_lossy(&stats).lines() {
        println!("    {line}");
    }
}

/// Each forged callback was refused for its signature, and none came as far as the choreographer, whose answers have
/// outcomes of their own.
async fn assert_refused(admin: &str, forged: u64) {
    let (_, text) = get(admin.parse().expect("an address"), "/metrics").await.expect("metrics");
    for line in String::from_utf8(text.to_vec()).expect("text").lines() {
        if line.starts_with("envoy_cimd_requests_total{endpoint=\"callback\"") && !line.contains("\"bad_mac\"") {
            assert!(line.ends_with(" 0"), "a forged callback came to another end: {line}");
        }
    }
    let refused = metric(admin, "envoy_cimd_requests_total{endpoint=\"callback\",outcome=\"bad_mac\"}").await;
    assert!(refused >= Some(forged), "{refused:?} of {forged} are counted");
    println!("\nAll {} forged callbacks ended as `bad_mac`; the choreographer saw none.", refused.unwrap_or_default());
}

/// A hundred thousand routes, ten times each: resident memory is what a request needs, not what there was.
async fn memory() {
    const TIMES: usize = 10;
    let cimd = Cimd::start(&executable(), &[]).await;
    let channel = channel(&cimd.ext_proc).await;
    let mut kib = vec![resident(cimd.process.pid())];
    for _ in 0..TIMES {
        fetch_documents(&channel, 0..ROUTES).await;
        kib.push(resident(cimd.process.pid()));
    }
    println!(
        "\n## Memory\n\nResident at the start, and after each 100,000 requests for as many routes, in KiB: {kib:?}"
    );
    let last = kib.last().copied().unwrap_or_default();
    println!("After a million requests at most 32 MiB: {}.", report::mark(last <= 32 * 1024));
}
