//! The fetches of a probe. Unlike those of [`crate::net::outgoing`] they go wherever the operator points.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use futures_util::future::select_ok;
use http::{HeaderMap, HeaderValue};
use reqwest::Method;
use tokio::{net::TcpStream, time::timeout};
use url::{Host, Url};

use crate::{
    commands::settings::probe::Probe,
    model::{origin::Origin, paths::EndpointPath},
    net::outgoing::{
        self, client,
        error::{self, truncate},
        reach::known_addresses,
        resolver::{Resolver, SystemResolver},
    },
};

/// A way to one document.
pub struct Fetcher {
    url: Url,
    authority: String,
    addresses: Vec<SocketAddr>,
    tls: rustls::ClientConfig,
    patience: Duration,
}

/// A whole answer, of whatever status.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    pub elapsed: Duration,
}

/// Why there is none.
#[derive(Debug)]
pub enum Failure {
    Tls(rustls::Error),
    Timeout,
    Broken(String),
    TooLarge,
}

impl Fetcher {
    /// # Errors
    /// Where an option cannot be used; the error names it.
    pub fn new(origin: &Origin, path: &EndpointPath, options: &Probe) -> anyhow::Result<Self> {
        let mut url = Url::parse(&format!("{origin}{path}"))?;
        let mut tls = outgoing::client_config(options.extra_ca.as_deref())?;
        // Of HTTP/1.1, which every server speaks, it can be said what `host` is.
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        if let Some(address) = options.connect_to {
            if !matches!(url.host(), Some(Host::Domain(_))) {
                bail!("--connect-to: the URL names an address itself");
            }
            url.set_port(Some(address.port())).ok().context("--connect-to")?;
        }
        let patience = Duration::from_secs(options.timeout.into());
        let addresses = options.connect_to.into_iter().collect();
        Ok(Self { url, authority: origin.authority().to_owned(), addresses, tls, patience })
    }

    /// The addresses that the host's name has, which are then connected to; none where the operator named one.
    ///
    /// # Errors
    /// Where it has none, with the reason.
    pub async fn resolve(&mut self) -> Result<BTreeSet<IpAddr>, String> {
        if !self.addresses.is_empty() {
            return Ok(BTreeSet::new());
        }
        let found = timeout(self.patience, resolve(&self.url)).await;
        let found = found.unwrap_or_else(|_| Err("no answer in time".to_owned()))?;
        let port = self.url.port_or_known_default().unwrap_or_default();
        self.addresses = found.iter().map(|address| SocketAddr::new(*address, port)).collect();
        Ok(found)
    }

    /// Finds out whether one of the addresses takes connections. Whatever fails later, a server would meet too.
    ///
    /// # Errors
    /// Where none does, with the reason.
    pub async fn connect(&self) -> Result<(), String> {
        // All at once, since one that never answers says nothing of the others.
        let attempts = self.addresses.iter().map(|address| Box::pin(TcpStream::connect(*address)));
        let first = timeout(self.patience, select_ok(attempts)).await;
        let first = first.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        first.map(drop).map_err(|error| error.to_string())
    }

    /// # Errors
    /// Where no whole answer came.
    pub async fn get(&self, headers: &[(&'static str, &str)]) -> Result<Answer, Failure> {
        self.send(Method::GET, headers).await
    }

    /// # Errors
    /// Where no whole answer came.
    pub async fn send(&self, method: Method, headers: &[(&'static str, &str)]) -> Result<Answer, Failure> {
        let began = Instant::now();
        let client = client::builder(&self.tls, self.addresses.clone(), Arc::default()).http1_only().build();
        let client = client.map_err(failed)?;
        // The URL's port is where to connect; `host` is the origin's, unless a header says otherwise.
        let mut all = HeaderMap::new();
        for (name, value) in [("host", self.authority.as_str()), ("accept", "application/json")].iter().chain(headers) {
            // An origin and our own words are always header values.
            let value = HeaderValue::from_str(value).unwrap_or(HeaderValue::from_static(""));
            all.insert(*name, value);
        }
        let request = client.request(method, self.url.clone()).headers(all).build().map_err(failed)?;
        match timeout(self.patience, client::execute(&client, request)).await {
            Ok(Ok(Some(answer))) => {
                let (head, body) = answer.into_parts();
                Ok(Answer { status: head.status.as_u16(), headers: head.headers, body, elapsed: began.elapsed() })
            }
            Ok(Ok(None)) => Err(Failure::TooLarge),
            Ok(Err(error)) => Err(failed(error)),
            Err(_) => Err(Failure::Timeout),
        }
    }
}

fn failed(error: reqwest::Error) -> Failure {
    match error::tls_error(&error) {
        Some(error) => Failure::Tls(error.clone()),
        None => Failure::Broken(error::reason(&error)),
    }
}

async fn resolve(url: &Url) -> Result<BTreeSet<IpAddr>, String> {
    if let Some(known) = known_addresses(url) {
        return Ok(known.into_iter().collect());
    }
    let found = SystemResolver.resolve(url.host_str().unwrap_or_default()).await;
    let found: BTreeSet<IpAddr> = found.map_err(|error| truncate(error.to_string()))?.into_iter().collect();
    if found.is_empty() { Err("it has no address".to_owned()) } else { Ok(found) }
}
