//! What a client brings back when it calls again after we asked something of its person: MCP's `requestState`.
//!
//! It is sealed, and says for whom, on which route and for which call it was made, and until when: with another it is
//! refused. It lets nobody do anything that they could not do without it; it only has the call wait.
//!
//! Layout of what is sealed, 73 bytes: expiry 8 (seconds since 1970, big-endian), whether the person accepted 1, tag of
//! the user 16, tag of the route 16, digest of the call 32.

use std::fmt;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};

use super::json_rpc::digest::Digest;
use crate::model::{
    client::ClientId,
    clock::UnixTime,
    seal::{Sealer, UnsealError},
    secret::{Key, tag, tagged_hash},
    user::User,
};

/// What every state of ours begins with, and no other: what does not is an upstream's.
pub const PREFIX: &str = "envoy-cimd-";

/// How long a state lives, in seconds.
pub const LIFETIME: u64 = 600;

const PURPOSE: &str = "request state";
const LENGTH: usize = 8 + 1 + 16 + 16 + 32;

/// What a state is made for.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    pub user: &'a User,
    pub client_id: &'a ClientId,
    pub digest: Digest,
}

/// What is known of a call that comes again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestState {
    pub expires_at: UnixTime,
    /// Whether the person said that they would connect: they are not asked again.
    pub is_accepted: bool,
}

/// Why a state is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestStateError {
    #[error("`requestState` is not one of ours, was changed, or is sealed with a key that is not among the state keys")]
    NotOurs,
    #[error("`requestState` expired {ago} seconds ago")]
    Expired { ago: u64 },
    #[error("`requestState` was made for another user")]
    OtherUser,
    #[error("`requestState` was made for another route")]
    OtherRoute,
    #[error("`requestState` was made for another request")]
    OtherRequest,
}

/// The keys that seal and open: made of the state keys, so that all replicas have the same, and none else's.
pub struct RequestStateKeys(Option<Sealer>);

impl fmt::Debug for RequestStateKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl RequestStateKeys {
    /// The first key seals, all open.
    pub fn new(keys: &[Key]) -> Self {
        let own: Vec<Key> =
            keys.iter().map(|key| Key::new(tagged_hash("envoy-cimd request state key", key.bytes()))).collect();
        Self(Sealer::new(&own))
    }

    /// A state for a call. None where there is no key to seal with, or no randomness.
    pub fn seal(&self, state: RequestState, call: &Call<'_>) -> Option<String> {
        let mut plaintext = Vec::with_capacity(LENGTH);
        plaintext.extend(state.expires_at.secs().to_be_bytes());
        plaintext.push(u8::from(state.is_accepted));
        plaintext.extend(user_tag(call.user));
        plaintext.extend(route_tag(call.client_id));
        plaintext.extend(call.digest.0);
        let sealed = self.0.as_ref()?.seal(PURPOSE, &[], &plaintext).ok()?;
        let mut text = PREFIX.to_owned();
        BASE64_URL_SAFE_NO_PAD.encode_string(sealed, &mut text);
        Some(text)
    }

    /// What a state says, where it was made for this call; none stands for a message that no state can be made for.
    ///
    /// # Errors
    /// The first check that fails: the seal, the time, the user, the route, the call.
    pub fn open(
        &self,
        text: &str,
        user: &User,
        client_id: &ClientId,
        digest: Option<Digest>,
        now: UnixTime,
    ) -> Result<RequestState, RequestStateError> {
        let sealed = text.strip_prefix(PREFIX).and_then(|text| BASE64_URL_SAFE_NO_PAD.decode(text).ok());
        let sealer = self.0.as_ref().ok_or(RequestStateError::NotOurs)?;
        let opened = sealed.ok_or(UnsealError::Malformed).and_then(|sealed| sealer.open(PURPOSE, &[], &sealed));
        let opened = opened.map_err(|_| RequestStateError::NotOurs)?;
        let parts = Parts::read(&opened.plaintext).ok_or(RequestStateError::NotOurs)?;
        if now >= parts.state.expires_at {
            return Err(RequestStateError::Expired { ago: now.since(parts.state.expires_at) });
        }
        if parts.user != user_tag(user) {
            return Err(RequestStateError::OtherUser);
        }
        if parts.route != route_tag(client_id) {
            return Err(RequestStateError::OtherRoute);
        }
        if digest != Some(parts.digest) {
            return Err(RequestStateError::OtherRequest);
        }
        Ok(parts.state)
    }
}

struct Parts {
    state: RequestState,
    user: [u8; 16],
    route: [u8; 16],
    digest: Digest,
}

impl Parts {
    fn read(bytes: &[u8]) -> Option<Self> {
        let (expires_at, rest) = bytes.split_first_chunk()?;
        let (&accepted, rest) = rest.split_first()?;
        let (user, rest) = rest.split_first_chunk()?;
        let (route, rest) = rest.split_first_chunk()?;
        let state = RequestState {
            expires_at: UnixTime::from_secs(u64::from_be_bytes(*expires_at)),
            is_accepted: accepted == 1,
        };
        Some(Self { state, user: *user, route: *route, digest: Digest(rest.try_into().ok()?) })
    }
}

fn user_tag(user: &User) -> [u8; 16] {
    let mut text = Vec::new();
    if let User::Subject { issuer, subject } = user {
        // The length keeps the issuer from running into the subject; nobody else has none.
        text.extend((issuer.len() as u64).to_be_bytes());
        text.extend(issuer.as_bytes());
        text.extend(subject.as_bytes());
    }
    tag("envoy-cimd request state user", &text)
}

