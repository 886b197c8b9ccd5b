//! Where gRPC is served, and how it is protected.

use std::{io::ErrorKind, sync::Arc};

use anyhow::{Context, bail};

use super::settings::shared::{ExchangeArgs, ProcessArgs};
use crate::{
    contract::{
        proto::upstream_tokens_server::UpstreamTokensServer, tokens::UpstreamTokens, tokens_service::TokensService,
    },
    net::{
        grpc::GrpcListener,
        listen::{ListenAddr, Listener, SocketMode},
        tls::server::{ServerTls, server_tls},
    },
};

/// What serves tokens.
pub type TokensServer = UpstreamTokensServer<TokensService>;

/// How the main listener is protected. What is sent over plain gRPC is trusted, so other machines must not reach it
/// unasked.
///
/// # Errors
/// Where they would, where a TLS setting is wrong or without use, or where the address cannot be resolved.
pub async fn main_tls(
    address: &ListenAddr,
    args: &ProcessArgs,
    tokens_listen: Option<&ListenAddr>,
) -> anyhow::Result<Option<ServerTls>> {
    if let ListenAddr::Unix(_) = address {
        if args.tls.is_given() && !matches!(tokens_listen, Some(ListenAddr::Tcp { .. })) {
            bail!(
                "--tls-cert, --tls-key, --client-ca and --allow-peer are for gRPC over TCP, and nothing listens there"
            );
        }
        return Ok(None);
    }
    let tls = server_tls("tls", &args.tls.files(), &args.tls.allow_peer)?;
    let plain = tls.is_none() && !args.insecure_grpc;
    if plain && !address.is_local().await.with_context(|| cannot_listen("listen", address))? {
        bail!(
            "--listen {address}: other machines reach this address, and what they send over plain gRPC is trusted; \
             give --tls-cert, --tls-key and --client-ca, listen on loopback or a Unix socket, or say --insecure-grpc"
        );
    }
    Ok(tls)
}

/// Where tokens are handed out: a Unix socket, or mTLS.
pub struct TokensListener {
    address: ListenAddr,
    mode: SocketMode,
    tls: Option<ServerTls>,
}

impl TokensListener {
    /// What the settings ask for; none where they ask for none.
    ///
    /// # Errors
    /// Where the address is neither a Unix socket nor has all that mTLS takes, or a file cannot be used.
    pub fn new(settings: &ExchangeArgs, process: &ProcessArgs) -> anyhow::Result<Option<Self>> {
        let address = settings.tokens_listen.clone();
        if !settings.tokens_allow_peer.is_empty() && !matches!(address, Some(ListenAddr::Tcp { .. })) {
            bail!("--tokens-allow-peer is for a --tokens-listen of TCP");
        }
        let Some(address) = address else {
            return Ok(None);
        };
        let allowed = match settings.tokens_allow_peer.as_slice() {
            [] => &process.tls.allow_peer,
            allowed => allowed,
        };
        let tls = match &address {
            ListenAddr::Unix(_) => None,
            ListenAddr::Tcp { .. } => match server_tls("tokens_tls", &process.tls.files(), allowed)? {
                None => bail!(
                    "--tokens-listen {address}: whoever reaches it may have every user's token, so it is a Unix socket \
                     (unix:/path) or has --tls-cert, --tls-key and --client-ca"
                ),
                tls => tls,
            },
        };
        Ok(Some(Self { address, mode: settings.tokens_socket_mode, tls }))
    }

    /// With the tokens to hand out.
    pub fn serving(self, tokens: Arc<dyn UpstreamTokens>) -> GrpcListener<TokensServer> {
        GrpcListener {
            name: "tokens",
            flag: "tokens-listen",
            address: self.address,
            mode: self.mode,
            tls: self.tls,
            service: UpstreamTokensServer::new(TokensService(tokens)),
        }
    }
}

/// # Errors
/// Where the address is taken, or not to be had; the error names the flag.
pub async fn bind(flag: &str, address: &ListenAddr, mode: SocketMode) -> anyhow::Result<Listener> {
    address.bind(mode).await.map_err(|error| {
        let is_no_folder = error.kind() == ErrorKind::NotFound && matches!(address, ListenAddr::Unix(_));
        let hint = if is_no_folder { ", since the folder of the socket does not exist" } else { "" };
        anyhow::Error::new(error).context(format!("{}{hint}", cannot_listen(flag, address)))
    })
}

/// What goes before the reason why there is no listening at an address.
pub fn cannot_listen(flag: &str, address: &ListenAddr) -> String {
    format!("--{flag} {address}: cannot listen there")
}
