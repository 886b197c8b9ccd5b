//! A store that is away when a token comes.

use envoy_cimd::contract::proto::begin_authorization_response::Outcome;
use serde_json::Value;
use tokio::time::timeout;
use tonic::Code;

use super::{Kept, connect, over, party, token};
use crate::{
    authorization_server::{Lie, Refresh, Token},
    exchange::{CLIENT, single},
    stack::{PATIENCE, metric},
};

/// The code is used up: what it brings is kept though the store was away when it came.
#[tokio::test]
#[ignore = "needs redis-server: make test-redis"]
async fn redis_may_be_away_when_a_token_comes() {
    let (kept, mut redis) = Kept::in_redis().await;
    let flags = kept.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let lie = Lie { token: Token::Late, ..Lie::none("late") };
    let (party, client) = party(vec![lie], &[&flags[..], &["--patience=1"]].concat()).await;
    let Outcome::Begun(begun) = party.begin_with(party.request("late")).await else { panic!("it began") };
    assert!(party.complete(party.answer("late", &begun)).await.is_err(), "nobody waits any more");
    redis.stop().await;
    party.servers.answer();
    redis.start_again().await;
    let mut party = party;
    let completed = |line: &str| (line.contains("\"completed\"") && line.contains("audit")).then(|| line.to_owned());
    let line = party.process.process.line(completed).await;
    assert!(line.contains("\"outcome\":\"ok\""), "{line}");
    assert!(token(&client, &party, "late", single(), CLIENT).await.is_ok());
}

/// What a refresh brought and no store took is counted and audited, be it a token or the end of the grant; and nobody is
/// told that their grant is over where the next refresh may say so again.
#[tokio::test]
#[ignore = "needs redis-server: make test-redis"]
async fn redis_may_be_away_when_a_refresh_ends() {
    let (kept, mut redis) = Kept::in_redis().await;
    let flags = kept.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let ended = Refresh::StatusLate(400, r#"{"error":"invalid_grant"}"#);
    let lies = vec![over("token", Refresh::RotatesLate), over("end", ended)];
    let (mut party, client) = party(lies, &[&flags[..], &["--patience=1"]].concat()).await;
    for name in ["token", "end"] {
        connect(&party, name, single(), CLIENT).await;
        assert_eq!(token(&client, &party, name, single(), CLIENT).await, Err(Code::Unavailable), "it is under way");
    }
    assert_eq!(party.servers.refreshes().len(), 2);
    redis.stop().await;
    party.servers.answer();
    let audited = |line: &str| {
        let line: Value = serde_json::from_str(line).ok()?;
        (line["target"] == "audit" && line["event"] == "refreshed").then(|| line["outcome"].to_string())
    };
    let mut lines = party.process.process.lines();
    for _ in 0..2 {
        let outcome = loop {
            let line = timeout(PATIENCE, lines.next()).await.expect("it is told").expect("it runs");
            if let Some(outcome) = audited(&line) {
                break outcome;
            }
        };
        assert_eq!(outcome, "\"not_stored\"");
    }
    for (result, count) in [("ok", 0), ("failed", 0), ("ended", 0), ("superseded", 0), ("not_stored", 2)] {
        let name = format!("envoy_cimd_refreshes_total{{result=\"{result}\"}}");
        assert_eq!(metric(&party.process.admin, &name).await, Some(count), "{result}");
    }
    redis.start_again().await;
    for name in ["token", "end"] {
        assert_eq!(token(&client, &party, name, single(), CLIENT).await, Err(Code::Unavailable), "{name}");
    }
    assert_eq!(party.process.process.stop().await, Some(0));
}
