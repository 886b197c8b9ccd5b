//! What an operator says of connecting: the keys `authorization_server`, `resource`, `scope` and `prompt`, from each
//! source to the authorization server.

use std::collections::HashMap;

use envoy_cimd::contract::proto::{
    BeginAuthorizationRequest, CompleteAuthorizationRequest, DescribeUpstreamRequest, DisconnectRequest,
    GetUpstreamTokenRequest, ReportRefusedTokenRequest, begin_authorization_response::Outcome,
    upstream_tokens_client::UpstreamTokensClient,
};
use http::Version;
use serde_json::{Value, json};
use tonic::{Code, transport::Channel};
use url::Url;

use crate::{
    authorization_server::Lie,
    choreographer::{Call as Recorded, ISSUER, after_a_page},
    exchange::{CLIENT, Party},
    flow::Flows,
    stack::Call,
    tokens::party,
    world::{DISCONNECT, DOCUMENT, START, http_filters, metadata, virtual_hosts, without_metadata},
};

const NOTES: &str = "notes.localhost";
/// What an upstream behind a private address calls itself.
const NAME: &str = "https://mcp.example.com/mcp";
/// A `client_id` of another route.
const OTHER: &str = "https://tickets.localhost/.well-known/mcp-client-metadata.json";

/// The keys of a route as they are written, and the same as JSON.
const WRITTEN: &str = "client_name=My notes,authorization_server=https://as.example/t,resource=https://mcp.example.com/mcp,scope=read write,prompt=none";

fn as_json(from: &str) -> Value {
    let mut keys = json!({ "from": from });
    for pair in WRITTEN.split(',') {
        let (key, value) = pair.split_once('=').expect("a pair");
        keys[key] = value.into();
    }
    keys
}

/// Shows the page of a route, presses its button, and disconnects; each call has what the route says.
async fn is_handed_on(flows: &Flows, from: &str) {
    let (host, path) = from.trim_start_matches("https://").split_at(NOTES.len());
    let call = |endpoint: &str| Call::get(host, &format!("{path}{endpoint}"));
    let post = |endpoint: &str| call(endpoint).method("POST").header("sec-fetch-site", "same-origin");
    let send = async |call| flows.world.https().send(Version::HTTP_2, call).await.expect("an answer").status;
    let before = flows.fake.calls().len();
    assert_eq!(send(call(START)).await, 200, "{from}");
    assert_eq!(send(post(&format!("{START}?issuer={ISSUER}"))).await, 303, "{from}");
    assert_eq!(send(post(DISCONNECT)).await, 303, "{from}");
    let calls = flows.fake.calls();
    let (described, shown, [Recorded::Begin(begun), Recorded::Disconnect(ended)]) = after_a_page(&calls[before..])
    else {
        panic!("four calls: {calls:?}")
    };
    let pin = "https://as.example/t";
    assert_eq!((shown.authorization_server.as_str(), shown.resource.as_str()), (pin, NAME), "{from}");
    assert_eq!((described.authorization_server.as_str(), described.resource.as_str()), (pin, NAME), "{from}");
    assert_eq!((begun.authorization_server.as_str(), begun.resource.as_str()), (pin, NAME), "{from}");
    assert_eq!((begun.scope.as_str(), begun.prompt.as_str()), ("read write", "none"), "{from}");
    assert_eq!(begun.client_name, "My notes", "{from}");
    assert_eq!((ended.client_id.as_str(), ended.resource.as_str()), (&*format!("{from}{DOCUMENT}"), NAME), "{from}");
}

/// As `--route` of `envoy-config` puts it on a virtual host; where several share that, on Envoy's routes.
#[tokio::test]
async fn from_attributes() {
    for froms in [&["https://notes.localhost"][..], &["https://notes.localhost", "https://notes.localhost/b"]] {
        let routes: Vec<String> = froms.iter().map(|from| format!("from={from},{WRITTEN}")).collect();
        let routes: Vec<&str> = routes.iter().map(String::as_str).collect();
        let flows = Flows::of(&routes, &["--single-user"]).await;
        for from in froms {
            is_handed_on(&flows, from).await;
        }
    }
}

