//! Opening the file: with its keys, and whole.

use std::path::Path;

use redb::{Database, ReadableDatabase, TableError};

use super::{
    database::DatabaseFile,
    tables::{CHECK, set_up},
};
use crate::{
    model::seal::Sealer,
    store::{
        error::{OpenError, StoreError},
        key_file::{self, KeysError},
    },
};

/// Opens the file, or makes it, and its keys beside it where no other file is given. Its check record comes along.
///
/// # Errors
/// Where the file cannot be opened, or the keys are not the ones it was sealed with.
pub(super) fn open(path: &Path, encryption_keys: Option<&Path>) -> Result<(DatabaseFile, Sealer, Vec<u8>), OpenError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |reason| OpenError::Keys { path, reason }
    };
    // Keys that are no keys shall not leave an empty store behind.
    let given = encryption_keys.map(|path| key_file::read(path).map_err(at(path))).transpose()?;
    let file = DatabaseFile::open(path)?;
    let content = file.run(content)?;
    let beside = key_file::beside(path);
    let keys_path = encryption_keys.unwrap_or(&beside);
    // Nobody else makes the file meanwhile: whoever would has to open the store first.
    let sealer = match (given, keys_path.try_exists(), &content) {
        (Some(sealer), ..) => sealer,
        (None, Ok(false), Content::Nothing) => key_file::create(keys_path).map_err(at(keys_path))?,
        (None, Ok(false), _) => return Err(at(keys_path)(KeysError::Lost)),
        (None, ..) => key_file::read(keys_path).map_err(at(keys_path))?,
    };
    let (newer, record) = match content {
        Content::Nothing => (
            key_file::check_record(&sealer).map(Some).map_err(|error| StoreError::Failed(error.to_string()))?,
            Vec::new(),
        ),
        Content::Checked(record) => (key_file::check(&sealer, &record).map_err(at(keys_path))?, record),
        Content::Unchecked => return Err(at(keys_path)(KeysError::Wrong)),
    };
    file.run(|database| set_up(database, newer.as_deref()))?;
    Ok((file, sealer, newer.unwrap_or(record)))
}

enum Content {
    Nothing,
    /// The record that tells whether the keys are right.
    Checked(Vec<u8>),
    /// Something, but no such record: it is not ours, or not whole.
    Unchecked,
}

fn content(database: &Database) -> Result<Content, redb::Error> {
    let transaction = database.begin_read()?;
    if transaction.list_tables()?.next().is_none() {
        return Ok(Content::Nothing);
    }
    match transaction.open_table(CHECK) {
        Ok(table) => Ok(table.get(())?.map_or(Content::Unchecked, |record| Content::Checked(record.value().to_vec()))),
        Err(TableError::TableDoesNotExist(_)) => Ok(Content::Unchecked),
        Err(error) => Err(error.into()),
    }
}
