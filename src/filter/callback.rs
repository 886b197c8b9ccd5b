//! The redirect endpoint: checks what came with the browser, and hands the code on, once.

use std::{borrow::Cow, sync::Arc};

use crate::{
    contract::choreographer::{AuthorizationAnswer, Complete},
    filter::{
        browser::{self, BrowserCookie},
        endpoint::{Served, Step, Visit},
        pages, query,
        refusal::Refusal,
        reply::Reply,
    },
    model::return_to::ReturnTo,
};

/// What the endpoint answers to.
pub const METHODS: &str = "GET";

/// Checks a callback. Nothing leaves the process before the state is known to be ours, fresh, for this route and for
/// this browser.
///
/// # Errors
/// Everything that is refused before the choreographer is called.
pub fn callback(visit: Visit<'_>) -> Result<Step, Refusal> {
    let Visit { endpoints, request, query, route, user } = visit;
    if browser::is_prefetch(request) {
        return Err(Refusal::Prefetch);
    }
    if !browser::is_navigation(request) {
        return Err(Refusal::BadRequest("the browser says that this is no navigation"));
    }
    let Query { answer, state, iss } = Query::read(query.unwrap_or_default(), endpoints.limits.max_query_bytes)?;
    let state = endpoints.state_keys.load().authenticate(&state).map_err(Refusal::State)?;
    let redirect_uri = endpoints.paths.redirect_uri(&route.origin);
    let state = state.verify(&redirect_uri, (endpoints.clock)()).map_err(Refusal::State)?;
    let cookie = BrowserCookie::of(request, &state.flow_id);
    state.check_browser(cookie.as_ref().map(BrowserCookie::value)).map_err(Refusal::State)?;
    let browser_hash = cookie.map(|cookie| cookie.hash()).unwrap_or_default();
    let user = endpoints.users.user(user).ok_or(Refusal::UserUnknown)?;
    let choreographer = Arc::clone(&endpoints.choreographer);
    let trace = request.trace();
    let origin = route.origin.clone();
    let (answer, iss) = (answer.into_owned(), iss.map(Cow::into_owned));
    let complete = Complete { flow_id: state.flow_id, redirect_uri, user, browser_hash, answer, iss };
    let flow = Some(state.flow_id.tag());
    Ok(Step::Call {
        flow: flow.clone(),
        call: Box::pin(async move {
            let result = match choreographer.complete(complete, &trace).await {
                Ok(return_to) => match ReturnTo::parse(&return_to, &origin) {
                    Some(return_to) => {
                        let reply = Reply::new(303, "completed").header("location", return_to.to_string());
                        Ok(pages::guarded(reply))
                    }
                    None => Err(Refusal::ChoreographerFailed),
                },
                Err(Refusal::AlreadyUsed { return_to }) => {
                    let return_to = ReturnTo::parse(&return_to, &origin).unwrap_or_else(ReturnTo::root);
                    Err(Refusal::AlreadyUsed { return_to: return_to.to_string() })
                }
                Err(refusal) => Err(refusal),
            };
            Served { flow, result }
        }),
    })
}

/// What an authorization server sends back (RFC 6749, section 4.1.2; RFC 9207).
struct Query<'a> {
    answer: AuthorizationAnswer<Cow<'a, str>>,
    state: Cow<'a, str>,
    iss: Option<Cow<'a, str>>,
}

impl<'a> Query<'a> {
    fn read(query: &'a str, longest: usize) -> Result<Self, Refusal> {
        let names = ["code", "state", "iss", "error", "error_description"];
        let [code, state, iss, error, description] =
            query::parameters(query, longest, names).map_err(Refusal::BadRequest)?;
        let answer = match (code, error) {
            (Some(code), None) => AuthorizationAnswer::Code(code),
            (None, Some(error)) => AuthorizationAnswer::Error { error, description },
            (Some(_), Some(_)) => return Err(Refusal::BadRequest("the query has both `code` and `error`")),
            (None, None) => return Err(Refusal::BadRequest("the query has neither `code` nor `error`")),
        };
        let state = state.ok_or(Refusal::BadRequest("the query has no `state`"))?;
        Ok(Self { answer, state, iss })
    }
}
