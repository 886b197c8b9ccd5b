//! The button that ends a connection: this person's token of this route is forgotten and revoked.

use std::sync::Arc;

use super::{
    browser, calls,
    outcome::Outcome,
    pages, query,
    refusal::Refusal,
    reply::Reply,
    visit::{Served, Step, Visit},
};
use crate::{
    contract::tokens::TokenOwner,
    model::{paths::Endpoint, upstream::Upstream},
};

/// What the endpoint answers to.
pub const METHODS: &str = "POST";

/// Checks a request from the button, as start does.
///
/// # Errors
/// Everything that is refused before the choreographer is called.
pub fn disconnect(visit: Visit<'_>, upstream: Upstream) -> Result<Step, Refusal> {
    let Visit { tools, request, query, route, user, .. } = visit;
    if !browser::is_same_origin(request, route.from.origin()) {
        return Err(Refusal::CrossSite);
    }
    let [] = query::parameters(query.unwrap_or_default(), tools.max_query_bytes, []).map_err(Refusal::BadRequest)?;
    let user = tools.users.user(user).map_err(Refusal::UserUnknown)?.to_user();
    let share = tools.calls.presses.take(Some(&user), &upstream.url).map_err(calls::refusal)?;
    let owner = TokenOwner { user, client_id: tools.paths.client_id(&route.from), upstream };
    let choreographer = Arc::clone(&tools.choreographer);
    let trace = request.trace();
    let tokens = tools.tokens.clone();
    let location = tools.paths.on(&route.from, Endpoint::Start);
    Ok(Step::Call {
        flow: None,
        call: Box::pin(async move {
            let _share = share;
            let _ending = tokens.as_ref().map(|tokens| tokens.changing(owner.clone()));
            let result = match choreographer.disconnect(owner, &trace).await {
                Ok(()) => Ok(pages::guarded(Reply::new(Outcome::Disconnected).header("location", location))),
                Err(error) => Err(error.into()),
            };
            Served { flow: None, result, again: None }
        }),
    })
}
