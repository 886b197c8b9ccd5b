//! What a browser brings: the cookie that binds a flow to it, and the headers that say what it is about to do.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};

use super::request::{Header, Request};
use crate::model::{
    flow::{BrowserHash, FlowId, MAX_LIFETIME},
    origin::Origin,
    secret::{NoRandomness, Secret, random},
};

/// The secret of one flow in one browser: 256 random bits.
#[derive(Debug)]
pub struct BrowserCookie(Secret);

/// One that a browser brought, or that a test makes.
impl From<Secret> for BrowserCookie {
    fn from(value: Secret) -> Self {
        Self(value)
    }
}

impl BrowserCookie {
    /// # Errors
    /// Where the system gives no randomness.
    pub fn fresh() -> Result<Self, NoRandomness> {
        Ok(Self(Secret::new(BASE64_URL_SAFE_NO_PAD.encode(random::<32>()?))))
    }

    /// The cookie of a flow, where the browser has it. Parallel tabs each have their own.
    pub fn of(request: &Request<'_>, flow_id: &FlowId) -> Option<Self> {
        let name = name(flow_id);
        request
            .values(Header::Cookie)
            // As bytes: a cookie of somebody else's that is not a text is no reason to miss ours.
            .flat_map(|line| line.split(|byte| *byte == b';'))
            .filter_map(|pair| pair.trim_ascii().strip_prefix(name.as_bytes())?.strip_prefix(b"="))
            .find_map(|value| std::str::from_utf8(value).ok().map(|value| Self(Secret::new(value))))
    }

    pub fn value(&self) -> &Secret {
        &self.0
    }

    /// What the choreographer keeps of it.
    pub fn hash(&self) -> BrowserHash {
        BrowserHash(Sha256::digest(self.0.expose()).into())
    }

    /// The `set-cookie` of a flow. Lax, since the authorization server's redirect is a cross-site navigation; never
    /// cleared, since a reload after success must still be recognised.
    pub fn set(&self, flow_id: &FlowId) -> String {
        format!("{}={}; Secure; HttpOnly; SameSite=Lax; Path=/; Max-Age={MAX_LIFETIME}", name(flow_id), self.0.expose())
    }
}

fn name(flow_id: &FlowId) -> String {
    format!("__Host-envoy_cimd_{}", flow_id.tag())
}

/// Whether a form was sent by a page of this origin (Fetch Metadata; `Origin` where a browser has none).
pub fn is_same_origin(request: &Request<'_>, origin: &Origin) -> bool {
    match request.sole(Header::SecFetchSite) {
        Some(site) => site == b"same-origin",
        None => request.sole(Header::Origin) == Some(origin.as_str().as_bytes()),
    }
}

/// Whether the browser only fetches ahead: nobody has clicked yet.
pub fn is_prefetch(request: &Request<'_>) -> bool {
    [Header::SecPurpose, Header::Purpose].into_iter().flat_map(|header| request.values(header)).any(|value| {
        String::from_utf8_lossy(value).to_ascii_lowercase().split([';', ',']).any(|token| token.trim() == "prefetch")
    })
}

/// Whether this can be a person's navigation: an image, a script or a frame says so.
pub fn is_navigation(request: &Request<'_>) -> bool {
    request.sole(Header::SecFetchDest).is_none_or(|dest| dest == b"document")
}

/// Whether a person opened this address in a browser: a page's own request, or a program's, does not look so.
pub fn is_opened(request: &Request<'_>) -> bool {
    request.method() == "GET"
        && wants_html(request)
        && is_navigation(request)
        && request.sole(Header::SecFetchMode).is_none_or(|mode| mode == b"navigate")
}

/// Whether the answer is for a person to read.
pub fn wants_html(request: &Request<'_>) -> bool {
    request.values(Header::Accept).any(|value| {
        String::from_utf8_lossy(value)
            .split(',')
            .any(|range| range.split(';').next().is_some_and(|media| media.trim().eq_ignore_ascii_case("text/html")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOW: FlowId = FlowId([3; 16]);

    fn with<'a>(headers: &[(&'a str, &'a str)]) -> Request<'a> {
        let mut request = Request::default();
        for (name, value) in headers {
            request.push(name.as_bytes(), value.as_bytes());
        }
        request
    }

    #[test]
    fn a_flow_finds_its_own_cookie() {
        let cookie = BrowserCookie::fresh().expect("randomness");
        let set = cookie.set(&FLOW);
        let (pair, attributes) = set.split_once("; ").expect("attributes");
        assert_eq!(attributes, "Secure; HttpOnly; SameSite=Lax; Path=/; Max-Age=600");
        assert!(pair.starts_with("__Host-envoy_cimd_"));
        let others = format!("a=b; __Host-envoy_cimd_other=x;{pair}; c=d");
        let mut request = with(&[("cookie", "session=1")]);
        request.push(b"cookie", b"a=\xff; b");
        request.push(b"cookie", others.as_bytes());
        let found = BrowserCookie::of(&request, &FLOW).expect("its cookie");
        assert_eq!(found.hash(), cookie.hash());
        assert!(BrowserCookie::of(&request, &FlowId([4; 16])).is_none());
        assert!(BrowserCookie::of(&with(&[]), &FLOW).is_none());
    }

    #[test]
    fn forms_of_our_own_pages() {
        let origin: Origin = "https://a.example".parse().expect("an origin");
        for (headers, same) in [
            (vec![("sec-fetch-site", "same-origin")], true),
            (vec![("sec-fetch-site", "same-origin"), ("origin", "null")], true),
            (vec![("origin", "https://a.example")], true),
            (vec![], false),
            (vec![("sec-fetch-site", "same-site"), ("origin", "https://a.example")], false),
            (vec![("sec-fetch-site", "cross-site")], false),
            (vec![("sec-fetch-site", "none")], false),
            (vec![("sec-fetch-site", "")], false),
            (vec![("sec-fetch-site", "same-origin"), ("sec-fetch-site", "cross-site")], false),
            (vec![("origin", "null")], false),
            (vec![("origin", "https://a.example:443")], false),
            (vec![("origin", "https://b.a.example")], false),
            (vec![("origin", "http://a.example")], false),
        ] {
            assert_eq!(is_same_origin(&with(&headers), &origin), same, "{headers:?}");
        }
    }

    #[test]
    fn what_a_browser_is_about_to_do() {
        for (header, value, prefetch) in [
            ("sec-purpose", "prefetch", true),
            ("sec-purpose", "prefetch;prerender", true),
            ("purpose", "Prefetch", true),
            ("sec-purpose", "prefetching", false),
            ("accept", "prefetch", false),
        ] {
            assert_eq!(is_prefetch(&with(&[(header, value)])), prefetch, "{header}: {value}");
        }
        for (headers, navigation) in [
            (vec![], true),
            (vec![("sec-fetch-dest", "document")], true),
            (vec![("sec-fetch-dest", "image")], false),
            (vec![("sec-fetch-dest", "iframe")], false),
            (vec![("sec-fetch-dest", "document"), ("sec-fetch-dest", "image")], false),
        ] {
            assert_eq!(is_navigation(&with(&headers)), navigation, "{headers:?}");
        }
        for (accept, html) in [
            ("text/html,application/xhtml+xml,*/*;q=0.8", true),
            ("application/json, TEXT/HTML;q=0.9", true),
            ("application/json", false),
            ("*/*", false),
            ("x-text/html", false),
        ] {
            assert_eq!(wants_html(&with(&[("accept", accept)])), html, "{accept}");
        }
    }
}
