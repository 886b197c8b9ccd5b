//! What is kept: a store, opened when it is first needed, and the keys that seal all that goes into it.

use std::{
    fmt::Display,
    fs::DirBuilder,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use rustix::fs::{Access, access};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    sync::{Notify, OnceCell},
    time::sleep,
};
use zeroize::Zeroizing;

use super::{
    error::{OpenError, StoreError, blocking},
    key_file,
    keys::{FlowKey, RegistrationsKey, RouteKey, TokenKey},
    open::Opened,
    url::StoreUrl,
};
use crate::{
    model::seal::UnsealError,
    telemetry::{
        exposure,
        metrics::Metrics,
        reload::{Watched, fingerprint, watch},
    },
};

/// The file store's name in the state directory.
const FILE: &str = "store.redb";
/// How long to leave a store alone that cannot be told of its keys.
const PAUSE: Duration = Duration::from_secs(5);

/// Where the store is, and what opens it.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Where none is given, it is a file in the state directory.
    pub url: Option<StoreUrl>,
    /// Where none is given, systemd's or the user's own.
    pub state_dir: Option<PathBuf>,
    /// Where none is given, a file store has its keys beside it.
    pub encryption_keys: Option<PathBuf>,
    /// A PEM file of authorities that Redis's certificate may come from, besides the system's.
    pub extra_ca: Option<PathBuf>,
}

/// A store that is opened when it is first needed, so that documents are served without one.
pub struct Vault {
    url: StoreUrl,
    encryption_keys: Option<PathBuf>,
    extra_ca: Option<PathBuf>,
    opened: OnceCell<Opened>,
    /// Of the encryption keys' file as it was at start.
    fingerprint: [u8; 32],
    /// The keys were changed.
    changed: Notify,
}

impl Vault {
    /// # Errors
    /// Where no setting and no variable says where the store is, or the file of the encryption keys is none.
    pub fn new(config: Config) -> anyhow::Result<Self> {
        let url = match config.url {
            Some(url) => url,
            None => StoreUrl::File(state_dir(config.state_dir.as_deref())?.join(FILE)),
        };
        if url.is_shared() && config.encryption_keys.is_none() {
            bail!("{}", OpenError::NoKeys);
        }
        let fingerprint = match &config.encryption_keys {
            // At start, whenever the store is opened.
            Some(keys) => {
                let read = key_file::text(keys).and_then(|text| key_file::sealer(&text).map(|_| fingerprint(&[&text])));
                read.with_context(|| format!("--encryption-keys {}", keys.display()))?
            }
            None => Default::default(),
        };
        let Config { encryption_keys, extra_ca, .. } = config;
        Ok(Self { url, encryption_keys, extra_ca, opened: OnceCell::new(), fingerprint, changed: Notify::new() })
    }

    /// The files that hold secrets: the store's, and that of its keys. They need not be there yet.
    pub fn files(&self) -> Vec<PathBuf> {
        let beside = match &self.url {
            StoreUrl::File(path) => vec![path.clone(), key_file::beside(path)],
            StoreUrl::Redis(_) => Vec::new(),
        };
        match &self.encryption_keys {
            Some(keys) => beside.into_iter().take(1).chain([keys.clone()]).collect(),
            None => beside,
        }
    }

    /// Opens what is there already, so that a wrong key or a store in use shows at start. A store that does not exist
    /// yet, or cannot be reached at the moment, is no reason not to serve documents.
    ///
    /// # Errors
    /// Where the store and its keys do not belong together, or a file store cannot be opened.
    pub async fn check(self: &Arc<Self>) -> anyhow::Result<()> {
        match &self.url {
            StoreUrl::File(path) if !path.exists() => Ok(()),
            StoreUrl::File(_) => self.open().await.map(drop).with_context(|| format!("--store {}", self.url)),
            StoreUrl::Redis(_) => match self.open().await {
                Err(error @ (OpenError::Keys { .. } | OpenError::NoKeys | OpenError::ExtraCa { .. })) => {
                    Err(error).with_context(|| format!("--store {}", self.url))
                }
                Err(OpenError::Store(error)) => {
                    tracing::warn!(store = %self.url, %error, "the store cannot be reached yet");
                    Ok(())
                }
                Ok(_) => Ok(()),
            },
        }
    }

