//! Who is at the browser, as a trusted filter before ours said it.

use std::{borrow::Cow, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A person.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Hash, Serialize)]
pub enum User {
    /// Somebody whom an identity provider knows; neither text is empty.
    Subject { issuer: String, subject: String },
    /// Everybody who reaches the routes (`--single-user`). Equals no subject.
    Single,
}

/// A [`User`] who is borrowed, from a message most of the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UserRef<'a> {
    Subject { issuer: &'a str, subject: &'a str },
    Single,
}

impl UserRef<'_> {
    pub fn to_user(self) -> User {
        match self {
            Self::Subject { issuer, subject } => {
                User::Subject { issuer: issuer.to_owned(), subject: subject.to_owned() }
            }
            Self::Single => User::Single,
        }
    }
}

impl<'a> From<&'a User> for UserRef<'a> {
    fn from(user: &'a User) -> Self {
        match user {
            User::Subject { issuer, subject } => Self::Subject { issuer, subject },
            User::Single => Self::Single,
        }
    }
}

/// How many people [`User::Single`] stands for.
const PEOPLE: usize = 50;

impl User {
    /// For how many people this one counts where each has a share.
    pub fn people(&self) -> usize {
        match self {
            Self::Subject { .. } => 1,
            Self::Single => PEOPLE,
        }
    }
}

/// Where a filter's dynamic metadata names the person.
#[derive(Clone, Debug, PartialEq)]
pub struct UserSource {
    pub namespace: String,
    pub issuer: MetadataPath,
    pub subject: MetadataPath,
    /// What the pages call the person. Nothing else depends on it.
    pub display: Option<MetadataPath>,
}

/// What the metadata says of who a person is, each where there is a text at its path.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Claims<'a> {
    pub issuer: Option<&'a str>,
    pub subject: Option<&'a str>,
}

/// Keys into nested metadata, written with dots between them.
#[derive(Clone, Debug, PartialEq)]
pub struct MetadataPath(Vec<String>);

impl MetadataPath {
    pub fn keys(&self) -> &[String] {
        &self.0
    }

    /// Whether it ends in a claim that another person may have one day, or may choose: OpenID Connect Core, section 5.7, has
    /// `sub` alone, with its issuer, name a person.
    pub fn may_change_hands(&self) -> bool {
        const NAMES: [&str; 8] =
            ["email", "preferred_username", "upn", "unique_name", "name", "nickname", "phone_number", "username"];
        self.0.last().is_some_and(|key| NAMES.contains(&key.as_str()))
    }
}

impl fmt::Display for MetadataPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("."))
    }
}

impl FromStr for MetadataPath {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let keys: Vec<String> = text.split('.').map(str::to_owned).collect();
        if keys.iter().any(String::is_empty) {
            return Err("is written as keys with dots between them, such as `jwt_payload.sub`");
        }
        Ok(Self(keys))
    }
}

/// How this process learns who a person is.
#[derive(Clone, Debug, PartialEq)]
pub enum Users {
    /// Nobody said how: nobody can connect.
    Unknown,
    Single,
    From(UserSource),
}

impl Users {
    /// The person of a request; `claims` is what the metadata of the filter that the operator trusts says, if there is
    /// any.
    ///
    /// # Errors
    /// Why there is nobody, for operators.
    pub fn user<'a>(&self, claims: Option<Claims<'a>>) -> Result<UserRef<'a>, Cow<'static, str>> {
        let source = match self {
            Self::Single => return Ok(UserRef::Single),
            Self::Unknown => return Err("neither --user-namespace nor --single-user is set".into()),
            Self::From(source) => source,
        };
        let UserSource { namespace, issuer, subject, display: _ } = source;
        let Some(claims) = claims else {
            return Err(format!(
                "there is no dynamic metadata of the namespace `{namespace}`: no filter before ours wrote it, or \
                 forwarding_namespaces does not name it"
            )
            .into());
        };
        let text = |path: &MetadataPath, claim: Option<&'a str>| match claim {
            Some("") => Err(format!("the dynamic metadata of `{namespace}` has an empty text at `{path}`")),
            Some(text) => Ok(text),
            None => Err(format!("the dynamic metadata of `{namespace}` has no text at `{path}`")),
        };
        Ok(UserRef::Subject { issuer: text(issuer, claims.issuer)?, subject: text(subject, claims.subject)? })
    }

    /// Where the metadata says who a person is, where it is metadata that says so.
    pub fn source(&self) -> Option<&UserSource> {
        match self {
            Self::From(source) => Some(source),
            Self::Unknown | Self::Single => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_texts_or_nobody() {
        let path = |text: &str| text.parse::<MetadataPath>().expect(text);
        let from = Users::From(UserSource {
            namespace: "n".into(),
            issuer: path("a.b"),
            subject: path("c"),
            display: Some(path("d")),
        });
        let pair = User::Subject { issuer: "i".into(), subject: "s".into() };
        let claims = |issuer, subject| Some(Claims { issuer, subject });
        for (users, claims, user) in [
            (&from, claims(Some("i"), Some("s")), Ok(pair.clone())),
            (&from, claims(Some(""), Some("s")), Err("the dynamic metadata of `n` has an empty text at `a.b`")),
            (&from, claims(Some("i"), Some("")), Err("the dynamic metadata of `n` has an empty text at `c`")),
            (&from, claims(None, Some("s")), Err("the dynamic metadata of `n` has no text at `a.b`")),
            (&from, claims(Some("i"), None), Err("the dynamic metadata of `n` has no text at `c`")),
            (
                &from,
                None,
                Err("there is no dynamic metadata of the namespace `n`: no filter before ours wrote it, or \
                     forwarding_namespaces does not name it"),
            ),
            (&Users::Unknown, claims(Some("i"), Some("s")), Err("neither --user-namespace nor --single-user is set")),
            (&Users::Single, None, Ok(User::Single)),
            (&Users::Single, claims(Some("i"), Some("s")), Ok(User::Single)),
        ] {
            assert_eq!(users.user(claims).map(UserRef::to_user), user.map_err(Cow::Borrowed));
        }
        assert_ne!(pair, User::Single);
        for bad in ["", ".", "a.", ".a", "a..b"] {
            assert!(bad.parse::<MetadataPath>().is_err(), "{bad}");
        }
    }
}
