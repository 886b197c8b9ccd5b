//! What upstreams and authorization servers say of themselves: what is refused, and whom it is asked of.

use envoy_cimd::contract::proto::{
    BeginAuthorizationRequest, DescribeUpstreamRequest, begin_authorization_response, begin_refusal,
};
use serde_json::{Value, json};

use super::{CLIENT, Party, refused};
use crate::authorization_server::{HOST, Lie};

/// Each lie of the metadata, and what an operator reads.
#[tokio::test]
async fn metadata_that_lies() {
    fn set(document: &mut Value, member: &str, value: Value) {
        document[member] = value;
    }
    macro_rules! lies {
        ($(($name:literal, $part:ident, $change:expr, $words:expr),)*) => {
            (vec![$(Lie { $part: $change, ..Lie::none($name) }),*], vec![$(($name, $words)),*])
        };
    }
    fn without(document: &mut Value, member: &str) {
        document.as_object_mut().expect("an object").remove(member);
    }
    let (lies, rows) = lies![
        (
            "other-issuer",
            metadata,
            |d| set(d, "issuer", json!("https://evil.example")),
            "names the issuer https://evil.example, which is another"
        ),
        (
            "issuer-with-slash",
            metadata,
            |d| {
                let issuer = format!("{}/", d["issuer"].as_str().expect("text"));
                set(d, "issuer", json!(issuer))
            },
            "which is another"
        ),
        (
            "no-s256",
            metadata,
            |d| set(d, "code_challenge_methods_supported", json!(["plain"])),
            "does not support PKCE with S256"
        ),
        ("no-pkce", metadata, |d| without(d, "code_challenge_methods_supported"), "does not support PKCE with S256"),
        (
            "no-cimd",
            metadata,
            |d| without(d, "client_id_metadata_document_supported"),
            "does not support client ID metadata documents"
        ),
        (
            "cimd-off",
            metadata,
            |d| set(d, "client_id_metadata_document_supported", json!(false)),
            "does not support client ID metadata documents"
        ),
        (
            "no-code-grant",
            metadata,
            |d| set(d, "grant_types_supported", json!(["client_credentials"])),
            "does not support the authorization code grant"
        ),
        (
            "no-code-type",
            metadata,
            |d| set(d, "response_types_supported", json!(["token"])),
            "does not support the response type `code`"
        ),
        ("no-token-endpoint", metadata, |d| without(d, "token_endpoint"), "lacks `token_endpoint`"),
        (
            "no-authorization-endpoint",
            metadata,
            |d| without(d, "authorization_endpoint"),
            "lacks `authorization_endpoint`"
        ),
        (
            "bad-endpoint",
            metadata,
            |d| set(d, "token_endpoint", json!("nowhere")),
            "`token_endpoint` is not a well-formed URL"
        ),
        ("plain-endpoint", metadata, |d| set(d, "token_endpoint", json!("http://as.example/token")), "must be https"),
        ("plain-page", metadata, |d| set(d, "authorization_endpoint", json!("javascript:alert(1)")), "must be https"),
        ("loopback", metadata, |d| set(d, "token_endpoint", json!("https://127.0.0.1/token")), "127.0.0.1 is"),
        (
            "cloud-metadata",
            metadata,
            |d| set(d, "token_endpoint", json!("https://169.254.169.254/token")),
            "169.254.169.254 is"
        ),
        (
            "mapped",
            metadata,
            |d| set(d, "token_endpoint", json!("https://[::ffff:127.0.0.1]/token")),
            "::ffff:127.0.0.1 is"
        ),
        ("decimal", metadata, |d| set(d, "token_endpoint", json!("https://2130706433/token")), "127.0.0.1 is"),
        ("no-json", metadata, |d| *d = json!("text"), "is not metadata: it is not a JSON object"),
        ("a-list", metadata, |d| set(d, "issuer", json!([])), "`issuer` has another type than it must have"),
        (
            "another-type",
            metadata,
            |d| set(d, "code_challenge_methods_supported", json!("SECRET")),
            "`code_challenge_methods_supported` has another type than it must have"
        ),
        (
            "other-resource",
            resource,
            |d| set(d, "resource", json!("https://evil.example/mcp")),
            "`resource` is https://evil.example/mcp"
        ),
        (
            "evil-sibling",
            resource,
            |d| {
                let other = format!("{}-evil", d["resource"].as_str().expect("text"));
                set(d, "resource", json!(other))
            },
            "which is neither the upstream's URL nor a prefix"
        ),
        ("no-server", resource, |d| without(d, "authorization_servers"), "it names no authorization server"),
        (
            "private-server",
            resource,
            |d| set(d, "authorization_servers", json!(["https://10.0.0.1/as"])),
            "10.0.0.1 is"
        ),
        (
            "private-name",
            resource,
            |d| set(d, "authorization_servers", json!(["https://other.localhost/as"])),
            "--allow-host other.localhost would allow it"
        ),
        ("plain-server", resource, |d| set(d, "authorization_servers", json!(["http://as.example"])), "must be https"),
        ("nowhere", resource, |d| set(d, "authorization_servers", json!(["nowhere"])), "is not a well-formed URL"),
        (
            "long-issuer",
            resource,
            |d| set(d, "authorization_servers", json!([format!("https://as.example/{}", "x".repeat(3000))])),
            "`issuer` is not a well-formed URL of at most 2048 bytes"
        ),
        (
            "issuer-query",
            resource,
            |d| set(d, "authorization_servers", json!(["https://as.example/?x"])),
            "`issuer` is not a well-formed URL"
        ),
        (
            "mended-issuer",
            resource,
            |d| set(d, "authorization_servers", json!([" https://as.example"])),
            "`issuer` is not a well-formed URL"
        ),
        (
            "own-parameter",
            metadata,
            |d| {
                let page = format!("{}?client_id=theirs", d["authorization_endpoint"].as_str().expect("text"));
                set(d, "authorization_endpoint", json!(page))
            },
            "`authorization_endpoint` has a `client_id` of its own"
        ),
        (
            "own-request",
            metadata,
            |d| {
                let page = format!("{}?request=theirs", d["authorization_endpoint"].as_str().expect("text"));
                set(d, "authorization_endpoint", json!(page))
            },
            "`authorization_endpoint` has a `request` of its own"
        ),
        (
            "own-request-uri",
            metadata,
            |d| {
                let page = format!("{}?request_uri=theirs", d["authorization_endpoint"].as_str().expect("text"));
                set(d, "authorization_endpoint", json!(page))
            },
            "`authorization_endpoint` has a `request_uri` of its own"
        ),
    ];
    let mut party = Party::start(lies, &[]).await;
    for (name, words) in rows {
        let outcome = party.begin(name).await;
        let (reason, message) = refused(&outcome);
        assert_eq!(reason, begin_refusal::Reason::AuthorizationServerUnusable, "{name}");
        assert!(message.contains(words), "{name}: {message}");
    }
    // An upstream that is down, or has nothing to say.
    let mut request = party.request("other-issuer");
    request.upstream = "http://127.0.0.1:1/mcp".to_owned();
    let outcome = party.begin_with(request.clone()).await;
    assert!(refused(&outcome).1.contains("the upstream http://127.0.0.1:1/mcp: "), "{outcome:?}");
    request.upstream = format!("{}/", party.servers.upstream);
    let outcome = party.begin_with(request).await;
    assert!(refused(&outcome).1.contains("no metadata was found"), "{outcome:?}");
    assert!(party.servers.exchanges().is_empty());
    assert_eq!(party.stored(&["other-issuer"]).await, [None]);
}