    /// Tries whether the store answers, or could be made where there is none yet; makes none.
    ///
    /// # Errors
    /// Why not, in words for operators.
    pub async fn try_out(self: &Arc<Self>) -> Result<(), String> {
        if let StoreUrl::File(path) = &self.url
            && !self.opened.initialized()
        {
            let path = path.clone();
            match blocking(move || can_be_made(&path)).await {
                Ok(Ok(false)) => {}
                Ok(Ok(true)) => return Ok(()),
                Ok(Err(reason)) => return Err(reason),
                Err(error) => return Err(error.to_string()),
            }
        }
        let opened = self.open().await.map_err(|error| format!("the store cannot be opened: {error}"))?;
        // Any look-up will do, and nothing has this key.
        opened.store.token(RouteKey::from_bytes([0; 32])).await.map(drop).map_err(|error| error.to_string())
    }

    /// The open store. What failed to open is tried again at the next call.
    ///
    /// # Errors
    /// As [`StoreUrl::open`].
    pub async fn open(self: &Arc<Self>) -> Result<&Opened, OpenError> {
        loop {
            if let Some(opened) = self.opened.get() {
                return Ok(opened);
            }
            // A task of its own: if whoever asked first leaves, the file is being opened all the same, and nobody else can open
            // it then.
            let vault = Arc::clone(self);
            let opening = tokio::spawn(async move { vault.opened.get_or_try_init(|| vault.make()).await.map(drop) });
            opening.await.unwrap_or_else(|error| Err(StoreError::Failed(error.to_string()).into()))?;
        }
    }

    async fn make(&self) -> Result<Opened, OpenError> {
        if let StoreUrl::File(path) = &self.url {
            // Where it cannot be made, opening says why.
            let _ = path.parent().map(|dir| DirBuilder::new().recursive(true).mode(0o700).create(dir));
        }
        loop {
            let before = self.keys_now();
            let opened = self.url.open(self.encryption_keys.as_deref(), self.extra_ca.as_deref()).await?;
            // What changes before it is open is not told to what is not open yet.
            if self.keys_now() == before {
                return Ok(opened);
            }
        }
    }

    /// Takes the keys of `--encryption-keys` whenever its file changes, for ever. Keys that are not the store's are not
    /// taken.
    ///
    /// # Errors
    /// None.
    pub async fn watch_keys(&self, metrics: Arc<Metrics>) -> anyhow::Result<()> {
        let Some(path) = &self.encryption_keys else { return std::future::pending().await };
        let watched = Watched { name: "encryption_keys", paths: vec![path.clone()], seen: self.fingerprint };
        let taking = watch(watched, metrics, |contents| {
            exposure::warn(path);
            let sealer = key_file::sealer(&Zeroizing::new(contents.concat()))?;
            if let Some(opened) = self.opened.get() {
                opened.change_keys(sealer)?;
                self.changed.notify_one();
            }
            Ok(())
        });
        tokio::try_join!(taking, self.renew_check_record()).map(|((), ())| ())
    }

    /// After each change of the keys, has the store know them by the first. Until it does, the one before stays needed.
    async fn renew_check_record(&self) -> anyhow::Result<()> {
        loop {
            self.changed.notified().await;
            let Some(opened) = self.opened.get() else { continue };
            while let Err(error) = opened.renew_check_record().await {
                tracing::warn!(%error, "the store cannot be told of its new encryption key yet: keep the old one");
                sleep(PAUSE).await;
            }
        }
    }

    fn keys_now(&self) -> Option<[u8; 32]> {
        let text = key_file::text(self.encryption_keys.as_deref()?).ok()?;
        Some(fingerprint(&[&text]))
    }
}

