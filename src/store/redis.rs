//! A store in Redis or Valkey, for any number of processes. Each step is one script, which Redis runs atomically.

//!
//! The server is one, or one of several: a master that sentinels name, or the node of a cluster that has the keys. What
//! a step touches is therefore on one [`shelf`], whatever the step is.

use std::path::Path;

use async_trait::async_trait;
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use redis::{FromRedisValue, Script, ScriptInvocation};

mod cluster;
mod dial;
mod hearsay;
mod sentinel;
mod servers;
mod shelf;

use self::{
    dial::{Effect, roots_as_pem},
    servers::Servers,
    shelf::{Naming, Shelf, text},
};
use super::{
    backend::{Flow, FlowLimits, Found, Holder, Kept, Store, Taken},
    error::{OpenError, StoreError, blocking},
    key_file,
    keys::{Context, FlowKey, Owner, RegistrationsKey, RouteKey, TokenKey},
    url::RedisUrl,
};
use crate::model::{clock::UnixTime, seal::Sealer};

/// The store in Redis. It connects when it has something to do, and anew after a connection broke.
pub struct RedisStore {
    servers: Servers,
    naming: Naming,
    scripts: Scripts,
}

struct Scripts {
    key_check: Script,
    add_flow: Script,
    take_flow: Script,
    put_token: Script,
    token: Script,
    remove_token: Script,
    replace_token: Script,
    claim: Script,
    release: Script,
    expect_again: Script,
    registrations: Script,
    replace_registrations: Script,
}

impl RedisStore {
    /// Connects, and checks that the keys are the ones that the store was sealed with. Its check record comes along.
    ///
    /// # Errors
    /// Where Redis cannot be reached or refuses us, or a file cannot be used.
    pub async fn open(
        url: &RedisUrl,
        encryption_keys: &Path,
        extra_ca: Option<&Path>,
    ) -> Result<(Self, Sealer, Vec<u8>), OpenError> {
        let at = |reason| OpenError::Keys { path: encryption_keys.to_owned(), reason };
        let (keys_path, ca) = (encryption_keys.to_owned(), extra_ca.filter(|_| url.tls).map(Path::to_owned));
        let (sealer, roots) = blocking(move || {
            let roots = ca.map(|path| roots_as_pem(&path).map_err(|reason| OpenError::ExtraCa { path, reason }));
            (key_file::read(&keys_path), roots.transpose())
        })
        .await?;
        let sealer = sealer.map_err(at)?;
        let servers = Servers::new(url, roots?);
        let store = Self { naming: servers.naming(), servers, scripts: Scripts::new() };
        let offered = key_file::check_record(&sealer).map_err(|error| StoreError::Failed(error.to_string()))?;
        let there = store.check_record(offered, None).await?;
        let there = match key_file::check(&sealer, &there).map_err(at)? {
            Some(newer) => store.check_record(newer, Some(there)).await?,
            None => there,
        };
        Ok((store, sealer, there))
    }

    async fn read<T: FromRedisValue>(&self, shelf: &Shelf, step: &ScriptInvocation<'_>) -> Result<T, StoreError> {
        self.servers.run(shelf.slot, Effect::Reads, step).await
    }

    async fn write<T: FromRedisValue>(&self, shelf: &Shelf, step: &ScriptInvocation<'_>) -> Result<T, StoreError> {
        self.servers.run(shelf.slot, Effect::Writes, step).await
    }
}

#[async_trait]
impl Store for RedisStore {
    async fn add_flow(&self, flow: Flow, limits: FlowLimits, now: UnixTime) -> Result<(), StoreError> {
        let Flow { id, context, user, expires_at, sealed, tombstone } = flow;
        let shelf = self.naming.of_flows();
        let mut step = self.scripts.add_flow.key(shelf.key_of("flow", id.as_bytes()));
        step.key(shelf.key("flows")).key(shelf.key_of("flows", user.as_bytes())).key(shelf.key("sequence"));
        step.arg(now.secs())
            .arg(expires_at.secs())
            .arg(limits.of_user)
            .arg(limits.in_all)
            .arg(text(id.as_bytes()))
            .arg(shelf.prefix_of("flow"));
        step.arg(&context.as_bytes()[..]).arg(sealed).arg(tombstone);
        match self.write(&shelf, &step).await? {
            0 => Ok(()),
            1 => Err(StoreError::Full),
            2 => Err(StoreError::Failed("there is a flow of this id".to_owned())),
            other => Err(self.unexpected(other)),
        }
    }

    async fn take_flow(&self, id: FlowKey, context: Context, now: UnixTime) -> Result<Taken, StoreError> {
        let shelf = self.naming.of_flows();
        let mut step = self.scripts.take_flow.key(shelf.key_of("flow", id.as_bytes()));
        step.arg(now.secs()).arg(&context.as_bytes()[..]);
        let (outcome, content): (i64, Vec<u8>) = self.write(&shelf, &step).await?;
        match outcome {
            0 => Ok(Taken::Unknown),
            1 => Ok(Taken::WrongContext),
            2 => Ok(Taken::Used(content)),
            3 => Ok(Taken::Flow(content)),
            other => Err(self.unexpected(other)),
        }
    }

    async fn put_token(&self, key: TokenKey, route: RouteKey, sealed: Vec<u8>) -> Result<Option<Kept>, StoreError> {
        let shelf = self.naming.of(key.owner());
        let mut step = self.scripts.put_token.key(shelf.key_of("token", key.as_bytes()));
        step.key(shelf.key_of("route", route.as_bytes()));
        step.arg(text(key.as_bytes())).arg(sealed).arg(shelf.prefix_of("token"));
        self.kept(key.owner(), self.write(&shelf, &step).await?)
    }

