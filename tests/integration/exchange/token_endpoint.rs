//! What a token endpoint answers to a code.

use std::time::Duration;

use envoy_cimd::contract::proto::complete_refusal::Reason;
use serde_json::{Value, json};

use super::{LATE, Party};
use crate::authorization_server::{Lie, Token};

/// Each lie of the token endpoint, and what an operator reads: refused, consumed, and nothing stored.
#[tokio::test]
async fn token_endpoints_that_lie() {
    let answered = |what: &str| format!("the token endpoint answered {what}");
    let not_json = || answered("with a success that is not a JSON object");
    let rows = [
        ("redirects", Token::Redirects, answered("307")),
        ("html", Token::Html, not_json()),
        ("form", Token::Form, not_json()),
        ("empty", Token::Status(200, ""), not_json()),
        ("a-list", Token::Status(200, r#"["SECRET"]"#), not_json()),
        ("huge", Token::Huge, "the answer is larger than 1048576 bytes".to_owned()),
        ("hangs", Token::Hangs, LATE.to_owned()),
        ("never-ends", Token::Endless, LATE.to_owned()),
        ("dies", Token::Dies, "no whole answer came: unexpected end of file".to_owned()),
        (
            "refuses",
            Token::Status(400, r#"{"error":"invalid_grant","error_description":"SECRET"}"#),
            answered("400 with the error `invalid_grant`"),
        ),
        ("own-code", Token::Status(400, r#"{"error":"SECRET"}"#), answered("400 with the error `other`")),
        ("breaks", Token::Status(500, "SECRET"), answered("500")),
        ("busy", Token::Status(429, "SECRET"), answered("429")),
        (
            "called-a-success",
            Token::Status(200, r#"{"error":"invalid_grant"}"#),
            answered("200 with the error `invalid_grant`"),
        ),
        ("without-a-word", Token::Status(401, ""), answered("401")),
        ("mac", Token::Json(|d| d["token_type"] = json!("mac")), "`token_type` is not Bearer".to_owned()),
        (
            "no-token",
            Token::Json(|d| drop(d.as_object_mut().expect("an object").remove("access_token"))),
            "`access_token` is missing".to_owned(),
        ),
        ("a-number", Token::Json(|d| d["access_token"] = json!(1)), "`access_token` is not a text".to_owned()),
        ("empty-token", Token::Json(|d| d["access_token"] = json!("")), "`access_token` is empty".to_owned()),
        (
            "a-header",
            Token::Json(|d| d["access_token"] = json!("a\r\nx: y")),
            "`access_token` has characters that no token has".to_owned(),
        ),
        (
            "too-long",
            Token::Json(|d| d["access_token"] = json!("x".repeat(100_000))),
            "`access_token` is longer than 16 kB".to_owned(),
        ),
        (
            "twice",
            Token::Status(200, r#"{"access_token":"SECRET","access_token":"SECRET"}"#),
            "`access_token` is there twice".to_owned(),
        ),
    ];
    let names = rows.each_ref().map(|(name, ..)| *name);
    let lies = rows.each_ref().map(|(name, token, _)| Lie { token: *token, ..Lie::none(name) });
    let patience = ["--patience=5", "--token-endpoint-timeout=10", "--refresh-claim=15"];
    let mut party = Party::start(lies.into(), &patience).await;
    for (name, _, words) in &rows {
        let begun = party.begun(name).await;
        let answer = party.answer(name, &begun);
        let before = party.servers.exchanges().len();
        let reason = if words == LATE { Reason::TimedOut } else { Reason::ExchangeFailed };
        let (refused, cause) = party.complete(answer.clone()).await.expect_err(name);
        assert_eq!(refused, reason, "{name}");
        assert!(cause.ends_with(words), "{name}: {cause}");
        assert_eq!(party.complete(answer).await, Err((Reason::AlreadyUsed, "/after".to_owned())), "consumed: {name}");
        assert_eq!(party.servers.exchanges().len(), before + 1, "sent once: {name}");
    }
    let stored = party.stored(&names).await;
    assert!(stored.iter().all(Option::is_none), "{stored:?}");
}

/// The code is used up when the answer comes: what is unambiguous in it is taken.
#[tokio::test]
async fn token_answers_as_servers_write_them() {
    let token = |name, token| Lie { token, ..Lie::none(name) };
    let lies = vec![
        token("no-type", Token::Json(|d| drop(d.as_object_mut().expect("an object").remove("token_type")))),
        token("negative", Token::Json(|d| d["expires_in"] = json!(-1))),
        token("soon", Token::Json(|d| d["expires_in"] = json!("soon"))),
        token("a-text", Token::Json(|d| d["expires_in"] = json!("3600"))),
        token("a-float", Token::Json(|d| d["expires_in"] = json!(3600.0))),
        token("no-lifetime", Token::Json(|d| drop(d.as_object_mut().expect("an object").remove("expires_in")))),
        token("a-list", Token::Json(|d| d["scope"] = json!(["a", "b"]))),
        token("nulls", Token::Json(|d| (d["scope"], d["id_token"]) = (Value::Null, Value::Null))),
        token("long", Token::Json(|d| d["access_token"] = json!("x".repeat(16 << 10)))),
        token("long-refresh", Token::Json(|d| d["refresh_token"] = json!("x".repeat(100_000)))),
        token("created", Token::As(201, "application/json", r#"{"access_token":"SECRET","token_type":"bearer"}"#)),
        token(
            "plain",
            Token::As(200, "text/plain; charset=utf-8", r#"{"access_token":"SECRET","token_type":"bearer"}"#),
        ),
    ];
    let names: Vec<&str> = lies.iter().map(|lie| lie.name).collect();
    let mut party = Party::start(lies, &[]).await;
    for name in &names {
        let begun = party.begun(name).await;
        assert_eq!(party.complete(party.answer(name, &begun)).await, Ok("/after".to_owned()), "{name}");
    }
    let unread = "members of the token endpoint's answer cannot be read";
    assert_eq!(party.process.process.output().matches(unread).count(), 3, "negative, soon, long-refresh");
    let stored = party.stored(&names).await;
    assert!(stored.iter().all(Option::is_some), "{stored:?}");
}

/// Whoever waits is answered in time; the code is used up by then, and the token that it brings is kept.
#[tokio::test]
async fn an_exchange_that_is_late_is_not_lost() {
    let lies = [("late", Token::Late), ("in-pieces", Token::Pieces(Duration::from_millis(700)))];
    let lies = lies.map(|(name, token)| Lie { token, ..Lie::none(name) });
    let names = lies.map(|lie| lie.name);
    let mut party = Party::start(lies.into(), &["--patience=1"]).await;
    for name in names {
        let begun = party.begun(name).await;
        let answer = party.answer(name, &begun);
        let late = "the token endpoint did not answer within 1 s".to_owned();
        assert_eq!(party.complete(answer.clone()).await, Err((Reason::TimedOut, late)));
        assert_eq!(party.complete(answer).await, Err((Reason::AlreadyUsed, "/after".to_owned())));
        party.servers.answer();
        let issuer = format!("\"issuer\":\"{}/{name}\"", party.servers.issuer);
        let stored = |line: &str| {
            let completed = line.contains("\"completed\"") && line.contains(&issuer);
            (completed && line.contains("\"outcome\":\"ok\"")).then_some(())
        };
        party.process.process.line(stored).await;
    }
    assert_eq!(party.servers.exchanges().len(), 2, "each sent once");
    assert!(party.stored(&names).await.iter().all(Option::is_some));
}