#[tokio::test]
async fn from_the_config_file_and_from_dynamic_metadata() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("config.yaml");
    let keys = |to: &str| {
        let mut keys = as_json("https://notes.localhost");
        keys["to"] = to.into();
        keys
    };
    std::fs::write(&file, format!("routes: [{}]\n", keys("https://upstream.example/mcp"))).expect("written");
    let route = &["from=https://notes.localhost"];
    let flags = ["--single-user", "--config", file.to_str().expect("text")];
    let flows = Flows::of_edited(route, &flags, &[], &without_metadata).await;
    is_handed_on(&flows, "https://notes.localhost").await;

    let edit = |config: &mut Value| {
        without_metadata(config);
        http_filters(config).insert(
            0,
            json!({"name": "set_metadata", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.set_metadata.v3.Config",
                "metadata": [{"metadata_namespace": "envoy_cimd", "value": keys("https://upstream.example/mcp")}],
            }}),
        );
    };
    let flags = ["--single-user", "--dynamic-metadata"];
    let flows = Flows::of_edited(route, &flags, &["--dynamic-metadata"], &edit).await;
    is_handed_on(&flows, "https://notes.localhost").await;
}

/// Without the keys nothing of them is sent, and the client's name is the document's.
#[tokio::test]
async fn what_is_not_set_is_not_sent() {
    let flows = Flows::of(&["from=https://notes.localhost"], &["--single-user"]).await;
    flows.begin(NOTES, "").await;
    let [Recorded::Begin(begun)] = &flows.fake.calls()[..] else { panic!("one call") };
    for text in [&begun.authorization_server, &begun.resource, &begun.scope, &begun.prompt] {
        assert_eq!(text, "");
    }
    assert_eq!(begun.client_name, "Pomerium MCP Proxy - notes.localhost");
}

/// A bad value stands in the way of connecting, and of nothing else. Nobody is called for it.
#[tokio::test]
async fn bad_values_in_attributes() {
    let rows = [
        ("resource", "https://user:SECRET@mcp.example.com", "`resource` must not have a user name or password"),
        ("scope", "SECRET\\", "`scope` has a character that no scope has"),
        ("prompt", "SECRET", "`prompt` must be `none`, or some of"),
    ];
    for (key, value, said) in rows {
        let edit = |config: &mut Value| {
            for host in virtual_hosts(config).iter_mut().filter(|host| host["name"] == NOTES) {
                metadata(host)[key] = value.into();
            }
        };
        let mut flows = Flows::of_edited(&["from=https://notes.localhost"], &["--single-user"], &[], &edit).await;
        for call in [Call::get(NOTES, START), crate::flow::press(NOTES, ""), Call::get(NOTES, START).method("PUT")] {
            let answer = flows.send(call).await;
            assert_eq!(
                (answer.status, answer.text().contains("misconfigured_route")),
                (500, true),
                "{key}: {answer:?}"
            );
            assert!(!answer.text().contains("SECRET"), "{key}");
        }
        assert_eq!(flows.send(Call::get(NOTES, DOCUMENT)).await.status, 200, "{key}");
        flows.world.cimd.process.line(|line| line.contains(said).then_some(())).await;
        assert!(flows.fake.calls().is_empty(), "{key}");
        flows.finish().await;
    }
}

/// A request for an upstream whose authorization server is in the test, changed.
fn asked(party: &Party, name: &str, change: impl FnOnce(&mut BeginAuthorizationRequest)) -> BeginAuthorizationRequest {
    let mut request = party.request(name);
    change(&mut request);
    request
}

/// The parameters of an authorization request.
async fn sent(party: &Party, request: BeginAuthorizationRequest) -> HashMap<String, String> {
    let url = begun(party, request).await.authorization_url;
    Url::parse(&url).expect("a URL").query_pairs().into_owned().collect()
}

async fn begun(party: &Party, request: BeginAuthorizationRequest) -> envoy_cimd::contract::proto::Begun {
    match party.begin_with(request).await {
        Outcome::Begun(begun) => begun,
        Outcome::Refusal(refusal) => panic!("{refusal:?}"),
    }
}

async fn unusable(party: &Party, request: BeginAuthorizationRequest) -> String {
    match party.begin_with(request).await {
        Outcome::Refusal(refusal) => refusal.message,
        Outcome::Begun(begun) => panic!("{begun:?}"),
    }
}

/// An upstream that has another name than its address.
fn renamed(name: &'static str) -> Lie {
    Lie { resource: |d| d["resource"] = NAME.into(), ..Lie::none(name) }
}

/// An upstream without metadata.
fn silent(name: &'static str) -> Lie {
    Lie { resource: |d| *d = Value::Null, ..Lie::none(name) }
}

