//! The redirect endpoint: checks what came with the browser, and hands the code on, once.

use std::{borrow::Cow, sync::Arc};

use super::{
    browser::{self, BrowserCookie},
    calls,
    outcome::Outcome,
    pages, query,
    refusal::Refusal,
    reply::Reply,
    start,
    visit::{Served, Step, Visit},
};
use crate::{
    contract::{
        choreographer::{AuthorizationAnswer, Complete},
        error::{CompleteError, Incomplete},
        tokens::TokenOwner,
    },
    model::{return_to::ReturnTo, secret::Secret},
};

/// What the endpoint answers to.
pub const METHODS: &str = "GET";

/// Checks a callback. Nothing leaves the process before the state is known to be ours, fresh, for this route and for
/// this browser.
///
/// # Errors
/// Everything that is refused before the choreographer is called.
pub fn callback(visit: Visit<'_>) -> Result<Step, Refusal> {
    let Visit { tools, request, query, route, user, .. } = visit;
    if browser::is_prefetch(request) {
        return Err(Refusal::Prefetch);
    }
    if !browser::is_navigation(request) {
        return Err(Refusal::BadRequest("the browser says that this is not a navigation"));
    }
    let Query { answer, state, iss } = Query::read(query.unwrap_or_default(), tools.max_query_bytes)?;
    let state = tools.state_keys.load().authenticate(&state).map_err(Refusal::State)?;
    let redirect_uri = tools.paths.redirect_uri(&route.from);
    let state = state.verify(&redirect_uri, (tools.clock)()).map_err(Refusal::State)?;
    let cookie = BrowserCookie::of(request, &state.flow_id);
    let browser_hash = state.check_browser(cookie.as_ref()).map_err(Refusal::State)?;
    let user = tools.users.user(user).map_err(Refusal::UserUnknown)?.to_user();
    let upstream = route.upstream().unwrap_or(route.from.as_str());
    let share = tools.calls.callbacks.take(Some(&user), upstream).map_err(calls::refusal)?;
    let choreographer = Arc::clone(&tools.choreographer);
    let trace = request.trace();
    // What is kept of the token that this one replaces goes at once; a route whose upstream is wrong has none.
    let owner = start::upstream(route).ok().map(|upstream| TokenOwner {
        user: user.clone(),
        client_id: tools.paths.client_id(&route.from),
        upstream,
    });
    let kept = tools.tokens.clone().zip(owner);
    let (origin, home) = (route.from.origin().clone(), start::home(tools, route));
    let iss = iss.map(Cow::into_owned);
    let complete = Complete { flow_id: state.flow_id, redirect_uri, user, browser_hash, answer, iss };
    let flow = Some(state.flow_id.tag());
    Ok(Step::Call {
        flow: flow.clone(),
        call: Box::pin(async move {
            let _share = share;
            let _replacing = kept.as_ref().map(|(tokens, owner)| tokens.changing(owner.clone()));
            // What they wanted is theirs again, also where it did not work.
            let mut wanted = None;
            let result = match choreographer.complete(complete, &trace).await {
                Ok(return_to) => match ReturnTo::parse(&return_to, &origin) {
                    Some(return_to) => {
                        let reply = Reply::new(Outcome::Completed).header("location", return_to.to_string());
                        Ok(pages::guarded(reply))
                    }
                    None => {
                        Err(Refusal::ChoreographerFailed("its `return_to` is not a path on the route's origin".into()))
                    }
                },
                Err(Incomplete { error: CompleteError::AlreadyUsed { return_to }, .. }) => {
                    wanted = ReturnTo::parse(&return_to, &origin);
                    Err(Refusal::AlreadyUsed { return_to: wanted.as_ref().unwrap_or(&home).to_string() })
                }
                Err(Incomplete { error, return_to }) => {
                    wanted = return_to.and_then(|return_to| ReturnTo::parse(&return_to, &origin));
                    Err(error.into())
                }
            };
            Served { flow, result, again: wanted.map(|wanted| start::again(&home, &wanted)) }
        }),
    })
}

/// What an authorization server sends back (RFC 6749, section 4.1.2; RFC 9207).
struct Query<'a> {
    answer: AuthorizationAnswer,
    state: Cow<'a, str>,
    iss: Option<Cow<'a, str>>,
}

impl<'a> Query<'a> {
    fn read(query: &'a [u8], longest: usize) -> Result<Self, Refusal> {
        let names = ["code", "state", "iss", "error", "error_description"];
        let [code, state, iss, error, description] =
            query::parameters(query, longest, names).map_err(Refusal::BadRequest)?;
        let answer = match (code, error) {
            (Some(code), None) => AuthorizationAnswer::Code(Secret::new(code)),
            (None, Some(error)) => {
                AuthorizationAnswer::Error { error: error.into_owned(), description: description.map(Cow::into_owned) }
            }
            (Some(_), Some(_)) => return Err(Refusal::BadRequest("the query has both `code` and `error`")),
            (None, None) => return Err(Refusal::BadRequest("the query has neither `code` nor `error`")),
        };
        let state = state.ok_or(Refusal::BadRequest("the query has no `state`"))?;
        Ok(Self { answer, state, iss })
    }
}
