//! What is in envoy-cimd's store, and what it is good for.

use std::path::Path;

use envoy_cimd::{
    exchange::{
        embedded::{Config, Embedded},
        records::TokenRecord,
    },
    model::user::User,
    store::vault,
};

use super::{Checks, mcp};
use crate::{
    client_document::same,
    running::Route,
    stack::{in_process::owner, web::Web},
};

/// Looks into the store, which no process may have open, and calls each MCP server with what is there.
pub async fn check(checks: &mut Checks, web: &Web, routes: &[Route; 3], state_dir: &Path) {
    let [one, two, three] = routes;
    checks.about(&state_dir.display().to_string());
    let opened = checks.note("opens with its keys", store(state_dir).await.map_err(|error| format!("{error:#}")));
    let Some(store) = opened else { return };
    let tokens =
        [token(checks, &store, one).await, token(checks, &store, two).await, token(checks, &store, three).await];
    let [Some(first), Some(second), Some(third)] = &tokens else { return };
    let of_two = [(one, first, second), (two, second, third), (three, third, first)];
    let differ = of_two.iter().all(|(_, own, foreign)| own.access_token != foreign.access_token);
    checks.note("has three tokens that differ", if differ { Ok(()) } else { Err("two are the same".to_owned()) });
    for (route, own, foreign) in of_two {
        checks.about(&route.upstream);
        let initialized = mcp::initialized(web, route, own.access_token.expose()).await;
        checks.note("answers initialize to the route's own token (200)", initialized);
        let refused = mcp::refused(web, route, foreign.access_token.expose()).await;
        checks.note("refuses another route's token (401)", refused);
    }
}

async fn token(checks: &mut Checks, store: &Embedded, route: &Route) -> Option<TokenRecord> {
    let found = store.tokens.record(&owner(User::Single, &route.client_id(), &route.upstream)).await;
    let checked = found.map_err(|error| format!("{error:?}")).and_then(|token| {
        let token = token.ok_or("there is none")?;
        same(&token.issuer, &route.issuer)?;
        same(&token.resource, &route.upstream)?;
        Ok(token)
    });
    checks.note(&format!("has a token for {}, of its own authorization server", route.from.label()), checked)
}

/// The store as envoy-cimd itself would open it.
async fn store(state_dir: &Path) -> anyhow::Result<Embedded> {
    let store = vault::Config { state_dir: Some(state_dir.to_owned()), ..vault::Config::default() };
    let store = Embedded::new(Config { store, ..Config::default() })?;
    store.check().await?;
    Ok(store)
}
