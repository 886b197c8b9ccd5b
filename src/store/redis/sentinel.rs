//! The master that sentinels name.

use std::{pin::Pin, sync::Arc};

use futures_util::future::select_ok;
use redis::{ErrorKind, RedisResult, aio::MultiplexedConnection};

use super::{
    dial::{Pool, Server},
    hearsay::Hearsay,
};
use crate::store::url::Address;

/// Who to ask for the master, and what they said last.
pub struct Sentinels {
    addresses: Vec<Address>,
    /// The name that they know it by.
    name: String,
    pub said: Hearsay<Arc<Server>>,
}

impl Sentinels {
    pub fn new(addresses: Vec<Address>, name: String) -> Self {
        Self { addresses, name, said: Hearsay::default() }
    }

    /// The master. The first sentinel that knows it is believed; a connection finds out whether it is true.
    ///
    /// # Errors
    /// Where none can be reached, or none knows the name.
    pub async fn master(&self, pool: &Pool) -> RedisResult<Arc<Server>> {
        type Asked<'a> = Pin<Box<dyn Future<Output = RedisResult<Address>> + Send + 'a>>;
        let ask = async {
            let asked = self.addresses.iter().map(|sentinel| -> Asked<'_> { Box::pin(self.ask(pool, sentinel)) });
            let (address, _others) = select_ok(asked).await?;
            pool.keep_only(|other| *other == address);
            pool.server(&address)
        };
        self.said.or_ask(ask).await
    }

    async fn ask(&self, pool: &Pool, sentinel: &Address) -> RedisResult<Address> {
        let mut redis = connection(pool, sentinel).await?;
        let mut ask = redis::cmd("SENTINEL");
        let found: Option<(String, u16)> =
            ask.arg("GET-MASTER-ADDR-BY-NAME").arg(&self.name).query_async(&mut redis).await?;
        let (host, port) =
            found.ok_or((ErrorKind::MasterNameNotFoundBySentinel, "the sentinels know no master of this name"))?;
        Ok(Address { host, port })
    }
}

/// A sentinel may want the login of the servers, or none.
async fn connection(pool: &Pool, sentinel: &Address) -> RedisResult<MultiplexedConnection> {
    let dialer = &pool.dialer;
    let connect = async |login| dialer.client_as(sentinel, login, 0)?.get_multiplexed_async_connection().await;
    match connect(dialer.login.as_ref()).await {
        Err(error) if dialer.login.is_some() && !error.is_io_error() => connect(None).await,
        connection => connection,
    }
}
