//! The OAuth `state`: our signed, expiring token that carries a flow's id and binds it to a route and a browser.
//!
//! Layout, 93 bytes as base64url (124 characters): version 1, key id 4, expiry 8 (seconds since 1970, big-endian),
//! flow id 16, tag of the redirect URI 16, tag of the browser 16, HMAC-SHA-256 over all before it 32.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use hmac::{Hmac, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::{browser::BrowserCookie, request_state::RequestStateKeys};
use crate::model::{
    client::RedirectUri,
    clock::UnixTime,
    flow::{BrowserHash, FlowId, MAX_LIFETIME},
    secret::{Key, tag, tagged_hash},
};

const VERSION: u8 = 1;
const SIGNED: usize = 61;
const LENGTH: usize = SIGNED + 32;
const TEXT_LENGTH: usize = LENGTH / 3 * 4;

/// Why a state is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    #[error("the state does not have the form of one of ours")]
    Malformed,
    #[error("the state is signed with a key that is not among the state keys")]
    UnknownKey,
    #[error("the state was changed, or is forged")]
    BadMac,
    #[error("the state expired {ago} seconds ago")]
    Expired { ago: u64 },
    #[error("the state was made for another route")]
    WrongRoute,
    #[error("the browser does not have the cookie that the flow began with")]
    WrongBrowser,
}

/// The keys that sign and verify: the first signs, all verify. Each is kept as a MAC that has taken it in, so that no
/// state pays for that again. That is enough to sign with, and it is not zeroed when it is dropped; `Debug` shows nothing
/// of it.
#[derive(Debug)]
pub struct StateKeys {
    macs: Vec<(KeyId, Hmac<Sha256>)>,
    /// Of the same keys, for what MCP clients bring back.
    pub request_states: RequestStateKeys,
}

type KeyId = [u8; 4];

/// A verified state, of which the browser is still to be checked: its cookie is named after the flow.
#[derive(Debug, PartialEq)]
pub struct Verified {
    pub flow_id: FlowId,
    browser_tag: [u8; 16],
}

impl StateKeys {
    /// The first key signs, all verify.
    pub fn new(keys: Vec<Key>) -> Self {
        let macs = keys.iter().map(|key| (key_id(key), keyed(key))).collect();
        Self { macs, request_states: RequestStateKeys::new(&keys) }
    }

    /// A state for a flow. It lives as long as the flow, and [`MAX_LIFETIME`] at most. None where there is no key to
    /// sign with.
    pub fn mint(
        &self,
        flow_id: FlowId,
        redirect_uri: &RedirectUri,
        cookie: &BrowserCookie,
        now: UnixTime,
        expires_at: UnixTime,
    ) -> Option<String> {
        let (id, mac) = self.macs.first()?;
        let expiry = expires_at.min(now + MAX_LIFETIME);
        let mut bytes = Vec::with_capacity(LENGTH);
        bytes.push(VERSION);
        bytes.extend(id);
        bytes.extend(expiry.secs().to_be_bytes());
        bytes.extend(flow_id.0);
        bytes.extend(route_tag(redirect_uri));
        bytes.extend(browser_tag(cookie));
        let mac = mac.clone().chain_update(&bytes).finalize().into_bytes();
        bytes.extend(mac);
        Some(BASE64_URL_SAFE_NO_PAD.encode(bytes))
    }

    /// Checks that a state is one of ours: form, key, signature, in this order. What else it says is looked at
    /// afterwards, so that a forged one costs no more than this.
    ///
    /// # Errors
    /// The first check that fails.
    pub fn authenticate(&self, text: &str) -> Result<Authentic, StateError> {
        let mut bytes = [0; LENGTH];
        // The length first: what is decoded is bounded, whatever was sent.
        let decoded = text.len() == TEXT_LENGTH && BASE64_URL_SAFE_NO_PAD.decode_slice(text, &mut bytes) == Ok(LENGTH);
        let state = decoded.then(|| Parts::read(&bytes)).flatten().ok_or(StateError::Malformed)?;
        let (_, mac) = self.macs.iter().find(|(id, _)| *id == state.key_id).ok_or(StateError::UnknownKey)?;
        mac.clone().chain_update(state.signed).verify_slice(state.mac).map_err(|_| StateError::BadMac)?;
        Ok(Authentic {
            expiry: state.expiry,
            route_tag: state.route_tag,
            verified: Verified { flow_id: state.flow_id, browser_tag: state.browser_tag },
        })
    }
}