/// An upstream of our own network names an address of its own, which is anything but metadata. Nobody asks for it: what
/// is exempt is the upstream's metadata alone, and that is found where it belongs.
#[tokio::test]
async fn an_upstream_has_us_ask_for_its_metadata_alone() {
    let named = [
        ("admin", "/admin/delete"),
        ("dots", "/.well-known/oauth-protected-resource/../../admin/delete"),
        ("encoded", "/.well-known/oauth-protected-resource/..%2f..%2fadmin/delete"),
        ("parameters", "/.well-known/oauth-protected-resource/..;/..;/admin/delete"),
        ("query", "/.well-known/oauth-protected-resource?then=/admin/delete"),
        ("sibling", "/.well-known/oauth-protected-resource-admin"),
    ];
    let mut lies: Vec<Lie> = named.map(|(name, path)| Lie { named: Some(path), ..Lie::none(name) }).into();
    lies.push(Lie { named: Some("/admin/delete"), resource: |d| *d = Value::Null, ..Lie::none("nowhere") });
    // Below the well-known name it may be where it likes.
    let elsewhere = "/.well-known/oauth-protected-resource/apart/mcp";
    lies.push(Lie { named: Some(elsewhere), ..Lie::none("elsewhere") });
    lies.push(Lie {
        resource: |d| {
            let moved = d["resource"].as_str().expect("text").replace("/apart/", "/elsewhere/");
            d["resource"] = json!(moved);
        },
        ..Lie::none("apart")
    });
    let party = Party::start(lies, &[]).await;
    let mut asked = Vec::new();
    for (name, _) in named {
        party.begun(name).await;
        asked.extend([format!("resource {name}"), format!("server {name}")]);
        assert_eq!(party.servers.fetches(), asked, "{name}");
    }
    let issuer = format!("{}/apart", party.servers.issuer);
    let request = BeginAuthorizationRequest { shown_issuer: issuer, ..party.request("elsewhere") };
    let begun = party.begin_with(request).await;
    assert!(matches!(begun, begin_authorization_response::Outcome::Begun(_)), "{begun:?}");
    asked.extend(["resource apart".to_owned(), "server apart".to_owned()]);
    assert_eq!(party.servers.fetches(), asked);
    let outcome = party.begin("nowhere").await;
    assert!(refused(&outcome).1.contains("/admin/delete: must be https"), "{outcome:?}");
    asked.extend(["resource nowhere".to_owned(), "unserved /.well-known/oauth-protected-resource".to_owned()]);
    assert_eq!(party.servers.fetches(), asked);
}

