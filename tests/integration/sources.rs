//! Each source that may name a route, through a real Envoy, and which wins.

use std::path::Path;

use http::Version;
use serde_json::{Value, json};

use crate::{
    stack::{Call, get},
    world::{DISCONNECT, DOCUMENT, START, Wish, World, http_filters, list, metadata, virtual_hosts, without_metadata},
};

const NOTES: &str = "https://notes.localhost/.well-known/mcp-client-metadata.json";
const OTHER: &str = "https://other.localhost/.well-known/mcp-client-metadata.json";

fn found(client_id: &str) -> (u16, Option<String>) {
    (200, Some(client_id.to_owned()))
}

/// The route of the document in a virtual host.
fn document_route(host: &mut Value) -> &mut Value {
    let routes = host["routes"].as_array_mut().expect("routes");
    routes.iter_mut().find(|route| route["match"]["path"] == DOCUMENT).expect("the document's route")
}

/// What came through of Envoy's configuration and the file's is listed, each route said once, and nothing of an upstream.
#[tokio::test]
async fn routes_that_were_seen_are_listed() {
    let dir = tempfile::tempdir().expect("a folder");
    let config = dir.path().join("config.yaml");
    let routes = "routes:\n- from: https://file.localhost\n  to: https://up.localhost/SECRET/mcp\n";
    std::fs::write(&config, routes).expect("written");
    let edit = |config: &mut Value| {
        for host in virtual_hosts(config) {
            if host["name"] == "notes.localhost" {
                metadata(host)["to"] = "https://up.localhost/SECRET/mcp".into();
            }
        }
    };
    let flags = ["--config", config.to_str().expect("text")];
    let mut world = World::start(Wish { cimd: &flags, edit: &edit, ..Wish::default() }).await;
    for _ in 0..3 {
        assert_eq!(world.document("notes.localhost").await.0, 200);
    }
    let said = world.cimd.process.line(|line| line.contains("\"attributes\"").then(|| line.to_owned())).await;
    assert!(said.contains("\"connects\"") && said.contains("https://notes.localhost"), "{said}");
    let (status, body) = get(world.cimd.admin.parse().expect("an address"), "/routes").await.expect("an answer");
    let listed: Value = serde_json::from_slice(&body).expect("JSON");
    let of = |from: &str, source: &str| json!({"from": format!("https://{from}"), "source": source, "route_id": from, "state": "connects"});
    assert_eq!(status, 200);
    assert_eq!(
        listed["routes"],
        json!([of("notes.localhost", "attributes"), of("file.localhost", "file")]),
        "{listed}"
    );
    let output = world.cimd.process.output();
    assert_eq!(output.matches("\"attributes\"").count(), 1, "{output}");
    assert!(output.contains("https://file.localhost") && !output.contains("SECRET"), "{output}");
}

#[tokio::test]
async fn the_level_that_sets_from_gives_all_keys() {
    let edit = |config: &mut Value| {
        for host in virtual_hosts(config) {
            match host["name"].as_str() {
                // All on the route.
                Some("notes.localhost") => {
                    document_route(host)["metadata"] = json!({"filter_metadata": {"envoy_cimd": {
                        "from": "https://notes.localhost", "client_name": "Of the route"}}});
                    host.as_object_mut().expect("a virtual host").remove("metadata");
                }
                // The virtual host gives `from`, so it gives all: what the route says of the name counts for nothing.
                Some("tickets.localhost") => {
                    document_route(host)["metadata"] =
                        json!({"filter_metadata": {"envoy_cimd": {"client_name": "Of the route"}}});
                    metadata(host)["client_name"] = "Of the virtual host".into();
                }
                // The route gives `from`, so it gives all: the virtual host's `to` and name are its neighbour's.
                Some("other.localhost") => {
                    metadata(host)["from"] = "https://wrong.localhost".into();
                    metadata(host)["client_name"] = "Of the virtual host".into();
                    for route in list(&mut host["routes"]) {
                        route["metadata"] =
                            json!({"filter_metadata": {"envoy_cimd": {"from": "https://other.localhost"}}});
                    }
                }
                // A value of the wrong type is an error, not a reason to look elsewhere.
                Some("broken.localhost") => {
                    document_route(host)["metadata"] = json!({"filter_metadata": {"envoy_cimd": {"from": 5}}});
                }
                _ => {}
            }
        }
    };
    let routes = ["notes", "tickets", "other", "broken"].map(|name| format!("from=https://{name}.localhost"));
    let routes = routes.each_ref().map(String::as_str);
    let world = World::start(Wish { routes: &routes, edit: &edit, ..Wish::default() }).await;
    assert_eq!(world.document("notes.localhost").await, found(NOTES));
    assert_eq!(world.document("other.localhost").await, found(OTHER));
    assert_eq!(world.document("broken.localhost").await, (500, None));
    for (host, name) in [
        ("notes.localhost", "Of the route"),
        ("tickets.localhost", "Of the virtual host"),
        ("other.localhost", "Pomerium MCP Proxy - other.localhost"),
    ] {
        let answer = world.https().send(Version::HTTP_2, Call::get(host, DOCUMENT)).await;
        let body: Value = serde_json::from_slice(&answer.expect("an answer").body).expect("JSON");
        assert_eq!(body["client_name"], name, "{host}");
    }
    // Without a `to` of its own it leads nowhere, and never to its neighbour's.
    for call in [Call::get("other.localhost", START), Call::get("other.localhost", DISCONNECT).method("POST")] {
        let answer = world.https().send(Version::HTTP_2, call.header("sec-fetch-site", "same-origin")).await;
        let body: Value = serde_json::from_slice(&answer.expect("an answer").body).expect("JSON");
        assert_eq!(body["error"], "misconfigured_route");
    }
    let said = world.cimd.process.output();
    assert!(said.contains("`to` is missing"), "{said}");
}