/// A state that is ours, and was not changed.
#[derive(Debug, PartialEq)]
pub struct Authentic {
    expiry: UnixTime,
    route_tag: [u8; 16],
    verified: Verified,
}

impl Authentic {
    /// Checks that a browser brought it in time, and to the `redirect_uri` that it was made for, in this order.
    ///
    /// # Errors
    /// The first check that fails.
    pub fn verify(self, redirect_uri: &RedirectUri, now: UnixTime) -> Result<Verified, StateError> {
        if now >= self.expiry {
            return Err(StateError::Expired { ago: now.since(self.expiry) });
        }
        if !bool::from(self.route_tag.ct_eq(&route_tag(redirect_uri))) {
            return Err(StateError::WrongRoute);
        }
        Ok(self.verified)
    }
}

impl Verified {
    /// Checks that the cookie is the one that the flow began with, and gives what the choreographer knows it by.
    ///
    /// # Errors
    /// [`StateError::WrongBrowser`] where it is another, or there is none.
    pub fn check_browser(&self, cookie: Option<&BrowserCookie>) -> Result<BrowserHash, StateError> {
        match cookie {
            Some(cookie) if bool::from(self.browser_tag.ct_eq(&browser_tag(cookie))) => Ok(cookie.hash()),
            _ => Err(StateError::WrongBrowser),
        }
    }
}

struct Parts<'a> {
    signed: &'a [u8],
    key_id: KeyId,
    expiry: UnixTime,
    flow_id: FlowId,
    route_tag: [u8; 16],
    browser_tag: [u8; 16],
    mac: &'a [u8],
}

impl<'a> Parts<'a> {
    fn read(bytes: &'a [u8]) -> Option<Self> {
        let (signed, mac) = bytes.split_at_checked(SIGNED)?;
        let (&version, rest) = signed.split_first()?;
        let (key_id, rest) = rest.split_first_chunk()?;
        let (expiry, rest) = rest.split_first_chunk()?;
        let (flow_id, rest) = rest.split_first_chunk()?;
        let (route_tag, rest) = rest.split_first_chunk()?;
        let browser_tag = rest.try_into().ok()?;
        (version == VERSION).then_some(Self {
            signed,
            key_id: *key_id,
            expiry: UnixTime::from_secs(u64::from_be_bytes(*expiry)),
            flow_id: FlowId(*flow_id),
            route_tag: *route_tag,
            browser_tag,
            mac,
        })
    }
}

fn keyed(key: &Key) -> Hmac<Sha256> {
    // A key of any length is taken, so this cannot fail; `new` is the spelling for a key of the block's size.
    let mut padded = Zeroizing::new([0; 64]);
    if let Some(start) = padded.first_chunk_mut() {
        *start = *key.bytes();
    }
    Hmac::new((&*padded).into()).chain_update(b"envoy-cimd state v1\0")
}

fn key_id(key: &Key) -> KeyId {
    let [a, b, c, d, ..] = tagged_hash("envoy-cimd state key id", key.bytes());
    [a, b, c, d]
}

fn route_tag(redirect_uri: &RedirectUri) -> [u8; 16] {
    tag("envoy-cimd state route", redirect_uri.as_str().as_bytes())
}

