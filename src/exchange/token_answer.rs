//! A token endpoint's answer (RFC 6749, section 5.1), read as servers write it.
//!
//! The code, or the old refresh token, is used up by the time that the answer comes. So all that is unambiguous is taken,
//! and a member that cannot be read counts as not said.

use std::{fmt, time::Duration};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use oauth2::{AccessToken, RefreshToken, Scope, TokenResponse, basic::BasicTokenType};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{MapAccess, Visitor},
};
use serde_json::Value;
use zeroize::Zeroizing;

use crate::model::{clock::UnixTime, secret::Secret};

/// The longest token that is kept, in bytes.
const MAX_TOKEN: usize = 16 << 10;

/// What was read of an answer.
#[derive(Serialize)]
pub struct TokenAnswer {
    access_token: AccessToken,
    refresh_token: Option<RefreshToken>,
    token_type: BasicTokenType,
    expires_in: Option<Duration>,
    scopes: Option<Vec<Scope>>,
    /// Why the access token cannot be used.
    fault: Option<&'static str>,
    /// The members that could not be read.
    unread: Vec<&'static str>,
}

/// What a token endpoint gave.
#[derive(Debug)]
pub struct GrantedToken {
    pub access_token: Secret,
    pub refresh_token: Option<Secret>,
    /// In seconds.
    pub expires_in: Option<u64>,
    pub scope: Option<String>,
    /// The members that were there and could not be read: they count as not said.
    pub unread: Vec<&'static str>,
}

impl GrantedToken {
    /// When it ends, if it came at this time. Where the server does not say, the token may: the `exp` of a JWT (RFC 7519,
    /// section 4.1.4) is a hint, good enough to renew it in time. One that names no time to come is none.
    pub fn expires_at(&self, now: UnixTime) -> Option<UnixTime> {
        let hint = || jwt_end(self.access_token.expose()).filter(|end| *end > now);
        self.expires_in.map(|lifetime| now + lifetime).or_else(hint)
    }

    /// Says which members of the answer count as not said.
    pub fn note_unread(&self, issuer: &str) {
        if !self.unread.is_empty() {
            let members = self.unread.join(", ");
            tracing::warn!(issuer, members, "members of the token endpoint's answer cannot be read");
        }
    }
}

fn jwt_end(token: &str) -> Option<UnixTime> {
    let [_, claims, _] = <[&str; 3]>::try_from(token.split('.').collect::<Vec<_>>()).ok()?;
    let claims = Zeroizing::new(BASE64_URL_SAFE_NO_PAD.decode(claims).ok()?);
    let claims: Value = serde_json::from_slice(&claims).ok()?;
    seconds(claims.get("exp")?.clone()).map(UnixTime::from_secs)
}

impl TokenAnswer {
    /// The token, if it can be used: a bearer token that is there once (RFC 6750, section 2.1).
    ///
    /// # Errors
    /// Why it cannot be used, in words of ours.
    pub fn granted(self) -> Result<GrantedToken, &'static str> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let join = |scopes: Vec<Scope>| scopes.iter().map(|scope| scope.as_str()).collect::<Vec<_>>().join(" ");
        Ok(GrantedToken {
            access_token: Secret::new(self.access_token.into_secret()),
            refresh_token: self.refresh_token.map(|token| Secret::new(token.into_secret())),
            expires_in: self.expires_in.map(|lifetime| lifetime.as_secs()),
            scope: self.scopes.map(join),
            unread: self.unread,
        })
    }
}

/// Nothing of it is shown: it is the server's word, and has tokens in it.
impl fmt::Debug for TokenAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenAnswer(…)")
    }
}

impl TokenResponse for TokenAnswer {
    type TokenType = BasicTokenType;

    fn access_token(&self) -> &AccessToken {
        &self.access_token
    }

    fn token_type(&self) -> &BasicTokenType {
        &self.token_type
    }

    fn expires_in(&self) -> Option<Duration> {
        self.expires_in
    }

    fn refresh_token(&self) -> Option<&RefreshToken> {
        self.refresh_token.as_ref()
    }

    fn scopes(&self) -> Option<&Vec<Scope>> {
        self.scopes.as_ref()
    }
}

impl<'de> Deserialize<'de> for TokenAnswer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Members)
    }
}

/// A member of the answer: not there, there once, or there several times, which says nothing.
#[derive(Default)]
enum Member {
    #[default]
    Absent,
    Once(Value),
    Twice,
}

