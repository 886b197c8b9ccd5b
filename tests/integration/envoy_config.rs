//! The printed Envoy configuration: the one that ships is the one that is printed, and Envoy takes it.

use std::{path::Path, process::Command};

use serde_json::{Value, json};

use crate::{
    stack::{Call, Certificates, envoy_executable},
    world::{START, Wish, World, http_filters, list, run, virtual_hosts},
};

mod filters;
mod sign_in;

/// Envoy's side of a Unix socket, over which tokens may go.
const SOCKET: &str = "--processor=unix:/run/envoy-cimd/ext_proc.sock";

/// The command that the file's first lines name.
const SHIPPED: &[&str] = &[
    "envoy-config",
    SOCKET,
    "--route=from=https://notes.mcp.example.com,to=https://mcp.notes.example/mcp",
    "--route=from=https://tickets.mcp.example.com,to=https://mcp.tickets.example/mcp",
];

/// The same for the Envoy of docker-compose.yml.
const COMPOSE: &[&str] = &[
    "envoy-config",
    "--route=from=https://notes.localhost:8443,to=http://notes:3000/mcp",
    "--route=from=https://tickets.localhost:8443,to=http://tickets:3000/mcp",
    "--downstream-cert=/keys/public.crt",
    "--downstream-key=/keys/public.key",
    "--processor=envoy-cimd:9001",
    "--processor-ca=/ca/ca.pem",
    "--processor-cert=/keys/peer.crt",
    "--processor-key=/keys/peer.key",
];

/// The same, where people and MCP clients sign in by it.
const SIGNING_IN: &[&str] = &[
    SHIPPED[0],
    SHIPPED[1],
    SHIPPED[2],
    SHIPPED[3],
    "--sign-in=https://login.example.com",
    "--sign-in-authorization-endpoint=https://login.example.com/authorize",
    "--sign-in-token-endpoint=https://login.example.com/token",
    "--sign-in-jwks-uri=https://keys.example.com/jwks.json",
    "--sign-in-client-id=mcp-gateway",
];

pub fn printed(args: &[&str]) -> String {
    let (code, stdout, stderr) = run(args, &[]);
    assert_eq!(code, Some(0), "{args:?} {stderr}");
    assert!(stderr.lines().all(|line| line.starts_with("envoy-cimd: warning: ")), "{args:?} {stderr}");
    stdout
}

/// Envoy's verdict on a configuration, with all it says.
pub fn validate(config: &str) -> (bool, String) {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("envoy.yaml");
    std::fs::write(&path, config).expect("written");
    let output = Command::new(envoy_executable())
        .args(["--mode", "validate", "--log-level", "warning", "-c"])
        .arg(path)
        .output();
    let output = output.expect("envoy runs");
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn the_files_that_ship_are_printed_by_the_program() {
    for (file, command) in
        [("envoy/envoy.yaml", SHIPPED), ("envoy/sign-in.yaml", SIGNING_IN), ("examples/compose/envoy.yaml", COMPOSE)]
    {
        let shipped = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).expect(file);
        // Compared without `assert_eq`, which would print both.
        assert!(printed(command) == shipped, "print it anew: envoy-cimd {} >{file}", command.join(" "));
    }
}

