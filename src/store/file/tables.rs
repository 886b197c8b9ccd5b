//! The tables of the file, but for those of flows.

use redb::{Database, TableDefinition};

use super::flows::FlowTables;

/// What is sealed of a token, by its key.
pub(super) const TOKENS: TableDefinition<&[u8; 32], &[u8]> = TableDefinition::new("tokens-v1");
/// The key of a route's token.
pub(super) const ROUTES: TableDefinition<&[u8; 32], &[u8; 32]> = TableDefinition::new("routes-v1");
/// Until when requests of a route may come again.
pub(super) const AGAIN: TableDefinition<&[u8; 32], u64> = TableDefinition::new("again-v1");
/// The same, by that time.
pub(super) const AGAIN_EXPIRY: TableDefinition<(u64, &[u8; 32]), ()> = TableDefinition::new("again-expiry-v1");
/// The clients that were registered for a route.
pub(super) const REGISTRATIONS: TableDefinition<&[u8; 32], &[u8]> = TableDefinition::new("registrations-v1");
/// The record that tells whether the keys are right.
pub(super) const CHECK: TableDefinition<(), &[u8]> = TableDefinition::new("key-check-v1");

/// Stores the check record, where it is another, and makes all tables that an earlier version did not: from here on they
/// are there.
pub(super) fn set_up(database: &Database, record: Option<&[u8]>) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    if let Some(record) = record {
        transaction.open_table(CHECK)?.insert((), record)?;
    }
    FlowTables::open(&transaction)?;
    transaction.open_table(TOKENS)?;
    transaction.open_table(ROUTES)?;
    transaction.open_table(AGAIN)?;
    transaction.open_table(AGAIN_EXPIRY)?;
    transaction.open_table(REGISTRATIONS)?;
    Ok(transaction.commit()?)
}
