//! Opening a store, with the keys that seal what goes into it.

use std::{path::Path, sync::Arc};

use super::{backend::Store, error::OpenError, file::FileStore, redis::RedisStore, url::StoreUrl};
use crate::model::seal::Sealer;

/// An open store. It has no `Debug`.
pub struct Opened {
    pub store: Arc<dyn Store>,
    pub sealer: Sealer,
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
                let (store, sealer) = FileStore::open(path, encryption_keys).await?;
                Ok(Opened { store: Arc::new(store), sealer })
            }
            Self::Redis(url) => {
                let encryption_keys = encryption_keys.ok_or(OpenError::NoKeys)?;
                let (store, sealer) = RedisStore::open(url, encryption_keys, extra_ca).await?;
                Ok(Opened { store: Arc::new(store), sealer })
            }
        }
    }
}
