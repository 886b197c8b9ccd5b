//! A store in Redis or Valkey, for any number of processes. Each step is one script, which Redis runs atomically.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ErrorKind, FromRedisValue, IntoConnectionInfo, ProtocolVersion,
    PushInfo, PushKind, RedisConnectionInfo, RedisError, RedisResult, Script, ScriptInvocation, ServerErrorKind,
    TlsCertificates, aio::MultiplexedConnection,
};
use rustls::pki_types::CertificateDer;
use tokio::{
    sync::Mutex,
    time::{sleep, timeout},
};
use zeroize::Zeroizing;

use super::{
    backend::{Flow, FlowLimits, Found, Holder, Kept, Store, Taken},
    error::{OpenError, StoreError, blocking},
    key_file,
    keys::{Context, FlowKey, RegistrationsKey, RouteKey, TokenKey},
    url::RedisUrl,
};
use crate::{
    model::{clock::UnixTime, seal::Sealer},
    net::tls::roots,
};

/// How long an operation may take, with the connection where there is none.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long to leave a server alone that is still loading.
const LOADING: Duration = Duration::from_millis(50);
/// All our keys begin with this: an operator may give us a part of a server by it.
const NAMESPACE: &str = "envoy_cimd:v1";

/// The store in Redis. It connects when it has something to do, and anew after the connection broke.
pub struct RedisStore {
    /// For error messages: without user and password.
    name: String,
    /// Not to be shown in any.
    password: Option<Zeroizing<String>>,
    client: Client,
    /// `redis::aio::ConnectionManager` would do, but after an outage it fails one more operation, and it stays with a
    /// connection on which nothing is answered any more.
    connection: Mutex<Option<Connection>>,
    scripts: Scripts,
}

#[derive(Clone)]
struct Connection {
    redis: MultiplexedConnection,
    /// Not to be used for anything new.
    broken: Arc<AtomicBool>,
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
    /// Connects, and checks that the keys are the ones that the store was sealed with.
    ///
    /// # Errors
    /// Where Redis cannot be reached or refuses us, or a file cannot be used.
    pub async fn open(
        url: &RedisUrl,
        encryption_keys: &Path,
        extra_ca: Option<&Path>,
    ) -> Result<(Self, Sealer), OpenError> {
        let at = |reason| OpenError::Keys { path: encryption_keys.to_owned(), reason };
        let (keys_path, ca) = (encryption_keys.to_owned(), extra_ca.filter(|_| url.tls).map(Path::to_owned));
        let (sealer, roots) = blocking(move || {
            let roots = ca.map(|path| roots_as_pem(&path).map_err(|reason| OpenError::ExtraCa { path, reason }));
            (key_file::read(&keys_path), roots.transpose())
        })
        .await?;
        let sealer = sealer.map_err(at)?;
        let store = Self::new(url, roots?)?;
        let offered = key_file::check_record(&sealer).map_err(|error| StoreError::Failed(error.to_string()))?;
        let there = store.check_record(&offered, None).await?;
        if let Some(newer) = key_file::check(&sealer, &there).map_err(at)? {
            store.check_record(&newer, Some(&there)).await?;
        }
        Ok((store, sealer))
    }

    fn new(url: &RedisUrl, roots: Option<Vec<u8>>) -> Result<Self, StoreError> {
        let RedisUrl { tls, host, port, database, login } = url;
        let mut settings = RedisConnectionInfo::default().set_db(*database).set_protocol(ProtocolVersion::RESP3);
        if let Some(login) = login {
            settings = settings.set_password(login.password.as_str());
            if let Some(user) = &login.user {
                settings = settings.set_username(user);
            }
        }
        let address = if *tls {
            // rustls has no default provider where two are compiled in. Where one was installed, it stays.
            let _ = rustls::crypto::ring::default_provider().install_default();
            ConnectionAddr::TcpTls { host: host.clone(), port: *port, insecure: false, tls_params: None }
        } else {
            ConnectionAddr::Tcp(host.clone(), *port)
        };
        let name = url.to_string();
        let client = address.into_connection_info().and_then(|info| {
            let tcp = redis::io::tcp::TcpSettings::default().set_nodelay(true);
            let info = info.set_redis_settings(settings).set_tcp_settings(tcp);
            match roots {
                Some(roots) => {
                    Client::build_with_tls(info, TlsCertificates { client_tls: None, root_cert: Some(roots) })
                }
                None => Client::open(info),
            }
        });
        let password = login.as_ref().map(|login| login.password.clone());
        let client = client.map_err(|error| failed(&name, password.as_deref(), &error))?;
        Ok(Self { name, password, client, connection: Mutex::default(), scripts: Scripts::new() })
    }

