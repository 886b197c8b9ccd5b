//! A book of MCP calls: who made each, with whose token it came to the upstream, and what its caller was told. It says
//! where the three do not agree, and what of it is secret.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard},
};

use serde_json::Value;

use crate::{gateway::THEIRS, mcp_upstream::Came};

/// The header with the number of a call.
pub const NUMBER: &str = "x-call";

/// A person at a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Whose {
    pub person: usize,
    pub route: usize,
}

/// What the caller read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// The upstream's answer to this very call, whole.
    Done,
    /// Where to connect.
    NotConnected,
    /// An error: nothing was done.
    Failed,
    /// Nothing: the caller left.
    Nothing,
}

/// What the upstream is to do with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Does {
    Runs,
    Refuses,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub done: usize,
    pub not_connected: usize,
    pub failed: usize,
    pub ran: usize,
    pub refused: usize,
    /// Those whose token was refused, and who then came with a newer one.
    pub renewed: usize,
}

#[derive(Debug, Default)]
pub struct Ledger(Mutex<Book>);

#[derive(Debug, Default)]
struct Book {
    calls: Vec<Entry>,
    /// Whom the code of a flow connected.
    codes: HashMap<String, Whose>,
    /// The token with which the last call of each came.
    last: HashMap<Whose, String>,
    /// The access tokens that the upstream takes no more, and the codes of which it takes none.
    revoked: HashSet<String>,
    ended: HashSet<String>,
    refused: HashSet<Whose>,
    secrets: HashSet<String>,
    faults: Vec<String>,
    renewed: usize,
}

#[derive(Debug)]
struct Entry {
    whose: Whose,
    /// What the upstream did, and the code that the token goes back to.
    came: Option<(Does, String)>,
    told: Option<Told>,
}

impl Ledger {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().expect("a book")
    }

    /// Notes a call that will be sent, and gives its number.
    pub fn sends(&self, whose: Whose) -> usize {
        let mut book = self.book();
        book.calls.push(Entry { whose, came: None, told: None });
        book.calls.len() - 1
    }

    /// Notes whom a code will connect.
    pub fn connects(&self, whose: Whose, code: &str) {
        let known = self.book().codes.insert(code.to_owned(), whose);
        assert_eq!(known, None, "a code for each flow");
    }

    /// Notes a call that came to the upstream of a route; `origin` says to which code a token goes back.
    pub fn came(&self, came: &Came, route: usize, origin: impl Fn(&str) -> Option<String>) -> Option<Does> {
        let mut book = self.book();
        match book.came(came, route, origin) {
            Ok(does) => Some(does),
            Err(fault) => {
                book.faults.push(format!("{fault}: {came:?}"));
                None
            }
        }
    }

    /// Notes what a caller was told; the code of the token with which the call ran, where it did.
    pub fn told(&self, number: usize, told: Told) -> Option<String> {
        let mut book = self.book();
        let entry = &mut book.calls[number];
        assert_eq!(entry.told.replace(told), None, "a call ends once");
        let fault = entry.fault(number);
        let code = entry.came.as_ref().filter(|(does, _)| *does == Does::Runs).map(|(_, code)| code.clone());
        book.faults.extend(fault);
        code
    }

    /// The upstream takes the token no more with which this person's last call came.
    pub fn revokes(&self, whose: Whose) {
        let mut book = self.book();
        if let Some(token) = book.last.get(&whose).cloned() {
            book.revoked.insert(token);
        }
    }

    /// The upstream takes no token any more that goes back to this code.
    pub fn ends(&self, code: &str) {
        self.book().ended.insert(code.to_owned());
    }

    /// Notes what must be in no log: text in the alphabet of base64url.
    pub fn hides(&self, secret: &str) {
        assert!(secret.len() > 20 && secret.chars().all(is_of_secrets), "{secret} would not be found");
        self.book().secrets.insert(secret.to_owned());
    }

    /// # Panics
    /// Where a text holds a secret.
    pub fn finds_no_secret_in(&self, name: &str, text: &str) {
        let book = self.book();
        let secret = text.split(|char| !is_of_secrets(char)).find(|word| book.secrets.contains(*word));
        drop(book);
        assert_eq!(secret, None, "{name} holds a secret");
        // What authorization server and callers call theirs.
        let line = text.lines().find(|line| line.contains("SECRET"));
        assert_eq!(line, None, "{name} holds a secret");
    }

    /// # Panics
    /// Where book and upstream do not agree.
    pub fn holds(&self) {
        let book = self.book();
        assert!(book.faults.is_empty(), "{} faults, the first: {}", book.faults.len(), book.faults[0]);
    }

    /// The same when all is over: what came after its caller was told counts, too.
    pub fn closes(&self) {
        let mut book = self.book();
        let late: Vec<String> =
            book.calls.iter().enumerate().filter_map(|(number, entry)| entry.fault(number)).collect();
        book.faults.extend(late);
        drop(book);
        self.holds();
    }

    pub fn counts(&self) -> Counts {
        let book = self.book();
        let told = |told| book.calls.iter().filter(|entry| entry.told == Some(told)).count();
        let came =
            |does| book.calls.iter().filter(|entry| entry.came.as_ref().is_some_and(|came| came.0 == does)).count();
        Counts {
            done: told(Told::Done),
            not_connected: told(Told::NotConnected),
            failed: told(Told::Failed),
            ran: came(Does::Runs),
            refused: came(Does::Refuses),
            renewed: book.renewed,
        }
    }
}