fn route_tag(client_id: &ClientId) -> [u8; 16] {
    tag("envoy-cimd request state route", client_id.as_str().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);
    const DIGEST: Digest = Digest([7; 32]);

    fn keys(seeds: &[u8]) -> RequestStateKeys {
        let keys: Vec<Key> = seeds.iter().map(|seed| Key::new([*seed; 32])).collect();
        RequestStateKeys::new(&keys)
    }

    fn person(issuer: &str, subject: &str) -> User {
        User::Subject { issuer: issuer.to_owned(), subject: subject.to_owned() }
    }

    fn sealed_by(keys: &RequestStateKeys, is_accepted: bool) -> String {
        let state = RequestState { expires_at: NOW + LIFETIME, is_accepted };
        let (user, client_id) = (person("i", "anna"), ClientId::new("https://a.example/c"));
        keys.seal(state, &Call { user: &user, client_id: &client_id, digest: DIGEST }).expect("a key")
    }

    fn open(keys: &RequestStateKeys, text: &str) -> Result<RequestState, RequestStateError> {
        keys.open(text, &person("i", "anna"), &ClientId::new("https://a.example/c"), Some(DIGEST), NOW)
    }

    #[test]
    fn it_is_of_one_user_route_and_call_for_a_while() {
        let keys = keys(&[1]);
        let (anna, route) = (person("i", "anna"), ClientId::new("https://a.example/c"));
        for is_accepted in [false, true] {
            let text = sealed_by(&keys, is_accepted);
            let state = RequestState { expires_at: NOW + LIFETIME, is_accepted };
            let opened =
                |user: &User, route: &str, digest, now| keys.open(&text, user, &ClientId::new(route), digest, now);
            assert_eq!(opened(&anna, route.as_str(), Some(DIGEST), NOW), Ok(state));
            assert_eq!(opened(&anna, route.as_str(), Some(DIGEST), NOW + LIFETIME - 1), Ok(state));
            for (user, client_id, digest, now, error) in [
                (
                    anna.clone(),
                    "https://a.example/c",
                    Some(DIGEST),
                    NOW + LIFETIME,
                    RequestStateError::Expired { ago: 0 },
                ),
                (anna.clone(), "https://a.example/c", Some(DIGEST), NOW + 660, RequestStateError::Expired { ago: 60 }),
                (person("i", "bert"), "https://a.example/c", Some(DIGEST), NOW, RequestStateError::OtherUser),
                (person("ia", "nna"), "https://a.example/c", Some(DIGEST), NOW, RequestStateError::OtherUser),
                (User::Single, "https://a.example/c", Some(DIGEST), NOW, RequestStateError::OtherUser),
                (anna.clone(), "https://a.example/d", Some(DIGEST), NOW, RequestStateError::OtherRoute),
                (anna.clone(), "https://a.example/c", Some(Digest([8; 32])), NOW, RequestStateError::OtherRequest),
                (anna.clone(), "https://a.example/c", None, NOW, RequestStateError::OtherRequest),
            ] {
                assert_eq!(opened(&user, client_id, digest, now), Err(error));
            }
        }
    }

    #[test]
    fn it_is_short_and_shows_nothing() {
        let text = sealed_by(&keys(&[1]), true);
        assert!(text.len() < 200, "{}", text.len());
        let rest = text.strip_prefix(PREFIX).expect("the prefix");
        assert!(rest.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)));
        assert_ne!(text, sealed_by(&keys(&[1]), true), "no two are alike");
        assert_eq!(format!("{:?}", keys(&[1])), "Some(Sealer(1 keys))");
        assert!(
            keys(&[])
                .seal(
                    RequestState { expires_at: NOW, is_accepted: false },
                    &Call { user: &User::Single, client_id: &ClientId::new("c"), digest: DIGEST }
                )
                .is_none()
        );
        assert_eq!(open(&keys(&[]), &text), Err(RequestStateError::NotOurs));
    }

    #[test]
    fn keys_rotate() {
        let text = sealed_by(&keys(&[1]), false);
        assert!(open(&keys(&[1, 2]), &text).is_ok() && open(&keys(&[2, 1]), &text).is_ok());
        assert_eq!(open(&keys(&[2]), &text), Err(RequestStateError::NotOurs));
        assert!(open(&keys(&[2]), &sealed_by(&keys(&[2, 1]), false)).is_ok(), "the first seals");
    }

    /// Neither the keys of the OAuth state nor those of a store are these.
    #[test]
    fn the_keys_are_its_own() {
        let sealer = Sealer::new(&[Key::new([1; 32])]).expect("a key");
        let sealed = sealer.seal(PURPOSE, &[], &[0; LENGTH]).expect("sealed");
        let text = format!("{PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(sealed));
        assert_eq!(open(&keys(&[1]), &text), Err(RequestStateError::NotOurs));
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let keys = keys(&[1]);
        let text = sealed_by(&keys, true);
        for position in 0..text.len() * 8 {
            let mut flipped = text.clone().into_bytes();
            *flipped.get_mut(position / 8).expect("a byte") ^= 1 << (position % 8);
            let flipped = String::from_utf8_lossy(&flipped).into_owned();
            assert_eq!(open(&keys, &flipped), Err(RequestStateError::NotOurs), "bit {position}");
        }
        for length in 0..text.len() {
            assert_eq!(open(&keys, text.get(..length).expect("a part")), Err(RequestStateError::NotOurs));
        }
        assert_eq!(open(&keys, &format!("{text}A")), Err(RequestStateError::NotOurs));
    }
}
