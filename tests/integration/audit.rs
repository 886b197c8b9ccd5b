//! The audit log: the table of its events in docs/operations.md is complete and true, each line says of whom and of what it is, and
//! the metrics agree with it.

use std::collections::BTreeSet;

use envoy_cimd::contract::{
    error::{BeginError, CallError, CompleteError, Label},
    proto::{
        AuthorizationError, BeginAuthorizationRequest, CompleteAuthorizationRequest, ReportRefusedTokenRequest,
        begin_authorization_response::Outcome, begin_refusal, complete_authorization_request::Answer,
        report_refused_token_request::Status, upstream_tokens_client::UpstreamTokensClient,
    },
};
use serde_json::{Value, json};
use tonic::transport::Channel;

use crate::{
    authorization_server::{Lie, Refresh, Token},
    exchange::{CALLBACK, CLIENT, Party, single},
    security::exists,
    settings::{OPERATIONS, page, section},
    stack::metric,
    tokens::{connect, disconnect, over, party, tag, token},
};

/// An event, how it came out, and the level of its line.
type Kind = (String, String, String);

/// What is provoked elsewhere.
const ELSEWHERE: [(&str, &str, &str); 2] = [
    ("refreshed", "not_stored", "tokens::store_away::redis_may_be_away_when_a_refresh_ends"),
    ("isolation_violation", "refused", "tokens::isolation::a_record_that_was_moved_is_nobodys"),
];
/// What a store comes to that fails, or hangs, in the middle of a call.
const OF_THE_STORE: [(&str, &str); 5] = [
    ("begun", "choreographer_failed"),
    ("begun", "timeout"),
    ("refused", "choreographer_failed"),
    ("refused", "timeout"),
    ("completed", "choreographer_failed"),
];

/// The rows of the table.
fn documented() -> BTreeSet<Kind> {
    let page = page(OPERATIONS);
    let rows = section(&page, "audit").lines().filter(|line| line.starts_with("| ")).skip(2);
    rows.flat_map(|row| {
        let columns: Vec<&str> = row.trim_matches('|').split(" | ").collect();
        let [event, level, outcomes, _] = columns[..] else { panic!("not four columns: {row}") };
        let quoted = |text: &str| text.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
        let (event, level) = (quoted(event).concat(), quoted(level).concat());
        let outcomes = quoted(outcomes);
        outcomes.into_iter().map(move |outcome| (event.clone(), outcome, level.clone()))
    })
    .collect()
}

fn lines(party: &Party) -> Vec<Value> {
    let output = party.process.process.output();
    assert!(!output.contains("SECRET"), "{output}");
    let lines = output.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["target"] == "audit").collect()
}

fn kind(line: &Value) -> Kind {
    let text = |of: &Value| of.as_str().unwrap_or_else(|| panic!("{line}")).to_owned();
    (text(&line["event"]), text(&line["outcome"]), text(&line["level"]).to_lowercase())
}

async fn report(party: &Party, client: &UpstreamTokensClient<Channel>, name: &str, tag: &[u8], scope: Option<&str>) {
    let request = ReportRefusedTokenRequest {
        user: Some(single()),
        client_id: CLIENT.to_owned(),
        upstream: party.servers.upstream_of(name),
        tag: tag.to_vec(),
        status: scope.map_or(Status::Unauthorized, |_| Status::InsufficientScope).into(),
        scope: scope.unwrap_or_default().to_owned(),
        ..ReportRefusedTokenRequest::default()
    };
    // What came of it is in the log.
    let _ = client.clone().report_refused_token(request).await;
}

async fn begins(party: &Party, request: BeginAuthorizationRequest) -> CompleteAuthorizationRequest {
    match party.begin_with(request).await {
        Outcome::Begun(begun) => party.answer("good", &begun),
        Outcome::Refusal(refusal) => panic!("{refusal:?}"),
    }
}

async fn is_refused(party: &Party, request: BeginAuthorizationRequest) -> begin_refusal::Reason {
    match party.begin_with(request).await {
        Outcome::Begun(_) => panic!("it began"),
        Outcome::Refusal(refusal) => refusal.reason(),
    }
}

