//! What is said of the routes of a config file.

use super::{file, path_of};
use crate::world::run;

/// What is wrong with the value of a key is said with the key and the route, wherever an operator writes it.
#[test]
fn bad_values_of_a_route_are_named() {
    let character = "has a character that no scope has: they are visible ASCII without `\"` and `\\`";
    let prompts = "must be `none`, or some of `login`, `consent` and `select_account` with a space between two";
    let (long, wide) = (format!("https://a.example/{}", "x".repeat(2048)), "x".repeat(4097));
    for (key, value, problem) in [
        ("to", "ftp://b.example", "must be an http or https URL"),
        ("authorization_server", "https://as.example/?a", "must not have a query"),
        ("resource", "", "is empty"),
        ("resource", "/mcp", "is not an absolute URI"),
        ("resource", "mcp.example.com/mcp", "is not an absolute URI"),
        ("resource", "https://mcp.example.com/a b", "is not an absolute URI"),
        ("resource", "https://mcp.example.com/mcp#tools", "must not have a fragment"),
        ("resource", "https://user:pw@mcp.example.com", "must not have a user name or password"),
        ("resource", &long, "takes more than 2048 bytes"),
        ("scope", "", "is empty"),
        ("scope", "  ", "names no scope"),
        ("scope", "read \"all\"", character),
        ("scope", "read\\write", character),
        ("scope", "lésen", character),
        ("scope", &wide, "takes more than 4096 bytes"),
        ("prompt", "", "is empty"),
        ("prompt", "None", prompts),
        ("prompt", "none login", prompts),
        ("prompt", "create", prompts),
    ] {
        let spec = serde_json::json!({"from": "https://b.example", key: value});
        let bad = file(&format!("routes: [{{from: 'https://a.example'}}, {spec}]\n"));
        let route = format!("--route=from=https://b.example,{key}={value}");
        let place = |index| format!("routes[{index}] (https://b.example): `{key}` {problem}\n");
        for (args, said) in [
            (["check", "--config", path_of(&bad)], place(1)),
            (["envoy-config", "--config", path_of(&bad)], place(1)),
            (["envoy-config", "--part=routes", &route], place(0)),
        ] {
            let (code, stdout, stderr) = run(&args, &[]);
            assert_eq!((code, stdout.as_str()), (Some(1), ""), "{args:?}");
            assert!(stderr.ends_with(&said), "{args:?} {stderr}");
            assert!(!stderr.contains("pw@"), "a password is not repeated: {stderr}");
        }
    }
    // Another type than a text, where a file could have one.
    let bad = file("routes: [{from: 'https://b.example', scope: [read, write]}]\n");
    let (code, _, stderr) = run(&["check", "--config", path_of(&bad)], &[]);
    assert!(code == Some(1) && stderr.contains("expected string scalar at line 1, column "), "{stderr}");
}

/// A claim that may be somebody else's one day is no name for whose tokens are kept.
#[test]
fn a_subject_that_may_change_hands_is_named() {
    for (claim, is_warned) in [("sub", false), ("oid", false), ("email", true), ("preferred_username", true)] {
        let lines = format!("user_namespace: n\nuser_issuer: jwt_payload.iss\nuser_subject: jwt_payload.{claim}\n");
        let file = file(&lines);
        let (code, stdout, stderr) = run(&["check", "--config", path_of(&file)], &[]);
        assert_eq!(code, Some(0), "{stderr}");
        let warning =
            format!("\nwarning: `user_subject` is jwt_payload.{claim}, which another person may have one day");
        assert_eq!((stdout.contains(&warning), stdout.matches("warning").count()), (is_warned, usize::from(is_warned)));
    }
}

/// What depends on how Envoy is configured is said, and nothing where nothing does.
#[test]
fn hosts_that_routes_share_are_named() {
    let ports = "a.example has routes on the ports 443, 8443: an Envoy that sets strip_any_host_port";
    let site = "2 routes share https://a.example, which is one site to a browser";
    for (froms, expected) in [
        (&["https://a.example", "https://b.example:8443"][..], &[][..]),
        (&["https://a.example:8443", "https://a.example"], &[ports]),
        (&["https://a.example/x", "https://a.example/y"], &[site]),
        (&["https://a.example/x", "https://a.example:8443/y", "https://a.example"], &[ports, site]),
    ] {
        let to = |from: &&str| format!("- {{from: '{from}', to: 'https://up.example/mcp'}}\n");
        let routes: String = froms.iter().map(to).collect();
        let file = file(&format!("single_user: true\nroutes:\n{routes}"));
        let (code, stdout, _) = run(&["check", "--config", path_of(&file)], &[]);
        assert_eq!((code, stdout.matches("warning").count()), (Some(0), expected.len()), "{stdout}");
        assert!(expected.iter().all(|warning| stdout.contains(&format!("\nwarning: {warning}"))), "{stdout}");
        // The printed configuration has the rules of the second, and not all that is around it.
        let (code, stdout, stderr) = run(&["envoy-config", "--config", path_of(&file)], &[]);
        let warned = if expected.contains(&ports) { format!("envoy-cimd: warning: {ports}") } else { String::new() };
        assert!(code == Some(0) && stderr.starts_with(&warned) && stderr.is_empty() == warned.is_empty(), "{stderr}");
        assert!(!stdout.contains("strip_"), "the port stays");
    }
    let none = file("document_max_age: 60\n");
    let (_, stdout, _) = run(&["check", "--config", path_of(&none)], &[]);
    assert!(stdout.contains("all keys of a route from the level that sets `from`"), "{stdout}");
}
