//! Sealing: what is secret is encrypted before somebody else keeps it, a store or a client, and bound to its place there.
//!
//! Layout: version 1, key id 4, nonce 12, ciphertext (as long as the plaintext), tag 16. AES-256-GCM with a random
//! nonce, which is good for 2³² records a key. The associated data is version and key id, the purpose of the record and
//! the key it is stored under: a record that somebody moves to another place does not open.

use std::fmt;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::{Zeroize, Zeroizing};

use super::secret::{Key, random, tagged_hash};

const VERSION: u8 = 1;
const TAG: usize = 16;
/// What a sealed record is longer than its plaintext.
pub const OVERHEAD: usize = 1 + size_of::<KeyId>() + NONCE_LEN + TAG;

type KeyId = [u8; 4];

/// The keys that seal and open: the first seals, all open.
pub struct Sealer {
    first: SealingKey,
    others: Vec<SealingKey>,
}

/// A record, opened. It has no `Debug`, and is zeroed when dropped.
pub struct Unsealed {
    pub plaintext: Zeroizing<Vec<u8>>,
    /// Another key than the first opened it: it should be sealed anew, so that its key can go.
    pub stale: bool,
}

/// Why nothing was sealed.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum SealError {
    #[error("the system gives no randomness")]
    NoRandomness,
    #[error("too long to be sealed")]
    TooLong,
}

/// Why a record does not open.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum UnsealError {
    #[error("too short for a sealed record")]
    Malformed,
    #[error("sealed by a version of envoy-cimd that this one does not know")]
    BadVersion,
    #[error("sealed with a key that is not in the key file")]
    UnknownKey,
    #[error("does not open: it was altered, or sealed for another place")]
    DoesNotOpen,
}

impl Sealer {
    /// None where there is no key.
    pub fn new(keys: &[Key]) -> Option<Self> {
        let (first, others) = keys.split_first()?;
        Some(Self {
            first: SealingKey::new(first)?,
            others: others.iter().map(SealingKey::new).collect::<Option<_>>()?,
        })
    }

    /// Seals a record for a purpose and the key it will be stored under.
    ///
    /// # Errors
    /// Where the system gives no randomness, or the record has more than 64 GiB.
    pub fn seal(&self, purpose: &str, stored_under: &[u8], plaintext: &[u8]) -> Result<Vec<u8>, SealError> {
        let nonce = random::<NONCE_LEN>().map_err(|_| SealError::NoRandomness)?;
        let SealingKey { id, key } = &self.first;
        // All the room at once: growing would leave copies of the plaintext behind.
        let mut sealed = Vec::with_capacity(plaintext.len() + OVERHEAD);
        sealed.push(VERSION);
        sealed.extend(id);
        sealed.extend(nonce);
        let start = sealed.len();
        sealed.extend(plaintext);
        let (_, secret) = sealed.split_at_mut(start);
        let aad = associated_data(*id, purpose, stored_under);
        match key.seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), aad, secret) {
            Ok(tag) => {
                sealed.extend(tag.as_ref());
                Ok(sealed)
            }
            Err(_) => {
                sealed.zeroize();
                Err(SealError::TooLong)
            }
        }
    }

    /// Opens a record that was sealed for this purpose and this key.
    ///
    /// # Errors
    /// Where it was sealed for another place or with another key, or is no sealed record.
    pub fn open(&self, purpose: &str, stored_under: &[u8], sealed: &[u8]) -> Result<Unsealed, UnsealError> {
        let (&version, rest) = sealed.split_first().ok_or(UnsealError::Malformed)?;
        if version != VERSION {
            return Err(UnsealError::BadVersion);
        }
        let (id, rest) = rest.split_first_chunk::<4>().ok_or(UnsealError::Malformed)?;
        let (nonce, secret) = rest.split_first_chunk::<NONCE_LEN>().ok_or(UnsealError::Malformed)?;
        if secret.len() < TAG {
            return Err(UnsealError::Malformed);
        }
        // Ids are short, so two keys may share one.
        let keys = std::iter::once((&self.first, false)).chain(self.others.iter().map(|key| (key, true)));
        let mut error = UnsealError::UnknownKey;
        for (SealingKey { key, .. }, stale) in keys.filter(|(key, _)| key.id == *id) {
            let mut plaintext = Zeroizing::new(secret.to_vec());
            let aad = associated_data(*id, purpose, stored_under);
            let opened = key.open_in_place(Nonce::assume_unique_for_key(*nonce), aad, &mut plaintext);
            match opened.map(|opened| opened.len()) {
                Ok(length) => {
                    plaintext.truncate(length);
                    return Ok(Unsealed { plaintext, stale });
                }
                Err(_) => error = UnsealError::DoesNotOpen,
            }
        }
        Err(error)
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealer({} keys)", 1 + self.others.len())
    }
}

struct SealingKey {
    id: KeyId,
    key: LessSafeKey,
}

