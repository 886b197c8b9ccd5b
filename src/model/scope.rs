//! What an authorization server is asked for.

use std::{collections::HashSet, fmt};

/// What lets a server give a refresh token (OpenID Connect Core, section 11).
const OFFLINE_ACCESS: &str = "offline_access";

/// Scope tokens (RFC 6749, section 3.3), in the order in which they were named, none of them twice. It may be empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
}
