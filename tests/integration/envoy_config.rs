//! The printed Envoy configuration: the one that ships is the one that is printed, and Envoy takes it.

use std::{path::Path, process::Command};

use serde_json::Value;

use crate::{
    stack::{Certificates, envoy_executable},
    world::{Wish, World, run},
};

/// The command that the file's first lines name.
const SHIPPED: &[&str] = &[
    "envoy-config",
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
    for (file, command) in [("envoy/envoy.yaml", SHIPPED), ("examples/compose/envoy.yaml", COMPOSE)] {
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
        &["--processor", "unix:/run/envoy-cimd.sock"],
        &["--processor", "[::1]:9001"],
        &["--processor", "cimd.mesh:9001", "--processor-ca", &ca],
        &["--processor-ca", &ca, "--processor-cert", &cert, "--processor-key", &key, "--processor-san", "spiffe://a/b"],
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
        &["--filter-name", "team.cimd/1: #"],
    ];
    for variant in variants {
        let args: Vec<&str> = SHIPPED.iter().chain(&files).chain(*variant).copied().collect();
        let config = printed(&args);
        let (good, said) = validate(&config);
        assert!(good, "{variant:?}\n{said}");
        assert!(!said.contains("deprecated"), "{variant:?}\n{said}");
        // No header that we do not read may leave Envoy.
        let value: Value = serde_saphyr::from_str(&config).expect("YAML");
        let filter = &value["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]["http_filters"]
            [0];
        let patterns = filter["typed_config"]["forward_rules"]["allowed_headers"]["patterns"].as_array();
        let headers: Vec<&str> =
            patterns.expect("headers").iter().filter_map(|pattern| pattern["exact"].as_str()).collect();
        assert_eq!(headers, envoy_cimd::filter::request::Header::NAMES.map(|(name, _)| name));
        assert!(!headers.contains(&"authorization"));
    }
    assert!(!validate("static_resources: {listenres: []}").0, "a check that cannot fail is none");
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
        lines(&printed(&["envoy-config", "--part", "filter"])),
        lines(&printed(&[SHIPPED[0], SHIPPED[1], "--part", "filter"]))
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