impl SealingKey {
    /// None is not to be expected: 256 bits are what the algorithm wants.
    fn new(key: &Key) -> Option<Self> {
        let [a, b, c, d, ..] = tagged_hash("envoy-cimd encryption key id", key.bytes());
        // Derived, so that a file that serves as state keys too does not give one key to two algorithms.
        let bytes = Zeroizing::new(tagged_hash("envoy-cimd encryption key", key.bytes()));
        let key = UnboundKey::new(&AES_256_GCM, bytes.as_slice()).ok()?;
        Some(Self { id: [a, b, c, d], key: LessSafeKey::new(key) })
    }
}

fn associated_data(id: KeyId, purpose: &str, stored_under: &[u8]) -> Aad<Vec<u8>> {
    let mut data = vec![VERSION];
    data.extend(id);
    // The length keeps a purpose from running into the key.
    data.extend((purpose.len() as u64).to_be_bytes());
    data.extend(purpose.as_bytes());
    data.extend(stored_under);
    Aad::from(data)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sealer(seeds: &[u8]) -> Sealer {
        let keys: Vec<Key> = seeds.iter().map(|seed| Key::new([*seed; 32])).collect();
        Sealer::new(&keys).expect("a key")
    }

    fn open(sealer: &Sealer, purpose: &str, key: &[u8], sealed: &[u8]) -> Result<(Vec<u8>, bool), UnsealError> {
        sealer.open(purpose, key, sealed).map(|opened| (opened.plaintext.to_vec(), opened.stale))
    }

    #[test]
    fn a_record_opens_where_it_was_sealed_for_and_nowhere_else() {
        let sealer = sealer(&[1]);
        let sealed = sealer.seal("token", b"one", b"a secret").expect("sealed");
        assert_eq!(sealed.len(), 8 + OVERHEAD);
        assert_eq!(open(&sealer, "token", b"one", &sealed), Ok((b"a secret".to_vec(), false)));
        for (purpose, key) in
            [("token", &b"two"[..]), ("flow", b"one"), ("tokeno", b"ne"), ("toke", b"none"), ("", b"")]
        {
            assert_eq!(open(&sealer, purpose, key, &sealed), Err(UnsealError::DoesNotOpen), "{purpose} {key:?}");
        }
    }

    #[test]
    fn what_is_no_record_is_told_apart() {
        let sealer = sealer(&[1]);
        let sealed = sealer.seal("token", b"one", b"").expect("sealed");
        assert_eq!(open(&sealer, "token", b"one", &sealed), Ok((Vec::new(), false)));
        for length in 0..sealed.len() {
            let cut = sealed.get(..length).expect("a part");
            assert_eq!(open(&sealer, "token", b"one", cut), Err(UnsealError::Malformed), "{length} bytes");
        }
        let mut newer = sealed;
        *newer.first_mut().expect("a byte") = 2;
        assert_eq!(open(&sealer, "token", b"one", &newer), Err(UnsealError::BadVersion));
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let sealer = sealer(&[1, 2]);
        let sealed = sealer.seal("token", b"one", b"a secret").expect("sealed");
        for position in 0..sealed.len() * 8 {
            let mut flipped = sealed.clone();
            *flipped.get_mut(position / 8).expect("a byte") ^= 1 << (position % 8);
            let expected = match position / 8 {
                0 => UnsealError::BadVersion,
                1..=4 => UnsealError::UnknownKey,
                _ => UnsealError::DoesNotOpen,
            };
            assert_eq!(open(&sealer, "token", b"one", &flipped), Err(expected), "bit {position}");
        }
    }

    #[test]
    fn keys_rotate() {
        let old = sealer(&[1]).seal("token", b"one", b"a secret").expect("sealed");
        for (keys, expected) in [
            (&[1, 2][..], Ok((b"a secret".to_vec(), false))),
            (&[2, 1], Ok((b"a secret".to_vec(), true))),
            (&[2], Err(UnsealError::UnknownKey)),
        ] {
            assert_eq!(open(&sealer(keys), "token", b"one", &old), expected, "{keys:?}");
        }
        let new = sealer(&[2, 1]).seal("token", b"one", b"a secret").expect("sealed");
        assert_eq!(open(&sealer(&[2]), "token", b"one", &new), Ok((b"a secret".to_vec(), false)), "the first seals");
    }

    #[test]
    fn nothing_is_sealed_twice_alike_and_nothing_shows() {
        let sealer = sealer(&[1]);
        let [one, two] = [(); 2].map(|()| sealer.seal("token", b"one", b"a secret").expect("sealed"));
        assert_ne!(one, two);
        assert!(!one.windows(8).any(|part| part == b"a secret"));
        assert_eq!(format!("{sealer:?}"), "Sealer(1 keys)");
        assert!(Sealer::new(&[]).is_none());
    }

    proptest! {
        #[test]
        fn what_was_sealed_opens(
            plaintext in proptest::collection::vec(any::<u8>(), 0..200),
            purpose in ".{0,20}",
            key in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let sealer = sealer(&[1]);
            let sealed = sealer.seal(&purpose, &key, &plaintext).expect("sealed");
            prop_assert_eq!(open(&sealer, &purpose, &key, &sealed), Ok((plaintext, false)));
        }

        #[test]
        fn random_bytes_never_open(sealed in proptest::collection::vec(any::<u8>(), 0..100)) {
            prop_assert!(open(&sealer(&[1]), "token", b"one", &sealed).is_err());
        }
    }
}
