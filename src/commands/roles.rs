//! What the listener of `serve` serves. Whoever reaches the role traffic can have every user's token,
//! and whoever reaches the role refused can have them refreshed.

use std::fmt;

use anyhow::{Context, bail};

use super::{listeners::cannot_listen, settings::serve::Serve};
use crate::{edge::roles::RoleName, net::listen::ListenAddr};

/// The roles of the listener, of which there is at least one.
#[derive(Clone, Debug, PartialEq)]
pub struct Served {
    pub endpoints: bool,
    pub traffic: bool,
    pub refused: bool,
    /// Why there is no traffic, where nobody said that there should be none.
    pub left_out: Option<String>,
}

/// What the settings ask for, or else what may be served where they have it listen.
///
/// # Errors
/// Where they ask for traffic or refused, and it must not or cannot be served; where they name a role twice, or the address cannot be
/// resolved.
pub async fn roles(settings: &Serve) -> anyhow::Result<Served> {
    let traffic = &settings.traffic;
    let named = traffic.roles()?;
    // Whoever says where tokens come from, or allows them where they would not be, wants them.
    let serves = |role| named.as_ref().is_none_or(|named| named.contains(&role));
    let wanted_by = match &named {
        Some(_) if !serves(RoleName::Traffic) && !serves(RoleName::Refused) => {
            if traffic.tokens.is_some() {
                bail!("--tokens is for the roles traffic and refused, which --roles leaves out");
            }
            return Ok(Served { endpoints: true, traffic: false, refused: false, left_out: None });
        }
        Some(_) if serves(RoleName::Traffic) => Some("--roles traffic"),
        Some(_) => Some("--roles refused"),
        None if traffic.tokens.is_some() => Some("--tokens"),
        None if traffic.insecure_traffic => Some("--insecure-traffic"),
        None => None,
    };
    let left_out = fault(settings).await?;
    if let (Some(flag), Some(reason)) = (wanted_by, &left_out) {
        bail!("{flag}: {reason}");
    }
    let allowed = left_out.is_none();
    Ok(Served {
        endpoints: serves(RoleName::Endpoints),
        traffic: allowed && serves(RoleName::Traffic),
        refused: allowed && serves(RoleName::Refused),
        left_out,
    })
}

/// Why traffic is not to be served with these settings.
async fn fault(settings: &Serve) -> anyhow::Result<Option<String>> {
    let (address, tls) = (&settings.listen, &settings.process.tls);
    let exposed = match address {
        ListenAddr::Unix(_) => None,
        ListenAddr::Tcp { .. } if tls.is_given() && tls.allow_peer.is_empty() => {
            Some("without --allow-peer, whoever has a certificate of --client-ca can have every user's token")
        }
        ListenAddr::Tcp { .. } if tls.is_given() => None,
        ListenAddr::Tcp { .. } => {
            let is_local = address.is_local().await.with_context(|| cannot_listen("listen", address))?;
            match (is_local, settings.traffic.insecure_traffic) {
                (true, true) => None,
                (true, false) => Some(
                    "every account of this machine could have every user's token; listen on a Unix socket, or give mTLS \
                     and --allow-peer, or say --insecure-traffic for a demo",
                ),
                (false, _) => Some(
                    "other machines reach this address in the clear, and could have every user's token; listen on a Unix \
                     socket, or give mTLS and --allow-peer",
                ),
            }
        }
    };
    Ok(match exposed {
        Some(exposed) => Some(format!("no traffic on --listen {address}: {exposed}")),
        None if settings.choreographer.is_some() && settings.traffic.tokens.is_none() => {
            Some("no traffic with --choreographer unless --tokens says where tokens come from".to_owned())
        }
        None => None,
    })
}

impl fmt::Display for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { endpoints, traffic, refused, .. } = *self;
        let all = [(endpoints, RoleName::Endpoints), (traffic, RoleName::Traffic), (refused, RoleName::Refused)];
        let served: Vec<String> = all.iter().filter(|(served, _)| *served).map(|(_, role)| role.to_string()).collect();
        f.write_str(&served.join(", "))
    }
}
