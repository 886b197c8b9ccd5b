//! Tokens that are over, or soon will be, are refreshed: once, by the route's own rules, and audited.

use envoy_cimd::{
    contract::tokens::{Missing, TokenError, UpstreamTokens},
    exchange::embedded::Embedded,
    model::{clock::UnixTime, trace::Trace, user::User as Person},
};
use serde_json::json;
use tonic::Code;

use super::{
    Kept, audited, connect, disconnect, in_process_and_connected, over, party, report, tag, token, try_to_disconnect,
};
use crate::{
    authorization_server::{HOST, Lie, Refresh, Token},
    exchange::{CLIENT, single},
    log::{read_again, stop_reading},
    stack::{grpc::channel, in_process::owner, metric},
};

#[tokio::test]
async fn a_token_is_refreshed_when_it_is_over() {
    let refused = r#"{"error":"invalid_grant"}"#;
    let lies = vec![
        Lie::none("fresh"),
        over("rotates", Refresh::Rotates),
        over("keeps", Refresh::Keeps),
        over("busy", Refresh::Status(429, refused)),
        over("broken", Refresh::Status(503, refused)),
        over("hangs", Refresh::Hangs),
        over("dies", Refresh::RotatesAndDies),
        over("html", Refresh::Status(200, "<h1>SECRET</h1>")),
        over("ended", Refresh::Status(400, refused)),
        over("unauthorized", Refresh::Status(400, r#"{"error":"unauthorized_client"}"#)),
        over("client", Refresh::Status(401, r#"{"error":"invalid_client"}"#)),
        Lie {
            token: Token::Json(|answer| {
                answer["expires_in"] = json!(1);
                answer.as_object_mut().expect("an object").remove("refresh_token");
            }),
            ..Lie::none("no-refresh")
        },
    ];
    let patience = ["--patience=5", "--token-endpoint-timeout=5", "--refresh-claim=10"];
    let (mut party, client) = party(lies, &patience).await;
    for (name, first, second, refreshes) in [
        ("fresh", Ok(()), Ok(()), 0),
        ("rotates", Ok(()), Ok(()), 1),
        ("keeps", Ok(()), Ok(()), 1),
        // Nothing is lost: the old one is tried again, once what was just heard is a second old.
        ("busy", Err(Code::Unavailable), Err(Code::Unavailable), 1),
        ("broken", Err(Code::Unavailable), Err(Code::Unavailable), 1),
        ("hangs", Err(Code::Unavailable), Err(Code::Unavailable), 1),
        ("dies", Err(Code::Unavailable), Err(Code::Unavailable), 1),
        ("html", Err(Code::Unavailable), Err(Code::Unavailable), 1),
        ("client", Err(Code::Unavailable), Err(Code::Unavailable), 1),
        // It is over.
        ("ended", Err(Code::NotFound), Err(Code::NotFound), 1),
        ("unauthorized", Err(Code::NotFound), Err(Code::NotFound), 1),
        ("no-refresh", Err(Code::NotFound), Err(Code::NotFound), 0),
        ("never-connected", Err(Code::NotFound), Err(Code::NotFound), 0),
    ] {
        if name != "never-connected" {
            connect(&party, name, single(), CLIENT).await;
        }
        let before = party.servers.refreshes().len();
        for expected in [first, second] {
            let got = token(&client, &party, name, single(), CLIENT).await;
            assert_eq!(got.as_ref().map(drop), expected.as_ref().map(drop), "{name}");
        }
        assert_eq!(party.servers.refreshes().len(), before + refreshes, "{name}");
    }
    for (result, count) in [("ok", 2), ("failed", 6), ("ended", 3)] {
        let name = format!("envoy_cimd_refreshes_total{{result=\"{result}\"}}");
        assert_eq!(metric(&party.process.admin, &name).await, Some(count), "{result}");
    }
    let lasting = ["rotates", "keeps", "busy", "broken", "hangs", "dies", "html", "client", "fresh"];
    let stored = party.stored(&lasting).await;
    assert!(stored.iter().all(Option::is_some), "none of these is lost: {stored:?}");
    assert_eq!(party.stored_now(&["ended", "unauthorized", "no-refresh"]).await, [None, None, None]);
    let audit = audited(&party, "refreshed");
    let count = |outcome: &str| audit.iter().filter(|other| *other == outcome).count();
    assert_eq!((count("ok"), count("failed"), count("ended")), (2, 6, 3), "{audit:?}");
}

/// Nobody has the token that such a server rotated to. That shows at the next refresh, and the user can connect again.
#[tokio::test]
async fn a_server_that_rotates_and_dies() {
    let (_dir, servers, embedded) = in_process_and_connected(over("dies", Refresh::RotatesAndDies)).await;
    let owner = owner(Person::Single, CLIENT, &servers.upstream_of("dies"));
    let mut answers = Vec::new();
    while answers.last() != Some(&Some(TokenError::NotFound(Missing::Lost))) {
        answers.push(embedded.tokens.upstream_token(owner.clone(), &Trace::default()).await.err());
        tokio::task::yield_now().await;
    }
    assert!(
        answers.iter().rev().skip(1).all(|answer| matches!(answer, Some(TokenError::Unavailable(_)))),
        "{answers:?}"
    );
    assert_eq!(servers.refreshes().len(), 2, "one that was lost, and one that was refused");
    assert!(embedded.tokens.record(&owner).await.expect("a store").is_none());
}

/// A token that has some time left is handed out at once, and renewed meanwhile.
#[tokio::test]
async fn a_token_that_is_old_is_refreshed_in_the_background() {
    let (_dir, servers, mut embedded) = in_process_and_connected(Lie::none("good")).await;
    let owner = owner(Person::Single, CLIENT, &servers.upstream_of("good"));
    let ask = async |embedded: &Embedded| {
        let token = embedded.tokens.upstream_token(owner.clone(), &Trace::default()).await;
        token.unwrap_or_else(|error| panic!("{error:?}")).secret
    };
    let first = ask(&embedded).await;
    assert!(servers.refreshes().is_empty(), "it is fresh");
    // An hour's token, 50 seconds before its end.
    embedded.tokens.clock = || UnixTime::now() + 3550;
    assert_eq!(ask(&embedded).await, first, "nobody waits");
    while ask(&embedded).await == first {
        tokio::task::yield_now().await;
    }
    assert_eq!(servers.refreshes().len(), 1);
}

/// A server that rotates tokens has rotated when its answer is late: whoever asked may leave, and the answer is kept.
#[tokio::test]
async fn a_refresh_that_is_late_is_not_lost() {
    let (mut party, client) = party(vec![over("late", Refresh::RotatesLate)], &["--patience=1"]).await;
    connect(&party, "late", single(), CLIENT).await;
    assert_eq!(token(&client, &party, "late", single(), CLIENT).await, Err(Code::Unavailable));
    assert_eq!(token(&client, &party, "late", single(), CLIENT).await, Err(Code::Unavailable), "nor is it sent again");
    party.servers.answer();
    while token(&client, &party, "late", single(), CLIENT).await.is_err() {
        tokio::task::yield_now().await;
    }
    assert_eq!(party.servers.refreshes().len(), 1);
    party.process.process.line(|line| line.contains("\"refreshed\"").then_some(())).await;
    assert_eq!(audited(&party, "refreshed"), ["ok"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_ask_and_one_refreshes() {
    let (party, client) = party(vec![over("rotates", Refresh::Rotates)], &[]).await;
    connect(&party, "rotates", single(), CLIENT).await;
    let asked = (0..1000).map(|_| token(&client, &party, "rotates", single(), CLIENT));
    let mut tokens = futures_util::future::join_all(asked).await;
    tokens.dedup();
    assert_eq!((tokens.len(), party.servers.refreshes().len()), (1, 1), "{tokens:?}");
    assert!(tokens.iter().all(Result::is_ok), "{tokens:?}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server: make test-redis"]
async fn redis_a_thousand_ask_two_replicas_and_one_refreshes() {
    let (kept, _redis) = Kept::in_redis().await;
    let flags = kept.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let (party, one) = party(vec![over("rotates", Refresh::Rotates)], &flags).await;
    let (_other, other) = kept.again(&party).await;
    connect(&party, "rotates", single(), CLIENT).await;
    let asked = (0..1000).map(|number| {
        let client = if number % 2 == 0 { &one } else { &other };
        token(client, &party, "rotates", single(), CLIENT)
    });
    let mut tokens = futures_util::future::join_all(asked).await;
    tokens.dedup();
    assert_eq!((tokens.len(), party.servers.refreshes().len()), (1, 1), "{tokens:?}");
    assert!(tokens.iter().all(Result::is_ok), "{tokens:?}");
    // Forgotten in one is forgotten in the other.
    disconnect(&one, &party, "rotates", single(), CLIENT).await;
    assert_eq!(token(&other, &party, "rotates", single(), CLIENT).await, Err(Code::NotFound));
}

/// Refreshes and revocations are within the reach of the token's own route.
#[tokio::test]
async fn a_host_that_is_exempt_for_one_route_renews_its_tokens() {
    let exempt = format!("{HOST}=https://notes.localhost");
    let (party, client) = party(vec![over("rotates", Refresh::Rotates)], &["--allow-host", &exempt]).await;
    connect(&party, "rotates", single(), CLIENT).await;
    token(&client, &party, "rotates", single(), CLIENT).await.expect("refreshed");
    assert_eq!(party.servers.refreshes().len(), 1);
    disconnect(&client, &party, "rotates", single(), CLIENT).await;
    assert_eq!((party.servers.revoked().len(), audited(&party, "revoked")), (1, vec!["ok".to_owned()]));
}

/// What would have to be audited is not done; what need not be is.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_refreshed_or_ended_while_nobody_reads_the_log() {
    let (party, client) = party(vec![Lie::none("good"), over("rotates", Refresh::Rotates)], &[]).await;
    for name in ["good", "rotates"] {
        connect(&party, name, single(), CLIENT).await;
    }
    let good = token(&client, &party, "good", single(), CLIENT).await.expect("a token");
    let last = tag(&client, &party, "good").await;
    let (process, admin) = (&party.process.process, &party.process.admin);
    stop_reading(process, admin, &channel(&party.process.address).await, async || {}).await;
    assert_eq!(token(&client, &party, "rotates", single(), CLIENT).await, Err(Code::Unavailable));
    assert_eq!(report(&client, &party, "good", &last).await, Err(Code::Unavailable));
    assert_eq!(try_to_disconnect(&client, &party, "good", single(), CLIENT).await, Err(Code::Unavailable));
    assert_eq!(token(&client, &party, "good", single(), CLIENT).await, Ok(good), "it is still there");
    assert_eq!((party.servers.refreshes().len(), party.servers.revoked().len()), (0, 0));

    read_again(process, admin).await;
    assert!(token(&client, &party, "rotates", single(), CLIENT).await.is_ok());
    assert!(report(&client, &party, "good", &last).await.is_ok());
    disconnect(&client, &party, "good", single(), CLIENT).await;
    assert_eq!((party.servers.refreshes().len(), party.servers.revoked().len()), (2, 1));
    let mut party = party;
    assert_eq!(party.process.process.stop().await, Some(0));
    assert_eq!((audited(&party, "refreshed"), audited(&party, "revoked")), (vec!["ok".into(); 2], vec!["ok".into()]));
    assert_eq!(audited(&party, "refused_token"), ["refreshing"]);
}
