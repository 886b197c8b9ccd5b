//! Whose a flow is, and what the choreographer is told of it.

use super::{Flows, NOTES, WHO, honest, person, press, with_people, with_query};
use crate::{
    choreographer::{Call as Recorded, ISSUER},
    stack::Call,
    world::{CALLBACK, DOCUMENT, START},
};

/// What reaches the choreographer, field by field.
#[tokio::test]
async fn what_is_handed_on() {
    let flows = Flows::start().await;
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let begun = flows.begin_as(press(NOTES, "?return_to=/a%2Fb").header("traceparent", trace)).await;
    let query = format!("error=access_denied&error_description=a+b&state={}&iss={ISSUER}", begun.state);
    flows.send(with_query(&begun, &query)).await;
    let [Recorded::Begin(begin), Recorded::Complete(complete)] = &flows.fake.calls()[..] else { panic!("two calls") };
    assert_eq!(begin.client_id, format!("https://{NOTES}{DOCUMENT}"));
    assert_eq!(begin.redirect_uri, format!("https://{NOTES}{CALLBACK}"));
    assert_eq!((&begin.upstream, begin.return_to.as_str()), (&flows.world.upstream.url, "/a/b"));
    let value = begun.cookie.split_once('=').expect("a value").1;
    assert_eq!(begin.browser_hash, <sha2::Sha256 as sha2::Digest>::digest(value).to_vec());
    assert_eq!((&complete.user, &complete.browser_hash), (&begin.user, &begin.browser_hash));
    assert_eq!((complete.redirect_uri.as_str(), complete.iss.as_deref()), (begin.redirect_uri.as_str(), Some(ISSUER)));
    let Some(envoy_cimd::contract::proto::complete_authorization_request::Answer::Error(error)) = &complete.answer
    else {
        panic!("an error")
    };
    assert_eq!((error.error.as_str(), error.error_description.as_str()), ("access_denied", "a b"));
    assert_eq!(flows.fake.traces().first().map(String::as_str), Some(trace));
    flows.finish().await;
}

/// Who a person is comes from a filter's metadata, and who starts must finish.
#[tokio::test]
async fn users() {
    let flows = Flows::with(&WHO, &with_people).await;
    for (call, status) in [
        (Call::get(NOTES, START), 403),
        (press(NOTES, ""), 403),
        (press(NOTES, "").header("x-issuer", "i"), 403),
        (press(NOTES, "").header("x-subject", "s"), 403),
        (person(Call::get(NOTES, START), "i", "s"), 200),
    ] {
        let answer = flows.send(call.header("accept", "text/html")).await;
        assert_eq!(answer.status, status);
        assert_eq!(answer.text().contains("--user-namespace"), status == 403, "what the operator must set");
    }
    assert_eq!(flows.fake.begins(), 0);
    let begun = flows.begin_as(person(press(NOTES, ""), "i", "ann")).await;
    // Nobody, and then somebody else, at the same browser: refused, and nothing is consumed.
    assert_eq!(flows.send(honest(&begun)).await.status, 403);
    assert_eq!(flows.fake.completions(), 0);
    for (issuer, subject) in [("i", "bob"), ("j", "ann")] {
        assert_eq!(flows.send(person(honest(&begun), issuer, subject)).await.status, 400);
        assert!(!flows.fake.consumed());
    }
    assert_eq!(flows.labelled("callback", "wrong_context").await, 2);
    assert_eq!(flows.send(person(honest(&begun), "i", "ann")).await.status, 303);
    flows.finish().await;
}
