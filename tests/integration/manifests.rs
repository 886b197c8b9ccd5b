//! The manifests under envoy/: what of them is Envoy's own is what `envoy-config` prints, and works in a real Envoy.
//!
//! `make manifests` holds them to the schemas of their kinds.

use std::{io::Write, path::Path};

use http::Version;
use serde_json::{Value, json};

use crate::{
    envoy_config::printed,
    flow::{Flows, honest, press},
    stack::{Call, Certificates},
    world::{DOCUMENT, START, Wish, World, http_filters, run, virtual_hosts, without_metadata},
};

const FILTER: &str = "envoy.filters.http.ext_proc";
const NOTES: &str = "notes.localhost";

/// The documents of a manifest that are of a kind.
fn documents(file: &str, kind: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("envoy").join(file);
    let text = std::fs::read_to_string(path).expect(file);
    let documents = text.split("\n---\n").map(|document| serde_saphyr::from_str::<Value>(document).expect(document));
    documents.filter(|document| document["kind"] == kind).collect()
}

fn document(file: &str, kind: &str) -> Value {
    let [document] = &documents(file, kind)[..] else { panic!("one {kind} in {file}") };
    document.clone()
}

fn printed_filter(cluster: &str) -> Value {
    let user = "--user-namespace=envoy.filters.http.jwt_authn";
    let filters = printed(&["envoy-config", "--part=filter", user, "--cluster", cluster]);
    serde_saphyr::from_str::<Value>(&filters).expect("YAML")[0].clone()
}

/// The values of an EnvoyFilter's patches of a kind.
fn istio_patches(apply_to: &str, operation: &str) -> Vec<Value> {
    let filter = document("istio/envoy-cimd.yaml", "EnvoyFilter");
    let patches = filter["spec"]["configPatches"].as_array().expect("patches").iter();
    let patches = patches.filter(|patch| patch["applyTo"] == apply_to).map(|patch| &patch["patch"]);
    patches
        .inspect(|patch| assert_eq!(patch["operation"], operation, "{apply_to}"))
        .map(|patch| patch["value"].clone())
        .collect()
}

#[tokio::test]
async fn istio() {
    let [filter] = &istio_patches("HTTP_FILTER", "INSERT_BEFORE")[..] else { panic!("one filter") };
    let [host] = &istio_patches("VIRTUAL_HOST", "MERGE")[..] else { panic!("one host") };
    // The last that is put first is the first.
    let routes: Vec<Value> = istio_patches("HTTP_ROUTE", "INSERT_FIRST").into_iter().rev().collect();

    let cluster = "outbound|9001||envoy-cimd.envoy-cimd.svc.cluster.local";
    assert_eq!(filter, &printed_filter(cluster));
    let route = "--route=from=https://mcp.example.com,to=https://mcp.internal.example/mcp";
    let hosts: Value = serde_saphyr::from_str(&printed(&["envoy-config", "--part=routes", route])).expect("YAML");
    assert_eq!(host["metadata"], hosts[0]["metadata"]);
    assert_eq!(routes, hosts[0]["routes"].as_array().expect("routes")[..4]);

    // As Istio would merge it; its name for the cluster is one that no `:authority` may be.
    let world = World::start(Wish {
        edit: &|config| {
            let filters = http_filters(config);
            let ours = filters.iter().position(|filter| filter["name"] == FILTER).expect("our filter");
            filters[ours] = filter.clone();
            virtual_hosts(config).insert(
                0,
                json!({"name": "mcp.example.com:443", "domains": ["mcp.example.com", "mcp.example.com:443"],
                    "metadata": host["metadata"], "routes": routes}),
            );
        },
        cimd: &[
            "--user-namespace=envoy.filters.http.jwt_authn",
            "--user-issuer=payload.iss",
            "--user-subject=payload.sub",
        ],
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
    let answer = send(START, ("accept", "*/*")).await;
    assert!(answer.status == 403 && answer.text().contains("user_unknown"), "{answer:?}");
    assert_eq!(send(DOCUMENT, ("service-worker", "script")).await.status, 403);
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
        "name": format!("{FILTER}/envoyextensionpolicy/{}/{}/extproc/0", part(namespace), part(name)),
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
    let (plain, ours) = (envoy_gateways_filter(), printed_filter("envoy-cimd"));
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
            let ours = filters.iter().position(|filter| filter["name"] == FILTER).expect("our filter");
            filters[ours] = filter.clone();
            for route in
                virtual_hosts(config).iter_mut().flat_map(|host| host["routes"].as_array_mut().expect("routes"))
            {
                if !route["typed_per_filter_config"][FILTER].is_null() {
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

#[test]
fn kubernetes() {
    let file = "kubernetes/envoy-cimd.yaml";
    let dir = tempfile::tempdir().expect("a folder");
    let path = |path: &Path| path.to_str().expect("text").to_owned();
    let certificates = Certificates::make(dir.path(), &["envoy-cimd"]);
    let keys = dir.path().join("keys");
    std::fs::write(&keys, envoy_cimd::secret::generate_key_line().expect("a key")).expect("written");
    let text = document(file, "ConfigMap")["data"]["envoy-cimd.yaml"].as_str().expect("a config file").to_owned();
    let config = dir.path().join("envoy-cimd.yaml");
    let secrets = documents(file, "Secret");
    let store = secrets.iter().find_map(|secret| secret["stringData"]["url"].as_str()).expect("a store");
    let check = |keys: &Path| {
        let text = text
            .replace("/etc/envoy-cimd/tls/tls.crt", &path(&certificates.cert))
            .replace("/etc/envoy-cimd/tls/tls.key", &path(&certificates.key))
            .replace("/etc/envoy-cimd/tls/ca.crt", &path(&certificates.ca))
            .replace("/etc/envoy-cimd/keys/state.keys", &path(keys))
            .replace("/etc/envoy-cimd/keys/encryption.keys", &path(keys));
        assert!(!text.contains("/etc/"), "{text}");
        std::fs::write(&config, text).expect("written");
        run(&["check", "--config", &path(&config)], &[("ENVOY_CIMD_STORE", store)])
    };
    let (code, stdout, stderr) = check(&keys);
    assert_eq!((code, stderr.as_str()), (Some(0), ""), "{stdout}");
    // The keys that stand in the manifest are none.
    for key in ["state.keys", "encryption.keys"] {
        let unset = secrets.iter().find_map(|secret| secret["stringData"][key].as_str()).expect(key);
        std::fs::write(&keys, unset).expect("written");
        assert_eq!(check(&keys).0, Some(1), "{key}");
    }

    let settings: Value = serde_saphyr::from_str(&text).expect("YAML");
    let pod = &document(file, "Deployment")["spec"]["template"]["spec"];
    let seconds = |value: &Value| value.as_u64().expect("seconds");
    let stop = seconds(&settings["drain_delay"]) + seconds(&settings["drain_timeout"]);
    assert!(seconds(&pod["terminationGracePeriodSeconds"]) > stop, "killed before it has stopped");
    let port =
        |listen: &str| settings[listen].as_str().expect("an address").rsplit(':').next().expect("a port").to_owned();
    let ports: Vec<String> = pod["containers"][0]["ports"]
        .as_array()
        .expect("ports")
        .iter()
        .map(|port| port["containerPort"].to_string())
        .collect();
    assert_eq!(ports, [port("listen"), port("admin_listen")]);
}
