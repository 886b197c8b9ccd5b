//! What `--sign-in` adds.

use serde_json::{Value, json};

use super::{ONE, SIGNING_IN, SOCKET, config_with_own_keys, filter, names, parsed, printed, route, switched, validate};
use crate::world::{CALLBACK, DISCONNECT, DOCUMENT, START, http_filters, list, run, virtual_hosts};

/// Envoy takes what signs people and clients in, for hosts and addresses of every kind.
#[test]
fn envoy_takes_a_sign_in() {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("secret"), "a secret").expect("written");
    let secret = dir.path().join("secret").display().to_string();
    let files = [format!("--sign-in-client-secret={secret}"), format!("--sign-in-session-key={secret}")];
    let variants: &[&[&str]] = &[
        &[],
        &["--no-traffic"],
        &["--static-cimd", "--allow-origin=https://inspector.example", "--sign-in-mcp-scope=mcp offline_access"],
        &["--sign-in-scope=openid email offline_access", "--sign-in-filter-name=team.sign-in: #"],
        &["--callback-path=/oauth/callback", "--user-namespace=envoy.filters.http.jwt_authn", "--dynamic-metadata"],
        &["--route=from=https://one.example/linear,to=https://one.internal/mcp", "--route=from=https://one.example/b"],
        &["--route=from=https://[2001:db8::1]:8443,to=https://one.internal/", "--route=from=https://bücher.example"],
        &["--route=from=https://one.example,to=https://one.internal/a%20b"],
    ];
    for variant in variants {
        let args: Vec<&str> =
            SIGNING_IN.iter().copied().chain(files.iter().map(String::as_str)).chain(variant.iter().copied()).collect();
        let config = &parsed(&args);
        let (good, said) = validate(&config_with_own_keys(config, dir.path()));
        assert!(good && !said.contains("deprecated"), "{variant:?}\n{said}");
    }
}

/// What each path is open to. (What Envoy makes of it, `sign_in` tries.)
#[test]
fn who_signs_in_where() {
    let config = &mut parsed(SIGNING_IN);
    assert_eq!(
        names(http_filters(config)),
        [
            "envoy-cimd-sign-in-challenge",
            "envoy-cimd-sign-in-session",
            "envoy-cimd-sign-in",
            "envoy-cimd",
            "envoy-cimd-traffic-trailers",
            "envoy-cimd-refused",
            "envoy-cimd-traffic",
            "envoy.filters.http.router"
        ],
    );
    assert!(http_filters(config).iter().filter(|filter| filter["disabled"] == true).count() == 7, "on by route alone");
    assert_eq!(switched(route(config, DOCUMENT)), ["envoy-cimd"], "the document is for everybody");
    for path in [START, CALLBACK, DISCONNECT] {
        // The first is the one that refuses a token.
        let hosts = virtual_hosts(config).iter_mut();
        let routes: Vec<&Value> =
            hosts.take(1).flat_map(|host| list(&mut host["routes"])).map(|route| &*route).collect();
        let of_path: Vec<_> = routes.into_iter().filter(|route| route["match"]["path"] == path).collect();
        let [refusing, signed_in] = of_path[..] else { panic!("{path}: {of_path:?}") };
        assert_eq!(refusing["match"]["headers"], json!([{"name": "authorization", "present_match": true}]));
        assert_eq!((&refusing["direct_response"]["status"], switched(refusing).len()), (&json!(403), 0));
        assert_eq!(switched(signed_in), ["envoy-cimd", "envoy-cimd-sign-in", "envoy-cimd-sign-in-session"], "{path}");
    }
    // The first is for a person's browser.
    let mcp = list(&mut virtual_hosts(config)[0]["routes"]).iter().rfind(|route| route["match"]["path"] == "/mcp");
    assert_eq!(
        switched(mcp.expect("the MCP route")),
        [
            "envoy-cimd-refused",
            "envoy-cimd-sign-in",
            "envoy-cimd-sign-in-challenge",
            "envoy-cimd-traffic",
            "envoy-cimd-traffic-trailers"
        ]
    );
    let told = &filter(config, "envoy-cimd-traffic")["typed_config"]["metadata_options"]["forwarding_namespaces"];
    assert_eq!(*told, json!({"untyped": ["envoy.filters.http.jwt_authn"]}));
    // Who forgets what a route requires has its tokens alone all the same.
    let clients = &filter(config, "envoy-cimd-sign-in")["typed_config"]["providers"]["clients"];
    let resources = json!(["https://notes.mcp.example.com/mcp", "https://tickets.mcp.example.com/mcp"]);
    assert_eq!(clients["audiences"], resources);
    assert_eq!(clients["from_headers"], json!([{"name": "authorization", "value_prefix": "Bearer "}]));
    // Nothing of it on plain http, which serves nothing.
    let plain = &config["static_resources"]["listeners"][1]["filter_chains"][0]["filters"][0]["typed_config"];
    assert!(!plain["route_config"].to_string().contains("sign-in"), "{plain}");
    let secrets = printed(&[SIGNING_IN, &["--part=secrets"]].concat());
    assert!(printed(SIGNING_IN).contains(secrets.lines().next().expect("a line")), "{secrets}");
    let clusters = printed(&[SIGNING_IN, &["--part=cluster"]].concat());
    for cluster in ["sign-in login.example.com:443", "sign-in keys.example.com:443"] {
        assert!(clusters.contains(cluster), "{clusters}");
    }
}