/// Flows that begin and end in each way.
async fn flows(party: &Party) {
    let unusable = is_refused(party, party.request("unusable")).await;
    assert_eq!(unusable, begin_refusal::Reason::AuthorizationServerUnusable);
    let shown = BeginAuthorizationRequest { shown_issuer: "https://x.example".to_owned(), ..party.request("good") };
    assert_eq!(is_refused(party, shown).await, begin_refusal::Reason::IssuerChanged);
    let right = begins(party, party.request("good")).await;
    let wrong = CompleteAuthorizationRequest { browser_hash: vec![8; 32], ..right.clone() };
    let unknown = CompleteAuthorizationRequest { flow_id: vec![0; 16], ..right.clone() };
    for refused in [wrong, unknown] {
        party.complete(refused).await.expect_err("it is not theirs");
    }
    party.complete(right.clone()).await.expect("completed");
    party.complete(right).await.expect_err("used");
    let mut mixed_up = begins(party, party.request("good")).await;
    mixed_up.iss = Some("https://x.example".to_owned());
    let mut denied = begins(party, party.request("good")).await;
    denied.answer =
        Some(Answer::Error(AuthorizationError { error: "access_denied".into(), error_description: "SECRET".into() }));
    let Outcome::Begun(begun) = party.begin_with(party.request("refuses")).await else { panic!("it began") };
    for refused in [mixed_up, denied, party.answer("refuses", &begun)] {
        party.complete(refused).await.expect_err("refused");
    }
}

/// Tokens that are handed out, refused, refreshed and revoked, each as it may come out.
async fn tokens(party: &mut Party, client: &UpstreamTokensClient<Channel>) {
    report(party, client, "never", &[0; 16], None).await;
    // It was connected above.
    let first = tag(client, party, "good").await;
    report(party, client, "good", &first, None).await;
    let second = tag(client, party, "good").await;
    assert_ne!(first, second);
    report(party, client, "good", &second, None).await;
    report(party, client, "good", &second, Some("admin")).await;
    report(party, client, "good", &second, Some("")).await;
    for name in ["busy", "lost"] {
        connect(party, name, single(), CLIENT).await;
        let tag = tag(client, party, name).await;
        report(party, client, name, &tag, None).await;
    }
    for name in ["not-offered", "unheard"] {
        connect(party, name, single(), CLIENT).await;
        disconnect(client, party, name, single(), CLIENT).await;
    }
    // It is disconnected while it is refreshed.
    connect(party, "late", single(), CLIENT).await;
    token(client, party, "late", single(), CLIENT).await.expect_err("it is under way");
    disconnect(client, party, "late", single(), CLIENT).await;
    party.servers.answer();
    party.process.process.line(|line| line.contains("\"superseded\"").then_some(())).await;
}

