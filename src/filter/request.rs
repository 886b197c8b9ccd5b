//! What we look at of a request: a view that borrows from the message it came in.

use crate::model::{origin::Origin, route::RouteMetadata, trace::Trace, user::Claims};

macro_rules! headers {
    ($($header:ident = $name:literal)*) => {
        /// A header or pseudo-header that is read of a request.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Header {
            $($header,)*
        }

        impl Header {
            /// In lower case, as Envoy sends it.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$header => $name,)*
                }
            }

            #[allow(non_upper_case_globals, reason = "a constant for each variant")]
            fn named(name: &[u8]) -> Option<Self> {
                $(const $header: &[u8] = $name.as_bytes();)*
                match name {
                    $($header => Some(Self::$header),)*
                    _ => None,
                }
            }
        }
    };
}

headers! {
    Authority = ":authority"
    Method = ":method"
    Path = ":path"
    Scheme = ":scheme"
    Accept = "accept"
    ContentLength = "content-length"
    Cookie = "cookie"
    IfNoneMatch = "if-none-match"
    McpProtocolVersion = "mcp-protocol-version"
    Origin = "origin"
    Purpose = "purpose"
    SecFetchDest = "sec-fetch-dest"
    SecFetchMode = "sec-fetch-mode"
    SecFetchSite = "sec-fetch-site"
    SecPurpose = "sec-purpose"
    TraceParent = "traceparent"
    TraceState = "tracestate"
    XForwardedProto = "x-forwarded-proto"
    XRequestId = "x-request-id"
}

impl Header {
    /// All that the endpoints read, so that Envoy forwards no more; never `authorization`.
    pub const OF_ENDPOINTS: [Self; 16] = [
        Self::Authority,
        Self::Method,
        Self::Path,
        Self::Scheme,
        Self::Accept,
        Self::Cookie,
        Self::IfNoneMatch,
        Self::Origin,
        Self::Purpose,
        Self::SecFetchDest,
        Self::SecFetchSite,
        Self::SecPurpose,
        Self::TraceParent,
        Self::TraceState,
        Self::XForwardedProto,
        Self::XRequestId,
    ];

    /// All that is read of MCP traffic, so that Envoy forwards no more: neither `authorization` nor `cookie`.
    pub const OF_TRAFFIC: [Self; 14] = [
        Self::Authority,
        Self::Method,
        Self::Path,
        Self::Scheme,
        Self::Accept,
        Self::ContentLength,
        Self::McpProtocolVersion,
        Self::Origin,
        Self::SecFetchDest,
        Self::SecFetchMode,
        Self::TraceParent,
        Self::TraceState,
        Self::XForwardedProto,
        Self::XRequestId,
    ];
}

/// The longest name of a request, in bytes.
const MAX_ID: usize = 128;

/// An HTTP request as far as it is read.
#[derive(Debug, Default)]
pub struct Request<'a> {
    headers: Vec<(Header, &'a [u8])>,
    header_bytes: usize,
}

/// What the sources that travel with a request say of its route.
#[derive(Debug, Default)]
pub struct Sources<'a> {
    /// Attributes of the route, or all of them of its virtual host.
    pub attributes: RouteMetadata<'a>,
    pub dynamic_metadata: RouteMetadata<'a>,
    /// Who is at the browser, where there is metadata of the filter that the operator trusts.
    pub user: Option<Claims<'a>>,
    /// What the same metadata calls that person, for the pages alone.
    pub display: Option<&'a str>,
}

impl<'a> Request<'a> {
    pub fn with_capacity(headers: usize) -> Self {
        Self { headers: Vec::with_capacity(headers), header_bytes: 0 }
    }

    /// Takes a header or pseudo-header in, its name in lower case, as Envoy sends it. One that is not read counts for
    /// [`Self::header_bytes`] alone.
    pub fn push(&mut self, name: &[u8], value: &'a [u8]) {
        self.header_bytes += name.len() + value.len();
        self.headers.extend(Header::named(name).map(|header| (header, value)));
    }

    /// How long the headers are, names and values, also of those that are not read.
    pub fn header_bytes(&self) -> usize {
        self.header_bytes
    }

    /// All values of a header, one a header line.
    pub fn values(&self, header: Header) -> impl Iterator<Item = &'a [u8]> {
        self.headers.iter().filter(move |(other, _)| *other == header).map(|(_, value)| *value)
    }

    /// The value of a header that may be there once; a second one makes it no value at all, which is not the same as
    /// an absent header.
    pub fn sole(&self, header: Header) -> Option<&'a [u8]> {
        let mut values = self.values(header);
        let first = values.next()?;
        Some(if values.next().is_some() { b"" } else { first })
    }

    /// The first value of a header, where it is text.
    pub fn text(&self, header: Header) -> Option<&'a str> {
        self.values(header).next().and_then(|value| std::str::from_utf8(value).ok())
    }

    pub fn method(&self) -> &'a str {
        self.text(Header::Method).unwrap_or_default()
    }

    pub fn authority(&self) -> &'a str {
        self.text(Header::Authority).unwrap_or_default()
    }

    /// Envoy's name for the request, which its access log carries too. An Envoy may take it from the client, and it goes
    /// into answers: one that is long, or has other characters than a name, is none.
    pub fn id(&self) -> Option<&'a str> {
        self.text(Header::XRequestId).filter(|id| id.len() <= MAX_ID && id.bytes().all(|byte| byte.is_ascii_graphic()))
    }

    /// The path without the query, and the query where there is a `?`. A path that is not a text counts as empty; the query may be
    /// any bytes: whether a path is ours must not depend on what is behind it.
    pub fn path_and_query(&self) -> (&'a str, Option<&'a [u8]>) {
        let whole = self.values(Header::Path).next().unwrap_or_default();
        let mut parts = whole.splitn(2, |byte| *byte == b'?');
        let path = parts.next().and_then(|path| std::str::from_utf8(path).ok());
        (path.unwrap_or_default(), parts.next())
    }

    /// How long the body is, in bytes, where the request says so.
    pub fn content_length(&self) -> Option<u64> {
        self.sole(Header::ContentLength).and_then(|length| std::str::from_utf8(length).ok()?.parse().ok())
    }

    /// Whether the person or server at the other end spoke https. Envoy says so in `x-forwarded-proto`; the scheme
    /// decides only where that is absent, and a header that is there twice is no word to trust.
    pub fn is_https(&self) -> bool {
        match self.sole(Header::XForwardedProto) {
            Some(proto) => proto == b"https",
            None => self.text(Header::Scheme) == Some("https"),
        }
    }

    /// The trace that Envoy made or continued (W3C Trace Context).
    pub fn trace(&self) -> Trace {
        let owned = |header| self.text(header).map(str::to_owned);
        Trace { parent: owned(Header::TraceParent), state: owned(Header::TraceState) }
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
                request.push(name.as_bytes(), value.as_bytes());
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
            request.push(b"x-request-id", id.as_bytes());
            assert_eq!(request.id(), found.then_some(id), "{id}");
        }
    }

    #[test]
    fn paths_and_queries() {
        for (path, parts) in [
            (&b"/a"[..], ("/a", None)),
            (b"/a?", ("/a", Some(&b""[..]))),
            (b"/a?b?c", ("/a", Some(b"b?c"))),
            (b"/a?\xff", ("/a", Some(b"\xff"))),
            (b"", ("", None)),
            // No text, so none of ours.
            (b"/\xff", ("", None)),
        ] {
            let mut request = Request::default();
            request.push(b":path", path);
            assert_eq!(request.path_and_query(), parts);
        }
    }
}