/// A host that is exempt for one route is out of another's reach, also when what is there is known already.
#[tokio::test]
async fn a_host_is_exempt_for_one_route() {
    const OTHER: &str = "https://tickets.localhost/.well-known/mcp-client-metadata.json";
    let exempt = format!("{HOST}=https://notes.localhost");
    let mut party = Party::start(vec![Lie::none("honest")], &["--allow-host", &exempt]).await;
    let others = BeginAuthorizationRequest { client_id: OTHER.to_owned(), ..party.request("honest") };
    let described = async |client_id: &str| {
        let request = DescribeUpstreamRequest {
            upstream: party.servers.upstream_of("honest"),
            authorization_server: String::new(),
            client_id: client_id.to_owned(),
            ..DescribeUpstreamRequest::default()
        };
        party.client.clone().describe_upstream(request).await.expect("an answer").into_inner().authorization_server
    };
    let begun = party.begun("honest").await;
    for _ in 0..2 {
        let outcome = party.begin_with(others.clone()).await;
        let (reason, message) = refused(&outcome);
        assert_eq!(reason, begin_refusal::Reason::AuthorizationServerUnusable);
        assert!(message.contains("is a loopback address; --allow-host as.localhost:"), "{message}");
    }
    assert_eq!(described(CLIENT).await, format!("{}/honest", party.servers.issuer));
    assert_eq!(described(OTHER).await, "");
    assert_eq!(described("").await, "");
    assert_eq!(party.complete(party.answer("honest", &begun)).await, Ok("/after".to_owned()));
    let servers = party.servers.fetches().into_iter().filter(|fetch| fetch == "server honest").count();
    assert_eq!((servers, party.servers.exchanges().len()), (1, 1), "nobody else went there");
    assert!(party.stored(&["honest"]).await[0].is_some());

    // A route is told by its document, wherever documents are.
    let flags = ["--allow-host", &exempt, "--document-path", "/client.json"];
    let party = Party::start(vec![Lie::none("honest")], &flags).await;
    let at = |client_id: &str| BeginAuthorizationRequest { client_id: client_id.to_owned(), ..party.request("honest") };
    refused(&party.begin_with(at(CLIENT)).await);
    let outcome = party.begin_with(at("https://notes.localhost/client.json")).await;
    assert!(matches!(outcome, begin_authorization_response::Outcome::Begun(_)), "{outcome:?}");
}

/// A pinned authorization server is held to its metadata all the same.
#[tokio::test]
async fn a_pinned_authorization_server() {
    let no_iss =
        Lie { metadata: |d| d["authorization_response_iss_parameter_supported"] = json!(false), ..Lie::none("no-iss") };
    let mut party = Party::start(vec![Lie::none("pinned"), no_iss], &["--require-iss"]).await;
    let mut request = party.request("pinned");
    request.authorization_server = format!("{}/pinned", party.servers.issuer);
    let begin_authorization_response::Outcome::Begun(begun) = party.begin_with(request.clone()).await else {
        panic!("it began")
    };
    let answer = party.answer("pinned", &begun);
    assert_eq!(party.complete(answer).await, Ok("/after".to_owned()));
    request.authorization_server = format!("{}/pinned/", party.servers.issuer);
    let outcome = party.begin_with(request).await;
    assert_eq!(refused(&outcome).0, begin_refusal::Reason::AuthorizationServerUnusable);
    // --require-iss
    let outcome = party.begin("no-iss").await;
    assert!(refused(&outcome).1.contains("it does not announce `iss`"), "{outcome:?}");
    assert_eq!(party.stored(&["pinned", "no-iss"]).await.iter().flatten().count(), 1);
}

/// Nobody is sent to an authorization server that no page showed them, as where an upstream names another one between the
/// page and the button: nothing begins, and what there is now is to be shown.
#[tokio::test]
async fn only_to_the_server_that_was_shown() {
    let mut party = Party::start(vec![Lie::none("good")], &[]).await;
    let right = party.request("good");
    for shown in ["", "https://evil.example", &format!("{}/", right.shown_issuer)] {
        let request = BeginAuthorizationRequest { shown_issuer: shown.to_owned(), ..right.clone() };
        let begin_authorization_response::Outcome::Refusal(refusal) = party.begin_with(request).await else {
            panic!("nothing begins")
        };
        assert_eq!(
            (refusal.reason(), &refusal.issuer),
            (begin_refusal::Reason::IssuerChanged, &right.shown_issuer),
            "{shown:?}"
        );
    }
    let begin_authorization_response::Outcome::Begun(begun) = party.begin_with(right).await else { panic!("it began") };
    assert_eq!(party.complete(party.answer("good", &begun)).await, Ok("/after".to_owned()));
    assert_eq!(party.stored(&["good"]).await.iter().flatten().count(), 1);
    let log = party.process.process.output();
    assert_eq!(log.matches("\"issuer_changed\"").count(), 3, "{log}");
}
