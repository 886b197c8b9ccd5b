//! MCP requests through one Envoy: with tokens, and beside them what they would cost without, or put in by others.

use std::path::Path;

use serde_json::{Value, json};

use crate::{
    Settings,
    configuration::{Host, list, manager, plain, printed, remove, routes},
    executable,
    floor::Floor,
    people::{self, HOST, NAMESPACE, People, WHO},
    report,
    stack::{Certificates, Cimd, Envoy, key_file, resident},
    upstream,
    variant::{Expected, Variant},
};

/// As long as may be.
const KEPT: &str = "--token-cache=60";
const NEVER_KEPT: &str = "--token-cache=0";

/// What stands between a listener and the upstream.
enum Between {
    /// The filter that asks a processor for a token. Whether it is followed by the one that learns of refusals.
    Traffic {
        refused: bool,
    },
    ExtAuthz,
    Nothing,
}

/// Processes to ask, by the place that each has in the listeners' configuration.
struct Processors {
    floor: [Floor; 2],
    /// With our own gRPC.
    lean_floor: Floor,
    /// With a token of one person: the last does not keep what it handed out.
    few: [Cimd; 3],
    /// With the tokens of many: one keeps what it handed out, one does not.
    many: [Cimd; 2],
}

pub async fn load(settings: &Settings) {
    let dir = tempfile::tempdir().expect("a folder");
    let upstream = upstream::start().await;
    let many = settings.people;
    let processors = Processors::start(dir.path(), &upstream, many).await;
    let certificates = Certificates::make(dir.path(), &[HOST]);
    let config = configuration(&certificates, &processors, &upstream);
    let has_refused = config.to_string().contains(REFUSED);
    let envoy = Envoy::start(dir.path(), &config.to_string()).await;

    let variants = processors.variants(&envoy, has_refused, many).await;
    let before = resident(processors.many[0].process.pid());
    report::compare(settings, &envoy.process, &variants).await;
    println!(
        "\nResident at the end: envoy-cimd with one token {} KiB; with the tokens of {many} people in its store, {before} \
         KiB at the start and now {} KiB where it keeps what it handed out, {} KiB where it does not; the floor {} KiB.",
        resident(processors.few[1].process.pid()),
        resident(processors.many[0].process.pid()),
        resident(processors.many[1].process.pid()),
        resident(processors.floor[1].process.pid()),
    );
}

impl Processors {
    async fn start(dir: &Path, upstream: &str, many: usize) -> Self {
        let socket = |name: &str| format!("unix:{}", dir.join(name).display());
        let keys = format!("--state-keys={}", key_file(dir).display());
        eprintln!("putting {many} tokens into a store, which takes a while");
        let [one, all] = [dir.join("one"), dir.join("all")];
        people::fill(&one, 1, upstream).await;
        people::fill(&all, many, upstream).await;
        // Each process has a store of its own.
        let start = async |name: &str, like: &Path, flags: &[&str]| {
            let store = dir.join(name);
            for extension in ["", ".keys"] {
                let of = |path: &Path| format!("{}{extension}", path.display());
                std::fs::copy(of(like), of(&store)).expect("a copy of the store");
            }
            let store = format!("--store=file:{}", store.display());
            Cimd::start(&executable(), &[&WHO, flags, &[keys.as_str(), store.as_str()]].concat()).await
        };
        Self {
            floor: [
                Floor::start("bare-token", "127.0.0.1:0").await,
                Floor::start("bare-token", &socket("floor")).await,
            ],
            lean_floor: Floor::start("token", &socket("lean")).await,
            few: [
                start("store-of-tcp", &one, &["--insecure-traffic"]).await,
                start("store-of-unix", &one, &["--listen", &socket("few")]).await,
                start("store-of-few-never", &one, &["--listen", &socket("few-never"), NEVER_KEPT]).await,
            ],
            many: [
                start("store-of-kept", &all, &["--listen", &socket("kept"), KEPT]).await,
                start("store-of-never", &all, &["--listen", &socket("never"), NEVER_KEPT]).await,
            ],
        }
    }

    async fn variants(&self, envoy: &Envoy, has_refused: bool, everybody: usize) -> Vec<Variant<'_>> {
        let (turns, looked_up, beside) = (
            format!("as (m), {everybody} people in turn"),
            format!("as (m), none kept, {everybody} people"),
            format!("as (m), with the tokens of {everybody} people kept"),
        );
        let Self { floor: [floor_tcp, floor], lean_floor, few: [tcp, unix, few_never], many: [kept, never] } = self;
        let one = || People::new(1);
        let mut variants = Vec::new();
        for (key, name, listener, people, process) in [
            ("i", "no filter of ours", "none", one(), None),
            ("j", "the floor: always the same token, TCP", "floor-tcp", one(), Some(&floor_tcp.process)),
            ("k", "envoy-cimd, TCP", "tcp", one(), Some(&tcp.process)),
            ("l", "the floor, Unix socket", "floor", one(), Some(&floor.process)),
            ("m", "envoy-cimd, Unix socket", "unix", one(), Some(&unix.process)),
            ("n", "as (m), and who learns of refusals", "refused", one(), Some(&unix.process)),
            ("o", &turns, "kept", People::new(everybody), Some(&kept.process)),
            ("p", "as (m), none kept, one person", "few-never", one(), Some(&few_never.process)),
            ("p beside", "as (p), with the tokens of all in the store", "never", one(), Some(&never.process)),
            ("p many", &looked_up, "never", People::new(everybody), Some(&never.process)),
            ("q", "`ext_authz`, always the same token", "authz", one(), Some(&floor.process)),
            ("r", "as (l), with envoy-cimd's own gRPC", "lean", one(), Some(&lean_floor.process)),
            ("s", &beside, "kept", one(), Some(&kept.process)),
        ] {
            let before = match key {
                "o" | "s" => Some(People::new(everybody)),
                _ => None,
            };
            if listener == "refused" && !has_refused {
                eprintln!("(n): the printed configuration has no {REFUSED}");
                continue;
            }
            let came = process.is_some().then(|| people::authorization(0));
            variants.push(Variant {
                key,
                name: format!("({}) {name}", &key[..1]),
                host: Host::One(HOST.to_owned()),
                address: envoy.listener(listener).await,
                path: "/mcp".to_owned(),
                accept: None,
                people: Some(people),
                before,
                expected: Expected::Upstream(came),
                process,
            });
        }
        variants
    }
}

