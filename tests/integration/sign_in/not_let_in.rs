//! What is no session opens no page, and what is no token for it no MCP route.

use std::collections::BTreeMap;

use serde_json::json;

use super::{Browser, Company, MCP, NOTES, OTHER_MCP, SIGN_IN, asking, is_challenged, is_sent_to_sign_in, post};
use crate::{
    flow::press_shown,
    gateway::Ask,
    stack::{Call, get},
    world::{DISCONNECT, START},
};

/// An MCP client holds a token that is good for its route, and must not press the button in its person's name.
#[tokio::test]
async fn a_clients_token_opens_no_page() {
    let company = Company::start().await;
    let mut browser = Browser::default();
    browser.sign_in(&company, "anna").await;
    let (callback, _) = browser.begin(&company).await;
    let issuer = format!("{}/notes", company.servers.issuer);
    let calls =
        [Call::get(NOTES, START), press_shown(NOTES, "", &issuer), Call::get(NOTES, &callback), post(DISCONNECT)];
    let requests = |endpoint: &str| format!("envoy_cimd_requests_total{{endpoint=\"{endpoint}\"");
    let (_, before) = get(company.world.cimd.admin.parse().expect("an address"), "/metrics").await.expect("metrics");
    for token in [company.provider.token("anna", MCP), company.provider.id_token("anna")] {
        for value in [format!("Bearer {token}"), format!("bearer {token}"), String::new()] {
            for call in &calls {
                // Without a session, and with the one of the same person.
                for mut browser in [Browser::default(), browser.clone()] {
                    let answer = browser.send(&company, call.clone().header("authorization", value.clone())).await;
                    assert_eq!(answer.status, 403, "{call:?} {answer:?}");
                    assert!(answer.all("location").is_empty() && answer.all("set-cookie").is_empty(), "{answer:?}");
                    assert!(answer.text().contains("session_required"), "{answer:?}");
                }
            }
        }
    }
    let (_, after) = get(company.world.cimd.admin.parse().expect("an address"), "/metrics").await.expect("metrics");
    for endpoint in ["start", "callback", "disconnect"] {
        let count = |text: &[u8]| {
            let text = String::from_utf8_lossy(text).into_owned();
            text.lines().filter(|line| line.starts_with(&requests(endpoint))).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(count(&before), count(&after), "nothing reached envoy-cimd");
    }
    assert_eq!(browser.send(&company, Call::get(NOTES, &callback)).await.status, 303, "nothing was consumed");
    company.finish().await;
}

/// What is no session: a token in a cookie that no session brought there, of the application or not.
#[tokio::test]
async fn what_is_no_session_opens_no_page() {
    let company = Company::start().await;
    let mut anna = Browser::default();
    anna.sign_in(&company, "anna").await;
    let (callback, _) = anna.begin(&company).await;
    let planted = |token: String| {
        // Envoy writes a cookie into its log that it cannot decrypt.
        company.provider.told(&token);
        Browser(BTreeMap::from([("__Host-sign_in_id_token".to_owned(), token)]))
    };
    let mut without_seal = anna.clone();
    without_seal.0.remove("__Host-sign_in_hmac");
    let mut tampered = anna.clone();
    tampered.0.insert("__Host-sign_in_expires".to_owned(), "4000000000".to_owned());
    let strangers = [
        ("nothing", Browser::default()),
        ("an ID token", planted(company.provider.id_token("anna"))),
        ("a client's token", planted(company.provider.token("anna", MCP))),
        ("half a session", without_seal),
        ("a longer session", tampered),
    ];
    let issuer = format!("{}/notes", company.servers.issuer);
    for (name, browser) in strangers {
        let page = browser.clone().send(&company, Call::get(NOTES, START)).await;
        is_sent_to_sign_in(&company, &page);
        for call in [
            press_shown(NOTES, "", &issuer),
            Call::get(NOTES, START).method("HEAD"),
            Call::get(NOTES, &callback),
            post(DISCONNECT),
        ] {
            let answer = browser.clone().send(&company, call.clone()).await;
            assert_eq!((answer.status, answer.all("location").len()), (401, 0), "{name}: {call:?} {answer:?}");
            assert!(
                answer.all("www-authenticate").iter().all(|text| !text.contains("resource_metadata")),
                "{answer:?}"
            );
        }
    }
    assert_eq!(anna.send(&company, Call::get(NOTES, &callback)).await.status, 303, "nothing was consumed");
    company.finish().await;
}

/// What is no token for this very route, in `authorization`.
#[tokio::test]
async fn what_is_no_clients_token_opens_no_mcp_route() {
    let company = Company::with("sub", &["--allow-origin=https://app.example"], &|_| {}).await;
    let mut browser = Browser::default();
    browser.sign_in(&company, "anna").await;
    browser.connect(&company).await;
    let provider = &company.provider;
    let good = provider.token("anna", MCP);
    let bearer = |token: &str| asking().header("authorization", format!("Bearer {token}"));
    let session: Vec<String> = browser.0.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let session = session.join("; ");
    let now = json!(4_000_000_000_u64);
    let other_issuer = json!({"iss": "https://other.example", "aud": MCP, "sub": "anna", "exp": now});
    let of_nobody = json!({"iss": provider.issuer, "sub": "anna", "exp": now});
    for (name, ask) in [
        ("nothing", asking()),
        ("a session", asking().header("cookie", &*session)),
        (
            "a session, from a page of this host",
            asking().header("cookie", &*session).header("origin", "https://notes.localhost"),
        ),
        (
            "a session, from a page of another origin",
            asking().header("cookie", &*session).header("origin", "https://evil.example"),
        ),
        (
            "a session, from a page that may ask",
            asking().header("cookie", &*session).header("origin", "https://app.example"),
        ),
        (
            "an ID token as a cookie",
            asking().header("cookie", format!("__Host-sign_in_id_token={}", provider.id_token("anna"))),
        ),
        ("a token as a cookie", asking().header("cookie", format!("__Host-sign_in_id_token={good}"))),
        ("a token in the query", Ask { path: format!("/notes/mcp?access_token={good}"), ..asking() }),
        ("a token of another scheme", asking().header("authorization", format!("Basic {good}"))),
        ("a token without a scheme", asking().header("authorization", &*good)),
        ("another issuer's", bearer(&provider.sign(&other_issuer))),
        ("a forged one", bearer(&format!("{good}x"))),
        ("an opaque one", bearer("SECRET-opaque")),
        ("an empty one", bearer("")),
    ] {
        is_challenged(&company.mcp(ask).await, name);
    }
    // Good tokens, but for something else.
    for (name, token) in [
        ("another route's", provider.token("anna", OTHER_MCP)),
        ("of the whole host", provider.token("anna", "https://notes.localhost")),
        ("of a path below", provider.token("anna", &format!("{MCP}/more"))),
        ("the application's", provider.id_token("anna")),
        ("of no audience", provider.sign(&of_nobody)),
    ] {
        let answer = company.ask(&token).await;
        assert_eq!(answer.status, 403, "{name}: {answer:?}");
    }
    // A page of another origin gets nothing with a good token either.
    let answer = company.mcp(bearer(&good).header("origin", "https://evil.example")).await;
    assert_eq!(answer.status, 403, "{answer:?}");
    assert_eq!(company.upstream.reached(), 0);
    // A page that may ask is told where its client signs in.
    let answer = company.mcp(asking().header("origin", "https://app.example")).await;
    is_challenged(&answer, "a page that may ask");
    assert!(answer.all("access-control-expose-headers").join(",").contains("www-authenticate"), "{answer:?}");
    assert_eq!(company.ask(&good).await.status, 200);
    assert_eq!(company.upstream.reached(), 1);
    company.finish().await;
}

/// What comes back from the provider and is no good answer of its signs nobody in, and is in no log.
#[tokio::test]
async fn answers_that_sign_nobody_in() {
    let company = Company::start().await;
    let mut browser = Browser::default();
    let back = browser.consent(&company, "anna").await;
    let state = back.split_once("state=").expect("a state").1.to_owned();
    company.secrets.lock().expect("secrets").push(state.clone());
    for query in [
        String::new(),
        "?error=access_denied&state=SECRET".to_owned(),
        format!("?error=access_denied&error_description=SECRET&state={state}"),
        format!("?code=SECRET&error=access_denied&state={state}"),
        "?code=SECRET".to_owned(),
        format!("?state={state}"),
        "?code=SECRET&state=bm9uZQ".to_owned(),
    ] {
        let answer = browser.clone().send(&company, Call::get(NOTES, &format!("{SIGN_IN}{query}"))).await;
        assert!([401, 403].contains(&answer.status) && answer.all("location").is_empty(), "{query}: {answer:?}");
        assert!(answer.text().starts_with("You are not signed in. "), "{query}: {answer:?}");
    }
    // Another browser's answer.
    let answer = Browser::default().send(&company, Call::get(NOTES, &back)).await;
    assert!(answer.status == 401 && answer.all("set-cookie").is_empty(), "{answer:?}");
    // A code that the provider does not know.
    let unknown = format!("{SIGN_IN}?code=SECRET-unknown&state={state}");
    let answer = browser.clone().send(&company, Call::get(NOTES, &unknown)).await;
    assert!(answer.status >= 400 && answer.all("location").is_empty(), "{answer:?}");
    assert_eq!(browser.send(&company, Call::get(NOTES, &back)).await.status, 302, "the good one is as good as ever");
    company.finish().await;
}
