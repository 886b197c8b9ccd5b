//! The page of a route for a person, and the button on it that begins a flow.

use std::{borrow::Cow, sync::Arc};

use futures_util::future::join;
use url::{Url, form_urlencoded};

use super::{
    browser::{self, BrowserCookie},
    calls,
    outcome::Outcome,
    pages, query,
    refusal::Refusal,
    reply::Reply,
    status::StatusPage,
    visit::{Served, Step, Tools, Visit},
};
use crate::{
    contract::{
        choreographer::{Begin, Begun, Choreographer},
        connection::Connection,
        error::BeginError,
        tokens::TokenOwner,
    },
    model::{
        loopback::is_loopback,
        paths::Endpoint,
        prompt::Prompt,
        return_to::ReturnTo,
        route::{Route, RouteError},
        scope::Scope,
        trace::Trace,
        upstream::Upstream,
    },
};

/// What the endpoint answers to.
pub const METHODS: &str = "GET, POST";

/// What a route connects to, and what of that is asked for.
pub struct Target {
    upstream: Upstream,
    scope: Option<Scope>,
    prompt: Option<Prompt>,
}

/// # Errors
/// [`Refusal::MisconfiguredRoute`] where what [`upstream`] needs, `scope` or `prompt` is wrong.
pub fn target(route: &Route) -> Result<Target, Refusal> {
    let upstream = upstream(route)?;
    let (scope, prompt) = (misconfigured(route.scope())?, misconfigured(route.prompt())?);
    Ok(Target { upstream, scope, prompt })
}

/// What a route connects to.
///
/// # Errors
/// [`Refusal::MisconfiguredRoute`] where its `to` is missing, or it, `authorization_server` or `resource` is wrong.
pub fn upstream(route: &Route) -> Result<Upstream, Refusal> {
    let url = misconfigured(route.upstream())?.to_owned();
    let authorization_server = misconfigured(route.pinned_issuer())?.map(str::to_owned);
    Ok(Upstream { url, authorization_server, resource: misconfigured(route.resource())? })
}

fn misconfigured<T>(value: Result<T, RouteError>) -> Result<T, Refusal> {
    value.map_err(Refusal::MisconfiguredRoute)
}

/// Checks a request for the page, or from its button.
///
/// # Errors
/// Everything that is refused before the choreographer is called.
pub fn start(visit: Visit<'_>, Target { upstream, scope, prompt }: Target) -> Result<Step, Refusal> {
    let Visit { tools, request, query, route, user, .. } = visit;
    let begins = request.method() == "POST";
    if begins && !browser::is_same_origin(request, route.from.origin()) {
        return Err(Refusal::CrossSite);
    }
    let [return_to, shown_issuer] =
        query::parameters(query.unwrap_or_default(), tools.max_query_bytes, ["return_to", "issuer"])
            .map_err(Refusal::BadRequest)?;
    let return_to = return_to
        .map(|text| {
            ReturnTo::parse(&text, route.from.origin())
                .ok_or(Refusal::BadRequest("`return_to` is not a path on the route's origin"))
        })
        .transpose()?;
    let user = tools.users.user(user).map_err(Refusal::UserUnknown)?.to_user();
    let trace = request.trace();
    let choreographer = Arc::clone(&tools.choreographer);
    let ends_at = return_to.clone().unwrap_or_else(|| home(tools, route));
    let page = StatusPage::new(&visit, &user, &upstream.url, return_to);
    let client_id = tools.paths.client_id(&route.from);
    let owner = TokenOwner { user: user.clone(), client_id: client_id.clone(), upstream: upstream.clone() };
    if !begins {
        let share = tools.calls.pages.take(Some(&user), &upstream.url);
        return Ok(Step::Show(Box::pin(async move {
            // What cannot be had, or not now, is no reason to keep the page back.
            let (known, connection) = match share {
                Ok(_share) => {
                    let describe = async {
                        choreographer.describe(client_id, upstream, &trace).await.unwrap_or_else(|error| {
                            tracing::debug!(reason = %error.cause(), "the authorization server's name is not known");
                            None
                        })
                    };
                    join(describe, connection(&*choreographer, owner, scope, &trace)).await
                }
                Err(_) => (None, None),
            };
            page.reply(known.as_deref(), connection)
        })));
    }
    let share = tools.calls.presses.take(Some(&user), &upstream.url).map_err(calls::refusal)?;
    let cookie = BrowserCookie::fresh().map_err(|error| Refusal::ChoreographerFailed(error.to_string().into()))?;
    let redirect_uri = tools.paths.redirect_uri(&route.from);
    let begin = Begin {
        client_id,
        redirect_uri: redirect_uri.clone(),
        client_name: tools.names.name(route).into_owned(),
        upstream,
        scope: scope.clone(),
        prompt,
        user,
        browser_hash: cookie.hash(),
        return_to: ends_at.to_string(),
        shown_issuer: shown_issuer.map(Cow::into_owned),
    };
    let (keys, clock) = (tools.state_keys.clone(), tools.clock);
    Ok(Step::Call {
        flow: None,
        call: Box::pin(async move {
            let _share = share;
            let begun = match choreographer.begin(begin, &trace).await {
                Ok(begun) => begun,
                // Nobody is sent to a server that they were not shown.
                Err(BeginError::IssuerChanged(issuer)) => {
                    let connection = connection(&*choreographer, owner, scope, &trace).await;
                    return Served { flow: None, result: Ok(page.reply(Some(&issuer), connection)), again: None };
                }
                Err(error) => return Served { flow: None, result: Err(error.into()), again: None },
            };
            let now = clock();
            let state = keys.load().mint(begun.flow_id, &redirect_uri, &cookie, now, begun.expires_at);
            let result = state
                .and_then(|state| authorization_request(&begun, &state))
                .ok_or(Refusal::ChoreographerFailed("its authorization URL is not one to send a person to".into()))
                .map(|location| {
                    let reply = Reply::new(Outcome::Begun)
                        .header("location", location)
                        .header("set-cookie", cookie.set(&begun.flow_id));
                    pages::guarded(reply)
                });
            Served { flow: Some(begun.flow_id.tag()), result, again: None }
        }),
    })
}

