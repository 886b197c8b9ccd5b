//! Which server does a step, and what becomes of one that cannot do it.
//!
//! The client's own connections to a cluster and to sentinels are not used: they send a command again after the
//! connection broke, and then a flow that was taken would be taken by nobody. Here a step is sent again only where it is
//! certain that it was not done.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use redis::{
    ErrorKind, FromRedisValue, RedisError, RedisResult, ScriptInvocation, ServerErrorKind, aio::MultiplexedConnection,
};
use tokio::time::{Instant, sleep, timeout};
use zeroize::Zeroizing;

use super::{
    cluster::{Cluster, redirected},
    dial::{Connection, Dialer, Effect, Pool, Role, Server},
    sentinel::Sentinels,
    shelf::Naming,
};
use crate::store::{
    error::StoreError,
    url::{Address, RedisServers, RedisUrl},
};

/// How long an operation may take, with the connection where there is none.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long to leave a server alone that did nothing, and will soon.
const PAUSE: Duration = Duration::from_millis(50);
/// How often a cluster may send us on at once.
const REDIRECTS: usize = 5;
/// How long a write waits for a replica to have it, in milliseconds.
const REPLICA_MILLISECONDS: u64 = 300;
/// How long replicas are not waited for after none answered: they may be gone for good.
const ALONE: Duration = Duration::from_secs(10);

/// One server, or several of which one has a key.
pub struct Servers {
    /// For error messages: without user and password.
    pub name: String,
    /// Not to be shown in any.
    password: Option<Zeroizing<String>>,
    pool: Pool,
    kind: Kind,
}

enum Kind {
    One(Address),
    Sentinel(Sentinels),
    Cluster(Cluster),
}

/// Why a step was not sent, or what a server said to it.
enum Failure {
    /// Nothing was sent: this server, or whoever would know which one, cannot be reached.
    Unreachable(Option<Address>, RedisError),
    Answered(Arc<Server>, RedisError),
    /// It was done, and nobody knows whether it counts: the server broke off before a replica had it.
    Done(RedisError),
}

/// What was done to one step so far.
#[derive(Default)]
struct Attempt {
    /// Where it was sent, and may have been done.
    used: Option<Connection>,
    unreachable: Option<Address>,
    redirects: usize,
    /// Where a cluster sent us, and whether only for this once.
    sent_to: Option<(Address, bool)>,
}

impl Attempt {
    fn give_up(&mut self) {
        self.used.take().inspect(Connection::give_up);
    }
}

impl Servers {
    pub fn new(url: &RedisUrl, roots: Option<Vec<u8>>) -> Self {
        let RedisUrl { tls, servers, database, login } = url.clone();
        let name = url.to_string();
        let password = login.as_ref().map(|login| login.password.clone());
        let (kind, role) = match servers {
            RedisServers::One(address) => (Kind::One(address), Role::Any),
            RedisServers::Sentinel { sentinels, master } => {
                (Kind::Sentinel(Sentinels::new(sentinels, master)), Role::Master)
            }
            RedisServers::Cluster(nodes) => (Kind::Cluster(Cluster::new(nodes)), Role::Any),
        };
        let pool = Pool::new(Dialer { tls, roots, login, database }, role);
        Self { name, password, pool, kind }
    }

    pub fn naming(&self) -> Naming {
        match self.kind {
            Kind::One(_) | Kind::Sentinel(_) => Naming::Plain,
            Kind::Cluster(_) => Naming::Tagged,
        }
    }

    /// Has the server do a step that has the keys of this slot. Where there are replicas, what is written counts when one
    /// of them has it.
    ///
    /// # Errors
    /// Where no server can do it, or none says that it did.
    pub async fn run<T: FromRedisValue>(
        &self,
        slot: u16,
        effect: Effect,
        step: &ScriptInvocation<'_>,
    ) -> Result<T, StoreError> {
        let mut attempt = Attempt::default();
        let answer = timeout(PATIENCE, Box::pin(self.answer(slot, effect, step, &mut attempt))).await;
        let broken = match &answer {
            Ok(Ok(_)) => false,
            Ok(Err(error)) => breaks_connection(error),
            Err(_) => true,
        };
        let was_sent = attempt.used.is_some();
        if broken {
            attempt.give_up();
            self.doubt();
        }
        let said = match answer {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => failed(&self.name, self.password.as_deref(), &error),
            Err(_) => format!("{}: no answer within {} seconds", self.name, PATIENCE.as_secs()),
        };
        Err(if was_sent { StoreError::Failed(said) } else { StoreError::Away(said) })
    }

