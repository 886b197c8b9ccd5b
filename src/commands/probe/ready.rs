//! `envoy-cimd probe --ready`: a container's health check, for images without a shell or curl.

use std::{path::PathBuf, str::FromStr, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use tokio::{net::lookup_host, time::timeout};
use url::Url;

use crate::net::{
    listen::{bare_host, unix_path},
    outgoing::{
        self, client,
        error::{self, truncate},
    },
};

/// Where `serve` says it unless told otherwise.
pub const DEFAULT_READY: &str = "http://127.0.0.1:9002/readyz";

const PATIENCE: Duration = Duration::from_secs(3);

/// Where an admin listener says whether the process is ready.
#[derive(Clone, Debug, PartialEq)]
pub enum ReadyUrl {
    Http(Url),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl FromStr for ReadyUrl {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(path) = unix_path(text) {
            return path.map(Self::Unix);
        }
        let mut url = Url::parse(text).map_err(|_| "is not a URL")?;
        if url.scheme() != "http" {
            return Err("must be `http://…` or `unix:/path`");
        }
        match url.path() {
            "/" => url.set_path("/readyz"),
            path if path.ends_with("/readyz") => {}
            // `/metrics` and `/healthz` answer 200 whether the process is ready or not.
            _ => return Err("must end in /readyz, or have no path"),
        }
        Ok(Self::Http(url))
    }
}

/// # Errors
/// Where it does not answer 200, with what it says.
pub async fn ready(url: &ReadyUrl) -> anyhow::Result<()> {
    match timeout(PATIENCE, ask(url)).await {
        Ok(outcome) => outcome.context("not ready"),
        Err(_) => bail!("not ready: no answer within {} seconds", PATIENCE.as_secs()),
    }
}

async fn ask(url: &ReadyUrl) -> anyhow::Result<()> {
    let tls = outgoing::client_config(None)?;
    let (client, url) = match url {
        ReadyUrl::Http(url) => {
            let host = bare_host(url.host_str().unwrap_or_default());
            let port = url.port_or_known_default().unwrap_or_default();
            let addresses = lookup_host((host, port)).await.with_context(|| host.to_owned())?.collect();
            (client::builder(&tls, addresses, Arc::default()), url.clone())
        }
        ReadyUrl::Unix(path) => {
            let client = client::builder(&tls, Vec::new(), Arc::default()).unix_socket(path.clone());
            (client, Url::parse("http://localhost/readyz")?)
        }
    };
    let client = client.build()?;
    let request = client.get(url).build()?;
    let answer = client::execute(&client, request).await.map_err(|failure| anyhow::anyhow!(error::reason(&failure)))?;
    let answer = answer.context("its answer does not end")?;
    if answer.status() != http::StatusCode::OK {
        let body = String::from_utf8_lossy(answer.body());
        bail!("{} {}", answer.status().as_u16(), truncate(body.trim().escape_debug().to_string()));
    }
    Ok(())
}
