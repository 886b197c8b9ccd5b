//! A route: what an operator says of it, checked once.

use std::{fmt, str::FromStr};

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, Visitor},
};
use url::Url;

mod key;

use super::{
    prompt::Prompt,
    public_url::{PublicUrl, PublicUrlError},
    resource::ResourceIndicator,
    scope::Scope,
};

pub use key::{Field, Key, Keyed, NAMESPACE, RouteMetadata};

/// A route that can be served.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    pub from: PublicUrl,
    /// A label for logs; authority and path of `from` unless the operator gave one.
    pub id: String,
    /// What the operator wrote, none of it empty; `from` in its one spelling.
    texts: Keyed<Option<String>>,
}

/// The largest document that is served, in bytes: the draft, section 6.6, names 5 kB as what servers read.
pub const MAX_DOCUMENT_BYTES: usize = 5000;

/// Why a route cannot be served. The message is for operators.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RouteError {
    #[error("no source gives `from`: Envoy sends the metadata of the route that has our path, and of its virtual host")]
    NoFrom,
    #[error("`{0}` must be a text")]
    NotText(&'static str),
    #[error("`{0}` is empty")]
    Empty(&'static str),
    #[error("`from` {0}")]
    From(#[from] PublicUrlError),
    #[error("`{key}` {problem}")]
    Value { key: &'static str, problem: &'static str },
    #[error("the document would take {0} bytes, more than authorization servers accept ({max})", max = MAX_DOCUMENT_BYTES)]
    DocumentTooLarge(usize),
}

impl Route {
    /// Checks what a source says. What only connecting needs is looked at when it is needed, so that a mistake in it does
    /// not take the document away.
    ///
    /// # Errors
    /// The first key that cannot be served, in the order of [`Key::ALL`].
    pub fn new(metadata: &RouteMetadata<'_>) -> Result<Self, RouteError> {
        let mut texts = Keyed::<Option<String>>::default();
        let mut from = None;
        for (key, field) in metadata.iter() {
            match field {
                None => {}
                Some(Field::Text("")) => return Err(RouteError::Empty(key.name())),
                Some(Field::NotText) => return Err(RouteError::NotText(key.name())),
                // Parsed last, so that a key of the wrong kind is named whatever `from` is.
                Some(Field::Text(text)) if key == Key::From => from = Some(*text),
                Some(Field::Text(text)) => *texts.get_mut(key) = Some((*text).to_owned()),
            }
        }
        let from: PublicUrl = from.ok_or(RouteError::NoFrom)?.parse()?;
        *texts.get_mut(Key::From) = Some(from.as_str().to_owned());
        let id = texts.get(Key::RouteId).clone().unwrap_or_else(|| from.label().to_owned());
        Ok(Self { from, id, texts })
    }

    /// Whether this is what a source says, in the one spelling of `from`.
    pub fn is_of(&self, metadata: &RouteMetadata<'_>) -> bool {
        self.texts.iter().all(|(key, text)| *metadata.get(key) == text.as_deref().map(Field::Text))
    }

    /// The client's name, where the operator gives one.
    pub fn client_name(&self) -> Option<&str> {
        self.text(Key::ClientName)
    }

    fn text(&self, key: Key) -> Option<&str> {
        self.texts.get(key).as_deref()
    }

    /// The upstream MCP server's URL, in the operator's spelling.
    ///
    /// # Errors
    /// Where it is missing, or not an http or https URL with a host and without userinfo, query or fragment.
    pub fn upstream(&self) -> Result<&str, RouteError> {
        let error = |problem| RouteError::Value { key: Key::To.name(), problem };
        let to = self.text(Key::To).ok_or(error("is missing"))?;
        // It is shown to people, and sent to the authorization server as the `resource`: no place for an API key.
        match http_url(to).map_err(error)?.query() {
            Some(_) => Err(error("must not have a query")),
            None => Ok(to),
        }
    }

    /// The path of the route's MCP address on its origin: that of `from`, or of `to` where `from` has none. None where
    /// `to` gives none.
    pub fn mcp_path(&self) -> Option<String> {
        match self.from.path() {
            "" => Some(Url::parse(self.upstream().ok()?).ok()?.path().to_owned()),
            path => Some(path.to_owned()),
        }
    }

    /// The issuer that the operator pins, if any. RFC 8414, section 2: https, no query, no fragment.
    ///
    /// # Errors
    /// Where it is another kind of URL, or none.
    pub fn pinned_issuer(&self) -> Result<Option<&str>, RouteError> {
        let Some(issuer) = self.text(Key::AuthorizationServer) else {
            return Ok(None);
        };
        let error = |problem| RouteError::Value { key: Key::AuthorizationServer.name(), problem };
        let url = http_url(issuer).map_err(error)?;
        if url.query().is_some() {
            return Err(error("must not have a query"));
        }
        Ok(Some(issuer))
    }

    /// What the upstream calls itself, where the operator says so.
    ///
    /// # Errors
    /// Where it is not a resource indicator.
    pub fn resource(&self) -> Result<Option<ResourceIndicator>, RouteError> {
        self.parsed(Key::Resource)
    }

    /// What to ask for, where the operator says so.
    ///
    /// # Errors
    /// Where it is not a scope.
    pub fn scope(&self) -> Result<Option<Scope>, RouteError> {
        self.parsed(Key::Scope)
    }

    /// What the operator says of the `prompt` of authorization requests.
    ///
    /// # Errors
    /// Where it is neither a prompt that can be sent, nor `none`.
    pub fn prompt(&self) -> Result<Option<Prompt>, RouteError> {
        self.parsed(Key::Prompt)
    }

    fn parsed<T: FromStr<Err = &'static str>>(&self, key: Key) -> Result<Option<T>, RouteError> {
        let error = |problem| RouteError::Value { key: key.name(), problem };
        self.text(key).map(|text| text.parse().map_err(error)).transpose()
    }

    /// Checks all that is otherwise looked at late, for a file that an operator wrote.
    ///
    /// # Errors
    /// The first key that is wrong; a missing `to` is not.
    pub fn check(&self) -> Result<(), RouteError> {
        if self.text(Key::To).is_some() {
            self.upstream()?;
        }
        self.pinned_issuer()?;
        self.resource()?;
        self.scope()?;
        self.prompt().map(drop)
    }
}

fn http_url(text: &str) -> Result<Url, &'static str> {
    let url = Url::parse(text).map_err(|_| "is not a URL")?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err("must be an http or https URL");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not have a user name or password");
    }
    if url.fragment().is_some() {
        return Err("must not have a fragment");
    }
    Ok(url)
}

