//! What a person sees on start, their status page, through a real Envoy: each state, in words that are nobody's markup.

use std::time::{Duration, SystemTime};

use envoy_cimd::contract::proto::{
    Connected, DescribeConnectionResponse, LostConnection, NeverConnected, NextAuthorization,
    describe_connection_response::State,
};
use http::Version;
use serde_json::{Value, json};

use crate::{
    choreographer::{Call as Recorded, ISSUER, Mood, after_a_page},
    flow::{Flows, WHO, honest, person, press, with_people},
    refused::{Bed, challenge, says},
    stack::{Answered, Call},
    world::{DISCONNECT, START, http_filters},
};

mod refusals;

const NOTES: &str = "notes.localhost";
const NAME: &str = "Pomerium MCP Proxy - notes.localhost";
const ROUTE: &[&str] = &["from=https://notes.localhost"];

fn page(query: &str) -> Call {
    Call::get(NOTES, &format!("{START}{query}")).header("accept", "text/html")
}

pub fn never() -> State {
    State::Never(NeverConnected {})
}

pub fn connected(scope: &str) -> State {
    let since = SystemTime::UNIX_EPOCH + Duration::from_secs(1_796_000_000);
    State::Connected(Connected { since: Some(since.into()), scope: scope.to_owned(), issuer: ISSUER.to_owned() })
}

pub fn stands(state: State, next: Option<(&str, &str)>) -> DescribeConnectionResponse {
    let next = next.map(|(scope, added)| NextAuthorization { scope: scope.to_owned(), added: added.to_owned() });
    DescribeConnectionResponse { state: Some(state), next }
}

/// What all answers of start are like, and what is on none of its pages.
fn is_well_made(answer: &Answered, row: &str) {
    assert_eq!(answer.status, 200, "{row}: {answer:?}");
    assert_eq!(answer.all("content-type"), ["text/html; charset=utf-8"], "{row}");
    assert_eq!(answer.all("cache-control"), ["no-store"], "{row}");
    assert_eq!(answer.all("referrer-policy"), ["same-origin"], "{row}");
    assert_eq!(answer.all("x-content-type-options"), ["nosniff"], "{row}");
    let policy = answer.all("content-security-policy").join("");
    let style =
        policy.strip_prefix("default-src 'none'; style-src 'sha256-").unwrap_or_else(|| panic!("{row}: {policy}"));
    assert!(style.ends_with("'; frame-ancestors 'none'") && !policy.contains("form-action"), "{row}: {policy}");
    assert!(answer.all("set-cookie").is_empty() && answer.all("location").is_empty(), "{row}");
    for foreign in ["<script", "<img", "javascript:", " on", " style="] {
        let attribute = answer.text().split('<').any(|tag| {
            let tag = tag.split('>').next().unwrap_or_default();
            foreign.starts_with(' ') && tag.to_ascii_lowercase().contains(foreign) && tag.contains('=')
        });
        let found = if foreign.starts_with(' ') { attribute } else { answer.text().contains(foreign) };
        assert!(!found, "{row}: {foreign} in {}", answer.text());
    }
}

