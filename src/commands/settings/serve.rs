//! The settings of `serve`.

use std::path::PathBuf;

use anyhow::bail;
use clap::Args;

use super::{
    shared::{ExchangeArgs, FileArg, ProcessArgs, RouteArgs, at_least_one},
    traffic::TrafficArgs,
};
use crate::{
    edge::ext_proc,
    filter::endpoint,
    model::{
        brand::{Brand, BrandName, HelpUrl},
        shares::ShareLimits,
        user::{MetadataPath, UserSource, Users},
    },
    net::{
        dial::GrpcUrl,
        listen::ListenAddr,
        tls::{client, peer::PeerName},
    },
};

/// `envoy-cimd serve`.
#[derive(Args, Debug)]
pub struct Serve {
    #[command(flatten)]
    pub file: FileArg,
    /// Where Envoy's ext_proc filter connects: `host:port` or `unix:/path`.
    #[arg(long, env = "ENVOY_CIMD_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:9001")]
    pub listen: ListenAddr,
    /// Where /healthz, /readyz, /metrics, /log and /routes are served: `host:port` or `unix:/path`.
    #[arg(long, env = "ENVOY_CIMD_ADMIN_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:9002")]
    pub admin_listen: ListenAddr,
    /// The authorization choreographer: `http://host:port`, `https://host:port` or `unix:/path`.
    #[arg(long, env = "ENVOY_CIMD_CHOREOGRAPHER", value_name = "URL")]
    pub choreographer: Option<GrpcUrl>,
    /// The authority that the choreographer's certificate is from, a PEM file.
    #[arg(long, env = "ENVOY_CIMD_CHOREOGRAPHER_CA", value_name = "FILE")]
    pub choreographer_ca: Option<PathBuf>,
    /// Our certificate for the choreographer, a PEM file.
    #[arg(long, env = "ENVOY_CIMD_CHOREOGRAPHER_CERT", value_name = "FILE")]
    pub choreographer_cert: Option<PathBuf>,
    /// The private key of that certificate, a PEM file.
    #[arg(long, env = "ENVOY_CIMD_CHOREOGRAPHER_KEY", value_name = "FILE")]
    pub choreographer_key: Option<PathBuf>,
    /// The name that the choreographer's certificate must have, instead of the host of --choreographer: a DNS name, or
    /// a URI such as a SPIFFE id.
    #[arg(long, env = "ENVOY_CIMD_CHOREOGRAPHER_PEER", value_name = "SAN")]
    pub choreographer_peer: Option<PeerName>,
    /// The keys that sign states, one a line as `keygen` prints: the first signs, all verify. Read again when it changes.
    #[arg(long, env = "ENVOY_CIMD_STATE_KEYS", value_name = "FILE")]
    pub state_keys: Option<PathBuf>,
    /// Take everybody who reaches the routes for one person: for a demo, or a gateway of your own.
    #[arg(long, env = "ENVOY_CIMD_SINGLE_USER", default_value = "false", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", value_name = "BOOL")]
    pub single_user: bool,
    /// Where in that metadata the person's issuer is, such as `jwt_payload.iss`.
    #[arg(long, env = "ENVOY_CIMD_USER_ISSUER", value_name = "PATH")]
    pub user_issuer: Option<MetadataPath>,
    /// Where in that metadata the person's subject is, such as `jwt_payload.sub`.
    #[arg(long, env = "ENVOY_CIMD_USER_SUBJECT", value_name = "PATH")]
    pub user_subject: Option<MetadataPath>,
    /// Where in that metadata the name of the person is, for the pages to show, such as `jwt_payload.email`.
    #[arg(long, env = "ENVOY_CIMD_DISPLAY_CLAIM", value_name = "PATH")]
    pub display_claim: Option<MetadataPath>,
    /// The name of your company, for the pages.
    #[arg(long, env = "ENVOY_CIMD_BRAND_NAME", value_name = "TEXT")]
    pub brand_name: Option<BrandName>,
    /// Where your people find help, for the pages: an https URL.
    #[arg(long, env = "ENVOY_CIMD_BRAND_HELP_URL", value_name = "URL")]
    pub brand_help_url: Option<HelpUrl>,
    #[command(flatten)]
    pub routes: RouteArgs,
    #[command(flatten)]
    pub traffic: TrafficArgs,
    #[command(flatten)]
    pub limits: Limits,
    #[command(flatten)]
    pub exchange: ExchangeArgs,
    #[command(flatten)]
    pub process: ProcessArgs,
}

