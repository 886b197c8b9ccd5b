//! What a person and their MCP client go through at a route where people sign in.

use std::path::Path;

use url::Url;

use super::{Checks, connecting::ALLOW};
use crate::{
    authorization_server,
    client_document::same,
    company::Company,
    sdk_client::{News, SdkClient, ToolResult},
    stack::{
        browser::{Browser, CameFrom, Page, parameter},
        web::{Web, parse},
    },
    upstream::WHOAMI,
};

/// More pages than that are a circle.
const MOST_PAGES: usize = 12;

/// From an address that somebody gave the client to an answer of the MCP server, and back.
pub async fn check(checks: &mut Checks, web: &Web, company: &Company, ca: &Path, modules: &Path) {
    let mut person = Person { browser: Browser::new(web), company };
    // Where a check fails, those that build on it are not made.
    let _ = go(checks, &mut person, company, ca, modules).await;
}

async fn go(checks: &mut Checks, person: &mut Person<'_>, company: &Company, ca: &Path, modules: &Path) -> Option<()> {
    let mcp = company.route.mcp();
    checks.about(&mcp);
    let client = checks.note("is all that the client is told", SdkClient::start(modules, &mcp, ca));
    let mut client = client?;
    let page = sent_to_sign_in(client.call(WHOAMI).await, company);
    let page = checks.note("sends the client to the identity provider, for a token for this very address", page)?;
    let signed_in = person.signs_client_in(&page).await;
    checks.note("there the person signs in as anna, and the client has its token", signed_in)?;
    let said = told_by_error(client.news().await, company);
    let said = checks.note("tells the client where anna connects; the client shows her", said)?;
    quote(&said);
    let link = company.route.start_page();

    checks.about(&link);
    let connected = person.connects(&link).await;
    checks.note(
        "has anna sign in too, at the same identity provider, and allow the use of the MCP server in her name",
        connected,
    )?;

    checks.about(&mcp);
    let answer = answered(client.call(WHOAMI).await, company);
    let answer = checks.note("answers the client's call of a tool, with anna's token for the MCP server", answer)?;
    quote(&answer);

    checks.about(&link);
    let disconnected = person.disconnects(&link).await;
    checks.note("disconnects the route, at its button", disconnected)?;

    checks.about(&mcp);
    let again = told_by_result(client.call(WHOAMI).await, company);
    let again = checks.note("tells the client again; now its model reads, as the result of the call", again)?;
    quote(&again);
    Some(())
}

/// What somebody reads.
fn quote(text: &str) {
    for line in text.lines() {
        println!("              {line}");
    }
}

/// The page that a client has its person open.
fn sent_to_sign_in(news: Result<News, String>, company: &Company) -> Result<Url, String> {
    match news? {
        News::Open(page) => {
            let page = parse(&page)?;
            same(page.origin().ascii_serialization(), company.issuer.clone())?;
            same(parameter(&page, "resource")?, company.route.mcp())?;
            Ok(page)
        }
        other => Err(format!("it has {other:?}")),
    }
}

/// The error that a client shows its person: it could not even begin to talk to the MCP server.
fn told_by_error(news: Result<News, String>, company: &Company) -> Result<String, String> {
    match news? {
        News::Failed(text) => names(text, &company.route.start_page()),
        other => Err(format!("it has {other:?}")),
    }
}

/// The result that a client hands to its model.
fn told_by_result(news: Result<News, String>, company: &Company) -> Result<String, String> {
    match news? {
        News::Result(ToolResult { text, is_error: true, .. }) => names(text, &company.route.start_page()),
        other => Err(format!("it has {other:?}")),
    }
}

/// What the MCP server answered.
fn answered(news: Result<News, String>, company: &Company) -> Result<String, String> {
    match news? {
        News::Result(ToolResult { tools, text, is_error: false }) => {
            same(tools.join(", "), WHOAMI.to_owned())?;
            names(text, &company.route.client_id())
        }
        other => Err(format!("it has {other:?}")),
    }
}

fn names(text: String, what: &str) -> Result<String, String> {
    if text.contains(what) { Ok(text) } else { Err(format!("{text:?} does not name {what}")) }
}

/// Somebody at a browser, who presses the button of each page that comes.
struct Person<'a> {
    browser: Browser,
    company: &'a Company,
}

impl Person<'_> {
    /// Signs in where the client has its person do so.
    async fn signs_client_in(&mut self, page: &Url) -> Result<(), String> {
        let page = self.open(page).await?;
        page.says(&["Sign in", &self.company.route.mcp()])?;
        let back = self.press(&page).await?;
        back.says(&["You are signed in"])
    }

    async fn connects(&mut self, link: &str) -> Result<(), String> {
        let mut page = self.open(&parse(link)?).await?;
        for _ in 0..MOST_PAGES {
            page.shows(200)?;
            if page.says(&["<strong>Connected.</strong>"]).is_ok() {
                return page.says(&["anna"]);
            }
            page = self.press(&page).await?;
        }
        Err("there are ever more pages".to_owned())
    }

    async fn disconnects(&mut self, link: &str) -> Result<(), String> {
        let page = self.open(&parse(link)?).await?;
        page.says(&["<strong>Connected.</strong>"])?;
        let page = self.browser.press_form(&page, "/disconnect", &[]).await?;
        let page = self.follow(page).await?;
        page.shows(200)?;
        if page.says(&["<strong>Connected.</strong>"]).is_ok() { Err("it still is".to_owned()) } else { Ok(()) }
    }

    /// Sends a page's first form; the page that follows. At the identity provider, the name is filled in already.
    async fn press(&mut self, page: &Page) -> Result<Page, String> {
        let (name, ..) = crate::company::SERVER;
        let at_server = page.url().host_str() == Some(authorization_server::host(name).as_str());
        let entered: &[_] = if at_server { &[ALLOW] } else { &[] };
        let page = self.browser.press(page, entered).await?;
        self.follow(page).await
    }

    async fn open(&mut self, url: &Url) -> Result<Page, String> {
        let page = self.browser.open(url, CameFrom::AnotherSite).await?;
        self.follow(page).await
    }

    /// Goes where answers lead, until there is a page.
    async fn follow(&mut self, mut page: Page) -> Result<Page, String> {
        for _ in 0..MOST_PAGES {
            let [location] = page.answer.all("location")[..] else { return Ok(page) };
            let next = page.url().join(location).map_err(|error| error.to_string())?;
            page = self.browser.open(&next, CameFrom::AnotherSite).await?;
        }
        Err("it is redirected again and again".to_owned())
    }
}