#[tokio::test]
async fn an_upstream_that_calls_itself_otherwise() {
    let party = Party::start(vec![renamed("renamed"), Lie::none("honest")], &[]).await;
    let message = unusable(&party, party.request("renamed")).await;
    let way_out = format!("set the route's `resource` to {NAME} if that is this upstream");
    assert!(message.contains(&way_out), "{message}");

    let named = || asked(&party, "renamed", |request| request.resource = NAME.to_owned());
    let begun = begun(&party, named()).await;
    let url = Url::parse(&begun.authorization_url).expect("a URL");
    let resources: Vec<_> = url.query_pairs().filter(|(name, _)| name == "resource").collect();
    assert_eq!(resources, [("resource".into(), NAME.into())]);
    // The server takes the code with the same resource alone.
    assert_eq!(party.complete(party.answer("renamed", &begun)).await, Ok("/after".to_owned()));

    // It must be the same, and not the beginning of the same.
    let exchanges = party.servers.exchanges().len();
    for resource in ["https://mcp.example.com", "https://mcp.example.com/mcp/", "https://MCP.example.com/mcp"] {
        let message =
            unusable(&party, asked(&party, "renamed", |request| request.resource = resource.to_owned())).await;
        let said = format!("`resource` is {NAME}, and the route's `resource` is {resource}: they must be the same");
        assert!(message.contains(&said), "{message}");
    }
    let origin = party.servers.upstream.clone();
    for resource in [origin, NAME.to_owned()] {
        let message = unusable(&party, asked(&party, "honest", |request| request.resource = resource)).await;
        assert!(message.contains("they must be the same"), "{message}");
    }
    assert_eq!(party.servers.exchanges().len(), exchanges, "nobody is sent anywhere");
}

/// One row: what the route says, and what is sent.
#[tokio::test]
async fn scope_and_prompt_as_they_are_sent() {
    let unlisted = Lie { metadata: |d| d["scopes_supported"] = json!(["read"]), ..Lie::none("unlisted") };
    let party = Party::start(vec![Lie::none("listed"), unlisted], &[]).await;
    for (name, scope, prompt, sent_scope, sent_prompt) in [
        ("listed", "", "", Some("read write offline_access"), Some("consent")),
        ("listed", "mcp:tools", "", Some("mcp:tools offline_access"), Some("consent")),
        ("listed", " b  a b ", "", Some("b a offline_access"), Some("consent")),
        ("listed", "offline_access a", "", Some("a offline_access"), Some("consent")),
        ("listed", "offline_access", "", None, None),
        ("listed", "", "none", Some("read write offline_access"), None),
        ("listed", "", "login", Some("read write offline_access"), Some("login")),
        ("listed", "", "select_account consent", Some("read write offline_access"), Some("select_account consent")),
        ("unlisted", "", "", Some("read write"), None),
        ("unlisted", "mcp:tools", "none", Some("mcp:tools"), None),
        ("unlisted", "mcp:tools", "consent", Some("mcp:tools"), Some("consent")),
    ] {
        let request = asked(&party, name, |request| {
            (request.scope, request.prompt) = (scope.to_owned(), prompt.to_owned());
        });
        let sent = sent(&party, request).await;
        let sent = ["scope", "prompt"].map(|name| sent.get(name).map(String::as_str));
        assert_eq!(sent, [sent_scope, sent_prompt], "{name} {scope:?} {prompt:?}");
    }
    let looked_up = party.servers.fetches().into_iter().filter(|fetch| fetch == "server listed").count();
    assert_eq!(looked_up, 1, "what is asked for is no part of what is looked up");
}