fn browser_tag(cookie: &BrowserCookie) -> [u8; 16] {
    tag("envoy-cimd state browser", cookie.value().expose().as_bytes())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::secret::Secret;

    const FLOW: FlowId = FlowId([7; 16]);
    const ROUTE: &str = "https://mcp.example.com/.pomerium/oauth/callback";
    const COOKIE: &str = "the-cookie";
    const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

    fn keys(seeds: &[u8]) -> StateKeys {
        StateKeys::new(seeds.iter().map(|seed| Key::new([*seed; 32])).collect())
    }

    fn mint(keys: &StateKeys, route: &str, cookie: &str, expires_at: UnixTime) -> Option<String> {
        keys.mint(FLOW, &RedirectUri::new(route), &BrowserCookie::from(Secret::new(cookie)), NOW, expires_at)
    }

    fn minted() -> String {
        mint(&keys(&[1]), ROUTE, COOKIE, NOW + 600).expect("a key")
    }

    fn verify(
        keys: &StateKeys,
        text: &str,
        route: &str,
        cookie: Option<&str>,
        now: UnixTime,
    ) -> Result<FlowId, StateError> {
        let verified = keys.authenticate(text)?.verify(&RedirectUri::new(route), now)?;
        verified.check_browser(cookie.map(|cookie| BrowserCookie::from(Secret::new(cookie))).as_ref())?;
        Ok(verified.flow_id)
    }

    #[test]
    fn each_failure_has_its_label() {
        let state = minted();
        let other_version = {
            let mut bytes = BASE64_URL_SAFE_NO_PAD.decode(&state).expect("base64url");
            *bytes.first_mut().expect("a byte") = 2;
            BASE64_URL_SAFE_NO_PAD.encode(bytes)
        };
        let foreign = mint(&keys(&[9]), ROUTE, COOKIE, NOW + 600).expect("a key");
        for (text, route, cookie, now, expected) in [
            (state.as_str(), ROUTE, Some(COOKIE), NOW, Ok(FLOW)),
            (&state, ROUTE, Some(COOKIE), NOW + 599, Ok(FLOW)),
            (&state, ROUTE, Some(COOKIE), NOW + 600, Err(StateError::Expired { ago: 0 })),
            (&state, ROUTE, Some(COOKIE), NOW + 601, Err(StateError::Expired { ago: 1 })),
            (&state, "https://other.example/.pomerium/oauth/callback", Some(COOKIE), NOW, Err(StateError::WrongRoute)),
            (&state, ROUTE, Some("another"), NOW, Err(StateError::WrongBrowser)),
            (&state, ROUTE, Some(""), NOW, Err(StateError::WrongBrowser)),
            (&state, ROUTE, None, NOW, Err(StateError::WrongBrowser)),
            (&foreign, ROUTE, Some(COOKIE), NOW, Err(StateError::UnknownKey)),
            (&other_version, ROUTE, Some(COOKIE), NOW, Err(StateError::Malformed)),
            ("", ROUTE, Some(COOKIE), NOW, Err(StateError::Malformed)),
            (&state[..123], ROUTE, Some(COOKIE), NOW, Err(StateError::Malformed)),
            (&format!("{state}="), ROUTE, Some(COOKIE), NOW, Err(StateError::Malformed)),
            (&format!("{}+", &state[..123]), ROUTE, Some(COOKIE), NOW, Err(StateError::Malformed)),
        ] {
            assert_eq!(verify(&keys(&[1]), text, route, cookie, now), expected, "{text} {route} {cookie:?} {now:?}");
        }
    }

    /// As it was signed in November 2026: browsers that are under way bring it to a new version, too.
    #[test]
    fn a_state_of_an_earlier_version_verifies() {
        let keys = StateKeys::new(
            crate::model::secret::parse_keys(include_str!("../../tests/fixtures/v1/store.keys")).expect("keys"),
        );
        let state = include_str!("../../tests/fixtures/v1/state").trim();
        let cookie = Some("c29tZSBicm93c2VyJ3Mgc2VjcmV0LCAzMiBieXRlcyA");
        let until = UnixTime::from_secs(4_000_000_000);
        assert_eq!(verify(&keys, state, ROUTE, cookie, until - 1), Ok(FlowId([0x11; 16])));
        assert_eq!(verify(&keys, state, ROUTE, cookie, until), Err(StateError::Expired { ago: 0 }));
    }

    #[test]
    fn it_is_short_and_bounded() {
        let state = minted();
        assert!(state.len() <= 200 && state.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)));
        let long = mint(&keys(&[1]), ROUTE, COOKIE, UnixTime::MAX).expect("a key");
        assert_eq!(verify(&keys(&[1]), &long, ROUTE, Some(COOKIE), NOW + 600), Err(StateError::Expired { ago: 0 }));
        let short = mint(&keys(&[1]), ROUTE, COOKIE, NOW + 5).expect("a key");
        assert_eq!(verify(&keys(&[1]), &short, ROUTE, Some(COOKIE), NOW + 5), Err(StateError::Expired { ago: 0 }));
        assert_eq!(mint(&StateKeys::new(Vec::new()), ROUTE, COOKIE, NOW), None);
    }

    #[test]
    fn nothing_of_a_key_is_shown() {
        assert_eq!(format!("{:?}", keys(&[1])), format!("{:?}", keys(&[2])).replace(&id_of(2), &id_of(1)));
    }

    /// The id of a key is in each state, and no secret.
    fn id_of(seed: u8) -> String {
        format!("{:?}", key_id(&Key::new([seed; 32])))
    }

    #[test]
    fn keys_rotate() {
        let state = minted();
        for (after, expected) in
            [(keys(&[1, 2]), Ok(FLOW)), (keys(&[2, 1]), Ok(FLOW)), (keys(&[2]), Err(StateError::UnknownKey))]
        {
            assert_eq!(verify(&after, &state, ROUTE, Some(COOKIE), NOW), expected);
        }
        let new = mint(&keys(&[2, 1]), ROUTE, COOKIE, NOW + 600).expect("a key");
        assert_eq!(verify(&keys(&[2]), &new, ROUTE, Some(COOKIE), NOW), Ok(FLOW), "the first signs");
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let state = minted();
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(&state).expect("base64url");
        for position in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            if let Some(byte) = flipped.get_mut(position / 8) {
                *byte ^= 1 << (position % 8);
            }
            let flipped = BASE64_URL_SAFE_NO_PAD.encode(flipped);
            assert!(verify(&keys(&[1]), &flipped, ROUTE, Some(COOKIE), NOW).is_err(), "bit {position}");
        }
        for position in 0..state.len() * 8 {
            let mut flipped = state.clone().into_bytes();
            if let Some(byte) = flipped.get_mut(position / 8) {
                *byte ^= 1 << (position % 8);
            }
            let flipped = String::from_utf8_lossy(&flipped).into_owned();
            assert!(verify(&keys(&[1]), &flipped, ROUTE, Some(COOKIE), NOW).is_err(), "bit {position} of the text");
        }
    }

    proptest! {
        #[test]
        fn what_was_minted_verifies_and_nothing_else(
            flow in any::<[u8; 16]>(),
            route in ".{0,40}",
            cookie in ".{0,40}",
            key in any::<u8>(),
            lifetime in 1..=600_u64,
            other in ".{0,40}",
        ) {
            let keys = keys(&[key]);
            let state = keys
                .mint(FlowId(flow), &RedirectUri::new(&*route), &BrowserCookie::from(Secret::new(&*cookie)), NOW, NOW + lifetime)
                .expect("a key");
            prop_assert_eq!(verify(&keys, &state, &route, Some(&cookie), NOW), Ok(FlowId(flow)));
            if other != route {
                prop_assert_eq!(verify(&keys, &state, &other, Some(&cookie), NOW), Err(StateError::WrongRoute));
            }
            if other != cookie {
                prop_assert_eq!(verify(&keys, &state, &route, Some(&other), NOW), Err(StateError::WrongBrowser));
            }
        }

        #[test]
        fn random_texts_never_verify(text in prop_oneof![any::<String>(), "[A-Za-z0-9_-]{124}"]) {
            prop_assert!(keys(&[1]).authenticate(&text).is_err());
        }
    }

    #[test]
    fn ten_thousand_random_bytes_never_verify() {
        let text = BASE64_URL_SAFE_NO_PAD.encode(crate::model::secret::random::<10_000>().expect("randomness"));
        assert_eq!(keys(&[1]).authenticate(&text), Err(StateError::Malformed));
    }
}
