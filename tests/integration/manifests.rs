//! The manifests under envoy/: what of them is Envoy's own is what `envoy-config` prints, and works in a real Envoy.
//!
//! `make manifests` holds them to the schemas of their kinds.

use std::{io::Write, path::Path};

use envoy_cimd::commands::settings::{self, Task};
use http::Version;
use serde_json::{Value, json};

use crate::{
    envoy_config::printed,
    flow::{Flows, honest, press},
    recipes::{ISSUER, keys, signed},
    stack::Call,
    world::{CALLBACK, DISCONNECT, DOCUMENT, START, Wish, World, http_filters, virtual_hosts, without_metadata},
};

/// What the filter is called in what we print.
const OURS: &str = "envoy-cimd";
const NOTES: &str = "notes.localhost";
/// What `envoy-cimd` is told of people, with Envoy Gateway and with Istio.
const USER: [&str; 3] =
    ["--user-namespace=envoy.filters.http.jwt_authn", "--user-issuer=people.iss", "--user-subject=people.sub"];
/// How long the last spans may take, and then some.
const AFTER_THE_DRAIN: u64 = 2 + 5;

pub fn file(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect(path)
}

pub fn documents(text: &str) -> Vec<Value> {
    text.split("\n---\n").map(|document| serde_saphyr::from_str(document).expect(document)).collect()
}

/// The one document of a manifest that is of a kind.
fn document(manifest: &str, kind: &str) -> Value {
    let documents = documents(&file(&format!("envoy/{manifest}")));
    let [document] = &documents.iter().filter(|document| document["kind"] == kind).collect::<Vec<_>>()[..] else {
        panic!("one {kind} in {manifest}")
    };
    (*document).clone()
}

/// How Envoy reaches envoy-cimd as a service: nobody else may ask for tokens.
const MTLS: [&str; 4] = [
    "--processor=envoy-cimd.envoy-cimd.svc.cluster.local:9001",
    "--processor-ca=ca.crt",
    "--processor-cert=tls.crt",
    "--processor-key=tls.key",
];

fn printed_filters(cluster: &str) -> Vec<Value> {
    let user = "--user-namespace=envoy.filters.http.jwt_authn";
    let filters = printed(&[&["envoy-config", "--part=filter", user, "--cluster", cluster], &MTLS[..]].concat());
    serde_saphyr::from_str(&filters).expect("YAML")
}

/// The values of an EnvoyFilter's patches of a kind.
fn istio_patches(apply_to: &str, operation: &str) -> Vec<Value> {
    let filter = document("istio/envoy-cimd.yaml", "EnvoyFilter");
    let patches = filter["spec"]["configPatches"].as_array().expect("patches").iter();
    let patches = patches.filter(|patch| patch["applyTo"] == apply_to).map(|patch| &patch["patch"]);
    let patches = patches.filter(|patch| patch["operation"] == operation);
    patches.map(|patch| patch["value"].clone()).collect()
}