impl Book {
    fn came(
        &mut self,
        came: &Came,
        route: usize,
        origin: impl Fn(&str) -> Option<String>,
    ) -> Result<Does, &'static str> {
        let token = one(came, "authorization")?.strip_prefix("Bearer ").ok_or("not a bearer token")?.to_owned();
        self.secrets.insert(one(came, "x-tag")?.to_owned());
        for name in ["cookie", "proxy-authorization"] {
            if came.headers.contains_key(name) {
                return Err("the caller's own credentials came");
            }
        }
        if came.headers.values().any(|value| String::from_utf8_lossy(value.as_bytes()).contains(THEIRS)) {
            return Err("the caller's own credentials came");
        }
        let code = origin(&token).ok_or("nobody issued its token")?;
        let whose = *self.codes.get(&code).ok_or("its token is of a flow that nobody began")?;
        let number: usize = one(came, NUMBER)?.parse().map_err(|_| "it has no number")?;
        let body: Option<Value> = serde_json::from_slice(&came.body).ok();
        if body.is_some_and(|body| body["id"] != number) {
            return Err("it has another's body");
        }
        let entry = self.calls.get_mut(number).ok_or("nobody sent it")?;
        if entry.whose.route != route {
            return Err("it came to another route's upstream");
        }
        if entry.whose != whose {
            return Err("it has another's token");
        }
        if entry.came.is_some() {
            return Err("it came twice");
        }
        let does = match self.revoked.contains(&token) || self.ended.contains(&code) {
            true => Does::Refuses,
            false => Does::Runs,
        };
        entry.came = Some((does, code));
        match does {
            Does::Refuses => drop(self.refused.insert(whose)),
            Does::Runs => self.renewed += usize::from(self.refused.remove(&whose)),
        }
        self.last.insert(whose, token);
        Ok(does)
    }
}

impl Entry {
    /// What the caller was told, and what the upstream did, beside each other.
    fn fault(&self, number: usize) -> Option<String> {
        let ran = self.came.as_ref().is_some_and(|(does, _)| *does == Does::Runs);
        let agree = match self.told {
            Some(Told::Done) => ran,
            Some(Told::NotConnected | Told::Failed) => !ran,
            Some(Told::Nothing) | None => true,
        };
        (!agree).then(|| format!("call {number} does not agree: {self:?}"))
    }
}

/// The one value of a header.
fn one<'a>(came: &'a Came, name: &str) -> Result<&'a str, &'static str> {
    let mut values = came.headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().map_err(|_| "a header is not text"),
        (None, _) => Err("a header is missing"),
        (Some(_), Some(_)) => Err("a header came twice"),
    }
}

