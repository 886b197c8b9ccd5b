//! Opening a store, with the keys that seal what goes into it.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::ArcSwap;

use super::{
    backend::Store,
    error::{OpenError, StoreError},
    file::FileStore,
    key_file::{self, KeysError},
    redis::RedisStore,
    url::StoreUrl,
};
use crate::model::seal::Sealer;

/// An open store. It has no `Debug`.
pub struct Opened {
    pub store: Arc<dyn Store>,
    /// Replaced when the keys are.
    pub sealer: ArcSwap<Sealer>,
    /// The store's check record, as it was found last.
    record: Mutex<Vec<u8>>,
}

impl Opened {
    fn new(store: Arc<dyn Store>, sealer: Sealer, record: Vec<u8>) -> Self {
        Self { store, sealer: ArcSwap::from_pointee(sealer), record: Mutex::new(record) }
    }

    /// Seals and opens with other keys from now on.
    ///
    /// # Errors
    /// Where they are not the store's.
    pub fn change_keys(&self, sealer: Sealer) -> Result<(), KeysError> {
        key_file::check(&sealer, &self.last_record())?;
        self.sealer.store(Arc::new(sealer));
        Ok(())
    }

    /// Has the store know its keys by the first of them, so that an older one can go.
    ///
    /// # Errors
    /// Where the store cannot be asked, or was given other keys meanwhile.
    pub async fn renew_check_record(&self) -> Result<(), StoreError> {
        let (sealer, before) = (self.sealer.load_full(), self.last_record());
        let of_others = |error: KeysError| StoreError::Failed(format!("its file of encryption keys {error}"));
        let Some(newer) = key_file::check(&sealer, &before).map_err(of_others)? else { return Ok(()) };
        let there = self.store.check_record(newer, Some(before)).await?;
        key_file::check(&sealer, &there).map_err(of_others)?;
        *self.record.lock().unwrap_or_else(PoisonError::into_inner) = there;
        Ok(())
    }

    fn last_record(&self) -> Vec<u8> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl StoreUrl {
    /// Whether several processes can have it open, which must then have the same keys for everything.
    pub fn is_shared(&self) -> bool {
        matches!(self, Self::Redis(_))
    }

    /// Opens the store, and checks that the keys are the ones it was sealed with. A store that is empty takes whatever
    /// keys come first.
    ///
    /// Without `encryption_keys`, a file store has its keys in a file beside it, `PATH.keys`, which is made with the
    /// store. The folder that they are in must exist. `extra_ca` is a PEM file of authorities that Redis's certificate
    /// may come from, besides the system's.
    ///
    /// # Errors
    /// Where the store cannot be opened or reached, or the keys are missing, wrong or malformed.
    pub async fn open(&self, encryption_keys: Option<&Path>, extra_ca: Option<&Path>) -> Result<Opened, OpenError> {
        match self {
            Self::File(path) => {
                let (store, sealer, record) = FileStore::open(path, encryption_keys).await?;
                Ok(Opened::new(Arc::new(store), sealer, record))
            }
            Self::Redis(url) => {
                let encryption_keys = encryption_keys.ok_or(OpenError::NoKeys)?;
                let (store, sealer, record) = RedisStore::open(url, encryption_keys, extra_ca).await?;
                Ok(Opened::new(Arc::new(store), sealer, record))
            }
        }
    }
}