#[tokio::test]
async fn each_event_is_on_the_page_and_can_be_seen() {
    let lies = vec![
        Lie::none("good"),
        Lie::none("never"),
        Lie { metadata: |document| document["issuer"] = json!("https://x.example"), ..Lie::none("unusable") },
        Lie { token: Token::Status(400, r#"{"error":"invalid_grant"}"#), ..Lie::none("refuses") },
        Lie { refresh: Refresh::Status(503, "{}"), ..Lie::none("busy") },
        Lie { refresh: Refresh::Status(400, r#"{"error":"invalid_grant"}"#), ..Lie::none("lost") },
        over("late", Refresh::RotatesLate),
        Lie {
            metadata: |document| drop(document.as_object_mut().expect("an object").remove("revocation_endpoint")),
            ..Lie::none("not-offered")
        },
        Lie {
            metadata: |document| {
                let nowhere = document["issuer"].as_str().expect("text").to_owned() + "/nowhere";
                document["revocation_endpoint"] = json!(nowhere);
            },
            ..Lie::none("unheard")
        },
    ];
    let (mut party, client) = party(lies, &["--max-flows=100"]).await;
    flows(&party).await;
    tokens(&mut party, &client).await;
    let mut room = 0..100;
    let full = loop {
        room.next().expect("it is full by now");
        if let Outcome::Refusal(refusal) = party.begin_with(party.request("good")).await {
            break refusal.reason();
        }
    };
    assert_eq!(full, begin_refusal::Reason::TooManyFlows);

    // The metrics, and what they count in the log.
    let counted = async |name: &str| metric(&party.process.admin, name).await.unwrap_or_else(|| panic!("no {name}"));
    let mut metrics = Vec::new();
    for result in ["ok", "failed", "ended", "superseded", "not_stored"] {
        let name = format!("envoy_cimd_refreshes_total{{result=\"{result}\"}}");
        metrics.push(("refreshed", result, counted(&name).await));
    }
    let handed_out = counted("envoy_cimd_token_lookups_total{result=\"handed_out\"}").await;
    metrics.push(("handed_out", "ok", handed_out));
    for (status, result) in [
        ("401", "renewed"),
        ("401", "too_soon"),
        ("401", "never"),
        ("401", "lost"),
        ("401", "unavailable"),
        ("403", "connect"),
        ("403", "no_more"),
    ] {
        let name = format!("envoy_cimd_refused_tokens_total{{status=\"{status}\",result=\"{result}\"}}");
        metrics.push(("reported", result, counted(&name).await));
    }
    // Nor is a flow taken where there can be no store.
    let mut storeless = Party::start(vec![Lie::none("good")], &["--store=file:/dev/null/store.redb"]).await;
    assert_eq!(is_refused(&storeless, storeless.request("good")).await, begin_refusal::Reason::Unavailable);
    let unknown = CompleteAuthorizationRequest {
        flow_id: vec![0; 16],
        redirect_uri: CALLBACK.to_owned(),
        user: Some(single()),
        browser_hash: vec![7; 32],
        answer: Some(Answer::Code("SECRET".to_owned())),
        iss: None,
    };
    storeless.complete(unknown).await.expect_err("there is no store");

    for party in [&mut party, &mut storeless] {
        assert_eq!(party.process.process.stop().await, Some(0));
    }
    let lines = [lines(&party), lines(&storeless)].concat();
    for line in &lines {
        for member in ["user_issuer", "user_subject", "client_id", "issuer", "timestamp"] {
            assert!(line[member].is_string(), "{member} in {line}");
        }
        assert_eq!(line["user_subject"], "single user");
    }
    for (event, outcome, count) in metrics {
        let lines = lines.iter().filter(|line| line["event"] == event && line["outcome"] == outcome);
        assert_eq!(lines.count() as u64, count, "{event} {outcome}");
    }
    let seen: BTreeSet<Kind> = lines.iter().map(kind).collect();
    let documented = documented();
    let unknown: Vec<&Kind> = seen.difference(&documented).collect();
    assert!(unknown.is_empty(), "not in {OPERATIONS}: {unknown:?}");
    for (_, _, test) in ELSEWHERE {
        exists(test);
    }
    let elsewhere = ELSEWHERE.map(|(event, outcome, _)| (event, outcome)).into_iter().chain(OF_THE_STORE);
    let elsewhere: BTreeSet<(&str, &str)> = elsewhere.collect();
    let unseen: BTreeSet<(&str, &str)> =
        documented.difference(&seen).map(|(event, outcome, _)| (event.as_str(), outcome.as_str())).collect();
    assert_eq!(unseen, elsewhere, "what is on the page is provoked here or elsewhere");
}

/// No error is without its word in the table.
#[test]
fn each_error_of_a_flow_is_on_the_page() {
    let documented = documented();
    let is_there = |events: &[&str], outcome: &str| {
        let is_one = |(event, documented, _): &Kind| events.contains(&event.as_str()) && documented == outcome;
        assert!(documented.iter().any(is_one), "{outcome} of {events:?}");
    };
    let calls = || [CallError::Unavailable("".into()), CallError::Failed("".into()), CallError::Timeout("".into())];
    let begins = [
        BeginError::AuthorizationServerUnusable("".into()),
        BeginError::TooManyFlows("".into()),
        BeginError::IssuerChanged(String::new()),
    ];
    for error in begins.into_iter().chain(calls().map(BeginError::Call)) {
        is_there(&["begun"], error.label());
    }
    let completes = [
        CompleteError::WrongContext,
        CompleteError::UnknownFlow,
        CompleteError::IssuerMismatch("".into()),
        CompleteError::AuthorizationError("".into()),
        CompleteError::AlreadyUsed { return_to: String::new() },
        CompleteError::ExchangeFailed("".into()),
    ];
    for error in completes.into_iter().chain(calls().map(CompleteError::Call)) {
        is_there(&["refused", "completed"], error.label());
    }
}
