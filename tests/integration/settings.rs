//! Settings: where they come from, which wins, and what is said of a bad one.

use std::{collections::BTreeSet, path::Path};

use clap::CommandFactory;
use envoy_cimd::{
    commands::{
        config_file::ConfigFile,
        settings::{Cli, parse::setting_keys},
    },
    model::{route::Key, secret::generate_key_line},
    store::url::StoreUrl,
};

use crate::{
    stack::{Certificates, Choreographer, Cimd, get, key_file, ready_address, set_mode},
    world::{executable, run},
};

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
        (&["serve", "--listen", "unix:/no/such/folder/s"], &[], 1, "--listen unix:/no/such/folder/s"),
    ];
    for (args, variables, code, error) in commands {
        let (exit, stdout, stderr) = run(args, variables);
        assert_eq!((exit, stdout.as_str()), (Some(*code), ""), "{args:?} {stderr}");
        assert!(stderr.contains(error), "{args:?} {stderr}");
    }
}

/// Tokens come from a Unix socket or over mTLS, with the choreographer's files where there are none of their own.
#[test]
fn where_tokens_come_from() {
    let dir = tempfile::tempdir().expect("a folder");
    let files = Certificates::make(dir.path(), &["localhost"]);
    let keys = key_file(dir.path());
    let text = |path: &Path| path.to_str().expect("text").to_owned();
    let (ca, cert, key) = (text(&files.ca), text(&files.cert), text(&files.key));
    let tls = |of: &str| format!("{of}_ca: {ca}\n{of}_cert: {cert}\n{of}_key: {key}\n");
    let encrypted = |more: &str| format!("choreographer: 'https://localhost:1'\n{}{more}", tls("choreographer"));
    let on_a_socket = |more: &str| format!("choreographer: 'unix:/nowhere/c'\n{more}");
    for (settings, error) in [
        (on_a_socket("tokens: 'unix:/nowhere/t'\n"), None),
        (encrypted("tokens: 'unix:/nowhere/t'\n"), None),
        (encrypted("tokens: 'https://localhost:2'\n"), None),
        (encrypted("tokens: 'https://localhost:2'\ntokens_peer: tokens.example\n"), None),
        (on_a_socket(&format!("tokens: 'https://localhost:2'\n{}", tls("tokens"))), None),
        (
            on_a_socket("tokens: 'http://127.0.0.1:2'\n"),
            Some("--tokens http://127.0.0.1:2: what comes from there is every user's token"),
        ),
        (
            encrypted("tokens: 'http://tokens.example:2'\ninsecure_grpc: true\ninsecure_traffic: true\n"),
            Some("--tokens http://tokens.example:2: what comes from there is every user's token"),
        ),
        (
            on_a_socket("tokens: 'https://localhost:2'\n"),
            Some("an https:// --tokens needs --tokens-cert and --tokens-key"),
        ),
        (
            on_a_socket(&format!("tokens: 'https://localhost:2'\ntokens_ca: {ca}\n")),
            Some("an https:// --tokens needs --tokens-cert and --tokens-key"),
        ),
        (
            on_a_socket(&format!("tokens: 'https://localhost:2'\ntokens_cert: {cert}\ntokens_key: {key}\n")),
            Some("an https:// --tokens needs --tokens-ca"),
        ),
        (
            encrypted(&format!("tokens: 'https://localhost:2'\ntokens_cert: {cert}\n")),
            Some("--tokens-cert and --tokens-key go together"),
        ),
        (encrypted(&format!("tokens: 'https://localhost:2'\ntokens_ca: {key}\n")), Some("--tokens-ca ")),
        (
            encrypted(&format!("tokens: 'https://localhost:2'\ntokens_cert: {cert}\ntokens_key: /nowhere\n")),
            Some("--tokens-key /nowhere: No such file"),
        ),
        (
            encrypted(&format!("tokens: 'unix:/nowhere/t'\ntokens_ca: {ca}\n")),
            Some("--tokens-peer need an https:// --tokens"),
        ),
    ] {
        let config = file(&format!("listen: 'unix:/nowhere/s'\nstate_keys: {}\n{settings}", text(&keys)));
        let (code, stdout, stderr) = run(&["check", "--config", path_of(&config)], &[]);
        match error {
            None => assert!(
                code == Some(0) && stdout.contains("serves endpoints, traffic, refused\n"),
                "{settings}{stderr}"
            ),
            Some(error) => {
                assert_eq!((code, stdout.as_str()), (Some(1), ""), "{settings}");
                assert!(stderr.contains(error), "{settings}{stderr}");
                // As `serve` says it, before it binds the socket, which could not be bound.
                let (code, _, serves) = run(&["serve", "--config", path_of(&config)], &[]);
                assert_eq!((code, serves), (Some(1), stderr), "{settings}");
            }
        }
    }
    // Its key is a secret.
    let own = on_a_socket(&format!("tokens: 'https://localhost:2'\n{}", tls("tokens")));
    let config = file(&format!("listen: 'unix:/nowhere/s'\nstate_keys: {}\n{own}", text(&keys)));
    for (mode, warned) in [(0o600, false), (0o640, true)] {
        set_mode(&files.key, mode);
        let (_, stdout, _) = run(&["check", "--config", path_of(&config)], &[]);
        assert_eq!(stdout.contains(&format!("warning: {key} holds secrets")), warned, "{stdout}");
    }
}

