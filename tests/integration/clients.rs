//! Which client a route is at an authorization server: one that its operator registered there, its document, or one that
//! is registered when it is first needed.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use envoy_cimd::{
    contract::{
        choreographer::Choreographer as _,
        error::BeginError,
        proto::{
            self, BeginAuthorizationRequest, DisconnectRequest, GetUpstreamTokenRequest, User,
            authorization_choreographer_client::AuthorizationChoreographerClient,
            begin_authorization_response::Outcome, begin_refusal, complete_refusal::Reason,
            upstream_tokens_client::UpstreamTokensClient,
        },
    },
    exchange::embedded::Embedded,
    model::{client::ClientId, clock::UnixTime, trace::Trace},
    store::keys::RegistrationsKey,
};
use serde_json::json;
use tonic::{Code, transport::Channel};

use crate::{
    authorization_server::{Auth, HOST, Knows, Lie, Refresh, Registers, Servers},
    exchange::{CALLBACK, CLIENT, Party, refused, single},
    stack::{Choreographer, Cimd, PATIENCE, get, grpc::channel, metric, set_mode},
    store::Redis,
    tokens::{self, Kept, audited, over, person},
    world::{executable, run},
};

const NOTES: &str = "https://notes.localhost";
const OTHER: &str = "https://tickets.localhost/.well-known/mcp-client-metadata.json";
/// With all that is to be encoded, or is not.
const SECRET: &str = "SECRET of+an%operator:&=/~";

/// A server that knows one client, whose tokens are over when they come, so that whoever wants one has to refresh it.
pub fn by_hand(name: &'static str, auth: Auth) -> Lie {
    Lie {
        knows: Knows::ByHand("by-hand:1", auth, if auth == Auth::None { "" } else { SECRET }),
        ..over(name, Refresh::Rotates)
    }
}

/// The entry of that client in `clients:`, with its secret in a file of this folder.
pub fn entry(servers: &Servers, dir: &Path, lie: &Lie, routes: &[&str]) -> String {
    let Knows::ByHand(id, auth, secret) = lie.knows else { panic!("{} knows no client by hand", lie.name) };
    let mut entry =
        format!("- issuer: {}/{}\n  client_id: '{id}'\n  routes: [{}]\n", servers.issuer, lie.name, routes.join(", "));
    if auth != Auth::None {
        let file = dir.join(format!("{}.secret", lie.name));
        std::fs::write(&file, format!("{secret}\n")).expect("written");
        set_mode(&file, 0o600);
        entry += &format!("  client_secret_file: {}\n", file.display());
    }
    if auth == Auth::Post {
        entry += "  token_endpoint_auth_method: client_secret_post\n";
    }
    entry
}

/// A choreographer with these clients for one route, which hands out tokens on a Unix socket.
async fn party(lies: Vec<Lie>, flags: &[&str]) -> (Party, UpstreamTokensClient<Channel>) {
    let folder = tempfile::tempdir().expect("a folder").keep();
    let address = format!("unix:{}", folder.join("tokens.sock").display());
    let known = lies.clone();
    let listed = move |servers: &Servers, dir: &Path| clients(servers, dir, &known);
    let party = Party::with_clients(lies, &[&["--tokens-listen", &address], flags].concat(), listed).await;
    (party, tokens::client(&address).await)
}

fn clients(servers: &Servers, dir: &Path, lies: &[Lie]) -> String {
    let of_hand = lies.iter().filter(|lie| matches!(lie.knows, Knows::ByHand(..)));
    match of_hand.map(|lie| entry(servers, dir, lie, &[NOTES])).collect::<String>() {
        none if none.is_empty() => none,
        entries => format!("clients:\n{entries}"),
    }
}

/// What begins a flow of a route that pins its issuer.
fn pinned(party: &Party, name: &str) -> BeginAuthorizationRequest {
    let issuer = format!("{}/{name}", party.servers.issuer);
    BeginAuthorizationRequest { authorization_server: issuer, ..party.request(name) }
}

async fn begun(party: &Party, request: BeginAuthorizationRequest) -> proto::Begun {
    match party.begin_with(request).await {
        Outcome::Begun(begun) => begun,
        Outcome::Refusal(refusal) => panic!("{refusal:?}"),
    }
}

