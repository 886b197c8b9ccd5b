//! Several routes on one host: under paths of their own, through a real Envoy, from each source.

use std::sync::Arc;

use envoy_cimd::{
    contract::choreographer::Choreographer,
    exchange::embedded::{self, Embedded},
    filter::{
        endpoint::{Config, Endpoints},
        state::StateKeys,
    },
    model::{paths::Paths, route::RouteSpec, route_table::RouteTable, secret::Key, user::Users},
    store::vault,
};
use envoy_types::pb::envoy::service::ext_proc::v3::processing_response::Response;
use http::Version;
use serde_json::{Value, json};

use crate::{
    choreographer::ISSUER,
    flow::Flows,
    raw_http2,
    stack::{
        Answered, Call, Client, Envoy,
        in_process::{CALLBACK, DOCUMENT, answer, attribute, message},
    },
    world::{
        DISCONNECT, START, Wish, World, executable, http_filters, list, manager, run, virtual_hosts, without_metadata,
    },
};

const HOST: &str = "notes.localhost";
/// On one host: with a path, with the same in another case, with one below that, and without.
const FROMS: [&str; 4] = [
    "https://notes.localhost/linear",
    "https://notes.localhost/Linear",
    "https://notes.localhost/linear/v1.x",
    "https://notes.localhost",
];
const ROUTES: [&str; 4] = [
    "from=https://notes.localhost/linear",
    "from=https://notes.localhost/Linear",
    "from=https://notes.localhost/linear/v1.x",
    "from=https://notes.localhost",
];

fn path_of(from: &str) -> &str {
    from.trim_start_matches("https://notes.localhost")
}

fn json_of(answer: &Answered) -> Value {
    serde_json::from_slice(&answer.body).unwrap_or_default()
}

/// Every endpoint of a route, and its MCP address, are under its `from`.
async fn is_whole(flows: &Flows, version: Version, from: &str) {
    let path = path_of(from);
    let call = |of: &str| Call::get(HOST, &format!("{path}{of}"));
    let send = async |call| flows.world.https().send(version, call).await.expect("an answer");
    let press = |of: &str| call(of).method("POST").header("sec-fetch-site", "same-origin");

    let document = json_of(&send(call(DOCUMENT)).await);
    assert_eq!(document["client_id"], format!("{from}{DOCUMENT}"), "{version:?}");
    assert_eq!(document["client_uri"], from);
    assert_eq!(document["client_name"], format!("Pomerium MCP Proxy - {}", from.trim_start_matches("https://")));
    assert_eq!(document["redirect_uris"], json!([format!("{from}{CALLBACK}")]));

    let page = send(call(START).header("accept", "text/html")).await;
    let named = format!("<bdi>Pomerium MCP Proxy - {}</bdi>", &from["https://".len()..]);
    assert!(page.status == 200 && page.text().contains(&named), "{page:?}");

    let begun = send(press(&format!("{START}?return_to=/after&issuer={ISSUER}"))).await;
    let location = url::Url::parse(&begun.all("location").join("")).expect("a URL");
    let parameter =
        |name| location.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned()).expect(name);
    assert_eq!(parameter("client_id"), format!("{from}{DOCUMENT}"));
    assert_eq!(parameter("redirect_uri"), format!("{from}{CALLBACK}"));
    let cookie = begun.all("set-cookie").join("");
    assert!(cookie.contains("; Path=/;") && cookie.starts_with("__Host-"), "{cookie}");
    let cookie = cookie.split(';').next().expect("a pair").to_owned();
    let back = call(&format!("{CALLBACK}?code=c&state={}", parameter("state"))).header("cookie", cookie);
    let completed = send(back).await;
    assert_eq!((completed.status, completed.all("location")), (303, vec!["/after"]));
    assert!(
        send(call(CALLBACK).header("accept", "text/html")).await.text().contains(&format!("href=\"{path}{START}\""))
    );

    let disconnected = send(press(DISCONNECT)).await;
    assert_eq!((disconnected.status, disconnected.all("location")), (303, vec![&*format!("{path}{START}")]));
    let last = flows.fake.disconnects().pop().expect("a call");
    assert_eq!(last.client_id, format!("{from}{DOCUMENT}"));

    let mcp = if path.is_empty() { "/mcp" } else { path };
    let before = flows.world.upstream.seen().len();
    let answer = send(Call::get(HOST, &format!("{mcp}?session=1")).method("POST")).await;
    assert_eq!((answer.status, answer.all("content-security-policy")), (200, vec!["sandbox"]));
    assert_eq!(flows.world.upstream.seen().get(before..).expect("calls"), ["POST /mcp?session=1"], "rewritten");
}

