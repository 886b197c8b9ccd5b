//! Requests as any program of this machine sends them, but that every host is at 127.0.0.1: programs do not resolve
//! `*.localhost` as browsers do.

use std::{net::Ipv4Addr, path::Path};

use http::Version;
use url::Url;

use super::{Answered, Call, Client};

/// Trusts one certificate authority, and no other.
#[derive(Clone)]
pub struct Web {
    tls: Client,
    plain: Client,
}

impl Web {
    pub fn new(ca: &Path) -> Self {
        let address = (Ipv4Addr::LOCALHOST, 0).into();
        Self { tls: Client::tls(address, ca), plain: Client::plain(address) }
    }

    /// Sends a GET, or what `with` makes of it. No redirect is followed.
    pub async fn send(&self, url: &Url, with: impl FnOnce(Call) -> Call) -> Result<Answered, String> {
        let client = if url.scheme() == "https" { &self.tls } else { &self.plain };
        let address = (Ipv4Addr::LOCALHOST, url.port_or_known_default().unwrap_or_default()).into();
        client.at(address).send(Version::HTTP_11, with(Call::url(url))).await
    }
}

/// A URL that came as text.
pub fn parse(text: &str) -> Result<Url, String> {
    Url::parse(text).map_err(|error| format!("{text} is no URL: {error}"))
}
