//! Refusals that people see, and where they lead.

use super::{NOTES, page, with_brand};
use crate::{
    choreographer::Mood,
    flow::{Begun, honest, person, press, with_query, without_cookie},
    stack::{Answered, Call},
    world::{CALLBACK, DISCONNECT, START},
};

/// Each refusal that a person sees says what to do, with the request's id, the brand and where there is help.
#[tokio::test]
async fn refusals_lead_on() {
    let flows = with_brand("from=https://notes.localhost").await;
    let to = |path: &str| Call::get(NOTES, path).header("accept", "text/html");
    let known = |call: Call| person(call, "i", "ann");
    let disconnect = |site: &'static str| known(to(DISCONNECT).method("POST").header("sec-fetch-site", site));
    let start_again = format!("href=\"{START}\">Start again</a>");
    let try_again = format!("href=\"{START}\">Try again</a>");
    for (row, mood, call, status, words, link) in [
        ("nobody", Mood::Correct, to(START), 403, "sign in again and try once more", Some(&try_again)),
        (
            "a callback",
            Mood::Correct,
            known(to(&format!("{CALLBACK}?code=c&state=s"))),
            400,
            "Start again, and finish within ten minutes",
            Some(&start_again),
        ),
        ("another site", Mood::Correct, disconnect("cross-site"), 403, "only go on if it was you", Some(&start_again)),
        ("another method", Mood::Correct, known(to(DISCONNECT)), 405, "Start again from the page", Some(&start_again)),
        (
            "another host",
            Mood::Correct,
            known(to(START)).authority("notes.localhost:8443"),
            421,
            "Open the link from your MCP client again",
            None,
        ),
        (
            "a failure",
            Mood::Fails,
            disconnect("same-origin"),
            502,
            "that page says whether you are connected",
            Some(&start_again),
        ),
        (
            "no server",
            Mood::NoServer,
            known(press(NOTES, "").header("accept", "text/html")),
            502,
            "you cannot connect here",
            Some(&start_again),
        ),
        (
            "too many",
            Mood::Full,
            known(press(NOTES, "").header("accept", "text/html")),
            503,
            "Wait a few minutes",
            Some(&start_again),
        ),
    ] {
        flows.fake.set(mood);
        let answer = flows.send(call.header("x-display", "SECRET-name")).await;
        assert_eq!(answer.status, status, "{row}: {answer:?}");
        let text = answer.text();
        assert!(text.contains(words), "{row}: {text}");
        assert!(link.is_none_or(|link| text.contains(link)), "{row}: {text}");
        assert_eq!(link.is_some(), text.contains("class=\"action\""), "{row}: {text}");
        let [request_id] = answer.all("x-request-id")[..] else { panic!("{row}: {answer:?}") };
        for part in [&format!("<code>{request_id}</code>"), "Acme &#38; &#60;Söhne&#62;", ">Get help</a>"] {
            assert!(text.contains(part), "{row}: {part} in {text}");
        }
        assert!(!text.contains("SECRET"), "{row}: {text}");
    }
    flows.finish().await;
}

/// Who starts again goes on from there to where they wanted, if it is known that they wanted it; and nowhere else.
#[tokio::test]
async fn starting_again_keeps_where_they_wanted() {
    let flows = with_brand("from=https://notes.localhost").await;
    let known = |call: Call| person(call, "i", "ann").header("accept", "text/html");
    let wanted = "?return_to=/a%3Fb%3D%221%22%26c";
    let kept = format!("href=\"{START}?return_to=%2Fa%3Fb%3D%25221%2522%26c\"");
    let plain = format!("href=\"{START}\"");
    // Of the page, and of its button.
    for (row, mood, call, status, link) in [
        ("nobody", Mood::Correct, page(wanted), 403, &kept),
        ("another site", Mood::Correct, known(press(NOTES, wanted).header("sec-fetch-site", "cross-site")), 403, &kept),
        ("another method", Mood::Correct, known(page(wanted).method("PUT")), 405, &kept),
        ("no server", Mood::NoServer, known(press(NOTES, wanted)), 502, &kept),
        ("too many", Mood::Full, known(press(NOTES, wanted)), 503, &kept),
        ("a failure", Mood::Fails, known(press(NOTES, wanted)), 502, &kept),
        ("an issuer twice", Mood::Correct, known(press(NOTES, &format!("{wanted}&issuer=x"))), 400, &plain),
        ("away", Mood::Correct, known(page("?return_to=//evil.example")), 400, &plain),
        ("twice", Mood::Correct, known(page("?return_to=/a&return_to=/b")), 400, &plain),
        ("home", Mood::NoServer, known(press(NOTES, &format!("?return_to={START}"))), 502, &plain),
        ("nowhere", Mood::NoServer, known(press(NOTES, "")), 502, &plain),
        ("another page", Mood::Correct, known(Call::get(NOTES, &format!("{DISCONNECT}{wanted}"))), 405, &plain),
    ] {
        flows.fake.set(mood);
        leads(&flows.send(call).await, status, link, row);
    }
    // Of the way back: what became of the flow, whose person it is by the cookie and the sign-in.
    let denied = |begun: &Begun| with_query(begun, &format!("error=access_denied&state={}", begun.state));
    let elsewhere =
        |begun: &Begun| with_query(begun, &format!("code=c&state={}&iss=https://evil.example", begun.state));
    type Back<'a> = &'a dyn Fn(&Begun) -> Call;
    let rows: [(&str, &str, Mood, Back<'_>, u16, &String); 7] = [
        ("denied", wanted, Mood::Correct, &denied, 400, &kept),
        ("another issuer", wanted, Mood::Correct, &elsewhere, 400, &kept),
        ("no token", wanted, Mood::NoToken, &honest, 502, &kept),
        ("denied, and they wanted nothing", "", Mood::Correct, &denied, 400, &plain),
        ("denied, and led away", wanted, Mood::BadReturn, &denied, 400, &plain),
        ("a failure", wanted, Mood::Fails, &honest, 502, &plain),
        ("no cookie", wanted, Mood::Correct, &|begun| without_cookie(honest(begun)), 400, &plain),
    ];
    for (row, query, mood, back, status, link) in rows {
        flows.fake.set(Mood::Correct);
        let begun = flows.begin_as(known(press(NOTES, query))).await;
        flows.fake.set(mood);
        leads(&flows.send(known(back(&begun))).await, status, link, row);
    }
    flows.fake.set(Mood::Correct);
    let begun = flows.begin_as(known(press(NOTES, wanted))).await;
    // Somebody else in the same browser learns nothing of it.
    let other = person(denied(&begun), "i", "bob").header("accept", "text/html");
    leads(&flows.send(other).await, 400, &plain, "another person");
    assert_eq!(flows.send(known(honest(&begun))).await.status, 303);
    leads(&flows.send(known(honest(&begun))).await, 409, &kept, "already used");
    flows.finish().await;
}

/// A refusal leads to this page, and to no other of start.
fn leads(answer: &Answered, status: u16, link: &str, row: &str) {
    assert_eq!(answer.status, status, "{row}: {answer:?}");
    let text = answer.text();
    assert_eq!(text.matches(&format!("href=\"{START}")).count(), 1, "{row}: {text}");
    assert!(text.contains(link) && !text.contains("evil.example"), "{row}: {text}");
}