    /// The check record that is there, which is `offered` where there was none, or where `instead_of` was there.
    async fn check_record(&self, offered: &[u8], instead_of: Option<&[u8]>) -> Result<Vec<u8>, StoreError> {
        let mut step = self.scripts.key_check.key(format!("{NAMESPACE}:key_check"));
        self.run(step.arg(offered).arg(instead_of.unwrap_or_default())).await
    }

    async fn run<T: FromRedisValue>(&self, step: &ScriptInvocation<'_>) -> Result<T, StoreError> {
        let mut used = None;
        let answer = timeout(PATIENCE, async {
            loop {
                let answer = match self.connection().await {
                    // Where Redis does not have the script yet, it did nothing, and is sent it: no step is done twice.
                    Ok(connection) => step.invoke_async(&mut used.insert(connection).redis).await,
                    Err(error) => Err(error),
                };
                match answer {
                    // It has just started, and says so in the place of doing anything.
                    Err(error) if is_loading(&error) => sleep(LOADING).await,
                    answer => return answer,
                }
            }
        });
        let answer = answer.await;
        let broken = match &answer {
            Ok(Ok(_)) => false,
            Ok(Err(error)) => breaks_connection(error),
            Err(_) => true,
        };
        if let Some(connection) = used.filter(|_| broken) {
            connection.broken.store(true, Ordering::Relaxed);
        }
        match answer {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(failed(&self.name, self.password.as_deref(), &error)),
            Err(_) => {
                Err(StoreError::Failed(format!("{}: no answer within {} seconds", self.name, PATIENCE.as_secs())))
            }
        }
    }

    /// The connection, or a new one where there is none that is whole. Others wait meanwhile, each for as long as its
    /// own patience lasts.
    async fn connection(&self) -> RedisResult<Connection> {
        let mut slot = self.connection.lock().await;
        if let Some(connection) = slot.as_ref().filter(|connection| !connection.broken.load(Ordering::Relaxed)) {
            return Ok(connection.clone());
        }
        *slot = None;
        let broken = Arc::new(AtomicBool::new(false));
        let seen_broken = Arc::clone(&broken);
        let config = AsyncConnectionConfig::new()
            // Each operation has its own patience.
            .set_connection_timeout(None)
            .set_response_timeout(None)
            .set_push_sender(move |push: PushInfo| {
                if push.kind == PushKind::Disconnection {
                    seen_broken.store(true, Ordering::Relaxed);
                }
                Ok::<_, std::convert::Infallible>(())
            });
        let redis = self.client.get_multiplexed_async_connection_with_config(&config).await?;
        Ok(slot.insert(Connection { redis, broken }).clone())
    }
}

#[async_trait]
impl Store for RedisStore {
    async fn add_flow(&self, flow: Flow, limits: FlowLimits, now: UnixTime) -> Result<(), StoreError> {
        let Flow { id, context, user, expires_at, sealed, tombstone } = flow;
        let mut step = self.scripts.add_flow.key(flow_key(&id));
        step.key(flows_key())
            .key(format!("{NAMESPACE}:flows:{}", text(user.as_bytes())))
            .key(format!("{NAMESPACE}:sequence"));
        step.arg(now.secs())
            .arg(expires_at.secs())
            .arg(limits.of_user)
            .arg(limits.in_all)
            .arg(text(id.as_bytes()))
            .arg(flow_prefix());
        step.arg(&context.as_bytes()[..]).arg(sealed).arg(tombstone);
        match self.run(&step).await? {
            0 => Ok(()),
            1 => Err(StoreError::Full),
            2 => Err(StoreError::Failed("there is a flow of this id".to_owned())),
            other => Err(self.unexpected(other)),
        }
    }

