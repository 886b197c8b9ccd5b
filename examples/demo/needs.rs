//! What the demo needs of the machine it runs on. A person can mend each, and is told how.

use std::{
    io::ErrorKind,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use tokio::process::Command;

use crate::stack::envoy_executable;

/// envoy-cimd reads its environment, and the demo shows the defaults.
pub fn refuse_settings() -> anyhow::Result<()> {
    let names = std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned());
    match names.into_iter().find(|name| name.starts_with("ENVOY_CIMD_")) {
        Some(name) => bail!("{name} is set, which would change what the demo shows: unset it"),
        None => Ok(()),
    }
}

/// The program, which cargo puts one folder above its examples.
pub fn executable() -> anyhow::Result<PathBuf> {
    let demo = std::env::current_exe().context("where the demo is")?;
    let executable = demo.ancestors().nth(2).unwrap_or(Path::new(".")).join("envoy-cimd");
    if !executable.is_file() {
        bail!("there is no {}: `make demo` builds it", executable.display());
    }
    Ok(executable)
}

/// Where the modules of MCP clients are. `make demo` sees to them, where there is a Node.js that can run them.
pub fn client_modules() -> Option<PathBuf> {
    std::env::var_os("DEMO_MODULES").filter(|folder| !folder.is_empty()).map(PathBuf::from)
}

/// The version of the Envoy that will be started, asked of itself.
pub async fn envoy_version() -> anyhow::Result<String> {
    let envoy = envoy_executable();
    let mend = "set ENVOY to an Envoy 1.40, or leave it unset and `make demo` gets one";
    let output = match Command::new(&envoy).arg("--version").output().await {
        Ok(output) => output,
        Err(error) => bail!("{envoy} cannot be run: {error}; {mend}"),
    };
    // It prints `envoy  version: COMMIT/1.40.0/Clean/RELEASE/BoringSSL`.
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.split_once("version: ").and_then(|(_, version)| version.split('/').nth(1));
    version.map(str::to_owned).with_context(|| format!("{envoy} is no Envoy; {mend}"))
}

/// The port, which is free, or a free one in place of 0.
pub fn free_port(port: u16) -> anyhow::Result<u16> {
    let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).and_then(|listener| listener.local_addr());
    let other = if port == 9443 { 8443 } else { 9443 };
    match bound {
        Ok(address) => Ok(address.port()),
        Err(error) => {
            let why = match error.kind() {
                ErrorKind::AddrInUse => "is taken".to_owned(),
                _ => format!("cannot be had: {error}"),
            };
            bail!("port {port} of 127.0.0.1 {why}; choose another: make demo ARGS=\"--port {other}\"")
        }
    }
}
