//! What people allowed, and what was given for it. Of secrets only the hash is kept, so that finding one takes no
//! longer for a good guess than for a bad one.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use envoy_cimd::model::secret::{generate_key_line, tagged_hash};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::AuthorizationRequest;

const CODE_LIFETIME: Duration = Duration::from_secs(60);
const ACCESS_LIFETIME: Duration = Duration::from_secs(3600);
const REFRESH_LIFETIME: Duration = Duration::from_secs(24 * 3600);

#[derive(Default)]
pub struct Grants(Mutex<Vec<Grant>>);

/// One person's word that one client may use one resource.
struct Grant {
    client_id: String,
    redirect_uri: String,
    resource: String,
    code_challenge: String,
    /// What the next tokens are given for: the code, then always the newest refresh token.
    next: Secret,
    /// What tokens were given for already.
    spent: Vec<[u8; 32]>,
    access: Option<Secret>,
}

struct Secret {
    hash: [u8; 32],
    until: Instant,
}

/// Why there is no token (RFC 6749, section 5.2; RFC 8707, section 2).
#[derive(Clone, Copy)]
pub enum TokenError {
    InvalidRequest,
    InvalidGrant,
    InvalidTarget,
    UnsupportedGrantType,
}

impl Grants {
    /// The code for a request that a person allowed. None where the system has no randomness.
    pub fn allow(&self, request: &AuthorizationRequest) -> Option<String> {
        let (code, next) = Secret::fresh("code", CODE_LIFETIME)?;
        self.lock().push(Grant {
            client_id: request.client_id.clone(),
            redirect_uri: request.redirect_uri.clone(),
            resource: request.resource.clone(),
            code_challenge: request.code_challenge.clone(),
            next,
            spent: Vec::new(),
            access: None,
        });
        Some(code)
    }

    /// The tokens for a code.
    pub fn redeem(
        &self,
        code: &str,
        client_id: &str,
        resource: &str,
        redirect_uri: &str,
        verifier: &str,
    ) -> Result<Value, TokenError> {
        let challenge = BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(verifier));
        self.exchange(tagged_hash("code", code.as_bytes()), client_id, resource, |grant| {
            grant.redirect_uri == redirect_uri && grant.code_challenge == challenge
        })
    }

    /// The tokens for a refresh token.
    pub fn refresh(&self, refresh_token: &str, client_id: &str, resource: &str) -> Result<Value, TokenError> {
        self.exchange(tagged_hash("refresh", refresh_token.as_bytes()), client_id, resource, |_| true)
    }

    /// The client that an access token was given to, where it is good for a resource.
    pub fn client(&self, access_token: &str, resource: &str) -> Option<String> {
        let hash = tagged_hash("access", access_token.as_bytes());
        let grants = self.lock();
        let grant = grants.iter().find(|grant| {
            grant.resource == resource
                && grant.access.as_ref().is_some_and(|access| access.hash == hash && access.lives())
        });
        grant.map(|grant| grant.client_id.clone())
    }

    /// The clients that have an access token now, each once.
    pub fn clients(&self) -> Vec<String> {
        let grants = self.lock();
        let living = grants.iter().filter(|grant| grant.access.as_ref().is_some_and(Secret::lives));
        let mut clients: Vec<String> = living.map(|grant| grant.client_id.clone()).collect();
        clients.sort();
        clients.dedup();
        clients
    }

    /// Gives tokens for a code or a refresh token, once. Whoever sends one a second time may have stolen it, or may have
    /// been stolen from, so all that was given for it ends (RFC 9700, sections 2.1.1 and 4.14.2).
    fn exchange(
        &self,
        hash: [u8; 32],
        client_id: &str,
        resource: &str,
        matches: impl FnOnce(&Grant) -> bool,
    ) -> Result<Value, TokenError> {
        let mut grants = self.lock();
        let known = |grant: &Grant| grant.next.hash == hash || grant.spent.contains(&hash);
        let at = grants.iter().position(known).ok_or(TokenError::InvalidGrant)?;
        // It is put back where all is well.
        let mut grant = grants.swap_remove(at);
        if grant.spent.contains(&hash) || !grant.next.lives() || grant.client_id != client_id || !matches(&grant) {
            return Err(TokenError::InvalidGrant);
        }
        if grant.resource != resource {
            return Err(TokenError::InvalidTarget);
        }
        let access = Secret::fresh("access", ACCESS_LIFETIME).ok_or(TokenError::InvalidGrant)?;
        let refresh = Secret::fresh("refresh", REFRESH_LIFETIME).ok_or(TokenError::InvalidGrant)?;
        grant.spent.push(hash);
        (grant.access, grant.next) = (Some(access.1), refresh.1);
        grants.push(grant);
        Ok(json!({
            "access_token": access.0,
            "token_type": "Bearer",
            "expires_in": ACCESS_LIFETIME.as_secs(),
            "refresh_token": refresh.0,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Grant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Secret {
    /// 256 random bits as text, and what is kept of them. None where the system has no randomness.
    fn fresh(purpose: &str, lifetime: Duration) -> Option<(String, Self)> {
        let text = generate_key_line().ok()?;
        let hash = tagged_hash(purpose, text.as_bytes());
        Some((text, Self { hash, until: Instant::now() + lifetime }))
    }

    fn lives(&self) -> bool {
        Instant::now() < self.until
    }
}

impl TokenError {
    pub fn code(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::InvalidGrant => "invalid_grant",
            Self::InvalidTarget => "invalid_target",
            Self::UnsupportedGrantType => "unsupported_grant_type",
        }
    }
}
