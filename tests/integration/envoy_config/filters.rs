//! Our filters: what each is told, of what it is asked, and when it is on.

use envoy_cimd::{filter::request::Header, model::route::Key};
use serde_json::{Value, json};

use super::{OF_MCP, ONE, SOCKET, config_with_own_keys, filter, names, parsed, route, switched, validate};
use crate::world::{CALLBACK, DISCONNECT, DOCUMENT, START, http_filters, run};

/// Each filter of requests is told its role, and no more of a request than that role reads.
#[test]
fn what_envoy_is_asked_for() {
    let config = &mut parsed(&["envoy-config", SOCKET, ONE, "--user-namespace=people", "--dynamic-metadata"]);
    assert_eq!(
        names(http_filters(config)),
        [
            "envoy-cimd",
            "envoy-cimd-traffic-trailers",
            "envoy-cimd-refused",
            "envoy-cimd-traffic",
            "envoy.filters.http.router"
        ],
        "none stands between the token and the upstream"
    );
    for (name, role, longest, mode_override, unread) in [
        ("envoy-cimd", "endpoints", "15s", Value::Null, &[][..]),
        ("envoy-cimd-traffic", "traffic", "25s", json!(true), &["client_name", "scope", "prompt"]),
    ] {
        let filter = filter(config, name);
        assert_eq!(filter["disabled"], true, "{name} is on by route alone");
        let told = &filter["typed_config"];
        assert_eq!(told["grpc_service"]["initial_metadata"], json!([{"key": "envoy-cimd-role", "value": role}]));
        assert_eq!(told["failure_mode_allow"], false);
        assert_eq!(told["status_on_error"], json!({"code": 503}));
        assert_eq!(told["max_message_timeout"], longest);
        assert_eq!(told["allow_mode_override"], mode_override);
        assert_eq!(
            told["processing_mode"],
            json!({
                "request_header_mode": "SEND",
                "response_header_mode": "SKIP",
                "request_body_mode": "NONE",
                "response_body_mode": "NONE",
                "request_trailer_mode": "SKIP",
                "response_trailer_mode": "SKIP",
            })
        );
        let patterns = told["forward_rules"]["allowed_headers"]["patterns"].as_array().expect("headers");
        let headers: Vec<&str> = patterns.iter().filter_map(|pattern| pattern["exact"].as_str()).collect();
        assert_eq!(headers.len(), patterns.len(), "exact names alone");
        for needed in [":authority", ":method", ":path", ":scheme", "origin", "x-forwarded-proto", "x-request-id"] {
            assert!(headers.contains(&needed), "{name} {needed}");
        }
        for secret in ["authorization", "proxy-authorization", "mcp-session-id"] {
            assert!(!headers.contains(&secret), "{name} {secret}");
        }
        assert_eq!(headers.contains(&"cookie"), role == "endpoints");
        let attributes = told["request_attributes"].as_array().expect("attributes");
        let keys = Key::ALL.into_iter().filter(|key| !unread.contains(&key.name()));
        let of_key = |key: Key| {
            ["route", "virtual_host"]
                .map(|of| json!(format!("xds.{of}_metadata.filter_metadata['envoy_cimd']['{}']", key.name())))
        };
        assert_eq!(attributes, &keys.flat_map(of_key).collect::<Vec<_>>());
        let namespaces = &told["metadata_options"];
        assert_eq!(namespaces["forwarding_namespaces"]["untyped"], json!(["envoy_cimd", "people"]));
        let tags = if role == "traffic" { json!(["envoy_cimd_traffic"]) } else { Value::Null };
        assert_eq!(namespaces["receiving_namespaces"]["untyped"], tags);
    }
    assert_eq!(
        filter(config, "envoy-cimd")["typed_config"]["forward_rules"]["allowed_headers"]["patterns"]
            .as_array()
            .expect("headers")
            .len(),
        Header::OF_ENDPOINTS.len()
    );
    let trailers = &filter(config, "envoy-cimd-traffic-trailers")["typed_config"]["mutations"];
    assert_eq!(
        trailers,
        &json!({"request_trailers_mutations": [
            {"remove": "authorization"}, {"remove": "cookie"}, {"remove": "proxy-authorization"},
        ]})
    );
    assert_eq!(switched(route(config, "/mcp")), OF_MCP);
    for path in [DOCUMENT, START, CALLBACK, DISCONNECT] {
        assert_eq!(switched(route(config, path)), ["envoy-cimd"], "{path}");
    }
}

