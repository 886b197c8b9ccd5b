//! A company whose people sign in: an Envoy and an envoy-cimd of its own, with one route and an identity provider.

use std::path::Path;

use anyhow::Context;
use envoy_cimd::model::secret::generate_key_line;
use tokio::task::JoinSet;

use crate::{
    authorization_server,
    identity_provider::{APPLICATION, IdentityProvider},
    needs,
    running::{Route, envoy_config, text},
    stack::{Certificates, Cimd, Envoy, web::Web},
};

/// The MCP server, and where its route is.
pub const SERVER: (&str, &str, &str) = ("calendar", "calendar.localhost", "");

/// Where people come back to from the provider.
const SIGNED_IN: &str = "/.pomerium/sign-in/callback";

pub struct Company {
    pub envoy: Envoy,
    pub cimd: Cimd,
    pub route: Route,
    /// The identity provider.
    pub issuer: String,
}

impl Company {
    pub async fn start(
        executable: &Path,
        folder: &Path,
        certificates: &Certificates,
        web: &Web,
        servers: &mut JoinSet<String>,
    ) -> anyhow::Result<Self> {
        let folder = folder.join("company");
        std::fs::create_dir(&folder).context("a folder for the company's files")?;
        let port = needs::free_port(0)?;
        let route = Route::start(SERVER, port, certificates, web, servers).await?;
        let provider = IdentityProvider::bind(format!("{}{SIGNED_IN}", route.from.origin()), route.mcp()).await;
        let provider = provider.context("the identity provider")?;
        let issuer = provider.issuer().to_owned();
        let (secret, key) = (folder.join("sign-in.secret"), folder.join("sign-in.key"));
        write(&secret, provider.application_secret())?;
        write(&key, &generate_key_line().context("a key for sessions")?)?;
        provider.serve(servers);
        let cimd = start_cimd(executable, &folder, &certificates.ca).await?;
        let flags = [
            format!("--sign-in={issuer}"),
            format!("--sign-in-authorization-endpoint={issuer}/authorize"),
            format!("--sign-in-token-endpoint={issuer}/token"),
            format!("--sign-in-jwks-uri={issuer}/keys"),
            format!("--sign-in-client-id={APPLICATION}"),
            format!("--sign-in-client-secret={}", secret.display()),
            format!("--sign-in-session-key={}", key.display()),
        ];
        let routes = std::slice::from_ref(&route);
        let config = envoy_config(executable, port, routes, certificates, &cimd.ext_proc, &flags).await?;
        let envoy = Envoy::start(&folder, &config).await;
        Ok(Self { envoy, cimd, route, issuer })
    }
}

/// Starts envoy-cimd for whoever Envoy says has signed in. It listens on a socket that is this user's alone.
async fn start_cimd(executable: &Path, folder: &Path, ca: &Path) -> anyhow::Result<Cimd> {
    let (listen, state_dir) = (folder.join("ext_proc.sock"), folder.join("state"));
    let (listen, state_dir, ca) = (format!("unix:{}", text(&listen)?), text(&state_dir)?, text(ca)?);
    let (name, ..) = SERVER;
    let host = authorization_server::host(name);
    let mut flags = vec!["--listen", &listen, "--state-dir", &state_dir, "--extra-ca", &ca, "--allow-host", &host];
    flags.extend(["--user-namespace", "envoy.filters.http.jwt_authn", "--user-issuer", "jwt_payload.iss"]);
    flags.extend(["--user-subject", "jwt_payload.sub", "--display-claim", "jwt_payload.sub"]);
    Ok(Cimd::start(executable, &flags).await)
}

fn write(path: &Path, secret: &str) -> anyhow::Result<()> {
    // In a folder that only this user enters.
    std::fs::write(path, secret).with_context(|| path.display().to_string())
}
