//! Why a store does not do what it was asked.

use std::path::PathBuf;

use super::key_file::KeysError;

/// Why a store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("there are as many flows as --max-flows allows")]
    Full,
    /// The store cannot be reached: nothing was done. The message is for operators and holds no secret.
    #[error("the store failed: {0}")]
    Away(String),
    /// The store failed; it may have done it nevertheless. The message is as above.
    #[error("the store failed: {0}")]
    Failed(String),
}

/// Why a store is not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The store and the keys do not belong together, or the keys are none. Trying again does not help.
    #[error("encryption keys {}: {reason}", path.display())]
    Keys { path: PathBuf, reason: KeysError },
    /// Only a store on this machine has a natural place for its keys.
    #[error("a store in Redis needs --encryption-keys: every process that shares it has the same keys")]
    NoKeys,
    /// The authorities to trust besides the system's.
    #[error("--extra-ca {}: {reason}", path.display())]
    ExtraCa { path: PathBuf, reason: String },
    /// The store itself. It may be reachable later.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Does work that may block, away from what must not.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, StoreError> {
    // It fails where the work panicked, or the runtime ends.
    tokio::task::spawn_blocking(work).await.map_err(|error| StoreError::Failed(error.to_string()))
}
