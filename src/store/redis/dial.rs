//! Connections to servers: each is made when it is first needed, and anew after it broke.

use std::{
    collections::HashMap,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use base64::{Engine, prelude::BASE64_STANDARD};
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ErrorKind, IntoConnectionInfo, ProtocolVersion, PushInfo, PushKind,
    RedisConnectionInfo, RedisResult, ServerErrorKind, TlsCertificates, Value, aio::MultiplexedConnection,
    from_redis_value,
};
use rustls::pki_types::CertificateDer;
use tokio::{sync::Mutex as AsyncMutex, time::Instant};

use crate::{
    net::tls::roots,
    store::url::{Address, Login},
};

/// What a server is for.
#[derive(Clone, Copy, PartialEq)]
pub enum Role {
    /// It is the one that has been named, or a cluster says which keys it has.
    Any,
    /// Sentinels said so; it may be a moment ago.
    Master,
}

/// What a step does.
#[derive(Clone, Copy, PartialEq)]
pub enum Effect {
    Reads,
    Writes,
}

/// How servers are spoken to.
pub struct Dialer {
    pub tls: bool,
    /// As PEM. The system's where there are none.
    pub roots: Option<Vec<u8>>,
    pub login: Option<Login>,
    pub database: i64,
}

#[derive(Clone)]
pub struct Connection {
    pub redis: MultiplexedConnection,
    /// Not to be used for anything new.
    broken: Arc<AtomicBool>,
    written: Arc<Written>,
}

/// What was written on a connection, and how much of it was waited for. One wait is for all that came before it.
#[derive(Default)]
struct Written {
    writes: AtomicU64,
    waited_for: AsyncMutex<u64>,
}

impl Connection {
    /// After a write: waits until a replica has it, or none is to be waited for. `wait` does so for all that was written on
    /// this connection before it.
    ///
    /// # Errors
    /// Those of `wait`.
    pub async fn wait_for_write<W>(&self, wait: impl FnOnce(MultiplexedConnection) -> W) -> RedisResult<()>
    where
        W: Future<Output = RedisResult<()>>,
    {
        let this = self.written.writes.fetch_add(1, Ordering::Relaxed) + 1;
        let mut waited_for = self.written.waited_for.lock().await;
        if *waited_for < this {
            let all = self.written.writes.load(Ordering::Relaxed);
            wait(self.redis.clone()).await?;
            *waited_for = all;
        }
        Ok(())
    }

    pub fn give_up(&self) {
        self.broken.store(true, Ordering::Relaxed);
    }

    fn is_whole(&self) -> bool {
        !self.broken.load(Ordering::Relaxed)
    }
}

/// Whether an answer to `ROLE` is a master's. What follows the name differs with the role.
fn is_master(role: Vec<Value>) -> bool {
    role.into_iter().next().and_then(|name| from_redis_value::<String>(name).ok()).is_some_and(|name| name == "master")
}

impl Dialer {
    /// # Errors
    /// Where the server cannot be reached or refuses us, or has another role.
    pub async fn connect(&self, client: &Client, role: Role) -> RedisResult<Connection> {
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
        let mut redis = client.get_multiplexed_async_connection_with_config(&config).await?;
        if role == Role::Master {
            let role: Vec<Value> = redis::cmd("ROLE").query_async(&mut redis).await?;
            if !is_master(role) {
                return Err((ErrorKind::Server(ServerErrorKind::ReadOnly), "it is not the master").into());
            }
        }
        Ok(Connection { redis, broken, written: Arc::default() })
    }

    /// # Errors
    /// Where the authorities cannot be used.
    pub fn client(&self, address: &Address) -> RedisResult<Client> {
        self.client_as(address, self.login.as_ref(), self.database)
    }