/// A pin says who the issuer is. What the upstream says of its resource and its scope counts all the same, and where it
/// says nothing, its URL is the resource.
#[tokio::test]
async fn a_pin_pins_the_issuer_alone() {
    let elsewhere =
        Lie { resource: |d| d["authorization_servers"] = json!(["https://evil.example"]), ..Lie::none("elsewhere") };
    let nobody = Lie { resource: |d| d["authorization_servers"] = json!([]), ..Lie::none("nobody") };
    let part = Lie {
        resource: |d| {
            let whole = d["resource"].as_str().expect("text").replace("/part/mcp", "");
            d["resource"] = whole.into();
        },
        ..Lie::none("part")
    };
    let broken = Lie { resource: |d| *d = json!("SECRET"), ..Lie::none("broken") };
    let lies = vec![elsewhere, nobody, part, silent("silent"), broken, renamed("renamed"), Lie::none("as")];
    let party = Party::start(lies, &["--log=envoy_cimd=debug"]).await;
    let issuer = format!("{}/as", party.servers.issuer);
    let pinned = |name: &str, resource: &str| {
        asked(&party, name, |request| {
            (request.authorization_server, request.shown_issuer) = (issuer.clone(), issuer.clone());
            request.resource = resource.to_owned();
        })
    };
    let read = Some("read write offline_access");
    for (name, named, resource) in [
        ("elsewhere", "", party.servers.upstream_of("elsewhere")),
        ("nobody", "", party.servers.upstream_of("nobody")),
        ("part", "", party.servers.upstream.clone()),
        ("silent", "", party.servers.upstream_of("silent")),
        ("silent", "urn:example:mcp", "urn:example:mcp".to_owned()),
        ("broken", "", party.servers.upstream_of("broken")),
        ("renamed", NAME, NAME.to_owned()),
    ] {
        let sent = sent(&party, pinned(name, named)).await;
        assert_eq!((&sent["resource"], sent.get("scope").map(String::as_str)), (&resource, read), "{name} {named}");
    }
    // It is down: nothing is known of it but its address.
    for (named, resource) in [("", "http://127.0.0.1:1/mcp"), (NAME, NAME)] {
        let mut request = pinned("as", named);
        request.upstream = "http://127.0.0.1:1/mcp".to_owned();
        let sent = sent(&party, request).await;
        assert_eq!((sent["resource"].as_str(), sent.get("scope")), (resource, None), "{named}");
    }
    // One that claims to be another is refused, pinned or not.
    for (name, named) in [("renamed", ""), ("part", NAME)] {
        let message = unusable(&party, pinned(name, named)).await;
        assert!(message.contains("`resource` is "), "{message}");
    }
    let log = party.process.process.output();
    let noted = log.lines().filter(|line| line.contains("the upstream's metadata cannot be read"));
    assert_eq!(noted.filter(|line| line.contains("WARN")).count(), 3, "broken, and twice down: {log}");
    assert!(log.contains("the upstream has no metadata") && !log.contains("SECRET"), "{log}");
}

type Tokens = UpstreamTokensClient<Channel>;

async fn connect(party: &Party, name: &str, request: BeginAuthorizationRequest) {
    let answer = begun(party, request).await;
    let answer: CompleteAuthorizationRequest = party.answer(name, &answer);
    party.complete(answer).await.expect("completed");
}

/// What is handed out for a route, its tag with it.
async fn token(tokens: &Tokens, request: &BeginAuthorizationRequest) -> Result<(String, Vec<u8>), Code> {
    let request = GetUpstreamTokenRequest {
        user: request.user.clone(),
        client_id: request.client_id.clone(),
        upstream: request.upstream.clone(),
        authorization_server: request.authorization_server.clone(),
        resource: request.resource.clone(),
        wait: None,
    };
    let answer = tokens.clone().get_upstream_token(request).await.map_err(|status| status.code())?.into_inner();
    Ok((answer.access_token, answer.tag))
}

/// A route whose `resource` is another by now has no token, whatever was granted before, and nothing is refreshed for it.
#[tokio::test]
async fn a_token_for_another_resource_is_not_handed_out() {
    let (party, tokens) = party(vec![renamed("renamed"), Lie::none("honest")], &[]).await;
    let named = asked(&party, "renamed", |request| request.resource = NAME.to_owned());
    connect(&party, "renamed", named.clone()).await;
    let (_, tag) = token(&tokens, &named).await.expect("a token");
    for resource in ["", "https://mcp.example.com", "https://mcp.example.com/mcp/", "urn:example:mcp"] {
        let changed = BeginAuthorizationRequest { resource: resource.to_owned(), ..named.clone() };
        assert_eq!(token(&tokens, &changed).await, Err(Code::NotFound), "{resource:?}");
        let report = ReportRefusedTokenRequest {
            user: changed.user,
            client_id: changed.client_id,
            upstream: changed.upstream,
            resource: changed.resource,
            tag: tag.clone(),
            ..ReportRefusedTokenRequest::default()
        };
        let code = tokens.clone().report_refused_token(report).await.expect_err("none").code();
        assert_eq!(code, Code::NotFound, "{resource:?}");
    }
    assert_eq!(party.servers.refreshes(), Vec::<String>::new());
    assert_eq!(token(&tokens, &named).await.expect("it is still there").1, tag);

    // What fits a route without the key: the upstream's own name, and no other that the operator gives it later.
    let honest = party.request("honest");
    connect(&party, "honest", honest.clone()).await;
    assert!(token(&tokens, &honest).await.is_ok());
    for (resource, found) in [(honest.upstream.clone(), true), (NAME.to_owned(), false)] {
        let changed = BeginAuthorizationRequest { resource, ..honest.clone() };
        assert_eq!(token(&tokens, &changed).await.is_ok(), found, "{}", changed.resource);
    }
    // Who disconnects is rid of it, whatever the route says by now.
    let request = DisconnectRequest {
        user: named.user.clone(),
        client_id: named.client_id.clone(),
        upstream: named.upstream.clone(),
        resource: "urn:example:mcp".to_owned(),
    };
    tokens.clone().disconnect(request).await.expect("disconnected");
    assert_eq!(token(&tokens, &named).await, Err(Code::NotFound));
    assert_eq!(party.servers.revoked().len(), 1);
}

