//! What an upstream asks for of who comes without a token, or with one that it refuses (RFC 9110, section 11.6.1; RFC 6750,
//! section 3; RFC 9728, section 5.1), read as upstreams write it.

use super::scope::Scope;

/// An answer's challenges of the Bearer scheme, as far as they are read. Of several, the first that says a thing counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Challenge {
    resource_metadata: Option<String>,
    scope: Scope,
    error: Option<String>,
    is_bearer: bool,
    /// Whether a part could not be read, or says a thing twice.
    is_unclear: bool,
}

impl Challenge {
    /// Reads the values of `www-authenticate`, one a header line.
    pub fn read<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut challenge = Self::default();
        for value in values {
            challenge.read_value(&String::from_utf8_lossy(value));
        }
        challenge
    }

    /// Whether there is one of the Bearer scheme.
    pub fn is_bearer(&self) -> bool {
        self.is_bearer
    }

    /// Whether a part of the header could not be read, or says a thing twice.
    pub fn is_unclear(&self) -> bool {
        self.is_unclear
    }

    /// Where the upstream says that its metadata is: a stranger's word, which may be anything.
    pub fn resource_metadata(&self) -> Option<&str> {
        self.resource_metadata.as_deref()
    }

    /// What the upstream wants to be asked for; empty where it does not say.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// Whether the token is good, and not enough (RFC 6750, section 3.1).
    pub fn is_insufficient_scope(&self) -> bool {
        self.error.as_deref() == Some("insufficient_scope")
    }

    fn read_value(&mut self, value: &str) {
        let mut reader = Reader { rest: value, between: true };
        // Of the challenge that is being read, where it is one of the Bearer scheme.
        let mut said: Option<Vec<(&str, String)>> = None;
        loop {
            match reader.next() {
                Some(Piece::Scheme(scheme)) => {
                    self.take(said.take());
                    said = scheme.eq_ignore_ascii_case("bearer").then(Vec::new);
                }
                Some(Piece::Parameter(name, value)) => {
                    let known = KNOWN.into_iter().find(|known| known.eq_ignore_ascii_case(name));
                    if let Some((said, known)) = said.as_mut().zip(known) {
                        said.push((known, value));
                    }
                }
                Some(Piece::Unclear) => self.is_unclear = true,
                None => return self.take(said),
            }
        }
    }

    fn take(&mut self, said: Option<Vec<(&str, String)>>) {
        let Some(said) = said else { return };
        self.is_bearer = true;
        let [resource_metadata, scope, error] = KNOWN.map(|name| {
            let mut values = said.iter().filter(|(known, _)| *known == name).map(|(_, value)| value);
            let value = values.next();
            // Who reads the first of two and who reads the last must not be led to different places.
            let twice = values.next().is_some();
            self.is_unclear |= twice;
            value.filter(|_| !twice)
        });
        if self.resource_metadata.is_none() {
            self.resource_metadata = resource_metadata.cloned();
        }
        if self.error.is_none() {
            self.error = error.cloned();
        }
        if self.scope.is_empty() {
            self.scope = Scope::of(scope.map(String::as_str));
        }
    }
}

/// The parameters that are read.
const KNOWN: [&str; 3] = ["resource_metadata", "scope", "error"];

/// Reads a header's value piece by piece. Commas may be missing between parameters, and quotes around a value without
/// white space: what else there is does not hide what comes behind it.
struct Reader<'a> {
    rest: &'a str,
    /// Whether nothing, or a comma, came before: a word by itself is then a scheme.
    between: bool,
}