#[tokio::test]
async fn from_attributes() {
    let flows = Flows::of(&ROUTES, &["--single-user"]).await;
    for version in [Version::HTTP_11, Version::HTTP_2] {
        for from in FROMS {
            is_whole(&flows, version, from).await;
        }
    }
    let send = async |call| flows.world.https().send(Version::HTTP_2, call).await.expect("an answer");
    // The host's root is nobody's, and for people.
    assert_eq!(send(Call::get(HOST, "/")).await.status, 200);
    // A worker of one route would see what comes to the others.
    assert_eq!(send(Call::get(HOST, "/linear").header("service-worker", "script")).await.status, 403);
    let before = flows.world.upstream.seen().len();
    for path in [
        &format!("/sentry{DOCUMENT}"),
        &format!("/LINEAR{DOCUMENT}"),
        &format!("/linear/{DOCUMENT}"),
        &format!("//linear{DOCUMENT}"),
        &format!("/linear;x{DOCUMENT}"),
        &format!("/linear%2f{}", &DOCUMENT[1..]),
        &format!("/%6cinear{DOCUMENT}"),
        &format!("/sentry/../linear{DOCUMENT}"),
        &format!("/linear/.{DOCUMENT}"),
        "/linear/",
        "/linear/mcp",
        "/sentry",
        "/Linear/v1.x",
    ] {
        let answer = send(Call::get(HOST, path)).await;
        assert_eq!((answer.status, answer.text()), (404, ""), "{path}");
    }
    assert_eq!(flows.world.upstream.seen().len(), before, "nothing else goes on");
    let passed = flows.world.metric("envoy_cimd_passed_through_total").await;
    assert_eq!(passed, Some(0), "Envoy asked of nothing else");
}

/// Waits until the config file was read anew so many times.
async fn has_read(flows: &Flows, times: u64) {
    while flows.world.metric("envoy_cimd_reloads_total{file=\"config\",result=\"ok\"}").await.unwrap_or(0) < times {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn from_the_config_file() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("config.yaml");
    std::fs::write(&file, "routes: []\n").expect("written");
    let edit = |config: &mut Value| {
        without_metadata(config);
        for host in virtual_hosts(config) {
            list(&mut host["routes"])
                .iter_mut()
                .for_each(|route| drop(route.as_object_mut().expect("a route").remove("metadata")));
        }
    };
    let flows =
        Flows::of_edited(&ROUTES, &["--single-user", "--config", file.to_str().expect("text")], &[], &edit).await;
    let to = &flows.world.upstream.url;
    let routes: String = FROMS.iter().map(|from| format!("- {{from: '{from}', to: '{to}'}}\n")).collect();
    std::fs::write(&file, format!("routes:\n{routes}")).expect("written");
    has_read(&flows, 1).await;
    for version in [Version::HTTP_11, Version::HTTP_2] {
        for from in FROMS {
            is_whole(&flows, version, from).await;
        }
    }
    // A route that leaves the file: its host has others, so its paths are not ours any more, and go nowhere.
    std::fs::write(&file, format!("routes:\n- {{from: 'https://notes.localhost', to: '{to}'}}\n")).expect("written");
    has_read(&flows, 2).await;
    let mut gone = Call::get(HOST, &format!("/linear{CALLBACK}?code=c&state=s"));
    let answer = flows.world.https().send(Version::HTTP_2, gone.clone()).await.expect("an answer");
    assert_eq!((answer.status, &json_of(&answer)["error"]), (503, &json!("unavailable")));
    gone.path = CALLBACK.to_owned();
    assert_eq!(flows.world.https().send(Version::HTTP_2, gone).await.expect("an answer").status, 400);
}

#[tokio::test]
async fn from_dynamic_metadata() {
    let edit = |config: &mut Value| {
        let to = list(&mut config["static_resources"]["clusters"])
            .iter()
            .find(|cluster| cluster["name"].as_str().is_some_and(|name| name.starts_with("upstream")))
            .map(|cluster| cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]["port_value"].clone());
        let to = format!("http://127.0.0.1:{}/mcp", to.expect("an upstream"));
        without_metadata(config);
        http_filters(config).insert(
            0,
            json!({"name": "set_metadata", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.set_metadata.v3.Config",
                "metadata": [{"metadata_namespace": "envoy_cimd", "value": {"from": FROMS[0], "to": to}}],
            }}),
        );
    };
    let flows =
        Flows::of_edited(&[ROUTES[0]], &["--single-user", "--dynamic-metadata"], &["--dynamic-metadata"], &edit).await;
    for version in [Version::HTTP_11, Version::HTTP_2] {
        is_whole(&flows, version, FROMS[0]).await;
    }
}