/// Whether a file store could be made that is not there yet; false where it is there.
///
/// # Errors
/// Why not.
fn can_be_made(path: &Path) -> Result<bool, String> {
    if path.exists() {
        return Ok(false);
    }
    let said = |dir: &Path, error: &dyn Display| format!("the store cannot be made in {}: {error}", dir.display());
    let Some(dir) = path.ancestors().skip(1).find(|dir| dir.exists()) else { return Ok(true) };
    if !dir.is_dir() {
        return Err(said(dir, &"is not a folder"));
    }
    access(dir, Access::WRITE_OK | Access::EXEC_OK).map(|()| true).map_err(|error| said(dir, &error))
}

/// What is sealed, and where it is kept: sealed for one place, it opens at no other.
#[derive(Clone, Copy, Debug)]
pub enum Place<'a> {
    Flow(&'a FlowKey),
    Tombstone(&'a FlowKey),
    Token(&'a TokenKey),
    Registrations(&'a RegistrationsKey),
}

impl Place<'_> {
    /// The purpose of the record, and the key that it is stored under.
    fn parts(&self) -> (&'static str, &[u8; 32]) {
        match self {
            Self::Flow(key) => ("flow", key.as_bytes()),
            Self::Tombstone(key) => ("tombstone", key.as_bytes()),
            Self::Token(key) => ("token", key.as_bytes()),
            Self::Registrations(key) => ("registrations", key.as_bytes()),
        }
    }
}

impl Opened {
    /// A value, sealed for its place. None where the system has no randomness.
    pub fn seal<T: Serialize>(&self, place: Place<'_>, value: &T) -> Option<Vec<u8>> {
        let plaintext = Zeroizing::new(serde_json::to_vec(value).ok()?);
        let (purpose, key) = place.parts();
        self.sealer.load().seal(purpose, key, &plaintext).ok()
    }

    /// A value that was sealed for this place, and whether it should be sealed anew.
    ///
    /// # Errors
    /// Where it does not open, or holds another kind of value.
    pub fn unseal<T: DeserializeOwned>(&self, place: Place<'_>, sealed: &[u8]) -> Result<(T, bool), UnsealError> {
        let (purpose, key) = place.parts();
        let unsealed = self.sealer.load().open(purpose, key, sealed)?;
        let value = serde_json::from_slice(&unsealed.plaintext).map_err(|_| UnsealError::Malformed)?;
        Ok((value, unsealed.stale))
    }
}

/// Where state is kept: what the operator says, else what systemd gives, else the user's own place (XDG).
fn state_dir(setting: Option<&Path>) -> anyhow::Result<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    // systemd may give several, with colons between them.
    let of_systemd =
        || std::env::var("STATE_DIRECTORY").ok()?.split(':').next().filter(|dir| !dir.is_empty()).map(PathBuf::from);
    setting
        .map(Path::to_path_buf)
        .or_else(of_systemd)
        .or_else(|| variable("XDG_STATE_HOME").map(|dir| dir.join("envoy-cimd")))
        .or_else(|| variable("HOME").map(|dir| dir.join(".local/state/envoy-cimd")))
        .context("--state-dir is needed: neither STATE_DIRECTORY, XDG_STATE_HOME nor HOME is set")
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    /// A file is opened by one at a time, and an opening that began goes on.
    #[tokio::test]
    async fn who_leaves_while_it_is_opened_keeps_nobody_out() {
        for _ in 0..20 {
            let dir = tempfile::tempdir().expect("a folder");
            let config = Config { state_dir: Some(dir.path().to_owned()), ..Config::default() };
            let vault = Arc::new(Vault::new(config).expect("a vault"));
            assert!(vault.open().now_or_never().is_none(), "it takes longer");
            // So that it has begun.
            tokio::task::yield_now().await;
            vault.open().await.map(drop).expect("the store that the first one left");
        }
    }
}
