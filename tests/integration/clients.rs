//! Which client a route is at an authorization server: one that its operator registered there, its document, or one that
//! is registered when it is first needed.

use std::path::Path;

use base64::{Engine, prelude::BASE64_STANDARD};
use envoy_cimd::contract::proto::{
    self, BeginAuthorizationRequest, DisconnectRequest, GetUpstreamTokenRequest, User,
    begin_authorization_response::Outcome, upstream_tokens_client::UpstreamTokensClient,
};
use tonic::{Code, transport::Channel};

use crate::{
    authorization_server::{Auth, Knows, Lie, Refresh, Servers},
    exchange::{CLIENT, Party},
    stack::{get, set_mode},
    tokens::{self, over},
};

mod configured;
mod file;
mod registration;

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
