//! The clients that were registered for a route, as they are kept: one sealed record for each route, which every process
//! that shares the store changes by compare-and-set alone.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::credentials::Credentials;
use crate::{
    model::{
        client::{ClientId, RedirectUri},
        clock::UnixTime,
        flow::MAX_LIFETIME,
        issuer::canonical,
        seal::UnsealError,
    },
    store::{error::StoreError, keys::RegistrationsKey, open::Opened, vault::Place},
};

/// How many registrations are asked for on behalf of one route within [`PERIOD`]. It protects authorization servers from
/// us: from an upstream that names one after the other, and from what a server that forgets its clients makes us do. It
/// counts in the store, since all replicas are one client.
pub const MAX_ATTEMPTS: usize = 5;
/// In seconds.
pub const PERIOD: u64 = 3600;
/// How many servers a route may have clients at; the oldest registration goes for the next. So an upstream that names
/// ever new ones does not fill the store.
const MAX_SERVERS: usize = 8;

/// A client that was registered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Registration {
    pub credentials: Credentials,
    /// The one that it was registered with, which is another after the operator changes the callback's path.
    pub redirect_uri: RedirectUri,
    pub registered_at: UnixTime,
    /// When its secret ends. None where it does not.
    pub expires_at: Option<UnixTime>,
}

impl Registration {
    /// Whether its secret is over before the code of a flow that begins now may come.
    pub fn ends_within_a_flow(&self, now: UnixTime) -> bool {
        self.expires_at.is_some_and(|expires_at| expires_at.since(now) <= MAX_LIFETIME)
    }
}

/// The random name of one attempt to register.
pub type Holder = [u8; 16];

/// What is kept of a route.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Registrations {
    /// When registrations were asked for, as far as that still counts.
    attempts: Vec<UnixTime>,
    /// Who is at it, and until when: of one that dies it is over then.
    claim: Option<(Holder, UnixTime)>,
    /// By issuer, in its canonical form.
    by_issuer: BTreeMap<String, Registration>,
}

impl Registrations {
    /// The client at a server that a flow which begins now can use.
    pub fn usable(&self, issuer: &str, redirect_uri: &RedirectUri, now: UnixTime) -> Option<&Credentials> {
        let registration = self.by_issuer.get(canonical(issuer))?;
        let is_good = registration.redirect_uri == *redirect_uri && !registration.ends_within_a_flow(now);
        is_good.then_some(&registration.credentials)
    }

    /// Whether somebody is registering a client for the route now.
    pub fn is_claimed(&self, now: UnixTime) -> bool {
        // A claim cannot last longer than this, with clocks that are seconds apart: one that was set back says nothing.
        self.claim.is_some_and(|(_, until)| until > now && until.since(now) <= 2 * CLAIM)
    }

    /// Whether it is this attempt that claimed the right to register last.
    pub fn is_claimed_by(&self, holder: Holder) -> bool {
        self.claim.is_some_and(|(other, _)| other == holder)
    }

    /// Claims the right to register, which is an attempt.
    ///
    /// # Errors
    /// Where there were as many as may be: in how many seconds the next one is due.
    pub fn claim(&mut self, holder: Holder, now: UnixTime) -> Result<(), u64> {
        self.attempts.retain(|attempt| *attempt <= now && now.since(*attempt) < PERIOD);
        if let Some(first) = self.attempts.first().filter(|_| self.attempts.len() >= MAX_ATTEMPTS) {
            return Err(PERIOD - now.since(*first));
        }
        self.attempts.push(now);
        self.claim = Some((holder, now + CLAIM));
        Ok(())
    }

    /// Gives a claim up, where this holder has it.
    pub fn release(&mut self, holder: Holder) {
        self.claim = self.claim.filter(|(other, _)| *other != holder);
    }

    /// Takes the last attempt back: nothing of it reached the server.
    pub fn uncount(&mut self) {
        self.attempts.pop();
    }

    /// Keeps the client at a server, in the place of the one that was there.
    pub fn put(&mut self, issuer: &str, registration: Registration) {
        self.by_issuer.insert(canonical(issuer).to_owned(), registration);
        while self.by_issuer.len() > MAX_SERVERS {
            let oldest = self.by_issuer.iter().min_by_key(|(_, registration)| registration.registered_at);
            let Some(oldest) = oldest.map(|(issuer, _)| issuer.clone()) else { return };
            self.by_issuer.remove(&oldest);
        }
    }

    /// Forgets the client of this name at a server. False where there is none, or another.
    pub fn forget(&mut self, issuer: &str, client_id: &str) -> bool {
        let is_it = self.by_issuer.get(canonical(issuer)).is_some_and(|it| it.credentials.client_id == client_id);
        is_it && self.by_issuer.remove(canonical(issuer)).is_some()
    }
}

/// How long one attempt keeps the others from it, in seconds: longer than it waits for the server.
const CLAIM: u64 = 7;

/// Why a route's record cannot be read, or changed.
#[derive(Debug, thiserror::Error)]
pub enum KeptError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the registrations of {0} cannot be opened: {1}")]
    Sealed(ClientId, UnsealError),
}

/// A route's record, as it was read.
pub struct Kept {
    pub registrations: Registrations,
    key: RegistrationsKey,
    sealed: Option<Vec<u8>>,
}