/// Takes a user through a flow of a route that pins its issuer.
async fn connect(party: &Party, name: &str, user: User) {
    let request = BeginAuthorizationRequest { user: Some(user.clone()), ..pinned(party, name) };
    let mut answer = party.answer(name, &begun(party, request).await);
    answer.user = Some(user);
    party.complete(answer).await.expect("completed");
}

async fn token(
    client: &UpstreamTokensClient<Channel>,
    party: &Party,
    name: &str,
    user: User,
) -> Result<String, (Code, String)> {
    token_of(client, party, name, user, &format!("{}/{name}", party.servers.issuer)).await
}

/// The same with this issuer pinned; with none, where it is empty.
async fn token_of(
    client: &UpstreamTokensClient<Channel>,
    party: &Party,
    name: &str,
    user: User,
    pin: &str,
) -> Result<String, (Code, String)> {
    let request = GetUpstreamTokenRequest {
        user: Some(user),
        client_id: CLIENT.to_owned(),
        upstream: party.servers.upstream_of(name),
        authorization_server: pin.to_owned(),
        ..GetUpstreamTokenRequest::default()
    };
    let answer = client.clone().get_upstream_token(request).await;
    answer.map(|token| token.into_inner().access_token).map_err(|status| (status.code(), status.message().to_owned()))
}

async fn disconnect(party: &Party, name: &str, user: User) {
    let request = DisconnectRequest {
        user: Some(user),
        client_id: CLIENT.to_owned(),
        upstream: party.servers.upstream_of(name),
        ..DisconnectRequest::default()
    };
    party.disconnect(request).await;
}

fn client_id(authorization_url: &str) -> String {
    let url = url::Url::parse(authorization_url).expect("a URL");
    url.query_pairs().find(|(name, _)| name == "client_id").expect("a client").1.into_owned()
}

/// What of these secrets shows anywhere: in the log, which has all that libraries say, in the metrics, or in a file of the
/// state directory; each as it is, and in the forms in which it is sent.
pub async fn assert_hidden(party: &Party, client_id: &str, secrets: &[&str]) {
    let encoded = |text: &str| url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    let mut forms = Vec::new();
    for secret in secrets {
        let basic = BASE64_STANDARD.encode(format!("{}:{}", encoded(client_id), encoded(secret)));
        forms.extend([(*secret).to_owned(), encoded(secret), BASE64_STANDARD.encode(secret), basic]);
    }
    let (_, metrics) = get(party.process.admin.parse().expect("an address"), "/metrics").await.expect("metrics");
    let mut places = vec![
        ("the log".to_owned(), party.process.process.output().into_bytes()),
        ("the metrics".to_owned(), metrics.to_vec()),
    ];
    for file in std::fs::read_dir(party.dir.path().join("state")).expect("the state directory") {
        let path = file.expect("a file").path();
        places.push((path.display().to_string(), std::fs::read(&path).expect("readable")));
    }
    assert!(places.len() > 2 && places.iter().all(|(_, content)| !content.is_empty()));
    for (place, content) in &places {
        for form in &forms {
            let shows = content.windows(form.len()).any(|part| part == form.as_bytes());
            assert!(!shows, "{form} is in {place}");
        }
    }
}

/// A client of the config file is who the route is, from the authorization request to the revocation; what is kept is kept
/// under the route's document all the same.
#[tokio::test]
async fn a_client_by_hand_connects_refreshes_and_is_revoked() {
    let lies = [("public", Auth::None), ("basic", Auth::Basic), ("post", Auth::Post)];
    let lies: Vec<Lie> = lies.map(|(name, auth)| by_hand(name, auth)).into();
    let names: Vec<&str> = lies.iter().map(|lie| lie.name).collect();
    let (mut party, client) = party(lies, &[]).await;
    for name in &names {
        let begun = begun(&party, pinned(&party, name)).await;
        assert_eq!(client_id(&begun.authorization_url), "by-hand:1", "{name}");
        party.complete(party.answer(name, &begun)).await.expect(name);
        let before = party.servers.refreshes().len();
        let token = token(&client, &party, name, single()).await.expect(name);
        assert!(party.servers.origin(&token).is_some(), "{name}");
        assert_eq!(party.servers.refreshes().len(), before + 1, "{name}");
    }
    for (index, name) in names.iter().enumerate() {
        disconnect(&party, name, single()).await;
        assert_eq!(party.servers.revoked().len(), index + 1, "{name}: the server took it");
        connect(&party, name, single()).await;
    }
    assert_eq!(audited(&party, "revoked"), ["ok"; 3]);
    assert_hidden(&party, "by-hand:1", &[SECRET]).await;
    assert!(party.stored(&names).await.iter().all(Option::is_some));
}