/// Whoever reaches the role traffic may have every user's token: where it is served unasked, where asked, and where never.
#[test]
fn which_roles_a_listener_has() {
    const ALL: &str = "endpoints, traffic, refused";
    let dir = tempfile::tempdir().expect("a folder");
    let files = Certificates::make(dir.path(), &["localhost"]);
    let keys = key_file(dir.path());
    let text = |path: &Path| path.to_str().expect("text").to_owned();
    let mtls = format!(
        "listen: 0.0.0.0:0\ntls_cert: {}\ntls_key: {}\nclient_ca: {}\n",
        text(&files.cert),
        text(&files.key),
        text(&files.ca)
    );
    let named = format!("{mtls}allow_peer: envoy.example\n");
    let (socket, loopback) = ("listen: 'unix:/nowhere/s'\n", "listen: 127.0.0.1:0\n");
    let open = "listen: 0.0.0.0:0\ninsecure_grpc: true\n";
    let apart = format!("choreographer: 'unix:/nowhere/c'\nstate_keys: {}\n", text(&keys));
    let (tokens, insecure) = ("tokens: 'unix:/nowhere/t'\n", "insecure_traffic: true\n");
    let (traffic, endpoints) = ("roles: traffic\n", "roles: [endpoints]\n");
    let needs_a_name = "without --allow-peer, whoever has a certificate of --client-ca can have every user's token";
    let local = "every account of this machine could have every user's token";
    let open_to_others = "other machines reach this address in the clear";
    let no_tokens = "no traffic with --choreographer unless --tokens says where tokens come from";
    // What is served and, where nobody asked, why there is no traffic; or what is said of what must not be.
    for (settings, served) in [
        (vec![socket], Ok((ALL, ""))),
        (vec![socket, traffic], Ok(("traffic", ""))),
        (vec![socket, "roles: refused\n"], Ok(("refused", ""))),
        (vec![socket, "roles: [refused, endpoints]\n"], Ok(("endpoints, refused", ""))),
        (vec![loopback, insecure, "roles: refused\n"], Ok(("refused", ""))),
        (vec![socket, &apart, "roles: refused\n"], Err(no_tokens)),
        (vec![socket, endpoints], Ok(("endpoints", ""))),
        (vec![socket, insecure], Ok((ALL, ""))),
        (vec![socket, &apart], Ok(("endpoints", no_tokens))),
        (vec![socket, &apart, tokens], Ok((ALL, ""))),
        (vec![socket, &apart, traffic], Err(no_tokens)),
        (vec![&named], Ok((ALL, ""))),
        (vec![&named, traffic], Ok(("traffic", ""))),
        (vec![&mtls], Ok(("endpoints", needs_a_name))),
        (vec![&mtls, traffic], Err(needs_a_name)),
        (vec![&mtls, insecure], Err(needs_a_name)),
        (vec![loopback], Ok(("endpoints", local))),
        (vec![loopback, traffic], Err(local)),
        (vec![loopback, &apart, tokens], Err(local)),
        (vec![loopback, insecure], Ok((ALL, ""))),
        (vec![loopback, insecure, traffic], Ok(("traffic", ""))),
        (vec![loopback, insecure, endpoints], Ok(("endpoints", ""))),
        (vec![open], Ok(("endpoints", open_to_others))),
        (vec![open, traffic], Err(open_to_others)),
        (vec![open, insecure], Err(open_to_others)),
        (vec![open, insecure, traffic], Err(open_to_others)),
        (vec![open, insecure, endpoints], Ok(("endpoints", ""))),
    ] {
        let config = file(&settings.concat());
        let (code, stdout, stderr) = run(&["check", "--config", path_of(&config)], &[]);
        match served {
            Ok((roles, left_out)) => {
                assert_eq!((code, stderr.as_str()), (Some(0), ""), "{settings:?}");
                assert!(stdout.contains(&format!("serves {roles}\n")), "{settings:?}{stdout}");
                assert!(stdout.contains(left_out), "{settings:?}{stdout}");
                assert_eq!(stdout.contains("no traffic"), !left_out.is_empty(), "{settings:?}{stdout}");
            }
            Err(error) => {
                assert_eq!((code, stdout.as_str()), (Some(1), ""), "{settings:?}");
                assert!(stderr.contains(error), "{settings:?}{stderr}");
            }
        }
    }
}