    async fn answer<T: FromRedisValue>(
        &self,
        slot: u16,
        effect: Effect,
        step: &ScriptInvocation<'_>,
        attempt: &mut Attempt,
    ) -> RedisResult<T> {
        loop {
            match self.answer_of_one(slot, effect, step, attempt).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => self.may_go_on(failure, attempt).await?,
            }
        }
    }

    async fn answer_of_one<T: FromRedisValue>(
        &self,
        slot: u16,
        effect: Effect,
        step: &ScriptInvocation<'_>,
        attempt: &mut Attempt,
    ) -> Result<T, Failure> {
        attempt.used = None;
        let sent_to = attempt.sent_to.take();
        let server = match (&sent_to, &self.kind) {
            (Some((address, _)), _) | (None, Kind::One(address)) => self.pool.server(address),
            (None, Kind::Sentinel(sentinels)) => sentinels.master(&self.pool).await,
            (None, Kind::Cluster(cluster)) => cluster.owner(slot, &self.pool).await,
        };
        let server = server.map_err(|error| Failure::Unreachable(None, error))?;
        let asking = sent_to.is_some_and(|(_, once)| once);
        let connection = match (&self.kind, asking) {
            // On one server, nothing waits for replicas.
            (Kind::One(_), _) => self.pool.connection(&server, Effect::Reads).await,
            (_, false) => self.pool.connection(&server, effect).await,
            // `ASKING` is of the command that comes next on the connection, so this one is nobody else's.
            (_, true) => self.pool.dialer.connect(&server.client, Role::Any).await,
        };
        let connection = connection.map_err(|error| Failure::Unreachable(Some(server.address.clone()), error))?;
        let connection = attempt.used.insert(connection);
        let redis = &mut connection.redis;
        let answered = |error| Failure::Answered(Arc::clone(&server), error);
        if asking {
            // So that the command that comes next is the step.
            step.load_async(redis).await.map_err(answered)?;
            redis::cmd("ASKING").query_async::<()>(redis).await.map_err(answered)?;
        }
        // Where Redis does not have the script yet, it did nothing, and is sent it: no step is done twice.
        let answer = step.invoke_async(redis).await.map_err(answered)?;
        if effect == Effect::Writes && !matches!(self.kind, Kind::One(_)) {
            let wait = |redis| self.wait_for_replica(&server, redis);
            connection.wait_for_write(wait).await.map_err(Failure::Done)?;
        }
        Ok(answer)
    }

    /// Whether the step may be sent once more: it is certain that it was not done, and there is hope.
    async fn may_go_on(&self, failure: Failure, attempt: &mut Attempt) -> RedisResult<()> {
        let (server, error) = match failure {
            // A server that sentinels named, or that has a slot, is not trusted before it answers.
            Failure::Unreachable(_, error) if is_not_yet(&error, &self.kind) => (None, error),
            Failure::Unreachable(Some(address), error) if self.has_more_than_one() => {
                let before = attempt.unreachable.replace(address.clone());
                if before == Some(address) {
                    return Err(error);
                }
                self.doubt();
                return Ok(());
            }
            Failure::Unreachable(_, error) | Failure::Done(error) => return Err(error),
            Failure::Answered(server, error) => (Some(server), error),
        };
        let redirected = |server: &Option<Arc<Server>>| {
            let ((to, _), server) = (error.redirect_node()?, server.as_ref()?);
            redirected(to, &server.address)
        };
        match error.kind() {
            ErrorKind::Server(kind @ (ServerErrorKind::Moved | ServerErrorKind::Ask)) => {
                attempt.sent_to = redirected(&server).map(|address| (address, kind == ServerErrorKind::Ask));
                attempt.redirects += 1;
                attempt.used = None;
                if kind == ServerErrorKind::Moved {
                    self.doubt();
                }
                if attempt.redirects > REDIRECTS {
                    sleep(PAUSE).await;
                }
                Ok(())
            }
            _ if is_not_yet(&error, &self.kind) => {
                if breaks_connection(&error) {
                    attempt.give_up();
                }
                attempt.used = None;
                if self.has_more_than_one() {
                    self.doubt();
                }
                sleep(PAUSE).await;
                Ok(())
            }
            _ => Err(error),
        }
    }

    fn has_more_than_one(&self) -> bool {
        !matches!(self.kind, Kind::One(_))
    }

    /// The next step finds out anew which server does it.
    fn doubt(&self) {
        match &self.kind {
            Kind::One(_) => {}
            Kind::Sentinel(sentinels) => sentinels.said.doubt(),
            Kind::Cluster(cluster) => cluster.said.doubt(),
        }
    }

    /// What one server wrote is lost where another takes its place that does not have it yet.
    async fn wait_for_replica(&self, server: &Server, mut redis: MultiplexedConnection) -> RedisResult<()> {
        let alone = *server.alone_until.lock().unwrap_or_else(PoisonError::into_inner);
        if alone.is_some_and(|until| until > Instant::now()) {
            return Ok(());
        }
        let replicas: u64 = redis::cmd("WAIT").arg(1).arg(REPLICA_MILLISECONDS).query_async(&mut redis).await?;
        let now_alone = (replicas == 0).then(|| Instant::now() + ALONE);
        *server.alone_until.lock().unwrap_or_else(PoisonError::into_inner) = now_alone;
        let (store, server) = (&self.name, &server.address);
        match (alone, now_alone) {
            (None, Some(_)) => tracing::warn!(
                store,
                %server,
                "no replica has what was written: it is lost if another server takes this one's place now"
            ),
            (Some(_), None) => tracing::info!(store, %server, "replicas have what is written again"),
            (None, None) | (Some(_), Some(_)) => {}
        }
        Ok(())
    }
}