/// What an upstream names selects no client of the config file: who names an honest server is not handed its tokens. Nor
/// does one that the operator pins select the client of another route.
#[tokio::test]
async fn an_upstream_does_not_select_a_client_by_hand() {
    let takes_documents = Lie {
        metadata: |document| document["client_id_metadata_document_supported"] = true.into(),
        ..by_hand("both", Auth::Basic)
    };
    let lies = vec![by_hand("honest", Auth::Basic), takes_documents, Lie::none("evil"), Lie::none("sly")];
    let (party, _) = party(lies, &[]).await;
    party.servers.moves("evil", "honest");
    party.servers.moves("sly", "both");
    let shown = |name: &str| format!("{}/{name}", party.servers.issuer);
    let at = |name: &str| BeginAuthorizationRequest { shown_issuer: shown("honest"), ..party.request(name) };
    let not_pinned = "the client of `clients:` is not used, since the route does not pin this `authorization_server`";
    let not_listed = "`clients:` has no client for this route and issuer";
    let elsewhere = BeginAuthorizationRequest { client_id: OTHER.to_owned(), ..pinned(&party, "honest") };
    for (request, why) in [(at("evil"), not_pinned), (at("honest"), not_pinned), (elsewhere, not_listed)] {
        let outcome = party.begin_with(request).await;
        let (reason, message) = refused(&outcome);
        assert_eq!(reason, begin_refusal::Reason::AuthorizationServerUnusable);
        let documents = "it does not support client ID metadata documents (`client_id_metadata_document_supported`)";
        assert!(message.contains(why) && message.contains(documents), "{message}");
    }
    // Where the server takes documents, that is who everybody is who is not listed.
    let begun = begun(&party, BeginAuthorizationRequest { shown_issuer: shown("both"), ..at("sly") }).await;
    assert_eq!(client_id(&begun.authorization_url), CLIENT);
    let answer = party.answer("both", &begun);
    let (reason, cause) = party.complete(answer).await.expect_err("it is not that client");
    assert_eq!(reason, Reason::ExchangeFailed);
    assert!(cause.ends_with("401 with the error `invalid_client`"), "{cause}");
    assert_hidden(&party, "by-hand:1", &[SECRET]).await;
}

/// A listed client comes before the document; an earlier issuer's slash makes no difference.
#[tokio::test]
async fn a_client_by_hand_comes_first() {
    let both = Lie {
        metadata: |document| document["client_id_metadata_document_supported"] = true.into(),
        ..by_hand("both", Auth::Post)
    };
    let (party, _) = party(vec![both], &[]).await;
    let begun = begun(&party, pinned(&party, "both")).await;
    assert_eq!(client_id(&begun.authorization_url), "by-hand:1");
    party.complete(party.answer("both", &begun)).await.expect("completed");
}

/// Two routes that are one client have their own flows and tokens.
#[tokio::test]
async fn two_routes_that_are_one_client_share_nothing() {
    let lie = by_hand("shared", Auth::Basic);
    let routes = [NOTES, "https://tickets.localhost"];
    let party =
        Party::with_clients(vec![lie], &[], |servers, dir| format!("clients:\n{}", entry(servers, dir, &lie, &routes)))
            .await;
    let others = BeginAuthorizationRequest {
        client_id: OTHER.to_owned(),
        redirect_uri: "https://tickets.localhost/.pomerium/oauth/callback".to_owned(),
        ..pinned(&party, "shared")
    };
    let (mine, theirs) = (begun(&party, pinned(&party, "shared")).await, begun(&party, others.clone()).await);
    assert_eq!(client_id(&mine.authorization_url), client_id(&theirs.authorization_url));
    // A flow of one is nothing to the other's redirect URI, and is not consumed by it.
    let mut crossed = party.answer("shared", &theirs);
    assert_eq!(crossed.redirect_uri, CALLBACK);
    assert_eq!(party.complete(crossed.clone()).await, Err((Reason::WrongContext, String::new())));
    assert_eq!(party.servers.asked(), 0);
    crossed.redirect_uri = others.redirect_uri;
    party.complete(crossed).await.expect("completed");
    party.complete(party.answer("shared", &mine)).await.expect("completed");
    disconnect(&party, "shared", single()).await;
    let mut party = party;
    assert_eq!(party.servers.revoked().len(), 1);
    assert_eq!(party.stored(&["shared"]).await, [None]);
}