/// A key of zeros is what a placeholder leaves. It is refused wherever keys are read, before anything is bound.
#[test]
fn keys_that_anybody_can_guess_are_refused() {
    let good = generate_key_line().expect("a key");
    let guessable = file(&format!("{good}\n{}\n", "A".repeat(43)));
    let path = path_of(&guessable);
    for key in ["state_keys", "encryption_keys"] {
        let config = file(&format!("{key}: {path}\n"));
        let flag = format!("--{}", key.replace('_', "-"));
        let said = format!("envoy-cimd: {flag} {path}: line 2 is one byte over and over, which anybody can guess");
        let none = [("ENVOY_CIMD_STATE_DIR", "/dev/null/none")];
        for command in ["serve", "check"] {
            let (code, stdout, stderr) = run(&[command, "--config", path_of(&config)], &none);
            assert_eq!((code, stdout.as_str()), (Some(1), ""), "{command} {key}: {stderr}");
            assert!(stderr.starts_with(&said), "{command} {key}: {stderr}");
            assert!(!stderr.contains("AAAA") && !stderr.contains(&good), "nothing of it is repeated: {stderr}");
        }
        if key == "encryption_keys" {
            let (code, _, stderr) = run(&["choreographer", "--listen", "127.0.0.1:0", &flag, path], &none);
            assert_eq!((code, stderr.starts_with(&said)), (Some(1), true), "{stderr}");
        }
    }
}

/// The files of secrets, each in its turn open to others: that is said at start, by `check`, and when one is read again.
#[tokio::test]
async fn who_else_gets_at_secrets_is_told() {
    let dir = tempfile::tempdir().expect("a folder");
    let certificates = Certificates::make(dir.path(), &["localhost"]);
    let text = |path: &Path| path.to_str().expect("text").to_owned();
    let [state, sealing, store] = ["state.keys", "encryption.keys", "store"].map(|name| dir.path().join(name));
    std::fs::write(&state, generate_key_line().expect("a key")).expect("written");
    std::fs::write(&sealing, generate_key_line().expect("a key")).expect("written");
    let open = StoreUrl::File(store.clone()).open(Some(&sealing), None).await.expect("a store");
    drop(open);
    let config = file(&format!(
        "listen: 127.0.0.1:0\nadmin_listen: 127.0.0.1:0\nstate_keys: {}\nencryption_keys: {}\nstore: file:{}\ntls_cert: {}\n\
         tls_key: {}\nclient_ca: {}\n",
        text(&state),
        text(&sealing),
        text(&store),
        text(&certificates.cert),
        text(&certificates.key),
        text(&certificates.ca)
    ));
    let secrets = [&state, &sealing, &store, &certificates.key];
    for path in secrets {
        set_mode(path, 0o600);
    }
    let checked = || {
        let (code, stdout, stderr) = run(&["check", "--config", path_of(&config)], &[]);
        assert_eq!((code, stderr.as_str()), (Some(0), ""));
        stdout
    };
    let mut quiet = Cimd::start(&executable(), &["--config", path_of(&config)]).await;
    assert!(!quiet.process.output().contains("holds secrets"), "{}", quiet.process.output());
    quiet.process.stop().await;
    assert!(!checked().contains("holds secrets"), "{}", checked());
    for path in secrets {
        set_mode(path, 0o640);
        let warning = format!("{} holds secrets, and its mode 0640 lets its group read it", path.display());
        assert!(checked().contains(&format!("warning: {warning}")), "{}", checked());
        let mut cimd = Cimd::start(&executable(), &["--config", path_of(&config)]).await;
        let output = cimd.process.output();
        let warned: Vec<&str> = output.lines().filter(|line| line.contains("holds secrets")).collect();
        assert!(warned.len() == 1 && warned[0].contains(&warning) && warned[0].contains("WARN"), "{warned:?}");
        if [&state, &certificates.key].contains(&path) {
            set_mode(path, 0o644);
            let content = std::fs::read_to_string(path).expect("text");
            std::fs::write(path, content + "\n").expect("written");
            cimd.process.line(|line| line.contains("its mode 0644 lets everybody read it").then_some(())).await;
        }
        set_mode(path, 0o600);
        cimd.process.stop().await;
    }
}

