//! Dynamic registration: when a route is registered, how often, and for whom.

use std::time::{Duration, Instant};

use envoy_cimd::{
    contract::{
        choreographer::Choreographer as _,
        error::BeginError,
        proto::{
            BeginAuthorizationRequest, authorization_choreographer_client::AuthorizationChoreographerClient,
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

use super::{NOTES, assert_hidden, begun, by_hand, client_id, connect, disconnect, party, pinned, token, token_of};
use crate::{
    authorization_server::{Auth, HOST, Knows, Lie, Refresh, Registers},
    exchange::{CALLBACK, CLIENT, Party, refused, single},
    stack::{Choreographer, PATIENCE, grpc::channel},
    tokens::{self, Kept, over, person},
    world::executable,
};

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
    let kept = Kept::in_file();
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
    let (kept, redis) = Kept::in_redis().await;
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
    let mut files = vec![redis.dir.clone()];
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
    let (kept, _redis) = Kept::in_redis().await;
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
