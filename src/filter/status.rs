//! The page of a route for a person: how their connection stands, and what connecting would ask, of whom, in whose name.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use url::{Url, form_urlencoded};

use super::{
    outcome::Outcome,
    pages::{self, Asked, Person, Standing, Status},
    reply::Reply,
    visit::{Tools, Visit},
};
use crate::{
    contract::connection::{Connection, ConnectionState, Granted, NextAuthorization},
    model::{
        brand::Brand,
        clock::UnixTime,
        paths::Endpoint,
        return_to::ReturnTo,
        route::Route,
        scope::Scope,
        user::User,
        words::{LONGEST, displayed},
    },
};

/// How much of an address is shown, in characters: as much as can be the address of a server.
const LONGEST_URL: usize = 2048;
/// How many scopes are named. An upstream may want very many.
const MOST_SCOPES: usize = 20;
/// The year 10000, which `httpdate` cannot write.
const END_OF_DATES: u64 = 253_402_300_800;

/// What the page says of a route and a person whatever becomes of the calls.
pub struct StatusPage {
    brand: Arc<Brand>,
    name: String,
    host: String,
    upstream: String,
    person: Person,
    /// The paths of these endpoints on the route.
    start: String,
    disconnect: String,
    return_to: Option<ReturnTo>,
}

impl StatusPage {
    pub fn new(visit: &Visit<'_>, user: &User, upstream: &str, return_to: Option<ReturnTo>) -> Self {
        let Tools { paths, names, brand, .. } = visit.tools;
        let Route { from, .. } = visit.route;
        let host = Url::parse(upstream).ok().and_then(|url| Some(url.host()?.to_string()));
        let named = visit.display.map(|name| displayed(name, LONGEST)).filter(|name| !name.is_empty());
        Self {
            brand: brand.clone(),
            name: displayed(&names.name(visit.route), 2 * LONGEST),
            host: host.unwrap_or_default(),
            upstream: displayed(upstream, LONGEST_URL),
            person: match (user, named) {
                (User::Single, _) => Person::Everybody,
                (User::Subject { .. }, Some(name)) => Person::Named(name),
                (User::Subject { .. }, None) => Person::Unnamed,
            },
            start: paths.on(from, Endpoint::Start),
            disconnect: paths.on(from, Endpoint::Disconnect),
            return_to,
        }
    }

    /// `issuer` is the authorization server's, where it is known: the button says that it was shown. Without a
    /// `connection`, nobody can say how that stands.
    pub fn reply(&self, issuer: Option<&str>, connection: Option<Connection>) -> Reply {
        let mut query = form_urlencoded::Serializer::new(String::new());
        if let Some(return_to) = &self.return_to {
            query.append_pair("return_to", return_to.as_str());
        }
        if let Some(issuer) = issuer {
            query.append_pair("issuer", issuer);
        }
        let connect = format!("{}?{}", self.start, query.finish());
        let (state, next) = connection.map_or((None, None), |Connection { state, next }| (Some(state), next));
        let (asked, more_asked) = next.map_or((None, 0), |next| {
            let (asked, more) = asked(&next);
            (Some(asked), more)
        });
        let page = Status {
            brand: &self.brand,
            name: &self.name,
            host: &self.host,
            upstream: &self.upstream,
            person: &self.person,
            standing: state.map_or(Standing::Unknown, standing),
            authorization_server: issuer.map(|issuer| displayed(issuer, LONGEST_URL)),
            asked,
            more_asked,
            connect: &connect,
            disconnect: &self.disconnect,
            back: self.return_to.as_ref().map(ReturnTo::as_str),
        };
        // Under `no-referrer` the form's request would carry `Origin: null`.
        let reply = Reply::new(Outcome::Shown).header("referrer-policy", "same-origin");
        pages::guarded(pages::page(reply, &page))
    }
}

fn standing(state: ConnectionState) -> Standing {
    match state {
        ConnectionState::Never => Standing::Never,
        ConnectionState::Lost => Standing::Lost,
        ConnectionState::Connected(Granted { since, scope, issuer }) => {
            let (scopes, more_scopes) = named(&scope);
            let issuer = displayed(&issuer, LONGEST_URL);
            Standing::Connected { since: since.and_then(date), scopes, more_scopes, issuer }
        }
    }
}

/// What will be asked for, what is new first, and how many more there are.
fn asked(next: &NextAuthorization) -> (Vec<Asked>, usize) {
    let added: HashSet<&str> = next.added.tokens().collect();
    let (new, others): (Vec<&str>, Vec<&str>) = next.scope.tokens().partition(|scope| added.contains(scope));
    let (names, more) = first([new, others].concat());
    let asked = |scope: &&str| Asked { scope: displayed(scope, LONGEST), is_new: added.contains(scope) };
    (names.iter().map(asked).collect(), more)
}

fn named(scope: &Scope) -> (Vec<String>, usize) {
    let (names, more) = first(scope.tokens().collect());
    (names.into_iter().map(|scope| displayed(scope, LONGEST)).collect(), more)
}

/// As many as are named, and how many more there are.
fn first(mut scopes: Vec<&str>) -> (Vec<&str>, usize) {
    let more = scopes.len().saturating_sub(MOST_SCOPES);
    scopes.truncate(MOST_SCOPES);
    (scopes, more)
}

/// As people in any country read it. None where no calendar of ours has it.
fn date(time: UnixTime) -> Option<String> {
    let time = (time.secs() < END_OF_DATES).then(|| UNIX_EPOCH.checked_add(Duration::from_secs(time.secs())))??;
    Some(httpdate::fmt_http_date(time))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_for_people() {
        for (seconds, shown) in [
            (0, Some("Thu, 01 Jan 1970 00:00:00 GMT")),
            (1_796_000_000, Some("Mon, 30 Nov 2026 00:53:20 GMT")),
            (END_OF_DATES - 1, Some("Fri, 31 Dec 9999 23:59:59 GMT")),
            (END_OF_DATES, None),
            (u64::MAX, None),
        ] {
            assert_eq!(date(UnixTime::from_secs(seconds)).as_deref(), shown, "{seconds}");
        }
    }

    #[test]
    fn what_is_new_comes_first_and_none_is_lost() {
        let many: Vec<String> = (0..60).map(|number| format!("s{number}")).collect();
        let scope = Scope::of(many.iter().map(String::as_str));
        let (shown, more) = asked(&NextAuthorization { scope: scope.clone(), added: Scope::of(["s59"]) });
        assert_eq!((shown.len(), more), (MOST_SCOPES, 40));
        let first = shown.first().expect("one");
        assert_eq!((first.scope.as_str(), first.is_new), ("s59", true));
        assert_eq!(shown.iter().filter(|asked| asked.is_new).count(), 1);
        let (shown, more) = named(&scope);
        assert_eq!((shown.len(), more), (MOST_SCOPES, 40));
        assert_eq!(asked(&NextAuthorization::default()), (Vec::new(), 0));
    }
}