/// Where Envoy mends paths before it matches them, what it then asks for is answered, and the rest is nobody's.
#[tokio::test]
async fn an_envoy_that_mends_paths() {
    let edit = |config: &mut Value| {
        let manager = manager(&mut config["static_resources"]["listeners"][0]);
        manager["normalize_path"] = true.into();
        manager["merge_slashes"] = true.into();
    };
    let flows = Flows::of_edited(&ROUTES, &["--single-user"], &[], &edit).await;
    for version in [Version::HTTP_11, Version::HTTP_2] {
        is_whole(&flows, version, FROMS[0]).await;
        for (path, client_id) in [
            (format!("/sentry/../linear{DOCUMENT}"), Some(FROMS[0])),
            (format!("//linear//{}", &DOCUMENT[1..]), Some(FROMS[0])),
            (format!("/linear/..{DOCUMENT}"), Some(FROMS[3])),
            (format!("/%6cinear{DOCUMENT}"), Some(FROMS[0])),
            (format!("/%4cinear{DOCUMENT}"), Some(FROMS[1])),
            (format!("/linear%2f..{DOCUMENT}"), None),
            (format!("/linear;x{DOCUMENT}"), None),
        ] {
            let answer = flows.world.https().send(version, Call::get(HOST, &path)).await.expect("an answer");
            let expected = client_id.map(|from| json!(format!("{from}{DOCUMENT}"))).unwrap_or_default();
            assert_eq!(json_of(&answer)["client_id"], expected, "{path} {version:?} {answer:?}");
            assert!(client_id.is_some() || answer.status == 404, "{path} {answer:?}");
        }
    }
}

/// The path makes the document too large: that route is misconfigured, and its neighbour is not.
#[tokio::test]
async fn a_path_of_two_thousand_bytes() {
    let long = format!("from=https://notes.localhost/{}", "x".repeat(2000));
    let world = World::start(Wish { routes: &[&long, ROUTES[0]], ..Wish::default() }).await;
    let send = async |path: &str| world.https().send(Version::HTTP_2, Call::get(HOST, path)).await.expect("an answer");
    let answer = send(&format!("/{}{DOCUMENT}", "x".repeat(2000))).await;
    assert_eq!((answer.status, &json_of(&answer)["error"]), (500, &json!("misconfigured_route")));
    assert_eq!(send(&format!("/linear{DOCUMENT}")).await.status, 200);
    let (code, _, stderr) = run(&["envoy-config", "--static-cimd", "--route", &long], &[]);
    assert!(code == Some(1) && stderr.contains("the document would take 8"), "{stderr}");
}