/// Whether a server did nothing, and says so, and this or another one will soon.
fn is_not_yet(error: &RedisError, kind: &Kind) -> bool {
    let ErrorKind::Server(server_error) = error.kind() else { return false };
    match server_error {
        // It has just started.
        ServerErrorKind::BusyLoading => true,
        // Its replica's turn has come, or a part of the keys is on its way.
        ServerErrorKind::ReadOnly
        | ServerErrorKind::TryAgain
        | ServerErrorKind::ClusterDown
        | ServerErrorKind::MasterDown => !matches!(kind, Kind::One(_)),
        // The same, where a script finds the name of another key in the first one. Each finds it before it writes what it
        // is for, so it can be sent again.
        ServerErrorKind::ResponseError => {
            matches!(kind, Kind::Cluster(_)) && error.to_string().contains("attempted to access a non local key")
        }
        _ => false,
    }
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

fn failed(name: &str, password: Option<&String>, error: &RedisError) -> String {
    let mut said = error.to_string();
    // A server repeats the arguments of a command that it does not know, and those of `HELLO` have the password.
    if let Some((start, _)) = said.split_once("with args beginning with") {
        said = format!("{start}…");
    }
    if let Some(password) = password {
        said = said.replace(password.as_str(), "…");
    }
    format!("{name}: {said}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_error_shows_the_password() {
        let password = "hunter2".to_owned();
        for detail in [
            "unknown command 'HELLO', with args beginning with: '3' 'AUTH' 'default' 'hunt",
            "hunter2 is no password of mine",
        ] {
            let error = RedisError::from((ErrorKind::AuthenticationFailed, "refused", detail.to_owned()));
            let shown = failed("redis://…@redis:6379/0", Some(&password), &error);
            assert!(!shown.contains("hunt"), "{shown}");
            assert!(shown.contains("redis://…@redis:6379/0: refused"), "{shown}");
        }
    }
}