fn is_of_secrets(char: char) -> bool {
    char.is_ascii_alphanumeric() || char == '-' || char == '_'
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::{HeaderMap, Method};

    use super::*;

    const TAG: &str = "AAAAAAAAAAAAAAAAAAAAAA";

    fn came(headers: &[(&'static str, &'static str)], body: &str) -> Came {
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| (name.parse().expect("a name"), value.parse().expect("a value")))
            .collect();
        Came {
            method: Method::POST,
            path: "/notes/mcp".to_owned(),
            headers,
            body: Bytes::copy_from_slice(body.as_bytes()),
            trailers: HeaderMap::new(),
        }
    }

    /// A ledger in which Ann's call is number 0 and Bob's is number 1, both at route 0.
    fn ledger() -> Ledger {
        let ledger = Ledger::default();
        for (person, code) in ["ann", "bob"].into_iter().enumerate() {
            let whose = Whose { person, route: 0 };
            ledger.connects(whose, code);
            assert_eq!(ledger.sends(whose), person);
        }
        ledger
    }

    fn origin(token: &str) -> Option<String> {
        token.strip_prefix("of-").map(str::to_owned)
    }

    fn anns() -> Vec<(&'static str, &'static str)> {
        vec![("authorization", "Bearer of-ann"), ("x-tag", TAG), (NUMBER, "0")]
    }

    #[test]
    fn whatever_comes_amiss_is_a_fault() {
        let with = |name, value| [anns(), vec![(name, value)]].concat();
        let but = |name: &str, value| {
            let mut headers = anns();
            headers.iter_mut().find(|(header, _)| *header == name).expect("it is there").1 = value;
            headers
        };
        let without = |name: &str| anns().into_iter().filter(|(header, _)| *header != name).collect::<Vec<_>>();
        let body = r#"{"id":0}"#;
        for (headers, body, route, fault) in [
            (without("authorization"), body, 0, "a header is missing"),
            (with("authorization", "Bearer of-ann"), body, 0, "a header came twice"),
            (but("authorization", "Bearer SECRET-of-the-caller"), body, 0, "the caller's own credentials came"),
            (with("cookie", "x=y"), body, 0, "the caller's own credentials came"),
            (but("authorization", "Bearer x"), body, 0, "nobody issued its token"),
            (but("authorization", "Bearer of-eve"), body, 0, "its token is of a flow that nobody began"),
            (but("authorization", "Bearer of-bob"), body, 0, "it has another's token"),
            (anns(), body, 1, "it came to another route's upstream"),
            (anns(), r#"{"id":1}"#, 0, "it has another's body"),
            (but(NUMBER, "7"), "", 0, "nobody sent it"),
        ] {
            let ledger = ledger();
            assert_eq!(ledger.came(&came(&headers, body), route, origin), None, "{fault}");
            let faults = &ledger.book().faults;
            assert!(faults.len() == 1 && faults[0].starts_with(fault), "{faults:?}");
        }
        let ledger = ledger();
        assert_eq!(ledger.came(&came(&anns(), body), 0, origin), Some(Does::Runs));
        ledger.holds();
        assert_eq!(ledger.came(&came(&anns(), body), 0, origin), None);
        assert!(ledger.book().faults[0].starts_with("it came twice"));
    }

    #[test]
    fn what_callers_are_told_agrees_with_what_was_done() {
        for (runs, told, agrees) in [
            (true, Told::Done, true),
            (true, Told::NotConnected, false),
            (true, Told::Failed, false),
            (true, Told::Nothing, true),
            (false, Told::Done, false),
            (false, Told::NotConnected, true),
            (false, Told::Failed, true),
            (false, Told::Nothing, true),
        ] {
            let comes = |ledger: &Ledger| {
                if runs {
                    assert_eq!(ledger.came(&came(&anns(), ""), 0, origin), Some(Does::Runs));
                }
            };
            let ledger = ledger();
            comes(&ledger);
            assert_eq!(ledger.told(0, told), runs.then(|| "ann".to_owned()));
            assert_eq!(ledger.book().faults.is_empty(), agrees, "{runs} {told:?}");
            // It comes late.
            let ledger = self::ledger();
            ledger.told(0, told);
            comes(&ledger);
            if told != Told::Done {
                assert!(ledger.book().faults.is_empty());
                let closes = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| ledger.closes()));
                assert_eq!(closes.is_ok(), agrees, "{runs} {told:?}");
            }
        }
    }

    #[test]
    fn what_is_revoked_is_refused_until_there_is_a_newer_one() {
        let ledger = ledger();
        let ann = Whose { person: 0, route: 0 };
        let comes = |token: &'static str| {
            let number = ledger.sends(ann).to_string();
            let mut headers = came(&[("authorization", token), ("x-tag", TAG)], "");
            headers.headers.insert(NUMBER, number.parse().expect("a value"));
            ledger.came(&headers, 0, |token| Some(if token == "of-bob" { "bob" } else { "ann" }.to_owned()))
        };
        assert_eq!(comes("Bearer one"), Some(Does::Runs));
        ledger.revokes(ann);
        assert_eq!(comes("Bearer one"), Some(Does::Refuses));
        assert_eq!(comes("Bearer two"), Some(Does::Runs));
        ledger.ends("ann");
        assert_eq!(comes("Bearer three"), Some(Does::Refuses));
        let Counts { ran, refused, renewed, .. } = ledger.counts();
        assert_eq!((ran, refused, renewed), (2, 2, 1));
        ledger.holds();
    }

    #[test]
    fn secrets_are_found() {
        let ledger = ledger();
        ledger.hides("a-state_of_more_than_20_characters");
        assert_eq!(ledger.came(&came(&anns(), ""), 0, origin), Some(Does::Runs));
        ledger.finds_no_secret_in("a log", "a-state_of_more_than_20_character \"AAAAAAAAAAAAAAAAAAAAA\"");
        for text in ["x=a-state_of_more_than_20_characters&y", "{\"tag\":\"AAAAAAAAAAAAAAAAAAAAAA\"}", "SECRET-access"]
        {
            let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| ledger.finds_no_secret_in("", text)));
            assert!(found.is_err(), "{text}");
        }
    }
}
