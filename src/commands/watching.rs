//! The config file and the files of secrets, read again while the program runs.

use std::{path::PathBuf, sync::Arc};

use anyhow::bail;
use zeroize::Zeroizing;

use super::{
    config_file::ConfigFile,
    settings::parse::{LoadedFile, setting_keys},
};
use crate::{
    exchange::clients::Clients,
    filter::{endpoint::Endpoints, route_book, state::StateKeys},
    model::secret::parse_keys,
    process::tasks::Tasks,
    telemetry::{
        exposure,
        metrics::Metrics,
        reload::{Watched, fingerprint, watch, watch_each},
    },
};

/// Who takes what the config file says by now.
pub struct Takers {
    /// Where routes are served.
    pub endpoints: Option<Arc<Endpoints>>,
    /// Where the exchange is.
    pub clients: Option<Clients>,
}

/// What a file with `clients:` is told that nothing would use.
pub const CLIENTS_ELSEWHERE: &str =
    "`clients` is for the process that has the tokens: with --choreographer, that is the other one";

impl Takers {
    /// Watches the file, and those of its clients' secrets.
    pub fn watch(self, file: Option<LoadedFile>, metrics: &Arc<Metrics>, tasks: &mut Tasks) {
        // Without a file there are no clients, and never will be.
        let Some(file) = file else { return };
        if let Some(clients) = self.clients.clone() {
            tasks.spawn("the watch over client secrets", watch_secrets(clients, Arc::clone(metrics)));
        }
        tasks.spawn("the watch over the config file", self.watch_file(file, Arc::clone(metrics)));
    }

    async fn watch_file(self, file: LoadedFile, metrics: Arc<Metrics>) -> anyhow::Result<()> {
        let keys = setting_keys();
        let started_with = file.content.settings;
        let watched = Watched { name: "config", paths: vec![file.path], seen: fingerprint(&[&file.text]) };
        watch(watched, metrics, move |contents| {
            let file = ConfigFile::parse(&contents.concat(), &keys)?;
            self.take(&file)?;
            if file.settings != started_with {
                tracing::warn!(
                    "only `routes` and `clients` are read again: the other settings that changed take effect at the next \
                     start"
                );
            }
            Ok(())
        })
        .await
    }

    /// All of it, or nothing.
    fn take(&self, file: &ConfigFile) -> anyhow::Result<()> {
        let routes = match &self.endpoints {
            Some(endpoints) => Some((endpoints, file.route_table(&endpoints.tools.paths)?)),
            None => None,
        };
        match &self.clients {
            Some(clients) => {
                let configured = clients.read(&file.clients)?;
                configured.secret_files().for_each(|secret| exposure::warn(&secret.path));
                clients.take(configured);
            }
            None if !file.clients.is_empty() => bail!(CLIENTS_ELSEWHERE),
            None => {}
        }
        if let Some((endpoints, routes)) = routes {
            route_book::say_file(&routes);
            endpoints.routes.table.store(Arc::new(routes));
        }
        Ok(())
    }
}

async fn watch_secrets(clients: Clients, metrics: Arc<Metrics>) -> anyhow::Result<()> {
    let watched = clients.clone();
    let files = move || watched.configured().secret_files().map(|file| (file.path.clone(), file.seen)).collect();
    watch_each("client_secrets", metrics, files, move |path, content| {
        exposure::warn(path);
        Ok(clients.take_secret(path, content)?)
    })
    .await
}

/// `seen` is what was read at the start.
pub async fn watch_state_keys(path: PathBuf, seen: [u8; 32], endpoints: Arc<Endpoints>) -> anyhow::Result<()> {
    let watched = Watched { name: "state_keys", paths: vec![path.clone()], seen };
    watch(watched, Arc::clone(&endpoints.metrics), move |contents| {
        exposure::warn(&path);
        endpoints.tools.state_keys.store(Arc::new(StateKeys::new(parse_keys(&Zeroizing::new(contents.concat()))?)));
        Ok(())
    })
    .await
}