/// A route as an operator writes it, in the `routes:` list or with `--route`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RouteSpec(Keyed<Option<String>>);

impl RouteSpec {
    /// What the operator wrote for a key, unchecked.
    pub fn get(&self, key: Key) -> Option<&str> {
        self.0.get(key).as_deref()
    }

    /// Sets a key by its name.
    ///
    /// # Errors
    /// Where there is no such key, or it is set already.
    pub fn set(&mut self, name: &str, value: String) -> Result<(), RouteSpecError> {
        let key = Key::named(name).ok_or_else(|| RouteSpecError::Unknown(name.to_owned()))?;
        match self.0.get_mut(key).replace(value) {
            None => Ok(()),
            Some(_) => Err(RouteSpecError::Twice(key.name())),
        }
    }

    /// # Errors
    /// As [`Route::new`] and [`Route::check`].
    pub fn route(&self) -> Result<Route, RouteError> {
        let route = Route::new(&Keyed::new(|key| self.get(key).map(Field::Text)))?;
        route.check()?;
        Ok(route)
    }
}

/// A key that cannot be set.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum RouteSpecError {
    #[error("there is no key `{0}`")]
    Unknown(String),
    #[error("`{0}` is there twice")]
    Twice(&'static str),
}

impl<'de> Deserialize<'de> for RouteSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(SpecVisitor)
    }
}

struct SpecVisitor;

impl<'de> Visitor<'de> for SpecVisitor {
    type Value = RouteSpec;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the keys of a route")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RouteSpec, A::Error> {
        let mut spec = RouteSpec::default();
        while let Some(name) = map.next_key::<String>()? {
            let key = Key::named(&name).ok_or_else(|| A::Error::unknown_field(&name, &Key::NAMES))?;
            let slot = spec.0.get_mut(key);
            if slot.is_some() {
                return Err(A::Error::duplicate_field(key.name()));
            }
            *slot = map.next_value()?;
        }
        Ok(spec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_says_what_is_wrong_with_it() {
        let text = |text| Some(Field::Text(text));
        let only_from = |from| Keyed::new(|key| Some(from).filter(|_| key == Key::From));
        for (metadata, error) in [
            (
                Keyed::default(),
                "no source gives `from`: Envoy sends the metadata of the route that has our path, and of its virtual host",
            ),
            (only_from(Field::NotText), "`from` must be a text"),
            (only_from(Field::Text("")), "`from` is empty"),
            (only_from(Field::Text("http://a.example")), "`from` must be https"),
        ] {
            let error_of = Route::new(&metadata).expect_err(error);
            assert_eq!(error_of.to_string(), error);
        }
        for key in Key::ALL {
            for (field, problem) in [(text(""), "is empty"), (Some(Field::NotText), "must be a text")] {
                let mut metadata = only_from(Field::Text("https://a.example"));
                *metadata.get_mut(key) = field;
                let error = format!("`{}` {problem}", key.name());
                assert_eq!(Route::new(&metadata).expect_err(&error).to_string(), error);
            }
        }
    }

    #[test]
    fn a_route_knows_what_it_was_made_of() {
        let text = |text| Some(Field::Text(text));
        let whole = Keyed::new(|key| match key {
            Key::From => text("https://a.example"),
            key => text(key.name()),
        });
        let route = Route::new(&whole).expect("a good route");
        assert!(route.is_of(&whole));
        for changed in Key::ALL {
            for other in [None, text("https://d.example"), Some(Field::NotText)] {
                let mut metadata = whole;
                *metadata.get_mut(changed) = other;
                assert!(!route.is_of(&metadata), "{metadata:?}");
            }
        }
        let only_from = |from| Keyed::new(|key| text(from).filter(|_| key == Key::From));
        let bare = only_from("https://a.example");
        assert!(Route::new(&bare).expect("a good route").is_of(&bare));
        assert!(!Route::new(&bare).expect("a good route").is_of(&whole));
        // Another spelling is made anew each time.
        let other = only_from("https://A.example");
        assert!(!Route::new(&other).expect("a good route").is_of(&other));
    }
}
