//! Which node of a cluster has which slot.

use std::{collections::HashSet, ops::RangeInclusive, pin::Pin, sync::Arc, time::Duration};

use futures_util::future::select_ok;
use redis::{ErrorKind, RedisResult, ServerErrorKind, Value, from_redis_value};
use tokio::time::timeout;

use super::{
    dial::{Effect, Pool, Server},
    hearsay::Hearsay,
};
use crate::store::url::Address;

/// How long one node may take to say who has what: less than the step has that waits for it, so that a connection on which
/// nothing comes any more is known for that.
const PATIENCE: Duration = Duration::from_secs(1);

/// The nodes, and what they said last of who has what.
pub struct Cluster {
    /// Asked where no other node is known.
    seeds: Vec<Address>,
    pub said: Hearsay<Arc<[Part]>>,
}

/// The first and the last slot of a part of the keys, and who has it.
#[derive(Debug, PartialEq)]
pub struct Part {
    slots: RangeInclusive<u16>,
    node: Address,
}

impl Cluster {
    pub fn new(seeds: Vec<Address>) -> Self {
        Self { seeds, said: Hearsay::default() }
    }

    /// The node that has a slot.
    ///
    /// # Errors
    /// Where no node can be reached, or nobody has the slot.
    pub async fn owner(&self, slot: u16, pool: &Pool) -> RedisResult<Arc<Server>> {
        let parts = self.said.or_ask(self.ask(pool)).await?;
        match parts.iter().find(|part| part.slots.contains(&slot)) {
            Some(part) => pool.server(&part.node),
            None => Err((ErrorKind::Server(ServerErrorKind::ClusterDown), "no node has this part of the keys").into()),
        }
    }

    /// Of all nodes, the first that answers is believed: one that is behind sends us on.
    async fn ask(&self, pool: &Pool) -> RedisResult<Arc<[Part]>> {
        type Asked<'a> = Pin<Box<dyn Future<Output = RedisResult<Vec<Part>>> + Send + 'a>>;
        let nodes: HashSet<Address> = pool.addresses().into_iter().chain(self.seeds.iter().cloned()).collect();
        let asked = nodes.into_iter().map(|node| -> Asked<'_> { Box::pin(slots(node, pool)) });
        let (parts, _others) = select_ok(asked).await?;
        pool.keep_only(|address| parts.iter().any(|part| part.node == *address));
        Ok(parts.into())
    }
}

/// What one node knows.
async fn slots(node: Address, pool: &Pool) -> RedisResult<Vec<Part>> {
    let server = pool.server(&node)?;
    let mut connection = pool.connection(&server, Effect::Reads).await?;
    let mut question = redis::cmd("CLUSTER");
    let answer = timeout(PATIENCE, question.arg("SLOTS").query_async(&mut connection.redis)).await;
    let answer: RedisResult<Vec<Vec<Value>>> =
        answer.unwrap_or_else(|_| Err((ErrorKind::Io, "a node did not answer in time").into()));
    let answer = answer.inspect_err(|_| connection.give_up())?;
    let parts: Vec<_> = answer.into_iter().filter_map(|part| read_part(part, &node)).collect();
    if parts.is_empty() {
        return Err((ErrorKind::Server(ServerErrorKind::ClusterDown), "a node knows of no other").into());
    }
    Ok(parts)
}

/// First slot, last slot, the master (host, port, …), its replicas.
fn read_part(part: Vec<Value>, asked: &Address) -> Option<Part> {
    let mut values = part.into_iter();
    let (first, last): (u16, u16) = (from_redis_value(values.next()?).ok()?, from_redis_value(values.next()?).ok()?);
    let mut master = from_redis_value::<Vec<Value>>(values.next()?).ok()?.into_iter();
    let host: Option<String> = from_redis_value(master.next()?).ok()?;
    let port = from_redis_value(master.next()?).ok()?;
    Some(Part { slots: first..=last, node: named(host.as_deref().unwrap_or_default(), port, asked) })
}

/// Where a node is that another one named. Without a host, it is on the one that was asked.
fn named(host: &str, port: u16, asked: &Address) -> Address {
    Address { host: if host.is_empty() { asked.host.clone() } else { host.to_owned() }, port }
}

/// Where a node sends us: `host:port`, of which the host may be missing.
pub fn redirected(to: &str, asked: &Address) -> Option<Address> {
    let (host, port) = to.rsplit_once(':')?;
    Some(named(host.trim_matches(['[', ']']), port.parse().ok()?, asked))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_say_where_others_are() {
        let asked = Address { host: "one".to_owned(), port: 7000 };
        for (to, host, port) in [
            ("10.0.0.1:7001", "10.0.0.1", 7001),
            (":7002", "one", 7002),
            ("::1:7003", "::1", 7003),
            ("[::1]:4", "::1", 4),
        ] {
            assert_eq!(redirected(to, &asked), Some(Address { host: host.to_owned(), port }), "{to}");
        }
        for to in ["", "one", "one:", "one:70000"] {
            assert_eq!(redirected(to, &asked), None, "{to}");
        }
        let node = |host: Value| Value::Array(vec![host, Value::Int(7001), Value::BulkString(b"id".into())]);
        let part = |host| read_part(vec![Value::Int(0), Value::Int(5), node(host), node(Value::Nil)], &asked);
        let at = |host: &str| Some(Part { slots: 0..=5, node: Address { host: host.to_owned(), port: 7001 } });
        assert_eq!(part(Value::BulkString(b"two".into())), at("two"));
        assert_eq!(part(Value::Nil), at("one"));
        assert_eq!(read_part(vec![Value::Int(0)], &asked), None);
    }
}