/// The text of a page, without its tags.
fn text_of(answer: &Answered) -> String {
    let (_, main) =
        answer.text().split_once("<main>").map(|(head, main)| (head.to_owned(), main.to_owned())).expect("a main");
    let mut text = String::new();
    for part in main.split('<') {
        text.push(' ');
        text.push_str(part.split_once('>').map_or(part, |(_, text)| text));
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

const DISCONNECT_FORM: &str = "<form method=\"post\" action=\"/.pomerium/oauth/disconnect\">";

#[tokio::test]
async fn each_state_has_its_page() {
    let flows = Flows::of(ROUTE, &["--single-user"]).await;
    let connect = format!("Connect {NAME} ?");
    let again = "Connect again".to_owned();
    type Row<'a> = (&'a str, Option<DescribeConnectionResponse>, Mood, &'a str, Vec<&'a str>, Vec<&'a str>);
    let rows: Vec<Row<'_>> = vec![
        (
            "not connected",
            Some(stands(never(), Some(("read write", "")))),
            Mood::Correct,
            "?return_to=/mcp",
            vec![&connect, "127.0.0.1", "in your name", "It will ask you to allow read write", ISSUER, "Cancel"],
            vec!["Connected", "Disconnect", "new", "Go on", &again],
        ),
        (
            "not connected, nothing in particular is asked for, and nobody said where to go on",
            Some(stands(never(), Some(("", "")))),
            Mood::Correct,
            "",
            vec![&connect, "Nothing in particular: the authorization server says what there is."],
            vec!["Cancel", "Disconnect"],
        ),
        (
            "not connected, and it is not known what will be asked",
            Some(stands(never(), None)),
            Mood::Correct,
            "",
            vec![&connect, "It will ask you to allow Not known yet; the authorization server will say."],
            vec!["It cannot be said"],
        ),
        (
            "the grant has ended",
            Some(stands(State::Lost(LostConnection {}), Some(("read", "")))),
            Mood::Correct,
            "?return_to=/mcp",
            vec!["again?", "The connection has ended:", "It will ask you to allow read", "Cancel"],
            vec!["Connected", "Disconnect"],
        ),
        (
            "connected",
            Some(stands(connected("read write"), Some(("read write", "")))),
            Mood::Correct,
            "",
            vec![
                NAME,
                "Connected. You can go back to your MCP client.",
                "Connected since Mon, 30 Nov 2026 00:53:20 GMT",
                "You allowed read write",
                ISSUER,
                &again,
                "Disconnect Pomerium MCP Proxy - notes.localhost ?",
                "Yes, disconnect",
            ],
            vec!["new", "asks you to allow", "Cancel", "Go on", &connect],
        ),
        (
            "connected, by a version before",
            Some(stands(
                State::Connected(Connected { since: None, scope: String::new(), issuer: ISSUER.to_owned() }),
                None,
            )),
            Mood::Correct,
            "?return_to=/mcp",
            vec!["Connected.", "You allowed The authorization server does not say what exactly.", "Go on"],
            vec!["since", "Cancel", "asks you to allow"],
        ),
        (
            "connected, and short of a scope",
            Some(stands(connected("read"), Some(("read admin", "admin")))),
            Mood::Correct,
            "?return_to=/mcp",
            vec!["You allowed read", "Connecting again asks you to allow admin new read", &again, "Go on"],
            vec!["Cancel"],
        ),
        (
            "nobody can say",
            None,
            Mood::Fails,
            "?return_to=/mcp",
            vec![
                &connect,
                "It cannot be said at the moment whether you are connected already.",
                "Not known yet",
                "Cancel",
            ],
            vec!["Connected", "Disconnect"],
        ),
        (
            "the answer keeps no contract",
            None,
            Mood::Garbage,
            "",
            vec![&connect, "It cannot be said at the moment whether you are connected already."],
            vec!["Connected", "Disconnect"],
        ),
    ];
    for (row, connection, mood, query, shown, hidden) in rows {
        connection.into_iter().for_each(|connection| flows.fake.connections_are(connection));
        flows.fake.set(mood);
        let answer = flows.send(page(query)).await;
        is_well_made(&answer, row);
        let text = text_of(&answer);
        for part in &shown {
            assert!(text.contains(part), "{row}: no {part:?} in {text}");
        }
        for part in hidden {
            assert!(!text.contains(part), "{row}: {part:?} in {text}");
        }
        let (is_connected, leads_back) = (shown.contains(&again.as_str()), !query.is_empty());
        assert_eq!(answer.text().contains(DISCONNECT_FORM), is_connected || shown.contains(&"Connected."), "{row}");
        assert_eq!(answer.text().contains("href=\"/mcp\""), leads_back, "{row}");
        assert!(text.contains("Everybody who can open this page shares this connection"), "{row}: {text}");
    }
    assert_eq!(flows.fake.begins() + flows.fake.disconnects().len(), 0, "to look changes nothing");
    for call in flows.fake.calls() {
        let Recorded::Connection(asked) = call else { continue };
        assert_eq!((asked.upstream, asked.scope), (flows.world.upstream.url.clone(), String::new()));
        assert!(asked.client_id.starts_with("https://notes.localhost/"), "{}", asked.client_id);
    }
    flows.finish().await;
}

/// The button of a page that named another server is the page again, with all that belongs to it.
#[tokio::test]
async fn the_page_again_says_how_it_stands_too() {
    let flows = Flows::of(ROUTE, &["--single-user"]).await;
    flows.fake.connections_are(stands(connected("read"), Some(("read", ""))));
    flows.fake.set(Mood::Moved);
    let answer = flows.send(press(NOTES, "?return_to=/mcp").header("accept", "text/html")).await;
    is_well_made(&answer, "moved");
    let text = text_of(&answer);
    assert!(text.contains("You allowed read") && answer.text().contains("https%3A%2F%2Fother.example"), "{text}");
    flows.finish().await;
}

/// What the operator wrote for a route is what is asked about.
#[tokio::test]
async fn the_routes_own_keys_are_asked_about() {
    let route = "from=https://notes.localhost,authorization_server=https://as.example,resource=https://r.example/mcp,\
                 scope=files read";
    let flows = Flows::of(&[route], &["--single-user"]).await;
    flows.send(page("")).await;
    let calls = flows.fake.calls();
    let (_, asked, []) = after_a_page(&calls) else { panic!("two calls: {calls:?}") };
    let keys = [&asked.authorization_server, &asked.resource, &asked.scope];
    assert_eq!(keys, ["https://as.example", "https://r.example/mcp", "files read"]);
    flows.finish().await;
}

/// A stand-in for the operator's authentication filter that names people as well.
fn with_names(config: &mut Value) {
    with_people(config);
    let rules = http_filters(config)[0]["typed_config"]["request_rules"].as_array_mut().expect("rules");
    rules.push(json!({"header": "x-display", "remove": true, "on_header_present":
        {"metadata_namespace": "who", "key": "name"}}));
}

async fn with_brand(route: &str) -> Flows {
    let [namespace, issuer, subject] = WHO;
    let flags = [
        namespace,
        issuer,
        subject,
        "--display-claim=name",
        "--brand-name=Acme & <Söhne>",
        "--brand-help-url=https://help.example.com/?a=\"b\"&c",
        "--log=trace",
    ];
    Flows::of_edited(&[route], &flags, &[namespace], &with_names).await
}

/// Names, scopes, issuers and the brand are texts, whatever is in them; and who is signed in is in no log.
#[tokio::test]
async fn strangers_words_are_words() {
    let flows = with_brand("from=https://notes.localhost,client_name=Notes <i>&\"'\u{202e}").await;
    let hostile = "\"><script>alert(1)</script>\u{202e}&amp;";
    let escaped = "&#34;&#62;&#60;script&#62;alert(1)&#60;/script&#62;&#38;amp;";
    let state = State::Connected(Connected {
        since: None,
        scope: format!("read {hostile}"),
        issuer: format!("https://as.example/{hostile}"),
    });
    flows.fake.connections_are(stands(state, Some((&format!("read {hostile}x"), &format!("{hostile}x")))));
    let shown = |display: &str| {
        let call = person(page("?return_to=/%22%3E%3Cb%3E"), "i", "SECRET-subject").header("x-display", display);
        flows.send(call)
    };
    let answer = shown(&format!("SECRET-name {hostile}")).await;
    is_well_made(&answer, "hostile");
    let text = answer.text();
    for part in [
        format!("<bdi>SECRET-name {escaped}</bdi>"),
        format!("<li><bdi>{escaped}</bdi></li>"),
        format!("<li><bdi>{escaped}x</bdi> <strong class=\"new\">new</strong></li>"),
        format!("<bdi>https://as.example/{escaped}</bdi>"),
        "<h1><bdi>Notes &#60;i&#62;&#38;&#34;&#39;</bdi></h1>".to_owned(),
        "<bdi>Acme &#38; &#60;Söhne&#62;</bdi>".to_owned(),
        "href=\"https://help.example.com/?a=%22b%22&#38;c\"".to_owned(),
    ] {
        assert!(text.contains(&part), "{part} in {text}");
    }
    assert!(!text.contains("<b>") && !text.contains('\u{202e}'), "{text}");
    assert!(!text.contains("SECRET-subject"), "a subject is no name");

    // A name that is too long, or nothing at all.
    let answer = shown(&"é".repeat(101)).await;
    assert!(answer.text().contains(&format!("<bdi>{}…</bdi>", "é".repeat(99))), "{}", answer.text());
    for nobody in ["\u{202e}", " "] {
        assert!(!text_of(&shown(nobody).await).contains("signed in as"), "{nobody:?}");
    }
    // Without the claim, everything else is as before.
    let answer = flows.send(person(page(""), "i", "SECRET-subject")).await;
    assert!(answer.status == 200 && !text_of(&answer).contains("signed in as"), "{answer:?}");
    // The claim alone is nobody, and is not shown to them.
    let answer = flows.send(page("").header("x-display", "SECRET-name")).await;
    assert!(answer.status == 403 && !answer.text().contains("SECRET-name"), "{answer:?}");
    flows.finish().await;
}

/// To fetch ahead, to frame or to look is never to connect or to disconnect, and a form of elsewhere is not the page's.
#[tokio::test]
async fn only_a_press_on_the_page_disconnects() {
    let flows = Flows::of(ROUTE, &["--single-user"]).await;
    flows.fake.connections_are(stands(connected("read"), None));
    let form = flows.send(page("")).await;
    let (_, form) =
        form.text().split_once("<details>").map(|(a, b)| (a.to_owned(), b.to_owned())).expect("it asks first");
    assert!(form.contains(DISCONNECT_FORM) && form.contains("Yes, disconnect"), "{form}");
    let ahead = |call: Call| call.header("sec-purpose", "prefetch;prerender").header("purpose", "prefetch");
    let to_disconnect = |method| Call::get(NOTES, DISCONNECT).method(method).header("accept", "text/html");
    for (row, call, status) in [
        ("the page, fetched ahead", ahead(page("")), 200),
        ("GET, fetched ahead", ahead(to_disconnect("GET")), 405),
        ("HEAD", to_disconnect("HEAD"), 405),
        ("another site", to_disconnect("POST").header("sec-fetch-site", "cross-site"), 403),
        (
            "a sibling",
            to_disconnect("POST").header("sec-fetch-site", "same-site").header("origin", "https://notes.localhost"),
            403,
        ),
        ("typed in", to_disconnect("POST").header("sec-fetch-site", "none"), 403),
        ("another origin", to_disconnect("POST").header("origin", "https://tickets.localhost"), 403),
        ("no origin", to_disconnect("POST").header("origin", "null"), 403),
        ("neither header", to_disconnect("POST"), 403),
    ] {
        assert_eq!(flows.send(call).await.status, status, "{row}");
        assert_eq!((flows.fake.disconnects().len(), flows.fake.begins()), (0, 0), "{row}");
    }
    let answer = flows.send(to_disconnect("POST").header("sec-fetch-site", "same-origin")).await;
    assert_eq!((answer.status, answer.all("location")), (303, vec![START]));
    assert_eq!(flows.fake.disconnects().len(), 1);
    flows.finish().await;
}

/// A whole life through Envoy and the exchange in one process: connected, short of a scope, connected again, disconnected.
#[tokio::test]
async fn a_connection_from_its_page() {
    let bed = Bed::connected().await;
    let look = async |who: &str| {
        let answer = bed.send(who, page("")).await;
        is_well_made(&answer, who);
        text_of(&answer)
    };
    let text = look("ann").await;
    assert!(text.contains("Connected. You can go back") && text.contains("Connected since "), "{text}");
    assert!(!text.contains(" new "), "{text}");
    let others = look("bob").await;
    assert!(others.contains(&format!("Connect {NAME} ?")) && !others.contains("Connected"), "{others}");

    bed.answers(|| says(403, challenge(", error=\"insufficient_scope\", scope=\"admin\"")));
    assert_eq!(bed.call("ann", &[]).await.status, 502);
    let text = look("ann").await;
    assert!(text.contains("Connecting again asks you to allow admin new read"), "{text}");
    assert!(!look("bob").await.contains("admin"), "what ann lacks is hers");
    let asked = bed.connect("ann", NOTES, "", "notes").await;
    assert!(asked.split(' ').any(|scope| scope == "admin"), "as the page said: {asked}");

    bed.servers.behave("notes", |_| async { None });
    let disconnect = |site: &'static str| {
        Call::get(NOTES, DISCONNECT).method("POST").header("sec-fetch-site", site).header("accept", "text/html")
    };
    assert_eq!(bed.send("ann", disconnect("cross-site")).await.status, 403);
    assert!(look("ann").await.contains("Connected."));
    let answer = bed.send("bob", disconnect("same-origin")).await;
    assert_eq!(answer.status, 303, "{answer:?}");
    assert!(look("ann").await.contains("Connected."), "bob ended his own, which there was not");
    assert!(bed.servers.revoked().is_empty());
    let answer = bed.send("ann", disconnect("same-origin")).await;
    assert_eq!((answer.status, answer.all("location")), (303, vec![START]));
    assert_eq!(bed.servers.revoked().len(), 1);
    let text = look("ann").await;
    assert!(text.contains(&format!("Connect {NAME} ?")) && !text.contains("Disconnect"), "{text}");
    let told = bed.call("ann", &[]).await;
    assert!(told.text().contains("connect first"), "and at the MCP address at once: {told:?}");
    bed.finish().await;
}

/// Where a flow began without a place to go on, it ends on the page that says so.
#[tokio::test]
async fn a_flow_ends_on_the_page_that_says_so() {
    let flows = Flows::of(ROUTE, &["--single-user"]).await;
    let begun = flows.begin(NOTES, "").await;
    let completed = flows.world.https().send(Version::HTTP_2, honest(&begun)).await.expect("an answer");
    assert_eq!((completed.status, completed.all("location")), (303, vec![START]));
    // And again: it was used, and leads there.
    let again = flows.send(honest(&begun).header("accept", "text/html")).await;
    assert!(again.status == 409 && again.text().contains(&format!("href=\"{START}\">Go on</a>")), "{again:?}");
    flows.finish().await;
}