#[test]
fn envoy_takes_it() {
    let dir = tempfile::tempdir().expect("a folder");
    let certificates = Certificates::make(dir.path(), &["notes.mcp.example.com"]);
    let text = |path: &Path| path.to_str().expect("text").to_owned();
    let (cert, key, ca) = (text(&certificates.cert), text(&certificates.key), text(&certificates.ca));
    let files = ["--downstream-cert", &cert, "--downstream-key", &key, "--upstream-ca", &ca];
    let large = format!("from=https://large.example,client_name={}", "a".repeat(4500));
    let variants: &[&[&str]] = &[
        &[],
        &["--dynamic-metadata"],
        &["--static-cimd"],
        &["--static-cimd", "--route", &large],
        &[
            "--static-cimd",
            "--route",
            "from=https://bücher.example:8443,client_name=%REQ(X)% \u{2028}\"",
            "--route",
            "from=https://[2001:db8::1]",
        ],
        &["--processor", "[::1]:9001"],
        &["--processor", "[::1]:9001", "--insecure-traffic"],
        &["--processor", "cimd.mesh:9001", "--processor-ca", &ca],
        &[
            "--processor=cimd.mesh:9001",
            "--processor-ca",
            &ca,
            "--processor-cert",
            &cert,
            "--processor-key",
            &key,
            "--processor-san",
            "spiffe://a/b",
        ],
        &["--no-traffic"],
        &["--allow-origin", "https://inspector.example,https://[2001:db8::1]:8443"],
        &["--single-user", "--user-namespace", "envoy.filters.http.jwt_authn"],
        &["--cluster", "outbound|9001||cimd.mesh.svc.cluster.local"],
        &["--document-path", "/client.json", "--callback-path", "/oauth/callback"],
        &["--route", "from=https://bücher.example:8443,to=http://127.0.0.1:8000,client_name=a: \"b\" # c"],
        &["--route", "from=https://one.example,to=https://192.0.2.7/mcp", "--route", "from=https://one.example:8443"],
        &["--route", "from=https://[2001:db8::1],to=https://[2001:db8::2]:8443/mcp"],
        &[
            "--route",
            "from=https://one.example/linear,to=https://one.internal/mcp",
            "--route",
            "from=https://one.example/Sentry,to=http://two.internal/",
        ],
        &["--static-cimd", "--route", "from=https://one.example/a", "--route", "from=https://one.example/a/b"],
        &[
            "--filter-name",
            "team.cimd/1: #",
            "--traffic-filter-name",
            "team.cimd/2: \"",
            "--refused-filter-name",
            "team.cimd/3: '",
        ],
    ];
    for variant in variants {
        let other = variant.iter().any(|arg| arg.starts_with("--processor"));
        let shipped = SHIPPED.iter().filter(|arg| !other || **arg != SOCKET);
        let args: Vec<&str> = shipped.chain(&files).chain(*variant).copied().collect();
        let config = printed(&args);
        let (good, said) = validate(&config);
        assert!(good, "{variant:?}\n{said}");
        assert!(!said.contains("deprecated"), "{variant:?}\n{said}");
    }
    assert!(!validate("static_resources: {listenres: []}").0, "a check that cannot fail is none");
}

/// A filter of a printed configuration.
fn filter<'a>(config: &'a mut Value, name: &str) -> &'a Value {
    http_filters(config).iter().find(|filter| filter["name"] == name).expect(name)
}

/// The route of a printed configuration with this path.
fn route<'a>(config: &'a mut Value, path: &str) -> &'a Value {
    let hosts = virtual_hosts(config).iter_mut();
    hosts.flat_map(|host| list(&mut host["routes"])).find(|route| route["match"]["path"] == path).expect(path)
}

fn parsed(args: &[&str]) -> Value {
    serde_saphyr::from_str(&printed(args)).expect("YAML")
}

fn names(filters: &[Value]) -> Vec<&str> {
    filters.iter().filter_map(|filter| filter["name"].as_str()).collect()
}

/// What switches filters on, and what they are told.
fn switched(route: &Value) -> Vec<&str> {
    route["typed_per_filter_config"].as_object().map(|on| on.keys().map(String::as_str).collect()).unwrap_or_default()
}

const ONE: &str = "--route=from=https://a.example,to=https://b.example/mcp";

/// What is on for an MCP route.
const OF_MCP: [&str; 3] = ["envoy-cimd-refused", "envoy-cimd-traffic", "envoy-cimd-traffic-trailers"];