    async fn token(&self, route: RouteKey) -> Result<Option<Found>, StoreError> {
        let shelf = self.naming.of(route.owner());
        let mut step = self.scripts.token.key(shelf.key_of("route", route.as_bytes()));
        step.key(shelf.key_of("again", route.as_bytes())).arg(shelf.prefix_of("token"));
        let found: Option<(Vec<u8>, Vec<u8>, Option<u64>)> = self.read(&shelf, &step).await?;
        let Some((name, sealed, again)) = found else { return Ok(None) };
        let kept = self.kept(route.owner(), Some((name, sealed)))?;
        Ok(kept.map(|kept| Found { kept, again: again.map(UnixTime::from_secs) }))
    }

    async fn expect_again(&self, route: RouteKey, until: UnixTime, now: UnixTime) -> Result<bool, StoreError> {
        let shelf = self.naming.of(route.owner());
        let mut step = self.scripts.expect_again.key(shelf.key_of("again", route.as_bytes()));
        step.key(shelf.key_of("route", route.as_bytes()));
        // It takes no time that is over.
        self.write(&shelf, step.arg(until.secs()).arg(until.since(now).max(1))).await
    }

    async fn replace_token(&self, key: TokenKey, old: Vec<u8>, sealed: Vec<u8>) -> Result<bool, StoreError> {
        let shelf = self.naming.of(key.owner());
        let mut step = self.scripts.replace_token.key(shelf.key_of("token", key.as_bytes()));
        self.write(&shelf, step.arg(old).arg(sealed)).await
    }

    async fn claim(&self, key: TokenKey, holder: Holder, seconds: u64) -> Result<bool, StoreError> {
        let shelf = self.naming.of(key.owner());
        let mut step = self.scripts.claim.key(shelf.key_of("claim", key.as_bytes()));
        self.write(&shelf, step.arg(&holder.0[..]).arg(seconds)).await
    }

    async fn release(&self, key: TokenKey, holder: Holder) -> Result<(), StoreError> {
        let shelf = self.naming.of(key.owner());
        let mut step = self.scripts.release.key(shelf.key_of("claim", key.as_bytes()));
        self.write::<i64>(&shelf, step.arg(&holder.0[..])).await.map(drop)
    }

    async fn check_record(&self, offered: Vec<u8>, instead_of: Option<Vec<u8>>) -> Result<Vec<u8>, StoreError> {
        let shelf = self.naming.of_store();
        let mut step = self.scripts.key_check.key(shelf.key("key_check"));
        self.write(&shelf, step.arg(offered).arg(instead_of.unwrap_or_default())).await
    }

    async fn remove_token(&self, key: TokenKey, route: RouteKey, old: Vec<u8>) -> Result<bool, StoreError> {
        let shelf = self.naming.of(key.owner());
        let mut step = self.scripts.remove_token.key(shelf.key_of("token", key.as_bytes()));
        self.write(&shelf, step.key(shelf.key_of("route", route.as_bytes())).arg(text(key.as_bytes())).arg(old)).await
    }

    async fn registrations(&self, key: RegistrationsKey) -> Result<Option<Vec<u8>>, StoreError> {
        let shelf = self.naming.of_registrations(key);
        self.read(&shelf, &self.scripts.registrations.key(shelf.key_of("registrations", key.as_bytes()))).await
    }

    async fn replace_registrations(
        &self,
        key: RegistrationsKey,
        old: Option<Vec<u8>>,
        sealed: Vec<u8>,
    ) -> Result<bool, StoreError> {
        let shelf = self.naming.of_registrations(key);
        let mut step = self.scripts.replace_registrations.key(shelf.key_of("registrations", key.as_bytes()));
        self.write(&shelf, step.arg(old.unwrap_or_default()).arg(sealed)).await
    }
}

impl RedisStore {
    fn kept(&self, owner: Owner, found: Option<(Vec<u8>, Vec<u8>)>) -> Result<Option<Kept>, StoreError> {
        let Some((name, sealed)) = found else { return Ok(None) };
        let key =
            BASE64_URL_SAFE_NO_PAD.decode(name).ok().and_then(|key| key.try_into().ok()).map(TokenKey::from_bytes);
        let key =
            key.ok_or_else(|| StoreError::Failed(format!("{}: a route points at no token's key", self.servers.name)))?;
        Ok(Some((key.of_owner(owner), sealed)))
    }

    fn unexpected(&self, outcome: i64) -> StoreError {
        StoreError::Failed(format!("{}: a script answered {outcome}", self.servers.name))
    }
}

impl Scripts {
    fn new() -> Self {
        Self {
            key_check: Script::new(include_str!("redis/key_check.lua")),
            add_flow: Script::new(include_str!("redis/add_flow.lua")),
            take_flow: Script::new(include_str!("redis/take_flow.lua")),
            put_token: Script::new(include_str!("redis/put_token.lua")),
            token: Script::new(include_str!("redis/token.lua")),
            remove_token: Script::new(include_str!("redis/remove_token.lua")),
            replace_token: Script::new(include_str!("redis/replace_token.lua")),
            claim: Script::new(include_str!("redis/claim.lua")),
            release: Script::new(include_str!("redis/release.lua")),
            expect_again: Script::new(include_str!("redis/expect_again.lua")),
            registrations: Script::new(include_str!("redis/registrations.lua")),
            replace_registrations: Script::new(include_str!("redis/replace_registrations.lua")),
        }
    }
}
