//! Where a request's route and user come from.

use http::Version;
use serde_json::{Value, json};

use super::{
    Answer::{Refused, Told},
    REFUSED, check,
};
use crate::{
    gateway::{ANNA, Ask, BERT, Gateway, NOBODY, Setup, VERSIONS},
    world::{START, http_filters, list, metadata, virtual_hosts, without_metadata},
};

/// Everybody is one person, and still the token is the route's.
#[tokio::test]
async fn a_single_user() {
    let gateway = Gateway::start(Setup { single_user: true, ..Setup::default() }).await;
    let list = Ask::post(r#"{"jsonrpc":"2.0","id":7,"method":"tools/list"}"#);
    for version in VERSIONS {
        check(&gateway.send(version, &list).await, &Told(json!(7)), "nobody is connected");
    }
    assert_eq!(gateway.upstream.reached(), 0);
    let code = gateway.connect("https://notes.localhost", "notes", NOBODY).await;
    for (version, who) in VERSIONS.into_iter().zip([NOBODY, BERT]) {
        assert_eq!(gateway.send(version, &list.clone().by(who)).await.status, 200);
        assert_eq!(gateway.token_of(&gateway.upstream.came_alone()), code);
    }
    gateway.finish().await;
}

/// The config file's routes are told apart by their paths, whole segments of them, however wide Envoy's own routes are.
#[tokio::test]
async fn routes_of_the_config_file() {
    let routes = [("https://other.localhost/a", "a"), ("https://other.localhost/a/b", "b")];
    let edit = |config: &mut Value| {
        without_metadata(config);
        for host in virtual_hosts(config) {
            let routes = list(&mut host["routes"]);
            for route in routes.iter_mut() {
                route.as_object_mut().expect("a route").remove("metadata");
            }
            // All that is no path of ours goes to one upstream, which is to see whose token came.
            if let Some(route) = routes.iter().find(|route| route.get("route").is_some()).cloned() {
                let mut wide = route;
                wide["match"] = json!({"prefix": "/"});
                wide["route"].as_object_mut().expect("an action").remove("prefix_rewrite");
                routes.retain(|route| route.get("route").is_none() && route["match"]["path"] != "/");
                routes.push(wide);
            }
        }
    };
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("config.yaml");
    std::fs::write(&file, "routes: []\n").expect("a file");
    let serve = ["--config", file.to_str().expect("text")];
    let lies = routes.iter().map(|(_, name)| crate::authorization_server::Lie::none(name)).collect();
    let mut gateway =
        Gateway::start(Setup { routes: &routes, lies, serve: &serve, edit: &edit, ..Setup::default() }).await;
    let list = |path: &str| Ask::post(r#"{"jsonrpc":"2.0","id":7,"method":"tools/list"}"#).at("other.localhost", path);
    check(&gateway.send(Version::HTTP_2, &list("/a")).await, &Refused(500, REFUSED), "no route");
    let written = routes.map(|(from, name)| format!("- {{from: '{from}', to: '{}'}}\n", gateway.upstream.url(name)));
    std::fs::write(&file, format!("routes:\n{}", written.concat())).expect("a file");
    gateway.world.cimd.process.line(|line| line.contains("read again").then_some(())).await;

    let mut codes = Vec::new();
    for (from, name) in routes {
        codes.push(gateway.connect(from, name, ANNA).await);
    }
    for version in VERSIONS {
        for (path, code) in [
            ("/a", Some(&codes[0])),
            ("/a?x=/a/b", Some(&codes[0])),
            ("/a/", Some(&codes[0])),
            ("/a/c", Some(&codes[0])),
            ("/a/bc", Some(&codes[0])),
            ("/a/%62", Some(&codes[0])),
            ("/a/b", Some(&codes[1])),
            ("/a/b/c?d", Some(&codes[1])),
            ("/ab", None),
            ("/A", None),
            ("/%61", None),
            ("//a", None),
            ("/", None),
            ("/b", None),
        ] {
            let what = format!("{path} over {version:?}");
            let reached = gateway.upstream.reached();
            let answered = gateway.send(version, &list(path)).await;
            match code {
                Some(code) => {
                    assert_eq!(answered.status, 200, "{what}: {answered:?}");
                    assert_eq!(&gateway.token_of(&gateway.upstream.came_alone()), code, "{what}");
                }
                None => {
                    check(&answered, &Refused(500, REFUSED), &what);
                    assert_eq!(gateway.upstream.reached(), reached, "{what}");
                }
            }
            let told = gateway.send(version, &list(path).by(BERT)).await;
            assert_eq!(told.status, if code.is_some() { 200 } else { 500 }, "{what}");
            let link = match code {
                Some(code) if *code == codes[0] => format!("https://other.localhost/a{START}"),
                _ => format!("https://other.localhost/a/b{START}"),
            };
            assert_eq!(told.text().contains(&format!("{link} ")), code.is_some(), "{what}: {}", told.text());
        }
    }
    gateway.finish().await;
}

/// A filter may name the route, where the operator lets it.
#[tokio::test]
async fn routes_of_dynamic_metadata() {
    for is_allowed in [false, true] {
        let edit = |config: &mut Value| {
            let to = virtual_hosts(config).first_mut().map(|host| metadata(host)["to"].clone());
            without_metadata(config);
            let value = json!({"from": "https://notes.localhost", "to": to.expect("a host")});
            http_filters(config).insert(
                0,
                json!({"name": "set_metadata", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.set_metadata.v3.Config",
                    "metadata": [{"metadata_namespace": "envoy_cimd", "value": value}],
                }}),
            );
        };
        let serve: &[&str] = if is_allowed { &["--dynamic-metadata"] } else { &[] };
        let setup = Setup { serve, envoy_config: &["--dynamic-metadata"], edit: &edit, ..Setup::default() };
        let gateway = Gateway::start(setup).await;
        let list = Ask::post(r#"{"jsonrpc":"2.0","id":7,"method":"tools/list"}"#);
        for version in VERSIONS {
            let answered = gateway.send(version, &list.clone().by(BERT)).await;
            check(&answered, &if is_allowed { Told(json!(7)) } else { Refused(500, REFUSED) }, "not connected");
        }
        assert_eq!(gateway.upstream.reached(), 0);
        if is_allowed {
            let code = gateway.connect_anna().await;
            for version in VERSIONS {
                assert_eq!(gateway.send(version, &list).await.status, 200);
                assert_eq!(gateway.token_of(&gateway.upstream.came_alone()), code);
            }
        }
        gateway.finish().await;
    }
}