impl Member {
    fn add(&mut self, value: Value) {
        *self = match self {
            // RFC 8259, section 4, leaves it open which of two counts; `null` is what many write for "not there".
            Self::Absent if value.is_null() => return,
            Self::Absent => Self::Once(value),
            Self::Once(_) | Self::Twice => Self::Twice,
        };
    }

    /// Its value as `read` understands it; where it does not, the member's name goes to `unread`.
    fn read<T>(
        self,
        name: &'static str,
        unread: &mut Vec<&'static str>,
        read: impl FnOnce(Value) -> Option<T>,
    ) -> Option<T> {
        let value = match self {
            Self::Absent => return None,
            Self::Once(value) => read(value),
            Self::Twice => None,
        };
        if value.is_none() {
            unread.push(name);
        }
        value
    }
}

struct Members;

impl<'de> Visitor<'de> for Members {
    type Value = TokenAnswer;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<TokenAnswer, A::Error> {
        let names = ["access_token", "refresh_token", "token_type", "expires_in", "scope"];
        let mut members: [Member; 5] = Default::default();
        while let Some((name, value)) = map.next_entry::<String, Value>()? {
            if let Some((member, _)) = members.iter_mut().zip(names).find(|(_, known)| *known == name) {
                member.add(value);
            }
        }
        let [access_token, refresh_token, token_type, expires_in, scope] = members;
        let mut unread = Vec::new();
        let token_fault = match &access_token {
            Member::Absent => Some("`access_token` is missing"),
            Member::Twice => Some("`access_token` is there twice"),
            Member::Once(Value::String(token)) => token_fault(token),
            Member::Once(_) => Some("`access_token` is not a text"),
        };
        let type_fault = match &token_type {
            Member::Absent => None,
            Member::Twice => Some("`token_type` is there twice"),
            Member::Once(Value::String(kind)) if kind.eq_ignore_ascii_case("bearer") => None,
            Member::Once(_) => Some("`token_type` is not Bearer"),
        };
        let text = |value| match value {
            Value::String(text) => Some(text),
            _ => None,
        };
        Ok(TokenAnswer {
            fault: token_fault.or(type_fault),
            access_token: AccessToken::new(match access_token {
                Member::Once(Value::String(token)) => token,
                // It has its fault.
                _ => String::new(),
            }),
            refresh_token: refresh_token
                .read("refresh_token", &mut unread, |value| {
                    // An empty one is what some write for "none".
                    text(value).filter(|token| token.is_empty() || unfit(token).is_none())
                })
                .filter(|token| !token.is_empty())
                .map(RefreshToken::new),
            token_type: BasicTokenType::Bearer,
            expires_in: expires_in.read("expires_in", &mut unread, seconds).map(Duration::from_secs),
            scopes: scope.read("scope", &mut unread, scopes),
            unread,
        })
    }
}

fn token_fault(token: &str) -> Option<&'static str> {
    match token {
        "" => Some("`access_token` is empty"),
        token => unfit(token),
    }
}

/// What no token may be: whoever carries it makes a header of it.
fn unfit(token: &str) -> Option<&'static str> {
    if token.len() > MAX_TOKEN {
        return Some("`access_token` is longer than 16 kB");
    }
    (!token.bytes().all(|byte| byte.is_ascii_graphic())).then_some("`access_token` has characters that no token has")
}

/// A lifetime, as a number or as the text of one; a fraction of a second is cut off.
fn seconds(value: Value) -> Option<u64> {
    let number = match value {
        Value::Number(number) => number.as_u64().map_or_else(|| number.as_f64(), |seconds| Some(seconds as f64))?,
        Value::String(text) => text.trim().parse().ok()?,
        _ => return None,
    };
    // None is negative, or so long that it could not be a time.
    (0.0..=1e11).contains(&number).then_some(number as u64)
}