/// A host with several routes describes each under its own path, and itself not at all.
#[test]
fn where_routes_describe_themselves() {
    const ROOT: &str = "/.well-known/oauth-protected-resource";
    let one = ["--route=from=https://a.example/linear,to=https://b.example/mcp"];
    let two = [one[0], "--route=from=https://a.example/sentry,to=https://c.example/mcp"];
    let root = ["--route=from=https://a.example,to=https://b.example/"];
    for (routes, expected) in [
        (&one[..], &[("/linear", "https://a.example/linear"), ("", "https://a.example/linear")][..]),
        (&two, &[("/linear", "https://a.example/linear"), ("/sentry", "https://a.example/sentry")]),
        (&root, &[("", "https://a.example/")]),
    ] {
        let mut args = vec![SIGNING_IN[0], SOCKET];
        args.extend(routes);
        args.extend(&SIGNING_IN[4..]);
        let config = &mut parsed(&args);
        let mut found = Vec::new();
        for route in virtual_hosts(config).iter_mut().flat_map(|host| list(&mut host["routes"])) {
            let Some(path) = route["match"]["path"].as_str().and_then(|path| path.strip_prefix(ROOT)) else { continue };
            let body = route["direct_response"]["body"]["inline_string"].as_str().expect("a body");
            let body: Value = serde_json::from_str(body).expect("JSON");
            found.push((path.to_owned(), body["resource"].as_str().expect("a resource").to_owned()));
        }
        let expected: Vec<_> = expected.iter().map(|(path, of)| ((*path).to_owned(), (*of).to_owned())).collect();
        assert_eq!(found, expected, "{routes:?}");
    }
}

#[test]
fn a_wrong_sign_in_is_refused_by_name() {
    for (more, error) in [
        (&["--single-user"][..], "--single-user that everybody is one"),
        (&["--user-namespace=people"], "--user-namespace names people"),
        (&["--sign-in-scope=email"], "--sign-in-scope must have `openid`"),
        (&["--sign-in-filter-name=envoy-cimd"], "--sign-in-filter-name: a route that switches"),
        (&["--filter-name=envoy-cimd-sign-in-session"], "--sign-in-filter-name: a route that switches"),
        (
            &["--route=from=https://a.example,to=https://b.example/.pomerium/sign-in/callback"],
            "is a path of the sign-in",
        ),
        (
            &["--route=from=https://a.example,to=https://b.example/.well-known/oauth-protected-resource"],
            "is a path of the sign-in",
        ),
    ] {
        let (code, stdout, stderr) = run(&[SIGNING_IN, more].concat(), &[]);
        assert!(code == Some(1) && stdout.is_empty() && stderr.contains(error), "{more:?}: {stderr}");
    }
    for (args, error) in [
        (&["--sign-in=https://login.example.com"][..], "--sign-in-client-id"),
        (&["--sign-in-jwks-uri=https://login.example.com/jwks"], "--sign-in <ISSUER>"),
        (&["--sign-in=http://login.example.com"], "must be https, or http on loopback"),
        (&["--sign-in-token-endpoint=login.example.com"], "is not a URL"),
        (&["--sign-in-mcp-scope=a\"b"], "has a character that no scope has"),
    ] {
        let (code, stdout, stderr) = run(&[&["envoy-config", ONE][..], args].concat(), &[]);
        assert!(code == Some(2) && stdout.is_empty() && stderr.contains(error), "{args:?}: {stderr}");
    }
    let (code, _, stderr) = run(&["envoy-config", ONE, "--part=secrets"], &[]);
    assert!(code == Some(1) && stderr.contains("only --sign-in has secrets"), "{stderr}");
    let without_route = [&SIGNING_IN[..2], &SIGNING_IN[4..], &["--part=filter"]].concat();
    let (code, _, stderr) = run(&without_route, &[]);
    assert!(code == Some(1) && stderr.contains("no route was given"), "{stderr}");
}
