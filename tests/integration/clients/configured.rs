//! Clients of `clients:`: whose they are, and how they authenticate.

use std::time::{Duration, Instant};

use envoy_cimd::contract::proto::{BeginAuthorizationRequest, begin_refusal, complete_refusal::Reason};
use tonic::Code;

use super::{
    NOTES, OTHER, SECRET, assert_hidden, begun, by_hand, client_id, connect, disconnect, entry, party, pinned, token,
};
use crate::{
    authorization_server::{Auth, Lie},
    exchange::{CALLBACK, CLIENT, Party, refused, single},
    stack::{PATIENCE, metric},
    tokens::{audited, person},
};

/// A client of the config file is who the route is, from the authorization request to the revocation; what is kept is kept
/// under the route's document all the same.
#[tokio::test]
async fn a_client_by_hand_connects_refreshes_and_is_revoked() {
    let lies = [("public", Auth::None), ("basic", Auth::Basic), ("post", Auth::Post)];
    let lies: Vec<Lie> = lies.map(|(name, auth)| by_hand(name, auth)).into();
    let names: Vec<&str> = lies.iter().map(|lie| lie.name).collect();
    let (mut party, client) = party(lies, &[]).await;
    for name in &names {
        let begun = begun(&party, pinned(&party, name)).await;
        assert_eq!(client_id(&begun.authorization_url), "by-hand:1", "{name}");
        party.complete(party.answer(name, &begun)).await.expect(name);
        let before = party.servers.refreshes().len();
        let token = token(&client, &party, name, single()).await.expect(name);
        assert!(party.servers.origin(&token).is_some(), "{name}");
        assert_eq!(party.servers.refreshes().len(), before + 1, "{name}");
    }
    for (index, name) in names.iter().enumerate() {
        disconnect(&party, name, single()).await;
        assert_eq!(party.servers.revoked().len(), index + 1, "{name}: the server took it");
        connect(&party, name, single()).await;
    }
    assert_eq!(audited(&party, "revoked"), ["ok"; 3]);
    assert_hidden(&party, "by-hand:1", &[SECRET]).await;
    assert!(party.stored(&names).await.iter().all(Option::is_some));
}

/// What an upstream names selects no client of the config file: who names an honest server is not handed its tokens. Nor
/// does one that the operator pins select the client of another route.
#[tokio::test]
async fn an_upstream_does_not_select_a_client_by_hand() {
    let takes_documents = Lie {
        metadata: |document| document["client_id_metadata_document_supported"] = true.into(),
        ..by_hand("both", Auth::Basic)
    };
    let lies = vec![by_hand("honest", Auth::Basic), takes_documents, Lie::none("evil"), Lie::none("sly")];
    let (party, _) = party(lies, &[]).await;
    party.servers.moves("evil", "honest");
    party.servers.moves("sly", "both");
    let shown = |name: &str| format!("{}/{name}", party.servers.issuer);
    let at = |name: &str| BeginAuthorizationRequest { shown_issuer: shown("honest"), ..party.request(name) };
    let not_pinned = "the client of `clients:` is not used, since the route does not pin this `authorization_server`";
    let not_listed = "`clients:` has no client for this route and issuer";
    let elsewhere = BeginAuthorizationRequest { client_id: OTHER.to_owned(), ..pinned(&party, "honest") };
    for (request, why) in [(at("evil"), not_pinned), (at("honest"), not_pinned), (elsewhere, not_listed)] {
        let outcome = party.begin_with(request).await;
        let (reason, message) = refused(&outcome);
        assert_eq!(reason, begin_refusal::Reason::AuthorizationServerUnusable);
        let documents = "it does not support client ID metadata documents (`client_id_metadata_document_supported`)";
        assert!(message.contains(why) && message.contains(documents), "{message}");
    }
    // Where the server takes documents, that is who everybody is who is not listed.
    let begun = begun(&party, BeginAuthorizationRequest { shown_issuer: shown("both"), ..at("sly") }).await;
    assert_eq!(client_id(&begun.authorization_url), CLIENT);
    let answer = party.answer("both", &begun);
    let (reason, cause) = party.complete(answer).await.expect_err("it is not that client");
    assert_eq!(reason, Reason::ExchangeFailed);
    assert!(cause.ends_with("401 with the error `invalid_client`"), "{cause}");
    assert_hidden(&party, "by-hand:1", &[SECRET]).await;
}