/// What is served is in the log, and so is a demo's openness.
#[tokio::test]
async fn the_log_says_which_roles_there_are() {
    let dir = tempfile::tempdir().expect("a folder");
    let socket = format!("--listen=unix:{}", dir.path().join("s").display());
    let open = "--insecure-traffic: every account of this machine can have every user's token";
    let everybodys = "--socket-mode: every account that reaches the socket can have every user's token";
    for (flags, roles, warning) in [
        (&[][..], "\"roles\":\"endpoints\",\"left_out\":\"no traffic on --listen 127.0.0.1:0: ", None),
        (&["--insecure-traffic"], "\"roles\":\"endpoints, traffic, refused\"", Some(open)),
        (&["--insecure-traffic", "--roles=traffic"], "\"roles\":\"traffic\"", Some(open)),
        (&["--insecure-traffic", "--roles=endpoints"], "\"roles\":\"endpoints\"", None),
        (&[&socket], "\"roles\":\"endpoints, traffic, refused\"", None),
        (&[&socket, "--insecure-traffic"], "\"roles\":\"endpoints, traffic, refused\"", None),
        (&[&socket, "--socket-mode=666"], "\"roles\":\"endpoints, traffic, refused\"", Some(everybodys)),
        (&[&socket, "--socket-mode=666", "--roles=endpoints"], "\"roles\":\"endpoints\"", None),
    ] {
        let mut cimd = Cimd::start(&executable(), flags).await;
        let output = cimd.process.output();
        assert!(output.contains(roles), "{flags:?} {output}");
        for said in [open, everybodys] {
            assert_eq!(output.contains(said), warning == Some(said), "{flags:?} {output}");
        }
        cimd.process.stop().await;
    }
}

/// A taken port ends the process with the setting's name, whichever listener it is.
#[test]
fn a_taken_port_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    for (flag, other) in [("--listen", "--admin-listen"), ("--admin-listen", "--listen")] {
        let (code, _, stderr) = run(&["serve", flag, &address, other, "127.0.0.1:0"], &[]);
        assert_eq!(code, Some(1), "{stderr}");
        assert!(stderr.contains(&format!("{flag} {address}")) && stderr.contains("in use"), "{stderr}");
        assert!(!stderr.contains("\"ready\""), "the other one does not start: {stderr}");
    }
}