/// What the filter itself makes of a request, without an Envoy that would have kept it back.
#[test]
fn which_paths_are_ours() {
    let specs = FROMS[..3].iter().copied().chain(["https://tickets.localhost:8443/linear"]).map(|from| {
        let mut spec = RouteSpec::default();
        spec.set("from", from.to_owned()).expect("a key");
        spec
    });
    let table = RouteTable::new(&specs.collect::<Vec<_>>(), &Paths::default()).expect("good routes");
    let store = vault::Config { state_dir: Some("/dev/null/envoy-cimd".into()), ..vault::Config::default() };
    let embedded: Arc<dyn Choreographer> =
        Arc::new(Embedded::new(embedded::Config { store, ..embedded::Config::default() }).expect("good settings"));
    let config = Config { users: Users::Single, ..Config::default() };
    let keys = StateKeys::new(vec![Key::new([1; 32])]);
    let endpoints = Arc::new(Endpoints::new(config, table, keys, embedded, Arc::default(), Default::default()));
    let (linear, no_attributes) = ("https://notes.localhost/linear", None);
    for (authority, path, from, expected) in [
        // The config file's.
        ("notes.localhost", format!("/linear{DOCUMENT}"), no_attributes, "served"),
        ("notes.localhost:443", format!("/linear/v1.x{DOCUMENT}"), None, "served"),
        ("notes.localhost:8443", format!("/linear{DOCUMENT}"), None, "misdirected_request"),
        ("tickets.localhost", format!("/linear{DOCUMENT}"), None, "served"),
        ("notes.localhost", DOCUMENT.to_owned(), None, ""),
        ("notes.localhost", format!("/sentry{DOCUMENT}"), None, ""),
        ("notes.localhost", format!("/LINEAR{DOCUMENT}"), None, ""),
        ("notes.localhost", format!("/linear/..{DOCUMENT}"), None, ""),
        ("notes.localhost", "/linear".to_owned(), None, ""),
        ("notes.localhost", format!("/linear{DOCUMENT}/"), None, ""),
        // A host that nobody knows: whoever asked us of it was to say what it is.
        ("other.localhost", format!("/linear{CALLBACK}?code=c"), None, "misconfigured_route"),
        ("other.localhost", DOCUMENT.to_owned(), None, "misconfigured_route"),
        ("other.localhost", "/linear".to_owned(), None, ""),
        // The matched route's own word comes before the file's.
        ("notes.localhost", format!("/linear{DOCUMENT}"), Some(linear), "served"),
        ("notes.localhost", format!("/linear/v1.x{DOCUMENT}"), Some(linear), ""),
        ("notes.localhost", DOCUMENT.to_owned(), Some(linear), ""),
        ("other.localhost", format!("/linear{DOCUMENT}"), Some(linear), "misdirected_request"),
        // One that is wrong has no path that could be compared.
        (
            "notes.localhost",
            format!("/linear{DOCUMENT}"),
            Some("https://notes.localhost/linear/"),
            "misconfigured_route",
        ),
        ("notes.localhost", format!("/linear{CALLBACK}"), Some("https://notes.localhost/a//b"), "misconfigured_route"),
        ("notes.localhost", format!("/a;b{DOCUMENT}"), Some("https://notes.localhost/a;b"), "misconfigured_route"),
        ("notes.localhost", "/linear".to_owned(), Some("https://notes.localhost/linear/"), ""),
    ] {
        let pairs = [(":method", "GET"), (":path", path.as_str()), (":authority", authority), (":scheme", "https")];
        let attributes: Vec<_> = from.map(|from| (attribute("route", "from"), from)).into_iter().collect();
        let label = match answer(&endpoints, message(&pairs, &attributes)).response {
            Some(Response::ImmediateResponse(reply)) => reply.details,
            _ => String::new(),
        };
        assert_eq!(label.trim_start_matches("envoy_cimd_"), expected, "{authority}{path} {from:?}");
    }
}

/// Whatever the order of the routes, a request without a port means port 443; and IPv6 literals too.
#[tokio::test]
async fn two_ports_of_one_host() {
    const NAMES: [&str; 2] = ["notes.localhost", "[2001:db8::1]"];
    let routes = NAMES.map(|name| [format!("from=https://{name}:8443"), format!("from=https://{name}")]).concat();
    let [forward, backward] = [routes.iter().collect::<Vec<_>>(), routes.iter().rev().collect()];
    for (routes, flags) in [(&forward, &[][..]), (&backward, &[]), (&forward, &["--static-cimd"])] {
        let routes: Vec<&str> = routes.iter().map(|route| route.as_str()).collect();
        let edit = |config: &mut Value| {
            let text = config.to_string();
            assert!(!text.contains("strip_any_host_port") && !text.contains("strip_matching_host_port"));
        };
        let world = World::start(Wish { routes: &routes, envoy_config: flags, edit: &edit, ..Wish::default() }).await;
        for name in NAMES {
            for (authority, from) in [
                (name.to_owned(), format!("https://{name}")),
                (format!("{name}:443"), format!("https://{name}")),
                (format!("{name}:8443"), format!("https://{name}:8443")),
            ] {
                let call = Call::get(HOST, DOCUMENT).authority(authority.clone());
                for version in [Version::HTTP_11, Version::HTTP_2] {
                    let answer = world.https().send(version, call.clone()).await.expect("an answer");
                    assert_eq!(json_of(&answer)["client_id"], format!("{from}{DOCUMENT}"), "{authority} {flags:?}");
                }
            }
            let other = Call::get(HOST, DOCUMENT).authority(format!("{name}:9"));
            assert_eq!(world.https().send(Version::HTTP_2, other).await.expect("an answer").status, 421);
        }
    }
}