/// The configuration with a certificate that there is.
fn config_with_own_keys(config: &Value, dir: &Path) -> String {
    let certificates = Certificates::make(dir, &["b.example"]);
    let text = |path: &Path| path.to_str().expect("text").to_owned();
    config
        .to_string()
        .replace("/etc/envoy/tls.crt", &text(&certificates.cert))
        .replace("/etc/envoy/tls.key", &text(&certificates.key))
        .replace("/etc/ssl/certs/ca-certificates.crt", &text(&certificates.ca))
}

/// A stream of minutes is no reason to end it, and an upstream has no say in what the route's origin is.
#[test]
fn the_mcp_route() {
    let routes = ["--route=from=https://a.example/linear,to=http://b.example:8000/mcp", ONE];
    let config = &mut parsed(&["envoy-config", SOCKET, routes[0], routes[1]]);
    for (path, rewrite, authority) in [("/linear", json!("/mcp"), "b.example:8000"), ("/mcp", Value::Null, "b.example")]
    {
        let route = route(config, path);
        let upstream = &route["route"];
        assert_eq!((&upstream["timeout"], &upstream["idle_timeout"]), (&json!("0s"), &json!("0s")), "{path}");
        assert_eq!((&upstream["prefix_rewrite"], &upstream["host_rewrite_literal"]), (&rewrite, &json!(authority)));
        assert_eq!(route["request_headers_to_remove"], json!(["cookie", "proxy-authorization"]));
        let removed = route["response_headers_to_remove"].as_array().expect("headers");
        for header in ["set-cookie", "service-worker-allowed", "access-control-allow-origin"] {
            assert!(removed.contains(&json!(header)), "{path} {header}");
        }
        assert_eq!(route["response_headers_to_add"][0]["header"]["value"], "sandbox", "{path}");
        assert_eq!(switched(route), OF_MCP, "{path}");
        assert!(!removed.contains(&json!("www-authenticate")), "the filter that answers for the upstream reads it");
    }
}

/// Whoever could ask for tokens as Envoy does would get them, so where that is not kept from anybody, none are put in,
/// and the output says what is missing.
#[test]
fn tokens_go_where_none_but_envoy_can_ask_for_them() {
    let (ca, cert, key) = ("--processor-ca=ca", "--processor-cert=crt", "--processor-key=key");
    let (asked, unprotected) = ("(--no-traffic)", "whoever could speak to envoy-cimd");
    for (args, left_out) in [
        (&[SOCKET][..], None),
        (&["--processor=cimd.example:9001", ca, cert, key], None),
        (&["--insecure-traffic"], None),
        (&["--processor=localhost:9001", "--insecure-traffic"], None),
        (&["--processor=[::1]:9001", "--insecure-traffic"], None),
        (&[], Some(unprotected)),
        (&["--insecure-traffic=false"], Some(unprotected)),
        (&["--processor=cimd.example:9001", ca], Some(unprotected)),
        // Other machines reach these, whatever was said.
        (&["--processor=cimd.example:9001", "--insecure-traffic"], Some(unprotected)),
        (&["--processor=192.0.2.1:9001", "--insecure-traffic"], Some(unprotected)),
        (&[SOCKET, "--no-traffic"], Some(asked)),
    ] {
        let args: Vec<&str> = ["envoy-config", ONE].iter().chain(args).copied().collect();
        let part = |part| printed(&args.iter().copied().chain(["--part", part]).collect::<Vec<_>>());
        for text in [printed(&args), part("routes"), part("filter")] {
            assert_eq!(text.contains("envoy-cimd-traffic"), left_out.is_none(), "{args:?}\n{text}");
            assert_eq!(text.contains("# No token is put into MCP requests"), left_out.is_some(), "{args:?}\n{text}");
            assert!(left_out.is_none_or(|why| text.contains(why)), "{args:?}\n{text}");
        }
        let config = &mut parsed(&args);
        assert_eq!(switched(route(config, "/mcp")).is_empty(), left_out.is_some(), "{args:?}");
        assert_eq!(http_filters(config).len(), if left_out.is_some() { 2 } else { 5 }, "{args:?}");
    }
    let mtls = "listen: cimd.example:9001\ntls_cert: a\ntls_key: b\nclient_ca: c\n";
    let peer = &format!("{mtls}allow_peer: envoy.example\n");
    for (content, flags, is_served) in [
        ("listen: unix:/run/cimd.sock\n", &[][..], true),
        ("listen: unix:/run/cimd.sock\nroles: [endpoints, traffic]\n", &[], true),
        ("listen: unix:/run/cimd.sock\nroles: endpoints\n", &[], false),
        ("listen: unix:/run/cimd.sock\nchoreographer: unix:/run/c.sock\n", &[], false),
        ("listen: unix:/run/cimd.sock\nchoreographer: unix:/run/c.sock\ntokens: unix:/run/t.sock\n", &[], true),
        (peer, &[ca, cert, key], true),
        (mtls, &[ca, cert, key], false),
        ("insecure_traffic: true\n", &[], true),
    ] {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), content).expect("written");
        let args = ["envoy-config", ONE, "--config", file.path().to_str().expect("text")];
        let text = printed(&[&args, flags].concat());
        assert_eq!(text.contains("envoy-cimd-traffic"), is_served, "{content}\n{text}");
        assert_eq!(text.contains("the config file keeps `serve` from it"), !is_served, "{content}\n{text}");
    }
    // Who has no MCP route needs no filter, and no excuse.
    for args in [&["--processor=127.0.0.1:9001"][..], &[SOCKET]] {
        let args: Vec<&str> = ["envoy-config", "--route=from=https://a.example"].iter().chain(args).copied().collect();
        let text = printed(&args);
        assert!(!text.contains("envoy-cimd-traffic") && !text.contains("No token"), "{text}");
    }
}

