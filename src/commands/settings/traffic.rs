//! The settings of MCP traffic.

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use anyhow::bail;
use clap::{Args, value_parser};

use super::shared::at_least_one;
use crate::{
    edge::roles::RoleName,
    filter::traffic,
    model::page_origin::PageOrigin,
    net::{
        dial::GrpcUrl,
        tls::{client, peer::PeerName},
    },
};

/// Who may have tokens put into MCP requests, and where they come from.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "MCP traffic")]
pub struct TrafficArgs {
    /// What --listen serves: `endpoints`, the document and the pages of every route; `traffic`, which puts each user's
    /// token into MCP requests; and `refused`, which answers for upstreams that refuse one. By default all on a Unix socket
    /// and over mTLS with --allow-peer, and endpoints elsewhere. Repeatable.
    #[arg(long, env = "ENVOY_CIMD_ROLES", value_name = "ROLE", value_delimiter = ',')]
    roles: Vec<RoleName>,
    /// Serve traffic on plain loopback too: every account of the machine can have every user's token then. For a demo.
    #[arg(long, env = "ENVOY_CIMD_INSECURE_TRAFFIC", default_value = "false", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", value_name = "BOOL")]
    pub insecure_traffic: bool,
    /// Where tokens come from with --choreographer, which traffic needs then: the --tokens-listen of that process, as
    /// `unix:/path` or `https://host:port`.
    #[arg(long, env = "ENVOY_CIMD_TOKENS", value_name = "URL")]
    pub tokens: Option<GrpcUrl>,
    /// The authority that the certificate of --tokens is from, a PEM file; by default --choreographer-ca.
    #[arg(long, env = "ENVOY_CIMD_TOKENS_CA", value_name = "FILE")]
    tokens_ca: Option<PathBuf>,
    /// Our certificate for --tokens, a PEM file; by default --choreographer-cert, with its key.
    #[arg(long, env = "ENVOY_CIMD_TOKENS_CERT", value_name = "FILE")]
    tokens_cert: Option<PathBuf>,
    /// The private key of that certificate, a PEM file.
    #[arg(long, env = "ENVOY_CIMD_TOKENS_KEY", value_name = "FILE")]
    pub tokens_key: Option<PathBuf>,
    /// The name that the certificate of --tokens must have, instead of its host; by default --choreographer-peer.
    #[arg(long, env = "ENVOY_CIMD_TOKENS_PEER", value_name = "SAN")]
    tokens_peer: Option<PeerName>,
    /// A web origin whose pages may send MCP requests besides the route's own, such as `https://app.example`; or http on
    /// loopback, such as `http://localhost:6274` of the MCP Inspector. Repeatable.
    #[arg(long, env = "ENVOY_CIMD_ALLOW_ORIGIN", value_name = "ORIGIN", value_delimiter = ',')]
    allow_origin: Vec<PageOrigin>,
    /// How long a token is kept in memory for the next requests of its user, in seconds, 60 at most; 0: not at all. A
    /// disconnect may take as long to reach the other processes.
    #[arg(long, env = "ENVOY_CIMD_TOKEN_CACHE", value_name = "SECONDS", default_value = "5", value_parser = value_parser!(u16).range(0..=60))]
    token_cache: u16,
    /// How many tokens are kept in memory.
    #[arg(long, env = "ENVOY_CIMD_MAX_CACHED_TOKENS", value_name = "COUNT", default_value = "100000", value_parser = value_parser!(u64).range(1..))]
    max_cached_tokens: u64,
    /// How many MCP requests may wait for a token; as many again may wait for their bodies, which are read only where
    /// there is no token, and as many calls until their person is connected. Each takes a stream, for seconds. Of one
    /// user 100, 8 and 8 may wait; --single-user has 50 times as many. Further requests get 503; further calls are told
    /// where to connect.
    #[arg(long, env = "ENVOY_CIMD_MAX_HOLDS", value_name = "COUNT", default_value = "1000", value_parser = at_least_one)]
    max_holds: usize,
}

impl TrafficArgs {
    /// What `--roles` names; none where it is not given.
    ///
    /// # Errors
    /// Where it names one twice.
    pub fn roles(&self) -> anyhow::Result<Option<BTreeSet<RoleName>>> {
        let mut named = BTreeSet::new();
        for role in &self.roles {
            if !named.insert(*role) {
                bail!("--roles names `{role}` twice");
            }
        }
        Ok(Some(named).filter(|named| !named.is_empty()))
    }

    pub fn config(&self) -> traffic::Config {
        traffic::Config {
            allow_origins: self.allow_origin.clone(),
            token_cache: Duration::from_secs(self.token_cache.into()),
            max_cached_tokens: self.max_cached_tokens,
            max_holds: self.max_holds,
        }
    }

    /// The TLS of the connection to `--tokens`, which is the choreographer's where nothing is said of its own.
    pub fn tokens_tls(&self, choreographer: client::Config) -> client::Config {
        let own = client::Config {
            ca: self.tokens_ca.clone(),
            cert: self.tokens_cert.clone(),
            key: self.tokens_key.clone(),
            peer: self.tokens_peer.clone(),
        };
        if self.tokens.as_ref().is_some_and(GrpcUrl::is_https) { own.or(choreographer) } else { own }
    }
}