/// Scopes, as one text or as a list of texts.
fn scopes(value: Value) -> Option<Vec<Scope>> {
    let split =
        |text: &str| text.split_ascii_whitespace().map(|scope| Scope::new(scope.to_owned())).collect::<Vec<_>>();
    match value {
        Value::String(text) => Some(split(&text)),
        Value::Array(list) => {
            list.iter().map(Value::as_str).collect::<Option<Vec<_>>>().map(|list| split(&list.join(" ")))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<GrantedToken, &'static str> {
        serde_json::from_str::<TokenAnswer>(text).expect("a JSON object").granted()
    }

    #[test]
    fn what_is_unambiguous_is_taken() {
        for (members, expires_in, scope, unread) in [
            (r#""token_type":"Bearer","expires_in":3600"#, Some(3600), None, vec![]),
            (r#""token_type":"bEaReR","expires_in":"3600""#, Some(3600), None, vec![]),
            (r#""expires_in":3600.0"#, Some(3600), None, vec![]),
            (r#""expires_in":59.9"#, Some(59), None, vec![]),
            (r#""expires_in":0"#, Some(0), None, vec![]),
            (r#""expires_in":null,"scope":null,"refresh_token":null,"token_type":null"#, None, None, vec![]),
            (r#""expires_in":-1"#, None, None, vec!["expires_in"]),
            (r#""expires_in":"soon""#, None, None, vec!["expires_in"]),
            (r#""expires_in":"NaN""#, None, None, vec!["expires_in"]),
            (r#""expires_in":1e300"#, None, None, vec!["expires_in"]),
            (r#""expires_in":[3600]"#, None, None, vec!["expires_in"]),
            (r#""expires_in":3600,"expires_in":60"#, None, None, vec!["expires_in"]),
            (r#""scope":"a  b""#, None, Some("a b"), vec![]),
            (r#""scope":["a","b c"]"#, None, Some("a b c"), vec![]),
            (r#""scope":["a",1],"refresh_token":7"#, None, None, vec!["refresh_token", "scope"]),
            (r#""refresh_token":"","id_token":{"deep":[1]}"#, None, None, vec![]),
        ] {
            let granted = read(&format!(r#"{{"access_token":"t",{members}}}"#)).expect(members);
            assert_eq!(granted.access_token, Secret::new("t"));
            assert_eq!(granted.refresh_token, None, "{members}");
            assert_eq!((granted.expires_in, granted.scope.as_deref(), granted.unread), (expires_in, scope, unread));
        }
        let both = read(r#"{"access_token":"t","refresh_token":"r"}"#).expect("a token");
        assert_eq!(both.refresh_token, Some(Secret::new("r")));
    }

    #[test]
    fn a_jwt_may_hint_at_its_end() {
        let now = UnixTime::from_secs(1_800_000_000);
        let end = |claims: &str, members: &str| {
            let token = format!("eyJhbGciOiJub25lIn0.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(claims));
            read(&format!(r#"{{"access_token":"{token}"{members}}}"#)).expect("a token").expires_at(now)
        };
        let at = |seconds| Some(UnixTime::from_secs(seconds));
        assert_eq!(end(r#"{"exp":1800000600}"#, ""), at(1_800_000_600));
        assert_eq!(end(r#"{"exp":1800000600}"#, r#","expires_in":60"#), at(1_800_000_060), "the server's word counts");
        for claims in [r#"{"exp":1700000000}"#, r#"{"exp":"soon"}"#, "{}", "[]", "no JSON"] {
            assert_eq!(end(claims, ""), None, "{claims}");
        }
        assert_eq!(read(r#"{"access_token":"a.b"}"#).expect("a token").expires_at(now), None);
    }

    #[test]
    fn what_cannot_be_a_token_is_named() {
        for (text, fault) in [
            ("{}", "`access_token` is missing"),
            (r#"{"access_token":null}"#, "`access_token` is missing"),
            (r#"{"access_token":""}"#, "`access_token` is empty"),
            (r#"{"access_token":1}"#, "`access_token` is not a text"),
            (r#"{"access_token":"a","access_token":"a"}"#, "`access_token` is there twice"),
            (r#"{"access_token":"a\r\nx: y"}"#, "`access_token` has characters that no token has"),
            (r#"{"access_token":"a","token_type":"mac"}"#, "`token_type` is not Bearer"),
            (r#"{"access_token":"a","token_type":1}"#, "`token_type` is not Bearer"),
            (r#"{"access_token":"a","token_type":"Bearer","token_type":"mac"}"#, "`token_type` is there twice"),
        ] {
            assert_eq!(read(text).err(), Some(fault), "{text}");
        }
        let long = |bytes| read(&format!(r#"{{"access_token":"{}"}}"#, "x".repeat(bytes))).err();
        assert_eq!(long(16 << 10), None);
        assert_eq!(long((16 << 10) + 1), Some("`access_token` is longer than 16 kB"));
        assert_eq!(long(100_000), Some("`access_token` is longer than 16 kB"));
        let granted = read(&format!(r#"{{"access_token":"a","refresh_token":"{}"}}"#, "x".repeat(100_000)));
        let granted = granted.expect("the access token is good");
        assert_eq!((granted.refresh_token, granted.unread), (None, vec!["refresh_token"]));
    }
}
