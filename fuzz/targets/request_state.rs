//! What a client brings back after its person was asked: what was not sealed here does not open, and what was opens for
//! its own call alone. The first byte says which bit is bent.

#![no_main]

use envoy_cimd::{
    filter::{
        json_rpc::digest::Digest,
        request_state::{Call, PREFIX, RequestState, RequestStateKeys},
    },
    model::{client::ClientId, clock::UnixTime, secret::Key, user::User},
};
use libfuzzer_sys::fuzz_target;

const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

fuzz_target!(|data: &[u8]| {
    let Some((bend, data)) = data.split_first() else { return };
    let text = String::from_utf8_lossy(data);
    let keys = RequestStateKeys::new(&[Key::new([1; 32])]);
    let (client_id, digest) = (ClientId::new("https://a.example/c"), Digest([7; 32]));
    for text in [text.clone().into_owned(), format!("{PREFIX}{text}")] {
        assert!(keys.open(&text, &User::Single, &client_id, Some(digest), NOW).is_err());
    }
    let half = text.len() / 2;
    let Some((issuer, subject)) = (0..=half).rev().find_map(|at| text.split_at_checked(at)) else { return };
    let user = User::Subject { issuer: issuer.to_owned(), subject: subject.to_owned() };
    let state = RequestState { expires_at: NOW + 600, is_accepted: bend % 2 == 0 };
    let call = Call { user: &user, client_id: &client_id, digest };
    let sealed = keys.seal(state, &call).expect("a key");
    assert_eq!(keys.open(&sealed, &user, &client_id, Some(digest), NOW), Ok(state));
    assert!(keys.open(&sealed, &User::Single, &client_id, Some(digest), NOW).is_err());
    assert!(keys.open(&sealed, &user, &ClientId::new(text), Some(digest), NOW).is_err());
    assert!(keys.open(&sealed, &user, &client_id, None, NOW).is_err());
    let mut bent = sealed.into_bytes();
    let at = PREFIX.len() + usize::from(*bend) % (bent.len() - PREFIX.len());
    bent[at] ^= 1;
    let bent = String::from_utf8(bent).expect("ASCII");
    assert!(keys.open(&bent, &user, &client_id, Some(digest), NOW).is_err());
});
