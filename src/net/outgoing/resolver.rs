//! From a name to addresses: once, before the check. What connects afterwards is given the checked addresses.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use async_trait::async_trait;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// Resolves the host names of outgoing fetches.
#[async_trait]
pub trait Resolver: Send + Sync {
    /// All addresses of a name. Called once a fetch, and never for a literal address or a name below `localhost`.
    ///
    /// # Errors
    /// Where the name cannot be resolved. The text goes to operators.
    async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>>;
}

/// The system's own way, `/etc/hosts` and search domains included.
#[derive(Clone, Copy, Debug)]
pub struct SystemResolver;

#[async_trait]
impl Resolver for SystemResolver {
    async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        Ok(tokio::net::lookup_host((name, 0)).await?.map(|address| address.ip()).collect())
    }
}

/// The answer to every question of one fetch's client.
#[derive(Clone, Debug)]
pub(super) struct Pinned(pub Vec<SocketAddr>);

impl Resolve for Pinned {
    fn resolve(&self, _: Name) -> Resolving {
        let addresses: Addrs = Box::new(self.0.clone().into_iter());
        Box::pin(std::future::ready(Ok(addresses)))
    }
}