/// The name of the filter that learns of refusals.
const REFUSED: &str = "envoy-cimd-refused";
const EXT_AUTHZ: &str = "envoy.filters.http.ext_authz";

/// The whole configuration; a processor's cluster has the name of its listener.
fn configuration(certificates: &Certificates, processors: &Processors, upstream: &str) -> Value {
    let Processors { floor: [floor_tcp, floor], lean_floor, few: [tcp, unix, few_never], many: [kept, never] } =
        processors;
    // A socket is logged as it is bound, with or without its scheme.
    let socket = |address: &str| format!("unix:{}", address.trim_start_matches("unix:"));
    let (floor, lean, unix) = (socket(&floor.address), socket(&lean_floor.address), socket(&unix.ext_proc));
    let (without, with) = (Between::Traffic { refused: false }, Between::Traffic { refused: true });
    let mut whole: Option<Value> = None;
    for (name, processor, between) in [
        ("none", &unix, &Between::Nothing),
        ("floor-tcp", &floor_tcp.address, &without),
        ("tcp", &tcp.ext_proc, &without),
        ("floor", &floor, &without),
        ("unix", &unix, &without),
        ("refused", &unix, &with),
        ("kept", &socket(&kept.ext_proc), &without),
        ("few-never", &socket(&few_never.ext_proc), &without),
        ("never", &socket(&never.ext_proc), &without),
        ("authz", &floor, &Between::ExtAuthz),
        ("lean", &lean, &without),
    ] {
        let route = format!("--route=from=https://{HOST},to={upstream}");
        let mut config = printed(certificates, name, processor, &[&route, WHO[0], "--insecure-traffic"]);
        match between {
            Between::Traffic { refused: true } => {}
            Between::Traffic { refused: false } => without_filters(&mut config, |filter| filter == REFUSED),
            Between::ExtAuthz => {
                let ext_authz = ext_authz(filter(&mut config, "envoy-cimd-traffic"), name);
                without_filters(&mut config, is_ours);
                list(&mut manager(&mut config)["http_filters"]).insert(0, ext_authz);
            }
            Between::Nothing => without_filters(&mut config, is_ours),
        }
        list(&mut manager(&mut config)["http_filters"]).insert(0, people::who());
        let listener = plain(name, config["static_resources"]["listeners"][0].clone());
        let clusters = list(&mut config["static_resources"]["clusters"]).clone();
        let whole = &mut whole.get_or_insert(config)["static_resources"];
        list(&mut whole["listeners"]).push(listener);
        let known = list(&mut whole["clusters"]);
        for cluster in clusters {
            // All have the same upstream.
            if !known.iter().any(|other| other["name"] == cluster["name"]) {
                known.push(cluster);
            }
        }
    }
    whole.expect("listeners")
}

fn is_ours(filter: &str) -> bool {
    filter.starts_with("envoy-cimd")
}

fn filter<'a>(config: &'a mut Value, name: &str) -> &'a Value {
    let filters = list(&mut manager(config)["http_filters"]);
    filters.iter().find(|filter| filter["name"] == name).expect("a filter")
}

/// Takes filters out, and what routes say of them.
fn without_filters(config: &mut Value, is_out: impl Fn(&str) -> bool) {
    let name = |filter: &Value| filter["name"].as_str().expect("a name").to_owned();
    list(&mut manager(config)["http_filters"]).retain(|filter| !is_out(&name(filter)));
    for route in routes(config) {
        let Some(filters) = route.get_mut("typed_per_filter_config") else { continue };
        filters.as_object_mut().expect("an object").retain(|name, _| !is_out(name));
        if filters.as_object().is_some_and(serde_json::Map::is_empty) {
            remove(route, "typed_per_filter_config");
        }
    }
}

/// Envoy's filter for who would put the token in with it: it sends what the one of traffic sends.
fn ext_authz(traffic: &Value, cluster: &str) -> Value {
    let headers = &traffic["typed_config"]["forward_rules"]["allowed_headers"];
    assert!(headers.is_object(), "the headers that are forwarded");
    json!({"name": EXT_AUTHZ, "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz",
        "transport_api_version": "V3",
        "grpc_service": {"envoy_grpc": {"cluster_name": cluster, "authority": "floor"}, "timeout": "1s"},
        "allowed_headers": headers,
        "metadata_context_namespaces": [NAMESPACE],
        "route_metadata_context_namespaces": ["envoy_cimd"],
    }})
}