#[test]
fn pages_of_other_origins() {
    let args = ["envoy-config", ONE, "--allow-origin=https://one.example,http://localhost:6274"];
    let config = &mut parsed(&[&args[..], &[SOCKET]].concat());
    assert_eq!(names(http_filters(config))[0], "envoy.filters.http.cors", "a preflight carries no credentials");
    let policy = route(config, "/mcp")["typed_per_filter_config"]["envoy.filters.http.cors"].clone();
    assert_eq!(
        policy["allow_origin_string_match"],
        json!([{"exact": "https://one.example"}, {"exact": "http://localhost:6274"}])
    );
    assert_eq!((&policy["allow_credentials"], &policy["allow_methods"]), (&json!(false), &json!("POST, GET, DELETE")));
    let with_policy = |config: &mut Value| {
        let routes = virtual_hosts(config).iter_mut().flat_map(|host| list(&mut host["routes"]).clone());
        routes.filter(|route| switched(route).contains(&"envoy.filters.http.cors")).count()
    };
    assert_eq!(with_policy(config), 1, "the MCP route alone");
    for args in [&["envoy-config", ONE, SOCKET][..], &args, &[&args[..], &[SOCKET, "--no-traffic"]].concat()] {
        let text = printed(args);
        assert!(!text.contains("http.cors"), "{args:?}");
    }
    for origin in ["--allow-origin=https://one.example/path", "--allow-origin=http://one.example"] {
        let (code, stdout, stderr) = run(&["envoy-config", ONE, origin], &[]);
        assert!(code == Some(2) && stdout.is_empty() && stderr.contains("--allow-origin"), "{stderr}");
    }
}