/// Replaces a file as Kubernetes does: the name is a symbolic link that flips to another folder.
fn flip(link: &Path, content: &str) {
    let dir = link.parent().expect("a folder");
    let target = tempfile::Builder::new().prefix("..data").tempdir_in(dir).expect("a folder").keep().join("file");
    std::fs::write(&target, content).expect("the new content");
    let fresh = dir.join("..fresh");
    std::os::unix::fs::symlink(target, &fresh).expect("a link");
    std::fs::rename(fresh, link).expect("the flip");
}

#[tokio::test]
async fn the_config_file_and_its_changes() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("config.yaml");
    flip(&file, "document_max_age: 60\nroutes:\n- from: https://notes.localhost\n");
    let flags = ["--config", file.to_str().expect("text")];
    let mut world = World::start(Wish { cimd: &flags, edit: &without_metadata, ..Wish::default() }).await;
    assert_eq!(world.document("notes.localhost").await, found(NOTES));
    assert_eq!(world.document("tickets.localhost").await, (500, None), "not in the file");
    assert_eq!(world.metric("envoy_cimd_reload_ok{file=\"config\"}").await, Some(1));

    flip(&file, "document_max_age: 60\nroutes: [{from: 'https://tickets.localhost:8443'}]\n");
    world.cimd.process.line(|line| line.contains("read again").then_some(())).await;
    assert_eq!(world.document("notes.localhost").await, (500, None), "no longer in the file");
    let (status, client_id) = world.document("tickets.localhost").await;
    assert_eq!((status, client_id.is_some()), (200, true));

    // A bad file, in each way that it can be bad: named in the log, counted, and the last good one stays.
    for (bad, reason) in [
        (
            "routes: [{from: 'http://tickets.localhost'}]\n",
            "routes[0] (http://tickets.localhost): `from` must be https",
        ),
        ("routes: [{from: 'https://a.localhost', form: x}]\n", "form"),
        ("rotues: []\n", "there is no setting `rotues`"),
        ("routes: [\n", "unclosed bracket '[' at line 1, column 9"),
    ] {
        flip(&file, bad);
        let line = world.cimd.process.line(|line| line.contains(reason).then(|| line.to_owned())).await;
        assert!(line.contains("WARN") && line.contains(file.to_str().expect("text")), "{line}");
        assert_eq!(world.document("tickets.localhost").await.0, 200);
        assert_eq!(world.metric("envoy_cimd_reload_ok{file=\"config\"}").await, Some(0));
    }
    std::fs::remove_file(&file).expect("removed");
    world.cimd.process.line(|line| line.contains("No such file").then_some(())).await;
    assert_eq!(world.document("tickets.localhost").await.0, 200);
    assert_eq!(world.metric("envoy_cimd_reloads_total{file=\"config\",result=\"failed\"}").await, Some(5));

    flip(&file, "document_max_age: 61\nroutes: [{from: 'https://notes.localhost'}]\n");
    world.cimd.process.line(|line| line.contains("take effect at the next start").then_some(())).await;
    assert_eq!(world.document("notes.localhost").await, found(NOTES));
    assert_eq!(world.metric("envoy_cimd_reload_ok{file=\"config\"}").await, Some(1));
}

/// A filter that writes dynamic metadata, as any filter may.
fn write_dynamic_metadata(config: &mut Value) {
    http_filters(config).insert(
        0,
        json!({"name": "set_metadata", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.set_metadata.v3.Config",
            "metadata": [{"metadata_namespace": "envoy_cimd", "value": {"from": "https://other.localhost"}}],
        }}),
    );
}

#[tokio::test]
async fn dynamic_metadata_only_where_it_is_allowed() {
    let edit = |config: &mut Value| {
        without_metadata(config);
        write_dynamic_metadata(config);
    };
    let routes = &["from=https://other.localhost"];
    for (flags, expected) in [(&[][..], (500, None)), (&["--dynamic-metadata"][..], found(OTHER))] {
        // Envoy sends it either way: the refusal is ours.
        let world =
            World::start(Wish { routes, cimd: flags, envoy_config: &["--dynamic-metadata"], edit: &edit }).await;
        assert_eq!(world.document("other.localhost").await, expected, "{flags:?}");
    }
}

#[tokio::test]
async fn the_first_source_wins_whole() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("config.yaml");
    std::fs::write(&file, "routes: [{from: 'https://notes.localhost', client_name: Of the file}]\n").expect("a file");
    let flags = ["--config", file.to_str().expect("text"), "--dynamic-metadata"];
    let edit = |config: &mut Value| {
        write_dynamic_metadata(config);
        for host in virtual_hosts(config) {
            if host["name"] == "notes.localhost" {
                host.as_object_mut().expect("a virtual host").remove("metadata");
            }
        }
    };
    let routes = &["from=https://notes.localhost", "from=https://tickets.localhost", "from=https://other.localhost"];
    let world = World::start(Wish { routes, cimd: &flags, envoy_config: &["--dynamic-metadata"], edit: &edit }).await;
    assert_eq!(world.document("notes.localhost").await, found(NOTES), "the file before dynamic metadata");
    let tickets = "https://tickets.localhost/.well-known/mcp-client-metadata.json";
    assert_eq!(world.document("tickets.localhost").await, found(tickets), "attributes before dynamic metadata");
}
