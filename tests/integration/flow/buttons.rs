//! The buttons of the pages: who may press them, and what they do.

use serde_json::Value;

use super::{Flows, Layout, NOTES, TICKETS, honest, is_guarded, press};
use crate::{
    choreographer::{ISSUER, Mood},
    stack::Call,
    world::{DISCONNECT, DOCUMENT, START, metadata, virtual_hosts},
};

/// What the button and its page refuse, and that nothing begins.
#[tokio::test]
async fn start() {
    let flows = Flows::start().await;
    let page = |query: &str| Call::get(NOTES, &format!("{START}{query}")).header("accept", "text/html");
    let bare = |query: &str| {
        let mut call = press(NOTES, query);
        call.headers.clear();
        call
    };
    let rows: Vec<(&str, Mood, Call, u16, &str)> = vec![
        ("the page", Mood::Correct, page("?return_to=/x"), 200, "shown"),
        ("the page, the name unknown", Mood::Fails, page(""), 200, "shown"),
        ("HEAD", Mood::Correct, page("").method("HEAD"), 405, "method_not_allowed"),
        ("another site", Mood::Correct, bare("").header("sec-fetch-site", "cross-site"), 403, "cross_site"),
        (
            "a sibling",
            Mood::Correct,
            bare("").header("sec-fetch-site", "same-site").header("origin", "https://notes.localhost"),
            403,
            "cross_site",
        ),
        ("typed in", Mood::Correct, bare("").header("sec-fetch-site", "none"), 403, "cross_site"),
        ("neither header", Mood::Correct, bare(""), 403, "cross_site"),
        (
            "an origin of another site",
            Mood::Correct,
            bare("").header("origin", "https://tickets.localhost"),
            403,
            "cross_site",
        ),
        ("no origin", Mood::Correct, bare("").header("origin", "null"), 403, "cross_site"),
        ("away", Mood::Correct, press(NOTES, "?return_to=//evil.example"), 400, "bad_request"),
        ("away, GET", Mood::Correct, page("?return_to=//evil.example"), 400, "bad_request"),
        ("away with a backslash", Mood::Correct, press(NOTES, "?return_to=/%5Cevil.example"), 400, "bad_request"),
        ("away with a tab", Mood::Correct, press(NOTES, "?return_to=/%09/evil.example"), 400, "bad_request"),
        ("away with dots", Mood::Correct, press(NOTES, "?return_to=/.//evil.example"), 400, "bad_request"),
        ("absolute", Mood::Correct, press(NOTES, "?return_to=https://evil.example/"), 400, "bad_request"),
        ("absolute, ours", Mood::Correct, press(NOTES, "?return_to=https://notes.localhost/"), 400, "bad_request"),
        ("two", Mood::Correct, press(NOTES, "?return_to=/a&return_to=/b"), 400, "bad_request"),
        ("bad encoding", Mood::Correct, press(NOTES, "?return_to=/%zz"), 400, "bad_request"),
        ("no server", Mood::NoServer, press(NOTES, ""), 502, "authorization_server_unusable"),
        ("too many", Mood::Full, press(NOTES, ""), 503, "too_many_flows"),
        ("it fails", Mood::Fails, press(NOTES, ""), 502, "choreographer_failed"),
        ("garbage", Mood::Garbage, press(NOTES, ""), 502, "choreographer_failed"),
        ("a place to send nobody", Mood::BadUrl, press(NOTES, ""), 502, "choreographer_failed"),
    ];
    for (name, mood, call, status, label) in rows {
        flows.fake.set(mood);
        let (labelled, begins) = (flows.labelled("start", label).await, flows.fake.begins());
        let answer = flows.send(call.clone()).await;
        let row = format!("{name}: {answer:?}");
        assert_eq!((answer.status, flows.labelled("start", label).await), (status, labelled + 1), "{row}");
        assert!(answer.all("set-cookie").is_empty() && answer.all("location").is_empty(), "{row}");
        let reaches = call.method == "POST" && status >= 500;
        assert_eq!(flows.fake.begins(), begins + usize::from(reaches), "{row}");
        if status != 200 {
            is_guarded(&answer, &row);
            assert!(!answer.text().contains("evil"), "{row}");
        }
    }
    flows.fake.set(Mood::Correct);
    // The page itself.
    let answer = flows.send(page("?return_to=/x")).await;
    assert_eq!(answer.all("referrer-policy"), ["same-origin"]);
    assert_eq!(answer.all("cache-control"), ["no-store"]);
    let policy = answer.all("content-security-policy").join("");
    assert!(policy.contains("style-src 'sha256-") && !policy.contains("form-action"), "{policy}");
    let form = format!("<form method=\"post\" action=\"{START}?return_to=%2Fx&#38;issuer=https%3A%2F%2Fas.example\">");
    for shown in ["notes.localhost", ISSUER, &flows.world.upstream.url, &form] {
        assert!(answer.text().contains(shown), "{shown}: {}", answer.text());
    }
    assert!(!answer.text().contains("<script"));
    // The button, where a browser has no Fetch Metadata.
    let begun = flows.begin_as(bare("").header("origin", "https://notes.localhost")).await;
    assert_eq!(flows.send(honest(&begun)).await.all("location"), [START], "the page that says how it stands");
    flows.finish().await;
}