#[tokio::test]
async fn istio() {
    let [people, ours @ ..] = &istio_patches("HTTP_FILTER", "INSERT_BEFORE")[..] else { panic!("filters") };
    let [host] = &istio_patches("VIRTUAL_HOST", "MERGE")[..] else { panic!("one host") };
    // The last that is put first is the first.
    let routes: Vec<Value> = istio_patches("HTTP_ROUTE", "INSERT_FIRST").into_iter().rev().collect();

    let cluster = "outbound|9001||envoy-cimd.envoy-cimd.svc.cluster.local";
    let printed_filters = printed_filters(cluster);
    assert_eq!(ours, printed_filters);
    let route = "--route=from=https://mcp.example.com,to=https://mcp.internal.example/mcp";
    let hosts = printed(&[&["envoy-config", "--part=routes", route], &MTLS[..]].concat());
    let hosts: Value = serde_saphyr::from_str(&hosts).expect("YAML");
    assert_eq!(host["metadata"], hosts[0]["metadata"]);
    let mut ours = routes.clone();
    let with_people = ours.iter_mut().filter_map(|route| {
        let configs = route.get_mut("typed_per_filter_config")?.as_object_mut()?;
        configs.remove(people["name"].as_str()?).map(|_| route["match"]["path"].clone())
    });
    assert_eq!(with_people.collect::<Vec<_>>(), [START, CALLBACK, DISCONNECT]);
    let printed = hosts[0]["routes"].as_array().expect("routes");
    assert_eq!(ours, printed[..5]);
    let [merged] = &istio_patches("HTTP_ROUTE", "MERGE")[..] else { panic!("one route") };
    let mut on = merged["typed_per_filter_config"].clone();
    let asked = on.as_object_mut().expect("filters").remove(people["name"].as_str().expect("a name"));
    assert_eq!(asked.expect("who the client is for")["requirement_name"], "clients");
    assert_eq!(on, printed[5]["typed_per_filter_config"]);
    let virtual_service = document("istio/envoy-cimd.yaml", "VirtualService");
    let [http] = &virtual_service["spec"]["http"].as_array().expect("routes")[..] else { panic!("one route") };
    assert_eq!((&http["name"], &http["match"][0]["uri"]["exact"]), (&json!("mcp"), &printed[5]["match"]["path"]));
    assert_eq!(http["headers"]["request"]["remove"], printed[5]["request_headers_to_remove"]);
    assert_eq!(http["headers"]["response"]["remove"], printed[5]["response_headers_to_remove"]);

    // As Istio would merge it; its name for the cluster is one that no `:authority` may be.
    let (key, jwks) = keys();
    let mut people = people.clone();
    for provider in ["people", "clients"] {
        let provider = people["typed_config"]["providers"][provider].as_object_mut().expect("a provider");
        provider.remove("remote_jwks").expect("where the keys are");
        provider.insert("local_jwks".to_owned(), json!({"inline_string": jwks}));
    }
    // What puts tokens in has tests of its own.
    let mut mcp = json!({"match": {"path": "/mcp"}, "direct_response": {"status": 204}});
    mcp["typed_per_filter_config"] = merged["typed_per_filter_config"].clone();
    mcp["typed_per_filter_config"].as_object_mut().expect("filters").remove("envoy-cimd-traffic").expect("it is on");
    let world = World::start(Wish {
        edit: &|config| {
            let filters = http_filters(config);
            let ours = filters.iter().position(|filter| filter["name"] == OURS).expect("our filter");
            filters.splice(ours..=ours, [people.clone()].into_iter().chain(printed_filters.clone()));
            let routes: Vec<&Value> = routes.iter().chain([&mcp]).collect();
            virtual_hosts(config).insert(
                0,
                json!({"name": "mcp.example.com:443", "domains": ["mcp.example.com", "mcp.example.com:443"],
                    "metadata": host["metadata"], "routes": routes}),
            );
        },
        cimd: &USER,
        envoy_config: &["--cluster", cluster],
        ..Wish::default()
    })
    .await;
    let send = async |path: &str, header: (&'static str, &str)| {
        let call = Call::get(NOTES, path).authority("mcp.example.com").header(header.0, header.1);
        world.https().send(Version::HTTP_2, call).await.expect("an answer")
    };
    let answer = send(DOCUMENT, ("accept", "*/*")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.text().starts_with(r#"{"client_id":"https://mcp.example.com/"#), "{answer:?}");
    assert_eq!(send(DOCUMENT, ("service-worker", "script")).await.status, 403);

    let session = |expires: u64| {
        let claims = json!({"iss": ISSUER, "aud": "mcp-gateway", "sub": "ann", "exp": expires});
        format!("session={}", signed(&key, &claims))
    };
    let (good, old) = (session(4_000_000_000), session(1));
    for (path, statuses) in [
        (START, [200, 401, 401]),
        (CALLBACK, [400, 401, 401]),
        (DISCONNECT, [405, 401, 401]),
        (DOCUMENT, [200; 3]),
        // A page of the same site could send that cookie.
        ("/mcp", [401; 3]),
    ] {
        for (cookie, status) in [&good, &old, "none=1"].into_iter().zip(statuses) {
            let answer = send(path, ("cookie", cookie)).await;
            assert!(answer.status == status && answer.all("location").is_empty(), "{path} {cookie} {answer:?}");
        }
    }
    for (audience, statuses) in [("https://mcp.example.com/mcp", [204, 401]), ("mcp-gateway", [403, 401])] {
        let claims = json!({"iss": ISSUER, "aud": audience, "sub": "ann", "exp": 4_000_000_000_u64});
        let credentials = format!("Bearer {}", signed(&key, &claims));
        for (path, status) in ["/mcp", START].into_iter().zip(statuses) {
            let answer = send(path, ("authorization", &credentials)).await;
            assert_eq!(answer.status, status, "{path} {audience} {answer:?}");
        }
    }
}

/// The filter as Envoy Gateway makes it of the EnvoyExtensionPolicy, which was read from its source (1.9).
fn envoy_gateways_filter() -> Value {
    let policy = document("gateway/route.yaml", "EnvoyExtensionPolicy");
    let [ext_proc] = &policy["spec"]["extProc"].as_array().expect("ext_proc")[..] else { panic!("one") };
    assert_eq!(ext_proc["processingMode"], json!({"request": {}}), "the request's headers and nothing else");
    assert_eq!(ext_proc["failOpen"], false);
    let (namespace, name) = (&policy["metadata"]["namespace"], &policy["metadata"]["name"]);
    let part = |value: &Value| value.as_str().expect("text").to_owned();
    json!({
        "name": format!("envoy.filters.http.ext_proc/envoyextensionpolicy/{}/{}/extproc/0", part(namespace), part(name)),
        "disabled": true,
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor",
            "failure_mode_allow": false,
            "grpc_service": {
                "envoy_grpc": {"authority": "envoy-cimd.mcp", "cluster_name": "envoy-cimd"},
                "timeout": "10s",
            },
            "message_timeout": ext_proc["messageTimeout"],
            "metadata_options": {"forwarding_namespaces": {"untyped": ext_proc["metadata"]["accessibleNamespaces"]}},
            "processing_mode": {
                "request_header_mode": "SEND",
                "response_header_mode": "SKIP",
                "request_trailer_mode": "SKIP",
                "response_trailer_mode": "SKIP",
            },
            "status_on_error": {"code": ext_proc["statusOnError"]},
        },
    })
}

/// The filter after the EnvoyPatchPolicy.
fn patched(mut filter: Value) -> Value {
    let policy = document("gateway/patch.yaml", "EnvoyPatchPolicy");
    let name = filter["name"].as_str().expect("a name").to_owned();
    for patch in policy["spec"]["jsonPatches"].as_array().expect("patches") {
        let operation = &patch["operation"];
        assert_eq!(operation["jsonPath"], format!("..http_filters[?(@.name=='{name}')].typed_config"));
        assert_eq!(operation["op"], "add");
        let path = operation["path"].as_str().expect("a path").split('/').skip(1);
        *path.fold(&mut filter["typed_config"], |at, key| &mut at[key]) = operation["value"].clone();
    }
    filter
}

#[tokio::test]
async fn envoy_gateway() {
    let (plain, ours) = (envoy_gateways_filter(), printed_filters("envoy-cimd").remove(0));
    let patched = patched(plain.clone());
    for key in ["forward_rules", "message_timeout", "max_message_timeout", "metadata_options", "status_on_error"] {
        assert_eq!(patched["typed_config"][key], ours["typed_config"][key], "{key}");
    }
    assert_eq!(patched["typed_config"]["grpc_service"]["timeout"], ours["typed_config"]["grpc_service"]["timeout"]);

    let mut routes = tempfile::Builder::new().suffix(".yaml").tempfile().expect("a file");
    write!(routes, "routes: [{{from: 'https://{NOTES}', to: 'https://up.example/mcp'}}]").expect("written");
    for filter in [plain, patched] {
        let name = filter["name"].as_str().expect("a name");
        let edit = |config: &mut Value| {
            without_metadata(config);
            let filters = http_filters(config);
            let ours = filters.iter().position(|filter| filter["name"] == OURS).expect("our filter");
            filters[ours] = filter.clone();
            for route in
                virtual_hosts(config).iter_mut().flat_map(|host| host["routes"].as_array_mut().expect("routes"))
            {
                if !route["typed_per_filter_config"][OURS].is_null() {
                    route["typed_per_filter_config"] = json!({name: {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "config": {}}});
                }
            }
        };
        let file = routes.path().to_str().expect("text");
        let flows = Flows::with(&["--single-user", "--config", file], &edit).await;
        assert_eq!(flows.send(Call::get(NOTES, DOCUMENT)).await.status, 200);
        // envoy-cimd asks for more time, which this filter does not give: the message's own must do.
        let begun = flows.begin_as(press(NOTES, "")).await;
        assert_eq!(flows.send(honest(&begun)).await.status, 303);
        flows.finish().await;
    }
}

/// What the other manifests say of envoy-cimd as a service is so of the one that the chart made.
#[test]
fn kubernetes() {
    let manifest = "kubernetes/envoy-cimd.yaml";
    let text = document(manifest, "ConfigMap")["data"]["envoy-cimd.yaml"].as_str().expect("a config file").to_owned();
    let settings: Value = serde_saphyr::from_str(&text).expect("YAML");
    for flag in USER {
        let (key, value) = flag.trim_start_matches("--").split_once('=').expect("a value");
        assert_eq!(settings[key.replace('-', "_")], value, "as in ../istio");
    }
    let metadata = &document(manifest, "Service")["metadata"];
    let host = format!("{}.{}.svc.cluster.local", text_of(&metadata["name"]), text_of(&metadata["namespace"]));
    assert!(MTLS[0].contains(&format!("={host}:9001")), "{host}");
    let pod = &document(manifest, "Deployment")["spec"]["template"]["spec"];
    let seconds = |value: &Value| value.as_u64().expect("seconds");
    let stop = seconds(&settings["drain_delay"]) + seconds(&settings["drain_timeout"]) + AFTER_THE_DRAIN;
    assert!(seconds(&pod["terminationGracePeriodSeconds"]) >= stop, "killed before it has stopped");
}

fn text_of(value: &Value) -> &str {
    value.as_str().expect("text")
}

/// A file that is applied again would overwrite them.
#[test]
fn no_manifest_holds_a_secret() {
    let mut seen = 0;
    for folder in ["gateway", "istio", "kubernetes"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("envoy").join(folder);
        for entry in std::fs::read_dir(path).expect(folder) {
            let path = entry.expect("a file").path();
            for document in documents(&std::fs::read_to_string(&path).expect("text")) {
                assert!(document["kind"].is_string() && document["kind"] != "Secret", "{}", path.display());
                seen += 1;
            }
        }
    }
    assert!(seen > 20);
}

#[test]
fn nothing_is_killed_before_it_has_stopped() {
    let parsed = settings::parse::parse(["envoy-cimd", "serve"].map(Into::into)).expect("settings");
    let Task::Serve(serve) = parsed.task else { panic!("serve") };
    let stop = u64::from(serve.process.drain_delay) + u64::from(serve.process.drain_timeout) + AFTER_THE_DRAIN;
    for (path, before, after) in [
        ("docker-compose.yml", "stop_grace_period: ", "s\n"),
        ("docs/deploy.md", "Compose `stop_grace_period` of ", " s "),
    ] {
        let text = file(path);
        let seconds = text.split(before).nth(1).and_then(|rest| rest.split(after).next()).expect(before);
        assert!(seconds.parse::<u64>().expect("seconds") >= stop, "{path}: {seconds}");
    }
}
