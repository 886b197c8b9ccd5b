//! Secrets that do not leak by accident: texts and 256-bit keys, and the randomness they come from.

use std::fmt;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// A secret text: a token, an authorization code, a code verifier, a cookie. `Debug` shows nothing of it, it is compared
/// in constant time, and it is zeroed when dropped.
#[derive(Clone, Zeroize, ZeroizeOnDrop, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// In a time that tells no more than the lengths.
impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }
}

impl Eq for Secret {}

/// A symmetric key of 256 bits. `Debug` shows nothing of it, and it is zeroed when dropped.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Key([u8; 32]);

/// The system gave no randomness.
#[derive(Debug, thiserror::Error)]
#[error("the system gives no randomness")]
pub struct NoRandomness;

/// Fresh random bytes of the system's CSPRNG.
///
/// # Errors
/// Where the system has none.
pub fn random<const N: usize>() -> Result<[u8; N], NoRandomness> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| NoRandomness)?;
    Ok(bytes)
}

impl Key {
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Whether it is one byte over and over: zeros above all, which a placeholder or a wiped file leaves.
    fn is_guessable(&self) -> bool {
        let [first, rest @ ..] = &self.0;
        rest.iter().all(|byte| byte == first)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

/// A line of a key file: a fresh 256-bit key as base64url.
///
/// # Errors
/// As [`random`].
pub fn generate_key_line() -> Result<String, NoRandomness> {
    Ok(BASE64_URL_SAFE_NO_PAD.encode(random::<32>()?))
}

/// Why a key file cannot be used. Nothing of its content is repeated.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum KeyFileError {
    #[error("has no key: one base64url key of 256 bits a line, as `envoy-cimd keygen` prints")]
    Empty,
    #[error("line {0} is not a base64url key of 256 bits, as `envoy-cimd keygen` prints")]
    Line(usize),
    #[error("line {0} has the key of an earlier line")]
    Twice(usize),
    #[error("line {0} is one byte over and over, which anybody can guess: make a key with `envoy-cimd keygen`")]
    Guessable(usize),
}

/// Reads the keys of a file, one a line; empty lines do not count.
///
/// # Errors
/// The first line that is wrong, or that there is none.
pub fn parse_keys(text: &str) -> Result<Vec<Key>, KeyFileError> {
    let mut keys: Vec<Key> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        let number = index + 1;
        let mut bytes = BASE64_URL_SAFE_NO_PAD.decode(line).map_err(|_| KeyFileError::Line(number))?;
        let key = <[u8; 32]>::try_from(&bytes[..]).map(Key::new);
        bytes.zeroize();
        let key = key.map_err(|_| KeyFileError::Line(number))?;
        if key.is_guessable() {
            return Err(KeyFileError::Guessable(number));
        }
        if keys.iter().any(|other| other.bytes() == key.bytes()) {
            return Err(KeyFileError::Twice(number));
        }
        keys.push(key);
    }
    if keys.is_empty() { Err(KeyFileError::Empty) } else { Ok(keys) }
}

/// SHA-256 over a purpose and a value, so that a hash made for one purpose means nothing for another.
pub fn tagged_hash(purpose: &str, value: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(purpose).chain_update([0]).chain_update(value).finalize().into()
}

/// The first half of [`tagged_hash`]: enough to tell values apart that nobody chooses to be alike.
pub fn tag(purpose: &str, value: &[u8]) -> [u8; 16] {
    let mut tag = [0; 16];
    tag.iter_mut().zip(tagged_hash(purpose, value)).for_each(|(to, from)| *to = from);
    tag
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_files() {
        let (one, two) = (generate_key_line().expect("a key"), generate_key_line().expect("a key"));
        assert_ne!(one, two);
        let keys = parse_keys(&format!("\n{one}\r\n  {two}  \n\n")).expect("two keys");
        assert_eq!(keys.len(), 2);
        assert_eq!(format!("{keys:?}"), "[Key(…), Key(…)]");
        let short = BASE64_URL_SAFE_NO_PAD.encode([0; 31]);
        let [zeros, sevens] = [0, 7].map(|byte| BASE64_URL_SAFE_NO_PAD.encode([byte; 32]));
        let padded = format!("{one}=");
        let standard = "+/".repeat(21) + "A";
        for (text, error) in [
            (String::new(), KeyFileError::Empty),
            ("\n \n".to_owned(), KeyFileError::Empty),
            (format!("{one}\n{short}"), KeyFileError::Line(2)),
            (padded, KeyFileError::Line(1)),
            (standard, KeyFileError::Line(1)),
            (format!("{one} {two}"), KeyFileError::Line(1)),
            (format!("{one}\n{two}\n{one}"), KeyFileError::Twice(3)),
            (zeros, KeyFileError::Guessable(1)),
            (format!("{one}\n\n{sevens}"), KeyFileError::Guessable(3)),
        ] {
            let found = parse_keys(&text).expect_err("a bad file");
            assert!(!found.to_string().contains(&one), "nothing is repeated");
            assert_eq!(found, error);
        }
    }
}