    async fn take_flow(&self, id: FlowKey, context: Context, now: UnixTime) -> Result<Taken, StoreError> {
        let mut step = self.scripts.take_flow.key(flow_key(&id));
        step.arg(now.secs()).arg(&context.as_bytes()[..]);
        let (outcome, content): (i64, Vec<u8>) = self.run(&step).await?;
        match outcome {
            0 => Ok(Taken::Unknown),
            1 => Ok(Taken::WrongContext),
            2 => Ok(Taken::Used(content)),
            3 => Ok(Taken::Flow(content)),
            other => Err(self.unexpected(other)),
        }
    }

    async fn put_token(&self, key: TokenKey, route: RouteKey, sealed: Vec<u8>) -> Result<Option<Kept>, StoreError> {
        let mut step = self.scripts.put_token.key(token_key(&key));
        step.key(route_key(&route)).arg(text(key.as_bytes())).arg(sealed).arg(token_prefix());
        self.kept(self.run(&step).await?)
    }

    async fn token(&self, route: RouteKey) -> Result<Option<Found>, StoreError> {
        let mut step = self.scripts.token.key(route_key(&route));
        step.key(again_key(&route)).arg(token_prefix());
        let found: Option<(Vec<u8>, Vec<u8>, Option<u64>)> = self.run(&step).await?;
        let Some((name, sealed, again)) = found else { return Ok(None) };
        let kept = self.kept(Some((name, sealed)))?;
        Ok(kept.map(|kept| Found { kept, again: again.map(UnixTime::from_secs) }))
    }

    async fn expect_again(&self, route: RouteKey, until: UnixTime, now: UnixTime) -> Result<bool, StoreError> {
        let mut step = self.scripts.expect_again.key(again_key(&route));
        step.key(route_key(&route));
        // It takes no time that is over.
        self.run(step.arg(until.secs()).arg(until.since(now).max(1))).await
    }

    async fn replace_token(&self, key: TokenKey, old: Vec<u8>, sealed: Vec<u8>) -> Result<bool, StoreError> {
        let mut step = self.scripts.replace_token.key(token_key(&key));
        self.run(step.arg(old).arg(sealed)).await
    }

    async fn claim(&self, key: TokenKey, holder: Holder, seconds: u64) -> Result<bool, StoreError> {
        let mut step = self.scripts.claim.key(claim_key(&key));
        self.run(step.arg(&holder.0[..]).arg(seconds)).await
    }

    async fn release(&self, key: TokenKey, holder: Holder) -> Result<(), StoreError> {
        let mut step = self.scripts.release.key(claim_key(&key));
        self.run::<i64>(step.arg(&holder.0[..])).await.map(drop)
    }

    async fn remove_token(&self, key: TokenKey, route: RouteKey, old: Vec<u8>) -> Result<bool, StoreError> {
        let mut step = self.scripts.remove_token.key(token_key(&key));
        self.run(step.key(route_key(&route)).arg(text(key.as_bytes())).arg(old)).await
    }

    async fn registrations(&self, key: RegistrationsKey) -> Result<Option<Vec<u8>>, StoreError> {
        self.run(&self.scripts.registrations.key(registrations_key(&key))).await
    }

    async fn replace_registrations(
        &self,
        key: RegistrationsKey,
        old: Option<Vec<u8>>,
        sealed: Vec<u8>,
    ) -> Result<bool, StoreError> {
        let mut step = self.scripts.replace_registrations.key(registrations_key(&key));
        self.run(step.arg(old.unwrap_or_default()).arg(sealed)).await
    }
}

impl RedisStore {
    fn kept(&self, found: Option<(Vec<u8>, Vec<u8>)>) -> Result<Option<Kept>, StoreError> {
        let Some((name, sealed)) = found else { return Ok(None) };
        let key =
            BASE64_URL_SAFE_NO_PAD.decode(name).ok().and_then(|key| key.try_into().ok()).map(TokenKey::from_bytes);
        let key = key.ok_or_else(|| StoreError::Failed(format!("{}: a route points at no token's key", self.name)))?;
        Ok(Some((key, sealed)))
    }

