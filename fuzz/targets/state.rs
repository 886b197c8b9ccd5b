//! The OAuth state: what was minted verifies, and nothing else does.

#![no_main]

use envoy_cimd::{
    filter::{
        browser::BrowserCookie,
        state::{StateError, StateKeys, Verified},
    },
    model::{
        client::RedirectUri,
        clock::UnixTime,
        flow::{FlowId, MAX_LIFETIME},
        secret::{Key, Secret},
    },
};
use envoy_cimd_fuzz::at_both_sizes;
use libfuzzer_sys::{
    arbitrary::{self, Arbitrary},
    fuzz_target,
};

const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    flow_id: [u8; 16],
    lifetime: u16,
    later: u16,
    /// Where the state is changed, and by what.
    position: u8,
    change: u8,
    redirect_uri: &'a str,
    cookie: &'a str,
    text: &'a str,
}

fuzz_target!(|input: Input<'_>| {
    let keys = StateKeys::new([1, 2].map(|byte| Key::new([byte; 32])).into());
    let Input { redirect_uri, cookie, .. } = input;
    let now = NOW + u64::from(input.later);
    let (redirect, secret) = (RedirectUri::new(redirect_uri), BrowserCookie::from(Secret::new(cookie)));
    let minted = keys.mint(FlowId(input.flow_id), &redirect, &secret, NOW, NOW + u64::from(input.lifetime));
    let minted = minted.expect("a key");

    let verified = verify(&keys, &minted, redirect_uri, now);
    if u64::from(input.later) >= u64::from(input.lifetime).min(MAX_LIFETIME) {
        assert!(matches!(verified, Err(StateError::Expired { .. })));
    } else {
        let verified = verified.expect("it is fresh");
        assert!(verified.flow_id == FlowId(input.flow_id));
        let check = |cookie: Option<String>| {
            verified.check_browser(cookie.map(|cookie| BrowserCookie::from(Secret::new(cookie))).as_ref()).map(drop)
        };
        assert_eq!(check(Some(cookie.to_owned())), Ok(()));
        assert_eq!(check(None), Err(StateError::WrongBrowser));
        assert_eq!(check(Some(format!("{cookie}x"))), Err(StateError::WrongBrowser));
        let other = format!("{redirect_uri}x");
        assert_eq!(verify(&keys, &minted, &other, now), Err(StateError::WrongRoute));
    }

    let mut changed = minted.clone().into_bytes();
    let position = usize::from(input.position) % changed.len();
    changed[position] ^= input.change;
    let changed = String::from_utf8_lossy(&changed);
    assert!(changed == minted || verify(&keys, &changed, redirect_uri, now).is_err(), "{changed}");

    at_both_sizes(input.text, |text| {
        assert!(text == minted || verify(&keys, text, redirect_uri, now).is_err(), "{text}");
        assert!(verify(&keys, &format!("{minted}{text}"), redirect_uri, now).is_err() || text.is_empty(), "{text}");
    });
});

fn verify(keys: &StateKeys, text: &str, redirect_uri: &str, now: UnixTime) -> Result<Verified, StateError> {
    keys.authenticate(text)?.verify(&RedirectUri::new(redirect_uri), now)
}
