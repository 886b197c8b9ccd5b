//! The file as a database that is opened anew after a failure of the disk.

use std::{
    path::{Path, PathBuf},
    sync::{PoisonError, RwLock},
};

use redb::Database;

use crate::store::{error::StoreError, whole_file};

/// redb would take a gigabyte.
const CACHE_BYTES: usize = 32 << 20;

/// The file, which many may read at once and one may write.
pub(super) struct DatabaseFile {
    path: PathBuf,
    /// None after a failure of the disk: redb then does nothing more until the file is opened anew.
    database: RwLock<Option<Database>>,
}

/// Why a step was not done.
pub(super) enum Failure {
    Redb(redb::Error),
    Store(StoreError),
}

impl<E: Into<redb::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Redb(error.into())
    }
}

impl DatabaseFile {
    /// Opens the file, or makes it.
    ///
    /// # Errors
    /// Where it cannot be opened or made, or another process has it open.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        if !path.exists() {
            make(path).map_err(|error| StoreError::Failed(format!("{}: {error}", path.display())))?;
        }
        let database = builder().create(path).map_err(|error| failed(path, &error.into()))?;
        Ok(Self { path: path.to_owned(), database: RwLock::new(Some(database)) })
    }

    /// Does a step, with the file opened anew where it has to be.
    ///
    /// # Errors
    /// Those of the step, and where the file cannot be opened.
    pub fn run<T, E: Into<Failure>>(&self, step: impl FnOnce(&Database) -> Result<T, E>) -> Result<T, StoreError> {
        let failure = loop {
            let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(database) = database.as_ref() {
                match step(database) {
                    Ok(done) => return Ok(done),
                    Err(error) => break error.into(),
                }
            }
            drop(database);
            let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
            if database.is_none() {
                *database = Some(builder().open(&self.path).map_err(|error| failed(&self.path, &error.into()))?);
            }
        };
        match failure {
            Failure::Store(error) => Err(error),
            Failure::Redb(error) => {
                if needs_reopening(&error) {
                    *self.database.write().unwrap_or_else(PoisonError::into_inner) = None;
                }
                Err(failed(&self.path, &error))
            }
        }
    }

    /// Whether it is opened anew by the next step.
    #[cfg(test)]
    pub fn is_closed(&self) -> bool {
        self.database.read().unwrap_or_else(PoisonError::into_inner).is_none()
    }
}

/// Makes the file whole: one that a death left half made would never open again.
fn make(path: &Path) -> Result<(), redb::Error> {
    let folder = whole_file::folder(path)?;
    // Whoever else makes it is waited for.
    folder.lock()?;
    if path.exists() {
        return Ok(());
    }
    // redb itself would make the file as readable as the umask allows.
    whole_file::make(path, |_, draft| {
        drop(builder().create(draft)?);
        Ok(())
    })
}

pub(super) fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

fn needs_reopening(error: &redb::Error) -> bool {
    use redb::Error::{Backend, Corrupted, DatabaseClosed, Io, LockPoisoned, PreviousIo};
    matches!(error, Io(_) | Backend(_) | PreviousIo | Corrupted(_) | DatabaseClosed | LockPoisoned(_))
}

fn failed(path: &Path, error: &redb::Error) -> StoreError {
    let path = path.display();
    StoreError::Failed(match error {
        redb::Error::DatabaseAlreadyOpen => {
            format!("{path}: another process has it open; processes that share a store need one in Redis")
        }
        error => format!("{path}: {error}"),
    })
}
