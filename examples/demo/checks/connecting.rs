//! Connecting a route, as a person with a browser does; and what must not be taken for that.

use url::Url;

use super::Checks;
use crate::{
    client_document::same,
    running::{Route, pairs},
    stack::{
        browser::{Browser, CameFrom, Page, parameter, with_parameter},
        web::{Web, parse},
    },
};

/// All routes, each in a browser of its own.
pub async fn check(checks: &mut Checks, web: &Web, routes: &[Route; 3]) {
    for (route, other) in pairs(routes) {
        // Where a check fails, those that build on it are not made.
        let _ = connect(checks, web, route, other).await;
    }
}

async fn connect(checks: &mut Checks, web: &Web, route: &Route, other: &Route) -> Option<()> {
    let mut browser = Browser::new(web);
    checks.about(&route.connect_page());
    let page = connect_page(&mut browser, route).await;
    let page = checks.note("shows which route and which MCP server it is about, with a button", page)?;
    let request = button(&mut browser, &page, route).await;
    let request = checks
        .note("its button leads to that MCP server's authorization server, with PKCE and the resource", request)?;

    checks.about(&format!("{}/authorize", route.issuer));
    let foreign = refuses_redirect_uri(&mut browser, &request, other).await;
    checks.note("refuses the other route's redirect URI on a page of its own, redirecting nowhere", foreign);
    let asks = consent_page(&mut browser, &request, route).await;
    let asks = checks.note("fetches the client's document through Envoy, and asks by the client's name", asks)?;
    let callback = allow(&mut browser, &asks, &request, route).await;
    let callback = checks.note("its Allow leads back to the route, with code, state and iss", callback)?;
    let again = answered(browser.press(&asks, &[ALLOW]).await, 400);
    checks.note("gives no second code for one request (400)", again);

    checks.about(&route.redirect_uri());
    let stranger = answered(Browser::new(web).open(&callback, CameFrom::AnotherSite).await, 400);
    checks.note("refuses a browser that did not press the button, and uses nothing up (400)", stranger);
    let arrived = complete(&mut browser, &callback, route).await;
    let arrived = checks.note(&format!("takes the code, and goes on to {} (303)", route.mcp_path()), arrived)?;
    let replay = replay(&mut browser, &callback, route).await;
    checks.note("says of the same once more that it can be used only once, and links on (409)", replay);
    let denied = deny(&mut browser, route).await;
    checks.note("says that nothing was connected, where the person denies (400)", denied);

    checks.about(arrived.as_str());
    let there = arrive(&mut browser, &arrived, route).await;
    checks.note("shows that a token was given to this client", there)
}

pub const ALLOW: (&str, &str) = ("decision", "allow");
const DENY: (&str, &str) = ("decision", "deny");

async fn connect_page(browser: &mut Browser, route: &Route) -> Result<Page, String> {
    let page = browser.open(&parse(&route.connect_page())?, CameFrom::AnotherSite).await?;
    page.shows(200)?;
    page.says(&[&route.client_name(), &route.upstream])?;
    Ok(page)
}

/// The authorization request that the button of the connect page comes to.
async fn button(browser: &mut Browser, page: &Page, route: &Route) -> Result<Url, String> {
    let request = browser.press(page, &[]).await?.redirects()?;
    same(request.origin().ascii_serialization(), route.issuer.clone())?;
    for (name, value) in [
        ("response_type", "code"),
        ("client_id", &route.client_id()),
        ("redirect_uri", &route.redirect_uri()),
        ("resource", &route.upstream),
        ("code_challenge_method", "S256"),
    ] {
        same(parameter(&request, name)?.as_str(), value).map_err(|why| format!("{name}: {why}"))?;
    }
    parameter(&request, "code_challenge")?;
    parameter(&request, "state")?;
    Ok(request)
}

/// What a client must not get by naming another's address.
async fn refuses_redirect_uri(browser: &mut Browser, request: &Url, other: &Route) -> Result<(), String> {
    let forged = with_parameter(request, "redirect_uri", &other.redirect_uri());
    answered(browser.open(&forged, CameFrom::AnotherSite).await, 400)
}

async fn consent_page(browser: &mut Browser, request: &Url, route: &Route) -> Result<Page, String> {
    let page = browser.open(request, CameFrom::AnotherSite).await?;
    page.shows(200)?;
    page.says(&[&route.client_name(), route.from.origin().authority()])?;
    Ok(page)
}

/// Where Allow leads: the redirect URI with what belongs there.
async fn allow(browser: &mut Browser, asks: &Page, request: &Url, route: &Route) -> Result<Url, String> {
    let callback = browser.press(asks, &[ALLOW]).await?.redirects()?;
    let (address, _) = callback.as_str().split_once('?').ok_or("it has no query")?;
    same(address, &route.redirect_uri())?;
    parameter(&callback, "code")?;
    if parameter(&callback, "state")? != parameter(request, "state")? {
        return Err("the state is another".to_owned());
    }
    same(parameter(&callback, "iss")?, route.issuer.clone())?;
    Ok(callback)
}

async fn complete(browser: &mut Browser, callback: &Url, route: &Route) -> Result<Url, String> {
    let target = browser.open(callback, CameFrom::AnotherSite).await?.redirects()?;
    same(target.as_str(), &route.mcp())?;
    Ok(target)
}

/// A reload of the browser's, or somebody who read its history.
async fn replay(browser: &mut Browser, callback: &Url, route: &Route) -> Result<(), String> {
    let page = browser.open(callback, CameFrom::AnotherSite).await?;
    page.shows(409)?;
    page.says(&[&format!("href=\"{}\"", route.mcp_path())])
}

/// The whole way once more, with the other button.
async fn deny(browser: &mut Browser, route: &Route) -> Result<(), String> {
    let page = connect_page(browser, route).await?;
    let request = button(browser, &page, route).await?;
    let asks = consent_page(browser, &request, route).await?;
    let callback = browser.press(&asks, &[DENY]).await?.redirects()?;
    same(parameter(&callback, "error")?.as_str(), "access_denied")?;
    let page = browser.open(&callback, CameFrom::AnotherSite).await?;
    page.shows(400)?;
    page.says(&["Not connected"])
}

async fn arrive(browser: &mut Browser, arrived: &Url, route: &Route) -> Result<(), String> {
    let page = browser.open(arrived, CameFrom::SameOrigin).await?;
    page.shows(200)?;
    page.says(&[&route.client_id()])
}

/// That a page with this status is the answer, and no redirect.
fn answered(page: Result<Page, String>, status: u16) -> Result<(), String> {
    let page = page?;
    page.shows(status)?;
    if page.answer.all("location").is_empty() { Ok(()) } else { Err("it redirects".to_owned()) }
}
