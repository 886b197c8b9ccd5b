//! A browser in the small: it keeps cookies, sends forms, and says of each request what a browser says. Redirects are
//! for whoever drives it to look at and to follow.

use url::{Url, form_urlencoded::Serializer};

use super::{Answered, Call, web::Web};

pub struct Browser {
    web: Web,
    cookies: Vec<Cookie>,
}

struct Cookie {
    host: String,
    name: String,
    value: String,
}

/// What the browser shows, or would follow.
pub struct Page {
    url: Url,
    pub answer: Answered,
}

/// Where the person was before: at another site, as a link or a redirect from there has it, or at the same.
#[derive(Clone, Copy)]
pub enum CameFrom {
    AnotherSite,
    SameOrigin,
}

impl Browser {
    /// One without cookies.
    pub fn new(web: &Web) -> Self {
        Self { web: web.clone(), cookies: Vec::new() }
    }

    pub async fn open(&mut self, url: &Url, from: CameFrom) -> Result<Page, String> {
        self.send(url, from, |call| call).await
    }

    /// The values of its cookies.
    pub fn cookies(&self) -> impl Iterator<Item = &str> {
        self.cookies.iter().map(|cookie| cookie.value.as_str())
    }

    /// Sends the form of a page, with what the person typed, and the name and value of the button if it has some.
    pub async fn press(&mut self, page: &Page, entered: &[(&str, &str)]) -> Result<Page, String> {
        self.press_form(page, "", entered).await
    }

    /// The same with the first form whose address has these words.
    pub async fn press_form(&mut self, page: &Page, words: &str, entered: &[(&str, &str)]) -> Result<Page, String> {
        let html = page.text();
        let mut forms = html.split("<form ").skip(1);
        let form = forms.find(|form| attribute(form, "action").unwrap_or_default().contains(words));
        let (form, _) = form.ok_or("it has no such form")?.split_once("</form>").ok_or("its form has no end")?;
        let mut tags = form.split('<');
        let head = tags.next().unwrap_or_default();
        if attribute(head, "method") != Some("post") {
            return Err("its form is not sent by POST".to_owned());
        }
        let action = attribute(head, "action").unwrap_or_default().replace("&#38;", "&");
        let action = page.url.join(&action).map_err(|error| error.to_string())?;
        let filled_in = tags.filter(|tag| tag.starts_with("input ")).filter_map(|tag| {
            // None of these values has a character that HTML would write otherwise.
            Some((attribute(tag, "name")?, attribute(tag, "value")?))
        });
        let body = Serializer::new(String::new()).extend_pairs(filled_in).extend_pairs(entered).finish();
        let origin = action.origin().ascii_serialization();
        self.send(&action, CameFrom::SameOrigin, |call| {
            call.method("POST")
                .header("origin", origin)
                .header("content-type", "application/x-www-form-urlencoded")
                .body(body)
        })
        .await
    }

    async fn send(&mut self, url: &Url, from: CameFrom, with: impl FnOnce(Call) -> Call) -> Result<Page, String> {
        let host = url.host_str().unwrap_or_default();
        let cookies: Vec<String> = self
            .cookies
            .iter()
            .filter(|cookie| cookie.host == host)
            .map(|Cookie { name, value, .. }| format!("{name}={value}"))
            .collect();
        let site = match from {
            CameFrom::AnotherSite => "cross-site",
            CameFrom::SameOrigin => "same-origin",
        };
        let answer = self
            .web
            .send(url, |call| {
                let call = call
                    .header("accept", "text/html,application/xhtml+xml,*/*;q=0.8")
                    .header("sec-fetch-site", site)
                    .header("sec-fetch-mode", "navigate")
                    .header("sec-fetch-dest", "document");
                with(if cookies.is_empty() { call } else { call.header("cookie", cookies.join("; ")) })
            })
            .await?;
        for text in answer.all("set-cookie") {
            self.keep(host, text);
        }
        Ok(Page { url: url.clone(), answer })
    }

    /// Takes a cookie, unless its name promises what it does not keep (`__Host-`, RFC 6265bis).
    fn keep(&mut self, host: &str, text: &str) {
        let mut parts = text.split(';').map(str::trim);
        let Some((name, value)) = parts.next().and_then(|pair| pair.split_once('=')) else { return };
        let attributes: Vec<String> = parts.map(str::to_ascii_lowercase).collect();
        let has = |wanted: &str| attributes.iter().any(|attribute| attribute == wanted);
        let of_host = has("secure") && has("path=/") && !attributes.iter().any(|part| part.starts_with("domain="));
        if name.starts_with("__Host-") && !of_host {
            return;
        }
        self.cookies.retain(|cookie| (cookie.host.as_str(), cookie.name.as_str()) != (host, name));
        // Without a value, or with a life that is over, it is one that was taken back.
        if value.is_empty() || has("max-age=0") || attributes.iter().any(|part| part.contains("01 jan 1970")) {
            return;
        }
        self.cookies.push(Cookie { host: host.to_owned(), name: name.to_owned(), value: value.to_owned() });
    }
}

impl Page {
    pub fn url(&self) -> &Url {
        &self.url
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.answer.body).into_owned()
    }

    /// That it is a page for a person, with this status.
    pub fn shows(&self, status: u16) -> Result<(), String> {
        if self.answer.status != status {
            return Err(format!("the answer is {}, not {status}", self.answer.status));
        }
        let kind = self.answer.all("content-type").join(", ");
        if kind.starts_with("text/html") { Ok(()) } else { Err(format!("the answer is {kind:?}, not a page")) }
    }

    /// That it has these words in it.
    pub fn says(&self, words: &[&str]) -> Result<(), String> {
        let text = self.text();
        let missing = words.iter().find(|words| !text.contains(**words));
        missing.map_or(Ok(()), |words| Err(format!("the page does not say {words:?}")))
    }

    /// Where the browser is sent on to by a GET.
    pub fn redirects(&self) -> Result<Url, String> {
        match (self.answer.status, self.answer.all("location").as_slice()) {
            (303, [location]) => self.url.join(location).map_err(|error| error.to_string()),
            (303, _) => Err("the redirect says not where to".to_owned()),
            (status, _) => Err(format!("the answer is {status}, not 303")),
        }
    }
}

/// An attribute of a tag, as the demo, envoy-cimd and oidc-provider write them.
fn attribute<'a>(tag: &'a str, name: &str) -> Option<&'a str> {
    let (attributes, _) = tag.split_once('>')?;
    // Names and values take turns.
    let mut parts = attributes.split('"');
    while let (Some(before), Some(value)) = (parts.next(), parts.next()) {
        if before.split_whitespace().last().and_then(|last| last.strip_suffix('=')) == Some(name) {
            return Some(value);
        }
    }
    None
}

/// A parameter of a URL's query, which must be there once.
pub fn parameter(url: &Url, name: &str) -> Result<String, String> {
    let mut found = url.query_pairs().filter(|(key, _)| key == name);
    match (found.next(), found.next()) {
        (Some((_, value)), None) => Ok(value.into_owned()),
        (None, _) => Err(format!("{name} is missing")),
        (Some(_), Some(_)) => Err(format!("{name} is there twice")),
    }
}

/// A URL with another value for a parameter of its query.
pub fn with_parameter(url: &Url, name: &str, value: &str) -> Url {
    let pairs: Vec<(String, String)> = url
        .query_pairs()
        .map(|(key, old)| (key.to_string(), if key == name { value.to_owned() } else { old.into_owned() }))
        .collect();
    let mut url = url.clone();
    url.query_pairs_mut().clear().extend_pairs(pairs);
    url
}
