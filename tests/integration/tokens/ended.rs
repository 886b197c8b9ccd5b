//! A grant that ended by itself is told from one that never was.

use envoy_cimd::{
    contract::{
        proto::begin_authorization_response::Outcome,
        tokens::{AccessToken, Missing, Refused, TokenError, TokenOwner, UpstreamTokens},
        tokens_client::TokensClient,
    },
    model::{trace::Trace, user::User as Person},
    net::tls::client,
};
use serde_json::json;
use tonic::Code;

use super::{Kept, connect, over, party, person, token};
use crate::{
    authorization_server::{HOST, Lie, Refresh, Token},
    exchange::{CLIENT, Party, single},
    stack::{Choreographer, in_process::owner},
    tokens_client::client_of,
    world::executable,
};

/// A token that was revoked behind our back is over at the next refresh, and the user can connect again.
#[tokio::test]
async fn a_grant_that_ended_behind_our_back() {
    let (party, client) = party(vec![over("rotates", Refresh::Rotates)], &[]).await;
    connect(&party, "rotates", single(), CLIENT).await;
    party.servers.forget_grants();
    assert_eq!(token(&client, &party, "rotates", single(), CLIENT).await, Err(Code::NotFound));
    connect(&party, "rotates", person("i", "other"), CLIENT).await;
    assert!(token(&client, &party, "rotates", person("i", "other"), CLIENT).await.is_ok());
}

const NEVER: TokenError = TokenError::NotFound(Missing::Never);
const LOST: TokenError = TokenError::NotFound(Missing::Lost);

/// A grant that ended is remembered for its owner alone, until they connect anew or disconnect.
async fn ended_grants(kept: Kept) {
    let flags = kept.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let no_refresh = Token::Json(|answer| {
        answer["expires_in"] = json!(1);
        answer.as_object_mut().expect("an object").remove("refresh_token");
    });
    let refuses = Refresh::Status(400, r#"{"error":"invalid_grant"}"#);
    let lies = vec![
        over("rotates", Refresh::Rotates),
        Lie { token: no_refresh, ..Lie::none("no-refresh") },
        Lie { refresh: refuses, ..Lie::none("refuses") },
        Lie::none("good"),
    ];
    let dir = tempfile::tempdir().expect("a folder");
    let address = format!("unix:{}", dir.path().join("tokens.sock").display());
    let flags = [&["--tokens-listen", &address], &flags[..]].concat();
    let mut party = Party::start(lies, &flags).await;
    let tokens = client_of(&address, &client::Config::default()).await;
    let of = |user: Person, name: &str| owner(user, CLIENT, &party.servers.upstream_of(name));
    let ask = async |tokens: &TokensClient, owner: TokenOwner| {
        let token = tokens.upstream_token(owner, &Trace::default()).await;
        token.map(|AccessToken { secret, .. }| secret)
    };
    for name in ["rotates", "no-refresh", "refuses"] {
        assert_eq!(ask(&tokens, of(Person::Single, name)).await, Err(NEVER), "{name}");
        connect(&party, name, single(), CLIENT).await;
    }
    party.servers.forget_grants();
    let refused =
        tokens.upstream_token(of(Person::Single, "refuses"), &Trace::default()).await.expect("still good").tag;
    let reported =
        tokens.refused(of(Person::Single, "refuses"), Refused::unauthorized(refused), &Trace::default()).await;
    assert_eq!(reported, Err(LOST));
    let refreshes = party.servers.refreshes().len();
    for name in ["rotates", "no-refresh", "refuses", "rotates", "no-refresh", "refuses"] {
        assert_eq!(ask(&tokens, of(Person::Single, name)).await, Err(LOST), "{name}");
    }
    assert_eq!(party.servers.refreshes().len(), refreshes + 1, "once it is over, nobody is asked again");
    let reported =
        tokens.refused(of(Person::Single, "refuses"), Refused::unauthorized(refused), &Trace::default()).await;
    assert_eq!(reported, Err(LOST));

    // Nobody else's, no other route's, and no other authorization server's.
    let ann = Person::Subject { issuer: "i".to_owned(), subject: "ann".to_owned() };
    let other_route = "https://notes.localhost/linear/.well-known/mcp-client-metadata.json";
    let mut pinned = of(Person::Single, "rotates");
    pinned.upstream.authorization_server = Some("https://other.example".to_owned());
    for other in [
        of(ann, "rotates"),
        owner(Person::Single, other_route, &party.servers.upstream_of("rotates")),
        of(Person::Single, "good"),
        pinned,
    ] {
        assert_eq!(ask(&tokens, other).await, Err(NEVER));
    }

    // It outlives the process.
    assert_eq!(party.process.process.stop().await, Some(0));
    let log = party.process.process.output();
    assert!(!log.contains("SECRET") && !log.contains("isolation_violation"), "{log}");
    let again = ["--extra-ca", &party.ca, "--allow-host", HOST, "--listen", &party.process.address];
    let state = party.dir.path().join("state").display().to_string();
    let again = [&flags[..], &again, &["--state-dir", &state]].concat();
    let again = Choreographer::start(&executable(), &again).await;
    party.process = again;
    assert_eq!(ask(&tokens, of(Person::Single, "no-refresh")).await, Err(LOST));

    // Disconnected, it is as if there never was one, and there is nothing to revoke.
    for _ in 0..2 {
        tokens.disconnect(of(Person::Single, "no-refresh"), &Trace::default()).await.expect("disconnected");
        assert_eq!(ask(&tokens, of(Person::Single, "no-refresh")).await, Err(NEVER));
    }
    // Connected anew, there is a token, at this authorization server or another.
    connect(&party, "rotates", single(), CLIENT).await;
    assert!(ask(&tokens, of(Person::Single, "rotates")).await.is_ok());
    let mut request = party.request("refuses");
    request.authorization_server = format!("{}/good", party.servers.issuer);
    request.shown_issuer.clone_from(&request.authorization_server);
    let Outcome::Begun(begun) = party.begin_with(request).await else { panic!("it began") };
    party.complete(party.answer("good", &begun)).await.expect("completed");
    let mut moved = of(Person::Single, "refuses");
    moved.upstream.authorization_server = Some(format!("{}/good", party.servers.issuer));
    assert!(ask(&tokens, moved.clone()).await.is_ok());
    assert_eq!(party.servers.revoked(), Vec::<String>::new(), "what ended needs no revocation");
    tokens.disconnect(moved.clone(), &Trace::default()).await.expect("disconnected");
    assert_eq!(ask(&tokens, moved).await, Err(NEVER));
    assert_eq!(party.servers.revoked().len(), 1);
}

#[tokio::test]
async fn a_grant_that_ended_is_told_from_none() {
    ended_grants(Kept::in_file()).await;
}

#[tokio::test]
#[ignore = "needs redis-server: make test-redis"]
async fn redis_a_grant_that_ended_is_told_from_none() {
    let (kept, _redis) = Kept::in_redis().await;
    ended_grants(kept).await;
}