/// What one process takes on at once, and of one request.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Limits")]
pub struct Limits {
    /// How many requests may be under way; keep it above three times --max-calls plus three times --max-holds, so that
    /// there is room for documents. Further ones are refused with gRPC's RESOURCE_EXHAUSTED, which Envoy answers with
    /// 503.
    #[arg(long, env = "ENVOY_CIMD_MAX_STREAMS", value_name = "COUNT", default_value = "10000", value_parser = at_least_one)]
    pub max_streams: usize,
    /// How many calls to the choreographer may be under way for presses of the button; as many again for callbacks, for
    /// pages, and for look-ups of tokens. Each takes a stream, for seconds. Further ones get 503; a page is then shown
    /// without what its call would say.
    #[arg(long, env = "ENVOY_CIMD_MAX_CALLS", value_name = "COUNT", default_value = "1000", value_parser = at_least_one)]
    pub max_calls: usize,
    /// How many of each kind one user may have under way, so that the others can sign in; --single-user has 50 times as
    /// many.
    #[arg(long, env = "ENVOY_CIMD_MAX_CALLS_PER_USER", value_name = "COUNT", default_value = "20", value_parser = at_least_one)]
    pub max_calls_per_user: usize,
    /// How many of each kind may be under way for one upstream, so that those of a slow one leave room for the others.
    #[arg(long, env = "ENVOY_CIMD_MAX_CALLS_PER_UPSTREAM", value_name = "COUNT", default_value = "100", value_parser = at_least_one)]
    pub max_calls_per_upstream: usize,
    /// How long the headers of a request that Envoy sends us may be, all names and values together. Longer ones get
    /// 431.
    #[arg(long, env = "ENVOY_CIMD_MAX_HEADER_BYTES", value_name = "BYTES", default_value = "65536", value_parser = at_least_one)]
    pub max_header_bytes: usize,
    /// How long the query of a request may be. Longer ones get 400.
    #[arg(long, env = "ENVOY_CIMD_MAX_QUERY_BYTES", value_name = "BYTES", default_value = "8192", value_parser = at_least_one)]
    pub max_query_bytes: usize,
}

impl Limits {
    /// How many calls may be under way, of each kind.
    pub fn calls(&self) -> ShareLimits {
        ShareLimits { in_all: self.max_calls, of_user: self.max_calls_per_user, of_server: self.max_calls_per_upstream }
    }
}

impl Serve {
    /// How people are known.
    ///
    /// # Errors
    /// Where only a part of it is said, or two ways at once.
    pub fn users(&self) -> anyhow::Result<Users> {
        if self.display_claim.is_some() && self.routes.user_namespace.is_none() {
            bail!("--display-claim is a path in the metadata of --user-namespace, which is not set");
        }
        match (self.single_user, &self.routes.user_namespace, &self.user_issuer, &self.user_subject) {
            (false, None, None, None) => Ok(Users::Unknown),
            (true, None, None, None) => Ok(Users::Single),
            (false, Some(namespace), Some(issuer), Some(subject)) if !namespace.is_empty() => {
                Ok(Users::From(UserSource {
                    namespace: namespace.clone(),
                    issuer: issuer.clone(),
                    subject: subject.clone(),
                    display: self.display_claim.clone(),
                }))
            }
            (true, ..) => bail!("--single-user and --user-namespace, --user-issuer, --user-subject exclude each other"),
            (false, ..) => bail!("--user-namespace, --user-issuer and --user-subject go together"),
        }
    }

    /// The TLS of the connection to `--choreographer`.
    pub fn choreographer_tls(&self) -> client::Config {
        client::Config {
            ca: self.choreographer_ca.clone(),
            cert: self.choreographer_cert.clone(),
            key: self.choreographer_key.clone(),
            peer: self.choreographer_peer.clone(),
        }
    }

    /// # Errors
    /// As [`Self::users`] and [`super::shared::DocumentArgs::paths`].
    pub fn endpoints(&self) -> anyhow::Result<endpoint::Config> {
        Ok(endpoint::Config {
            paths: self.routes.document.paths()?,
            names: self.routes.document.client_name.clone(),
            document_max_age: self.routes.document.document_max_age,
            dynamic_metadata: self.routes.dynamic_metadata,
            users: self.users()?,
            brand: Brand { name: self.brand_name.clone(), help: self.brand_help_url.clone() },
            limits: endpoint::Limits {
                calls: self.limits.calls(),
                max_header_bytes: self.limits.max_header_bytes,
                max_query_bytes: self.limits.max_query_bytes,
            },
        })
    }

    pub fn streams(&self) -> ext_proc::Config {
        ext_proc::Config { max_streams: self.limits.max_streams }
    }
}