#[tokio::test]
async fn plain_grpc_for_other_machines_only_on_request() {
    let cimd = Cimd::start(&executable(), &["--listen", "0.0.0.0:0", "--insecure-grpc"]).await;
    assert!(cimd.ext_proc.starts_with("0.0.0.0:"));
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

/// The keys of a route are the program's own list, wherever they stand.
#[test]
fn the_page_and_the_help_list_every_route_key() {
    let page = page(REFERENCE);
    let rows = section(&page, "route keys").lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let documented: Vec<&str> = rows.map(|(key, _)| key).collect();
    assert_eq!(documented, Key::NAMES);
    let help = run(&["envoy-config", "--help"], &[]).1;
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(help.contains(&format!("the keys are {}.", Key::NAMES.join(", "))), "{help}");
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

/// A setting's row; one that two commands have with different defaults says of which it speaks.
fn setting_row(command: &str, arg: &clap::Arg) -> Option<String> {
    let variable = arg.get_env()?.to_str()?;
    let value = arg.get_value_names().map(|names| names.join(" ")).unwrap_or_default();
    let flag = match arg.get_num_args() {
        Some(range) if range.min_values() == 0 => format!("--{}[={value}]", arg.get_long()?),
        _ => format!("--{} {value}", arg.get_long()?),
    };
    let default = match arg.get_default_values() {
        [default] => format!("`{}`", default.to_str()?),
        _ => "none".to_owned(),
    };
    let of = if ["listen", "admin_listen"].contains(&arg.get_id().as_str()) {
        format!(" (`{command}`)")
    } else {
        String::new()
    };
    let help = arg.get_help()?.to_string();
    Some(format!("| `{flag}`{of} | `{variable}` | {default} | {} |", help.trim_end_matches('.')))
}

#[test]
fn the_page_lists_every_setting() {
    let page = page(REFERENCE);
    let cli = Cli::command();
    let mut rows: Vec<String> = Vec::new();
    for command in ["serve", "choreographer"] {
        let command = cli.find_subcommand(command).expect(command);
        for row in command.get_arguments().filter_map(|arg| setting_row(command.get_name(), arg)) {
            if !rows.contains(&row) {
                rows.push(row);
            }
        }
    }
    assert!(rows.len() > 5);
    let table = section(&page, "settings");
    let documented: Vec<String> = table
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.trim_end_matches(" |").trim_end_matches('.').to_owned() + " |")
        .collect();
    let missing: Vec<&str> = rows.iter().filter(|row| !documented.contains(row)).map(String::as_str).collect();
    assert!(missing.is_empty(), "the table of settings in {REFERENCE} lacks\n{}", missing.join("\n"));
    assert_eq!(documented.len(), rows.len(), "and has rows that no setting has:\n{documented:#?}");
}

#[tokio::test]
async fn the_page_lists_every_metric() {
    let page = page(OPERATIONS);
    let dir = tempfile::tempdir().expect("a folder");
    let cimd = Cimd::start(&executable(), &Certificates::make(dir.path(), &["localhost"]).flags()).await;
    let (_, text) = get(cimd.admin.parse().expect("an address"), "/metrics").await.expect("metrics");
    let text = String::from_utf8(text.to_vec()).expect("text");
    // A counter's family is named without the `_total` of its samples, an info's without `_info`.
    let metrics: BTreeSet<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .map(|(name, kind)| match kind {
            "counter" => format!("{name}_total"),
            "info" => format!("{name}_info"),
            _ => name.to_owned(),
        })
        .collect();
    let documented: BTreeSet<String> = section(&page, "metrics")
        .lines()
        .filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned()))
        .collect();
    assert_eq!(documented, metrics);
}

/// Every config file that the page shows is one that `serve` takes.
#[test]
fn the_pages_config_files_are_good() {
    let page = page(REFERENCE);
    let mut found = 0;
    for block in page.split("```yaml\n").skip(1) {
        let yaml = block.split("```").next().expect("an end");
        if !yaml.contains("routes:\n- from:") {
            continue;
        }
        found += 1;
        ConfigFile::parse(yaml, &setting_keys()).expect(yaml);
        let file = file(yaml);
        let (code, _, stderr) = run(&["check", "--config", path_of(&file)], &[]);
        assert_eq!((code, stderr.as_str()), (Some(0), ""), "{yaml}");
    }
    assert!(found > 0, "the page shows no config file");
}

/// What `--help` prints is reviewed like a page of documentation: a change of it shows in a diff.
#[test]
fn the_help_reads_as_it_was_reviewed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/integration/help");
    let commands = Cli::command().get_subcommands().map(|command| command.get_name().to_owned()).collect::<Vec<_>>();
    let mut stale = Vec::new();
    for command in std::iter::once(None).chain(commands.iter().map(Some)) {
        let args: Vec<&str> = command.map(String::as_str).into_iter().chain(["--help"]).collect();
        let (code, help, stderr) = run(&args, &[("COLUMNS", "110")]);
        assert_eq!((code, stderr.as_str()), (Some(0), ""), "{args:?}");
        let file = folder.join(format!("{}.txt", command.map_or("envoy-cimd", String::as_str)));
        if std::fs::read_to_string(&file).unwrap_or_default() == help {
            continue;
        }
        stale.push(file.clone());
        if std::env::var_os("RENEW_HELP").is_some() {
            std::fs::create_dir_all(&folder).expect("the folder");
            std::fs::write(file, help).expect("written");
        }
    }
    assert!(stale.is_empty(), "RENEW_HELP=1 writes these anew, to be read: {stale:?}");
}

#[test]
fn shells_complete_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let (code, script, stderr) = run(&["completions", shell], &[]);
        assert_eq!((code, stderr.as_str()), (Some(0), ""), "{shell}");
        for word in ["choreographer", "envoy-config", "probe", "tls-cert"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    // One that a shell can read.
    let script = run(&["completions", "bash"], &[]).1;
    let checked = std::process::Command::new("bash").args(["-n", "-c", &script]).status().expect("bash");
    assert!(checked.success());
}