/// Two routes to one address, each with a name of its own for it.
#[tokio::test]
async fn two_resources_behind_one_address_are_apart() {
    let (party, tokens) = party(vec![silent("silent")], &[]).await;
    let route = |client_id: &str, resource: &str| {
        asked(&party, "silent", |request| {
            (request.client_id, request.resource) = (client_id.to_owned(), resource.to_owned());
            request.authorization_server.clone_from(&request.shown_issuer);
        })
    };
    let (one, two) = (route(CLIENT, "https://one.example/mcp"), route(OTHER, "https://two.example/mcp"));
    connect(&party, "silent", one.clone()).await;
    assert_eq!(token(&tokens, &two).await, Err(Code::NotFound));
    connect(&party, "silent", two.clone()).await;
    let [(of_one, _), (of_two, _)] =
        [token(&tokens, &one).await.expect("a token"), token(&tokens, &two).await.expect("a token")];
    assert_ne!(of_one, of_two);
    for crossed in [route(CLIENT, "https://two.example/mcp"), route(OTHER, "https://one.example/mcp")] {
        assert_eq!(token(&tokens, &crossed).await, Err(Code::NotFound), "{}", crossed.resource);
    }
    // Connected anew for another resource, a route has that token alone.
    let moved = route(CLIENT, "https://two.example/mcp");
    connect(&party, "silent", moved.clone()).await;
    assert!(token(&tokens, &moved).await.is_ok());
    assert_eq!(token(&tokens, &one).await, Err(Code::NotFound));
    assert_eq!(token(&tokens, &two).await.expect("the other route's").0, of_two);
}

/// A caller that sends what no route can have is told so, and nothing is done.
#[tokio::test]
async fn a_call_with_a_bad_value() {
    let (mut party, tokens) = party(vec![Lie::none("good")], &[]).await;
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{}", party.process.address));
    let channel = channel.expect("an address").connect().await.expect("a connection");
    let mut client =
        envoy_cimd::contract::proto::authorization_choreographer_client::AuthorizationChoreographerClient::new(channel);
    for (change, said) in [
        ((|request| request.resource = "/mcp".to_owned()) as fn(&mut BeginAuthorizationRequest), "`resource` is not"),
        (|request| request.scope = "\"".to_owned(), "`scope` has a character"),
        (|request| request.prompt = "None".to_owned(), "`prompt` must be `none`"),
    ] {
        let status = client.begin_authorization(asked(&party, "good", change)).await.expect_err(said);
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert!(status.message().starts_with(said), "{status:?}");
    }
    let described = DescribeUpstreamRequest {
        upstream: party.servers.upstream_of("good"),
        client_id: CLIENT.to_owned(),
        resource: "/mcp".to_owned(),
        ..DescribeUpstreamRequest::default()
    };
    assert_eq!(client.describe_upstream(described).await.expect_err("bad").code(), Code::InvalidArgument);
    let wanted = asked(&party, "good", |request| request.resource = "/mcp".to_owned());
    assert_eq!(token(&tokens, &wanted).await, Err(Code::InvalidArgument));
    assert_eq!(party.servers.fetches(), Vec::<String>::new(), "nothing was looked up");
    assert_eq!(party.stored(&["good"]).await, [None]);
}