enum Piece<'a> {
    Scheme(&'a str),
    Parameter(&'a str, String),
    /// A part that cannot be read.
    Unclear,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Option<Piece<'a>> {
        let (blank, rest) = split(self.rest, |c| is_blank(c) || c == ',');
        self.between |= blank.contains(',');
        self.rest = rest;
        self.rest.chars().next()?;
        let (word, rest) = split(self.rest, is_token);
        let between = std::mem::take(&mut self.between);
        if word.is_empty() {
            let mut others = self.rest.chars();
            others.next();
            self.rest = others.as_str();
            return Some(Piece::Unclear);
        }
        self.rest = rest;
        if let Some(value) = rest.trim_start_matches(is_blank).strip_prefix('=') {
            self.rest = value.trim_start_matches(is_blank);
            return Some(self.value().map_or(Piece::Unclear, |value| Piece::Parameter(word, value)));
        }
        // Where a comma is missing, a word by itself may be anything; but that one is what we look for.
        if !between && !word.eq_ignore_ascii_case("bearer") {
            return Some(Piece::Unclear);
        }
        self.pass_token68();
        Some(Piece::Scheme(word))
    }

    /// What stands behind a scheme instead of parameters (RFC 9110, section 11.2).
    fn pass_token68(&mut self) {
        let (_, rest) = split(self.rest, is_blank);
        let (token, rest) = split(rest, |c| c.is_ascii_alphanumeric() || "-._~+/".contains(c));
        let rest = rest.trim_start_matches('=').trim_start_matches(is_blank);
        if !token.is_empty() && (rest.is_empty() || rest.starts_with(',')) {
            self.rest = rest;
        }
    }

    /// The value of a parameter. None where nobody can say where it ends.
    fn value(&mut self) -> Option<String> {
        let Some(quoted) = self.rest.strip_prefix('"') else { return self.bare_value() };
        let mut value = String::new();
        let mut characters = quoted.chars();
        while let Some(character) = characters.next() {
            match character {
                '"' => {
                    self.rest = characters.as_str();
                    return Some(value);
                }
                '\\' => value.extend(characters.next()),
                character => value.push(character),
            }
        }
        self.rest = "";
        None
    }

    fn bare_value(&mut self) -> Option<String> {
        let (value, rest) = split(self.rest, |c| !is_blank(c) && c != ',');
        self.rest = rest;
        let mut is_clear = !value.contains('"');
        // Words behind it, as of `scope=read write`: they may be its, or something of their own.
        loop {
            let (_, rest) = split(self.rest, is_blank);
            let (word, rest) = split(rest, |c| !is_blank(c) && c != ',' && c != '=');
            if word.is_empty() || rest.trim_start_matches(is_blank).starts_with('=') {
                return is_clear.then(|| value.to_owned());
            }
            (self.rest, is_clear) = (rest, false);
        }
    }
}

/// Splits behind the characters at the beginning that are such.
fn split(text: &str, such: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !such(c)).unwrap_or(text.len()))
}

fn is_blank(character: char) -> bool {
    matches!(character, ' ' | '\t')
}

