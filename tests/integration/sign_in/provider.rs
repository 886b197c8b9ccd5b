//! Identity providers that are down, rotate their keys, or have another clock or another `sub`.

use serde_json::{Value, json};
use tokio::time::timeout;

use super::{Browser, Company, MCP, NOTES, asking, is_challenged};
use crate::{
    stack::{Call, PATIENCE},
    world::{START, http_filters},
};

/// Whoever is signed in stays so, and keys that are known are good, until they are replaced.
#[tokio::test]
async fn a_provider_that_is_down() {
    let company = Company::with("sub", &[], &|config| keys_live_for(config, "0.1s")).await;
    let mut browser = Browser::default();
    browser.sign_in(&company, "anna").await;
    browser.connect(&company).await;
    company.provider.behave(|manners| manners.is_down = true);
    let asked = company.provider.asked();
    company.provider.asked_by(asked + 4).await;
    assert_eq!(browser.send(&company, Call::get(NOTES, START)).await.status, 200);
    assert_eq!(company.ask(&company.provider.token("anna", MCP)).await.status, 200);
    is_challenged(&company.mcp(asking()).await, "nothing");

    // Who is not is sent there all the same, and not signed in when they come back.
    let mut other = Browser::default();
    let back = other.consent(&company, "bert").await;
    let answer = other.send(&company, Call::get(NOTES, &back)).await;
    assert!((400..600).contains(&answer.status) && answer.all("location").is_empty(), "{answer:?}");
    company.provider.behave(|manners| manners.is_down = false);
    assert_eq!(other.sign_in(&company, "bert").await.status, 200);
    company.finish().await;
}

/// How long a key of the provider's is good before it is asked for again.
fn keys_live_for(config: &mut Value, time: &str) {
    let tokens = http_filters(config).iter_mut().find(|filter| filter["name"] == "envoy-cimd-sign-in").expect("it");
    for provider in ["people", "clients"] {
        let keys = &mut tokens["typed_config"]["providers"][provider]["remote_jwks"];
        assert_eq!(keys["cache_duration"], "300s", "what is printed");
        keys["cache_duration"] = json!(time);
    }
}

/// A provider that tells its new key before it signs with it is never refused; the old one counts as long as it is told.
#[tokio::test]
async fn a_provider_that_rotates_its_keys() {
    let company = Company::with("sub", &[], &|config| keys_live_for(config, "0.1s")).await;
    let provider = &company.provider;
    let old = provider.token("anna", MCP);
    let fetched = async || {
        // Of those on their way when this was asked, none counts.
        let asked = provider.asked();
        provider.asked_by(asked + 8).await;
    };
    provider.behave(|manners| manners.keys = vec!["first", "second"]);
    fetched().await;
    provider.behave(|manners| manners.keys = vec!["second", "first"]);
    let new = provider.token("anna", MCP);
    for token in [&old, &new] {
        let told = company.ask(token).await;
        assert!(told.status == 200 && told.text().contains(START), "{told:?}");
    }
    provider.behave(|manners| manners.keys = vec!["second"]);
    let refused = async {
        while company.ask(&old).await.status != 401 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, refused).await.expect("the old key is over");
    assert_eq!(company.ask(&new).await.status, 200);
    // And one that signs at once with a key that nobody knows is refused until it is known.
    provider.behave(|manners| manners.keys = vec!["third"]);
    let newest = provider.token("anna", MCP);
    let taken = async {
        while company.ask(&newest).await.status != 200 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, taken).await.expect("the newest key is known");
    company.finish().await;
}

/// A provider that knows a person by another `sub` for each application: by `oid`, both are one user, and by `sub` not.
#[tokio::test]
async fn another_sub_to_each_application() {
    for (claim, is_one) in [("oid", true), ("sub", false)] {
        let company = Company::with(claim, &[], &|_| {}).await;
        company.provider.behave(|manners| manners.is_pairwise = true);
        let mut browser = Browser::default();
        assert_eq!(browser.sign_in(&company, "anna").await.status, 200, "{claim}");
        browser.connect(&company).await;
        let answer = company.ask(&company.provider.token("anna", MCP)).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.text().contains(START), !is_one, "{claim}: {answer:?}");
        assert_eq!(company.upstream.reached(), usize::from(is_one), "{claim}");
        company.finish().await;
    }
}

/// Ten minutes of difference are no matter to tokens that live for an hour and do not say from when on; else they are
/// refused, and nobody is anybody.
#[tokio::test]
async fn a_clock_ten_minutes_off() {
    let company = Company::start().await;
    for (ahead, life, says_not_before, is_good, page) in [
        (600, 3600, false, true, 200),
        (-600, 3600, false, true, 200),
        (-600, 3600, true, true, 200),
        (600, 3600, true, false, 401),
        // A browser does not even keep a token that is over, and is sent to sign in again.
        (-600, 300, false, false, 302),
        // What Envoy allows for is a minute.
        (30, 3600, true, true, 200),
        (-330, 300, false, true, 302),
    ] {
        let what = format!("{ahead} s ahead, for {life} s, {says_not_before}");
        company.provider.is_ahead(ahead);
        company.provider.behave(|manners| (manners.life, manners.says_not_before) = (life, says_not_before));
        let answer = company.ask(&company.provider.token("anna", MCP)).await;
        if is_good {
            assert!(answer.status == 200 && answer.text().contains(START), "{what}: {answer:?}");
        } else {
            is_challenged(&answer, &what);
        }
        let mut browser = Browser::default();
        let back = browser.consent(&company, "anna").await;
        let signed_in = browser.send(&company, Call::get(NOTES, &back)).await;
        assert_eq!(signed_in.status, 302, "{what}: {signed_in:?}");
        let shown = browser.send(&company, Call::get(NOTES, START)).await;
        assert_eq!(shown.status, page, "{what}: {shown:?}");
    }
    assert_eq!(company.upstream.reached(), 0);
    company.finish().await;
}
