//! Settings: where they come from, which wins, and what is said of a bad one.

use std::path::Path;

use crate::{
    stack::{Choreographer, Cimd, ready_address},
    world::{executable, run},
};

mod listeners;
mod reference;
mod routes;
mod secrets;

fn file(content: &str) -> tempfile::NamedTempFile {
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().expect("a file");
    std::fs::write(file.path(), content).expect("written");
    file
}

fn path_of(file: &tempfile::NamedTempFile) -> &str {
    file.path().to_str().expect("text")
}

/// Starts `serve` with a flag, a variable and a file that each name the admin socket, and tells which one it took.
async fn admin_socket(flag: Option<&str>, variable: Option<&str>, file_says: Option<&str>) -> String {
    let dir = tempfile::tempdir().expect("a folder");
    let address = |name: &str| format!("unix:{}", dir.path().join(name).display());
    let file = file(&file_says.map(|name| format!("admin_listen: {}\n", address(name))).unwrap_or_default());
    let mut command = tokio::process::Command::new(executable());
    command.args(["serve", "--listen", "127.0.0.1:0", "--config", path_of(&file)]);
    if let Some(name) = flag {
        command.args(["--admin-listen", &address(name)]);
    }
    if let Some(name) = variable {
        command.env("ENVOY_CIMD_ADMIN_LISTEN", address(name));
    }
    let mut process = crate::stack::Process::spawn("envoy-cimd", command);
    let taken = process.line(|line| ready_address(line, "admin")).await;
    taken.rsplit_once('/').expect("a path").1.to_owned()
}

#[tokio::test]
async fn a_flag_over_a_variable_over_the_file() {
    assert_eq!(admin_socket(Some("flag"), Some("variable"), Some("file")).await, "flag");
    assert_eq!(admin_socket(None, Some("variable"), Some("file")).await, "variable");
    assert_eq!(admin_socket(None, None, Some("file")).await, "file");
}

