//! Tokens that an upstream refused, as whoever carries its requests reports.

use envoy_cimd::{
    contract::{
        proto::{self, upstream_tokens_client::UpstreamTokensClient},
        tokens::{Refused, Renewal, UpstreamTokens},
    },
    model::{clock::UnixTime, trace::Trace, user::User as Person},
};
use tonic::{Code, transport::Channel};

use super::{Kept, audited, connect, in_process_and_connected, party, report, tag, token};
use crate::{
    authorization_server::{Lie, Refresh, Token},
    exchange::{CLIENT, Party, single},
    stack::in_process::owner,
};

const NOW: UnixTime = UnixTime::from_secs(4_000_000_000);

/// An upstream that refuses every token costs a refresh a minute, and then fewer.
#[tokio::test]
async fn refusals_without_end_cost_few_refreshes() {
    // The time of each report, and whether it was worth a refresh.
    const REPORTS: [(fn() -> UnixTime, Renewal); 11] = [
        (|| NOW, Renewal::Renewed),
        (|| NOW + 1, Renewal::TooSoon),
        (|| NOW + 59, Renewal::TooSoon),
        (|| NOW + 60, Renewal::Renewed),
        (|| NOW + 179, Renewal::TooSoon),
        (|| NOW + 180, Renewal::Renewed),
        (|| NOW + 419, Renewal::TooSoon),
        (|| NOW + 420, Renewal::Renewed),
        // A clock that was set back says nothing of when the last one was.
        (|| NOW - 3600, Renewal::Renewed),
        (|| NOW - 3599, Renewal::TooSoon),
        // Long after the last, it is the first again.
        (|| NOW, Renewal::Renewed),
    ];
    let (_dir, servers, mut embedded) = in_process_and_connected(no_lifetime("no-lifetime")).await;
    let owner = owner(Person::Single, CLIENT, &servers.upstream_of("no-lifetime"));
    for (place, (clock, expected)) in REPORTS.into_iter().enumerate() {
        embedded.tokens.clock = clock;
        let token = embedded.tokens.record(&owner).await.expect("a store").expect("a token");
        let tag = token.tag.expect("a tag");
        let came_to = embedded.tokens.refused(owner.clone(), Refused::unauthorized(tag), &Trace::default()).await;
        assert_eq!(came_to, Ok(expected), "report {place}");
    }
    assert_eq!(servers.refreshes().len(), 6);
}

fn no_lifetime(name: &'static str) -> Lie {
    let token = Token::Json(|answer| drop(answer.as_object_mut().expect("an object").remove("expires_in")));
    Lie { token, ..Lie::none(name) }
}

fn refusable() -> Vec<Lie> {
    let ended = Refresh::Status(400, r#"{"error":"invalid_grant"}"#);
    vec![Lie::none("good"), no_lifetime("no-lifetime"), Lie { refresh: ended, ..Lie::none("ended") }]
}

/// However many report a token, and to whichever replica, it is refreshed once.
async fn tokens_that_were_refused(party: &Party, clients: [&UpstreamTokensClient<Channel>; 2]) {
    use proto::report_refused_token_response::Outcome::{Renewed, TooSoon};
    let [one, other] = clients;
    connect(party, "good", single(), CLIENT).await;
    let old = tag(one, party, "good").await;
    assert_eq!(old.len(), 16);
    assert_eq!(tag(other, party, "good").await, old, "a token has one tag");
    let reports = (0..200).map(|number| report(clients[number % 2], party, "good", &old));
    let reports = futures_util::future::join_all(reports).await;
    assert!(reports.iter().all(|outcome| *outcome == Ok(Renewed)), "{reports:?}");
    assert_eq!(party.servers.refreshes().len(), 1);
    let new = tag(other, party, "good").await;
    assert_ne!(new, old);
    assert_eq!(report(one, party, "good", &new).await, Ok(TooSoon), "the new one at once");
    assert_eq!(report(other, party, "good", &old).await, Ok(Renewed), "there is a newer one");
    assert_eq!(report(other, party, "good", &[0; 16]).await, Ok(Renewed), "nor is one of nobody's");
    assert_eq!(report(one, party, "good", &[0; 15]).await, Err(Code::InvalidArgument));
    assert_eq!(party.servers.refreshes().len(), 1, "and nothing more is asked for");

    // Without a lifetime, it is good until then.
    connect(party, "no-lifetime", single(), CLIENT).await;
    let tag_of_it = tag(one, party, "no-lifetime").await;
    assert_eq!(tag(one, party, "no-lifetime").await, tag_of_it);
    assert_eq!(report(other, party, "no-lifetime", &tag_of_it).await, Ok(Renewed));
    assert_eq!(party.servers.refreshes().len(), 2);

    // A grant that ended behind our back.
    connect(party, "ended", single(), CLIENT).await;
    let last = tag(one, party, "ended").await;
    assert_eq!(report(one, party, "ended", &last).await, Err(Code::NotFound));
    assert_eq!(token(other, party, "ended", single(), CLIENT).await, Err(Code::NotFound));
    assert_eq!(report(other, party, "ended", &last).await, Err(Code::NotFound));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_was_refused_is_refreshed_once() {
    let (mut party, client) = party(refusable(), &[]).await;
    tokens_that_were_refused(&party, [&client, &client]).await;
    assert_eq!(party.process.process.stop().await, Some(0));
    assert_eq!(audited(&party, "refused_token"), ["refreshing"; 3], "one line a refresh");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server: make test-redis"]
async fn redis_a_token_that_two_replicas_saw_refused_is_refreshed_once() {
    let (kept, _redis) = Kept::in_redis().await;
    let flags = kept.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let (party, one) = party(refusable(), &flags).await;
    let (_other, other) = kept.again(&party).await;
    tokens_that_were_refused(&party, [&one, &other]).await;
}
