//! A token as the header that carries it.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use zeroize::Zeroizing;

use super::verdict::{Edits, Said};
use crate::{
    contract::tokens::{AccessToken, TOO_LATE, TokenError, TokenTag},
    model::clock::UnixTime,
};

const SCHEME: &str = "Bearer ";

/// The caller's other credentials, which are not the upstream's.
const NOT_FORWARDED: &[&str] = &["cookie", "proxy-authorization"];
/// The same, and what was said of a body that is another by now.
const NOT_FORWARDED_WITH_BODY: &[&str] = &["cookie", "proxy-authorization", "content-length"];

/// A token as the header that carries it (RFC 6750, section 2.1): visible ASCII, and not empty. What servers issue is more
/// than the RFC's `b64token` has, and all that a header may have. Zeroed when the last one who has it lets it go.
pub struct Bearer {
    /// What a request with it goes on with.
    pub edits: Arc<Said<Edits>>,
    pub tag: TokenTag,
    expires_at: Option<UnixTime>,
    again_until: Option<UnixTime>,
}

impl Bearer {
    /// # Errors
    /// Where it has characters that no token has.
    pub fn new(token: AccessToken) -> Result<Self, TokenError> {
        let AccessToken { secret, tag, expires_at, again: again_until } = token;
        let text = secret.expose();
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            let cause = "the token has characters that no header may have, and is not sent";
            return Err(TokenError::Unavailable(cause.into()));
        }
        let authorization = Bytes::from_owner(Zeroizing::new([SCHEME, text].concat().into_bytes()));
        let edits = Said::new(Edits {
            set: vec![("authorization", authorization)],
            remove: NOT_FORWARDED,
            tag: Some(tag),
            body: None,
        });
        Ok(Self { edits, tag, expires_at, again_until })
    }

    /// Whether requests of its owner may come again with members of ours in their bodies.
    pub fn comes_again(&self) -> bool {
        self.again_until.is_some()
    }

    /// For how long from now on it is what would be handed out: it is not over, and neither is what is said with it.
    pub fn is_good_for(&self, now: UnixTime) -> Duration {
        let left = self.expires_at.map_or(u64::MAX, |end| end.since(now).saturating_sub(TOO_LATE));
        let marked = self.again_until.map_or(u64::MAX, |end| end.since(now));
        Duration::from_secs(left.min(marked))
    }

    /// What a request goes on with whose body is another by now.
    pub fn edits_with(&self, body: Bytes) -> Arc<Said<Edits>> {
        let Edits { set, tag, .. } = &**self.edits;
        Said::new(Edits { set: set.clone(), remove: NOT_FORWARDED_WITH_BODY, tag: *tag, body: Some(body) })
    }
}

impl fmt::Debug for Bearer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bearer(…)")
    }
}