/// A listed client comes before the document; an earlier issuer's slash makes no difference.
#[tokio::test]
async fn a_client_by_hand_comes_first() {
    let both = Lie {
        metadata: |document| document["client_id_metadata_document_supported"] = true.into(),
        ..by_hand("both", Auth::Post)
    };
    let (party, _) = party(vec![both], &[]).await;
    let begun = begun(&party, pinned(&party, "both")).await;
    assert_eq!(client_id(&begun.authorization_url), "by-hand:1");
    party.complete(party.answer("both", &begun)).await.expect("completed");
}

/// Two routes that are one client have their own flows and tokens.
#[tokio::test]
async fn two_routes_that_are_one_client_share_nothing() {
    let lie = by_hand("shared", Auth::Basic);
    let routes = [NOTES, "https://tickets.localhost"];
    let party =
        Party::with_clients(vec![lie], &[], |servers, dir| format!("clients:\n{}", entry(servers, dir, &lie, &routes)))
            .await;
    let others = BeginAuthorizationRequest {
        client_id: OTHER.to_owned(),
        redirect_uri: "https://tickets.localhost/.pomerium/oauth/callback".to_owned(),
        ..pinned(&party, "shared")
    };
    let (mine, theirs) = (begun(&party, pinned(&party, "shared")).await, begun(&party, others.clone()).await);
    assert_eq!(client_id(&mine.authorization_url), client_id(&theirs.authorization_url));
    // A flow of one is nothing to the other's redirect URI, and is not consumed by it.
    let mut crossed = party.answer("shared", &theirs);
    assert_eq!(crossed.redirect_uri, CALLBACK);
    assert_eq!(party.complete(crossed.clone()).await, Err((Reason::WrongContext, String::new())));
    assert_eq!(party.servers.asked(), 0);
    crossed.redirect_uri = others.redirect_uri;
    party.complete(crossed).await.expect("completed");
    party.complete(party.answer("shared", &mine)).await.expect("completed");
    disconnect(&party, "shared", single()).await;
    let mut party = party;
    assert_eq!(party.servers.revoked().len(), 1);
    assert_eq!(party.stored(&["shared"]).await, [None]);
}

/// A secret that changes at the server, and then in the file: what the server says meanwhile ends no grant. A bad file
/// keeps the last secret, and says so.
#[tokio::test]
async fn a_secret_is_read_again_when_it_changes() {
    let lie = by_hand("rotates", Auth::Basic);
    let (mut party, client) = party(vec![lie], &[]).await;
    connect(&party, "rotates", person("i", "ann")).await;
    connect(&party, "rotates", person("i", "bob")).await;
    let file = party.dir.path().join("rotates.secret");
    let not_taken = async |party: &mut Party, content: &str, words: &str| {
        std::fs::write(&file, content).expect("written");
        let said =
            |line: &str| (line.contains("not taken, the last good one stays") && line.contains(words)).then_some(());
        party.process.process.line(said).await;
    };
    not_taken(&mut party, "", "is empty").await;
    not_taken(&mut party, &"SECRET".repeat(2_000), "has more than 4096 bytes").await;
    not_taken(&mut party, "SECRET\nSECRET\n", "is not one line of printable ASCII").await;
    let failed = "envoy_cimd_reloads_total{file=\"client_secrets\",result=\"failed\"}";
    assert_eq!(metric(&party.process.admin, failed).await, Some(3));
    token(&client, &party, "rotates", person("i", "ann")).await.expect("with the last good one");

    const NEXT: &str = "SECRET-the-next";
    party.servers.set_secret("rotates", "by-hand:1", NEXT);
    let (code, cause) = token(&client, &party, "rotates", person("i", "bob")).await.expect_err("it is over");
    assert_eq!(code, Code::Unavailable, "{cause}");
    assert!(cause.contains("401 with the error `invalid_client`"), "{cause}");
    std::fs::write(&file, NEXT).expect("written");
    let taken = |line: &str| (line.contains("\"client_secrets\"") && line.contains("read again")).then_some(());
    party.process.process.line(taken).await;
    // Once what was just heard is a second old.
    let deadline = Instant::now() + PATIENCE;
    while let Err((code, cause)) = token(&client, &party, "rotates", person("i", "bob")).await {
        assert!(code == Code::Unavailable && Instant::now() < deadline, "{code:?} {cause}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_hidden(&party, "by-hand:1", &[SECRET, NEXT]).await;
}