/// A secret that changes at the server, and then in the file: what the server says meanwhile ends no grant. A bad file
/// keeps the last secret, and says so.
#[tokio::test]
async fn a_secret_is_read_again_when_it_changes() {
    let lie = by_hand("rotates", Auth::Basic);
    let (mut party, client) = party(vec![lie], &[]).await;
    connect(&party, "rotates", person("i", "ann")).await;
    connect(&party, "rotates", person("i", "bob")).await;
    let file = party.dir.path().join("rotates.secret");
    let not_taken = async |party: &mut Party, content: &str, words: &str| {
        std::fs::write(&file, content).expect("written");
        let said =
            |line: &str| (line.contains("not taken, the last good one stays") && line.contains(words)).then_some(());
        party.process.process.line(said).await;
    };
    not_taken(&mut party, "", "is empty").await;
    not_taken(&mut party, &"SECRET".repeat(2_000), "has more than 4096 bytes").await;
    not_taken(&mut party, "SECRET\nSECRET\n", "is not one line of printable ASCII").await;
    let failed = "envoy_cimd_reloads_total{file=\"client_secrets\",result=\"failed\"}";
    assert_eq!(metric(&party.process.admin, failed).await, Some(3));
    token(&client, &party, "rotates", person("i", "ann")).await.expect("with the last good one");

    const NEXT: &str = "SECRET-the-next";
    party.servers.set_secret("rotates", "by-hand:1", NEXT);
    let (code, cause) = token(&client, &party, "rotates", person("i", "bob")).await.expect_err("it is over");
    assert_eq!(code, Code::Unavailable, "{cause}");
    assert!(cause.contains("401 with the error `invalid_client`"), "{cause}");
    std::fs::write(&file, NEXT).expect("written");
    let taken = |line: &str| (line.contains("\"client_secrets\"") && line.contains("read again")).then_some(());
    party.process.process.line(taken).await;
    // Once what was just heard is a second old.
    let deadline = Instant::now() + PATIENCE;
    while let Err((code, cause)) = token(&client, &party, "rotates", person("i", "bob")).await {
        assert!(code == Code::Unavailable && Instant::now() < deadline, "{code:?} {cause}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_hidden(&party, "by-hand:1", &[SECRET, NEXT]).await;
}

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

/// A server that registers clients, whose tokens are over when they come.
pub fn registers(name: &'static str, how: Registers) -> Lie {
    Lie { knows: Knows::Registered(how), ..over(name, Refresh::Rotates) }
}

/// A choreographer that registers clients.
async fn registering(lies: Vec<Lie>, flags: &[&str]) -> (Party, UpstreamTokensClient<Channel>) {
    party(lies, &[&["--dynamic-registration"], flags].concat()).await
}

/// What begins a flow of another route, which is told by a path.
fn of_route(party: &Party, path: &str, name: &str) -> BeginAuthorizationRequest {
    BeginAuthorizationRequest {
        client_id: format!("{NOTES}/{path}/.well-known/mcp-client-metadata.json"),
        redirect_uri: format!("{NOTES}/{path}/.pomerium/oauth/callback"),
        client_name: path.to_owned(),
        ..party.request(name)
    }
}

async fn why_not(party: &Party, request: BeginAuthorizationRequest) -> String {
    let outcome = party.begin_with(request).await;
    let (reason, message) = refused(&outcome);
    assert_eq!(reason, begin_refusal::Reason::AuthorizationServerUnusable);
    message.to_owned()
}

/// One registration for all people of a route, with which they connect, refresh and disconnect, whichever way of
/// authentication the server made of it.
#[tokio::test]
async fn a_route_is_registered_once() {
    let lies = [("public", Auth::None), ("basic", Auth::Basic), ("post", Auth::Post)];
    let lies: Vec<Lie> = lies.map(|(name, auth)| registers(name, Registers::Honestly(auth))).into();
    let names: Vec<&str> = lies.iter().map(|lie| lie.name).collect();
    let (mut party, client) = registering(lies, &[]).await;
    for (index, name) in names.iter().enumerate() {
        let request = BeginAuthorizationRequest { client_name: "Notes".to_owned(), ..party.request(name) };
        // All at once.
        let all = futures_util::future::join_all((0..20).map(|_| begun(&party, request.clone()))).await;
        let registered = format!("client-{}", index + 1);
        assert!(all.iter().all(|begun| client_id(&begun.authorization_url) == registered), "{name}");
        party.complete(party.answer(name, &all[0])).await.expect(name);
        let token = token_of(&client, &party, name, single(), "").await.expect(name);
        assert!(party.servers.origin(&token).is_some(), "{name}");
        disconnect(&party, name, single()).await;
        assert_eq!(party.servers.revoked().len(), index + 1, "{name}: the server took it");
        let expected = json!({
            "client_name": "Notes",
            "client_uri": NOTES,
            "redirect_uris": [CALLBACK],
            "grant_types": ["authorization_code", "refresh_token"],
            "response_types": ["code"],
            "token_endpoint_auth_method": "none",
            "application_type": "web",
        });
        assert_eq!(party.servers.registrations(name), [expected], "{name}");
    }
    let secrets = ["SECRET of+client%2:", "SECRET of+client%3:", "SECRET-registration-token", "SECRET-management"];
    assert_hidden(&party, "client-2", &secrets).await;
    let log = party.process.process.output();
    assert!(!log.contains("elsewhere.example"), "the address for managing the client is not followed");
    assert!(party.stored(&names).await.iter().all(Option::is_none));
}

/// A server that takes no other way of authentication is asked for that.
#[tokio::test]
async fn a_server_that_takes_secrets_alone_is_asked_for_one() {
    let only_post = Lie {
        metadata: |document| {
            document["token_endpoint_auth_methods_supported"] = json!(["private_key_jwt", "client_secret_post"])
        },
        ..registers("post", Registers::Honestly(Auth::Post))
    };
    let (party, _) = registering(vec![only_post], &[]).await;
    let begun = begun(&party, party.request("post")).await;
    party.complete(party.answer("post", &begun)).await.expect("completed");
    assert_eq!(party.servers.registrations("post")[0]["token_endpoint_auth_method"], "client_secret_post");
}

/// Each way that is not open is named, and without the setting nobody is registered; nor where a way before it is open.
#[tokio::test]
async fn registration_comes_last_and_only_on_request() {
    let honest = Registers::Honestly(Auth::None);
    let documents = Lie {
        metadata: |document| document["client_id_metadata_document_supported"] = true.into(),
        ..registers("documents", honest)
    };
    let nowhere = Lie {
        metadata: |document| document["registration_endpoint"] = json!("http://as.example/r"),
        ..registers("nowhere", honest)
    };
    let private = Lie {
        metadata: |document| document["registration_endpoint"] = json!("https://10.0.0.7/r"),
        ..registers("private", honest)
    };
    let lies = vec![registers("only", honest), documents, nowhere, private, by_hand("neither", Auth::None)];
    let unlisted = "knows us in no way: `clients:` has no client for this route and issuer; it does not support client ID \
                    metadata documents (`client_id_metadata_document_supported`); ";
    let (off, _) = party(lies.clone(), &[]).await;
    let (on, _) = registering(lies, &[]).await;
    let elsewhere = |party: &Party, name: &str| of_route(party, "elsewhere", name);
    for (party, name, why) in [
        (&off, "only", "it would register a client, which needs --dynamic-registration"),
        (&off, "neither", "it does not register clients (`registration_endpoint`)"),
        (&on, "neither", "it does not register clients (`registration_endpoint`)"),
        (&on, "nowhere", "it does not register clients where we may ask it to: http://as.example/r: must be https"),
        (&on, "private", "it does not register clients where we may ask it to: https://10.0.0.7/r: 10.0.0.7 is"),
    ] {
        let message = why_not(party, elsewhere(party, name)).await;
        assert!(message.contains(unlisted) && message.contains(why), "{name}: {message}");
    }
    assert_eq!(client_id(&begun(&on, on.request("documents")).await.authorization_url), CLIENT);
    assert_eq!(client_id(&begun(&on, pinned(&on, "neither")).await.authorization_url), "by-hand:1");
    // Neither is anybody who was shown another issuer.
    let unseen = BeginAuthorizationRequest { shown_issuer: String::new(), ..on.request("only") };
    let outcome = on.begin_with(unseen).await;
    assert_eq!(refused(&outcome).0, begin_refusal::Reason::IssuerChanged);
    for name in ["only", "documents", "nowhere", "private", "neither"] {
        assert_eq!((off.servers.registrations(name).len(), on.servers.registrations(name).len()), (0, 0), "{name}");
    }
}

/// What a registration endpoint may answer, and what an operator reads: nobody is sent there, and nothing is kept.
#[tokio::test]
async fn registration_endpoints_that_lie() {
    let basic = |change| Registers::Json(Auth::Basic, change);
    let rows = [
        (
            "refuses",
            Registers::Status(400, r#"{"error":"invalid_redirect_uri","error_description":"SECRET"}"#),
            "answered 400 with the error `invalid_redirect_uri`",
        ),
        ("own-code", Registers::Status(400, r#"{"error":"SECRET"}"#), "answered 400 with the error `other`"),
        ("html", Registers::Html, "answered with a success that cannot be used: it is not JSON"),
        ("redirects", Registers::Redirects, "answered 307"),
        ("hangs", Registers::Hangs, "no whole answer came within 5 seconds"),
        ("huge", Registers::Huge, "the answer is larger than 1048576 bytes"),
        (
            "elsewhere",
            basic(|d| d["redirect_uris"] = json!(["https://SECRET.example"])),
            "does not support our redirect URI",
        ),
        (
            "no-secret",
            basic(|d| drop(d.as_object_mut().expect("an object").remove("client_secret"))),
            "lacks `client_secret`",
        ),
        (
            "jwt",
            basic(|d| d["token_endpoint_auth_method"] = json!("private_key_jwt")),
            "it demands another `token_endpoint_auth_method`",
        ),
        (
            "a-minute",
            basic(|d| {
                d["client_secret_expires_at"] = json!(UnixTime::now().secs() + 60);
            }),
            "the secret ends within the 10 minutes that a sign-in may take",
        ),
    ];
    let lies = rows.iter().map(|(name, how, _)| registers(name, *how)).collect();
    let (party, _) = registering(lies, &[]).await;
    for (name, _, words) in rows {
        let message = why_not(&party, of_route(&party, name, name)).await;
        assert!(message.contains(words) && !message.contains("SECRET"), "{name}: {message}");
        assert_eq!(party.servers.registrations(name).len(), 1, "{name}");
    }
    assert_eq!(party.servers.asked(), 0);
    let log = party.process.process.output();
    assert!(log.contains("no client was registered") && !log.contains("SECRET"), "{log}");
}

/// However often it is asked for, a route is registered five times an hour at most. Another route goes on.
#[tokio::test]
async fn a_route_asks_five_times_an_hour() {
    let fails = registers("fails", Registers::Status(500, ""));
    // A server that knows no client that it registered, for ever.
    let forgets = registers("forgets", Registers::Honestly(Auth::Basic));
    let (party, _) = registering(vec![fails, forgets, registers("good", Registers::Honestly(Auth::None))], &[]).await;
    for number in 1..=7 {
        let message = why_not(&party, of_route(&party, "a", "fails")).await;
        let is_limited = message.contains("5 registrations were asked for on behalf of this route within an hour");
        assert_eq!(is_limited, number > 5, "{message}");
    }
    assert_eq!(party.servers.registrations("fails").len(), 5);
    // Nor at another server, which a hostile upstream may name.
    assert!(why_not(&party, of_route(&party, "a", "good")).await.contains("5 registrations"));
    for _ in 1..=5 {
        let request = of_route(&party, "b", "forgets");
        let begun = begun(&party, request.clone()).await;
        party.servers.forget_clients("forgets");
        let mut answer = party.answer("forgets", &begun);
        answer.redirect_uri = request.redirect_uri;
        let (reason, _) = party.complete(answer).await.expect_err("it is not known");
        assert_eq!(reason, Reason::ExchangeFailed);
    }
    assert!(why_not(&party, of_route(&party, "b", "forgets")).await.contains("5 registrations"));
    assert_eq!(party.servers.registrations("forgets").len(), 5);
    begun(&party, of_route(&party, "c", "good")).await;
}

/// A server that was started anew and knows no client any more: whoever has a grant of it is told to connect, and the next
/// who does has the route registered, once.
#[tokio::test]
async fn a_client_that_its_server_forgot_is_registered_anew() {
    let (mut party, client) = registering(vec![registers("forgets", Registers::Honestly(Auth::Basic))], &[]).await;
    for subject in ["ann", "bob"] {
        connect(&party, "forgets", person("i", subject)).await;
    }
    party.servers.forget_clients("forgets");
    for subject in ["ann", "bob"] {
        let error = token(&client, &party, "forgets", person("i", subject)).await.expect_err("it is over");
        assert_eq!(error.0, Code::NotFound, "{error:?}");
    }
    assert_eq!(party.servers.registrations("forgets").len(), 1, "only who begins registers");
    for subject in ["ann", "bob"] {
        connect(&party, "forgets", person("i", subject)).await;
        token(&client, &party, "forgets", person("i", subject)).await.expect("it is good");
    }
    assert_eq!(party.servers.registrations("forgets").len(), 2);
    assert_eq!(party.process.process.stop().await, Some(0));
    let log = party.process.process.output();
    assert_eq!(log.matches("its server forgot the client that was registered").count(), 1);
}

/// An authorization server that moves: the route is another client there, and nothing of the first reaches the second.
#[tokio::test]
async fn another_server_has_a_registration_of_its_own() {
    let lies = ["old", "new"].map(|name| registers(name, Registers::Honestly(Auth::Basic)));
    let (party, client) = registering(lies.into(), &[]).await;
    connect(&party, "old", single()).await;
    let issuer = format!("{}/new", party.servers.issuer);
    let moved = BeginAuthorizationRequest {
        authorization_server: issuer.clone(),
        shown_issuer: issuer.clone(),
        ..party.request("old")
    };
    let begun = begun(&party, moved).await;
    assert_eq!(client_id(&begun.authorization_url), "client-2");
    let mut answer = party.answer("new", &begun);
    answer.iss = Some(issuer.clone());
    party.complete(answer).await.expect("completed");
    token_of(&client, &party, "old", single(), &issuer).await.expect("the new server's");
    assert_eq!((party.servers.registrations("old").len(), party.servers.registrations("new").len()), (1, 1));
    assert_eq!(party.servers.revoked().len(), 1, "what it replaces is revoked, as the client that it was given to");
}

/// A secret that ends within a flow is not begun with.
#[tokio::test]
async fn a_client_is_registered_anew_before_its_secret_ends() {
    let in_an_hour = Registers::Json(Auth::Basic, |document| {
        document["client_secret_expires_at"] = json!(UnixTime::now().secs() + 3600);
    });
    let (_dir, servers, mut embedded) = tokens::in_process_registering(vec![registers("expires", in_an_hour)]).await;
    let client_of = async |embedded: &Embedded| {
        let begun = embedded.begin(tokens::begin(&servers, "expires"), &Trace::default()).await.expect("it began");
        client_id(&begun.authorization_url)
    };
    assert_eq!((client_of(&embedded).await, client_of(&embedded).await), ("client-1".into(), "client-1".into()));
    embedded.tokens.clock = || UnixTime::now() + 2900;
    assert_eq!(client_of(&embedded).await, "client-1");
    embedded.tokens.clock = || UnixTime::now() + 3100;
    // What came is of the true time, so that it ends as early; and is not taken.
    let error =
        embedded.begin(tokens::begin(&servers, "expires"), &Trace::default()).await.expect_err("it ends too early");
    assert!(
        matches!(&error, BeginError::AuthorizationServerUnusable(why) if why.contains("the secret ends")),
        "{error:?}"
    );
    assert_eq!(servers.registrations("expires").len(), 2);
}

/// Somebody who can write to the store gives a route another's client: nothing begins, and nothing is sent.
#[tokio::test]
async fn registrations_that_were_moved_are_nobodys() {
    let kept = Kept::new(tempfile::tempdir().expect("a folder"), None);
    let flags = kept.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let (mut party, _) = registering(vec![registers("good", Registers::Honestly(Auth::Basic))], &flags).await;
    begun(&party, party.request("good")).await;
    assert_eq!(party.process.process.stop().await, Some(0));
    let others = of_route(&party, "other", "good");
    {
        let open = kept.open().await;
        let [mine, theirs] = [CLIENT, &others.client_id].map(|document| RegistrationsKey::of(&ClientId::new(document)));
        let sealed = open.store.registrations(mine).await.expect("a store").expect("what was registered");
        assert!(open.store.replace_registrations(theirs, None, sealed).await.expect("a store"));
    }
    let (mut process, client) = another(&party, &flags).await;
    let Outcome::Refusal(refusal) = begin_at(client.clone(), others).await else { panic!("it began") };
    assert!(refusal.message.contains("cannot be opened"), "{refusal:?}");
    let Outcome::Begun(begun) = begin_at(client, party.request("good")).await else { panic!("it did not begin") };
    assert_eq!(client_id(&begun.authorization_url), "client-1", "its own is there all the same");
    assert_eq!(party.servers.registrations("good").len(), 1);
    let violation = |line: &str| line.contains("\"isolation_violation\"").then_some(());
    process.process.line(violation).await;
    assert!(!process.process.output().contains("SECRET"));
}

/// Two processes that share Redis register a route once, however many begin at either at once. Its secret is sealed there.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server: make test-redis"]
async fn redis_two_processes_register_once() {
    let redis_dir = tempfile::tempdir().expect("a folder");
    let redis = Redis::start(redis_dir.path(), &[], "--port").await;
    let kept = Kept::new(tempfile::tempdir().expect("a folder"), Some(redis.url("redis", "")));
    let flags = kept.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let (party, _) = registering(vec![registers("good", Registers::Honestly(Auth::Basic))], &flags).await;
    let (_process, other) = another(&party, &flags).await;
    let all = (0..20).map(|number| {
        let (party, other, request) = (&party, other.clone(), party.request("good"));
        async move {
            match number % 2 {
                0 => party.begin_with(request).await,
                _ => begin_at(other, request).await,
            }
        }
    });
    for outcome in futures_util::future::join_all(all).await {
        let Outcome::Begun(begun) = outcome else { panic!("{outcome:?}") };
        assert_eq!(client_id(&begun.authorization_url), "client-1");
    }
    assert_eq!(party.servers.registrations("good").len(), 1);
    let mut files = vec![redis_dir.path().to_owned()];
    let mut bytes = 0;
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(std::fs::read_dir(&path).expect("a folder").map(|file| file.expect("a file").path()));
            continue;
        }
        let content = std::fs::read(&path).expect("a file");
        bytes += content.len();
        assert!(!content.windows(6).any(|part| part == b"SECRET"), "{}", path.display());
    }
    assert!(bytes > 1000, "what Redis was told is there");
}

/// A process that dies while it registers keeps the others from it for some seconds, and no longer.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server: make test-redis"]
async fn redis_a_registration_outlives_who_began_it() {
    let redis_dir = tempfile::tempdir().expect("a folder");
    let redis = Redis::start(redis_dir.path(), &[], "--port").await;
    let kept = Kept::new(tempfile::tempdir().expect("a folder"), Some(redis.url("redis", "")));
    let flags = kept.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let (mut party, _) = registering(vec![registers("late", Registers::Late(Auth::Basic))], &flags).await;
    let (_process, other) = another(&party, &flags).await;
    let request = party.request("late");
    tokio::select! {
        outcome = party.begin_with(request.clone()) => panic!("{outcome:?}"),
        () = async {
            while party.servers.registrations("late").is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        } => {}
    }
    party.process.process.signal("-KILL");
    party.process.process.ended().await;
    party.servers.answer();
    // Whoever presses is told that it takes long, and finds it done when they press again.
    let deadline = Instant::now() + PATIENCE;
    loop {
        match begin_at(other.clone(), request.clone()).await {
            Outcome::Begun(begun) => break assert_eq!(client_id(&begun.authorization_url), "client-2"),
            Outcome::Refusal(refusal) => assert!(Instant::now() < deadline, "{refusal:?}"),
        }
    }
    assert_eq!(party.servers.registrations("late").len(), 2);
}

/// Another choreographer on the same store.
async fn another(party: &Party, flags: &[&str]) -> (Choreographer, AuthorizationChoreographerClient<Channel>) {
    let more = ["--extra-ca", &party.ca, "--allow-host", HOST, "--dynamic-registration"];
    let process = Choreographer::start(&executable(), &[flags, &more].concat()).await;
    let client = AuthorizationChoreographerClient::new(channel(&process.address).await);
    (process, client)
}

async fn begin_at(
    mut client: AuthorizationChoreographerClient<Channel>,
    request: BeginAuthorizationRequest,
) -> Outcome {
    client.begin_authorization(request).await.expect("an answer").into_inner().outcome.expect("an outcome")
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