/// RFC 9110, section 5.6.2.
fn is_token(character: char) -> bool {
    character.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(character)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(values: &[&str]) -> Challenge {
        Challenge::read(values.iter().map(|value| value.as_bytes()))
    }

    /// A value, with the address and the scope that are read of it, and whether all of it is.
    #[test]
    fn challenges_as_upstreams_write_them() {
        const HERE: &str = "https://u.example/m";
        let long = format!(r#"Bearer error_description="{}", resource_metadata="{HERE}""#, "é,\\\" ".repeat(10_000));
        for (value, address, scope, clear) in [
            (r#"Bearer resource_metadata="https://u.example/m", scope="read write""#, HERE, "read write", true),
            (r#"bearer Scope="a",RESOURCE_METADATA="https://u.example/m""#, HERE, "a", true),
            (r#"Bearer realm="é — ü", resource_metadata="https://u.example/m""#, HERE, "", true),
            (r#"Bearer   resource_metadata="https://u.example/m""#, HERE, "", true),
            (r#"Bearer resource_metadata = "https://u.example/m" , scope="a\"b""#, HERE, "a\"b", true),
            (r#"Negotiate oYG/+a==, Bearer resource_metadata="https://u.example/m""#, HERE, "", true),
            (r#"Bearer resource_metadata="https://u.example/m", Basic realm="x", scope="x""#, HERE, "", true),
            (r#"Basic realm="x", resource_metadata="x", Bearer scope="a""#, "", "a", true),
            (r#", ,Bearer scope="a",, resource_metadata="https://u.example/m","#, HERE, "a", true),
            ("Bearer", "", "", true),
            ("Bearer scope=a", "", "a", true),
            (long.as_str(), HERE, "", true),
            // Not valid, and common.
            (r#"Bearer realm="x" resource_metadata="https://u.example/m" scope="a b""#, HERE, "a b", true),
            ("Bearer resource_metadata=https://u.example/m, scope=a", HERE, "a", true),
            ("Bearer resource_metadata=https://u.example/m scope=a", HERE, "a", true),
            ("Bearer, resource_metadata=https://u.example/m", HERE, "", true),
            (r#"Basic realm="x" Bearer scope="a""#, "", "a", true),
            ("Bearer scope=a b, resource_metadata=https://u.example/m", HERE, "", false),
            ("Bearer scope=a b resource_metadata=https://u.example/m", HERE, "", false),
            (r#"Bearer realm="x"; resource_metadata="https://u.example/m";scope="a""#, HERE, "a", false),
            (r#"Bearer error_description="no "token" here", resource_metadata="https://u.example/m""#, HERE, "", false),
            (r#"Bearer: resource_metadata="https://u.example/m""#, HERE, "", false),
            (r#"Bearer scope="a", resource_metadata="https://u.example/m"#, "", "a", false),
            ("Bearer scope=a\"", "", "", false),
            // Which of two would count, servers and clients see differently.
            (r#"Bearer scope="a", resource_metadata="x", resource_metadata="x""#, "", "a", false),
            (r#"Bearer scope="a", resource_metadata="https://u.example/m", Scope="b""#, HERE, "", false),
        ] {
            let challenge = read(&[value]);
            assert!(challenge.is_bearer, "{value}");
            assert_eq!(challenge.resource_metadata.as_deref().unwrap_or_default(), address, "{value}");
            assert_eq!((challenge.scope.to_string().as_str(), !challenge.is_unclear), (scope, clear), "{value}");
        }
        for (value, clear) in [
            ("", true),
            ("Basic", true),
            (r#"DPoP scope="a""#, true),
            (r#"scope="a""#, true),
            (r#"Basic realm="Bearer scope=a""#, true),
            ("\"Bearer", false),
            ("=", false),
        ] {
            let expected = Challenge { is_unclear: !clear, is_bearer: value == "\"Bearer", ..Challenge::default() };
            assert_eq!(read(&[value]), expected, "{value}");
        }
    }

    /// The header may come several times, and a challenge, too: the first that says a thing counts.
    #[test]
    fn all_challenges_are_looked_at() {
        let ten: Vec<String> = (0..10)
            .map(|number| match number {
                3 => r#"Bearer realm="x""#.to_owned(),
                5 => r#"Basic realm="x", Bearer scope="a""#.to_owned(),
                7.. => format!(r#"Bearer resource_metadata="https://u.example/{number}", scope="b""#),
                _ => "Negotiate".to_owned(),
            })
            .collect();
        let ten: Vec<&str> = ten.iter().map(String::as_str).collect();
        for values in [ten.clone(), vec![&ten.join(", ")]] {
            let challenge = read(&values);
            assert_eq!(challenge.resource_metadata.as_deref(), Some("https://u.example/7"));
            assert_eq!((challenge.scope.to_string().as_str(), challenge.is_unclear), ("a", false));
        }
    }

    #[test]
    fn a_token_may_not_be_enough() {
        for (values, insufficient) in [
            (&[r#"Bearer error="insufficient_scope", scope="a", error_description="x""#][..], true),
            (&["Bearer error=insufficient_scope"], true),
            (&["Basic", r#"Bearer realm="x""#, r#"Bearer ERROR="insufficient_scope""#], true),
            (&[r#"Bearer error="invalid_token""#, r#"Bearer error="insufficient_scope""#], false),
            (&[r#"Bearer error="insufficient_scope", error="invalid_token""#], false),
            (&[r#"Bearer error="Insufficient_Scope""#], false),
            (&[r#"Bearer error_description="insufficient_scope""#], false),
            (&[r#"DPoP error="insufficient_scope""#], false),
            (&["Bearer insufficient_scope"], false),
            (&[], false),
        ] {
            assert_eq!(read(values).is_insufficient_scope(), insufficient, "{values:?}");
        }
    }
}