/// Envoy itself answers the preflight of a page that may ask; what another page asks goes to envoy-cimd, which refuses it.
#[tokio::test]
async fn preflights() {
    let flags = ["--insecure-traffic", "--allow-origin=http://localhost:6274"];
    let world = World::start(Wish { envoy_config: &flags, ..Wish::default() }).await;
    let preflight = |path: &str| {
        let call = Call::get("notes.localhost", path).method("OPTIONS").header("origin", "http://localhost:6274");
        let call = call.header("access-control-request-method", "POST");
        call.header("access-control-request-headers", "authorization,mcp-param-x")
    };
    for version in [http::Version::HTTP_11, http::Version::HTTP_2] {
        let answer = world.https().send(version, preflight("/mcp")).await.expect("an answer");
        assert_eq!(answer.status, 200, "{answer:?}");
        for (header, value) in [
            ("access-control-allow-origin", &["http://localhost:6274"][..]),
            ("access-control-allow-methods", &["POST, GET, DELETE"]),
            ("access-control-allow-headers", &["*, authorization"]),
            ("access-control-allow-credentials", &[]),
        ] {
            assert_eq!(answer.all(header), value, "{header}");
        }
        let answer = world.https().send(version, preflight(START)).await.expect("an answer");
        assert_eq!((answer.status, answer.all("access-control-allow-origin").len()), (405, 0), "{answer:?}");
    }
    assert_eq!(world.upstream.seen(), [""; 0], "no preflight goes on");
}

/// Where everybody is one person, nobody from elsewhere is.
#[test]
fn a_single_users_envoy_listens_on_loopback() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "single_user: true\n").expect("written");
    let path = file.path().to_str().expect("text");
    let given = ["--https-listen=192.0.2.1:443", "--http-listen=192.0.2.1:80"];
    for (args, [https, http]) in [
        (&[][..], [("0.0.0.0", 8443), ("0.0.0.0", 8080)]),
        (&["--single-user"], [("127.0.0.1", 8443), ("127.0.0.1", 8080)]),
        (&["--config", path], [("127.0.0.1", 8443), ("127.0.0.1", 8080)]),
        (&["--config", path, "--single-user=false"], [("0.0.0.0", 8443), ("0.0.0.0", 8080)]),
        (&["--single-user", given[0], given[1]], [("192.0.2.1", 443), ("192.0.2.1", 80)]),
    ] {
        let args: Vec<&str> = ["envoy-config", ONE].iter().chain(args).copied().collect();
        let listeners = parsed(&args)["static_resources"]["listeners"].clone();
        for (listener, (address, port)) in listeners.as_array().expect("listeners").iter().zip([https, http]) {
            let expected = json!({"socket_address": {"address": address, "port_value": port}});
            assert_eq!(listener["address"], expected, "{args:?}");
        }
    }
}

/// A mesh's name for the cluster is no authority that HTTP/2 takes; the printed filter sends another.
#[tokio::test]
async fn a_cluster_named_as_istio_names_them() {
    let cluster = ["--cluster", "outbound|9001||envoy-cimd.mcp.svc.cluster.local"];
    let world = World::start(Wish { envoy_config: &cluster, ..Wish::default() }).await;
    assert_eq!(world.document("notes.localhost").await.0, 200);
}

/// Each piece stands in the whole as it is printed.
#[test]
fn the_parts_are_those_of_the_whole() {
    let lines = |text: &str| -> Vec<String> { text.lines().map(|line| line.trim().to_owned()).collect() };
    let whole = lines(&printed(SHIPPED));
    for part in ["routes", "filter", "cluster"] {
        let args: Vec<&str> = SHIPPED.iter().copied().chain(["--part", part]).collect();
        let part = lines(&printed(&args));
        assert!(part.len() > 5 && whole.windows(part.len()).any(|window| window == part), "{part:#?}");
    }
    assert_eq!(
        lines(&printed(&["envoy-config", SOCKET, "--part", "filter"])),
        lines(&printed(&[SHIPPED[0], SHIPPED[1], SHIPPED[2], "--part", "filter"]))
    );
}

