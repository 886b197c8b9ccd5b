//! Nothing of one user, route or issuer is reachable from another.

use std::path::Path;

use envoy_cimd::{
    contract::proto::GetUpstreamTokenRequest,
    model::{client::ClientId, user::User as Person},
    store::keys::RouteKey,
};
use tonic::Code;

use super::{Kept, audited, connect, disconnect, party, party_with_clients, person, token};
use crate::{
    authorization_server::{Lie, Servers},
    exchange::{CLIENT, single},
    kinds::{self, Kind},
    world::DOCUMENT,
};

#[tokio::test]
async fn nothing_of_one_is_reachable_from_another() {
    isolation(&[]).await;
}

#[tokio::test]
#[ignore = "needs redis-server: make test-redis"]
async fn redis_nothing_of_one_is_reachable_from_another() {
    let (kept, _redis) = Kept::in_redis().await;
    let flags = kept.flags();
    isolation(&flags.iter().map(String::as_str).collect::<Vec<_>>()).await;
}

/// Users, routes, and issuers with their upstreams, each of which knows another kind of client: whatever differs, there
/// is nothing.
async fn isolation(flags: &[&str]) {
    const ROUTES: [&str; 3] =
        ["https://notes.localhost", "https://tickets.localhost", "https://notes.localhost/linear"];
    const KINDS: [(&str, Kind); 3] = [("one", Kind::Document), ("two", Kind::ByHand), ("three", Kind::Registered)];
    let lies = Vec::from(KINDS.map(|(name, kind)| kind.only(Lie::none(name))));
    let known = lies.clone();
    let clients = move |servers: &Servers, dir: &Path| kinds::listed(servers, dir, &known, &ROUTES);
    let (party, client) = party_with_clients(lies, &[&["--dynamic-registration"], flags].concat(), clients).await;
    let clients = ROUTES.map(|from| format!("{from}{DOCUMENT}"));
    let clients = clients.each_ref().map(String::as_str);
    let users = [person("i", "s"), person("j", "s"), person("i", "t"), person("", "i s"), single()];
    let mut combinations = Vec::new();
    for user in &users {
        for client_id in clients {
            for (name, _) in KINDS {
                combinations.push((user.clone(), client_id, name));
            }
        }
    }
    // One at a time, so that each sees all others empty.
    for (user, client_id, name) in &combinations {
        let nobody = *user == person("", "i s");
        if !nobody {
            connect(&party, name, user.clone(), client_id).await;
        }
        for (other_user, other_client, other_name) in &combinations {
            let got = token(&client, &party, other_name, other_user.clone(), other_client).await;
            let same = (other_user, other_client, other_name) == (user, client_id, name);
            match (same, nobody) {
                _ if *other_user == person("", "i s") => assert_eq!(got, Err(Code::InvalidArgument)),
                (true, false) => assert!(got.is_ok()),
                _ => assert_eq!(got, Err(Code::NotFound), "{other_user:?} {other_client} {other_name}"),
            }
        }
        if !nobody {
            disconnect(&client, &party, name, user.clone(), client_id).await;
        }
    }
    // A route that pins another authorization server than the token's own.
    connect(&party, "one", single(), CLIENT).await;
    for (issuer, found) in [(format!("{}/one", party.servers.issuer), true), ("https://evil.example".to_owned(), false)]
    {
        let request = GetUpstreamTokenRequest {
            user: Some(single()),
            client_id: CLIENT.to_owned(),
            upstream: party.servers.upstream_of("one"),
            authorization_server: issuer,
            ..GetUpstreamTokenRequest::default()
        };
        assert_eq!(client.clone().get_upstream_token(request).await.is_ok(), found);
    }
    assert!(audited(&party, "isolation_violation").is_empty());
    let registrations: Vec<usize> = KINDS.map(|(name, _)| party.servers.registrations(name).len()).into();
    assert_eq!(registrations, [0, 0, ROUTES.len()], "one for each route that may need it");
    assert_eq!(party.servers.revoked().len(), ROUTES.len() * KINDS.len() * 4, "each was ended as who it was begun as");
}

/// Somebody who can write to the store moves one user's record to another: it does not open there, or is not of there.
async fn moved_records(kept: Kept) {
    let flags = kept.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let (mut party, _) = party(vec![Lie::none("good")], &flags).await;
    for subject in ["ann", "bob", "eve"] {
        connect(&party, "good", person("i", subject), CLIENT).await;
    }
    assert_eq!(party.process.process.stop().await, Some(0));
    let upstream = party.servers.upstream_of("good");
    let route = |subject: &str| {
        let user = Person::Subject { issuer: "i".to_owned(), subject: subject.to_owned() };
        RouteKey::of(&user, &ClientId::new(CLIENT), &upstream)
    };
    let opened = kept.open().await;
    let store = &opened.store;
    let found = async |subject| store.token(route(subject)).await.expect("a store").expect("a token").kept;
    let ((anns, sealed), (bobs, _)) = (found("ann").await, found("bob").await);
    // Ann's record where Bob's was, and Eve's index at Ann's record.
    store.put_token(bobs, route("bob"), sealed.clone()).await.expect("moved");
    store.put_token(anns, route("eve"), sealed).await.expect("moved");
    drop(opened);
    let (again, client) = kept.again(&party).await;
    for (subject, found) in [("ann", true), ("bob", false), ("eve", false)] {
        let got = token(&client, &party, "good", person("i", subject), CLIENT).await;
        assert_eq!(got.is_ok(), found, "{subject}: {got:?}");
        assert!(found || got == Err(Code::NotFound), "{subject}: {got:?}");
    }
    let log = again.process.output();
    assert_eq!(log.matches("isolation_violation").count(), 2, "{log}");
    assert!(!log.contains("SECRET"));
}

#[tokio::test]
async fn a_record_that_was_moved_is_nobodys() {
    moved_records(Kept::in_file()).await;
}

#[tokio::test]
#[ignore = "needs redis-server: make test-redis"]
async fn redis_a_record_that_was_moved_is_nobodys() {
    let (kept, _redis) = Kept::in_redis().await;
    moved_records(kept).await;
}
