//! What we look at of a request: a view that borrows from the message it came in.

use crate::{origin::Origin, route::Fields};

/// All that is read of a request, so that Envoy forwards no more; never `authorization`.
pub const HEADERS: &[&str] = &[
    ":authority",
    ":method",
    ":path",
    ":scheme",
    "accept",
    "cookie",
    "if-none-match",
    "origin",
    "purpose",
    "sec-fetch-dest",
    "sec-fetch-site",
    "sec-purpose",
    "traceparent",
    "tracestate",
    "x-forwarded-proto",
    "x-request-id",
];

/// The longest name of a request, in bytes.
const MAX_ID: usize = 128;

/// An HTTP request as far as Envoy forwarded it.
#[derive(Debug, Default)]
pub struct Request<'a> {
    headers: Vec<(&'a str, &'a [u8])>,
}

/// What the sources that travel with a request say of its route.
#[derive(Debug, Default)]
pub struct Sources<'a> {
    /// Attributes of the route, each key falling back to the virtual host's.
    pub attributes: Fields<'a>,
    pub dynamic_metadata: Fields<'a>,
    /// Issuer and subject, where the filter that the operator trusts named somebody.
    pub user: Option<(&'a str, &'a str)>,
}

/// The trace that a call belongs to (W3C Trace Context), as Envoy sent it.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    pub parent: Option<String>,
    pub state: Option<String>,
}

impl<'a> Request<'a> {
    pub fn with_capacity(headers: usize) -> Self {
        Self { headers: Vec::with_capacity(headers) }
    }

    /// Adds a header or pseudo-header; the name is in lower case, as Envoy sends it.
    pub fn push(&mut self, name: &'a str, value: &'a [u8]) {
        self.headers.push((name, value));
    }

    /// How long the headers are, names and values.
    pub fn header_bytes(&self) -> usize {
        self.headers.iter().map(|(name, value)| name.len() + value.len()).sum()
    }

    /// All values of a header, one a header line.
    pub fn values(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.headers.iter().filter(move |(other, _)| *other == name).map(|(_, value)| *value)
    }

    /// The value of a header that may be there once; a second one makes it no value at all, which is not the same as
    /// an absent header.
    pub fn sole(&self, name: &str) -> Option<&'a [u8]> {
        let mut values = self.values(name);
        let first = values.next()?;
        Some(if values.next().is_some() { b"" } else { first })
    }

    /// The first value of a header, where it is text.
    pub fn text(&self, name: &str) -> Option<&'a str> {
        self.values(name).next().and_then(|value| std::str::from_utf8(value).ok())
    }

    pub fn method(&self) -> &'a str {
        self.text(":method").unwrap_or_default()
    }

    pub fn authority(&self) -> &'a str {
        self.text(":authority").unwrap_or_default()
    }

    /// Envoy's name for the request, which its access log carries too. An Envoy may take it from the client, and it goes
    /// into answers: one that is long, or has other characters than a name, is none.
    pub fn id(&self) -> Option<&'a str> {
        self.text("x-request-id").filter(|id| id.len() <= MAX_ID && id.bytes().all(|byte| byte.is_ascii_graphic()))
    }

    /// The path without the query, and the query where there is a `?`.
    pub fn path_and_query(&self) -> (&'a str, Option<&'a str>) {
        let whole = self.text(":path").unwrap_or_default();
        match whole.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (whole, None),
        }
    }

    /// Whether the person or server at the other end spoke https. Envoy says so in `x-forwarded-proto`; the scheme
    /// decides only where that is absent, and a header that is there twice is no word to trust.
    pub fn is_https(&self) -> bool {
        match self.sole("x-forwarded-proto") {
            Some(proto) => proto == b"https",
            None => self.text(":scheme") == Some("https"),
        }
    }

    /// The trace that Envoy made or continued (W3C Trace Context).
    pub fn trace(&self) -> Trace {
        let owned = |name| self.text(name).map(str::to_owned);
        Trace { parent: owned("traceparent"), state: owned("tracestate") }
    }

    /// Whether its authority is this origin's.
    pub fn is_for(&self, origin: &Origin) -> bool {
        origin.is_named_by(self.authority())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn https() {
        for (headers, https) in [
            (vec![], false),
            (vec![(":scheme", "https")], true),
            (vec![(":scheme", "http"), ("x-forwarded-proto", "https")], true),
            (vec![(":scheme", "https"), ("x-forwarded-proto", "http")], false),
            (vec![(":scheme", "https"), ("x-forwarded-proto", "HTTPS")], false),
            (vec![(":scheme", "https"), ("x-forwarded-proto", "https, http")], false),
            (vec![(":scheme", "https"), ("x-forwarded-proto", "")], false),
            (vec![("x-forwarded-proto", "https"), ("x-forwarded-proto", "https")], false),
        ] {
            let mut request = Request::default();
            for (name, value) in &headers {
                request.push(name, value.as_bytes());
            }
            assert_eq!(request.is_https(), https, "{headers:?}");
        }
    }

    #[test]
    fn ids_are_short_and_safe_to_repeat() {
        let (long, longer) = ("a".repeat(MAX_ID), "a".repeat(MAX_ID + 1));
        for (id, found) in [
            ("5f0c9a4e-6d3f-4b1e-9a43-2f0f6a1f1b11", true),
            (&long, true),
            (&longer, false),
            ("a b", false),
            ("a\r\nset-cookie: b", false),
            ("ä", false),
        ] {
            let mut request = Request::default();
            request.push("x-request-id", id.as_bytes());
            assert_eq!(request.id(), found.then_some(id), "{id}");
        }
    }

    #[test]
    fn paths_and_queries() {
        for (path, parts) in
            [("/a", ("/a", None)), ("/a?", ("/a", Some(""))), ("/a?b?c", ("/a", Some("b?c"))), ("", ("", None))]
        {
            let mut request = Request::default();
            request.push(":path", path.as_bytes());
            assert_eq!(request.path_and_query(), parts);
        }
        let mut request = Request::default();
        request.push(":path", b"/\xff");
        assert_eq!(request.path_and_query(), ("", None), "no UTF-8, so none of ours");
    }
}