/// What an Envoy does that strips the port, and that `probe` says so.
#[tokio::test]
async fn an_envoy_that_strips_the_port() {
    let edit = |config: &mut Value| {
        manager(&mut config["static_resources"]["listeners"][0])["strip_any_host_port"] = true.into();
    };
    let routes = &["from=https://notes.localhost:8443", "from=https://notes.localhost"];
    let world = World::start(Wish { routes, edit: &edit, ..Wish::default() }).await;
    let codes = probed(&world, "https://notes.localhost:8443").await;
    assert!(codes.contains(&"other_port".to_owned()), "{codes:?}");
}

/// An Envoy that takes our headers away, or the etag of who accepts gzip, is found by `probe`; and a route under a path
/// is found by its `from`.
#[tokio::test]
async fn what_probe_finds_of_envoys_configuration() {
    let forbid = |config: &mut Value| {
        let filters = http_filters(config);
        let ours = filters.iter_mut().find(|filter| filter["name"] == "envoy-cimd").expect("our filter");
        ours["typed_config"]["mutation_rules"] = json!({"disallow_all": true});
    };
    let compress = |config: &mut Value| {
        http_filters(config).insert(
            0,
            json!({"name": "compressor", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.compressor.v3.Compressor",
                "compressor_library": {"name": "gzip", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.compression.gzip.compressor.v3.Gzip"}},
            }}),
        );
    };
    type Edit<'a> = &'a (dyn Fn(&mut Value) + Sync);
    let rows: [(Edit<'_>, &str); 3] = [(&forbid, "mutation_rules"), (&compress, "etag_gzip"), (&|_| {}, "")];
    for (edit, code) in rows {
        let world = World::start(Wish { routes: &ROUTES[..2], edit, ..Wish::default() }).await;
        let codes = probed(&world, FROMS[0]).await;
        assert!(if code.is_empty() { codes.is_empty() } else { codes.contains(&code.to_owned()) }, "{code}: {codes:?}");
    }
}

/// The codes of what `probe` finds, with the world's own Envoy behind the URL.
async fn probed(world: &World, url: &str) -> Vec<String> {
    let (ca, envoy) = (world.certificates.ca.to_str().expect("text"), world.envoy.https.to_string());
    let args = ["probe", url, "--extra-ca", ca, "--connect-to", &envoy, "--json"];
    let output = tokio::process::Command::new(executable()).args(args).output().await.expect("it runs");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["client_id"], format!("{url}{DOCUMENT}"));
    let findings = report["findings"].as_array().expect("findings");
    findings.iter().map(|finding| finding["code"].as_str().expect("a code").to_owned()).collect()
}

/// Another ext_proc filter that is disabled, of the usual name and before or behind ours, is not asked of our paths. With
/// our filter under that name it would be.
#[tokio::test]
async fn another_ext_proc_filter_is_not_called() {
    const USUAL: &str = "envoy.filters.http.ext_proc";
    for (ours, first, called) in [("envoy-cimd", true, false), ("envoy-cimd", false, false), (USUAL, true, true)] {
        let other = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = other.local_addr().expect("an address").port();
        let (count, counted) = tokio::sync::watch::channel(0);
        tokio::spawn(async move {
            while let Ok((connection, _)) = other.accept().await {
                count.send_modify(|count| *count += 1);
                drop(connection);
            }
        });
        let edit = |config: &mut Value| {
            let mut cluster = list(&mut config["static_resources"]["clusters"])[0].clone();
            assert_eq!(cluster["name"], "envoy-cimd");
            cluster["name"] = "other".into();
            cluster["load_assignment"]["cluster_name"] = "other".into();
            cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]["socket_address"] =
                json!({"address": "127.0.0.1", "port_value": port});
            // Its health would be asked for as well.
            cluster.as_object_mut().expect("a cluster").remove("health_checks");
            list(&mut config["static_resources"]["clusters"]).push(cluster);
            let filters = http_filters(config);
            let mut filter = filters.iter().find(|filter| filter["name"] == ours).expect("our filter").clone();
            filter["name"] = USUAL.into();
            filter["typed_config"]["grpc_service"]["envoy_grpc"]["cluster_name"] = "other".into();
            // The router is the last.
            filters.insert(if first { 0 } else { filters.len() - 1 }, filter);
        };
        let flags = ["--filter-name", ours];
        let flows = Flows::of_edited(&ROUTES[..1], &["--single-user"], &flags, &edit).await;
        if called {
            let answer =
                flows.world.https().send(Version::HTTP_2, Call::get(HOST, &format!("/linear{DOCUMENT}"))).await;
            assert!(
                answer.expect("an answer").status != 200 && *counted.borrow() > 0,
                "a test that cannot fail is none"
            );
        } else {
            is_whole(&flows, Version::HTTP_2, FROMS[0]).await;
            assert_eq!(*counted.borrow(), 0);
        }
    }
}