/// One broken setting a row, and what must be said of it. Nothing may be bound: each of these ends by itself.
#[test]
fn bad_settings_are_named() {
    let files: &[(&str, &str)] = &[
        ("lisen: 127.0.0.1:1\n", "there is no setting `lisen`"),
        ("config: other.yaml\n", "there is no setting `config`"),
        ("listen: nowhere\n", "`listen`: bad value \"nowhere\": is written `host:port` or `unix:/path`"),
        ("drain_timeout: -1\n", "`drain_timeout`: bad value \"-1\""),
        ("insecure_grpc: perhaps\n", "`insecure_grpc`: bad value \"perhaps\""),
        ("listen: {host: x}\n", "`listen` must be a text, a number"),
        ("listen: ['a:1', 'b:2']\n", "`listen` takes one value, not a list"),
        ("client_name: '{host}'\n", "`client_name`: bad value \"{host}\": knows no placeholder but {hostname}"),
        ("document_path: x\n", "`document_path`: bad value \"x\""),
        (
            "document_path: /a/callback\ncallback_path: /a/callback\n",
            "--document-path, --callback-path: of the document's path",
        ),
        ("log: a=b=c\n", "`log`: bad value \"a=b=c\""),
        ("user_subject: a..b\n", "`user_subject`: bad value \"a..b\""),
        ("user_namespace: who\n", "--user-namespace, --user-issuer and --user-subject go together"),
        ("single_user: true\nuser_subject: sub\n", "exclude each other"),
        ("single_user: true\ndisplay_claim: name\n", "--display-claim is a path in the metadata of --user-namespace"),
        ("display_claim: name\n", "--display-claim is a path in the metadata of --user-namespace"),
        ("display_claim: a..b\n", "`display_claim`: bad value \"a..b\""),
        ("brand_name: ''\n", "`brand_name`: bad value \"\": must not be empty"),
        ("brand_name: \"a\\u202eb\"\n", "has a character that is not seen"),
        ("brand_help_url: 'http://help.example'\n", "is not an https URL"),
        ("brand_help_url: 'javascript:alert(1)'\n", "is not an https URL"),
        ("choreographer: 127.0.0.1:9003\n", "`choreographer`: bad value"),
        ("choreographer: 'http://127.0.0.1:9003'\n", "need --state-keys"),
        ("store: 'redis://127.0.0.1:1'\nencryption_keys: /dev/null\n", "--state-keys"),
        ("store: 'http://user:secret@127.0.0.1:1'\n", "invalid value for '--store <URL>': "),
        ("extra_ca: /nowhere\n", "--extra-ca /nowhere"),
        ("allow_host: ['a b']\n", "`allow_host`"),
        (
            "allow_host: ['a=http://b.example']\n",
            "`allow_host`: bad value \"a=http://b.example\": names the route of a",
        ),
        ("state_keys: /nowhere\n", "--state-keys /nowhere: No such file"),
        ("state_keys: /\n", "--state-keys /: Is a directory"),
        ("state_keys: /dev/null\n", "--state-keys /dev/null: has no key"),
        ("routes: [{from: 'http://a.example'}]\n", "routes[0] (http://a.example): `from` must be https"),
        ("routes: [{to: 'https://a.example'}]\n", "routes[0] (no `from`): no source gives `from`"),
        ("routes: [{from: 'https://a.example'}, {from: 'https://a.example:443'}]\n", "is there twice"),
        (
            "routes: [{from: 'https://user:hunter2@a.example'}]\n",
            "routes[0] (a `from` with a user name): `from` must not have",
        ),
        ("routes: [{from: 'https://a.example', name: x}]\n", "unknown field `name`"),
        ("routes: {}\n", "expected sequence start at line 1, column 9"),
        ("- a\n", "line 1"),
        ("listen: 'a\n", "line 1"),
        ("listen: 0.0.0.0:0\n", "--insecure-grpc"),
        ("socket_mode: 888\n", "`socket_mode`: bad value \"888\": is octal permissions such as 660"),
        ("allow_peer: '*.a.example'\n", "`allow_peer`: bad value \"*.a.example\": is a DNS name, or a URI"),
        ("allow_peer: a.example\n", "--allow-peer and --tokens-allow-peer need --tls-cert"),
        ("tls_key: /nowhere\n", "--tls-cert, --tls-key and --client-ca go together"),
        ("listen: 'unix:/nowhere/s'\nclient_ca: /nowhere\n", "--allow-peer are for gRPC over TCP"),
        (
            "tls_cert: /dev/null\ntls_key: /dev/null\nclient_ca: /dev/null\n",
            "--client-ca /dev/null: has no certificate",
        ),
        ("tokens_allow_peer: a.example\n", "--tokens-allow-peer is for a --tokens-listen of TCP"),
        ("choreographer_ca: /nowhere\n", "--choreographer-peer need --choreographer"),
        ("socket_mode: 444\n", "`socket_mode`: bad value \"444\": is octal permissions such as 660"),
        (
            "choreographer: 'https://c.example'\nstate_keys: /dev/null\n",
            "an https:// --choreographer needs --choreographer-ca",
        ),
        (
            "choreographer: 'http://127.0.0.1:1'\nstate_keys: /dev/null\nchoreographer_peer: c.example\n",
            "--choreographer-peer need an https:// --choreographer",
        ),
        ("roles: refusal\n", "`roles`: bad value \"refusal\": is `endpoints`, `traffic` or `refused`"),
        ("roles: [endpoints, '']\n", "`roles`: bad value \"\": is `endpoints`, `traffic` or `refused`"),
        ("roles: []\n", "`roles` is an empty list"),
        ("roles: 'traffic,endpoints,traffic'\n", "--roles names `traffic` twice"),
        ("roles: traffic\n", "--roles traffic: no traffic on --listen 127.0.0.1:9001: every account of this machine"),
        ("roles: refused\n", "--roles refused: no traffic on --listen 127.0.0.1:9001: every account of this machine"),
        (
            "roles: traffic\nlisten: 0.0.0.0:0\ninsecure_grpc: true\ninsecure_traffic: true\n",
            "--roles traffic: no traffic on --listen 0.0.0.0:0: other machines reach this address",
        ),
        (
            "insecure_traffic: true\nlisten: 0.0.0.0:0\ninsecure_grpc: true\n",
            "--insecure-traffic: no traffic on --listen 0.0.0.0:0: other machines reach this address",
        ),
        (
            "listen: 'unix:/nowhere/s'\nroles: [traffic, endpoints]\nchoreographer: 'unix:/nowhere/c'\nstate_keys: /nowhere\n",
            "--roles traffic: no traffic with --choreographer unless --tokens says where tokens come from",
        ),
        (
            "tokens: 'unix:/nowhere/t'\nchoreographer: 'unix:/nowhere/c'\nstate_keys: /nowhere\n",
            "--tokens: no traffic on --listen 127.0.0.1:9001",
        ),
        (
            "tokens: 'unix:/nowhere/t'\nroles: endpoints\n",
            "--tokens is for the roles traffic and refused, which --roles leaves out",
        ),
        ("tokens: 'unix:/nowhere/t'\nlisten: 'unix:/nowhere/s'\n", "--tokens is for --choreographer"),
        ("tokens: 127.0.0.1:9005\n", "`tokens`: bad value"),
        ("tokens_key: /nowhere\n", "--tokens-ca, --tokens-cert, --tokens-key and --tokens-peer need --tokens"),
        (
            "allow_origin: 'https://a.example/x'\n",
            "`allow_origin`: bad value \"https://a.example/x\": must not have a path",
        ),
        ("allow_origin: ['https://a.example', 'null']\n", "`allow_origin`: bad value \"null\""),
        (
            "allow_origin: 'http://a.example'\n",
            "`allow_origin`: bad value \"http://a.example\": must be https, or http on loopback",
        ),
        ("token_cache: 61\n", "`token_cache`: bad value \"61\""),
        ("token_cache: -1\n", "`token_cache`: bad value \"-1\""),
        ("max_cached_tokens: 0\n", "`max_cached_tokens`: bad value \"0\""),
        ("max_holds: 0\n", "`max_holds`: bad value \"0\""),
    ];
    for (content, error) in files {
        let file = file(content);
        let (code, stdout, stderr) = run(&["serve", "--config", path_of(&file)], &[]);
        assert_eq!((code, stdout.as_str()), (Some(1), ""), "{content}{stderr}");
        assert!(stderr.contains(error), "{content}{stderr}");
        assert!(!stderr.contains("\"ready\""), "nothing is bound: {content}{stderr}");
        let (code, stdout, checked) = run(&["check", "--config", path_of(&file)], &[]);
        assert_eq!((code, stdout.as_str(), checked), (Some(1), "", stderr.clone()), "`check` says the same");
        let names_a_flag = error.contains("--") || error.contains("differ") || error.contains("exclude");
        assert!(names_a_flag || stderr.contains(path_of(&file)), "the file is named: {stderr}");
    }
    type Variables<'a> = &'a [(&'a str, &'a str)];
    let commands: &[(&[&str], Variables<'_>, i32, &str)] = &[
        (&["serve", "--config", "/nowhere.yaml"], &[], 1, "/nowhere.yaml: No such file"),
        (&["serve", "--listen", "nowhere"], &[], 2, "is written `host:port` or `unix:/path`"),
        (&["serve"], &[("ENVOY_CIMD_DRAIN_TIMEOUT", "soon")], 2, "invalid value 'soon' for '--drain-timeout"),
        (
            &["serve", "--choreographer", "http://192.0.2.1:9003", "--state-keys", "/dev/null"],
            &[],
            1,
            "would cross the network in the clear",
        ),
        (&["choreographer", "--store", "redis://127.0.0.1:1"], &[], 1, "a store in Redis needs --encryption-keys"),
        (&["choreographer", "--state-keys", "x"], &[], 2, "unexpected argument '--state-keys'"),
        (&["serve", "--unknown"], &[], 2, "unexpected argument '--unknown'"),
        (&["serve", "--listen", "0.0.0.0:0"], &[], 1, "--insecure-grpc"),
        (&["serve", "--listen", "no.such.host.invalid:1"], &[], 1, "--listen no.such.host.invalid:1"),
        (
            &["serve", "--listen", "unix:/no/such/folder/s"],
            &[],
            1,
            "--listen unix:/no/such/folder/s: cannot listen there, since the folder of the socket does not exist",
        ),
    ];
    for (args, variables, code, error) in commands {
        let (exit, stdout, stderr) = run(args, variables);
        assert_eq!((exit, stdout.as_str()), (Some(*code), ""), "{args:?} {stderr}");
        assert!(stderr.contains(error), "{args:?} {stderr}");
    }
}

#[test]
fn check_says_what_would_be_served() {
    let long = format!("https://{}.{}.example", "a".repeat(60), "b".repeat(60));
    let good = file(&format!(
        "single_user: true\nclient_name: The proxy of {{hostname}}\nroutes:\n- from: https://a.example\n  to: https://up.example/mcp\n- from: {long}\n"
    ));
    let (code, stdout, stderr) = run(&["check", "--config", path_of(&good)], &[]);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    for expected in [
        "client_id     https://a.example/.well-known/mcp-client-metadata.json",
        "redirect_uri  https://a.example/.pomerium/oauth/callback",
        "Auth0 takes 120 at most",
        "without `to`, nobody can connect",
    ] {
        assert!(stdout.contains(expected), "{stdout}");
    }
    assert_eq!(stdout.matches("warning").count(), 2, "the first route has none: {stdout}");
    let idle = file("store: file:/a\nstate_dir: /b\n");
    let (_, stdout, _) = run(&["check", "--config", path_of(&idle)], &[]);
    for expected in ["warning: nobody can connect: ", "warning: --state-dir has no effect beside --store"] {
        assert!(stdout.contains(expected), "{stdout}");
    }
    for (routes, error) in [
        ("[{from: 'https://a.example/x/'}]", "routes[0] (https://a.example/x/): `from` must not end with a slash"),
        (
            "[{from: 'https://a.example', to: 'https://b.example/x'}, {from: 'https://a.example/x'}]",
            "routes[1] (https://a.example/x): /x would be an address of routes[0] too",
        ),
    ] {
        let bad = file(&format!("routes: {routes}\n"));
        let (code, stdout, stderr) = run(&["check", "--config", path_of(&bad)], &[]);
        assert_eq!((code, stdout.as_str()), (Some(1), ""));
        assert!(stderr.contains(error), "{stderr}");
    }
}

/// What `check` says of settings that do nothing, `serve` and `choreographer` say at start.
#[tokio::test]
async fn settings_without_effect_are_said_at_start() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = format!("file:{}", dir.path().join("store").display());
    let state = dir.path().to_str().expect("text");
    let flags = ["--store", &store, "--state-dir", state];
    let warned = |output: &str, of: &str| output.lines().any(|line| line.contains("WARN") && line.contains(of));
    let cimd = Cimd::start(&executable(), &flags).await;
    for of in ["nobody can connect", "--state-dir has no effect beside --store"] {
        assert!(warned(&cimd.process.output(), of), "{}", cimd.process.output());
    }
    let known = Cimd::start(&executable(), &["--single-user"]).await;
    assert!(!warned(&known.process.output(), "nobody can connect"), "{}", known.process.output());
    let choreographer = Choreographer::start(&executable(), &flags).await;
    let output = choreographer.process.output();
    assert!(warned(&output, "--state-dir has no effect") && !warned(&output, "nobody can connect"), "{output}");
}

/// The page that has every setting, key and label.
pub const REFERENCE: &str = "docs/reference.md";

/// The page that has every metric and event.
pub const OPERATIONS: &str = "docs/operations.md";

/// A page of this repository.
pub fn page(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect(path)
}

/// What stands between two markers of a page.
pub fn section<'a>(page: &'a str, name: &str) -> &'a str {
    let (_, rest) = page.split_once(&format!("<!-- {name} -->")).unwrap_or_else(|| panic!("no section {name}"));
    rest.split_once(&format!("<!-- /{name} -->")).unwrap_or_else(|| panic!("{name} has no end")).0
}