    fn unexpected(&self, outcome: i64) -> StoreError {
        StoreError::Failed(format!("{}: a script answered {outcome}", self.name))
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

fn flow_prefix() -> String {
    format!("{NAMESPACE}:flow:")
}

fn flow_key(id: &FlowKey) -> String {
    flow_prefix() + &text(id.as_bytes())
}

fn flows_key() -> String {
    format!("{NAMESPACE}:flows")
}

fn token_prefix() -> String {
    format!("{NAMESPACE}:token:")
}

fn token_key(key: &TokenKey) -> String {
    token_prefix() + &text(key.as_bytes())
}

fn claim_key(key: &TokenKey) -> String {
    format!("{NAMESPACE}:claim:{}", text(key.as_bytes()))
}

fn route_key(route: &RouteKey) -> String {
    format!("{NAMESPACE}:route:{}", text(route.as_bytes()))
}

fn registrations_key(key: &RegistrationsKey) -> String {
    format!("{NAMESPACE}:registrations:{}", text(key.as_bytes()))
}

fn again_key(route: &RouteKey) -> String {
    format!("{NAMESPACE}:again:{}", text(route.as_bytes()))
}

fn text(hash: &[u8; 32]) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(hash)
}

/// Whether it refuses everything until it has read what it keeps.
fn is_loading(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::BusyLoading)
}

/// Whether the next operation had better connect anew. A server that lost its role answers, but the name that it goes
/// by may be another's now.
fn breaks_connection(error: &RedisError) -> bool {
    match error.kind() {
        ErrorKind::Server(kind) => kind == ServerErrorKind::ReadOnly,
        ErrorKind::Extension | ErrorKind::UnexpectedReturnType => false,
        _ => true,
    }
}

fn failed(name: &str, password: Option<&String>, error: &RedisError) -> StoreError {
    let mut said = error.to_string();
    // A server repeats the arguments of a command that it does not know, and those of `HELLO` have the password.
    if let Some((start, _)) = said.split_once("with args beginning with") {
        said = format!("{start}…");
    }
    if let Some(password) = password {
        said = said.replace(password.as_str(), "…");
    }
    StoreError::Failed(format!("{name}: {said}"))
}

/// The system's authorities and those of a file, as PEM: given any, the client takes no others, and refuses all where
/// rustls refuses one.
fn roots_as_pem(extra: &Path) -> Result<Vec<u8>, String> {
    let authorities = roots::authorities(Some(extra)).map_err(|error| format!("{error:#}"))?;
    let mut pem = Vec::new();
    authorities.iter().for_each(|certificate| write_pem(&mut pem, certificate));
    Ok(pem)
}

fn write_pem(pem: &mut Vec<u8>, certificate: &CertificateDer<'_>) {
    let text = BASE64_STANDARD.encode(certificate);
    pem.extend(b"-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.extend(line);
        pem.push(b'\n');
    }
    pem.extend(b"-----END CERTIFICATE-----\n");
}

#[cfg(test)]
mod tests {
    use rustls::{RootCertStore, pki_types::pem::PemObject};

    use super::*;

    #[test]
    fn no_error_shows_the_password() {
        let password = "hunter2".to_owned();
        for detail in [
            "unknown command 'HELLO', with args beginning with: '3' 'AUTH' 'default' 'hunt",
            "hunter2 is no password of mine",
        ] {
            let error = RedisError::from((ErrorKind::AuthenticationFailed, "refused", detail.to_owned()));
            let shown = failed("redis://…@redis:6379/0", Some(&password), &error).to_string();
            assert!(!shown.contains("hunt"), "{shown}");
            assert!(shown.contains("redis://…@redis:6379/0: refused"), "{shown}");
        }
    }

    #[test]
    fn an_extra_authority_comes_beside_the_systems() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("ca.pem");
        let refused = |content: &str| {
            std::fs::write(&path, content).expect("a file");
            roots_as_pem(&path).expect_err("no authority")
        };
        assert_eq!(refused("nothing"), "has no certificate");
        refused("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
        refused("-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n");
        let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate").cert;
        std::fs::write(&path, own.pem()).expect("a file");
        let pem = roots_as_pem(&path).expect("authorities");
        let all: Vec<_> = CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().expect("PEM");
        assert_eq!(all.first(), Some(own.der()));
        let mut store = RootCertStore::empty();
        let system = rustls_native_certs::load_native_certs().certs;
        assert_eq!(all.len(), 1 + store.add_parsable_certificates(system).0);
    }
}
