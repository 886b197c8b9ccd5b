//! The key of an identity provider, and the tokens that it signs with it (RFC 7515; RFC 7518, section 3.4).

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use ring::{
    error::Unspecified,
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair},
};
use serde_json::{Value, json};

/// What the one key is called.
const KEY_ID: &str = "demo";

pub struct Signer {
    key: EcdsaKeyPair,
    random: SystemRandom,
}

impl Signer {
    /// One with a fresh key.
    pub fn new() -> anyhow::Result<Self> {
        let (random, algorithm) = (SystemRandom::new(), &ECDSA_P256_SHA256_FIXED_SIGNING);
        let made = EcdsaKeyPair::generate_pkcs8(algorithm, &random);
        let key = made.map_err(|_| anyhow::anyhow!("the system gives no randomness"))?;
        let key = EcdsaKeyPair::from_pkcs8(algorithm, key.as_ref(), &random);
        Ok(Self { key: key.map_err(|error| anyhow::anyhow!("the key is not good: {error}"))?, random })
    }

    /// What others check tokens by (RFC 7517).
    pub fn public_keys(&self) -> Value {
        // A byte that says so, then two coordinates of equal length.
        let point = self.key.public_key().as_ref().get(1..).unwrap_or_default();
        let (x, y) = point.split_at(point.len() / 2);
        let [x, y] = [x, y].map(|coordinate| BASE64_URL_SAFE_NO_PAD.encode(coordinate));
        json!({"keys": [{"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": KEY_ID, "x": x, "y": y}]})
    }

    /// A token with these claims.
    pub fn sign(&self, claims: &Value) -> Result<String, Unspecified> {
        let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        let text = format!("{}.{}", part(&json!({"alg": "ES256", "kid": KEY_ID, "typ": "JWT"})), part(claims));
        let signature = self.key.sign(&self.random, text.as_bytes())?;
        Ok(format!("{text}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature)))
    }
}
