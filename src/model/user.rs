//! Who is at the browser, as a trusted filter before ours said it.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A person.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Hash, Serialize)]
pub enum User {
    /// Somebody whom an identity provider knows; neither text is empty.
    Subject { issuer: String, subject: String },
    /// Everybody who reaches the routes (`--single-user`). Equals no subject.
    Single,
}

/// Where a filter's dynamic metadata names the person.
#[derive(Clone, Debug, PartialEq)]
pub struct UserSource {
    pub namespace: String,
    pub issuer: MetadataPath,
    pub subject: MetadataPath,
}

/// Keys into nested metadata, written with dots between them.
#[derive(Clone, Debug, PartialEq)]
pub struct MetadataPath(Vec<String>);

impl MetadataPath {
    pub fn keys(&self) -> &[String] {
        &self.0
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
    /// The person of a request; `named` is what the metadata says of issuer and subject.
    pub fn user(&self, named: Option<(&str, &str)>) -> Option<User> {
        match (self, named) {
            (Self::Single, _) => Some(User::Single),
            (Self::From(_), Some((issuer, subject))) if !issuer.is_empty() && !subject.is_empty() => {
                Some(User::Subject { issuer: issuer.to_owned(), subject: subject.to_owned() })
            }
            (Self::From(_) | Self::Unknown, _) => None,
        }
    }

    /// Why there is nobody, for operators.
    pub fn nobody(&self) -> String {
        match self {
            Self::Unknown => "neither --user-namespace nor --single-user is set".to_owned(),
            Self::Single => "everybody is one person".to_owned(),
            Self::From(UserSource { namespace, issuer, subject }) => {
                format!(
                    "the dynamic metadata of `{namespace}` does not have a text at each of `{issuer}` and `{subject}`"
                )
            }
        }
    }

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
        let from = Users::From(UserSource { namespace: "n".into(), issuer: path("a.b"), subject: path("c") });
        let pair = User::Subject { issuer: "i".into(), subject: "s".into() };
        for (users, named, user) in [
            (&from, Some(("i", "s")), Some(pair.clone())),
            (&from, Some(("", "s")), None),
            (&from, Some(("i", "")), None),
            (&from, None, None),
            (&Users::Unknown, Some(("i", "s")), None),
            (&Users::Single, None, Some(User::Single)),
            (&Users::Single, Some(("i", "s")), Some(User::Single)),
        ] {
            assert_eq!(users.user(named), user);
        }
        assert_ne!(pair, User::Single);
        for bad in ["", ".", "a.", ".a", "a..b"] {
            assert!(bad.parse::<MetadataPath>().is_err(), "{bad}");
        }
    }
}
