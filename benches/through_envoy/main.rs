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
        in_process::{CALLBACK, DOCUMENT, forged},
        key_file, metric, resident,
    },
    variant::{Expected, Variant},
};

mod configuration;
mod floor;
mod memory;
mod one_token;
mod people;
mod redis;
mod report;
#[path = "../../tests/stack/mod.rs"]
#[expect(dead_code, reason = "the tests use all of it")]
mod stack;
mod traffic;
mod upstream;
mod variant;
mod wrk;

/// How many routes many are.
const ROUTES: usize = 100_000;

fn main() {
    // What cargo itself says to a benchmark is `--bench`.
    let args: Vec<String> = env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    // The floor has the runtime that envoy-cimd has by default.
    let threads = if args.first() == Some(&"floor") { 1 } else { 2 };
    let done = envoy_cimd::block_on(threads, async {
        match args[..] {
            ["floor", what, address] => floor::serve(what, address).await,
            ["load"] => load(&settings()).await,
            ["traffic"] => traffic::load(&settings()).await,
            ["redis"] => redis::count().await,
            ["memory"] => memory::measure().await,
            [] => {
                load(&settings()).await;
                traffic::load(&settings()).await;
                redis::count().await;
                memory::measure().await;
            }
            _ => panic!("there is `load`, `traffic`, `redis` and `memory`, and no {args:?}"),
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
    /// How many people many are. Each of them sends a request before (o) and (s) are measured. A token that was kept for
    /// half a minute is looked up again, so (o) wants fewer on a machine that takes longer for as many requests.
    people: usize,
    /// Of the variants that are measured; all where it is empty.
    letters: String,
}

fn settings() -> Settings {
    Settings {
        rounds: setting("BENCH_ROUNDS", 11),
        seconds: setting("BENCH_SECONDS", 3),
        connections: setting("BENCH_CONNECTIONS", 32),
        people: setting("BENCH_PEOPLE", 100_000),
        letters: env::var("BENCH_VARIANTS").unwrap_or_default(),
    }
}

fn setting(name: &str, default: usize) -> usize {
    env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} must be a number")))
}

fn executable() -> PathBuf {
    env!("CARGO_BIN_EXE_envoy-cimd").into()
}

async fn load(settings: &Settings) {
    let dir = tempfile::tempdir().expect("a folder");
    let keys = key_file(dir.path());
    let keys_flag = format!("--state-keys={}", keys.display());
    let socket = format!("unix:{}", dir.path().join("cimd.sock").display());
    let floor = Floor::start("document", "127.0.0.1:0").await;
    let tcp = Cimd::start(&executable(), &[&keys_flag]).await;
    let unix = Cimd::start(&executable(), &[&keys_flag, "--listen", &socket]).await;
    let file = dir.path().join("routes.yaml");
    std::fs::write(&file, many_routes(ROUTES)).expect("the routes");
    let many = Cimd::start(&executable(), &[&keys_flag, "--config", file.to_str().expect("text")]).await;
    let certificates = Certificates::make(dir.path(), &["bench.example"]);
    let config = configuration(&certificates, &floor.address, &tcp.ext_proc, &unix.ext_proc, &many.ext_proc);
    let envoy = Envoy::start(dir.path(), &config.to_string()).await;

    let variants = variants(&envoy, &forged(&state_keys(&keys)), &floor, &tcp, &unix, &many).await;
    let samples = report::compare(settings, &envoy.process, &variants).await;
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
    for (key, name, listener, path, accept, expected, process) in [
        ("a", "`direct_response`", "a", DOCUMENT, None, Expected::Document, None),
        ("b", "the floor", "b", DOCUMENT, None, Expected::Document, Some(&floor.process)),
        ("c", "envoy-cimd, TCP", "c", DOCUMENT, None, Expected::Document, Some(&tcp.process)),
        ("d", "envoy-cimd, Unix socket", "d", DOCUMENT, None, Expected::Document, Some(&unix.process)),
        ("e", "`--static-cimd`", "e", DOCUMENT, None, Expected::Document, None),
        ("f", "forged callback, JSON", "c", &callback, None, Expected::Refusal, Some(&tcp.process)),
        ("f page", "forged callback, page", "c", &callback, Some("text/html"), Expected::Refusal, Some(&tcp.process)),
        ("g", "other traffic, no filter", "g", "/mcp", None, Expected::Other, None),
        ("g filter", "other traffic, filter", "c", "/mcp", None, Expected::Other, Some(&tcp.process)),
        ("h", "as (c), 100,000 routes", "h", DOCUMENT, None, Expected::Document, Some(&many.process)),
        ("h refused", "as (f), 100,000 routes", "h", &callback, None, Expected::Refusal, Some(&many.process)),
    ] {
        let address = envoy.listener(listener).await;
        let path = path.to_owned();
        let host = if listener == "h" { Host::Many(ROUTES) } else { Host::One(configuration::host(listener)) };
        let name = format!("({}) {name}", &key[..1]);
        variants.push(Variant {
            key,
            name,
            host,
            address,
            path,
            accept,
            people: None,
            before: None,
            expected,
            process,
        });
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
