//! What a company puts on the pages that its people see.

use std::{fmt, str::FromStr};

use url::Url;

use super::words::{LONGEST, is_unseen};

/// The name of who runs this, and where they help.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Brand {
    pub name: Option<BrandName>,
    pub help: Option<HelpUrl>,
}

/// A text of one line, of at most 100 characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrandName(String);

/// An address for people: https, with no credentials in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HelpUrl(Url);

impl FromStr for BrandName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.trim() {
            "" => Err("must not be empty"),
            name if name.contains(is_unseen) => Err("has a character that is not seen"),
            name if name.chars().count() > LONGEST => Err("is longer than 100 characters"),
            name => Ok(Self(name.to_owned())),
        }
    }
}

impl FromStr for HelpUrl {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let url = Url::parse(text).map_err(|_| "is not a URL")?;
        if url.scheme() != "https" {
            return Err("is not an https URL");
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("must have no user name and no password");
        }
        Ok(Self(url))
    }
}

impl fmt::Display for BrandName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for HelpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_one_line() {
        for (text, name) in [("Acme", "Acme"), (" Ünïcode & Söhne <GmbH> ", "Ünïcode & Söhne <GmbH>")] {
            assert_eq!(text.parse::<BrandName>().expect(text).to_string(), name);
        }
        let longest = "x".repeat(100);
        assert!(longest.parse::<BrandName>().is_ok());
        for (text, problem) in [
            ("", "must not be empty"),
            (" ", "must not be empty"),
            ("a\nb", "has a character that is not seen"),
            ("a\u{202e}b", "has a character that is not seen"),
            (&format!("{longest}x"), "is longer than 100 characters"),
        ] {
            assert_eq!(text.parse::<BrandName>(), Err(problem), "{text:?}");
        }
    }

    #[test]
    fn help_is_at_an_https_address() {
        let help = "https://help.example.com/mcp?from=a&b#c";
        assert_eq!(help.parse::<HelpUrl>().expect(help).to_string(), help);
        for (text, problem) in [
            ("", "is not a URL"),
            ("help.example.com", "is not a URL"),
            ("https://", "is not a URL"),
            ("http://help.example.com", "is not an https URL"),
            ("javascript:alert(1)", "is not an https URL"),
            ("mailto:help@example.com", "is not an https URL"),
            ("https://a@help.example.com", "must have no user name and no password"),
            ("https://:a@help.example.com", "must have no user name and no password"),
        ] {
            assert_eq!(text.parse::<HelpUrl>(), Err(problem), "{text:?}");
        }
    }
}
