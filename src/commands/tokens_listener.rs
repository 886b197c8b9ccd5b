//! The listener that tokens are handed out on: a Unix socket, or mTLS.

use anyhow::bail;
use tonic::service::Routes;

use crate::{
    commands::settings::{ExchangeArgs, ProcessArgs},
    contract::{proto::upstream_tokens_server::UpstreamTokensServer, tokens_service::TokensService},
    exchange::embedded::Embedded,
    net::{grpc::GrpcListener, listen::ListenAddr, tls::server_tls},
};

/// What the settings ask for; none where they ask for none.
///
/// # Errors
/// Where the address is neither a Unix socket nor has all that mTLS takes, or a file cannot be used.
pub fn tokens_listener(
    settings: &ExchangeArgs,
    process: &ProcessArgs,
    embedded: &Embedded,
) -> anyhow::Result<Option<GrpcListener>> {
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
        ListenAddr::Tcp { .. } => match server_tls("tokens_tls", &process.tls, allowed)? {
            None => bail!(
                "--tokens-listen {address}: whoever reaches it may have every user's token, so it is a Unix socket \
                 (unix:/path) or has --tls-cert, --tls-key and --client-ca"
            ),
            tls => tls,
        },
    };
    let routes = Routes::new(UpstreamTokensServer::new(TokensService(embedded.clone())));
    Ok(Some(GrpcListener {
        name: "tokens",
        flag: "tokens-listen",
        address,
        mode: settings.tokens_socket_mode,
        tls,
        routes,
    }))
}
