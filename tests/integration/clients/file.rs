//! The `clients:` of a config file: what may stand there, and that it is read again.

use std::path::Path;

use envoy_cimd::contract::proto::begin_authorization_response::Outcome;
use tonic::Code;

use super::{NOTES, SECRET, by_hand, clients, connect, entry, party, pinned, token};
use crate::{
    authorization_server::Auth,
    exchange::single,
    stack::{Cimd, metric, set_mode},
    world::{executable, run},
};

/// `clients:` is read again as `routes:` are: what is wrong with it is said, and the last good ones stay. A grant of a
/// client that is not there any more says so.
#[tokio::test]
async fn clients_are_read_again_when_the_file_changes() {
    let lies = vec![by_hand("stays", Auth::Basic), by_hand("goes", Auth::Basic), by_hand("changes", Auth::None)];
    let (mut party, client) = party(lies.clone(), &[]).await;
    for lie in &lies {
        connect(&party, lie.name, single()).await;
    }
    let content = clients(&party.servers, party.dir.path(), &lies);
    let twice = format!("{content}{}", entry(&party.servers, party.dir.path(), &lies[0], &[NOTES]));
    party.configure(&twice);
    let said = |line: &str| {
        line.contains("clients[0] is for this issuer and the route https://notes.localhost too").then_some(())
    };
    party.process.process.line(said).await;
    assert_eq!(metric(&party.process.admin, "envoy_cimd_reload_ok{file=\"config\"}").await, Some(0));

    let mut changed = clients(&party.servers, party.dir.path(), &[lies[0], lies[2]]);
    let place = changed.rfind("by-hand:1").expect("the last");
    changed.replace_range(place.., &changed[place..].replace("by-hand:1", "by-hand:2"));
    party.configure(&changed);
    let taken = |line: &str| (line.contains("\"config\"") && line.contains("read again")).then_some(());
    party.process.process.line(taken).await;
    let before = party.servers.asked();
    token(&client, &party, "stays", single()).await.expect("it is still there");
    for (name, words) in [
        ("goes", "is not in the config file's `clients:` any more for this route and issuer"),
        ("changes", "has another client for this route and issuer than by-hand:1"),
    ] {
        let (code, cause) = token(&client, &party, name, single()).await.expect_err(name);
        assert_eq!(code, Code::Unavailable, "{name}");
        assert!(cause.contains(words), "{name}: {cause}");
        let outcome = party.begin_with(pinned(&party, name)).await;
        assert_eq!(matches!(outcome, Outcome::Begun(_)), name == "changes", "{outcome:?}");
    }
    assert_eq!(party.servers.asked(), before + 1, "nobody else was asked");
    assert!(party.stored(&["goes", "changes"]).await.iter().all(Option::is_some), "nothing is lost");
}

/// What a file may say of clients, at start and in `check`.
#[test]
fn clients_that_cannot_be() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = |name: &str| dir.path().join(name).display().to_string();
    for (name, content) in
        [("empty", "\n"), ("long", &"SECRET".repeat(2_000)), ("lines", "SECRET\nSECRET"), ("good", "SECRET\n")]
    {
        std::fs::write(path(name), content).expect("written");
        set_mode(Path::new(&path(name)), 0o600);
    }
    let client = |more: &str| {
        format!("clients:\n- issuer: https://as.example\n  client_id: c\n  routes: [https://a.example]\n{more}")
    };
    let of_file = |name: &str| client(&format!("  client_secret_file: {}\n", path(name)));
    let at = |words: &str| format!("clients[0] (https://as.example): {words}");
    let cases = [
        (client("  client_secret: SECRET\n"), "unknown field `client_secret`".to_owned()),
        (client("  token_endpoint_auth_method: private_key_jwt\n"), "unknown variant `private_key_jwt`".to_owned()),
        (
            client("  token_endpoint_auth_method: client_secret_basic\n"),
            at("`token_endpoint_auth_method` is client_secret_basic, which needs a `client_secret_file`"),
        ),
        (
            of_file("good") + "  token_endpoint_auth_method: none\n",
            at("`token_endpoint_auth_method` is none, which takes no `client_secret_file`"),
        ),
        (of_file("empty"), at(&format!("`client_secret_file` {} is empty", path("empty")))),
        (of_file("long"), at(&format!("`client_secret_file` {} has more than 4096 bytes", path("long")))),
        (of_file("lines"), at(&format!("`client_secret_file` {} is not one line", path("lines")))),
        (of_file("missing"), at(&format!("`client_secret_file` {} cannot be read: No such file", path("missing")))),
        (of_file("."), at(&format!("`client_secret_file` {} cannot be read: it is no regular file", path(".")))),
        (
            client("- issuer: https://as.example/\n  client_id: d\n  routes: [https://a.example]\n"),
            "clients[1] (https://as.example/): clients[0] is for this issuer and the route https://a.example too"
                .to_owned(),
        ),
        ("clients:\n- issuer: https://as.example\n  routes: []\n".to_owned(), "missing field `client_id`".to_owned()),
        ("clients: x\n".to_owned(), "expected sequence start at line 1, column 10".to_owned()),
        (
            client("choreographer: 'http://127.0.0.1:1'\nstate_keys: /dev/null\n"),
            "`clients` is for the process that has the tokens: with --choreographer, that is the other one".to_owned(),
        ),
    ];
    for (content, words) in cases {
        std::fs::write(path("config.yaml"), &content).expect("written");
        for command in ["serve", "check", "choreographer"] {
            if command == "choreographer" && content.contains("choreographer:") {
                continue;
            }
            let (code, stdout, stderr) = run(&[command, "--config", &path("config.yaml")], &[]);
            assert_eq!((code, stdout.as_str()), (Some(1), ""), "{command} {content}{stderr}");
            assert!(stderr.contains(&words) && stderr.contains(&path("config.yaml")), "{command} {content}{stderr}");
            assert!(!stderr.contains("SECRET"), "{stderr}");
        }
    }
}