/// The filter of answers is told no more of them than is read, and never of one that is Envoy's own.
#[test]
fn what_envoy_is_asked_for_of_answers() {
    let config = &mut parsed(&["envoy-config", SOCKET, ONE, "--user-namespace=people", "--dynamic-metadata"]);
    let filter = filter(config, "envoy-cimd-refused");
    assert_eq!(filter["disabled"], true, "it is on by route alone");
    let told = &filter["typed_config"]["extension_config"]["typed_config"];
    assert_eq!(told["grpc_service"]["initial_metadata"], json!([{"key": "envoy-cimd-role", "value": "refused"}]));
    assert_eq!((&told["failure_mode_allow"], &told["status_on_error"]), (&json!(false), &json!({"code": 503})));
    assert_eq!(told["max_message_timeout"], "15s");
    assert_eq!(
        told["processing_mode"],
        json!({
            "request_header_mode": "SKIP",
            "response_header_mode": "SEND",
            "request_body_mode": "NONE",
            "response_body_mode": "NONE",
            "request_trailer_mode": "SKIP",
            "response_trailer_mode": "SKIP",
        })
    );
    let headers = &told["forward_rules"]["allowed_headers"]["patterns"];
    assert_eq!(*headers, json!([{"exact": ":status"}, {"exact": "www-authenticate"}]));
    let attributes = told["response_attributes"].as_array().expect("attributes");
    for key in Key::ALL {
        for of in ["route", "virtual_host"] {
            let attribute = json!(format!("xds.{of}_metadata.filter_metadata['envoy_cimd']['{}']", key.name()));
            let is_read = !["client_name", "prompt"].contains(&key.name());
            assert_eq!(attributes.contains(&attribute), is_read, "{attribute}");
        }
    }
    assert!(attributes.contains(&json!("response.code_details")));
    for secret in ["authorization", "cookie", "mcp-session-id"] {
        assert!(!attributes.contains(&json!(format!("request.headers['{secret}']"))), "{secret}");
    }
    assert_eq!(
        told["metadata_options"],
        json!({"forwarding_namespaces": {"untyped": ["envoy_cimd", "people", "envoy_cimd_traffic"]}})
    );
}

/// Where nobody would listen to it, there is no such filter, and Envoy takes the challenge away by itself.
#[test]
fn a_listener_without_the_role_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("config.yaml");
    for (roles, is_on) in [("[endpoints, traffic]", false), ("[endpoints, traffic, refused]", true)] {
        std::fs::write(&file, format!("listen: unix:/run/cimd.sock\nroles: {roles}\n")).expect("written");
        let config = &mut parsed(&["envoy-config", ONE, "--config", file.to_str().expect("text")]);
        assert_eq!(names(http_filters(config)).contains(&"envoy-cimd-refused"), is_on, "{roles}");
        let route = route(config, "/mcp");
        assert_eq!(switched(route).contains(&"envoy-cimd-refused"), is_on, "{roles}");
        let removed = route["response_headers_to_remove"].as_array().expect("headers");
        assert_eq!(removed.contains(&json!("www-authenticate")), !is_on, "{roles}");
        let (taken, words) = validate(&config_with_own_keys(config, dir.path()));
        assert!(taken, "{words}");
    }
}

/// A route that switches one on would switch on the other.
#[test]
fn filters_of_one_name_are_refused() {
    for args in [
        ["--filter-name=a", "--traffic-filter-name=a"],
        ["--filter-name=a-trailers", "--traffic-filter-name=a"],
        ["--filter-name=a", "--refused-filter-name=a"],
        ["--refused-filter-name=a", "--traffic-filter-name=a"],
        ["--refused-filter-name=a-trailers", "--traffic-filter-name=a"],
    ] {
        let (code, stdout, stderr) = run(&["envoy-config", ONE, SOCKET, args[0], args[1]], &[]);
        assert_eq!((code, stdout.as_str()), (Some(1), ""), "{args:?}");
        assert!(stderr.contains("--filter-name, --traffic-filter-name and --refused-filter-name"), "{stderr}");
    }
}
