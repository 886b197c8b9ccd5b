//! What listens where, which roles it has, and who may reach it.

use std::path::Path;

use super::{file, path_of};
use crate::{
    stack::{Certificates, Cimd, key_file, set_mode},
    world::{executable, run},
};

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