/// What an operator enters at the server; and a client that nothing uses.
#[test]
fn check_says_what_to_enter_at_the_server() {
    let dir = tempfile::tempdir().expect("a folder");
    let secret = dir.path().join("secret");
    std::fs::write(&secret, SECRET).expect("written");
    set_mode(&secret, 0o644);
    let config = dir.path().join("config.yaml");
    let content = format!(
        "callback_path: /oauth/callback\nroutes:\n- from: https://a.example\n  to: https://u.example/mcp\n  \
         authorization_server: https://as.example/\n- from: https://b.example/mcp\n  to: https://u.example/mcp\nclients:\n- \
         issuer: https://as.example\n  client_id: abc\n  client_secret_file: {}\n  routes: [https://a.example, \
         https://B.example:443/mcp, https://c.example]\n",
        secret.display()
    );
    std::fs::write(&config, content).expect("written");
    let (code, stdout, stderr) = run(&["check", "--config", config.to_str().expect("text")], &[]);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    let exposed = format!("warning: {} holds secrets, and its mode 0644 lets everybody read it", secret.display());
    assert!(stdout.contains(&exposed), "{stdout}");
    let expected = "client abc at https://as.example (client_secret_basic), where these redirect URIs are to be entered:
  https://a.example/oauth/callback
  https://b.example/mcp/oauth/callback
  warning: the route https://b.example/mcp is not this client, since its `authorization_server` does not pin https://as.example
  https://c.example/oauth/callback
  the route https://c.example is not in this file: wherever it comes from, it must pin this issuer with `authorization_server`
";
    assert!(stdout.contains(expected), "{stdout}");
    assert!(!stdout.contains("SECRET"), "{stdout}");
}

/// `serve` with the exchange in it reads clients again, too, all of a file or nothing.
#[tokio::test]
async fn serve_reads_clients_again() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("secret"), SECRET).expect("written");
    set_mode(&path("secret"), 0o600);
    let client = "clients:\n- issuer: https://as.example\n  client_id: c\n  routes: [https://a.example]\n";
    let with_secret = format!("{client}  client_secret_file: {}\n", path("secret").display());
    std::fs::write(path("config.yaml"), client).expect("written");
    let config = path("config.yaml");
    let mut cimd = Cimd::start(&executable(), &["--config", config.to_str().expect("text")]).await;
    let taken = |line: &str| (line.contains("\"config\"") && line.contains("read again")).then_some(());
    std::fs::write(&config, &with_secret).expect("written");
    cimd.process.line(taken).await;
    set_mode(&path("secret"), 0o640);
    std::fs::write(path("secret"), "SECRET-2").expect("written");
    cimd.process.line(|line| line.contains("its mode 0640 lets its group read it").then_some(())).await;
    let secret_taken = |line: &str| (line.contains("\"client_secrets\"") && line.contains("read again")).then_some(());
    cimd.process.line(secret_taken).await;
    std::fs::write(&config, with_secret.replace("client_id: c", "client_id: ''")).expect("written");
    let not_taken =
        "not taken, the last good one stays: clients[0] (https://as.example): `client_id` must be printable";
    cimd.process.line(|line| line.contains(not_taken).then_some(())).await;
    assert!(!cimd.process.output().contains("SECRET"));
}

/// The file that the page shows is a good one.
#[test]
fn the_pages_example_is_a_good_one() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/authorization-servers.md");
    let page = std::fs::read_to_string(page).expect("the page");
    let example = page.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).expect("an example");
    let dir = tempfile::tempdir().expect("a folder");
    let [secret, config] = ["secret", "config.yaml"].map(|name| dir.path().join(name));
    std::fs::write(&secret, SECRET).expect("written");
    set_mode(&secret, 0o600);
    let named = "/run/secrets/github";
    assert!(example.contains(named));
    let example = example.replace(named, secret.to_str().expect("text"));
    std::fs::write(&config, format!("single_user: true\n{example}")).expect("written");
    let (code, stdout, stderr) = run(&["check", "--config", config.to_str().expect("text")], &[]);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    assert!(stdout.contains("  https://mcp.example.com/github/.pomerium/oauth/callback\n"), "{stdout}");
    assert!(!stdout.contains("warning"), "{stdout}");
}
