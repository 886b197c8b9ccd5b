//! How an authorization server is to ask a person.

use std::{fmt, str::FromStr};

/// What an operator says of the `prompt` of authorization requests (OpenID Connect Core, section 3.1.2.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// There is none. It is written `none`: OpenID Connect's own `none`, nobody is asked, has no place where a person is
    /// waiting to be asked.
    Omitted,
    /// These values, space-separated.
    Sent(String),
}

/// The values that are sent.
const VALUES: [&str; 3] = ["login", "consent", "select_account"];
const OMITTED: &str = "none";

impl Prompt {
    /// What is sent.
    pub fn sent(&self) -> Option<&str> {
        match self {
            Self::Omitted => None,
            Self::Sent(values) => Some(values),
        }
    }
}

impl FromStr for Prompt {
    type Err = &'static str;

    /// Upper and lower case differ, as they do at the authorization server.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let values: Vec<&str> = text.split_ascii_whitespace().collect();
        match values[..] {
            [OMITTED] => Ok(Self::Omitted),
            [_, ..] if values.iter().all(|value| VALUES.contains(value)) => Ok(Self::Sent(values.join(" "))),
            _ => Err("must be `none`, or some of `login`, `consent` and `select_account` with a space between two"),
        }
    }
}

impl fmt::Display for Prompt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.sent().unwrap_or(OMITTED))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_is_none_or_some_of_three() {
        for (text, sent) in [
            ("none", None),
            ("login", Some("login")),
            ("consent", Some("consent")),
            ("select_account", Some("select_account")),
            ("select_account  consent", Some("select_account consent")),
        ] {
            let prompt: Prompt = text.parse().expect(text);
            assert_eq!(prompt.sent(), sent, "{text}");
            assert_eq!(prompt.to_string().parse(), Ok(prompt), "its text is the same again");
        }
        for bad in ["", " ", "None", "LOGIN", "none login", "login none", "create", "login,consent"] {
            let problem = "must be `none`, or some of `login`, `consent` and `select_account` with a space between two";
            assert_eq!(bad.parse::<Prompt>(), Err(problem), "{bad:?}");
        }
    }
}