#[test]
fn routes_come_from_the_file_too() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(
        file.path(),
        "listen: unix:/run/cimd.sock\nroutes: [{from: 'https://a.example', to: 'https://b.example/mcp'}]\n",
    )
    .expect("written");
    let path = file.path().to_str().expect("text");
    let config = printed(&["envoy-config", "--config", path, "--route", "from=https://c.example"]);
    for expected in ["\"https://a.example\"", "\"https://c.example\"", "/run/cimd.sock", "mcp.example"] {
        assert_eq!(config.contains(expected), expected != "mcp.example", "{expected}");
    }
}

/// What Envoy could not speak to is not printed.
#[test]
fn a_file_whose_listener_envoy_could_not_reach() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let path = file.path().to_str().expect("text");
    for (content, error) in [
        ("listen: 0.0.0.0:9001\n", "`listen` is 0.0.0.0:9001, all addresses of a machine: --processor says"),
        ("listen: '[::]:9001'\n", "--processor says"),
        ("listen: 10.0.0.1:9001\ntls_cert: a\ntls_key: b\nclient_ca: c\n", "so Envoy needs --processor-ca"),
    ] {
        std::fs::write(file.path(), content).expect("written");
        let (code, stdout, stderr) = run(&["envoy-config", "--config", path, "--part", "cluster"], &[]);
        assert_eq!((code, stdout.as_str()), (Some(1), ""), "{content}");
        assert!(stderr.contains(error), "{content}: {stderr}");
    }
}

#[test]
fn a_wrong_route_is_refused_by_name() {
    for (route, error) in [
        ("from=http://a.example", "routes[0] (http://a.example): `from` must be https"),
        ("from=https://a.example/mcp/", "routes[0] (https://a.example/mcp/): `from` must not end with a slash"),
        ("from=https://a.example/a//b", "`from` must not have an empty segment in its path"),
        ("from=https://a.example/a/../b", "`from` must not have a dot segment in its path"),
        ("from=https://a.example/a%2fb", "`from` must not have a percent-encoded character in its path"),
        ("from=https://a.example/a;b", "`from` must not have a character in its path but letters, digits and -._~"),
        ("from=https://a.example/.well-known/x", "`from` must not have a path in /.well-known, which is reserved"),
        ("to=https://a.example", "no source gives `from`"),
        ("from=https://a.example,to=ftp://b.example", "`to` must be an http or https URL"),
        ("from=https://a.example,to=https://b.example/mcp?x", "`to` must not have a query"),
        ("from=https://a.example,to=/.well-known/x", "`to` is not a URL"),
        ("from=https://a.example,to=https://b.example/.pomerium/oauth/start", "is one of our own paths"),
        ("from=https://a.example,form=x", "there is no key `form`"),
        ("from", "`from` is not KEY=VALUE"),
        ("from=https://a.example,from=https://b.example", "`from` is there twice"),
        ("from=https://a.example,client_name=", "`client_name` is empty"),
    ] {
        let (code, stdout, stderr) = run(&["envoy-config", "--route", route], &[]);
        assert!(code.is_some_and(|code| code != 0) && stdout.is_empty(), "{route}");
        assert!(stderr.contains(error), "{route}: {stderr}");
    }
    for (routes, error) in [
        (["from=https://a.example/x", "from=https://A.example:443/x"], "routes[1]: https://a.example/x is there twice"),
        (
            ["from=https://a.example/linear", "from=https://a.example,to=https://b.example/linear"],
            "routes[1] (https://a.example): /linear would be an address of routes[0] too",
        ),
    ] {
        let (code, stdout, stderr) = run(&["envoy-config", "--route", routes[0], "--route", routes[1]], &[]);
        assert!(code == Some(1) && stdout.is_empty() && stderr.contains(error), "{stderr}");
    }
    let (code, _, stderr) = run(&["envoy-config"], &[]);
    assert!(code == Some(1) && stderr.contains("no route was given"), "{stderr}");
}