/// A raw byte in a query, which only HTTP/2 brings: refused as any other bad query, and not passed through.
#[tokio::test]
async fn a_path_that_is_no_text() {
    let flows = Flows::of(&ROUTES, &["--single-user"]).await;
    for (path, method, status, endpoint, label) in [
        (format!("/linear{CALLBACK}?code=\u{ff}&state=x"), "GET", 400, "callback", "bad_request"),
        (format!("/linear{START}?return_to=/\u{ff}"), "GET", 400, "start", "bad_request"),
        (format!("{DOCUMENT}?\u{ff}"), "GET", 404, "document", "not_found"),
        (format!("{CALLBACK}?\u{ff}"), "POST", 405, "callback", "method_not_allowed"),
    ] {
        // Each character is a byte of its own.
        let path: Vec<u8> = path.chars().map(|char| u8::try_from(char).expect("a byte")).collect();
        let body = raw_http2::send(&flows.world, HOST, method, &path).await;
        let shown: Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(shown["error"], label, "{status}");
        assert_eq!(flows.labelled(endpoint, label).await, 1);
    }
    assert!(flows.fake.calls().is_empty() && flows.world.upstream.seen().is_empty());
    assert_eq!(flows.world.metric("envoy_cimd_passed_through_total").await, Some(0));
}

/// `localhost` is where a server is that listens on 127.0.0.1 alone, as processor and as upstream.
#[tokio::test]
async fn localhost_in_to_and_processor() {
    let by_name = |config: &mut Value| {
        for cluster in list(&mut config["static_resources"]["clusters"]) {
            assert!(cluster["dns_lookup_family"].is_null(), "of an address there is one");
        }
    };
    let world = World::start(Wish { edit: &by_name, ..Wish::default() }).await;
    let port = |address: &str| address.rsplit(':').next().expect("a port").trim_end_matches("/mcp").to_owned();
    let processor = format!("localhost:{}", port(&world.cimd.ext_proc));
    let route = format!("from=https://notes.localhost/linear,to=http://localhost:{}/mcp", port(&world.upstream.url));
    let named = envoy_config_of(&world, &["--processor", &processor, "--route", &route]);
    assert_eq!(named.matches("V4_PREFERRED").count(), 2, "{named}");
    let dir = tempfile::tempdir().expect("a folder");
    let envoy = Envoy::start(dir.path(), &named).await;
    let client = Client::tls(envoy.https, &world.certificates.ca);
    let send = async |path: &str| client.send(Version::HTTP_2, Call::get(HOST, path)).await.expect("an answer");
    assert_eq!(send(&format!("/linear{DOCUMENT}")).await.status, 200);
    assert_eq!((send("/linear").await.status, world.upstream.seen()), (200, vec!["GET /mcp".to_owned()]));
}

/// What `envoy-config` prints with these flags, on free ports, with the certificates of a world.
fn envoy_config_of(world: &World, flags: &[&str]) -> String {
    let [cert, key] = [&world.certificates.cert, &world.certificates.key].map(|path| path.to_str().expect("text"));
    let fixed =
        ["envoy-config", "--https-listen=127.0.0.1:0", "--http-listen=127.0.0.1:0", "--envoy-admin=127.0.0.1:0"];
    let certificates = ["--downstream-cert", cert, "--downstream-key", key];
    let (code, stdout, stderr) = run(&[&fixed, &certificates, flags].concat(), &[]);
    assert_eq!(code, Some(0), "{stderr}");
    stdout
}
