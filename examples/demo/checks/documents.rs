//! What an authorization server looks at before it takes a document for a client's, and what the MCP server behind the
//! route says to who comes without a token.

use super::{Checks, mcp};
use crate::{
    client_document::{ClientDocument, RULES, same},
    running::Route,
    stack::web::{Web, parse},
};

/// All about the routes; the entity tag of the first document.
pub async fn check(checks: &mut Checks, web: &Web, routes: &[Route; 3]) -> Option<String> {
    let [one, two, three] = routes;
    let documents =
        [document(checks, web, one).await, document(checks, web, two).await, document(checks, web, three).await];
    checks.about("all routes");
    let differ = match &documents {
        [Some(one), Some(two), Some(three)] => {
            [(one, two), (two, three), (three, one)].into_iter().try_for_each(|(one, other)| one.differs_from(other))
        }
        _ => Err("there are not three documents".to_owned()),
    };
    checks.note("are three clients, with no client_id or redirect_uris in common", differ);
    documents.iter().flatten().find_map(etag)
}

async fn document(checks: &mut Checks, web: &Web, route: &Route) -> Option<ClientDocument> {
    let client_id = route.client_id();
    checks.about(&client_id);
    let document = match ClientDocument::fetch(web, &client_id).await {
        Ok(document) => {
            for (what, rule) in RULES {
                checks.note(what, rule(&document));
            }
            let again = not_modified(web, &client_id, etag(&document)).await;
            checks.note("asked for again with its entity tag, answers 304 and no body", again);
            Some(document)
        }
        Err(error) => checks.note("answers", Err(error)),
    };
    checks.about(&route.upstream);
    let challenge = mcp::challenge(web, route).await;
    checks.note(
        &format!("is the {} MCP server, which answers 401 and names its authorization server", route.name),
        challenge,
    );
    checks.about(&route.mcp());
    let told = mcp::told_to_connect(web, &route.mcp(), route).await;
    checks.note("tells an MCP client where a person connects it", told);
    document
}

fn etag(document: &ClientDocument) -> Option<String> {
    document.answer.all("etag").first().map(|&etag| etag.to_owned())
}

async fn not_modified(web: &Web, client_id: &str, etag: Option<String>) -> Result<(), String> {
    let etag = etag.ok_or("there is no entity tag")?;
    let answer = web.send(&parse(client_id)?, |call| call.header("if-none-match", etag)).await?;
    same(answer.status, 304)?;
    if answer.body.is_empty() { Ok(()) } else { Err("it has a body".to_owned()) }
}
