//! What an authorization server is asked for.

use std::{collections::HashSet, fmt, str::FromStr};

/// What lets a server give a refresh token (OpenID Connect Core, section 11).
const OFFLINE_ACCESS: &str = "offline_access";

/// The longest scope, in bytes: it goes into an address.
pub const MAX_SCOPE: usize = 4096;

/// Scope tokens (RFC 6749, section 3.3), in the order in which they were named, none of them twice. It may be empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Scope(Vec<String>);

impl Scope {
    /// The tokens of these texts. Each is split on white space, whatever it was meant to be: a list, or one token.
    pub fn of<'a>(texts: impl IntoIterator<Item = &'a str>) -> Self {
        // A stranger may name very many.
        let mut known = HashSet::new();
        let tokens = texts.into_iter().flat_map(str::split_whitespace).filter(|token| known.insert(*token));
        let tokens = tokens.map(str::to_owned).collect();
        Self(tokens)
    }

    /// What a server is asked for, where this is wanted of it: `offline_access` only where the server lists that, whoever
    /// wants it, and only beside another token, since alone it displaces the server's defaults.
    #[must_use]
    pub fn asked_of(&self, lists_offline_access: bool) -> Self {
        let mut tokens: Vec<String> = self.0.iter().filter(|token| *token != OFFLINE_ACCESS).cloned().collect();
        if lists_offline_access && !tokens.is_empty() {
            tokens.push(OFFLINE_ACCESS.to_owned());
        }
        Self(tokens)
    }

    /// All tokens of both.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        Self::of(self.tokens().chain(other.tokens()))
    }

    /// Whether another has all that is in this.
    pub fn is_within(&self, other: &Self) -> bool {
        let others: HashSet<&str> = other.tokens().collect();
        self.tokens().all(|token| others.contains(token))
    }

    /// What is in this and not in another; `offline_access` counts as being there where `is_offline` says so.
    #[must_use]
    pub fn beyond(&self, other: &Self, is_offline: bool) -> Self {
        let others: HashSet<&str> = other.tokens().chain(is_offline.then_some(OFFLINE_ACCESS)).collect();
        Self(self.0.iter().filter(|token| !others.contains(token.as_str())).cloned().collect())
    }

    /// Whether it is short enough to go into an address.
    pub fn fits(&self) -> bool {
        self.to_string().len() <= MAX_SCOPE
    }

    pub fn has_offline_access(&self) -> bool {
        self.0.iter().any(|token| token == OFFLINE_ACCESS)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn tokens(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// As it stands in a request; none where it is empty.
    pub fn text(&self) -> Option<String> {
        (!self.is_empty()).then(|| self.to_string())
    }
}

/// As an operator writes it: with no character that the syntax does not have, and not empty.
impl FromStr for Scope {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let has_character = |byte| matches!(byte, 0x21 | 0x23..=0x5B | 0x5D..=0x7E);
        // A text that is folded in YAML has other white space than spaces.
        if !text.split_ascii_whitespace().all(|token| token.bytes().all(has_character)) {
            return Err("has a character that no scope has: they are visible ASCII without `\"` and `\\`");
        }
        match Self::of([text]) {
            scope if scope.is_empty() => Err("names no scope"),
            scope if !scope.fits() => Err("takes more than 4096 bytes"),
            scope => Ok(scope),
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_there_once() {
        for (texts, scope) in [
            (&["read write"][..], "read write"),
            (&[" read\twrite\n read  "], "read write"),
            (&["read", "write read", ""], "read write"),
            (&["READ read"], "READ read"),
            (&["", " "], ""),
            (&[], ""),
        ] {
            let read = Scope::of(texts.iter().copied());
            assert_eq!(read.to_string(), scope, "{texts:?}");
            assert_eq!((read.is_empty(), read.text().is_none()), (scope.is_empty(), scope.is_empty()), "{texts:?}");
        }
    }

    #[test]
    fn offline_access_is_asked_for_beside_another_where_it_is_listed() {
        for (wanted, listed, asked) in [
            ("read", true, "read offline_access"),
            ("read", false, "read"),
            ("offline_access read", true, "read offline_access"),
            ("offline_access read", false, "read"),
            ("offline_access", true, ""),
            ("offline_access", false, ""),
            ("", true, ""),
        ] {
            let asked_of = Scope::of([wanted]).asked_of(listed);
            assert_eq!(asked_of.to_string(), asked, "{wanted:?} {listed}");
            assert_eq!(asked_of.has_offline_access(), asked.contains(OFFLINE_ACCESS), "{wanted:?} {listed}");
        }
    }

    #[test]
    fn two_are_put_together_and_compared() {
        let scope = |text: &str| Scope::of([text]);
        for (one, other, both, within) in [
            ("read write", "write admin", "read write admin", false),
            ("read", "write read", "read write", true),
            ("", "read", "read", true),
            ("read", "", "read", false),
            ("read", "READ", "read READ", false),
            ("", "", "", true),
        ] {
            assert_eq!(scope(one).union(&scope(other)), scope(both), "{one:?} {other:?}");
            assert_eq!(scope(one).is_within(&scope(other)), within, "{one:?} {other:?}");
        }
        for (one, other, is_offline, beyond) in [
            ("read write admin", "write", false, "read admin"),
            ("read offline_access", "read", true, ""),
            ("read offline_access", "read", false, "offline_access"),
            ("read", "", true, "read"),
            ("", "read", true, ""),
        ] {
            assert_eq!(scope(one).beyond(&scope(other), is_offline), scope(beyond), "{one:?} {other:?}");
        }
        assert!(scope(&"x".repeat(MAX_SCOPE)).fits() && !scope(&"x".repeat(MAX_SCOPE + 1)).fits());
    }

    #[test]
    fn an_operators_scope_keeps_the_syntax() {
        for (text, scope) in [
            ("read", "read"),
            ("  mcp:tools\n\tfiles.read/all mcp:tools ", "mcp:tools files.read/all"),
            ("https://api.example/.default !#[]~", "https://api.example/.default !#[]~"),
        ] {
            assert_eq!(text.parse::<Scope>().expect(text).to_string(), scope);
        }
        let character = "has a character that no scope has: they are visible ASCII without `\"` and `\\`";
        let longest = "x".repeat(MAX_SCOPE);
        assert!(longest.parse::<Scope>().is_ok());
        for (text, problem) in [
            ("", "names no scope"),
            (" \n", "names no scope"),
            ("read \"write\"", character),
            ("read\\write", character),
            ("lésen", character),
            ("read\u{a0}write", character),
            ("read\u{7f}", character),
            ("read\0", character),
            (&format!("{longest}x"), "takes more than 4096 bytes"),
        ] {
            assert_eq!(text.parse::<Scope>(), Err(problem), "{text:?}");
        }
    }
}