/// A press on a page that named no authorization server, or another than there is now, is the page again, naming it.
#[tokio::test]
async fn the_button_leads_where_its_page_said() {
    let flows = Flows::start().await;
    let bare = |query: &str| {
        let mut call = press(NOTES, "");
        call.path = format!("{START}{query}");
        call
    };
    const OTHER: &str = "https://other.example";
    for (mood, query, named) in [
        (Mood::Correct, "", ISSUER),
        (Mood::Correct, "?issuer=", ISSUER),
        (Mood::Correct, "?issuer=https://evil.example", ISSUER),
        (Mood::Correct, "?issuer=https://as.example/", ISSUER),
        (Mood::Moved, "?issuer=https://as.example", OTHER),
    ] {
        flows.fake.set(mood);
        let begins = flows.fake.begins();
        let answer = flows.send(bare(query)).await;
        let row = format!("{query}: {answer:?}");
        assert_eq!(answer.status, 200, "{row}");
        assert!(answer.all("set-cookie").is_empty() && answer.all("location").is_empty(), "{row}");
        assert_eq!(answer.all("referrer-policy"), ["same-origin"], "{row}");
        assert!(
            answer.text().contains(&format!("<dd><bdi>{named}</bdi></dd>")) && !answer.text().contains("evil"),
            "{row}"
        );
        let issuer: String = url::form_urlencoded::byte_serialize(named.as_bytes()).collect();
        assert!(answer.text().contains(&format!("action=\"{START}?issuer={issuer}\"")), "{row}");
        assert_eq!((flows.fake.begins(), flows.fake.flows()), (begins + 1, 0), "{row}");
    }
    // And that one's button begins.
    flows.begin_as(bare(&format!("?issuer={OTHER}"))).await;
    assert_eq!(flows.fake.flows(), 1);
    let answer = flows.send(bare(&format!("?issuer={OTHER}&issuer={OTHER}"))).await;
    assert_eq!(answer.status, 400);
    flows.finish().await;
}

/// What the button of disconnect refuses, and whose token it forgets.
#[tokio::test]
async fn disconnect() {
    let flows = Flows::of(&Layout::Paths.routes(), &["--single-user"]).await;
    let button = |headers: &[(&'static str, &str)]| {
        let call = Call::get(NOTES, &format!("/first{DISCONNECT}")).method("POST");
        headers.iter().fold(call, |call, (name, value)| call.header(name, *value))
    };
    let ours = [("sec-fetch-site", "same-origin"), ("accept", "text/html")];
    let mut to_get = button(&ours);
    to_get.method = "GET";
    let mut long = button(&ours);
    long.path.push_str(&format!("?{}", "x".repeat(8193)));
    for (name, mood, call, status, label) in [
        ("GET", Mood::Correct, to_get, 405, "method_not_allowed"),
        ("another site", Mood::Correct, button(&[("sec-fetch-site", "cross-site")]), 403, "cross_site"),
        ("neither header", Mood::Correct, button(&[]), 403, "cross_site"),
        ("another origin", Mood::Correct, button(&[("origin", "https://tickets.localhost")]), 403, "cross_site"),
        (
            "an origin with a path",
            Mood::Correct,
            button(&[("origin", "https://notes.localhost/first")]),
            403,
            "cross_site",
        ),
        ("a long query", Mood::Correct, long, 400, "bad_request"),
        ("another port", Mood::Correct, button(&ours).authority("notes.localhost:8443"), 421, "misdirected_request"),
        ("it fails", Mood::Fails, button(&ours), 502, "choreographer_failed"),
        ("done", Mood::Correct, button(&ours), 303, "disconnected"),
        (
            "done, without Fetch Metadata",
            Mood::Correct,
            button(&[("origin", "https://notes.localhost")]),
            303,
            "disconnected",
        ),
    ] {
        flows.fake.set(mood);
        let (labelled, called) = (flows.labelled("disconnect", label).await, flows.fake.disconnects().len());
        let answer = flows.send(call).await;
        let row = format!("{name}: {answer:?}");
        assert_eq!((answer.status, flows.labelled("disconnect", label).await), (status, labelled + 1), "{row}");
        assert_eq!(flows.fake.disconnects().len(), called + usize::from(status == 303 || status == 502), "{row}");
        let there = if status == 303 { vec!["/first/.pomerium/oauth/start"] } else { vec![] };
        assert_eq!((answer.all("location"), answer.all("set-cookie").len()), (there, 0), "{row}");
        is_guarded(&answer, &row);
    }
    // The other route's own, and nothing of this one's.
    for request in flows.fake.disconnects() {
        assert_eq!(request.client_id, format!("https://{NOTES}/first{DOCUMENT}"));
        assert_eq!(request.upstream, flows.world.upstream.url);
    }
    let flows_before = flows.fake.calls().len();
    assert_eq!(flows.send(button(&[("cookie", "x=y"), ("sec-fetch-site", "none")])).await.status, 403);
    assert_eq!(flows.fake.calls().len(), flows_before);
    flows.finish().await;
}

/// A route that leads nowhere has a document, and no connect page, whatever else is wrong with the request.
#[tokio::test]
async fn a_route_without_an_upstream() {
    let edit = |config: &mut Value| {
        for host in virtual_hosts(config) {
            match host["name"].as_str() {
                Some(NOTES) => drop(metadata(host).as_object_mut().expect("metadata").remove("to")),
                Some(TICKETS) => metadata(host)["to"] = "https://u.example/mcp?key=SECRET".into(),
                _ => {}
            }
        }
    };
    let flows = Flows::with(&["--single-user"], &edit).await;
    for host in [NOTES, TICKETS] {
        for call in [Call::get(host, START), press(host, ""), Call::get(host, START).method("PUT")] {
            let answer = flows.send(call).await;
            assert_eq!(answer.status, 500, "{answer:?}");
            assert!(!answer.text().contains("SECRET"));
        }
        assert_eq!(flows.send(Call::get(host, DOCUMENT)).await.status, 200);
    }
    assert_eq!(flows.fake.begins(), 0);
    flows.finish().await;
}