/// How the owner's connection stands; none where nobody can say.
async fn connection(
    choreographer: &dyn Choreographer,
    owner: TokenOwner,
    scope: Option<Scope>,
    trace: &Trace,
) -> Option<Connection> {
    let connection = choreographer.connection(owner, scope, trace).await;
    connection
        .inspect_err(|error| tracing::debug!(reason = %error.cause(), "how a connection stands is not known"))
        .ok()
}

/// Where a person goes who did not ask for anything: the route's own page, which says how they stand.
pub fn home(tools: &Tools, route: &Route) -> ReturnTo {
    let start = tools.paths.on(&route.from, Endpoint::Start);
    ReturnTo::parse(&start, route.from.origin()).unwrap_or_else(ReturnTo::root)
}

/// Where a request for the page, or from its button, said that its person wants to go.
pub fn wanted(tools: &Tools, route: &Route, query: &[u8]) -> Option<ReturnTo> {
    let [return_to, _] = query::parameters(query, tools.max_query_bytes, ["return_to", "issuer"]).ok()?;
    ReturnTo::parse(&return_to?, route.from.origin())
}

/// The page again (`home`), from which a person goes on to where they wanted.
pub fn again(home: &ReturnTo, wanted: &ReturnTo) -> String {
    if wanted == home {
        return home.to_string();
    }
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.append_pair("return_to", wanted.as_str());
    format!("{home}?{}", query.finish())
}

/// The authorization request with its `state`. None where the choreographer's URL is none to send a person to: https,
/// or http on loopback, and without a `state` of its own.
fn authorization_request(begun: &Begun, state: &str) -> Option<String> {
    let mut url = Url::parse(&begun.authorization_url).ok()?;
    let safe = match url.scheme() {
        "https" => url.host().is_some(),
        "http" => url.host().as_ref().is_some_and(is_loopback),
        _ => false,
    };
    let bare = url.fragment().is_none() && url.username().is_empty() && url.password().is_none();
    if !safe || !bare || url.query_pairs().any(|(name, _)| name == "state") {
        return None;
    }
    url.query_pairs_mut().append_pair("state", state);
    Some(url.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{clock::UnixTime, flow::FlowId};

    #[test]
    fn people_are_sent_to_https_only() {
        for (url, location) in [
            (
                "https://as.example/authorize?client_id=a%20b",
                Some("https://as.example/authorize?client_id=a%20b&state=s"),
            ),
            ("https://as.example/authorize", Some("https://as.example/authorize?state=s")),
            ("http://127.0.0.1:9/a", Some("http://127.0.0.1:9/a?state=s")),
            ("http://[::1]:9/a", Some("http://[::1]:9/a?state=s")),
            ("http://as.localhost:9/a", Some("http://as.localhost:9/a?state=s")),
            ("http://localhost.:9/a", Some("http://localhost.:9/a?state=s")),
            ("http://as.example/a", None),
            ("http://127.0.0.1.evil.example/a", None),
            ("javascript:alert(1)", None),
            ("https://as.example/a#b", None),
            ("https://u:p@as.example/a", None),
            ("https://as.example/a?state=mine", None),
            ("", None),
        ] {
            let begun =
                Begun { flow_id: FlowId([0; 16]), expires_at: UnixTime::default(), authorization_url: url.to_owned() };
            assert_eq!(authorization_request(&begun, "s").as_deref(), location, "{url}");
        }
    }
}