impl Kept {
    /// # Errors
    /// Where the store cannot say, or what it has does not open: it was moved here from elsewhere, or written by nobody of
    /// ours.
    pub async fn read(open: &Opened, document: &ClientId) -> Result<Self, KeptError> {
        let key = RegistrationsKey::of(document);
        let sealed = open.store.registrations(key).await?;
        let Some(sealed) = sealed else {
            return Ok(Self { registrations: Registrations::default(), key, sealed: None });
        };
        let opened = open.unseal(Place::Registrations(&key), &sealed);
        let (registrations, stale) = opened.map_err(|error| KeptError::Sealed(document.clone(), error))?;
        let kept = Self { registrations, key, sealed: Some(sealed) };
        if stale {
            // Under the first key, so that the old one can go. Where it fails, or is not what was read any more, the next
            // reading tries again.
            if let Ok(true) = kept.replace(open).await {
                return Box::pin(Self::read(open, document)).await;
            }
        }
        Ok(kept)
    }

    /// Puts it in the place of what was read. False where that is not there any more.
    ///
    /// # Errors
    /// Where the store fails.
    pub async fn replace(&self, open: &Opened) -> Result<bool, StoreError> {
        let sealed = open.seal(Place::Registrations(&self.key), &self.registrations);
        let sealed = sealed.ok_or_else(|| StoreError::Failed("the registrations cannot be sealed".to_owned()))?;
        open.store.replace_registrations(self.key, self.sealed.clone(), sealed).await
    }
}

/// Forgets a client that its server does not know any more, so that the next flow registers another. False where another
/// is there by now.
///
/// # Errors
/// Where the store fails.
pub async fn forget(open: &Opened, document: &ClientId, issuer: &str, client_id: &str) -> Result<bool, KeptError> {
    loop {
        let mut kept = Kept::read(open, document).await?;
        if !kept.registrations.forget(issuer, client_id) {
            return Ok(false);
        }
        if kept.replace(open).await? {
            return Ok(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::clients::credentials::Proof;

    const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

    fn registration(client_id: &str, registered_at: UnixTime) -> Registration {
        Registration {
            credentials: Credentials { client_id: client_id.to_owned(), proof: Proof::None },
            redirect_uri: RedirectUri::new("r"),
            registered_at,
            expires_at: None,
        }
    }

    #[test]
    fn a_route_has_five_attempts_an_hour() {
        let mut kept = Registrations::default();
        for number in 0..5 {
            assert_eq!(kept.claim([1; 16], NOW + number * 60), Ok(()));
        }
        assert_eq!(kept.claim([1; 16], NOW + 300), Err(3300));
        assert_eq!(kept.claim([1; 16], NOW + 3599), Err(1));
        assert_eq!(kept.claim([1; 16], NOW + 3600), Ok(()));
        assert_eq!(kept.claim([1; 16], NOW + 3600), Err(60));
        kept.uncount();
        assert_eq!(kept.claim([1; 16], NOW + 3600), Ok(()));
        // A clock that was set back counts from there.
        assert_eq!(kept.claim([1; 16], NOW - 9), Ok(()));
    }

    #[test]
    fn a_claim_ends_by_itself() {
        let mut kept = Registrations::default();
        kept.claim([1; 16], NOW).expect("the first");
        assert!(kept.is_claimed(NOW) && kept.is_claimed(NOW + 6) && !kept.is_claimed(NOW + 7));
        assert!(kept.is_claimed(NOW - 1), "another process's clock is behind");
        assert!(!kept.is_claimed(NOW - 100), "the clock was set back");
        kept.release([2; 16]);
        assert!(kept.is_claimed_by([1; 16]) && !kept.is_claimed_by([2; 16]));
        kept.release([1; 16]);
        assert!(!kept.is_claimed(NOW));
    }

    #[test]
    fn a_client_is_usable_until_its_secret_ends() {
        let mut kept = Registrations::default();
        let uri = RedirectUri::new("r");
        kept.put("https://as.example/", Registration { expires_at: Some(NOW + 1200), ..registration("c", NOW) });
        let usable = |at: UnixTime| kept.usable("https://as.example", &uri, at).is_some();
        assert!(usable(NOW) && usable(NOW + 599) && !usable(NOW + 600) && !usable(NOW + 1201));
        assert!(kept.usable("https://as.example/t", &uri, NOW).is_none(), "another server");
        assert!(kept.usable("https://as.example", &RedirectUri::new("s"), NOW).is_none(), "the callback moved");
    }

    #[test]
    fn the_client_that_a_server_forgot_goes_and_no_other() {
        let mut kept = Registrations::default();
        kept.put("https://as.example", registration("new", NOW));
        assert!(!kept.forget("https://as.example", "old"));
        assert!(kept.forget("https://as.example/", "new"));
        assert!(!kept.forget("https://as.example", "new"), "once");
        for number in 0..20 {
            kept.put(&format!("https://{number}.example"), registration("c", NOW + number));
        }
        let left: Vec<u64> = kept.by_issuer.values().map(|kept| kept.registered_at.since(NOW)).collect();
        assert_eq!((left.len(), left.iter().min()), (8, Some(&12)));
    }
}
