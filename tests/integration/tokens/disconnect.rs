//! What is forgotten and revoked when a person disconnects, or connects again.

use envoy_cimd::contract::proto::{DisconnectRequest, DisconnectResponse, begin_authorization_response::Outcome};
use tonic::Code;

use super::{audited, connect, disconnect, over, party, person, token};
use crate::{
    authorization_server::{Lie, Refresh},
    exchange::{CLIENT, single},
};

/// Connected anew, what was there before is forgotten. It is revoked only where it is another server's: revoking may end
/// the whole grant, and the new token with it.
#[tokio::test]
async fn a_reconnect_forgets_what_it_replaces() {
    let (mut party, client) = party(vec![Lie::none("good"), Lie::none("other")], &[]).await;
    connect(&party, "good", single(), CLIENT).await;
    let first = token(&client, &party, "good", single(), CLIENT).await.expect("a token");
    connect(&party, "good", single(), CLIENT).await;
    let second = token(&client, &party, "good", single(), CLIENT).await.expect("a token");
    assert_ne!(first, second);
    assert_eq!(party.servers.revoked(), Vec::<String>::new());

    // The operator pins another server.
    let mut request = party.request("good");
    request.authorization_server = format!("{}/other", party.servers.issuer);
    request.shown_issuer.clone_from(&request.authorization_server);
    let Outcome::Begun(begun) = party.begin_with(request).await else { panic!("it began") };
    party.complete(party.answer("other", &begun)).await.expect("completed");
    assert_eq!(party.servers.revoked(), [second.replace("access", "refresh")]);
    assert_eq!(audited(&party, "revoked"), ["ok"]);
    // Disconnected, nothing is left, and each server was told.
    disconnect(&client, &party, "good", single(), CLIENT).await;
    assert_eq!(party.servers.revoked().len(), 2);
    assert_eq!(party.process.process.stop().await, Some(0));
    const TOKENS: redb::TableDefinition<&[u8; 32], &[u8]> = redb::TableDefinition::new("tokens-v1");
    let store = redb::Database::open(party.dir.path().join("state/store.redb")).expect("a store");
    let reading = redb::ReadableDatabase::begin_read(&store).expect("a transaction");
    let tokens = reading.open_table(TOKENS).expect("tokens");
    assert!(redb::ReadableTableMetadata::is_empty(&tokens).expect("a number"));
}

/// Who disconnects while a refresh is under way is rid of what it brings, too.
#[tokio::test]
async fn a_disconnect_outlasts_a_refresh() {
    let (mut party, client) = party(vec![over("late", Refresh::RotatesLate)], &["--patience=1"]).await;
    connect(&party, "late", single(), CLIENT).await;
    assert_eq!(token(&client, &party, "late", single(), CLIENT).await, Err(Code::Unavailable), "it is under way");
    disconnect(&client, &party, "late", single(), CLIENT).await;
    party.servers.answer();
    let both = |line: &str| line.contains("\"superseded\"").then_some(());
    party.process.process.line(both).await;
    assert_eq!(party.stored(&["late"]).await, [None]);
    assert_eq!(party.servers.revoked(), ["SECRET-refresh-of-SECRET-code-0", "SECRET-refresh-1"]);
    assert_eq!(audited(&party, "revoked"), ["ok", "ok"]);
}

#[tokio::test]
async fn disconnecting_revokes_and_forgets() {
    let no_revocation = Lie {
        metadata: |document| drop(document.as_object_mut().expect("an object").remove("revocation_endpoint")),
        ..Lie::none("no-revocation")
    };
    let (party, client) = party(vec![Lie::none("good"), no_revocation], &[]).await;
    for name in ["good", "no-revocation"] {
        connect(&party, name, single(), CLIENT).await;
        connect(&party, name, person("i", "ann"), CLIENT).await;
        disconnect(&client, &party, name, single(), CLIENT).await;
        assert_eq!(token(&client, &party, name, single(), CLIENT).await, Err(Code::NotFound));
        assert!(token(&client, &party, name, person("i", "ann"), CLIENT).await.is_ok(), "nobody else is disconnected");
        disconnect(&client, &party, name, single(), CLIENT).await;
    }
    assert_eq!(party.servers.revoked(), ["SECRET-refresh-of-SECRET-code-0"]);
    assert_eq!(audited(&party, "revoked"), ["ok", "not_offered"]);
}

/// The filter's own way to disconnect does the same, to this person and this route alone: not to another path of its host.
#[tokio::test]
async fn the_choreographer_disconnects_one_route() {
    let (party, client) = party(vec![Lie::none("good")], &[]).await;
    let linear = "https://notes.localhost/linear/.well-known/mcp-client-metadata.json";
    let owners = [(single(), linear), (single(), CLIENT), (person("i", "ann"), linear)];
    for (user, client_id) in &owners {
        connect(&party, "good", user.clone(), client_id).await;
    }
    let request = DisconnectRequest {
        user: Some(single()),
        client_id: linear.to_owned(),
        upstream: party.servers.upstream_of("good"),
        ..DisconnectRequest::default()
    };
    for _ in 0..2 {
        assert_eq!(party.disconnect(request.clone()).await, DisconnectResponse::default());
        for (index, (user, client_id)) in owners.iter().enumerate() {
            let token = token(&client, &party, "good", user.clone(), client_id).await;
            assert_eq!(token.is_ok(), index > 0, "{user:?} {client_id} {token:?}");
        }
    }
    assert_eq!(party.servers.revoked(), ["SECRET-refresh-of-SECRET-code-0"]);
}