    /// # Errors
    /// As [`Self::client`].
    pub fn client_as(&self, address: &Address, login: Option<&Login>, database: i64) -> RedisResult<Client> {
        let mut settings = RedisConnectionInfo::default().set_db(database).set_protocol(ProtocolVersion::RESP3);
        if let Some(login) = login {
            settings = settings.set_password(login.password.as_str());
            if let Some(user) = &login.user {
                settings = settings.set_username(user);
            }
        }
        let Address { host, port } = address.clone();
        let address = if self.tls {
            // rustls has no default provider where two are compiled in. Where one was installed, it stays.
            let _ = rustls::crypto::ring::default_provider().install_default();
            ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
        } else {
            ConnectionAddr::Tcp(host, port)
        };
        let tcp = redis::io::tcp::TcpSettings::default().set_nodelay(true);
        let info = address.into_connection_info()?.set_redis_settings(settings).set_tcp_settings(tcp);
        match self.roots.clone() {
            Some(roots) => Client::build_with_tls(info, TlsCertificates { client_tls: None, root_cert: Some(roots) }),
            None => Client::open(info),
        }
    }
}

/// The servers that were spoken to.
pub struct Pool {
    pub dialer: Dialer,
    role: Role,
    servers: Mutex<HashMap<Address, Arc<Server>>>,
}

impl Pool {
    pub fn new(dialer: Dialer, role: Role) -> Self {
        Self { dialer, role, servers: Mutex::default() }
    }

    /// # Errors
    /// As [`Dialer::client`].
    pub fn server(&self, address: &Address) -> RedisResult<Arc<Server>> {
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(server) = servers.get(address) {
            return Ok(Arc::clone(server));
        }
        let server = Arc::new(Server {
            address: address.clone(),
            client: self.dialer.client(address)?,
            reading: AsyncMutex::default(),
            writing: AsyncMutex::default(),
            alone_until: Mutex::default(),
        });
        servers.insert(address.clone(), Arc::clone(&server));
        Ok(server)
    }

    pub fn addresses(&self) -> Vec<Address> {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// Forgets servers that are none of ours any more.
    pub fn keep_only(&self, ours: impl Fn(&Address) -> bool) {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner).retain(|address, _| ours(address));
    }

    /// The server's connection, or a new one where there is none that is whole. Others wait meanwhile, each for as long as
    /// its own patience lasts.
    ///
    /// `redis::aio::ConnectionManager` would do, but after an outage it fails one more operation, and it stays with a
    /// connection on which nothing is answered any more.
    ///
    /// # Errors
    /// As [`Dialer::connect`].
    pub async fn connection(&self, server: &Server, effect: Effect) -> RedisResult<Connection> {
        // On a connection that waits for replicas, nothing else is answered.
        let slot = match effect {
            Effect::Reads => &server.reading,
            Effect::Writes => &server.writing,
        };
        let mut slot = slot.lock().await;
        if let Some(connection) = slot.as_ref().filter(|connection| connection.is_whole()) {
            return Ok(connection.clone());
        }
        *slot = None;
        Ok(slot.insert(self.dialer.connect(&server.client, self.role).await?).clone())
    }
}

/// One server.
pub struct Server {
    pub address: Address,
    pub client: Client,
    reading: AsyncMutex<Option<Connection>>,
    writing: AsyncMutex<Option<Connection>>,
    /// Until when its replicas are not waited for, since none answered.
    pub alone_until: Mutex<Option<Instant>>,
}

/// The system's authorities and those of a file, as PEM: given any, the client takes no others, and refuses all where
/// rustls refuses one.
///
/// # Errors
/// Where the file cannot be read, or has none.
pub fn roots_as_pem(extra: &Path) -> Result<Vec<u8>, String> {
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

    /// As servers of each role answer it.
    #[test]
    fn a_master_is_told_from_others() {
        let text = |text: &str| Value::BulkString(text.into());
        let master = vec![text("master"), Value::Int(3129), Value::Array(Vec::new())];
        let replica = vec![text("slave"), text("127.0.0.1"), Value::Int(9000), text("connected"), Value::Int(3167)];
        let sentinel = vec![text("sentinel"), Value::Array(vec![text("main")])];
        for (role, expected) in [(master, true), (replica, false), (sentinel, false), (Vec::new(), false)] {
            assert_eq!(is_master(role), expected);
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
