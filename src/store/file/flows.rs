//! The tables of flows.

use redb::{ReadableTable, ReadableTableMetadata, Table, TableDefinition, WriteTransaction};
use subtle::ConstantTimeEq;

use super::database::Failure;
use crate::{
    model::clock::UnixTime,
    store::{
        backend::{Flow, FlowLimits, Taken},
        error::StoreError,
        keys::{Context, FlowKey, UserKey},
    },
};

/// A flow by its id: context, user, expiry, sequence, what is sealed (none once it is taken), tombstone.
pub(super) const FLOWS: TableDefinition<&[u8; 32], StoredFlow> = TableDefinition::new("flows-v1");
pub(super) type StoredFlow<'a> = (&'a [u8; 32], &'a [u8; 32], u64, u64, Option<&'a [u8]>, &'a [u8]);
/// Every flow, by expiry and id.
pub(super) const EXPIRY: TableDefinition<(u64, &[u8; 32]), ()> = TableDefinition::new("expiry-v1");
/// Every flow, by user, expiry, sequence and id.
pub(super) const BY_USER: TableDefinition<ByUser, ()> = TableDefinition::new("by-user-v1");
pub(super) type ByUser<'a> = (&'a [u8; 32], u64, u64, &'a [u8; 32]);
/// How many flows were ever added, which tells the older of two apart.
const SEQUENCE: TableDefinition<(), u64> = TableDefinition::new("sequence-v1");

/// How many expired flows, or notes, one call removes, at most: more than it adds, so that they become fewer.
pub(super) const REMOVED_AT_ONCE: usize = 100;

/// The tables of flows, within one transaction.
pub(super) struct FlowTables<'t> {
    flows: Table<'t, &'static [u8; 32], StoredFlow<'static>>,
    expiry: Table<'t, (u64, &'static [u8; 32]), ()>,
    by_user: Table<'t, ByUser<'static>, ()>,
    sequence: Table<'t, (), u64>,
}

/// What of a flow is needed to find it in the other tables.
struct Indexed {
    user: [u8; 32],
    expires_at: u64,
    sequence: u64,
}

impl<'t> FlowTables<'t> {
    pub fn open(transaction: &'t WriteTransaction) -> Result<Self, redb::TableError> {
        Ok(Self {
            flows: transaction.open_table(FLOWS)?,
            expiry: transaction.open_table(EXPIRY)?,
            by_user: transaction.open_table(BY_USER)?,
            sequence: transaction.open_table(SEQUENCE)?,
        })
    }

    pub fn add(mut self, flow: &Flow, limits: FlowLimits, now: UnixTime) -> Result<(), Failure> {
        let Flow { id, context, user, expires_at, sealed, tombstone } = flow;
        let expires_at = *expires_at;
        self.remove_expired(now, REMOVED_AT_ONCE)?;
        if let Some(other) = self.indexed(id)? {
            if other.expires_at > now.secs() {
                return Err(Failure::Store(StoreError::Failed("there is a flow of this id".to_owned())));
            }
            self.remove(id)?;
        }
        if expires_at <= now {
            return Ok(());
        }

        let of_user = self.flows_of(user, now)?;
        let surplus = (of_user.len() + 1).saturating_sub(limits.of_user.max(1));
        let oldest = of_user.get(..surplus).unwrap_or_default();
        for id in oldest {
            self.remove(id)?;
        }
        // More may have expired than was removed above, and those do not count.
        while self.by_user.len()? >= limits.in_all as u64 {
            if self.remove_expired(now, 1)? == 0 {
                return Err(Failure::Store(StoreError::Full));
            }
        }

        let sequence = self.sequence.get(())?.map_or(0, |last| last.value()).wrapping_add(1);
        self.sequence.insert((), sequence)?;
        let (id, context, user, expires_at) = (id.as_bytes(), context.as_bytes(), user.as_bytes(), expires_at.secs());
        self.flows.insert(id, (context, user, expires_at, sequence, Some(sealed.as_slice()), tombstone.as_slice()))?;
        self.expiry.insert((expires_at, id), ())?;
        self.by_user.insert((user, expires_at, sequence, id), ())?;
        Ok(())
    }

    /// What came of it, and whether there is anything to commit.
    pub fn take(mut self, id: &FlowKey, context: &Context, now: UnixTime) -> Result<(Taken, bool), Failure> {
        let removed = self.remove_expired(now, REMOVED_AT_ONCE)? > 0;
        let (indexed, sealed, tombstone) = {
            let Some(stored) = self.flows.get(id.as_bytes())? else {
                return Ok((Taken::Unknown, removed));
            };
            let (stored_context, user, expires_at, sequence, sealed, tombstone) = stored.value();
            if expires_at <= now.secs() {
                return Ok((Taken::Unknown, removed));
            }
            if !bool::from(stored_context.ct_eq(context.as_bytes())) {
                return Ok((Taken::WrongContext, removed));
            }
            let Some(sealed) = sealed else {
                return Ok((Taken::Used(tombstone.to_vec()), removed));
            };
            (Indexed { user: *user, expires_at, sequence }, sealed.to_vec(), tombstone.to_vec())
        };
        let Indexed { user, expires_at, sequence } = indexed;
        self.flows
            .insert(id.as_bytes(), (context.as_bytes(), &user, expires_at, sequence, None, tombstone.as_slice()))?;
        Ok((Taken::Flow(sealed), true))
    }

    /// Removes the first `at_most` of the expired flows, and says how many there were of them.
    fn remove_expired(&mut self, now: UnixTime, at_most: usize) -> Result<usize, redb::Error> {
        let mut expired = Vec::new();
        for entry in self.expiry.range(..=(now.secs(), &[0xff; 32]))?.take(at_most) {
            expired.push(FlowKey::from_bytes(*entry?.0.value().1));
        }
        for id in &expired {
            self.remove(id)?;
        }
        Ok(expired.len())
    }

    /// The flows of a user, the oldest first.
    fn flows_of(&self, user: &UserKey, now: UnixTime) -> Result<Vec<FlowKey>, redb::Error> {
        let user = user.as_bytes();
        let first = (user, now.secs().saturating_add(1), 0, &[0; 32]);
        let last = (user, u64::MAX, u64::MAX, &[0xff; 32]);
        let mut ids = Vec::new();
        for entry in self.by_user.range(first..=last)? {
            ids.push(FlowKey::from_bytes(*entry?.0.value().3));
        }
        Ok(ids)
    }

    fn indexed(&self, id: &FlowKey) -> Result<Option<Indexed>, redb::Error> {
        Ok(self.flows.get(id.as_bytes())?.map(|stored| {
            let (_, user, expires_at, sequence, ..) = stored.value();
            Indexed { user: *user, expires_at, sequence }
        }))
    }

    fn remove(&mut self, id: &FlowKey) -> Result<(), redb::Error> {
        if let Some(Indexed { user, expires_at, sequence }) = self.indexed(id)? {
            let id = id.as_bytes();
            self.flows.remove(id)?;
            self.expiry.remove((expires_at, id))?;
            self.by_user.remove((&user, expires_at, sequence, id))?;
        }
        Ok(())
    }
}
